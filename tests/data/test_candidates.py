"""Candidates: no collisions, one draw per seed, stored and recognised."""

import numpy as np
import pyarrow as pa
import pytest

from hf_seqrec.data import Candidates, Sequences, draw_candidates, leave_one_out


@pytest.fixture
def test_set(random_sequences):
    return leave_one_out(random_sequences).test


# 60 items: the smallest draws go through rejection, the larger ones choose from what is left.
@pytest.mark.parametrize("num_negatives", [1, 4, 20, 36])
@pytest.mark.parametrize("num_items", [60, 500])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_candidates_never_collide(test_set, num_negatives, num_items, seed):
    candidates = draw_candidates(test_set, num_items, num_negatives, seed)
    assert candidates.items.shape == (len(test_set), 1 + num_negatives)
    assert candidates.items.dtype == np.int32
    assert (candidates.items[:, 0] == test_set.target).all()
    assert candidates.items.min() >= 1
    assert candidates.items.max() <= num_items
    for row, drawn in enumerate(candidates.items.tolist()):
        assert len(set(drawn)) == len(drawn)
        assert not set(drawn[1:]) & set(test_set.history(row).tolist())


def test_a_draw_that_needs_every_free_item_takes_exactly_them():
    sequences = Sequences(np.array([3, 1, 1, 2]), np.array([0, 4]), None, pa.array(["ann"]))
    candidates = draw_candidates(leave_one_out(sequences).test, num_items=6, num_negatives=3)
    assert sorted(candidates.items[0, 1:].tolist()) == [4, 5, 6]


@pytest.mark.parametrize("num_items", [8, 40])
def test_every_allowed_item_is_equally_likely(num_items):
    count = 4_000
    sequences = Sequences(
        np.tile([1, 2, 3], count), np.arange(0, 3 * count + 1, 3), None, pa.array([str(n) for n in range(count)])
    )
    items = draw_candidates(leave_one_out(sequences).test, num_items, num_negatives=4).items[:, 1:]
    counts = np.bincount(items.ravel(), minlength=num_items + 1)
    expected = items.size / (num_items - 3)
    assert counts[:4].tolist() == [0, 0, 0, 0]
    # Six standard deviations of a binomial count.
    assert np.abs(counts[4:] - expected).max() < 6 * np.sqrt(expected)


def test_a_seed_gives_the_same_candidates_and_another_seed_others(test_set):
    first, again, other = (draw_candidates(test_set, 500, 10, seed).items for seed in (7, 7, 8))
    assert (first == again).all()
    assert (first[:, 1:] != other[:, 1:]).mean() > 0.9


def test_saved_candidates_load_for_their_own_rows_only(test_set, tmp_path):
    candidates = draw_candidates(test_set, 60, 9, seed=4)
    path = candidates.save(tmp_path / "deep" / "candidates.parquet")
    loaded = Candidates.load(path, test_set)
    assert (loaded.items == candidates.items).all()
    assert (loaded.seed, loaded.strategy, loaded.num_items) == (4, "uniform", 60)
    assert [file.name for file in path.parent.iterdir()] == ["candidates.parquet"]
    with pytest.raises(ValueError, match="belongs to the evaluation set"):
        Candidates.load(path, test_set.subset(np.arange(3)))


def test_damaged_missing_and_foreign_files_are_refused(test_set, tmp_path):
    import pyarrow.parquet as pq

    path = draw_candidates(test_set, 60, 9).save(tmp_path / "candidates.parquet")
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match="not a complete parquet file"):
        Candidates.load(path, test_set)
    pq.write_table(pa.table({"x": [1]}), path)
    with pytest.raises(ValueError, match="holds no candidates"):
        Candidates.load(path, test_set)
    with pytest.raises(FileNotFoundError, match="draw them"):
        Candidates.load(tmp_path / "none.parquet", test_set)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_items": 60, "num_negatives": 50}, "only .* items outside its history"),
        ({"num_items": 10}, "is not among the 10 items"),
        ({"num_items": 60, "num_negatives": 0}, "need 1 or more"),
        ({"num_items": 60, "strategy": "popular"}, "choose 'uniform'"),
    ],
)
def test_impossible_draws_are_refused(test_set, arguments, message):
    with pytest.raises(ValueError, match=message):
        draw_candidates(test_set, **arguments)
