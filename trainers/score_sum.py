"""The weight with which two recommenders' scores are added up, chosen on validation; nothing is trained."""

from collections.abc import Sequence
from typing import Any

from numpy.typing import ArrayLike

from hf_seqrec.data import EvaluationSet
from hf_seqrec.evaluation import Protocol, RankingEvaluator
from hf_seqrec.modeling.score_sum import ScoreSumForSequentialRecommendation


WEIGHTS = (0.0, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0, 2.0)


def choose_score_sum(
    first: Any,
    second: Any,
    validation: EvaluationSet,
    protocol: Protocol,
    known: ArrayLike | None = None,
    weights: Sequence[float] = WEIGHTS,
    metric: str = "ndcg@10",
) -> tuple[ScoreSumForSequentialRecommendation, dict[float, float]]:
    """The sum of scores whose weight ranks the validation rows best; of equally good weights the first.

    Args:
        first: See [`ScoreSumForSequentialRecommendation.from_parts`], also for `second` and `known`.
        second: The other recommender.
        validation: Rows to choose on, never those of a test.
        protocol: Full ranking, with a cut-off that gives `metric`.
        known: Which items the first knows.
        weights: What is tried; with 0.0 among them the sum may turn out to be the first alone.
        metric: What is best.

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
    values: dict[float, float] = {}
    for weight in weights:
        both = ScoreSumForSequentialRecommendation.from_parts(first, second, weight, known)
        metrics = RankingEvaluator(validation, both.config.num_items, protocol)(both).metrics
        if metric not in metrics:
            raise ValueError(f"the protocol gives {', '.join(metrics)}, not {metric!r}: add the cut-off.")
        values[weight] = metrics[metric]
    best = max(values, key=lambda weight: values[weight])
    return ScoreSumForSequentialRecommendation.from_parts(first, second, best, known), values
