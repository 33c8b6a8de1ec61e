"""The conventions of transformers for models, checked by its own linter."""

import json
import subprocess
import sys
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[2]

# The rules behind which there is a defect that loading or training would show late; the others are transformers' house style.
RULES = {
    "TRF002": "a wrong base_model_prefix breaks the mapping of weights",
    "TRF004": "tie_weights is the library's to call, never to override",
    "TRF005": "_no_split_modules that is no list of names breaks device maps and FSDP",
    "TRF007": "what follows post_init is not initialised",
    "TRF012": "in-place changes in _init_weights overwrite loaded weights",
    "TRF013": "without post_init weights are not initialised and nothing is tied",
    "TRF018": "without super()._init_weights plain layers keep torch's initialisation",
    "TRF022": "a class in _no_split_modules that does not exist wraps nothing",
    "TRF027": "python -O removes assertions",
}
# The body that subclasses finish: they call `post_init` at the end of theirs.
UNFINISHED = ("modeling_base.py", "TRF013", "SequenceModel")


def test_models_follow_the_conventions_of_transformers(tmp_path):
    pytest.importorskip("mlinter")
    folder = tmp_path / "models"  # the linter goes by file names
    folder.mkdir()
    for path in (ROOT / "modeling").glob("[a-z]*.py"):
        (folder / f"modeling_{path.name}").symlink_to(path)
    report = tmp_path / "report.json"
    subprocess.run(
        [sys.executable, "-m", "mlinter", "--no-progress", "--no-cache", "--output-json", str(report), str(folder)],
        capture_output=True,
        timeout=120,
    )
    findings = json.loads(report.read_text())["findings"]
    of_base = [(Path(one["path"]).name, one["rule"], one["message"].split(" of ")[-1].split()[0]) for one in findings]
    assert UNFINISHED in of_base, "the linter no longer sees what it is known to see: the test would be vacuous"
    wrong = [
        f"{one['path']}:{one['line']} {one['message']}"
        for one, known in zip(findings, of_base, strict=True)
        if one["rule"] in RULES and known != UNFINISHED
    ]
    assert not wrong, "\n".join(wrong)
