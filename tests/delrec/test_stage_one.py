"""Stage 1: soft prompts learn, the LLM stays, λ and the step are what the equations say."""

import json

import numpy as np
import pytest
import torch
from transformers import TrainerCallback

from hf_seqrec.data import Sequences
from hf_seqrec.modeling.delrec import DELRecForSequentialRecommendation
from hf_seqrec.trainers.soft_prompt import (
    SoftPromptTrainer,
    SoftPromptTrainingArguments,
    agreement_floors,
    collate_distillation,
    inverse_gradient_weight,
    measure_agreement,
    task_batches,
    weights_fingerprint,
)


METRICS = {"ta_accuracy", "ta_agreement", "rps_agreement", "lsr_agreement", "ta_loss", "rps_loss", "loss"}


def arguments(folder, **options):
    options = {
        "per_device_train_batch_size": 4, "max_steps": 4, "learning_rate": 0.05, "held_out_users": 0.25, "eval_strategy": "no",
        "save_strategy": "no", "load_best_model_at_end": False, "eval_on_start": False, "logging_strategy": "steps", "logging_steps": 1,
        "early_stopping_patience": 0, "disable_tqdm": True, "use_cpu": True, "lr_scheduler_type": "constant", **options,
    }  # fmt: skip
    return SoftPromptTrainingArguments(str(folder), **options)


def quiet(trainer):
    from transformers import PrinterCallback

    trainer.remove_callback(PrinterCallback)
    return trainer


def test_soft_prompts_learn_and_the_llm_stays_bit_by_bit(make, sequences, tmp_path):
    model = make()
    before = weights_fingerprint(model.frozen_weights())
    rest = {name: p.clone() for name, p in model.named_parameters() if name != "soft_prompt.weight"}
    options = {"max_steps": 30, "targets": "last", "eval_strategy": "steps", "eval_steps": 15, "eval_on_start": True}
    trainer = quiet(SoftPromptTrainer(model, arguments(tmp_path, **options), train_dataset=sequences))
    trainer.train()
    losses = [log["loss"] for log in trainer.state.log_history if "loss" in log]
    assert np.mean(losses[-6:]) < np.mean(losses[:6]) - 0.1
    assert weights_fingerprint(model.frozen_weights()) == before
    assert all(torch.equal(p, rest[name]) for name, p in model.named_parameters() if name in rest)
    curve = [log for log in trainer.state.log_history if "eval_loss" in log]
    assert [log["step"] for log in curve] == [0, 15, 30]
    assert {f"eval_{name}" for name in METRICS} <= set(curve[0])
    weights = [log["ta_weight"] for log in trainer.state.log_history if "ta_weight" in log]
    assert len(weights) == 30
    assert len({round(weight, 6) for weight in weights}) > 5  # λ moves
    assert all(0 < weight < 1 for weight in weights)


def test_a_changed_llm_is_noticed(make, sequences, tmp_path):
    class Vandal(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **kwargs):
            with torch.no_grad():
                model.encoder.llm.get_input_embeddings().weight[7, 0] += 1e-6

    trainer = quiet(
        SoftPromptTrainer(make(), arguments(tmp_path, max_steps=1), train_dataset=sequences, callbacks=[Vandal()])
    )
    with pytest.raises(RuntimeError, match="a weight of the LLM changed in stage 1"):
        trainer.train()


