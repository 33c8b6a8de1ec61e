"""Writing a data set in the layout that the Hub shows and `load_recommendation_data` reads."""

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from .columns import INTERACTIONS, ITEM_ID, ITEMS, POSITION, RATING, TIMESTAMP, TITLE, USER_ID
from .files import atomic_folder, check_writable_folder
from .recommendation_data import RecommendationData, load_recommendation_data
from .validation import check_interactions_schema, validate_items


PARQUET_FILE = "train-00000-of-00001.parquet"
_ROWS_PER_GROUP = 1 << 20
_ENCODED_ID = pa.dictionary(pa.int32(), pa.string())
_SIZES = ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"), (10**7, "1M<n<10M"))


@dataclass(frozen=True, kw_only=True)
class DatasetDescription:
    """What the card of a data set says beside the counts, which are measured.

    Attributes:
        title: Name for people.
        summary: One paragraph: whose interactions with what.
        source: Where the raw data come from.
        terms: The owner's terms.
        license: Hub licence identifier; `other` where the owner has own terms.
        license_name: Short name of the owner's terms, for `license = "other"`.
        language: Hub language code of the texts, None if unknown.
        citation: BibTeX entry.
        filters: One sentence per filter that was applied, in order.
        notes: Further sentences about how the data were made.
        published: Published counts to print beside ours; keys out of `num_users`, `num_items`, `num_interactions`.
        simulated: Whether no person stands behind the interactions; the card says so at the top.
        tags: Further Hub tags.
    """

    title: str
    summary: str
    source: str = ""
    terms: str = ""
    license: str = "other"
    license_name: str = ""
    language: str | None = None
    citation: str = ""
    filters: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    published: Mapping[str, int | str] = field(default_factory=dict)
    simulated: bool = False
    tags: tuple[str, ...] = ()


def write_dataset(
    output_dir: str | os.PathLike,
    items: pa.Table,
    interactions: pa.Table | Iterable[pa.RecordBatch],
    card: DatasetDescription,
    overwrite: bool = False,
    min_interactions: int = 1,
) -> RecommendationData:
    """Writes a data set in the Hub layout with its card, whole or not at all.

    The files are written to a temporary folder, read back and checked as on any loading, and only then take their
    place. Rows need no order across users; inside a user, ties in time keep the order given here.

    Args:
        output_dir: Folder to write; missing or empty, unless `overwrite`.
        items: The catalogue table: `item_id`, `title` (may be null), further columns.
        interactions: `user_id`, `item_id`, `timestamp` or `position`, optional `rating`; a table, a
            `pyarrow.RecordBatchReader`, or any iterable of record batches, which is streamed. Ids may be
            dictionary-encoded. `interaction_batches` makes batches from flat arrays.
        card: What the card says beside the counts.
        overwrite: Whether a folder that holds something is replaced.
        min_interactions: Fewest interactions a user may have.

    Returns:
        The data as written.

    Raises:
        FileExistsError: If `output_dir` holds something and `overwrite` is off.
        TypeError: If a column has the wrong type.
        ValueError: If a table breaks a rule (see `validate_items`, `validate_interactions`).

    Example:
        >>> import pathlib, tempfile
        >>> import pyarrow as pa
        >>> from hf_seqrec.data import DatasetDescription, write_dataset
        >>> items = pa.table({"item_id": ["1", "2"], "title": ["Alien", "Heat"]})
        >>> rows = pa.table({"user_id": ["ann", "ann"], "item_id": ["2", "1"], "timestamp": [10, 20]})
        >>> card = DatasetDescription(title="Tiny", summary="One viewer, two films.", simulated=True)
        >>> data = write_dataset(pathlib.Path(tempfile.mkdtemp()) / "tiny", items, rows, card)
        >>> data.name, data.sequences[0].tolist()
        ('Tiny', [2, 1])
    """
    output_dir = Path(output_dir)
    check_writable_folder(output_dir, overwrite)
    items = validate_items(items)
    texts = [name for name in items.column_names if name not in (ITEM_ID, TITLE)]
    batches = iter(interactions.to_batches() if isinstance(interactions, pa.Table) else interactions)
    first = next(batches, None)
    if first is None:
        if isinstance(interactions, pa.Table):
            check_interactions_schema(interactions.schema)
        raise ValueError(f"{INTERACTIONS}: the table is empty, need at least one row. Did a filter remove everything?")
    schema = _written_schema(first.schema)
    with atomic_folder(output_dir, overwrite) as folder:
        for table in (ITEMS, INTERACTIONS):
            (folder / table).mkdir()
        pq.write_table(items.select([ITEM_ID, TITLE, *texts]), folder / ITEMS / PARQUET_FILE, compression="zstd")
        _write_interactions(folder / INTERACTIONS / PARQUET_FILE, chain([first], batches), schema)
        data = load_recommendation_data(folder, min_interactions=min_interactions)
        data = replace(data, name=output_dir.resolve().name)
        (folder / "README.md").write_text(render_card(card, data), encoding="utf-8")
    return replace(data, name=card.title)


