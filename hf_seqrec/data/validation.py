"""Checks of the two tables of a data set: each broken rule is one error that says what came, what is needed, the fix."""

import datetime
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from .columns import INTERACTIONS, ITEM_ID, ITEMS, POSITION, RATING, TIMESTAMP, TITLE, USER_ID
from .sequences import Sequences


Duplicates = Literal["error", "drop", "keep"]

# Seconds stay below 1e11 until the year 5138; milliseconds of any date after 1973 lie above it, and so on by thousands.
_FINER_UNITS = ((10**17, "nanoseconds", 10**9), (10**14, "microseconds", 10**6), (10**11, "milliseconds", 10**3))
_LATEST_TIMESTAMP = int(datetime.datetime(2100, 1, 1, tzinfo=datetime.UTC).timestamp())


def validate_items(table: pa.Table, require_titles: bool = False) -> pa.Table:
    """Checks a catalogue table.

    Args:
        table: Columns `item_id` and `title`, and any further ones.
        require_titles: Whether a null title is an error too. By default an item may be without a title (null).

    Returns:
        The same rows with string columns as plain `string` in one chunk each.

    Raises:
        TypeError: If a column has the wrong type.
        ValueError: If a column is missing, the table is empty, or a value breaks a rule: null, empty or repeated
            item ids, empty titles, titles with control characters, text that is not UTF-8.

    Example:
        >>> import pyarrow as pa
        >>> from hf_seqrec.data import validate_items
        >>> validate_items(pa.table({"item_id": ["1", "2"], "title": ["Alien", None]})).num_rows
        2
    """
    _require_columns(table, ITEMS, (ITEM_ID, TITLE))
    _require_rows(table, ITEMS)
    if pa.types.is_null(table.schema.field(TITLE).type):
        table = table.set_column(table.schema.get_field_index(TITLE), TITLE, table[TITLE].cast(pa.string()))
    for name in (ITEM_ID, TITLE):
        _require_strings(table, ITEMS, name)
    for index, field in enumerate(table.schema):
        if _is_text(field.type):
            table = table.set_column(index, field.name, _plain_strings(table[field.name], ITEMS, field.name))

    ids, titles = table[ITEM_ID], table[TITLE]
    _require_values(ids, ITEMS, ITEM_ID)
    unique = pc.value_counts(ids.combine_chunks())
    if len(unique) < len(ids):
        repeated = unique.field("values").filter(pc.greater(unique.field("counts"), 1))
        raise ValueError(
            f"{ITEMS}: {len(repeated)} {ITEM_ID} value(s) occur more than once, first {repeated[0].as_py()!r} in row "
            f"{_first_row(pc.equal(ids, repeated[0]))}. Each item needs exactly one row: drop or merge the others."
        )
    if require_titles and titles.null_count:
        row = _first_row(titles.is_null())
        raise ValueError(
            f"{ITEMS}: {titles.null_count} item(s) without title, first row {row} ({ITEM_ID} {ids[row].as_py()!r}). "
            "Give a title or drop the item and its interactions."
        )
    blank = pc.equal(pc.utf8_trim_whitespace(titles), "")
    if pc.any(blank).as_py():
        row = _first_row(blank)
        raise ValueError(
            f"{ITEMS}: the title in row {row} ({ITEM_ID} {ids[row].as_py()!r}) is empty. "
            "Write null for an item without title."
        )
    control = pc.match_substring_regex(titles, r"[\x00-\x1f\x7f]")
    if pc.any(control).as_py():
        row = _first_row(control)
        raise ValueError(
            f"{ITEMS}: the title in row {row} ({ITEM_ID} {ids[row].as_py()!r}) has control characters: "
            f"{titles[row].as_py()!r}. Replace them by spaces."
        )
    return table


def validate_interactions(
    table: pa.Table, items: pa.Table, duplicates: Duplicates = "error", min_interactions: int = 1
) -> pa.Table:
    """Checks an interactions table against its catalogue.

    Args:
        table: Columns `user_id`, `item_id`, either `timestamp` (Unix seconds) or `position` (rank inside the user),
            and optionally `rating`. Ids may be dictionary-encoded, which keeps large tables small.
        items: The catalogue table.
        duplicates: What to do with rows that repeat user, item and time of an earlier row: `"error"`, `"drop"` the
            later ones, or `"keep"` them. The same item at another time is no duplicate.
        min_interactions: Fewest interactions a user may have.

    Returns:
        The table, without the duplicates when they are to be dropped.

    Raises:
        TypeError: If a column has the wrong type.
        ValueError: If a column is missing, the table is empty, or a value breaks a rule; the row or value is named.

    Example:
        >>> import pyarrow as pa
        >>> from hf_seqrec.data import validate_interactions
        >>> items = pa.table({"item_id": ["1"], "title": ["Alien"]})
        >>> rows = pa.table({"user_id": ["ann"], "item_id": ["1"], "timestamp": [978300760]})
        >>> validate_interactions(rows, items).num_rows
        1
    """
    item_ids = validate_items(items)[ITEM_ID].combine_chunks()
    _, repeated = encode_interactions(table, item_ids, duplicates, min_interactions)
    if duplicates != "drop" or not len(repeated):
        return table
    keep = np.ones(table.num_rows, dtype=bool)
    keep[repeated] = False
    return table.filter(pa.array(keep))


