import pytest
import torch
import transformers
from comparing import assert_same

from hf_seqrec.modeling import (
    PopularityConfig,
    PopularityForSequentialRecommendation,
    SASRecConfig,
    SASRecForSequentialRecommendation,
)
from hf_seqrec.modeling.processing import SequentialRecommendationProcessor
from hf_seqrec.pipelines import SequentialRecommendationPipeline, pipeline


HISTORY = ["Red Sun", "i4", "blue moon", "i9", "i2", "i12"]


@pytest.fixture
def recommend(model, processor):
    return SequentialRecommendationPipeline(model=model, processor=processor, device="cpu")


def expected_order(model, processor, history, exclude):
    scores = model.score(processor([history])["input_ids"])[0].detach()
    if exclude:
        scores[processor.to_index(history)] = -torch.inf
    order = scores.argsort(descending=True)
    return [
        (processor.decode([index])[0]["item_id"], scores[index].item())
        for index in order
        if scores[index] > -torch.inf
    ]


@pytest.mark.parametrize("exclude_seen", [True, False])
def test_answers_are_the_best_items_of_the_model(recommend, model, processor, exclude_seen):
    answer = recommend({"history": HISTORY}, top_k=20, exclude_seen=exclude_seen)
    expected = expected_order(model, processor, HISTORY, exclude_seen)
    assert len(expected) == (14 if exclude_seen else 20)
    assert [row["item_id"] for row in answer] == [item_id for item_id, _ in expected]
    assert [row["score"] for row in answer] == pytest.approx([score for _, score in expected])
    assert [row["rank"] for row in answer] == list(range(1, len(expected) + 1))
    assert [row["title"] for row in answer] == [
        processor.titles[processor.item_ids.index(row["item_id"])] for row in answer
    ]


def test_items_beyond_the_models_length_count_as_seen_too(recommend, processor):
    """The model looks at four items; the history has six, and none of them may come back."""
    answer = recommend({"history": HISTORY}, top_k=20)
    seen = {processor.item_ids[index - 1] for index in processor.to_index(HISTORY)}
    assert len(seen) == 6
    assert not seen & {row["item_id"] for row in answer}


def test_ten_items_by_default_and_top_k_of_the_pipeline_or_the_call(recommend, model, processor):
    assert len(recommend({"history": ["i1"]})) == 10
    small = SequentialRecommendationPipeline(model=model, processor=processor, device="cpu", top_k=3)
    assert len(small({"history": ["i1"]})) == 3
    assert len(small({"history": ["i1"]}, top_k=4)) == 4


def test_many_histories_give_what_each_gives_alone(recommend):
    rows = [{"history": HISTORY[:length]} for length in (1, 6, 3, 2, 4)]
    alone = [recommend(row, top_k=3) for row in rows]
    for given in (
        recommend(rows, top_k=3),
        recommend(rows, top_k=3, batch_size=2),
        list(recommend(iter(rows), top_k=3)),
    ):
        assert [[row["item_id"] for row in answer] for answer in given] == [
            [row["item_id"] for row in answer] for answer in alone
        ]
        assert [row["score"] for answer in given for row in answer] == pytest.approx(
            [row["score"] for answer in alone for row in answer]
        )


def test_generator_is_read_as_far_as_needed(recommend):
    def endless():
        while True:
            yield {"history": ["i1"]}

    assert len(next(recommend(endless(), batch_size=2))) == 10


def test_candidates_are_the_only_items_to_choose_from(recommend):
    everything = {
        row["item_id"]: row["score"] for row in recommend({"history": HISTORY}, top_k=20, exclude_seen=False)
    }
    answer = recommend({"history": HISTORY}, candidates=["i7", "Red Sun", "Grey Hill", "i7"])
    assert {row["item_id"] for row in answer} == {"i7", "i14"}  # Red Sun was seen
    assert [row["score"] for row in answer] == pytest.approx(
        sorted((everything["i7"], everything["i14"]), reverse=True)
    )


def test_answer_can_be_the_next_history(recommend):
    answer = recommend({"history": ["i1"]}, top_k=3)
    again = recommend({"history": answer}, top_k=20)
    assert not {row["item_id"] for row in answer} & {row["item_id"] for row in again}


def test_nothing_is_left_when_everything_was_seen(recommend, processor):
    assert recommend({"history": processor.item_ids}) == []


@pytest.mark.parametrize(
    ("inputs", "parameters", "error", "message"),
    [
        ({"history": ["Red Sum"]}, {}, KeyError, "Did you mean 'Red Sun'"),
        ({"history": ["twin"]}, {}, ValueError, "2 items have the title"),
        ({"history": []}, {}, ValueError, "is empty"),
        ({"titles": ["Red Sun"]}, {}, TypeError, 'takes {"history"'),
        (["Red Sun"], {}, TypeError, 'takes {"history"'),
        ("Red Sun", {}, TypeError, 'takes {"history"'),
        ({"history": ["i1"]}, {"top_k": 0}, ValueError, "at least 1"),
        ({"history": ["i1"]}, {"topk": 5}, TypeError, "no argument 'topk'"),
        ({"history": ["i1"]}, {"candidates": []}, ValueError, "`candidates` is empty"),
        ({"history": ["i1"]}, {"by": "name"}, ValueError, "`by` must be"),
    ],
)
def test_bad_input_gets_one_clear_error(recommend, inputs, parameters, error, message):
    with pytest.raises(error) as caught:
        recommend(inputs, **parameters)
    assert message in caught.value.args[0]


