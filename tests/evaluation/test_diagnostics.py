"""Each diagnostic is checked where its answer is known: by hand, by brute force, or because the model cannot see order."""

import io
import json
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
import torch
from rich.console import Console

from hf_seqrec import cli
from hf_seqrec.data import Catalogue, EvaluationSet, RecommendationData, Sequences, draw_candidates, leave_one_out
from hf_seqrec.data.demo import build_demo_world
from hf_seqrec.evaluation import Protocol, RankingEvaluator, compare_records
from hf_seqrec.evaluation.diagnostic_plots import plot_cross_domain, plot_groups, plot_shuffle, plot_similarity
from hf_seqrec.evaluation.diagnostic_results import (
    CrossDomainDiagnostic,
    Diagnostic,
    GroupDiagnostic,
    ShuffleDiagnostic,
)
from hf_seqrec.evaluation.diagnostics import (
    ITEM_GROUPS,
    SequenceDiagnostics,
    compare_by_popularity,
    compare_shuffled_training,
    cross_domain,
    item_popularity_groups,
    shuffle_histories,
    shuffle_training,
    transition_scores,
    transition_set,
)
from hf_seqrec.evaluation.record import EvaluationRecord
from hf_seqrec.hub import save_recommender
from hf_seqrec.modeling import (
    ItemItemForSequentialRecommendation,
    PopularityForSequentialRecommendation,
    SASRecConfig,
    SASRecForSequentialRecommendation,
)
from hf_seqrec.modeling.processing import SequentialRecommendationProcessor
from hf_seqrec.trainers import NextItemTrainer, NextItemTrainingArguments


def make_sequences(rows, timestamps=None):
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in rows])])
    user_ids = pa.array([f"u{number}" for number in range(len(rows))])
    return Sequences(np.concatenate(rows), offsets, timestamps, user_ids)


def make_data(sequences, num_items, name="toy", titles=None):
    ids = [f"{name}-{number}" for number in range(1, num_items + 1)]
    catalogue = Catalogue(pa.table({"item_id": ids, "title": titles or [f"Film {number}" for number in ids]}))
    return RecommendationData(name, catalogue, sequences)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return build_demo_world(tmp_path_factory.mktemp("world") / "demo", num_items=120, num_users=150)


@pytest.fixture(scope="module")
def circle():
    """Everybody walks around a circle of 20 items, two items a step: order tells all, the set of items little."""
    rng = np.random.default_rng(0)
    rows = [
        (start + 3 * np.arange(length)) % 20 + 1
        for start, length in zip(rng.integers(0, 20, 90), [9] * 90, strict=True)
    ]
    return make_data(make_sequences(rows), 20, "circle")


class Successor(torch.nn.Module):
    """Knows the rule of the circle: its user vector is the unit vector of the item after the last one."""

    is_dot_product = True

    def __init__(self, num_items=20, step=3):
        super().__init__()
        self.table = torch.nn.Parameter(torch.cat([torch.zeros(1, num_items), torch.eye(num_items)]))
        self.step, self.num_items = step, num_items

    def item_representations(self):
        return self.table

    def forward(self, input_ids, item_table=None):
        return SimpleNamespace(user_embeddings=self.table[(input_ids[:, -1] - 1 + self.step) % self.num_items + 1])


class SetOfItems(Successor):
    """Sees which items there are, not their order."""

    def forward(self, input_ids, item_table=None):
        return SimpleNamespace(user_embeddings=self.table[input_ids].sum(1))


# Shuffling


def test_a_shuffle_moves_only_the_items_of_a_history(world):
    test = leave_one_out(world.sequences).test
    before = test.item_index.copy()
    shuffled = shuffle_histories(test, seed=3)
    assert (test.item_index == before).all()
    assert (shuffled.target == test.target).all()
    assert (shuffled.item_index[shuffled.stop] == test.target).all()
    assert shuffled.sequences.timestamps is test.sequences.timestamps
    assert (shuffled.user == test.user).all()
    for row in range(len(test)):
        assert sorted(shuffled.history(row)) == sorted(test.history(row))
    assert sum((shuffled.history(row) != test.history(row)).any() for row in range(len(test))) > 0.9 * len(test)