def check_interactions_schema(schema: pa.Schema) -> str:
    """Checks names and types of the interactions columns, before any row is read.

    Args:
        schema: Schema of the interactions table.

    Returns:
        The column that gives the order: `"timestamp"` or `"position"`.

    Raises:
        TypeError: If a column has the wrong type.
        ValueError: If a column is missing, or both order columns are there.
    """
    empty = schema.empty_table()
    _require_columns(empty, INTERACTIONS, (USER_ID, ITEM_ID))
    present = [name for name in (TIMESTAMP, POSITION) if name in schema.names]
    if len(present) != 1:
        raise ValueError(
            f"{INTERACTIONS}: need either a {TIMESTAMP} column (Unix seconds) or a {POSITION} column (rank inside the "
            f"user), got {' and '.join(present) or 'neither'}. Columns: {', '.join(schema.names)}."
        )
    for name in (USER_ID, ITEM_ID):
        _require_strings(empty, INTERACTIONS, name)
    (order,) = present
    if not pa.types.is_integer(schema.field(order).type):
        fix = "convert to whole Unix seconds (int64)" if order == TIMESTAMP else "convert to int64"
        raise TypeError(f"{INTERACTIONS}: {order} has type {schema.field(order).type}, need int64: {fix}.")
    if RATING in schema.names:
        rating = schema.field(RATING).type
        if not (pa.types.is_floating(rating) or pa.types.is_integer(rating)):
            raise TypeError(f"{INTERACTIONS}: {RATING} has type {rating}, need float32: convert it to numbers.")
    return order


def encode_interactions(
    table: pa.Table, item_ids: pa.Array, duplicates: Duplicates = "error", min_interactions: int = 1
) -> tuple[Sequences, np.ndarray]:
    """Checks an interactions table and turns it into sequences, users in the order of their first row.

    Args:
        table: As in `validate_interactions`.
        item_ids: Checked ids of the catalogue; row `r` has the item_index `r + 1`.
        duplicates: As in `validate_interactions`.
        min_interactions: As in `validate_interactions`.

    Returns:
        The sequences (duplicates dropped when asked), and the rows of the table that repeat an earlier one, int64,
        shape `(num_duplicates,)`.

    Raises:
        TypeError: As in `validate_interactions`.
        ValueError: As in `validate_interactions`.
    """
    if duplicates not in ("error", "drop", "keep"):
        raise ValueError(f"duplicates={duplicates!r} is unknown: choose 'error', 'drop' or 'keep'.")
    order_column = check_interactions_schema(table.schema)
    _require_rows(table, INTERACTIONS)
    users, user_ids = _encode(table[USER_ID], USER_ID)
    users, user_ids = _by_first_row(users, user_ids)
    codes, seen_ids = _encode(table[ITEM_ID], ITEM_ID)
    rows = pc.index_in(seen_ids, value_set=item_ids)
    if rows.null_count:
        _raise_unknown_item(codes, seen_ids, rows.is_null().to_numpy(zero_copy_only=False), len(item_ids))
    items = (rows.to_numpy() + np.int32(1))[codes]
    times = _times(table[order_column], order_column)
    if RATING in table.column_names:
        _check_ratings(table[RATING])

    order = _time_order(users, times)
    users, items, times = (array if order is None else array[order] for array in (users, items, times))
    tied = (users[1:] == users[:-1]) & (times[1:] == times[:-1])
    repeated = _repeated_among_ties(tied, items)
    file_rows = repeated if order is None else order[repeated]
    if len(repeated) and duplicates == "error":
        user, item = user_ids[users[repeated[0]]].as_py(), item_ids[items[repeated[0]] - 1].as_py()
        raise ValueError(
            f"{INTERACTIONS}: {len(repeated)} row(s) repeat user, item and {order_column} of an earlier row, "
            f"first row {file_rows.min()}; for example user {user!r}, item {item!r}, {order_column} "
            f"{times[repeated[0]]}. Drop them (duplicates='drop') or say that they are real (duplicates='keep')."
        )
    if len(repeated) and duplicates == "drop":
        users, items, times = (np.delete(array, repeated) for array in (users, items, times))
    if order_column == POSITION:
        same = np.flatnonzero((users[1:] == users[:-1]) & (times[1:] == times[:-1]))
        if len(same):
            raise ValueError(
                f"{INTERACTIONS}: user {user_ids[users[same[0]]].as_py()!r} has {POSITION} {times[same[0]]} more than "
                "once, so the order is unknown. Number each user's rows 0, 1, 2, …"
            )
    lengths = np.bincount(users, minlength=len(user_ids))
    if lengths.min() < min_interactions:
        short = int(np.argmax(lengths < min_interactions))
        raise ValueError(
            f"{INTERACTIONS}: {np.sum(lengths < min_interactions)} user(s) have fewer than {min_interactions} "
            f"interactions, first {user_ids[short].as_py()!r} with {lengths[short]}. Filter first (hf_seqrec.data.k_core)."
        )
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    return Sequences(items, offsets, times if order_column == TIMESTAMP else None, user_ids), file_rows


