"""Mail: where a message begins, who wrote it and when, and which of its words are the sender's own."""

import io
import random
import time
from datetime import timedelta, timezone

import pytest

from daemon import readers
from daemon.readers import mail, mail_parts
from daemon.readers.mail_text import decoded, own_words, unwrapped, words_of_html
from daemon.readers.shape import Sniff
from daemon.records import Heard, LeftOut, Refused, Utterance

ZONE = timezone(timedelta(hours=2))
HEAD = "From: Anna Berg <anna@mail.example>\nMessage-ID: <1@mail.example>\nDate: Mon, 15 Jan 2024 09:00:00 +0100\n"


def heard(text: str | bytes, name: str = "x.eml") -> list[Heard]:
    data = text if isinstance(text, bytes) else text.encode()
    return list(readers.read(io.BytesIO(data), name, len(data), None, locale=readers.Locale(ZONE)))


def one(text: str | bytes) -> Utterance:
    (said,) = heard(text)
    assert isinstance(said, Utterance), said
    return said


def reason(header: str, body: str = "Some words.") -> str:
    """Why a mail is left out, beside one that is taken, since a file of which nothing is taken is refused."""
    box = f"From a Mon Jan 15 09:00:00 2024\n{header}\n{body}\n\nFrom a Mon Jan 15 09:00:00 2024\n{HEAD}\nTaken.\n"
    left, taken = heard(box, "x.mbox")
    assert isinstance(left, LeftOut) and isinstance(taken, Utterance)
    return left.reason


# ---- messages ---------------------------------------------------------------------------------------


def test_what_is_claimed() -> None:
    def claims(head: bytes) -> bool:
        return mail.READER.claims(Sniff("x", head))

    assert claims(b"From a@b Mon Jan 15 09:00:00 2024\nSubject: x\n")
    assert claims(b"From 178@xxx Mon Jan 15 09:00:00 +0000 2024\r\nX-GM-THRID: 1\r\n")
    assert claims(b"Return-Path: <a@b>\nFrom: a@b\n\nx")
    assert claims(b"812\nFrom: a@b\nDate: x\n\nx")
    assert not claims(b"From now on I rise at 9:00, since 2024.\nIt is hard.\n")
    assert not claims(b"From: the train, 9:00\nDate: 2024\n\nA text.")
    assert not claims(b"Date: 2024-01-15\nTitle: From a@b\n\nA journal.")
    assert not claims(b"Dear Anna,\nFrom: a@b\nDate: x\n")
    assert not claims(b'{"From": "a@b"}')


def test_a_line_that_begins_with_from_is_no_new_message() -> None:
    body = "One.\nFrom here on it rains.\n\nFrom now on I stay in.\n\n>From the lake.\n>>From deep.\n"
    box = f"From a@b Mon Jan 15 09:00:00 2024\n{HEAD}\n{body}\nFrom a@b Mon Jan 15 10:00:00 2024\n{HEAD}\nTwo.\n"
    texts = [said.text for said in heard(box, "x.mbox") if isinstance(said, Utterance)]
    assert texts == ["One.\nFrom here on it rains.\n\nFrom now on I stay in.\n\nFrom the lake.", "Two."]


def test_messages_of_a_thread_come_oldest_first_and_threads_together() -> None:
    def message(number: int, thread: int, day: int) -> str:
        return (
            f"From a Mon Jan 15 09:00:00 2024\nX-GM-THRID: {thread}\nFrom: a@b\nMessage-ID: <{number}@x>\n"
            f"Date: {day} Jan 2024 09:00:00 +0000\n\nText {number}.\n\n"
        )

    box = message(1, 7, 20) + message(2, 8, 12) + message(3, 7, 10) + message(4, 8, 15) + message(5, 7, 15)
    assert [(said.conversation, said.message) for said in heard(box, "x") if isinstance(said, Utterance)] == [
        ("7", "3@x"), ("7", "5@x"), ("7", "1@x"), ("8", "2@x"), ("8", "4@x"),
    ]  # fmt: skip