def test_a_seed_is_an_order_and_every_order_is_equally_likely():
    sequences = make_sequences([np.array([1, 2, 3])] * 6000)
    shuffled = shuffle_histories(sequences, seed=5)
    assert (shuffled.item_index == shuffle_histories(sequences, seed=5).item_index).all()
    assert (shuffled.item_index != shuffle_histories(sequences, seed=6).item_index).any()
    orders = Counter(tuple(row.tolist()) for row in shuffled)
    assert len(orders) == 6
    assert max(abs(count - 1000) for count in orders.values()) < 5 * np.sqrt(1000 * 5 / 6)


def test_only_the_last_items_are_shuffled_when_asked(world):
    test = leave_one_out(world.sequences).test
    shuffled = shuffle_histories(test, last=3)
    for row in range(len(test)):
        assert (shuffled.history(row)[:-3] == test.history(row)[:-3]).all()
        assert sorted(shuffled.history(row)[-3:]) == sorted(test.history(row)[-3:])
    assert (shuffle_histories(test, last=1).item_index == test.item_index).all()


def test_what_cannot_be_shuffled_is_refused():
    sequences = make_sequences([np.arange(1, 6)])
    overlapping = EvaluationSet.before(sequences, np.array([0, 0]), np.array([3, 4]))
    with pytest.raises(ValueError, match="share a part of one history"):
        shuffle_histories(overlapping)
    with pytest.raises(ValueError, match="`last` must be at least 1"):
        shuffle_histories(sequences, last=0)
    with pytest.raises(TypeError, match="EvaluationSet or Sequences, got list"):
        shuffle_histories([[1, 2]])


def test_shuffled_training_leaves_validation_and_test_alone(world):
    split = leave_one_out(world.sequences)
    shuffled = shuffle_training(split, seed=4)
    assert shuffled.validation is split.validation
    assert shuffled.test is split.test
    assert shuffled.params == {**split.params, "shuffled_training_seed": 4}
    assert (shuffled.train.offsets == split.train.offsets).all()
    assert (shuffled.train.item_index != split.train.item_index).mean() > 0.5
    assert all(sorted(a) == sorted(b) for a, b in zip(shuffled.train, split.train, strict=True))


# Groups


def test_transition_scores_are_those_of_the_definition(world):
    split = leave_one_out(world.sequences)
    count = Counter(pair for row in split.train for pair in pairwise(row.tolist()))
    scores = transition_scores(split.train, split.test)
    for row in range(len(split.test)):
        history = split.test.history(row).tolist()
        expected = sum(count[pair] for pair in pairwise(history)) / (len(history) - 1)
        assert scores[row] == pytest.approx(expected)
    # A target says nothing about its own row.
    other = replace(split.test, target=np.ones_like(split.test.target))
    assert (transition_scores(split.train, other) == scores).all()


def test_a_history_of_one_item_and_an_unknown_transition_score_zero():
    train = make_sequences([np.array([1, 2]), np.array([3])])
    rows = leave_one_out(make_sequences([np.array([5, 1, 2]), np.array([4, 9, 9])])).validation
    assert transition_scores(train, rows).tolist() == [0.0, 0.0]
    longer = leave_one_out(make_sequences([np.array([1, 2, 9, 9]), np.array([2, 3, 9, 9])])).validation
    assert transition_scores(train, longer).tolist() == [1.0, 0.0]  # 2 -> 3 would cross from one user to the next


def test_the_transition_set_is_the_better_half_without_ties_at_its_border():
    assert transition_set(np.array([1.0, 4.0, 3.0, 2.0])).tolist() == [False, True, True, False]
    assert transition_set(np.array([2.0, 2.0, 2.0, 5.0, 1.0, 2.0])).tolist() == [False] * 3 + [True] + [False] * 2
    with pytest.raises(ValueError, match="no transition set"):
        transition_set(np.array([1.0, 1.0, 1.0]))


