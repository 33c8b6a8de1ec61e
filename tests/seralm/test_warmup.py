"""SeRALM before alignment: frozen vectors are plain next-item training, a trained encoder learns, stops and resumes whole."""

import logging

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from hf_seqrec.data import leave_one_out
from hf_seqrec.modeling import BERT4RecConfig, SASRecConfig, SASRecForSequentialRecommendation
from hf_seqrec.modeling.seralm import SeRALMForSequentialRecommendation
from hf_seqrec.trainers import (
    KnowledgeWarmupTrainer,
    KnowledgeWarmupTrainingArguments,
    NextItemTrainer,
    NextItemTrainingArguments,
)


N = 12
TEXTS = [f"a {'long' if n % 2 else 'short'} film about {'xyz'[n % 3]}" for n in range(N)]
SMALL = {"num_items": N, "hidden_size": 8, "max_length": 6, "intermediate_size": 8, "num_hidden_layers": 1}


@pytest.fixture(scope="module")
def split(data):
    return leave_one_out(data.sequences)


def build(text_encoder, split, train=False, config=SASRecConfig, **backbone):
    torch.manual_seed(0)
    model = SeRALMForSequentialRecommendation.from_parts(
        config(**SMALL, **backbone), text_encoder, train_text_encoder=train
    )
    model.start_from(model.encode_all(model.tokenize(TEXTS)), split.train.item_index)
    return model


def arguments(folder, kind=KnowledgeWarmupTrainingArguments, **changes):
    return kind(
        str(folder), **{
            "num_train_epochs": 3, "per_device_train_batch_size": 8, "learning_rate": 1e-2, "use_cpu": True, "disable_tqdm": True,
            "early_stopping_patience": 0, "cutoffs": [5, 10], **changes,
        }
    )  # fmt: skip


def trained(folder, text_encoder, split, train=True, resume=None, config=SASRecConfig, **changes):
    model = build(text_encoder, split, train, config)
    trainer = KnowledgeWarmupTrainer(
        model, arguments(folder, text_encoder_learning_rate=1e-2, **changes), texts=TEXTS, train_dataset=split.train,
        eval_dataset=split.validation,
    )  # fmt: skip
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def own(state):
    return {name: tensor for name, tensor in state.items() if not name.startswith("text_encoder.")}


def test_with_a_frozen_encoder_it_is_next_item_training(text_encoder, split, tmp_path):
    weights = []
    for kind, args_kind, more in (
        (KnowledgeWarmupTrainer, KnowledgeWarmupTrainingArguments, {"texts": TEXTS}),
        (NextItemTrainer, NextItemTrainingArguments, {}),
    ):
        model = build(text_encoder, split)
        encoder = {name: tensor.clone() for name, tensor in model.text_encoder.state_dict().items()}
        args = arguments(
            tmp_path / kind.__name__, args_kind, eval_strategy="no", save_strategy="no", load_best_model_at_end=False
        )
        kind(model, args, train_dataset=split.train, **more).train()
        weights.append(own(model.state_dict()))
        assert all(torch.equal(tensor, encoder[name]) for name, tensor in model.text_encoder.state_dict().items())
    torch.testing.assert_close(*weights)


@pytest.mark.parametrize("config", [SASRecConfig, BERT4RecConfig])
def test_a_trained_encoder_moves_and_the_loss_falls(text_encoder, split, tmp_path, config):
    trainer = trained(tmp_path, text_encoder, split, config=config, num_train_epochs=6)
    start = build(text_encoder, split, True, config)
    moved = [
        not torch.equal(a, b)
        for a, b in zip(trainer.model.text_encoder.parameters(), start.text_encoder.parameters(), strict=True)
    ]
    assert sum(moved) > 0.8 * len(moved)
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0]
    groups = {group.get("initial_lr") for group in trainer.optimizer.param_groups}
    assert groups == {1e-2}
    assert sum(len(group["params"]) for group in trainer.optimizer.param_groups) == len(
        list(trainer.model.parameters())
    )


def test_the_text_encoder_has_a_learning_rate_of_its_own(text_encoder, split, tmp_path):
    model = build(text_encoder, split, True)
    trainer = KnowledgeWarmupTrainer(
        model, arguments(tmp_path, text_encoder_learning_rate=3e-4), texts=TEXTS, train_dataset=split.train,
        eval_dataset=split.validation,
    )  # fmt: skip
    rates = {id(p): group["lr"] for group in trainer.create_optimizer().param_groups for p in group["params"]}
    assert {rates[id(p)] for p in model.text_encoder.parameters()} == {3e-4}
    assert {rates[id(p)] for p in model.backbone.parameters()} == {1e-2}


def test_stored_vectors_are_those_of_the_weights_at_every_evaluation_and_in_every_checkpoint(
    text_encoder, split, tmp_path
):
    seen = []

    class Looking(KnowledgeWarmupTrainer):
        def evaluation_loop(self, *args, **kwargs):
            fresh = self.model.encode_all(self.tokens)
            seen.append(float((self.model.knowledge[1:] - fresh).abs().max()))
            return super().evaluation_loop(*args, **kwargs)

    model = build(text_encoder, split, True)
    first = model.knowledge.clone()
    trainer = Looking(
        model, arguments(tmp_path, save_total_limit=None), texts=TEXTS, train_dataset=split.train,
        eval_dataset=split.validation,
    )  # fmt: skip
    trainer.train()
    assert len(seen) == 3
    assert max(seen) < 1e-5
    assert not torch.allclose(first, model.knowledge)
    checkpoint = sorted(tmp_path.glob("checkpoint-*"))[0]
    stored = SeRALMForSequentialRecommendation.from_pretrained(checkpoint, text_encoder=True)
    torch.testing.assert_close(stored.knowledge[1:], stored.encode_all(stored.tokenize(TEXTS)), atol=1e-5, rtol=1e-4)


