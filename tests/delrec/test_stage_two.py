"""Stage 2 and LlamaRec: adapters learn the true next item; AdaLoRA really takes ranks away."""

import pytest
import torch
from transformers import PrinterCallback

from hf_seqrec.data import leave_one_out
from hf_seqrec.modeling.llm_ranker import LLMRankerForSequentialRecommendation
from hf_seqrec.trainers.prompt_tuning import (
    PromptTuningTrainer,
    PromptTuningTrainingArguments,
    collate_candidates,
    orthogonality,
)


ADALORA = {"type": "adalora", "init_r": 4, "target_r": 1, "lora_alpha": 8}


def arguments(folder, **options):
    options = {
        "per_device_train_batch_size": 6, "max_steps": 10, "learning_rate": 0.01, "eval_strategy": "no", "save_strategy": "no",
        "load_best_model_at_end": False, "eval_negatives": 3, "metric_for_best_model": "ndcg@1/sampled3", "cutoffs": [1],
        "early_stopping_patience": 0, "disable_tqdm": True, "use_cpu": True, "logging_strategy": "steps", "logging_steps": 1,
        "targets": "last", "lr_scheduler_type": "constant", "weight_decay": 0.0, **options,
    }  # fmt: skip
    return PromptTuningTrainingArguments(str(folder), **options)


