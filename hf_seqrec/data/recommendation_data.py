"""A data set in memory, and the function that loads it from a folder or from the Hub."""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from .catalogue import Catalogue
from .columns import INTERACTIONS, ITEM_ID, ITEMS, RATING, USER_ID
from .sequences import Sequences
from .validation import Duplicates, check_interactions_schema, encode_interactions


@dataclass(frozen=True, eq=False)
class RecommendationData:
    """A data set: what items there are, and what every user did.

    Attributes:
        name: The card's `pretty_name`, or the folder name or Hub repository id where there is no card.
        catalogue: The items with their texts.
        sequences: The interactions of all users, oldest first.

    Example:
        >>> import numpy as np, pyarrow as pa
        >>> from hf_seqrec.data import Catalogue, RecommendationData, Sequences
        >>> catalogue = Catalogue(pa.table({"item_id": ["a", "b"], "title": ["Alien", "Heat"]}))
        >>> sequences = Sequences(np.array([1, 2]), np.array([0, 2]), np.array([5, 5]), pa.array(["ann"]))
        >>> data = RecommendationData("tiny", catalogue, sequences)
        >>> data.tie_rate, len(data.fingerprint)
        (1.0, 16)
    """

    name: str
    catalogue: Catalogue
    sequences: Sequences

    def __repr__(self) -> str:
        return (
            f"RecommendationData({self.name!r}, {len(self.sequences):,} users, {self.catalogue.num_items:,} items, "
            f"{self.sequences.num_interactions:,} interactions, fingerprint {self.fingerprint})"
        )

    @cached_property
    def fingerprint(self) -> str:
        """First 16 hexadecimal digits of the sha256 over catalogue and sequences.

        It depends on the content and its order, not on how files are cut or compressed, nor on the order of columns.
        Ratings do not take part.
        """
        digest = hashlib.sha256()
        for name in sorted(self.catalogue.table.column_names):
            digest.update(name.encode())
            _hash_column(digest, self.catalogue.table[name])
        _hash_column(digest, pa.chunked_array([self.sequences.user_ids]))
        digest.update(self.sequences.offsets.data)
        digest.update(self.sequences.item_index.data)
        if self.sequences.timestamps is not None:
            digest.update(self.sequences.timestamps.data)
        return digest.hexdigest()[:16]

    @cached_property
    def tie_rate(self) -> float:
        """Share of interactions that share their time with another one of the same user; 0 when only order is known.

        Inside a tie the order is that of the file, so a high rate means that "the last item" is partly arbitrary.
        """
        times = self.sequences.timestamps
        if times is None:
            return 0.0
        same = times[1:] == times[:-1]
        starts = self.sequences.offsets[1:-1]
        same[starts[(starts > 0) & (starts < len(times))] - 1] = False
        tied = np.zeros(len(times), dtype=bool)
        tied[1:] |= same
        tied[:-1] |= same
        return float(tied.mean())

    def statistics(self) -> dict[str, int | float]:
        """The counts a card prints: users, items, interactions, sequence lengths, ties, titles."""
        lengths = self.sequences.lengths
        users, items, interactions = len(lengths), self.catalogue.num_items, self.sequences.num_interactions
        return {
            "num_users": users,
            "num_items": items,
            "num_interactions": interactions,
            "density": interactions / (users * items),
            "shortest_sequence": int(lengths.min()),
            "mean_sequence": interactions / users,
            "longest_sequence": int(lengths.max()),
            "items_without_interaction": items - len(pc.unique(pa.array(self.sequences.item_index))),
            "items_without_title": self.catalogue.titles.null_count,
            "items_sharing_a_title": sum(self.catalogue.title_collisions().values()),
            "tie_rate": self.tie_rate,
        }