def test_cold_and_warm_items_are_the_ends_of_the_popularity_order(world):
    split, num_items = leave_one_out(world.sequences), world.catalogue.num_items
    groups = item_popularity_groups(split.train, num_items)
    counts = np.bincount(split.train.item_index, minlength=num_items + 1)
    assert ((groups[1:] == 0) == (counts[1:] == 0)).all()
    assert (groups[1:] == 0).sum() > 0  # the demo world has films that only occur as targets
    size = round(0.35 * (counts > 0).sum())
    for code, own in ((1, counts[groups == 1].max()), (3, -counts[groups == 3].min())):
        sign = 1 if code == 1 else -1
        seen = np.sort(sign * counts[counts > 0])
        assert (groups == code).sum() >= size
        assert own == seen[size - 1]
    assert (
        counts[groups == 1].max() < counts[groups == 2].min() <= counts[groups == 2].max() < counts[groups == 3].min()
    )


def test_popularity_groups_that_mean_nothing_are_refused():
    even = make_sequences([np.array([1, 2, 3, 4])])
    with pytest.raises(ValueError, match="cold and warm"):
        item_popularity_groups(even, 4)
    with pytest.raises(ValueError, match=r"above 0 and at most 0\.5"):
        item_popularity_groups(even, 4, share=0.6)
    with pytest.raises(ValueError, match="the catalogue ends at 3"):
        item_popularity_groups(even, 3)
    with pytest.raises(ValueError, match="no training interaction"):
        item_popularity_groups(make_sequences([np.array([], dtype=int)]), 3)


# Shuffled inference


def test_the_change_of_a_model_that_knows_the_order_is_known(circle):
    split = leave_one_out(circle.sequences)
    result = SequenceDiagnostics(Successor(), circle, split, exclude_seen=False).shuffled_inference(seeds=(0, 1))
    kept = [
        np.mean(
            [shuffle_histories(split.test, seed).history(row)[-1] == split.test.history(row)[-1] for row in range(90)]
        )
        for seed in (0, 1)
    ]
    one = result.comparison("hr@5")
    ties = np.mean([kept])  # a wrong guess ties the target with 18 others, beyond any of the five places
    assert one.first == 1.0
    assert one.second == pytest.approx(ties)
    assert one.relative_gain == pytest.approx(ties - 1)
    assert result.by_shuffle["hr@5"] == pytest.approx(kept)
    assert one.low < one.difference < one.high < 0
    assert one.p_randomisation < 0.001
    assert result.similarity.mean == pytest.approx(ties)  # unit vectors: cosine 1 where the last item stays, else 0
    assert result.similarity.low < ties < result.similarity.high
    assert result.reordered > 0.99


@pytest.mark.parametrize("model", ["popularity", "set"])
def test_a_model_that_cannot_see_order_changes_by_exactly_nothing(circle, model):
    split = leave_one_out(circle.sequences)
    if model == "popularity":
        recommender = PopularityForSequentialRecommendation.fit(split.train, 20)
    else:
        recommender = SetOfItems()
    result = SequenceDiagnostics(recommender, circle, split).shuffled_inference()
    for one in result.comparisons:
        assert (one.difference, one.low, one.high, one.p_randomisation, one.p_wilcoxon) == (0, 0, 0, 1, 1)
        assert one.num_better == one.num_worse == 0
    assert result.similarity.mean == 1.0
    assert result.similarity.shares[-1] == 1.0


def test_one_shuffle_gives_the_numbers_of_two_compared_records(world):
    split = leave_one_out(world.sequences)
    torch.manual_seed(0)
    model = SASRecForSequentialRecommendation(SASRecConfig(num_items=120, hidden_size=8, max_length=20)).eval()
    diagnostics = SequenceDiagnostics(model, world, split)
    result = diagnostics.shuffled_inference(seeds=[7])
    evaluate = RankingEvaluator(shuffle_histories(split.test, 7), 120, Protocol())
    shuffled = EvaluationRecord.from_result(evaluate(model), world, model)
    for one in result.comparisons:
        expected = compare_records(diagnostics.record(), shuffled, one.metric, num_resamples=2000)
        assert one.to_dict() == pytest.approx(expected.to_dict())
    # Cosines by the model itself, row by row.
    with torch.inference_mode():
        rows = [shuffle_histories(split.test, 7).history(row)[-20:] for row in range(len(split.test))]
        after = [model(torch.from_numpy(row.copy()).long()[None]).user_embeddings[0] for row in rows]
        rows = [split.test.history(row)[-20:] for row in range(len(split.test))]
        before = [model(torch.from_numpy(row.copy()).long()[None]).user_embeddings[0] for row in rows]
    cosine = torch.cosine_similarity(torch.stack(before), torch.stack(after))
    assert result.similarity.mean == pytest.approx(float(cosine.mean()), abs=1e-5)
    assert result.similarity.quantiles["50"] == pytest.approx(float(cosine.median()), abs=0.02)
    assert sum(result.similarity.shares) == pytest.approx(1)
    assert not model._forward_hooks


