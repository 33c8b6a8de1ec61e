"""Prompts, soft prompts, saving: everything of the model that needs no training."""

import json

import numpy as np
import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors.torch import load_file

from hf_seqrec.modeling.delrec import (
    SOFT_PROMPT_FILE,
    DELRecConfig,
    DELRecForSequentialRecommendation,
    make_delrec_template,
    soft_prompt_size,
)
from hf_seqrec.modeling.prompting import Slot


HISTORY = torch.tensor([[0, 3, 9, 4, 12, 8, 6], [1, 2, 3, 10, 9, 13, 14]])
CANDIDATES = torch.tensor([[11, 2, 16, 5], [4, 15, 7, 12]])
ADALORA = {"type": "adalora", "init_r": 3, "target_r": 1, "lora_alpha": 8}


@pytest.mark.parametrize("kind", ["decoder", "encoder"])
def test_a_decoder_reads_the_teachers_list_before_it_answers_and_others_behind(kind):
    text = make_delrec_template("rps", "movie", "SASRec", "soft", kind).prompt
    assert (text.index("{hint}") < text.index("[Answer]")) == (kind == "decoder")
    assert text.endswith("[Answer]") == (kind == "decoder")


def test_patterns_differ_in_what_tells_of_the_teacher():
    soft, manual, none = (
        make_delrec_template("lsr", "game", "Caser", pattern).prompt for pattern in ("soft", "manual", "none")
    )
    assert "[SoftPrompt]" in soft
    assert "[SoftPrompt]" not in manual
    assert "Caser" in manual
    assert "Caser" not in none
    with pytest.raises(ValueError, match="soft, manual, none"):
        make_delrec_template("lsr", pattern="hard")


def test_temporal_analysis_shows_an_example_and_hides_the_second_to_last_item(make):
    model = make()
    history = [1, 2, 3, 4, 5, 6]  # alpha = 3
    items = model.task_items("ta", history, [7, 5, 8, 9])
    assert items == {
        "example_history": [1], "example_answer": [2], "example_next": [3], "history": [3, 4], "next": [6],
        "candidates": [7, 5, 8, 9],
    }  # fmt: skip
    with pytest.raises(ValueError, match=r"at least alpha \+ 2 = 5 items, got 4"):
        model.task_items("ta", history[:4], [7, 5])
    with pytest.raises(ValueError, match=r"alpha \+ 2 = 5 items, got 4"):
        model(torch.tensor([[0, 0, 1, 2, 3, 4]]), candidates=torch.tensor([[5, 6, 7, 8]]), task="ta")


@pytest.mark.parametrize("kind", ["llama", "t5", "bert"])
def test_every_kind_of_llm_scores_every_task_and_the_soft_prompts_get_gradients(make, kind):
    model = make(kind)
    model.set_trainable(soft_prompts=True, llm=False)
    recommended = model.recommend(HISTORY[:, -6:], 2)
    scores = [
        model(HISTORY, candidates=CANDIDATES, task=task, recommended=recommended if task == "rps" else None).scores
        for task in ("lsr", "ta", "rps")
    ]
    for score in scores:
        assert score.shape == (2, 4)
        assert torch.isfinite(score).all()
    assert not torch.allclose(scores[0], scores[1])
    assert not torch.allclose(scores[0], scores[2])
    sum(score.sum() for score in scores).backward()
    assert model.soft_prompt.weight.grad.abs().sum(1).min() > 0
    assert [name for name, p in model.named_parameters() if p.grad is not None] == ["soft_prompt.weight"]


def test_the_teacher_recommends_unseen_items_best_first(make, teacher):
    model = make()
    scores = teacher.score(HISTORY).detach()
    for row, items in enumerate(model.recommend(HISTORY, 5).tolist()):
        allowed = [item for item in range(1, 17) if item not in HISTORY[row].tolist()]
        assert items == sorted(allowed, key=lambda item: -float(scores[row, item]))[:5]
    assert not set(model.recommend(HISTORY[:, -3:], 5, seen=HISTORY)[0].tolist()) & set(HISTORY[0].tolist())
    with pytest.raises(ValueError, match="lower `num_recommended`"):
        model.recommend(HISTORY, 12)


