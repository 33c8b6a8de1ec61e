"""What is declared is what is there: packages, public names, lazy imports, guards of the mapped folders."""

import importlib
import importlib.util
import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import hf_seqrec


ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
SETUPTOOLS = PROJECT["tool"]["setuptools"]
MAPPED = ("modeling", "trainers", "dataset_scripts")


def test_declared_packages_are_the_folders_that_hold_code():
    folders = {path.parent.relative_to(ROOT) for top in ("hf_seqrec", *MAPPED) for path in (ROOT / top).rglob("*.py")}
    found = {
        ".".join(parts if (parts := folder.parts)[0] == "hf_seqrec" else ("hf_seqrec", *parts)) for folder in folders
    }
    assert found == set(SETUPTOOLS["packages"])


def test_every_data_file_is_declared():
    """A card, preset or accelerate configuration that is not in package-data is missing from the wheel."""
    declared = {
        path
        for package, patterns in SETUPTOOLS["package-data"].items()
        for pattern in patterns
        for path in (ROOT / package.replace(".", "/")).glob(pattern)
    }
    there = {
        path
        for top in ("hf_seqrec", *MAPPED)
        for path in (ROOT / top).rglob("*")
        if path.is_file() and path.suffix != ".py" and "__pycache__" not in path.parts
    }
    assert there == declared


@pytest.mark.parametrize("name", MAPPED)
def test_a_mapped_folder_refuses_its_bare_name(name):
    path = ROOT / name / "__init__.py"
    spec = importlib.util.spec_from_file_location(name, path, submodule_search_locations=[str(path.parent)])
    with pytest.raises(ModuleNotFoundError, match=f"hf_seqrec.{name}"):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


@pytest.mark.parametrize("name", MAPPED)
def test_a_mapped_folder_has_its_full_name(name):
    module = importlib.import_module(f"hf_seqrec.{name}")
    assert module.__name__ == f"hf_seqrec.{name}"
    assert name not in sys.modules


@pytest.mark.parametrize("name", sorted(set(hf_seqrec.__all__) - {"__version__"}))
def test_a_public_name_exists_and_says_what_it_is(name):
    value = getattr(hf_seqrec, name)
    assert value.__name__ == name
    assert (value.__doc__ or "").strip(), f"{name} has no docstring"


@pytest.mark.parametrize("package", ["data", "evaluation", "metrics", "modeling", "trainers", "presets"])
def test_every_name_a_package_exports_is_documented(package):
    module = importlib.import_module(f"hf_seqrec.{package}")
    assert module.__all__
    undocumented = [
        name
        for name in module.__all__
        if callable(value := getattr(module, name)) and not (value.__doc__ or "").strip()
    ]
    assert not undocumented


def test_all_recommenders_are_public():
    modeling = importlib.import_module("hf_seqrec.modeling")
    heads = {name for name in modeling.__all__ if name.endswith("ForSequentialRecommendation")}
    assert heads <= set(hf_seqrec.__all__)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'leave_two_out'"):
        hf_seqrec.leave_two_out  # noqa: B018


def test_the_package_and_its_command_start_without_torch_or_transformers():
    code = (
        "import contextlib, io, json, sys, hf_seqrec, hf_seqrec.cli\n"
        "with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit): hf_seqrec.cli.main(['--help'])\n"
        "print(json.dumps(sorted({name.split('.')[0] for name in sys.modules})))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    loaded = set(json.loads(done.stdout))
    assert "hf_seqrec" in loaded
    assert not loaded & {"torch", "transformers", "numpy", "pyarrow", "datasets", "trl"}


def test_the_version_is_that_of_the_distribution():
    assert SETUPTOOLS["dynamic"]["version"] == {"attr": "hf_seqrec.__version__"}
    assert "version" in PROJECT["project"]["dynamic"]


def test_the_pinned_torch_is_in_the_supported_range():
    from packaging.requirements import Requirement

    (pin,) = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    (supported,) = [one for one in map(Requirement, PROJECT["project"]["dependencies"]) if one.name == "torch"]
    (version,) = Requirement(pin).specifier
    assert version.operator == "=="
    assert version.version in supported.specifier


def test_no_file_names_a_package_index():
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if tracked.returncode:
        pytest.skip("not a git checkout")
    words = ("index" + "-url", "pypi" + ".org/simple", "download.pytorch" + ".org")
    found = [
        f"{name}: {word}"
        for name in tracked.stdout.splitlines()
        if (path := ROOT / name).suffix in {"", ".txt", ".toml", ".md", ".yaml", ".yml", ".py", ".cfg"}
        and path.is_file()
        for word in words
        if word in path.read_text(encoding="utf-8", errors="ignore")
    ]
    assert not found
