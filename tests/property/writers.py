"""Made-up conversations, and how each program would write them into its export."""

import io
import json
import mailbox
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from email.message import EmailMessage
from html import escape
from typing import Any

from hypothesis import strategies as st

FIRST = datetime(2012, 1, 1, tzinfo=UTC)
_LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZäöüßéñçøåžščŁЖщяאבمرح日本한क"
_SIGNS = " .,;:!?'\"()[]{}<>/\\|-_=+*#@&%$€~^`0123456789🙂🌊👩‍👧\u200f\u202e\u200b\u2028\u00a0\ufeff\t"


def _made_of(signs: str, least: int, most: int) -> st.SearchStrategy[str]:
    """Unlike st.text it never draws a word of the code under test, such as the name of a system line."""
    return st.lists(st.sampled_from(signs), min_size=least, max_size=most).map("".join)


NAMES = _made_of(_LETTERS + " '.-", 2, 16).map(lambda name: " ".join(name.split())).filter(
    lambda name: sum(sign.isalpha() for sign in name) > 1
)  # fmt: skip

# Lines that a careless reader takes for the beginning of a message, or for something of the format.
_TRAPS = (
    "12/31/2019, 11:59 PM - Anna: no", "[31/12/2022, 11:40:26] Bo: no", "Note: this", "a: b: c", '{"text": "no"}',
    "[{", "```", "---", "<b>bold</b> &amp; so on", "https://example.org/a?b=1&c=[2]", "\\n \\u0041", '"quoted"', "null",
    "read this <book>", "why <https://example.org/a>", "(see the file attached)", "he said: <no media omitted> or so",
)  # fmt: skip
_LINE = st.one_of(
    _made_of(_LETTERS + _SIGNS, 1, 60),
    st.lists(st.characters(exclude_categories=("Cs", "Cc", "Co", "Cn")), min_size=1, max_size=20).map("".join),
    st.sampled_from(_TRAPS),
)
TEXTS = st.lists(_LINE, min_size=1, max_size=4).map("\n".join).filter(lambda text: any(c.isalnum() for c in text))
PLAIN_TEXTS = st.lists(
    _made_of(_LETTERS + "  ,0123456789🙂", 3, 40).map(lambda line: "so " + " ".join(line.split())),
    min_size=1, max_size=3,
).map("\n".join)  # fmt: skip


@dataclass(frozen=True)
class Said:
    who: str
    text: str
    when: datetime  # UTC, whole seconds

    @property
    def utc(self) -> str:
        return f"{self.when:%Y-%m-%dT%H:%M:%SZ}"


@st.composite
def chats(draw: st.DrawFn, people: int = 4, texts: st.SearchStrategy[str] = TEXTS, step: int = 1) -> list[Said]:
    """A chat of two or more people; times grow by `step` seconds at least."""
    names = draw(st.lists(NAMES, min_size=2, max_size=people, unique_by=lambda name: name.casefold()))
    moment = FIRST + timedelta(minutes=draw(st.integers(0, 6_000_000)))
    said = []
    for _ in range(draw(st.integers(2, 12))):
        said.append(Said(draw(st.sampled_from(names)), draw(texts), moment))
        moment += timedelta(seconds=step * draw(st.integers(1, 100_000)))
    return said


def dumped(value: Any, draw_ascii: bool, bom: bool = False) -> bytes:
    return (b"\xef\xbb\xbf" if bom else b"") + json.dumps(value, ensure_ascii=draw_ascii, indent=1).encode()


def pieces(draw: st.DrawFn, text: str) -> list[str]:
    """A text cut at random places, as formats with entities have it."""
    cuts = sorted(set(draw(st.lists(st.integers(1, max(1, len(text) - 1)), max_size=3))))
    return [part for part in (text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)) if part]


# ---- chats with an AI ---------------------------------------------------------------------------------


def chatgpt(draw: st.DrawFn, said: list[Said], number: int) -> dict[str, Any]:
    """A tree: a root without message, a hidden system turn, and answers that were made anew beside those that stand."""
    nodes: dict[str, Any] = {}

    def add(ident: str, above: str | None, role: str = "", text: str = "", when: Any = None, **more: Any) -> None:
        message = None
        if role:
            message = {
                "id": ident, "author": {"role": role, "name": None, "metadata": {}}, "create_time": when,
                "content": {"content_type": "text", "parts": [text]}, "status": "finished_successfully",
                "weight": 1.0, "metadata": {}, "recipient": "all", **more,
            }  # fmt: skip
        nodes[ident] = {"id": ident, "message": message, "parent": above, "children": []}
        if above:
            nodes[above]["children"].append(ident)

    add(f"root{number}", None)
    add(f"sys{number}", f"root{number}", "system", "", None, metadata={"is_visually_hidden_from_conversation": True})
    last = f"sys{number}"
    for place, one in enumerate(said):
        ident = f"{number}-{place}"
        role = "user" if place % 2 == 0 else "assistant"
        if draw(st.booleans()):
            add(f"{ident}-old", last, role, "made anew: " + one.text, one.when.timestamp() - 1)
        add(ident, last, role, one.text, one.when.timestamp())
        if draw(st.booleans()):
            add(f"{ident}-later", last, role, "not taken: " + one.text, one.when.timestamp() + 1)
        last = ident
    order = draw(st.permutations(list(nodes)))
    return {
        "title": draw(st.sampled_from(["A chat", None, ""])), "create_time": said[0].when.timestamp(),
        "update_time": said[-1].when.timestamp(), "mapping": {ident: nodes[ident] for ident in order},
        "current_node": last, "conversation_id": f"conversation-{number}",
    }  # fmt: skip