def interaction_batches(
    user_ids: pa.Array,
    user_codes: np.ndarray,
    item_ids: pa.Array,
    item_codes: np.ndarray,
    times: np.ndarray,
    ratings: np.ndarray | None = None,
    time_column: str = TIMESTAMP,
    rows_per_batch: int = _ROWS_PER_GROUP,
) -> Iterator[pa.RecordBatch]:
    """Cuts flat arrays into record batches for `write_dataset`, without making strings of the rows.

    Args:
        user_ids: String array; entry `c` is the id of user code `c`.
        user_codes: int32, shape `(n,)`.
        item_ids: String array; entry `c` is the id of item code `c`.
        item_codes: int32, shape `(n,)`.
        times: int64 Unix seconds or positions, shape `(n,)`.
        ratings: float32, shape `(n,)`.
        time_column: `"timestamp"` or `"position"`.
        rows_per_batch: Rows of a batch.

    Yields:
        Batches with `user_id` and `item_id` (dictionary arrays), the time column, and `rating` when given.
    """
    for start in range(0, len(times), rows_per_batch):
        rows = slice(start, start + rows_per_batch)
        columns = {
            USER_ID: pa.DictionaryArray.from_arrays(pa.array(user_codes[rows], pa.int32()), user_ids),
            ITEM_ID: pa.DictionaryArray.from_arrays(pa.array(item_codes[rows], pa.int32()), item_ids),
            time_column: pa.array(times[rows], pa.int64()),
        }
        if ratings is not None:
            columns[RATING] = pa.array(ratings[rows], pa.float32())
        yield pa.record_batch(columns)


