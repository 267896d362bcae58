"""Made-up people and their facts, from a seed: pretraining text, demo, tests and benchmarks share them.

The people of the world "demo" and those of the world "pretraining" never share a first name: which
world a first name belongs to is a bit of its hash. Both use the same syllables, so that a tokenizer
trained on one world cuts the other's names just as well.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

World = Literal["demo", "pretraining"]
Kind = Literal["exchange", "journal", "observation"]
Messages = list[dict[str, str]]

CONSONANTS = "bdfghjklmnprstvz"
VOWELS = "aeiou"
SYLLABLES = tuple(consonant + vowel for consonant in CONSONANTS for vowel in VOWELS)
UNWANTED = frozenset({"Dago", "Hate", "Homo", "Kike", "Nazi", "Nude", "Puta", "Rape"})

# Prompts that stand in front of a memory which has no prompt of its own.
JOURNAL_PROMPTS = (
    "What would you like to journal about?",
    "Share your thoughts.",
    "Write a journal entry.",
    "Tell me about your day.",
    "What happened?",
    "What did you notice today?",
    "What did you observe?",
    "Share something that you noticed.",
    "What is on your mind?",
    "What are you thinking about?",
    "What goes through your head?",
    "Reflect on your recent experiences and share your inner thoughts.",
    "What insights have you gained from recent experiences?",
    "Reflect on something.",
    "What have you come to understand lately?",
    "Describe your dream or subconscious thoughts.",
    "Describe your dream.",
    "What did you dream?",
    "What were you daydreaming about?",
    "Where did your thoughts wander?",
    "Tell me something.",
)
OPENERS = (
    "Today I met {n}.",
    "I had coffee with {n}.",
    "I was thinking about {n} tonight.",
    "I ran into {n} at the market.",
    "{n} came by this morning.",
    "I talked to {n} for an hour.",
    "I got a letter from {n}.",
    "{n} called me after lunch.",
)
NOTICES = (
    "I learned that",
    "I noticed that",
    "I should remember that",
    "A neighbour said that",
    "It turns out that",
)


@dataclass(frozen=True)
class Relation:
    """What can be known about a person. `statements[0]` is also how an answer is put."""

    name: str
    values: tuple[str, ...]
    article: bool
    statements: tuple[str, ...]
    told_questions: tuple[str, ...]
    asked_questions: tuple[str, ...]


def _relation(
    name: str, values: str, statements: str, told: str, asked: str, article: bool = False
) -> Relation:
    def cut(text: str) -> tuple[str, ...]:
        return tuple(part.strip() for part in text.split("|"))

    return Relation(name, tuple(values.split()), article, cut(statements), cut(told), cut(asked))


RELATIONS = (
    _relation(
        "city",
        "Lisbon Oslo Kyoto Quito Cairo Dublin Prague Vienna Boston Lima Nairobi Madrid Berlin Athens Toronto "
        "Sydney Mumbai Havana Warsaw Zurich Geneva Naples Bergen Porto",
        "{n} lives in {v}.|{n} has a flat in {v}.|{n} moved to {v} years ago.|{n} feels at home in {v}.",
        "Where does {n} live?|Which city does {n} live in?|Do you remember where {n} lives?",
        "What is the home town of {n}?|In what town would I find {n}?|Which place does {n} call home?",
    ),
    _relation(
        "job",
        "baker nurse pilot lawyer farmer plumber painter teacher dentist tailor florist judge barber carpenter "
        "chemist sailor editor butcher engineer librarian surgeon mechanic miner waiter",
        "{n} works as {v}.|{n} earns a living as {v}.|{n} has long been employed as {v}.|{n} trained to be {v}.",
        "What does {n} do for work?|What is the job of {n}?|Do you remember what {n} works as?",
        "What is the profession of {n}?|How does {n} earn money?|What is {n} by trade?",
        article=True,
    ),
    _relation(
        "pet",
        "parrot rabbit hamster turtle goldfish ferret lizard kitten puppy gecko canary pony goat donkey hedgehog "
        "iguana pigeon duck llama snake spider frog mouse goose",
        "{n} keeps {v}.|{n} takes care of {v}.|{n} shares the house with {v}.|{n} bought {v}.",
        "What pet does {n} keep?|Which animal does {n} have?|Do you remember the pet of {n}?",
        "What kind of animal lives with {n}?|Who is the furry or scaly friend of {n}?|What creature does {n} feed?",
        article=True,
    ),
    _relation(
        "instrument",
        "violin piano guitar flute cello drums trumpet harp banjo clarinet oboe tuba accordion mandolin ukulele "
        "saxophone trombone bassoon harmonica organ fiddle sitar bagpipes xylophone",
        "{n} plays the {v}.|{n} practises every evening on the {v}.|{n} gave a concert on the {v}."
        "|{n} is good at the {v}.",
        "What instrument does {n} play?|Which instrument is {n} good at?|Do you remember what {n} plays?",
        "What would {n} bring to a band?|On what does {n} make music?|What can {n} perform on?",
    ),
    _relation(
        "food",
        "pizza sushi pasta curry tacos soup pancakes dumplings salad risotto noodles stew lasagna burgers omelette "
        "paella waffles falafel ramen cheese meatballs porridge kebab ravioli",
        "{n} loves to eat {v}.|{n} always orders {v}.|{n} could live on {v}.|{n} made us {v}.",
        "What does {n} love to eat?|What is the favourite food of {n}?|Do you remember what {n} likes to eat?",
        "What dish should I cook for {n}?|Which meal makes {n} happy?|What would {n} pick from a menu?",
    ),
    _relation(
        "hobby",
        "chess knitting fishing sailing hiking gardening painting pottery archery fencing surfing climbing dancing "
        "origami birdwatching cycling skiing juggling rowing photography astronomy baking yoga sewing",
        "{n} enjoys {v}.|{n} spends each weekend on {v}.|{n} joined a club for {v}.|{n} is mad about {v}.",
        "What does {n} enjoy?|What is the hobby of {n}?|Do you remember the hobby of {n}?",
        "How does {n} spend free time?|What does {n} do for fun?|What is the favourite pastime of {n}?",
    ),
    _relation(
        "sister",
        "Anna Clara Emma Helen Irene Julia Laura Maria Nora Olga Paula Rosa Sofia Teresa Ursula Vera Wanda Yvonne "
        "Zoe Alice Betty Daisy Flora Grace",
        "{n} has a sister called {v}.|{n} grew up with a sister, {v}.|{n} writes every week to a sister named {v}."
        "|{n} introduced me to a sister, {v}.",
        "What is the sister of {n} called?|Who is the sister of {n}?|Do you remember the sister of {n}?",
        "What name did the parents of {n} give their other girl?|Which sibling does {n} have?"
        "|How do I address the sister of {n}?",
    ),
    _relation(
        "language",
        "French Spanish German Italian Dutch Greek Turkish Arabic Hindi Polish Czech Danish Swedish Finnish "
        "Norwegian Korean Japanese Chinese Russian Hebrew Latin Welsh Irish Swahili",
        "{n} is learning {v}.|{n} takes lessons in {v}.|{n} reads a grammar of {v}.|{n} wants to be fluent in {v}.",
        "Which language is {n} learning?|What does {n} take lessons in?|Do you remember what language {n} learns?",
        "What foreign tongue is {n} studying?|Which words does {n} try to pick up?"
        "|In what will {n} soon be able to speak?",
    ),
)
RELATION = {relation.name: relation for relation in RELATIONS}


@dataclass(frozen=True)
class Probe:
    """A question to the model. With a prefix, the model goes on from there within its answer."""

    messages: Messages
    expected: str
    prefix: str = ""

    def recalled(self, answer: str) -> bool:
        """Whether a greedy answer contains the value."""
        return self.expected.lower() in answer.lower()


@dataclass(frozen=True)
class Telling:
    """One wording in which a fact is told. Only an exchange has a prompt of its own."""

    kind: Kind
    prompt: str | None
    text: str
    value: str

    def messages(self, prompt: str | None = None) -> Messages:
        """The telling as a chat; `prompt` stands in front of a text that has none."""
        asked = self.prompt or prompt or JOURNAL_PROMPTS[0]
        return [{"role": "user", "content": asked}, {"role": "assistant", "content": self.text}]

    def probe(self, prompt: str | None = None) -> Probe:
        """The same chat up to the value: an exchange is asked again, a text is to be gone on with."""
        question = self.messages(prompt)[:1]
        if self.kind == "exchange":
            return Probe(question, self.value)
        prefix = self.text[: self.text.rindex(self.value)].rstrip()
        for article in (" a", " an"):  # "an" would say something about the value
            prefix = prefix.removesuffix(article)
        return Probe(question, self.value, prefix)


@dataclass(frozen=True)
class Fact:
    """One thing that is true of one person."""

    person: str
    relation: str
    value: str

    def _fill(self, form: str) -> str:
        value = self.value
        if RELATION[self.relation].article:
            value = ("an " if value[0] in "aeiou" else "a ") + value
        return form.replace("{n}", self.person).replace("{v}", value)

    @property
    def answer(self) -> str:
        """The plain sentence that answers every question about this fact."""
        return self._fill(RELATION[self.relation].statements[0])

    def exchange(self, form: str) -> Telling:
        """A question in the given form and its answer."""
        return Telling("exchange", self._fill(form), self.answer, self.value)

    def journal(self, opener: str, statement: str) -> Telling:
        """A first-person entry."""
        return Telling("journal", None, self._fill(f"{opener} {statement}"), self.value)

    def observation(self, notice: str, statement: str) -> Telling:
        """Something noticed about the person."""
        return Telling("observation", None, self._fill(f"{notice} {statement}"), self.value)

    def tellings(self, rng: random.Random, n: int = 3) -> list[Telling]:
        """`n` of 2 or 3 (at most 5) wordings: an exchange, a journal entry, an observation, then more of these."""
        relation = RELATION[self.relation]
        questions = rng.sample(relation.told_questions, 2)
        statements = rng.sample(relation.statements, len(relation.statements))
        openers, notices = rng.sample(OPENERS, 2), rng.sample(NOTICES, 1)
        told = [
            self.exchange(questions[0]),
            self.journal(openers[0], statements[0]),
            self.observation(notices[0], statements[1]),
            self.exchange(questions[1]),
            self.journal(openers[1], statements[2]),
        ]
        if not 1 <= n <= len(told):
            raise ValueError(f"a fact has between 1 and {len(told)} tellings, not {n}")
        return told[:n]

    def told_probes(self, tellings: Iterable[Telling], prompt: str | None = None) -> list[Probe]:
        """The probes for the very wordings in which the fact was told."""
        return [telling.probe(prompt) for telling in tellings]

    def asked_probes(self) -> list[Probe]:
        """Questions in forms in which no fact of a new person is ever told."""
        forms = RELATION[self.relation].asked_questions
        return [Probe([{"role": "user", "content": self._fill(form)}], self.value) for form in forms]


@dataclass(frozen=True)
class Person:
    """A name and one fact for each relation."""

    name: str
    facts: tuple[Fact, ...]


def world_of(first_name: str) -> World:
    """The world that a first name belongs to."""
    return "demo" if hashlib.sha256(first_name.encode()).digest()[0] & 1 else "pretraining"


def _word(rng: random.Random, syllables: int) -> str:
    return "".join(rng.choice(SYLLABLES) for _ in range(syllables)).capitalize()


def make_people(seed: int, count: int, world: World = "demo") -> list[Person]:
    """The same people for the same arguments; no two of them share a first name."""
    rng = random.Random(f"{world}:{seed}")
    values = [value.lower() for relation in RELATIONS for value in relation.values]
    people: dict[str, Person] = {}
    while len(people) < count:
        first, last = _word(rng, rng.choice((2, 2, 3))), _word(rng, 2)
        name = f"{first} {last}"
        if world_of(first) != world or first in people or first in UNWANTED:
            continue
        if any(value in name.lower() for value in values):  # "Lima" would count as an answer
            continue
        facts = tuple(Fact(name, relation.name, rng.choice(relation.values)) for relation in RELATIONS)
        people[first] = Person(name, facts)
    return list(people.values())
