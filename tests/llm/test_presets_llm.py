from inspect import signature

import pytest

from hf_seqrec.data import leave_one_out
from hf_seqrec.modeling.llm_srec import LLMSRecConfig, LLMSRecForSequentialRecommendation
from hf_seqrec.presets import list_presets, load_preset
from hf_seqrec.trainers.distillation import DistillationTrainer, DistillationTrainingArguments


PRESETS = {name: vars(load_preset("llm_srec", name)) for name in list_presets("llm_srec")["llm_srec"]}
PROMPT = {"style", "dates", "history_length", "max_title_tokens"}


def test_the_paper_its_code_ours_and_the_four_baselines_are_there():
    assert set(PRESETS) == {"paper", "paper-code", "default", "text-encoder", "tallrec", "llara", "collm", "a_llmrec"}
    assert all(len(preset["source"]) > 10 for preset in PRESETS.values())


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_builds_and_trains(make, sequences, tmp_path, name):
    preset = PRESETS[name]
    assert set(signature(LLMSRecForSequentialRecommendation.from_parts).parameters) >= PROMPT
    assert set(preset["model"]) - PROMPT <= set(LLMSRecConfig.__dataclass_fields__)
    small = {"style": "compact", "dates": False, "history_length": 3, "head_size": 16}
    needs_teacher = preset["model"].get("item_vectors") != "none"
    model, _ = make("bert", **preset["model"] | small | ({} if needs_teacher else {"teacher": None}))
    settings = preset["training"] | {
        "num_train_epochs": 1,
        "max_steps": 1,
        "eval_strategy": "no",
        "save_strategy": "no",
    }
    settings |= {"load_best_model_at_end": False, "lr_decay_per_evaluation": 1.0}
    args = DistillationTrainingArguments(str(tmp_path), use_cpu=True, disable_tqdm=True, **settings)
    for key, value in preset["training"].items():
        assert getattr(DistillationTrainingArguments(str(tmp_path), use_cpu=True, **preset["training"]), key) == value
        assert not isinstance(value, str) or not value[0].isdigit()  # YAML 1.1 reads 1e-3 as text
    DistillationTrainer(model, args, train_dataset=leave_one_out(sequences).train).train()


def test_the_baselines_differ_by_their_switches():
    switches = {
        name: (
            preset["model"].get("item_vectors", "teacher"),
            preset["model"].get("user_vector", False),
            preset["model"].get("lora") is not None,
            preset["training"].get("distillation", "mse"),
        )
        for name, preset in PRESETS.items()
    }
    assert switches == {
        "paper": ("teacher", False, False, "mse"),
        "paper-code": ("teacher", False, False, "mse"),
        "default": ("teacher", False, False, "mse"),
        "text-encoder": ("teacher", True, False, "mse"),
        "tallrec": ("none", False, True, "none"),
        "llara": ("teacher", False, True, "none"),
        "collm": ("teacher", True, True, "none"),
        "a_llmrec": ("aligned", True, False, "none"),
    }
