"""Training the heads alone, and items that training never met."""

import math

import numpy as np
import pyarrow as pa
import pytest
import torch
import torch.nn.functional as F
from huggingface_hub.errors import StrictDataclassClassValidationError

from hf_seqrec.data import Sequences, leave_one_out
from hf_seqrec.modeling.distillation import DistillationObjective
from hf_seqrec.modeling.llm_srec import LLMSRecForSequentialRecommendation
from hf_seqrec.trainers.data import NegativeSampler
from hf_seqrec.trainers.distillation import (
    DistillationTrainer,
    DistillationTrainingArguments,
    heads_arguments,
)


HEADS = ("user_head.", "item_head.", "teacher_head.", "logit_scale")
HISTORIES = torch.tensor([[0, 1, 2], [3, 4, 5]])
LABELS = torch.tensor([[-100, -100, 4], [-100, -100, 9]])


@pytest.fixture
def split(sequences):
    return leave_one_out(sequences)


def arguments(folder, **options):
    options = {
        "per_device_train_batch_size": 8, "num_train_epochs": 4, "targets": "all", "prefixes_per_sequence": 1, "use_cpu": True,
        "disable_tqdm": True, "save_strategy": "epoch", "early_stopping_patience": 0, "lr_scheduler_type": "constant", "cutoffs": [1, 5],
        "metric_for_best_model": "ndcg@5", **options,
    }  # fmt: skip
    return DistillationTrainingArguments(str(folder), **options)


def weights(model):
    return {name: value.detach().clone() for name, value in model.named_parameters()}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"lora": {"r": 2, "target_modules": "all-linear"}},
        {"user_vector": True},
        {"pooling": "mean", "cosine": True},
    ],
)
def test_only_the_heads_move_and_each_prompt_runs_once(make, split, tmp_path, options):
    model, _ = make("bert", **options)
    before = weights(model)
    args = heads_arguments(arguments(tmp_path), epochs=6, prefix_cycle=2)
    tokens = []

    class Count(DistillationTrainer):
        def log(self, logs, start_time=None):
            tokens.append(model.encoder.tokens_seen)
            super().log(logs, start_time)

    Count(model, args, train_dataset=split.train, eval_dataset=split.validation).train()
    moved = {name for name, value in weights(model).items() if not torch.equal(value, before[name])}
    assert moved == {name for name in before if name.startswith(HEADS)}
    # Two epochs meet all prefixes of the cycle, two evaluations all validation histories; after that the LLM rests.
    assert tokens[0] > 0
    assert len(set(tokens[4:])) == 1
    model.train_heads_only(False)
    assert model.item_out.requires_grad
    assert not any(parameter.requires_grad for parameter in model.teacher.parameters())


def test_every_known_item_but_the_history_is_a_candidate(make):
    model, _ = make("bert")
    model.set_known_items(np.array([1, 2, 3, 4, 5, 6, 9]))
    model.train_heads_only()
    loss = model(HISTORIES, LABELS, objective=DistillationObjective("none", uniformity_weight=0.0)).loss
    scores = model.encode_users(HISTORIES) @ model.encode_items(torch.arange(1, 13)).T
    candidates = [[3, 4, 5, 6, 9], [1, 2, 6, 9]]
    by_hand = [
        -F.log_softmax(row[torch.tensor(among) - 1], 0)[among.index(target)]
        for row, among, target in zip(scores, candidates, (4, 9), strict=True)
    ]
    torch.testing.assert_close(loss, torch.stack(by_hand).mean())
    assert model.encode_users(HISTORIES).requires_grad


def test_scores_follow_the_heads_without_running_a_prompt(make):
    model, _ = make("bert")
    first = model.score(HISTORIES)
    seen = model.encoder.tokens_seen
    with torch.no_grad():
        model.item_head[-1].weight.data.mul_(2)
        model.item_head[-1].bias.data.mul_(2)
    torch.testing.assert_close(model.score(HISTORIES)[:, 1:], 2 * first[:, 1:])
    assert model.encoder.tokens_seen == seen
    with torch.no_grad():
        model.item_out.data.copy_(model.user_out)
    assert not torch.allclose(model.score(HISTORIES)[:, 1:], 2 * first[:, 1:])
    assert model.encoder.tokens_seen > seen


def test_scores_follow_the_scale_without_running_a_prompt(make):
    model, _ = make("bert", cosine=True)
    first = model.score(HISTORIES)
    seen = model.encoder.tokens_seen
    with torch.no_grad():
        model.logit_scale.data.sub_(math.log(2))
    torch.testing.assert_close(model.score(HISTORIES)[:, 1:], first[:, 1:] / 2)
    assert model.encoder.tokens_seen == seen


def test_a_resumed_head_training_ends_at_the_same_weights(make, split, tmp_path):
    def run(folder, **options):
        model, _ = make("bert", item_vector_dropout=0.3)
        args = heads_arguments(
            arguments(tmp_path / folder, optim="sgd"),
            4,
            load_best_model_at_end=False,
            save_total_limit=9,
            learning_rate=0.1,
        )
        trainer = DistillationTrainer(model, args, train_dataset=split.train, eval_dataset=split.validation)
        trainer.train(**options)
        return weights(model)

    whole = run("one")
    checkpoints = sorted((tmp_path / "one" / "heads").glob("checkpoint-*"), key=lambda folder: folder.stat().st_mtime)
    resumed = run("two", resume_from_checkpoint=str(checkpoints[1]))
    for name, value in whole.items():
        torch.testing.assert_close(resumed[name], value, atol=1e-6, rtol=1e-5)


