"""Metrics equal fractions worked out by hand, and an independent library on random score matrices."""

import math
from fractions import Fraction

import numpy as np
import pytest

from hf_seqrec.metrics import (
    METRICS,
    coverage,
    popularity_bias,
    random_floor,
    ranking_metrics,
    ranking_scores,
)


def test_single_target_metrics_are_the_fractions_worked_out_by_hand():
    # Places 1, 3, 10, 11 of the list; a cut-off of 10 takes the first three.
    metrics = ranking_metrics([0, 2, 9, 10], cutoffs=[10], metrics=METRICS)
    assert metrics["hr@10"] == metrics["recall@10"] == Fraction(3, 4)
    assert metrics["precision@10"] == pytest.approx(Fraction(3, 40))
    assert metrics["mrr@10"] == metrics["map@10"] == pytest.approx((1 + Fraction(1, 3) + Fraction(1, 10)) / 4)
    assert metrics["ndcg@10"] == pytest.approx((1 + 1 / math.log2(4) + 1 / math.log2(11)) / 4)


def test_several_targets_per_row_are_the_fractions_worked_out_by_hand():
    # Row 0: places 2 and 4 of three targets within 5; row 1: its one target on place 1.
    metrics = ranking_metrics([3, 1, 7, 0], cutoffs=[5], offsets=[0, 3, 4])
    ideal = 1 + 1 / math.log2(3) + 1 / math.log2(4)
    assert metrics == {
        "hr@5": 1.0,
        "ndcg@5": pytest.approx(((1 / math.log2(3) + 1 / math.log2(5)) / ideal + 1) / 2),
        "mrr@5": pytest.approx((Fraction(1, 2) + 1) / 2),
        "recall@5": pytest.approx((Fraction(2, 3) + 1) / 2),
        "precision@5": pytest.approx((Fraction(2, 5) + Fraction(1, 5)) / 2),
        "map@5": pytest.approx(((Fraction(1, 2) + Fraction(2, 4)) / 3 + 1) / 2),
    }


def test_more_targets_than_places_can_still_reach_a_perfect_ndcg():
    metrics = ranking_metrics([0, 1, 2, 3], cutoffs=[2], offsets=[0, 4])
    assert metrics["ndcg@2"] == metrics["precision@2"] == 1.0
    assert metrics["recall@2"] == 0.5


def test_a_half_rank_counts_only_when_its_middle_is_inside():
    assert ranking_metrics([9.5], [10])["hr@10"] == 0.0  # on place 10 or 11
    assert ranking_metrics([8.5], [10])["hr@10"] == 1.0  # on place 9 or 10
    assert ranking_metrics([0.5], [10])["ndcg@10"] == pytest.approx(1 / math.log2(2.5))


def test_tied_targets_never_exceed_one():
    metrics = ranking_metrics(
        [1, 1, 1], cutoffs=[1, 2, 3], offsets=[0, 3]
    )  # three targets tie for the first three places
    assert max(metrics.values()) <= 1.0
    assert metrics["recall@3"] == 1.0
    assert metrics["precision@2"] == 1.0
    assert metrics["hr@1"] == 0.0


def test_a_target_that_can_never_be_recommended_counts_as_a_miss():
    assert ranking_metrics([np.inf, 0], [3]) == {"hr@3": 0.5, "ndcg@3": 0.5, "mrr@3": 0.5}


def test_offsets_of_one_target_per_row_change_nothing():
    ranks = np.random.default_rng(0).integers(0, 40, 100) / 2
    flat = ranking_scores(ranks, [1, 5], metrics=METRICS)
    grouped = ranking_scores(ranks, [1, 5], offsets=np.arange(101))
    assert flat.keys() == grouped.keys()
    for name in flat:
        np.testing.assert_array_equal(flat[name], grouped[name])


def test_names_carry_cutoff_and_suffix_in_sorted_order():
    assert list(ranking_metrics([0], [10, 5, 10], suffix="/sampled99")) == [
        f"{name}@{k}/sampled99" for k in (5, 10) for name in ("hr", "ndcg", "mrr")
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"ranks": []}, "non-empty"),
        ({"ranks": [[0, 1]]}, r"shape \(1, 2\)"),
        ({"ranks": [0, np.nan]}, "got nan at position 1"),
        ({"ranks": [0, -1]}, "got -1.0 at position 1"),
        ({"ranks": [0], "cutoffs": []}, "Cut-offs"),
        ({"ranks": [0], "cutoffs": [0]}, r"got \(0,\)"),
        ({"ranks": [0], "cutoffs": [2.5]}, "integers"),
        ({"ranks": [0], "cutoffs": [True]}, "integers"),
        ({"ranks": [0], "metrics": ["hit"]}, r"\['hit'\]; choose from"),
        ({"ranks": [0, 1], "offsets": [0, 1]}, r"from 0 to the number of ranks \(2\)"),
        ({"ranks": [0, 1], "offsets": [0, 2, 2]}, "row 1 has 0"),
    ],
)
def test_ranks_that_are_none_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        ranking_metrics(**arguments)


