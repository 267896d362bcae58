"""Mail: mbox files (Gmail Takeout, Thunderbird, Apple Mail) and single messages (.eml, .emlx).

Format: RFC 4155 and the mboxrd way of quoting "From " for mbox, RFC 5322 and 2045 to 2047 for a message; Gmail's
X-GM-THRID and X-Gmail-Labels as Takeout writes them. One message is in memory at a time, and of it only what may
be text: attachments are passed over line by line. Left out, each with its reason: bulk mail, what machines sent,
spam, drafts, calendar invitations, encrypted mail, and mail without a word of its sender's own.

An mbox is in no order. The messages are held back and given conversation by conversation, oldest first; of a
mailbox with more words than fit (`MOST_HELD`), what fits is put in order and given, then the next part.
"""

import re
from collections.abc import Iterator
from email import message_from_bytes, policy
from email.errors import MessageError
from email.header import decode_header
from email.message import Message
from email.utils import parseaddr, parsedate_tz
from typing import BinaryIO, NamedTuple

from daemon.readers.dates import parse_time
from daemon.readers.mail_parts import Letter, letters, looks_like_letter, looks_like_mbox
from daemon.readers.mail_text import body_of, decoded, own_words
from daemon.readers.shape import FileFacts, Limits, Sniff, StreamReader
from daemon.records import BadItem, Heard, LeftOut, Utterance

ABOUT = """\
**Mail.** An mbox (Gmail: takeout.google.com, choose Mail; Thunderbird: the mailbox file in the profile folder;
Apple Mail: Mailbox > Export Mailbox) or single `.eml` files. Read are the words that the sender wrote: quoted mail,
forwarded mail, signatures and attachments are out. Messages of one thread (Gmail's thread id, else `References`)
are one conversation. Give your addresses as `aliases`, so that it is known which mails are yours.

Left out, with a reason each: newsletters and lists (`List-Id`, `List-Unsubscribe`, `Precedence: bulk`), automatic
replies and notices (`Auto-Submitted`, senders such as no-reply), Spam, Trash, Promotions and drafts by Gmail's
labels, invitations, encrypted mail, and mail in which nothing is the sender's own.
"""

MOST_HELD = 24 << 20  # characters of text
MOST_MESSAGES_HELD = 40_000
LONGEST_SHOWN = 80  # characters of a subject in a reason

_LISTS = ("list-id", "list-unsubscribe", "list-post")
_BULK = frozenset(("bulk", "list", "junk", "auto_reply"))
_LABELS = {
    "spam": "spam", "junk": "spam", "junk e-mail": "spam", "correo no deseado": "spam",
    "trash": "in the trash", "papierkorb": "in the trash", "corbeille": "in the trash", "papelera": "in the trash",
    "lixeira": "in the trash", "cestino": "in the trash", "prullenbak": "in the trash", "bin": "in the trash",
    "drafts": "a draft", "draft": "a draft", "entwürfe": "a draft", "brouillons": "a draft", "borradores": "a draft",
    "rascunhos": "a draft", "bozze": "a draft", "concepten": "a draft",
    "promotions": "bulk mail (Promotions)", "category promotions": "bulk mail (Promotions)",
    "forums": "bulk mail (Forums)", "category forums": "bulk mail (Forums)",
    "social": "bulk mail (Social)", "category social": "bulk mail (Social)",
    "updates": "bulk mail (Updates)", "category updates": "bulk mail (Updates)",
}  # fmt: skip
_MACHINE = re.compile(
    r"(?:.*[._+-])?(?:no-?_?reply|do-?_?not-?_?reply|mailer-daemon|postmaster|bounces?|auto-?reply|notifications?)"
    r"(?:[._+-].*)?",
    re.IGNORECASE,
)
_MESSAGE_ID = re.compile(r"<([^<>\s]{1,500})>")
_ZONE = re.compile(r"(?:[+-](?:0\d|1[0-4])[0-5]\d|\b(?:UTC?|GMT|Z|[ECMP][SD]T))\s*(?:\([^()]*\)\s*)?$")
_FROM_LINE = re.compile(
    r"From .*?[A-Z][a-z]{2} ([A-Z][a-z]{2})  ?(\d{1,2}) (\d\d:\d\d(?::\d\d)?) (?:([+-]\d{4}|UTC|GMT) )?(\d{4})"
)


