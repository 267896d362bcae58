"""The made-up people: the same for a seed, apart between the worlds, never told as they are asked."""

from __future__ import annotations

import random

import pytest

from tools.people import (
    JOURNAL_PROMPTS,
    NOTICES,
    OPENERS,
    RELATION,
    RELATIONS,
    Fact,
    make_people,
    world_of,
)

VALUES = [value for relation in RELATIONS for value in relation.values]


def test_same_seed_same_people() -> None:
    assert make_people(7, 20) == make_people(7, 20)
    assert make_people(7, 20)[:5] == make_people(7, 5)
    assert make_people(7, 20) != make_people(8, 20)


def test_worlds_never_share_a_first_name() -> None:
    pretraining = {person.name.split()[0] for person in make_people(0, 2000, "pretraining")}
    demo = {person.name.split()[0] for seed in range(20) for person in make_people(seed, 100, "demo")}
    assert len(pretraining) == 2000
    assert not pretraining & demo
    assert all(world_of(name) == "pretraining" for name in pretraining)
    assert all(world_of(name) == "demo" for name in demo)


def test_first_names_differ_within_a_group() -> None:
    people = make_people(3, 200)
    assert len({person.name.split()[0] for person in people}) == 200
    assert all([fact.relation for fact in person.facts] == list(RELATION) for person in people)


@pytest.mark.parametrize("relation", RELATIONS, ids=lambda relation: relation.name)
def test_value_sets_are_large_and_closed(relation) -> None:
    assert len(set(relation.values)) == len(relation.values) >= 24
    facts = [
        fact for person in make_people(1, 400) for fact in person.facts if fact.relation == relation.name
    ]
    assert {fact.value for fact in facts} == set(relation.values)


def test_no_value_hides_in_another_or_in_a_wording() -> None:
    forms = [*JOURNAL_PROMPTS, *OPENERS, *NOTICES]
    for relation in RELATIONS:
        forms += [*relation.statements, *relation.told_questions, *relation.asked_questions]
    for value in VALUES:
        others = [other.lower() for other in VALUES if other is not value]
        assert not [text for text in others + [form.lower() for form in forms] if value.lower() in text]
    names = [person.name.lower() for person in make_people(2, 500)]
    assert not [name for name in names for value in VALUES if value.lower() in name]


def test_tellings_differ_in_kind_and_wording() -> None:
    for person in make_people(5, 10):
        for fact in person.facts:
            told = fact.tellings(random.Random(1), 3)
            assert told == fact.tellings(random.Random(1), 3)
            assert [telling.kind for telling in told] == ["exchange", "journal", "observation"]
            assert len({telling.text for telling in told}) == 3
            assert all(person.name in telling.text and fact.value in telling.text for telling in told)
            assert len(fact.tellings(random.Random(1), 2)) == 2
    with pytest.raises(ValueError):
        fact.tellings(random.Random(1), 6)


def test_asked_forms_are_never_told() -> None:
    for relation in RELATIONS:
        assert not set(relation.asked_questions) & set(relation.told_questions)
        assert len(relation.asked_questions) >= 3
        fact = Fact("Tavi Moru", relation.name, relation.values[0])
        asked = {probe.messages[0]["content"] for probe in fact.asked_probes()}
        told = {
            telling.messages()[0]["content"]
            for seed in range(50)
            for telling in fact.tellings(random.Random(seed), 5)
        }
        assert not asked & told


def test_told_probe_stops_before_the_value() -> None:
    fact = Fact("Tavi Moru", "job", "engineer")
    tellings = fact.tellings(random.Random(0), 3)
    exchange, journal, observation = fact.told_probes(tellings, "Share your thoughts.")
    assert exchange.prefix == "" and exchange.messages == tellings[0].messages()[:1]
    for probe, telling in zip((journal, observation), tellings[1:], strict=True):
        assert probe.messages == [{"role": "user", "content": "Share your thoughts."}]
        assert telling.text.startswith(probe.prefix) and "Tavi Moru" in probe.prefix
        assert not probe.prefix.endswith((" ", " a", " an")) and "engineer" not in probe.prefix


def test_recall_is_containment_without_case() -> None:
    probe = Fact("Tavi Moru", "city", "Oslo").asked_probes()[0]
    assert probe.recalled("tavi moru lives in OSLO.")
    assert not probe.recalled("Tavi Moru lives in Lima.")
