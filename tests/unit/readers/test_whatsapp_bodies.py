"""WhatsApp: what is no message of a person, in the words of many languages, and what of a message is one."""

import io
from datetime import timedelta, timezone
from typing import Any

import pytest

from daemon import readers
from daemon.readers import whatsapp_words as words
from daemon.records import LeftOut, Utterance

ZONE = timezone(timedelta(hours=2))
L = "\u200e"


def heard(body: str, ios: bool, name: str = "Ann: ", number: int = 0) -> Any:
    """What a body gives, between two messages of the same person so that the quick way of reading is tried too."""
    begin = ["[31/12/23, 21:{:02}:05] " if ios else "31/12/23, 21:{:02} - "][0]
    lines = [begin.format(1) + "Ann: before", begin.format(2) + name + body, begin.format(3) + "Ann: behind"]
    raw = ("\n".join(lines) + "\n").encode()
    locale = readers.Locale(ZONE)
    got: list[Any] = list(readers.read(io.BytesIO(raw), "WhatsApp Chat with Ann.txt", len(raw), None, locale=locale))
    assert [one.text for one in (got[0], got[-1])] == ["before", "behind"]
    (one,) = got[1:-1]
    return one


def reason(body: str, ios: bool = False, name: str = "Ann: ") -> str:
    one = heard(body, ios, name)
    assert isinstance(one, LeftOut), one
    return one.reason


def text(body: str, ios: bool = False) -> str:
    one = heard(body, ios)
    assert isinstance(one, Utterance), one
    return one.text


# ---- media ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("body", [
    "<Media omitted>", "<Medien ausgeschlossen>", "<Multimedia omitido>", "<Arquivo de mídia oculto>",
    "<Médias omis>",
    "<Media omessi>", "<Media weggelaten>", "<Без медиафайлов>", "<Medya dahil edilmedi>", "<Pominięto multimedia>",
    "<省略多媒体文件>", "<미디어 파일을 제외한 내보내기>", "<メディアは含まれていません>", "<Video note omitted>",
    f"{L}IMG-20231231-WA0001.jpg (file attached)", "IMG-20231231-WA0001.jpg (file attached)",
    f"{L}IMG-20231231-WA0001.jpg (Datei angehängt)", f"{L}PTT-20231231-WA0002.opus (archivo adjunto)",
    f"{L}STK-20231231-WA0003.webp (tệp được đính kèm)", "Anna Berg.vcf (file attached)",
    f"{L}Steuer 2022 (neu).pdf (Datei angehängt)", "VID-20231231-WA0001.mp4 (файл добавлен)",
    f"<attached: 00000021-PHOTO-2023-12-31-21-41-05.jpg>{L}", "<View once voice message omitted>",
])  # fmt: skip
def test_media_alone_on_android(body: str) -> None:
    assert reason(body) == "media"


@pytest.mark.parametrize("body", [
    f"{L}image omitted", f"{L}GIF omitted", f"{L}Contact card omitted", f"{L}document omitted", "image omitted",
    f"{L}Bild weggelassen", "Bild weggelassen", f"{L}imagen omitida", f"{L}image absente", f"{L}immagine omessa",
    f"{L}afbeelding weggelaten", f"{L}görüntü dahil edilmedi", "\u200fהתמונה הושמטה", "\u200fتم استبعاد الصورة",
    f"{L}<attached: 00000021-PHOTO-2023-12-31-21-41-05.jpg>", f"{L}<Anhang: 00000021-PHOTO-2023-12-31-21-41-05.jpg>",
    f"{L}<pièce jointe : 00000021-PHOTO-2023-12-31-21-41-05.jpg>", f"{L}<附件：00000021-PHOTO-2023-12-31.jpg>",
    f"{L}<xyzzy: 00000021-STICKER-2023-12-31-21-41-05.webp>", "<attached: 00000021-PHOTO-2023-12-31-21-41-05.jpg>",
    f"report 2023.pdf • {L}12 pages {L}<attached: 00000030-report 2023.pdf>",
    f"{L}a.pdf • {L}2 pages {L}document omitted",
    f"report.pdf {L}document omitted", f"{L}<attached: 00000030-{'very long ' * 12}name.pdf>",
])  # fmt: skip
def test_media_alone_on_ios(body: str) -> None:
    assert reason(body, ios=True) == "media"


