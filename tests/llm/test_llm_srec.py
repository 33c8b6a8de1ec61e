import json
import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from huggingface_hub.errors import StrictDataclassClassValidationError
from transformers import AutoModel, AutoProcessor

from hf_seqrec.data import Catalogue, leave_one_out
from hf_seqrec.evaluation import Protocol, RankingEvaluator
from hf_seqrec.hub import save_recommender
from hf_seqrec.modeling import SASRecConfig, SASRecForSequentialRecommendation
from hf_seqrec.modeling.llm_processing import LLMSequentialRecommendationProcessor
from hf_seqrec.modeling.llm_srec import LLMSRecConfig, LLMSRecForSequentialRecommendation
from hf_seqrec.modeling.prompting import Slot
from hf_seqrec.modeling.teacher import teacher_fingerprint


IDS = torch.tensor([[0, 0, 3, 4], [1, 2, 5, 7]])
LABELS = torch.tensor([[-100, -100, -100, 5], [-100, -100, -100, 9]])
NEGATIVES = torch.tensor([[[1, 2]], [[3, 10]]])
LORA = {"r": 2, "target_modules": "all-linear"}

BASELINES = {
    "llm_srec": {},
    "tallrec": {"teacher": None, "item_vectors": "none", "distilled": False, "lora": LORA},
    "llara": {"distilled": False, "lora": LORA},
    "collm": {"distilled": False, "user_vector": True, "lora": LORA},
    "a_llmrec": {"distilled": False, "user_vector": True, "item_vectors": "aligned", "latent_size": 4},
    "mean_and_cosine": {"pooling": "mean", "cosine": True, "alike_heads": True},
}


@pytest.fixture(params=BASELINES)
def method(request):
    return BASELINES[request.param]


@pytest.mark.parametrize("kind", ["llama", "t5", "bert"])
def test_scores_have_the_shapes_of_the_contract(make, kind, method):
    model, _ = make(kind, **method)
    scores, table = model.score(IDS), model.item_representations()
    assert scores.shape == (2, 13)
    assert table.shape == (13, 8)
    assert torch.isneginf(scores[:, 0]).all()
    assert torch.isfinite(scores[:, 1:]).all()
    assert scores[:, 1:].std() > 1e-4
    torch.testing.assert_close(model(IDS).user_embeddings @ table[1:].T, scores[:, 1:])
    candidates = torch.tensor([[5, 1, 0], [9, 3, 12]])
    some = model.score(IDS, candidates)
    torch.testing.assert_close(some[candidates > 0], scores.gather(1, candidates)[candidates > 0])
    assert torch.isneginf(some[0, 2])


def test_padding_and_company_never_change_a_score(make, method):
    model, _ = make(**method)
    scores = model.score(IDS)
    torch.testing.assert_close(model.score(torch.nn.functional.pad(IDS, (3, 0))), scores)
    torch.testing.assert_close(model.score(IDS[:1, 2:]), scores[:1])


def test_only_the_last_items_enter_the_prompt_but_the_teacher_sees_more(make):
    ids = torch.tensor([[1, 2, 3, 4, 5, 6]])
    blind, _ = make(distilled=False)
    torch.testing.assert_close(blind.score(ids), blind.score(ids[:, -4:]))
    seeing, _ = make(distilled=False, user_vector=True)
    assert not torch.allclose(seeing.score(ids)[:, 1:], seeing.score(ids[:, -4:])[:, 1:])


def test_order_and_titles_and_item_vectors_matter(make):
    model, processor = make()
    scores = model.score(IDS)[:, 1:]
    assert not torch.allclose(model.score(IDS.flip(1)[1:])[:, 1:], scores[1:])
    changed = LLMSequentialRecommendationProcessor(
        processor.item_ids,
        ["Other", *processor.titles[1:]],
        6,
        **processor._prompt_settings(),
    )
    tokens, offsets = changed.title_tokens()
    model.title_tokens, model.title_offsets = torch.from_numpy(tokens), torch.from_numpy(offsets)
    moved = (model.score(IDS)[:, 1:] - scores).abs()
    assert moved[0, 0] > 1e-4  # the item itself
    assert moved[1].min() > 1e-6  # the user whose history holds it
    assert moved[0, 1:].max() < 1e-5


