"""`seqrec train p2rec`, `e4srec`, `llmseqsim` and `seqrec vectors`: from the command line to vectors that backbones train with."""

import json
import re

import numpy as np
import pytest
import tiny_llms
import yaml
from safetensors.torch import load_file

from hf_seqrec.cli import main
from hf_seqrec.data import leave_one_out, load_recommendation_data
from hf_seqrec.evaluation import EvaluationRecord
from hf_seqrec.hub import load_recommender, missing_files
from hf_seqrec.item_vectors import load_item_vectors
from hf_seqrec.modeling import P2RecModel
from hf_seqrec.preferences import ItemGroups, load_groups
from hf_seqrec.presets import list_presets, load_preset
from hf_seqrec.scripts import train_e4srec, train_p2rec
from hf_seqrec.scripts.train import parse


SMALL = ["--use_cpu", "--per_device_train_batch_size", "32", "--max_length", "4", "--num_train_epochs", "2",
         "--lora", '{"r": 2, "target_modules": "all-linear"}']  # fmt: skip
P2REC = [*SMALL, "--num_groups", "5"]


@pytest.fixture(scope="module")
def llm(tmp_path_factory):
    """A BERT of one layer with a character tokenizer."""
    folder = tmp_path_factory.mktemp("llm") / "bert"
    return tiny_llms.build_llm(folder, "bert", layers=1, width=8)


@pytest.fixture(scope="module")
def command(dataset, llm, trained):
    return ["--dataset", str(dataset), "--llm", llm, "--backbone", str(trained)]


@pytest.fixture(scope="module")
def run(command, tmp_path_factory):
    """Folder that `seqrec train p2rec` wrote, with all controls."""
    folder = tmp_path_factory.mktemp("p2rec") / "run"
    controls = ["--controls", "noise", "teacher", "groups", "text", "--template", "title"]
    assert main(["train", "p2rec", *command, *P2REC, *controls, "--output_dir", str(folder)]) == 0
    return folder


def weights(folder):
    return load_file(folder / "model.safetensors")


def equal_weights(first, second):
    first, second = weights(first), weights(second)
    return first.keys() == second.keys() and all(bool((first[name] == second[name]).all()) for name in first)


def test_a_run_holds_the_tuned_parts_the_groups_the_vectors_and_what_was_measured(run, dataset, trained):
    catalogue = load_recommendation_data(dataset).catalogue
    model, groups = P2RecModel.from_pretrained(run), load_groups(run)
    assert groups.num_groups == model.config.num_groups == 5
    backbone, _ = load_recommender(trained)
    np.testing.assert_allclose(model.item_vectors[1:], backbone.item_representations()[1:].detach(), rtol=1e-6)
    z, inferred = model.enhance(np_items(catalogue.num_items))
    vectors = {
        name: load_item_vectors(run / "vectors" / name) for name in ("enhanced", "noise", "teacher", "groups", "text")
    }
    np.testing.assert_allclose(vectors["enhanced"].read(catalogue=catalogue), z, atol=1e-5)
    np.testing.assert_allclose(vectors["enhanced"].read("categories"), inferred, atol=1e-5)
    assert {name: one.width for name, one in vectors.items()} == {
        "enhanced": 8, "noise": 8, "teacher": 8, "groups": 5, "text": 8
    }  # fmt: skip
    record = json.loads((run / "p2rec.json").read_text())
    assert record["stage1"]["examples_per_epoch"] == 60  # one per user
    assert record["stage1"]["epochs"] == 2
    assert len(record["stage1"]["loss"]) == 2
    assert record["stage1"]["llm_tokens"] > record["stage2"]["llm_tokens"] > 100
    assert sum(record["agreement"].values()) == pytest.approx(1)
    assert record["groups"]["sizes"] == groups.sizes.tolist()
    assert not list((run / "vectors").glob(".*"))


def np_items(count):
    import torch

    return torch.arange(1, count + 1)


