"""Two processes and one do the same: equal weights, equal metrics, every row counted once."""

import importlib.util
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file


SCRIPT = Path(__file__).with_name("run_small.py")


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.mark.multi_process
@pytest.mark.slow
def test_two_processes_train_and_evaluate_like_one(tmp_path):
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", f"--master_port={free_port()}"]
    done = subprocess.run(
        [*launch, str(SCRIPT), str(tmp_path / "two"), "4"],
        capture_output=True,
        text=True,
        timeout=250,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    spec = importlib.util.spec_from_file_location("run_small", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.run(tmp_path / "one", 8)

    one, two = (json.loads((tmp_path / name / "told.json").read_text()) for name in ("one", "two"))
    assert (one["num_processes"], two["num_processes"]) == (1, 2)
    assert len(two["ranks"]) == 33
    np.testing.assert_array_equal(two["ranks"], one["ranks"])
    assert len(one["evaluations"]) == 2
    for expected, found in zip([*one["evaluations"], one["test"]], [*two["evaluations"], two["test"]], strict=True):
        assert found == pytest.approx(expected, abs=1e-9)
    first, second = (load_file(tmp_path / name / "weights.safetensors") for name in ("one", "two"))
    for name, tensor in first.items():
        np.testing.assert_allclose(second[name], tensor, atol=2e-6, err_msg=name)
