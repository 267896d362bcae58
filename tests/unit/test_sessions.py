"""From messages to memories: who is me, which turns belong together, what a grown export adds."""

import pytest

from daemon.records import LeftOut, Memory, Turn, Utterance
from daemon.rules.sessions import ChatRules, NeedsOwner, Sessions, normal_name, without_known


def said(speaker: str, text: str, minute: int = 0, **more: object) -> Utterance:
    time = f"2024-03-01T{9 + minute // 60:02}:{minute % 60:02}:00Z"
    fields = {"timestamp": time, "time": time, "clock": time[:-1], "zone_known": False} | more
    return Utterance("whatsapp", str(fields.pop("conversation", "Anna")), speaker, text, **fields)  # type: ignore[arg-type]


def memories(*items: Utterance, aliases: tuple[str, ...] = ("Ben",), **rules: object) -> list[Memory]:
    found = list(Sessions(aliases, ChatRules(**rules)).memories(iter(items)))  # type: ignore[arg-type]
    assert all(isinstance(one, Memory) for one in found)
    return found  # type: ignore[return-value]


def test_the_owner_answers_and_the_turns_before_are_context() -> None:
    found = memories(
        said("Anna", "Hi"), said("Ben", "Hello", 1), said("Anna", "Tea?", 2), said("Anna", "At five?", 3),
        said("Ben", "Yes", 4), said("Ben", "gladly", 5), said("Anna", "Fine", 6),
    )  # fmt: skip
    assert [(m.content, m.response) for m in found] == [("Hi", "Hello"), ("Tea?\nAt five?", "Yes\ngladly")]
    assert found[1].context == (Turn("user", "Hi"), Turn("assistant", "Hello"))
    assert found[1].type == "chat" and found[1].speaker == "Ben" and not found[1].zone_known
    assert found[1].time == "2024-03-01T09:04:00Z" and len(found[1].parts) == 2


def test_a_long_silence_begins_a_new_session() -> None:
    talk = (said("Anna", "Hi"), said("Ben", "Hello", 1), said("Ben", "Are you there?", 300), said("Anna", "Yes", 301))
    apart = memories(*talk)
    assert [(m.type, m.content, m.response) for m in apart] == [
        ("chat", "Hi", "Hello"), ("message", "Are you there?", None),
    ]  # fmt: skip
    together = memories(*talk, gap_seconds=6 * 3600.0)
    assert [(m.content, m.response) for m in together] == [("Hi", "Hello\nAre you there?")]


def test_others_in_a_group_are_named() -> None:
    found = memories(said("Anna", "Hi"), said("Cleo", "Hey"), said("Ben", "Both here?"))
    assert found[0].content == "Anna: Hi\nCleo: Hey"


def test_context_is_bounded() -> None:
    talk = [said(who, f"{who} {n}", n) for n in range(20) for who in ("Anna", "Ben")]
    assert max(len(m.context) for m in memories(*talk, context_turns=4)) == 4


def test_an_unknown_owner_is_asked_for_with_the_exact_command() -> None:
    sessions = Sessions((), ChatRules(), "anna")
    with pytest.raises(NeedsOwner) as caught:
        list(sessions.memories(iter([said("Ben", "Hi"), said("Ben", "again"), said("Cleo", "Hello")])))
    assert 'engramd owner "Ben" --profile anna' in str(caught.value)
    assert caught.value.speakers == {"Ben": 2, "Cleo": 1}


def test_a_second_chat_in_which_nobody_is_known_is_not_passed_over() -> None:
    known = [said("Anna", "Hi"), said("Ben", "Hello")]
    other = [said("Dora", "Hi", conversation="Dora"), said("Benjamin", "Hello", conversation="Dora")]
    with pytest.raises(NeedsOwner) as caught:
        memories(*known, *other)
    assert set(caught.value.speakers) == {"Dora", "Benjamin"}
    assert len(memories(*known, *other, aliases=("Ben", "Benjamin"))) == 2
    silent = [said("Dora", "Hi", conversation="Dora"), said("Dora", "there?", conversation="Dora")]
    assert len(memories(*known, *silent)) == 1  # the owner never spoke in it


def test_the_export_itself_may_say_who_is_the_owner() -> None:
    found = memories(said("Anna", "Hi", owner=False), said("Me", "Hello", owner=True), aliases=())
    assert [(m.content, m.response) for m in found] == [("Hi", "Hello")]


@pytest.mark.parametrize(
    ("one", "other"),
    [("~ Ben", "ben"), ("+49 170 1234567", "0049 170-1234567"), ("Ｂｅｎ", "Ben"), (" Ben  Okri", "ben okri")],
)
def test_names_are_compared_as_people_write_them(one: str, other: str) -> None:
    assert normal_name(one) == normal_name(other)


def ai(role: str, text: str, n: int) -> Utterance:
    return Utterance("chatgpt", "c1", role, text, message=f"m{n}", role=role)  # type: ignore[arg-type]


def test_in_chats_with_an_ai_its_answers_are_learnt_or_mine() -> None:
    talk = [ai("user", "Q1", 1), ai("assistant", "A1", 2), ai("user", "Q2", 3), ai("assistant", "A2", 4)]
    assert [(m.content, m.response) for m in memories(*talk)] == [("Q1", "A1"), ("Q2", "A2")]
    mine = memories(*talk, train_on={"chatgpt": "me"})
    assert [(m.type, m.content, m.response) for m in mine] == [("message", "Q1", None), ("conversation", "A1", "Q2")]
    assert mine[1].context == (Turn("assistant", "Q1"),)
    assert {m.extra["author"] for m in mine} == {"person"}


def test_a_grown_export_adds_only_its_new_messages() -> None:
    short = [said("Anna", "Hi"), said("Ben", "Hello", 1)]
    known = {part.key + part.digest for memory in memories(*short) for part in memory.parts}
    grown = memories(*short, said("Ben", "and how are you?", 2), said("Anna", "Well", 3), said("Ben", "Good", 4))
    left = [without_known(memory, known) for memory in grown]
    assert [(m.content, m.response) for m in left if m] == [("Hi", "and how are you?"), ("Well", "Good")]


def test_equal_messages_of_one_minute_are_told_apart_and_stay_the_same() -> None:
    talk = [said("Anna", "Hi"), said("Ben", "ha", 1), said("Anna", "what", 1), said("Ben", "ha", 1)]
    first, second = memories(*talk), memories(*talk)
    assert [m.id for m in first] == [m.id for m in second]
    assert len({part.key for m in first for part in m.parts}) == 2


def test_context_is_no_part_of_the_identity() -> None:
    cut = [said("Anna", "Tea?", 2), said("Ben", "Yes", 3)]
    whole = [said("Anna", "Hi"), said("Ben", "Hello", 1), *cut]
    assert memories(*cut)[0].id == memories(*whole)[1].id


def test_what_was_left_out_is_passed_on() -> None:
    left = LeftOut("a notice", text="encrypted")
    assert list(Sessions((), ChatRules()).memories(iter([left]))) == [left]
