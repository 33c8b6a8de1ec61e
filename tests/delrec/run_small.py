"""Both stages on tiny parts, and what came of them as a file; started by test_processes.py in one process and in two."""

import json
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from safetensors.torch import save_file
from transformers import PrinterCallback

from hf_seqrec.data import Catalogue, Sequences, leave_one_out
from hf_seqrec.modeling import SASRecConfig, SASRecForSequentialRecommendation
from hf_seqrec.modeling.delrec import DELRecForSequentialRecommendation
from hf_seqrec.trainers import (
    PromptTuningTrainer,
    PromptTuningTrainingArguments,
    SoftPromptTrainer,
    SoftPromptTrainingArguments,
)


def run(folder, llm, batch_size):
    generator = np.random.default_rng(0)
    # 16 users train in stage 1 and 20 in stage 2: batches of 4 come out even, so that no process gets a row twice.
    rows = [generator.permutation(16)[:length] + 1 for length in generator.integers(7, 11, 20)]
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in rows])])
    split = leave_one_out(Sequences(np.concatenate(rows), offsets, None, pa.array([f"u{n}" for n in range(20)])))
    catalogue = Catalogue(
        pa.table({"item_id": [f"i{n}" for n in range(16)], "title": [f"Film {n}" for n in range(16)]})
    )
    torch.manual_seed(1)
    teacher = SASRecForSequentialRecommendation(
        SASRecConfig(num_items=16, hidden_size=8, intermediate_size=8, num_hidden_layers=1, max_length=8)
    )
    torch.manual_seed(2)
    model, _ = DELRecForSequentialRecommendation.from_parts(
        llm, teacher, catalogue, num_soft_tokens=3, alpha=3, num_recommended=2, num_candidates=4, history_length=6, max_title_tokens=8,
        adapter={"type": "adalora", "init_r": 3, "target_r": 1},
    )  # fmt: skip
    common = {
        "per_device_train_batch_size": batch_size, "max_steps": 4, "lion": False, "optim": "sgd", "max_grad_norm": 0.0, "weight_decay": 0.0,
        "learning_rate": 0.1, "lr_scheduler_type": "constant", "eval_strategy": "steps", "eval_steps": 4, "save_strategy": "no",
        "load_best_model_at_end": False, "early_stopping_patience": 0, "disable_tqdm": True, "use_cpu": True, "logging_steps": 1,
        "logging_strategy": "steps", "cutoffs": [1],
    }  # fmt: skip
    first = SoftPromptTrainer(
        model, SoftPromptTrainingArguments(f"{folder}/1", held_out_users=0.2, **common), train_dataset=split.train
    )
    told = {}
    for stage in (1, 2):
        trainer = first
        if stage == 2:
            arguments = PromptTuningTrainingArguments(
                f"{folder}/2", eval_negatives=3, **{**common, "metric_for_best_model": "ndcg@1/sampled3"}
            )
            trainer = PromptTuningTrainer(model, arguments, train_dataset=split.train, eval_dataset=split.validation)
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        left_out = ("runtime", "second", "flos", "grad_norm")
        told[f"stage {stage}"] = [
            {name: value for name, value in log.items() if not any(word in name for word in left_out)}
            for log in trainer.state.log_history
        ]
    told["ranks"] = model.ranks()
    told["num_processes"] = first.accelerator.num_processes
    if first.is_world_process_zero():
        state = {
            name: tensor.contiguous()
            for name, tensor in model.own_state_dict().items()
            if not name.startswith("teacher.")
        }
        save_file(state, Path(folder) / "weights.safetensors")
        (Path(folder) / "told.json").write_text(json.dumps(told))


if __name__ == "__main__":
    run(sys.argv[1], sys.argv[2], int(sys.argv[3]))
