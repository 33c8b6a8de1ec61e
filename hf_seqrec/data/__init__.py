"""Data sets: loading, checking, filtering, splitting and writing; numpy and pyarrow only."""

from .catalogue import Catalogue
from .recommendation_data import RecommendationData, load_recommendation_data
from .sequences import Sequences
from .validation import validate_interactions, validate_items


__all__ = [
    "Catalogue",
    "RecommendationData",
    "Sequences",
    "load_recommendation_data",
    "validate_interactions",
    "validate_items",
]
