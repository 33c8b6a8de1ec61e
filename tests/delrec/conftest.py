"""Tiny LLMs with heads, a teacher, a catalogue and training sequences, built here: nothing is downloaded."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForMaskedLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

from hf_seqrec.data import Catalogue, Sequences
from hf_seqrec.modeling import SASRecConfig, SASRecForSequentialRecommendation
from hf_seqrec.modeling.delrec import DELRecForSequentialRecommendation


NUM_ITEMS = 16
TITLES = [
    "Heat",
    "Alien",
    "Up",
    "Ran",
    None,
    "Big",
    "Ran",
    "M",
    "Fargo",
    "Jaws",
    "Dune",
    "Tron",
    "Ed",
    "Saw",
    "Her",
    "It",
]


def build_llm(folder: Path, kind: str) -> str:
    """A tiny LLM with a character tokenizer."""
    letters = [chr(code) for code in range(32, 127)]
    vocabulary = {token: number for number, token in enumerate(["<pad>", "<s>", "</s>", "<unk>", "<mask>", *letters])}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges=[], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    around = {"llama": "<s> $A", "t5": "$A </s>", "bert": "<s> $A </s>"}[kind]
    tokenizer.post_processor = processors.TemplateProcessing(single=around, special_tokens=[("<s>", 1), ("</s>", 2)])
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<pad>",
        mask_token="<mask>", model_max_length=1024,
    ).save_pretrained(folder)  # fmt: skip
    torch.manual_seed(0)
    size = {"vocab_size": 100, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    if kind == "llama":
        model = LlamaForCausalLM(LlamaConfig(**size, intermediate_size=16, max_position_embeddings=1024))
    elif kind == "t5":
        model = T5ForConditionalGeneration(
            T5Config(vocab_size=100, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, decoder_start_token_id=0)
        )
    else:
        model = BertForMaskedLM(BertConfig(**size, intermediate_size=16, max_position_embeddings=1024))
    for parameter in model.parameters():  # larger weights than at initialisation, so that inputs show in outputs
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def llms(tmp_path_factory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("llms")
    return {kind: build_llm(root / kind, kind) for kind in ("llama", "t5", "bert")}


@pytest.fixture(scope="session")
def catalogue() -> Catalogue:
    return Catalogue(
        pa.table({"item_id": [f"i{n}" for n in range(NUM_ITEMS)], "title": pa.array(TITLES, pa.string())})
    )


@pytest.fixture(scope="session")
def teacher():
    torch.manual_seed(1)
    config = SASRecConfig(
        num_items=NUM_ITEMS,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        max_length=8,
        initializer_range=0.5,
    )
    return SASRecForSequentialRecommendation(config).eval()


@pytest.fixture(scope="session")
def sequences() -> Sequences:
    generator = np.random.default_rng(0)
    rows = [generator.permutation(NUM_ITEMS)[:length] + 1 for length in (3, 6, 7, 8, 9, 8, 7, 6, 9, 8, 7, 6)]
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in rows])])
    return Sequences(np.concatenate(rows), offsets, None, pa.array([f"u{n}" for n in range(len(rows))]))


@pytest.fixture
def make(llms, teacher, catalogue):
    """Builds a tiny DELRec; keyword arguments go to `from_parts`."""

    def build(kind="llama", **options):
        torch.manual_seed(2)
        small = {"domain": "movie", "num_soft_tokens": 3, "alpha": 3, "num_recommended": 2, "num_candidates": 4}
        small |= {"history_length": 6, "max_title_tokens": 8}
        return DELRecForSequentialRecommendation.from_parts(llms[kind], teacher, catalogue, **{**small, **options})[0]

    return build
