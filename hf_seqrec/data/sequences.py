"""Interaction sequences of all users in three flat arrays."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa


def flat_positions(start: np.ndarray, stop: np.ndarray) -> np.ndarray:
    """Lists the positions of many ranges one after the other, without a Python loop.

    Args:
        start: First position of each range, shape `(n,)`.
        stop: One past the last position of each range, shape `(n,)`, never below `start`.

    Returns:
        int64 positions, shape `(sum(stop - start),)`.

    Example:
        >>> import numpy as np
        >>> flat_positions(np.array([0, 7]), np.array([2, 10])).tolist()
        [0, 1, 7, 8, 9]
    """
    start, lengths = np.asarray(start, dtype=np.int64), np.asarray(stop, dtype=np.int64) - start
    shift = start - (np.cumsum(lengths) - lengths)
    return np.arange(lengths.sum(), dtype=np.int64) + np.repeat(shift, lengths)


@dataclass(frozen=True, eq=False)
class Sequences:
    """What every user did, oldest first, as flat arrays: user `i` owns `item_index[offsets[i]:offsets[i + 1]]`.

    The arrays are read-only views.

    Attributes:
        item_index: int32, shape `(num_interactions,)`, values 1…N (0 is padding and never occurs).
        offsets: int64, shape `(num_users + 1,)`, from 0 to `num_interactions`, non-decreasing.
        timestamps: int64 Unix seconds, shape `(num_interactions,)`, non-decreasing inside a user; None when only the
            order is known.
        user_ids: The owner's user ids, a pyarrow string array of length `num_users`.

    Raises:
        ValueError: If shapes do not fit each other.

    Example:
        >>> import numpy as np, pyarrow as pa
        >>> from hf_seqrec.data import Sequences
        >>> sequences = Sequences(np.array([3, 1, 2], np.int32), np.array([0, 2, 3]), None, pa.array(["ann", "bob"]))
        >>> len(sequences), sequences[0].tolist(), sequences.lengths.tolist()
        (2, [3, 1], [2, 1])
    """

    item_index: np.ndarray
    offsets: np.ndarray
    timestamps: np.ndarray | None
    user_ids: pa.Array

    def __post_init__(self):
        object.__setattr__(self, "item_index", np.ascontiguousarray(self.item_index, dtype=np.int32))
        object.__setattr__(self, "offsets", np.ascontiguousarray(self.offsets, dtype=np.int64))
        if self.timestamps is not None:
            object.__setattr__(self, "timestamps", np.ascontiguousarray(self.timestamps, dtype=np.int64))
            if len(self.timestamps) != len(self.item_index):
                raise ValueError(
                    f"timestamps has {len(self.timestamps)} entries, item_index {len(self.item_index)}: need one each."
                )
        if len(self.offsets) != len(self.user_ids) + 1:
            raise ValueError(
                f"offsets has {len(self.offsets)} entries for {len(self.user_ids)} users: need users + 1."
            )
        if self.offsets[0] != 0 or self.offsets[-1] != len(self.item_index) or np.any(np.diff(self.offsets) < 0):
            raise ValueError(f"offsets must rise from 0 to the number of interactions ({len(self.item_index)}).")
        # Splits and models share these arrays: whoever writes into them by mistake gets an error, not other data.
        for name in ("item_index", "offsets", "timestamps"):
            if (array := getattr(self, name)) is not None and array.flags.writeable:
                array = array.view()
                array.flags.writeable = False
                object.__setattr__(self, name, array)

    def __len__(self) -> int:
        return len(self.user_ids)

    def __getitem__(self, user: int) -> np.ndarray:
        """The items of one user as a view, shape `(length,)`."""
        if not -len(self) <= user < len(self):
            raise IndexError(f"user {user} of {len(self)} users")
        user %= len(self)
        return self.item_index[self.offsets[user] : self.offsets[user + 1]]

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self[user] for user in range(len(self)))

    def __repr__(self) -> str:
        return f"Sequences({len(self):,} users, {self.num_interactions:,} interactions)"

    @property
    def num_interactions(self) -> int:
        """Number of interactions of all users together."""
        return len(self.item_index)

    @cached_property
    def lengths(self) -> np.ndarray:
        """Interactions per user, int64, shape `(num_users,)`."""
        return np.diff(self.offsets)

    def subset(self, users: np.ndarray) -> "Sequences":
        """The whole sequences of some users, in the order asked for.

        Args:
            users: Row numbers of users, shape `(n,)`, or a boolean mask of shape `(num_users,)`.

        Returns:
            New sequences of these users.
        """
        users = np.flatnonzero(users) if np.asarray(users).dtype == bool else np.asarray(users, dtype=np.int64)
        return self.truncated(users, self.offsets[users + 1])

    def truncated(self, users: np.ndarray, stop: np.ndarray) -> "Sequences":
        """The sequences of some users, each only up to a position.

        Args:
            users: Row numbers of users, shape `(n,)`.
            stop: One past the last position kept of each of them, in the flat array, shape `(n,)`.

        Returns:
            New sequences of these users.
        """
        start = self.offsets[users]
        positions = flat_positions(start, stop)
        return Sequences(
            item_index=self.item_index[positions],
            offsets=np.concatenate([[0], np.cumsum(stop - start)]),
            timestamps=None if self.timestamps is None else self.timestamps[positions],
            user_ids=self.user_ids.take(pa.array(users)),
        )
