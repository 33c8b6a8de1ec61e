"""Filters against a few rows by hand and against the plain definition in a loop."""

import numpy as np
import pytest

from hf_seqrec.data import compact_codes, filters, first_occurrences, k_core, rating_at_least


def core_by_definition(users, items, user_core, item_core):
    keep = np.ones(len(users), dtype=bool)
    while True:
        left = list(np.flatnonzero(keep))
        bad = [
            row
            for row in left
            if sum(users[other] == users[row] for other in left) < user_core
            or sum(items[other] == items[row] for other in left) < item_core
        ]
        if not bad:
            return keep
        keep[bad] = False


@pytest.mark.parametrize(("user_core", "item_core"), [(2, 2), (3, 2), (1, 4), (4, 1), (3, 3)])
def test_k_core_matches_its_definition(user_core, item_core, monkeypatch):
    monkeypatch.setattr(filters, "_ROWS_PER_COUNT", 7)
    generator = np.random.default_rng(user_core * 10 + item_core)
    users, items = generator.integers(0, 25, 90), generator.integers(0, 30, 90)
    keep = k_core(users, items, user_core, item_core)
    assert keep.tolist() == core_by_definition(users, items, user_core, item_core).tolist()
    assert 0 < keep.sum() < 90


def test_k_core_goes_on_until_nothing_changes():
    # A chain: dropping the last user starves an item, which starves the next user, and so on to the end.
    users = np.array([0, 0, 1, 1, 2, 2, 3])
    items = np.array([0, 1, 1, 2, 2, 3, 3])
    assert not k_core(users, items, 2, 2).any()
    assert k_core(users, items, 1, 1).all()


def test_k_core_refuses_codes_that_are_not_codes():
    with pytest.raises(TypeError, match="user_codes has dtype float64"):
        k_core(np.array([0.0]), np.array([0]))
    with pytest.raises(ValueError, match="item_codes holds -1"):
        k_core(np.array([0]), np.array([-1]))
    with pytest.raises(ValueError, match="differ in length"):
        k_core(np.array([0, 1]), np.array([0]))


@pytest.mark.parametrize("with_times", [True, False])
def test_the_first_of_equal_rows_stays(with_times):
    generator = np.random.default_rng(0)
    users, items, times = (generator.integers(0, high, 300) for high in (8, 8, 3))
    seen, expected = set(), []
    for row in zip(users, items, times if with_times else users, strict=True):
        expected.append(row not in seen)
        seen.add(row)
    assert first_occurrences(users, items, times if with_times else None).tolist() == expected
    assert not all(expected)


def test_no_rows_are_no_problem():
    empty = np.array([], dtype=np.int32)
    assert first_occurrences(empty, empty, empty).shape == (0,)
    assert k_core(empty, empty).shape == (0,)
    assert [part.shape for part in compact_codes(empty)] == [(0,), (0,)]


def test_ratings_below_the_threshold_go_and_broken_ones_are_refused():
    assert rating_at_least(np.array([4, 3.5, 5], np.float32), 4).tolist() == [True, False, True]
    with pytest.raises(ValueError, match="rating nan in row 1"):
        rating_at_least(np.array([4.0, np.nan]), 4)


def test_compact_codes_leave_no_gap_and_lead_back():
    codes = np.array([7, 2, 7, 5])
    new, old = compact_codes(codes)
    assert new.tolist() == [2, 0, 2, 1]
    assert old[new].tolist() == codes.tolist()
    assert new.dtype == np.int32
