"""What the alignment trainer does around its gradient: generation modes, both optimizers, resume, switches, refusals."""

import importlib.util
import json
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM, T5Config, T5ForConditionalGeneration

from hf_seqrec.data import leave_one_out
from hf_seqrec.modeling import SASRecConfig, SASRecForSequentialRecommendation
from hf_seqrec.trainers.alignment import AlignmentConfig, AlignmentTrainer
from hf_seqrec.trainers.text_writer import CopyWriter, VllmWriter, copy_of


spec = importlib.util.spec_from_file_location("bandit", Path(__file__).with_name("bandit.py"))
bandit = importlib.util.module_from_spec(spec)
spec.loader.exec_module(bandit)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("bandit")
    bandit.write_models(path)
    return path


def make(folder, **options):
    """A trainer that steps fast enough for weights to move."""
    defaults = {
        "rows": 16,
        "shift": 0.0,
        "learning_rate": 0.0005,
        "logging_strategy": "steps",
        "logging_steps": 1,
        "max_grad_norm": 0.0,
    }
    return bandit.make_trainer(folder, **{**defaults, **options})


def logged(trainer, name):
    return [entry[name] for entry in trainer.state.log_history if name in entry]


def weights(model):
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def moved(before, model):
    return [name for name, value in model.state_dict().items() if not torch.equal(before[name], value)]


# Generation modes ------------------------------------------------------------------------------------------------------------


def test_sync_texts_are_of_the_present_weights(folder):
    trainer = make(folder, max_steps=4)
    trainer.train()
    assert logged(trainer, "generation/staleness") == [0, 0, 0, 0]
    assert not logged(trainer, "importance/mean"), "on the policy there is nothing to correct"


def test_stale_texts_are_of_a_copy_that_is_refreshed_every_few_steps(folder):
    trainer = make(folder, max_steps=7, generation_mode="stale", refresh_interval=3, importance_max=1e6)
    trainer.train()
    assert logged(trainer, "generation/staleness") == [0, 1, 2, 0, 1, 2, 0]
    distance = np.abs(np.array(logged(trainer, "importance/max")) - 1)
    assert distance[[0, 3, 6]].max() < 1e-4, "right after a refresh the ratio is one"
    assert distance[[2, 5]].min() > 1e-3, "after some steps it is not"


def test_slow_refresh_never_refreshes_in_a_short_run(folder):
    trainer = make(folder, max_steps=5, generation_mode="stale", refresh_interval=3000)
    trainer.train()
    assert logged(trainer, "generation/staleness") == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_a_copy_does_not_follow_the_model_and_shares_its_frozen_weights(folder, lora):
    trainer = make(folder, lora=lora, generation_mode="stale")
    twin, model = trainer._writer.copy, trainer.model
    ids = torch.tensor([[2, 3, 4]])
    with torch.no_grad():
        before = twin(ids).logits
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3)
        assert torch.equal(twin(ids).logits, before)
        assert not torch.allclose(model(ids).logits, before)
        trainer._writer.refresh(1)
        torch.testing.assert_close(twin(ids).logits, model(ids).logits)
    live = dict(model.named_parameters())
    shared = [name for name, p in twin.named_parameters() if p is live[name]]
    assert bool(shared) == lora
    assert all(not live[name].requires_grad for name in shared)
    plain = LlamaForCausalLM.from_pretrained(folder / "llm")
    assert copy_of(plain) is not plain


@pytest.mark.parametrize("options", [{}, {"top_k": 3, "repetition_penalty": 1.5}], ids=["plain", "changed scores"])
def test_log_probabilities_of_the_writer_are_those_of_plain_passes(folder, options):
    trainer = make(folder, generation_mode="stale", temperature=0.7, **options)
    prompts = [trainer.processing_class(text)["input_ids"] for text in ("a", "b c a", "c c")]
    written = trainer._writer.write(prompts, seed=1)
    for prompt, ids, found in zip(prompts, written.completion_ids, written.logprobs, strict=True):
        logits = trainer.ref_model(torch.tensor([[*prompt, *ids]])).logits[0, len(prompt) - 1 : -1] / 0.7
        expected = logits.log_softmax(-1)[torch.arange(len(ids)), torch.tensor(ids)]
        torch.testing.assert_close(torch.tensor(found), expected, atol=1e-4, rtol=1e-4)
        assert 1 not in ids[:-1], "nothing after the end token"
    again = trainer._writer.write(prompts, seed=1)
    assert again.completion_ids == written.completion_ids
    assert any(trainer._writer.write(prompts, seed=s).completion_ids != written.completion_ids for s in (2, 3, 4))