def _require_columns(table: pa.Table, name: str, columns: tuple[str, ...]) -> None:
    repeated = {column for column in table.column_names if table.column_names.count(column) > 1}
    if repeated:
        raise ValueError(f"{name}: column {sorted(repeated)[0]!r} occurs more than once: rename or drop one.")
    missing = [column for column in columns if column not in table.column_names]
    if missing:
        raise ValueError(
            f"{name}: column {missing[0]!r} is missing. Columns: {', '.join(table.column_names) or 'none'}. "
            "Rename the column that holds it."
        )


def _require_rows(table: pa.Table, name: str) -> None:
    if table.num_rows == 0:
        raise ValueError(f"{name}: the table is empty, need at least one row. Did a filter remove everything?")


def _is_text(dtype: pa.DataType) -> bool:
    if pa.types.is_dictionary(dtype):
        dtype = dtype.value_type
    return pa.types.is_string(dtype) or pa.types.is_large_string(dtype) or pa.types.is_string_view(dtype)


def _require_strings(table: pa.Table, name: str, column: str) -> None:
    dtype = table.schema.field(column).type
    if _is_text(dtype):
        return
    if pa.types.is_floating(dtype):
        fix = "convert to whole numbers, then to strings (a missing id often turns integers into floats)"
    elif pa.types.is_binary(dtype) or pa.types.is_large_binary(dtype):
        fix = "decode it as UTF-8"
    else:
        fix = "convert it to strings"
    raise TypeError(f"{name}: {column} has type {dtype}, need string: {fix}.")


def _plain_strings(column: pa.ChunkedArray, name: str, column_name: str) -> pa.ChunkedArray:
    try:
        column.validate(full=True)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{name}: {column_name} is not valid UTF-8 text ({error}). Re-encode the source.") from error
    return pa.chunked_array([column.cast(pa.string()).combine_chunks()])


def _require_values(column: pa.ChunkedArray, name: str, column_name: str) -> None:
    if column.null_count:
        raise ValueError(
            f"{name}: {column.null_count} {column_name} value(s) are null or NaN, first in row "
            f"{_first_row(column.is_null())}. Drop these rows or give them an id."
        )
    empty = pc.equal(column, "")
    if pc.any(empty).as_py():
        raise ValueError(
            f"{name}: {column_name} in row {_first_row(empty)} is an empty string. Drop the row or give it an id."
        )


def _first_row(mask: pa.ChunkedArray | pa.Array) -> int:
    return pc.index(mask, pa.scalar(True)).as_py()


def _encode(column: pa.ChunkedArray, name: str) -> tuple[np.ndarray, pa.Array]:
    """Codes (int32, one per row) and the ids they stand for; every check runs on distinct ids, not on rows."""
    if column.null_count:
        raise ValueError(
            f"{INTERACTIONS}: {column.null_count} {name} value(s) are null or NaN, first in row "
            f"{_first_row(column.is_null())}. Drop these rows or give them an id."
        )
    encoded = column if pa.types.is_dictionary(column.type) else column.dictionary_encode()
    encoded = encoded.unify_dictionaries().combine_chunks()
    if isinstance(encoded, pa.ChunkedArray):
        encoded = pa.concat_arrays(encoded.chunks)
    dictionary = _plain_strings(pa.chunked_array([encoded.dictionary]), INTERACTIONS, name).combine_chunks()
    codes = encoded.indices.to_numpy(zero_copy_only=False).astype(np.int32, copy=False)
    bad = pc.fill_null(pc.equal(dictionary, ""), True).to_numpy(zero_copy_only=False)
    if bad.any():
        rows = np.flatnonzero(bad[codes])
        if len(rows):
            raise ValueError(
                f"{INTERACTIONS}: {len(rows)} {name} value(s) are empty or null, first in row {rows[0]}. "
                "Drop these rows or give them an id."
            )
    return codes, dictionary