def trainer_of(model, folder, sequences, **options):
    split = leave_one_out(sequences)
    trainer = PromptTuningTrainer(
        model, arguments(folder, **options), train_dataset=split.train, eval_dataset=split.validation
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def adapters(model):
    return {name: p.detach().clone() for name, p in model.named_parameters() if ".lora_" in name}


@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_adalora_takes_ranks_away_while_the_loss_falls_and_soft_prompts_stay(make, sequences, tmp_path, kind):
    model = make(kind, adapter=ADALORA)
    soft = model.soft_prompt.weight.clone()
    frozen = {name: tensor.clone() for name, tensor in model.frozen_weights()}
    trainer = trainer_of(model, tmp_path, sequences, max_steps=20)
    trainer.train()
    losses = [log["loss"] for log in trainer.state.log_history if "loss" in log]
    assert sum(losses[-5:]) < sum(losses[:5])
    assert torch.equal(model.soft_prompt.weight, soft)
    assert all(torch.equal(tensor, frozen[name]) for name, tensor in model.frozen_weights())
    pattern = model.rank_allocator.peft_config["default"].rank_pattern
    ranks = {name.split(".lora_E")[0]: sum(kept) for name, kept in pattern.items()}
    assert sum(ranks.values()) <= len(ranks) * 1 < len(ranks) * 4  # target_r on average, init_r before
    # What was taken away is zero; what was kept may be, since Lion's steps of one size can lead back to it.
    values = {name: p.flatten() for name, p in model.encoder.llm.named_parameters() if ".lora_E." in name}
    assert {name.split(".lora_E")[0] for name in values} == set(model.ranks())
    for name, value in values.items():
        kept = torch.tensor(pattern[name])
        assert not value[~kept].any()
    assert 0 < sum(model.ranks().values()) <= sum(ranks.values())


def test_adalora_and_its_schedule_come_from_the_run(make, sequences, tmp_path):
    model = make(adapter=ADALORA)
    trainer_of(model, tmp_path, sequences, rank_warmup=0.2, rank_final=0.5).train()
    config = model.rank_allocator.peft_config["default"]
    assert (config.total_step, config.tinit, config.tfinal) == (10, 2, 5)


def test_the_orthogonality_term_is_that_of_adalora(make):
    model = make(adapter=ADALORA)
    norms = []
    for name, weight in adapters(model).items():
        if "lora_E" not in name:
            small = weight @ weight.T if "lora_A" in name else weight.T @ weight
            norms.append(float((small - torch.eye(4)).square().sum().sqrt()))
    assert float(orthogonality(model)) == pytest.approx(sum(norms) / len(norms), rel=1e-5)
    assert len(norms) == 2 * 2  # A and B of queries and values
    assert orthogonality(make()) is None


def test_micro_batches_make_the_same_step(make, sequences, tmp_path):
    results = []
    for batch, accumulation in ((6, 1), (2, 3)):
        model = make(adapter=ADALORA)
        options = {"lion": False, "optim": "sgd", "max_grad_norm": 0.0, "max_steps": 2, "learning_rate": 0.1}
        options |= {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation}
        trainer_of(model, tmp_path, sequences, **options).train()
        results.append(adapters(model))
    for name, weight in results[0].items():
        torch.testing.assert_close(results[1][name], weight, atol=1e-5, rtol=1e-4)


def test_updating_both_also_moves_the_soft_prompts(make, sequences, tmp_path):
    model = make(adapter=ADALORA)
    soft = model.soft_prompt.weight.clone()
    trainer_of(model, tmp_path, sequences, update_soft_prompts=True, max_steps=2).train()
    assert not torch.equal(model.soft_prompt.weight, soft)


def test_a_resumed_run_keeps_what_adalora_knows(make, sequences, tmp_path):
    options = {"save_strategy": "steps", "save_steps": 4, "save_total_limit": 5, "max_steps": 8}
    whole = make(adapter=ADALORA)
    trainer_of(whole, tmp_path / "run", sequences, **options).train()
    resumed = make(adapter=ADALORA)
    again = trainer_of(resumed, tmp_path / "run", sequences, **options)
    again.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-4"))
    for name, weight in adapters(whole).items():
        assert torch.equal(adapters(resumed)[name], weight), name
    assert resumed.ranks() == whole.ranks()


@pytest.mark.parametrize("lion", [True, False])
def test_lion_is_the_librarys_and_adamw_an_option(make, sequences, tmp_path, lion):
    from lion_pytorch import Lion

    trainer = trainer_of(make(adapter={"type": "lora", "r": 2}), tmp_path, sequences, lion=lion, max_steps=1)
    trainer.train()
    optimizer = trainer.optimizer.optimizer
    assert isinstance(optimizer, Lion if lion else torch.optim.AdamW)
    assert optimizer.param_groups[0]["lr"] == 0.01


def test_validation_ranks_candidates_that_are_drawn_once(make, sequences, tmp_path):
    trainer = trainer_of(make(adapter=ADALORA), tmp_path, sequences, max_eval_users=5)
    one, two = trainer.evaluate(), trainer.evaluate()
    assert one["eval_ndcg@1/sampled3"] == two["eval_ndcg@1/sampled3"]
    assert trainer.predict(leave_one_out(sequences).test).predictions.shape == (12,)


def test_llamarec_learns_from_retrieved_candidates(llms, teacher, catalogue, sequences, tmp_path):
    torch.manual_seed(0)
    model, _ = LLMRankerForSequentialRecommendation.from_parts(
        llms["llama"], teacher, catalogue, domain="movie", task="index", num_candidates=5, history_length=6, max_title_tokens=8,
        lora={"r": 4, "target_modules": ["q_proj", "v_proj"]},
    )  # fmt: skip
    trainer = trainer_of(model, tmp_path, sequences, candidates="retrieved", max_steps=12)
    seen = []
    ask = model.forward

    def spy(input_ids, **kwargs):
        seen.append((input_ids, kwargs))
        return ask(input_ids, **kwargs)

    model.forward = spy
    trainer.train()
    for input_ids, kwargs in seen:
        candidates, labels = kwargs["candidates"], kwargs["labels"]
        assert ((candidates == labels).sum(1) == 1).all()
        best = teacher.score(input_ids).detach().scatter(1, input_ids, -torch.inf).topk(5).indices
        for row in range(len(candidates)):
            others = set(candidates[row].tolist()) - {int(labels[row])}
            assert others <= set(best[row].tolist())
    losses = [log["loss"] for log in trainer.state.log_history if "loss" in log]
    assert sum(losses[-4:]) < sum(losses[:4])


def test_the_loss_is_the_cross_entropy_of_the_true_item(make, sequences, tmp_path):
    model = make(adapter=ADALORA)
    trainer = trainer_of(model, tmp_path, sequences)
    batch = collate_candidates([trainer.train_dataset[row] for row in range(4)])
    out = model(**batch)
    expected = -out.scores.log_softmax(1)[batch["candidates"] == batch["labels"]].mean()
    torch.testing.assert_close(out.loss, expected)


def test_what_cannot_be_tuned_is_refused(make, sequences, tmp_path, llms, teacher, catalogue):
    with pytest.raises(ValueError, match="no adapter to tune"):
        trainer_of(make(), tmp_path, sequences)
    ranker, _ = LLMRankerForSequentialRecommendation.from_parts(
        llms["llama"], teacher, catalogue, num_candidates=4, history_length=4, max_title_tokens=8
    )
    with pytest.raises(ValueError, match="no soft prompts to update"):
        trainer_of(ranker, tmp_path, sequences, update_soft_prompts=True)