def test_the_copy_samples_from_the_distribution_of_the_model(folder):
    trainer = make(folder, generation_mode="stale", max_completion_length=1)
    prompt = trainer.processing_class("a b")["input_ids"]
    written = trainer._writer.write([prompt] * 1500, seed=0)
    with torch.no_grad():
        expected = trainer.model(torch.tensor([prompt])).logits[0, -1].softmax(-1)
    found = torch.bincount(torch.tensor([ids[0] for ids in written.completion_ids]), minlength=5) / 1500
    torch.testing.assert_close(found, expected, atol=0.05, rtol=0)


def test_async_writes_the_next_round_in_a_thread_while_this_round_trains(folder, monkeypatch):
    threads, busy, overlapped = set(), threading.Event(), []
    write, loss = CopyWriter.write, AlignmentTrainer._compute_loss

    def watched_write(self, *args):
        threads.add(threading.current_thread().name)
        busy.set()
        found = write(self, *args)
        busy.clear()
        return found

    def watched_loss(self, *args):
        overlapped.append(self._ahead is not None)
        return loss(self, *args)

    monkeypatch.setattr(CopyWriter, "write", watched_write)
    monkeypatch.setattr(AlignmentTrainer, "_compute_loss", watched_loss)
    trainer = make(folder, max_steps=6, generation_mode="async", refresh_interval=1)
    trainer.train()
    assert threads == {"text-writer_0"}
    assert overlapped == [True] * 6, "while a round trains, the next one is being written"
    assert logged(trainer, "generation/staleness") == [0, 1, 1, 1, 1, 1]
    assert trainer._worker is None, "the thread ends with the training"


def test_async_refreshes_only_when_it_is_due(folder):
    trainer = make(folder, max_steps=7, generation_mode="async", refresh_interval=3)
    trainer.train()
    # The weights of step 0 write rounds 0 to 3, then those of step 3, whose texts are used from step 4 on.
    assert logged(trainer, "generation/staleness") == [0, 1, 2, 3, 1, 2, 3]


def test_async_texts_are_those_that_one_thread_would_write(folder):
    texts = []
    for _ in range(2):
        trainer = make(folder, max_steps=4, generation_mode="async", refresh_interval=2, update_knowledge=True)
        trainer.train()
        texts.append(trainer.texts)
    assert texts[0] == texts[1]


def test_an_error_in_the_writing_thread_reaches_the_caller(folder, monkeypatch):
    monkeypatch.setattr(CopyWriter, "write", lambda self, *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        make(folder, generation_mode="async").train()


class Engine:
    """What TRL's vLLM engine offers, on the trainer's own model."""

    def __init__(self):
        self.synced, self.threads = 0, set()

    def sync_weights(self):
        self.synced += 1

    def generate(self, prompts, images, num_generations, profiler):
        self.threads.add(threading.current_thread().name)
        return None, [[2, 1] for _ in prompts], [[[-0.5], [None]] for _ in prompts], None


@pytest.mark.parametrize(("mode", "synced"), [("stale", 3), ("async", 3)])
def test_with_vllm_the_engine_writes_and_gets_weights_when_a_refresh_is_due(folder, mode, synced):
    trainer = make(folder, max_steps=6, generation_mode=mode, refresh_interval=2)
    engine = Engine()
    trainer._writer = VllmWriter(engine, trainer.num_generations)
    trainer.train()
    assert engine.synced == synced
    assert all(("text-writer" in name) == (mode == "async") for name in engine.threads)
    assert np.isfinite(logged(trainer, "loss")).all(), "a token without a number is not corrected"


# Both models train -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("llm", "recommender"),
    [(True, True), (True, False), (False, True)],
    ids=["both", "frozen-recommender", "frozen-llm"],
)
def test_switches_say_which_model_trains(folder, llm, recommender):
    trainer = make(folder, train_llm=llm, train_recommender=recommender, max_steps=2, lora=True)
    before = weights(trainer.model), weights(trainer.recommender), weights(trainer.frozen_recommender)
    trainer.train()
    assert bool(moved(before[0], trainer.model)) == llm
    assert all("lora" in name for name in moved(before[0], trainer.model))
    assert bool(moved(before[1], trainer.recommender)) == recommender
    assert not moved(before[2], trainer.frozen_recommender)


def test_the_recommender_learns_the_next_item_from_the_texts_that_were_written(folder):
    trainer = make(folder, train_llm=False, max_steps=15, recommender_learning_rate=0.05, rows=16)
    trainer.train()
    losses = logged(trainer, "recommender/loss")
    assert losses[-1] < 0.5 * losses[0]


