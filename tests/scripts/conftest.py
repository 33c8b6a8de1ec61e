"""A small demo world, and one recommender trained on it through the command line."""

import pytest

from hf_seqrec.cli import main
from hf_seqrec.data.demo import build_demo_world


SMALL = [
    "--hidden_size", "8", "--num_hidden_layers", "1", "--intermediate_size", "8", "--max_length", "10",
    "--num_train_epochs", "2", "--use_cpu", "--per_device_train_batch_size", "32",
]  # fmt: skip


@pytest.fixture(scope="session")
def small():
    """Options that make training take a second."""
    return list(SMALL)


@pytest.fixture(scope="session")
def dataset(tmp_path_factory):
    """Folder of a world with 100 films and 60 viewers."""
    folder = tmp_path_factory.mktemp("data") / "world"
    build_demo_world(folder, num_items=100, num_users=60)
    return folder


@pytest.fixture(scope="session")
def trained(dataset, tmp_path_factory):
    """Folder that `seqrec train sasrec` wrote."""
    folder = tmp_path_factory.mktemp("trained") / "out"
    assert main(["train", "sasrec", "--dataset", str(dataset), "--output_dir", str(folder), *SMALL]) == 0
    return folder
