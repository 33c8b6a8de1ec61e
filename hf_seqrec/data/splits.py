"""Splits: which interactions train, and which next items validate and test. Pure functions of the sequences.

Every held-out case is "given this history, which item comes next": the target is the interaction that follows the
history. Training sequences hold no held-out target.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa

from .sequences import Sequences, flat_positions


# Histories are expanded a few million items at a time, so that memory does not grow with the number of users.
_ITEMS_PER_CHUNK = 1 << 22


@dataclass(frozen=True, eq=False)
class EvaluationSet:
    """Histories with the item that came next, as flat arrays over shared sequences.

    Attributes:
        sequences: The full sequences; row numbers and positions below refer to them.
        user: Row of the user in `sequences`, int64, shape `(n,)`.
        start: Position of the oldest history item in `sequences.item_index`, int64, shape `(n,)`.
        stop: One past the newest history item, int64, shape `(n,)`; the target stands at this position.
        target: item_index of the next item, int32, shape `(n,)`.

    Raises:
        ValueError: If shapes or positions do not fit.

    Example:
        >>> import numpy as np, pyarrow as pa
        >>> from hf_seqrec.data import Sequences, leave_one_out
        >>> sequences = Sequences(np.array([3, 1, 2]), np.array([0, 3]), None, pa.array(["ann"]))
        >>> test = leave_one_out(sequences).test
        >>> test.history(0).tolist(), test.target.tolist()
        ([3, 1], [2])
    """

    sequences: Sequences
    user: np.ndarray
    start: np.ndarray
    stop: np.ndarray
    target: np.ndarray

    def __post_init__(self):
        for name, dtype in (("user", np.int64), ("start", np.int64), ("stop", np.int64), ("target", np.int32)):
            object.__setattr__(self, name, np.ascontiguousarray(getattr(self, name), dtype=dtype))
        shapes = {getattr(self, name).shape for name in ("user", "start", "stop", "target")}
        if len(shapes) != 1 or len(shapes.pop()) != 1:
            raise ValueError("user, start, stop and target must be flat arrays of one common length.")
        if np.any(self.start > self.stop) or np.any(self.start < 0) or np.any(self.stop >= len(self.item_index)):
            raise ValueError("need 0 <= start <= stop < number of interactions in every row.")

    @classmethod
    def before(cls, sequences: Sequences, user: np.ndarray, stop: np.ndarray) -> "EvaluationSet":
        """The cases "everything the user did before `stop`, then the interaction at `stop`".

        Args:
            sequences: The full sequences.
            user: Rows of users, shape `(n,)`.
            stop: Positions of the targets in `sequences.item_index`, shape `(n,)`.

        Returns:
            The evaluation set.
        """
        return cls(sequences, user, sequences.offsets[user], stop, sequences.item_index[stop])

    def __len__(self) -> int:
        return len(self.user)

    def __repr__(self) -> str:
        return f"EvaluationSet({len(self):,} rows, histories of {self.lengths.sum():,} items)"

    @property
    def item_index(self) -> np.ndarray:
        """The flat items that `start` and `stop` point into, int32."""
        return self.sequences.item_index

    @property
    def lengths(self) -> np.ndarray:
        """History lengths, int64, shape `(n,)`."""
        return self.stop - self.start

    @property
    def user_ids(self) -> pa.Array:
        """The owner's user ids, pyarrow string array of length n."""
        return self.sequences.user_ids.take(pa.array(self.user))

    @property
    def target_timestamps(self) -> np.ndarray | None:
        """Unix seconds at which the targets happened, int64, shape `(n,)`; None when only the order is known."""
        return None if self.sequences.timestamps is None else self.sequences.timestamps[self.stop]

    @cached_property
    def repeats_history(self) -> np.ndarray:
        """Whether the target is already in the history, bool, shape `(n,)`.

        Where it is, a recommender that excludes seen items can only miss.
        """
        repeats = np.zeros(len(self), dtype=bool)
        for rows in self.chunks():
            flat = self.item_index[flat_positions(self.start[rows], self.stop[rows])]
            row_of = np.repeat(np.arange(rows.start, rows.stop), self.lengths[rows])
            repeats[row_of[flat == self.target[row_of]]] = True
        return repeats

    @cached_property
    def fingerprint(self) -> str:
        """First 16 hexadecimal digits of the sha256 over users, histories and targets."""
        digest = hashlib.sha256()
        digest.update(str(self.user_ids.to_pylist()).encode())
        digest.update(self.lengths.data)
        for rows in self.chunks():
            digest.update(self.item_index[flat_positions(self.start[rows], self.stop[rows])].data)
        digest.update(self.target.data)
        return digest.hexdigest()[:16]

    def history(self, row: int) -> np.ndarray:
        """The items before the target of one row, oldest first, as a view of shape `(length,)`."""
        return self.item_index[self.start[row] : self.stop[row]]

    def subset(self, rows: np.ndarray) -> "EvaluationSet":
        """Some of the rows, in the order asked for.

        Args:
            rows: Row numbers, shape `(m,)`, or a boolean mask of shape `(n,)`.

        Returns:
            The rows over the same sequences.
        """
        return EvaluationSet(self.sequences, self.user[rows], self.start[rows], self.stop[rows], self.target[rows])

    def chunks(self, items_per_chunk: int = _ITEMS_PER_CHUNK) -> list[slice]:
        """Cuts the rows into slices whose histories together hold about `items_per_chunk` items."""
        chunk = np.cumsum(self.lengths + 1) // items_per_chunk
        starts = [0, *(np.flatnonzero(np.diff(chunk)) + 1).tolist(), len(self)]
        return [slice(start, stop) for start, stop in pairwise(starts) if stop > start]


