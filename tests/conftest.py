"""Session-wide set-up: every Hub client of the test suite talks to a server on the loopback device, never to the internet."""

import importlib.util
import os
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
load_helper("tiny_llms")


@pytest.fixture(scope="session")
def hub():
    """The Hub of the tests: `hub.url`, `hub.token`, `hub.repository("owner/name")`, `hub.broken("lfs")`."""
    return HUB


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
