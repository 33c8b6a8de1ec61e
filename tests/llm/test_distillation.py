import math

import numpy as np
import pytest
import torch

from hf_seqrec.data import Sequences, leave_one_out
from hf_seqrec.evaluation import Protocol, RankingEvaluator
from hf_seqrec.modeling.distillation import DistillationObjective, infonce, squared_error, uniformity
from hf_seqrec.modeling.llm_srec import LLMSRecForSequentialRecommendation
from hf_seqrec.trainers.a_llmrec import aligned_item_losses, train_aligned_items
from hf_seqrec.trainers.distillation import (
    DataCollatorForDistillation,
    DistillationTrainer,
    DistillationTrainingArguments,
    TimedSequenceDataset,
)


# --- the terms by hand

U = torch.tensor([[3.0, 4.0], [0.0, 2.0]])
C = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
SCORES = torch.tensor([[1.0, 0.0, -torch.inf], [0.0, 2.0, 1.0]])
TARGET = torch.tensor([0, 1])
RETRIEVAL = (math.log(1 + math.e**-1) + math.log(1 + math.e**-2 + math.e**-1)) / 2


def terms(**options):
    return {name: float(term) for name, term in DistillationObjective(**options)(SCORES, TARGET, U, C).items()}


def test_published_loss_by_hand():
    """Unit vectors: u = (.6, .8), (0, 1); squared errors .16 + .64 and 0, mean over 2 dimensions and 2 rows."""
    found = terms()
    assert found["retrieval"] == pytest.approx(RETRIEVAL)
    assert found["distillation"] == pytest.approx((0.16 + 0.64) / 2 / 2)
    # One pair: the teacher's vectors are at squared distance 2, the user's at .36 + .04.
    assert found["uniformity"] == pytest.approx(math.exp(-4) + math.exp(-2 * 0.4))


def test_written_loss_by_hand():
    """Equations 2 and 3 as written: no unit vectors, all pairs with the diagonal."""
    found = terms(normalize=False, include_self=True)
    assert found["distillation"] == pytest.approx(((4 + 16) / 2 + 1 / 2) / 2)
    # User vectors at squared distance 9 + 4 = 13; of four ordered pairs two are of a user with itself.
    assert found["uniformity"] == pytest.approx((2 + 2 * math.exp(-4)) / 4 + (2 + 2 * math.exp(-26)) / 4)


def test_sum_over_dimensions_weighs_as_many_times_more():
    assert terms(mse_reduction="sum")["distillation"] == pytest.approx(2 * terms()["distillation"])


def test_infonce_by_hand():
    """Unit vectors, τ = 0.5: row 0 has u·c = .6 and .8, row 1 has 0 and 1."""
    found = terms(distillation="infonce", temperature=0.5)
    first = -math.log(math.exp(1.2) / (math.exp(1.2) + math.exp(1.6)))
    second = -math.log(math.exp(2.0) / (math.exp(0.0) + math.exp(2.0)))
    assert found["distillation"] == pytest.approx((first + second) / 2)


def test_weights_multiply_and_switches_remove_terms():
    heavy = terms(distillation_weight=3.0, uniformity_weight=0.5)
    assert heavy["distillation"] == pytest.approx(3 * terms()["distillation"])
    assert heavy["uniformity"] == pytest.approx(terms()["uniformity"] / 2)
    assert set(terms(distillation="none", uniformity_weight=0.0)) == {"retrieval"}
    assert set(terms(uniformity_weight=0.0)) == {"retrieval", "distillation"}


def test_rows_of_a_step_add_up_over_its_parts():
    objective = DistillationObjective(uniformity_weight=0.0)
    whole = objective(SCORES, TARGET, U, C)
    parts = [objective(SCORES[r : r + 1], TARGET[r : r + 1], U[r : r + 1], C[r : r + 1], count=2) for r in range(2)]
    for name, term in whole.items():
        torch.testing.assert_close(sum(part[name] for part in parts), term)


def test_uniformity_of_random_vectors_equals_the_mean_over_pairs():
    vectors = torch.nn.functional.normalize(torch.randn(7, 5), dim=-1)
    pairs = [math.exp(-2 * float((vectors[a] - vectors[b]).square().sum())) for a in range(7) for b in range(a)]
    assert float(uniformity(vectors)) / 7 == pytest.approx(np.mean(pairs), rel=1e-5)
    assert float(uniformity(vectors[:1])) == 0.0