def test_every_trained_weight_gets_a_gradient_and_no_frozen_one(make, method):
    model, _ = make(**method)
    model.train()
    model(IDS, labels=LABELS, negatives=NEGATIVES).loss.backward()
    without = {name for name, p in model.named_parameters() if p.requires_grad and p.grad is None}
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert not without
    assert all(name.startswith(("encoder.llm.", "teacher.", "aligned.")) for name in frozen)
    assert not any(
        name.startswith(("encoder.llm.", "teacher.")) and ".lora_" not in name
        for name in set(dict(model.named_parameters())) - frozen
    )


def test_the_loss_is_that_of_separate_prompts(make):
    """Distinct items encoded once, rows in one pass: the same loss as one example, one item at a time."""
    model, _ = make(in_batch_negatives=False)
    negatives = torch.tensor([[[1, 9]], [[5, 1]]])  # shared among rows and with targets
    terms = model(IDS, labels=LABELS, negatives=negatives).terms
    expected = []
    for row in range(2):
        user = model.encode_users(IDS[row : row + 1])[0]
        items = [LABELS[row, -1], *negatives[row, 0]]
        scores = torch.stack([user @ model.encode_items(item[None])[0] for item in items])
        expected.append(scores.logsumexp(0) - scores[0])
    torch.testing.assert_close(terms["retrieval"], torch.stack(expected).mean(), atol=1e-5, rtol=1e-5)


def test_with_several_threads_gradients_repeat_to_the_bit(make, two_threads):
    """A step so large that PyTorch divides its sums among threads; every item occurs in many rows."""
    model, _ = make("bert", in_batch_negatives=False, token_budget=1_000_000)
    rows = torch.arange(800).unsqueeze(1)
    ids, negatives = (rows + torch.tensor([0, 3, 5, 8])) % 12 + 1, (rows + torch.tensor([[1, 4, 7]])) % 12 + 1
    labels = torch.cat([torch.full_like(ids[:, 1:], -100), (rows + 9) % 12 + 1], dim=1)

    def gradients():
        model.zero_grad()
        model(ids, labels=labels, negatives=negatives.unsqueeze(1)).loss.backward()
        return [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]

    first = gradients()
    for _ in range(3):
        assert all(map(torch.equal, gradients(), first))


def test_in_batch_negatives_are_the_distinct_items_of_the_step_outside_the_history(make):
    model, _ = make(in_batch_negatives=True)
    # Row 0 has 3 and 4 in its history, so 3 is no negative of it; 5, 9, 1, 2, 10 are.
    terms = model(IDS, labels=LABELS, negatives=NEGATIVES).terms
    scores = model.encode_users(IDS) @ model.encode_items(torch.tensor([1, 2, 3, 5, 9, 10])).T
    first = scores[0, [0, 1, 3, 4, 5]].logsumexp(0) - scores[0, 3]
    second = scores[1, [2, 4, 5]].logsumexp(0) - scores[1, 4]  # 1, 2 and 5 are in its history
    torch.testing.assert_close(terms["retrieval"], (first + second) / 2, atol=1e-5, rtol=1e-5)


def test_several_labels_of_a_row_are_the_prefixes_of_it(make):
    model, _ = make(distilled=False)
    together = model(
        torch.tensor([[0, 3, 4]]), labels=torch.tensor([[-100, 4, 8]]), negatives=torch.tensor([[[1], [2], [1]]])
    )
    one = model(torch.tensor([[0, 3]]), labels=torch.tensor([[-100, 4]])[:, :2], negatives=torch.tensor([[[2]]]))
    two = model(torch.tensor([[3, 4]]), labels=torch.tensor([[-100, 8]]), negatives=torch.tensor([[[1]]]))
    torch.testing.assert_close(together.user_embeddings, torch.cat([one.user_embeddings, two.user_embeddings]))


