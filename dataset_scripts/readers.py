"""Streaming readers for the owners' raw formats. Interactions never become Python objects, except where the owner wrote
Python literals; every error names the file and the line.
"""

import ast
import csv
import gzip
import html
import json
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet as pq
from tqdm.auto import tqdm

from hf_seqrec.data.columns import ITEM_ID, RATING, TIMESTAMP, USER_ID


ID = pa.dictionary(pa.int32(), pa.string())
NUMERIC_ID = pa.dictionary(pa.int32(), pa.int64())

CSV_BLOCK_BYTES = 16 << 20
JSON_BLOCK_BYTES = 32 << 20
LINE_LIMIT_BYTES = 16 << 20
DESCRIPTION_LIMIT = 1_000


class RawDataError(ValueError):
    """A raw file is broken or not what its name says."""


def read_csv(
    path: Path,
    columns: dict[str, tuple[str, pa.DataType]],
    delimiter: str = ",",
    header: list[str] | None = None,
    nullable: frozenset[str] = frozenset(),
    quoted_newlines: bool = False,
) -> Iterator[pa.RecordBatch]:
    """Streams columns of a delimited file, plain or gzip-compressed, in UTF-8.

    Args:
        path: The file.
        columns: Our column name to the file's column name and type.
        delimiter: One character.
        header: Names of the columns if the file has no header line.
        nullable: Our names of the columns that may lack values.
        quoted_newlines: Whether quoted values may span lines, as texts do; line numbers in errors then count rows.

    Yields:
        Batches with our column names; no nulls and no empty ids, except in nullable columns.

    Raises:
        RawDataError: If a line cannot be read, a value is missing or a column does not exist.
    """
    source = dict(columns.values())
    names = header or csv_header(path, delimiter)
    for theirs in source:
        if theirs not in names:
            raise RawDataError(f"{path} has no column {theirs!r}: it has {', '.join(names)}.{_near(theirs, names)}")
    first_line = 1 if header else 2
    with _opened(path) as stream:
        reader = pyarrow.csv.open_csv(
            stream,
            read_options=pyarrow.csv.ReadOptions(block_size=CSV_BLOCK_BYTES, column_names=header),
            parse_options=pyarrow.csv.ParseOptions(delimiter=delimiter, newlines_in_values=quoted_newlines),
            convert_options=pyarrow.csv.ConvertOptions(column_types=source, include_columns=list(source)),
        )
        rows = 0
        for batch in reader:
            yield _checked(batch, columns, path, "line", first_line + rows, nullable)
            rows += batch.num_rows


def csv_header(path: Path, delimiter: str = ",") -> list[str]:
    """Column names in the first line of a delimited file.

    Args:
        path: The file, plain or gzip-compressed.
        delimiter: One character.

    Returns:
        The names.

    Raises:
        RawDataError: If the file is empty or not UTF-8.
    """
    for _, line in _lines(path, progress=False):
        return next(csv.reader([line.lstrip("\ufeff")], delimiter=delimiter))
    raise RawDataError(f"{path} is empty: delete it and fetch it again.")


def read_json_lines(path: Path, columns: dict[str, tuple[str, pa.DataType]]) -> Iterator[pa.RecordBatch]:
    """Streams fields of a file with one JSON object per line, plain or gzip-compressed.

    Args:
        path: The file.
        columns: Our column name to the object's key and type.

    Yields:
        Batches with our column names, without nulls and empty ids; string columns are dictionary arrays.

    Raises:
        RawDataError: If a line is not JSON, or a value is missing or of another type.
    """
    schema = pa.schema([(theirs, pa.string() if type_ == ID else type_) for theirs, type_ in columns.values()])
    try:
        with _opened(path) as stream:
            reader = pyarrow.json.open_json(
                stream,
                read_options=pyarrow.json.ReadOptions(block_size=JSON_BLOCK_BYTES),
                parse_options=pyarrow.json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore"),
            )
            rows = 0
            for batch in reader:
                yield _checked(batch, columns, path, "line", 1 + rows)
                rows += batch.num_rows
    except RawDataError as error:
        # Arrow does not say which line it was: only now read line by line.
        _name_bad_json_line(path, schema)
        raise error