def test_prefixes_come_again_after_a_cycle(make, split, tmp_path):
    model, _ = make("bert")
    rows = DistillationTrainer.make_dataset(model, arguments(tmp_path, prefix_cycle=2), split.train)

    def epoch(number):
        rows.set_epoch(number)
        return [tuple(rows[row]["item_index"]) for row in range(len(rows))]

    assert epoch(0) == epoch(2) != epoch(1) == epoch(3)


def test_arguments_of_the_heads_keep_the_loss_and_refuse_unknown_fields(tmp_path):
    first = arguments(tmp_path, mse_reduction="sum", seed=3, lr_decay_per_evaluation=0.5, max_steps=7)
    second = heads_arguments(first, 5, learning_rate=0.1)
    assert (second.mse_reduction, second.seed, second.learning_rate) == ("sum", 3, 0.1)
    assert (second.max_steps, second.num_train_epochs, second.lr_decay_per_evaluation) == (-1, 5, 1.0)
    assert (first.max_steps, first.train_heads_only) == (7, False)
    with pytest.raises(TypeError, match="no field 'learning_rat'"):
        heads_arguments(first, 5, learning_rat=0.1)


# --- items that training never met


def test_the_trainer_tells_the_model_what_it_trains_on_and_a_saved_model_remembers(make, tmp_path):
    items = np.array([1, 2, 3, 4, 5, 2, 3, 4, 6, 7])
    split = leave_one_out(Sequences(items, np.array([0, 5, 10]), None, pa.array(["ann", "bob"])))
    model, _ = make("bert")
    trainer = DistillationTrainer(
        model,
        arguments(tmp_path, eval_strategy="no", save_strategy="no", load_best_model_at_end=False),
        train_dataset=split.train,
    )
    assert model.known_items.nonzero().flatten().tolist() == [1, 2, 3, 4]
    drawn = {int(item) for batch in trainer.get_train_dataloader() for item in batch["negatives"].flatten()}
    assert drawn <= {1, 2, 3, 4}
    model.save_pretrained(tmp_path / "saved")
    again = LLMSRecForSequentialRecommendation.from_pretrained(tmp_path / "saved").eval()
    assert torch.equal(again.known_items, model.known_items)
    torch.testing.assert_close(again.score(HISTORIES), model.eval().score(HISTORIES))


@pytest.mark.parametrize("item_vectors", ["teacher", "aligned"])
def test_the_slot_of_an_unknown_item_does_not_read_the_teacher_s_vector_of_it(make, item_vectors):
    model, _ = make("bert", item_vectors=item_vectors)
    model.set_known_items(np.arange(1, 9))
    unknown, known = torch.tensor([9, 10]), torch.tensor([1, 2])
    before = model.encode_items(unknown), model.encode_items(known)
    with torch.no_grad():
        model.teacher.model.item_encoder.id_embedding.weight[9:11] += 1
    model.update_item_latents() if item_vectors == "aligned" else None
    torch.testing.assert_close(model.encode_items(unknown), before[0])
    with torch.no_grad():
        model.teacher.model.item_encoder.id_embedding.weight[1:3] += 1
    model.update_item_latents() if item_vectors == "aligned" else None
    assert not torch.allclose(model.encode_items(known), before[1])
    # As many other items: nothing that was kept may answer for them.
    kept = model.item_representations()
    model.set_known_items(np.arange(5, 13))
    assert not torch.allclose(model.item_representations()[9:], kept[9:])
    with pytest.raises(ValueError, match="must be item_index 1 … 12"):
        model.set_known_items(np.array([0, 3]))


def test_vectors_are_left_out_in_training_only(make):
    model, _ = make("bert", item_vector_dropout=1.0)
    items = torch.arange(1, 13)
    with_vectors = model.encode_items(items)
    without = model.item_head(model.item_states(items, torch.zeros(12, dtype=torch.bool)))
    assert not torch.allclose(with_vectors, without)
    torch.testing.assert_close(model.train().encode_items(items), without)
    torch.testing.assert_close(model.item_head(model.eval().catalogue_states(own=False)[1:]), without)
    with pytest.raises(StrictDataclassClassValidationError, match="is a share in"):
        make("bert", item_vector_dropout=1.5)


def test_weights_of_zero_are_never_drawn_and_an_empty_rest_is_refused():
    sampler = NegativeSampler(4, 2, per="sequence", exclude_history=True, weights=np.array([0, 1, 1, 1, 0]))
    generator = np.random.default_rng(0)
    assert {int(item) for _ in range(50) for item in sampler(generator, 1, np.array([1, 2])).flatten()} == {3}
    with pytest.raises(ValueError, match="no negative is left"):
        sampler(generator, 1, np.array([1, 2, 3]))