@pytest.mark.parametrize("kind", ["llama", "t5", "bert"])
def test_pooling_reads_the_mean_of_all_states(make, kind):
    model, _ = make(kind, item_vectors="none", distilled=False, teacher=None, pooling="mean")
    states = model.item_states(torch.tensor([3, 7]))
    for number, title in enumerate(model._title_rows(torch.tensor([3, 7]))):
        prompt = torch.from_numpy(model.program.item_prompt(title)).long()
        table = model.encoder.llm.get_input_embeddings()
        embeds = torch.where((prompt == int(Slot.ITEM_OUT)).unsqueeze(1), model.item_out, table(prompt.clamp(min=0)))
        llm = model.encoder.llm
        hidden = (llm.encoder if kind == "t5" and hasattr(llm, "decoder") else llm)(
            inputs_embeds=embeds[None], attention_mask=torch.ones(1, len(prompt))
        ).last_hidden_state[0]
        torch.testing.assert_close(states[number], hidden.mean(0), atol=1e-5, rtol=1e-5)


def test_cosine_scores_are_cosines_times_a_bounded_scale(make):
    model, _ = make("bert", cosine=True)
    users = model.user_head(model.user_states(IDS))
    items = model.item_head(model.item_states(torch.arange(1, 13)))
    cosine = torch.nn.functional.cosine_similarity(users.unsqueeze(1), items.unsqueeze(0), dim=-1)
    torch.testing.assert_close(model.score(IDS)[:, 1:], cosine / 0.07)
    with torch.no_grad():
        model.logit_scale.fill_(50.0)
    torch.testing.assert_close(model.score(IDS)[:, 1:], cosine * 100.0, atol=1e-4, rtol=1e-5)


def test_heads_that_start_alike_rank_by_the_likeness_of_states(make):
    model, _ = make("bert", alike_heads=True, cosine=True)
    assert all(
        torch.equal(*pair) for pair in zip(model.user_head.parameters(), model.item_head.parameters(), strict=True)
    )
    assert model.user_head[0].weight.data_ptr() != model.item_head[0].weight.data_ptr()
    states = torch.randn(5, 16)
    torch.testing.assert_close(model.user_head(states), model.item_head(states))
    apart, _ = make("bert")
    assert not torch.equal(apart.user_head[0].weight, apart.item_head[0].weight)


def test_head_dropout_acts_in_training_alone(make):
    model, _ = make("bert", head_dropout=0.5)
    model.train_heads_only()
    model.train()
    first, second = (model.encode_users(IDS) for _ in range(2))
    assert not torch.equal(first, second)
    model.eval()
    torch.testing.assert_close(model.encode_users(IDS), model.user_head(model.user_states(IDS)))
    with pytest.raises(StrictDataclassClassValidationError, match=r"`head_dropout` is a share in \[0, 1\), got 1.0"):
        LLMSRecConfig(num_items=3, head_dropout=1.0, teacher_config={})


def test_an_unknown_pooling_is_refused():
    with pytest.raises(
        StrictDataclassClassValidationError, match="`pooling` must be one of out_token, mean, got 'cls'"
    ):
        LLMSRecConfig(num_items=3, pooling="cls", teacher_config={})


def test_the_item_table_is_encoded_once_per_weight_version(make, tmp_path):
    model, _ = make(kind="llama")
    table, seen = model.item_representations(), model.encoder.tokens_seen
    assert model.item_representations() is table
    assert model.encoder.tokens_seen == seen
    for name, change in {
        "in place": lambda: model.item_out.data.add_(0.5),  # goes around the version counter
        "optimizer": lambda: step(model, torch.optim.AdamW(model.item_head.parameters(), lr=1e-2, fused=True)),
        "foreach": lambda: step(model, torch.optim.SGD(model.item_head.parameters(), lr=1e-2, foreach=True)),
        "load": lambda: model.load_state_dict({"item_out": model.item_out.detach() + 1}, strict=False),
    }.items():
        change()
        fresh = model.item_representations()
        assert fresh is not table, name
        assert (fresh - table).abs().max() > 1e-5, name
        table = fresh
    with torch.inference_mode():
        assert model.item_representations() is table
    model.requires_grad_(False)
    assert model.item_representations() is table