def read_parquet(
    path: Path, columns: dict[str, tuple[str, pa.DataType]], nullable: frozenset[str] = frozenset()
) -> Iterator[pa.RecordBatch]:
    """Streams columns of a Parquet file.

    Args:
        path: The file.
        columns: Our column name to the file's column name and type.
        nullable: Our names of the columns that may lack values.

    Yields:
        Batches with our column names; no nulls and no empty ids, except in nullable columns.

    Raises:
        RawDataError: If the file is cut off, a column does not exist or does not fit its type.
    """
    with _translated(path), pq.ParquetFile(path) as file:
        names = file.schema_arrow.names
        for theirs, _ in columns.values():
            if theirs not in names:
                raise RawDataError(
                    f"{path} has no column {theirs!r}: it has {', '.join(names)}.{_near(theirs, names)}"
                )
        rows = 0
        for batch in file.iter_batches(batch_size=1 << 20, columns=[theirs for theirs, _ in columns.values()]):
            yield _checked(batch, columns, path, "row", 1 + rows, nullable)
            rows += batch.num_rows


def read_records(
    path: Path, parse: Callable[[str], Any] = json.loads, encoding: str = "utf-8"
) -> Iterator[tuple[int, Any]]:
    """Parses a file line by line: for item texts, and for interactions that the owner wrote as Python literals.

    Args:
        path: The file, plain or gzip-compressed.
        parse: Turns one line into a record: `json.loads`, `parse_literal`, or a splitter of one's own.
        encoding: Encoding of the file.

    Yields:
        Line number (from 1) and record; empty lines are left out.

    Raises:
        RawDataError: If a line cannot be parsed or decoded.
    """
    for number, line in _lines(path, encoding=encoding):
        if not line:
            continue
        try:
            record = parse(line)
        except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError) as error:
            raise RawDataError(f"{path}, line {number}: {error}. The line starts with {line[:60]!r}.") from error
        yield number, record


def parse_literal(line: str) -> dict:
    """Reads one Python dictionary literal, without ever evaluating code.

    Args:
        line: Source text such as `{'asin': 'B1', 'title': "Ann's"}`.

    Returns:
        The dictionary.

    Raises:
        ValueError: If the text is anything but a dictionary of literals.

    Example:
        >>> from hf_seqrec.dataset_scripts.readers import parse_literal
        >>> parse_literal("{u'id': u'70', 'genres': ['Action']}")
        {'id': '70', 'genres': ['Action']}
    """
    record = ast.literal_eval(line)
    if not isinstance(record, dict):
        raise ValueError(f"expected one dictionary, got {type(record).__name__}")
    return record


def batches(rows: Iterable[tuple], schema: pa.Schema, size: int = 50_000) -> Iterator[pa.RecordBatch]:
    """Gathers tuples into record batches.

    Args:
        rows: One tuple per row, values in the order of the schema.
        schema: Names and types.
        size: Rows of a batch.

    Yields:
        Batches of at most `size` rows.
    """
    gathered: list[tuple] = []
    for row in rows:
        gathered.append(row)
        if len(gathered) == size:
            yield _to_batch(gathered, schema)
            gathered = []
    if gathered:
        yield _to_batch(gathered, schema)


def _to_batch(rows: list[tuple], schema: pa.Schema) -> pa.RecordBatch:
    arrays = []
    for values, one in zip(zip(*rows, strict=True), schema, strict=True):
        plain = pa.array(values, type=pa.string() if one.type == ID else one.type)
        arrays.append(plain.dictionary_encode() if one.type == ID else plain)
    return pa.record_batch(arrays, schema=schema)


def text_schema(*names: str) -> pa.Schema:
    """Schema of item texts: all columns strings.

    Args:
        *names: Column names.

    Returns:
        The schema.
    """
    return pa.schema([(name, pa.string()) for name in names])


def interaction_schema(rating: bool) -> pa.Schema:
    """Schema of interactions with Unix times.

    Args:
        rating: Whether there is a rating column.

    Returns:
        The schema.
    """
    columns = [(USER_ID, ID), (ITEM_ID, ID), (TIMESTAMP, pa.int64())]
    return pa.schema(columns + ([(RATING, pa.float32())] if rating else []))


