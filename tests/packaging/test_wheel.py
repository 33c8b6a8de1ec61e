"""The wheel, installed elsewhere and used from another folder, holds everything."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[2]

USE_IT = """
import importlib, json, pathlib, hf_seqrec
from hf_seqrec.presets import load_preset
from hf_seqrec.data.demo import demo_tables
names = ["modeling.sasrec", "trainers", "dataset_scripts", "evaluation", "hub", "cli"]
folder = pathlib.Path(hf_seqrec.__file__).parent
print(json.dumps({
    "file": hf_seqrec.__file__,
    "modules": [importlib.import_module("hf_seqrec." + name).__file__ for name in names],
    "preset": load_preset("sasrec").model["hidden_size"],
    "data": sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.suffix in (".md", ".yaml", ".typed")),
    "films": len(demo_tables(num_items=100, num_users=20)[0]),
}))
"""


@pytest.mark.slow
def test_a_wheel_installed_elsewhere_is_complete(tmp_path):
    # Built from a copy, so that neither build/ nor *.egg-info of the checkout takes part.
    source, target, elsewhere = tmp_path / "source", tmp_path / "target", tmp_path / "elsewhere"
    source.mkdir()
    elsewhere.mkdir()
    for name in ("hf_seqrec", "modeling", "trainers", "dataset_scripts", "pyproject.toml", "README.md", "LICENSE"):
        (source / name).symlink_to(ROOT / name)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    build = [*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(tmp_path), str(source)]
    subprocess.run(build, check=True, timeout=200, cwd=elsewhere)
    (wheel,) = tmp_path.glob("*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", str(target), str(wheel)], check=True, timeout=200)

    environment = {**os.environ, "PYTHONPATH": str(target)}
    done = subprocess.run(
        [sys.executable, "-c", USE_IT], capture_output=True, text=True, timeout=200, cwd=elsewhere, env=environment
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    inside = [told["file"], *told["modules"]]
    assert all(Path(path).is_relative_to(target) for path in inside), inside
    assert not (target / "modeling").exists()
    assert told["preset"] == 64
    assert told["films"] == 100
    there = {
        str(path.relative_to(ROOT / "hf_seqrec"))
        for path in (ROOT / "hf_seqrec").rglob("*")
        if path.suffix in (".md", ".yaml", ".typed")
    }
    assert set(told["data"]) == there
    assert any(name.startswith("scripts/accelerate_configs") for name in there)