def test_the_best_checkpoint_comes_back_with_its_encoder(text_encoder, split, tmp_path, caplog):
    logger = logging.getLogger("transformers.trainer")
    logger.addHandler(caplog.handler)
    try:
        trainer = trained(tmp_path, text_encoder, split, num_train_epochs=4, save_total_limit=None)
    finally:
        logger.removeHandler(caplog.handler)
    assert "missing keys" not in caplog.text
    best = trainer.state.best_model_checkpoint
    weights = load_file(f"{best}/text_encoder/model.safetensors")
    torch.testing.assert_close(dict(trainer.model.text_encoder.state_dict()), weights)
    torch.testing.assert_close(own(trainer.model.state_dict()), load_file(f"{best}/model.safetensors"))


def test_a_resumed_run_ends_as_one_that_was_not_stopped(text_encoder, split, tmp_path):
    options = {"load_best_model_at_end": False, "save_total_limit": None}
    whole = trained(tmp_path / "whole", text_encoder, split, **options)
    middle = sorted((tmp_path / "whole").glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))[0]
    resumed = trained(tmp_path / "again", text_encoder, split, resume=str(middle), **options)
    torch.testing.assert_close(resumed.model.state_dict(), whole.model.state_dict(), atol=1e-6, rtol=1e-5)


def test_a_step_encodes_only_texts_of_its_items(text_encoder, split, tmp_path):
    model = build(text_encoder, split, True)
    trainer = KnowledgeWarmupTrainer(
        model,
        arguments(tmp_path, texts_per_step=3),
        texts=TEXTS,
        train_dataset=split.train,
        eval_dataset=split.validation,
    )
    inputs = {"input_ids": torch.tensor([[0, 1, 2, 3]]), "labels": torch.tensor([[-100, 2, 3, 9]])}
    chosen = trainer._items_of_step(inputs)
    assert len(chosen) == 3
    assert set(chosen.tolist()) <= {1, 2, 3, 9}
    assert torch.equal(chosen, trainer._items_of_step(inputs))
    trainer.args.texts_per_step = 0
    assert trainer._items_of_step(inputs).tolist() == [1, 2, 3, 9]
    trainer.state.global_step, trainer.args.texts_per_step = 5, 3
    draws = {tuple(trainer._items_of_step(inputs).tolist())}
    for step in range(20):
        trainer.state.global_step = step
        draws.add(tuple(trainer._items_of_step(inputs).tolist()))
    assert len(draws) > 1


def test_parts_that_cannot_train_are_refused(text_encoder, split, tmp_path):
    plain = SASRecForSequentialRecommendation(SASRecConfig(**SMALL))
    with pytest.raises(TypeError, match=r"got SASRec.*NextItemTrainer"):
        KnowledgeWarmupTrainer(plain, arguments(tmp_path), train_dataset=split.train)
    empty = SeRALMForSequentialRecommendation.from_parts(SASRecConfig(**SMALL), knowledge_size=3)
    with pytest.raises(ValueError, match="still zeros"):
        KnowledgeWarmupTrainer(empty, arguments(tmp_path), train_dataset=split.train)
    with pytest.raises(ValueError, match="one for each of the 12 items, got 3"):
        KnowledgeWarmupTrainer(build(text_encoder, split, True), arguments(tmp_path), texts=TEXTS[:3])
    with pytest.raises(ValueError, match="must not be negative"):
        arguments(tmp_path, texts_per_step=-1)


def test_knowledge_that_tells_the_next_item_helps(split, tmp_path):
    # Walks go from an item to the next one: a circle of vectors says so, noise does not.
    angle = 2 * np.pi * np.arange(N) / N
    circle = torch.tensor(np.stack([np.cos(angle), np.sin(angle)], 1)).float()
    found = {}
    for name, vectors in (
        ("circle", circle),
        ("noise", torch.randn(N, 2, generator=torch.Generator().manual_seed(0))),
    ):
        torch.manual_seed(0)
        model = SeRALMForSequentialRecommendation.from_parts(SASRecConfig(**SMALL), knowledge_size=2)
        torch.nn.init.zeros_(model.model.item_encoder.id_embedding.weight)
        model.get_input_embeddings().requires_grad_(False)  # knowledge alone
        model.start_from(vectors)
        trainer = KnowledgeWarmupTrainer(
            model,
            arguments(
                tmp_path / name,
                num_train_epochs=20,
                eval_strategy="no",
                save_strategy="no",
                load_best_model_at_end=False,
            ),
            train_dataset=split.train,
            eval_dataset=split.validation,
        )
        trainer.train()
        found[name] = trainer.evaluate()["eval_ndcg@5"]
    assert found["circle"] > 0.8
    assert found["circle"] > found["noise"] + 0.05
