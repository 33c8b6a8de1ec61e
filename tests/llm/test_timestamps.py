"""Prompts with dates, wherever a recommender is used: evaluator, diagnostics, pipeline, card."""

import copy

import numpy as np
import pytest
import torch

from hf_seqrec.data import RecommendationData, Sequences, leave_one_out
from hf_seqrec.evaluation import Protocol, RankingEvaluator
from hf_seqrec.evaluation.diagnostics import SequenceDiagnostics, cross_domain
from hf_seqrec.hub import load_recommender, save_recommender
from hf_seqrec.pipelines import SequentialRecommendationPipeline


@pytest.fixture
def data(catalogue, sequences):
    return RecommendationData("tiny", catalogue, sequences)


@pytest.fixture
def dated(make):
    return make("bert", dates=True)


class WithoutUserVectors(torch.nn.Module):
    """The same model for an evaluator that must ask for scores."""

    needs_timestamps = True

    def __init__(self, model):
        super().__init__()
        self.model, self.config, self.seen = model, model.config, []

    def score(self, input_ids, *args, timestamps):
        self.seen.append((input_ids, timestamps))
        return self.model.score(input_ids, *args, timestamps=timestamps)


@pytest.mark.parametrize("candidates", ["full", "sampled3"])
def test_scores_and_vectors_get_the_same_times(dated, sequences, candidates):
    model, _ = dated
    split = leave_one_out(sequences)
    rows = split.test
    table = None
    if candidates != "full":
        table = np.stack([np.append(target, np.setdiff1d(np.arange(1, 13), [*rows.history(row), target])[:3])
                          for row, target in enumerate(rows.target)])  # fmt: skip
    evaluator = RankingEvaluator(
        rows, 12, Protocol(candidates=candidates, cutoffs=[3]), candidates=table, batch_size=7
    )
    ranks = evaluator(model).ranks
    scoring = WithoutUserVectors(model)
    np.testing.assert_array_equal(ranks, evaluator(scoring).ranks)
    item_at = dict(zip(sequences.timestamps.tolist(), sequences.item_index.tolist(), strict=True)) | {0: 0}
    shown = 0
    for ids, times in scoring.seen:
        assert [[item_at[time] for time in row] for row in times.tolist()] == ids.tolist()
        shown += int((times > 0).sum())
    assert shown == np.minimum(rows.lengths, model.config.max_length).sum()


def test_data_without_times_are_refused(dated, sequences):
    model, _ = dated
    untimed = Sequences(sequences.item_index, sequences.offsets, None, sequences.user_ids)
    with pytest.raises(ValueError, match="only the order is known"):
        RankingEvaluator(leave_one_out(untimed).test, 12, Protocol(cutoffs=[3]))(model)


def test_diagnostics_read_dates_too(dated, data, catalogue):
    model, processor = dated
    split = leave_one_out(data.sequences)
    result = SequenceDiagnostics(model, data, split, cutoffs=[3]).shuffled_inference(seeds=[0], num_resamples=10)
    assert result.similarity is not None
    assert result.similarity.mean < 1
    other = RecommendationData("other", catalogue, leave_one_out(data.sequences).train)
    model.config.data_fingerprint = data.fingerprint
    answer = cross_domain(
        copy.copy(model), processor, other, leave_one_out(other.sequences, min_length=3), cutoffs=[3]
    )
    assert 0 <= answer.metrics["ndcg@3"] <= 1


def test_the_pipeline_wants_a_time_per_item_and_uses_it(dated):
    model, processor = dated
    pipe = SequentialRecommendationPipeline(model=model, processor=processor, device="cpu")
    history, times = ["i0", "i2", "i5", "i3", "i4", "i7", "i8"], [1_400_000_000 + 86_400 * day for day in range(7)]
    rows = pipe([{"history": history, "timestamps": times}, {"history": ["i1"], "timestamps": [0]}], top_k=3)
    ids = torch.from_numpy(processor.to_index(history)).long()[None, -6:]
    scores = model.score(ids, timestamps=torch.tensor([times[-6:]]))[0]
    for row in rows[0]:
        assert row["score"] == pytest.approx(float(scores[processor.to_index([row["item_id"]])[0]]), abs=1e-5)
    for wrong, count in ({"history": history}, "None"), ({"history": history, "timestamps": times[1:]}, "6"):
        with pytest.raises(ValueError, match=f"needs as many `timestamps` .*, got {count}"):
            pipe(wrong)


def test_the_card_of_a_dated_model_shows_how_to_give_times(dated, tmp_path, sequences):
    folder = save_recommender(tmp_path / "dated", *dated)
    card = (folder / "README.md").read_text()
    assert '"timestamps": [17' in card
    assert "LLM-SRec" in card
    model, _ = load_recommender(folder)
    assert model.needs_timestamps


def test_a_table_of_items_is_taken_for_scoring_and_refused_for_a_loss(make):
    model, _ = make("bert")
    ids, table = torch.tensor([[1, 2, 3]]), model.item_representations()
    expected = model.score(ids)
    model.item_representations = None  # not to be asked again
    torch.testing.assert_close(model.score(ids, item_table=table), expected)
    assert model(ids, item_table=table).user_embeddings.shape == (1, 8)
    with pytest.raises(ValueError, match="give one of the two"):
        model(ids, labels=torch.tensor([[-100, -100, 4]]), item_table=table)
