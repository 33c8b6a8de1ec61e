"""Similarity of texts as a recommender: numbers by hand."""

import numpy as np
import pytest
import torch

from hf_seqrec.data import leave_one_out
from hf_seqrec.evaluation import Protocol, RankingEvaluator
from hf_seqrec.modeling.llmseqsim import LLMSeqSimForSequentialRecommendation


VECTORS = np.array([[1.0, 0.0], [0.0, 2.0], [3.0, 3.0]])


def build(**config):
    return LLMSeqSimForSequentialRecommendation.from_vectors(VECTORS, **config)


@pytest.mark.parametrize(("decay", "weights"), [(1.0, [0.5, 0.5]), (0.5, [1 / 3, 2 / 3]), (0.0, [0.0, 1.0])])
@pytest.mark.parametrize("similarity", ["cosine", "dot"])
def test_scores_are_the_decayed_mean_against_every_item(decay, weights, similarity):
    scores = build(decay=decay, similarity=similarity).score(torch.tensor([[0, 0, 1, 2]]))[0]
    user = weights[0] * VECTORS[0] + weights[1] * VECTORS[1]
    expected = VECTORS @ user
    if similarity == "cosine":
        expected /= np.linalg.norm(VECTORS, axis=1) * np.linalg.norm(user)
    np.testing.assert_allclose(scores[1:], expected, rtol=1e-5)
    assert torch.isneginf(scores[0])


def test_only_the_last_items_count_and_the_model_comes_back(tmp_path):
    model = build(max_length=1)
    torch.testing.assert_close(model.score(torch.tensor([[1, 2]])), model.score(torch.tensor([[2]])))
    candidates = torch.tensor([[3, 1]])
    torch.testing.assert_close(
        model.score(torch.tensor([[2]]), candidates), model.score(torch.tensor([[2]]))[:, [3, 1]]
    )
    model.save_pretrained(tmp_path)
    again = LLMSeqSimForSequentialRecommendation.from_pretrained(tmp_path)
    torch.testing.assert_close(again.score(torch.tensor([[1, 2]])), model.score(torch.tensor([[1, 2]])))


def test_it_is_evaluated_as_any_recommender(sequences):
    test = leave_one_out(sequences).test
    model = LLMSeqSimForSequentialRecommendation.from_vectors(np.random.default_rng(0).normal(size=(12, 5)))
    result = RankingEvaluator(test, num_items=12, protocol=Protocol(cutoffs=(10,)))(model)
    assert len(result.ranks) == len(test)


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="not finite at item_index 2"):
        LLMSeqSimForSequentialRecommendation.from_vectors(np.array([[1.0], [np.inf]]))
    with pytest.raises(ValueError, match="row 0 has no item"):
        build().score(torch.tensor([[0, 0]]))
    with pytest.raises(TypeError, match="nothing to train"):
        build()(torch.tensor([[1]]), labels=torch.tensor([[2]]))
