"""Data sets: loading, checking, filtering, splitting and writing; numpy and pyarrow only."""

from .candidates import Candidates, draw_candidates
from .catalogue import Catalogue
from .recommendation_data import RecommendationData, load_recommendation_data
from .sequences import Sequences
from .splits import SPLITS, EvaluationSet, Split, global_time, leave_one_out, make_split, temporal_ratio, user_ratio
from .validation import validate_interactions, validate_items


__all__ = [
    "SPLITS",
    "Candidates",
    "Catalogue",
    "EvaluationSet",
    "RecommendationData",
    "Sequences",
    "Split",
    "draw_candidates",
    "global_time",
    "leave_one_out",
    "load_recommendation_data",
    "make_split",
    "temporal_ratio",
    "user_ratio",
    "validate_interactions",
    "validate_items",
]
