"""`seqrec demo`, small: everything it promises is there."""

import pytest

from hf_seqrec.cli import main
from hf_seqrec.data import load_recommendation_data
from hf_seqrec.evaluation import EvaluationRecord
from hf_seqrec.hub import missing_files


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    import contextlib
    import io

    folder = tmp_path_factory.mktemp("demo") / "out"
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        status = main(
            ["demo", "--output-dir", str(folder), "--num-items", "100", "--num-users", "80", "--epochs", "3"]
        )
    assert status == 0
    return folder, printed.getvalue()


def test_the_demo_leaves_data_model_records_and_pictures(demo):
    folder, _ = demo
    assert sorted(path.name for path in folder.iterdir()) == ["data", "model", "plots", "records"]
    data = load_recommendation_data(folder / "data")
    assert data.name == "demo-world (simulated)"
    assert missing_files(folder / "model") == []
    records = [EvaluationRecord.load(path) for path in sorted((folder / "records").glob("*.json"))]
    assert [record.model for record in records] == ["Item-item", "Popularity", "SASRec, untrained", "SASRec"]
    assert all(record.dataset_fingerprint == data.fingerprint and record.num_rows == 80 for record in records)


def test_the_pictures_show_something(demo):
    from matplotlib.image import imread

    for name in ("learning-curve", "ndcg-by-cutoff", "ndcg-by-activity"):
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
        "seqrec data build movielens",
    ):
        assert words in printed, f"{words!r} is not in:\n{printed}"


def test_the_demo_does_not_replace_a_folder_unasked(demo, capsys):
    folder, _ = demo
    assert main(["demo", "--output-dir", str(folder)]) == 1
    assert "pass --overwrite" in capsys.readouterr().err
    assert (folder / "model").is_dir()