@pytest.mark.parametrize("num_ranked", [1, 7, 100])
def test_the_random_floor_is_the_mean_over_every_possible_rank(num_ranked):
    every = ranking_metrics(np.arange(num_ranked), [1, 10], suffix="/s")
    assert random_floor(num_ranked, [1, 10], suffix="/s") == pytest.approx(every)


def test_the_random_floor_has_the_known_values():
    assert random_floor(15, [10])["hr@10"] == pytest.approx(2 / 3)
    assert random_floor(20, [10])["hr@10"] == 0.5
    assert random_floor(100, [10])["hr@10"] == 0.1
    assert random_floor(100, [10])["ndcg@10"] == pytest.approx(0.045, abs=5e-4)
    assert random_floor([10, 20], [5])["hr@5"] == pytest.approx((0.5 + 0.25) / 2)
    with pytest.raises(ValueError, match="1 or more"):
        random_floor([3, 0], [5])


def test_coverage_counts_distinct_items_and_no_empty_places():
    assert coverage([[1, 2, 0], [2, 3, 0]], num_items=6) == 0.5
    with pytest.raises(ValueError, match=r"0 … 2, got 1 … 3"):
        coverage([[1, 3]], num_items=2)
    with pytest.raises(ValueError, match="integer"):
        coverage([[1.0]], num_items=2)


def test_popularity_is_measured_against_each_users_own_history():
    popularity = [0, 99, 9, 9, 0]  # log(1 + p): 2, 1, 1, 0 in units of log 10
    result = popularity_bias([[1, 2], [4, 0]], popularity, history_items=[1, 4, 4, 2], history_offsets=[0, 3, 4])
    first = (2 + 1) / 2 - (2 + 0 + 0) / 3
    second = 0 - 1
    assert result["popularity_bias"] == pytest.approx((first + second) / 2 * math.log(10))
    # Places in the order of popularity: item 1 on 0, items 2 and 3 share 1.5 / 3, item 4 on 1.
    assert result["popularity_rank"] == pytest.approx(((0 + 0.5) / 2 + 1) / 2)
    same = popularity_bias([[2], [3]], popularity, history_items=[3, 2], history_offsets=[0, 1, 2])
    assert same["popularity_bias"] == pytest.approx(0)


@pytest.mark.parametrize(
    ("recommended", "items", "offsets", "message"),
    [
        ([[1]], [1, 2], [0, 1], "from 0 to 2"),
        ([[1], [2]], [1], [0, 1, 1], "Row 1 has an empty history"),
        ([[1], [0]], [1, 1], [0, 1, 2], "Row 1 has no recommendation"),
        ([[5]], [1], [0, 1], "0 … 4"),
    ],
)
def test_lists_and_histories_that_do_not_fit_are_refused(recommended, items, offsets, message):
    with pytest.raises(ValueError, match=message):
        popularity_bias(recommended, [0, 4, 3, 2, 1], items, offsets)


def ranks_of(scores, targets):
    """Ranks of each row's targets by counting, in ascending item order of the targets."""
    return np.concatenate([(scores[i] > scores[i, t][:, None]).sum(1) for i, t in enumerate(targets)])


@pytest.mark.parametrize("num_targets", [1, 5])
def test_metrics_equal_ranx_on_random_score_matrices(num_targets, monkeypatch):
    monkeypatch.setenv("NUMBA_DISABLE_JIT", "1")  # compiling takes a minute, these few rows a moment
    import ranx

    rng = np.random.default_rng(num_targets)
    num_rows, num_items, cutoffs = 60, 80, (1, 3, 10)
    scores = rng.normal(size=(num_rows, num_items))
    # Coarse scores with a small distinct part: near ties, but no exact one, which ranx would break by position.
    scores = np.round(scores, 1) + rng.permuted(np.tile(np.arange(num_items), (num_rows, 1)), axis=1) * 1e-6
    counts = np.ones(num_rows, int) if num_targets == 1 else rng.integers(1, num_targets + 1, num_rows)
    targets = [np.sort(rng.choice(num_items, n, replace=False)) for n in counts]
    qrels = ranx.Qrels({f"u{i}": {f"i{t}": 1 for t in chosen} for i, chosen in enumerate(targets)})
    run = ranx.Run({f"u{i}": {f"i{j}": float(scores[i, j]) for j in range(num_items)} for i in range(num_rows)})
    theirs = {
        "hr": "hit_rate",
        "ndcg": "ndcg",
        "mrr": "mrr",
        "recall": "recall",
        "precision": "precision",
        "map": "map",
    }
    names = [f"{theirs[name]}@{k}" for name in METRICS for k in cutoffs]
    expected = ranx.evaluate(qrels, run, names)
    ours = ranking_metrics(ranks_of(scores, targets), cutoffs, np.concatenate([[0], np.cumsum(counts)]))
    for name in METRICS:
        for k in cutoffs:
            assert ours[f"{name}@{k}"] == pytest.approx(expected[f"{theirs[name]}@{k}"], abs=1e-9), (name, k)
    assert 0 < ours["map@10"] < 1
