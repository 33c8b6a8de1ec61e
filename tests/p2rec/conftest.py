"""A tiny LLM of each kind, item vectors, training sequences and a catalogue with several texts; nothing is downloaded."""

import numpy as np
import pyarrow as pa
import pytest
import tiny_llms

from hf_seqrec.data import Catalogue, Sequences


N = 12


@pytest.fixture(scope="session")
def llm_folders(tmp_path_factory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("llms")
    return {kind: tiny_llms.build_llm(root / kind, kind) for kind in tiny_llms.KINDS}


@pytest.fixture(scope="session")
def catalogue() -> Catalogue:
    return make_catalogue(range(N))


def make_catalogue(numbers, word="Film") -> Catalogue:
    numbers = list(numbers)
    return Catalogue(
        pa.table(
            {
                "item_id": [f"i{n}" for n in numbers],
                "title": pa.array([None if n == 4 else f"{word} {'x' * (n % 5)}{n}" for n in numbers], pa.string()),
                "brand": pa.array(["Acme" if n % 2 else None for n in numbers], pa.string()),
                "genres": pa.array([["Crime", "War"] if n % 3 == 0 else None for n in numbers], pa.list_(pa.string())),
            }
        )
    )


@pytest.fixture(scope="session")
def item_table() -> np.ndarray:
    """Three clearly separated groups of four items, row 0 padding."""
    generator = np.random.default_rng(0)
    centres = np.array([[4.0, 0, 0, 0], [0, 4, 0, 0], [0, 0, 4, 0]]).repeat(4, axis=0)
    return np.concatenate([np.zeros((1, 4)), centres + 0.1 * generator.normal(size=(N, 4))]).astype(np.float32)


@pytest.fixture(scope="session")
def sequences() -> Sequences:
    generator = np.random.default_rng(1)
    rows = [generator.permutation(np.arange(1, N + 1))[: generator.integers(3, 9)] for _ in range(20)]
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in rows])])
    return Sequences(np.concatenate(rows), offsets, None, pa.array([f"u{n}" for n in range(len(rows))]))
