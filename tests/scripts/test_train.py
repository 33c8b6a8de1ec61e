"""`seqrec train`: where values come from, what is refused before anything is written, what is written."""

import shutil
from dataclasses import asdict, fields
from types import SimpleNamespace

import pytest
import yaml
from safetensors.torch import load_file

from hf_seqrec.cli import main
from hf_seqrec.evaluation import EvaluationRecord
from hf_seqrec.hub import load_recommender, missing_files
from hf_seqrec.presets import list_presets, load_preset
from hf_seqrec.scripts import train
from hf_seqrec.scripts.training_run import what_training_did


OWN = {method.replace("-", "_") for method in train.OWN_SCRIPTS}
PRESETS = [(method, name) for method, names in list_presets().items() if method not in OWN for name in names]
REQUIRED = ["--dataset", "data", "--output_dir", "out"]


def equal_weights(first, second):
    first, second = (load_file(folder / "model.safetensors") for folder in (first, second))
    return first.keys() == second.keys() and all(bool((first[name] == second[name]).all()) for name in first)


def test_every_method_has_presets_and_every_preset_a_method():
    assert {*train.model_classes(), *OWN} == set(list_presets())


@pytest.mark.parametrize("method", train.model_classes())
def test_hyper_parameters_are_the_fields_of_the_configuration(method):
    head = train.model_classes()[method]
    arguments = train.model_arguments(head)
    config = train.config_class(head)(num_items=9)
    for one in fields(arguments):
        value, default = getattr(arguments(), one.name), getattr(config, one.name)
        assert value == (list(default) if isinstance(default, tuple) else default)
        assert one.metadata["help"], f"{one.name} has no text in the docstring of {type(config).__name__}"
    names = {one.name for one in fields(arguments)}
    assert names.isdisjoint(config.unused_fields)
    assert ("hidden_size" in names) == (method not in ("itemitem", "popularity"))
    train.config_class(head)(num_items=9, **asdict(arguments()))


@pytest.mark.parametrize(("method", "name"), PRESETS)
def test_the_values_of_a_preset_arrive(method, name):
    script_args, training_args, model_args = train.parse([method, *REQUIRED, "--preset", name, "--use_cpu"])
    preset = load_preset(method, name)
    for key, value in preset.model.items():
        assert getattr(script_args if key == "fusion" else model_args, key) == value
    for key, value in preset.training.items():
        assert getattr(training_args, key) == value


def test_the_file_overrides_the_preset_and_the_command_line_both(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text(
        "hidden_size: 24\nlearning_rate: 5e-4\nnum_hidden_layers: 3\ncutoffs: [1, 10]\ndataset: from-file\n"
    )
    line = ["--hidden_size", "48", "--output_dir", "out", "--use_cpu"]
    for config in (["--config", str(file)], [f"--config={file}"]):
        script_args, training_args, model_args = train.parse(["sasrec", *config, *line])
        assert script_args.dataset == "from-file"
        assert model_args.hidden_size == 48  # command line over file
        assert (model_args.num_hidden_layers, training_args.learning_rate) == (3, 5e-4)  # file over preset
        assert model_args.max_length == load_preset("sasrec").model["max_length"]
        assert training_args.cutoffs == [1, 10]


def test_the_file_may_name_method_and_preset(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("model: sasrec\npreset: paper\ndataset: data\noutput_dir: out\nuse_cpu: true\n")
    script_args, training_args, model_args = train.parse(["--config", str(file)])
    assert (script_args.model, training_args.loss, model_args.hidden_size) == ("sasrec", "bce", 50)
    assert train.parse(["gru4rec", "--config", str(file), "--preset", "default"])[0].model == "gru4rec"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["sasrek", *REQUIRED], "no method 'sasrek', did you mean 'sasrec'?"),
        (["sasrec", *REQUIRED, "--hiden_size", "3"], "unknown argument --hiden_size in the command line, did you mean --hidden_size"),
        (["sasrec", *REQUIRED, "--window_size", "3"], "unknown argument --window_size"),
        (["sasrec", *REQUIRED, "--preset", "papper"], "no preset 'papper'; it has: paper,"),
        (["sasrec", *REQUIRED, "--loss", "hinge"], "unknown `loss` 'hinge'"),
    ],
)  # fmt: skip
def test_unknown_names_are_refused_with_the_nearest(argv, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["train", *argv]) == 1
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_an_unknown_key_of_the_file_is_refused(tmp_path, capsys):
    file = tmp_path / "run.yaml"
    file.write_text("learning_rat: 0.1\n")
    assert main(["train", "sasrec", *REQUIRED, "--config", str(file)]) == 1
    printed = capsys.readouterr().err
    assert "unknown argument --learning_rat in" in printed
    assert "did you mean --learning_rate" in printed


