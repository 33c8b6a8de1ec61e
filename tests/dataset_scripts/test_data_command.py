"""`seqrec data`: what people type."""

import argparse

import pytest

from hf_seqrec.dataset_scripts.registry import CONVERTERS, get_converter
from hf_seqrec.scripts.data import main, make_parser, push_folder


def run(*words):
    main(make_parser().parse_args([str(word) for word in words]))


def test_list_names_every_data_set_with_its_terms(capsys):
    run("list")
    printed = capsys.readouterr().out
    for name, converter in CONVERTERS.items():
        assert f"{name}: {converter.about.title}" in printed
        assert converter.about.terms in printed


def test_build_writes_a_data_set_and_prints_its_counts(tmp_path, capsys):
    rows = "".join(f"u{user},i{item},{10 * user + item}\n" for user in range(3) for item in range(4))
    (tmp_path / "plays.csv").write_text("who,what,when\n" + rows + "u9,i0,5\n")
    flags = [
        "--interactions-file",
        "plays.csv",
        "--user-column",
        "who",
        "--item-column",
        "what",
        "--timestamp-column",
        "when",
    ]
    run(
        "build",
        "csv",
        *flags,
        "--raw-dir",
        tmp_path,
        "--output-dir",
        tmp_path / "out",
        "--user-core",
        4,
        "--item-core",
        3,
    )
    printed = capsys.readouterr().out
    assert "num users: 3\n  num items: 4\n  num interactions: 12\n" in printed
    assert (tmp_path / "out/interactions/train-00000-of-00001.parquet").is_file()


def test_an_error_is_one_line_without_a_traceback(tmp_path):
    with pytest.raises(SystemExit, match=r"^seqrec data build: MovieLens 100K: found none of .* Or pass --download"):
        run("build", "movielens", "--edition", "100k", "--raw-dir", tmp_path, "--output-dir", tmp_path / "out")


def test_every_option_of_every_converter_is_a_flag(capsys):
    for name, converter in CONVERTERS.items():
        with pytest.raises(SystemExit, match="0"):
            make_parser().parse_args(["build", name, "--help"])
        printed = capsys.readouterr().out
        for one in converter.options():
            assert "--" + one.name.replace("_", "-") in printed


def test_an_unknown_name_lists_the_choices(capsys):
    with pytest.raises(SystemExit, match="2"):
        make_parser().parse_args(["build", "netflix", "--raw-dir", "a", "--output-dir", "b"])
    printed = capsys.readouterr().err
    assert all(name in printed for name in CONVERTERS)
    with pytest.raises(ValueError, match="no converter 'netflix': choose from movielens, amazon"):
        get_converter("netflix")


def test_the_command_can_be_mounted_under_another_one():
    root = argparse.ArgumentParser()
    make_parser(root.add_subparsers(dest="command"))
    assert root.parse_args(["data", "list"]).data_action == "list"


def test_only_a_data_set_folder_is_pushed(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"has no README\.md"):
        push_folder(tmp_path, "me/plays")
