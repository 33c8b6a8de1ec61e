"""What is the same for all converters: filters in their order, published counts, the card, one layout for everybody."""

import hashlib
import warnings

import datasets
import numpy as np
import pyarrow as pa
import pytest
import yaml

from hf_seqrec.data import load_recommendation_data
from hf_seqrec.dataset_scripts.base import Statistics
from hf_seqrec.dataset_scripts.building import (
    CodedInteractions,
    Filters,
    PublishedCountsWarning,
    build_dataset,
    collect_items,
)
from hf_seqrec.dataset_scripts.movielens import MovieLens
from hf_seqrec.dataset_scripts.table import Csv


PLAYS = Csv(
    interactions_file="plays.csv",
    timestamp_column="time",
    rating_column="stars",
    items_file="songs.csv",
    text_columns="mood",
)


def write_plays(folder, rows):
    text = "user_id,item_id,time,stars\n" + "".join(",".join(map(str, row)) + "\n" for row in rows)
    (folder / "plays.csv").write_text(text)
    (folder / "songs.csv").write_text("item_id,title,mood\nb,Same,\na,Same,calm\n")


def rows_of(data):
    return {
        user: data.catalogue.to_item_ids(items).to_pylist()
        for user, items in zip(data.sequences.user_ids.to_pylist(), data.sequences, strict=True)
    }


def test_filters_run_in_order_rating_then_repeats_then_core(tmp_path):
    # Without the low ratings ann and item c fall below 2; with ann gone, item b falls; bob falls then.
    rows = [
        ("ann", "b", 1, 5), ("ann", "c", 2, 1), ("bob", "b", 3, 5), ("bob", "a", 4, 5), ("bob", "a", 4, 5),
        ("cat", "a", 5, 5), ("cat", "d", 6, 4), ("dan", "a", 7, 5), ("dan", "d", 8, 5), ("dan", "c", 9, 2),
    ]  # fmt: skip
    write_plays(tmp_path, rows)
    data = build_dataset(PLAYS, tmp_path, tmp_path / "out", Filters(user_core=2, item_core=2, min_rating=3))
    assert rows_of(data) == {"cat": ["a", "d"], "dan": ["a", "d"]}
    card = (tmp_path / "out/README.md").read_text()
    assert "Ratings below 3 dropped: 2 rows." in card
    assert "repeat user, item and time of an earlier row dropped: 1." in card
    assert "repeated until none is left: 3 rows." in card


def test_ties_keep_the_order_of_the_raw_file(tmp_path):
    rows = [("ann", "z", 5, 1), ("bob", "q", 1, 1), ("ann", "a", 5, 1), ("ann", "m", 4, 1), ("ann", "k", 5, 1)]
    write_plays(tmp_path, rows)
    data = build_dataset(PLAYS, tmp_path, tmp_path / "out", Filters(user_core=1, item_core=1))
    assert rows_of(data) == {"ann": ["m", "z", "a", "k"], "bob": ["q"]}


def test_codes_agree_however_the_stream_is_cut():
    users = ["u3", "u1", "u3", "u2", "u1"]
    items = ["b", "a", "a", "c", "b"]

    def stream(sizes):
        start = 0
        for size in sizes:
            part = slice(start, start + size)
            yield pa.record_batch(
                {
                    "user_id": pa.array(users[part]).dictionary_encode(),
                    "item_id": pa.array(items[part]).dictionary_encode(),
                    "timestamp": pa.array(range(5)[part], pa.int64()),
                }
            )
            start += size

    for sizes in ([5], [1, 1, 1, 1, 1], [2, 0, 3]):
        coded = CodedInteractions.gather(stream(sizes))
        assert coded.user_ids.to_pylist() == ["u3", "u1", "u2"]
        assert coded.users.tolist() == [0, 1, 0, 2, 1]
        assert coded.item_ids.to_pylist() == ["b", "a", "c"]
        assert coded.items.tolist() == [0, 1, 1, 2, 0]
        assert coded.times.tolist() == [0, 1, 2, 3, 4]
        assert (coded.users.dtype, coded.items.dtype, coded.ratings) == (np.int32, np.int32, None)


def test_items_come_in_the_owners_order_and_unknown_ones_last():
    owner = [
        pa.record_batch({"item_id": ["x", "b"], "title": ["X", "B"]}),
        pa.record_batch({"item_id": ["a"], "title": ["A"]}),
    ]
    table, unknown = collect_items(owner, pa.array(["z", "a", "y", "b"]))
    assert table.to_pydict() == {"item_id": ["b", "a", "y", "z"], "title": ["B", "A", None, None]}
    assert unknown == 2


