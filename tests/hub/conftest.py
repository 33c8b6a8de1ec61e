"""A small data set with titles, a model and a processor for it, and one real evaluation of them."""

import itertools

import numpy as np
import pyarrow as pa
import pytest
import torch

from hf_seqrec.data import Catalogue, RecommendationData, Sequences, leave_one_out
from hf_seqrec.evaluation import EvaluationRecord, Protocol, RankingEvaluator
from hf_seqrec.modeling import SASRecConfig, SASRecForSequentialRecommendation
from hf_seqrec.modeling.processing import SequentialRecommendationProcessor


TITLES = [
    f"{adjective} {noun}"
    for adjective in ("Red", "Blue", "Grey", "Late")
    for noun in ("Sun", "Moon", "Rain", "Sea", "Hill")
]
_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def data():
    """20 items and 12 users; the last item has no title, the two before share one."""
    titles = [*TITLES[:17], "Twin", "twin", None]
    catalogue = Catalogue(pa.table({"item_id": [f"i{number}" for number in range(20)], "title": titles}))
    rng = np.random.default_rng(0)
    items = np.concatenate([rng.permutation(20)[:6] + 1 for _ in range(12)])
    users = pa.array([f"person-{number}" for number in range(12)])
    return RecommendationData("films", catalogue, Sequences(items, np.arange(0, 73, 6), None, users))


def make_model(data, seed=0):
    torch.manual_seed(seed)
    config = SASRecConfig(
        num_items=20,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        max_length=4,
        data_fingerprint=data.fingerprint,
    )
    return SASRecForSequentialRecommendation(config).eval()


@pytest.fixture
def model(data):
    return make_model(data)


@pytest.fixture
def other_model(data):
    """Weights that no other test has: what a Hub already holds is not uploaded again."""
    return make_model(data, seed=next(_numbers))


@pytest.fixture
def processor(data):
    return SequentialRecommendationProcessor.from_catalogue(data.catalogue, 4, data.fingerprint)


@pytest.fixture
def record(data, model):
    split = leave_one_out(data.sequences)
    result = RankingEvaluator(split.test, num_items=20, protocol=Protocol(cutoffs=(1, 5)))(model)
    return EvaluationRecord.from_result(result, data, model, seed=7)


@pytest.fixture
def repo_id(hub):
    """The name of a repository that no other test uses."""
    return f"{hub.user}/films-{next(_numbers)}"


@pytest.fixture
def impatient(monkeypatch):
    """Clients wait between attempts; tests with a broken network do not."""
    monkeypatch.setattr("time.sleep", lambda seconds: None)