def render_card(description: DatasetDescription, data: RecommendationData) -> str:
    """The text of a card: Hub metadata, counts, filters, how to load it.

    Args:
        description: What is not measured.
        data: The data, from which counts, fingerprint and tie rate are taken.

    Returns:
        Markdown with a YAML header.
    """
    import yaml

    statistics = data.statistics()
    header = {
        "pretty_name": description.title,
        "license": description.license,
        "license_name": description.license_name or None,
        "language": [description.language] if description.language else None,
        "tags": [
            "recommendation",
            "sequential-recommendation",
            *["simulated"] * description.simulated,
            *description.tags,
        ],
        "size_categories": [
            next((size for bound, size in _SIZES if data.sequences.num_interactions < bound), "10M<n<100M")
        ],
        "configs": [
            {
                "config_name": table,
                **({"default": True} if table == INTERACTIONS else {}),
                "data_files": [{"split": "train", "path": f"{table}/train-*"}],
            }
            for table in (ITEMS, INTERACTIONS)
        ],
        "hf_seqrec": {"fingerprint": data.fingerprint, **statistics},
    }
    header = {key: value for key, value in header.items() if value is not None}
    parts = [
        f"---\n{yaml.safe_dump(header, sort_keys=False, allow_unicode=True)}---",
        f"# {description.title}",
        "**Simulated data: no person stands behind these interactions.**" if description.simulated else "",
        description.summary,
        "## Counts",
        _counts_table(statistics, description.published),
        f"Fingerprint of content and order: `{data.fingerprint}`.",
        _order_sentence(data),
        "## How it was made",
        "\n".join(f"- {line}" for line in (*description.filters, *description.notes)) or "No filter was applied.",
        "## Use",
        "```python\nfrom hf_seqrec.data import load_recommendation_data, leave_one_out\n\n"
        f'data = load_recommendation_data("{data.name}")  # folder or owner/name on the Hub\n'
        "split = leave_one_out(data.sequences)\n```",
        "## Source and terms" if description.source or description.terms else "",
        description.source,
        description.terms,
        f"## Citation\n\n```bibtex\n{description.citation.strip()}\n```" if description.citation else "",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _counts_table(statistics: dict[str, int | float], published: Mapping[str, int | str]) -> str:
    def shown(value: int | float | str) -> str:
        return f"{value:,}" if isinstance(value, int) else f"{value:.4g}" if isinstance(value, float) else value

    unknown = set(published) - set(statistics)
    if unknown:
        raise ValueError(f"published count {sorted(unknown)[0]!r} is unknown: choose from {', '.join(statistics)}.")
    header = ["| count | here |", "| --- | ---: |"]
    if published:
        header = ["| count | here | published |", "| --- | ---: | ---: |"]
    rows = []
    for name, value in statistics.items():
        row = f"| {name.replace('_', ' ').replace('num ', '')} | {shown(value)} |"
        rows.append(row + f" {shown(published.get(name, ''))} |" * bool(published))
    return "\n".join(header + rows)


def _order_sentence(data: RecommendationData) -> str:
    if data.sequences.timestamps is None:
        return "Only the order inside each user is known (`position`); splits by time are not possible."
    return (
        f"{data.tie_rate:.1%} of the interactions share their time with another one of the same user; "
        "there the order is that of the file."
    )


def _written_schema(schema: pa.Schema) -> pa.Schema:
    order = check_interactions_schema(schema)
    extra = [name for name in schema.names if name not in (USER_ID, ITEM_ID, TIMESTAMP, POSITION, RATING)]
    if extra:
        raise ValueError(f"{INTERACTIONS}: column {extra[0]!r} is not part of the layout: drop it before writing.")
    rating = [(RATING, pa.float32())] if RATING in schema.names else []
    return pa.schema([(USER_ID, _ENCODED_ID), (ITEM_ID, _ENCODED_ID), (order, pa.int64()), *rating])


def _write_interactions(path: Path, batches: Iterable[pa.RecordBatch], schema: pa.Schema) -> None:
    # Without the Arrow schema in the file, ids read back as plain strings however they were encoded here.
    with pq.ParquetWriter(path, schema, compression="zstd", store_schema=False) as writer:
        group: list[pa.RecordBatch] = []
        rows = 0
        for batch in batches:
            group.append(_as_written(batch, schema))
            rows += batch.num_rows
            if rows >= _ROWS_PER_GROUP:
                writer.write_table(pa.Table.from_batches(group), row_group_size=rows)
                group, rows = [], 0
        if group:
            writer.write_table(pa.Table.from_batches(group), row_group_size=max(rows, 1))


def _as_written(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    if set(batch.schema.names) != set(schema.names):
        raise ValueError(
            f"{INTERACTIONS}: a batch has the columns {', '.join(batch.schema.names)}, the first one had "
            f"{', '.join(schema.names)}: all batches need the same."
        )
    check_interactions_schema(batch.schema)
    columns = []
    for name, dtype in zip(schema.names, schema.types, strict=True):
        column = batch.column(name)
        if pa.types.is_dictionary(dtype) and not pa.types.is_dictionary(column.type):
            column = column.dictionary_encode()
        try:
            columns.append(column.cast(dtype))
        except pa.ArrowInvalid as error:
            raise ValueError(f"{INTERACTIONS}: {name} does not fit {dtype} ({error}): repair the value.") from error
    return pa.record_batch(columns, schema=schema)