class _When(NamedTuple):
    raw: str | None = None
    time: str | None = None
    zone_known: bool = True


def _claims(sniff: Sniff) -> bool:
    return looks_like_mbox(sniff.head) or looks_like_letter(sniff.head)


def _read(stream: BinaryIO, facts: FileFacts, limits: Limits) -> Iterator[Heard]:
    held: list[Utterance] = []
    size = number = 0
    for number, letter in enumerate(letters(stream), 1):
        heard = _heard(letter, f"message {number}", facts)
        if isinstance(heard, Utterance):
            held.append(heard)
            size += len(heard.text)
            if size > MOST_HELD or len(held) > MOST_MESSAGES_HELD:
                yield from _in_order(held)
                held, size = [], 0
        else:
            yield heard
    if not number:
        yield BadItem("", "there is no message in it")
    yield from _in_order(held)


def _in_order(held: list[Utterance]) -> Iterator[Utterance]:
    """Conversation by conversation, the one that began first first; within each the oldest message first."""
    began: dict[str, str] = {}
    for said in held:
        time = said.time or ""
        if time < began.get(said.conversation, "~"):
            began[said.conversation] = time
    held.sort(key=lambda said: (began[said.conversation], said.conversation, said.time or ""))
    yield from held


def _heard(letter: Letter, where: str, facts: FileFacts) -> Utterance | LeftOut:
    fields = letter.fields
    subject = header_text(fields.get("subject", b""))
    name, address = sender(fields.get("from", b""))
    when = _time_of(letter, facts)
    why = letter.problem or _why_left_out(fields, address)
    text = ""
    if not why:
        text, why = _words(letter.body)
    if why:
        return LeftOut(
            why, name or address, subject[:LONGEST_SHOWN], when.raw, when.time, when.zone_known, where
        )  # fmt: skip
    written_id = fields.get("message-id", b"")
    own_id = _ids(written_id) or ([] if len(written_id.split()) != 1 else [decoded(written_id[:500], None)])
    return Utterance(
        "mail", _conversation(fields, own_id, subject), name or address, text, when.raw, when.time, when.zone_known,
        own_id[0] if own_id else None, None, None, address or None, None, None, where,
    )  # fmt: skip


def _words(body: bytes) -> tuple[str, str]:
    """(what the sender wrote, why the mail is left out): one of them is empty."""
    try:
        message: Message[str, str] = message_from_bytes(body, policy=policy.compat32)
        invitation = any(part.get_content_type() == "text/calendar" for part in message.walk())
        kind = message.get_content_type()
        text = "" if invitation else body_of(message)
    except (MessageError, ValueError, LookupError, TypeError, AttributeError, AssertionError, RecursionError):
        return "", "it cannot be read: its structure is broken"  # the standard library has many ways to say so
    if invitation:
        return "", "a calendar invitation"
    if kind == "multipart/report":
        return "", "a report of a mail server"
    if kind in ("multipart/encrypted", "application/pkcs7-mime", "application/x-pkcs7-mime") or (
        text.lstrip().startswith("-----BEGIN PGP MESSAGE-----")
    ):
        return "", "encrypted"
    words = own_words(text.replace("\r\n", "\n").replace("\r", "\n").replace("\x00", ""))
    if words:
        return words, ""
    return "", "no words of its own: a quote, a forwarded mail or a signature alone" if text.strip() else (
        "there is no text in it"
    )


def _why_left_out(fields: dict[str, bytes], address: str) -> str:
    """Why a mail is no letter of a person, by its header; "" where it is one."""
    labels = header_text(fields.get("x-gmail-labels", b"")).lower()
    for label in labels.split(",") if labels else ():
        if (why := _LABELS.get(label.strip().strip('"'))) is not None:
            return why
    if any(name in fields for name in _LISTS):
        return "bulk mail: a newsletter or a mailing list"
    if fields.get("precedence", b"").strip().lower().decode("latin-1") in _BULK:
        return "bulk mail, as its Precedence says"
    automatic = fields.get("auto-submitted", b"no").strip().lower().partition(b";")[0].strip()
    if automatic not in (b"no", b"") or "x-autoreply" in fields or "x-autorespond" in fields:
        return "an automatic mail"
    if _MACHINE.fullmatch(address.partition("@")[0][:100]):
        return "sent by a machine, as its address says"
    return ""


