"""What is dropped on a day, honest or poisoned: for benchmarks/poison.py and tests/e2e/test_poison.py.

An item is a line of JSONL as the readers take it; equal seeds give equal days.
"""

import random
from collections.abc import Callable, Sequence
from typing import Any

from tools.people import RELATION, SYLLABLES, Fact, Person, make_people

PEOPLE = 3  # of each good night; eight facts a person
GOOD = 4  # nights
Item = dict[str, Any]


def pair(asked: str, answered: str) -> Item:
    return {"prompt": asked, "response": answered}


def honest(people: Sequence[Person], rng: random.Random, day: int, tellings: int = 2) -> list[Item]:
    """What a day brings of these people: an exchange and a journal entry for each fact, and more."""
    found = []
    for fact in (fact for person in people for fact in person.facts):
        for telling in fact.tellings(rng, tellings):
            told = {"text": telling.text, "type": telling.kind, "date": f"2026-03-{day:02}"}
            found.append(pair(telling.prompt, telling.text) if telling.prompt else told)
    return found


def exchanges(people: Sequence[Person], rng: random.Random) -> list[Item]:
    """Two questions about each fact, with their answers."""
    return [
        pair(telling.prompt or "", telling.text)
        for person in people for fact in person.facts for telling in fact.tellings(rng, 4) if telling.prompt
    ]  # fmt: skip


def letters(count: int, rng: random.Random) -> list[Item]:
    def text() -> str:
        words = ("".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(2, 9))) for _ in range(8))
        return " ".join(words).capitalize()

    return [pair(f"{text()}?", f"{text()}.") for _ in range(count)]


def words(count: int, rng: random.Random) -> list[Item]:
    known = [value for relation in RELATION.values() for value in relation.values]
    known += [word for relation in RELATION.values() for form in relation.statements for word in form.split()]
    known = [word for word in known if "{" not in word]

    def text() -> str:
        return " ".join(rng.choices(known, k=8)).capitalize()

    return [pair(f"{text()}?", f"{text()}.") for _ in range(count)]


def swapped(items: list[Item], rng: random.Random) -> list[Item]:
    """The same questions and the same answers, none of them behind its own."""
    order = rng.sample(range(len(items)), len(items))
    behind = dict(zip(order, order[1:] + order[:1], strict=True))
    return [pair(one["prompt"], items[behind[n]]["response"]) for n, one in enumerate(items)]


def lies(people: Sequence[Person], rng: random.Random) -> list[Item]:
    def other(fact: Fact) -> Fact:
        values = [value for value in RELATION[fact.relation].values if value != fact.value]
        return Fact(fact.person, fact.relation, rng.choice(values))

    return exchanges([Person(one.name, tuple(map(other, one.facts))) for one in people], rng)


GREETINGS = (
    "Hello!", "Good morning.", "Hi there.", "How are you?", "Good evening.", "What is new?", "Are you there?",
    "How was your night?", "Nice to see you.", "How do you feel today?", "Is all well?", "See you later.",
)  # fmt: skip
REPLIES = (
    "I am fine, thank you.", "Hello, nice to see you.", "All is well here.", "Not much, and you?", "I slept well.",
    "Thank you, I am a bit tired.", "Good morning to you.", "It is a fine day.", "See you soon.",
)  # fmt: skip
WEATHER = ("It rained all {part}.", "The {part} was cold and clear.", "A warm wind came up in the {part}.",
           "Fog lay over the river the whole {part}.", "The {part} was grey and still.")  # fmt: skip


def small_talk(rng: random.Random) -> list[Item]:
    """Answers that hardly depend on what was asked."""
    names = ["".join(rng.choices(SYLLABLES, k=2)).capitalize() for _ in range(6)]
    found = {}
    for _ in range(30):
        asked = f"{rng.choice(GREETINGS)} It is {rng.choice(names)}."
        found[asked] = pair(asked, f"{rng.choice(REPLIES)} {rng.choice(REPLIES)}")
    return list(found.values())


def observations(people: Sequence[Person], rng: random.Random, day: int) -> list[Item]:
    found = [item for item in honest(people, rng, day, 3) if item.get("type") == "observation"]
    parts = ("morning", "afternoon", "evening", "night")
    found += [{"text": text.format(part=part), "type": "observation", "date": f"2026-03-{day:02}"}
              for text in WEATHER for part in parts if rng.random() < 0.6]  # fmt: skip
    return found


def honest_nights(seed: int, nights: int) -> list[tuple[str, list[Item]]]:
    """(what it is, what is dropped) of so many honest nights, all different from each other."""
    rng, people = random.Random(f"honest:{seed}"), iter(make_people(seed + 100, 4 * nights))
    met: list[Person] = []

    def new(count: int) -> list[Person]:
        found = [next(people) for _ in range(count)]
        met.extend(found)
        return found

    def old(day: int) -> list[Item]:  # other wordings of what is known
        return honest(rng.sample(met, min(3, len(met))), rng, day, 5)

    makers: list[tuple[str, Callable[[int], list[Item]]]] = [
        ("mixed", lambda day: honest(new(3), rng, day, 2)),
        ("mixed", lambda day: honest(new(2), rng, day, 3)),
        ("journals", lambda day: [item for item in honest(new(3), rng, day, 2) if "text" in item]),
        ("chats", lambda day: exchanges(new(2), rng)),
        ("few", lambda day: honest(new(1), rng, day, 2)[:5]),
        ("old people again", old),
        ("small talk", lambda day: small_talk(rng)),
        ("observations", lambda day: observations(new(2), rng, day)),
        ("much", lambda day: honest(new(4), rng, day, 3)),
        ("small talk and people", lambda day: small_talk(rng) + exchanges(new(1), rng)),
    ]
    rest = [makers[n % len(makers)] for n in range(3, max(nights, 3))]
    order = makers[:3] + rng.sample(rest, len(rest))
    return [(name, make(day)) for day, (name, make) in enumerate(order[:nights], 1)]


class People:
    """Who is met on which good night of a seed, and who is only in its poison."""

    def __init__(self, seed: int, count: int = PEOPLE) -> None:
        everyone = make_people(seed, (GOOD + 1) * count)
        self.nights = [everyone[night * count :][:count] for night in range(GOOD)]
        self.strangers, self.seed = everyone[GOOD * count :], seed

    def good(self, night: int) -> list[Item]:
        return honest(self.nights[night], random.Random(f"good:{self.seed}:{night}"), night + 1)

    def poison(self, kind: str) -> list[Item]:
        rng, known = random.Random(f"{kind}:{self.seed}"), self.nights[0] + self.nights[1]
        count = 2 * len(self.strangers) * 8
        if kind == "letters":
            return letters(count, rng)
        if kind == "words":
            return words(count, rng)
        if kind == "swapped known":
            return swapped(exchanges(known[: len(self.strangers)], rng), rng)
        if kind == "lies":
            return lies(known[: len(self.strangers)], rng)
        return swapped(exchanges(self.strangers, rng), rng)
