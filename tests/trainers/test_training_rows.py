"""Rows, negatives and collators, by whole tensors."""

import numpy as np
import pyarrow as pa
import pytest

from hf_seqrec.data import Sequences
from hf_seqrec.trainers import DataCollatorForCloze, DataCollatorForNextItem, NegativeSampler, SequenceDataset


# Users: ann 1 2 3 4 5, bob 6, eve 7 8.
SEQUENCES = Sequences(
    np.array([1, 2, 3, 4, 5, 6, 7, 8]), np.array([0, 5, 6, 8]), None, pa.array(["ann", "bob", "eve"])
)


def rows_of(dataset):
    return [dataset[number]["item_index"].tolist() for number in range(len(dataset))]


def test_a_row_is_a_whole_sequence_cut_to_its_end_and_single_items_are_left_out():
    assert rows_of(SequenceDataset(SEQUENCES, max_length=10)) == [[1, 2, 3, 4, 5], [7, 8]]
    assert rows_of(SequenceDataset(SEQUENCES, max_length=2)) == [[3, 4, 5], [7, 8]]


def test_prefix_rows_are_all_histories_with_the_item_after_them():
    dataset = SequenceDataset(SEQUENCES, max_length=3, rows="prefix")
    assert rows_of(dataset) == [[1, 2], [1, 2, 3], [1, 2, 3, 4], [2, 3, 4, 5], [7, 8]]
    assert [dataset[number]["user"] for number in range(5)] == [0, 0, 0, 0, 2]


def test_drawn_prefixes_are_of_all_lengths_over_the_epochs_and_fixed_within_one():
    dataset = SequenceDataset(SEQUENCES, max_length=10, rows="prefix", prefixes_per_sequence=2)
    assert len(dataset) == 4
    seen = set()
    for epoch in range(30):
        dataset.set_epoch(epoch)
        rows = rows_of(dataset)
        assert rows == rows_of(dataset)
        assert all(row == [1, 2, 3, 4, 5][: len(row)] for row in rows[:2])
        assert rows[2:] == [[7, 8], [7, 8]]
        seen |= {len(row) for row in rows[:2]}
    assert seen == {2, 3, 4, 5}


def test_a_random_crop_is_a_window_that_moves_with_the_epoch():
    dataset = SequenceDataset(SEQUENCES, max_length=2, crop="random", seed=3)
    windows = set()
    for epoch in range(30):
        dataset.set_epoch(epoch)
        long, short = rows_of(dataset)
        assert short == [7, 8]
        windows.add(tuple(long))
    assert windows == {(1, 2, 3), (2, 3, 4), (3, 4, 5)}


