"""Splits against results by hand, and against poisoned held-out items."""

import numpy as np
import pyarrow as pa
import pytest

from hf_seqrec.data import (
    SPLITS,
    EvaluationSet,
    Sequences,
    global_time,
    leave_one_out,
    make_split,
    temporal_ratio,
    user_ratio,
)


def rows(part: EvaluationSet) -> list[tuple[str, list[int], int]]:
    ids = part.user_ids.to_pylist()
    return [(ids[row], part.history(row).tolist(), int(part.target[row])) for row in range(len(part))]


def users(part: Sequences) -> dict[str, list[int]]:
    return {name: part[user].tolist() for user, name in enumerate(part.user_ids.to_pylist())}


def test_leave_one_out_by_hand(sequences):
    split = leave_one_out(sequences)
    assert users(split.train) == {"ann": [1, 2], "bob": [2], "cid": [6, 1], "dan": [5]}
    assert rows(split.validation) == [("ann", [1, 2], 4), ("bob", [2], 1), ("cid", [6, 1], 2)]
    assert rows(split.test) == [("ann", [1, 2, 4], 3), ("bob", [2, 1], 3), ("cid", [6, 1, 2], 6)]
    assert split.params == {"min_length": 3, "users_too_short": 1}
    assert split.train.timestamps.tolist() == [10, 30, 90, 50, 60, 5]
    assert split.test.target_timestamps.tolist() == [40, 100, 80]


def test_a_target_that_is_in_its_history_is_marked(sequences):
    assert leave_one_out(sequences).test.repeats_history.tolist() == [False, False, True]


def test_repeats_agree_with_a_loop_over_rows(random_sequences):
    test = leave_one_out(random_sequences).test
    by_hand = [test.target[row] in test.history(row) for row in range(len(test))]
    assert 0 < sum(by_hand) < len(by_hand)
    assert test.repeats_history.tolist() == by_hand


@pytest.mark.parametrize("size", [1, 7, 100, 10**9])
def test_chunks_cover_every_row_once(random_sequences, size):
    test = leave_one_out(random_sequences).test
    assert [row for part in test.chunks(size) for row in range(part.start, part.stop)] == list(range(len(test)))


def test_temporal_ratio_by_hand():
    timestamps = np.zeros(20, np.int64)
    timestamps[1::2] = [7, 3, 9, 1, 2, 8, 4, 5, 6, 0]
    sequences = Sequences(np.arange(1, 21), np.arange(0, 21, 2), timestamps, pa.array(list("abcdefghij")))
    split = temporal_ratio(sequences)
    assert rows(split.test) == [("c", [5], 6)]
    assert rows(split.validation) == [("f", [11], 12)]
    assert "".join(split.train.user_ids.to_pylist()) == "abdeghij"
    assert users(split.train)["a"] == [1, 2]


def test_user_ratio_divides_users_at_random_by_seed(random_sequences):
    split = user_ratio(random_sequences, seed=5)
    parts = [set(part.user_ids.to_pylist()) for part in (split.train, split.validation, split.test)]
    long_users = int((random_sequences.lengths >= 2).sum())
    assert split.params["users_too_short"] == 200 - long_users > 0
    assert [len(parts[1]), len(parts[2])] == pytest.approx([long_users / 10, long_users / 10], abs=1)
    assert sum(map(len, parts)) == len(set.union(*parts)) == 200
    last = random_sequences.offsets[split.test.user + 1] - 1
    assert split.test.target.tolist() == random_sequences.item_index[last].tolist()
    assert (split.test.start == random_sequences.offsets[split.test.user]).all()
    assert parts[2] == set(user_ratio(random_sequences, seed=5).test.user_ids.to_pylist())
    assert parts[2] != set(user_ratio(random_sequences, seed=6).test.user_ids.to_pylist())


def test_global_time_by_hand(sequences):
    split = global_time(sequences, validation_time=40, test_time=70)
    assert users(split.train) == {"ann": [1, 2], "dan": [5]}
    assert rows(split.validation) == [("ann", [1, 2], 4)]
    assert rows(split.test) == [("cid", [6, 1], 2)]
    assert split.params == {
        "validation_time": 40,
        "test_time": 70,
        "validation_users_without_history": 1,
        "test_users_without_history": 1,
    }


def test_global_time_trains_on_the_past_only(random_sequences):
    split = global_time(random_sequences, quantiles=(0.5, 0.75))
    cut, later = split.params["validation_time"], split.params["test_time"]
    assert split.train.timestamps.max() < cut
    assert ((cut <= split.validation.target_timestamps) & (split.validation.target_timestamps < later)).all()
    assert (split.test.target_timestamps >= later).all()
    assert split.train.num_interactions == (random_sequences.timestamps < cut).sum()
    for part, edge in ((split.validation, cut), (split.test, later)):
        newest = random_sequences.timestamps[part.stop - 1]
        assert (newest < edge).all()
        assert (part.lengths > 0).all()