def test_a_step_follows_equation_6(make, sequences, tmp_path):
    model, twin = make(), make()
    options = {
        "max_steps": 1,
        "lion": False,
        "optim": "sgd",
        "weight_decay": 0.0,
        "max_grad_norm": 0.0,
        "learning_rate": 0.1,
    }
    trainer = quiet(SoftPromptTrainer(model, arguments(tmp_path, **options), train_dataset=sequences))
    seen = {}
    step = trainer.training_step
    trainer.training_step = lambda model, inputs, count=None: seen.update(inputs) or step(model, inputs, count)
    trainer.train()
    twin.set_trainable(soft_prompts=True, llm=False)
    gradients = {}
    for task, batch in task_batches(twin, seen).items():
        scores = twin(batch.input_ids, candidates=batch.candidates, task=task, recommended=batch.recommended).scores
        picked = scores.log_softmax(1)[batch.candidates == batch.target.unsqueeze(1)]
        (gradients[task],) = torch.autograd.grad(-picked.mean(), twin.soft_prompt.weight)
    weight = inverse_gradient_weight(*(float(gradients[task].norm()) for task in ("ta", "rps")))
    expected = twin.soft_prompt.weight - 0.1 * (weight * gradients["ta"] + (1 - weight) * gradients["rps"])
    torch.testing.assert_close(model.soft_prompt.weight, expected)
    logged = next(log for log in trainer.state.log_history if "ta_weight" in log)
    assert logged["ta_weight"] == pytest.approx(weight, rel=1e-4)
    assert logged["loss"] == pytest.approx(weight * logged["loss_ta"] + (1 - weight) * logged["loss_rps"], rel=1e-4)


def test_accumulated_micro_batches_make_the_same_step(make, sequences, tmp_path):
    results = []
    for batch, accumulation in ((6, 1), (2, 3)):
        model = make()
        options = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation, "max_steps": 2}
        trainer = quiet(SoftPromptTrainer(model, arguments(tmp_path, **options), train_dataset=sequences))
        trainer.train()
        results.append(
            (
                model.soft_prompt.weight.detach(),
                [log["ta_weight"] for log in trainer.state.log_history if "ta_weight" in log],
            )
        )
    torch.testing.assert_close(results[0][0], results[1][0])
    assert results[0][1] == pytest.approx(results[1][1], rel=1e-4)


@pytest.mark.parametrize(("ta_weight", "left_out"), [(0.0, "loss_ta"), (1.0, "loss_rps")])
def test_one_task_alone_never_asks_the_other(make, sequences, tmp_path, ta_weight, left_out):
    options = {"task_weighting": "fixed", "ta_weight": ta_weight, "max_steps": 1}
    trainer = quiet(SoftPromptTrainer(make(), arguments(tmp_path, **options), train_dataset=sequences))
    trainer.train()
    assert not any(left_out in log for log in trainer.state.log_history)


def test_a_linear_schedule_goes_from_start_to_end(make, sequences, tmp_path):
    options = {"task_weighting": "linear", "ta_weight": 0.8, "ta_weight_end": 0.2, "max_steps": 3}
    trainer = quiet(SoftPromptTrainer(make(), arguments(tmp_path, **options), train_dataset=sequences))
    trainer.train()
    found = [log["ta_weight"] for log in trainer.state.log_history if "ta_weight" in log]
    assert found == pytest.approx([0.8, 0.5, 0.2])


def test_updating_both_trains_adapters_too_and_keeps_the_llms_own_weights(make, sequences, tmp_path):
    adapter = {"type": "adalora", "init_r": 3, "target_r": 1}
    model = make(adapter=adapter)
    before = {name: p.clone() for name, p in model.named_parameters() if model.is_adapter(name)}
    quiet(SoftPromptTrainer(model, arguments(tmp_path, update_llm=True), train_dataset=sequences)).train()
    assert any(not torch.equal(p, before[name]) for name, p in model.named_parameters() if name in before)
    with pytest.raises(ValueError, match="needs adapters"):
        SoftPromptTrainer(make(), arguments(tmp_path, update_llm=True), train_dataset=sequences)
    alone = make(adapter=adapter)
    quiet(SoftPromptTrainer(alone, arguments(tmp_path, max_steps=1), train_dataset=sequences)).train()
    assert all(torch.equal(p, before[name]) for name, p in alone.named_parameters() if name in before)