def test_a_mailbox_that_does_not_fit_is_put_in_order_piece_by_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mail, "MOST_MESSAGES_HELD", 2)
    box = "".join(
        f"From a Mon Jan 15 09:00:00 2024\nFrom: a@b\nMessage-ID: <{n}@x>\nX-GM-THRID: 1\n"
        f"Date: {20 - n} Jan 2024 09:00:00 +0000\n\nText {n}.\n\n"
        for n in range(5)
    )
    ids = [said.message for said in heard(box, "x") if isinstance(said, Utterance)]
    assert ids == ["2@x", "1@x", "0@x", "4@x", "3@x"]


@pytest.mark.parametrize(
    ("fields", "conversation"),
    [
        ("X-GM-THRID: 178\nReferences: <a@x> <b@x>\n", "178"),
        ("References: <a@x>\n\t<b@x>\nIn-Reply-To: <b@x>\n", "a@x"),
        ("In-Reply-To: Your mail of Monday <b@x>\n", "b@x"),
        ("References: rubbish\n", "1@mail.example"),
    ],
)
def test_the_conversation(fields: str, conversation: str) -> None:
    said = one(f"{HEAD}{fields}\nText.")
    assert (said.conversation, said.message) == (conversation, "1@mail.example")


@pytest.mark.parametrize(
    ("raw", "name", "address"),
    [
        (b"Anna Berg <Anna@Mail.example>", "Anna Berg", "anna@mail.example"),
        (b"anna@mail.example", "", "anna@mail.example"),
        (b'"anna@mail.example" <anna@mail.example>', "", "anna@mail.example"),
        (b"=?utf-8?q?J=C3=BCrgen?= <j@x.example>", "Jürgen", "j@x.example"),
        ("Jürgen <j@x.example>".encode("latin-1"), "Jürgen", "j@x.example"),
        (b'"Berg, Anna" <a@x.example> (home)', "Berg, Anna", "a@x.example"),
        (b"Anna Berg a@x.example", "Anna Berg", "a@x.example"),
        (b"", "", ""),
        (b"<<<>>>,;:\\\"", None, None),
    ],
)
def test_the_sender(raw: bytes, name: str | None, address: str | None) -> None:
    got = mail.sender(raw)
    assert name is None or got == (name, address)


@pytest.mark.parametrize(
    ("date", "time", "known"),
    [
        ("Mon, 15 Jan 2024 09:00:00 +0100", "2024-01-15T08:00:00Z", True),
        ("15 Jan 24 09:00 EST (home)", "2024-01-15T14:00:00Z", True),
        ("Mon, 15 Jan 2024 09:00:00", "2024-01-15T07:00:00Z", False),
        ("Mon, 15 Jan 2024 09:00:00 +9900", "2024-01-15T07:00:00Z", False),
        ("Mon, 15 Jan 2024 09:00:00 CEST", "2024-01-15T07:00:00Z", False),
        ("soon", None, False),
    ],
)
def test_the_time_of_a_mail_alone(date: str, time: str | None, known: bool) -> None:
    said = one(f"From: a@b.example\nMessage-ID: <1@x>\nDate: {date}\n\nText.")
    assert (said.timestamp, said.time, said.zone_known) == (date, time, known)


def test_a_bad_zone_falls_back_to_the_line_of_the_mbox_then_to_the_server() -> None:
    mails = "From: a@b.example\nMessage-ID: <1@x>\nDate: Mon, 15 Jan 2024 09:00:00 +9900\n"
    assert one(f"From a@b Mon Jan 15 10:00:00 2024\n{mails}\nText.").time == "2024-01-15T10:00:00Z"
    assert one(f"From 1@xxx Mon Jan 15 10:00:00 +0100 2024\n{mails}\nText.").time == "2024-01-15T09:00:00Z"
    server = "Received: from a by b; Mon, 15 Jan 2024 11:00:00 +0000\n"
    assert one(f"{server}{mails}\nText.").time == "2024-01-15T11:00:00Z"


@pytest.mark.parametrize(
    ("header", "why"),
    [
        ("From: a@b\nList-Unsubscribe: <mailto:x>\n", "bulk mail: a newsletter or a mailing list"),
        ("From: a@b\nPrecedence: Bulk\n", "bulk mail, as its Precedence says"),
        ("From: a@b\nAuto-Submitted: auto-generated; x=y\n", "an automatic mail"),
        ("From: Shop <no-reply@b>\n", "sent by a machine, as its address says"),
        ("From: a@b\nX-Gmail-Labels: Inbox,Spam\n", "spam"),
        ("From: a@b\nX-Gmail-Labels: =?UTF-8?Q?Papierkorb,Ungelesen?=\n", "in the trash"),
        ("From: a@b\nContent-Type: multipart/report; boundary=x\n", "a report of a mail server"),
        ("From: a@b\nContent-Type: application/pdf\n", "there is no text in it"),
    ],
)
def test_what_is_left_out(header: str, why: str) -> None:
    assert reason(header) == why