def test_a_backbone_trains_with_the_run_and_with_each_control(run, dataset, small, tmp_path):
    argv = [
        "train",
        "gru4rec",
        "--dataset",
        str(dataset),
        "--item_features",
        str(run),
        "--num_train_epochs",
        "1",
        "--use_cpu",
    ]
    argv += ["--hidden_size", "8", "--max_length", "6"]
    found = {}
    for control in (None, "noise", "teacher", "groups", "text"):
        out = tmp_path / str(control)
        assert main([*argv, *(["--control", control] if control else []), "--output_dir", str(out)]) == 0
        record = EvaluationRecord.load(out / "records" / "test.json")
        notes = record.notes["item_features"]
        found[control] = (record.model, notes["kind"], notes["fusion"], notes["scaled"])
    assert found == {
        None: ("GRU4Rec + P2Rec", "p2rec", "gate", True), "noise": ("GRU4Rec + noise", "noise", "gate", True),
        "teacher": ("GRU4Rec + teacher", "teacher", "gate", True), "groups": ("GRU4Rec + groups (add)", "groups", "add", False),
        "text": ("GRU4Rec + text", "text", "gate", True),
    }  # fmt: skip
    again = tmp_path / "again.json"  # a later evaluation is no run of GRU4Rec alone either
    assert main(["evaluate", str(tmp_path / "noise"), "--dataset", str(dataset), "--output", str(again)]) == 0
    assert EvaluationRecord.load(again).model == "GRU4Rec + noise"


def test_what_does_not_fit_together_is_refused_before_anything_is_written(
    run, command, dataset, trained, tmp_path, capsys
):
    out = ["--output_dir", str(tmp_path / "out")]
    sasrec = ["sasrec", "--dataset", str(dataset), *out]
    p2rec = ["p2rec", *command, *P2REC, *out]
    for argv, message in (
        ([*sasrec, "--control", "noise"], "--control noise needs item vectors"),
        ([*sasrec, "--fusion", "init"], "--fusion init needs item vectors"),
        ([*sasrec, "--item_features", str(run), "--control", "silence"], "--control must be one of"),
        (
            [*sasrec, "--item_features", str(run / "vectors" / "enhanced"), "--control", "noise"],
            "holds no control 'noise'",
        ),
        ([*sasrec, "--item_features", "nobody/nothing"], "neither a folder nor a Hub repository"),
        ([*sasrec, "--item_features", str(dataset)], "holds no item vectors (item_vectors.json is missing)"),
        ([*p2rec, "--num_groups", "101"], "101 groups of"),
        ([*p2rec, "--controls", "silence"], "knows no 'silence'"),
        ([*p2rec, "--controls", "text", "--template", "{price}"], "names ['price']"),
        ([*p2rec, "--eval_strategy", "epoch"], "fixed number of epochs"),
        ([*p2rec, "--divergence", "mse"], "`divergence` must be one of"),
        ([*p2rec, "--lora", "r=8"], "need a JSON object"),
        ([*p2rec, "--llm", ""], "no llm is named"),
        ([*p2rec, "--numgroups", "3"], "did you mean --num_groups"),
        ([*p2rec, "--backbone", str(tmp_path / "none")], "none"),
    ):
        assert main(["train", *argv]) == 1, argv
        assert message in capsys.readouterr().err
        assert not list(tmp_path.iterdir())


