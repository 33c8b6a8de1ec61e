"""`seqrec evaluate`: the same values as training recorded, and only on the data the model was made for."""

import pytest

from hf_seqrec.cli import main
from hf_seqrec.data import draw_candidates, leave_one_out, load_recommendation_data
from hf_seqrec.data.demo import build_demo_world, demo_tables
from hf_seqrec.data.layout import DatasetDescription, write_dataset
from hf_seqrec.evaluation import EvaluationRecord


@pytest.fixture
def evaluate(trained, dataset, tmp_path, capsys):
    def run(*options, model=trained, data=dataset):
        output = tmp_path / "record.json"
        capsys.readouterr()
        assert (
            main(
                ["evaluate", str(model), "--dataset", str(data), "--device", "cpu", "--output", str(output), *options]
            )
            == 0
        )
        return EvaluationRecord.load(output), capsys.readouterr().out

    return run


@pytest.mark.parametrize(("options", "name"), [([], "test"), (["--include-seen"], "test-seen-allowed")])
def test_a_saved_model_has_the_values_that_training_recorded(trained, evaluate, options, name):
    record, printed = evaluate(*options)
    recorded = EvaluationRecord.load(trained / "records" / f"{name}.json")
    assert record.metrics == pytest.approx(recorded.metrics, abs=1e-12)
    assert record.ranks.tolist() == recorded.ranks.tolist()
    assert (record.config_hash, record.seed) == (recorded.config_hash, 42)
    assert record.protocol.describe() in printed
    assert f"{record.metrics['ndcg@10']:.4f}" in printed


def test_the_validation_part_is_what_training_selected_by(trained, evaluate):
    record, _ = evaluate("--part", "validation", "--cutoffs", "10")
    notes = EvaluationRecord.load(trained / "records" / "test.json").notes
    assert record.metrics["ndcg@10"] == pytest.approx(notes["best_validation_ndcg@10"], abs=1e-9)


def test_sampled_candidates_are_named_seeded_and_stored(dataset, evaluate, tmp_path):
    record, printed = evaluate("--sampled", "9", "--seed", "3")
    assert "ndcg@10/sampled9" in record.metrics
    assert "1 + 9 sampled candidates" in printed
    test = leave_one_out(load_recommendation_data(dataset).sequences).test
    stored = draw_candidates(test, 100, 9, seed=3).save(tmp_path / "candidates.parquet")
    again, _ = evaluate("--candidates", str(stored))
    assert again.metrics == record.metrics
    assert again.candidates == record.candidates
    other, _ = evaluate("--sampled", "9", "--seed", "4")
    assert other.candidates["sha256"] != record.candidates["sha256"]


def test_other_interactions_need_consent(trained, tmp_path, evaluate, capsys):
    items, interactions = demo_tables(num_items=100, num_users=60)
    fewer = tmp_path / "fewer"
    write_dataset(fewer, items, interactions.slice(0, 600), DatasetDescription(title="fewer", summary="The first."))
    argv = ["evaluate", str(trained), "--dataset", str(fewer), "--device", "cpu"]
    assert main(argv) == 1
    assert "pass --allow-other-data" in capsys.readouterr().err
    record, _ = evaluate("--allow-other-data", data=fewer)
    assert record.num_rows < 60


def test_another_catalogue_is_refused_in_any_case(trained, tmp_path, capsys):
    other = tmp_path / "other"
    build_demo_world(other, num_items=120, num_users=30)
    for consent in ([], ["--allow-other-data"]):
        assert main(["evaluate", str(trained), "--dataset", str(other), *consent]) == 1
        assert "its scores would belong to other items" in capsys.readouterr().err


def test_a_record_that_is_no_json_file_is_refused_first(trained, dataset, tmp_path, capsys):
    output = tmp_path / "record.txt"
    assert main(["evaluate", str(trained), "--dataset", str(dataset), "--output", str(output)]) == 1
    assert "a record is a .json file" in capsys.readouterr().err
    assert not output.exists()
