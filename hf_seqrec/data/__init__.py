"""Data sets: loading, checking, filtering, splitting and writing; numpy and pyarrow only."""

from .candidates import Candidates, draw_candidates
from .catalogue import Catalogue
from .filters import compact_codes, first_occurrences, k_core, rating_at_least
from .layout import DatasetDescription, interaction_batches, render_card, write_dataset
from .recommendation_data import RecommendationData, load_recommendation_data
from .sequences import Sequences
from .splits import SPLITS, EvaluationSet, Split, global_time, leave_one_out, make_split, temporal_ratio, user_ratio
from .validation import validate_interactions, validate_items


__all__ = [
    "SPLITS",
    "Candidates",
    "Catalogue",
    "DatasetDescription",
    "EvaluationSet",
    "RecommendationData",
    "Sequences",
    "Split",
    "compact_codes",
    "draw_candidates",
    "first_occurrences",
    "global_time",
    "interaction_batches",
    "k_core",
    "leave_one_out",
    "load_recommendation_data",
    "make_split",
    "rating_at_least",
    "render_card",
    "temporal_ratio",
    "user_ratio",
    "validate_interactions",
    "validate_items",
    "write_dataset",
]
