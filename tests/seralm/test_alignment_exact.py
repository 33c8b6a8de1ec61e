"""The alignment on a world where every text can be enumerated: the gradient and the optimum are known exactly."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch


SCRIPT = Path(__file__).with_name("bandit.py")
spec = importlib.util.spec_from_file_location("bandit", SCRIPT)
bandit = importlib.util.module_from_spec(spec)
spec.loader.exec_module(bandit)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("bandit")
    bandit.write_models(path)
    return path


def exact_gradient(trainer, beta, length=2, log=True):
    """Gradient of minus [log p(y|x) or p(y|x)/p0(y|x), less beta KL(aligned ‖ original)] for the target's text, by enumeration."""
    texts, prompt = bandit.all_texts(length), bandit.PROMPTS[bandit.TARGET - 1]
    trainer.model.zero_grad()
    log_probs = bandit.text_log_probs(trainer.model, trainer.processing_class, prompt, texts)
    assert log_probs.exp().sum().item() == pytest.approx(1, abs=1e-4)
    original = bandit.reference_log_probs(trainer, prompt, texts)
    decoded = trainer.processing_class.batch_decode(texts, skip_special_tokens=True)
    likelihood = torch.stack([bandit.target_log_prob(trainer, {bandit.TARGET: text}) for text in decoded]).exp()
    marginal = (log_probs.exp() * likelihood).sum()
    kl = (log_probs.exp() * (log_probs - original)).sum()
    if log:
        bandit.match_frozen(trainer, marginal.detach().log())
    gain = marginal.log() if log else marginal / p0(trainer)
    (beta * kl - gain).backward()
    gradient = bandit.gradient_of(trainer)
    trainer.model.zero_grad()
    return gradient, kl.item()


def p0(trainer):
    history, target = torch.tensor([bandit.HISTORY]), torch.tensor([bandit.TARGET])
    with torch.no_grad():
        return bandit.next_item_log_prob(trainer.frozen_recommender, history, target).exp().item()


def agrees(samples, exact):
    """Chi-square per degree of freedom of the mean of independent gradients against the exact one, and the relative distance.

    Random directions are compared, not single weights, whose estimates depend on each other and may be tiny.
    """
    directions = torch.randn(len(exact), 200, generator=torch.Generator().manual_seed(0))
    found, expected = samples @ directions, exact @ directions
    error = found.std(0) / len(samples) ** 0.5
    chi = ((found.mean(0) - expected) / error).square().mean().item()
    distance = ((samples.mean(0) - exact).norm() / exact.norm()).item()
    noise = (samples.std(0).square().sum() / len(samples)).sqrt().item() / exact.norm().item()
    return chi, distance, noise


def check(samples, exact):
    chi, distance, noise = agrees(samples, exact)
    assert chi < 4, (chi, distance, noise)  # the texts span few directions, so this mean varies
    assert distance < 2.5 * noise, (distance, noise)
    assert noise < 0.12, "too few samples to tell"
    assert agrees(samples, 0.75 * exact)[0] > 4, "the comparison could not tell a gradient of another length"


@pytest.mark.parametrize("samples", [1, 2])
@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_expected_gradient_is_that_of_the_log_likelihood_minus_the_penalty(folder, samples, lora):
    rows = 512 if lora else 128  # the adapters' gradient is noisier
    trainer = bandit.make_trainer(folder, rows, lora, num_generations=samples, train_recommender=False, beta=0.5)
    exact, kl = exact_gradient(trainer, 0.5)
    assert kl > 0.01
    gradients = bandit.sampled_gradients(trainer, 20)
    check(gradients, exact)
    without, _ = exact_gradient(trainer, 0.0)
    assert agrees(gradients, without)[0] > 5, "the penalty must show"


def test_three_tokens_and_another_marginal_scale_the_gradient_by_the_frozen_recommender(folder):
    trainer = bandit.make_trainer(folder, train_recommender=False, beta=0.3, max_completion_length=3)
    exact, _ = exact_gradient(trainer, 0.3, length=3, log=False)
    check(bandit.sampled_gradients(trainer, 20), exact)


@pytest.mark.parametrize("baseline", ["cached", "leave_one_out"])
def test_a_baseline_moves_no_expectation(folder, baseline):
    trainer = bandit.make_trainer(
        folder, train_recommender=False, beta=0.3, baseline=baseline, num_generations=2, advantage_min=-1e6
    )
    exact, _ = exact_gradient(trainer, 0.3)
    check(bandit.sampled_gradients(trainer, 20), exact)


