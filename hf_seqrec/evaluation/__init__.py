"""Evaluation: the protocol, the evaluator that turns scores into ranks, records of results, and paired comparisons of them."""

from .evaluator import EvaluationResult, RankingEvaluator, bootstrap_intervals
from .protocol import Protocol


__all__ = ["EvaluationResult", "Protocol", "RankingEvaluator", "bootstrap_intervals"]
