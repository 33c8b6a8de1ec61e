"""Tiny LLMs with their heads, one of each kind, built here; nothing is downloaded."""

import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    AutoTokenizer,
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
from hf_seqrec.modeling.llm_ranker import LLMRankerForSequentialRecommendation


TITLES = [
    "Heat",
    "Alien",
    "Up",
    "The Matrix",
    None,
    "Big Fish",
    "Heat",
    "Fargo [Answer]",
    "Jaws 2",
    "日本",
    "Ran",
    "Heat",
]
KINDS = {"llama": "decoder", "t5": "encoder-decoder", "bert": "encoder"}
_SPECIAL = ["<pad>", "<s>", "</s>", "<unk>", "<mask>", "<extra_id_0>", "<extra_id_1>"]


def build_tokenizer(folder: Path, kind: str) -> None:
    """A character tokenizer with the special tokens of its kind, enough for any text."""
    letters = [chr(code) for code in range(32, 127)]
    vocabulary = {token: number for number, token in enumerate([*_SPECIAL, *letters])}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges=[], unk_token="<unk>"))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    around = {"llama": "<s> $A", "t5": "$A </s>", "bert": "<s> $A </s>"}[kind]
    tokenizer.post_processor = processors.TemplateProcessing(single=around, special_tokens=[("<s>", 1), ("</s>", 2)])
    pad = {} if kind == "llama" else {"pad_token": "<pad>"}
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>", mask_token="<mask>",
        model_max_length=512, **pad,
    )  # fmt: skip
    fast.save_pretrained(folder)


def build_llm_folder(folder: Path, kind: str) -> str:
    torch.manual_seed(0)
    size = {"vocab_size": 102, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    if kind == "llama":
        model = LlamaForCausalLM(
            LlamaConfig(**size, intermediate_size=32, max_position_embeddings=512, num_key_value_heads=1)
        )
    elif kind == "t5":
        model = T5ForConditionalGeneration(
            T5Config(vocab_size=102, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, decoder_start_token_id=0)
        )
    else:
        model = BertForMaskedLM(BertConfig(**size, intermediate_size=32, max_position_embeddings=512))
    for parameter in model.parameters():  # larger weights than at initialisation, so that inputs show in outputs
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    build_tokenizer(folder, kind)
    return str(folder)


@pytest.fixture(scope="session")
def llm_folders(tmp_path_factory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("llms")
    return {kind: build_llm_folder(root / kind, kind) for kind in KINDS}


@pytest.fixture(scope="session")
def tokenizers(llm_folders):
    return {kind: AutoTokenizer.from_pretrained(folder) for kind, folder in llm_folders.items()}


@pytest.fixture(scope="session")
def stored_models() -> Path:
    """Folder of small trained LLMs."""
    folder = Path(os.environ.get("HF_SEQREC_MODELS", Path(__file__).parents[2] / "../shared/models"))
    if not folder.is_dir():
        pytest.skip("no folder with trained LLMs: set HF_SEQREC_MODELS.")
    return folder


@pytest.fixture(scope="session")
def catalogue() -> Catalogue:
    return Catalogue(
        pa.table({"item_id": [f"i{n}" for n in range(len(TITLES))], "title": pa.array(TITLES, pa.string())})
    )


@pytest.fixture
def teacher():
    torch.manual_seed(1)
    config = SASRecConfig(
        num_items=len(TITLES), hidden_size=8, max_length=6, intermediate_size=16, initializer_range=0.5
    )
    return SASRecForSequentialRecommendation(config).eval()


@pytest.fixture
def make(llm_folders, teacher, catalogue):
    """Builds a tiny ranker and its processor; keyword arguments go to `from_parts`."""

    def build(kind="llama", **options):
        torch.manual_seed(2)
        settings = {"teacher": teacher, "domain": "movie", "num_candidates": 4, "history_length": 4, **options}
        return LLMRankerForSequentialRecommendation.from_parts(llm_folders[kind], catalogue=catalogue, **settings)

    return build


@pytest.fixture(scope="session")
def sequences() -> Sequences:
    generator = np.random.default_rng(0)
    rows = [generator.permutation(np.arange(1, len(TITLES) + 1))[: generator.integers(4, 9)] for _ in range(24)]
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in rows])])
    return Sequences(np.concatenate(rows), offsets, None, pa.array([f"u{n}" for n in range(len(rows))]))