def test_the_terms_differentiate():
    user, teacher = torch.randn(4, 6, requires_grad=True, dtype=torch.double), torch.randn(4, 6, dtype=torch.double)
    for term in (lambda u: squared_error(u, teacher), lambda u: infonce(u, teacher, 0.5), uniformity):
        gradient = torch.autograd.grad(term(user), user)[0]
        moved = user.detach().clone()
        moved[1, 2] += 1e-2
        back = user.detach().clone()
        back[1, 2] -= 1e-2
        assert float(gradient[1, 2]) == pytest.approx(float(term(moved) - term(back)) / 2e-2, rel=2e-2, abs=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"distillation": "kl"}, "`distillation` must be one of mse, infonce, none, got 'kl'"),
        ({"mse_reduction": "max"}, "`mse_reduction` must be 'mean' or 'sum'"),
        ({"temperature": 0.0}, "`temperature` must be positive"),
    ],
)
def test_unknown_losses_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        DistillationObjective(**options)


def test_distillation_without_a_teacher_is_refused():
    with pytest.raises(ValueError, match="needs a teacher, this model has none"):
        DistillationObjective()(SCORES, TARGET, U)


# --- rows


def test_rows_hold_histories_times_and_negatives_outside_the_sequence(sequences):
    from hf_seqrec.trainers import NegativeSampler

    dataset = TimedSequenceDataset(sequences, max_length=6)
    collate = DataCollatorForDistillation(sampler=NegativeSampler(12, 3, "sequence", True), sequences=sequences)
    batch = collate([dataset[row] for row in range(5)])
    for row in range(5):
        items = sequences[row]
        shown = batch["input_ids"][row][batch["input_ids"][row] > 0]
        assert shown.tolist() == items[-7:-1].tolist()
        assert batch["labels"][row].tolist()[-1] == items[-1]
        assert (batch["labels"][row, :-1] == -100).all()
        assert not set(batch["negatives"][row, 0].tolist()) & set(items.tolist())
        times = sequences.timestamps[sequences.offsets[row] : sequences.offsets[row + 1]]
        assert batch["timestamps"][row][-len(shown) :].tolist() == times[-7:-1].tolist()
    again = collate([dataset[row] for row in (4, 0)])
    assert again["negatives"].tolist() == batch["negatives"][[4, 0]].tolist()  # of the row, not of the batch
    dataset.set_epoch(1)
    assert collate([dataset[row] for row in range(5)])["negatives"].tolist() != batch["negatives"].tolist()


# --- training


def arguments(folder, **options):
    options = {
        "max_steps": 4, "per_device_train_batch_size": 6, "learning_rate": 1e-2, "eval_strategy": "no", "save_strategy": "no",
        "load_best_model_at_end": False, "use_cpu": True, "disable_tqdm": True, "logging_strategy": "steps", "logging_steps": 1,
        **options,
    }  # fmt: skip
    return DistillationTrainingArguments(str(folder), **options)


@pytest.fixture
def split(sequences):
    return leave_one_out(sequences)


def test_training_lowers_the_loss_and_moves_what_is_trained_only(make, split, tmp_path):
    model, processor = make("bert")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    trainer = DistillationTrainer(
        model, arguments(tmp_path, max_steps=20), train_dataset=split.train, processing_class=processor
    )
    trainer.train()
    logs = [log for log in trainer.state.log_history if "loss_retrieval" in log]
    assert len(logs) == 20
    for log in logs:  # the terms are the loss
        parts = log["loss_retrieval"] + log["loss_distillation"] + log["loss_uniformity"]
        assert log["loss"] == pytest.approx(parts, rel=1e-3)
    assert np.mean([log["loss"] for log in logs[-5:]]) < 0.85 * np.mean([log["loss"] for log in logs[:5]])
    after = model.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_a_baseline_trains_without_teacher(make, split, tmp_path):
    lora = {"r": 2, "target_modules": "all-linear"}
    model, _ = make("llama", teacher=None, item_vectors="none", distilled=False, lora=lora)
    start = {name: p.detach().clone() for name, p in model.named_parameters() if ".lora_B" in name}
    args = arguments(tmp_path, distillation="none", uniformity_weight=0.0)
    DistillationTrainer(model, args, train_dataset=split.train).train()
    assert all(not torch.equal(dict(model.named_parameters())[name], value) for name, value in start.items())


