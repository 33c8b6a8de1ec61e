"""Does a recommender understand the order of a sequence, and for whom does it work? Tests for any recommender of the library.

The experiments of LLM-SRec (Kim et al., 2025, arXiv 2502.13909), each a measurement with intervals:

| experiment | in the paper | here |
| --- | --- | --- |
| tested on shuffled histories | §2.3.2, figure 1, table 7 | `SequenceDiagnostics.shuffled_inference` |
| cosine of user vectors before and after | §2.3.3, table 5 | its `similarity` |
| trained on shuffled sequences | §2.3.1, table 3 | `shuffle_training`, `compare_shuffled_training` |
| transition and non-transition users | §4.1.2, figure 3 | `SequenceDiagnostics.transitions` |
| warm and cold items | §4.1.3, figure 4 | `SequenceDiagnostics.popularity` |
| users by activity | – | `SequenceDiagnostics.activity` |
| other data without training | §4.1.4, table 8 | `cross_domain` |

Results are dataclasses of `diagnostic_results`: `rich.print(result)` shows a table, `result.save("a.json")` writes a record, and
`diagnostic_plots` draws them.
"""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import nn

from hf_seqrec.data import Candidates, EvaluationSet, RecommendationData, Sequences, Split
from hf_seqrec.data.sequences import flat_positions
from hf_seqrec.metrics import random_floor, ranking_scores

from .diagnostic_results import CrossDomainDiagnostic, Group, GroupDiagnostic, ShuffleDiagnostic, Similarity
from .evaluator import EvaluationResult, RankingEvaluator, bootstrap_intervals, config_length
from .figures import bucket_bounds, span_text
from .protocol import Protocol
from .record import EvaluationRecord, describe_candidates, hash_config
from .significance import Comparison, check_comparable, compare_records, randomisation_test


Shuffled = TypeVar("Shuffled", EvaluationSet, Sequences)

ITEM_GROUPS = ("never seen", "cold", "middle", "warm")
"""Names of the codes that `item_popularity_groups` gives."""


# Shuffling ------------------------------------------------------------------------------------------------------------------


def shuffle_histories(histories: Shuffled, seed: int = 0, last: int | None = None) -> Shuffled:
    """Put the items of every user's history into random order.

    Users, targets, lengths and timestamps stay: the moments at which something happened are the same, only what happened is mixed.

    Args:
        histories: An evaluation set, whose targets are untouched; or training sequences, which are shuffled as a whole.
        seed: Seed of the order; the same seed gives the same order.
        last: Shuffle only this many most recent items of each history. A model that looks at the last 10 items of a long history sees
            *other* items once the whole history is shuffled; with `last=10` it sees the same ones in another order.

    Returns:
        New histories of the same kind; the argument is not changed.

    Raises:
        TypeError: If `histories` is neither of the two.
        ValueError: If `last` is below 1, or two rows of an evaluation set share a part of one history, which could not be shuffled for
            one without the other.

    Example:
        >>> import pyarrow as pa
        >>> sequences = Sequences(np.arange(1, 9), np.array([0, 5, 8]), None, pa.array(["ann", "bob"]))
        >>> shuffled = shuffle_histories(sequences, seed=1)
        >>> [sorted(items.tolist()) for items in shuffled]
        [[1, 2, 3, 4, 5], [6, 7, 8]]
    """
    if last is not None and last < 1:
        raise ValueError(f"`last` must be at least 1, or None for whole histories, got {last}.")
    if isinstance(histories, Sequences):
        sequences, start, stop = histories, histories.offsets[:-1], histories.offsets[1:]
    elif isinstance(histories, EvaluationSet):
        sequences, start, stop = histories.sequences, histories.start, histories.stop
        order = np.argsort(start, kind="stable")
        if (stop[order][:-1] > start[order][1:]).any():
            raise ValueError(
                "two rows of the evaluation set share a part of one history: shuffle sets with one row per user, such as the parts of "
                "the library's splits, or a `subset` of the rows."
            )
    else:
        raise TypeError(f"`histories` must be an EvaluationSet or Sequences, got {type(histories).__name__}.")
    if last is not None:
        start = np.maximum(start, stop - last)
    positions = flat_positions(start, stop)
    row = np.repeat(np.arange(len(start)), stop - start)
    drawn = np.lexsort((np.random.default_rng(seed).random(len(positions)), row))  # a random order inside each row
    item_index = sequences.item_index.copy()
    item_index[positions] = item_index[positions[drawn]]
    mixed = replace(sequences, item_index=item_index)
    return mixed if isinstance(histories, Sequences) else replace(histories, sequences=mixed)


