"""Ranking metrics of recommenders as an `evaluate` module, over the functions of `hf_seqrec.metrics`."""

import datasets
import evaluate

from hf_seqrec.metrics import ranking_metrics


_DESCRIPTION = """\
Ranking metrics from the rank of each target: hr, ndcg, mrr, and with several targets per row recall, precision and map,
each at any cut-off. A rank is the number of allowed items placed before the target, 0 the best; a target that ties with others
has the middle of the places it could take.
"""

_INPUTS = """
Args:
    predictions (list of float): 0-based rank of each target, halves where it ties.
    cutoffs (list of int): list lengths, default (5, 10, 20).
    offsets (list of int): bounds of each row's targets in `predictions`, from 0 to their number; default one target per row.
    metrics (list of str): names among hr, ndcg, mrr, recall, precision, map; default hr, ndcg, mrr, or all with `offsets`.
    suffix (str): appended to every name, such as "/sampled99" for ranks among sampled candidates.
Returns:
    dict of float: such as {"hr@10": 0.31, "ndcg@10": 0.18, "mrr@10": 0.15}.
Examples:
    >>> metric = evaluate.load("path/to/recsys_ranking")
    >>> metric.compute(predictions=[0, 3, 12], cutoffs=[10])["hr@10"]
    0.6666666666666666
"""

_CITATION = """\
@inproceedings{krichene2020sampled,
  title={On Sampled Metrics for Item Recommendation},
  author={Krichene, Walid and Rendle, Steffen},
  booktitle={Proceedings of the 26th ACM SIGKDD International Conference on Knowledge Discovery and Data Mining},
  year={2020}
}
"""


class RecsysRanking(evaluate.Metric):
    """`evaluate.load(folder)` gives this metric; predictions are ranks, and there are no references."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features({"predictions": datasets.Value("float64")}),
        )

    def _compute(self, predictions, cutoffs=(5, 10, 20), offsets=None, metrics=None, suffix="") -> dict[str, float]:
        return ranking_metrics(predictions, cutoffs, offsets, metrics, suffix)
