"""Tiny LLMs with their heads, one of each kind, built here; nothing is downloaded."""

import numpy as np
import pyarrow as pa
import pytest
import torch
from tiny_llms import SPECIAL, build_llm
from transformers import AutoTokenizer

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
_SPECIAL = (*SPECIAL, "<mask>", "<extra_id_0>", "<extra_id_1>")


@pytest.fixture(scope="session")
def llm_folders(tmp_path_factory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("llms")
    return {kind: build_llm(root / kind, kind, head=True, special=_SPECIAL) for kind in KINDS}


@pytest.fixture(scope="session")
def tokenizers(llm_folders):
    return {kind: AutoTokenizer.from_pretrained(folder) for kind, folder in llm_folders.items()}


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
