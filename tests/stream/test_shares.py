"""Turns on a full machine: in proportion to the weights, none saved up, none lost."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from tsss_edge.stream.shares import Shares


@pytest.mark.parametrize("weights", [(1, 1, 1), (1, 2, 3), (1, 1, 100), (5,)])
def test_those_who_always_want_a_turn_get_their_share(weights: tuple[int, ...]) -> None:
    shares, everybody = Shares(weights), range(len(weights))
    turns = Counter(shares.pick(everybody) for _ in range(100 * sum(weights)))
    assert all(abs(turns[one] - 100 * weights[one]) <= 1 for one in everybody)


def test_turns_of_equals_are_spread_evenly() -> None:
    shares = Shares((1, 1, 1))
    for _ in range(5):
        assert sorted(shares.pick((0, 1, 2)) for _ in range(3)) == [0, 1, 2]


def test_whoever_comes_back_does_not_get_what_it_missed() -> None:
    shares = Shares((1, 1))
    for _ in range(1000):
        shares.pick((0,))
    turns = Counter(shares.pick((0, 1)) for _ in range(100))
    assert abs(turns[0] - turns[1]) <= 2


def test_who_wants_little_gets_all_of_it() -> None:
    """Number 0 wants every tenth turn, the other two all they can get."""
    shares, got, asked = Shares((1, 1, 1)), Counter[int](), 0
    for turn in range(1000):
        wants = turn % 10 == 0
        asked += wants
        got[shares.pick((0, 1, 2) if wants else (1, 2))] += 1
    assert got[0] == asked
    assert abs(got[1] - got[2]) <= 1


def test_nobody_waits_longer_than_its_share() -> None:
    generator, shares = random.Random(0), Shares((1, 4, 4))
    since = 0
    for _ in range(2000):
        chosen = shares.pick(generator.sample((0, 1, 2), 3))
        since = 0 if chosen == 0 else since + 1
        assert since <= 10  # nine turns a round, and a tie