def test_what_a_person_sends_automatically_is_still_theirs() -> None:
    assert one(f"{HEAD}Auto-Submitted: no\nPrecedence: first-class\n\nText.").text == "Text."


def test_a_message_without_end_is_left_out_and_the_next_one_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mail_parts, "LONGEST_MESSAGE", 10_000)
    assert reason(HEAD, "long line\n" * 2000).startswith("longer than")


def test_an_attachment_is_never_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mail_parts, "LONGEST_MESSAGE", 10_000)
    letter = (
        f'{HEAD}Content-Type: multipart/mixed; boundary="b b"\n\n--b b\n\nLook at this.\n'
        "--b b\nContent-Type: image/png\nContent-Transfer-Encoding: base64\n\n" + "iVBORw0KGgoAAAAN\n" * 5000
        + "--b b\nContent-Type: message/rfc822\n\nFrom: x@y\nContent-Type: text/plain\n\nAn older mail.\n"
        "--b b\nContent-Type: text/plain\n\nAnd at that.\n--b b--\n"
    )  # fmt: skip
    assert one(letter).text == "Look at this.\nAnd at that."


# ---- words ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "own"),
    [
        ("Thanks, that works.\n\nI bring:\n- bread\n- soup\n\nBest,\nAnna", None),
        ("Yes.\n\n-- \nAnna\nTel. 1", "Yes."),
        ("Yes.\n--\nAnna", "Yes."),
        ("Yes.\n\nSent from my iPhone", "Yes."),
        ("Ja.\n\nVon meinem iPhone gesendet", "Ja."),
        ("Yes.\n\nOn Mon, Jan 15, 2024 at 9:00 AM Anna <a@b.c> wrote:\n> Will you?\n> Say so.", "Yes."),
        ("Yes.\n\nOn Mon, Jan 15, 2024 at 9:00 AM Anna Berg\n<anna@mail.example> wrote:\n\n> Will you?", "Yes."),
        ("Yes.\n\nOn Mon, Jan 15, 2024 at 9:00 AM Anna wrote:\n\nWill you?\n\nAnna", "Yes."),
        ("Ja.\n\nAm 15.01.24 um 09:00 schrieb Anna Berg:\n> Kommst du?", "Ja."),
        ("Oui.\n\nLe lun. 15 janv. 2024 à 09:00, Anna <a@b.c> a écrit :\n\n> Tu viens ?", "Oui."),
        ("Sí.\n\nEl lun, 15 ene 2024 a las 9:00, Ana (<a@b.c>) escribió:\n\n> ¿Vienes?", "Sí."),
        ("Да.\n\nпн, 15 янв. 2024 г. в 09:00, Анна <a@b.c>:\n> Придёшь?\n", "Да."),
        ("Anna Berg wrote:\n> Will you?\n\nYes, I will.", "Yes, I will."),
        ("> Will you?\nYes.\n\n> And Ben?\nNo.", "Yes.\n\nNo."),
        ("Yes.\n\n-----Original Message-----\nFrom: Anna\nSent: Monday\n\nWill you?", "Yes."),
        ("Ja.\n\n________________________________\nVon: Anna\nGesendet: Montag\nAn: Ben\n\nKommst du?", "Ja."),
        ("See below.\n\n---------- Forwarded message ---------\nFrom: Rail\n\nLate.", "See below."),
        ("Begin forwarded message:\n\nFrom: Rail\n", ""),
        ("From: is what the form says.\nI do not know why.", None),
        ("In 2024 she wrote:\n\nCome home.", None),
        ("This is what I wrote:\nCome home.", None),
        ("A -- dash -- stays.\n\n* * *\n\nSo do stars.", None),
    ],
)  # fmt: skip
def test_own_words(written: str, own: str | None) -> None:
    assert own_words(written) == (written if own is None else own)