def test_rewards_are_of_the_present_recommender_with_a_fused_optimizer_too(folder):
    trainer = make(folder, train_llm=False, max_steps=3, recommender_learning_rate=0.05, optim="adamw_torch_fused")
    trainer.train()
    recommender = trainer.recommender
    with torch.no_grad():
        torch.testing.assert_close(recommender.item_representations(), recommender.model.item_encoder())


@pytest.mark.parametrize("credit", ["single_item", "batch_pool", "literal"])
def test_every_credit_writes_about_items_of_its_sequences_and_earns_their_rewards(folder, credit):
    trainer = make(folder, credit=credit, rows=4, num_generations=2, target_probability=None)
    trainer._begin()
    trainer.model.train()
    inputs = trainer._prepare_inputs(None)
    part = inputs["part"]
    assert set(part.items) <= {1, 2, 3}
    assert len(part.items) == {"single_item": 4, "batch_pool": 3, "literal": 12}[credit]
    assert len(inputs["advantages"]) == 2 * len(part.items)
    # By hand: p(y|x, s)/p0(y|x) - 1 with the texts of this round, k = 0.
    vectors = inputs["vectors"]
    log_prob = trainer._log_prob(part, vectors)
    without = bandit.next_item_log_prob(trainer.frozen_recommender, part.history, part.target)
    advantage = (log_prob - without[:, None]).exp() - 1
    expected = torch.stack([advantage[torch.from_numpy(part.member[:, t])].sum(0) for t in range(len(part.items))])
    torch.testing.assert_close(inputs["advantages"], expected.flatten(), atol=1e-4, rtol=1e-4)


def test_without_targets_only_items_of_the_history_are_written_about(folder):
    trainer = make(folder, credit="literal", rows=4, regenerate_targets=False, target_probability=None)
    assert {int(item) for part in trainer._plan((0, 0)).parts for item in part.items} == set(bandit.HISTORY)


def test_new_texts_replace_the_stored_ones_and_their_vectors(folder):
    trainer = make(folder, max_steps=3, update_knowledge=True, train_recommender=False)
    trainer.train()
    recommender = trainer.recommender
    expected = recommender.encode_all(recommender.tokenize(trainer.texts))
    torch.testing.assert_close(recommender.knowledge[1:], expected, atol=1e-5, rtol=1e-5)


def test_a_trained_text_encoder_learns_and_all_vectors_follow_it(folder):
    trainer = make(
        folder, max_steps=4, recommender_options={"train_text_encoder": True}, encode_interval=2, text_encoder_learning_rate=0.01
    )  # fmt: skip
    before = weights(trainer.recommender)
    trainer.train()
    names = moved(before, trainer.recommender)
    assert any(name.startswith("text_encoder.") for name in names)
    recommender = trainer.recommender
    expected = recommender.encode_all(recommender.tokenize(trainer.texts))
    torch.testing.assert_close(recommender.knowledge[1:], expected, atol=1e-5, rtol=1e-5)
    assert len({group["lr"] for group in trainer.optimizer.param_groups}) == 3


def test_the_gradient_of_the_recommender_is_clipped_by_itself(folder):
    trainer = make(folder, max_steps=1, recommender_max_grad_norm=0.01, train_llm=False)
    found = []
    step = trainer._finish_recommender_gradient

    def watched():
        step()
        found.append(
            torch.nn.utils.get_total_norm([p.grad for p in trainer.recommender.parameters() if p.grad is not None])
        )

    trainer._finish_recommender_gradient = watched
    trainer.train()
    assert float(found[0]) <= 0.0101
    assert logged(trainer, "recommender/grad_norm")[0] > 0.02


def test_the_penalty_is_zero_at_first_and_k3_agrees_with_it_there(folder):
    for estimator in ("reward", "k3"):
        trainer = make(folder, max_steps=3, kl_estimator=estimator)
        trainer.train()
        kl = logged(trainer, "kl/text")
        assert abs(kl[0]) < 1e-5
        assert abs(kl[2]) > 1e-4


def test_without_the_penalty_no_reference_is_kept(folder):
    trainer = make(folder, max_steps=1, beta=0.0)
    assert trainer.ref_model is None
    trainer.train()
    assert not logged(trainer, "kl/text")


