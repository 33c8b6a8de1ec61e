"""The sum of two recommenders' scores, against hand calculations."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from hf_seqrec.evaluation import Protocol, RankingEvaluator, ScoreSum, choose_score_sum


NUM_ITEMS = 60  # of `rows`


class Fixed(torch.nn.Module):
    """The same scores for everybody; those of padding are never read."""

    def __init__(self, values, needs_timestamps=False):
        super().__init__()
        self.values = torch.tensor([torch.nan, *values])
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
    total = ScoreSum(Fixed([1.0, 2.0, 3.0]), Fixed([40.0, 20.0, 30.0]), weight=0.5)
    scores = total.score(IDS)
    assert scores[0].tolist() == [-torch.inf, -0.5, -0.5, 1.0]
    assert torch.equal(scores[0], scores[1])
    assert total.score(IDS, torch.tensor([[3, 1], [2, 3]])).tolist() == [[1.0, -0.5], [-0.5, 1.0]]


def test_an_item_that_the_first_never_met_has_the_score_of_the_second_on_the_scale_of_the_sums():
    known = np.array([False, True, True, False])
    scores = ScoreSum(Fixed([1.0, 3.0, 1000.0]), Fixed([30.0, 20.0, 40.0]), 0.5, known).score(IDS)[0]
    root = 0.5**0.5  # of 1 and 3 the mean is 2 and the deviation the root of 2
    sums = [-root, root - 0.5]
    torch.testing.assert_close(scores[1:], torch.tensor([*sums, 1.0 * (sums[1] - sums[0]) / 2**0.5]))


def test_times_go_to_the_one_that_reads_them():
    first, second = Fixed([1.0, 2.0]), Fixed([1.0, 2.0], needs_timestamps=True)
    total = ScoreSum(first, second, 1.0)
    assert total.needs_timestamps
    total.score(IDS, timestamps=IDS)
    assert first.seen_times == [None]
    assert second.seen_times == [IDS]
    assert not ScoreSum(first, first, 1.0).needs_timestamps


@pytest.mark.parametrize(("first_is_right", "second_is_right", "chosen"), [(True, False, 0.0), (False, True, 2.0)])
def test_the_weight_is_the_best_on_validation(rows, first_is_right, second_is_right, chosen):
    protocol = Protocol(part="validation", cutoffs=[10])
    first, second = Oracle(rows, first_is_right), Oracle(rows, second_is_right)
    total = choose_score_sum(first, second, rows, NUM_ITEMS, protocol, weights=(0.0, 1.0, 2.0))
    assert total.weight == chosen
    assert RankingEvaluator(rows, NUM_ITEMS, protocol)(total).metrics["ndcg@10"] == 1.0


def test_what_cannot_be_summed_is_refused():
    with pytest.raises(ValueError, match=r"one catalogue, got \[2, 3\] items"):
        ScoreSum(Fixed([1.0, 2.0]), Fixed([1.0, 2.0, 3.0]), 1.0).score(IDS)
    with pytest.raises(ValueError, match=r"one catalogue, got \[2, 2, 3\] items"):
        ScoreSum(Fixed([1.0, 2.0]), Fixed([1.0, 2.0]), 1.0, [False, True, True, True]).score(IDS)
    with pytest.raises(ValueError, match="at least two items, got 1"):
        ScoreSum(Fixed([1.0, 2.0]), Fixed([1.0, 2.0]), 1.0, [True, True, False])


def test_the_config_is_that_of_the_second():
    second = Fixed([1.0, 2.0])
    second.config = SimpleNamespace(max_length=7)
    assert ScoreSum(Fixed([1.0, 2.0]), second, 1.0).config.max_length == 7
