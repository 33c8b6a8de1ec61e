"""What test_processes.py starts: P2Rec's stages in one process or two, and text vectors to be killed in the middle."""

import json
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from safetensors.torch import save_file

from hf_seqrec.data import Catalogue, Sequences, leave_one_out
from hf_seqrec.modeling import P2RecModel
from hf_seqrec.preferences import enhance_items, group_items, preference_distributions
from hf_seqrec.text_vectors import encode_items
from hf_seqrec.trainers import PreferenceTrainer, PreferenceTrainingArguments


def catalogue(num_items):
    return Catalogue(
        pa.table({"item_id": [f"i{n}" for n in range(num_items)], "title": [f"Film {n}" for n in range(num_items)]})
    )


def stages(folder, llm, batch_size):
    """40 users train, in whole batches for one process and for two; 23 items in shards of 5."""
    generator = np.random.default_rng(0)
    lengths = generator.integers(3, 12, 40)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    items = generator.integers(1, 24, offsets[-1])
    train = leave_one_out(Sequences(items, offsets, None, pa.array([f"u{n}" for n in range(40)]))).train
    table = np.concatenate([np.zeros((1, 4)), generator.normal(size=(23, 4))]).astype(np.float32)
    groups = group_items(table, 3, training_items=train.item_index)
    torch.manual_seed(0)
    model = P2RecModel.from_parts(
        llm, table, num_groups=3, max_length=6, lora={"r": 2, "target_modules": "all-linear"}
    )
    arguments = PreferenceTrainingArguments(
        str(folder), per_device_train_batch_size=batch_size, num_train_epochs=2, learning_rate=0.1, optim="sgd", max_grad_norm=0.0,
        lr_scheduler_type="constant", save_strategy="no", disable_tqdm=True, use_cpu=True, logging_strategy="no",
        sub_sequence_probability=0.5,
    )  # fmt: skip
    trainer = PreferenceTrainer(
        model, arguments, train_dataset=train, preferences=preference_distributions(train, groups), group=groups.group
    )
    trainer.train()
    calls = []
    real = model.enhance
    model.enhance = lambda items: calls.append(items.tolist()) or real(items)
    enhance_items(model, catalogue(23), Path(folder) / "vectors", shard_size=5, progress=False)
    (Path(folder) / f"calls-{trainer.accelerator.process_index}.json").write_text(json.dumps(calls))
    if trainer.is_world_process_zero():
        save_file(
            {name: one.contiguous() for name, one in model.own_state_dict().items()},
            Path(folder) / "weights.safetensors",
        )


def encode(folder, llm, num_items):
    """One item per shard, so that there is always a next one to be killed at."""
    return encode_items(llm, catalogue(num_items), folder, shard_size=1, device="cpu", progress=False)


if __name__ == "__main__":
    {"stages": stages, "encode": encode}[sys.argv[1]](Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]))