def clean_text(text: Any, limit: int | None = None) -> str | None:
    r"""Decodes HTML entities and turns every run of white space and control characters into one space.

    Args:
        text: Text, or None.
        limit: Longest length kept, in characters.

    Returns:
        The text, or None if nothing is left.

    Raises:
        TypeError: If it is neither text nor None.

    Example:
        >>> from hf_seqrec.dataset_scripts.readers import clean_text
        >>> clean_text(" Tom &amp;\n Jerry ")
        'Tom & Jerry'
    """
    if text is None:
        return None
    if not isinstance(text, str):
        raise TypeError(f"expected text, got {type(text).__name__} {text!r}")
    text = re.sub(r"[\s\x00-\x1f\x7f-\x9f]+", " ", html.unescape(text)).strip()
    return text[:limit].rstrip() or None


def joined(values: Iterable[str | None] | None) -> str | None:
    """Joins labels by `|`, each one once.

    Args:
        values: Labels; None stands for no labels.

    Returns:
        The joined labels, or None if there are none.

    Example:
        >>> from hf_seqrec.dataset_scripts.readers import joined
        >>> joined(["Action", " Indie", "Action"])
        'Action|Indie'
    """
    labels = [clean_text(value) for value in values or ()]
    return "|".join(dict.fromkeys(label.replace("|", "/") for label in labels if label)) or None