def step(model, optimizer):
    model(IDS, labels=LABELS, negatives=NEGATIVES).loss.backward()
    optimizer.step()


def test_a_history_is_encoded_once_per_weight_version(make):
    model, _ = make(dates=True)
    times = torch.arange(IDS.numel()).view(IDS.shape) * 86_400 + 1_400_000_000

    def work(ids, times):
        before = model.encoder.tokens_seen
        with torch.inference_mode():
            users = model(ids, timestamps=times).user_embeddings
        return users.clone(), model.encoder.tokens_seen - before

    first, tokens = work(IDS, times)
    assert tokens > 0
    torch.testing.assert_close(model.encode_users(IDS, times).detach(), first)
    # In another order, with more padding, through `score`: nothing is read again.
    wider = torch.nn.functional.pad(IDS.flip(0), (2, 0))
    again, tokens = work(wider, torch.nn.functional.pad(times.flip(0), (2, 0)))
    assert tokens == 0
    assert torch.equal(again, first.flip(0))
    model.item_representations()
    before = model.encoder.tokens_seen
    model.score(IDS, timestamps=times)
    assert model.encoder.tokens_seen == before
    # Another day is another history, and new weights are another encoding.
    assert work(IDS, times + 86_400)[1] > 0
    with torch.no_grad():
        model.user_out.add_(0.5)
    moved, tokens = work(IDS, times)
    assert tokens > 0
    assert not torch.allclose(moved, first)
    # With gradients nothing that was kept is used.
    assert model(IDS, timestamps=times).user_embeddings.requires_grad


def test_titles_in_any_script_are_text_of_their_own(make, stored_models):
    titles = [
        "Heat",
        "日本の歌",
        "أفلام",
        "фильм",
        "🎬🎥",
        "Ame\u0301lie",
        "[ItemEmb]日本[UserOut]",
        None,
        "\u200b",
    ]
    folder = str(stored_models / "tinytalk-gptneo-3m")
    table = pa.table({"item_id": [f"i{n}" for n in range(len(titles))], "title": pa.array(titles, pa.string())})
    torch.manual_seed(0)
    model, _ = LLMSRecForSequentialRecommendation.from_parts(
        folder, None, Catalogue(table), item_vectors="none", distilled=False, style="compact", dates=False
    )
    rows = model._title_rows(torch.arange(1, len(titles) + 1))
    assert all(len(row) and (row >= 0).all() for row in rows)
    assert len({row.tobytes() for row in rows}) == len(titles) - 1  # the last two read "No title"
    table = model.eval().item_representations()
    assert torch.isfinite(table).all()
    assert torch.pdist(table[1:8]).min() > 1e-4


def test_the_card_tells_trained_parameters_from_frozen_ones(make, tmp_path):
    model, processor = make("bert", lora={"r": 2, "target_modules": "all-linear"})
    llm = sum(p.numel() for name, p in model.encoder.llm.named_parameters() if ".lora_" not in name)
    taught = sum(p.numel() for p in model.teacher.parameters())
    own = sum(p.numel() for p in model.parameters()) - llm - taught
    card = (save_recommender(tmp_path / "model", model, processor) / "README.md").read_text()
    assert f"| Parameters | {own:,} trained, beside frozen ones: language model {llm:,}, teacher {taught:,} |" in card
    place = Path(model.config.llm_name_or_path)
    assert place.is_absolute()
    assert f"| Base model | a language model from a folder, `{place.name}` |" in card
    assert f"| `llm_name_or_path` | {place.name} |" in card
    assert str(place.parent) not in card  # a path of somebody's machine


def test_the_evaluator_ranks_it_as_its_scores_say(make, sequences):
    model, _ = make()
    test = leave_one_out(sequences).test
    result = RankingEvaluator(test, num_items=12, protocol=Protocol(cutoffs=[5]))(model)
    rows = [torch.from_numpy(test.history(row)[-6:].astype(np.int64))[None] for row in range(3)]
    for row, ids in enumerate(rows):
        scores = model.score(ids)[0]
        seen = torch.from_numpy(test.history(row).astype(np.int64))
        scores[seen] = -torch.inf
        assert result.ranks[row] == int((scores > scores[int(test.target[row])]).sum())


