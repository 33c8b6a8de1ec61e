"""The rows of both stages, λ, and the candidates: what can be checked without any LLM."""

import numpy as np
import pyarrow as pa
import pytest
import torch

from hf_seqrec.data import Sequences
from hf_seqrec.trainers.prompt_tuning import (
    CandidateDataset,
    PromptTuningTrainingArguments,
    collate_candidates,
    draw_unseen,
    with_target,
)
from hf_seqrec.trainers.soft_prompt import (
    DistillationPromptDataset,
    SoftPromptTrainingArguments,
    collate_distillation,
    inverse_gradient_weight,
    pattern_simulating,
    temporal_analysis,
)


NUM_ITEMS, M, H = 40, 6, 3


@pytest.fixture(scope="module")
def sequences():
    generator = np.random.default_rng(0)
    rows = [generator.permutation(NUM_ITEMS)[:length] + 1 for length in (3, 6, 9, 14, 20)]
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in rows])])
    return Sequences(np.concatenate(rows), offsets, None, pa.array([f"u{n}" for n in range(5)]))


@pytest.mark.parametrize("seen", [[], [1, 2, 3], list(range(1, 35))])
def test_drawn_items_are_distinct_and_unseen(seen):
    generator = np.random.default_rng(1)
    drawn = np.concatenate([draw_unseen(generator, NUM_ITEMS, M, np.array(seen, dtype=int)) for _ in range(50)])
    assert drawn.min() >= 1
    assert drawn.max() <= NUM_ITEMS
    assert not set(drawn.tolist()) & set(seen)
    assert all(len(set(row)) == M for row in drawn.reshape(50, M).tolist())
    assert len(set(drawn.tolist())) == NUM_ITEMS - len(seen)  # every allowed item can come


def test_too_few_unseen_items_are_refused():
    with pytest.raises(ValueError, match=r"met 38 of 40 items.*lower the number of candidates"):
        draw_unseen(np.random.default_rng(0), NUM_ITEMS, 3, np.arange(1, 39))


def test_the_true_item_stands_once_among_unseen_candidates_at_no_particular_place(sequences):
    dataset = CandidateDataset(sequences, 8, NUM_ITEMS, M, "random", seed=3)
    places = []
    for epoch in range(60):
        dataset.set_epoch(epoch)
        batch = collate_candidates([dataset[row] for row in range(len(dataset))])
        for row, user in enumerate(range(5)):
            items = sequences[user].tolist()
            history = [item for item in batch["input_ids"][row].tolist() if item]
            target = int(batch["labels"][row, 0])
            at = items.index(target)
            assert history == items[max(0, at - 8) : at]
            candidates = batch["candidates"][row].tolist()
            assert len(set(candidates)) == M
            assert set(candidates) & set(items) == {target}
            places.append(candidates.index(target))
    assert np.bincount(places, minlength=M).min() > 0.5 * len(places) / M


def test_rows_depend_on_seed_epoch_and_row_only(sequences):
    def rows(seed, epoch, order):
        datasets = [
            CandidateDataset(sequences, 8, NUM_ITEMS, M, "random", seed),
            DistillationPromptDataset(sequences, None, 6, NUM_ITEMS, M, "random", seed),
        ]
        for dataset in datasets:
            dataset.set_epoch(epoch)
        return [{row: datasets[0][row] for row in order}, {row: datasets[1][row] for row in order}]

    def equal(one, two):
        return all(
            np.array_equal(one[part][row][name], two[part][row][name])
            for part in range(2)
            for row in one[part]
            for name in one[part][row]
        )

    first = rows(0, 1, [0, 1, 2])
    assert equal(first, rows(0, 1, [2, 1, 0]))
    assert not equal(first, rows(0, 2, [0, 1, 2]))
    assert not equal(first, rows(1, 1, [0, 1, 2]))


def test_a_retrieved_list_gets_the_true_item_once_and_keeps_its_order():
    retrieved = torch.tensor([[5, 6, 7], [5, 9, 7], [9, 6, 7]])
    drawn = torch.tensor([[1, 9, 2], [9, 1, 2], [1, 2, 9]])
    found = with_target(retrieved, torch.full((3, 1), 9), drawn)
    assert found.tolist() == [[5, 9, 6], [9, 5, 7], [6, 7, 9]]