def divided(batches: Iterator[pa.RecordBatch], units_per_second: int) -> Iterator[pa.RecordBatch]:
    """Turns the timestamps of batches into seconds, rounding down.

    Args:
        batches: Batches with an integer `timestamp`.
        units_per_second: 1000 for milliseconds, and so on.

    Yields:
        The same batches with timestamps in seconds.
    """
    for batch in batches:
        place = batch.schema.get_field_index(TIMESTAMP)
        ticks = batch.column(place).to_numpy()
        # numpy's floor division, since Arrow's truncates times before 1970 upwards.
        yield batch.set_column(place, TIMESTAMP, pa.array(ticks // units_per_second))


def parsed_times(batches: Iterator[pa.RecordBatch], format: str, path: Path) -> Iterator[pa.RecordBatch]:
    """Turns text times (UTC) of batches into Unix seconds.

    Args:
        batches: Batches with a text `timestamp`.
        format: As for `strptime`.
        path: File named in errors.

    Yields:
        The same batches with int64 timestamps in seconds.

    Raises:
        RawDataError: If a time does not have the format.
    """
    rows = 0
    for batch in batches:
        place = batch.schema.get_field_index(TIMESTAMP)
        text = batch.column(place).cast(pa.string())
        seconds = pc.strptime(text, format=format, unit="s", error_is_null=True).cast(pa.int64())
        if seconds.null_count:
            bad = seconds.is_null().to_numpy(zero_copy_only=False).argmax()
            raise RawDataError(
                f"{path}, interaction {rows + bad + 1}: time {text[bad].as_py()!r} does not have the form {format!r}."
            )
        yield batch.set_column(place, TIMESTAMP, seconds)
        rows += batch.num_rows


def _checked(
    batch: pa.RecordBatch,
    columns: dict[str, tuple[str, pa.DataType]],
    path: Path,
    unit: str,
    first: int,
    nullable: frozenset[str] = frozenset(),
) -> pa.RecordBatch:
    """Renames and casts the columns; refuses nulls, empty ids and invalid UTF-8, naming the line or row."""
    arrays = []
    for ours, (theirs, type_) in columns.items():
        array = batch.column(theirs)
        if array.null_count and ours not in nullable:
            bad = first + int(array.is_null().to_numpy(zero_copy_only=False).argmax())
            raise RawDataError(f"{path}, {unit} {bad}: {theirs!r} is missing; every row needs one.")
        if pa.types.is_dictionary(type_) and not pa.types.is_dictionary(array.type):
            array = array.dictionary_encode()
        if pa.types.is_dictionary(type_) and pa.types.is_floating(array.type.value_type):
            raise RawDataError(
                f"{path}: {theirs!r} holds ids as floating-point numbers: write them as text or integers."
            )
        try:
            array = array.cast(type_)
            if pa.types.is_dictionary(type_):
                array.dictionary.validate(full=True)
        except pa.ArrowInvalid as error:
            raise RawDataError(
                f"{path}, {unit} {first} or later: {theirs!r} cannot be read as {type_}: {error}."
            ) from error
        if ours in (USER_ID, ITEM_ID) and type_ == ID:
            empty = pc.index(array.dictionary, "").as_py()
            if empty >= 0:
                bad = first + pc.index(array.indices, pa.scalar(empty, pa.int32())).as_py()
                raise RawDataError(f"{path}, {unit} {bad}: {theirs!r} is empty; every row needs one.")
        if pa.types.is_floating(type_):
            broken = pc.index(pc.is_finite(array), False).as_py()
            if broken >= 0:
                raise RawDataError(f"{path}, {unit} {first + broken}: {theirs!r} is {array[broken].as_py()}.")
        arrays.append(array)
    return pa.record_batch(arrays, names=list(columns))


def _near(name: str, names: Iterable[str]) -> str:
    from rapidfuzz import process

    near = process.extractOne(name, list(names), score_cutoff=60)
    return f" Did you mean {near[0]!r}?" if near else ""


@contextmanager
def _opened(path: Path) -> Iterator[pa.NativeFile]:
    """Opens a plain or gzip file for Arrow, with a progress bar over its bytes and errors that name it."""
    with _translated(path), path.open("rb") as file, _progress(file, path) as counted:
        stream = pa.PythonFile(counted, mode="r")
        yield pa.CompressedInputStream(stream, "gzip") if path.suffix == ".gz" else stream


@contextmanager
def _translated(path: Path) -> Iterator[None]:
    """Turns what Arrow and gzip say about broken bytes into one sentence about the file."""
    try:
        yield
    except RawDataError:
        raise
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise RawDataError(f"{path} is cut off or not gzip ({error}): delete it and fetch it again.") from error
    except UnicodeDecodeError as error:
        raise RawDataError(f"{path} is not {error.encoding} text ({error}).") from error
    except pa.ArrowInvalid as error:
        row = re.search(r"Row #(\d+): ?(.*)", str(error), flags=re.DOTALL)
        if row:
            raise RawDataError(f"{path}, line {row[1]}: {row[2]}") from error
        hint = " It seems to be cut off: write or fetch it again." if path.suffix == ".parquet" else ""
        raise RawDataError(f"{path} cannot be read: {error}.{hint}") from error
    except OSError as error:
        if isinstance(error, FileNotFoundError | PermissionError | IsADirectoryError):
            raise
        raise RawDataError(f"{path} is cut off or damaged ({error}): delete it and fetch it again.") from error


def _progress(file: BinaryIO, path: Path, enabled: bool = True):
    size = path.stat().st_size
    bar = {"desc": f"reading {path.name}", "unit": "B", "unit_scale": True, "leave": False, "delay": 2.0}
    return tqdm.wrapattr(file, "read", total=size, disable=None if enabled else True, **bar)


def _lines(path: Path, encoding: str = "utf-8", progress: bool = True) -> Iterator[tuple[int, str]]:
    with _translated(path), path.open("rb") as raw, _progress(raw, path, progress) as counted:
        file = gzip.GzipFile(fileobj=counted) if path.suffix == ".gz" else raw
        number = 0
        while line := file.readline(LINE_LIMIT_BYTES):
            number += 1
            if len(line) == LINE_LIMIT_BYTES:
                raise RawDataError(f"{path}, line {number}: longer than {LINE_LIMIT_BYTES:,} bytes.")
            try:
                text = line.decode(encoding)
            except UnicodeDecodeError as error:
                raise RawDataError(f"{path}, line {number}: not {encoding} text ({error.reason}).") from error
            yield number, text.rstrip("\r\n")


def _name_bad_json_line(path: Path, schema: pa.Schema) -> None:
    """Raises for the first line that does not fit the schema; returns if there is none."""
    kinds: dict[pa.DataType, tuple[type, ...]] = {pa.string(): (str,), pa.int64(): (int,)}
    for number, record in read_records(path):
        if not isinstance(record, dict):
            raise RawDataError(f"{path}, line {number}: expected one JSON object, got {type(record).__name__}.")
        for one in schema:
            value = record.get(one.name)
            if value is None or value == "":
                raise RawDataError(f"{path}, line {number}: {one.name!r} is missing; every row needs one.")
            if not isinstance(value, kinds.get(one.type, (int, float))):
                raise RawDataError(f"{path}, line {number}: {one.name!r} is {value!r}, expected {one.type}.")