def test_soft_prompts_start_as_told_and_stay_float32(make):
    words = make().encoder.llm.get_input_embeddings().weight
    vocabulary = make(soft_init="vocabulary").soft_prompt.weight
    assert all(bool((words == row).all(1).any()) for row in vocabulary)
    text = make(soft_init="text", soft_text="ab").soft_prompt.weight
    assert torch.equal(text[0], text[2])  # repeated until there are k
    assert not torch.equal(text[0], text[1])
    random = make(soft_init="random", num_soft_tokens=400).soft_prompt.weight
    assert abs(float(random.mean().detach())) < 0.05
    assert abs(float(random.std().detach()) - 1) < 0.05
    half = make(llm_dtype="bfloat16")
    assert half.encoder.llm.dtype == torch.bfloat16
    assert half.soft_prompt.weight.dtype == torch.float32
    assert torch.isfinite(half(HISTORY, candidates=CANDIDATES).scores).all()


def test_soft_prompts_travel_alone_in_kilobytes(make, tmp_path):
    model, other = make(), make()
    torch.nn.init.normal_(model.soft_prompt.weight)
    path = model.save_soft_prompts(tmp_path / "deep" / "folder")
    assert path.stat().st_size < 2_000
    assert soft_prompt_size(path.parent) == 3
    assert list(load_file(path)) == ["soft_prompt"]
    assert sorted(entry.name for entry in path.parent.iterdir()) == [SOFT_PROMPT_FILE]  # nothing half-written is left
    other.load_soft_prompts(path.parent)
    torch.testing.assert_close(
        other(HISTORY, candidates=CANDIDATES).scores, model(HISTORY, candidates=CANDIDATES).scores
    )
    with pytest.raises(ValueError, match=r"\(3, 16\), the model needs \(5, 16\).*num_soft_tokens=3"):
        make(num_soft_tokens=5).load_soft_prompts(path.parent)
    with pytest.raises(ValueError, match="no place in a model with pattern='none'"):
        make(pattern="none").load_soft_prompts(path.parent)
    with pytest.raises(ValueError, match="no soft prompts to save"):
        make(pattern="manual").save_soft_prompts(tmp_path)
    other.config.teacher_fingerprint = "another"
    with pytest.raises(ValueError, match="distilled from the teacher"):
        other.load_soft_prompts(path.parent)
    with pytest.raises(OSError, match=SOFT_PROMPT_FILE):
        other.load_soft_prompts(tmp_path)


def test_a_model_with_adapters_comes_back_equal_and_small(make, tmp_path, llms):
    model = make(adapter=ADALORA)
    for name, parameter in model.named_parameters():
        if model.is_adapter(name):
            torch.nn.init.normal_(parameter, std=0.5)
    plain = make()(HISTORY, candidates=CANDIDATES).scores
    scores = model(HISTORY, candidates=CANDIDATES).scores
    assert not torch.allclose(scores, plain)
    model.save_pretrained(tmp_path / "model")
    stored = load_file(tmp_path / "model" / "model.safetensors")
    assert not any(name.startswith("encoder.llm.") and ".lora_" not in name for name in stored)
    back = DELRecForSequentialRecommendation.from_pretrained(tmp_path / "model")
    torch.testing.assert_close(back(HISTORY, candidates=CANDIDATES).scores, scores)
    torch.testing.assert_close(back.score(HISTORY), model.score(HISTORY))
    assert back.ranks() == model.ranks()


