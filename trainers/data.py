"""Training rows and collators for next-item objectives.

Every random choice that belongs to a row (crop, negatives, cloze mask) is drawn from a generator keyed by (seed, epoch, row).
The loss of an epoch therefore does not depend on batch size, accumulation, number of processes or a resume in the middle.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from hf_seqrec.data import Sequences


IGNORE_INDEX = -100
CROPS = ("last", "random", "sliding")


class SequenceDataset(Dataset):
    """Training sequences as rows of `{"item_index", "row", "epoch"}`; items are views, nothing is copied per user.

    Args:
        sequences: The training part of a split.
        max_length: Positions a model sees; a row holds up to `max_length + 1` items, input and target overlapping.
        rows: What a row is: `"sequence"` (a user's whole sequence: causal and cloze models train every position of it in
            one pass) or `"prefix"` (a history and the one item after it, for models that are not causal).
        crop: What an epoch sees of a sequence that is longer than a row: the `"last"` part; a `"random"` part, drawn anew every epoch;
            or all of it in `"sliding"` windows that overlap by half: every item is a target once per epoch, and from the second
            window on at least `max_length // 2` items precede a target. Where windows are cut moves with the epoch. Cloze models
            hide items anywhere in a window, so they ask for those in the overlap twice. Prefix rows have nothing to crop but their
            oldest items.
        prefixes_per_sequence: With `rows="prefix"`, how many prefixes of each sequence an epoch visits, drawn anew every
            epoch; None visits all.
        seed: Key of all random choices, together with epoch and row.

    Raises:
        ValueError: An unknown `rows` or `crop`, or no sequence with two items to learn from.
    """

    def __init__(
        self,
        sequences: Sequences,
        max_length: int,
        rows: str = "sequence",
        crop: str = "last",
        prefixes_per_sequence: int | None = None,
        seed: int = 0,
    ):
        if rows not in ("sequence", "prefix"):
            raise ValueError(f"`rows` must be 'sequence' or 'prefix', got {rows!r}.")
        if crop not in CROPS:
            raise ValueError(f"`crop` must be one of {', '.join(CROPS)}, got {crop!r}.")
        if prefixes_per_sequence is not None and prefixes_per_sequence < 1:
            raise ValueError(f"`prefixes_per_sequence` must be at least 1 or None, got {prefixes_per_sequence}.")
        self.sequences, self.max_length, self.rows, self.crop, self.seed = sequences, max_length, rows, crop, seed
        self.prefixes_per_sequence = prefixes_per_sequence
        self.epoch = 0
        lengths = sequences.lengths
        # A single item teaches nothing: there is no item after it.
        self.users = np.flatnonzero(lengths >= 2)
        if len(self.users) == 0:
            raise ValueError(f"none of the {len(sequences)} training sequences has two items, nothing can be learned.")
        if rows == "prefix" and prefixes_per_sequence is None:
            self.prefix_starts = np.concatenate([[0], np.cumsum(lengths[self.users] - 1)])
        if rows == "sequence" and crop == "sliding":
            self.stride = max(1, max_length // 2)
            beyond = np.maximum(lengths[self.users] - 1 - max_length, 0)
            self.window_starts = np.concatenate([[0], np.cumsum(1 - (-beyond // self.stride))])

    def __len__(self) -> int:
        if self.rows == "sequence":
            return int(self.window_starts[-1]) if self.crop == "sliding" else len(self.users)
        if self.prefixes_per_sequence is None:
            return int(self.prefix_starts[-1])
        return len(self.users) * self.prefixes_per_sequence

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch follows; part of the key of every random choice."""
        self.epoch = int(epoch)

    def generator(self, row: int) -> np.random.Generator:
        """The random generator of a row in the current epoch."""
        return np.random.default_rng([self.seed, self.epoch, row])

    def __getitem__(self, row: int) -> dict[str, Any]:
        row = int(row)
        start, stop, user, context = self._range(row)
        return {
            "item_index": self.sequences.item_index[start:stop],
            "user": user,
            "context": context,
            "generator_key": (self.seed, self.epoch, row),
        }

    def _range(self, row: int) -> tuple[int, int, int, int]:
        """Where a row starts and stops, whose it is, and how many of its positions are no targets because another row has them."""
        offsets, width = self.sequences.offsets, self.max_length + 1
        if self.rows == "sequence" and self.crop == "sliding":
            return self._window(row)
        if self.rows == "sequence":
            user = int(self.users[row])
            first, stop = int(offsets[user]), int(offsets[user + 1])
            if self.crop == "random" and stop - first > width:
                stop = first + width + int(self.generator(row).integers(stop - first - width + 1))
        elif self.prefixes_per_sequence is None:
            number = int(np.searchsorted(self.prefix_starts, row, side="right")) - 1
            user = int(self.users[number])
            first = int(offsets[user])
            stop = first + 2 + row - int(self.prefix_starts[number])
        else:
            user = int(self.users[row // self.prefixes_per_sequence])
            first, last = int(offsets[user]), int(offsets[user + 1])
            stop = int(self.generator(row).integers(first + 2, last + 1))
        return max(first, stop - width), stop, user, 0

    def _window(self, row: int) -> tuple[int, int, int, int]:
        number = int(np.searchsorted(self.window_starts, row, side="right")) - 1
        user, begin = int(self.users[number]), int(self.window_starts[number])
        window, windows = row - begin, int(self.window_starts[number + 1]) - begin
        first, end = (int(offset) for offset in self.sequences.offsets[user : user + 2])
        if windows == 1:
            return first, end, user, 0
        # As many windows hold a little more than the sequence: the first one gives way by a shift that its user's rows share.
        spare = self.max_length + (windows - 1) * self.stride - (end - first - 1)
        shift = int(self.generator(begin).integers(spare + 1))
        last_target = min(self.max_length - shift + window * self.stride, end - first - 1)
        if window == 0:
            return first, first + last_target + 1, user, 0
        start = window * self.stride - shift
        return first + start, first + last_target + 1, user, self.max_length - self.stride


def left_pad(rows: list[np.ndarray], value: int = 0, width: int | None = None) -> torch.Tensor:
    """Rows of different lengths as one int64 tensor (batch, longest), padded on the left."""
    width = width or max(len(row) for row in rows)
    out = np.full((len(rows), width), value, dtype=np.int64)
    for target, row in zip(out, rows, strict=True):
        if len(row):
            target[width - len(row) :] = row
    return torch.from_numpy(out)


@dataclass
class NegativeSampler:
    """Draws negatives for every labelled position of a row.

    Args:
        num_items: Size of the catalogue.
        num_negatives: Negatives per position.
        per: `"position"` (fresh negatives at each position) or `"sequence"` (one set shared by a row's positions).
        exclude_history: Never draw an item of the user's training sequence (the paper of SASRec does so).
        weights: (num_items + 1,) unnormalised probabilities with 0 for padding; None draws uniformly.
    """

    num_items: int
    num_negatives: int
    per: str = "position"
    exclude_history: bool = False
    weights: np.ndarray | None = None

    def __post_init__(self):
        if self.per not in ("position", "sequence"):
            raise ValueError(f"`per` must be 'position' or 'sequence', got {self.per!r}.")
        if self.num_negatives < 1:
            raise ValueError(f"`num_negatives` must be at least 1, got {self.num_negatives}.")
        self.cumulative = None if self.weights is None else np.cumsum(self.weights / np.sum(self.weights))

    def draw(self, generator: np.random.Generator, size: tuple[int, ...]) -> np.ndarray:
        """item_index of the given shape."""
        if self.cumulative is None:
            return generator.integers(1, self.num_items + 1, size)
        return np.searchsorted(self.cumulative, generator.random(size), side="right").clip(1, self.num_items)

    def __call__(self, generator: np.random.Generator, positions: int, history: np.ndarray) -> np.ndarray:
        """Negatives of one row.

        Args:
            generator: The row's generator.
            positions: Number of positions.
            history: The user's training items, excluded with `exclude_history`.

        Returns:
            (positions, num_negatives) item_index, or (1, num_negatives) with `per="sequence"`.

        Raises:
            ValueError: The history leaves no item to draw.
        """
        drawn = self.draw(generator, (positions if self.per == "position" else 1, self.num_negatives))
        if self.exclude_history:
            taken = np.zeros(self.num_items + 1, dtype=bool) if self.weights is None else np.asarray(self.weights) == 0
            taken[history] = True
            if taken[1:].all():
                raise ValueError(
                    f"a user has met all {self.num_items} items that could be drawn: no negative is left to draw."
                )
            while (hit := taken[drawn]).any():
                drawn[hit] = self.draw(generator, (int(hit.sum()),))
        return drawn


@dataclass
class DataCollatorForNextItem:
    """Input items and the item after each of them.

    Args:
        last_position_only: Label only the last position (rows are prefixes).
        sampler: Draws `negatives` for sampled losses; None for the full cross-entropy.
        sequences: Where the sampler finds a user's whole training history.

    Example:
        >>> collate = DataCollatorForNextItem()
        >>> batch = collate([{"item_index": np.array([4, 7, 9])}, {"item_index": np.array([5, 6])}])
        >>> batch["input_ids"].tolist(), batch["labels"].tolist()
        ([[4, 7], [0, 5]], [[7, 9], [-100, 6]])
    """

    last_position_only: bool = False
    sampler: NegativeSampler | None = None
    sequences: Sequences | None = None

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Rows of [`SequenceDataset`] (or any mapping with `item_index`) to tensors (batch, longest)."""
        rows = item_rows(examples)
        labels = [row[1:].copy() for row in rows]
        for example, label in zip(examples, labels, strict=True):
            label[: example.get("context", 0)] = IGNORE_INDEX
        batch = {
            "input_ids": left_pad([row[:-1] for row in rows]),
            "labels": left_pad(labels, IGNORE_INDEX),
        }
        if self.last_position_only:
            batch["labels"][:, :-1] = IGNORE_INDEX
        if self.sampler is not None:
            batch["negatives"] = self._negatives(self.sampler, examples, rows, batch["labels"].shape[1])
        return batch

    def _negatives(self, sampler: NegativeSampler, examples, rows, width):
        shared = sampler.per == "sequence"
        out = np.ones((len(rows), 1 if shared else width, sampler.num_negatives), dtype=np.int64)
        for target, example, row in zip(out, examples, rows, strict=True):
            # The third number keeps negatives independent of the crop drawn with the same key.
            generator = np.random.default_rng([*example["generator_key"], 1])
            history = row if self.sequences is None else self.sequences[example["user"]]
            drawn = sampler(generator, len(row) - 1, history)
            target[-len(drawn) :] = drawn
        return torch.from_numpy(out)


@dataclass
class DataCollatorForCloze:
    """Hide items and ask for them (BERT4Rec).

    Args:
        mask_id: The id that stands for a hidden item, `num_items + 1`.
        mask_probability: Share of positions hidden; at least one per row.
        last_only_probability: Share of rows in which only the last item is hidden, the situation of inference.
        max_length: Keep this many most recent items of a row; None keeps all.
    """

    mask_id: int
    mask_probability: float = 0.2
    last_only_probability: float = 0.5
    max_length: int | None = None

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Rows of [`SequenceDataset`] to `input_ids` with hidden items and `labels` at them, (batch, longest)."""
        inputs, labels = [], []
        for example, row in zip(examples, item_rows(examples), strict=True):
            row = row[-self.max_length :] if self.max_length else row
            generator = np.random.default_rng([*example["generator_key"], 1])
            hidden = np.zeros(len(row), dtype=bool)
            if generator.random() >= self.last_only_probability:
                hidden = generator.random(len(row)) < self.mask_probability
            if not hidden.any():
                hidden[-1] = True
            inputs.append(np.where(hidden, self.mask_id, row))
            labels.append(np.where(hidden, row, IGNORE_INDEX))
        return {"input_ids": left_pad(inputs), "labels": left_pad(labels, IGNORE_INDEX)}


def item_rows(examples: list[dict[str, Any]]) -> list[np.ndarray]:
    """The item arrays of examples, checked by column name.

    Raises:
        KeyError: No `item_index` column; the message lists what came.
        ValueError: A row with fewer than two items.
    """
    if "item_index" not in examples[0]:
        raise KeyError(f"a training row needs the column 'item_index', got {sorted(examples[0])}.")
    rows = [np.asarray(example["item_index"]) for example in examples]
    short = next((number for number, row in enumerate(rows) if len(row) < 2), None)
    if short is not None:
        raise ValueError(f"row {short} of the batch has {len(rows[short])} items; training needs at least 2 per row.")
    return rows
