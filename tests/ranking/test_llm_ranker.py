"""Rankers around an LLM's head: what is retrieved, asked, trained and saved."""

import numpy as np
import pytest
import torch
from huggingface_hub.errors import StrictDataclassClassValidationError
from transformers import AutoModel, AutoProcessor, AutoTokenizer

from hf_seqrec.data import draw_candidates, leave_one_out
from hf_seqrec.evaluation import Protocol, RankingEvaluator, reranking_metrics
from hf_seqrec.modeling import SASRecConfig, SASRecForSequentialRecommendation
from hf_seqrec.modeling.llm_ranker import LLMRankerConfig, LLMRankerForSequentialRecommendation
from hf_seqrec.modeling.prompting import Slot


IDS = torch.tensor([[0, 0, 3], [1, 2, 7]])
CANDIDATES = torch.tensor([[4, 1, 9], [8, 5, 0]])
WAYS = {
    "zero-shot": {},
    "first-token": {"verbalizer": "first_token"},
    "llamarec": {"task": "index", "candidate_order": "retriever"},
    "averaged": {"task": "index", "num_permutations": 3},
    "point": {"task": "point", "hint": 3, "labels": ["y", "n"]},
    "pair": {"task": "pair", "hint": 2},
    "list": {"task": "index", "hint": 4},
}


@pytest.fixture(params=WAYS)
def way(request):
    return WAYS[request.param]


