"""`seqrec train seralm` on a tiny world: from warmed-up parts to adapter, knowledge and a recommender that serves."""

from pathlib import Path

import pytest
import torch
import yaml
from peft import PeftModel
from transformers import AutoModelForCausalLM

from hf_seqrec.cli import main
from hf_seqrec.evaluation import EvaluationRecord
from hf_seqrec.hub import load_recommender
from hf_seqrec.knowledge import load_knowledge
from hf_seqrec.presets import list_presets


SMALL = '{"hidden_size": 8, "max_length": 6, "intermediate_size": 8, "num_hidden_layers": 1}'


def seqrec(*words):
    assert main([str(word) for word in words]) == 0


@pytest.fixture(scope="module")
def parts(tmp_path_factory, dataset, generators, text_encoder) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("parts")
    short = ["--num_train_epochs", 1, "--cutoffs", 5, 10, "--use_cpu", "--per_device_train_batch_size", 8]
    seqrec(
        "knowledge", "generate", "--dataset", dataset, "--llm", generators["llama"], "--cache", root / "cache", "--prompt", "continue",
        "--domain", "film", "--max-new-tokens", 8, "--output-dir", root / "knowledge",
    )  # fmt: skip
    seqrec(
        "train",
        "sasrec",
        "--dataset",
        dataset,
        "--output_dir",
        root / "base",
        *short,
        "--hidden_size",
        8,
        "--max_length",
        6,
    )
    seqrec(
        "train", "seralm-warmup", "--dataset", dataset, "--knowledge", root / "knowledge", "--text_encoder", text_encoder,
        "--backbone_config", SMALL, "--output_dir", root / "warm", *short,
    )  # fmt: skip
    return {"knowledge": root / "knowledge", "base": root / "base", "recommender": root / "warm"}


def command(dataset, generators, parts, output, *more):
    named = [word for name, folder in parts.items() for word in (f"--{name}", folder)]
    return [
        "train", "seralm", "--dataset", dataset, *named, "--model_name_or_path", generators["llama"], "--output_dir", output,
        "--max_steps", 2, "--per_device_train_batch_size", 4, "--use_cpu", "--cutoffs", 5, 10, "--save_strategy", "no", *more,
    ]  # fmt: skip


def test_one_command_aligns_both_and_writes_what_serves(dataset, generators, parts, tmp_path, capsys):
    out = tmp_path / "aligned"
    seqrec(*command(dataset, generators, parts, out))
    adapter = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(generators["llama"]), out / "adapter")
    assert any(bool(p.any()) for name, p in adapter.named_parameters() if "lora_B" in name), "the adapter was trained"
    knowledge, unaligned = load_knowledge(out / "knowledge"), load_knowledge(parts["knowledge"])
    assert knowledge.description["adapter"] is not None
    assert knowledge.description["prompt"] == unaligned.description["prompt"]
    assert knowledge.key != unaligned.key
    recommender, _ = load_recommender(out / "recommender")
    assert recommender.config.knowledge_key == knowledge.key
    assert bool(torch.isfinite(recommender.score(torch.tensor([[1, 2]]))[:, 1:]).all())
    record = EvaluationRecord.load(out / "recommender" / "records" / "test.json")
    assert record.notes["steps"] == 2
    assert record.notes["knowledge"]["key"] == knowledge.key
    run = yaml.safe_load((out / "recommender" / "run.yaml").read_text())
    assert run["recommender"] == str(parts["recommender"])


def test_what_does_not_belong_together_is_refused_before_anything_is_written(
    dataset, generators, parts, tmp_path, capsys
):
    out = tmp_path / "out"

    def fails(*words):
        assert main([str(word) for word in words]) == 1
        assert not out.exists()
        return capsys.readouterr().err

    said = fails(*command(dataset, generators, {**parts, "base": parts["recommender"]}, out))
    assert "plain backbone" in said or "p0" in said or "backbone" in said
    words = command(dataset, generators, parts, out)
    words[words.index("--model_name_or_path") + 1] = generators["t5"]
    assert "was written by llama, not by t5" in fails(*words)
    assert "--knowledge" in fails(*command(dataset, generators, {**parts, "knowledge": ""}, out))
    assert "credit" in fails(*command(dataset, generators, parts, out, "--credit", "all"))


def test_presets_are_listed():
    assert set(list_presets("seralm")["seralm"]) == {"paper", "default"}