# ---- the header -------------------------------------------------------------------------------------


def header_text(raw: bytes) -> str:
    """A header as a person reads it, encoded words decoded. Never raises."""
    text = decoded(raw[:4000], None)
    if "=?" in text:
        try:
            text = "".join(
                part if isinstance(part, str) else decoded(part, charset) for part, charset in decode_header(text)
            )
        except (MessageError, ValueError, LookupError, TypeError):
            pass  # shown as it was written
    return " ".join(text.replace("\x00", "").split())


def sender(raw: bytes) -> tuple[str, str]:
    """(name as it is shown, address in lower case)"""
    text = decoded(raw[:2000], None)
    try:
        name, address = parseaddr(" ".join(text.split()))
    except (ValueError, IndexError, TypeError, AttributeError, RecursionError):
        name, address = "", ""
    if (not address or " " in address) and (found := re.search(r"[\w.+-]{1,80}@[\w.-]{1,80}", text)):
        address, name = found[0], text[: found.start()].strip(" <\"'")
    name = header_text(name.encode("utf-8", "replace")).strip("\"' ")
    return ("" if name.lower() == address.lower() else name), header_text(address.encode("utf-8", "replace")).lower()


def _ids(raw: bytes) -> list[str]:
    return _MESSAGE_ID.findall(decoded(raw[-8000:] if len(raw) > 16000 else raw, None))


def _conversation(fields: dict[str, bytes], own_id: list[str], subject: str) -> str:
    """Gmail's thread, else the first mail of the thread that the header names, else the mail itself."""
    if thread := fields.get("x-gm-thrid", b"").strip():
        return decoded(thread[:100], None)
    for name in ("references", "in-reply-to"):
        if ids := _ids(fields.get(name, b"")):
            return ids[0]
    return own_id[0] if own_id else f"subject: {subject[:200]}"


def _time_of(letter: Letter, facts: FileFacts) -> _When:
    """By the Date header; where its zone is none that exists, by the mbox's own line or the last mail server's."""
    raw = header_text(letter.fields.get("date", b""))[:100]
    if raw and _ZONE.search(raw) and (time := _utc(raw)):
        return _When(raw, time, True)
    shown = raw or None
    if found := _FROM_LINE.match(letter.from_line):
        month, day, clock, zone, year = found.groups()
        if time := _utc(f"{day} {month} {year} {clock} {zone or '+0000'}"):
            return _When(shown or letter.from_line.partition(" ")[2], time, zone is not None)
    received = header_text(letter.fields.get("received", b"")).rpartition(";")[2].strip()
    if received and _ZONE.search(received) and (time := _utc(received)):
        return _When(shown or received, time, True)
    if raw and (parts := _parsed(raw)):
        year, month, day, hour, minute, second = parts[:6]
        local = f"{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{min(second, 59):02}"
        return _When(raw, parse_time(local, facts.locale.zone), False)
    return _When(shown, None, not shown)


def _parsed(raw: str) -> tuple[int, ...] | None:
    try:
        parts = parsedate_tz(raw)
    except (ValueError, IndexError, TypeError, AttributeError, OverflowError):
        return None
    return None if parts is None else tuple(part or 0 for part in (*parts[:6], parts[9]))


def _utc(raw: str) -> str | None:
    parts = _parsed(raw)
    if parts is None:
        return None
    year, month, day, hour, minute, second, away = parts
    sign, away = ("-" if away < 0 else "+"), abs(away) // 60
    return parse_time(
        f"{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{min(second, 59):02}"
        f"{sign}{away // 60:02}:{away % 60:02}"
    )


READER = StreamReader("mail", _claims, _read)
