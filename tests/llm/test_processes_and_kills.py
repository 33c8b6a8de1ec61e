"""Two processes train like one, and a process that is killed while it saves leaves something to go on from."""

import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from safetensors.torch import load_file

from hf_seqrec.data import leave_one_out
from hf_seqrec.modeling.llm_srec import LLMSRecForSequentialRecommendation
from hf_seqrec.trainers.base import last_whole_checkpoint
from hf_seqrec.trainers.distillation import DistillationTrainer, DistillationTrainingArguments


SCRIPT = Path(__file__).with_name("run_small_llm.py")
IDS = torch.tensor([[0, 3, 4], [1, 2, 5]])


@pytest.mark.multi_process
@pytest.mark.slow
def test_two_processes_distil_and_evaluate_like_one(make, tmp_path):
    # With in-batch negatives each process has the candidates of its own rows, by definition.
    model, _ = make("llama", in_batch_negatives=False)
    model.save_pretrained(tmp_path / "model")
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", f"--master_port={port}"]
    done = subprocess.run(
        [*launch, str(SCRIPT), str(tmp_path / "model"), str(tmp_path / "two"), "4"],
        capture_output=True,
        text=True,
        timeout=400,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    spec = importlib.util.spec_from_file_location("run_small_llm", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.run(tmp_path / "model", tmp_path / "one", 8)

    one, two = (json.loads((tmp_path / name / "told.json").read_text()) for name in ("one", "two"))
    assert (one["num_processes"], two["num_processes"]) == (1, 2)
    assert len(one["losses"]) == 6
    assert two["losses"] == pytest.approx(one["losses"], abs=1e-4)
    assert two["evaluations"] == pytest.approx(one["evaluations"], abs=1e-9)
    np.testing.assert_array_equal(two["ranks"], one["ranks"])
    start = dict(model.named_parameters())
    first, second = (load_file(tmp_path / name / "weights.safetensors") for name in ("one", "two"))
    for name, tensor in first.items():
        np.testing.assert_allclose(second[name], tensor, atol=1e-5, err_msg=name)
    assert max(float((tensor - start[name]).abs().max()) for name, tensor in first.items()) > 1e-3


def in_a_process_that_dies(work, *args):
    """Run `work`, which must kill its own process."""
    process = torch.multiprocessing.get_context("fork").Process(target=work, args=args)
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL


def die(*args, **kwargs):
    os.kill(os.getpid(), signal.SIGKILL)


def _save_and_die(model, folder):
    torch.set_num_threads(1)

    def write_a_part(tensors, filename, *args, **kwargs):
        Path(filename).write_bytes(b"half of the weights")
        die()

    import transformers.modeling_utils

    safetensors.torch.save_file = transformers.modeling_utils.safe_save_file = write_a_part
    with torch.no_grad():
        model.user_out.add_(1.0)
    model.save_pretrained(folder)


@pytest.mark.multi_process
def test_a_kill_during_a_save_leaves_the_model_that_was_there(make, tmp_path):
    model, _ = make("bert")
    model.save_pretrained(tmp_path)
    in_a_process_that_dies(_save_and_die, model, tmp_path)
    assert list(tmp_path.glob(".saving-*/*.safetensors"))  # it was in the middle of it
    loaded = LLMSRecForSequentialRecommendation.from_pretrained(tmp_path)
    torch.testing.assert_close(loaded.score(IDS), model.score(IDS))
    loaded.save_pretrained(tmp_path)  # and the next save clears up
    assert not list(tmp_path.glob(".saving-*"))


def trainer_of(make, sequences, folder, steps=4):
    model, processor = make("bert")
    args = DistillationTrainingArguments(
        str(folder), max_steps=steps, per_device_train_batch_size=6, learning_rate=1e-2, eval_strategy="no",
        save_strategy="steps", save_steps=1, save_total_limit=4, load_best_model_at_end=False, use_cpu=True,
        lr_scheduler_type="constant", disable_tqdm=True, logging_strategy="no",
        # A shift of all item vectors has no gradient but rounding, which Adam would blow up to whole steps.
        adam_epsilon=1e-3,
    )  # fmt: skip
    return DistillationTrainer(
        model, args, train_dataset=leave_one_out(sequences).train, processing_class=processor
    )  # fmt: skip


def _train_and_die(trainer):
    torch.set_num_threads(1)
    save = trainer._save_optimizer_and_scheduler
    # At the third checkpoint: the model is written, the optimizer is not.
    trainer._save_optimizer_and_scheduler = lambda folder: die() if trainer.state.global_step == 3 else save(folder)
    trainer.train()


@pytest.mark.multi_process
def test_a_run_killed_during_a_checkpoint_resumes_from_the_one_before_and_ends_at_the_same_weights(
    make, sequences, tmp_path
):
    whole = trainer_of(make, sequences, tmp_path / "whole")
    whole.train()
    with pytest.raises(ValueError, match="holds no whole checkpoint to resume from"):
        trainer_of(make, sequences, tmp_path / "new").train(resume_from_checkpoint=True)
    cut = tmp_path / "cut"
    in_a_process_that_dies(_train_and_die, trainer_of(make, sequences, cut))
    assert (cut / "checkpoint-3" / "model.safetensors").exists()
    assert last_whole_checkpoint(cut) == str(cut / "checkpoint-2")
    LLMSRecForSequentialRecommendation.from_pretrained(cut / "checkpoint-2")
    resumed = trainer_of(make, sequences, cut)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 4
    for (name, expected), found in zip(whole.model.named_parameters(), resumed.model.parameters(), strict=True):
        # The process that died ran with one thread, which rounds differently.
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5, msg=name)
    # A state that was cut itself is passed over, too.
    (cut / "checkpoint-4" / "trainer_state.json").write_text('{"epoch": 1')
    assert last_whole_checkpoint(cut) == str(cut / "checkpoint-3")
