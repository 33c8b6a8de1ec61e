"""`seqrec data`: what people type."""

import argparse
from pathlib import Path

import pytest
from huggingface_hub import HfApi, hf_hub_download

from hf_seqrec.cli import main as seqrec
from hf_seqrec.data import load_recommendation_data
from hf_seqrec.dataset_scripts.registry import CONVERTERS, get_converter
from hf_seqrec.scripts.data import main, make_parser


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


def test_an_error_is_one_line_without_a_traceback(tmp_path, capsys):
    folders = ["--raw-dir", str(tmp_path), "--output-dir", str(tmp_path / "out")]
    assert seqrec(["data", "build", "movielens", "--edition", "100k", *folders]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("seqrec: error: MovieLens 100K: found none of ")
    assert "https://grouplens.org/datasets/movielens/" in line


def test_check_prints_the_counts_of_a_folder_and_refuses_a_damaged_one(tmp_path, capsys):
    (tmp_path / "plays.csv").write_text("user_id,item_id,time\nann,a,1\nann,b,2\n")
    flags = ["--interactions-file", "plays.csv", "--timestamp-column", "time", "--user-core", 1, "--item-core", 1]
    run("build", "csv", *flags, "--raw-dir", tmp_path, "--output-dir", tmp_path / "out")
    built = capsys.readouterr().out
    run("check", tmp_path / "out")
    assert built.startswith(capsys.readouterr().out)
    file = tmp_path / "out/interactions/train-00000-of-00001.parquet"
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(ValueError, match="not a complete parquet file"):
        run("check", tmp_path / "out")


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


def test_build_pushes_the_folder_as_it_lies_on_disk_and_keeps_it_private(tmp_path, hub, capsys):
    (tmp_path / "plays.csv").write_text("user_id,item_id,time\nann,a,1\nann,b,2\n")
    flags = ["--interactions-file", "plays.csv", "--timestamp-column", "time", "--user-core", 1, "--item-core", 1]
    folders = ["--raw-dir", tmp_path, "--output-dir", tmp_path / "out"]
    run("build", "csv", *flags, *folders, "--push-to-hub", "tester/pushed-plays")
    assert "pushed to " in capsys.readouterr().out
    assert HfApi().dataset_info("tester/pushed-plays").private
    pushed = load_recommendation_data("tester/pushed-plays")
    assert pushed.fingerprint == load_recommendation_data(tmp_path / "out").fingerprint
    card = hf_hub_download("tester/pushed-plays", "README.md", repo_type="dataset")
    assert Path(card).read_bytes() == (tmp_path / "out/README.md").read_bytes()


def test_push_uploads_a_folder_and_only_a_data_set(tmp_path, hub, capsys):
    with pytest.raises(FileNotFoundError, match=r"lacks README\.md"):
        run("push", tmp_path, "tester/nothing")
    (tmp_path / "plays.csv").write_text("user_id,item_id,time\nann,a,1\nann,b,2\n")
    flags = ["--interactions-file", "plays.csv", "--timestamp-column", "time", "--user-core", 1, "--item-core", 1]
    run("build", "csv", *flags, "--raw-dir", tmp_path, "--output-dir", tmp_path / "out")
    run("push", tmp_path / "out", "tester/later-plays")
    assert "pushed to " in capsys.readouterr().out
    run("check", "tester/later-plays")
    assert "num interactions: 2" in capsys.readouterr().out