def test_accumulation_does_not_change_the_loss_of_a_step(make, split, tmp_path):
    weights = []
    for batch, steps in ((6, 1), (2, 3)):
        model, _ = make("bert", in_batch_negatives=False)
        args = arguments(
            tmp_path, per_device_train_batch_size=batch, gradient_accumulation_steps=steps, uniformity_weight=0.0,
            optim="sgd", learning_rate=0.1, lr_scheduler_type="constant",
        )  # fmt: skip
        DistillationTrainer(model, args, train_dataset=split.train).train()
        weights.append(torch.cat([p.detach().flatten() for p in model.parameters() if p.requires_grad]))
    torch.testing.assert_close(weights[0], weights[1], atol=1e-5, rtol=1e-4)


def test_a_resumed_run_ends_at_the_same_weights(make, split, tmp_path):
    def prepare(folder):
        model, processor = make("bert")
        args = arguments(folder, save_strategy="steps", save_steps=2, save_total_limit=2)
        trainer = DistillationTrainer(model, args, train_dataset=split.train, processing_class=processor)
        return model, trainer

    whole, trainer = prepare(tmp_path)
    trainer.train()
    resumed, trainer = prepare(tmp_path / "again")
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert trainer.state.global_step == 4
    for (name, a), b in zip(whole.named_parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b), name
    loaded = LLMSRecForSequentialRecommendation.from_pretrained(tmp_path / "checkpoint-4")
    ids = torch.tensor([[1, 2, 3]])
    torch.testing.assert_close(loaded.score(ids), whole.eval().score(ids))


def test_the_best_checkpoint_is_kept_and_its_metric_is_what_an_evaluation_finds(make, split, tmp_path):
    model, processor = make("bert")
    args = arguments(
        tmp_path, max_steps=4, eval_strategy="steps", eval_steps=2, save_strategy="steps", save_steps=2,
        load_best_model_at_end=True, cutoffs=[5, 10],
    )  # fmt: skip
    trainer = DistillationTrainer(
        model, args, train_dataset=split.train, eval_dataset=split.validation, processing_class=processor
    )
    trainer.train()
    found = RankingEvaluator(split.validation, 12, Protocol(part="validation", cutoffs=[5, 10]))(model).metrics
    assert found["ndcg@10"] == pytest.approx(trainer.state.best_metric, abs=1e-6)


@pytest.mark.parametrize("targets", ["last", "all"])
def test_an_epoch_visits_last_items_or_all_prefixes(make, split, tmp_path, targets):
    model, _ = make("bert")
    trainer = DistillationTrainer(model, arguments(tmp_path, targets=targets), train_dataset=split.train)
    lengths = split.train.lengths[split.train.lengths >= 2]
    assert len(trainer.train_dataset) == (len(lengths) if targets == "last" else (lengths - 1).sum())
    trainer.train()


def test_the_learning_rate_falls_at_every_evaluation(make, split, tmp_path):
    model, _ = make("bert")
    args = arguments(
        tmp_path, max_steps=6, eval_strategy="steps", eval_steps=2, lr_decay_per_evaluation=0.5, learning_rate=0.01, cutoffs=[5],
        metric_for_best_model="ndcg@5",
    )  # fmt: skip
    trainer = DistillationTrainer(model, args, train_dataset=split.train, eval_dataset=split.validation)
    trainer.train()
    rates = [log["learning_rate"] for log in trainer.state.log_history if "learning_rate" in log]
    assert rates == pytest.approx([0.01, 0.01, 0.005, 0.005, 0.0025, 0.0025])


def test_prompts_with_dates_are_trained_and_evaluated_with_the_times_of_their_rows(make, split, tmp_path):
    model, _ = make("bert", dates=True)
    trainer = DistillationTrainer(
        model, arguments(tmp_path, max_steps=1, cutoffs=[5]), train_dataset=split.train, eval_dataset=split.validation
    )
    trainer.train()
    found = trainer.evaluate()
    es = split.validation
    result = RankingEvaluator(es, 12, Protocol(part="validation", cutoffs=[5]), batch_size=7)(model)
    assert found["eval_ndcg@5"] == pytest.approx(result.metrics["ndcg@5"])
    for row in range(4):
        history, start, stop = es.history(row)[-6:], int(es.start[row]), int(es.stop[row])
        times = es.sequences.timestamps[start:stop][-6:]
        scores = model.score(
            torch.from_numpy(history.astype(np.int64))[None], timestamps=torch.from_numpy(times)[None]
        )[0]
        scores[torch.from_numpy(es.history(row).astype(np.int64))] = -torch.inf
        assert result.ranks[row] == int((scores > scores[int(es.target[row])]).sum())