@pytest.mark.parametrize("max_length", [1, 2, 3, 4, 7, 50])
def test_sliding_windows_have_every_item_as_target_once_per_epoch_behind_half_a_window(max_length):
    lengths = [1, 2, 3, 9, 10, 23, 40]
    items = np.concatenate([np.arange(1, length + 1) for length in lengths])
    users = pa.array([str(length) for length in lengths])
    sequences = Sequences(items, np.cumsum([0, *lengths]), None, users)
    dataset = SequenceDataset(sequences, max_length, crop="sliding", seed=1)
    cuts = set()
    for epoch in range(20):
        dataset.set_epoch(epoch)
        examples = [dataset[number] for number in range(len(dataset))]
        batch = DataCollatorForNextItem()(examples)
        assert batch["input_ids"].shape[1] <= max_length
        targets = {user: [] for user in range(len(lengths))}
        for example, inputs, labels in zip(examples, batch["input_ids"], batch["labels"], strict=True):
            asked = (labels != -100).nonzero()[:, 0]
            assert (labels[asked] == inputs[asked] + 1).all()
            targets[example["user"]] += labels[asked].tolist()
            before = (inputs != 0).cumsum(0)[asked]
            # Either everything before the target is shown, or at least half a window.
            assert ((before == inputs[asked]) | (before >= max_length - max(1, max_length // 2) + 1)).all()
        assert targets == {user: list(range(2, length + 1)) for user, length in enumerate(lengths)}
        cuts.add(tuple(len(example["item_index"]) for example in examples))
    assert (len(cuts) > 1) == (max_length in (4, 7))  # else steps of one item, or nothing to cut


def test_sliding_windows_of_short_sequences_are_the_sequences():
    whole, sliding = (SequenceDataset(SEQUENCES, max_length=4, crop=crop) for crop in ("last", "sliding"))
    assert rows_of(whole) == rows_of(sliding)


def test_the_seed_changes_what_is_drawn():
    def drawn(seed):
        dataset = SequenceDataset(SEQUENCES, max_length=2, crop="random", seed=seed)
        out = []
        for epoch in range(10):
            dataset.set_epoch(epoch)
            out.append(rows_of(dataset)[0])
        return out

    assert drawn(0) == drawn(0) != drawn(1)


def test_next_item_labels_are_the_items_one_step_on():
    batch = DataCollatorForNextItem()([{"item_index": np.array([4, 7, 9])}, {"item_index": np.array([5, 6])}])
    assert {name: tensor.tolist() for name, tensor in batch.items()} == {
        "input_ids": [[4, 7], [0, 5]],
        "labels": [[7, 9], [-100, 6]],
    }


def test_a_prefix_is_labelled_at_its_last_position_only():
    batch = DataCollatorForNextItem(last_position_only=True)(
        [{"item_index": np.array([4, 7, 9])}, {"item_index": np.array([5, 6])}]
    )
    assert batch["input_ids"].tolist() == [[4, 7], [0, 5]]
    assert batch["labels"].tolist() == [[-100, 9], [-100, 6]]


def collate_with_negatives(numbers, epoch=0, **sampler):
    dataset = SequenceDataset(SEQUENCES, max_length=10)
    dataset.set_epoch(epoch)
    collate = DataCollatorForNextItem(sampler=NegativeSampler(9, **sampler), sequences=SEQUENCES)
    return collate([dataset[number] for number in numbers])["negatives"]


def test_negatives_of_a_row_do_not_depend_on_the_rest_of_the_batch():
    together, alone = collate_with_negatives([0, 1], num_negatives=3), collate_with_negatives([1], num_negatives=3)
    assert together.shape == (2, 4, 3)
    assert alone.shape == (1, 1, 3)
    assert together[1, -1:].tolist() == alone[0].tolist()


def test_negatives_change_with_the_epoch():
    first, second = (collate_with_negatives([0], epoch=epoch, num_negatives=3) for epoch in (0, 1))
    assert first.tolist() != second.tolist()


def test_negatives_per_sequence_are_shared_by_its_positions():
    assert collate_with_negatives([0, 1], num_negatives=3, per="sequence").shape == (2, 1, 3)


def test_excluded_negatives_are_never_items_of_the_users_whole_history():
    negatives = collate_with_negatives([0, 1], num_negatives=200, exclude_history=True)
    assert set(negatives[0].unique().tolist()) == {6, 7, 8, 9}
    assert set(negatives[1, -1].unique().tolist()) == {1, 2, 3, 4, 5, 6, 9}


def test_uniform_negatives_reach_every_item_and_never_padding():
    drawn = NegativeSampler(5, 1).draw(np.random.default_rng(0), (20_000,))
    assert np.bincount(drawn, minlength=6)[0] == 0
    np.testing.assert_allclose(np.bincount(drawn)[1:] / len(drawn), 1 / 5, atol=0.015)


def test_weighted_negatives_follow_their_weights():
    drawn = NegativeSampler(3, 1, weights=np.array([0.0, 6.0, 0.0, 2.0])).draw(np.random.default_rng(0), (20_000,))
    np.testing.assert_allclose(np.bincount(drawn, minlength=4) / len(drawn), [0, 0.75, 0, 0.25], atol=0.015)


def cloze(rows, key=(0, 0), **arguments):
    examples = [
        {"item_index": np.array(row), "generator_key": (*key, number)} for number, row in enumerate(rows)
    ]  # as SequenceDataset gives them
    return DataCollatorForCloze(mask_id=99, **arguments)(examples)


def test_a_cloze_row_whose_last_item_only_is_hidden():
    batch = cloze([[4, 7, 9], [5, 6]], last_only_probability=1.0)
    assert batch["input_ids"].tolist() == [[4, 7, 99], [0, 5, 99]]
    assert batch["labels"].tolist() == [[-100, -100, 9], [-100, -100, 6]]


def test_a_cloze_row_that_is_hidden_altogether():
    batch = cloze([[4, 7, 9], [5, 6]], last_only_probability=0.0, mask_probability=1.0)
    assert batch["input_ids"].tolist() == [[99, 99, 99], [0, 99, 99]]
    assert batch["labels"].tolist() == [[4, 7, 9], [-100, 5, 6]]


def test_cloze_keeps_the_most_recent_items():
    assert cloze([[1, 2, 3, 4]], last_only_probability=1.0, max_length=2)["input_ids"].tolist() == [[3, 99]]


def test_cloze_hides_about_the_share_that_is_asked_for_and_at_least_one():
    rows = [list(range(1, 51))] * 400
    batch = cloze(rows, last_only_probability=0.0, mask_probability=0.2)
    hidden = batch["labels"] != -100
    assert abs(hidden.float().mean().item() - 0.2) < 0.01
    assert bool((batch["input_ids"][hidden] == 99).all())
    assert batch["labels"][hidden].tolist() == [
        number for row in hidden for number in (row.nonzero()[:, 0] + 1).tolist()
    ]
    assert bool(
        (cloze([[1, 2]] * 50, last_only_probability=0.0, mask_probability=0.01)["labels"] != -100).any(1).all()
    )


def test_cloze_masks_change_with_the_epoch_and_not_with_the_batch():
    rows = [list(range(1, 31))] * 2
    first = cloze(rows, key=(0, 0), last_only_probability=0.0)["labels"]
    assert first.tolist() != cloze(rows, key=(0, 1), last_only_probability=0.0)["labels"].tolist()
    assert first[:1].tolist() == cloze(rows[:1], key=(0, 0), last_only_probability=0.0)["labels"].tolist()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SequenceDataset(SEQUENCES, 5, rows="window"), "'sequence' or 'prefix', got 'window'"),
        (lambda: SequenceDataset(SEQUENCES, 5, crop="first"), "one of last, random, sliding, got 'first'"),
        (lambda: SequenceDataset(SEQUENCES, 5, prefixes_per_sequence=0), "at least 1 or None, got 0"),
        (
            lambda: SequenceDataset(Sequences(np.array([1]), np.array([0, 1]), None, pa.array(["ann"])), 5),
            "none of the 1 training sequences has two items",
        ),
        (lambda: NegativeSampler(5, 0), "at least 1, got 0"),
        (lambda: NegativeSampler(5, 1, per="batch"), "'position' or 'sequence', got 'batch'"),
        (
            lambda: NegativeSampler(2, 1, exclude_history=True)(np.random.default_rng(0), 1, np.array([1, 2])),
            "all 2 items",
        ),
        (lambda: DataCollatorForNextItem()([{"item_index": np.array([1])}]), "row 0 of the batch has 1 items"),
    ],
)
def test_bad_values_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_row_without_the_items_column_is_refused_by_name():
    with pytest.raises(KeyError, match="'item_index', got \\['items'\\]"):
        DataCollatorForNextItem()([{"items": np.array([1, 2])}])
