"""The `seqrec` command itself."""

from importlib import import_module

import pytest

import hf_seqrec
from hf_seqrec.cli import COMMANDS, main


def test_help_names_every_command(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    assert stopped.value.code == 0
    printed = capsys.readouterr().out
    assert all(f"\n    {command} " in printed for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_of_its_own(command, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([command, "--help"])
    assert stopped.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: seqrec {command} ")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_a_script_twin(command):
    module = import_module(f"hf_seqrec.scripts.{command}")
    assert callable(module.make_parser)
    assert callable(module.main)
    assert module.make_parser(prog="twin").prog == "twin"


def test_the_version_is_printed(capsys):
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out == f"seqrec {hf_seqrec.__version__}\n"


def test_no_command_and_an_unknown_one_are_refused(capsys):
    for argv in ([], ["trian"]):
        with pytest.raises(SystemExit) as stopped:
            main(argv)
        assert stopped.value.code == 2
    assert "invalid choice: 'trian'" in capsys.readouterr().err


def test_an_error_is_one_message_and_a_traceback_only_when_asked_for(tmp_path, capsys):
    argv = ["evaluate", "model", "--dataset", str(tmp_path / "nowhere" / "at" / "all")]
    assert main(argv) == 1
    printed = capsys.readouterr().err
    assert printed.startswith("seqrec: error: ")
    assert "is neither a folder nor a Hub repository id" in printed
    assert "Traceback" not in printed
    with pytest.raises(FileNotFoundError):
        main(["--traceback", *argv])


def test_a_defect_of_the_library_keeps_its_traceback(monkeypatch):
    def broken(args):
        return {}["key"]

    monkeypatch.setattr("hf_seqrec.scripts.compare.main", broken)
    with pytest.raises(KeyError):
        main(["compare", "a.json", "b.json"])
