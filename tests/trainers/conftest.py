"""A tiny world for trainers: 40 users, 30 items, one user too short to be evaluated."""

import numpy as np
import pyarrow as pa
import pytest

from hf_seqrec.data import Sequences, leave_one_out
from hf_seqrec.modeling import SASRecConfig, SASRecForSequentialRecommendation
from hf_seqrec.trainers import NextItemTrainer, NextItemTrainingArguments


NUM_ITEMS = 30


def make_split(num_users=40, seed=0):
    """Users walk along a ring of items, now and then jumping, so that there is something to learn."""
    generator = np.random.default_rng(seed)
    rows = []
    for number in range(num_users):
        length = 2 if number == 0 else int(generator.integers(5, 14))
        steps = np.where(generator.random(length) < 0.9, 1, generator.integers(2, NUM_ITEMS, length))
        rows.append((generator.integers(NUM_ITEMS) + np.cumsum(steps)) % NUM_ITEMS + 1)
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in rows])])
    user_ids = pa.array([f"u{number}" for number in range(num_users)])
    return leave_one_out(Sequences(np.concatenate(rows), offsets, None, user_ids))


@pytest.fixture(scope="session")
def split():
    return make_split()


@pytest.fixture
def make_model():
    import torch

    def make(head=SASRecForSequentialRecommendation, config_class=SASRecConfig, seed=0, **config):
        torch.manual_seed(seed)
        return head(config_class(**{"num_items": NUM_ITEMS, "hidden_size": 8, "max_length": 8, **config}))

    return make


@pytest.fixture
def make_trainer(tmp_path, split):
    def make(model, name="out", processing_class=None, **arguments):
        defaults = {
            "per_device_train_batch_size": 16, "num_train_epochs": 1, "eval_strategy": "no", "save_strategy": "no",
            "logging_strategy": "no", "load_best_model_at_end": False, "early_stopping_patience": 0, "use_cpu": True,
            "disable_tqdm": True, "seed": 0, "learning_rate": 0.05,
        }  # fmt: skip
        args = NextItemTrainingArguments(output_dir=str(tmp_path / name), **(defaults | arguments))
        return NextItemTrainer(
            model, args, train_dataset=split.train, eval_dataset=split.validation, processing_class=processing_class
        )

    return make