def shuffle_training(split: Split, seed: int = 0) -> Split:
    """The split with shuffled training sequences; validation and test keep their order.

    As in the paper the order is drawn once, before training, not anew in every epoch.

    Args:
        split: Any split.
        seed: Seed of the order.

    Returns:
        A split to train on as on any other. Its `params` name the seed.

    Example:
        >>> import pyarrow as pa
        >>> from hf_seqrec.data import leave_one_out
        >>> split = leave_one_out(Sequences(np.arange(1, 9), np.array([0, 8]), None, pa.array(["ann"])))
        >>> shuffled = shuffle_training(split, seed=1)
        >>> sorted(shuffled.train[0].tolist()), shuffled.test is split.test
        ([1, 2, 3, 4, 5, 6], True)
    """
    params = {**split.params, "shuffled_training_seed": seed}
    return replace(split, train=shuffle_histories(split.train, seed), params=params)


# Who belongs to which group -------------------------------------------------------------------------------------------------


def transition_scores(train: Sequences, evaluation_set: EvaluationSet) -> NDArray[np.float64]:
    """How common the steps of each history are: the mean, over its pairs of consecutive items, of the pair's count in training.

    The paper's t-score: `sum_t Count(i_t -> i_(t+1)) / (n - 1)`. Only training interactions are counted, and targets take no part.

    Args:
        train: Training sequences.
        evaluation_set: Rows whose histories are scored.

    Returns:
        (num_rows,) scores; 0 for a history of one item, which has no transition.

    Example:
        >>> import pyarrow as pa
        >>> from hf_seqrec.data import leave_one_out
        >>> items, ids = np.array([1, 2, 3, 4, 1, 2, 5, 4, 1, 6, 3, 4]), pa.array(["ann", "bob", "eve"])
        >>> sequences = Sequences(items, np.array([0, 4, 8, 12]), None, ids)
        >>> transition_scores(Sequences(items, sequences.offsets, None, ids), leave_one_out(sequences).validation).tolist()
        [2.0, 2.0, 1.0]
    """
    width = np.int64(max(train.item_index.max(initial=0), evaluation_set.item_index.max(initial=0))) + 1
    inside = flat_positions(train.offsets[:-1], np.maximum(train.offsets[1:] - 1, train.offsets[:-1]))
    known, count = np.unique(train.item_index[inside] * width + train.item_index[inside + 1], return_counts=True)
    known, count = np.append(known, width * width), np.append(count, 0)  # so that a search never runs off the end
    scores = np.zeros(len(evaluation_set))
    for rows in evaluation_set.chunks():
        start, stop = evaluation_set.start[rows], evaluation_set.stop[rows]
        steps = np.maximum(stop - start - 1, 0)
        at = flat_positions(start, start + steps)
        pair = evaluation_set.item_index[at] * width + evaluation_set.item_index[at + 1]
        place = np.searchsorted(known, pair)
        found = np.where(known[place] == pair, count[place], 0)
        total = np.bincount(np.repeat(np.arange(len(steps)), steps), weights=found, minlength=len(steps))
        scores[rows] = total / np.maximum(steps, 1)
    return scores


