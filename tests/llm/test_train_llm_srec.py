"""`seqrec train llm-srec`: from the command line to a folder that every other command takes."""

import pytest
import yaml
from safetensors.torch import load_file
from tiny_llms import build_llm

from hf_seqrec.cli import main
from hf_seqrec.data import Candidates, leave_one_out, load_recommendation_data
from hf_seqrec.data.demo import build_demo_world
from hf_seqrec.evaluation import EvaluationRecord
from hf_seqrec.hub import load_recommender, missing_files
from hf_seqrec.presets import list_presets, load_preset
from hf_seqrec.scripts import train_llm_srec
from hf_seqrec.scripts.train import parse


SMALL = [
    "--use_cpu", "--per_device_train_batch_size", "32", "--hidden_size", "8", "--head_size", "8", "--history_length", "3",
    "--max_title_tokens", "6", "--num_sampled", "20", "--domain", "movie", "--num_train_epochs", "2",
]  # fmt: skip


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "world"
    build_demo_world(folder, num_items=100, num_users=40)
    return folder


@pytest.fixture(scope="module")
def llm(tmp_path_factory):
    """A BERT of one layer with the character tokenizer of the others."""
    return build_llm(tmp_path_factory.mktemp("llm") / "bert", "bert", layers=1, width=8)


