"""The weight with which two recommenders' scores are added up, chosen on validation; nothing is trained."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import nn

from hf_seqrec.data import EvaluationSet
from hf_seqrec.evaluation import Protocol, RankingEvaluator
from hf_seqrec.metrics import ranking_metrics
from hf_seqrec.modeling.score_sum import ScoreSumForSequentialRecommendation


WEIGHTS = (0.0, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0, 2.0)


class _Kept(nn.Module):
    """A recommender whose scores of one batch are kept until `scores` is set to None."""

    def __init__(self, model: Any):
        super().__init__()
        self.model, self.config = model, model.config
        self.needs_timestamps = getattr(model, "needs_timestamps", False)
        self.scores: torch.Tensor | None = None

    def score(self, input_ids: torch.Tensor, **extra: torch.Tensor) -> torch.Tensor:
        if self.scores is None:
            self.scores = self.model.score(input_ids, **extra)
        return self.scores


def choose_score_sum(
    first: Any,
    second: Any,
    validation: EvaluationSet,
    protocol: Protocol,
    known: ArrayLike | None = None,
    weights: Sequence[float] = WEIGHTS,
    metric: str = "ndcg@10",
    progress: bool = False,
) -> tuple[ScoreSumForSequentialRecommendation, dict[float, float]]:
    """The sum of scores whose weight ranks the validation rows best; of equally good weights the first.

    Both recommenders score each row once, whatever the number of weights.

    Args:
        first: See [`ScoreSumForSequentialRecommendation.from_parts`], also for `second` and `known`.
        second: The other recommender.
        validation: Rows to choose on, never those of a test.
        protocol: Full ranking, with a cut-off that gives `metric`.
        known: Which items the first knows.
        weights: What is tried; with 0.0 among them the sum may turn out to be the first alone.
        metric: What is best.
        progress: Whether to show a progress bar.

    Returns:
        The sum, in evaluation mode, and the metric's value for each weight.

    Raises:
        ValueError: Different catalogues or data sets, fewer than two known items, no weight, or no such metric in the protocol.

    Example:
        >>> import numpy as np, pyarrow as pa
        >>> from hf_seqrec.data import Sequences, leave_one_out
        >>> from hf_seqrec.modeling import ItemItemForSequentialRecommendation, PopularityForSequentialRecommendation
        >>> sequences = Sequences(np.tile([1, 2, 3, 4], 5), np.arange(0, 21, 4), None, pa.array(["ann", "bob", "cy", "di", "ed"]))
        >>> split = leave_one_out(sequences)
        >>> kinds = ItemItemForSequentialRecommendation, PopularityForSequentialRecommendation
        >>> first, second = (kind.fit(split.train, num_items=4) for kind in kinds)
        >>> protocol = Protocol(part="validation", cutoffs=[3])
        >>> both, values = choose_score_sum(first, second, split.validation, protocol, metric="ndcg@3")
        >>> both.config.weight, len(values)
        (0.0, 8)
    """
    if not weights:
        raise ValueError("there is no weight to choose from.")
    parts = _Kept(first), _Kept(second)
    both = ScoreSumForSequentialRecommendation.from_parts(*parts, weights[0], known)
    device = next((tensor.device.type for tensor in [*both.first.parameters(), *both.first.buffers()]), "cpu")
    by_length = np.argsort(validation.lengths, kind="stable")[::-1]  # batches with little padding, the largest first
    batches: Any = np.split(by_length, range(size := 64 if device == "cpu" else 256, len(by_length), size))
    if progress:
        from tqdm.auto import tqdm

        batches = tqdm(batches, desc="Choosing the weight", unit="batch")
    ranks = {weight: np.empty(len(validation), dtype=np.float32) for weight in weights}
    for rows in batches:
        evaluator = RankingEvaluator(
            validation.subset(rows), both.config.num_items, protocol, batch_size=max(len(rows), 1)
        )
        for part in parts:
            part.scores = None
        for weight in weights:
            both.config.weight = weight
            result = evaluator(both)
            if metric not in result.metrics:
                raise ValueError(f"the protocol gives {', '.join(result.metrics)}, not {metric!r}: add the cut-off.")
            ranks[weight][rows] = result.ranks
    values = {
        weight: ranking_metrics(places, protocol.cutoffs, suffix=protocol.suffix)[metric]
        for weight, places in ranks.items()
    }
    best = max(values, key=lambda weight: values[weight])
    return ScoreSumForSequentialRecommendation.from_parts(first, second, best, known), values
