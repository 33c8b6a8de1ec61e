"""Tiny LLMs that generate, a tiny text encoder, and a catalogue with several texts; nothing is downloaded."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import tiny_llms
from tokenizers import Tokenizer, decoders

from hf_seqrec.data import Catalogue, DatasetDescription, load_recommendation_data, write_dataset


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
    return {kind: tiny_llms.build_llm(root / kind, kind) for kind in tiny_llms.KINDS}


@pytest.fixture(scope="session")
def text_encoder(text_encoders) -> str:
    return text_encoders["bert"]


@pytest.fixture(scope="session")
def generators(tmp_path_factory) -> dict[str, str]:
    """Folders of LLMs that generate, with random weights: a decoder-only one and an encoder-decoder."""
    root, folders = tmp_path_factory.mktemp("generators"), {}
    for kind in ("llama", "t5"):
        own = {"eos_token_id": 2} | ({"num_key_value_heads": 2} if kind == "llama" else {"pad_token_id": 0})
        tiny_llms.build_llm(root / kind, kind, head=True, length=256, **own)
        letters = Tokenizer.from_file(str(root / kind / "tokenizer.json"))
        letters.decoder = decoders.Fuse()  # letters, not words: nothing goes between them
        letters.save(str(root / kind / "tokenizer.json"))
        folders[kind] = str(root / kind)
    return folders


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