def test_users_with_short_histories_are_left_out_of_stage_one(sequences):
    dataset = DistillationPromptDataset(sequences, None, 6, NUM_ITEMS, M)
    assert dataset.users.tolist() == [1, 2, 3, 4]
    assert dataset.left_out == 1
    with pytest.raises(ValueError, match=r"at least α \+ 2 = 22 items.*has 20: lower `alpha`"):
        DistillationPromptDataset(sequences, None, 22, NUM_ITEMS, M)


def test_the_target_of_temporal_analysis_is_the_second_to_last_item(sequences):
    dataset = DistillationPromptDataset(sequences, None, 6, NUM_ITEMS, M, "last")
    inputs = collate_distillation([dataset[row] for row in range(4)])
    batch = temporal_analysis(inputs["input_ids"], inputs["unseen"], inputs["orders"][:, 0])
    for row, user in enumerate(dataset.users):
        assert int(batch.target[row]) == sequences[user][-2]
        candidates = batch.candidates[row].tolist()
        assert len(set(candidates)) == M
        assert set(candidates) & set(sequences[user].tolist()) == {int(sequences[user][-2])}


def test_pattern_simulating_offers_the_teachers_list_and_others_and_asks_for_its_first():
    recommended = torch.tensor([[7, 8, 9], [1, 2, 3]])
    unseen = torch.tensor([[8, 20, 9, 21, 22, 23], [30, 31, 32, 33, 34, 35]])
    order = torch.tensor([[5, 4, 3, 2, 1, 0], [0, 1, 2, 3, 4, 5]])
    batch = pattern_simulating(torch.ones(2, 4, dtype=torch.long), recommended, unseen, order)
    assert batch.candidates.tolist() == [[22, 21, 20, 9, 8, 7], [1, 2, 3, 30, 31, 32]]
    assert batch.target.tolist() == [7, 1]
    assert torch.equal(batch.recommended, recommended)


def test_lambda_is_the_inverse_gradient_norm_rule_without_gradient():
    ta, rps, a = 0.3, 2.7, 0.5
    expected = ta**-a / (ta**-a + rps**-a)
    weight = inverse_gradient_weight(ta, rps, a)
    assert weight == pytest.approx(expected)
    assert isinstance(weight, float)  # detached
    assert inverse_gradient_weight(rps, ta, a) == pytest.approx(1 - expected)
    assert inverse_gradient_weight(ta, rps, 0) == 0.5
    for ta, rps in ((0.0, 1.0), (1.0, 0.0), (float("nan"), 1.0), (1.0, float("inf"))):
        assert inverse_gradient_weight(ta, rps) == 0.5


def test_arguments_that_make_no_sense_are_refused(tmp_path):
    folder = str(tmp_path)
    for wrong, message in (
        ({"task_weighting": "hand"}, "task_weighting"),
        ({"ta_weight": 1.5}, r"in \[0, 1\]"),
        ({"held_out_users": 1.0}, r"in \[0, 1\)"),
        ({"targets": "all"}, "random"),
        ({"rank_warmup": 0.6, "rank_final": 0.5}, "shares of the steps"),
    ):
        with pytest.raises(ValueError, match=message):
            SoftPromptTrainingArguments(folder, use_cpu=True, **wrong)
    for wrong, message in (
        ({"candidates": "all"}, "drawn, retrieved"),
        ({"train_candidates": 1}, "at least 2"),
        ({"eval_negatives": 0}, "at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            PromptTuningTrainingArguments(folder, use_cpu=True, **wrong)
    assert SoftPromptTrainingArguments(folder, use_cpu=True, task_weighting="fixed", ta_weight=0.0).tasks == ("rps",)
    assert SoftPromptTrainingArguments(folder, use_cpu=True, task_weighting="fixed", ta_weight=1.0).tasks == ("ta",)
    assert SoftPromptTrainingArguments(folder, use_cpu=True).tasks == ("ta", "rps")
