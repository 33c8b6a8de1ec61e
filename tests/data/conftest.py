"""Small data sets shared by the data tests."""

import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from hf_seqrec.data import Sequences


@pytest.fixture
def items() -> pa.Table:
    return pa.table(
        {
            "item_id": [f"i{n}" for n in range(1, 7)],
            "title": ["Alien", "Heat", "Fargo", None, "Heat", "Big"],
            "genres": ["scifi", "crime", "crime", None, "crime", "comedy"],
        }
    )


@pytest.fixture
def interactions() -> pa.Table:
    """Twelve rows of four users, not sorted; rows 4 and 5 (ann) and rows 1 and 9 (bob) share their times."""
    rows = [
        ("ann", "i2", 30),
        ("bob", "i1", 100),
        ("ann", "i1", 10),
        ("cid", "i6", 50),
        ("ann", "i4", 40),
        ("ann", "i3", 40),
        ("dan", "i5", 5),
        ("bob", "i2", 90),
        ("cid", "i1", 60),
        ("bob", "i3", 100),
        ("cid", "i2", 70),
        ("cid", "i6", 80),
    ]
    users, ids, times = zip(*rows, strict=True)
    return pa.table({"user_id": users, "item_id": ids, "timestamp": pa.array(times, pa.int64())})


@pytest.fixture
def sequences() -> Sequences:
    """The same twelve interactions, as the loader must order them."""
    return Sequences(
        item_index=np.array([1, 2, 4, 3, 2, 1, 3, 6, 1, 2, 6, 5]),
        offsets=np.array([0, 4, 7, 11, 12]),
        timestamps=np.array([10, 30, 40, 40, 90, 100, 100, 50, 60, 70, 80, 5]),
        user_ids=pa.array(["ann", "bob", "cid", "dan"]),
    )


@pytest.fixture
def random_sequences() -> Sequences:
    """Two hundred users over sixty items, with repeated items and ties in time."""
    generator = np.random.default_rng(3)
    lengths = generator.integers(1, 25, 200)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    times = [np.sort(generator.integers(0, 500, length)) for length in lengths]
    return Sequences(
        generator.integers(1, 61, offsets[-1]), offsets, np.concatenate(times), pa.array([f"u{n}" for n in range(200)])
    )


@pytest.fixture
def real_data():
    """Folder of a real data set by name; the test is skipped where the data are not at hand."""
    root = Path(os.environ.get("HF_SEQREC_DATA", Path(__file__).resolve().parents[3] / "shared" / "data"))

    def folder(name: str) -> Path:
        if not (root / name).is_dir():
            pytest.skip(f"no real data at {root / name}: set HF_SEQREC_DATA to the folder that holds {name}")
        return root / name

    return folder