def test_own_words_of_a_signed_mail() -> None:
    signed = "-----BEGIN PGP SIGNED MESSAGE-----\nHash: SHA256\n\nText.\n- - item\n-----BEGIN PGP SIGNATURE-----\nabc\n"
    assert own_words(signed) == "Text.\n- item"


def test_words_of_html() -> None:
    page = (
        "<html><head><title>T</title><style>p{}</style></head><body><!-- a > b --><p>One &amp; two.<br>Three&nbsp;four."
        "</p>\n<div>Five\n six.</div><div>Seven.</div><div style='display: none'>Hidden <div>deep</div></div>"
        "<ul><li>a<li>b</ul><div class=\"gmail_quote\"><div>Old</div> and <div>older</div></div>Last.</body></html>"
    )
    assert words_of_html(page) == "One & two.\nThree four.\n\nFive six.\nSeven.\n\n- a\n- b\n\nLast."
    assert words_of_html('Yes.<div id="divRplyFwdMsg">From: Anna</div><div>Will you?</div>') == "Yes."
    assert words_of_html("5 < 6 and 7 > 4 <b>always</b>") == "5 < 6 and 7 > 4 always"


def test_flowed_text_has_its_own_lines_again() -> None:
    assert unwrapped("One \ntwo.\n Three\n> a \n> b\n-- \nAnna", False) == "One two.\nThree\n>a b\n-- \nAnna"
    assert unwrapped("日本 \n語", True) == "日本語"


@pytest.mark.parametrize(
    ("raw", "charset", "text"),
    [
        (b"caf\xe9", "unknown-8bit", "café"), (b"caf\xc3\xa9", "x-what", "café"), (b"caf\xe9", None, "café"),
        (b"\x93a\x94", "iso-8859-1", "“a”"), (b"caf\xc3\xa9", "us-ascii", "café"), (b"a", "punycode", "a"),
        (b"a", "zip", "a"), (b"a", "a\x00b", "a"), (b"\x1b$B$\"\x1b(B", "iso-2022-jp", "あ"),
        (b"+2AA-", "utf-7", "+2AA-"),
    ],
)  # fmt: skip
def test_encodings(raw: bytes, charset: str | None, text: str) -> None:
    assert decoded(raw, charset) == text


# ---- hostile input ----------------------------------------------------------------------------------


def test_hostile_text_takes_no_time() -> None:
    began = time.process_time()
    for piece in (
        "On ", "\n", "> ", "On x\n", "wrote:\n", "On 9:00 a@b wrote ", "From: a\n", "--\n", "<", "<a ", "<!--", ">\n",
        "<div class=", "&", "Sent from my ", "-- \n", "=?", "a wrote b:\n", "Forwarded message\n", "a b:\n", "9:00 <",
    ):  # fmt: skip
        own_words(piece * (100_000 // len(piece)))
        words_of_html(piece * (100_000 // len(piece)))
        mail.header_text((piece * 5000).encode())
        mail.sender((piece * 5000).encode())
    assert time.process_time() - began < 20  # what is not linear in this takes minutes


def test_no_bytes_make_it_raise_anything_else() -> None:
    rng = random.Random(3)
    seed = (
        f'From a@b Mon Jan 15 09:00:00 2024\n{HEAD}MIME-Version: 1.0\nContent-Type: multipart/mixed; boundary="b"\n\n'
        "--b\nContent-Type: text/plain; charset=utf-8; format=flowed\nContent-Transfer-Encoding: quoted-printable\n\n"
        "Text =C3=A9.\n--b\nContent-Type: text/html; charset=latin1\nContent-Transfer-Encoding: base64\n\n"
        "PGI+YTwvYj4=\n--b--\n\nFrom a@b Mon Jan 15 09:00:00 2024\nSubject: =?utf-8?b?w6k=?=\nFrom: =?x?q?a?= <a@b>\n"
        "\nEnd.\n"
    ).encode()
    for _ in range(1000):
        data = bytearray(seed)
        for _ in range(rng.randrange(1, 8)):
            place = rng.randrange(60, len(data))
            data[place : place + rng.randrange(3)] = rng.choice([b"", b"\x00", b'"', b";", b"=", b"\n", b"\xff", b"--"])
        try:
            for said in heard(bytes(data), "x.mbox"):
                assert isinstance(said, LeftOut) or (isinstance(said, Utterance) and said.text.strip())
                str(said).encode()
        except Refused as refused:
            assert str(refused)