def test_users_kept_apart_train_nothing(make, sequences, tmp_path):
    train, held_out = SoftPromptTrainer.make_datasets(make(), arguments(tmp_path), sequences)
    assert not set(train.users.tolist()) & set(held_out.users.tolist())
    assert len(train) + len(held_out) + 1 == len(sequences)  # one user is too short for both tasks
    again = SoftPromptTrainer.make_datasets(make(), arguments(tmp_path, seed=7), sequences)[1]
    assert again.users.tolist() == held_out.users.tolist()  # whatever the seed of the run


def test_agreement_is_measured_and_its_floors_are_known(make, sequences, tmp_path):
    model = make()
    _, held_out = SoftPromptTrainer.make_datasets(model, arguments(tmp_path, held_out_users=0.5), sequences)
    values = measure_agreement(model, held_out, batch_size=2)
    torch.testing.assert_close(
        torch.tensor(measure_agreement(model, held_out)["ta_loss"]), torch.tensor(values["ta_loss"])
    )
    assert METRICS - {"loss"} == set(values)
    assert set(measure_agreement(make(pattern="none"), held_out)) == set(values)
    floors = agreement_floors(model, held_out, sequences)
    assert floors["chance"]["rps_agreement"] == 1 / 4
    assert floors["unprinted"]["rps_agreement"] == 1 / 3  # four candidates, of which one is printed
    # A ranker that is the teacher agrees with it always.
    inputs = collate_distillation([held_out[row] for row in range(len(held_out))])
    batch = task_batches(model, inputs)["rps"]
    best = model.teacher.score(batch.input_ids, candidates=batch.candidates).argmax(1)
    assert torch.equal(batch.candidates.gather(1, best.unsqueeze(1)).squeeze(1), batch.target)


def test_a_resumed_run_ends_like_one_that_never_stopped(make, sequences, tmp_path):
    options = {
        "save_strategy": "steps",
        "save_steps": 2,
        "save_total_limit": 5,
        "eval_strategy": "steps",
        "eval_steps": 2,
        "max_steps": 4,
    }
    whole = make()
    trainer = quiet(SoftPromptTrainer(whole, arguments(tmp_path / "run", **options), train_dataset=sequences))
    trainer.train()
    resumed = make()
    with torch.no_grad():
        resumed.soft_prompt.weight.zero_()
    again = quiet(SoftPromptTrainer(resumed, arguments(tmp_path / "run", **options), train_dataset=sequences))
    again.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    assert torch.equal(resumed.soft_prompt.weight, whole.soft_prompt.weight)
    last = [
        json.dumps({k: v for k, v in log.items() if "time" not in k and "second" not in k})
        for log in trainer.state.log_history
    ]
    last_again = [
        json.dumps({k: v for k, v in log.items() if "time" not in k and "second" not in k})
        for log in again.state.log_history
    ]
    assert last_again[-2] == last[-2]
    assert isinstance(
        DELRecForSequentialRecommendation.from_pretrained(tmp_path / "run" / "checkpoint-4"),
        DELRecForSequentialRecommendation,
    )


def test_what_cannot_be_distilled_is_refused(make, sequences, tmp_path):
    with pytest.raises(TypeError, match="pattern='soft'"):
        SoftPromptTrainer(make(pattern="manual"), arguments(tmp_path), train_dataset=sequences)
    with pytest.raises(ValueError, match="fp16"):
        arguments(tmp_path, fp16=True)
    high = Sequences(sequences.item_index + 3, sequences.offsets, None, sequences.user_ids)
    with pytest.raises(ValueError, match="item_index 19, the model's catalogue ends at 16"):
        SoftPromptTrainer(make(), arguments(tmp_path), train_dataset=high)
    short = Sequences(np.arange(1, 9), np.array([0, 4, 8]), None, sequences.user_ids[:2])
    with pytest.raises(ValueError, match=r"at least α \+ 2 = 5 items"):
        SoftPromptTrainer(make(), arguments(tmp_path), train_dataset=short)