def pair_gradient(trainer, beta, items, weight):
    """Exact gradient when the texts of two items are written together: an outer sum over both."""
    texts = bandit.all_texts(2)
    decoded = trainer.processing_class.batch_decode(texts, skip_special_tokens=True)
    unique = sorted(set(decoded))
    number = torch.tensor([unique.index(text) for text in decoded])
    table = torch.tensor(
        [
            [bandit.target_log_prob(trainer, dict(zip(items, (one, two), strict=True))) for two in unique]
            for one in unique
        ]
    )
    likelihood = table.exp()[number][:, number]
    trainer.model.zero_grad()
    logs = [
        bandit.text_log_probs(trainer.model, trainer.processing_class, bandit.PROMPTS[item - 1], texts)
        for item in items
    ]
    originals = [bandit.reference_log_probs(trainer, bandit.PROMPTS[item - 1], texts) for item in items]
    marginal = logs[0].exp() @ likelihood @ logs[1].exp()
    kl = sum((log.exp() * (log - original)).sum() for log, original in zip(logs, originals, strict=True))
    (beta * kl * weight - marginal / p0(trainer)).backward()
    return bandit.gradient_of(trainer)


def test_literal_credit_is_the_gradient_over_all_texts_of_the_sequence(folder):
    items = (bandit.HISTORY[-1], bandit.TARGET)
    trainer = bandit.make_trainer(folder, rows=128, train_recommender=False, beta=0.3, credit="literal", items=items)
    bandit.HISTORY, kept = items[:1], bandit.HISTORY
    try:
        exact = pair_gradient(trainer, 0.3, items, weight=1)
    finally:
        bandit.HISTORY = kept
    check(bandit.sampled_gradients(trainer, 24), exact)


def test_pooled_credit_adds_up_the_sequences_that_contain_an_item(folder):
    items = (bandit.HISTORY[-1], bandit.TARGET)
    rows = 4
    trainer = bandit.make_trainer(
        folder, rows=rows, train_recommender=False, beta=0.3, credit="batch_pool", items=items, num_generations=48,
        advantage_max=1e6,
    )  # fmt: skip
    bandit.HISTORY, kept = items[:1], bandit.HISTORY
    try:
        # The mean over sequences of log p(y|x), whose texts are shared; the penalty is paid once per text.
        exact = pair_gradient(trainer, 0.3, items, weight=1 / rows)
    finally:
        bandit.HISTORY = kept
    check(bandit.sampled_gradients(trainer, 24), exact)


def test_texts_by_older_weights_are_corrected_to_the_same_gradient(folder):
    trainer = bandit.make_trainer(
        folder, rows=512, train_recommender=False, beta=0.3, generation_mode="stale", refresh_interval=1000,
        importance_max=1e6,
    )  # fmt: skip
    trainer._begin()  # the copy has the weights of now
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter) * (parameter.dim() > 1))
    exact, _ = exact_gradient(trainer, 0.3)
    trainer._begin = lambda: None
    trainer._step = 0
    gradients = bandit.sampled_gradients(trainer, 20)
    check(gradients, exact)
    spread = trainer._metrics["train"]["importance/max"]
    assert max(spread) > 1.2, "the copy must really differ"
    trainer.args.importance = "none"
    assert agrees(bandit.sampled_gradients(trainer, 20), exact)[0] > 4, (
        "without the correction the gradient is another one"
    )


def test_the_aligned_model_converges_to_the_analytic_optimum(folder):
    """With a fixed recommender and one sequence the optimum is p*(s) ∝ p_original(s) exp(reward(s) / beta)."""
    beta = 0.5
    trainer = bandit.make_trainer(
        folder, rows=64, train_recommender=False, beta=beta, shift=0.0, learning_rate=0.03, max_steps=120, optim="adamw_torch",
        lr_scheduler_type="linear", max_grad_norm=0.0, num_generations=2, baseline="leave_one_out", advantage_min=-1e6,
    )  # fmt: skip
    texts, prompt = bandit.all_texts(2), bandit.PROMPTS[bandit.TARGET - 1]
    decoded = trainer.processing_class.batch_decode(texts, skip_special_tokens=True)
    likelihood = torch.stack([bandit.target_log_prob(trainer, {bandit.TARGET: text}) for text in decoded])
    original = bandit.reference_log_probs(trainer, prompt, texts)
    optimum = (original + likelihood.exp() / p0(trainer) / beta).softmax(0)
    with torch.no_grad():
        before = bandit.text_log_probs(trainer.model, trainer.processing_class, prompt, texts).exp()
    trainer.train()
    with torch.no_grad():
        after = bandit.text_log_probs(trainer.model.eval(), trainer.processing_class, prompt, texts).exp()
    distance = [0.5 * (found - optimum).abs().sum().item() for found in (before, after)]
    assert distance[0] > 0.25, distance
    assert distance[1] < 0.05, distance


@pytest.mark.multi_process
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["full", "lora"])
def test_two_processes_have_the_same_expected_gradient(folder, tmp_path, kind):
    out = tmp_path / "two.pt"
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone"]
    done = subprocess.run(
        [*launch, str(SCRIPT), str(folder), str(out), kind], capture_output=True, text=True, timeout=280,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    told = torch.load(out)
    assert told["num_processes"] == 2
    rows = json.loads(out.with_suffix(".json").read_text())
    assert not set(rows[0]) & set(rows[1]), "each process has sequences of its own"
    trainer = bandit.make_trainer(folder, rows=128, train_recommender=False, lora=kind == "lora")
    exact, _ = exact_gradient(trainer, 0.2, log=False)
    check(told["gradients"], exact)
    assert np.isfinite(told["gradients"]).all()
