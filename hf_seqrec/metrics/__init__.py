"""Ranking maths on ranks, free of any model; `recsys_ranking/` offers the same maths as an `evaluate` module."""

from .ranking import (
    METRICS,
    SINGLE_TARGET_METRICS,
    check_cutoffs,
    coverage,
    popularity_bias,
    random_floor,
    ranking_metrics,
    ranking_scores,
)


__all__ = [
    "METRICS",
    "SINGLE_TARGET_METRICS",
    "check_cutoffs",
    "coverage",
    "popularity_bias",
    "random_floor",
    "ranking_metrics",
    "ranking_scores",
]