@pytest.mark.parametrize(("body", "ios"), [
    (f"{L}IMG-20231231-WA0001.jpg (file attached)\nA view: from the hill\nand down", False),
    ("IMG-20231231-WA0001.jpg (Datei angehängt)\nA view: from the hill\nand down", False),
    (f"A view: from the hill\nand down {L}<attached: 00000021-PHOTO-2023-12-31-21-41-05.jpg>", True),
    (f"A view: from the hill\nand down {L}image omitted", True),
    (f"A view: from the hill\nand down {L}Bild weggelassen", True),
    (f"{L}image omitted\nA view: from the hill\nand down", True),
    (f"A view: from the hill\nand down {L}<adjunto: 00000021-PHOTO.jpg> {L}<Se editó este mensaje.>", True),
])  # fmt: skip
def test_a_caption_is_what_was_said(body: str, ios: bool) -> None:
    assert text(body, ios) == "A view: from the hill\nand down"


def test_a_caption_of_one_line() -> None:
    assert text(f"Look {L}image omitted", ios=True) == "Look"
    assert text(f"Look {L}<attached: 00000021-VIDEO-2023.mp4>", ios=True) == "Look"


# ---- deleted, edited, seen once ---------------------------------------------------------------------


@pytest.mark.parametrize("body", [
    "This message was deleted", "This message was deleted.", "You deleted this message",
    "Diese Nachricht wurde gelöscht.",
    "Du hast diese Nachricht gelöscht.", "Se eliminó este mensaje.", "Eliminaste este mensaje.", "Mensagem apagada",
    "Você apagou esta mensagem", "Ce message a été supprimé", "Questo messaggio è stato eliminato",
    "Bu mesaj silindi",
    "Dit bericht is verwijderd", "Данное сообщение удалено", "Ta wiadomość została usunięta", "הודעה זו נמחקה",
    "تم حذف هذه الرسالة", "此消息已删除", "Pesan ini telah dihapus", "このメッセージは削除されました",
    "यह मैसेज मिटाया गया",
])  # fmt: skip
def test_a_deleted_message(body: str) -> None:
    assert reason(body) == "a deleted message"
    assert reason(L + body, ios=True) == "a deleted message"


def test_a_deleted_message_by_an_admin() -> None:
    assert reason(f"{L}This message was deleted by admin ~\u202fMia.", ios=True) == "a deleted message"


@pytest.mark.parametrize("mark", [
    "This message was edited", "Diese Nachricht wurde bearbeitet.", "Se editó este mensaje.", "Mensagem editada",
    "Ce message a été modifié", "Questo messaggio è stato modificato", "Bericht bewerkt", "Сообщение изменено",
    "Bu mesaj düzenlendi", "此消息已编辑", "Edytowano tę wiadomość",
])  # fmt: skip
def test_an_edited_message_is_its_text(mark: str) -> None:
    for ios in (False, True):
        assert text(f"At ten: by the gate {L}<{mark}>", ios) == "At ten: by the gate"
        assert text(f"At ten\nby the gate {L}<{mark}>", ios) == "At ten\nby the gate"
    assert text(f"At ten <{mark}>") == "At ten"


@pytest.mark.parametrize("body", ["", " ", L, "\u00a0", "<This message was edited>", f"{L}<This message was edited>"])
def test_a_message_without_a_text(body: str) -> None:
    assert reason(body) == "an empty message, or one that could be seen once"


def test_a_message_whose_space_behind_the_colon_was_cut() -> None:
    assert reason("", name="Ann:") == "an empty message, or one that could be seen once"
    assert heard("\nhello: on the next line", ios=False, name="Ann:").text == "hello: on the next line"


def test_null_is_a_call_or_what_could_be_seen_once() -> None:
    assert reason("null") == "a call"


# ---- calls, polls, places, cards --------------------------------------------------------------------


@pytest.mark.parametrize("body", [
    "Missed voice call", "Missed video call", "Missed group video call", "Voice call, \u200e2 min",
    "Video call, \u200e1 hr",
    "Voice call. \u200eTap to call back", "Verpasster Sprachanruf", "Llamada perdida", "Appel vocal manqué",
])  # fmt: skip
def test_calls(body: str) -> None:
    assert reason(L + body, ios=True) == "a call"


@pytest.mark.parametrize(("body", "ios"), [
    ("POLL:\nWhich day?\nOPTION: Monday (2 votes)\nOPTION: Tuesday (0 votes)", False),
    (f"{L}POLL:\nWhich day?\n{L}OPTION: Monday ({L}2 votes)\n{L}OPTION: Tuesday ({L}0 votes)", True),
    ("UMFRAGE:\nWelcher Tag?\nOPTION: Montag (2 Stimmen)\nOPTION: Dienstag (1 Stimme)", False),
    ("ENQUETE:\nQual dia?\nOPÇÃO: Segunda (2 votos)\nOPÇÃO: Terça (0 votos)", False),
    ("ОПРОС:\nКогда?\nВАРИАНТ: Завтра (2 голоса)\nВАРИАНТ: Потом (0 голосов)", False),
    ("SONDAGE :\nQuel jour ?\nOPTION : Lundi (2 votes)\nOPTION : Mardi (0 votes)", False),
])  # fmt: skip
def test_polls(body: str, ios: bool) -> None:
    assert reason(body, ios) == "a poll"