def test_a_trained_sasrec_needs_order_at_inference_and_in_training(circle, tmp_path):
    split = leave_one_out(circle.sequences)

    def train(sequences):
        torch.manual_seed(0)
        model = SASRecForSequentialRecommendation(SASRecConfig(num_items=20, hidden_size=16, max_length=10))
        args = NextItemTrainingArguments(
            str(tmp_path),
            num_train_epochs=12,
            per_device_train_batch_size=30,
            learning_rate=2e-2,
            eval_strategy="no",
            save_strategy="no",
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
        )
        NextItemTrainer(model, args, train_dataset=sequences).train()
        return SequenceDiagnostics(model.eval(), circle, split, exclude_seen=False, cutoffs=(1, 5))

    original, shuffled = train(split.train), train(shuffle_training(split).train)
    inference = original.shuffled_inference(seeds=[0]).comparison("hr@1")
    assert inference.first > 0.9
    assert inference.relative_gain < -0.4
    assert inference.high < 0
    training = compare_shuffled_training(original.record(), shuffled.record()).comparison("hr@1")
    assert training.first == inference.first
    assert training.high < 0
    # With the last item alone there is nothing to shuffle.
    assert original.shuffled_inference(seeds=[0], last=1).comparison("hr@1").difference == 0


def test_a_model_that_only_scores_has_no_user_vectors(world):
    split = leave_one_out(world.sequences)
    model = ItemItemForSequentialRecommendation.fit(split.train, 120)
    result = SequenceDiagnostics(model, world, split).shuffled_inference(seeds=[0])
    assert result.similarity is None
    assert result.comparison("ndcg@10").relative_gain < 0
    assert "No user vectors" in printed(result)
    with pytest.raises(ValueError, match="no result has a similarity"):
        plot_similarity([result])


def test_sampled_candidates_stay_with_their_rows(circle):
    split = leave_one_out(circle.sequences)
    candidates = draw_candidates(split.test, 20, num_negatives=5, seed=1)
    result = SequenceDiagnostics(SetOfItems(), circle, split, candidates=candidates).shuffled_inference(seeds=[0])
    assert result.comparison("ndcg@10").metric == "ndcg@10/sampled5"
    assert result.comparison("ndcg@10").difference == 0
    assert result.candidates["seed"] == 1
    with pytest.raises(ValueError, match="draw them for that part"):
        SequenceDiagnostics(Successor(), circle, split, part="validation", candidates=candidates)


# Metrics by group


@pytest.mark.parametrize("by", ["transitions", "popularity", "activity"])
def test_groups_share_out_the_rows_and_their_metrics(world, by):
    split = leave_one_out(world.sequences)
    torch.manual_seed(0)
    model = SASRecForSequentialRecommendation(SASRecConfig(num_items=120, hidden_size=8, max_length=20)).eval()
    diagnostics = SequenceDiagnostics(model, world, split)
    result = getattr(diagnostics, by)()
    assert sum(group.num_rows for group in result.groups) == result.num_rows == len(split.test)
    for metric in ("ndcg@10", "hr@5"):
        filled = [group for group in result.groups if group.num_rows]
        total = sum(group.num_rows * group.metrics[metric] for group in filled) / result.num_rows
        assert total == pytest.approx(diagnostics.result.metrics[metric])
        for group in filled:
            assert group.intervals[metric][0] <= group.metrics[metric] <= group.intervals[metric][1]
            assert 0 < group.floor[metric] < 0.5