@dataclass(frozen=True, eq=False)
class Split:
    """A training part and two held-out parts.

    Attributes:
        name: Name of the split function.
        train: What may be fitted on; user rows are those of `train.user_ids`.
        validation: Cases to select on.
        test: Cases to report.
        params: Arguments and counts that a record should name, JSON-friendly.
    """

    name: str
    train: Sequences
    validation: EvaluationSet
    test: EvaluationSet
    params: dict[str, Any] = field(default_factory=dict)


def leave_one_out(sequences: Sequences, min_length: int = 3) -> Split:
    """Last interaction tests, second-last validates, the rest trains.

    Users with fewer than `min_length` interactions stay in the training part whole; `params` counts them.

    Args:
        sequences: The full sequences.
        min_length: Fewest interactions (3 or more) of a user that is evaluated.

    Returns:
        The split; train keeps all users in their order.

    Raises:
        ValueError: If `min_length` is below 3 or no user is long enough.

    Example:
        >>> import numpy as np, pyarrow as pa
        >>> from hf_seqrec.data import Sequences, leave_one_out
        >>> sequences = Sequences(np.array([1, 2, 3, 4, 5]), np.array([0, 4, 5]), None, pa.array(["ann", "bob"]))
        >>> split = leave_one_out(sequences)
        >>> split.train.item_index.tolist(), split.validation.target.tolist(), split.test.target.tolist()
        ([1, 2, 5], [3], [4])
    """
    _check_min_length(min_length, 3)
    users = _long_enough(sequences, min_length)
    end = sequences.offsets[1:]
    kept = end - 2 * (sequences.lengths >= min_length)
    return Split(
        name="leave_one_out",
        train=sequences.truncated(np.arange(len(sequences)), kept),
        validation=EvaluationSet.before(sequences, users, end[users] - 2),
        test=EvaluationSet.before(sequences, users, end[users] - 1),
        params={"min_length": min_length, "users_too_short": len(sequences) - len(users)},
    )