def test_card_tells_counts_ties_titles_terms_and_checksums(tmp_path):
    write_plays(tmp_path, [("ann", "a", 5, 1), ("ann", "b", 5, 1), ("bob", "a", 9, 1)])
    data = build_dataset(PLAYS, tmp_path, tmp_path / "out", Filters(user_core=1, item_core=1))
    card = (tmp_path / "out/README.md").read_text()
    header = yaml.safe_load(card.split("---")[1])
    facts = header["hf_seqrec"]
    assert facts["fingerprint"] == data.fingerprint
    assert (facts["num_users"], facts["num_items"], facts["num_interactions"]) == (2, 2, 3)
    assert facts["tie_rate"] == pytest.approx(2 / 3)
    assert facts["items_sharing_a_title"] == 2
    for file in ("plays.csv", "songs.csv"):
        digest = hashlib.sha256((tmp_path / file).read_bytes()).hexdigest()
        assert f"Raw file `{file}`: {(tmp_path / file).stat().st_size} bytes, sha256 `{digest}`." in card
    assert PLAYS.about.terms in card
    assert (
        "seqrec data build csv --interactions-file plays.csv --user-column user_id --item-column item_id --timestamp-column time"
        in card
    )


def test_datasets_reads_the_written_folder_by_its_card(tmp_path):
    write_plays(tmp_path, [("ann", "a", 5, 1), ("ann", "b", 6, 2), ("bob", "a", 9, 1)])
    data = build_dataset(PLAYS, tmp_path, tmp_path / "out", Filters(user_core=1, item_core=1))
    cache = str(tmp_path / "cache")
    interactions = datasets.load_dataset(str(tmp_path / "out"), split="train", cache_dir=cache)
    assert interactions[2] == {"user_id": "bob", "item_id": "a", "timestamp": 9, "rating": 1.0}
    assert interactions.features["user_id"] == datasets.Value("string")
    items = datasets.load_dataset(str(tmp_path / "out"), "items", split="train", cache_dir=cache)
    assert items["title"][:] == ["Same", "Same"]
    assert load_recommendation_data(tmp_path / "out").fingerprint == data.fingerprint


def write_movielens(folder, rows=1):
    (folder / "ratings.csv").write_text(
        "userId,movieId,rating,timestamp\n" + "".join(f"1,{i},5.0,{i}\n" for i in range(rows))
    )
    (folder / "movies.csv").write_text("movieId,title,genres\n0,Heat (1995),Crime\n")


def test_counts_that_differ_from_the_published_ones_are_told_on_screen_and_in_the_card(tmp_path):
    write_movielens(tmp_path)
    with pytest.warns(PublishedCountsWarning, match="raw users: got 1, published 610"):
        build_dataset(MovieLens(edition="latest-small"), tmp_path, tmp_path / "out", Filters(user_core=1, item_core=1))
    card = (tmp_path / "out/README.md").read_text()
    assert "**Warning: counts differ from the published ones (raw users: got 1, published 610;" in card
    assert "| interactions | 1 | 100,836 |" in card


def test_strict_makes_differing_counts_an_error_before_anything_is_written(tmp_path):
    write_movielens(tmp_path)
    with pytest.raises(ValueError, match="built interactions: got 1, published 100,836"):
        build_dataset(
            MovieLens(edition="latest-small"),
            tmp_path,
            tmp_path / "out",
            Filters(user_core=1, item_core=1),
            strict=True,
        )
    assert not (tmp_path / "out").exists()


def test_agreeing_counts_give_no_warning(tmp_path, monkeypatch):
    write_movielens(tmp_path, rows=3)
    monkeypatch.setattr(MovieLens, "published", lambda self: {"raw": Statistics(1, 3, 3)})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        build_dataset(
            MovieLens(edition="32m"), tmp_path, tmp_path / "out", Filters(user_core=1, item_core=1), strict=True
        )
    assert (
        "Raw users / items / interactions: 1 / 3 / 3 (published: 1 / 3 / 3)."
        in (tmp_path / "out/README.md").read_text()
    )


@pytest.mark.parametrize(
    ("published", "count", "agrees"),
    [
        ("94.8K", 94_762, True),
        ("94.8K", 94_700, False),
        ("2.5M", 2_549_999, True),
        ("2.5M", 2_551_000, False),
        (7, 8, False),
    ],
)
def test_rounded_published_figures_agree_to_their_last_digit(published, count, agrees):
    differences = Statistics(published, None, None).mismatches(users=count, items=1, interactions=1)
    assert (differences == []) is agrees


def test_published_five_core_counts_belong_to_the_unfiltered_source_only(tmp_path):
    write_plays(tmp_path, [("ann", "a", 5, 1)])
    published = MovieLens(edition="1m").published()
    assert published["5-core"] == Statistics(6_040, 3_416, 999_611)
    # A rating threshold changes the counts, so that they are not compared with the published 5-core.
    write_movielens(tmp_path)
    with pytest.warns(PublishedCountsWarning) as caught:
        build_dataset(
            MovieLens(edition="latest-small"),
            tmp_path,
            tmp_path / "out",
            Filters(user_core=1, item_core=1, min_rating=1.0),
        )
    assert "built" not in str(caught[0].message)