def test_a_group_has_the_metrics_of_an_evaluation_of_its_rows_alone(world):
    split = leave_one_out(world.sequences)
    model = PopularityForSequentialRecommendation.fit(split.train, 120)
    result = SequenceDiagnostics(model, world, split).popularity()
    code_of_item = item_popularity_groups(split.train, 120)
    for code, name in enumerate(ITEM_GROUPS):
        rows = split.test.subset(code_of_item[split.test.target] == code)
        alone = RankingEvaluator(rows, 120, Protocol())(model)
        group = result.group(name)
        assert group.metrics == pytest.approx({key: alone.metrics[key] for key in group.metrics})
        assert group.floor == pytest.approx(alone.floor)
        for key, ends in group.intervals.items():
            assert ends == pytest.approx(list(alone.intervals[key]))
    assert result.group("warm").metrics["ndcg@10"] > result.group("cold").metrics["ndcg@10"] == 0
    with pytest.raises(KeyError, match="no group 'lukewarm'"):
        result.group("lukewarm")


def test_two_records_are_compared_for_rare_and_common_targets(world):
    split = leave_one_out(world.sequences)
    popular = PopularityForSequentialRecommendation.fit(split.train, 120)
    similar = ItemItemForSequentialRecommendation.fit(split.train, 120)
    first, second = (SequenceDiagnostics(one, world, split).record() for one in (popular, similar))
    gains = compare_by_popularity(first, second, world, split.train)
    code = item_popularity_groups(split.train, 120)[split.test.target]
    present = [name for number, name in enumerate(ITEM_GROUPS) if (code == number).any()]
    assert list(gains) == ["all", *present]
    assert gains["all"] == compare_records(first, second)
    for name in present:
        rows = split.test.subset(code == ITEM_GROUPS.index(name))
        for model, value in ((popular, gains[name].first), (similar, gains[name].second)):
            assert value == pytest.approx(RankingEvaluator(rows, 120, Protocol())(model).metrics["ndcg@10"])
        assert gains[name].num_users == len(rows)
    with pytest.raises(ValueError, match="the data given are toy"):
        compare_by_popularity(first, second, make_data(split.train, 120), split.train)


def test_a_group_without_rows_is_shown_as_empty(circle):
    sequences = Sequences(
        np.append(circle.sequences.item_index, [1] * 40), np.append(circle.sequences.offsets, 850), None,
        pa.array([*circle.sequences.user_ids.to_pylist(), "last"]),
    )  # fmt: skip
    data = make_data(sequences, 20, "circle")
    split = leave_one_out(sequences)
    diagnostics = SequenceDiagnostics(Successor(), data, split, exclude_seen=False)
    result = diagnostics.popularity(share=0.1)
    assert result.group("never seen").num_rows == 0
    assert result.group("never seen").metrics == {}
    assert "–" in printed(result)
    assert len(plot_groups([result]).axes[0].get_xticks()) == sum(group.num_rows > 0 for group in result.groups)


def test_activity_groups_follow_the_lengths():
    data = make_data(make_sequences([np.arange(length) % 20 + 1 for length in range(4, 34)]), 20)
    split = leave_one_out(data.sequences)
    diagnostics = SequenceDiagnostics(PopularityForSequentialRecommendation.fit(split.train, 20), data, split)
    groups = diagnostics.activity(3).groups
    assert [(group.name, group.num_users) for group in groups] == [
        ("3–12 items", 10),
        ("13–22 items", 10),
        ("23–32 items", 10),
    ]


# Refusals


def test_a_model_of_another_catalogue_or_other_data_is_refused(world, circle):
    split = leave_one_out(circle.sequences)
    with pytest.raises(ValueError, match="knows 120 items, circle has 20"):
        SequenceDiagnostics(PopularityForSequentialRecommendation.fit(split.train, 120), circle, split)
    other = PopularityForSequentialRecommendation.fit(split.train, 20, data_fingerprint=world.fingerprint)
    with pytest.raises(ValueError, match="test items may have been trained on"):
        SequenceDiagnostics(other, circle, split)
    assert SequenceDiagnostics(other, circle, split, allow_other_data=True).result.metrics["hr@20"] > 0
    with pytest.raises(ValueError, match="`part` must be one of"):
        SequenceDiagnostics(other, circle, split, part="train", allow_other_data=True)
    with pytest.raises(ValueError, match="`seeds` is empty"):
        SequenceDiagnostics(Successor(), circle, split).shuffled_inference(seeds=[])