def user_ratio(
    sequences: Sequences, ratios: Sequence[float] = (0.8, 0.1, 0.1), seed: int = 0, min_length: int = 2
) -> Split:
    """Users are divided at random; the last item of each held-out user is the target, the items before its history.

    Args:
        sequences: The full sequences.
        ratios: Shares of training, validation and test users; they sum to 1.
        seed: Seed of the division.
        min_length: Fewest interactions (2 or more) of a user that may be held out; shorter users train.

    Returns:
        The split; training users keep their whole sequences.

    Raises:
        ValueError: If the ratios do not fit, or a part would be empty.

    Example:
        >>> import numpy as np, pyarrow as pa
        >>> from hf_seqrec.data import Sequences, user_ratio
        >>> ids = pa.array([str(user) for user in range(10)])
        >>> split = user_ratio(Sequences(np.arange(1, 21), np.arange(0, 21, 2), None, ids), seed=1)
        >>> len(split.train), len(split.validation), len(split.test)
        (8, 1, 1)
    """
    users = _long_enough(sequences, min_length, lowest=2)
    order = np.random.default_rng(seed).permutation(users)
    params = {"ratios": [float(ratio) for ratio in ratios], "seed": seed}
    return _divide_users("user_ratio", sequences, order, ratios, min_length, params)


def temporal_ratio(sequences: Sequences, ratios: Sequence[float] = (0.8, 0.1, 0.1), min_length: int = 2) -> Split:
    """Users are ordered by the time of their last interaction: the earliest train, the latest test.

    Targets and histories are as in `user_ratio`. Users with equal times keep their order.

    Args:
        sequences: The full sequences, with timestamps.
        ratios: Shares of training, validation and test users; they sum to 1.
        min_length: Fewest interactions (2 or more) of a user that may be held out; shorter users train.

    Returns:
        The split; training users keep their whole sequences.

    Raises:
        ValueError: If there are no timestamps, the ratios do not fit, or a part would be empty.
    """
    timestamps = _require_timestamps(sequences, "temporal_ratio")
    users = _long_enough(sequences, min_length, lowest=2)
    order = users[np.argsort(timestamps[sequences.offsets[users + 1] - 1], kind="stable")]
    params = {"ratios": [float(ratio) for ratio in ratios]}
    return _divide_users("temporal_ratio", sequences, order, ratios, min_length, params)


def global_time(
    sequences: Sequences,
    validation_time: int | None = None,
    test_time: int | None = None,
    quantiles: tuple[float, float] = (0.8, 0.9),
) -> Split:
    """One point in time for everybody: what came before trains, each user's first later interaction is a target.

    The only split here in which nothing is learned from other users' future. A target is the user's first interaction
    inside the window, its history everything the user did before it. Users without any earlier interaction
    have no history and are counted in `params`, not evaluated.

    Args:
        sequences: The full sequences, with timestamps.
        validation_time: Unix seconds; validation covers `validation_time <= t < test_time`.
        test_time: Unix seconds; test covers `t >= test_time`.
        quantiles: Shares of all interactions before the two times, used where a time is not given.

    Returns:
        The split; train holds only users with an interaction before `validation_time`.

    Raises:
        ValueError: If there are no timestamps, the times are not in order, or a part would be empty.
    """
    timestamps = _require_timestamps(sequences, "global_time")
    lower, upper = quantiles
    if not 0 < lower < upper < 1:
        raise ValueError(f"quantiles={quantiles!r}: need two rising shares between 0 and 1, such as (0.8, 0.9).")
    by_quantile = np.quantile(timestamps, quantiles, method="higher").tolist()
    validation_time = by_quantile[0] if validation_time is None else validation_time
    test_time = by_quantile[1] if test_time is None else test_time
    if validation_time >= test_time:
        raise ValueError(
            f"validation_time {validation_time} is not before test_time {test_time}: give two times, or quantiles "
            "further apart."
        )
    start, end = sequences.offsets[:-1], sequences.offsets[1:]
    # Times rise inside a user, so the number of earlier interactions is also the position of the first later one.
    user_of = np.repeat(np.arange(len(sequences)), sequences.lengths)
    before_validation, before_test = (
        start + np.bincount(user_of[timestamps < time], minlength=len(sequences))
        for time in (validation_time, test_time)
    )
    parts, cold = [], []
    for first, stop in ((before_validation, before_test), (before_test, end)):
        active = first < stop
        has_history = first > start
        users = np.flatnonzero(active & has_history)
        cold.append(int(np.sum(active & ~has_history)))
        parts.append(EvaluationSet.before(sequences, users, first[users]))
    trained = np.flatnonzero(before_validation > start)
    params = {
        "validation_time": int(validation_time),
        "test_time": int(test_time),
        "validation_users_without_history": cold[0],
        "test_users_without_history": cold[1],
    }
    train = sequences.truncated(trained, before_validation[trained])
    for name, part in (("training", train), ("validation", parts[0]), ("test", parts[1])):
        if not len(part):
            raise ValueError(f"the {name} part is empty with {params}: move the times inside the data's range.")
    return Split("global_time", train, parts[0], parts[1], params)


