"""Candidate lists for sampled evaluation: drawn once, seeded, stored, checked on loading."""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from .files import atomic_path
from .splits import EvaluationSet, flat_positions


@dataclass(frozen=True, eq=False)
class Candidates:
    """Items to rank for every row of an evaluation set.

    Attributes:
        items: item_index, int32, shape `(n, 1 + num_negatives)`; column 0 is the target.
        seed: Seed of the draw.
        strategy: How negatives were drawn.
        num_items: Size N of the catalogue they were drawn from.
        fingerprint: Fingerprint of the evaluation set they belong to.
    """

    items: np.ndarray
    seed: int
    strategy: str
    num_items: int
    fingerprint: str

    def __len__(self) -> int:
        return len(self.items)

    @property
    def num_negatives(self) -> int:
        """Negatives per row."""
        return self.items.shape[1] - 1

    def save(self, path: str | os.PathLike) -> Path:
        """Writes the candidates to a parquet file, whole or not at all.

        Args:
            path: File to write; an existing one is replaced.

        Returns:
            The path.
        """
        metadata = {
            "seed": str(self.seed),
            "strategy": self.strategy,
            "num_items": str(self.num_items),
            "fingerprint": self.fingerprint,
        }
        flat = pa.array(self.items.reshape(-1))
        column = pa.FixedSizeListArray.from_arrays(flat, self.items.shape[1])
        table = pa.table({"candidates": column}).replace_schema_metadata(metadata)
        with atomic_path(path) as temporary:
            pq.write_table(table, temporary, compression="zstd")
        return Path(path)

    @classmethod
    def load(cls, path: str | os.PathLike, evaluation_set: EvaluationSet) -> "Candidates":
        """Reads candidates and checks that they belong to an evaluation set.

        Args:
            path: File written by `save`.
            evaluation_set: The rows they are to be used for.

        Returns:
            The candidates.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If the file is damaged, holds no candidates, or belongs to another evaluation set.
        """
        if not Path(path).is_file():
            raise FileNotFoundError(f"no candidates at {path}: draw them with draw_candidates and save them.")
        try:
            table = pq.ParquetFile(path).read()
        except pa.ArrowInvalid as error:
            raise ValueError(f"{path} is not a complete parquet file ({error}): draw the candidates again.") from error
        metadata = {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}
        if "candidates" not in table.column_names or "fingerprint" not in metadata:
            raise ValueError(f"{path} holds no candidates: need a file written by Candidates.save.")
        if metadata["fingerprint"] != evaluation_set.fingerprint:
            raise ValueError(
                f"{path} belongs to the evaluation set {metadata['fingerprint']}, not to {evaluation_set.fingerprint}: "
                "the data, split or filter differ. Draw candidates for this one."
            )
        column = table["candidates"].combine_chunks()
        return cls(
            items=column.flatten().to_numpy().reshape(len(column), -1),
            seed=int(metadata["seed"]),
            strategy=metadata["strategy"],
            num_items=int(metadata["num_items"]),
            fingerprint=metadata["fingerprint"],
        )