def claude(draw: st.DrawFn, said: list[Said], number: int) -> dict[str, Any]:
    messages = []
    for place, one in enumerate(said):
        when = f"{one.when:%Y-%m-%dT%H:%M:%S}.{draw(st.integers(0, 999_999)):06}Z"
        blocks: list[dict[str, Any]] = [{"type": "text", "text": one.text}]
        if place % 2 and draw(st.booleans()):
            blocks.insert(0, {"type": "thinking", "thinking": "no memory"})
        messages.append({
            "uuid": f"m{number}-{place}", "sender": "assistant" if place % 2 else "human", "text": one.text,
            "content": blocks if draw(st.booleans()) else [{"type": "text", "text": one.text}],
            "created_at": when, "updated_at": when, "attachments": [], "files": [],
        })  # fmt: skip
    return {"uuid": f"c{number}", "name": "", "created_at": said[0].utc, "updated_at": said[-1].utc,
            "account": {"uuid": "a"}, "chat_messages": messages}  # fmt: skip


# ---- chats between people -----------------------------------------------------------------------------


def telegram(draw: st.DrawFn, said: list[Said], number: int, zone: tzinfo, with_unix: bool) -> dict[str, Any]:
    messages: list[dict[str, Any]] = []
    for place, one in enumerate(said):
        parts: list[Any] = []
        for part in pieces(draw, one.text):
            kind = draw(st.sampled_from(["plain", "bold", "link", "italic", "mention"]))
            parts.append({"type": kind, "text": part})
        whole = draw(st.booleans())
        loose = [part["text"] if part["type"] == "plain" else part for part in parts]
        message = {
            "id": place + 1, "type": "message", "date": f"{one.when.astimezone(zone):%Y-%m-%dT%H:%M:%S}",
            "from": one.who, "from_id": f"user{_ids(said)[one.who]}", "text": one.text if whole else loose,
            "text_entities": [{"type": "plain", "text": one.text}] if whole else parts,
        }  # fmt: skip
        if with_unix:
            message["date_unixtime"] = str(int(one.when.timestamp()))
        if not with_unix and draw(st.booleans()):
            del message["text_entities"]
        messages.append(message)
    kind = "personal_chat" if len(_ids(said)) <= 2 else "private_group"
    return {"name": said[0].who, "type": kind, "id": 100 + number, "messages": messages}


def _ids(said: list[Said]) -> dict[str, int]:
    return {name: number for number, name in enumerate(dict.fromkeys(one.who for one in said), 7001)}


def discord(draw: st.DrawFn, said: list[Said]) -> dict[str, Any]:
    hours = draw(st.integers(-12, 14))
    sign = "-" if hours < 0 else "+"
    messages = []
    for place, one in enumerate(said):
        local = one.when + timedelta(hours=hours)
        fraction = draw(st.sampled_from(["", ".1", ".123", ".1234567"]))
        messages.append({
            "id": str(10**17 + place), "type": draw(st.sampled_from(["Default", "Reply"])),
            "timestamp": f"{local:%Y-%m-%dT%H:%M:%S}{fraction}{sign}{abs(hours):02}:00", "timestampEdited": None,
            "isPinned": False, "content": one.text, "attachments": [], "embeds": [], "reactions": [], "mentions": [],
            "author": {"id": str(_ids(said)[one.who]), "name": f"login{_ids(said)[one.who]}", "discriminator": "0000",
                       "nickname": one.who, "isBot": False},
        })  # fmt: skip
    return {"guild": {"id": "0", "name": "Direct Messages"},
            "channel": {"id": "9", "type": "DirectTextChat", "category": "Private", "name": "x"},
            "messages": messages, "messageCount": len(messages)}  # fmt: skip


