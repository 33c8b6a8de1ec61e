"""A world so small that every text can be enumerated: a language model of five tokens that writes at most two or three of them, and a
recommender of four items that reads them. Also started by test_alignment_exact.py in two processes."""

import itertools
import json
import os
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from peft import LoraConfig
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from hf_seqrec.data import Sequences
from hf_seqrec.modeling import SASRecConfig, SASRecForSequentialRecommendation
from hf_seqrec.modeling.seralm import SeRALMForSequentialRecommendation, next_item_log_prob
from hf_seqrec.trainers.alignment import AlignmentConfig, AlignmentTrainer


os.environ.setdefault("HF_HUB_OFFLINE", "1")
WORDS = ("a", "b", "c")
HISTORY, TARGET = (1, 2), 3
NUM_ITEMS = 4
PROMPTS = ["a b", "b c", "c a", "a a"]  # of items 1 to 4


def tokenizer(words=WORDS, around=None):
    vocabulary = {token: number for number, token in enumerate(["<pad>", "<eos>", *words])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<eos>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if around:
        inner.post_processor = processors.TemplateProcessing(single=around, special_tokens=[("<eos>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", eos_token="<eos>", padding_side="left")


def write_models(folder, words=WORDS, hidden=16):
    """A language model and a text encoder with weights large enough that texts differ in probability and in effect."""
    torch.manual_seed(0)
    size = {"vocab_size": len(words) + 2, "hidden_size": hidden, "num_hidden_layers": 1, "num_attention_heads": 2}
    llm = LlamaForCausalLM(LlamaConfig(**size, intermediate_size=2 * hidden, max_position_embeddings=64, pad_token_id=0, eos_token_id=1, bos_token_id=None))  # fmt: skip
    encoder = BertModel(BertConfig(**size, intermediate_size=2 * hidden, max_position_embeddings=64))
    for model in (llm, encoder):
        for parameter in model.parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.4)
    llm.save_pretrained(folder / "llm")
    tokenizer(words).save_pretrained(folder / "llm")
    encoder.save_pretrained(folder / "encoder")
    tokenizer(words, "$A <eos>").save_pretrained(folder / "encoder")


def sequences(rows, items=(*HISTORY, TARGET)):
    flat = np.tile(np.array(items), rows)
    offsets = np.arange(rows + 1) * len(items)
    return Sequences(flat, offsets, None, pa.array([f"u{number}" for number in range(rows)]))


def make_recommender(folder, **options):
    torch.manual_seed(1)
    backbone = SASRecConfig(num_items=NUM_ITEMS, hidden_size=8, max_length=4, hidden_dropout_prob=0.0, initializer_range=0.8)  # fmt: skip
    model = SeRALMForSequentialRecommendation.from_parts(backbone, folder / "encoder", max_text_tokens=8, **options)
    texts = ["a", "b b", "c a", "a c"]
    model.fit_scale(model.encode_all(model.tokenize(texts)))
    model.set_knowledge(torch.arange(1, NUM_ITEMS + 1), model.encode_all(model.tokenize(texts)))
    return model, texts


def make_trainer(
    folder,
    rows=128,
    lora=False,
    shift=0.3,
    items=(*HISTORY, TARGET),
    recommender_options=None,
    output=None,
    eval_dataset=None,
    **options,
):
    """A trainer whose language model is not its own reference, so that the penalty is not zero."""
    recommender, texts = make_recommender(folder, **(recommender_options or {}))
    torch.manual_seed(2)
    frozen = SASRecForSequentialRecommendation(
        SASRecConfig(num_items=NUM_ITEMS, hidden_size=8, max_length=4, hidden_dropout_prob=0.0, initializer_range=0.3)
    )
    defaults = {
        "per_device_train_batch_size": rows, "max_completion_length": 2, "advantage_max": 1e6, "target_probability": 1.0,
        "beta": 0.2, "use_cpu": True, "disable_tqdm": True, "save_strategy": "no", "logging_strategy": "no", "max_steps": 5,
        "prefixes_per_sequence": 1, "update_knowledge": False, "learning_rate": 1e-3, "lr_scheduler_type": "constant", "seed": 3,
    }  # fmt: skip
    args = AlignmentConfig(str(output or folder / "out"), **{**defaults, **options})
    peft_config = None
    if lora:
        peft_config = LoraConfig(r=4, target_modules=["q_proj", "v_proj", "down_proj"], init_lora_weights=False)
    trainer = AlignmentTrainer(
        str(folder / "llm"), recommender, frozen, sequences(max(rows, args.generation_batch_size), items),
        PROMPTS, texts, args, eval_dataset, peft_config=peft_config,
    )  # fmt: skip
    if shift and not lora:
        torch.manual_seed(4)
        with torch.no_grad():
            for parameter in trainer.model.parameters():
                parameter.add_(shift * torch.randn_like(parameter) * (parameter.dim() > 1))
    trainer.rows.generator = lambda row: _Always()  # every prefix is the whole sequence
    return trainer


class _Always:
    """A generator that always cuts at the end of a sequence."""

    def integers(self, low, high):
        return high - 1


def all_texts(length, vocabulary=5, eos=1):
    """Token ids of every text: ends with the end token, or has full length without."""
    out = []
    for size in range(1, length + 1):
        for ids in itertools.product(range(vocabulary), repeat=size):
            if eos in ids[:-1] or (ids[-1] != eos and size < length):
                continue
            out.append(list(ids))
    return out


def text_log_probs(model, tokenizer, prompt, texts):
    """(texts,) log p(s | prompt), with gradients, one plain forward pass per text."""
    start = tokenizer(prompt)["input_ids"]
    out = []
    for ids in texts:
        logits = model(torch.tensor([[*start, *ids]])).logits[0, len(start) - 1 : -1].log_softmax(-1)
        out.append(logits[torch.arange(len(ids)), torch.tensor(ids)].sum())
    return torch.stack(out)


def reference_log_probs(trainer, prompt, texts):
    with torch.no_grad():
        if trainer.ref_model is None:
            with trainer.model.disable_adapter():
                return text_log_probs(trainer.model, trainer.processing_class, prompt, texts)
        return text_log_probs(trainer.ref_model, trainer.processing_class, prompt, texts)


def target_log_prob(trainer, replaced):
    """log p(y | x, s) by the plain recommender with some stored vectors exchanged."""
    recommender = trainer.recommender
    items = torch.tensor(list(replaced))
    vectors = recommender.encode_all(recommender.tokenize(list(replaced.values())))
    kept = recommender.knowledge.clone()
    recommender.set_knowledge(items, vectors)
    with torch.no_grad():
        found = recommender.score(torch.tensor([HISTORY])).float()[:, 1:].log_softmax(1)[0, TARGET - 1]
    recommender.set_knowledge(torch.arange(1, NUM_ITEMS + 1), kept[1:])
    return found


def match_frozen(trainer, log_prob):
    """Move the frozen recommender until p0(y|x) is a given probability."""
    frozen = trainer.frozen_recommender.requires_grad_(True)
    optimizer = torch.optim.LBFGS(frozen.parameters(), lr=0.5, max_iter=200, tolerance_change=1e-12)
    history, target = torch.tensor([HISTORY]), torch.tensor([TARGET])

    def closure():
        optimizer.zero_grad()
        loss = (next_item_log_prob(frozen, history, target) - log_prob).square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    frozen.requires_grad_(False)
    with torch.no_grad():
        found = next_item_log_prob(frozen, history, target).item()
    assert abs(found - log_prob) < 1e-4, (found, log_prob)


def gradient_of(trainer):
    return torch.cat([p.grad.flatten() for p in trainer.model.parameters() if p.requires_grad])


def sampled_gradients(trainer, rounds, model=None):
    """(rounds, parameters) gradients of the loss of that many rounds."""
    model = trainer.model if model is None else model
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    trainer._begin()
    out = []
    for _ in range(rounds):
        model.zero_grad()
        inputs = trainer._prepare_inputs(None)
        trainer._compute_loss(model, inputs).backward()
        out.append(gradient_of(trainer))
        trainer._step += 1
    return torch.stack(out)


def run(folder, out, kind):
    """Two processes: the mean gradient over rounds after DDP has averaged it."""
    folder = Path(folder)
    trainer = make_trainer(folder, rows=320, train_recommender=False, lora=kind == "lora")
    model = trainer.accelerator.prepare_model(trainer.model)
    gradients = sampled_gradients(trainer, 20, model)
    if trainer.accelerator.is_main_process:
        torch.save({"gradients": gradients, "num_processes": trainer.accelerator.num_processes}, out)
    told = trainer.accelerator.gather(torch.tensor([trainer._round.rows], device=trainer.accelerator.device))
    if trainer.accelerator.is_main_process:
        (Path(out).with_suffix(".json")).write_text(json.dumps(told.tolist()))


if __name__ == "__main__":
    run(*sys.argv[1:])
