import json

import pytest
from comparing import assert_same

from hf_seqrec.cli import main
from hf_seqrec.hub import load_recommender, save_recommender
from hf_seqrec.modeling.processing import SequentialRecommendationProcessor
from hf_seqrec.pipelines import pipeline


@pytest.fixture
def folder(tmp_path, model, processor):
    return save_recommender(tmp_path / "films", model, processor)


def test_recommend_prints_what_the_pipeline_answers(folder, capsys):
    status = main(["recommend", str(folder), "--history", "Red Sun", "i7", "--top-k", "3", "--json"])
    assert status == 0
    assert json.loads(capsys.readouterr().out) == pipeline(model=folder)({"history": ["Red Sun", "i7"]}, top_k=3)


def test_recommend_passes_on_its_options(folder, capsys):
    main(
        [
            "recommend",
            str(folder),
            "--history",
            "i1",
            "--include-seen",
            "--candidates",
            "i1",
            "i2",
            "--by",
            "item_id",
            "--json",
        ]
    )
    assert {row["item_id"] for row in json.loads(capsys.readouterr().out)} == {"i1", "i2"}


def test_recommend_prints_a_table_with_titles_as_they_are(tmp_path, model, data, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    processor = SequentialRecommendationProcessor(
        data.catalogue.item_ids, [f"[REC] {number}" for number in range(20)], 4
    )
    folder = save_recommender(tmp_path / "rec", model, processor)
    main(["recommend", str(folder), "--history", "[rec] 3", "--top-k", "20"])
    printed = capsys.readouterr().out
    assert all(f"[REC] {number} " in printed for number in range(20) if number != 3)
    assert "[REC] 3 " not in printed


def test_recommend_names_near_titles_for_an_unknown_one(folder, capsys):
    assert main(["recommend", str(folder), "--history", "Red Sum"]) == 1
    error = capsys.readouterr().err
    assert "Did you mean 'Red Sun' ('i0')" in error
    assert "Traceback" not in error


def test_push_sends_a_complete_folder_as_it_is(hub, repo_id, folder, model, processor, capsys):
    (folder / "README.md").write_text((folder / "README.md").read_text() + "\nWritten by hand.\n")
    assert main(["push", str(folder), repo_id, "--private"]) == 0
    assert f"{hub.url}/{repo_id}/commit/" in capsys.readouterr().out
    assert hub.repository(repo_id).private
    card = hub.repository(repo_id).files()["README.md"].content.decode()
    assert "Written by hand." in card
    assert f'model="{repo_id}"' in card
    here = pipeline(model=model, processor=processor)({"history": ["i1"]})
    assert_same(pipeline(model=repo_id)({"history": ["i1"]}), here)


def test_push_completes_a_folder_that_a_trainer_wrote(hub, repo_id, tmp_path, other_model, processor, record):
    other_model.save_pretrained(tmp_path / "run")
    processor.save_pretrained(tmp_path / "run")
    before = sorted(path.name for path in (tmp_path / "run").iterdir())
    path = record.save(tmp_path / "test.json")
    options = ["--record", str(path), "--dataset", "tester/films", "--license", "mit", "--revision", "next"]
    assert main(["push", str(tmp_path / "run"), repo_id, *options]) == 0
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == before
    files = hub.repository(repo_id).files("next")
    assert {"pipelines.py", "README.md", "items.jsonl"} <= set(files)
    assert record.protocol.describe() in files["README.md"].content.decode()
    inputs = processor([["i1"]])["input_ids"]
    assert_same(load_recommender(repo_id, revision="next")[0].score(inputs), other_model.score(inputs))


def test_push_of_what_is_no_recommender_is_one_clear_error(hub, repo_id, tmp_path, capsys):
    assert main(["push", str(tmp_path / "nothing"), repo_id]) == 1
    assert "is no folder" in capsys.readouterr().err
    assert ("model", repo_id) not in hub.repositories