def test_accumulated_steps_give_the_gradient_of_one_large_step(folder):
    found = []
    for size, accumulation in ((8, 1), (4, 2)):
        trainer = make(
            folder, rows=size, gradient_accumulation_steps=accumulation, max_steps=1, optim="sgd", generation_mode="stale",
            learning_rate=1.0, recommender_learning_rate=1.0, recommender_max_grad_norm=0.0,
        )  # fmt: skip
        before = weights(trainer.model), weights(trainer.recommender)
        trainer.train()
        found.append([torch.cat([(own[n] - v).flatten() for n, v in m.state_dict().items() if v.is_floating_point()])
                      for own, m in zip(before, (trainer.model, trainer.recommender), strict=True)])  # fmt: skip
    for one, two in zip(*found, strict=True):
        assert one.abs().max() > 1e-3
        torch.testing.assert_close(one, two, atol=2e-5, rtol=1e-3)


# Saving, resuming, evaluating ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["sync", "stale"])
def test_a_resumed_run_ends_where_an_uninterrupted_one_does(folder, tmp_path, mode):
    options = {
        "rows": 16, "generation_mode": mode, "refresh_interval": 2, "update_knowledge": True, "lora": True, "max_steps": 6,
        "save_strategy": "steps", "save_steps": 4, "output": tmp_path / "whole",
    }  # fmt: skip
    whole = make(folder, **options)
    whole.train()
    again = make(folder, **{**options, "output": tmp_path / "again"})
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-4"))
    for one, two in ((whole.model, again.model), (whole.recommender, again.recommender)):
        for name, value in one.state_dict().items():
            torch.testing.assert_close(two.state_dict()[name], value, atol=1e-5, rtol=1e-5, msg=name)
    assert again.texts == whole.texts
    lr = [group["lr"] for group in again.optimizer.param_groups]
    assert lr == [group["lr"] for group in whole.optimizer.param_groups]
    state = again.optimizer.state_dict()["state"]
    assert all(float(entry["step"]) == 6 for entry in state.values()), "both models' moments were saved and read"


def test_a_checkpoint_holds_adapter_recommender_and_texts(folder, tmp_path):
    trainer = make(folder, lora=True, max_steps=2, save_strategy="steps", save_steps=2, output=tmp_path / "out")
    trainer.train()
    checkpoint = tmp_path / "out" / "checkpoint-2"
    assert (checkpoint / "adapter_model.safetensors").is_file()
    assert json.loads((checkpoint / "texts.json").read_text()) == trainer.texts
    loaded = type(trainer.recommender).from_pretrained(checkpoint / "recommender")
    torch.testing.assert_close(loaded.knowledge, trainer.recommender.knowledge)
    (checkpoint / "texts.json").unlink()
    with pytest.raises(OSError, match=r"texts\.json is missing"):
        trainer._load_from_checkpoint(str(checkpoint))


def test_evaluation_ranks_with_the_stored_knowledge(folder):
    rows = 6
    split = leave_one_out(bandit.sequences(rows, (1, 2, 3, 4)))
    trainer = make(
        folder, eval_dataset=split.validation, eval_strategy="steps", eval_steps=2, max_steps=2, rows=6, cutoffs=[2, 3]
    )
    trainer.train()
    assert 0 <= logged(trainer, "eval_ndcg@3")[0] <= 1
    with pytest.raises(TypeError, match="EvaluationSet"):
        trainer.evaluate([1, 2])


# Refusals --------------------------------------------------------------------------------------------------------------------


def parts(folder):
    recommender, texts = bandit.make_recommender(folder)
    frozen = SASRecForSequentialRecommendation(SASRecConfig(num_items=bandit.NUM_ITEMS, hidden_size=8, max_length=4))
    return {
        "model": str(folder / "llm"), "recommender": recommender, "frozen_recommender": frozen, "train_dataset": bandit.sequences(16),
        "prompts": bandit.PROMPTS, "texts": texts,
        "args": AlignmentConfig(str(folder / "out"), use_cpu=True, per_device_train_batch_size=8),
    }  # fmt: skip


def test_parts_of_different_catalogues_are_refused(folder):
    given = parts(folder)
    other = SASRecForSequentialRecommendation(SASRecConfig(num_items=7, hidden_size=8, max_length=4))
    with pytest.raises(ValueError, match="knows 4 items, the frozen recommender 7"):
        AlignmentTrainer(**{**given, "frozen_recommender": other})
    given["frozen_recommender"].config.data_fingerprint = "aaaa"
    given["recommender"].config.data_fingerprint = "bbbb"
    with pytest.raises(ValueError, match=r"different catalogues.*bbbb.*aaaa"):
        AlignmentTrainer(**given)
    given["frozen_recommender"].config.data_fingerprint = "bbbb"
    with pytest.raises(ValueError, match="cccc"):
        AlignmentTrainer(**given, data_fingerprint="cccc")
    with pytest.raises(ValueError, match="item_index 9"):
        AlignmentTrainer(**{**given, "train_dataset": bandit.sequences(16, (1, 2, 9))})