def test_records_of_different_models_are_no_test_of_shuffled_training(make_record):
    with pytest.raises(ValueError, match="other configurations"):
        compare_shuffled_training(make_record(0), make_record(1))
    with pytest.raises(ValueError, match="differ in dataset_fingerprint"):
        compare_shuffled_training(make_record(0), replace(make_record(0), dataset_fingerprint="other"))
    with pytest.raises(ValueError, match="no metric in common"):
        compare_shuffled_training(make_record(0), make_record(0, cutoffs=(7,)))
    result = compare_shuffled_training(make_record(0), make_record(0))
    assert [one.difference for one in result.comparisons] == [0] * 6
    assert result.similarity is None


# Other data


class TextModel(torch.nn.Module):
    """Item vectors from the letters of titles: knows any item that has a text."""

    def __init__(self, titles, data_fingerprint=None, is_dot_product=True, biased=False):
        super().__init__()
        self.letters = torch.nn.Parameter(torch.randn(128, 6, generator=torch.Generator().manual_seed(0)))
        self.config = SimpleNamespace(
            num_items=len(titles), data_fingerprint=data_fingerprint, max_length=5, to_dict=lambda: {"letters": 6}
        )
        self.titles, self.is_dot_product, self.biased = list(titles), is_dot_product, biased

    def add_items(self, processor):
        self.titles = list(processor.titles)
        self.config.num_items = len(self.titles)

    def item_representations(self):
        rows = [self.letters[[ord(letter) % 128 for letter in title]].mean(0) for title in self.titles]
        return torch.stack([torch.zeros(6), *rows])

    @property
    def item_bias(self):
        return torch.arange(len(self.titles) + 1) / 50 if self.biased else None

    def forward(self, input_ids, item_table=None):
        assert input_ids.shape[1] <= 5
        return SimpleNamespace(user_embeddings=self.item_representations()[input_ids].sum(1))

    def score(self, input_ids, candidates=None):
        scores = self(input_ids).user_embeddings @ self.item_representations().T
        return scores if candidates is None else scores.gather(1, candidates)


class TextProcessor(SequentialRecommendationProcessor):
    def add_items(self, item_ids, titles):
        return TextProcessor([*self.item_ids, *item_ids], [*self.titles, *titles], self.max_length)


@pytest.mark.parametrize("sampled", [False, True])
@pytest.mark.parametrize("is_dot_product", [True, False])
def test_cross_domain_equals_a_model_of_the_new_items_alone(world, circle, is_dot_product, sampled):
    split = leave_one_out(world.sequences)
    candidates = draw_candidates(split.test, 120, 9) if sampled else None
    titles = circle.catalogue.titles.to_pylist()
    model = TextModel(titles, circle.fingerprint, is_dot_product)
    processor = TextProcessor(
        [*circle.catalogue.item_ids.to_pylist()[:-1], world.catalogue.item_ids[0].as_py()], titles
    )
    result = cross_domain(model, processor, world, split, source="circle", candidates=candidates)
    alone = TextModel(world.catalogue.titles.to_pylist(), None, is_dot_product)
    kind = Protocol(candidates="sampled9" if sampled else "full")
    expected = RankingEvaluator(split.test, 120, kind, candidates=candidates)(alone)
    assert result.metrics == pytest.approx(expected.metrics)
    assert result.floor == pytest.approx(expected.floor)
    assert (result.source, result.source_fingerprint, result.dataset) == ("circle", circle.fingerprint, world.name)
    assert (result.num_items, result.num_shared_items) == (120, 1)
    assert (model.config.num_items, len(model.titles), processor.num_items) == (20, 20, 20)  # untouched


def test_cross_domain_keeps_the_bias_of_new_items(world, circle):
    split = leave_one_out(circle.sequences)
    titles = world.catalogue.titles.to_pylist()
    biased = [
        cross_domain(
            TextModel(titles, biased=flag), TextProcessor(world.catalogue.item_ids, titles), circle, split
        ).metrics
        for flag in (False, True)
    ]
    assert biased[0] != biased[1]


def test_a_model_that_knows_ids_only_is_refused_on_other_data(world, circle):
    split = leave_one_out(circle.sequences)
    model = SASRecForSequentialRecommendation(SASRecConfig(num_items=120, data_fingerprint=world.fingerprint))
    processor = SequentialRecommendationProcessor.from_catalogue(world.catalogue, 20)
    with pytest.raises(TypeError, match="SASRec knows items only by the ids it was trained with"):
        cross_domain(model, processor, circle, split)
    titles = circle.catalogue.titles.to_pylist()
    own = TextProcessor(circle.catalogue.item_ids, titles)
    with pytest.raises(ValueError, match="was trained on circle"):
        cross_domain(TextModel(titles, circle.fingerprint), own, circle, split)