def test_lines_in_capitals_are_no_poll() -> None:
    for body in ("TODO:\n- milk\n- bread", "LISTE:\nA: Anna (kommt)\nB: Ben", "WHY:\nbecause (1 reason)"):
        assert text(body) == body


@pytest.mark.parametrize("body", [
    "location: https://maps.google.com/?q=52.5,13.4", "Standort: https://maps.google.com/?q=52.5,-13.4",
    "localização: https://maps.google.com/?q=52.5,13.4", "Sijainti: https://maps.google.com/?q=52.5,13.4",
    "live location shared", "位置: https://maps.google.com/?q=52.5,13.4",
])  # fmt: skip
def test_places(body: str) -> None:
    assert reason(body) == "a place on the map"
    assert reason(L + body, ios=True) == "a place on the map"


# ---- notices ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("line", [
    "Messages and calls are end-to-end encrypted. No one outside of this chat can read them. Tap to learn more.",
    "Nachrichten und Anrufe sind Ende-zu-Ende-verschlüsselt.",
    "Los mensajes y las llamadas están cifrados de extremo a extremo.",
    'Ann created group "Trip: Rome"', 'Ann created group “Trip: Rome”', "Ann added Ben", "+49 170 1 left", "You left",
    'Ann changed the subject from "A: a" to "B: b"', 'Ann changed the subject to "Trip: Rome"',
    "Ann hat Ben hinzugefügt",
    "Ann hat den Betreff von „Alt: x“ zu „Neu: y“ geändert", "Ann a changé l'objet en « Voyage : Rome »",
    "Ann changed this group's icon", "You're now an admin", "Ann joined using this group's invite link",
    "Your security code with Ann changed. Tap to learn more.", "Missed voice call", "Missed video call",
    "‎Ann turned on disappearing messages. New messages will disappear from this chat 24 hours after they're sent.",
    "\u2068Ann\u2069 added \u2068Ben\u2069", "Ann pinned a message", "Анна добавил(а) Бен", "أضاف علي سارة",
    "安娜加入了群组",
])  # fmt: skip
def test_a_line_without_a_name_is_a_notice(line: str) -> None:
    assert reason("", name=line) == "a notice of WhatsApp"


@pytest.mark.parametrize("body", [
    f"{L}Ann created this group", f"{L}You were added", f"{L}Ann changed the group name to “Trip: Rome”",
    f"{L}Your security code with Ann changed.", f"{L}Mia joined using this group's invite link",
    f"{L}You received a view once photo. For added privacy, you can only open it on your phone.",
    f"{L}Анна добавила вас",
])  # fmt: skip
def test_on_ios_notices_stand_in_the_place_of_the_group(body: str) -> None:
    assert "notice of WhatsApp" in reason(body, ios=True, name="My Group 2023: ")


def test_a_notice_is_known_without_its_mark() -> None:
    body = "Messages and calls are end-to-end encrypted. No one outside of this chat, not even WhatsApp, can read them."
    assert reason(body, ios=True, name="My Group: ") == "a notice of WhatsApp"


@pytest.mark.parametrize("body", [
    "+972 50-123-4567", "12:30?", "https://example.org/a?b=c", "😀😀", "first line\nand a second: of a person",
])  # fmt: skip
def test_a_mark_that_a_person_has_sent_hides_no_words(body: str) -> None:
    assert text(L + body, ios=True) == body


def test_marks_within_a_text_do_no_harm() -> None:
    assert text(f"a {L}b: c", ios=True) == f"a {L}b: c"
    assert text("\u200fשלום", ios=True) == "שלום"
    assert text(f"{L}hello") == "hello"  # of Android, where a mark says nothing


# ---- the lists --------------------------------------------------------------------------------------


def test_what_is_written_by_whatsapp_is_found_quickly_in_its_own_case() -> None:
    assert {one.casefold() for one in words.EXACT} == words.ALONE
    assert {"Diese Nachricht wurde gelöscht.", "Bild weggelassen", "GIF omitted", "image omitted"} <= words.EXACT


def test_no_word_is_of_two_halves_of_the_day() -> None:
    halves = (words.FORENOON, words.AFTERNOON, words.NOON, words.OF_24_HOURS)
    assert len(frozenset().union(*halves)) == sum(map(len, halves))
    assert all(word == word.casefold() for half in halves for word in half)
