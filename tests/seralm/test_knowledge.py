"""Texts about items: the same in any batch, kept by content, cleaned and counted; nothing is lost by a kill."""

import json
import threading
import types
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from datasets import load_dataset
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl.generation import vllm_generation

from hf_seqrec import knowledge as module
from hf_seqrec.data import Catalogue
from hf_seqrec.item_vectors import load_item_vectors
from hf_seqrec.knowledge import (
    Generator,
    KnowledgePrompt,
    Sampling,
    clean_text,
    extend_knowledge,
    generate_knowledge,
    load_generator,
    load_knowledge,
)


N = 12
SHORT = Sampling(max_new_tokens=12, top_k=50)
PROMPT = KnowledgePrompt("continue", domain="film")


@pytest.fixture(scope="module")
def llama(generators):
    return load_generator(generators["llama"])


@pytest.fixture
def writing(monkeypatch):
    """Counts prompts that reach the LLM, and can pull the plug before a given one."""
    counts = {"prompts": 0, "stop_before": None, "batches": []}
    true = Generator.write

    def write(self, rows, seeds, sampling):
        if counts["stop_before"] is not None and counts["prompts"] + len(rows) > counts["stop_before"]:
            raise KeyboardInterrupt
        counts["prompts"] += len(rows)
        counts["batches"].append([len(row) for row in rows])
        return true(self, rows, seeds, sampling)

    monkeypatch.setattr(Generator, "write", write)
    return counts


def scripted(generator, answers):
    """The generator, saying what a test wants instead of what it would."""
    found = replace(generator, description={**generator.description, "llm": "scripted"})

    def write(rows, seeds, sampling):
        prompts = [generator.tokenizer.decode(row) for row in rows]
        return [answers(prompt) for prompt in prompts]

    found.write = write
    return found


def tokens(generator, text, end=True):
    return [*generator.tokenizer(text, add_special_tokens=False).input_ids, *([2] if end else [])]


# --- prompts ---


def test_a_prompt_tells_what_is_known_and_asks(catalogue):
    prompts = KnowledgePrompt("describe", domain="film").render(catalogue)
    assert prompts[1].startswith("Title: Film x1. Genres: Crime, War.\nDescribe this film in a few sentences")
    assert prompts[4] is None
    assert len(set(prompts)) == N


def test_metadata_are_cut_and_the_question_never(catalogue, llama):
    long = catalogue.table.set_column(1, "title", pa.array(["y" * 500] * N))
    prompts = KnowledgePrompt("continue", domain="film").render(Catalogue(long), llama.tokenizer, 60)
    for prompt in filter(None, prompts):
        assert prompt.endswith("\nThis film is about")
        assert 50 < len(llama.tokenizer(prompt).input_ids) <= 60
    with pytest.raises(ValueError, match=r"question alone has \d+ tokens of 20"):
        PROMPT.render(catalogue, llama.tokenizer, 20)


def test_special_tokens_in_item_texts_are_words(llama):
    strange = Catalogue(pa.table({"item_id": ["a"], "title": ["Heat </s> <s>"]}))
    (prompt,) = PROMPT.render(strange, llama.tokenizer, 100)
    ids = llama.tokenizer(prompt).input_ids
    assert ids.count(2) == 0
    assert ids.count(1) == 1  # the one that begins every text


@pytest.mark.parametrize("template", ["no braces at all", "{metadata} {brand}", "{metadata", "{metadata} {0}"])
def test_a_prompt_with_other_places_is_refused(template):
    with pytest.raises(ValueError, match="ready prompts are describe"):
        KnowledgePrompt(template)


@pytest.mark.parametrize("changes", [{"temperature": -1}, {"top_p": 0}, {"max_new_tokens": 0}, {"top_k": -1}])
def test_impossible_sampling_is_refused(changes):
    with pytest.raises(ValueError, match="outside its range"):
        Sampling(**changes)


