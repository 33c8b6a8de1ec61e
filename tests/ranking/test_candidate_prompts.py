"""Prompts that ask for one of several candidates: wordings, slots, labels, titles that are told apart, and what does not fit."""

import itertools

import numpy as np
import pytest
from transformers import AutoTokenizer

from hf_seqrec.modeling.candidate_prompts import (
    TASKS,
    CandidateTemplate,
    compile_candidate_template,
    distinct_titles,
    make_candidate_template,
)
from hf_seqrec.modeling.prompting import DOMAINS, Slot, tokenize_titles


KINDS = {"llama": "decoder", "t5": "encoder-decoder", "bert": "encoder"}


def titles_of(tokenizer, program, titles):
    tokens, offsets = distinct_titles(
        *tokenize_titles(titles, tokenizer, program), tokenizer, program.max_title_tokens
    )
    return [tokens[begin:end] for begin, end in itertools.pairwise(offsets)]


def as_text(prompt, tokenizer):
    return "".join(Slot(token).text if token < 0 else tokenizer.convert_ids_to_tokens(int(token)) for token in prompt)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("domain", DOMAINS)
def test_a_compiled_prompt_reads_as_its_template(task, domain, kind, tokenizers):
    tokenizer, soft = tokenizers[kind], domain == "game"
    template = make_candidate_template(task, domain, hint=True, soft=soft, backbone="SASRec")
    labels = ["y", "n"] if task == "point" else "letters"
    program = compile_candidate_template(template, tokenizer, KINDS[kind], 1 if soft else 0, labels=labels)
    assert program.fields == ["history", "candidates", "hint"]
    words = {"history": ["Heat", "Up"], "candidates": ["Ran", "Jaws 2", "Big Fish"], "hint": ["Ran"]}
    prompt = program.prompt({name: titles_of(tokenizer, program, row) for name, row in words.items()})
    inside = prompt[len(program.start) : len(prompt) - len(program.end)]
    assert as_text(inside, tokenizer) == template.render(words, "ABC").replace(" [Answer]", "[Answer]" if "label" not in template.candidate and task != "point" else " [Answer]")  # fmt: skip


def test_labels_are_the_tokens_that_stand_in_the_list(tokenizers):
    program = compile_candidate_template(make_candidate_template("index"), tokenizers["bert"], "encoder")
    assert tokenizers["bert"].convert_ids_to_tokens(program.labels) == list("ABCDEFGHIJKLMNOPQRST")
    titles = titles_of(tokenizers["bert"], program, ["Heat", "Up", "Ran"])
    prompt = program.prompt({"history": titles[:1], "candidates": titles})
    text = as_text(prompt, tokenizers["bert"])
    assert "Candidates: A: Heat; B: Up; C: Ran. The label" in text
    with pytest.raises(ValueError, match="21 candidates need as many labels, the prompt knows 20"):
        program.prompt({"history": titles[:1], "candidates": titles * 7})


def test_labels_must_be_single_distinct_tokens(tokenizers):
    template, tokenizer = make_candidate_template("index"), tokenizers["llama"]
    with pytest.raises(ValueError, match="'1' … '20' are not one token each"):
        compile_candidate_template(template, tokenizer, "decoder", labels="numbers")
    assert (
        len(compile_candidate_template(template, tokenizer, "decoder", labels="numbers", num_candidates=9).labels) == 9
    )
    assert len(compile_candidate_template(template, tokenizer, "decoder", num_candidates=52).labels) == 52
    with pytest.raises(ValueError, match=r"52 letters for 53 candidates: use labels='numbers'"):
        compile_candidate_template(template, tokenizer, "decoder", num_candidates=53)
    with pytest.raises(ValueError, match="`labels` must be one of"):
        compile_candidate_template(template, tokenizer, "decoder", labels="runes")
    with pytest.raises(ValueError, match="'日' … '本' are not one token each"):
        compile_candidate_template(template, tokenizer, "decoder", labels=["日", "本"])


def test_equal_titles_get_numbers_and_stay_as_they_are_when_items_are_added(tokenizers):
    tokenizer = tokenizers["llama"]
    program = compile_candidate_template(make_candidate_template(), tokenizer, "decoder", max_title_tokens=12)
    names = ["Heat", "Heat (2)", "Heat", None, "Heat", None, "A very long title", "A very long tie"]
    rows = [as_text(row, tokenizer) for row in titles_of(tokenizer, program, names)]
    assert rows == [" Heat", " Heat (2)", " Heat (3)", " No title", " Heat (4)", " No titl (2)", " A very long", " A very  (2)"]  # fmt: skip
    assert len(set(rows)) == len(rows)
    more = [as_text(row, tokenizer) for row in titles_of(tokenizer, program, [*names, "Heat", "Up"])]
    assert more[: len(rows)] == rows
    tokens, offsets = tokenize_titles(["Heat", "Heat"], tokenizer, program)
    with pytest.raises(ValueError, match="leave no room for the number"):
        distinct_titles(tokens, offsets, tokenizer, 4)


