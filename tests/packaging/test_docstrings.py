"""The examples in docstrings give what they say."""

import doctest
import importlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch


ROOT = Path(__file__).parents[2]


def modules():
    for top in ("hf_seqrec", "modeling", "trainers", "dataset_scripts"):
        for path in sorted((ROOT / top).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            name = ".".join(parts if parts[0] == "hf_seqrec" else ("hf_seqrec", *parts)).removesuffix(".__init__")
            if ">>> " in path.read_text(encoding="utf-8"):
                yield name


@pytest.mark.parametrize("name", modules())
def test_the_examples_of_a_module_run(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    module = importlib.import_module(name)
    options = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
    # Examples write `torch`, `np` and `pa` as everybody does, also where the module itself imports none of them.
    common = {"np": np, "pa": pa, "torch": torch}
    result = doctest.testmod(module, extraglobs=common, optionflags=options)
    assert result.failed == 0, f"{result.failed} of {result.attempted} examples fail; python -m doctest -v shows them"
