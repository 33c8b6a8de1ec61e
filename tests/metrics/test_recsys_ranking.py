"""The `evaluate` module loads from its folder and gives the values of the functions."""

from pathlib import Path

import pytest

import hf_seqrec.metrics.recsys_ranking
from hf_seqrec.metrics import ranking_metrics


@pytest.fixture
def metric(tmp_path, monkeypatch):
    evaluate = pytest.importorskip("evaluate")
    monkeypatch.setenv("HF_EVALUATE_OFFLINE", "1")
    folder = Path(hf_seqrec.metrics.recsys_ranking.__file__).parent
    return evaluate.load(str(folder), cache_dir=str(tmp_path))


def test_the_module_computes_the_functions_over_batches(metric):
    metric.add_batch(predictions=[0, 2.5, 9])
    metric.add_batch(predictions=[40])
    assert metric.compute() == ranking_metrics([0, 2.5, 9, 40])


def test_the_module_takes_cutoffs_targets_and_suffix(metric):
    options = {"cutoffs": [3], "offsets": [0, 2, 3], "metrics": ["recall", "map"], "suffix": "/sampled99"}
    assert metric.compute(predictions=[4, 1, 0], **options) == ranking_metrics([4, 1, 0], **options)


def test_the_module_refuses_what_is_no_rank(metric):
    with pytest.raises(ValueError, match=r"got -1\.0 at position 1"):
        metric.compute(predictions=[0, -1])