def load_recommendation_data(
    path_or_repo: str | os.PathLike,
    revision: str | None = None,
    token: str | bool | None = None,
    duplicates: Duplicates = "error",
    min_interactions: int = 1,
) -> RecommendationData:
    """Loads a data set and checks it.

    Args:
        path_or_repo: A folder in the Hub layout (`items/train-*.parquet`, `interactions/train-*.parquet`), a folder
            with `items.parquet` and `interactions.parquet`, or the id of a data set repository on the Hub.
        revision: Branch, tag or commit of the Hub repository; not for folders.
        token: Hub token for private repositories; by default the one stored by `hf auth login`.
        duplicates: What to do with rows that repeat user, item and time: `"error"`, `"drop"` or `"keep"`.
        min_interactions: Fewest interactions a user may have.

    Returns:
        The data; inside a user a stable sort by time, so that ties keep the order of the file.

    Raises:
        FileNotFoundError: If there is no such folder, or it lacks one of the two tables.
        TypeError: If a column has the wrong type.
        ValueError: If a file is damaged or a value breaks a rule (see `validate_interactions`).
        huggingface_hub.errors.RepositoryNotFoundError: If the Hub has no such repository, or it is private.

    Example:
        >>> from hf_seqrec.data import load_recommendation_data
        >>> data = load_recommendation_data("data/ml-1m")                              # doctest: +SKIP
        >>> data.catalogue.num_items, len(data.sequences)                              # doctest: +SKIP
        (3416, 6040)
    """
    folder = Path(path_or_repo)
    if folder.is_dir():
        if revision is not None:
            raise ValueError(f"revision={revision!r} is for Hub repositories, but {folder} is a folder: leave it out.")
        name = folder.resolve().name
    else:
        name = os.fspath(path_or_repo)
        folder = _download(name, revision, token)
    items = _read(_files(folder, ITEMS))
    catalogue = Catalogue(items)
    interactions = _read_interactions(_files(folder, INTERACTIONS))
    sequences, _ = encode_interactions(interactions, catalogue.item_ids, duplicates, min_interactions)
    return RecommendationData(_pretty_name(folder) or name, catalogue, sequences)


def _pretty_name(folder: Path) -> str | None:
    """The name that the card gives the data, so that a simulated world says so wherever it was copied to."""
    card = folder / "README.md"
    if not card.is_file():
        return None
    parts = card.read_text(encoding="utf-8", errors="replace").split("---\n", 2)
    if len(parts) < 3 or parts[0].strip():
        return None
    import yaml

    header = yaml.safe_load(parts[1])
    return header.get("pretty_name") if isinstance(header, dict) else None


def _download(repo: str, revision: str | None, token: str | bool | None) -> Path:
    parts = repo.split("/")
    if len(parts) > 2 or "" in parts or parts[0].startswith((".", "~")) or "\\" in repo:
        raise FileNotFoundError(f"{repo} is neither a folder nor a Hub repository id (owner/name).")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import RepositoryNotFoundError

    patterns = [
        pattern for table in (ITEMS, INTERACTIONS) for pattern in (f"{table}/train-*.parquet", f"{table}.parquet")
    ]
    patterns.append("README.md")
    try:
        return Path(
            snapshot_download(repo, repo_type="dataset", revision=revision, token=token, allow_patterns=patterns)
        )
    except RepositoryNotFoundError as error:
        error.add_note(f"There is no folder {repo!r} either. For a private repository, log in or pass token=….")
        raise


def _files(folder: Path, table: str) -> list[Path]:
    files = sorted((folder / table).glob("train-*.parquet"))
    plain = folder / f"{table}.parquet"
    if files and plain.exists():
        raise ValueError(f"{folder} has both {table}/ and {table}.parquet: remove one, they may differ.")
    if not files and not plain.exists():
        raise FileNotFoundError(f"{folder} has neither {table}/train-*.parquet nor {table}.parquet: is it a data set?")
    return files or [plain]


def _read(files: list[Path], columns: list[str] | None = None, dictionary: list[str] | None = None) -> pa.Table:
    tables = []
    for file in files:
        with _complete(file):
            tables.append(pq.ParquetFile(file, read_dictionary=dictionary, memory_map=True).read(columns))
    try:
        return pa.concat_tables(tables)
    except pa.ArrowInvalid as error:
        raise ValueError(
            f"the files of {files[0].parent} differ in their columns ({error}): build them again."
        ) from error


def _read_interactions(files: list[Path]) -> pa.Table:
    with _complete(files[0]):
        schema = pq.read_schema(files[0])
    order = check_interactions_schema(schema)
    columns = [USER_ID, ITEM_ID, order] + [RATING] * (RATING in schema.names)
    return _read(files, columns, dictionary=[USER_ID, ITEM_ID])


@contextmanager
def _complete(file: Path) -> Iterator[None]:
    try:
        yield
    except (FileNotFoundError, PermissionError):
        raise
    except (pa.ArrowInvalid, OSError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"{file} is not a complete parquet file ({reason}). It may be half-written: build or download it again."
        ) from error


def _hash_column(digest, column: pa.ChunkedArray) -> None:
    """Adds lengths, bytes and nulls of a text column; other types go in as JSON."""
    if not pa.types.is_string(column.type):
        digest.update(json.dumps(column.to_pylist(), default=str).encode())
        return
    array = column.combine_chunks()
    digest.update(array.is_null().to_numpy(zero_copy_only=False))
    filled = pc.fill_null(array, "")
    digest.update(pc.binary_length(filled).to_numpy())
    _, offsets, text = filled.buffers()
    if text is not None:
        bounds = np.frombuffer(offsets, dtype=np.int32)[filled.offset : filled.offset + len(filled) + 1]
        digest.update(memoryview(text)[bounds[0] : bounds[-1]])