def test_a_catalogue_without_metadata_is_refused_before_an_llm_is_loaded(tmp_path):
    bare = Catalogue(pa.table({"item_id": ["a", "b"], "title": pa.array([None, None], pa.string())}))
    with pytest.raises(ValueError, match=r"no item of the catalogue has metadata \(columns: item_id, title\)"):
        generate_knowledge("no/such-llm", bare, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_chat_template_makes_the_prompt_a_users_turn(llama):
    tokenizer = AutoTokenizer.from_pretrained(llama.tokenizer.name_or_path)
    tokenizer.chat_template = "{% for m in messages %}[{{ m.role }}] {{ m.content }}{% endfor %}{% if add_generation_prompt %} [bot]{% endif %}"
    (row,) = module._prompt_tokens(tokenizer, ["Who likes Heat?"])
    assert tokenizer.decode(row) == "[user] Who likes Heat? [bot]"


# --- drawing ---


@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_a_text_does_not_depend_on_its_batch(generators, kind, catalogue, tmp_path):
    generator = load_generator(generators[kind])
    found = [
        generate_knowledge(generator, catalogue, tmp_path / f"{shard}-{budget}", PROMPT, SHORT, shard, budget, False)
        for shard, budget in ((256, 100_000), (3, 130), (1, 1))
    ]
    assert found[0].texts == found[1].texts == found[2].texts
    assert found[0].counts["distinct"] > N / 2
    reverse = Catalogue(catalogue.table.take(list(range(N))[::-1]))
    again = generate_knowledge(generator, reverse, tmp_path / "reverse", PROMPT, SHORT, progress=False)
    assert again.texts[::-1] == found[0].texts


def test_another_seed_gives_other_texts_and_temperature_0_the_likeliest(llama, catalogue, tmp_path):
    def texts(**changes):
        return generate_knowledge(llama, catalogue, tmp_path, PROMPT, replace(SHORT, **changes), progress=False).texts

    assert texts() != texts(seed=1)
    assert texts(temperature=0, top_k=0) == texts(temperature=0, top_k=0, seed=1)
    prompt = PROMPT.render(catalogue)[0]
    inputs = llama.tokenizer(prompt, return_tensors="pt")
    greedy = llama.model.generate(**inputs, do_sample=False, max_new_tokens=12, pad_token_id=2)
    plain = llama.tokenizer.decode(greedy[0, inputs.input_ids.shape[1] :], skip_special_tokens=True)
    assert texts(temperature=0, top_k=0)[0] == (
        clean_text(plain, complete=False)[0] or "Title: Film 0. Genres: Crime."
    )


def test_tokens_are_drawn_from_the_models_distribution():
    rows = 20_000
    scores = torch.tensor([[0.1, 0.5, 0.15, 0.25]]).log().expand(rows, 4)

    def share(**changes):
        draw = module._DrawPerRow(torch.rand(rows, 1, dtype=torch.float64), Sampling(**changes))
        return (draw(torch.zeros(rows, 3, dtype=torch.long), scores).argmax(1).bincount(minlength=4) / rows).tolist()

    torch.manual_seed(0)
    assert share() == pytest.approx([0.1, 0.5, 0.15, 0.25], abs=0.015)
    assert share(temperature=0.5) == pytest.approx([0.029, 0.725, 0.065, 0.181], abs=0.015)
    assert share(top_k=2) == pytest.approx([0, 2 / 3, 0, 1 / 3], abs=0.015)
    assert share(top_p=0.7) == pytest.approx([0, 2 / 3, 0, 1 / 3], abs=0.015)


def test_a_token_of_probability_0_is_never_drawn():
    scores = torch.tensor([[-torch.inf, 0.0, -torch.inf, 0.0, -torch.inf]]).expand(3, 5)
    uniforms = torch.tensor([[0.0], [0.5], [1 - 2**-53]], dtype=torch.float64)
    drawn = module._DrawPerRow(uniforms, Sampling())(torch.zeros(3, 1, dtype=torch.long), scores).argmax(1)
    assert set(drawn.tolist()) <= {1, 3}


def test_batches_hold_prompts_of_similar_length_within_the_budget(llama, catalogue, tmp_path, writing):
    generate_knowledge(llama, catalogue, tmp_path, PROMPT, SHORT, token_budget=140, progress=False)
    assert all(len(batch) == 1 or len(batch) * (max(batch) + 12) <= 140 for batch in writing["batches"])
    lengths = [length for batch in writing["batches"] for length in batch]
    assert lengths == sorted(lengths, reverse=True)
    assert len(writing["batches"]) < N


# --- the cache ---


def test_a_killed_run_goes_on_where_it_stopped(llama, catalogue, tmp_path, writing):
    whole = generate_knowledge(llama, catalogue, tmp_path / "whole", PROMPT, SHORT, 2, progress=False)
    writing.update(prompts=0, stop_before=7)
    with pytest.raises(KeyboardInterrupt):
        generate_knowledge(llama, catalogue, tmp_path / "killed", PROMPT, SHORT, 2, 1, progress=False)
    kept = sum(pq.read_metadata(path).num_rows for path in (tmp_path / "killed").rglob("texts-*.parquet"))
    assert kept == 6
    assert not list((tmp_path / "killed").rglob(".*"))
    writing.update(prompts=0, stop_before=None)
    resumed = generate_knowledge(llama, catalogue, tmp_path / "killed", PROMPT, SHORT, 2, progress=False)
    assert writing["prompts"] == N - 1 - kept
    assert resumed.table.equals(whole.table)
    assert resumed.key == whole.key
    writing.update(prompts=0)
    generate_knowledge(llama, catalogue, tmp_path / "killed", PROMPT, SHORT, 2, progress=False)
    assert writing["prompts"] == 0


def test_processes_share_the_items_and_all_get_all_texts(llama, catalogue, tmp_path, writing, monkeypatch):
    # Two threads stand for two processes: each has its rank, and they meet at a barrier.
    own, meeting = threading.local(), threading.Barrier(2)
    whole = generate_knowledge(llama, catalogue, tmp_path / "alone", PROMPT, SHORT, 2, progress=False)
    writing.update(prompts=0)
    for name, value in {
        "is_initialized": lambda: True,
        "get_rank": lambda: own.rank,
        "get_world_size": lambda: 2,
        "barrier": meeting.wait,
    }.items():
        monkeypatch.setattr(torch.distributed, name, value)

    def work(rank):
        own.rank = rank
        return generate_knowledge(llama, catalogue, tmp_path / "both", PROMPT, SHORT, 2, progress=False)

    with ThreadPoolExecutor(2) as threads:
        found = list(threads.map(work, range(2)))
    assert writing["prompts"] == N - 1
    assert found[0].texts == found[1].texts == whole.texts


def test_a_damaged_shard_is_made_again(llama, catalogue, tmp_path, writing):
    whole = generate_knowledge(llama, catalogue, tmp_path, PROMPT, SHORT, 4, progress=False)
    path = sorted(tmp_path.rglob("texts-*.parquet"))[0]
    path.write_bytes(path.read_bytes()[:-20])
    writing.update(prompts=0)
    assert generate_knowledge(llama, catalogue, tmp_path, PROMPT, SHORT, 4, progress=False).key == whole.key
    assert 0 < writing["prompts"] <= 4


def test_only_new_and_changed_items_are_written(llama, catalogue, tmp_path, writing):
    before = generate_knowledge(llama, catalogue, tmp_path, PROMPT, SHORT, progress=False)
    titles = catalogue.titles.to_pylist()
    titles[2] = "Another title"
    changed = catalogue.table.set_column(1, "title", pa.array(titles))
    new = pa.table({"item_id": ["n1"], "title": ["New"], "genres": pa.array([None], changed["genres"].type)})
    writing.update(prompts=0)
    after = generate_knowledge(
        llama, Catalogue(pa.concat_tables([changed, new])), tmp_path, PROMPT, SHORT, progress=False
    )
    assert writing["prompts"] == 2
    assert [a == b for a, b in zip(before.texts, after.texts, strict=False)].count(False) == 1


def test_nothing_is_taken_from_texts_that_were_made_in_another_way(
    llama, generators, catalogue, tmp_path, writing, adapter
):
    others = [
        (llama, PROMPT, SHORT),
        (llama, PROMPT, replace(SHORT, temperature=0.9)),
        (llama, PROMPT, replace(SHORT, seed=1)),
        (llama, replace(PROMPT, domain="book"), SHORT),
        (load_generator(generators["llama"], adapter=adapter), PROMPT, SHORT),
        (load_generator(generators["llama"], dtype="bfloat16"), PROMPT, SHORT),
        (load_generator(generators["t5"]), PROMPT, SHORT),
    ]
    keys = set()
    for number, (generator, prompt, sampling) in enumerate(others, 1):
        keys.add(generate_knowledge(generator, catalogue, tmp_path, prompt, sampling, progress=False).key)
        assert writing["prompts"] == number * (N - 1)
    assert len(keys) == len(others)


@pytest.fixture(scope="module")
def adapter(generators, tmp_path_factory):
    """A trained-looking LoRA adapter of the tiny decoder-only LLM."""
    torch.manual_seed(0)
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(generators["llama"]), LoraConfig(r=2, task_type="CAUSAL_LM")
    )
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    folder = tmp_path_factory.mktemp("adapter") / "lora"
    model.save_pretrained(folder)
    return str(folder)


