"""Both stages, killed inside a checkpoint, go on from the one before and end at the same weights."""

import os
import signal

import pytest
import torch

from hf_seqrec.trainers import (
    PromptTuningTrainer,
    PromptTuningTrainingArguments,
    SoftPromptTrainer,
    SoftPromptTrainingArguments,
)
from hf_seqrec.trainers.base import last_whole_checkpoint


COMMON = {
    "per_device_train_batch_size": 6, "max_steps": 4, "save_strategy": "steps", "save_steps": 1, "save_total_limit": 4, "eval_strategy": "no",
    "load_best_model_at_end": False, "use_cpu": True, "disable_tqdm": True, "logging_strategy": "no", "learning_rate": 0.01,
    "lion": False, "lr_scheduler_type": "constant", "adam_epsilon": 1e-3,
}  # fmt: skip
STAGES = {
    "stage one": (SoftPromptTrainer, SoftPromptTrainingArguments, {"num_soft_tokens": 3}),
    "stage two": (PromptTuningTrainer, PromptTuningTrainingArguments, {"adapter": {"type": "adalora", "init_r": 3, "target_r": 1}}),
}  # fmt: skip


def train_and_die(trainer):
    torch.set_num_threads(1)
    save = trainer._save_optimizer_and_scheduler

    def save_or_die(folder):
        if trainer.state.global_step == 3:  # the model is written, the optimizer is not
            os.kill(os.getpid(), signal.SIGKILL)
        save(folder)

    trainer._save_optimizer_and_scheduler = save_or_die
    trainer.train()


@pytest.mark.multi_process
@pytest.mark.parametrize("stage", STAGES)
def test_a_killed_run_goes_on_from_the_last_whole_checkpoint(make, sequences, tmp_path, stage):
    trainer_class, arguments_class, options = STAGES[stage]

    def trainer(folder):
        return trainer_class(
            make(**options), arguments_class(str(tmp_path / folder), **COMMON), train_dataset=sequences
        )

    whole = trainer("whole")
    whole.train()
    process = torch.multiprocessing.get_context("fork").Process(target=train_and_die, args=(trainer("cut"),))
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL
    assert (tmp_path / "cut" / "checkpoint-3").exists()
    assert last_whole_checkpoint(tmp_path / "cut") == str(tmp_path / "cut" / "checkpoint-2")
    resumed = trainer("cut")
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 4
    moved = 0.0
    start = dict(trainer("new").model.named_parameters())
    for (name, expected), found in zip(whole.model.named_parameters(), resumed.model.parameters(), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4, msg=name)
        moved = max(moved, float((found - start[name]).abs().max()))
    assert moved > 1e-3