def test_missing_and_unreadable_values_are_refused_by_the_parser(capsys):
    for argv, message in (
        (["sasrec", "--output_dir", "out"], "required: --dataset"),
        (["sasrec", *REQUIRED, "--hidden_size", "wide"], "invalid int value: 'wide'"),
    ):
        with pytest.raises(SystemExit) as stopped:
            main(["train", *argv])
        assert stopped.value.code == 2
        assert message in capsys.readouterr().err


def test_what_is_wrong_is_found_before_anything_is_written(dataset, tmp_path, small, capsys):
    common = ["--output_dir", str(tmp_path / "out"), *small]
    full = tmp_path / "full"
    full.mkdir()
    (full / "thesis.txt").write_text("mine")
    for argv, message in (
        (["--dataset", str(tmp_path / "none"), *common], "neither a folder nor a Hub repository"),
        (["--dataset", str(dataset), *common, "--num_attention_heads", "3"], "must divide `hidden_size`"),
        (["--dataset", str(dataset), *common, "--split", "half"], "split 'half' is unknown"),
        (["--dataset", str(dataset), *common, "--push_to_hub", "--hub_token", "wrong"], "Invalid user token"),
        (["--dataset", str(dataset), *common, "--output_dir", str(full)], "--overwrite"),
    ):
        assert main(["train", "sasrec", *argv]) == 1
        assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["full"]
    assert [path.name for path in full.iterdir()] == ["thesis.txt"]


def test_a_trained_folder_is_complete(trained, dataset):
    assert missing_files(trained) == []
    model, processor = load_recommender(trained)
    assert model.config.hidden_size == 8
    assert processor.num_items == 100
    assert processor.data_fingerprint == model.config.data_fingerprint is not None
    assert not [path for path in trained.iterdir() if path.name.startswith(".")]
    records = {path.stem: EvaluationRecord.load(path) for path in (trained / "records").glob("*.json")}
    assert set(records) == {"test", "test-seen-allowed"}
    assert [records[name].protocol.exclude_seen for name in ("test", "test-seen-allowed")] == [True, False]
    for record in records.values():
        assert record.num_rows == 60
        assert record.seed == 42
        assert record.notes["epochs"] == 2
        assert record.notes["hyper_parameters"]["hidden_size"] == 8
        assert record.notes["best_validation_ndcg@10"] > 0
        assert {"ndcg@10", "hr@5", "mrr@20", "coverage@10", "popularity_bias@10"} <= record.metrics.keys()
    assert "demo-world (simulated)" in (trained / "README.md").read_text()


def test_the_run_file_makes_the_same_model_again(trained, tmp_path):
    run = yaml.safe_load((trained / "run.yaml").read_text())
    assert run["model"] == "sasrec"
    assert run["hidden_size"] == 8
    assert run["seed"] == 42
    again = tmp_path / "again"
    assert main(["train", "--config", str(trained / "run.yaml"), "--output_dir", str(again)]) == 0
    assert equal_weights(trained, again)
    assert {key: value for key, value in yaml.safe_load((again / "run.yaml").read_text()).items() if key != "output_dir"} == {
        key: value for key, value in run.items() if key != "output_dir"
    }  # fmt: skip


def test_training_on_shuffled_sequences_is_said_in_run_file_and_records(trained, dataset, tmp_path, small):
    out = tmp_path / "shuffled"
    argv = ["train", "sasrec", "--dataset", str(dataset), "--output_dir", str(out), *small]
    assert main([*argv, "--shuffle-training", "3"]) == 0
    assert yaml.safe_load((out / "run.yaml").read_text())["shuffle_training"] == 3
    assert EvaluationRecord.load(out / "records" / "test.json").notes["shuffled_training_seed"] == 3
    assert "shuffled_training_seed" not in EvaluationRecord.load(trained / "records" / "test.json").notes
    assert not equal_weights(trained, out)


