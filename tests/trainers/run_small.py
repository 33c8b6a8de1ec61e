"""A small training run that writes what came of it; started by test_two_processes.py in one process and in two."""

import json
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from safetensors.torch import save_file

from hf_seqrec.data import Sequences, leave_one_out
from hf_seqrec.modeling import SASRecConfig, SASRecForSequentialRecommendation
from hf_seqrec.trainers import NextItemTrainer, NextItemTrainingArguments


def run(folder, batch_size, seed=0):
    generator = np.random.default_rng(seed)
    # 33 evaluation rows: an odd number, so that two processes cannot share them evenly. 40 rows train.
    lengths = [2] * 7 + generator.integers(4, 12, 33).tolist()
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    items = generator.integers(1, 31, offsets[-1])
    split = leave_one_out(Sequences(items, offsets, None, pa.array([f"u{number}" for number in range(40)])))
    torch.manual_seed(seed)
    model = SASRecForSequentialRecommendation(
        SASRecConfig(num_items=30, hidden_size=8, max_length=8, hidden_dropout_prob=0.0)
    )
    args = NextItemTrainingArguments(
        str(folder), per_device_train_batch_size=batch_size, num_train_epochs=2, learning_rate=0.5, optim="sgd",
        lr_scheduler_type="constant", max_grad_norm=0.0, eval_strategy="epoch", save_strategy="no", disable_tqdm=True,
        load_best_model_at_end=False, early_stopping_patience=0, use_cpu=True, seed=seed, loss="sampled_cross_entropy",
        num_negatives=4, logging_strategy="no",
    )  # fmt: skip
    trainer = NextItemTrainer(model, args, train_dataset=split.train, eval_dataset=split.validation)
    trainer.train()
    predicted = trainer.predict(split.test)
    if trainer.is_world_process_zero():
        folder = Path(folder)
        folder.mkdir(exist_ok=True)
        save_file(
            {name: tensor.contiguous() for name, tensor in model.state_dict().items()}, folder / "weights.safetensors"
        )
        evaluations = [entry for entry in trainer.state.log_history if "eval_ndcg@10" in entry]
        told = {
            "num_processes": trainer.accelerator.num_processes,
            "ranks": predicted.predictions.tolist(),
            "evaluations": [{k: v for k, v in entry.items() if "@" in k} for entry in evaluations],
            "test": {k: v for k, v in predicted.metrics.items() if "@" in k},
        }
        (folder / "told.json").write_text(json.dumps(told))


if __name__ == "__main__":
    run(sys.argv[1], int(sys.argv[2]))