@pytest.mark.parametrize("kind", ["llama", "t5", "bert"])
def test_what_the_backbone_retrieves_is_ranked_by_the_llm_and_the_rest_behind_it(kind, way, make):
    model, _ = make(kind, **way)
    scores, retriever = model.score(IDS), model.teacher.score(IDS)
    _, items = model.retrieve(IDS)
    ranked = model.score(IDS, items)
    assert scores.shape == (2, 13)
    assert torch.isneginf(scores[:, 0]).all()
    for row in range(2):
        seen = {item for item in IDS[row].tolist() if item}
        best = [item for item in retriever[row].argsort(descending=True).tolist() if item and item not in seen][:4]
        assert items[row].tolist() == best
        rest = [item for item in range(1, 13) if item not in best]
        assert scores[row, best].min() > scores[row, rest].max()
        torch.testing.assert_close(scores[row, rest], retriever[row, rest])
        order = scores[row, best] - scores[row, best].min()
        torch.testing.assert_close(order, ranked[row] - ranked[row].min(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["llama", "t5", "bert"])
def test_neither_the_order_nor_the_company_of_rows_and_candidates_matters(kind, way, make):
    model, _ = make(kind, **way)
    wanted = model.score(IDS, CANDIDATES)
    assert torch.isneginf(wanted[1, 2])
    order = torch.tensor([2, 0, 1])
    found = model.score(IDS.flip(0), CANDIDATES.flip(0)[:, order])
    torch.testing.assert_close(found, wanted.flip(0)[:, order], atol=1e-5, rtol=0)
    longer = torch.nn.functional.pad(IDS[:1], (2, 0))
    torch.testing.assert_close(model.score(longer, CANDIDATES[:1]), wanted[:1], atol=1e-5, rtol=0)


def test_the_target_does_not_stand_at_a_place_that_tells(make, sequences):
    model, _ = make(history_length=9)
    evaluation_set = leave_one_out(sequences).test
    listed = draw_candidates(evaluation_set, 12, 2, seed=0).items
    places = []
    for row in range(len(evaluation_set)):
        order = model._order(evaluation_set.history(row).tolist(), listed[row].tolist(), [], 0)
        places.append(order.index(listed[row, 0]))
    assert np.bincount(places, minlength=3).min() >= 3  # 24 users, three places


def test_permutations_differ_and_are_averaged(make):
    single, _ = make(task="index")
    averaged, _ = make(task="index", num_permutations=3)
    wanted = torch.zeros(2, 3)
    for number in range(3):
        orders = [averaged._order([3], [4, 1, 9], [], number), averaged._order([1, 2, 7], [8, 5], [], number)]
        listed = torch.tensor([orders[0], [*orders[1], 0]])
        scores = single(IDS, candidates=listed).scores
        for row in range(2):
            for column, item in enumerate(CANDIDATES[row].tolist()):
                wanted[row, column] += scores[row, listed[row].tolist().index(item)] / 3
    torch.testing.assert_close(averaged.score(IDS, CANDIDATES), wanted, atol=1e-5, rtol=0)
    assert len({tuple(averaged._order([3], list(range(1, 8)), [], number)) for number in range(3)}) == 3


def test_hints_are_the_candidates_in_the_order_of_the_backbone(make):
    model, _ = make(task="index", hint=2)
    candidates = torch.tensor([[4, 1, 9, 8]])
    prompt = model.describe(IDS[:1], candidates, AutoTokenizer.from_pretrained(model.config.llm_name_or_path))[0]
    best = model.teacher.score(IDS[:1], candidates)[0].argsort(descending=True)[:2]
    titles = ["Heat", "Alien", "Up", "The Matrix", None, "Big Fish", "Heat (2)", "Fargo (Answer)", "Jaws 2"]
    named = "; ".join(titles[item - 1] for item in candidates[0, best].tolist())
    # The character tokenizer decodes with a space between tokens.
    assert f"Sasrec suggests these movies, best first: {named}. ".replace(" ", "") in prompt.replace(" ", "")
    assert prompt.endswith("[Answer]")


def test_points_are_probabilities_of_yes_and_pairs_those_of_being_preferred(make):
    point, _ = make(task="point", labels=["y", "n"])
    pair, _ = make(task="pair", num_opponents=2)
    history, items = [3], [4, 1, 9]
    prompts = [point.build_prompt({"history": history, "candidates": [item]}) for item in items]
    logits = point.encoder._first_logits(point.encoder._question(prompts, {}))[:, point.program.labels]
    torch.testing.assert_close(
        point(IDS[:1], candidates=CANDIDATES[:1]).scores[0], logits.log_softmax(1)[:, 0], atol=1e-5, rtol=0
    )
    wanted = torch.zeros(3)
    for a in range(3):
        for b in range(3):
            if a != b:  # with two opponents ahead, all three meet twice
                prompt = pair.build_prompt({"history": history, "candidates": [items[a], items[b]]})
                logits = pair.encoder._first_logits(pair.encoder._question([prompt], {}))[0, pair.program.labels]
                first, second = logits.log_softmax(0)
                wanted[a] += first / 4
                wanted[b] += second / 4
    torch.testing.assert_close(pair(IDS[:1], candidates=CANDIDATES[:1]).scores[0], wanted, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["llama", "t5", "bert"])
def test_training_the_adapters_lowers_the_loss_and_changes_nothing_else(kind, way, make):
    target = ["q", "v"] if kind == "t5" else ["query", "value"] if kind == "bert" else ["q_proj", "v_proj"]
    model, _ = make(kind, lora={"r": 4, "lora_alpha": 8, "target_modules": target}, **way)
    model.train()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert trained
    assert all(".lora_" in name for name in trained)
    frozen = {name: p.detach().clone() for name, p in model.named_parameters() if not p.requires_grad}
    optimizer = torch.optim.AdamW(trained.values(), lr=0.02)
    labels, losses = torch.tensor([[9], [8]]), []
    for _ in range(8):
        loss = model(IDS, labels=labels, candidates=CANDIDATES).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    # First tokens of the character tokenizer are all the same, so that they cannot teach anything.
    assert losses[-1] < losses[0] - 0.01 or way.get("verbalizer") == "first_token"
    assert not model.teacher.training
    for name, before in frozen.items():
        assert torch.equal(before, model.get_parameter(name))


def test_the_loss_is_the_cross_entropy_over_the_candidates(make):
    model, _ = make(task="index")
    out = model(IDS, labels=torch.tensor([9, 8]), candidates=CANDIDATES)
    wanted = -(out.scores.log_softmax(1)[0, 2] + out.scores.log_softmax(1)[1, 0])
    torch.testing.assert_close(out.loss, wanted / 2)
    scaled = model(IDS, labels=torch.tensor([[9], [8]]), candidates=CANDIDATES, num_items_in_batch=torch.tensor(8))
    torch.testing.assert_close(scaled.loss, wanted / 8)


@pytest.mark.parametrize("kind", ["llama", "t5", "bert"])
def test_a_saved_ranker_comes_back_small_and_whole(kind, make, tmp_path):
    target = ["q"] if kind == "t5" else ["query"] if kind == "bert" else ["q_proj"]
    model, processor = make(kind, task="index", hint=2, lora={"r": 2, "target_modules": target})
    for name, parameter in model.named_parameters():
        if ".lora_B" in name:
            torch.nn.init.normal_(parameter)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again, back = AutoModel.from_pretrained(tmp_path), AutoProcessor.from_pretrained(tmp_path)
    torch.testing.assert_close(again.score(IDS), model.score(IDS))
    assert not again.training
    assert back.decode([4])[0]["title"] == "The Matrix"
    names = set(again.own_state_dict())
    assert not [name for name in names if name.startswith("encoder.llm.") and ".lora_" not in name]


def test_a_backbone_in_a_folder_travels_and_one_that_is_named_is_checked(make, teacher, tmp_path):
    teacher.save_pretrained(tmp_path / "teacher")
    stored, _ = make(teacher=str(tmp_path / "teacher"))
    stored.save_pretrained(tmp_path / "stored")
    named, _ = make(teacher=str(tmp_path / "teacher"), store_teacher=False)
    named.save_pretrained(tmp_path / "named")
    torch.testing.assert_close(
        LLMRankerForSequentialRecommendation.from_pretrained(tmp_path / "named").score(IDS), stored.score(IDS)
    )
    other = SASRecForSequentialRecommendation(SASRecConfig(num_items=12, hidden_size=8, max_length=6))
    other.save_pretrained(tmp_path / "teacher")
    with pytest.raises(ValueError, match=r"fingerprint .* the model was made with"):
        LLMRankerForSequentialRecommendation.from_pretrained(tmp_path / "named")
    again = LLMRankerForSequentialRecommendation.from_pretrained(tmp_path / "stored")
    torch.testing.assert_close(again.score(IDS), stored.score(IDS))


def test_overall_and_subset_metrics_of_reranking(make, sequences):
    model, _ = make(task="index", candidate_order="retriever")
    evaluation_set = leave_one_out(sequences).test
    protocol = Protocol(cutoffs=(1, 3, 5))
    reranked = RankingEvaluator(evaluation_set, 12, protocol)(model)
    retriever = RankingEvaluator(evaluation_set, 12, protocol)(model.teacher)
    found = reranking_metrics(reranked, retriever, 4)
    hit = retriever.ranks < 4
    assert found["retrieved"] == pytest.approx(hit.mean())
    assert 0 < hit.sum() < len(hit)
    # The LLM changes the order of the four retrieved items only.
    assert np.array_equal(reranked.ranks < 4, hit)
    np.testing.assert_array_equal(reranked.ranks[~hit], retriever.ranks[~hit])
    assert found["overall"] == reranked.metrics
    assert found["subset"]["hr@3"] == pytest.approx((reranked.ranks[hit] < 3).mean())
    assert found["retriever_subset"]["hr@3"] == pytest.approx((retriever.ranks[hit] < 3).mean())
    with pytest.raises(ValueError, match="same rows"):
        reranking_metrics(reranked, RankingEvaluator(leave_one_out(sequences).validation, 12, protocol)(model.teacher), 4)  # fmt: skip


@pytest.mark.parametrize(
    ("ids", "candidates", "message"),
    [
        ([[0, 0]], [[1]], "has no item"),
        ([[1, 0]], [[1]], "left-padded with 0"),
        ([[0, 13]], [[1]], r"item_index 1 … 12"),
        ([[1]], [[13]], r"item_index 1 … 12"),
        ([[1]], [[-1]], r"item_index 1 … 12"),
        ([[1]], [[2, 2]], "none twice"),
        ([[1]], [[0, 0]], "at least one item"),
        ([[1]], [[2], [3]], "one row per history"),
        ([[1]], [[2, 3, 4, 5, 6]], "5 candidates need as many labels"),
    ],
)
def test_bad_questions_are_refused(ids, candidates, message, make):
    model, _ = make(task="index")
    with pytest.raises(ValueError, match=message):
        model.score(torch.tensor(ids), torch.tensor(candidates))


def test_a_loss_needs_candidates_with_the_label_among_them(make):
    model, _ = make()
    with pytest.raises(ValueError, match="needs `candidates`"):
        model(IDS, labels=torch.tensor([1, 2]))
    with pytest.raises(ValueError, match="row 1: the label is not among the candidates"):
        model(IDS, labels=torch.tensor([4, 9]), candidates=CANDIDATES)


def test_settings_that_cannot_work_are_refused_when_the_model_is_built(make, llm_folders, teacher, catalogue):
    with pytest.raises(ValueError, match="use fewer candidates or a shorter history"):
        make(max_prompt_tokens=120, num_candidates=12)
    with pytest.raises(StrictDataclassClassValidationError, match="`task` must be one of"):
        make(task="essay")
    with pytest.raises(StrictDataclassClassValidationError, match="`num_permutations` averages over shuffled lists"):
        make(task="index", num_permutations=2, candidate_order="retriever")
    with pytest.raises(StrictDataclassClassValidationError, match="use task='index'"):
        make(verbalizer="index_token")
    with pytest.raises(StrictDataclassClassValidationError, match=r"`hint` must be in 0 … num_candidates = 4, got 5"):
        make(hint=5)
    with pytest.raises(TypeError, match="has no field 'hnit'"):
        make(hnit=1)
    with pytest.raises(ValueError, match="knows 7 items, the catalogue has 12"):
        make(teacher=SASRecForSequentialRecommendation(SASRecConfig(num_items=7, hidden_size=8)))
    teacher.config.data_fingerprint = "other"
    with pytest.raises(ValueError, match="trained on the data set with fingerprint other"):
        make(data_fingerprint="mine")
    with pytest.raises(ValueError, match="build the model with `from_parts`"):
        LLMRankerForSequentialRecommendation(LLMRankerConfig(num_items=3))


def test_more_candidates_than_items_leave_places_empty(make):
    model, _ = make(num_candidates=12)
    ids = torch.tensor([[1, 2, 3, 4, 5, 6, 7, 8, 9, 10]])
    _, items = model.retrieve(ids)
    assert sorted(items[0].tolist()) == [0] * 10 + [11, 12]
    scores = model.score(ids)
    assert scores[0, [11, 12]].min() > scores[0, 1:11].max()


def test_the_prompt_keeps_the_answer_at_its_end(make):
    model, _ = make(history_length=4)
    prompt = model.build_prompt(model.prompt_items([1, 2, 3], [4, 5], []))
    assert prompt[-1] == Slot.ANSWER
