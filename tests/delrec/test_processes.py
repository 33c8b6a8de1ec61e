"""Two processes and one do the same in both stages: λ, soft prompts, ranks, agreement, metrics."""

import importlib.util
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file


SCRIPT = Path(__file__).with_name("run_small.py")


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.mark.multi_process
@pytest.mark.slow
def test_two_processes_distil_and_tune_like_one(tmp_path, llms):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", f"--master_port={free_port()}"]
    done = subprocess.run(
        [*launch, str(SCRIPT), str(tmp_path / "two"), llms["llama"], "2"],
        capture_output=True,
        text=True,
        timeout=280,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    spec = importlib.util.spec_from_file_location("run_small", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.run(tmp_path / "one", llms["llama"], 4)

    one, two = (json.loads((tmp_path / name / "told.json").read_text()) for name in ("one", "two"))
    assert (one["num_processes"], two["num_processes"]) == (1, 2)
    assert two["ranks"] == one["ranks"]
    assert sum(one["ranks"].values()) < 3 * len(one["ranks"])
    for stage in ("stage 1", "stage 2"):
        assert len(two[stage]) == len(one[stage]) > 4
        for expected, found in zip(one[stage], two[stage], strict=True):
            assert found == pytest.approx(expected, rel=1e-3, abs=1e-4)
    first, second = (load_file(tmp_path / name / "weights.safetensors") for name in ("one", "two"))
    for name, tensor in first.items():
        torch.testing.assert_close(second[name], tensor, atol=1e-4, rtol=1e-3, msg=name)
