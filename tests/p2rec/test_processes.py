"""Several processes do what one does, and one that is killed loses nothing and doubles nothing."""

import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from safetensors.torch import load_file

from hf_seqrec.item_vectors import load_item_vectors


SCRIPT = Path(__file__).with_name("run_processes.py")
_SPEC = importlib.util.spec_from_file_location("run_processes", SCRIPT)
run_processes = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(run_processes)
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.mark.multi_process
@pytest.mark.slow
def test_two_processes_tune_and_enhance_like_one(llm_folders, tmp_path):
    llm = llm_folders["bert"]
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", f"--master_port={free_port()}"]
    done = subprocess.run(
        [*launch, str(SCRIPT), "stages", str(tmp_path / "two"), llm, "4"],
        capture_output=True, text=True, timeout=250, env=ENVIRONMENT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    run_processes.stages(tmp_path / "one", llm, 8)

    weights = [load_file(tmp_path / name / "weights.safetensors") for name in ("one", "two")]
    assert weights[0].keys() == weights[1].keys()
    for name, tensor in weights[0].items():
        np.testing.assert_allclose(weights[1][name], tensor, atol=2e-5, err_msg=name)
    one, two = (load_item_vectors(tmp_path / name / "vectors") for name in ("one", "two"))
    np.testing.assert_allclose(two.read(catalogue=run_processes.catalogue(23)), one.read(), atol=1e-4)
    # Every item went through the LLM of exactly one process.
    calls = [json.loads((tmp_path / "two" / f"calls-{rank}.json").read_text()) for rank in (0, 1)]
    assert [len(rank) for rank in calls] == [3, 2]
    assert sorted(item for rank in calls for shard in rank for item in shard) == list(range(1, 24))


@pytest.mark.multi_process
def test_a_process_killed_while_it_writes_is_gone_on_from(llm_folders, tmp_path):
    llm, total = llm_folders["bert"], 400
    process = subprocess.Popen(
        [sys.executable, str(SCRIPT), "encode", str(tmp_path), llm, str(total)], env=ENVIRONMENT
    )

    def shards():
        return sorted(tmp_path.glob("*/vectors/train-*.parquet"))

    try:
        until = time.monotonic() + 120
        while len(shards()) < 5 and time.monotonic() < until and process.poll() is None:
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
    finally:
        process.kill()
        process.wait(60)
    kept = {path: path.stat().st_mtime_ns for path in shards()}
    assert 5 <= len(kept) < total
    assert all(pq.read_table(path).num_rows == 1 for path in kept)  # what has its name is whole
    with pytest.raises(ValueError, match="half-written"):
        load_item_vectors(next(tmp_path.glob("*/item_vectors.json")).parent)

    resumed = run_processes.encode(tmp_path, llm, total)
    assert {path: path.stat().st_mtime_ns for path in shards() if path in kept} == kept
    ids = [one for path in shards() for one in pq.read_table(path)["item_id"].to_pylist()]
    assert ids == run_processes.catalogue(total).item_ids.to_pylist()
    whole = run_processes.encode(tmp_path / "whole", llm, total)
    np.testing.assert_array_equal(resumed.read(), whole.read())
