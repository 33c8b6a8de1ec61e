"""`seqrec train llm-ranker` and its presets: zero-shot, LlamaRec and the questions of RecRanker."""

import json
import math

import pytest
import yaml

from hf_seqrec.cli import main
from hf_seqrec.data import leave_one_out
from hf_seqrec.data.demo import build_demo_world
from hf_seqrec.evaluation import EvaluationRecord
from hf_seqrec.hub import load_recommender, missing_files
from hf_seqrec.modeling.llm_ranker import LLMRankerConfig
from hf_seqrec.presets import list_presets, load_preset
from hf_seqrec.scripts.training_run import read_json
from hf_seqrec.trainers.prompt_tuning import PromptTuningTrainer, PromptTuningTrainingArguments


PRESETS = list_presets("llm_ranker")["llm_ranker"]
SMALL = ["--use_cpu", "--history_length", "3", "--max_title_tokens", "8", "--num_sampled", "3", "--num_candidates", "4", "--domain",
         "movie", "--max_eval_users", "6", "--eval_negatives", "3", "--metric_for_best_model", "ndcg@10/sampled3"]  # fmt: skip


def test_zero_shot_llamarec_and_the_three_questions_of_recranker_are_there():
    assert set(PRESETS) == {"zero-shot", "llamarec", "recranker-point", "recranker-pair", "recranker-list", "default"}
    found = {name: load_preset("llm_ranker", name) for name in PRESETS}
    assert all(len(preset.source) > 10 for preset in found.values())
    assert {name: preset.model["task"] for name, preset in found.items()} == {
        "zero-shot": "title", "llamarec": "index", "recranker-point": "point", "recranker-pair": "pair", "recranker-list": "index",
        "default": "index",
    }  # fmt: skip
    assert {name for name, preset in found.items() if preset.model.get("hint")} == {f"recranker-{how}" for how in ("point", "pair", "list")}  # fmt: skip
    assert {name for name, preset in found.items() if preset.model["lora"] is None} == {"zero-shot"}


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_builds_and_trains(name, make, sequences, tmp_path):
    preset = load_preset("llm_ranker", name)
    assert set(preset.model) <= set(LLMRankerConfig.__dataclass_fields__)
    small = {
        "history_length": 3,
        "num_candidates": 4,
        "hint": min(preset.model.get("hint", 0), 2),
        "max_title_tokens": 8,
    }
    small |= {"labels": ["y", "n"]} if preset.model["task"] == "point" else {}
    model, _ = make("bert", **{**preset.model, **small})
    arguments = PromptTuningTrainingArguments(str(tmp_path), use_cpu=True, **preset.training)
    for key, value in preset.training.items():
        assert getattr(arguments, key) == value
        assert not isinstance(value, str) or not value[0].isdigit()  # YAML 1.1 reads 1e-3 as text
    if preset.model["lora"] is None:
        return
    short = {"max_steps": 1, "eval_strategy": "no", "save_strategy": "no", "load_best_model_at_end": False}
    settings = preset.training | short | {"train_candidates": 3, "per_device_train_batch_size": 4}
    arguments = PromptTuningTrainingArguments(str(tmp_path), use_cpu=True, disable_tqdm=True, **settings)
    before = {key: value.clone() for key, value in model.state_dict().items() if ".lora_B" in key}
    PromptTuningTrainer(model, arguments, train_dataset=leave_one_out(sequences).train).train()
    assert any(bool((model.state_dict()[key] != value).any()) for key, value in before.items())


@pytest.fixture(scope="module")
def command(tmp_path_factory, llm_folders):
    root = tmp_path_factory.mktemp("ranker")
    build_demo_world(root / "world", num_items=100, num_users=20)
    tiny = ["--hidden_size", "8", "--num_hidden_layers", "1", "--intermediate_size", "8", "--max_length", "6"]
    teacher = ["--output_dir", str(root / "sasrec"), "--num_train_epochs", "1", "--use_cpu"]
    assert main(["train", "sasrec", "--dataset", str(root / "world"), *tiny, *teacher]) == 0
    return ["train", "llm-ranker", "--dataset", str(root / "world"), "--llm", llm_folders["bert"], "--teacher", str(root / "sasrec"), *SMALL]  # fmt: skip


def test_llamarec_leaves_a_complete_recommender_and_metrics_of_both_kinds(command, tmp_path, capsys):
    folder = tmp_path / "llamarec"
    argv = [*command, "--preset", "llamarec", "--output_dir", str(folder), "--max_steps", "2", "--lora", '{"r": 2}']
    assert main([*argv, "--cutoffs", "1", "4", "10"]) == 0
    assert missing_files(folder) == []
    model, processor = load_recommender(folder)
    assert model.config.task == "index"
    assert model.config.lora == {"r": 2}
    assert processor.num_items == 100
    records = {path.stem: EvaluationRecord.load(path) for path in (folder / "records").glob("*.json")}
    assert set(records) == {"test", "test-seen-allowed", "test-sampled3"}
    found = json.loads((folder / "reranking.json").read_text())
    assert found["overall"] == pytest.approx(dict(records["test"].metrics))
    # Only the order of the four retrieved items is the LLM's, so hits among four are the backbone's.
    assert found["overall"]["hr@4"] == pytest.approx(found["retriever"]["hr@4"]) == found["retrieved"]
    assert found["retrieved"] == 0 or math.isclose(found["subset"]["hr@4"], 1)
    assert "of the " in capsys.readouterr().out
    again = yaml.safe_load((folder / "run.yaml").read_text())
    assert again["task"] == "index"


def test_zero_shot_trains_nothing(command, tmp_path):
    folder = tmp_path / "zero-shot"
    assert main([*command, "--preset", "zero-shot", "--output_dir", str(folder)]) == 0
    record = EvaluationRecord.load(folder / "records" / "test.json")
    assert "steps" not in record.notes
    assert (folder / "reranking.json").exists()
    assert not [name for name in load_recommender(folder)[0].own_state_dict() if ".lora_" in name]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--lora", "{r"], "--lora {r: need a JSON object"),
        (["--num_candidates", "70"], "70 candidates: use labels='numbers'"),
        (["--max_prompt_tokens", "60"], "use fewer candidates or a shorter history"),
        (["--task", "essay"], "`task` must be one of"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_written(words, message, command, tmp_path, capsys):
    folder = tmp_path / "out"
    assert main([*command, "--preset", "llamarec", "--output_dir", str(folder), *words]) != 0
    assert message in capsys.readouterr().err.replace("\n", " ")
    assert not folder.exists() or not any(folder.iterdir())


def test_adapters_are_read_from_text_and_files():
    assert read_json('{"r": 8}', "lora") == read_json({"r": 8}, "lora") == {"r": 8}
    assert read_json("none", "lora") is read_json(None, "lora") is None
    with pytest.raises(ValueError, match="need a JSON object"):
        read_json("[8]", "lora")
