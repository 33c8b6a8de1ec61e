"""A small world and plain models that follow the recommender contract, so that evaluation is tested without any real model."""

from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
import torch

from hf_seqrec.data import Catalogue, EvaluationSet, RecommendationData, Sequences
from hf_seqrec.evaluation import EvaluationRecord, Protocol, RankingEvaluator


NUM_ITEMS = 60


def make_rows(num_rows=37, num_items=NUM_ITEMS, seed=0, target_in_history=(), max_history=20):
    """Histories of distinct items followed by a target that is new, except in the rows named."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(3, max_history, num_rows)  # long enough to be all different
    drawn = [rng.permutation(num_items)[: n + 1] + 1 for n in lengths]
    for row in target_in_history:
        drawn[row][-1] = drawn[row][0]
    bounds = np.concatenate([[0], np.cumsum(lengths + 1)])
    user_ids = pa.array([f"u{100 + row}" for row in range(num_rows)])
    sequences = Sequences(np.concatenate(drawn), bounds, None, user_ids)
    return EvaluationSet.before(sequences, np.arange(num_rows), bounds[1:] - 1)


class DotModel(torch.nn.Module):
    """User vector = mean of the vectors of the history; `is_dot_product`."""

    is_dot_product = True

    def __init__(self, num_items=NUM_ITEMS, dim=8, seed=0, bias=False, dtype=torch.float32, max_length=None):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.table = torch.nn.Parameter(torch.randn(num_items + 1, dim, generator=generator).to(dtype))
        self.bias = torch.nn.Parameter(torch.randn(num_items + 1, generator=generator)) if bias else None
        self.num_item_representations = 0
        self.widths = []
        if max_length is not None:
            self.config = SimpleNamespace(max_length=max_length)

    @property
    def item_bias(self):
        return self.bias

    def item_representations(self):
        self.num_item_representations += 1
        return self.table

    def forward(self, input_ids, item_table=None):
        assert not self.training
        assert torch.is_inference_mode_enabled()
        assert bool((input_ids[:, -1] > 0).all())  # left-padded
        self.widths.append(input_ids.shape[1])
        inside = (input_ids > 0).unsqueeze(-1).to(self.table.dtype)
        return SimpleNamespace(user_embeddings=(self.table[input_ids] * inside).sum(1) / inside.sum(1))

    def all_scores(self, input_ids):
        scores = self(input_ids).user_embeddings.float() @ self.table.float().T
        return scores if self.bias is None else scores + self.bias


class ScoreModel(torch.nn.Module):
    """A model with fixed scores that only has `score`; finds a row by its history."""

    def __init__(self, rows, scores):
        super().__init__()
        self.scores = torch.as_tensor(np.asarray(scores), dtype=torch.float32)
        self.row_of = {tuple(rows.history(i).tolist()): i for i in range(len(rows))}
        assert len(self.row_of) == len(rows)

    def score(self, input_ids, candidates=None):
        found = [self.row_of[tuple(ids[ids > 0].tolist())] for ids in input_ids]
        scores = self.scores[found]
        return scores if candidates is None else scores.gather(1, candidates)


def brute_force_ranks(rows, scores, exclude_seen=True, candidates=None):
    """Ranks by the definition, one row at a time, in float64."""
    scores = np.asarray(scores, dtype=np.float64)
    ranks = np.empty(len(rows))
    for i in range(len(rows)):
        others = set(range(1, scores.shape[1])) if candidates is None else set(candidates[i].tolist())
        others -= {int(rows.target[i])}
        if exclude_seen:
            if rows.target[i] in rows.history(i):
                ranks[i] = scores.shape[1] - 1 if candidates is None else candidates.shape[1]
                continue
            others -= set(rows.history(i).tolist())
        values, own = scores[i, sorted(others)], scores[i, rows.target[i]]
        ranks[i] = (values > own).sum() + 0.5 * (values == own).sum()
    return ranks


@pytest.fixture
def rows():
    return make_rows()


@pytest.fixture
def many_rows():
    """Rows for several batches."""
    return make_rows(num_rows=300)


@pytest.fixture
def data(rows):
    """The data set that `rows` are the test part of."""
    catalogue = Catalogue(
        pa.table({"item_id": [f"i{n}" for n in range(1, NUM_ITEMS + 1)], "title": ["A film"] * NUM_ITEMS})
    )
    return RecommendationData("toy", catalogue, rows.sequences)


@pytest.fixture
def make_record(rows, data):
    """A function that evaluates a `DotModel` and gives the record."""

    def make(
        model_seed=0, rows=rows, candidates=None, exclude_seen=True, split="leave_one_out", cutoffs=(5, 10), **options
    ):
        kind = "full" if candidates is None else f"sampled{candidates.num_negatives}"
        protocol = Protocol(split=split, candidates=kind, exclude_seen=exclude_seen, cutoffs=cutoffs)
        model = DotModel(seed=model_seed)
        model.config = SimpleNamespace(to_dict=lambda: {"hidden_size": 8, "seed": model_seed})
        result = RankingEvaluator(rows, NUM_ITEMS, protocol, candidates=candidates)(model)
        return EvaluationRecord.from_result(result, data, model, candidates=candidates, **options)

    return make
