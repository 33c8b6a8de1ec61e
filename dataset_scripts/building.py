"""From raw files to a data set in the Hub layout: the part that is the same for all converters.

Interactions are read as a stream and kept as 20 bytes per row (two integer codes, time, rating), so that 30 million of them
need a few gigabytes at most.
"""

import shlex
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from hf_seqrec.data.columns import INTERACTIONS, ITEM_ID, ITEMS, POSITION, RATING, TIMESTAMP, TITLE, USER_ID
from hf_seqrec.data.files import check_writable_folder
from hf_seqrec.data.filters import compact_codes, first_occurrences, k_core, rating_at_least
from hf_seqrec.data.layout import DatasetDescription, interaction_batches, write_dataset
from hf_seqrec.data.recommendation_data import RecommendationData

from .base import Converter, Statistics
from .download import checksum
from .readers import RawDataError


class PublishedCountsWarning(UserWarning):
    """Counts differ from the published ones."""


@dataclass(frozen=True, kw_only=True)
class Filters:
    """What is dropped, in this order: low ratings, repeated rows, then everything outside the core.

    Attributes:
        user_core: Fewest interactions of a user; 1 or less keeps all.
        item_core: Fewest interactions of an item; 1 or less keeps all.
        min_rating: Lowest rating that is kept.
    """

    user_core: int = 5
    item_core: int = 5
    min_rating: float | None = None


@dataclass(frozen=True, eq=False)
class CodedInteractions:
    """Interactions as flat arrays; ids are kept once.

    Attributes:
        user_ids: Strings, entry `c` belongs to user code `c`.
        users: int32 codes, shape `(n,)`.
        item_ids: Strings, entry `c` belongs to item code `c`.
        items: int32 codes, shape `(n,)`.
        times: int64 Unix seconds or positions, shape `(n,)`.
        ratings: float32, shape `(n,)`, or None.
        time_column: `"timestamp"` or `"position"`.
    """

    user_ids: pa.Array
    users: np.ndarray
    item_ids: pa.Array
    items: np.ndarray
    times: np.ndarray
    ratings: np.ndarray | None
    time_column: str

    @classmethod
    def gather(cls, batches: Iterable[pa.RecordBatch]) -> "CodedInteractions":
        """Takes in a stream of batches, as `Converter.read_interactions` yields them.

        Args:
            batches: The stream.

        Returns:
            The interactions in the order of the stream; codes count users and items in the order of their first row.

        Raises:
            RawDataError: If the stream has no row.
        """
        columns: dict[str, list[pa.Array]] = {}
        for batch in batches:
            if batch.num_rows:
                for name, array in zip(batch.schema.names, batch.columns, strict=True):
                    columns.setdefault(name, []).append(array)
        if not columns:
            raise RawDataError("The raw interactions have no row: is the file complete, or did a threshold drop all?")
        time_column = TIMESTAMP if TIMESTAMP in columns else POSITION
        # Each list goes out of scope as soon as its flat array exists: the peak is one column above the result.
        users, user_ids = _unified(columns.pop(USER_ID))
        items, item_ids = _unified(columns.pop(ITEM_ID))
        times = _flat(columns.pop(time_column))
        ratings = _flat(columns.pop(RATING)) if RATING in columns else None
        return cls(user_ids, users, item_ids, items, times, ratings, time_column)

    def __len__(self) -> int:
        return len(self.users)

    def rows(self, which: np.ndarray) -> "CodedInteractions":
        """Some rows, by a boolean mask or by numbers; the ids stay."""
        ratings = None if self.ratings is None else self.ratings[which]
        return replace(
            self, users=self.users[which], items=self.items[which], times=self.times[which], ratings=ratings
        )

    def compact(self) -> "CodedInteractions":
        """The same rows without the ids that no row has."""
        users, used_users = compact_codes(self.users)
        items, used_items = compact_codes(self.items)
        user_ids, item_ids = self.user_ids.take(pa.array(used_users)), self.item_ids.take(pa.array(used_items))
        return replace(self, users=users, user_ids=user_ids, items=items, item_ids=item_ids)

    def counts(self) -> dict[str, int]:
        """Number of users and items that have a row, and of rows."""
        return {
            "users": int(np.count_nonzero(np.bincount(self.users))),
            "items": int(np.count_nonzero(np.bincount(self.items))),
            "interactions": len(self),
        }