def test_an_adapter_changes_the_texts_and_their_key(llama, generators, adapter, catalogue, tmp_path):
    aligned = load_generator(generators["llama"], adapter=adapter)
    assert aligned.description["adapter"] is not None
    assert {**aligned.description, "adapter": None} == llama.description
    plain, other = (
        generate_knowledge(g, catalogue, tmp_path, PROMPT, SHORT, progress=False) for g in (llama, aligned)
    )
    assert plain.texts != other.texts


def test_a_model_in_memory_is_known_by_its_weights(llama, generators, catalogue, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(generators["llama"])
    loaded = Generator.from_model(model, llama.tokenizer)
    assert loaded.description == llama.description
    with torch.no_grad():
        next(model.parameters()).add_(0.1)
    assert Generator.from_model(model, llama.tokenizer).description["revision"] != llama.description["revision"]


# --- cleaning ---


@pytest.mark.parametrize(
    ("text", "complete", "expected"),
    [
        ("A film\n about  love.", True, ("A film about love.", "ok")),
        ("", True, ("", "empty")),
        (" \u200b\n… !", True, ("", "empty")),
        ("Good. It was b", False, ("Good. It was b", "cut")),  # the whole sentence is less than half
        ("A good film about war. It was b", False, ("A good film about war.", "cut")),
        ("very very very good", True, ("very very very good", "ok")),
        ("and and and and and so", True, ("and", "repeated")),
        ("He ran home. " * 5, True, ("He ran home.", "repeated")),
        ("It is " + "fun, it is " * 4, False, ("It is fun,", "repeated")),
        ("hahahahahahahahahahahaha ha", True, ("ha", "repeated")),
        ("no, no, no! he said", True, ("no, no, no! he said", "ok")),
    ],
)
def test_texts_are_cleaned_and_named(text, complete, expected):
    found = clean_text(text, complete)
    if expected[0] == "It is fun,":
        assert found[1] == "repeated"
        assert len(found[0].split()) <= 6
    else:
        assert found == expected


def test_what_had_to_be_handled_is_counted(llama, catalogue, tmp_path):
    said = {
        "Film 0": tokens(llama, "A fine film about a heist."),
        "Film x1": tokens(llama, "They run. They run. They run. They run."),
        "Film xx2": tokens(llama, ""),
        "Film xxx3": [2, 1, 2],
        "Film 5": tokens(llama, "A long story. bcdefghijklmnopqrs", end=False),
    }

    def answer(prompt):
        return next((row for title, row in said.items() if f"Title: {title}." in prompt), tokens(llama, "Fine."))

    found = generate_knowledge(
        scripted(llama, answer), catalogue, tmp_path, PROMPT, Sampling(max_new_tokens=32), progress=False
    )
    assert found.counts == {"ok": 7, "cut": 1, "repeated": 1, "empty": 2, "no_metadata": 1, "distinct": 7}
    texts = found.texts
    assert texts[0] == "A fine film about a heist."
    assert texts[1] == "They run."
    assert texts[2] == "Title: Film xx2. Genres: Crime."  # nothing was said: what is known stands in
    assert texts[4] == "No title"
    assert all(texts)
    assert found.table["num_tokens"].to_pylist()[3] == 3


@pytest.mark.parametrize("row", [[], [2], [1, 2]])
def test_an_llm_that_says_nothing_is_an_error_and_leaves_no_texts(llama, catalogue, tmp_path, row):
    with pytest.raises(ValueError, match="said nothing about any of 11 items"):
        generate_knowledge(scripted(llama, lambda prompt: row), catalogue, tmp_path, PROMPT, SHORT, progress=False)
    assert not list(tmp_path.rglob("*.parquet"))


# --- which LLMs ---


def test_models_that_do_not_generate_are_refused(text_encoder):
    with pytest.raises(TypeError, match="is an encoder and does not generate"):
        load_generator(text_encoder)


def test_a_text_that_leaves_no_room_for_the_prompt_is_refused(llama, catalogue, tmp_path):
    with pytest.raises(ValueError, match="holds 256 tokens"):
        generate_knowledge(llama, catalogue, tmp_path, PROMPT, Sampling(max_new_tokens=256), progress=False)


def test_vllm_is_asked_for_by_name_and_its_absence_is_said(generators):
    with pytest.raises(ImportError, match=r"pip install 'trl\[vllm\]'"):
        load_generator(generators["llama"], engine="vllm")
    with pytest.raises(ValueError, match="'torch' or 'vllm'"):
        load_generator(generators["llama"], engine="vlm")


def test_with_vllm_every_prompt_has_a_seed_of_its_own(generators, adapter, catalogue, tmp_path, monkeypatch):
    # vLLM needs a GPU: what is tested is what we ask of it.
    asked = {"seeds": []}

    class LLM:
        def __init__(self, model, revision, dtype):
            asked["model"] = AutoModelForCausalLM.from_pretrained(model)
            AutoTokenizer.from_pretrained(model)

        def generate(self, prompts, settings, use_tqdm):
            asked["seeds"] += [one.seed for one in settings]
            ids = [prompt["prompt_token_ids"][-8:-2] for prompt in prompts]
            return [types.SimpleNamespace(outputs=[types.SimpleNamespace(token_ids=row)]) for row in ids]

    monkeypatch.setattr(vllm_generation, "LLM", LLM, raising=False)
    monkeypatch.setattr(vllm_generation, "SamplingParams", types.SimpleNamespace, raising=False)
    monkeypatch.setattr(module, "check_vllm", lambda: None)
    generator = load_generator(generators["llama"], adapter=adapter, engine="vllm")
    found = generate_knowledge(generator, catalogue, tmp_path, PROMPT, SHORT, progress=False)
    assert found.counts["ok"] == N - 1
    assert len(set(asked["seeds"])) == N - 1
    assert found.description["engine"] == "vllm"
    merged = load_generator(generators["llama"], adapter=adapter).model.state_dict()
    torch.testing.assert_close(asked["model"].state_dict(), merged)


@pytest.mark.slow
def test_trained_llms_write_words(stored_models, catalogue, tmp_path):
    for name, prompt in (("stories260k-llama", "{metadata} The {domain}"), ("g2p-bart-en-us", "{metadata}")):
        generator = load_generator(stored_models / name)
        sampling = Sampling(max_new_tokens=12, temperature=0.7)
        asked = KnowledgePrompt(prompt, metadata="title", domain="film")
        found = [
            generate_knowledge(
                generator, catalogue, tmp_path / f"{name}-{shard}", asked, sampling, shard, 60 * shard, False
            )
            for shard in (1, 12)
        ]
        assert found[0].texts == found[1].texts
        assert sum(any(char.isalpha() for char in text) for text in found[0].texts) == N
        assert generator.tokens_generated > N


# --- as a data set ---


@pytest.fixture
def made(llama, catalogue, tmp_path):
    return generate_knowledge(llama, catalogue, tmp_path / "cache", PROMPT, SHORT, progress=False)


def test_knowledge_is_a_data_set_in_the_hub_layout(made, catalogue, tmp_path):
    vectors = np.random.default_rng(0).normal(size=(N, 3)).astype(np.float32)
    folder = made.save(tmp_path / "films", vectors, {"name": "minilm"})
    loaded = load_knowledge(folder)
    assert loaded.texts == made.texts
    assert loaded.key == made.key
    loaded.check(catalogue)
    assert np.array_equal(load_item_vectors(folder).read(catalogue=catalogue), vectors)
    texts = load_dataset(str(folder), "knowledge", split="train", cache_dir=str(tmp_path / "hub"))
    assert texts["text"][:] == made.texts
    assert load_dataset(str(folder), "vectors", split="train", cache_dir=str(tmp_path / "hub")).num_rows == N
    card = (folder / "README.md").read_text()
    assert "not aligned" in card
    assert made.key in card
    assert "generated texts: they may be wrong" in card
    with pytest.raises(FileExistsError):
        made.save(folder)


def test_texts_that_were_changed_by_hand_are_refused(made, tmp_path):
    folder = made.save(tmp_path / "films")
    manifest = json.loads((folder / module.MANIFEST).read_text())
    (folder / module.MANIFEST).write_text(json.dumps(manifest | {"key": "0" * 16}))
    with pytest.raises(ValueError, match=r"are not those of its knowledge\.json"):
        load_knowledge(folder)
    with pytest.raises(FileNotFoundError, match="seqrec knowledge generate"):
        load_knowledge(tmp_path)


def test_knowledge_of_another_catalogue_is_refused(made, catalogue):
    with pytest.raises(ValueError, match="they differ from row 0 on"):
        made.check(Catalogue(catalogue.table.take(list(range(N))[::-1])))
    with pytest.raises(ValueError, match=r"about 12 items, the catalogue has 11; they differ from row 11 on"):
        made.check(Catalogue(catalogue.table.slice(0, 11)))


def test_new_items_join_and_known_or_differently_made_ones_do_not(made):
    assert extend_knowledge(
        replace(made, table=made.table.slice(0, 5)), replace(made, table=made.table.slice(5))
    ).table.equals(made.table)
    with pytest.raises(ValueError, match="12 items already have knowledge, first 'i0'"):
        extend_knowledge(made, made)
    other = replace(made, table=made.table.slice(5), description={**made.description, "adapter": "x"})
    with pytest.raises(ValueError, match=r"made in another way \(adapter differ\)"):
        extend_knowledge(replace(made, table=made.table.slice(0, 5)), other)


def test_counts_and_statuses_agree(made):
    counts = Counter(made.table["status"].to_pylist())
    assert {name: counts[name] for name in module.STATUS} == {name: made.counts[name] for name in module.STATUS}
    assert sum(counts.values()) == N


def test_the_default_cache_is_in_the_home_of_the_hub_client():
    assert module.default_cache().parts[-2:] == ("hf_seqrec", "knowledge")
    assert isinstance(module.default_cache(), Path)