def test_explain_sets_three_lists_of_the_same_candidates_side_by_side(make):
    model = make(adapter=ADALORA)
    for name, parameter in model.named_parameters():
        if model.is_adapter(name):
            torch.nn.init.normal_(parameter, std=0.5)
    before = model.rank(HISTORY, CANDIDATES)
    lists = model.explain(HISTORY, top_k=4)
    assert list(lists) == ["teacher", "llm", "delrec"]
    best = model.recommend(HISTORY, 4)
    assert torch.equal(lists["teacher"][0], best)
    for items, scores in lists.values():
        assert torch.equal(items.sort(1).values, best.sort(1).values)
        assert torch.equal(scores, scores.sort(1, descending=True).values)
    alone = make(pattern="none").rank(HISTORY, best)
    torch.testing.assert_close(lists["llm"][1], alone.sort(1, descending=True).values)
    torch.testing.assert_close(model.rank(HISTORY, CANDIDATES), before)  # nothing is left switched off


def test_candidates_are_shown_in_an_order_that_does_not_tell_the_target(make):
    model = make()
    moved = CANDIDATES[:, [2, 3, 0, 1]]
    torch.testing.assert_close(model.score(HISTORY, moved), model.score(HISTORY, CANDIDATES)[:, [2, 3, 0, 1]])


def test_soft_prompts_fill_their_slots_in_order(make):
    model = make()
    prompt = model.build_prompt(model.prompt_items([1, 2], [3, 4], []))
    assert int((prompt == Slot.SOFT_PROMPT).sum()) == 3
    before = model(HISTORY, candidates=CANDIDATES).scores
    with torch.no_grad():
        model.soft_prompt.weight.copy_(model.soft_prompt.weight.flip(0))
    assert not torch.allclose(model(HISTORY, candidates=CANDIDATES).scores, before)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": 2}, "`alpha` must be at least 3"),
        ({"alpha": 5}, r"alpha \+ 2 = 7 items in a prompt, `history_length` is 6"),
        ({"num_recommended": 17, "num_candidates": 20}, "the catalogue has 16 items: lower it"),
        ({"num_recommended": 5}, r"in 1 … num_candidates = 4"),
        ({"num_soft_tokens": 0}, "at least 1, got 0"),
        ({"pattern": "hard"}, "soft, manual, none"),
        ({"soft_init": "text"}, "needs `soft_text`"),
        ({"soft_init": "zeros"}, "random, vocabulary, text"),
        ({"adapter": {"r": 8}}, "adalora or lora"),
    ],
)
def test_numbers_that_cannot_work_are_refused(make, options, message):
    with pytest.raises(StrictDataclassError, match=message):
        make(**options)


def test_what_else_cannot_work_is_refused(make, teacher, llms, catalogue):
    with pytest.raises(ValueError, match="tokens even with titles of one token"):
        make(max_prompt_tokens=60)
    with pytest.raises(ValueError, match=r"`init_r`.*3 must be more than 3"):
        make(adapter={**ADALORA, "target_r": 3})
    other = type(teacher)(teacher.config)
    other.config.data_fingerprint = "data-a"
    with pytest.raises(ValueError, match=r"fingerprint data-a, this one has data-b"):
        DELRecForSequentialRecommendation.from_parts(llms["llama"], other, catalogue, data_fingerprint="data-b")
    other.config.data_fingerprint = None
    with pytest.raises(ValueError, match="build the model with `from_parts`"):
        DELRecForSequentialRecommendation(DELRecConfig(num_items=16))


def test_t5_in_half_precision_is_warned_of(make, caplog):
    import transformers

    transformers.logging.enable_propagation()
    try:
        make("t5", llm_dtype="float16")
    finally:
        transformers.logging.disable_propagation()
    assert "float16" in caplog.text


def test_the_notes_of_a_soft_prompt_file_are_plain(make, tmp_path):
    from safetensors import safe_open

    with safe_open(make().save_soft_prompts(tmp_path), "pt") as file:
        notes = {key: json.loads(value) for key, value in file.metadata().items()}
    assert notes["alpha"] == 3
    assert len(notes["teacher_fingerprint"]) == 16
    assert np.isfinite(notes["num_recommended"])