@pytest.mark.parametrize("name", ["llm_srec", "tallrec", "a_llmrec"])
def test_items_that_only_have_a_text_are_ranked_without_training(make, name):
    model, processor = make("bert", **BASELINES[name])
    before, table = model.score(IDS), model.item_representations().clone()
    more = processor.add_items(["new1", "new2"], ["Alien", "Dune"])
    model.add_items(more)
    after = model.score(IDS)
    assert after.shape == (2, 15)
    torch.testing.assert_close(after[:, 1:13], before[:, 1:13])
    torch.testing.assert_close(model.item_representations()[:13], table)
    assert after[:, 13:].std(1).min() > 1e-4
    if name == "tallrec":  # same title, nothing else: the same item to a model that reads only titles
        torch.testing.assert_close(after[:, 13], after[:, 2])
    with_new = model.score(torch.tensor([[3, 14], [13, 14]]))  # in histories, too, even alone
    assert torch.isfinite(with_new[:, 1:]).all()
    assert more.decode([14])[0]["item_id"] == "new2"


def test_added_items_survive_a_save(make, tmp_path):
    model, processor = make()
    more = processor.add_items(["new"], ["Dune"])
    model.add_items(more)
    model.save_pretrained(tmp_path)
    more.save_pretrained(tmp_path)
    loaded = LLMSRecForSequentialRecommendation.from_pretrained(tmp_path)
    torch.testing.assert_close(loaded.score(IDS), model.score(IDS))
    with pytest.raises(ValueError, match="there is none to add"):
        loaded.add_items(more)
    other = LLMSequentialRecommendationProcessor(
        [f"x{n}" for n in range(20)], None, 6, llm_name_or_path=processor.llm_name_or_path, dates=False
    )
    with pytest.raises(ValueError, match="first items are not this model's"):
        loaded.add_items(other)


@pytest.mark.parametrize("kind", ["llama", "t5", "bert"])
def test_a_save_holds_what_was_trained_and_loads_to_the_same_scores(make, tmp_path, kind, method):
    model, processor = make(kind, **method)
    with torch.no_grad():  # adapters start at zero; move everything that is trained
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    loaded = LLMSRecForSequentialRecommendation.from_pretrained(tmp_path)
    torch.testing.assert_close(loaded.score(IDS), model.score(IDS))
    assert not loaded.training
    from safetensors.torch import load_file

    stored = load_file(tmp_path / "model.safetensors")
    assert not [name for name in stored if name.startswith("encoder.llm.") and ".lora_" not in name]
    assert any(".lora_" in name for name in stored) == (model.config.lora is not None)
    assert not list(tmp_path.glob(".saving*"))
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["prompt"]["version"] == 1
    assert (
        json.dumps(config).count(config["llm_name_or_path"]) == 1
    )  # the place of the LLM and no other path of this machine


def test_auto_classes_find_model_and_processor(make, tmp_path):
    model, processor = make()
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    assert type(AutoModel.from_pretrained(tmp_path)) is LLMSRecForSequentialRecommendation
    assert type(AutoProcessor.from_pretrained(tmp_path)) is LLMSequentialRecommendationProcessor


def test_a_teacher_by_name_is_not_stored_and_comes_back_by_name(make, teacher, tmp_path):
    teacher.save_pretrained(tmp_path / "teacher")
    model, _ = make(teacher=str(tmp_path / "teacher"), store_teacher=False)
    model.save_pretrained(tmp_path / "small")
    from safetensors.torch import load_file

    assert not [name for name in load_file(tmp_path / "small/model.safetensors") if name.startswith("teacher.")]
    loaded = LLMSRecForSequentialRecommendation.from_pretrained(tmp_path / "small")
    torch.testing.assert_close(loaded.score(IDS), model.score(IDS))
    assert loaded.config.teacher_fingerprint == teacher_fingerprint(teacher)
    # A teacher that has changed since is noticed.
    with torch.no_grad():
        teacher.model.item_encoder.id_embedding.weight[3, 0] += 1e-3
    teacher.save_pretrained(tmp_path / "teacher")
    with pytest.raises(ValueError, match=r"the teacher has the fingerprint .*, the model was made with"):
        LLMSRecForSequentialRecommendation.from_pretrained(tmp_path / "small")


