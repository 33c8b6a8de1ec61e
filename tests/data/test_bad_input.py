"""Broken input: each kind has its one clear error, on loading and on writing, and nothing is written."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hf_seqrec.data import (
    Catalogue,
    DatasetDescription,
    load_recommendation_data,
    validate_interactions,
    validate_items,
    write_dataset,
)


CARD = DatasetDescription(title="Broken", summary="Must never be written.")


def with_value(column, row, value, dtype=None):
    """A change to a table: one value, and the type of its column where the value needs another."""

    def change(table):
        values = table[column].to_pylist()
        values[row] = value
        place = table.schema.get_field_index(column)
        return table.set_column(place, column, pa.array(values, dtype or table.schema.field(column).type))

    return change


def with_column(column, values):
    def change(table):
        if column in table.column_names:
            return table.set_column(table.schema.get_field_index(column), column, values(table))
        return table.append_column(column, values(table))

    return change


def without(column):
    return lambda table: table.drop_columns([column])


def all_rows(value, dtype=None):
    return lambda table: pa.array([value] * table.num_rows, dtype)


def scaled(factor):
    return lambda table: pa.array(table["timestamp"].to_numpy() * factor + 978_300_000 * factor)


def latin1(texts):
    """String column whose bytes are Latin-1, as a careless export writes them."""
    raw = [text.encode("latin-1") for text in texts]
    offsets = np.cumsum([0] + [len(text) for text in raw]).astype(np.int32)
    return pa.Array.from_buffers(
        pa.string(), len(raw), [None, pa.py_buffer(offsets.tobytes()), pa.py_buffer(b"".join(raw))]
    )


def add_row(user, item, time):
    return lambda table: pa.concat_tables(
        [table, pa.table({"user_id": [user], "item_id": [item], "timestamp": [time]}, schema=table.schema)]
    )


BROKEN_ITEMS = {
    "no item_id column": (without("item_id"), ValueError, "items: column 'item_id' is missing.*title, genres"),
    "no title column": (without("title"), ValueError, "items: column 'title' is missing"),
    "no rows": (lambda table: table.slice(0, 0), ValueError, "items: the table is empty"),
    "a column twice": (
        lambda table: table.append_column("title", table["title"]),
        ValueError,
        "items: column 'title' occurs more than once",
    ),
    "null id": (with_value("item_id", 2, None), ValueError, "items: 1 item_id value.* null or NaN, first in row 2"),
    "empty id": (with_value("item_id", 1, ""), ValueError, "items: item_id in row 1 is an empty string"),
    "repeated id": (
        with_value("item_id", 4, "i2"),
        ValueError,
        "items: 1 item_id .*more than once, first 'i2' in row 1",
    ),
    "ids as floats": (
        with_column("item_id", all_rows(1.0)),
        TypeError,
        "items: item_id has type double, need string: convert to whole numbers",
    ),
    "ids as integers": (with_column("item_id", all_rows(1)), TypeError, "item_id has type int64, need string"),
    "ids as bytes": (
        with_column("item_id", all_rows(b"1")),
        TypeError,
        "has type binary, need string: decode it as UTF-8",
    ),
    "titles as numbers": (with_column("title", all_rows(1)), TypeError, "items: title has type int64, need string"),
    "title of spaces": (with_value("title", 1, " "), ValueError, r"title in row 1 \(item_id 'i2'\) is empty.*null"),
    "title with a line break": (
        with_value("title", 1, "He\nat"),
        ValueError,
        r"title in row 1 \(item_id 'i2'\) has control characters: 'He\\nat'",
    ),
    "title with a NUL": (with_value("title", 0, "Al\0ien"), ValueError, "row 0 .* has control characters"),
    "title that is not UTF-8": (
        with_column("title", lambda table: latin1(["Alien", "Amélie", "c", "d", "e", "f"])),
        ValueError,
        "items: title is not valid UTF-8 text.*index 1",
    ),
    "id that is not UTF-8": (
        with_column("item_id", lambda table: latin1(["é", "b", "c", "d", "e", "f"])),
        ValueError,
        "items: item_id is not valid UTF-8 text",
    ),
    "another text that is not UTF-8": (
        with_column("genres", lambda table: latin1(["é", "b", "c", "d", "e", "f"])),
        ValueError,
        "items: genres is not valid UTF-8 text",
    ),
}

BROKEN_INTERACTIONS = {
    "no user_id column": (without("user_id"), ValueError, "interactions: column 'user_id' is missing"),
    "no item_id column": (without("item_id"), ValueError, "interactions: column 'item_id' is missing"),
    "no time column": (without("timestamp"), ValueError, "need either a timestamp .* got neither"),
    "time and position": (with_column("position", all_rows(0)), ValueError, "got timestamp and position"),
    "no rows": (lambda table: table.slice(0, 0), ValueError, "interactions: the table is empty"),
    "null user": (with_value("user_id", 3, None), ValueError, "1 user_id value.* null or NaN, first in row 3"),
    "NaN user": (
        with_column("user_id", lambda table: pa.array([float("nan"), *["a"] * 11], pa.string(), from_pandas=True)),
        ValueError,
        "1 user_id value.* null or NaN, first in row 0",
    ),
    "null item": (with_value("item_id", 11, None), ValueError, "1 item_id value.* null or NaN, first in row 11"),
    "empty user": (with_value("user_id", 2, ""), ValueError, "1 user_id value.* empty or null, first in row 2"),
    "users as floats": (with_column("user_id", all_rows(7.0)), TypeError, "user_id has type double, need string"),
    "items as integers": (with_column("item_id", all_rows(7)), TypeError, "item_id has type int64, need string"),
    "users that are not UTF-8": (
        with_column("user_id", lambda table: latin1(["é", *"bcdefghijkl"])),
        ValueError,
        "interactions: user_id is not valid UTF-8 text",
    ),
    "unknown items": (
        with_value("item_id", 5, "i77"),
        ValueError,
        r"1 row\(s\) name 1 item\(s\) that are not among the 6 of items, first 'i77' in row 5",
    ),
    "null time": (with_value("timestamp", 4, None), ValueError, "1 timestamp value.* null, first in row 4"),
    "negative time": (with_value("timestamp", 4, -1), ValueError, r"1 negative timestamp .*first -1 in row 4"),
    "times as text": (
        with_column("timestamp", all_rows("2001-01-01")),
        TypeError,
        "timestamp has type string, need int64: convert to whole Unix seconds",
    ),
    "times as floats": (with_column("timestamp", all_rows(1.5)), TypeError, "timestamp has type double, need int64"),
    "times as dates": (
        with_column("timestamp", all_rows(0, pa.timestamp("ms"))),
        TypeError,
        r"timestamp has type timestamp\[ms\], need int64",
    ),
    "milliseconds": (with_column("timestamp", scaled(10**3)), ValueError, "looks like milliseconds.*divide by 1,000"),
    "microseconds": (with_column("timestamp", scaled(10**6)), ValueError, "microseconds.*divide by 1,000,000"),
    "nanoseconds": (with_column("timestamp", scaled(10**9)), ValueError, "nanoseconds.*divide by 1,000,000,000"),
    "far future": (with_value("timestamp", 7, 32_503_680_000), ValueError, "in row 7 lies in the year 3000"),
    "time beyond int64": (
        with_value("timestamp", 0, 2**63, pa.uint64()),
        ValueError,
        "timestamp does not fit int64",
    ),
    "repeated row": (
        add_row("bob", "i1", 100),
        ValueError,
        r"1 row\(s\) repeat user, item and timestamp .*first row 12.*user 'bob', item 'i1', timestamp 100.*drop",
    ),
    "NaN rating": (
        with_column("rating", lambda table: pa.array([1.0, float("nan"), *[2.0] * 10])),
        ValueError,
        "rating nan in row 1 is not a finite number",
    ),
    "infinite rating": (with_column("rating", all_rows(float("inf"))), ValueError, "rating inf in row 0"),
    "null rating": (
        with_column("rating", lambda table: pa.array([1.0, 2.0, None, *[2.0] * 9])),
        ValueError,
        "rating None in row 2",
    ),
    "rating as text": (with_column("rating", all_rows("good")), TypeError, "rating has type string, need float32"),
    "position of a user twice": (
        lambda table: table.rename_columns(["user_id", "item_id", "position"]),
        ValueError,
        "user 'ann' has position 40 more than once",
    ),
}


@pytest.fixture
def broken(request, items, interactions):
    """Tables of which one is broken, the error it must give, and its message."""
    table, kind = request.param
    change, error, message = (BROKEN_ITEMS if table == "items" else BROKEN_INTERACTIONS)[kind]
    if table == "items":
        items = change(items)
    else:
        interactions = change(interactions)
    return items, interactions, error, message


KINDS = [("items", kind) for kind in BROKEN_ITEMS] + [("interactions", kind) for kind in BROKEN_INTERACTIONS]
every_kind = pytest.mark.parametrize("broken", KINDS, indirect=True, ids=[f"{table}: {kind}" for table, kind in KINDS])


@every_kind
def test_broken_tables_are_not_loaded(broken, tmp_path):
    items, interactions, error, message = broken
    pq.write_table(items, tmp_path / "items.parquet")
    pq.write_table(interactions, tmp_path / "interactions.parquet")
    with pytest.raises(error, match=message):
        load_recommendation_data(tmp_path)


@every_kind
def test_broken_tables_are_not_written(broken, tmp_path):
    items, interactions, error, message = broken
    with pytest.raises(error, match=message):
        write_dataset(tmp_path / "out", items, interactions, CARD)
    assert list(tmp_path.iterdir()) == []


@every_kind
def test_broken_tables_do_not_pass_the_validators(broken):
    items, interactions, error, message = broken
    with pytest.raises(error, match=message):
        validate_interactions(interactions, items)


def save(folder, items, interactions):
    pq.write_table(items, folder / "items.parquet")
    pq.write_table(interactions, folder / "interactions.parquet")


def cut(path):
    path.write_bytes(path.read_bytes()[:-30])


def broken_in_the_middle(path):
    content = bytearray(path.read_bytes())
    content[4:60] = bytes(56)
    path.write_bytes(content)


@pytest.mark.parametrize("table", ["items", "interactions"])
@pytest.mark.parametrize(
    "damage",
    [cut, broken_in_the_middle, lambda path: path.write_bytes(b""), lambda path: path.write_text("user_id,item_id\n")],
    ids=["half-written", "damaged", "empty file", "csv named parquet"],
)
def test_a_damaged_file_is_named(tmp_path, items, interactions, table, damage):
    save(tmp_path, items, interactions)
    damage(tmp_path / f"{table}.parquet")
    with pytest.raises(
        ValueError, match=f"{table}.parquet is not a complete parquet file.*build or download it again"
    ):
        load_recommendation_data(tmp_path)


@pytest.mark.parametrize("table", ["items", "interactions"])
def test_a_missing_table_is_named(tmp_path, items, interactions, table):
    save(tmp_path, items, interactions)
    (tmp_path / f"{table}.parquet").unlink()
    with pytest.raises(FileNotFoundError, match=f"neither {table}/train-.* nor {table}.parquet"):
        load_recommendation_data(tmp_path)


def test_two_layouts_in_one_folder_are_ambiguous(tmp_path, items, interactions):
    write_dataset(tmp_path / "hub", items, interactions, CARD)
    pq.write_table(items, tmp_path / "hub" / "items.parquet")
    with pytest.raises(ValueError, match=r"has both items/ and items.parquet"):
        load_recommendation_data(tmp_path / "hub")


def test_files_of_one_table_that_differ_are_refused(tmp_path, items, interactions):
    write_dataset(tmp_path / "hub", items, interactions, CARD)
    more = items.drop_columns(["genres"])
    pq.write_table(more, tmp_path / "hub" / "items" / "train-00001-of-00002.parquet")
    with pytest.raises(ValueError, match="differ in their columns"):
        load_recommendation_data(tmp_path / "hub")


@pytest.mark.parametrize("path", ["./nowhere", "/no/where/at/all", "a/b/c", "~/films"])
def test_a_path_that_is_no_folder_is_not_looked_up_on_the_hub(path):
    with pytest.raises(FileNotFoundError, match="neither a folder nor a Hub repository id"):
        load_recommendation_data(path)


def test_a_revision_of_a_folder_makes_no_sense(tmp_path):
    with pytest.raises(ValueError, match="revision='main' is for Hub repositories"):
        load_recommendation_data(tmp_path, revision="main")


def test_users_below_the_minimum_are_named(tmp_path, items, interactions):
    message = r"1 user\(s\) have fewer than 2 interactions, first 'dan' with 1.*k_core"
    with pytest.raises(ValueError, match=message):
        validate_interactions(interactions, items, min_interactions=2)
    with pytest.raises(ValueError, match=message):
        write_dataset(tmp_path / "out", items, interactions, CARD, min_interactions=2)
    assert list(tmp_path.iterdir()) == []


def test_items_without_title_are_refused_on_demand(items):
    assert validate_items(items)["title"].null_count == 1
    with pytest.raises(ValueError, match=r"1 item\(s\) without title, first row 3 \(item_id 'i4'\)"):
        validate_items(items, require_titles=True)


def test_repeated_rows_are_dropped_or_kept_on_demand(items, interactions):
    twice = pa.concat_tables([interactions, interactions.slice(4, 3)])
    assert validate_interactions(twice, items, duplicates="drop").equals(interactions)
    assert validate_interactions(twice, items, duplicates="keep").equals(twice)
    with pytest.raises(ValueError, match="choose 'error', 'drop' or 'keep'"):
        validate_interactions(twice, items, duplicates="ignore")


def test_a_catalogue_without_any_title_is_legal(items):
    untitled = items.set_column(1, "title", pa.nulls(6))
    assert Catalogue(untitled).titles.null_count == 6


def test_a_column_outside_the_layout_is_not_written(tmp_path, items, interactions):
    with pytest.raises(ValueError, match="column 'review' is not part of the layout"):
        write_dataset(tmp_path / "out", items, interactions.append_column("review", interactions["user_id"]), CARD)
    assert list(tmp_path.iterdir()) == []


def test_batches_with_other_columns_than_the_first_are_refused(tmp_path, items, interactions):
    first, second = interactions.to_batches(max_chunksize=6)
    with pytest.raises(ValueError, match="a batch has the columns user_id, timestamp"):
        write_dataset(tmp_path / "out", items, [first, second.drop_columns(["item_id"])], CARD)
    with pytest.raises(ValueError, match="the table is empty"):
        write_dataset(tmp_path / "out", items, [], CARD)
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_published_count_is_refused(tmp_path, items, interactions):
    card = DatasetDescription(title="t", summary="s", published={"users": 4})
    with pytest.raises(ValueError, match="published count 'users' is unknown: choose from num_users"):
        write_dataset(tmp_path / "out", items, interactions, card)
    assert list(tmp_path.iterdir()) == []
