"""The sum of two recommenders' scores, against hand calculations."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from hf_seqrec.evaluation import Protocol, RankingEvaluator
from hf_seqrec.modeling import LLMSeqSimForSequentialRecommendation
from hf_seqrec.modeling.score_sum import PARTS, ScoreSumForSequentialRecommendation
from hf_seqrec.presets import load_preset
from hf_seqrec.trainers.score_sum import WEIGHTS, choose_score_sum


NUM_ITEMS = 60  # of `rows`
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
score_sum = ScoreSumForSequentialRecommendation.from_parts


class Fixed(torch.nn.Module):
    """The same scores for everybody; those of padding are never read."""

    def __init__(self, values, needs_timestamps=False, max_length=5, fingerprint=None):
        super().__init__()
        self.values = torch.tensor([torch.nan, *values])
        self.config = SimpleNamespace(num_items=len(values), max_length=max_length, data_fingerprint=fingerprint)
        self.needs_timestamps = needs_timestamps
        self.seen_times = []

    def score(self, input_ids, candidates=None, **extra):
        self.seen_times.append(extra.get("timestamps"))
        return self.values.expand(len(input_ids), -1)


class Oracle(torch.nn.Module):
    """Scores the target of each history highest, or lowest."""

    def __init__(self, rows, right=True):
        super().__init__()
        histories = [tuple(rows.item_index[start:stop]) for start, stop in zip(rows.start, rows.stop, strict=True)]
        assert len(set(histories)) == len(rows)
        self.config = SimpleNamespace(num_items=NUM_ITEMS, max_length=50)
        self.target = dict(zip(histories, map(int, rows.target), strict=True))
        self.sign = 1.0 if right else -1.0

    def score(self, input_ids, candidates=None):
        scores = torch.arange(NUM_ITEMS + 1.0).repeat(len(input_ids), 1) / NUM_ITEMS
        for row, ids in zip(scores, input_ids, strict=True):
            row[self.target[tuple(ids[ids > 0].tolist())]] += 100.0 * self.sign
        return scores


IDS = torch.tensor([[0, 1], [2, 3]])


def test_scores_are_standardised_and_summed():
    # Means 2 and 30, deviations 1 and 10 (of a sample): -1, 0, 1 and 1, -1, 0.
    total = score_sum(Fixed([1.0, 2.0, 3.0]), Fixed([40.0, 20.0, 30.0]), weight=0.5)
    scores = total.score(IDS)
    assert scores[0].tolist() == [-torch.inf, -0.5, -0.5, 1.0]
    assert torch.equal(scores[0], scores[1])
    assert total.score(IDS, torch.tensor([[3, 1], [2, 3]])).tolist() == [[1.0, -0.5], [-0.5, 1.0]]


def test_an_item_that_the_first_never_met_has_the_score_of_the_second_on_the_scale_of_the_sums():
    known = np.array([False, True, True, False])
    scores = score_sum(Fixed([1.0, 3.0, 1000.0]), Fixed([30.0, 20.0, 40.0]), 0.5, known).score(IDS)[0]
    root = 0.5**0.5  # of 1 and 3 the mean is 2 and the deviation the root of 2
    sums = [-root, root - 0.5]
    torch.testing.assert_close(scores[1:], torch.tensor([*sums, 1.0 * (sums[1] - sums[0]) / 2**0.5]))


def test_equal_scores_of_one_leave_the_other():
    scores = score_sum(Fixed([4.0, 4.0, 4.0]), Fixed([10.0, 20.0, 30.0]), 0.5).score(IDS)[0]
    assert scores[1:].tolist() == [-0.5, 0.0, 0.5]


def test_times_go_to_the_one_that_reads_them():
    first, second = Fixed([1.0, 2.0]), Fixed([1.0, 2.0], needs_timestamps=True)
    total = score_sum(first, second, 1.0)
    assert total.needs_timestamps
    total.score(IDS, timestamps=IDS)
    assert first.seen_times == [None]
    assert second.seen_times == [IDS]
    assert not score_sum(first, first, 1.0).needs_timestamps


@pytest.mark.parametrize(("first_is_right", "second_is_right", "chosen"), [(True, False, 0.0), (False, True, 2.0)])
def test_the_weight_is_the_best_on_validation(rows, first_is_right, second_is_right, chosen):
    protocol = Protocol(part="validation", cutoffs=[10])
    first, second = Oracle(rows, first_is_right), Oracle(rows, second_is_right)
    total, values = choose_score_sum(first, second, rows, protocol, weights=(0.0, 1.0, 2.0))
    assert total.config.weight == chosen
    assert RankingEvaluator(rows, NUM_ITEMS, protocol)(total).metrics["ndcg@10"] == values[chosen] == 1.0
    assert list(values) == [0.0, 1.0, 2.0]
    assert values[2.0 - chosen] < 1.0


def test_every_row_is_scored_once_by_each_whatever_the_number_of_weights(many_rows):
    scored = {"first": 0, "second": 0}

    class Counting(Oracle):
        def score(self, input_ids, candidates=None):
            scored[self.name] += len(input_ids)
            return super().score(input_ids)

    first, second = Counting(many_rows), Counting(many_rows, right=False)
    first.name, second.name = scored
    protocol = Protocol(part="validation", cutoffs=[10])
    _, values = choose_score_sum(first, second, many_rows, protocol, progress=True)
    assert scored == {"first": len(many_rows), "second": len(many_rows)}
    for weight, value in values.items():
        alone = RankingEvaluator(many_rows, NUM_ITEMS, protocol)(score_sum(first, second, weight))
        assert alone.metrics["ndcg@10"] == pytest.approx(value, abs=1e-12)


def test_the_command_tries_the_weights_of_the_function():
    assert load_preset("score_sum").model["weights"] == list(WEIGHTS)


def test_what_cannot_be_summed_is_refused(rows):
    two, three = [1.0, 2.0], [1.0, 2.0, 3.0]
    with pytest.raises(ValueError, match=r"one catalogue, got \[2, 3\] items"):
        score_sum(Fixed(two), Fixed(three), 1.0)
    with pytest.raises(ValueError, match=r"one catalogue, got \[2, 2, 3\] items"):
        score_sum(Fixed(two), Fixed(two), 1.0, [False, True, True, True])
    with pytest.raises(ValueError, match="at least two items, got 1"):
        score_sum(Fixed(two), Fixed(two), 1.0, [True, True, False])
    with pytest.raises(ValueError, match="one data set, got the fingerprints 1111, 2222"):
        score_sum(Fixed(two, fingerprint="1111"), Fixed(two, fingerprint="2222"), 1.0)
    protocol = Protocol(part="validation", cutoffs=[10])
    with pytest.raises(ValueError, match="not 'ndcg@5': add the cut-off"):
        choose_score_sum(Oracle(rows), Oracle(rows), rows, protocol, metric="ndcg@5")
    with pytest.raises(ValueError, match="no weight to choose from"):
        choose_score_sum(Oracle(rows), Oracle(rows), rows, protocol, weights=())


def test_the_configuration_is_that_of_both():
    config = score_sum(Fixed([1.0, 2.0], max_length=7, fingerprint="1111"), Fixed([1.0, 2.0]), 0.3).config
    assert (config.num_items, config.max_length, config.data_fingerprint, config.weight) == (2, 7, "1111", 0.3)


@pytest.mark.parametrize("kind", PARTS)
def test_it_is_saved_whole_and_loaded_with_every_kind_of_recommender(kind, tmp_path):
    head = PARTS[kind]
    torch.manual_seed(0)
    first = head(
        head.config_class(num_items=6, **({} if kind == "hf_seqrec_popularity" else {"hidden_size": 8}))
    ).eval()
    with torch.no_grad():
        for weights in first.state_dict().values():
            if weights.is_floating_point():
                weights.normal_()
    second = LLMSeqSimForSequentialRecommendation.from_vectors(torch.randn(6, 4).numpy())
    total = score_sum(first, second, 0.5, [True, True, True, False, True, True, True])
    expected = total.score(IDS)
    assert len(expected[0].unique()) > 3
    moved = score_sum(first.to(DEVICE), second.to(DEVICE), 0.5, [True, True, True, False, True, True, True])
    torch.testing.assert_close(moved.score(IDS.to(DEVICE)).cpu(), expected, rtol=1e-4, atol=1e-4)
    total = total.to("cpu")
    total.save_pretrained(tmp_path)
    again = ScoreSumForSequentialRecommendation.from_pretrained(tmp_path)
    assert type(again.first) is head
    torch.testing.assert_close(again.eval().score(IDS), expected)
    again.save_pretrained(tmp_path / "again")
    assert ScoreSumForSequentialRecommendation.from_pretrained(tmp_path / "again").config.weight == 0.5


def test_one_that_is_more_than_its_weights_cannot_be_saved_within_a_sum(tmp_path):
    second = LLMSeqSimForSequentialRecommendation.from_vectors(np.eye(2))
    with pytest.raises(TypeError, match=r"Fixed cannot be saved within a sum.*from_parts"):
        score_sum(Fixed([1.0, 2.0]), second, 0.5).save_pretrained(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_it_has_scores_and_nothing_else():
    total = score_sum(Fixed([1.0, 2.0]), Fixed([1.0, 2.0]), 1.0)
    with pytest.raises(TypeError, match="ask it with `score`"):
        total(IDS)
    with pytest.raises(ValueError, match=r"`first` is None.*use `from_parts`"):
        ScoreSumForSequentialRecommendation(total.config)
