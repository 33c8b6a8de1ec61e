"""Tiny LLMs of each kind with a character tokenizer, built here: nothing is downloaded."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
    T5Model,
)


KINDS = ("llama", "t5", "bert")
SPECIAL = ("<pad>", "<s>", "</s>", "<unk>")
LETTERS = tuple(chr(code) for code in range(32, 127))


def build_tokenizer(
    folder: Path, kind: str, special: tuple[str, ...] = SPECIAL, length: int = 512, pads: bool | None = None
) -> None:
    """A character tokenizer with the special tokens of its kind, enough for any text.

    Many decoder-only LLMs have no pad token, so the decoder-only kind has none unless `pads` says so.
    """
    vocabulary = {token: number for number, token in enumerate([*special, *LETTERS])}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges=[], unk_token="<unk>"))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    around = {"llama": "<s> $A", "t5": "$A </s>", "bert": "<s> $A </s>"}[kind]
    tokenizer.post_processor = processors.TemplateProcessing(single=around, special_tokens=[("<s>", 1), ("</s>", 2)])
    named = {"mask_token": "<mask>"} if "<mask>" in special else {}
    if pads if pads is not None else kind != "llama":
        named["pad_token"] = "<pad>"
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>", model_max_length=length, **named
    ).save_pretrained(folder)  # fmt: skip


def build_llm(
    folder: Path,
    kind: str,
    head: bool = False,
    special: tuple[str, ...] = SPECIAL,
    layers: int = 2,
    width: int = 16,
    length: int = 512,
    pads: bool | None = None,
    **config,
) -> str:
    """A model with random weights and its tokenizer, with the LLM's head where it is asked for; the folder."""
    torch.manual_seed(0)
    tokens, heads = len(special) + len(LETTERS), width // 8
    if kind == "t5":
        size = {
            "vocab_size": tokens,
            "d_model": width,
            "d_kv": 8,
            "d_ff": 2 * width,
            "num_layers": layers,
            "num_heads": heads,
        }
        size |= {"decoder_start_token_id": 0}
        model = (T5ForConditionalGeneration if head else T5Model)(T5Config(**size | config))
    else:
        size = {"vocab_size": tokens, "hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads}
        size |= {"intermediate_size": 2 * width, "max_position_embeddings": length}
        if kind == "llama":
            size["num_key_value_heads"] = 1
            model = (LlamaForCausalLM if head else LlamaModel)(LlamaConfig(**size | config))
        else:
            model = (BertForMaskedLM if head else BertModel)(BertConfig(**size | config))
    for parameter in model.parameters():  # larger weights than at initialisation, so that inputs show in outputs
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    build_tokenizer(folder, kind, special, length, pads)
    return str(folder)
