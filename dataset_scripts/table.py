"""Any table of interactions of one's own, as csv or Parquet, with columns named by flags.

Raw format: one row per interaction with a user, an item, and either a time or the position in the user's sequence; optionally
a rating. Optionally a second table with one row per item: its id, its title and further texts.
"""

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from hf_seqrec.data.columns import ITEM_ID, POSITION, RATING, TIMESTAMP, TITLE, USER_ID

from .base import About, Converter, RawFile, option
from .readers import ID, divided, parsed_times, read_csv, read_parquet


_UNITS = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}


@dataclass(frozen=True, kw_only=True)
class Table(Converter):
    """What the csv and the Parquet converter share: which column is which."""

    about = About(
        title="Own table",
        owner="you",
        homepage="",
        obtain="Put the file into the raw folder, or name it with --interactions-file.",
        terms="Not stated. Whoever passes the data on must have the right to.",
        license_name="unspecified",
        language=None,
    )

    interactions_file: str = option("interactions table, relative to the raw folder")
    user_column: str = option("column with the user", default="user_id")
    item_column: str = option("column with the item", default="item_id")
    timestamp_column: str | None = option("column with the time (give this or --position-column)", default=None)
    position_column: str | None = option("column with the rank inside the user's sequence", default=None)
    timestamp_unit: str = option(
        "unit of the time: since 1970, or text in --timestamp-format", default="s", choices=(*_UNITS, "text")
    )
    timestamp_format: str = option("strptime format of text times (UTC)", default="%Y-%m-%d %H:%M:%S")
    rating_column: str | None = option("column with the rating", default=None)
    items_file: str | None = option("table of items, relative to the raw folder", default=None)
    items_id_column: str = option("column of the items table with the item", default="item_id")
    title_column: str = option("column of the items table with the title", default="title")
    text_columns: str = option("further text columns of the items table, between commas", default="")

    def __post_init__(self):
        super().__post_init__()
        if (self.timestamp_column is None) == (self.position_column is None):
            raise ValueError(
                "The order of a user's interactions is needed: pass either --timestamp-column or --position-column"
                f"{', not both' if self.timestamp_column else ''}."
            )

    @property
    def title(self) -> str:
        """Name of the file without its ending."""
        return Path(self.interactions_file).name.split(".")[0]

    @property
    def slug(self) -> str:
        """The same, for files."""
        return self.title

    def raw_files(self) -> dict[str, list[RawFile]]:
        """One or two tables."""
        files = {"interactions": [RawFile((self.interactions_file,))]}
        return files | ({"items": [RawFile((self.items_file,))]} if self.items_file else {})

    def read_interactions(self, paths: list[Path]) -> Iterator[pa.RecordBatch]:
        """Streams the interactions."""
        (path,) = paths
        columns: dict[str, tuple[str, pa.DataType]] = {
            USER_ID: (self.user_column, ID),
            ITEM_ID: (self.item_column, ID),
        }
        if self.rating_column is not None:
            columns[RATING] = (self.rating_column, pa.float32())
        if self.position_column is not None:
            return self._read(path, columns | {POSITION: (self.position_column, pa.int64())})
        if self.timestamp_unit == "text":
            texts = self._read(path, columns | {TIMESTAMP: (str(self.timestamp_column), pa.string())})
            return parsed_times(texts, self.timestamp_format, path)
        numbers = self._read(path, columns | {TIMESTAMP: (str(self.timestamp_column), pa.int64())})
        return divided(numbers, _UNITS[self.timestamp_unit])

    def read_items(self, paths: list[Path]) -> Iterator[pa.RecordBatch]:
        """Streams the items; their texts are kept as they are, an empty title becomes null."""
        (path,) = paths
        columns = {ITEM_ID: (self.items_id_column, pa.string()), TITLE: (self.title_column, pa.string())}
        columns |= {name.strip(): (name.strip(), pa.string()) for name in self.text_columns.split(",") if name.strip()}
        for batch in self._read(path, columns, nullable=frozenset(columns) - {ITEM_ID}):
            arrays = [
                pc.if_else(pc.equal(array, ""), pa.scalar(None, pa.string()), array) if name != ITEM_ID else array
                for name, array in zip(batch.schema.names, batch.columns, strict=True)
            ]
            yield pa.record_batch(arrays, names=batch.schema.names)

    @abstractmethod
    def _read(
        self, path: Path, columns: dict[str, tuple[str, pa.DataType]], nullable: frozenset[str] = frozenset()
    ) -> Iterator[pa.RecordBatch]:
        """Streams columns of one table."""


@dataclass(frozen=True, kw_only=True)
class Csv(Table):
    """Converter of one's own csv files (also gzip-compressed), with a header line, in UTF-8.

    Example:
        >>> from hf_seqrec.dataset_scripts.table import Csv
        >>> Csv(interactions_file="plays.csv", timestamp_column="when", timestamp_unit="ms").slug
        'plays'
    """

    name = "csv"

    delimiter: str = option("one character between columns", default=",")

    def _read(
        self, path: Path, columns: dict[str, tuple[str, pa.DataType]], nullable: frozenset[str] = frozenset()
    ) -> Iterator[pa.RecordBatch]:
        return read_csv(path, columns, self.delimiter, nullable=nullable, quoted_newlines=bool(nullable))


@dataclass(frozen=True, kw_only=True)
class Parquet(Table):
    """Converter of one's own Parquet files.

    Example:
        >>> from hf_seqrec.dataset_scripts.table import Parquet
        >>> Parquet(interactions_file="plays.parquet", position_column="rank").slug
        'plays'
    """

    name = "parquet"

    def _read(
        self, path: Path, columns: dict[str, tuple[str, pa.DataType]], nullable: frozenset[str] = frozenset()
    ) -> Iterator[pa.RecordBatch]:
        return read_parquet(path, columns, nullable=nullable)
