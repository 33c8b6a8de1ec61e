"""Evaluation: the protocol, the evaluator that turns scores into ranks, records of results, and paired comparisons of them."""

from .evaluator import EvaluationResult, RankingEvaluator, bootstrap_intervals
from .protocol import Protocol
from .record import EvaluationRecord, hash_config
from .reranking import reranking_metrics
from .significance import Comparison, check_comparable, compare_records, randomisation_test


__all__ = [
    "Comparison",
    "EvaluationRecord",
    "EvaluationResult",
    "Protocol",
    "RankingEvaluator",
    "bootstrap_intervals",
    "check_comparable",
    "compare_records",
    "hash_config",
    "randomisation_test",
    "reranking_metrics",
]