def transition_set(scores: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which rows belong to the transition set: the better half by score, without those that tie with the other half.

    Args:
        scores: (num_rows,) from `transition_scores`.

    Returns:
        (num_rows,) True for the transition set. Fewer than half the rows where scores tie at the border, because an arbitrary one of
        two equal users would otherwise count as more sequential.

    Raises:
        ValueError: If the set would be empty: too many rows have the same score.

    Example:
        >>> transition_set(np.array([3.0, 1.0, 1.0, 2.0])).tolist()
        [True, False, False, True]
    """
    border = np.sort(scores)[::-1][len(scores) // 2]  # the best of the worse half
    inside = scores > border
    if not inside.any():
        raise ValueError(
            f"no transition set: half of the {len(scores):,} rows or more share the highest transition score, {border:g}. The data hold "
            "too few repeated transitions to tell users apart."
        )
    return inside


def item_popularity_groups(train: Sequences, num_items: int, share: float = 0.35) -> NDArray[np.int8]:
    """Sort items by how often they occur in training.

    Args:
        train: Training sequences.
        num_items: Size of the catalogue.
        share: Share of the items seen in training that is cold (fewest interactions) and that is warm (most). Items that tie with the
            last one of a group belong to it, so groups can be larger.

    Returns:
        (num_items + 1,) codes, indices of `ITEM_GROUPS`: 0 never seen in training (and padding), 1 cold, 2 in between, 3 warm.

    Raises:
        ValueError: If `share` is not in (0, 0.5], an item lies outside the catalogue, nothing was trained on, or ties are so many
            that an item would be cold and warm.

    Example:
        >>> import pyarrow as pa
        >>> items = np.repeat([1, 2, 3, 4], [1, 2, 3, 4])
        >>> train = Sequences(items, np.array([0, 10]), None, pa.array(["ann"]))
        >>> item_popularity_groups(train, num_items=5).tolist()
        [0, 1, 2, 2, 3, 0]
    """
    if not 0 < share <= 0.5:
        raise ValueError(f"`share` must be above 0 and at most 0.5, got {share}.")
    if not train.num_interactions:
        raise ValueError("there is no training interaction, so no item is warm or cold.")
    if train.item_index.max() > num_items:
        raise ValueError(f"training holds item_index {train.item_index.max()}, the catalogue ends at {num_items}.")
    counts = np.bincount(train.item_index, minlength=num_items + 1)
    seen = np.sort(counts[counts > 0])
    size = max(1, round(share * len(seen)))
    cold, warm = seen[size - 1], seen[-size]
    if cold >= warm:
        raise ValueError(
            f"with share {share:g} an item of {cold:,} interactions would be cold and warm: the {len(seen):,} items seen in training "
            "are about equally popular. Choose a smaller `share`."
        )
    groups = np.full(num_items + 1, 2, dtype=np.int8)
    groups[counts <= cold] = 1
    groups[counts >= warm] = 3
    groups[counts == 0] = 0
    return groups


# Measuring ------------------------------------------------------------------------------------------------------------------


def compare_by_popularity(
    first: EvaluationRecord,
    second: EvaluationRecord,
    data: RecommendationData,
    train: Sequences,
    metric: str = "ndcg@10",
    share: float = 0.35,
) -> dict[str, Comparison]:
    """Compare two records over all rows, and over those whose target is rare or common in training: for whom does the second win?

    Args:
        first: The record to compare with, with its rows.
        second: The record that is hoped to be better.
        data: The data set of both.
        train: Its training sequences.
        metric: Metric with cut-off.
        share: See `item_popularity_groups`.

    Returns:
        A comparison for "all" and for each of `ITEM_GROUPS` that some target is in.

    Raises:
        ValueError: If the records are of other data, or cannot be compared.

    Example:
        >>> compare_by_popularity(sasrec, llm_srec, data, split.train)["cold"].difference  # doctest: +SKIP
        0.0163
    """
    for record in (first, second):
        if record.dataset_fingerprint != data.fingerprint:
            raise ValueError(
                f"The record of {record.model} is of {record.dataset} {record.dataset_fingerprint}, the data given are "
                f"{data.name} {data.fingerprint}."
            )
    check_comparable(first, second)
    rows, other = first.loaded_rows(), second.loaded_rows()
    group = item_popularity_groups(train, data.catalogue.num_items, share)[data.catalogue.to_index(rows["item_id"])]
    masks = {"all": group >= 0} | {name: group == code for code, name in enumerate(ITEM_GROUPS)}
    return {
        name: compare_records(replace(first, rows=rows.filter(mask)), replace(second, rows=other.filter(mask)), metric)
        for name, mask in masks.items()
        if mask.any()
    }


class SequenceDiagnostics:
    """The experiments on one recommender and one part of a split; the original histories are evaluated once for all of them.

    Args:
        model: A recommender.
        data: The data set it was made for.
        split: A split of it; groups are formed from its training part.
        part: `"validation"` or `"test"`.
        exclude_seen: Items of the history cannot be recommended.
        cutoffs: Cut-offs of the metrics.
        candidates: Sampled candidates for the rows of that part; None ranks the whole catalogue. Shuffled rows get the same ones.
        batch_size: Rows scored at once; None leaves it to the evaluator.
        name: Name to print; by default that of the model's class.
        seed: Seed the model was trained with.
        allow_other_data: Whether the model may come from other interactions over the same catalogue.
        progress: Whether to show progress bars.

    Raises:
        ValueError: If the model belongs to another catalogue or other data, or the candidates to other rows.

    Example:
        >>> from rich import print                                                               # doctest: +SKIP
        >>> diagnostics = SequenceDiagnostics(model, data, leave_one_out(data.sequences))        # doctest: +SKIP
        >>> print(diagnostics.shuffled_inference(), diagnostics.popularity())                    # doctest: +SKIP
    """

    def __init__(
        self,
        model: Any,
        data: RecommendationData,
        split: Split,
        part: str = "test",
        exclude_seen: bool = True,
        cutoffs: Sequence[int] = (5, 10, 20),
        candidates: Candidates | None = None,
        batch_size: int | None = None,
        name: str | None = None,
        seed: int | None = None,
        allow_other_data: bool = False,
        progress: bool = False,
    ) -> None:
        config = getattr(model, "config", None)
        num_items, made_for = (getattr(config, key, None) for key in ("num_items", "data_fingerprint"))
        if num_items not in (None, data.catalogue.num_items):
            raise ValueError(
                f"the model knows {num_items:,} items, {data.name} has {data.catalogue.num_items:,}: its scores would belong to other "
                "items. Diagnose it on the data it was made for; `cross_domain` evaluates on other data."
            )
        if made_for not in (None, data.fingerprint) and not allow_other_data:
            raise ValueError(
                f"the model was made for the data with fingerprint {made_for}, {data.name} has {data.fingerprint}: test items may have "
                "been trained on. Pass allow_other_data=True if you know they were not."
            )
        self.model = model
        self.data = data
        self.split = split
        self.protocol = Protocol(
            split=split.name,
            part=part,
            candidates="full" if candidates is None else f"sampled{candidates.num_negatives}",
            exclude_seen=exclude_seen,
            cutoffs=tuple(cutoffs),
        )
        self.evaluation_set: EvaluationSet = getattr(split, part)
        if candidates is not None and candidates.fingerprint != self.evaluation_set.fingerprint:
            raise ValueError(
                f"the candidates belong to the evaluation set {candidates.fingerprint}, the {part} part is "
                f"{self.evaluation_set.fingerprint}: draw them for that part."
            )
        self.candidates = candidates
        self.batch_size = batch_size
        self.name = name or type(model).__name__.removesuffix("ForSequentialRecommendation")
        self.seed = seed
        self.progress = progress

    @cached_property
    def _original(self) -> tuple[EvaluationResult, "_UserVectors"]:
        return self._evaluate(self.evaluation_set)

    @property
    def result(self) -> EvaluationResult:
        """The evaluation of the original histories."""
        return self._original[0]

    def record(self) -> EvaluationRecord:
        """The ordinary record of that evaluation."""
        return EvaluationRecord.from_result(
            self.result, self.data, self.model, self.name, self.seed, self.candidates, notes=None
        )

    def shuffled_inference(
        self, seeds: Sequence[int] = (0, 1, 2), last: int | None = None, num_resamples: int = 2000
    ) -> ShuffleDiagnostic:
        """Test on shuffled histories what was trained on the original ones (§2.3.2), and compare user vectors (§2.3.3).

        Args:
            seeds: One shuffle each; a user's value is the mean over them.
            last: Shuffle only this many most recent items, see `shuffle_histories`.
            num_resamples: Bootstrap replicates and random swaps.

        Returns:
            Differences paired by user, and the cosines of user vectors where the model has such.

        Raises:
            ValueError: If there is no seed, or `last` is below 1.
        """
        if not len(seeds):
            raise ValueError("`seeds` is empty: give at least one seed for a shuffle.")
        rows, (result, users) = self.evaluation_set, self._original
        first = self._scores(result)
        changes, cosines, moved = [], [], []
        for seed in seeds:
            shuffled = shuffle_histories(rows, seed, last)
            other, other_users = self._evaluate(shuffled)
            changes.append({name: value - first[name] for name, value in self._scores(other).items()})
            moved.append(_reordered(rows, shuffled).mean())
            if users.vectors:
                cosines.append(users.cosine(other_users))
        # Differences first, then their mean: a row that no shuffle changes has a difference of exactly 0.
        change = {name: np.mean([one[name] for one in changes], axis=0) for name in first}
        return ShuffleDiagnostic(
            **self._header(),
            shuffled="inference",
            comparisons=[_compare(name, first[name], change[name], rows.user, num_resamples) for name in first],
            shuffle_seeds=[int(seed) for seed in seeds],
            by_shuffle={name: [float((first[name] + one[name]).mean()) for one in changes] for name in first},
            last=last,
            reordered=float(np.mean(moved)),
            similarity=_summarise(np.array(cosines)) if cosines else None,
        )

    def transitions(self) -> GroupDiagnostic:
        """Users whose histories follow common transitions, and the others (§4.1.2); see `transition_scores`.

        Raises:
            ValueError: If too many users have the same score.
        """
        scores = transition_scores(self.split.train, self.evaluation_set)
        inside = transition_set(scores)
        border = scores[inside].min()
        return self._by_group(
            "transition",
            "score of a user: mean training count of the transitions in the history; transition set: above the median, ties left out",
            {
                "non-transition": (~inside, f"score below {border:.4g}"),
                "transition": (inside, f"score {border:.4g} or more"),
            },
        )

    def popularity(self, share: float = 0.35) -> GroupDiagnostic:
        """Rows by how often their target occurs in training (§4.1.3); see `item_popularity_groups`.

        Args:
            share: Share of the items seen in training that is cold, and that is warm.
        """
        train, num_items = self.split.train, self.data.catalogue.num_items
        group_of_item = item_popularity_groups(train, num_items, share)
        count = np.bincount(train.item_index, minlength=num_items + 1)
        groups = {}
        for code, name in enumerate(ITEM_GROUPS):
            items = np.flatnonzero(group_of_item[1:] == code) + 1
            often = (
                f", {span_text(count[items].min(), count[items].max())} interactions" if len(items) and code else ""
            )
            groups[name] = (group_of_item[self.evaluation_set.target] == code, f"{len(items):,} items{often}")
        return self._by_group(
            "popularity",
            f"by training interactions of the target: cold and warm are the bottom and top {share:.0%} of the items seen in training, "
            "ties included",
            groups,
        )

    def activity(self, num_groups: int = 5) -> GroupDiagnostic:
        """Users by the length of their history, in groups of about equal size.

        Args:
            num_groups: Number of groups; fewer where many users share a length.
        """
        lengths = self.evaluation_set.lengths
        groups = {
            f"{span_text(low, high)} items": ((lengths >= low) & (lengths <= high), "in the history")
            for low, high in bucket_bounds(lengths, num_groups)
        }
        return self._by_group("activity", "by number of items in the history", groups)

    def _evaluate(self, rows: EvaluationSet) -> tuple[EvaluationResult, "_UserVectors"]:
        """Ranks, and the user vectors that were computed on the way."""
        evaluator = RankingEvaluator(
            rows,
            self.data.catalogue.num_items,
            self.protocol,
            candidates=None if self.candidates is None else self.candidates.items,
            batch_size=self.batch_size,
            progress=self.progress,
        )
        with _user_vectors(self.model) as users:
            return evaluator(self.model), users

    def _scores(self, result: EvaluationResult) -> dict[str, NDArray[np.float64]]:
        return ranking_scores(result.ranks, self.protocol.cutoffs, suffix=self.protocol.suffix)

    def _header(self) -> dict[str, Any]:
        return _header(self.model, self.data, self.result, self.name, self.seed, self.candidates)

    def _by_group(self, by: str, definition: str, masks: dict[str, tuple[NDArray[np.bool_], str]]) -> GroupDiagnostic:
        scores, user = self._scores(self.result), self.evaluation_set.user
        groups = []
        for name, (mask, description) in masks.items():
            values: dict[str, Any] = {"metrics": {}, "intervals": {}, "floor": {}}
            if mask.any():
                inside = {metric: value[mask] for metric, value in scores.items()}
                values = {
                    "metrics": {metric: float(value.mean()) for metric, value in inside.items()},
                    "intervals": {key: list(ends) for key, ends in bootstrap_intervals(inside, user[mask]).items()},
                    "floor": random_floor(
                        self.result.num_ranked[mask], self.protocol.cutoffs, suffix=self.protocol.suffix
                    ),
                }
            groups.append(Group(name, description, int(mask.sum()), len(np.unique(user[mask])), **values))
        return GroupDiagnostic(**self._header(), by=by, definition=definition, groups=groups)


def compare_shuffled_training(
    original: EvaluationRecord, shuffled: EvaluationRecord, num_resamples: int = 2000
) -> ShuffleDiagnostic:
    """Compare a model with the same model trained on shuffled sequences, both tested on the original order (§2.3.1).

    Args:
        original: Record of the model trained on `split.train`.
        shuffled: Record of the one trained on `shuffle_training(split).train`.
        num_resamples: Bootstrap replicates and random swaps.

    Returns:
        Differences paired by user.

    Raises:
        ValueError: If the records are not of the same rows under the same protocol, or of models with other configurations: then
            more than the order of the training data differs.
    """
    check_comparable(original, shuffled)
    if original.config_hash != shuffled.config_hash:
        raise ValueError(
            f"{original.model} and {shuffled.model} have other configurations ({original.config_hash} and {shuffled.config_hash}): "
            "train the same model twice, once on `shuffle_training(split).train`."
        )
    names = [name for name in original.intervals if name in shuffled.intervals]
    if not names:
        raise ValueError("the records have no metric in common: evaluate both with the same cut-offs.")
    return ShuffleDiagnostic(
        model=original.model,
        config_hash=original.config_hash,
        seed=original.seed,
        dataset=original.dataset,
        dataset_fingerprint=original.dataset_fingerprint,
        protocol=original.protocol,
        candidates=original.candidates,
        num_rows=original.num_rows,
        shuffled="training",
        comparisons=[compare_records(original, shuffled, name, num_resamples) for name in names],
    )


def cross_domain(
    model: Any,
    processor: Any,
    data: RecommendationData,
    split: Split,
    source: str | None = None,
    part: str = "test",
    exclude_seen: bool = True,
    cutoffs: Sequence[int] = (5, 10, 20),
    candidates: Candidates | None = None,
    batch_size: int | None = None,
    name: str | None = None,
    seed: int | None = None,
    progress: bool = False,
) -> CrossDomainDiagnostic:
    """Evaluate a recommender on data it was not trained on (§4.1.4), its items encoded from their texts.

    Histories and ranked items are all from the new catalogue. The model itself is not changed: a copy that shares its weights learns
    the new items.

    Args:
        model: A recommender that takes new items by their texts: has `add_items(processor)`.
        processor: Its processor, whose `add_items(item_ids, titles)` returns one that knows them.
        data: The other data set.
        split: A split of it.
        source: Name of the data the model was trained on; its fingerprint when not given.
        part: `"validation"` or `"test"`.
        exclude_seen: Items of the history cannot be recommended.
        cutoffs: Cut-offs of the metrics.
        candidates: Sampled candidates for the rows of that part; None ranks the whole new catalogue.
        batch_size: Rows scored at once; None leaves it to the evaluator.
        name: Name to print; by default that of the model's class.
        seed: Seed the model was trained with.
        progress: Whether to show a progress bar.

    Returns:
        Metrics, intervals, and the values of a random order.

    Raises:
        TypeError: If the model knows items only by their ids.
        ValueError: If the model was trained on `data`.
    """
    name = name or type(model).__name__.removesuffix("ForSequentialRecommendation")
    if not all(callable(getattr(part_of, "add_items", None)) for part_of in (model, processor)):
        raise TypeError(
            f"{name} knows items only by the ids it was trained with, so it has nothing to say about {data.name}: evaluating on other "
            "data needs a recommender that encodes items from their texts (with `add_items`), such as LLM-SRec."
        )
    trained_on = getattr(model.config, "data_fingerprint", None)
    if trained_on == data.fingerprint:
        raise ValueError(f"{name} was trained on {data.name}: give other data, or use `SequenceDiagnostics`.")
    before = processor.num_items
    # The same id need not be the same thing in two data sets; with the set's name before it none can collide.
    new_ids = data.catalogue.item_ids.to_pylist()
    extended = processor.add_items([f"{data.name}/{item}" for item in new_ids], data.catalogue.titles.to_pylist())
    sharing = copy.deepcopy(model, {id(weight): weight for weight in model.parameters()})
    sharing.add_items(extended)
    shifted = _OtherCatalogue(sharing, before)
    measured = SequenceDiagnostics(
        shifted, data, split, part, exclude_seen, cutoffs, candidates, batch_size, name, seed, progress=progress
    )
    result = measured.result
    return CrossDomainDiagnostic(
        **_header(model, data, result, name, seed, candidates),
        source=source or str(trained_on),
        source_fingerprint=trained_on,
        num_items=data.catalogue.num_items,
        num_shared_items=len(set(new_ids) & set(processor.item_ids)),
        metrics=dict(result.metrics),
        intervals={metric: list(ends) for metric, ends in result.intervals.items()},
        floor=dict(result.floor),
    )


class _OtherCatalogue(nn.Module):
    """A recommender seen through the items that were added to it: item_index 1 is the first new one, older ones do not exist."""

    def __init__(self, model: Any, num_old: int) -> None:
        super().__init__()
        self.model, self.num_old = model, num_old
        self.is_dot_product = getattr(model, "is_dot_product", False)
        self.needs_timestamps = getattr(model, "needs_timestamps", False)
        self.max_length = config_length(model)

    @property
    def config(self) -> Any:
        """What the evaluator asks for; the catalogue's size and data of the inner model are not those of this view."""
        return _View(self.max_length)

    @property
    def item_bias(self) -> torch.Tensor | None:
        """(new items + 1,), or None."""
        bias = getattr(self.model, "item_bias", None)
        return None if bias is None else self._new(bias)

    def item_representations(self) -> torch.Tensor:
        """(new items + 1, dim)."""
        return self._new(self.model.item_representations())

    def forward(self, input_ids: torch.Tensor, **kwargs: Any) -> Any:
        """User vectors of histories of new items."""
        return self.model(self._old_index(input_ids), **kwargs)

    def score(self, input_ids: torch.Tensor, candidates: torch.Tensor | None = None, **kwargs: Any) -> torch.Tensor:
        """Scores of new items."""
        if candidates is not None:
            return self.model.score(self._old_index(input_ids), self._old_index(candidates), **kwargs)
        scores = self.model.score(self._old_index(input_ids), **kwargs)
        return torch.cat([scores[:, :1], scores[:, 1 + self.num_old :]], dim=1)

    def _new(self, per_item: torch.Tensor) -> torch.Tensor:
        return torch.cat([per_item[:1], per_item[1 + self.num_old :]])

    def _old_index(self, index: torch.Tensor) -> torch.Tensor:
        return index + self.num_old * (index > 0)


@dataclass(frozen=True)
class _View:
    max_length: int | None


@dataclass(frozen=True)
class _UserVectors:
    """User vectors batch by batch, with the number of items behind each; empty for a model that only scores."""

    vectors: list[torch.Tensor]
    lengths: list[torch.Tensor]

    def cosine(self, other: "_UserVectors") -> NDArray[np.float64]:
        """(num_rows,) cosines with the vectors of the same rows; an evaluator goes through rows in the order of their lengths."""
        if not torch.equal(torch.cat(self.lengths), torch.cat(other.lengths)):
            raise RuntimeError(
                "the two evaluations went through the rows in different orders; their vectors cannot be paired."
            )
        first, second = torch.cat(self.vectors), torch.cat(other.vectors)
        cosine = torch.nn.functional.cosine_similarity(first.double(), second.double(), dim=1).clamp(-1, 1)
        cosine[(first == second).all(1)] = 1.0  # exactly, also for zero vectors
        return cosine.numpy()


@contextmanager
def _user_vectors(model: nn.Module) -> Iterator[_UserVectors]:
    """Keep the user vectors that an evaluation computes anyway."""
    kept = _UserVectors([], [])
    if not getattr(model, "is_dot_product", False):
        yield kept
        return

    def keep(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: Any) -> None:
        kept.vectors.append(output.user_embeddings.float().cpu())
        kept.lengths.append((inputs[0] > 0).sum(1).cpu())

    handle = model.register_forward_hook(keep)
    try:
        yield kept
    finally:
        handle.remove()


def _header(
    model: Any,
    data: RecommendationData,
    result: EvaluationResult,
    name: str,
    seed: int | None,
    candidates: Candidates | None,
) -> dict[str, Any]:
    config = getattr(model, "config", None)
    return {
        "model": name,
        "config_hash": None if config is None else hash_config(config),
        "seed": seed,
        "dataset": data.name,
        "dataset_fingerprint": data.fingerprint,
        "protocol": result.protocol,
        "candidates": None if candidates is None else describe_candidates(candidates),
        "num_rows": len(result.ranks),
    }


def _reordered(original: EvaluationSet, shuffled: EvaluationSet) -> NDArray[np.bool_]:
    moved = np.zeros(len(original), dtype=bool)
    for rows in original.chunks():
        start, stop = original.start[rows], original.stop[rows]
        at, row = flat_positions(start, stop), np.repeat(np.arange(rows.start, rows.stop), stop - start)
        moved[row[original.item_index[at] != shuffled.item_index[at]]] = True
    return moved


def _compare(
    metric: str, first: NDArray[np.float64], change: NDArray[np.float64], user: ArrayLike, num_resamples: int
) -> Comparison:
    """`compare_records` for values per row instead of ranks, because a mean over several shuffles has no rank."""
    from scipy import stats

    _, index = np.unique(np.asarray(user), return_inverse=True)
    per_user = np.bincount(index, weights=change)
    before, difference = float(first.mean()), float(change.mean())
    low, high = bootstrap_intervals({metric: change}, index, num_resamples=num_resamples)[metric]
    return Comparison(
        metric=metric,
        first=before,
        second=before + difference,
        difference=difference,
        low=low,
        high=high,
        relative_gain=difference / before if before else None,
        p_randomisation=randomisation_test(per_user.astype(np.float64), num_resamples),
        p_wilcoxon=float(stats.wilcoxon(per_user, method="asymptotic").pvalue) if per_user.any() else 1.0,
        num_users=len(per_user),
        num_better=int((per_user > 0).sum()),
        num_worse=int((per_user < 0).sum()),
    )


def _summarise(cosines: NDArray[np.float64]) -> Similarity:
    """Of (num_shuffles, num_rows) cosines; the mean of a row over the shuffles is one observation."""
    per_row = cosines.mean(0)
    mean = float(per_row.mean())
    half = 1.96 * float(per_row.std(ddof=1)) / len(per_row) ** 0.5 if len(per_row) > 1 else 0.0
    percent = (5, 25, 50, 75, 95)
    counts, edges = np.histogram(cosines, bins=np.linspace(-1, 1, 81))
    return Similarity(
        mean=mean,
        low=max(mean - half, -1.0),
        high=min(mean + half, 1.0),
        quantiles=dict(zip(map(str, percent), np.percentile(cosines, percent).tolist(), strict=True)),
        edges=edges.tolist(),
        shares=(counts / cosines.size).tolist(),
    )
