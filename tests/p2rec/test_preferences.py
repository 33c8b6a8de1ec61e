"""Stage 0: groups of items and users' preferences for them, from training interactions only."""

import numpy as np
import pyarrow as pa
import pytest

from hf_seqrec.data import Sequences, leave_one_out
from hf_seqrec.preferences import (
    ItemGroups,
    category_agreement,
    group_items,
    preference_distributions,
    sweep_groups,
)


def test_groups_are_those_of_the_vectors(item_table):
    groups = group_items(item_table, 3)
    assert groups.group[0] == -1
    assert sorted(groups.sizes) == [4, 4, 4]
    for first in (1, 5, 9):
        assert len(set(groups.group[first : first + 4])) == 1
    assert groups.silhouette > 0.9
    assert groups.one_hot().sum(1).tolist() == [1.0] * 12
    np.testing.assert_array_equal(group_items(item_table, 3).group, groups.group)


def test_normalisation_decides_what_is_near():
    # By length two near the origin and two far out; by direction x and y.
    table = np.array([[0, 0], [1, 0], [0, 1], [99, 0], [0, 99]], dtype=np.float32) + 1e-3
    by_length = group_items(table, 3).group
    by_direction = group_items(table, 2, normalize="unit").group
    assert by_length[1] == by_length[2]
    assert by_direction[1] == by_direction[3] != by_direction[2] == by_direction[4]


def test_items_outside_training_do_not_move_the_groups(item_table):
    poisoned = item_table.copy()
    poisoned[12] = 1e4
    for normalize in ("none", "standard"):
        clean = group_items(item_table, 2, normalize, training_items=np.arange(1, 12))
        other = group_items(poisoned, 2, normalize, training_items=np.arange(1, 12))
        np.testing.assert_array_equal(clean.centres, other.centres)
        assert other.group[12] in (0, 1)


def test_impossible_groups_are_refused(item_table):
    with pytest.raises(ValueError, match=r"13 groups of 12 items"):
        group_items(item_table, 13)
    with pytest.raises(ValueError, match=r"6 groups of 5 items \(catalogue 12\)"):
        group_items(item_table, 6, training_items=[1, 2, 3, 4, 5, 5])
    with pytest.raises(ValueError, match="only 2 different vectors, so some of 3 groups would be empty"):
        group_items(np.array([[0.0], [1], [1], [2], [2]]), 3)
    with pytest.raises(ValueError, match="`normalize` must be one of"):
        group_items(item_table, 3, normalize="l2")
    with pytest.raises(ValueError, match="not finite at item_index 2"):
        group_items(np.array([[0.0], [1], [np.nan]]), 2)


def test_a_sweep_looks_at_the_largest_first(item_table):
    groups = sweep_groups(item_table, (2, 3))
    assert groups[2].inertia > groups[3].inertia
    with pytest.raises(ValueError, match="64 groups of 12 items"):
        sweep_groups(item_table, (2, 64))


def test_preferences_are_the_shares_of_groups():
    groups = ItemGroups(np.array([-1, 0, 1, 1, 2]), np.zeros((3, 1)), 0.0, 0.0, "none")
    sequences = Sequences(np.array([1, 1, 2, 3, 4]), np.array([0, 4, 4, 5]), None, pa.array(["ann", "bob", "cat"]))
    found = preference_distributions(sequences, groups)
    np.testing.assert_array_equal(found, [[0.5, 0.5, 0], [0, 0, 0], [0, 0, 1]])
    with pytest.raises(ValueError, match="hold item_index 5"):
        preference_distributions(Sequences(np.array([5]), np.array([0, 1]), None, pa.array(["ann"])), groups)
    with pytest.raises(ValueError, match="no user has a training item"):
        preference_distributions(Sequences(np.array([]), np.array([0, 0]), None, pa.array(["ann"])), groups)


def test_held_out_items_change_no_preference(item_table, sequences):
    groups = group_items(item_table, 3)
    poisoned = sequences.item_index.copy()
    poisoned[sequences.offsets[1:] - 1] = 1  # test
    poisoned[sequences.offsets[1:] - 2] = 1  # validation
    other = Sequences(poisoned, sequences.offsets, None, sequences.user_ids)
    clean, dirty = (preference_distributions(leave_one_out(one).train, groups) for one in (sequences, other))
    np.testing.assert_array_equal(clean, dirty)
    assert not np.array_equal(preference_distributions(sequences, groups), preference_distributions(other, groups))


def test_agreement_counts_first_next_two_and_rest():
    groups = ItemGroups(np.array([-1, 0, 0, 0, 0]), np.zeros((4, 1)), 0.0, 0.0, "none")
    inferred = np.array([[0.7, 0.1, 0.1, 0.1], [0.3, 0.4, 0.2, 0.1], [0.1, 0.2, 0.3, 0.4], [0.25] * 4])
    assert category_agreement(inferred, groups) == {"c1": 0.25, "c2": 0.25, "c3": 0.5}
    with pytest.raises(ValueError, match=r"need shape \(4, 4\)"):
        category_agreement(inferred[:2], groups)


def test_groups_come_back_from_their_file_and_damage_is_found(item_table, tmp_path):
    groups = group_items(item_table, 3, normalize="unit")
    groups.save(tmp_path / "groups.npz")
    again = ItemGroups.load(tmp_path / "groups.npz")
    for name, value in vars(groups).items():
        np.testing.assert_array_equal(getattr(again, name), value)
    whole = (tmp_path / "groups.npz").read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", b"something else"):
        (tmp_path / "groups.npz").write_bytes(damaged)
        with pytest.raises(ValueError, match="holds no item groups"):
            ItemGroups.load(tmp_path / "groups.npz")
    with pytest.raises(FileNotFoundError):
        ItemGroups.load(tmp_path / "none.npz")
