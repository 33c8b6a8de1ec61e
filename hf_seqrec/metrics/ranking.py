"""Ranking metrics as plain functions of ranks.

A rank is the number of allowed items placed before the target: 0 is the best. A target that ties with others has the middle of
the places it could take, so ranks move in steps of one half, and it is within the first `k` places only if that middle is
(`rank <= k - 1`). Nothing here sorts scores or knows a model; `hf_seqrec.evaluation.RankingEvaluator` makes the ranks.

One target per row is the common case. Several targets per row are given as flat ranks with `offsets`: the targets of row `i` are
`ranks[offsets[i]:offsets[i + 1]]`, each ranked among all allowed items, the other targets included.
"""

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray


SINGLE_TARGET_METRICS = ("hr", "ndcg", "mrr")
"""Metrics reported for one target per row; there recall equals hr, precision is hr / k, and map equals mrr."""

METRICS = ("hr", "ndcg", "mrr", "recall", "precision", "map")
"""All ranking metrics, reported for several targets per row."""


class _Places:
    """The targets of each row, best first, with what the metrics need of them.

    `place` (num_targets,) is the rank, but never better than the number of targets of the same row before it: tied targets cannot
    all stand on the middle place, and without this `precision` and `ndcg` of tied targets could exceed 1.
    """

    def __init__(self, ranks: ArrayLike, offsets: ArrayLike | None) -> None:
        flat: NDArray[np.float64] = np.asarray(ranks, dtype=np.float64)
        if flat.ndim != 1 or len(flat) == 0:
            raise ValueError(f"`ranks` must be a non-empty one-dimensional array, got shape {flat.shape}.")
        wrong = np.flatnonzero(~(flat >= 0))
        if len(wrong):
            raise ValueError(
                f"`ranks` must be 0 or more (0 is the best), got {flat[wrong[0]]} at position {wrong[0]}."
            )
        if offsets is None:
            self.place: NDArray[np.float64] = flat
            self.start, self.count = np.arange(len(flat)), np.ones(1)
            self.order: NDArray = self.count  # broadcasts: every row has one target, the first of its row
            return
        bounds = np.asarray(offsets, dtype=np.int64)
        if bounds.ndim != 1 or len(bounds) < 2 or bounds[0] != 0 or bounds[-1] != len(flat):
            raise ValueError(f"`offsets` must run from 0 to the number of ranks ({len(flat)}), got {bounds}.")
        count = np.diff(bounds)
        if (count < 1).any():
            raise ValueError(f"Every row needs at least one target, row {int(np.argmin(count))} has {count.min()}.")
        row = np.repeat(np.arange(len(count)), count)
        before = np.arange(len(flat)) - np.repeat(bounds[:-1], count)  # after sorting: better targets of the same row
        self.place = np.maximum(flat[np.lexsort((flat, row))], before)
        self.start, self.count, self.order = bounds[:-1], count.astype(np.float64), before + 1.0

    def sum(self, per_target: NDArray) -> NDArray:
        """Sum a value per target (num_targets,) over the targets of each row -> (num_rows,)."""
        return np.add.reduceat(per_target, self.start)

    def within(self, k: int) -> NDArray:
        """1.0 where a target stands within the first `k` places."""
        return (self.place <= k - 1).astype(np.float64)


def _discount(place: NDArray) -> NDArray:
    return 1.0 / np.log2(place + 2.0)


def _hr(p: _Places, k: int) -> NDArray:
    return p.within(k)[p.start]


def _ndcg(p: _Places, k: int) -> NDArray:
    ideal = np.cumsum(_discount(np.arange(k, dtype=np.float64)))
    return p.sum(p.within(k) * _discount(p.place)) / ideal[np.minimum(p.count, k).astype(np.int64) - 1]


def _mrr(p: _Places, k: int) -> NDArray:
    return (p.within(k) / (p.place + 1.0))[p.start]


def _recall(p: _Places, k: int) -> NDArray:
    return p.sum(p.within(k)) / p.count


def _precision(p: _Places, k: int) -> NDArray:
    return p.sum(p.within(k)) / k


def _map(p: _Places, k: int) -> NDArray:
    return p.sum(p.within(k) * p.order / (p.place + 1.0)) / p.count


_FUNCTIONS = {"hr": _hr, "ndcg": _ndcg, "mrr": _mrr, "recall": _recall, "precision": _precision, "map": _map}