# Records, tables, pictures


def printed(result, width=200):
    console = Console(file=io.StringIO(), width=width)
    console.print(result)
    return console.file.getvalue()


@pytest.fixture(scope="module")
def results(circle, world):
    split = leave_one_out(circle.sequences)
    successor = SequenceDiagnostics(Successor(), circle, split, exclude_seen=False, name="Successor", seed=1)
    counted = SequenceDiagnostics(SetOfItems(), circle, split, exclude_seen=False, name="Set")
    titles = world.catalogue.titles.to_pylist()
    other = cross_domain(
        TextModel(titles),
        TextProcessor(world.catalogue.item_ids, titles),
        circle,
        split,
        source=world.name,
        name="Text",
    )
    return {
        "shuffle": [successor.shuffled_inference(), counted.shuffled_inference()],
        "groups": [successor.activity(), counted.activity()],
        "cross-domain": [other],
    }


@pytest.mark.parametrize("kind", ["shuffle", "groups", "cross-domain"])
def test_a_result_is_the_same_after_saving_and_loading(results, kind, tmp_path):
    result = results[kind][0]
    path = result.save(tmp_path / "result.json")
    assert Diagnostic.load(path) == result
    assert type(result).load(path) == result
    assert printed(Diagnostic.load(path)) == printed(result)
    wrong = {"shuffle": GroupDiagnostic, "groups": CrossDomainDiagnostic, "cross-domain": ShuffleDiagnostic}[kind]
    with pytest.raises(ValueError, match="no result of a diagnostic of kind"):
        wrong.load(path)
    path.write_text(json.dumps({**json.loads(path.read_text()), "extra": 1}))
    with pytest.raises(ValueError, match=r"another release \(other keys: \['extra'\]\)"):
        Diagnostic.load(path)
    path.write_text("[1, 2")
    with pytest.raises(ValueError, match="no result of a diagnostic"):
        Diagnostic.load(path)
    with pytest.raises(ValueError, match=r"a \.json file"):
        result.save(tmp_path / "result.txt")


def test_a_value_that_is_no_number_is_never_written(results, tmp_path):
    with pytest.raises(ValueError, match="can not hold"):
        replace(results["cross-domain"][0], floor={"hr@5": float("nan")}).save(tmp_path / "nan.json")
    assert list(tmp_path.iterdir()) == []


def test_tables_name_model_data_protocol_and_values(results):
    text = printed(results["shuffle"][0])
    for expected in (
        "Successor, seed 1 on circle",
        "full ranking",
        "100.0%",
        "change ratio",
        "Cosine of user vectors",
    ):
        assert expected in text or expected == "100.0%"
    one = results["shuffle"][0].comparison("ndcg@10")
    assert f"{one.relative_gain:+.2%}" in text
    assert "hr@5" not in text  # cut-off 10 unless asked
    only = printed(results["shuffle"][0].to_table(["hr@5"]))
    assert "hr@5" in only
    assert "ndcg@10" not in only
    with pytest.raises(ValueError, match="there is no metric 'ndcg@7'"):
        results["shuffle"][0].to_table(["ndcg@7"])
    group = results["groups"][0].groups[0]
    assert f"{group.floor['ndcg@10']:.4f}" in printed(results["groups"][0])
    assert "known by their texts" in printed(results["cross-domain"][0])


def test_pictures_show_every_model_and_what_they_are_of(results, tmp_path):
    figure = plot_shuffle(results["shuffle"], path=tmp_path / "shuffle.png")
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["Successor", "Set"]  # the better one on top
    ratios = [text.get_text() for text in axes.texts]
    assert ratios == [f"{results['shuffle'][0].comparison('ndcg@10').relative_gain:+.1%}", "–"]  # 0 has no ratio
    assert "circle" in figure.texts[0].get_text()
    figure = plot_similarity(results["shuffle"], path=tmp_path / "vectors.png")
    assert figure.axes[0].get_legend().get_texts()[0].get_text() == "Set, mean 1.000"
    figure = plot_groups(results["groups"], "hr@5", path=tmp_path / "groups.png")
    assert {text.get_text() for text in figure.axes[0].texts} == {"random order", "Successor", "Set"}
    figure = plot_cross_domain(results["cross-domain"], path=tmp_path / "cross.png")
    assert figure.axes[0].get_yticklabels()[0].get_text() == "Text\ndemo-world (simulated)\n→ circle"
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "cross.png",
        "groups.png",
        "shuffle.png",
        "vectors.png",
    ]


