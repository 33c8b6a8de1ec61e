"""Writing and loading: order, ties, fingerprints, layouts, and nothing half done."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from hf_seqrec.data import DatasetDescription, interaction_batches, layout, load_recommendation_data, write_dataset
from hf_seqrec.data.files import atomic_path


CARD = DatasetDescription(title="Tiny films", summary="Four viewers.", filters=("No filter.",), simulated=True)


def save_plain(folder, items, interactions):
    folder.mkdir(exist_ok=True)
    pq.write_table(items, folder / "items.parquet")
    pq.write_table(interactions, folder / "interactions.parquet")
    return folder


def assert_same(one, other):
    assert one.item_index.tolist() == other.item_index.tolist()
    assert one.offsets.tolist() == other.offsets.tolist()
    assert one.user_ids.to_pylist() == other.user_ids.to_pylist()
    assert (one.timestamps is None) == (other.timestamps is None)
    if one.timestamps is not None:
        assert one.timestamps.tolist() == other.timestamps.tolist()


def test_rows_are_grouped_by_user_and_ordered_by_time_with_ties_as_in_the_file(
    tmp_path, items, interactions, sequences
):
    data = load_recommendation_data(save_plain(tmp_path / "tiny", items, interactions))
    assert data.name == "tiny"
    assert_same(data.sequences, sequences)
    assert data.tie_rate == 4 / 12


def test_reversing_tied_rows_reverses_them_in_the_sequence(tmp_path, items, interactions):
    order = [0, 1, 2, 3, 5, 4, *range(6, 12)]
    data = load_recommendation_data(save_plain(tmp_path / "tiny", items, interactions.take(pa.array(order))))
    assert data.sequences[0].tolist() == [1, 2, 3, 4]


def test_ties_across_users_do_not_count(tmp_path, items):
    rows = pa.table({"user_id": ["a", "a", "b", "b"], "item_id": ["i1", "i2", "i1", "i2"], "timestamp": [1, 2, 2, 3]})
    assert load_recommendation_data(save_plain(tmp_path / "tiny", items, rows)).tie_rate == 0


def test_position_stands_in_place_of_time(tmp_path, items):
    rows = pa.table({"user_id": ["a", "a", "b"], "item_id": ["i1", "i2", "i3"], "position": [1, 0, 0]})
    data = load_recommendation_data(save_plain(tmp_path / "tiny", items, rows))
    assert data.sequences.timestamps is None
    assert data.tie_rate == 0
    assert [user.tolist() for user in data.sequences] == [[2, 1], [3]]


def test_the_same_item_at_another_time_is_no_duplicate(tmp_path, items):
    rows = pa.table({"user_id": ["a", "a"], "item_id": ["i1", "i1"], "timestamp": [1, 2]})
    assert load_recommendation_data(save_plain(tmp_path / "tiny", items, rows)).sequences[0].tolist() == [1, 1]


@pytest.mark.parametrize(("duplicates", "expected"), [("drop", [1, 2]), ("keep", [1, 1, 2])])
def test_duplicates_are_dropped_or_kept_on_demand(tmp_path, items, duplicates, expected):
    rows = pa.table({"user_id": ["a", "a", "a"], "item_id": ["i1", "i2", "i1"], "timestamp": [1, 2, 1]})
    data = load_recommendation_data(save_plain(tmp_path / "tiny", items, rows), duplicates=duplicates)
    assert data.sequences[0].tolist() == expected


def test_written_data_load_equal_from_either_layout(tmp_path, items, interactions, sequences):
    written = write_dataset(tmp_path / "hub", items, interactions, CARD)
    loaded = load_recommendation_data(tmp_path / "hub")
    plain = load_recommendation_data(save_plain(tmp_path / "plain", items, interactions))
    assert_same(loaded.sequences, sequences)
    assert_same(plain.sequences, sequences)
    assert written.fingerprint == loaded.fingerprint == plain.fingerprint
    assert written.name == loaded.name == CARD.title
    assert plain.name == "plain"
    files = sorted(str(file.relative_to(tmp_path / "hub")) for file in (tmp_path / "hub").rglob("*") if file.is_file())
    assert files == [
        "README.md",
        "interactions/train-00000-of-00001.parquet",
        "items/train-00000-of-00001.parquet",
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hub", "plain"]


def test_streams_tables_and_flat_arrays_write_the_same(tmp_path, items, interactions, monkeypatch):
    monkeypatch.setattr(layout, "_ROWS_PER_GROUP", 5)
    table = write_dataset(tmp_path / "table", items, interactions, CARD)
    stream = write_dataset(tmp_path / "stream", items, iter(interactions.to_batches(max_chunksize=2)), CARD)
    users = interactions["user_id"].combine_chunks().dictionary_encode()
    films = interactions["item_id"].combine_chunks().dictionary_encode()
    batches = interaction_batches(
        users.dictionary,
        users.indices.to_numpy(),
        films.dictionary,
        films.indices.to_numpy(),
        interactions["timestamp"].to_numpy(),
        rows_per_batch=3,
    )
    arrays = write_dataset(tmp_path / "arrays", items, batches, CARD)
    assert table.fingerprint == stream.fingerprint == arrays.fingerprint
    file = pq.ParquetFile(tmp_path / "arrays" / "interactions" / layout.PARQUET_FILE)
    assert file.schema_arrow == interactions.schema
    assert file.num_row_groups == 2


def test_ratings_are_written_as_float32(tmp_path, items, interactions):
    rated = interactions.append_column("rating", pa.array(np.arange(12) / 2.0))
    write_dataset(tmp_path / "rated", items, rated, CARD)
    written = pq.read_table(tmp_path / "rated" / "interactions")
    assert written.schema.field("rating").type == pa.float32()
    assert written["rating"].to_pylist() == rated["rating"].to_pylist()


def test_the_datasets_library_reads_what_is_written(tmp_path, items, interactions):
    datasets = pytest.importorskip("datasets")
    write_dataset(tmp_path / "hub", items, interactions, CARD)
    cache = str(tmp_path / "cache")
    default = datasets.load_dataset(str(tmp_path / "hub"), split="train", cache_dir=cache)
    films = datasets.load_dataset(str(tmp_path / "hub"), "items", split="train", cache_dir=cache)
    assert default.column_names == ["user_id", "item_id", "timestamp"]
    assert default.num_rows == 12
    assert films["title"][:4] == ["Alien", "Heat", "Fargo", None]


def test_the_card_prints_what_was_measured(tmp_path, items, interactions):
    described = DatasetDescription(
        title="Tiny films",
        summary="Four viewers.",
        filters=("5-core: users and items.",),
        published={"num_users": 5, "num_items": "6"},
        source="Made up.",
        citation="@misc{tiny}",
        simulated=True,
        language="en",
    )
    data = write_dataset(tmp_path / "hub", items, interactions, described)
    text = (tmp_path / "hub" / "README.md").read_text(encoding="utf-8")
    header = yaml.safe_load(text.split("---")[1])
    assert header["configs"] == [
        {"config_name": "items", "data_files": [{"split": "train", "path": "items/train-*"}]},
        {
            "config_name": "interactions",
            "default": True,
            "data_files": [{"split": "train", "path": "interactions/train-*"}],
        },
    ]
    assert header["hf_seqrec"]["fingerprint"] == data.fingerprint
    assert header["hf_seqrec"]["tie_rate"] == 4 / 12
    for line in (
        "| users | 4 | 5 |",
        "| items | 6 | 6 |",
        "| items without title | 1 |  |",
        "| items sharing a title | 2 |  |",
        "**Simulated data: no person stands behind these interactions.**",
        "- 5-core: users and items.",
        "33.3% of the interactions share their time",
        "@misc{tiny}",
    ):
        assert line in text


def test_the_fingerprint_follows_content_and_order_not_files(tmp_path, items, interactions):
    def fingerprint(name, items=items, interactions=interactions):
        return load_recommendation_data(save_plain(tmp_path / name, items, interactions)).fingerprint

    same = fingerprint("a")
    assert same == fingerprint("columns", items=items.select(["title", "genres", "item_id"]))
    encoded = interactions.set_column(0, "user_id", interactions["user_id"].dictionary_encode())
    assert same == fingerprint("encoded", interactions=encoded)
    pq.write_table(interactions, tmp_path / "a" / "interactions.parquet", row_group_size=5, compression="none")
    assert same == load_recommendation_data(tmp_path / "a").fingerprint

    def changed(column, row, value, table):
        values = table[column].to_pylist()
        values[row] = value
        place = table.schema.get_field_index(column)
        return table.set_column(place, column, pa.array(values, table.schema.field(column).type))

    others = [
        fingerprint("b", items=changed("title", 0, "Aliens", items)),
        fingerprint("c", items=changed("genres", 3, "", items)),
        fingerprint("d", interactions=changed("item_id", 0, "i3", interactions)),
        fingerprint("e", interactions=changed("timestamp", 0, 31, interactions)),
        fingerprint("f", interactions=changed("user_id", 6, "eve", interactions)),
        fingerprint("g", items=items.take(pa.array([1, 0, 2, 3, 4, 5]))),
    ]
    assert len({same, *others}) == 7


def test_several_files_of_a_table_are_read_in_the_order_of_their_names(tmp_path, items, interactions, sequences):
    write_dataset(tmp_path / "hub", items, interactions, CARD)
    folder = tmp_path / "hub" / "interactions"
    (folder / layout.PARQUET_FILE).unlink()
    pq.write_table(interactions.slice(5), folder / "train-00001-of-00002.parquet")
    pq.write_table(interactions.slice(0, 5), folder / "train-00000-of-00002.parquet")
    assert_same(load_recommendation_data(tmp_path / "hub").sequences, sequences)


def test_a_folder_that_holds_something_is_replaced_only_on_demand(tmp_path, items, interactions):
    target = tmp_path / "hub"
    target.mkdir()
    (target / "precious.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="overwrite=True"):
        write_dataset(target, items, interactions, CARD)
    assert [file.name for file in target.iterdir()] == ["precious.txt"]
    write_dataset(target, items, interactions, CARD, overwrite=True)
    assert not (target / "precious.txt").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["hub"]
    with pytest.raises(NotADirectoryError, match="need a folder"):
        write_dataset(target / "README.md", items, interactions, CARD)


def test_a_stream_that_breaks_off_leaves_the_old_data_in_place(tmp_path, items, interactions):
    before = write_dataset(tmp_path / "hub", items, interactions, CARD).fingerprint

    def broken():
        yield from interactions.to_batches(max_chunksize=4)
        raise RuntimeError("disk on fire")

    with pytest.raises(RuntimeError, match="disk on fire"):
        write_dataset(tmp_path / "hub", items, broken(), CARD, overwrite=True)
    assert load_recommendation_data(tmp_path / "hub").fingerprint == before
    assert [path.name for path in tmp_path.iterdir()] == ["hub"]


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def write_half():
        with atomic_path(path) as temporary:
            temporary.write_text("ne")
            raise RuntimeError("half way")

    with pytest.raises(RuntimeError, match="half way"):
        write_half()
    assert path.read_text() == "old"
    with atomic_path(path) as temporary:
        temporary.write_text("new")
    assert path.read_text() == "new"
    assert [file.name for file in tmp_path.iterdir()] == ["a.txt"]


def test_a_hub_repository_is_fetched_as_parquet_and_card_at_its_revision(tmp_path, items, interactions, monkeypatch):
    import huggingface_hub

    write_dataset(tmp_path / "snapshot", items, interactions, CARD)
    calls = []

    def fetch(repo, **options):
        calls.append((repo, options))
        return str(tmp_path / "snapshot")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    data = load_recommendation_data("someone/films", revision="abc", token="secret")
    ((repo, options),) = calls
    assert (data.name, repo) == (CARD.title, "someone/films")
    assert (options["repo_type"], options["revision"], options["token"]) == ("dataset", "abc", "secret")
    assert all(pattern.endswith((".parquet", "README.md")) for pattern in options["allow_patterns"])


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("ml-1m", (6_040, 3_416, 999_611)),
        ("ml-100k", (943, 1_682, 100_000)),
        ("amazon-beauty-2014", (22_363, 12_101, 198_502)),
        ("amazon-scientific-2018", (8_317, 4_344, 58_492)),
    ],
)
def test_real_data_have_their_published_counts(real_data, name, counts):
    data = load_recommendation_data(real_data(name))
    assert (len(data.sequences), data.catalogue.num_items, data.sequences.num_interactions) == counts


def test_real_sequences_equal_a_plain_sort(real_data):
    folder = real_data("ml-100k")
    frame = pq.read_table(folder / "interactions.parquet").to_pandas()
    row = {
        item: number for number, item in enumerate(pq.read_table(folder / "items.parquet")["item_id"].to_pylist(), 1)
    }
    expected = frame.sort_values("timestamp", kind="stable").groupby("user_id", sort=False)["item_id"].agg(list)
    sequences = load_recommendation_data(folder).sequences
    assert sequences.user_ids.to_pylist() == frame["user_id"].unique().tolist()
    for user, items in zip(sequences.user_ids.to_pylist(), sequences, strict=True):
        assert items.tolist() == [row[item] for item in expected[user]]