SPLITS: dict[str, Callable[..., Split]] = {
    function.__name__: function for function in (leave_one_out, user_ratio, temporal_ratio, global_time)
}


def make_split(name: str, sequences: Sequences, **params: Any) -> Split:
    """Splits by name.

    Args:
        name: One of `leave_one_out`, `user_ratio`, `temporal_ratio`, `global_time`.
        sequences: The full sequences.
        **params: Arguments of that function.

    Returns:
        The split.

    Raises:
        ValueError: If the name is unknown, or as the function says.

    Example:
        >>> import numpy as np, pyarrow as pa
        >>> from hf_seqrec.data import Sequences, make_split
        >>> sequences = Sequences(np.array([3, 1, 2]), np.array([0, 3]), None, pa.array(["ann"]))
        >>> make_split("leave_one_out", sequences, min_length=3).test.target.tolist()
        [2]
    """
    if name not in SPLITS:
        raise ValueError(f"split {name!r} is unknown: choose {', '.join(SPLITS)}.")
    return SPLITS[name](sequences, **params)


def _check_min_length(min_length: int, lowest: int) -> None:
    if min_length < lowest:
        raise ValueError(f"min_length={min_length} leaves no history for a target: need {lowest} or more.")


def _long_enough(sequences: Sequences, min_length: int, lowest: int = 3) -> np.ndarray:
    _check_min_length(min_length, lowest)
    users = np.flatnonzero(sequences.lengths >= min_length)
    if not len(users):
        raise ValueError(
            f"no user has {min_length} interactions (longest sequence: {sequences.lengths.max(initial=0)}): "
            "nothing to evaluate. Use more data or filter less."
        )
    return users


def _require_timestamps(sequences: Sequences, name: str) -> np.ndarray:
    if sequences.timestamps is None:
        raise ValueError(
            f"{name} needs timestamps, but this data only has the order inside each user: "
            "use leave_one_out or user_ratio."
        )
    return sequences.timestamps


def _divide_users(
    name: str,
    sequences: Sequences,
    order: np.ndarray,
    ratios: Sequence[float],
    min_length: int,
    params: dict[str, Any],
) -> Split:
    if len(ratios) != 3 or min(ratios) <= 0 or abs(sum(ratios) - 1) > 1e-6:
        raise ValueError(
            f"ratios={tuple(ratios)!r}: need three positive shares that sum to 1, such as (0.8, 0.1, 0.1)."
        )
    first, second = np.rint(np.cumsum(ratios)[:2] * len(order)).astype(int)
    if not 0 < first < second < len(order):
        raise ValueError(f"{len(order)} user(s) are too few for ratios {tuple(ratios)}: a part would be empty.")
    held_out = np.zeros(len(sequences), dtype=bool)
    held_out[order[first:]] = True
    # Parts list their users in the order of the data, so that a part depends on who is in it, not on how it was drawn.
    validation, test = np.sort(order[first:second]), np.sort(order[second:])
    return Split(
        name=name,
        train=sequences.subset(~held_out),
        validation=EvaluationSet.before(sequences, validation, sequences.offsets[validation + 1] - 1),
        test=EvaluationSet.before(sequences, test, sequences.offsets[test + 1] - 1),
        params={**params, "min_length": min_length, "users_too_short": len(sequences) - len(order)},
    )