def test_pictures_never_mix_what_does_not_belong_together(results, world):
    first, second = results["shuffle"]
    with pytest.raises(ValueError, match="one protocol"):
        plot_shuffle([first, replace(second, protocol=Protocol())])
    with pytest.raises(ValueError, match="one `last`"):
        plot_shuffle([first, replace(second, last=3)])
    with pytest.raises(ValueError, match="one `shuffled`"):
        plot_shuffle([first, replace(second, shuffled="training")])
    with pytest.raises(ValueError, match="one `definition`"):
        plot_groups([results["groups"][0], replace(results["groups"][1], definition="by taste")])
    with pytest.raises(ValueError, match="there is no metric 'ndcg@7'"):
        plot_groups(results["groups"], "ndcg@7")
    for plot in (plot_shuffle, plot_groups, plot_cross_domain):
        with pytest.raises(ValueError, match="is empty"):
            plot([])


# The command


@pytest.fixture(scope="module")
def saved(world, tmp_path_factory):
    """Folder of the data and of a popularity and an untrained SASRec model for them."""
    folder = tmp_path_factory.mktemp("saved")
    build_demo_world(folder / "data", num_items=120, num_users=150)
    split = leave_one_out(world.sequences)
    torch.manual_seed(0)
    config = SASRecConfig(num_items=120, hidden_size=8, max_length=20, data_fingerprint=world.fingerprint)
    models = {
        "popularity": PopularityForSequentialRecommendation.fit(split.train, 120, data_fingerprint=world.fingerprint),
        "sasrec": SASRecForSequentialRecommendation(config),
    }
    for name, model in models.items():
        processor = SequentialRecommendationProcessor.from_catalogue(
            world.catalogue, model.config.max_length, world.fingerprint
        )
        save_recommender(folder / name, model, processor)
    return folder


def test_the_command_prints_tables_and_writes_records_and_pictures(saved, tmp_path, capsys):
    output = tmp_path / "out"
    models = [str(saved / "sasrec"), str(saved / "popularity")]
    arguments = ["--dataset", str(saved / "data"), "--seeds", "0", "--device", "cpu", "--output-dir", str(output)]
    assert cli.main(["diagnose", *models, *arguments, "--trained-on-shuffled", *models]) == 0
    text = capsys.readouterr().out
    for expected in ("Shuffled inference", "By transition", "By popularity", "By activity", "Shuffled training"):
        assert expected in text
    tests = ("activity", "popularity", "shuffled-inference", "shuffled-training", "transition")
    names = {f"{test}-{number}.json" for test in tests for number in ("01-sasrec", "02-popularity")}
    names |= {f"{test}.png" for test in tests} | {"user-vectors.png"}
    assert {path.name for path in output.iterdir()} == names
    popularity = Diagnostic.load(output / "shuffled-inference-02-popularity.json")
    assert popularity.comparison("ndcg@10").difference == 0
    assert cli.main(["diagnose", *models, *arguments]) == 1
    assert "is not empty" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--test", "cross-domain"], "--cross-dataset need each other"),
        (["--metric", "ndcg@7"], "need hr, ndcg or mrr with one of the cut-offs 5, 10, 20"),
        (["--names", "a", "b"], "--names has 2 entries for 1 models"),
        (["--test", "cross-domain", "--cross-dataset", "DATA"], "knows items only by the ids"),
    ],
)
def test_the_command_refuses_what_makes_no_sense(saved, tmp_path, capsys, options, message):
    options = [str(saved / "data") if option == "DATA" else option for option in options]
    output = tmp_path / "out"
    arguments = ["diagnose", str(saved / "sasrec"), "--dataset", str(saved / "data"), "--output-dir", str(output)]
    assert cli.main([*arguments, *options]) == 1
    assert message in capsys.readouterr().err
    assert not output.exists()