def _by_first_row(codes: np.ndarray, ids: pa.Array) -> tuple[np.ndarray, pa.Array]:
    """Renumbers codes by first appearance, so that the order of users does not depend on how a file encodes them."""
    order = pc.unique(pa.array(codes)).to_numpy()
    if len(order) == len(ids) and np.array_equal(order, np.arange(len(ids))):
        return codes, ids
    renumbered = np.zeros(len(ids), dtype=np.int32)
    renumbered[order] = np.arange(len(order), dtype=np.int32)
    return renumbered[codes], ids.take(pa.array(order))


def _raise_unknown_item(codes: np.ndarray, ids: pa.Array, unknown: np.ndarray, num_items: int) -> None:
    rows = np.flatnonzero(unknown[codes])
    if len(rows):
        raise ValueError(
            f"{INTERACTIONS}: {len(rows)} row(s) name {len(np.unique(codes[rows]))} item(s) that are not among the "
            f"{num_items} of {ITEMS}, first {ids[codes[rows[0]]].as_py()!r} in row {rows[0]}. "
            "Add the items to the catalogue or drop these rows."
        )


def _times(column: pa.ChunkedArray, name: str) -> np.ndarray:
    if column.null_count:
        raise ValueError(
            f"{INTERACTIONS}: {column.null_count} {name} value(s) are null, first in row "
            f"{_first_row(column.is_null())}. Drop these rows or give them a {name}."
        )
    try:
        times = column.cast(pa.int64()).to_numpy()
    except pa.ArrowInvalid as error:
        raise ValueError(f"{INTERACTIONS}: {name} does not fit int64 ({error}). Use Unix seconds.") from error
    first, last = int(times.argmin()), int(times.argmax())
    if times[first] < 0:
        raise ValueError(
            f"{INTERACTIONS}: {np.sum(times < 0)} negative {name} value(s), first {times[first]} in row {first}. "
            "Drop these rows or repair them."
        )
    if name == TIMESTAMP:
        for bound, unit, factor in _FINER_UNITS:
            if times[last] > bound:
                raise ValueError(
                    f"{INTERACTIONS}: {name} {times[last]} in row {last} looks like {unit}, need Unix seconds: "
                    f"divide by {factor:,}."
                )
        if times[last] > _LATEST_TIMESTAMP:
            when = datetime.datetime.fromtimestamp(int(times[last]), tz=datetime.UTC)
            raise ValueError(
                f"{INTERACTIONS}: {name} {times[last]} in row {last} lies in the year {when.year}. "
                "Need Unix seconds before 2100: drop or repair the row."
            )
    return times


def _check_ratings(column: pa.ChunkedArray) -> None:
    finite = pc.fill_null(pc.is_finite(column), False)
    if not pc.all(finite).as_py():
        row = _first_row(pc.invert(finite))
        raise ValueError(
            f"{INTERACTIONS}: {RATING} {column[row].as_py()} in row {row} is not a finite number. "
            f"Repair or drop the row, or leave the {RATING} column out."
        )


def _time_order(users: np.ndarray, times: np.ndarray) -> np.ndarray | None:
    """The stable permutation that groups users and orders their times; None when the rows are already so."""
    same_user = users[1:] == users[:-1]
    if np.all((users[1:] > users[:-1]) | (same_user & (times[1:] >= times[:-1]))):
        return None
    earliest = int(times.min())
    span = int(times.max()) - earliest + 1
    if (int(users.max()) + 1) * span < 2**63:
        return np.argsort(users * np.int64(span) + (times - earliest), kind="stable")
    return np.lexsort((times, users))


def _repeated_among_ties(tied: np.ndarray, items: np.ndarray) -> np.ndarray:
    """Positions whose (user, time, item) occurred earlier; `tied[i]` says that i and i + 1 share user and time."""
    in_tie = np.zeros(len(items), dtype=bool)
    in_tie[1:] |= tied
    in_tie[:-1] |= tied
    positions = np.flatnonzero(in_tie)
    if not len(positions):
        return positions
    group = np.concatenate([[0], np.cumsum(~tied)])[positions]
    key = group * (int(items.max()) + 1) + items[positions]
    order = np.argsort(key, kind="stable")
    again = key[order[1:]] == key[order[:-1]]
    return np.sort(positions[order[1:][again]])
