"""Every block of README.md runs: Python in this process, `seqrec` lines through the command, the others are known by name."""

import re
import shlex
from pathlib import Path

import pytest

from hf_seqrec.cli import main
from hf_seqrec.scripts.train import model_classes


ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
# Training in a test takes one epoch; everything else of the line is as printed.
QUICKLY = ["--num_train_epochs", "1", "--hidden_size", "8", "--use_cpu"]


def blocks(language):
    return [text for kind, text in BLOCKS if kind == language]


def write_movielens(folder):
    """Raw files in MovieLens' own format: 130 people who rate 12 films each, walking along a ring of 130."""
    titles = ["Toy Story (1995)", "Babe (1995)"] + [f"Film {number} (1996)" for number in range(3, 131)]
    folder.mkdir(parents=True)
    (folder / "movies.dat").write_text(
        "".join(f"{number}::{title}::Comedy\n" for number, title in enumerate(titles, 1)), encoding="latin-1"
    )
    ratings = [
        f"{user}::{(user * 5 + step) % 130 + 1}::4::{960_000_000 + 1000 * user + step}\n"
        for user in range(1, 131)
        for step in range(12)
    ]
    (folder / "ratings.dat").write_text("".join(ratings), encoding="latin-1")


@pytest.fixture
def run_line(hub, capsys):
    def run(line):
        words = shlex.split(line.replace("USER/", f"{hub.user}/"), comments=True)
        if not words:
            return ""
        if words[0] == "make":
            targets = re.findall(r"^(\w+):.*##", (ROOT / "Makefile").read_text(), re.MULTILINE)
            assert words[1] in targets
        elif words[:2] == ["pip", "install"]:
            assert words[2:] in (["-e", "."], ["-e", ".[dev]"])
        elif words[0] == "accelerate":
            # Launching costs a process; its parts are checked: the configuration is there, the rest is a `seqrec` line.
            assert (ROOT / words[words.index("--config_file") + 1]).is_file()
            assert words[words.index("-m") + 1] == "hf_seqrec.scripts.train"
        elif words[:3] == ["hf", "auth", "login"]:
            assert len(words) == 3  # the tests are logged in
        else:
            assert words[0] == "seqrec", f"README has a command that no test knows: {line}"
            capsys.readouterr()
            assert main(words[1:] + (QUICKLY if words[1] == "train" else [])) in (0, None), capsys.readouterr().err
            return capsys.readouterr().out
        return ""

    return run


def test_the_fifteen_lines_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code, *others = blocks("python")
    assert len(others) == 1  # the other one is run below, after its repository was pushed
    assert len([line for line in code.splitlines() if line.strip()]) <= 15
    scope = {}
    exec(compile(code, "README.md", "exec"), scope)
    assert scope["trainer"].predict(scope["split"].test).metrics["test_ndcg@10"] > 0
    answer = capsys.readouterr().out
    assert answer.count("'title'") == 5


def test_the_commands_run_one_after_the_other(tmp_path, monkeypatch, run_line, hub, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "160")
    write_movielens(tmp_path / "raw" / "ml-1m")
    printed = {line: run_line(line) for block in blocks("bash") for line in block.splitlines()}
    assert sum(line.startswith("seqrec ") for line in printed) == 9
    recommended = [text for line, text in printed.items() if line.startswith("seqrec recommend")]
    assert len(recommended) == 2
    assert all("Film " in text for text in recommended)
    assert any("95 % interval" in text for text in printed.values())

    code = blocks("python")[1].replace("USER/", f"{hub.user}/")
    scope = {}
    exec(compile(code, "README.md", "exec"), scope)
    assert capsys.readouterr().out.count("'title'") == 5


def test_the_table_of_methods_is_complete():
    rows = re.findall(r"^\| [^|]+ \| `(\w+)` \| `(\w+)` \|", README, re.MULTILINE)
    assert dict(rows) == {command: head.__name__ for command, head in model_classes().items()}


def test_links_lead_somewhere():
    generated = {"docs/results.md"}  # written from records by hf_seqrec.evaluation.tables
    links = set(re.findall(r"\]\((?!https?://)([^)#]+)\)", README))
    assert len(links) > 5
    assert not [link for link in links - generated if not (ROOT / link).exists()]