def check_cutoffs(cutoffs: Iterable[int]) -> tuple[int, ...]:
    """Return cut-offs as a sorted tuple without duplicates; each must be an integer of at least 1.

    Raises:
        ValueError: If there is none, or one is not an integer of at least 1.
    """
    values = tuple(cutoffs)
    if not values or any(isinstance(k, bool) or int(k) != k or k < 1 for k in values):
        raise ValueError(f"Cut-offs must be integers of at least 1, such as (5, 10, 20), got {values}.")
    return tuple(sorted({int(k) for k in values}))


def ranking_scores(
    ranks: ArrayLike,
    cutoffs: Iterable[int] = (5, 10, 20),
    offsets: ArrayLike | None = None,
    metrics: Sequence[str] | None = None,
    suffix: str = "",
) -> dict[str, NDArray[np.float64]]:
    """Compute every metric of every row, before averaging: what intervals and paired tests work on.

    Args:
        ranks: (num_targets,) 0-based ranks, ties as halves; `inf` is a target that can never be recommended.
        cutoffs: List lengths `k`.
        offsets: (num_rows + 1,) bounds of each row's targets, or `None` for one target per row.
        metrics: Names from `METRICS`; by default those of `SINGLE_TARGET_METRICS`, or all with `offsets`.
        suffix: Appended to every name, such as `"/sampled99"`.

    Returns:
        `{"ndcg@10": (num_rows,) float64, …}`.

    Raises:
        ValueError: If ranks are negative, NaN or empty, a row has no target, or a name or cut-off is unknown.

    Example:
        >>> {name: values.tolist() for name, values in ranking_scores([0, 1, 30], cutoffs=[10], metrics=["hr", "mrr"]).items()}
        {'hr@10': [1.0, 1.0, 0.0], 'mrr@10': [1.0, 0.5, 0.0]}
    """
    if metrics is None:
        metrics = SINGLE_TARGET_METRICS if offsets is None else METRICS
    unknown = [name for name in metrics if name not in _FUNCTIONS]
    if unknown:
        raise ValueError(f"Unknown metrics {unknown}; choose from {list(METRICS)}.")
    places = _Places(ranks, offsets)
    return {f"{name}@{k}{suffix}": _FUNCTIONS[name](places, k) for k in check_cutoffs(cutoffs) for name in metrics}


def ranking_metrics(
    ranks: ArrayLike,
    cutoffs: Iterable[int] = (5, 10, 20),
    offsets: ArrayLike | None = None,
    metrics: Sequence[str] | None = None,
    suffix: str = "",
) -> dict[str, float]:
    """Average every metric over the rows. Arguments and errors are those of `ranking_scores`.

    Definitions, for a row with `n` targets at places `p` (0-based) of which the ones with `p <= k - 1` are hits: hr = any hit;
    recall = hits / n; precision = hits / k; mrr = 1 / (p + 1) of the best hit; ndcg = sum of 1 / log2(p + 2) over hits, divided by
    the same for places 0 … min(n, k) - 1; map = mean over targets of (hits up to p) / (p + 1), 0 for a target that is no hit.

    Returns:
        `{"hr@5": …, "ndcg@5": …, …}`, each in [0, 1].

    Example:
        >>> ranking_metrics([0, 2, 9, 40], cutoffs=[3, 10])
        {'hr@3': 0.5, 'ndcg@3': 0.375, 'mrr@3': 0.3333333333333333, 'hr@10': 0.75, 'ndcg@10': 0.44726620657947197, 'mrr@10': 0.35833333333333334}
    """
    scores = ranking_scores(ranks, cutoffs, offsets, metrics, suffix)
    return {name: float(values.mean()) for name, values in scores.items()}


def random_floor(
    num_ranked: int | ArrayLike, cutoffs: Iterable[int] = (5, 10, 20), suffix: str = ""
) -> dict[str, float]:
    """Expected value of each single-target metric when the order is random: what a model must beat to know anything.

    Args:
        num_ranked: Number of ranked items, the target included: one number (100 for 1 + 99 candidates), or one per row (num_rows,)
            when seen items are left out.
        cutoffs: List lengths `k`.
        suffix: Appended to every name, such as `"/sampled99"`.

    Returns:
        `{"hr@10": …, "ndcg@10": …, "mrr@10": …}`.

    Raises:
        ValueError: If a row ranks fewer than 1 item, or a cut-off is no integer of at least 1.

    Example:
        >>> random_floor(100, cutoffs=[10], suffix="/sampled99")["hr@10/sampled99"]
        0.1
    """
    sizes = np.atleast_1d(np.asarray(num_ranked, dtype=np.int64))
    if sizes.size == 0 or sizes.min() < 1:
        raise ValueError(f"`num_ranked` must be 1 or more in every row, got {sizes.min(initial=0)}.")
    floor = {}
    for k in check_cutoffs(cutoffs):
        place = np.arange(k, dtype=np.float64)
        for name, gain in (("hr", np.ones(k)), ("ndcg", _discount(place)), ("mrr", 1.0 / (place + 1.0))):
            floor[f"{name}@{k}{suffix}"] = float((np.cumsum(gain)[np.minimum(sizes, k) - 1] / sizes).mean())
    return floor


