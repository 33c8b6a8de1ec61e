"""From a model to ranks and metrics, by matrix products and comparisons: no sorting, nothing larger than batch × item chunk."""

import math
import time
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import nn

from hf_seqrec.data import Candidates, EvaluationSet
from hf_seqrec.data.sequences import flat_positions
from hf_seqrec.metrics import coverage, popularity_bias, random_floor, ranking_metrics, ranking_scores

from .protocol import Protocol


if TYPE_CHECKING:
    from accelerate import Accelerator


MAX_ITEMS = 2**23  # above, half ranks are no longer exact in float32
SMALLEST_PRODUCT = (
    16  # rows; below, matrix products round differently from column to column, so equal items would not tie
)


@dataclass(frozen=True, eq=False)
class EvaluationResult:
    """What an evaluation found, in row order of the evaluation set.

    Attributes:
        protocol: What the values mean.
        metrics: Mean of every metric over the rows, `{"ndcg@10": …}`.
        ranks: (num_rows,) float32, 0-based, ties averaged.
        evaluation_set: The rows that were evaluated.
        num_items: Size of the catalogue.
        targets_seen: Number of rows whose target is in their own history; with `exclude_seen` these are misses.
        seconds: Wall time of the evaluation.
        users_per_second: Rows per second of wall time.
        recommended: (num_rows, largest cut-off) item_index of the best items, best first; only with `beyond_accuracy`.
    """

    protocol: Protocol
    metrics: dict[str, float]
    ranks: NDArray[np.float32]
    evaluation_set: EvaluationSet
    num_items: int
    targets_seen: int
    seconds: float
    users_per_second: float
    recommended: NDArray[np.int64] | None = None

    @cached_property
    def intervals(self) -> dict[str, tuple[float, float]]:
        """Bootstrap 95 % interval of every ranking metric, resampling users, `{"ndcg@10": (low, high)}`."""
        scores = ranking_scores(self.ranks, self.protocol.cutoffs, suffix=self.protocol.suffix)
        return bootstrap_intervals(scores, self.evaluation_set.user)

    @cached_property
    def num_ranked(self) -> NDArray[np.int64]:
        """(num_rows,) number of items each row's target was ranked among, itself included."""
        if self.protocol.num_negatives is not None:
            return np.full(len(self.ranks), 1 + self.protocol.num_negatives)
        counts = np.full(len(self.ranks), self.num_items)
        if self.protocol.exclude_seen:
            for rows in self.evaluation_set.chunks():
                pairs = _sorted_pairs(self.evaluation_set, rows, self.num_items)
                counts[rows] -= np.bincount(pairs // (self.num_items + 1), minlength=rows.stop - rows.start)
            counts += self.evaluation_set.repeats_history  # the target of such a row is among the excluded
        return counts

    @cached_property
    def floor(self) -> dict[str, float]:
        """Expected value of every ranking metric for a random order of the same items, which misses seen targets too."""
        floor = random_floor(self.num_ranked, self.protocol.cutoffs, suffix=self.protocol.suffix)
        if not (self.protocol.exclude_seen and self.targets_seen):
            return floor
        can_hit = ~self.evaluation_set.repeats_history
        if not can_hit.any():
            return dict.fromkeys(floor, 0.0)
        floor = random_floor(self.num_ranked[can_hit], self.protocol.cutoffs, suffix=self.protocol.suffix)
        return {name: value * float(can_hit.mean()) for name, value in floor.items()}

    def __str__(self) -> str:
        lines = [self.protocol.describe()]
        for name, value in self.metrics.items():
            low, high = self.intervals.get(name, (None, None))
            interval = "" if low is None else f"  [{low:.4f}, {high:.4f}]  random {self.floor[name]:.4f}"
            lines.append(f"{name:<24}{value:.4f}{interval}")
        return "\n".join(lines)


def _sorted_pairs(evaluation_set: EvaluationSet, rows: slice, num_items: int) -> NDArray[np.int64]:
    """The distinct items in the histories of `rows`, as sorted numbers `(row - rows.start) * (num_items + 1) + item_index`."""
    start, stop = evaluation_set.start[rows], evaluation_set.stop[rows]
    row = np.repeat(np.arange(rows.stop - rows.start), stop - start)
    pairs = np.sort(row * (num_items + 1) + evaluation_set.item_index[flat_positions(start, stop)])
    return pairs[np.append(True, pairs[1:] != pairs[:-1])]  # many times faster than `np.unique`


def bootstrap_intervals(
    scores: dict[str, NDArray[np.float64]],
    user: ArrayLike,
    confidence: float = 0.95,
    num_resamples: int = 2000,
    seed: int = 0,
) -> dict[str, tuple[float, float]]:
    """Percentile bootstrap intervals of means over rows, resampling users with all their rows.

    Users with the same values are interchangeable, so one multinomial draw over the distinct values replaces drawing every user:
    exact, and as fast for a million users as for a thousand.

    Args:
        scores: (num_rows,) values of each metric, as `ranking_scores` gives them.
        user: (num_rows,) user of each row.
        confidence: Probability mass of the interval.
        num_resamples: Number of bootstrap replicates.
        seed: Seed of the replicates.

    Returns:
        `{name: (low, high)}`.

    Example:
        >>> import numpy as np
        >>> low, high = bootstrap_intervals({"hr@1": np.array([0.0, 1.0] * 50)}, user=range(100))["hr@1"]
        >>> 0.35 < low < 0.45 < 0.55 < high < 0.65
        True
    """
    _, row_user = np.unique(np.asarray(user), return_inverse=True)
    rows_of_user = np.bincount(row_user)
    sums = [np.bincount(row_user, weights=values) for values in scores.values()]
    distinct, how_many = np.unique(np.column_stack([*sums, rows_of_user]), axis=0, return_counts=True)
    rng = np.random.default_rng(seed)
    num_users = len(rows_of_user)
    block = max(1, 2**24 // len(distinct))
    means = []
    for begin in range(0, num_resamples, block):
        draws = rng.multinomial(num_users, how_many / num_users, size=min(block, num_resamples - begin)) @ distinct
        means.append(draws[:, :-1] / draws[:, -1:])
    tail = (1.0 - confidence) / 2.0
    low, high = np.quantile(np.concatenate(means), [tail, 1.0 - tail], axis=0)
    return {name: (float(low[i]), float(high[i])) for i, name in enumerate(scores)}


class RankingEvaluator:
    """Ranks the target of every row of an evaluation set with any recommender, under one protocol.

    A model is called as `model(input_ids)` with `input_ids` (batch, length) of item_index, left-padded with 0. If it says
    `is_dot_product`, its `user_embeddings` (batch, dim) meet `item_representations()` (num_items + 1, dim), computed once per
    evaluation, plus `item_bias` (num_items + 1,) if it has one, in chunks of items. Otherwise `model.score(input_ids, candidates)`
    gives (batch, num_items + 1) or (batch, num_candidates). A model that says `needs_timestamps` is also given `timestamps`
    (batch, length), int64 Unix seconds of the items in `input_ids`, 0 on the padding.

    Args:
        evaluation_set: Histories and targets.
        num_items: Size of the catalogue; item_index run from 1 to it.
        protocol: What is measured.
        candidates: From `draw_candidates`, or (num_rows, 1 + num_negatives) item_index with the target in column 0; needed exactly
            for a sampled protocol.
        batch_size: Rows per call of the model, by default 64 on a CPU, where small batches stay in its cache, and 256 elsewhere. Rows
            are sorted by length, so a batch holds little padding.
        max_length: Number of most recent history items the model sees; by default what its config says (`max_length` or
            `max_position_embeddings`), else all. Seen items are excluded by the full history.
        item_chunk: Most items scored at once by a dot product.
        progress: Whether to show a progress bar.
        beyond_accuracy: Whether to also keep the best items of each row, and report `coverage@k` (and with `item_popularity`
            `popularity_bias@k` and `popularity_rank@k`). Full ranking only.
        item_popularity: (num_items + 1,) training interactions per item_index.
        accelerator: Shares the rows out over processes; every process returns the whole result.

    Raises:
        ValueError: If histories are empty, indices lie outside the catalogue, or candidates do not fit the protocol. When called:
            if a score is NaN, naming the row and its user; if the model needs timestamps and only the order is known.

    Example:
        >>> import numpy as np, pyarrow as pa, torch
        >>> from hf_seqrec.data import Sequences, leave_one_out
        >>> class Oldest(torch.nn.Module):
        ...     def score(self, input_ids, candidates=None):
        ...         return -torch.arange(6.0).repeat(len(input_ids), 1)
        >>> sequences = Sequences(np.array([1, 2, 3, 3, 2, 1]), np.array([0, 3, 6]), None, pa.array(["ann", "bob"]))
        >>> test = leave_one_out(sequences).test
        >>> RankingEvaluator(test, num_items=5, protocol=Protocol(cutoffs=[1]))(Oldest()).metrics
        {'hr@1': 1.0, 'ndcg@1': 1.0, 'mrr@1': 1.0}
    """

    def __init__(
        self,
        evaluation_set: EvaluationSet,
        num_items: int,
        protocol: Protocol,
        candidates: Candidates | ArrayLike | None = None,
        batch_size: int | None = None,
        max_length: int | None = None,
        item_chunk: int = 65536,
        progress: bool = False,
        beyond_accuracy: bool = False,
        item_popularity: ArrayLike | None = None,
        accelerator: "Accelerator | None" = None,
    ) -> None:
        if not 1 <= num_items < MAX_ITEMS:
            raise ValueError(f"`num_items` must be in 1 … {MAX_ITEMS - 1}, got {num_items}.")
        if max(protocol.cutoffs) > num_items:
            raise ValueError(
                f"A cut-off of {max(protocol.cutoffs)} needs as many items, the catalogue has {num_items}."
            )
        for name, value in (("batch_size", batch_size), ("item_chunk", item_chunk), ("max_length", max_length)):
            if value is not None and value < 1:
                raise ValueError(f"`{name}` must be at least 1, got {value}.")
        self.evaluation_set = evaluation_set
        self.num_items = num_items
        self.protocol = protocol
        self.batch_size = batch_size
        self.max_length = max_length
        self.item_chunk = item_chunk
        self.progress = progress
        self.accelerator = accelerator
        self.beyond_accuracy = beyond_accuracy
        self.item_popularity = item_popularity

        self._items, self._start, self._stop = evaluation_set.item_index, evaluation_set.start, evaluation_set.stop
        self._target = evaluation_set.target.astype(np.int64)
        self._check_rows()
        self._target_seen = evaluation_set.repeats_history
        self._candidates = self._check_candidates(candidates)
        if beyond_accuracy and self._candidates is not None:
            raise ValueError("`beyond_accuracy` describes lists from the whole catalogue; use candidates='full'.")

    def __call__(self, model: nn.Module) -> EvaluationResult:
        """Evaluate a model; it is set to evaluation mode meanwhile, and left as it was.

        Args:
            model: A recommender.

        Returns:
            Metrics, ranks and timing.
        """
        begin = time.perf_counter()
        modes = [
            (module, module.training) for module in model.modules()
        ]  # frozen parts may be in another mode than the rest
        model.eval()
        try:
            with torch.inference_mode():
                ranks, recommended = self._rank_all(model)
        finally:
            for module, training in modes:
                module.training = training
        if self.protocol.exclude_seen:
            ranks[self._target_seen] = self._num_places
        metrics = ranking_metrics(ranks, self.protocol.cutoffs, suffix=self.protocol.suffix)
        if recommended is not None:
            metrics |= self._beyond_accuracy(recommended)
        seconds = time.perf_counter() - begin
        return EvaluationResult(
            protocol=self.protocol,
            metrics=metrics,
            ranks=ranks,
            evaluation_set=self.evaluation_set,
            num_items=self.num_items,
            targets_seen=int(self._target_seen.sum()),
            seconds=seconds,
            users_per_second=len(ranks) / seconds,
            recommended=recommended,
        )

    # What is known before any model is seen -----------------------------------------------------------------------------

    def _check_rows(self) -> None:
        if not len(self._target):
            raise ValueError("The evaluation set has no row; nothing to evaluate.")
        self._refuse_rows(self._stop == self._start, "the history is empty; leave such rows out")
        wrong = (self._target < 1) | (self._target > self.num_items)
        self._refuse_rows(wrong, f"the target lies outside item_index 1 … {self.num_items}")
        lowest, highest = self._items.min(), self._items.max()
        if lowest < 1 or highest > self.num_items:
            raise ValueError(f"Histories must hold item_index 1 … {self.num_items}, got {lowest} … {highest}.")

    def _check_candidates(self, candidates: Candidates | ArrayLike | None) -> NDArray[np.int64] | None:
        wanted = self.protocol.num_negatives
        if wanted is None:
            if candidates is not None:
                raise ValueError(
                    "`candidates` were given for full ranking; use Protocol(candidates='sampled…') or none."
                )
            self._num_places = self.num_items
            return None
        if candidates is None:
            raise ValueError(
                f"Protocol {self.protocol.candidates!r} needs `candidates`; make them with `draw_candidates`."
            )
        table = np.asarray(candidates.items if isinstance(candidates, Candidates) else candidates).astype(np.int64)
        if table.shape != (len(self._target), 1 + wanted):
            raise ValueError(
                f"`candidates` must have shape ({len(self._target)}, {1 + wanted}) for {self.protocol.candidates!r}, got {table.shape}."
            )
        if table.min() < 1 or table.max() > self.num_items:
            raise ValueError(
                f"`candidates` must be item_index in 1 … {self.num_items}, got {table.min()} … {table.max()}."
            )
        self._refuse_rows(table[:, 0] != self._target, "column 0 of `candidates` is not the target")
        ordered = np.sort(table, axis=1)
        self._refuse_rows((ordered[:, 1:] == ordered[:, :-1]).any(axis=1), "`candidates` repeat an item")
        if self.protocol.exclude_seen:
            hit = np.zeros(len(table), dtype=bool)
            for rows in self.evaluation_set.chunks():
                history = _sorted_pairs(self.evaluation_set, rows, self.num_items)
                negatives = np.arange(rows.stop - rows.start)[:, None] * (self.num_items + 1) + table[rows, 1:]
                both = np.sort(np.concatenate([history, negatives.ravel()]))
                hit[rows.start + both[1:][both[1:] == both[:-1]] // (self.num_items + 1)] = True
            self._refuse_rows(hit, "negative `candidates` hit the history, which `exclude_seen` forbids")
        self._num_places = 1 + wanted
        return table

    def _refuse_rows(self, wrong: NDArray[np.bool_], why: str) -> None:
        rows = np.flatnonzero(wrong)
        if len(rows):
            raise ValueError(f"Row {rows[0]} ({self._user_of(rows[0])}): {why} ({len(rows)} rows in all).")

    def _user_of(self, row: int) -> str:
        return f"user {self.evaluation_set.sequences.user_ids[int(self.evaluation_set.user[row])].as_py()!r}"

    # The rows of a batch ------------------------------------------------------------------------------------------------

    def _histories(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Items of the full histories of `rows`, one after another, and the position in `rows` each belongs to."""
        start, stop = self._start[rows], self._stop[rows]
        items = self._items[flat_positions(start, stop)].astype(np.int64)
        return items, np.repeat(np.arange(len(rows)), stop - start)

    def _left_padded(self, values: NDArray, rows: NDArray[np.int64], max_length: int | None) -> torch.Tensor:
        """The most recent `values` (one per item of the flat sequences) of each row, (rows, longest) int64."""
        stop = self._stop[rows]
        start = self._start[rows] if max_length is None else np.maximum(self._start[rows], stop - max_length)
        width = int((stop - start).max())
        column = np.arange(width) - (width - (stop - start))[:, None]  # negative on the padding at the left
        return torch.from_numpy(
            np.where(column >= 0, values[np.maximum(start[:, None] + column, 0)], 0).astype(np.int64)
        )

    def _batches(self, max_length: int | None, batch_size: int) -> list[NDArray[np.int64]]:
        lengths = self._stop - self._start
        order = np.argsort(lengths if max_length is None else np.minimum(lengths, max_length), kind="stable")[::-1]
        batches = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
        if self.accelerator is not None:
            batches = batches[self.accelerator.process_index :: self.accelerator.num_processes]
        return batches

    # Ranks --------------------------------------------------------------------------------------------------------------

    def _rank_all(self, model: nn.Module) -> tuple[NDArray[np.float32], NDArray[np.int64] | None]:
        device = next((tensor.device for tensor in [*model.parameters(), *model.buffers()]), torch.device("cpu"))
        inner = model if self.accelerator is None else self.accelerator.unwrap_model(model)
        batch_size = self.batch_size or (64 if device.type == "cpu" else 256)
        kind = _DotProduct if getattr(inner, "is_dot_product", False) else _Score
        scorer = kind(inner, self, batch_size)
        max_length = self.max_length or config_length(inner)
        times = self._timestamps(inner)
        shared = self.accelerator if self.accelerator is not None and self.accelerator.num_processes > 1 else None
        ranks = torch.zeros(len(self._target), device=device)
        width = max(self.protocol.cutoffs) if self.beyond_accuracy else 0
        recommended = torch.zeros((len(ranks), width), dtype=torch.int64, device=device)
        batches = self._batches(max_length, batch_size)
        if self.progress:
            from tqdm.auto import tqdm

            main = self.accelerator is None or self.accelerator.is_main_process
            batches = tqdm(batches, desc=f"Evaluating on {self.protocol.part}", unit="batch", disable=not main)
        for rows in batches:
            index = torch.from_numpy(rows.copy()).to(device)
            ids = self._left_padded(self._items, rows, max_length).to(device)
            extra = {} if times is None else {"timestamps": self._left_padded(times, rows, max_length).to(device)}
            target = torch.from_numpy(self._target[rows]).to(device)
            if self._candidates is not None:
                candidates = torch.from_numpy(self._candidates[rows]).to(device)
                places = scorer.rank_candidates(ids, candidates, **extra)
            else:
                places, best = scorer.rank(ids, target, self._seen(rows, device), width, **extra)
                if best is not None:
                    recommended[index] = best
            if shared is None:  # else the other processes would wait for ever; they all see the NaN after the exchange
                self._refuse_nan(places.isnan().cpu().numpy(), rows)
            ranks[index] = places
        if shared is not None:
            ranks = shared.reduce(ranks, "sum")  # every row is zero on all processes but one
            recommended = shared.reduce(recommended, "sum")
        values = ranks.cpu().numpy()
        self._refuse_nan(np.isnan(values), np.arange(len(values)))
        return values, recommended.cpu().numpy() if width else None

    def _timestamps(self, model: nn.Module) -> NDArray[np.int64] | None:
        """Times of the flat sequences, for a model that asks for them."""
        if not getattr(model, "needs_timestamps", False):
            return None
        times = self.evaluation_set.sequences.timestamps
        if times is None:
            raise ValueError(
                "the model's prompts show dates and need timestamps, of this data set only the order is known: build the model with "
                "`dates=False`."
            )
        return times

    def _refuse_nan(self, is_nan: NDArray[np.bool_], rows: NDArray[np.int64]) -> None:
        if is_nan.any():
            row = int(rows[is_nan].min())
            raise ValueError(
                f"The model scored row {row} ({self._user_of(row)}) with NaN; {int(is_nan.sum())} of {len(rows)} rows looked at are "
                "affected. A NaN has no rank: check the model's weights, learning rate and precision."
            )

    def _seen(self, rows: NDArray[np.int64], device: torch.device) -> tuple[torch.Tensor, torch.Tensor] | None:
        """(row, item_index) of everything that may not be recommended; where that is the target, its rank is set afterwards."""
        if not self.protocol.exclude_seen:
            return None
        items, row = self._histories(rows)
        return torch.from_numpy(row).to(device), torch.from_numpy(items).to(device)

    def _beyond_accuracy(self, recommended: NDArray[np.int64]) -> dict[str, float]:
        metrics = {}
        lengths = self._stop - self._start
        history = self._items[flat_positions(self._start, self._stop)]
        for k in self.protocol.cutoffs:
            metrics[f"coverage@{k}"] = coverage(recommended[:, :k], self.num_items)
            if self.item_popularity is not None:
                bias = popularity_bias(
                    recommended[:, :k], self.item_popularity, history, np.concatenate([[0], np.cumsum(lengths)])
                )
                metrics |= {f"{name}@{k}": value for name, value in bias.items()}
        return metrics


class _Score:
    """Ranks with a model that only has `score`."""

    def __init__(self, model: Any, evaluator: RankingEvaluator, batch_size: int) -> None:
        self.model, self.num_items = model, evaluator.num_items

    def rank(self, ids, target, seen, num_best, **extra):
        # A copy: the ranks are counted in place, and a model may return a buffer of its own.
        scores = _finite(self.model.score(ids, **extra).float().clone())
        _check_shape(scores, (len(ids), self.num_items + 1), "score(input_ids)")
        own = scores.gather(1, target[:, None])
        _exclude(scores, seen, 0)
        best = _best_items(*scores.topk(num_best)) if num_best else None
        return _num_better(scores, own).add_(self.num_items).div_(2), best

    def rank_candidates(self, ids, candidates, **extra):
        scores = _finite(self.model.score(ids, candidates, **extra).float().clone())
        _check_shape(scores, tuple(candidates.shape), "score(input_ids, candidates)")
        return _num_better(scores, scores[:, :1].clone()).add_(candidates.shape[1] - 1).div_(2)


class _DotProduct:
    """Ranks with user vectors and an item table, in chunks of items, in buffers that are used again."""

    def __init__(self, model: Any, evaluator: RankingEvaluator, batch_size: int) -> None:
        self.model, self.num_items, self.limit = model, evaluator.num_items, evaluator.item_chunk
        num_chunks = math.ceil((self.num_items + 1) / self.limit)
        self.chunk = math.ceil((self.num_items + 1) / num_chunks)  # equal chunks: no thin last one
        self.table = model.item_representations()
        if self.table.shape[0] != self.num_items + 1:
            raise ValueError(
                f"`item_representations()` must have {self.num_items + 1} rows (padding and {self.num_items} items), got "
                f"{tuple(self.table.shape)}."
            )
        bias = getattr(model, "item_bias", None)
        self.bias = None if bias is None else bias.float()
        rows = max(batch_size, SMALLEST_PRODUCT)
        self.buffer = torch.empty(rows * self.chunk, device=self.table.device)

    def _users(self, ids, extra):
        users = self.model(ids, item_table=self.table, **extra).user_embeddings.float()
        _check_shape(users, (len(ids), self.table.shape[1]), "user_embeddings")
        return users

    def _product(self, users, items, bias, buffer=None):
        """Scores (rows, items); equal items get equal scores wherever they stand, which thin products do not promise."""
        num_rows, items = len(users), items.float().T
        if num_rows < SMALLEST_PRODUCT:
            users = torch.cat([users, users.new_zeros(SMALLEST_PRODUCT - num_rows, users.shape[1])])
        out = None if buffer is None else buffer[: len(users) * items.shape[1]].view(len(users), -1)
        scores = torch.mm(users, items, out=out) if bias is None else torch.addmm(bias, users, items, out=out)
        return scores[:num_rows]

    def _bias(self, index):
        return None if self.bias is None else self.bias[index]

    def rank(self, ids, target, seen, num_best, **extra):
        users = self._users(ids, extra)
        if self.chunk > self.num_items:
            scores = self._product(users, self.table, self.bias, self.buffer)
            own = scores.gather(1, target[:, None])
            _exclude(scores, seen, 0)
            best = _best_items(*scores.topk(num_best)) if num_best else None
            return _num_better(scores, own).add_(self.num_items).div_(2), best
        # The target's score, wanted before its chunk comes, is nearly always the same number in a smaller product. Where it is
        # not, ties would break by rounding, so the pass is repeated with the score found on the way.
        guess = self._product(users, self.table[target], self._bias(target)).diagonal()
        counted, exact, best = self._pass(users, target, guess, seen, num_best)
        if not torch.equal(guess, exact):
            counted, _, _ = self._pass(users, target, exact, seen, 0)
        return counted.add_(self.num_items).div_(2), best

    def _pass(self, users, target, target_score, seen, num_best):
        counted, exact = torch.zeros_like(target_score), torch.empty_like(target_score)
        best = target_score.new_empty(len(target), 0), target.new_empty(len(target), 0)
        for begin in range(0, self.num_items + 1, self.chunk):
            columns = slice(begin, min(begin + self.chunk, self.num_items + 1))
            scores = self._product(users, self.table[columns], self._bias(columns), self.buffer)
            here = (target >= columns.start) & (target < columns.stop)
            exact[here] = scores[here, target[here] - begin]
            _exclude(scores, seen, begin)
            if num_best:
                values, items = scores.topk(min(num_best, scores.shape[1]))
                values, items = torch.cat([best[0], values], 1), torch.cat([best[1], items + begin], 1)
                values, kept = values.topk(min(num_best, values.shape[1]))
                best = values, items.gather(1, kept)
            counted += _num_better(scores, target_score[:, None])
        return counted, exact, _best_items(*best) if num_best else None

    def rank_candidates(self, ids, candidates, **extra):
        users = self._users(ids, extra)
        num_candidates = candidates.shape[1]
        width = max(1, self.limit // self.table.shape[1])  # as much memory as a chunk of scores
        scores = users.new_empty(candidates.shape)
        for begin in range(0, num_candidates, width):
            block = candidates[:, begin : begin + width]
            items = self.table.index_select(0, block.flatten()).view(*block.shape, -1).float()
            # A sum of products, not `einsum`: it rounds alike in every column, so equal items tie.
            scores[:, begin : begin + width] = items.mul_(users[:, None]).sum(-1)
        if self.bias is not None:
            scores += self.bias[candidates]
        return _num_better(scores, scores[:, :1].clone()).add_(num_candidates - 1).div_(2)


def _num_better(scores: torch.Tensor, target_score: torch.Tensor) -> torch.Tensor:
    """Number of scores above minus number below the target's, per row, in place; NaN for a row with a NaN.

    Sums of -1, 0 and 1 are exact in float32 up to 2**24. With `n` others (excluded ones are below), #above + ½·#equal of a row is
    (this + n) / 2.
    """
    is_nan = scores.sub_(target_score).amax(dim=1).isnan()  # asked now, because the sign of NaN is 0
    return scores.sign_().sum(dim=1).masked_fill_(is_nan, torch.nan)


def _finite(scores: torch.Tensor) -> torch.Tensor:
    """Replace infinities by the largest finite values, in place, so that equal infinities tie; NaN stays."""
    limits = torch.finfo(scores.dtype)
    return scores.clamp_(limits.min, limits.max)


def _exclude(scores: torch.Tensor, seen: tuple[torch.Tensor, torch.Tensor] | None, first: int) -> None:
    """Set padding and seen items to -inf in a chunk whose first column is item_index `first`."""
    if first == 0:
        scores[:, 0] = -torch.inf
    if seen is not None:
        row, column = seen[0], seen[1] - first
        inside = (column >= 0) & (column < scores.shape[1])
        scores[row[inside], column[inside]] = -torch.inf


def _best_items(values: torch.Tensor, items: torch.Tensor) -> torch.Tensor:
    """Items of a list of best scores; 0 (padding) where fewer items are allowed than the list is long."""
    return items.masked_fill(values == -torch.inf, 0)


def _check_shape(tensor: torch.Tensor, wanted: tuple[int, ...], name: str) -> None:
    if tuple(tensor.shape) != wanted:
        raise ValueError(f"`{name}` must give shape {wanted}, got {tuple(tensor.shape)}.")


def config_length(model: nn.Module) -> int | None:
    """How many items of a history a model reads, where its configuration says so."""
    config = getattr(model, "config", None)
    return getattr(config, "max_length", None) or getattr(config, "max_position_embeddings", None)
