"""Sequences and the catalogue: flat arrays, views, and the way between ids and indices."""

import numpy as np
import pyarrow as pa
import pytest

from hf_seqrec.data import Catalogue, Sequences
from hf_seqrec.data.sequences import flat_positions


def test_a_user_is_a_view_of_the_flat_array(sequences):
    assert len(sequences) == 4
    assert sequences[1].tolist() == sequences[-3].tolist() == [2, 1, 3]
    assert np.shares_memory(sequences[1], sequences.item_index)
    assert [user.tolist() for user in sequences] == [[1, 2, 4, 3], [2, 1, 3], [6, 1, 2, 6], [5]]
    with pytest.raises(IndexError, match="user 4 of 4"):
        sequences[4]


def test_nobody_writes_into_shared_sequences(sequences):
    for array in (sequences.item_index, sequences.offsets, sequences.timestamps, sequences[0]):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 9


def test_arrays_have_the_documented_types(sequences):
    assert (sequences.item_index.dtype, sequences.offsets.dtype) == (np.int32, np.int64)
    assert sequences.timestamps.dtype == np.int64
    assert sequences.lengths.tolist() == [4, 3, 4, 1]


@pytest.mark.parametrize("users", [np.array([3, 0]), np.array([True, False, False, True])])
def test_a_subset_holds_whole_users_in_the_order_asked(sequences, users):
    subset = sequences.subset(users)
    order = [3, 0] if users.dtype != bool else [0, 3]
    assert [user.tolist() for user in subset] == [sequences[user].tolist() for user in order]
    assert subset.user_ids.to_pylist() == [sequences.user_ids[user].as_py() for user in order]
    assert len(subset.timestamps) == 5


def test_flat_positions_matches_ranges_one_by_one():
    start, stop = np.array([4, 0, 9, 9]), np.array([7, 0, 9, 11])
    assert flat_positions(start, stop).tolist() == [4, 5, 6, 9, 10]
    assert flat_positions(np.array([], int), np.array([], int)).tolist() == []


@pytest.mark.parametrize(
    ("offsets", "timestamps", "message"),
    [([0, 2], None, "users \\+ 1"), ([0, 3, 2], None, "must rise"), ([0, 1, 2], [5], "one each")],
)
def test_arrays_that_do_not_fit_are_refused(offsets, timestamps, message):
    times = None if timestamps is None else np.array(timestamps)
    with pytest.raises(ValueError, match=message):
        Sequences(np.array([1, 2]), np.array(offsets), times, pa.array(["ann", "bob"]))


def test_ids_and_indices_are_inverse(items):
    catalogue = Catalogue(items)
    index = catalogue.to_index(["i3", "i1", "i3"])
    assert (index.tolist(), index.dtype) == ([3, 1, 3], np.int32)
    assert catalogue.to_item_ids(index).to_pylist() == ["i3", "i1", "i3"]
    assert catalogue.to_titles([1, 4]).to_pylist() == ["Alien", None]
    for same in (pa.array(["i3"]), pa.chunked_array([["i3"]]), np.array(["i3"]), pa.array(["i3"], pa.large_string())):
        assert catalogue.to_index(same).tolist() == [3]
    assert catalogue.to_index([]).shape == (0,)


def test_an_unknown_id_names_near_ids_and_titles(items):
    catalogue = Catalogue(items)
    with pytest.raises(KeyError, match=r"2 unknown item id\(s\), first 'i11'.*Near ids: i1"):
        catalogue.to_index(["i2", "i11", "x"])
    with pytest.raises(KeyError, match="'Fargo' is item_id i3"):
        catalogue.to_index(["Frgo"])


def test_ids_that_are_not_strings_are_refused(items):
    with pytest.raises(TypeError, match="must be strings, got int64"):
        Catalogue(items).to_index([1, 2])
    with pytest.raises(TypeError, match="pass a list"):
        Catalogue(items).to_index("i1")
    with pytest.raises(KeyError, match="must not be null"):
        Catalogue(items).to_index(["i1", None])


@pytest.mark.parametrize("index", [0, 7, -1])
def test_padding_and_foreign_indices_are_not_items(items, index):
    with pytest.raises(IndexError, match=f"item_index {index} is not an item: need 1 to 6"):
        Catalogue(items).to_item_ids([1, index])


def test_title_collisions_are_counted_without_missing_titles(items):
    assert Catalogue(items).title_collisions() == {"Heat": 2}


def test_ml_100k_has_eighteen_titles_that_two_films_share(real_data):
    from hf_seqrec.data import load_recommendation_data

    collisions = load_recommendation_data(real_data("ml-100k")).catalogue.title_collisions()
    assert (len(collisions), sum(collisions.values())) == (18, 36)
