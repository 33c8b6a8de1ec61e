"""Filters on flat integer codes: each returns which rows to keep, so that 30 million rows never become Python objects."""

import numpy as np


# np.bincount copies its input to int64; counting a part at a time keeps that copy small.
_ROWS_PER_COUNT = 1 << 22


def k_core(user_codes: np.ndarray, item_codes: np.ndarray, user_core: int = 5, item_core: int = 5) -> np.ndarray:
    """Keeps the rows of users and items that occur often enough, repeated until nothing changes.

    Args:
        user_codes: Whole numbers from 0, one per row, shape `(n,)`.
        item_codes: Whole numbers from 0, one per row, shape `(n,)`.
        user_core: Fewest rows of a user that stays; 1 or less filters no user.
        item_core: Fewest rows of an item that stays; 1 or less filters no item.

    Returns:
        Which rows to keep, bool, shape `(n,)`; all False when no core exists.

    Raises:
        TypeError: If codes are not whole numbers.
        ValueError: If the arrays differ in length or a code is negative.

    Example:
        >>> import numpy as np
        >>> from hf_seqrec.data import k_core
        >>> k_core(np.array([0, 0, 1, 1, 2]), np.array([0, 1, 0, 1, 1]), user_core=2, item_core=2).tolist()
        [True, True, True, True, False]
    """
    _check_codes(user_codes=user_codes, item_codes=item_codes)
    keep = np.ones(len(user_codes), dtype=bool)
    user_counts, item_counts = _count(user_codes), _count(item_codes)
    while True:
        dropped = np.flatnonzero(
            keep & ((user_counts < user_core)[user_codes] | (item_counts < item_core)[item_codes])
        )
        if not len(dropped):
            return keep
        keep[dropped] = False
        user_counts -= _count(user_codes[dropped], len(user_counts))
        item_counts -= _count(item_codes[dropped], len(item_counts))


def rating_at_least(ratings: np.ndarray, minimum: float) -> np.ndarray:
    """Keeps the rows whose rating reaches a threshold.

    Args:
        ratings: One per row, shape `(n,)`.
        minimum: Lowest rating that stays.

    Returns:
        Which rows to keep, bool, shape `(n,)`.

    Raises:
        ValueError: If a rating is NaN or infinite.

    Example:
        >>> import numpy as np
        >>> from hf_seqrec.data import rating_at_least
        >>> rating_at_least(np.array([5.0, 3.0]), 4).tolist()
        [True, False]
    """
    finite = np.isfinite(ratings)
    if not finite.all():
        row = int(np.argmin(finite))
        raise ValueError(f"rating {ratings[row]} in row {row} is not a finite number: repair or drop the row first.")
    return np.asarray(ratings) >= minimum


def first_occurrences(user_codes: np.ndarray, item_codes: np.ndarray, times: np.ndarray | None = None) -> np.ndarray:
    """Keeps the first of the rows that agree in user, item and time.

    Args:
        user_codes: Whole numbers from 0, one per row, shape `(n,)`.
        item_codes: Whole numbers from 0, one per row, shape `(n,)`.
        times: Time of every row, shape `(n,)`; None to keep only the first row of each user and item at whatever time.

    Returns:
        Which rows to keep, bool, shape `(n,)`.

    Raises:
        TypeError: If codes are not whole numbers.
        ValueError: If the arrays differ in length or a code is negative.

    Example:
        >>> import numpy as np
        >>> from hf_seqrec.data import first_occurrences
        >>> first_occurrences(np.array([0, 0, 0]), np.array([7, 7, 7]), np.array([10, 10, 20])).tolist()
        [True, False, True]
    """
    _check_codes(user_codes=user_codes, item_codes=item_codes)
    if times is not None and len(times) != len(user_codes):
        raise ValueError(f"times has {len(times)} entries for {len(user_codes)} rows: need one each.")
    keep = np.ones(len(user_codes), dtype=bool)
    if not len(keep):
        return keep
    pairs = user_codes * (np.int64(item_codes.max()) + 1) + item_codes
    order = np.argsort(pairs, kind="stable")
    again = pairs[order[1:]] == pairs[order[:-1]]
    if times is not None:
        # Only pairs that occur more than once need their times compared: in real data these are few.
        several = np.append(again, False) | np.insert(again, 0, False)
        order = order[several]
        order = order[np.lexsort((times[order], pairs[order]))]
        again = (pairs[order[1:]] == pairs[order[:-1]]) & (times[order[1:]] == times[order[:-1]])
    keep[order[1:][again]] = False
    return keep


def compact_codes(codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Renumbers codes 0, 1, 2, … without gaps, in their old order; for use after a filter.

    Args:
        codes: Whole numbers from 0, shape `(n,)`.

    Returns:
        The new codes, int32, shape `(n,)`, and the old code of each new one, int64, shape `(num_distinct,)`.

    Raises:
        TypeError: If codes are not whole numbers.
        ValueError: If a code is negative.

    Example:
        >>> import numpy as np
        >>> from hf_seqrec.data import compact_codes
        >>> new, old = compact_codes(np.array([4, 9, 4]))
        >>> new.tolist(), old.tolist()
        ([0, 1, 0], [4, 9])
    """
    _check_codes(codes=codes)
    used = _count(codes) > 0
    numbers = np.cumsum(used, dtype=np.int32) - np.int32(1)
    return numbers[codes], np.flatnonzero(used)


def _check_codes(**arrays: np.ndarray) -> None:
    for name, codes in arrays.items():
        if not np.issubdtype(codes.dtype, np.integer):
            raise TypeError(f"{name} has dtype {codes.dtype}, need whole numbers: encode the ids first.")
        if len(codes) and codes.min() < 0:
            raise ValueError(f"{name} holds {codes.min()}, need 0 or more: -1 often marks an id that was not found.")
    if len({len(codes) for codes in arrays.values()}) > 1:
        sizes = ", ".join(f"{name} {len(codes)}" for name, codes in arrays.items())
        raise ValueError(f"arrays differ in length ({sizes}): need one entry per row in each.")


def _count(codes: np.ndarray, size: int = 0) -> np.ndarray:
    counts = np.zeros(max(size, int(codes.max(initial=-1)) + 1), dtype=np.int64)
    for start in range(0, len(codes), _ROWS_PER_COUNT):
        counts += np.bincount(codes[start : start + _ROWS_PER_COUNT], minlength=len(counts))
    return counts