@pytest.fixture(scope="module")
def teacher(dataset, tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher") / "sasrec"
    argv = ["train", "sasrec", "--dataset", str(dataset), "--output_dir", str(folder), "--num_train_epochs", "1"]
    argv += [
        "--hidden_size",
        "8",
        "--num_hidden_layers",
        "1",
        "--intermediate_size",
        "8",
        "--max_length",
        "6",
        "--use_cpu",
    ]
    assert main(argv) == 0
    return str(folder)


@pytest.fixture(scope="module")
def command(dataset, llm, teacher):
    return ["train", "llm-srec", "--dataset", str(dataset), "--llm", llm, "--teacher", teacher, *SMALL]


@pytest.fixture(scope="module")
def trained(command, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained") / "distilled"
    assert main([*command, "--output_dir", str(folder), "--dates", "true"]) == 0
    return folder


def equal_weights(first, second):
    first, second = (load_file(folder / "model.safetensors") for folder in (first, second))
    return first.keys() == second.keys() and all(bool((first[name] == second[name]).all()) for name in first)


def test_a_trained_folder_is_complete(trained, dataset):
    assert missing_files(trained) == []
    records = {path.stem: EvaluationRecord.load(path) for path in (trained / "records").glob("*.json")}
    assert set(records) == {"test", "test-seen-allowed", "test-sampled20"}
    assert records["test"].notes["epochs"] == 2
    assert records["test"].notes["teacher_fingerprint"] == load_recommender(trained)[0].config.teacher_fingerprint
    rows = leave_one_out(load_recommendation_data(dataset).sequences).test
    assert Candidates.load(trained / "records" / "candidates-20.parquet", rows).num_negatives == 20
    assert "ndcg@10/sampled20" in records["test-sampled20"].metrics


def test_the_other_commands_take_the_folder(trained, dataset, hub, tmp_path, capsys):
    record = EvaluationRecord.load(trained / "records" / "test.json")
    argv = ["evaluate", str(trained), "--dataset", str(dataset), "--output", str(tmp_path / "again.json")]
    assert main(argv) == 0
    again = EvaluationRecord.load(tmp_path / "again.json")
    assert again.metrics["ndcg@10"] == pytest.approx(record.metrics["ndcg@10"], abs=1e-6)
    stored = trained / "records" / "candidates-20.parquet"
    argv = ["evaluate", str(trained), "--dataset", str(dataset), "--candidates", str(stored)]
    assert main(argv) == 0
    titles = load_recommendation_data(dataset).catalogue.titles.to_pylist()[:2]
    capsys.readouterr()
    times = ["2014-05-13", "1400000000"]
    assert main(["recommend", str(trained), "--history", *titles, "--times", *times, "--top-k", "3"]) == 0
    assert capsys.readouterr().out.count("film-") == 3
    assert main(["recommend", str(trained), "--history", *titles]) == 1
    assert "as many `timestamps`" in capsys.readouterr().err
    assert main(["recommend", str(trained), "--history", *titles, "--times", "yesterday", "now"]) == 1
    assert "need a date such as 2014-05-13" in capsys.readouterr().err
    argv = ["diagnose", str(trained), "--dataset", str(dataset), "--test", "shuffle", "cold", "--seeds", "0"]
    assert main(argv) == 0
    assert main(["push", str(trained), f"{hub.user}/distilled-world"]) == 0
    model, processor = load_recommender(f"{hub.user}/distilled-world")
    assert model.needs_timestamps
    assert processor.num_items == 100


def test_a_resumed_run_ends_like_an_uninterrupted_one(command, tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    # With the stage before training, which a resumed run must not repeat, with random prefixes, and the heads afterwards.
    common = [
        *command,
        "--item_vectors",
        "aligned",
        "--aligned_epochs",
        "1",
        "--lr_scheduler_type",
        "constant",
        "--output_dir",
    ]
    heads = ["--head_epochs", "2"]
    assert main([*common, str(whole), *heads]) == 0
    assert main([*common, str(cut), "--num_train_epochs", "1"]) == 0
    assert not equal_weights(whole, cut)
    assert main([*common, str(cut), *heads, "--resume_from_checkpoint", "last"]) == 0
    assert equal_weights(whole, cut)
    assert EvaluationRecord.load(cut / "records" / "test.json").notes["heads"]["epochs"] == 2
    assert not (cut / "heads").exists()


def test_the_run_file_makes_the_same_model_again(command, tmp_path):
    out, again = tmp_path / "out", tmp_path / "again"
    lora = ["--preset", "tallrec", "--lora", '{"r": 2, "target_modules": "all-linear"}', "--shuffle-training", "1"]
    quick = ["--max_steps", "2", "--eval_steps", "1", "--save_steps", "1"]
    assert main([*command, *lora, *quick, "--output_dir", str(out)]) == 0
    run = yaml.safe_load((out / "run.yaml").read_text())
    assert (run["model"], run["preset"], run["shuffle_training"], run["lora"]["r"]) == ("llm-srec", "tallrec", 1, 2)
    assert main(["train", "--config", str(out / "run.yaml"), "--output_dir", str(again)]) == 0
    assert equal_weights(out, again)
    assert EvaluationRecord.load(again / "records" / "test.json").notes["shuffled_training_seed"] == 1


@pytest.mark.parametrize("name", list_presets("llm_srec")["llm_srec"])
def test_the_values_of_a_preset_arrive(name):
    line = ["llm-srec", "--dataset", "data", "--llm", "llm", "--output_dir", "out", "--preset", name, "--use_cpu"]
    _, training_args, model_args = parse(line, make=train_llm_srec.make_parser)
    preset = load_preset("llm_srec", name)
    for key, value in preset.model.items():
        assert getattr(model_args, key) == value
    for key, value in preset.training.items():
        assert getattr(training_args, key) == value


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--teacher", "no/where"], "no/where"),
        (["--llm", ""], "no language model is named"),
        (["--domain", "food"], "food"),
        (["--lora", "r=8"], "need a JSON object"),
        (["--num_sampled", "98"], "--num_sampled sets how many"),
        (["--item_vectors", "both"], "`item_vectors` must be one of none, teacher, aligned"),
        (["--distillation", "none"], "teacher head, which distillation='none' never trains"),
        (["--max_prompt_tokens", "20"], "lower `history_length`"),
        (["--hiden_size", "8"], "did you mean --hidden_size"),
    ],
)
def test_what_is_wrong_is_found_before_anything_is_written(command, tmp_path, capsys, options, message):
    options = options + (["--uniformity_weight", "1"] if "none" in options else [])
    assert main([*command, "--output_dir", str(tmp_path / "out"), *options]) == 1
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_another_method_is_named_and_help_lists_this_one(capsys):
    with pytest.raises(ValueError, match="use `seqrec train sasrec`"):
        train_llm_srec.run(["sasrec", "--dataset", "data", "--llm", "llm", "--output_dir", "out", "--use_cpu"])
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    assert "llm-srec" in capsys.readouterr().out