def test_what_cannot_be_trained_is_refused_before_the_first_step(make, split, tmp_path):
    plain, _ = make("bert", distilled=False)
    with pytest.raises(ValueError, match="needs a model built with `distilled=True`"):
        DistillationTrainer(plain, arguments(tmp_path), train_dataset=split.train)
    dated, _ = make("bert", dates=True)
    untimed = Sequences(split.train.item_index, split.train.offsets, None, split.train.user_ids)
    with pytest.raises(ValueError, match="only the order is known"):
        DistillationTrainer(dated, arguments(tmp_path), train_dataset=untimed)
    model, _ = make("bert")
    other = Sequences(split.train.item_index + 5, split.train.offsets, None, split.train.user_ids)
    with pytest.raises(ValueError, match="the model's catalogue ends at 12"):
        DistillationTrainer(model, arguments(tmp_path), train_dataset=other)
    for options, message in (
        ({"targets": "first"}, "`targets` must be 'last' or 'all'"),
        ({"lr_decay_per_evaluation": 2.0}, "must be in"),
        ({"num_negatives": -1}, "must not be negative"),
        ({"distillation": "kl"}, "must be one of mse"),
    ):
        with pytest.raises(ValueError, match=message):
            arguments(tmp_path, **options)


# --- stage 1 of A-LLMRec


def test_the_terms_of_stage_one_by_hand():
    class Aligned:
        encode_item = encode_text = staticmethod(lambda x: 2 * x)
        decode_item = decode_text = staticmethod(lambda x: x - 1)

    items, texts = torch.tensor([[0.0], [1.0], [3.0]]), torch.tensor([[0.0], [2.0], [3.0]])
    found = aligned_item_losses(Aligned, items, texts, torch.tensor([[1.0]]), torch.tensor([1]), torch.tensor([2]))
    # Items 1 and 2: latents 2 and 6, decoded 1 and 5; texts: latents 4 and 6, decoded 3 and 5.
    assert float(found["recommendation"]) == pytest.approx((math.log(1 + math.e**-1) + math.log(1 + math.e**5)) / 2)
    assert float(found["matching"]) == pytest.approx((4 + 0) / 2)
    assert float(found["item_reconstruction"]) == pytest.approx((0 + 4) / 2)
    assert float(found["text_reconstruction"]) == pytest.approx((1 + 4) / 2)


def test_stage_one_aligns_items_and_texts_and_fills_the_slots(make, split):
    model, _ = make("bert", item_vectors="aligned", latent_size=4, distilled=False, user_vector=True)
    before = model.item_latents.clone()
    history = train_aligned_items(model, split.train, epochs=15, batch_size=8, learning_rate=1e-2)
    assert history[-1]["matching"] < 0.5 * history[0]["matching"]
    assert history[-1]["item_reconstruction"] < history[0]["item_reconstruction"]
    assert not torch.equal(model.item_latents, before)
    assert model.item_latents[0].abs().max() == 0
    assert not any(parameter.requires_grad for parameter in model.aligned.parameters())
    plain, _ = make("bert")
    with pytest.raises(ValueError, match="needs item_vectors='aligned'"):
        train_aligned_items(plain, split.train)
    with pytest.raises(ValueError, match=r"`text_vectors` needs shape \(13, 16\)"):
        train_aligned_items(model, split.train, text_vectors=torch.zeros(3, 3))


# --- several processes


def _one_process(rank, folder, user, teacher, scores, target, options):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    rows = slice(0, 3) if rank == 0 else slice(3, 5)  # uneven parts, as at the end of an epoch
    mine = user[rows].clone().requires_grad_()
    found = DistillationObjective(**options)(scores[rows], target[rows], mine, teacher[rows], count=5)
    sum(found.values()).backward()
    torch.save(({name: term.detach() for name, term in found.items()}, mine.grad), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.multi_process
@pytest.mark.parametrize("distillation", ["mse", "infonce"])
def test_two_processes_together_have_the_loss_and_gradient_of_one(tmp_path, distillation):
    torch.manual_seed(0)
    user, teacher, scores, target = (
        torch.randn(5, 4),
        torch.randn(5, 4),
        torch.randn(5, 3),
        torch.tensor([0, 1, 2, 0, 1]),
    )
    options = {"distillation": distillation}
    torch.multiprocessing.start_processes(
        _one_process, (str(tmp_path), user, teacher, scores, target, options), nprocs=2, start_method="fork"
    )
    parts = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    whole = user.clone().requires_grad_()
    expected = DistillationObjective(**options)(scores, target, whole, teacher)
    sum(expected.values()).backward()
    for name, term in expected.items():
        torch.testing.assert_close(parts[0][0][name] + parts[1][0][name], term.detach())
    torch.testing.assert_close(torch.cat([parts[0][1], parts[1][1]]), whole.grad)