def test_a_teacher_in_a_folder_travels_with_the_model_and_its_path_does_not(make, teacher, tmp_path):
    teacher.save_pretrained(tmp_path / "teacher")
    model, _ = make(teacher=tmp_path / "teacher")
    assert model.config.store_teacher
    model.save_pretrained(tmp_path / "model")
    assert str(tmp_path) not in (tmp_path / "model/config.json").read_text()
    (tmp_path / "teacher").rename(tmp_path / "gone")
    loaded = LLMSRecForSequentialRecommendation.from_pretrained(tmp_path / "model")
    torch.testing.assert_close(loaded.score(IDS), model.score(IDS))


def test_an_llm_that_moved_is_found_again(make, llm_folders, tmp_path):
    model, _ = make("bert")
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"llm_name_or_path": str(tmp_path / "nowhere")}))
    with pytest.raises(
        FileNotFoundError, match=r"naming where 'nowhere' is now, a folder or a Hub id: `from_pretrained\(…, llm=…\)`"
    ):
        LLMSRecForSequentialRecommendation.from_pretrained(tmp_path)
    loaded = LLMSRecForSequentialRecommendation.from_pretrained(tmp_path, llm=llm_folders["bert"])
    torch.testing.assert_close(loaded.score(IDS), model.score(IDS))


def test_weights_that_do_not_fit_are_refused(make, llm_folders, tmp_path):
    model, _ = make("bert")
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"head_size": 5}))
    with pytest.raises(ValueError, match=r"do not fit .* user_head.0.weight is \(16, 16\), need \(5, 16\)"):
        LLMSRecForSequentialRecommendation.from_pretrained(tmp_path)


def test_switches_on_and_off_name_their_teacher(make, teacher, catalogue, llm_folders):
    with pytest.raises(ValueError, match="distilled and item_vectors need a teacher"):
        make(teacher=None)
    with pytest.raises(
        StrictDataclassClassValidationError, match="`item_vectors` must be one of none, teacher, aligned"
    ):
        make(item_vectors="both")
    with pytest.raises(TypeError, match="has no field 'item_vector'"):
        make(item_vector="none")


def test_teachers_that_cannot_teach_are_refused(make, teacher):
    with pytest.raises(ValueError, match="the teacher knows 7 items, the catalogue has 12"):
        make(teacher=SASRecForSequentialRecommendation(SASRecConfig(num_items=7)))
    teacher.config.data_fingerprint = "aaaa"
    with pytest.raises(ValueError, match="fingerprint aaaa, this one has bbbb"):
        make(teacher=teacher, data_fingerprint="bbbb")
    with pytest.raises(TypeError, match="needs item and user vectors, Linear has none"):
        make(teacher=torch.nn.Linear(2, 2))
    with torch.no_grad():
        teacher.model.item_encoder.id_embedding.weight[3, 0] = math.nan
    with pytest.raises(
        ValueError, match=r"teacher's model.item_encoder.id_embedding.weight holds values that are not finite"
    ):
        make(teacher=teacher)


def test_prompts_that_the_llm_cannot_hold_are_refused_before_training(make):
    with pytest.raises(ValueError, match="lower `history_length`"):
        make(history_length=100)


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([[0, 0], [1, 2]], "row 0 has no item"),
        ([[1, 2], [3, 0]], "row 1 must be item_index 1 … 12, left-padded"),
        ([[1, 13]], "row 0 must be item_index 1 … 12"),
    ],
)
def test_histories_that_are_none_are_refused(make, ids, message):
    model, _ = make()
    with pytest.raises(ValueError, match=message):
        model.score(torch.tensor(ids))