@pytest.mark.parametrize("name", list(SPLITS))
def test_training_does_not_change_when_held_out_items_are_poisoned(random_sequences, name):
    clean = make_split(name, random_sequences)
    poisoned_items = random_sequences.item_index.copy()
    for part in (clean.validation, clean.test):
        poisoned_items[part.stop] = 99
    assert (poisoned_items == 99).sum() == len(np.union1d(clean.validation.stop, clean.test.stop)) > 0
    poisoned_data = Sequences(
        poisoned_items, random_sequences.offsets, random_sequences.timestamps, random_sequences.user_ids
    )
    poisoned = make_split(name, poisoned_data)
    assert (poisoned.train.item_index == clean.train.item_index).all()
    assert (poisoned.train.offsets == clean.train.offsets).all()
    assert (poisoned.train.timestamps == clean.train.timestamps).all()
    assert poisoned.train.user_ids == clean.train.user_ids
    assert (poisoned.test.target == 99).all()
    assert (poisoned.validation.target == 99).all()


@pytest.mark.parametrize("name", list(SPLITS))
def test_splits_leave_their_input_alone_and_repeat_themselves(random_sequences, name):
    before = random_sequences.item_index.copy()
    first, second = make_split(name, random_sequences), make_split(name, random_sequences)
    assert (random_sequences.item_index == before).all()
    assert (first.test.user == second.test.user).all()
    assert first.test.fingerprint == second.test.fingerprint
    assert first.name == name


def test_the_fingerprint_of_an_evaluation_set_sees_history_target_and_user(sequences):
    test = leave_one_out(sequences).test
    changed = []
    for position in (0, 3):
        item_index = sequences.item_index.copy()
        item_index[position] = 6
        changed.append(Sequences(item_index, sequences.offsets, sequences.timestamps, sequences.user_ids))
    changed.append(
        Sequences(
            sequences.item_index, sequences.offsets, sequences.timestamps, pa.array(["eve", "bob", "cid", "dan"])
        )
    )
    prints = [leave_one_out(other).test.fingerprint for other in changed]
    assert len({test.fingerprint, *prints, test.subset(np.array([0, 1])).fingerprint}) == 5


def test_a_subset_of_rows_keeps_their_histories(sequences):
    test = leave_one_out(sequences).test
    assert rows(test.subset(np.array([2, 0]))) == [rows(test)[2], rows(test)[0]]
    assert rows(test.subset(test.lengths == 2)) == [rows(test)[1]]


@pytest.mark.parametrize("name", ["temporal_ratio", "global_time"])
def test_splits_by_time_need_times(sequences, name):
    order_only = Sequences(sequences.item_index, sequences.offsets, None, sequences.user_ids)
    with pytest.raises(ValueError, match=f"{name} needs timestamps.*leave_one_out or user_ratio"):
        make_split(name, order_only)
    assert leave_one_out(order_only).test.target_timestamps is None


@pytest.mark.parametrize(
    ("name", "params", "message"),
    [
        ("leave_two_out", {}, "unknown: choose leave_one_out, user_ratio, temporal_ratio, global_time"),
        ("leave_one_out", {"min_length": 2}, "need 3 or more"),
        ("leave_one_out", {"min_length": 9}, "no user has 9 interactions .*4"),
        ("user_ratio", {"ratios": (0.5, 0.5)}, "three positive shares"),
        ("user_ratio", {"ratios": (0.8, 0.1, 0.2)}, "sum to 1"),
        ("user_ratio", {}, "too few"),
        ("global_time", {"validation_time": 70, "test_time": 40}, "is not before"),
        ("global_time", {"validation_time": 1, "test_time": 4}, "the training part is empty"),
        ("global_time", {"quantiles": (0.9, 0.8)}, "two rising shares"),
    ],
)
def test_arguments_that_make_no_split_are_refused(sequences, name, params, message):
    with pytest.raises(ValueError, match=message):
        make_split(name, sequences, **params)


def test_an_evaluation_set_whose_positions_do_not_fit_is_refused(sequences):
    one = np.array([0])
    with pytest.raises(ValueError, match="start <= stop < number"):
        EvaluationSet(sequences, one, one, np.array([12]), np.array([1]))
    with pytest.raises(ValueError, match="one common length"):
        EvaluationSet(sequences, one, one, one, np.array([1, 2]))
