"""Metrics of two-stage recommenders: over all users, and over those for whom the first stage retrieved the target."""

from typing import Any

import numpy as np

from hf_seqrec.metrics import ranking_metrics

from .evaluator import EvaluationResult


def reranking_metrics(reranked: EvaluationResult, retriever: EvaluationResult, num_retrieved: int) -> dict[str, Any]:
    """Overall and subset metrics, as LlamaRec reports them.

    Subset metrics leave out everybody whose target was not retrieved, so they are high whatever the re-ranker does: compare them
    with the retriever's own on the same users only.

    Args:
        reranked: Full ranking by the two-stage recommender.
        retriever: Full ranking by its first stage, of the same rows.
        num_retrieved: How many items the first stage hands over.

    Returns:
        `retrieved`: share of rows whose target is among the first `num_retrieved` of the retriever; `overall` and `retriever`:
        metrics over all rows; `subset` and `retriever_subset`: over the retrieved ones, NaN when there is none.

    Raises:
        ValueError: The results are not about the same rows, or not of full ranking.

    Example:
        >>> found = reranking_metrics(evaluator(model), evaluator(model.teacher), 20)  # doctest: +SKIP
        >>> found["subset"]["ndcg@10"], found["retriever_subset"]["ndcg@10"]           # doctest: +SKIP
        (0.4471, 0.4302)
    """
    ours, theirs = reranked.evaluation_set, retriever.evaluation_set
    same = len(ours) == len(theirs) and all(
        np.array_equal(getattr(ours, name), getattr(theirs, name)) for name in ("user", "start", "stop", "target")
    )
    if not same or reranked.protocol != retriever.protocol:
        raise ValueError("both results must be about the same rows under the same protocol.")
    if reranked.protocol.num_negatives is not None:
        raise ValueError(
            "whether a target was retrieved is known of full ranking only: use Protocol(candidates='full')."
        )
    hit = retriever.ranks < num_retrieved

    def subset(result: EvaluationResult) -> dict[str, float]:
        cutoffs = result.protocol.cutoffs
        if not hit.any():
            return dict.fromkeys(result.metrics, float("nan"))
        return ranking_metrics(result.ranks[hit], cutoffs, suffix=result.protocol.suffix)

    return {
        "retrieved": float(hit.mean()),
        "overall": reranked.metrics,
        "retriever": retriever.metrics,
        "subset": subset(reranked),
        "retriever_subset": subset(retriever),
    }
