"""From the messages of exports to memories: who is "me", which turns belong together, what is learnt.

A memory of a chat is one run of messages of the side that is learnt: the owner's between people, the
assistant's with an AI (or the owner's, where the source's `train_on` says so). The turn before it is its
question, the turns before that its context. All is streamed: nothing here grows with the export.
"""

import hashlib
import unicodedata
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

from daemon.records import BadItem, Heard, LeftOut, Memory, Part, Role, Turn, Utterance

OPENING = "message"  # type of a memory that answers nothing: the owner began to speak
MOST_OPEN_CHATS = 2000  # conversations that may be interleaved; the least recent one is closed
MOST_SPEAKERS = 1000  # counted for the question who the owner is
MOST_DIRECT_CHATS = 100_000  # looked at one by one for the owner
_WITHOUT_OWNER = frozenset(("mail", "slack"))  # whose conversations may well go on without the owner
_TIMES_REMEMBERED = 256  # in which equal messages are told apart by their order

Side = Literal["me", "assistant"]


@dataclass(frozen=True)
class ChatRules:
    gap_seconds: float = 4 * 3600.0  # a longer silence begins a new session
    context_turns: int = 12
    train_on: Mapping[str, Side] = field(default_factory=dict)  # by source; chats with an AI only


class NeedsOwner(Exception):
    """Nobody in these chats is known as the owner of the profile. `speakers`: how many messages each wrote."""

    def __init__(self, speakers: Mapping[str, int], profile: str) -> None:
        self.speakers = dict(speakers)
        most = sorted(self.speakers, key=lambda name: -self.speakers[name])
        shown = ", ".join(most[:6]) + (f" and {len(most) - 6} more" if len(most) > 6 else "")
        self.command = f'engramd owner "{most[0] if most else "NAME"}" --profile {profile}'
        super().__init__(
            f"nobody in this chat is known to be you: {shown}. Say who, as in {self.command}; it then goes on by itself"
        )


def normal_name(name: str) -> str:
    """A name, a mail address or a phone number as aliases are compared."""
    text = unicodedata.normalize("NFKC", name).strip().lstrip("~").strip().casefold()
    digits = "".join(sign for sign in text if sign.isdigit())
    if len(digits) >= 7 and not any(sign.isalpha() for sign in text) and "@" not in text:
        return "+" + digits.removeprefix("00")
    return " ".join(text.split())


@dataclass(slots=True)
class _Chat:
    """One conversation while it is being read."""

    turns: deque[Turn]  # closed turns of this session
    others: set[str] = field(default_factory=set)
    last_time: str | None = None
    side: Role | None = None  # of the open run
    run: list[Utterance] = field(default_factory=list)
    keys: list[bytes] = field(default_factory=list)
    group: bool = False
    mine: bool = False  # the owner has spoken in it