def build_dataset(
    converter: Converter,
    raw_dir: str | Path,
    output_dir: str | Path,
    filters: Filters | None = None,
    download: bool = False,
    with_titles: bool = True,
    all_items: bool = False,
    strict: bool = False,
    overwrite: bool = False,
) -> RecommendationData:
    r"""Reads raw files and writes a data set with its card, whole or not at all.

    Args:
        converter: Knows the raw format.
        raw_dir: Folder with the raw files.
        output_dir: Folder to write; missing or empty, unless `overwrite`.
        filters: What to drop; by default everything outside the 5-core.
        download: Whether to fetch missing raw files from the owner first.
        with_titles: Whether to read item texts; without them all titles are null.
        all_items: Whether items that nobody met stay in the catalogue.
        strict: Whether counts that differ from the published ones are an error instead of a warning.
        overwrite: Whether an output folder that holds something is replaced.

    Returns:
        The data as written.

    Raises:
        FileNotFoundError: If a raw file is missing; the message says where to get it.
        FileExistsError: If `output_dir` holds something and `overwrite` is off.
        ValueError: If a raw file is broken (`RawDataError`), nothing is left after filtering, or counts differ from the
            published ones and `strict` is on.

    Example:
        >>> import pathlib, tempfile
        >>> from hf_seqrec.dataset_scripts.building import Filters, build_dataset
        >>> from hf_seqrec.dataset_scripts.table import Csv
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> _ = (folder / "plays.csv").write_text("who,what,when\nann,a1,10\nann,b2,20\n")
        >>> plays = Csv(interactions_file="plays.csv", user_column="who", item_column="what", timestamp_column="when")
        >>> data = build_dataset(plays, folder, folder / "plays", Filters(user_core=1, item_core=1))
        >>> data.catalogue.item_ids.to_pylist()
        ['a1', 'b2']
    """
    filters = filters or Filters()
    raw_dir, output_dir = Path(raw_dir), Path(output_dir)
    check_writable_folder(output_dir, overwrite)
    if download:
        converter.download(raw_dir)
    paths = converter.locate(raw_dir, with_titles)

    coded = CodedInteractions.gather(converter.read_interactions(paths[INTERACTIONS]))
    raw_counts = coded.counts()
    coded, steps = _filtered(coded, filters)
    counts = coded.counts()
    differences, published = _compare(converter, filters, raw_counts, counts)
    if differences and strict:
        raise ValueError(f"{converter.title}: counts differ from the published ones ({'; '.join(differences)}).")

    texts = converter.read_items(paths[ITEMS]) if paths.get(ITEMS) and with_titles else ()
    items, unknown = collect_items(texts, coded.item_ids, all_items)
    # Grouped by user and in order of time, a data set loads without sorting; the sort is stable, so that ties stay.
    coded = coded.rows(np.lexsort((coded.times, coded.users)))
    card = _describe(converter, filters, steps, differences, published, raw_counts, paths, unknown)
    batches = interaction_batches(
        coded.user_ids, coded.users, coded.item_ids, coded.items, coded.times, coded.ratings, coded.time_column
    )
    data = write_dataset(output_dir, items, batches, card, overwrite)
    if differences:
        warnings.warn(
            f"{converter.title}: counts differ from the published ones ({'; '.join(differences)}). The card says so; "
            "pass strict=True (--strict) to make this an error.",
            PublishedCountsWarning,
            stacklevel=2,
        )
    return data


def collect_items(batches: Iterable[pa.RecordBatch], used: pa.Array, all_items: bool = False) -> tuple[pa.Table, int]:
    """Makes the catalogue table out of a stream of items.

    Args:
        batches: As `Converter.read_items` yields them; of a repeated id the first row counts.
        used: Ids of the items that have interactions.
        all_items: Whether other items stay too.

    Returns:
        The items in the owner's order, then those the owner has no row for in the order of their ids, without texts;
        and the number of the latter.
    """
    kept = [batch if all_items else batch.filter(pc.is_in(batch.column(ITEM_ID), value_set=used)) for batch in batches]
    schema = kept[0].schema if kept else pa.schema([(ITEM_ID, pa.string()), (TITLE, pa.string())])
    table = pa.Table.from_batches(kept, schema)
    codes = pc.dictionary_encode(table[ITEM_ID].combine_chunks(), null_encoding="encode").indices.to_numpy()
    table = table.take(np.sort(np.unique(codes, return_index=True)[1]))
    unknown = used.filter(pc.invert(pc.is_in(used, value_set=table[ITEM_ID].combine_chunks())))
    without_texts = pa.table({ITEM_ID: unknown.take(pc.sort_indices(unknown))})
    table = pa.concat_tables([table, without_texts], promote_options="default")
    return table, len(unknown)


