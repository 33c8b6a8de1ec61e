"""Tiny LLMs with heads, a teacher, a catalogue and training sequences, built here: nothing is downloaded."""

import numpy as np
import pyarrow as pa
import pytest
import torch
from tiny_llms import KINDS, SPECIAL, build_llm

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


@pytest.fixture(scope="session")
def llms(tmp_path_factory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("llms")
    return {
        kind: build_llm(root / kind, kind, head=True, special=(*SPECIAL, "<mask>"), layers=1, length=1024, pads=True)
        for kind in KINDS
    }


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