def test_model_in_training_mode_is_put_into_evaluation_mode(model, processor):
    model.train()
    recommend = SequentialRecommendationPipeline(model=model, processor=processor, device="cpu")
    assert recommend({"history": HISTORY}) == recommend({"history": HISTORY})


def test_damaged_weights_are_an_error_not_a_recommendation(model, recommend):
    with torch.no_grad():
        model.item_representations()[3] = torch.nan
    with pytest.raises(ValueError, match="NaN"):
        recommend({"history": ["i1"]})


@pytest.fixture
def fused(processor):
    torch.manual_seed(0)
    config = SASRecConfig(num_items=20, hidden_size=8, max_length=4, fusion="concat", item_features={"text": 3})
    model = SASRecForSequentialRecommendation(config).eval()
    model.model.item_encoder.set_features("text", torch.randn(20, 3))
    return SequentialRecommendationPipeline(model=model, processor=processor, device="cpu")


def test_item_table_is_computed_once_per_weight_version(fused, monkeypatch):
    calls = []
    original = SASRecForSequentialRecommendation.item_representations
    monkeypatch.setattr(
        SASRecForSequentialRecommendation, "item_representations", lambda self: calls.append(1) or original(self)
    )
    first = fused({"history": HISTORY})
    assert fused({"history": HISTORY}) == first
    assert len(calls) == 1

    with torch.no_grad():
        fused.model.model.item_encoder.id_embedding.weight.mul_(-1)
    expected = expected_order(fused.model, fused.processor, HISTORY, exclude=True)
    calls.clear()
    assert [row["item_id"] for row in fused({"history": HISTORY}, top_k=20)] == [item_id for item_id, _ in expected]
    assert len(calls) == 1


def test_weights_written_by_a_fused_optimizer_are_noticed(fused):
    first = fused({"history": HISTORY})
    weight = fused.model.model.item_encoder.id_embedding.weight
    optimizer = torch.optim.AdamW([weight], lr=1.0, fused=True)
    weight.grad = torch.randn_like(weight)
    before = weight._version
    optimizer.step()
    assert weight._version == before
    expected = expected_order(fused.model, fused.processor, HISTORY, exclude=True)
    assert [row["item_id"] for row in fused({"history": HISTORY}, top_k=20)] == [item_id for item_id, _ in expected]
    assert fused({"history": HISTORY}) != first


def test_model_keeps_its_own_item_table_after_a_call(fused):
    fused({"history": HISTORY})
    assert "item_representations" not in vars(fused.model)


def test_floor_that_ignores_the_history_recommends_too(processor):
    model = PopularityForSequentialRecommendation(PopularityConfig(num_items=20)).eval()
    assert len(pipeline(model=model, processor=processor)({"history": ["i1"]}, top_k=5)) == 5


def test_parts_that_do_not_fit_are_refused(model, processor):
    with pytest.raises(ValueError, match="needs its processor"):
        pipeline(model=model)
    with pytest.raises(ValueError, match="processor has 1 items, the model 20"):
        pipeline(model=model, processor=SequentialRecommendationProcessor(["a"]))
    with pytest.raises(TypeError, match="has no `score`"):
        SequentialRecommendationPipeline(model=torch.nn.Linear(1, 1), processor=processor)
    with pytest.raises(ValueError, match="task is 'sequential-recommendation'"):
        pipeline("text-generation", model=model)


def test_saved_pipeline_loads_with_and_without_trust_and_saves_again(recommend, tmp_path):
    expected = recommend({"history": HISTORY})
    recommend.save_pretrained(tmp_path / "one")
    trusted = transformers.pipeline("sequential-recommendation", model=str(tmp_path / "one"), trust_remote_code=True)
    assert type(trusted).__module__.startswith("transformers_modules")
    trusted.save_pretrained(tmp_path / "two")
    assert sorted(path.name for path in (tmp_path / "one").iterdir()) == sorted(
        path.name for path in (tmp_path / "two").iterdir()
    )
    trusted.model.save_pretrained(tmp_path / "three")  # a configuration that holds classes could not be written
    for loaded in (trusted, pipeline(model=tmp_path / "one"), pipeline(model=str(tmp_path / "two"))):
        assert_same(loaded({"history": HISTORY}), expected)


def test_code_of_the_repository_is_not_run_without_trust(recommend, tmp_path):
    recommend.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="trust_remote_code"):
        transformers.pipeline("sequential-recommendation", model=str(tmp_path))