def draw_candidates(
    evaluation_set: EvaluationSet,
    num_items: int,
    num_negatives: int = 99,
    seed: int = 0,
    strategy: str = "uniform",
) -> Candidates:
    """Draws negatives for every row: never the target, never an item of the full history, never twice the same.

    Args:
        evaluation_set: Rows to draw for.
        num_items: Size N of the catalogue; negatives come from 1…N.
        num_negatives: Negatives per row.
        seed: Seed; equal arguments give equal candidates.
        strategy: `"uniform"`: every allowed item is equally likely.

    Returns:
        The candidates, target in column 0.

    Raises:
        ValueError: If an argument does not fit, or a row has too few items left to draw from.

    Example:
        >>> import numpy as np, pyarrow as pa
        >>> from hf_seqrec.data import Sequences, draw_candidates, leave_one_out
        >>> test = leave_one_out(Sequences(np.array([3, 1, 2]), np.array([0, 3]), None, pa.array(["ann"]))).test
        >>> sorted(draw_candidates(test, num_items=5, num_negatives=2).items[0].tolist())
        [2, 4, 5]
    """
    if strategy != "uniform":
        raise ValueError(f"strategy {strategy!r} is unknown: choose 'uniform'.")
    if num_negatives < 1:
        raise ValueError(f"num_negatives={num_negatives}: need 1 or more.")
    if len(evaluation_set) and evaluation_set.target.max() > num_items:
        raise ValueError(
            f"target {evaluation_set.target.max()} is not among the {num_items} items: pass the catalogue's num_items."
        )
    generator = np.random.default_rng(seed)
    items = np.empty((len(evaluation_set), 1 + num_negatives), dtype=np.int32)
    items[:, 0] = evaluation_set.target
    # Chunks hold a few million history items or drawn items, whichever is more, so memory stays bounded.
    for rows in evaluation_set.chunks():
        step = max(1, (1 << 22) // num_negatives)
        for start in range(rows.start, rows.stop, step):
            part = slice(start, min(start + step, rows.stop))
            items[part, 1:] = _draw_chunk(evaluation_set, part, num_items, num_negatives, generator)
    return Candidates(items, seed, strategy, num_items, evaluation_set.fingerprint)


def _draw_chunk(
    evaluation_set: EvaluationSet, rows: slice, num_items: int, num_negatives: int, generator: np.random.Generator
) -> np.ndarray:
    start, stop, target = evaluation_set.start[rows], evaluation_set.stop[rows], evaluation_set.target[rows]
    count, width = len(target), num_items + 1
    row_of = np.repeat(np.arange(count), stop - start)
    history = evaluation_set.item_index[flat_positions(start, stop)]
    # One sorted number per forbidden (row, item) pair makes "is it forbidden?" a binary search.
    forbidden = np.sort(np.concatenate([row_of * width + history, np.arange(count) * width + target]))
    forbidden = forbidden[np.append(True, forbidden[1:] != forbidden[:-1])]  # many times faster than `np.unique`
    num_forbidden = np.bincount(forbidden // width, minlength=count)
    free = num_items - num_forbidden
    if free.min() < num_negatives:
        worst = int(np.argmin(free))
        raise ValueError(
            f"row {rows.start + worst} has only {free[worst]} of {num_items} items outside its history and target, "
            f"need {num_negatives} negatives: draw fewer."
        )
    # Rejection is fast while few of the items are taken; the fuller rows choose from a list of what is allowed instead.
    full = num_forbidden + num_negatives > num_items // 4
    drawn = np.empty((count, num_negatives), dtype=np.int64)
    drawn[~full] = _by_rejection(np.flatnonzero(~full), forbidden, width, num_negatives, generator)
    for row in np.flatnonzero(full):
        low, high = np.searchsorted(forbidden, [row * width, (row + 1) * width])
        allowed = np.delete(np.arange(width), np.concatenate([[0], forbidden[low:high] - row * width]))
        drawn[row] = generator.choice(allowed, num_negatives, replace=False)
    return drawn


def _by_rejection(
    rows: np.ndarray, forbidden: np.ndarray, width: int, num_negatives: int, generator: np.random.Generator
) -> np.ndarray:
    drawn = np.zeros((len(rows), num_negatives), dtype=np.int64)
    row, column = (index.reshape(-1) for index in np.indices(drawn.shape))
    while len(row):
        drawn[row, column] = generator.integers(1, width, len(row))
        keys = rows[row] * width + drawn[row, column]
        nearest = np.minimum(np.searchsorted(forbidden, keys), len(forbidden) - 1)
        again = np.zeros(drawn.shape, dtype=bool)
        again[row, column] = forbidden[nearest] == keys
        # Of equal draws in a row all but the first are drawn again. The sort is stable so that the outcome of a seed
        # does not depend on the machine.
        touched = np.unique(row)
        order = np.argsort(drawn[touched], axis=1, kind="stable")
        ordered = np.take_along_axis(drawn[touched], order, axis=1)
        equal_row, equal_column = np.nonzero(ordered[:, 1:] == ordered[:, :-1])
        again[touched[equal_row], order[equal_row, equal_column + 1]] = True
        row, column = np.nonzero(again)
    return drawn