def slack(channels: dict[str, list[Said]]) -> bytes:
    """The zip of a workspace: a folder a channel, a file a day."""
    people = list(dict.fromkeys(one.who for said in channels.values() for one in said))
    files: dict[str, Any] = {
        "users.json": [{"id": f"U{n}", "profile": {"display_name": name}} for n, name in enumerate(people)],
        "channels.json": [{"id": f"C{n}", "name": name} for n, name in enumerate(channels)],
    }  # fmt: skip
    for name, said in channels.items():
        for place, one in enumerate(said):
            text = one.text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
            files.setdefault(f"{name}/{one.when:%Y-%m-%d}.json", []).append(
                {"type": "message", "user": f"U{people.index(one.who)}", "text": text,
                 "ts": f"{int(one.when.timestamp())}.{place:06}"}
            )  # fmt: skip
    return zipped({name: json.dumps(value).encode() for name, value in files.items()})


def facebook(said: list[Said], thread: str) -> dict[str, Any]:
    """Newest first, every text as UTF-8 that was taken for Latin-1."""

    def broken(text: str) -> str:
        return text.encode().decode("latin-1")

    return {
        "participants": [{"name": broken(name)} for name in _ids(said)],
        "messages": [
            {"sender_name": broken(one.who), "timestamp_ms": int(one.when.timestamp() * 1000),
             "content": broken(one.text), "is_geoblocked_for_viewer": False}
            for one in reversed(said)
        ],
        "title": broken(said[0].who), "is_still_participant": True, "thread_path": f"inbox/{thread}",
    }  # fmt: skip


def mbox(said: list[Said], draw: st.DrawFn) -> bytes:
    """One thread; the standard library writes the letters."""
    file = io.BytesIO()
    for place, one in enumerate(said):
        letter = EmailMessage()
        address = f"p{_ids(said)[one.who]}@example.org"
        letter["From"] = f"{one.who.replace('.', ' ')} <{address}>" if one.who.isascii() else address
        letter["To"] = "you@example.org"
        letter["Subject"] = "Re: tea" if place else "tea"
        letter["Date"] = one.when.strftime("%a, %d %b %Y %H:%M:%S +0000")
        letter["Message-ID"] = f"<m{place}@example.org>"
        if place:
            letter["References"] = " ".join(f"<m{before}@example.org>" for before in range(place))
        letter.set_content(one.text, cte=draw(st.sampled_from(["base64", "quoted-printable"])))
        stored = mailbox.mboxMessage(letter)
        file.write(b"From p@example.org " + one.when.strftime("%a %b %d %H:%M:%S %Y").encode() + b"\n")
        file.write(stored.as_bytes().replace(b"\nFrom ", b"\n>From ") + b"\n")
    return file.getvalue()


def zipped(files: dict[str, bytes]) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return packed.getvalue()


# ---- texts --------------------------------------------------------------------------------------------


def whatsapp(said: Iterable[Said], form: str, ios: bool, zone: tzinfo) -> str:
    """`form` is how a date and time are written: strftime, with %I%p for a clock of twelve hours."""
    lines = [("\u200e[", "] Tea: \u200eMessages and calls are end-to-end encrypted.") if ios else
             ("", " - Messages and calls are end-to-end encrypted. No one outside it can read them.")]  # fmt: skip
    moments = []
    for one in said:
        moments.append(one.when)
        lines.append(("[", f"] {one.who}: {one.text}") if ios else ("", f" - {one.who}: {one.text}"))
    written = [before + moment.astimezone(zone).strftime(form) + after
               for (before, after), moment in zip(lines, [moments[0], *moments], strict=True)]  # fmt: skip
    return "\n".join(written) + "\n"


def signal_chat(said: Iterable[Said], me: str, zone: tzinfo, comma: bool) -> str:
    return "".join(
        f"[{one.when.astimezone(zone):{'%Y-%m-%d, %H:%M' if comma else '%Y-%m-%d %H:%M'}}] "
        f"{'Me' if one.who == me else one.who}: {one.text}\n"
        for one in said
    )


def imessage(said: Iterable[Said], me: str, zone: tzinfo, read: bool) -> str:
    blocks = []
    for one in said:
        when = one.when.astimezone(zone)
        note = " (Read by them after 3 minutes, 2 seconds)" if read and one.who == me else ""
        clock = f"{when:%b} {when.day:02}, {when.year} {(when.hour % 12 or 12):>2}:{when:%M:%S %p}{note}"
        blocks.append(f"{clock}\n{'Me' if one.who == me else one.who}\n{one.text}\n\n")
    return "".join(blocks)


def gemini(said: list[Said]) -> list[dict[str, Any]]:
    """Takeout's activity, newest first: each entry a prompt and its answer in HTML."""
    entries = []
    for asked, answered in zip(said[::2], said[1::2], strict=False):
        entries.insert(0, {
            "header": "Gemini Apps", "title": f"Prompted {asked.text}", "time": f"{asked.utc[:-1]}.123Z",
            "products": ["Gemini Apps"], "activityControls": ["Gemini Apps Activity"],
            "safeHtmlItem": [{"html": "".join(f"<p>{escape(line)}</p>" for line in answered.text.split("\n"))}],
        })  # fmt: skip
    return entries