def test_a_backbone_of_other_data_or_without_a_table_is_refused(command, dataset, trained, tmp_path, capsys):
    from hf_seqrec.data.demo import build_demo_world

    other = tmp_path / "other"
    build_demo_world(other, num_items=100, num_users=60, seed=5)
    assert (
        main(["train", "p2rec", *command, *P2REC, "--dataset", str(other), "--output_dir", str(tmp_path / "out")]) == 1
    )
    assert "was made for the data with fingerprint" in capsys.readouterr().err
    popularity = tmp_path / "itemitem"
    assert main(["train", "itemitem", "--dataset", str(dataset), "--output_dir", str(popularity)]) == 0
    argv = [*command, *P2REC, "--backbone", str(popularity), "--output_dir", str(tmp_path / "out")]
    assert main(["train", "p2rec", *argv]) == 1
    assert "has no item table" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_resumed_run_ends_like_an_uninterrupted_one_with_its_own_vectors(command, tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    common = ["train", "p2rec", *command, *P2REC, "--output_dir"]
    assert main([*common, str(whole)]) == 0
    assert main([*common, str(cut), "--num_train_epochs", "1"]) == 0
    assert not equal_weights(whole, cut)
    assert main([*common, str(cut), "--resume_from_checkpoint", "last"]) == 0
    assert equal_weights(whole, cut)
    first, second = (load_item_vectors(folder / "vectors" / "enhanced") for folder in (whole, cut))
    assert first.key == second.key
    np.testing.assert_array_equal(first.read(), second.read())


def test_the_run_file_makes_the_same_run_again(run, tmp_path):
    again = tmp_path / "again"
    values = yaml.safe_load((run / "run.yaml").read_text())
    assert (values["model"], values["num_groups"], values["lora"]["r"]) == ("p2rec", 5, 2)
    assert main(["train", "--config", str(run / "run.yaml"), "--output_dir", str(again)]) == 0
    assert equal_weights(run, again)
    for name in ("enhanced", "noise", "text"):
        assert load_item_vectors(again / "vectors" / name).key == load_item_vectors(run / "vectors" / name).key


@pytest.mark.parametrize(
    ("method", "name"), [(method, name) for method in ("p2rec", "e4srec") for name in list_presets(method)[method]]
)
def test_the_values_of_a_preset_arrive(method, name):
    line = [
        method,
        "--dataset",
        "d",
        "--llm",
        "l",
        "--backbone",
        "b",
        "--output_dir",
        "o",
        "--preset",
        name,
        "--use_cpu",
    ]
    make = {"p2rec": train_p2rec, "e4srec": train_e4srec}[method].make_parser
    _, training_args, model_args = parse(line, make=make)
    preset = load_preset(method, name)
    for key, value in preset.model.items():
        assert getattr(model_args, key) == value
    for key, value in preset.training.items():
        assert getattr(training_args, key) == value


def test_the_vectors_command_writes_what_the_run_wrote(run, dataset, tmp_path, capsys):
    for kind in ("enhanced", "noise", "teacher", "groups"):
        argv = ["vectors", kind, "--model", str(run), "--dataset", str(dataset), "--output-dir", str(tmp_path / kind)]
        assert main([*argv, "--device", "cpu", "--seed", "42"]) == 0
        assert load_item_vectors(tmp_path / kind).key == load_item_vectors(run / "vectors" / kind).key
    assert main(["vectors", "text", "--dataset", str(dataset), "--output-dir", str(tmp_path / "text")]) == 1
    assert "text vectors need --llm" in capsys.readouterr().err
    assert not (tmp_path / "text").exists()


def test_pushed_runs_and_vectors_come_back_without_the_llm(command, llm, dataset, hub, tmp_path, small):
    repo, vectors = f"{hub.user}/tiny-p2rec", f"{hub.user}/tiny-vectors"
    out = tmp_path / "out"
    argv = ["train", "p2rec", *command, *P2REC, "--num_train_epochs", "1", "--output_dir", str(out)]
    assert main([*argv, "--push_to_hub", "--hub_model_id", repo, "--vectors_repo", vectors]) == 0
    files = hub.repository(repo).files()
    assert {"config.json", "model.safetensors", "groups.npz", "README.md", "p2rec.json", "p2rec.py"} <= files.keys()
    assert not [name for name in files if "tokenizer" in name or name.startswith(("vectors/", "checkpoint"))]
    stored = load_file(out / "model.safetensors")
    assert not [name for name in stored if name.startswith("encoder.llm.") and ".lora_" not in name]
    assert [name for name in stored if ".lora_" in name]
    again, catalogue = P2RecModel.from_pretrained(repo), load_recommendation_data(dataset).catalogue
    assert isinstance(load_groups(repo), ItemGroups)
    z, _ = again.enhance(np_items(100))
    pushed = load_item_vectors(vectors)
    np.testing.assert_allclose(pushed.read(catalogue=catalogue), z, atol=1e-5)
    # A backbone trains from the repository alone, also from its first commit after it moved on.
    commit = pushed.folder.name
    assert main(["vectors", "groups", "--model", repo, "--dataset", str(dataset), "--output-dir", str(tmp_path / "ci"),
                 "--push", vectors]) == 0  # fmt: skip
    assert load_item_vectors(vectors).width == 5
    train = ["train", "sasrec", "--dataset", str(dataset), *small, "--item_features", vectors]
    assert main([*train, "--item_features_revision", commit, "--output_dir", str(tmp_path / "sasrec")]) == 0
    assert load_recommender(tmp_path / "sasrec")[0].config.item_features == {"item": 8}


def test_e4srec_trains_saves_evaluates_and_recommends(command, dataset, tmp_path, capsys, hub):
    out = tmp_path / "out"
    repo = f"{hub.user}/tiny-e4srec"
    argv = ["train", "e4srec", *command, *SMALL, "--output_dir", str(out), "--push_to_hub", "--hub_model_id", repo]
    assert main(argv) == 0
    assert missing_files(out) == []
    record = EvaluationRecord.load(out / "records" / "test.json")
    assert record.notes["llm_tokens"] > 0
    assert main(["evaluate", repo, "--dataset", str(dataset), "--output", str(tmp_path / "again.json")]) == 0
    again = EvaluationRecord.load(tmp_path / "again.json")
    assert (again.model, again.seed) == (record.model, record.seed)
    assert again.metrics["ndcg@10"] == pytest.approx(record.metrics["ndcg@10"], abs=1e-6)
    titles = load_recommendation_data(dataset).catalogue.titles.to_pylist()[:2]
    capsys.readouterr()
    assert main(["recommend", str(out), "--history", *titles, "--top-k", "3"]) == 0
    assert capsys.readouterr().out.count("film-") == 3


def test_llmseqsim_needs_vectors_and_no_training(run, dataset, tmp_path, capsys):
    out = tmp_path / "out"
    argv = ["train", "llmseqsim", "--dataset", str(dataset), "--output_dir", str(out), "--decay", "0.5"]
    assert main([*argv, "--item_features", str(tmp_path / "none")]) == 1
    assert not out.exists()
    assert main([*argv, "--item_features", str(run / "vectors" / "text")]) == 0
    assert missing_files(out) == []
    assert load_recommender(out)[0].config.decay == 0.5
    assert EvaluationRecord.load(out / "records" / "test.json").notes["item_features"]["kind"] == "text"


def test_two_saved_recommenders_become_one_that_is_saved_loaded_and_asked(
    run, dataset, trained, tmp_path, capsys, hub, monkeypatch
):
    texts, out, repo = tmp_path / "texts", tmp_path / "out", f"{hub.user}/both"
    argv = ["train", "llmseqsim", "--dataset", str(dataset), "--item_features", str(run / "vectors" / "text")]
    assert main([*argv, "--output_dir", str(texts)]) == 0
    argv = ["train", "score-sum", "--dataset", str(dataset), "--first", str(trained), "--output_dir", str(out)]
    assert main([*argv, "--second", str(run)]) == 1  # P2Rec makes vectors and is no recommender
    assert not out.exists()
    capsys.readouterr()
    more = ["--weights", "0", "0.5", "100", "--push_to_hub", "--hub_model_id", repo]
    assert main([*argv, "--second", str(texts), *more]) == 0
    printed = capsys.readouterr().out
    assert "weight 0.5    validation ndcg@10" in printed
    assert "never seen: not in training" in printed
    assert missing_files(out) == []
    record = EvaluationRecord.load(out / "records" / "test.json")
    values = record.notes["validation_ndcg@10"]
    assert list(values) == ["0", "0.5", "100"]
    model = load_recommender(repo)[0]
    assert values[f"{model.config.weight:g}"] == max(values.values())
    assert main(["evaluate", repo, "--dataset", str(dataset), "--output", str(tmp_path / "again.json")]) == 0
    assert EvaluationRecord.load(tmp_path / "again.json").metrics == pytest.approx(record.metrics, abs=1e-6)
    titles = load_recommendation_data(dataset).catalogue.titles.to_pylist()[:2]
    capsys.readouterr()
    assert main(["recommend", str(out), "--history", *titles, "--top-k", "3"]) == 0
    assert capsys.readouterr().out.count("film-") == 3
    compared = [str(folder / "records" / "test.json") for folder in (texts, out)]
    monkeypatch.setenv("COLUMNS", "60")  # a narrow terminal must not cut numbers
    assert main(["compare", *compared]) == 0
    assert len(re.findall(r"\[[+-]\d\.\d{4}, [+-]\d\.\d{4}\]", capsys.readouterr().out)) == 9
    text = (out / "README.md").read_text()
    assert "Nothing was trained by gradient steps." in text
    assert "| `first` | SASRec |" in text
    assert "`hidden_size`" not in text
    assert "standardised scores of two recommenders" in text
    assert main(["train", "--config", str(out / "run.yaml"), "--output_dir", str(tmp_path / "twice")]) == 0
    assert load_recommender(tmp_path / "twice")[0].config.weight == model.config.weight
    argv[-1] = str(tmp_path / "seen")
    capsys.readouterr()
    assert main([*argv, "--second", str(texts), "--weights", "0.5", "--no_exclude_seen"]) == 0
    assert "NDCG@10, leave_one_out / test / full ranking / seen items allowed" in capsys.readouterr().out
    seen = EvaluationRecord.load(tmp_path / "seen" / "records" / "test.json").notes["validation_ndcg@10"]
    assert seen["0.5"] != values["0.5"]  # another rule of validation too
    assert "exclude_seen: false" in (tmp_path / "seen" / "run.yaml").read_text()


def test_the_llm2bert4rec_preset_needs_vectors_and_starts_from_them(run, dataset, tmp_path, capsys):
    argv = ["train", "bert4rec", "--dataset", str(dataset), "--preset", "llm2bert4rec", "--use_cpu", "--output_dir"]
    assert main([*argv, str(tmp_path / "out")]) == 1
    assert "--fusion init needs item vectors" in capsys.readouterr().err
    text = str(run / "vectors" / "text")
    more = ["--item_features", text, "--hidden_size", "8", "--num_train_epochs", "1", "--learning_rate", "1e-9"]
    assert main([*argv, str(tmp_path / "out"), *more]) == 0
    assert load_recommender(tmp_path / "out")[0].config.fusion == "init"


def test_another_method_is_named():
    with pytest.raises(ValueError, match="use `seqrec train sasrec`"):
        train_p2rec.run(["sasrec", "--dataset", "data"])


def test_the_analysis_shows_agreement_sweep_cost_and_gains(run, dataset, trained, small, tmp_path, capsys):
    base, out = trained / "records" / "test.json", tmp_path / "analysis"
    argv = ["train", "sasrec", "--dataset", str(dataset), *small, "--item_features", str(run)]
    for control in ("enhanced", "noise"):
        more = [] if control == "enhanced" else ["--control", control]
        assert main([*argv, *more, "--output_dir", str(tmp_path / control)]) == 0
    enhanced, noise = (tmp_path / name / "records" / "test.json" for name in ("enhanced", "noise"))
    argv = [
        "analyze",
        str(run),
        "--dataset",
        str(dataset),
        "--sweep",
        "3",
        "6",
        "--cost",
        "--sample",
        "4",
        "--device",
        "cpu",
    ]
    argv += ["--base", str(base), "--enhanced", str(enhanced), "--against", str(noise), "--groups", "3"]
    argv += ["--names", "alone", "enhanced", "noise"]
    assert main([*argv, "--output-dir", str(out)]) == 0
    assert {path.name for path in out.iterdir()} == {"analysis.json", "agreement.png", "cost.png", "gains.png"}
    found = json.loads((out / "analysis.json").read_text())
    assert found["runs"] == [json.loads((run / "p2rec.json").read_text())]
    assert [row["num_groups"] for row in found["sweep"]] == [3, 6]
    assert found["sweep"][0]["inertia"] > found["sweep"][1]["inertia"]
    # Calls are facts of the data: users, prefixes, items.
    lengths = leave_one_out(load_recommendation_data(dataset).sequences).train.lengths
    p2rec, e4srec = found["cost"]
    assert (p2rec["calls_per_epoch"], e4srec["calls_per_epoch"]) == (60, int((lengths - 1).sum()))
    assert (p2rec["inference_calls"], e4srec["inference_calls"]) == (100, 60)
    assert e4srec["seconds_per_epoch"] > p2rec["seconds_per_epoch"] > 0
    of_base, of_noise = found["gains"]
    first, second = (EvaluationRecord.load(path).metrics["ndcg@10"] for path in (base, enhanced))
    assert of_base["total"]["difference"] == pytest.approx(second - first)
    assert (of_base["base"], of_noise["base"], of_noise["other"]) == ("alone", "noise", "enhanced")
    assert of_base["total"]["low"] <= of_base["total"]["difference"] <= of_base["total"]["high"]
    assert sum(group["num_users"] for group in of_base["groups"]) == 60
    assert of_noise["total"]["base"] == pytest.approx(EvaluationRecord.load(noise).metrics["ndcg@10"])
    for argv, message in (
        (["analyze"], "nothing to look at"),
        (["analyze", str(tmp_path)], "holds no p2rec.json"),
        (["analyze", str(run), "--cost"], "need a run and --dataset"),
        (["analyze", "--base", str(base)], "give --base and --enhanced"),
        (["analyze", "--base", str(base), str(base), "--enhanced", str(enhanced)], "as many runs of both"),
        (["analyze", "--base", str(base), "--enhanced", str(enhanced), "--names", "one"], "--names has 1 entries"),
    ):
        assert main(argv) == 1
        assert message in capsys.readouterr().err
