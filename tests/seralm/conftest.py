"""Tiny LLMs that generate, a tiny text encoder, and a catalogue with several texts; nothing is downloaded."""

import importlib.util
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from tokenizers import Tokenizer, decoders
from transformers import LlamaConfig, LlamaForCausalLM, T5Config, T5ForConditionalGeneration

from hf_seqrec.data import Catalogue, DatasetDescription, load_recommendation_data, write_dataset


_SPEC = importlib.util.spec_from_file_location("tiny_llms", Path(__file__).parents[1] / "llm" / "conftest.py")
tiny_llms = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(tiny_llms)

N = 12


def make_catalogue(numbers, word="Film") -> Catalogue:
    numbers = list(numbers)
    return Catalogue(
        pa.table(
            {
                "item_id": [f"i{n}" for n in numbers],
                "title": pa.array([None if n == 4 else f"{word} {'x' * (n % 5)}{n}" for n in numbers], pa.string()),
                "genres": pa.array(
                    [None if n == 4 else ["Crime", "War"][: 1 + n % 2] for n in numbers], pa.list_(pa.string())
                ),
            }
        )
    )


@pytest.fixture(scope="session")
def catalogue() -> Catalogue:
    """Twelve films, of one of which nothing is known."""
    return make_catalogue(range(N))


@pytest.fixture(scope="session")
def text_encoders(tmp_path_factory) -> dict[str, str]:
    """Folders of models of each kind that read."""
    root = tmp_path_factory.mktemp("encoders")
    return {kind: tiny_llms.build_llm_folder(root / kind, kind) for kind in tiny_llms.KINDS}


@pytest.fixture(scope="session")
def text_encoder(text_encoders) -> str:
    return text_encoders["bert"]


@pytest.fixture(scope="session")
def generators(tmp_path_factory) -> dict[str, str]:
    """Folders of LLMs that generate, with random weights: a decoder-only one and an encoder-decoder."""
    root, folders = tmp_path_factory.mktemp("generators"), {}
    size = {"vocab_size": 99, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    for kind in ("llama", "t5"):
        torch.manual_seed(0)
        if kind == "llama":
            config = LlamaConfig(**size, intermediate_size=32, max_position_embeddings=256, eos_token_id=2)
            model = LlamaForCausalLM(config)
        else:
            config = T5Config(
                vocab_size=99, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, decoder_start_token_id=0,
                eos_token_id=2, pad_token_id=0,
            )  # fmt: skip
            model = T5ForConditionalGeneration(config)
        for parameter in model.parameters():  # so that prompts show in texts
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.3)
        model.save_pretrained(root / kind)
        tiny_llms.build_tokenizer(root / kind, kind)
        letters = Tokenizer.from_file(str(root / kind / "tokenizer.json"))
        letters.decoder = decoders.Fuse()  # letters, not words: nothing goes between them
        letters.save(str(root / kind / "tokenizer.json"))
        folders[kind] = str(root / kind)
    return folders


@pytest.fixture(scope="session")
def stored_models() -> Path:
    """Folder of small trained LLMs."""
    folder = Path(os.environ.get("HF_SEQREC_MODELS", Path(__file__).parents[2] / "../shared/models"))
    if not folder.is_dir():
        pytest.skip("no folder with trained LLMs: set HF_SEQREC_MODELS.")
    return folder


@pytest.fixture(scope="session")
def dataset(tmp_path_factory, catalogue) -> Path:
    """A data set folder: 24 users who walk through the catalogue in steps of one or two."""
    generator = np.random.default_rng(0)
    rows = []
    for user in range(24):
        start = int(generator.integers(N))
        length = int(generator.integers(4, 8))
        rows += [(f"u{user}", f"i{(start + step) % N}", step) for step in range(length)]
    users, items, positions = map(list, zip(*rows, strict=True))
    folder = tmp_path_factory.mktemp("data") / "walks"
    table = pa.table({"user_id": users, "item_id": items, "position": pa.array(positions, pa.int64())})
    write_dataset(folder, catalogue.table, table, DatasetDescription(title="Walks", summary="Walks.", simulated=True))
    return folder


@pytest.fixture(scope="session")
def data(dataset):
    return load_recommendation_data(dataset)
