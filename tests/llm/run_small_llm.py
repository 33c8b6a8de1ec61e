"""A small distillation that writes what came of it; started by test_processes_and_kills.py in one process and in two."""

import json
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
from safetensors.torch import save_file

from hf_seqrec.data import Sequences, leave_one_out
from hf_seqrec.modeling.llm_srec import LLMSRecForSequentialRecommendation
from hf_seqrec.trainers.distillation import DistillationTrainer, DistillationTrainingArguments


def run(model, folder, batch_size):
    generator = np.random.default_rng(0)
    # 17 evaluation rows: an odd number, so that two processes cannot share them evenly. 24 rows train.
    lengths = [2] * 7 + generator.integers(4, 9, 17).tolist()
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    items = np.concatenate([generator.permutation(np.arange(1, 13))[:length] for length in lengths])
    split = leave_one_out(Sequences(items, offsets, None, pa.array([f"u{number}" for number in range(24)])))
    model = LLMSRecForSequentialRecommendation.from_pretrained(model)
    args = DistillationTrainingArguments(
        str(folder), per_device_train_batch_size=batch_size, num_train_epochs=2, learning_rate=0.02, optim="sgd",
        lr_scheduler_type="constant", max_grad_norm=0.0, eval_strategy="epoch", save_strategy="no", disable_tqdm=True,
        load_best_model_at_end=False, early_stopping_patience=0, use_cpu=True, logging_strategy="steps", logging_steps=1,
        cutoffs=[1, 5], metric_for_best_model="ndcg@5",
    )  # fmt: skip
    trainer = DistillationTrainer(model, args, train_dataset=split.train, eval_dataset=split.validation)
    trainer.train()
    predicted = trainer.predict(split.test)
    if trainer.is_world_process_zero():
        folder = Path(folder)
        folder.mkdir(exist_ok=True)
        weights = {
            name: value.detach().contiguous() for name, value in model.named_parameters() if value.requires_grad
        }
        save_file(weights, folder / "weights.safetensors")
        history = trainer.state.log_history
        told = {
            "num_processes": trainer.accelerator.num_processes,
            "ranks": predicted.predictions.tolist(),
            "losses": [entry["loss"] for entry in history if "loss" in entry],
            "evaluations": [entry["eval_ndcg@5"] for entry in history if "eval_ndcg@5" in entry],
        }
        (folder / "told.json").write_text(json.dumps(told))


if __name__ == "__main__":
    run(sys.argv[1], sys.argv[2], int(sys.argv[3]))
