"""A record says everything needed to believe a number, and notices when it was changed."""

import json
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest

from hf_seqrec.data import draw_candidates
from hf_seqrec.evaluation import EvaluationRecord, Protocol, hash_config


def test_a_record_survives_saving_with_every_rank(tmp_path, make_record):
    record = make_record(name="SASRec", seed=3, notes={"epochs": 7})
    path = record.save(tmp_path / "deep" / "a.json")
    assert sorted(file.name for file in path.parent.iterdir()) == ["a.json", "a.ranks.parquet"]
    loaded = EvaluationRecord.load(path)
    for name in EvaluationRecord.__dataclass_fields__:
        if name != "rows":
            assert getattr(loaded, name) == getattr(record, name), name
    assert loaded.rows.equals(record.rows)
    np.testing.assert_array_equal(loaded.ranks, record.ranks)


def test_a_record_holds_what_was_measured(make_record, rows, data):
    record = make_record(seed=3)
    assert (record.model, record.dataset, record.dataset_fingerprint) == ("DotModel", "toy", data.fingerprint)
    assert (record.num_rows, record.num_users, record.num_items, record.targets_seen) == (37, 37, 60, 0)
    assert set(record.metrics) == set(record.intervals) == set(record.floor)
    low, high = record.intervals["ndcg@10"]
    assert low < record.metrics["ndcg@10"] < high
    assert record.seconds > 0
    assert record.users_per_second > 0
    assert {"hf_seqrec", "torch", "transformers"} <= set(record.versions)
    np.testing.assert_array_equal(record.history_lengths, rows.lengths)


def test_the_rows_publish_users_and_targets_even_of_a_sub_sample(make_record, rows, tmp_path):
    some = rows.subset(np.array([5, 2, 30]))
    path = make_record(rows=some).save(tmp_path / "some.json")
    stored = pq.read_table(tmp_path / "some.ranks.parquet")
    assert stored["user_id"].to_pylist() == ["u105", "u102", "u130"]
    assert stored["item_id"].to_pylist() == [f"i{target}" for target in some.target]
    assert json.loads(path.read_text())["num_users"] == 3


def test_a_sampled_record_names_its_candidates_and_its_floor(make_record, rows):
    candidates = draw_candidates(rows, 60, num_negatives=9, seed=4)
    record = make_record(candidates=candidates)
    assert record.candidates["seed"] == 4
    assert record.candidates["fingerprint"] == rows.fingerprint
    assert record.floor["hr@5/sampled9"] == pytest.approx(0.5)
    other = make_record(candidates=draw_candidates(rows, 60, num_negatives=9, seed=5))
    assert other.candidates["sha256"] != record.candidates["sha256"]


def test_candidates_protocol_and_data_must_agree(rows, data):
    candidates = draw_candidates(rows, 60, num_negatives=9)
    model = object()
    result = SimpleNamespace(protocol=Protocol(candidates="sampled9"), evaluation_set=rows, num_items=60)
    with pytest.raises(ValueError, match=r"candidates='sampled9', but `candidates` are missing"):
        EvaluationRecord.from_result(result, data, model)
    result.protocol = Protocol()
    with pytest.raises(ValueError, match=r"candidates='full', but `candidates` are given"):
        EvaluationRecord.from_result(result, data, model, candidates=candidates)
    result.num_items = 61
    with pytest.raises(ValueError, match="ranks 61 items, toy has 60"):
        EvaluationRecord.from_result(result, data, model)


def test_changed_or_missing_rows_are_noticed(tmp_path, make_record):
    path = make_record().save(tmp_path / "a.json")
    sidecar = tmp_path / "a.ranks.parquet"
    table = pq.read_table(sidecar)
    better = table.set_column(2, "rank", np.zeros((1, len(table)), np.float32))
    pq.write_table(better, sidecar)
    with pytest.raises(ValueError, match=r"sha256 differs"):
        EvaluationRecord.load(path)
    sidecar.unlink()
    with pytest.raises(FileNotFoundError, match=r"a\.ranks\.parquet beside it"):
        EvaluationRecord.load(path)
    summary = EvaluationRecord.load(path, rows=False)
    assert "ndcg@10" in summary.metrics
    for use in (lambda: summary.ranks, lambda: summary.history_lengths, lambda: summary.save(tmp_path / "b.json")):
        with pytest.raises(ValueError, match="without its rows"):
            use()
    assert not (tmp_path / "b.json").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v | {"ndgc@10": 1}, r"unknown keys \['ndgc@10'\]"),
        (lambda v: {k: x for k, x in v.items() if k != "protocol"}, r"missing \['protocol'\]"),
        (lambda v: v | {"protocol": v["protocol"] | {"seen": True}}, r"unknown: \['seen'\]"),
        (lambda v: v | {"format": 99}, "another release"),
        (lambda v: [v], "no record"),
    ],
)
def test_files_that_are_no_record_are_refused(tmp_path, make_record, change, message):
    path = make_record().save(tmp_path / "a.json")
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    with pytest.raises(ValueError, match=message):
        EvaluationRecord.load(path)


def test_a_cut_off_file_is_refused(tmp_path, make_record):
    path = make_record().save(tmp_path / "a.json")
    path.write_text(path.read_text()[:100])
    with pytest.raises(ValueError, match=r"a\.json is no record"):
        EvaluationRecord.load(path)


@pytest.mark.parametrize(
    ("notes", "name", "message"),
    [
        ({"loss": float("nan")}, "a.json", "JSON"),
        ({"model": object()}, "a.json", "JSON"),
        ({}, "a.txt", "a .json file"),
    ],
)
def test_what_can_not_be_written_leaves_no_file(tmp_path, make_record, notes, name, message):
    with pytest.raises(ValueError, match=message):
        make_record(notes=notes).save(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_keeps_the_old_record(tmp_path, make_record, monkeypatch):
    path = make_record(model_seed=0).save(tmp_path / "a.json")
    before = path.read_bytes(), (tmp_path / "a.ranks.parquet").read_bytes()

    def full(*args, **options):
        raise OSError("No space left on device")

    monkeypatch.setattr(pq, "write_table", full)
    with pytest.raises(OSError, match="No space"):
        make_record(model_seed=1).save(path)
    assert (path.read_bytes(), (tmp_path / "a.ranks.parquet").read_bytes()) == before
    assert len(list(tmp_path.iterdir())) == 2


def test_the_config_hash_depends_on_the_architecture_only():
    base = {"hidden_size": 64, "transformers_version": "5.17.0", "_name_or_path": "here"}
    same = hash_config({"hidden_size": 64, "transformers_version": "5.23.0", "_name_or_path": "there"})
    assert hash_config(base) == same
    assert hash_config(base | {"hidden_size": 65}) != hash_config(base)