def test_texts_of_another_adapter_are_refused(folder):
    given = parts(folder)
    given["recommender"].config.knowledge_key = "of-adapter-1"
    with pytest.raises(ValueError, match=r"of-adapter-1.*of-adapter-2"):
        AlignmentTrainer(**given, knowledge_key="of-adapter-2")


def test_models_that_cannot_be_aligned_are_refused(folder):
    given = parts(folder)
    t5 = T5ForConditionalGeneration(
        T5Config(vocab_size=8, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2, decoder_start_token_id=0)
    )
    with pytest.raises(ValueError, match="encoder-decoder"):
        AlignmentTrainer(**{**given, "model": t5})
    with pytest.raises(TypeError, match="plain backbone"):
        AlignmentTrainer(**{**given, "frozen_recommender": given["recommender"]})
    with pytest.raises(TypeError, match="warmed up"):
        AlignmentTrainer(**{**given, "recommender": given["frozen_recommender"]})
    given["recommender"].text_encoder = None
    with pytest.raises(ValueError, match="text_encoder=True"):
        AlignmentTrainer(**given)


def test_a_recommender_without_knowledge_and_data_smaller_than_a_round_are_refused(folder):
    given = parts(folder)
    with pytest.raises(ValueError, match="16 training rows are fewer than the 32"):
        AlignmentTrainer(
            **{**given, "args": AlignmentConfig(str(folder / "o"), use_cpu=True, per_device_train_batch_size=32)}
        )
    recommender = given["recommender"]
    recommender.set_knowledge(torch.arange(1, 5), torch.zeros(4, recommender.config.knowledge_size))
    with pytest.raises(ValueError, match="no knowledge yet"):
        AlignmentTrainer(**given)


def test_a_reward_that_is_not_finite_stops_training_and_names_the_example(folder):
    trainer = make(folder, max_steps=2)
    with torch.no_grad():
        trainer.recommender.backbone.model.item_encoder.id_embedding.weight[2] = float("nan")
    with pytest.raises(ValueError, match=r"reward is not finite.*history \[1, 2\]"):
        trainer.train()


def test_exploding_ratios_stop_training(folder):
    trainer = make(folder, max_steps=2, ratio_limit=1e-3)
    with pytest.raises(ValueError, match="frozen recommender gives the next items next to nothing"):
        trainer.train()


def test_a_model_that_writes_only_special_tokens_stops_training(folder, monkeypatch):
    trainer = make(folder, max_steps=2, generation_mode="stale")
    write = CopyWriter.write

    def silent(self, *args):
        found = write(self, *args)
        found.completion_ids = [[1] for _ in found.completion_ids]
        found.logprobs = [[-0.1] for _ in found.completion_ids]
        return found

    monkeypatch.setattr(CopyWriter, "write", silent)
    with pytest.raises(ValueError, match="wrote nothing"):
        trainer.train()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"credit": "all"}, "single_item, batch_pool, literal"),
        ({"generation_mode": "later"}, "sync, stale, async"),
        ({"refresh_interval": 0}, "at least 1"),
        ({"num_generations": 0}, "at least 1"),
        ({"baseline": "leave_one_out"}, "2 or more"),
        ({"advantage_min": 5.0}, "below"),
        ({"target_probability": 2.0}, "between 0 and 1"),
        ({"train_llm": False, "train_recommender": False}, "nothing is trained"),
        ({"generation_mode": "async", "use_vllm": True, "vllm_mode": "colocate"}, "server"),
    ],
)
def test_settings_that_mean_nothing_are_refused(tmp_path, options, said):
    with pytest.raises(ValueError, match=said):
        AlignmentConfig(str(tmp_path), use_cpu=True, **options)


def test_saved_settings_are_read_again(tmp_path):
    one = AlignmentConfig(
        str(tmp_path), use_cpu=True, per_device_train_batch_size=3, num_generations=1, gradient_accumulation_steps=2
    )
    assert (one.per_device_train_batch_size, one.generation_batch_size, one.steps_per_generation) == (3, 6, 2)
    two = AlignmentConfig(**{key: value for key, value in one.to_dict().items() if key in ("output_dir", "use_cpu", "per_device_train_batch_size", "num_generations", "generation_batch_size", "steps_per_generation", "gradient_accumulation_steps")})  # fmt: skip
    assert (two.per_device_train_batch_size, two.generation_batch_size, two.num_generations) == (3, 6, 1)