def test_dates_need_timestamps_and_change_scores(make):
    model, _ = make(dates=True)
    times = torch.full_like(IDS, 1_400_000_000)
    with pytest.raises(ValueError, match="the template shows dates"):
        model.score(IDS)
    first, second = model.score(IDS, timestamps=times), model.score(IDS, timestamps=times + 400 * 86_400)
    assert not torch.allclose(first[:, 1:], second[:, 1:])
    assert torch.equal(model.score(IDS, timestamps=times + 60)[:, 1:], first[:, 1:])  # the same day


def test_training_without_any_negative_is_refused(make):
    model, _ = make(in_batch_negatives=False)
    with pytest.raises(ValueError, match="needs negatives"):
        model(IDS, labels=LABELS)
    model, _ = make()
    with pytest.raises(ValueError, match="same target and no negatives"):
        model(IDS[:1], labels=LABELS[:1])
    with pytest.raises(ValueError, match="no position is labelled"):
        model(IDS, labels=torch.full_like(IDS, -100))


def test_the_random_start_leaves_llm_and_teacher_as_they_were(make, llm_folders, teacher):
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    model, _ = make("bert", lora=LORA)
    bare = AutoModel.from_pretrained(llm_folders["bert"]).state_dict()
    inside = {name.replace(".base_layer", ""): tensor for name, tensor in model.encoder.llm.state_dict().items()}
    for name, tensor in inside.items():
        if ".lora_" not in name:
            assert torch.equal(tensor, bare[name]), name
    assert all(tensor.abs().max() == 0 for name, tensor in inside.items() if ".lora_B" in name)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.teacher.state_dict().items())
    _, std = model.encoder.embedding_statistics()
    assert abs(float(model.user_out.detach().std()) - std) < std


def test_the_llm_of_bfloat16_keeps_float32_heads(make):
    exact, _ = make("llama")
    half, _ = make("llama", llm_dtype="bfloat16")
    assert half.encoder.llm.dtype == torch.bfloat16
    assert half.user_head[0].weight.dtype == torch.float32
    torch.testing.assert_close(half.score(IDS), exact.score(IDS), atol=0.3, rtol=0.1)
    half(IDS, labels=LABELS, negatives=NEGATIVES).loss.backward()
    assert torch.isfinite(half.user_out.grad).all()


def test_a_configuration_without_parts_says_how_to_build(tmp_path):
    with pytest.raises(ValueError, match="from_parts"):
        LLMSRecForSequentialRecommendation(LLMSRecConfig(num_items=3, item_vectors="none", distilled=False))


def test_the_pipeline_recommends_by_title_also_new_items(make):
    from hf_seqrec.pipelines import SequentialRecommendationPipeline

    model, processor = make()
    more = processor.add_items(["new"], ["Dune"])
    model.add_items(more)
    recommend = SequentialRecommendationPipeline(model=model, processor=more, device="cpu")
    answer = recommend({"history": ["Up", "The Matrix"]}, top_k=3)
    scores = model.score(torch.tensor([[3, 4]]))[0]
    scores[[3, 4]] = -torch.inf
    assert [row["item_id"] for row in answer] == [more.item_ids[int(i) - 1] for i in scores.topk(3).indices]
    assert recommend({"history": ["Dune"]}, candidates=["new", "i0"], exclude_seen=False)[0]["item_id"] in (
        "new",
        "i0",
    )


@pytest.mark.parametrize("kind", ["llama", "t5", "bert"])
def test_activation_checkpointing_of_the_whole_model_reaches_the_llm(make, kind):
    gradients = []
    for checkpointing in (False, True):
        model, _ = make(kind)
        if checkpointing:
            getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()
            assert any(getattr(module, "gradient_checkpointing", False) for module in model.encoder.llm.modules())
        model.train()
        model(IDS, labels=LABELS, negatives=NEGATIVES).loss.backward()
        gradients.append(torch.cat([model.user_out.grad, model.item_out.grad]))
    torch.testing.assert_close(gradients[1], gradients[0], atol=1e-5, rtol=1e-4)
    assert gradients[0].abs().max() > 1e-4
