"""Session-wide set-up: every Hub client of the test suite talks to a server on the loopback device, never to the internet."""

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest


def load_helper(name: str):
    """A module of helpers beside this file, which tests then import by its name."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# The clients read these variables when they are imported, so they are set before any test module is.
HUB = load_helper("hub_server").HubServer()
_home = tempfile.TemporaryDirectory(prefix="hf-home-")

for _name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE", "HF_HUB_CACHE", "HF_MODULES_CACHE"):
    os.environ.pop(_name, None)
os.environ.update(
    HF_ENDPOINT=HUB.url,
    HF_TOKEN=HUB.token,
    HF_HOME=_home.name,
    HF_HUB_DISABLE_XET="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    HF_HUB_DISABLE_PROGRESS_BARS="1",
)
for _name in ("tiny_llms", "comparing"):
    load_helper(_name)


@pytest.fixture(scope="session")
def hub():
    """The Hub of the tests: `hub.url`, `hub.token`, `hub.repository("owner/name")`, `hub.broken("lfs")`."""
    return HUB


@pytest.fixture(scope="session")
def stored_models() -> Path:
    """Folder of small trained LLMs."""
    folder = Path(os.environ.get("HF_SEQREC_MODELS", Path(__file__).parents[1] / "../shared/models"))
    if not folder.is_dir():
        pytest.skip("no folder with trained LLMs: set HF_SEQREC_MODELS.")
    return folder


BEFORE = """
import json, sys

class NotInstalled:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("hf_seqrec", "modeling"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, NotInstalled())
request = json.load(sys.stdin)
"""
AFTER = """
assert not [name for name in sys.modules if name.split(".")[0] in ("hf_seqrec", "modeling")]
json.dump(answer, open(request["output"], "w"))
"""


@pytest.fixture
def elsewhere(tmp_path):
    """Runs a script on a machine without the library: it is given `request` and its `answer` comes back."""

    def run(script: str, **request):
        environment = {
            "HF_ENDPOINT": HUB.url, "HF_TOKEN": HUB.token, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1", "OMP_NUM_THREADS": "1", "PATH": os.environ.get("PATH", ""),
        }  # fmt: skip
        output = tmp_path / "answer.json"
        done = subprocess.run(
            [sys.executable, "-I", "-c", BEFORE + script + AFTER], input=json.dumps(request | {"output": str(output)}),
            env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=240,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return json.loads(output.read_text())

    return run


@pytest.fixture
def two_threads():
    """PyTorch computes with two threads, wherever the tests run."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def pytest_sessionfinish():
    HUB.stop()
    _home.cleanup()
