"""Which samples are trained in which epoch: shares, epochs of their own, and how rehearsal stays bounded."""

import math
import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.rules import mixing, planning
from daemon.rules.mixing import deal, drawn, expected_passes, mix, per_epoch


def test_an_epoch_holds_its_shares() -> None:
    new, replay, anchors = range(100), range(100, 1000), range(1000, 1400)
    counts = per_epoch(100, 0.5, 0.25)
    assert counts == (200, 100)
    replay, anchors = replay[: 3 * counts[0]], anchors[: 3 * counts[1]]
    segments = mix(new, replay, anchors, epochs=3, replay_share=0.5, anchor_share=0.25, seed=1)
    for segment in segments:
        assert len(segment) == len(set(segment)) == 400
        assert set(new) <= set(segment)
        assert len(set(segment) & set(replay)) == 200 and len(set(segment) & set(anchors)) == 100
    uses = Counter(place for segment in segments for place in segment)
    assert all(uses[place] == 3 for place in new)
    assert all(uses[place] == 1 for place in (*replay, *anchors))


@given(st.integers(1, 40), st.integers(0, 60), st.integers(0, 60), st.integers(1, 4), st.integers(0, 2**63 - 1),
       st.sampled_from([(0.0, 0.0), (0.3, 0.0), (0.0, 0.4), (0.5, 0.25), (0.9, 0.05)]))  # fmt: skip
def test_all_are_used_and_none_twice_in_an_epoch(
    new: int, replay: int, anchors: int, epochs: int, seed: int, shares: tuple[float, float]
) -> None:
    places = range(new), range(new, new + replay), range(new + replay, new + replay + anchors)
    segments = mix(*places, epochs=epochs, replay_share=shares[0], anchor_share=shares[1], seed=seed)
    assert segments == mix(*places, epochs=epochs, replay_share=shares[0], anchor_share=shares[1], seed=seed)
    assert len(segments) == epochs and all(len(set(one)) == len(one) for one in segments)
    uses = Counter(place for segment in segments for place in segment)
    assert all(uses[place] == epochs for place in places[0])
    for pool, count in zip(places[1:], per_epoch(new, *shares), strict=True):
        wanted = min(count, len(pool)) * epochs
        found = [uses[place] for place in pool]
        assert sum(found) == max(wanted, len(pool))
        assert not found or max(found) - min(found) <= 1  # no one again before all were


@given(st.integers(1, 60), st.integers(1, 4), st.integers(0, 2**63 - 1))
def test_with_nothing_beside_it_is_the_order_that_it_always_was(samples: int, epochs: int, seed: int) -> None:
    segments = mix(range(samples), [], [], epochs=epochs, replay_share=0.0, anchor_share=0.0, seed=seed)
    assert segments == planning.segments(samples, epochs, seed)


def test_the_order_is_fixed_for_ever() -> None:
    segments = mix(range(2), [2, 3], [4, 5], epochs=2, replay_share=0.25, anchor_share=0.25, seed=7)
    assert segments == [[4, 1, 2, 0], [1, 5, 3, 0]]
    assert drawn("abcdefgh", 3, 7, "anchors") == drawn("abcdefgh", 8, 7, "anchors")[:3]
    assert drawn("abcdefgh", 8, 7, "anchors") != drawn("abcdefgh", 8, 8, "anchors")


def test_even_a_single_new_one_brings_an_old_one() -> None:
    assert per_epoch(1, 0.1, 0.1) == (1, 1)
    assert per_epoch(1, 0.1, 0.0) == (1, 0)
    assert per_epoch(0, 0.5, 0.25) == (0, 0)


def test_dealing() -> None:
    assert deal([1, 2, 3, 4], 2, 2) == [[1, 2], [3, 4]]
    assert deal([1, 2, 3], 2, 3) == [[1, 2], [3, 1], [2, 3]]
    assert deal([1, 2], 9, 2) == [[1, 2], [1, 2]]
    assert deal([], 3, 2) == [[], []]
    assert deal([1, 2, 3, 4, 5], 2, 2) == [[1, 2], [3, 4, 5]]


def test_a_fifth_of_the_anchors_is_only_measured_by() -> None:
    sides = [mixing.is_measured_by(f"anchor-{number}") for number in range(5_000)]
    assert 0.18 < sum(sides) / len(sides) < 0.22
    assert sides == [mixing.is_measured_by(f"anchor-{number}") for number in range(5_000)]


def test_a_year_of_rehearsal_stays_bounded() -> None:
    """365 nights of 20 memories, half of each old, three epochs: the first night's memories are seen most often."""
    nights, size, epochs, share = 365, 20, 3, 0.5
    passes: Counter[int] = Counter()
    rng = random.Random(1)
    for night in range(nights):
        new = list(range(night * size, (night + 1) * size))
        old = list(range(night * size))
        count = per_epoch(size, share, 0.0)[0]
        replay = rng.sample(old, min(len(old), epochs * count))
        for segment in mix(new, replay, [], epochs=epochs, replay_share=share, anchor_share=0.0, seed=night):
            passes.update(segment)
    first = sum(passes[one] for one in range(size)) / size
    expected = expected_passes(nights, epochs, share)
    assert expected == pytest.approx(epochs * (2 + sum(1 / n for n in range(2, nights))))  # 1 + H(364), about 22
    assert 20 < expected < 23 and first == pytest.approx(expected, rel=0.15)
    assert max(passes.values()) < 2.5 * expected
    assert sum(passes.values()) <= nights * epochs * 2 * size


def test_ten_years_add_little_to_one() -> None:
    year, ten = expected_passes(365, 3, 0.5, 0.25), expected_passes(3650, 3, 0.5, 0.25)
    assert ten - year == pytest.approx(3 * 2.0 * math.log(10), rel=0.01)
    assert expected_passes(365, 3, 0.0) == 3.0