def test_soft_prompts_stand_where_the_template_has_them(tokenizers):
    template = CandidateTemplate("own", "Read[SoftPrompt] and {history}: [Answer]")
    program = compile_candidate_template(template, tokenizers["llama"], "decoder", num_soft=7)
    prompt = program.prompt({"history": titles_of(tokenizers["llama"], program, ["Up"])})
    assert as_text(prompt, tokenizers["llama"]) == "<s>Read" + "[SoftPrompt]" * 7 + " and  Up:[Answer]"
    assert program.num_soft == 7
    for count, words in ((0, "has 1 places .SoftPrompt. for `num_soft=0`"),):
        with pytest.raises(ValueError, match=words):
            compile_candidate_template(template, tokenizers["llama"], "decoder", num_soft=count)
    with pytest.raises(ValueError, match=r"has 0 places .SoftPrompt. for `num_soft=5`"):
        compile_candidate_template(make_candidate_template(), tokenizers["llama"], "decoder", num_soft=5)


def test_a_program_comes_back_from_its_dictionary(tokenizers):
    import json

    program = compile_candidate_template(
        make_candidate_template("index", hint=True), tokenizers["t5"], "encoder-decoder"
    )
    again = type(program)(**json.loads(json.dumps(program.to_dict())))
    assert again == program
    assert again.answer.begin == []
    assert again.answer.end == [2]


def test_titles_are_shortened_before_anything_is_refused(tokenizers):
    tokenizer = tokenizers["llama"]
    template = make_candidate_template("title", "movie")
    program = compile_candidate_template(template, tokenizer, "decoder", max_tokens=200)
    titles = titles_of(tokenizer, program, [f"A title of some length, number {number}" for number in range(9)])
    prompt = program.prompt({"history": titles[:3], "candidates": titles[3:]})
    # 32 tokens of a title and what ends it must still fit behind the prompt.
    assert len(prompt) - 1 <= 200 - 33
    assert as_text(prompt, tokenizer).endswith("The next movie is:[Answer]")
    with pytest.raises(
        ValueError, match=r"use fewer candidates or a shorter history, or an LLM with a longer context"
    ):
        program.prompt({"history": titles[:3], "candidates": titles * 9})


def test_lists_that_are_missing_empty_or_too_long_are_refused(tokenizers):
    tokenizer = tokenizers["llama"]
    program = compile_candidate_template(make_candidate_template(), tokenizer, "decoder", history_length=2)
    titles = titles_of(tokenizer, program, ["Heat", "Up", "Ran"])
    with pytest.raises(KeyError, match="the template has the lists history, candidates, got history"):
        program.prompt({"history": titles[:1]})
    with pytest.raises(ValueError, match="holds 1 to 2 items of a history, got 3"):
        program.prompt({"history": titles, "candidates": titles})
    with pytest.raises(ValueError, match="holds 1 to 2 items of a history, got 0"):
        program.prompt({"history": [], "candidates": titles})


@pytest.mark.parametrize(
    ("prompt", "options", "message"),
    [
        ("{history}", {}, r"exactly one .Answer., 'own' has 0"),
        ("{history} [Answer] [Answer]", {}, r"exactly one .Answer., 'own' has 2"),
        ("{history} [Answer] then", {}, "cannot see text behind"),
        ("{history} [Answer]", {"answer": "sentinel"}, "is for encoder-decoder LLMs"),
        ("{history} [Answer]", {"answer": "loud"}, "`answer` must be one of"),
        ("{history} [Answer]", {"num_masks": 0}, "`num_masks` must be at least 1"),
        ("{history} [Answer]", {"history_length": 0}, "`history_length` must be at least 1"),
    ],
)
def test_templates_that_cannot_work_are_refused(prompt, options, message, tokenizers):
    with pytest.raises(ValueError, match=message):
        compile_candidate_template(CandidateTemplate("own", prompt), tokenizers["llama"], "decoder", **options)


def test_tokenizers_without_mask_or_sentinel_are_refused(tokenizers, tmp_path):
    tokenizers["t5"].save_pretrained(tmp_path)
    bare = AutoTokenizer.from_pretrained(tmp_path)
    bare.mask_token = None
    with pytest.raises(ValueError, match="no mask token"):
        compile_candidate_template(make_candidate_template(), bare, "encoder")
    bare.convert_tokens_to_ids = lambda token: None
    with pytest.raises(ValueError, match=r"no <extra_id_0>: use answer='plain'"):
        compile_candidate_template(make_candidate_template(), bare, "encoder-decoder", answer="sentinel")


def test_unknown_tasks_and_domains_are_refused():
    with pytest.raises(ValueError, match="`task` must be one of title, index"):
        make_candidate_template("essay")
    with pytest.raises(ValueError, match="`domain` must be one of movie"):
        make_candidate_template("title", "song")


def test_a_title_never_becomes_a_slot(tokenizers):
    tokenizer = tokenizers["llama"]
    program = compile_candidate_template(make_candidate_template(), tokenizer, "decoder")
    titles = titles_of(tokenizer, program, ["[Answer] {candidates}", "</s>[SoftPrompt]"])
    prompt = program.prompt({"history": titles, "candidates": titles})
    assert np.count_nonzero(prompt < 0) == 1
    assert np.count_nonzero(prompt == tokenizer.eos_token_id) == 0
