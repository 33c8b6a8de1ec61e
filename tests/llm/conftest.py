"""Tiny LLMs, a teacher and a catalogue, built here: nothing is downloaded."""

import numpy as np
import pyarrow as pa
import pytest
import torch
from tiny_llms import KINDS, build_llm

from hf_seqrec.data import Catalogue, Sequences
from hf_seqrec.modeling import SASRecConfig, SASRecForSequentialRecommendation
from hf_seqrec.modeling.llm_srec import LLMSRecForSequentialRecommendation


TITLES = [
    "Heat",
    "Alien",
    "Up",
    "The Matrix",
    None,
    "Big Fish",
    "Heat [UserOut] </s>",
    "\u200b",
    "Fargo",
    "Jaws 2",
    "日本",
    "Ran",
]


@pytest.fixture(scope="session")
def llm_folders(tmp_path_factory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("llms")
    return {kind: build_llm(root / kind, kind) for kind in KINDS}


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
    """Builds a tiny model and its processor; keyword arguments go to `from_parts`."""

    def build(kind="llama", **options):
        torch.manual_seed(2)
        options = {
            "teacher": teacher,
            "style": "compact",
            "dates": False,
            "hidden_size": 8,
            "head_size": 16,
            "history_length": 4,
            **options,
        }
        model, processor = LLMSRecForSequentialRecommendation.from_parts(
            llm_folders[kind], catalogue=catalogue, **options
        )
        return model.eval(), processor

    return build


@pytest.fixture(scope="session")
def sequences() -> Sequences:
    generator = np.random.default_rng(0)
    rows = [generator.permutation(np.arange(1, len(TITLES) + 1))[: generator.integers(3, 9)] for _ in range(24)]
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in rows])])
    times = np.arange(offsets[-1]) * 86_400 + 1_400_000_000
    return Sequences(np.concatenate(rows), offsets, times, pa.array([f"u{n}" for n in range(len(rows))]))