def coverage(recommended: ArrayLike, num_items: int) -> float:
    """Share of the catalogue that is recommended to anybody.

    Args:
        recommended: (num_users, k) item_index in 1 … num_items; 0 marks an empty place and is not counted.
        num_items: Size of the catalogue.

    Returns:
        Distinct recommended items divided by `num_items`, in [0, 1].

    Raises:
        ValueError: If an item_index lies outside 0 … num_items.

    Example:
        >>> coverage([[1, 2], [2, 3]], num_items=10)
        0.3
    """
    items = _checked_items(recommended, num_items, "recommended")
    return float(np.count_nonzero(np.bincount(items.ravel(), minlength=num_items + 1)[1:]) / num_items)


def popularity_bias(
    recommended: ArrayLike, item_popularity: ArrayLike, history_items: ArrayLike, history_offsets: ArrayLike
) -> dict[str, float]:
    """How much more popular the recommended items are than what the same users chose themselves.

    Args:
        recommended: (num_users, k) item_index; 0 marks an empty place and is not counted.
        item_popularity: (num_items + 1,) number of training interactions per item_index; entry 0 (padding) is ignored.
        history_items: (num_interactions,) item_index of all histories, one user after another.
        history_offsets: (num_users + 1,) bounds of each user's history.

    Returns:
        `popularity_bias`: mean over users of the mean log(1 + popularity) of their recommendations minus that of their
        history; 0 means as popular as the user's own choice, +0.69 twice as popular. `popularity_rank`: mean place of the
        recommended items in the order of popularity, 0 the most and 1 the least popular item, ties in the middle.

    Raises:
        ValueError: If shapes disagree, a history is empty, or an item_index lies outside the catalogue.

    Example:
        >>> popularity_bias([[1], [2]], [0, 7, 3, 1], history_items=[1, 2, 3], history_offsets=[0, 1, 3])["popularity_rank"]
        0.25
    """
    popularity = np.asarray(item_popularity, dtype=np.float64)
    num_items = len(popularity) - 1
    items = _checked_items(recommended, num_items, "recommended")
    history = _checked_items(history_items, num_items, "history_items")
    bounds = np.asarray(history_offsets, dtype=np.int64)
    if items.ndim != 2 or len(bounds) != len(items) + 1 or bounds[0] != 0 or bounds[-1] != len(history):
        raise ValueError(
            f"`recommended` needs shape (num_users, k) and `history_offsets` (num_users + 1,) from 0 to {len(history)}; "
            f"got {items.shape} and {bounds.shape}."
        )
    lengths = np.diff(bounds)
    if (lengths < 1).any():
        raise ValueError(f"Row {int(np.argmin(lengths))} has an empty history; leave such users out.")
    log_popularity = np.log1p(popularity)
    filled = items > 0
    num_filled = filled.sum(axis=1)
    if (num_filled < 1).any():
        raise ValueError(f"Row {int(np.argmin(num_filled))} has no recommendation; leave such users out.")
    of_lists = np.where(filled, log_popularity[items], 0.0).sum(axis=1) / num_filled
    of_histories = np.add.reduceat(log_popularity[history], bounds[:-1]) / lengths
    ordered = np.sort(popularity[1:])
    not_above = np.searchsorted(ordered, popularity, side="right")
    below = np.searchsorted(ordered, popularity, side="left")
    place = 1.0 - (below + not_above - 1) / 2.0 / max(num_items - 1, 1)
    return {
        "popularity_bias": float((of_lists - of_histories).mean()),
        "popularity_rank": float((np.where(filled, place[items], 0.0).sum(axis=1) / num_filled).mean()),
    }


def _checked_items(item_index: ArrayLike, num_items: int, name: str) -> NDArray[np.int64]:
    items = np.asarray(item_index)
    if items.size == 0 or not np.issubdtype(items.dtype, np.integer):
        raise ValueError(f"`{name}` must hold integer item_index, got {items.size} values of type {items.dtype}.")
    if items.min() < 0 or items.max() > num_items:
        raise ValueError(f"`{name}` must lie in 0 … {num_items}, got {items.min()} … {items.max()}.")
    return items.astype(np.int64)