def test_a_resumed_run_ends_like_an_uninterrupted_one(dataset, tmp_path, small):
    # A schedule would depend on the number of epochs, and the first run here has another one.
    constant = ["--lr_scheduler_type", "constant", "--warmup_steps", "0"]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    common = ["train", "sasrec", "--dataset", str(dataset), *small, *constant, "--output_dir"]
    assert main([*common, str(whole)]) == 0
    assert main([*common, str(cut), "--num_train_epochs", "1"]) == 0
    assert not equal_weights(whole, cut)
    assert main([*common, str(cut), "--resume_from_checkpoint", "last"]) == 0
    assert equal_weights(whole, cut)


@pytest.mark.parametrize("method", ["popularity", "itemitem"])
def test_floors_are_fitted_by_the_same_command(dataset, tmp_path, method, capsys):
    out = tmp_path / method
    assert main(["train", method, "--dataset", str(dataset), "--output_dir", str(out), "--split", "user_ratio"]) == 0
    assert missing_files(out) == []
    record = EvaluationRecord.load(out / "records" / "test.json")
    assert record.seed is None
    assert record.protocol.split == "user_ratio"
    assert record.metrics["ndcg@10"] > record.floor["ndcg@10"]
    assert f"seqrec push {out} USER/NAME" in capsys.readouterr().out


def test_a_trained_model_reaches_the_hub(dataset, tmp_path, hub):
    repo_id = f"{hub.user}/trained-popularity"
    argv = ["train", "popularity", "--dataset", str(dataset), "--output_dir", str(tmp_path / "out")]
    assert main([*argv, "--push_to_hub", "--hub_model_id", repo_id]) == 0
    files = hub.repository(repo_id).files()
    assert {"model.safetensors", "README.md", "items.jsonl", "records/test.json"} <= files.keys()
    assert not [name for name in files if name.endswith(".ranks.parquet")]  # they name people
    model, processor = load_recommender(repo_id)
    assert processor.num_items == model.config.num_items == 100


def test_overwriting_keeps_what_is_not_ours(dataset, tmp_path):
    out = tmp_path / "out"
    argv = ["train", "popularity", "--dataset", str(dataset), "--output_dir", str(out)]
    assert main(argv) == 0
    (out / "notes.txt").write_text("mine")
    shutil.rmtree(out / "records")
    assert main([*argv, "--overwrite"]) == 0
    assert (out / "notes.txt").read_text() == "mine"
    assert (out / "records" / "test.json").is_file()


def test_processes_that_would_not_train_together_are_refused(dataset, tmp_path, small, monkeypatch):
    parsed = train.parse(["sasrec", "--dataset", str(dataset), "--output_dir", str(tmp_path / "out"), *small])
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="2 processes were started, but each would train alone"):
        train.main(*parsed)
    assert not (tmp_path / "out").exists()


def test_several_processes_without_a_gpu_form_a_group_on_the_cpu(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    parser = train.make_parser(model="sasrec")
    monkeypatch.setattr("trl.TrlParser.parse_args_and_config", lambda self, *_, **__: (*[None] * 3, [], []))
    for started, told in (("1", False), ("2", True)):
        monkeypatch.setenv("WORLD_SIZE", started)
        train.parse(["sasrec", *REQUIRED], make=lambda **_: parser)
        assert parser.get_default("use_cpu") is told


@pytest.mark.parametrize(("greater", "best", "epoch"), [(True, 0.4, 2), (False, 0.1, 3)])
def test_the_best_value_is_the_lowest_where_lower_is_better(greater, best, epoch):
    log = [{"epoch": number, "eval_value": value} for number, value in enumerate((0.2, 0.4, 0.1), 1)]
    trainer = SimpleNamespace(
        args=SimpleNamespace(metric_for_best_model="value", greater_is_better=greater),
        state=SimpleNamespace(log_history=log, epoch=3, global_step=9),
    )
    did = what_training_did(trainer)
    assert (did["best_validation_value"], did["best_epoch"]) == (best, epoch)