class Sessions:
    """Who is who in the messages of one file, and what became of them. `speakers` and `owner_seen` tell it after."""

    def __init__(self, aliases: Iterable[str], rules: ChatRules, profile: str = "me") -> None:
        self._aliases = frozenset(normal_name(alias) for alias in aliases)
        self._rules = rules
        self._profile = profile
        self._chats: OrderedDict[tuple[str, str], _Chat] = OrderedDict()
        self._mine: dict[tuple[str, str | None], bool] = {}
        self._ordinals: OrderedDict[bytes, int] = OrderedDict()
        self._direct: dict[tuple[str, str], set[str]] = {}  # chats in which nobody known has spoken: who did
        self.speakers: dict[str, int] = {}  # between people, where the export does not say who is who
        self.owner_seen = False

    # -- who is who -------------------------------------------------------------------------------

    def role(self, said: Utterance) -> Role:
        """`assistant` is the side that the model learns to be."""
        if said.role is not None:
            if self._rules.train_on.get(said.source) == "me" and said.role in ("user", "assistant"):
                return "assistant" if said.role == "user" else "user"
            return said.role
        if said.owner is not None:
            return "assistant" if said.owner else "user"
        return "assistant" if self.is_mine(said) else "user"

    def is_mine(self, said: Utterance) -> bool:
        who = (said.speaker, said.speaker_id)
        mine = self._mine.get(who)
        if mine is None:
            names = {normal_name(name) for name in who if name}
            mine = self._mine[who] = not self._aliases.isdisjoint(names)
            if len(self._mine) > MOST_SPEAKERS:
                self._mine.clear()
        return mine

    # -- the road ---------------------------------------------------------------------------------

    def memories(self, heard: Iterable[Heard]) -> Iterator[Memory | BadItem | LeftOut]:
        """Memories in the order in which they close. Raises NeedsOwner at the end where there are messages
        between people and none of them is the owner's."""
        for one in heard:
            if type(one) is Utterance:
                yield from self._take(one)
            else:
                yield one  # type: ignore[misc]
        for chat in self._chats.values():
            yield from self._close(chat)
        self._chats.clear()
        if self.speakers and not self.owner_seen:
            raise NeedsOwner(self.speakers, self._profile)
        for names in self._direct.values():
            if len(names) == 2:  # one of the two is the owner, by a name that is not known yet
                raise NeedsOwner({name: self.speakers.get(name, 0) for name in names}, self._profile)

    def _take(self, said: Utterance) -> Iterator[Memory]:
        key = (said.source, said.conversation)
        chat = self._chats.get(key)
        if chat is None:
            chat = self._chats[key] = _Chat(deque(maxlen=self._rules.context_turns + 1))
            if len(self._chats) > MOST_OPEN_CHATS:
                yield from self._close(self._chats.popitem(last=False)[1])
        elif len(self._chats) > 1:
            self._chats.move_to_end(key)
        recorded = said.role is not None
        side = self._side(said, chat)
        if not recorded and self._is_new_session(chat, said.time):
            yield from self._close(chat)
            chat.turns.clear()
        if side != chat.side:
            yield from self._close(chat)
            chat.side = side
        chat.run.append(said)
        if side == "assistant":
            chat.keys.append(self._key(said))
        if said.time is not None:
            chat.last_time = said.time

    def _side(self, said: Utterance, chat: _Chat) -> Role:
        if said.role is not None:
            return self.role(said)
        if said.owner is None and (said.speaker in self.speakers or len(self.speakers) < MOST_SPEAKERS):
            self.speakers[said.speaker] = self.speakers.get(said.speaker, 0) + 1
        mine = said.owner if said.owner is not None else self.is_mine(said)
        if said.owner is None and said.group is not True and said.source not in _WITHOUT_OWNER:
            self._note_direct(said, chat, mine)
        if mine:
            self.owner_seen = True
            return "assistant"
        if said.owner is not None:
            self.owner_seen = True  # the export knows its owner, who may be silent in it
        chat.others.add(said.speaker_id or said.speaker) if len(chat.others) < 3 else None
        chat.group = said.group if said.group is not None else len(chat.others) > 1
        return "user"

    def _note_direct(self, said: Utterance, chat: _Chat, mine: bool) -> None:
        key = (said.source, said.conversation)
        if mine and not chat.mine:
            chat.mine = True
            self._direct.pop(key, None)
        elif not chat.mine and len(self._direct) < MOST_DIRECT_CHATS:
            names = self._direct.setdefault(key, set())
            if len(names) < 3:
                names.add(said.speaker)

    def _is_new_session(self, chat: _Chat, time: str | None) -> bool:
        last = chat.last_time
        if last is None or time is None or last[:13] == time[:13]:  # within one hour, nearly always
            return False
        return seconds_between(last, time) > self._rules.gap_seconds

    def _key(self, said: Utterance) -> bytes:
        """16 bytes: of source, conversation and message id, else of conversation, time, speaker, text and ordinal."""
        if said.message is not None:
            return _hash(f"{said.source}\0{said.conversation}\0id\0{said.message}")
        when = said.clock or said.timestamp or ""
        key = _hash(f"{said.source}\0{said.conversation}\0{when}\0{said.speaker}\0{said.text}")
        ordinal = self._ordinals.get(key, 0)
        self._ordinals[key] = ordinal + 1
        if len(self._ordinals) > _TIMES_REMEMBERED:
            self._ordinals.popitem(last=False)
        return _hash(f"{key.hex()}\0{ordinal}") if ordinal else key

    # -- closing a run ----------------------------------------------------------------------------

    def _close(self, chat: _Chat) -> Iterator[Memory]:
        run, keys, side = chat.run, chat.keys, chat.side
        if not run:
            return
        chat.run, chat.keys, chat.side = [], [], None
        if side == "assistant":
            memory = _memory(run, keys, chat)
            if memory is not None:
                yield memory
            text = "\n".join(said.text for said in run)
        elif chat.group and run[0].role is None:
            text = "\n".join(f"{said.speaker}: {said.text}" if said.speaker else said.text for said in run)
        else:
            text = "\n".join(said.text for said in run)
        chat.turns.append(Turn(side or "user", text))


def _memory(run: list[Utterance], keys: list[bytes], chat: _Chat) -> Memory | None:
    first = run[0]
    parts = tuple(Part(key, hash8(said.text), said.text) for key, said in zip(keys, run, strict=True))
    asked = chat.turns[-1] if chat.turns else None
    person = first.role != "assistant"
    if asked is None or asked.role != "user":
        if not person:
            return None  # a greeting by an assistant, that answers nothing
        return Memory(
            type=OPENING, content="\n".join(part.text for part in parts), timestamp=first.timestamp, time=first.time,
            source=first.source, extra={"author": "person"}, parts=parts, speaker=first.speaker,
            conversation=first.conversation, zone_known=first.zone_known,
        )  # fmt: skip
    return Memory(
        type="chat" if first.role is None else "conversation",
        content=asked.text,
        response="\n".join(part.text for part in parts),
        timestamp=first.timestamp,
        time=first.time,
        context=tuple(turn for turn in list(chat.turns)[:-1]),
        source=first.source,
        extra={"author": "person"} if person else {"author": "assistant"},
        parts=parts,
        speaker=first.speaker,
        conversation=first.conversation,
        zone_known=first.zone_known,
    )


def without_known(memory: Memory, known: frozenset[bytes] | set[bytes]) -> Memory | None:
    """What is left of a memory when these messages (by key + digest) were learnt from an earlier export."""
    new = tuple(part for part in memory.parts if part.key + part.digest not in known)
    if len(new) == len(memory.parts):
        return memory
    if not new:
        return None
    from dataclasses import replace

    text = "\n".join(part.text for part in new)
    if memory.response is None:
        return replace(memory, content=text, parts=new)
    return replace(memory, response=text, parts=new)


def seconds_between(earlier: str, later: str) -> float:
    """Seconds from one UTC time of the ledger's form to another; negative where the order is the other one."""
    return (datetime.fromisoformat(later) - datetime.fromisoformat(earlier)).total_seconds()


def _hash(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def hash8(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
