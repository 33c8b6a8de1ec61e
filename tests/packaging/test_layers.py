"""Who may import whom: the table of docs/architecture.md, read off the source."""

import ast
import sys
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[2]
MAPPED = ("modeling", "trainers", "dataset_scripts")

# Package -> parts of the library it may import, beside its own siblings.
ALLOWED = {
    "modeling": set(),
    "data": {"data"},
    "metrics": {"metrics", "data"},
    "evaluation": {"evaluation", "metrics", "data"},
    "trainers": {"modeling", "data", "metrics", "evaluation"},
    "dataset_scripts": {"data"},
    "presets": set(),
}
# A trainer can push what it trained; the import waits until it does.
EXCEPTIONS = {("trainers/base.py", "hub")}
# Models run on machines that have no more than this.
MODELING_THIRD_PARTY = {
    "accelerate", "huggingface_hub", "numpy", "peft", "safetensors", "scipy", "torch", "transformers",
}  # fmt: skip


def folder_of(package):
    return ROOT / package if package in MAPPED else ROOT / "hf_seqrec" / package


def files_of(package):
    return sorted(folder_of(package).rglob("*.py"))


def all_files():
    return sorted(path for top in ("hf_seqrec", *MAPPED) for path in (ROOT / top).rglob("*.py"))


def imports(path):
    """(line, absolute module or dotted relative name) of every import of a file, also inside functions."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            # `from hf_seqrec import hub` imports a part, too.
            yield from (
                (node.lineno, f"{module}.{alias.name}" if module == "hf_seqrec" else module) for alias in node.names
            )
        elif (
            isinstance(node, ast.Call)
            and ast.unparse(node.func).endswith("import_module")
            and isinstance(node.args[0], ast.Constant)
        ):
            yield node.lineno, node.args[0].value


def part_of(module):
    """`evaluation` of `hf_seqrec.evaluation.record`; None for what is not of the library."""
    names = module.split(".")
    return names[1] if names[0] == "hf_seqrec" and len(names) > 1 else None


@pytest.mark.parametrize("package", ALLOWED)
def test_a_package_imports_only_what_its_layer_may(package):
    files = files_of(package)
    assert files, f"{package} has no files: the test would be vacuous"
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {module}"
        for path in files
        for line, module in imports(path)
        if (part := part_of(module)) is not None
        and part not in ALLOWED[package]
        and (str(path.relative_to(ROOT)), part) not in EXCEPTIONS
    ]
    assert not wrong, "\n".join(wrong)


def test_models_import_only_what_travels_with_them():
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {module}"
        for path in files_of("modeling")
        for line, module in imports(path)
        if not module.startswith(".")
        and (top := module.split(".")[0]) not in MODELING_THIRD_PARTY
        and top not in sys.stdlib_module_names
    ]
    assert not wrong, "\n".join(wrong)


def test_mapped_folders_are_never_imported_by_their_bare_name():
    files = [*all_files(), *(ROOT / "tests").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")]
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {module}"
        for path in files
        for line, module in imports(path)
        if module.split(".")[0] in MAPPED
    ]
    assert not wrong, "\n".join(wrong)


def test_siblings_are_imported_with_one_dot_and_the_rest_absolutely():
    wrong = []
    for path in all_files():
        package = "hf_seqrec." + ".".join(path.relative_to(ROOT).parent.parts).removeprefix("hf_seqrec").lstrip(".")
        for line, module in imports(path):
            if module.startswith("..") or (
                module.startswith(".") and "." in module[1:]
            ):  # `..x` and `.folder.x` do not survive a move
                wrong.append(f"{path.relative_to(ROOT)}:{line} imports {module}")
            # A mapped folder must use the dot: the Hub copies only what is imported so.
            if package == "hf_seqrec.modeling" and module.startswith("hf_seqrec"):
                wrong.append(f"{path.relative_to(ROOT)}:{line} imports {module}")
    assert not wrong, "\n".join(wrong)


def test_the_pipeline_stands_alone_because_it_travels_without_the_library():
    relative = [module for _, module in imports(ROOT / "hf_seqrec" / "pipelines.py") if module.startswith(".")]
    assert not relative


def test_the_check_sees_a_planted_upward_import(tmp_path):
    planted = tmp_path / "planted.py"
    planted.write_text("def f():\n    from hf_seqrec.trainers import NextItemTrainer\n    from hf_seqrec import hub\n")
    assert [part_of(module) for _, module in imports(planted)] == ["trainers", "hub"]


def test_every_library_that_is_imported_is_declared():
    """What comes along with another library today may be gone with its next release."""
    import tomllib
    from importlib.metadata import packages_distributions

    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = {canonicalize_name(Requirement(one).name) for one in project["dependencies"]}
    providers = packages_distributions()
    undeclared = {
        f"{path.relative_to(ROOT)}:{line} imports {top}"
        for path in all_files()
        for line, module in imports(path)
        if not module.startswith(".")
        and (top := module.split(".")[0]) not in sys.stdlib_module_names
        and top != "hf_seqrec"
        and not {canonicalize_name(name) for name in providers.get(top, [top])} & declared
    }
    assert not undeclared, "\n".join(sorted(undeclared))