def _filtered(coded: CodedInteractions, filters: Filters) -> tuple[CodedInteractions, list[str]]:
    """The rows that stay, and one sentence per filter."""
    steps = []
    if filters.min_rating is not None:
        if coded.ratings is None:
            raise ValueError(
                f"min_rating={filters.min_rating:g} needs ratings, but this source has none: leave it out."
            )
        keep = rating_at_least(coded.ratings, filters.min_rating)
        steps.append(f"Ratings below {filters.min_rating:g} dropped: {np.sum(~keep):,} rows.")
        coded = coded.rows(keep)
    keep = first_occurrences(coded.users, coded.items, coded.times)
    if not keep.all():
        steps.append(f"Rows that repeat user, item and time of an earlier row dropped: {np.sum(~keep):,}.")
        coded = coded.rows(keep)
    if filters.user_core > 1 or filters.item_core > 1:
        keep = k_core(coded.users, coded.items, filters.user_core, filters.item_core)
        steps.append(
            f"Users with fewer than {filters.user_core} and items with fewer than {filters.item_core} interactions dropped, "
            f"repeated until none is left: {np.sum(~keep):,} rows."
        )
        coded = coded.rows(keep)
    if not len(coded):
        raise ValueError(f"Nothing is left after filtering ({' '.join(steps)}). Lower the core or the minimum rating.")
    return coded.compact(), steps


def _compare(
    converter: Converter, filters: Filters, raw_counts: dict[str, int], counts: dict[str, int]
) -> tuple[list[str], Statistics | None]:
    """Differences from published counts as sentences, and the published counts of what is built."""
    published = converter.published()
    expected = None
    if filters == Filters():
        expected = published.get("5-core")
    elif filters == Filters(user_core=1, item_core=1):
        expected = published.get("raw")
    differences = []
    if "raw" in published:
        differences += [f"raw {difference}" for difference in published["raw"].mismatches(**raw_counts)]
    if expected is not None:
        differences += [f"built {difference}" for difference in expected.mismatches(**counts)]
    return differences, expected


def _describe(
    converter: Converter,
    filters: Filters,
    steps: list[str],
    differences: list[str],
    published: Statistics | None,
    raw_counts: dict[str, int],
    paths: dict[str, list[Path]],
    unknown: int,
) -> DatasetDescription:
    about = converter.about
    summary = f"{converter.title} by {about.owner}, as one table of interactions and one of items."
    if differences:
        summary += f"\n\n**Warning: counts differ from the published ones ({'; '.join(differences)}).**"
    raw = " / ".join(f"{count:,}" for count in raw_counts.values())
    reference = converter.published().get("raw")
    notes = [
        f"Raw users / items / interactions: {raw}" + (f" (published: {reference})." if reference else "."),
        *converter.notes(),
    ]
    if unknown:
        notes.append(f"{unknown:,} items have interactions but no row in the owner's items: their title is null.")
    for path in chain(*paths.values()):
        notes.append(f"Raw file `{path.name}`: {path.stat().st_size:,} bytes, sha256 `{checksum(path)}`.")
    notes.append(f"Built by `{_command(converter, filters)}`.")
    return DatasetDescription(
        title=converter.title,
        summary=summary,
        source=f"{about.owner}: {about.homepage}" if about.homepage else "",
        terms=about.terms,
        license=about.license,
        license_name=about.license_name if about.license == "other" else "",
        language=about.language,
        citation=converter.citation,
        filters=tuple(steps),
        notes=tuple(notes),
        published={
            f"num_{what}": getattr(published, what)
            for what in ("users", "items", "interactions")
            if published is not None and getattr(published, what) is not None
        },
    )


def _command(converter: Converter, filters: Filters) -> str:
    words = ["seqrec", "data", "build", converter.name]
    for one in converter.options():
        value = getattr(converter, one.name)
        # Defaults are spelled out, since they may change.
        if value not in (None, ""):
            words += ["--" + one.name.replace("_", "-"), str(value)]
    words += ["--user-core", str(filters.user_core), "--item-core", str(filters.item_core)]
    if filters.min_rating is not None:
        words += ["--min-rating", f"{filters.min_rating:g}"]
    return shlex.join(words)


def _unified(chunks: list[pa.DictionaryArray]) -> tuple[np.ndarray, pa.Array]:
    column = pa.chunked_array(chunks).unify_dictionaries()
    codes = np.concatenate([chunk.indices.to_numpy() for chunk in column.chunks])
    return codes, column.chunk(0).dictionary.cast(pa.string())


def _flat(chunks: list[pa.Array]) -> np.ndarray:
    return np.concatenate([chunk.to_numpy() for chunk in chunks])
