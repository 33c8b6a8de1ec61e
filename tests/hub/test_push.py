import re
from dataclasses import replace

import huggingface_hub
import pyarrow as pa
import pytest
import torch
import transformers
import yaml
from comparing import assert_same
from huggingface_hub import HfApi, ModelCard, parse_eval_result_entries
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError
from transformers import AutoModel, AutoProcessor

from hf_seqrec.cards.model_card import make_model_card
from hf_seqrec.data import DatasetDescription, load_recommendation_data, write_dataset
from hf_seqrec.evaluation import EvaluationRecord
from hf_seqrec.hub import (
    load_recommender,
    missing_files,
    push_dataset,
    push_folder,
    push_recommender,
    save_recommender,
)
from hf_seqrec.modeling import (
    BERT4RecConfig,
    BERT4RecForSequentialRecommendation,
    CaserConfig,
    CaserForSequentialRecommendation,
    FMLPRecConfig,
    FMLPRecForSequentialRecommendation,
    GRU4RecConfig,
    GRU4RecForSequentialRecommendation,
    ItemItemForSequentialRecommendation,
    LightSANsConfig,
    LightSANsForSequentialRecommendation,
    LLMSeqSimForSequentialRecommendation,
    NextItNetConfig,
    NextItNetForSequentialRecommendation,
    PopularityForSequentialRecommendation,
    ScoreSumForSequentialRecommendation,
)
from hf_seqrec.modeling.processing import SequentialRecommendationProcessor
from hf_seqrec.pipelines import pipeline


HISTORY = {"history": ["Red Sun", "Blue Moon", "i7"]}


def content(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def snippet(card: str) -> str:
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    return code


def scores(model, processor):
    return model.score(processor([HISTORY["history"], ["i1"]])["input_ids"]).detach()


# --- a folder


def test_folder_is_complete_and_loads_to_equal_scores(tmp_path, model, processor, record):
    folder = save_recommender(tmp_path / "films", model, processor, [record])
    assert missing_files(folder) == []
    loaded, its_processor = load_recommender(folder)
    assert_same(scores(loaded, its_processor), scores(model, processor))
    assert_same(pipeline(model=folder)(HISTORY), pipeline(model=model, processor=processor)(HISTORY))


def test_saving_leaves_the_model_as_it_was(tmp_path, model, processor):
    model.train()
    save_recommender(tmp_path / "films", model, processor)
    assert model.training
    assert not hasattr(model.config, "custom_pipelines")


def test_record_travels_without_the_ranks_of_single_people(tmp_path, model, processor, record):
    from_memory = save_recommender(tmp_path / "one", model, processor, [record])
    from_file = save_recommender(tmp_path / "two", model, processor, [record.save(tmp_path / "test.json")])
    for folder in (from_memory, from_file):
        (path,) = (folder / "records").iterdir()
        assert EvaluationRecord.load(path, rows=False).metrics == record.metrics
        assert b"person-" not in b"".join(content(folder).values())


@pytest.mark.parametrize("kind", ["items", "fingerprint", "record", "nan", "token"])
def test_parts_that_do_not_fit_are_refused_before_anything_is_written(tmp_path, model, processor, record, kind):
    records, training = [], None
    if kind == "items":
        processor = SequentialRecommendationProcessor(["a", "b"])
    elif kind == "fingerprint":
        processor = SequentialRecommendationProcessor(processor.item_ids, processor.titles, 4, "another")
    elif kind == "record":
        model.config.data_fingerprint, processor.data_fingerprint, records = "x" * 16, None, [record]
    elif kind == "nan":
        with torch.no_grad():
            model.item_representations()[2] = torch.nan
    else:
        training = {"hub_token": "hf_" + "a1B2" * 9}
    message = "access token" if kind == "token" else "NaN" if kind == "nan" else "belong|fingerprint"
    with pytest.raises(ValueError, match=message):
        save_recommender(tmp_path / "films", model, processor, records, training=training)
    assert list(tmp_path.iterdir()) == []


def test_folder_that_holds_something_is_replaced_only_on_request(tmp_path, model, other_model, processor):
    folder = save_recommender(tmp_path / "films", model, processor)
    before = content(folder)
    with pytest.raises(FileExistsError, match="overwrite=True"):
        save_recommender(folder, other_model, processor)
    assert content(folder) == before
    save_recommender(folder, other_model, processor, overwrite=True)
    assert_same(scores(load_recommender(folder)[0], processor), scores(other_model, processor))


def test_saving_that_fails_half_way_leaves_nothing(tmp_path, model, processor, monkeypatch):
    monkeypatch.setattr(ModelCard, "save", lambda self, path: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        save_recommender(tmp_path / "films", model, processor)
    assert list(tmp_path.iterdir()) == []


# --- the Hub


def test_push_and_pull_give_the_same_recommendations(hub, repo_id, model, processor, record):
    commit = push_recommender(model, processor, repo_id, [record], dataset_id="tester/films")
    assert commit.oid == HfApi().repo_info(repo_id).sha
    assert_same(scores(AutoModel.from_pretrained(repo_id), processor), scores(model, processor))
    assert AutoProcessor.from_pretrained(repo_id).titles == processor.titles
    expected = pipeline(model=model, processor=processor)(HISTORY)
    assert_same(pipeline(model=repo_id)(HISTORY), expected)
    remote = transformers.pipeline("sequential-recommendation", model=repo_id, trust_remote_code=True)
    assert_same(remote(HISTORY), expected)


def test_push_to_hub_of_transformers_works_for_each_part(repo_id, model, processor):
    model.push_to_hub(repo_id)
    processor.push_to_hub(repo_id)
    loaded, its_processor = load_recommender(repo_id)
    assert_same(scores(loaded, its_processor), scores(model, processor))


def test_pipeline_pushes_everything_that_it_needs(repo_id, model, processor):
    recommend = pipeline(model=model, processor=processor)
    recommend.push_to_hub(repo_id)
    elsewhere = transformers.pipeline("sequential-recommendation", model=repo_id, trust_remote_code=True)
    assert_same(elsewhere(HISTORY), recommend(HISTORY))


def test_one_push_is_one_commit(hub, repo_id, model, processor, record):
    push_recommender(model, processor, repo_id, [record], dataset_id="tester/films")
    assert len(hub.repository(repo_id).commits) == 2  # the empty repository's and ours


def test_repository_in_the_own_account_needs_no_owner_in_its_name(hub, repo_id, model, processor):
    push_recommender(model, processor, repo_id.split("/")[1])
    assert f'model="{repo_id}"' in hub.repository(repo_id).files()["README.md"].content.decode()


def test_revision_pin_loads_the_old_weights(repo_id, model, other_model, processor):
    old = push_recommender(model, processor, repo_id).oid
    HfApi().create_tag(repo_id, tag="v1", revision=old)
    push_recommender(other_model, processor, repo_id)
    for revision in (old, "v1"):
        pinned, _ = load_recommender(repo_id, revision=revision)
        assert_same(scores(pinned, processor), scores(model, processor))
        here = pipeline(model=model, processor=processor)(HISTORY)
        assert_same(pipeline(model=repo_id, revision=revision)(HISTORY), here)
    assert_same(scores(load_recommender(repo_id)[0], processor), scores(other_model, processor))


def test_branch_is_made_and_main_stays(hub, repo_id, model, other_model, processor):
    push_recommender(model, processor, repo_id)
    push_recommender(other_model, processor, repo_id, revision="next")
    assert_same(scores(load_recommender(repo_id)[0], processor), scores(model, processor))
    assert_same(scores(load_recommender(repo_id, revision="next")[0], processor), scores(other_model, processor))


def test_new_push_takes_away_what_would_be_wrong_and_nothing_else(hub, repo_id, model, processor, record):
    push_recommender(model, processor, repo_id, [record], dataset_id="tester/films")
    HfApi().upload_file(path_or_fileobj=b"mine", path_in_repo="notes/why.txt", repo_id=repo_id)
    gru = GRU4RecForSequentialRecommendation(GRU4RecConfig(num_items=20, hidden_size=8))
    push_recommender(gru, processor, repo_id)
    files = set(hub.repository(repo_id).files())
    assert "gru4rec.py" in files
    assert not {"sasrec.py"} & files
    assert not [path for path in files if path.startswith(("records/", ".eval_results/"))]
    assert hub.repository(repo_id).files()["notes/why.txt"].content == b"mine"


@pytest.mark.parametrize("step", ["lfs", "commit"])
def test_push_cut_in_the_middle_leaves_the_old_version_and_the_next_one_completes(
    hub, repo_id, model, other_model, processor, impatient, step
):
    push_recommender(model, processor, repo_id)
    before = hub.repository(repo_id).files()
    with hub.broken(step), pytest.raises(ConnectionError, match="push again"):
        push_recommender(other_model, processor, repo_id)
    assert hub.repository(repo_id).files() == before
    assert_same(scores(load_recommender(repo_id)[0], processor), scores(model, processor))

    push_recommender(other_model, processor, repo_id)
    assert_same(scores(load_recommender(repo_id)[0], processor), scores(other_model, processor))


def test_push_whose_answer_was_lost_can_be_repeated(hub, repo_id, model, processor, impatient):
    with hub.broken("after_commit"), pytest.raises(ConnectionError, match="push again"):
        push_recommender(model, processor, repo_id)
    commits = len(hub.repository(repo_id).commits)
    push_recommender(model, processor, repo_id)
    assert len(hub.repository(repo_id).commits) == commits
    assert_same(scores(load_recommender(repo_id)[0], processor), scores(model, processor))


def test_push_onto_a_repository_that_moved_is_refused(hub, repo_id, model, other_model, processor):
    seen = push_recommender(model, processor, repo_id).oid
    HfApi().upload_file(path_or_fileobj=b"x", path_in_repo="x.txt", repo_id=repo_id)
    before = hub.repository(repo_id).files()
    with pytest.raises(HfHubHTTPError) as error:
        push_recommender(other_model, processor, repo_id, parent_commit=seen)
    assert "changed since the commit this push builds on" in "".join(error.value.__notes__)
    assert hub.repository(repo_id).files() == before


def test_change_between_listing_and_commit_is_noticed(hub, repo_id, model, other_model, processor, monkeypatch):
    push_recommender(model, processor, repo_id)
    listing = HfApi.list_repo_files

    def listing_then_somebody_else_pushes(self, *args, **kwargs):
        files = list(listing(self, *args, **kwargs))
        monkeypatch.setattr(HfApi, "list_repo_files", listing)
        HfApi().upload_file(path_or_fileobj=b"x", path_in_repo="x.txt", repo_id=repo_id)
        return files

    monkeypatch.setattr(HfApi, "list_repo_files", listing_then_somebody_else_pushes)
    with pytest.raises(HfHubHTTPError, match="412"):
        push_recommender(other_model, processor, repo_id)


def test_private_repository_without_token_gets_a_clear_error(hub, repo_id, model, processor):
    push_recommender(model, processor, repo_id, private=True)
    assert hub.repository(repo_id).private
    with pytest.raises(OSError, match=r"private repository"):
        AutoModel.from_pretrained(repo_id, token=False)
    with pytest.raises(OSError, match=r"private repository"):
        pipeline(model=repo_id, token=False)
    assert pipeline(model=repo_id, token=hub.token)(HISTORY)


def test_push_without_a_token_says_how_to_log_in(hub, repo_id, model, processor, monkeypatch):
    monkeypatch.setattr("hf_seqrec.hub_commit.get_token", lambda: None)
    with pytest.raises(PermissionError, match="hf auth login"):
        push_recommender(model, processor, repo_id)
    assert ("model", repo_id) not in hub.repositories


def test_push_with_a_wrong_token_says_so(hub, repo_id, model, processor):
    with pytest.raises(HfHubHTTPError) as error:
        push_recommender(model, processor, repo_id, token="hf_wrongTokenOfTheTests")
    assert "may not write" in "".join(error.value.__notes__)


def test_incomplete_folder_is_refused_and_names_what_is_missing(hub, repo_id, tmp_path, model):
    model.save_pretrained(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"processor_config\.json, items\.jsonl, pipelines\.py, README\.md"):
        push_folder(tmp_path, repo_id)
    assert ("model", repo_id) not in hub.repositories


def test_leftovers_of_training_and_tokens_never_go_up(hub, repo_id, tmp_path, model, processor, record):
    folder = save_recommender(tmp_path / "films", model, processor, [record])
    for name in ("training_args.bin", "optimizer.pt", "trainer_state.json", "run.yaml", ".env", "test.ranks.parquet"):
        (folder / name).write_text("secret")
    (folder / "checkpoint-5").mkdir()
    (folder / "checkpoint-5" / "config.json").write_text("{}")
    push_folder(folder, repo_id)
    files = hub.repository(repo_id).files()
    assert set(files) == {".gitattributes", *content(save_recommender(tmp_path / "clean", model, processor, [record]))}
    assert not [path for path, file in files.items() if hub.token.encode() in file.content]

    (folder / "notes.md").write_text(f"run with HF_TOKEN={hub.token}")
    with pytest.raises(ValueError, match=r"notes\.md holds an access token"):
        push_folder(folder, repo_id)
    assert "notes.md" not in hub.repository(repo_id).files()


# --- the card


def test_snippet_of_the_card_runs_and_answers_what_the_card_says(hub, repo_id, model, processor):
    push_recommender(model, processor, repo_id)
    card = hub.repository(repo_id).files()["README.md"].content.decode()
    code, names = snippet(card), {}
    assert f'model="{repo_id}", trust_remote_code=True' in code
    exec(code, names)
    for row in names["recommendations"]:
        assert f"| {row['rank']} | {row['title']} | {row['item_id']} | {row['score']:.3f} |" in card.replace(
            "–", "None"
        )
    assert len(names["recommendations"]) == 5


def test_card_says_what_was_measured_on_what_and_how(hub, repo_id, model, processor, record, data):
    training = {"learning_rate": 0.001, "loss": "cross_entropy"}
    push_recommender(
        model, processor, repo_id, [record], dataset_id="tester/films", base_model="tester/teacher", license="mit",
        training=training,
    )  # fmt: skip
    card = ModelCard(hub.repository(repo_id).files()["README.md"].content.decode())
    assert card.data.base_model == "tester/teacher"
    assert card.data.datasets == ["tester/films"] or card.data.datasets == "tester/films"
    assert (card.data.license, card.data.library_name) == ("mit", "transformers")
    assert {"sequential-recommendation", "hf-seqrec", "sasrec"} <= set(card.data.tags)
    results = {result.metric_type: result for result in card.data.eval_results}
    assert {name: result.metric_value for name, result in results.items()} == pytest.approx(record.metrics)
    assert results["ndcg@5"].dataset_config == record.protocol.describe()

    low, high = record.intervals["ndcg@5"]
    said = [
        f"| ndcg@5 | {record.metrics['ndcg@5']:.4f} | {low:.4f} – {high:.4f} | {record.floor['ndcg@5']:.4f} |",
        record.protocol.describe(), data.fingerprint, "seed 7", "| `learning_rate` | 0.001 |", "| `hidden_size` | 8 |",
        "20 items, 19 with a title", f"{record.num_users} users, 20 items,", "[tester/teacher](https://huggingface.co/tester/teacher)", "kang2018sasrec", "https://arxiv.org/abs/1808.09781", "## Limits",
    ]  # fmt: skip
    for text in said:
        assert text in card.text
    assert "More information needed" not in card.text
    assert "None" not in card.text
    assert "<built-in" not in card.text


def test_values_of_two_protocols_are_two_results_of_the_card(tmp_path, model, processor, record):
    other = replace(
        record, protocol=replace(record.protocol, exclude_seen=not record.protocol.exclude_seen),
        metrics={name: value / 2 for name, value in record.metrics.items()},
    )  # fmt: skip
    card = ModelCard.load(save_recommender(tmp_path / "films", model, processor, [record, other]) / "README.md")
    found = [{}, {}]
    for result in card.data.eval_results:
        found[result.dataset_config == other.protocol.describe()][result.metric_type] = result.metric_value
    assert found[0] == pytest.approx(record.metrics)
    assert found[1] == pytest.approx(other.metrics)


def test_card_says_what_a_model_is_made_from(tmp_path, model, processor):
    def base(**config):
        for name, value in config.items():
            setattr(model.config, name, value)
        card = make_model_card(model, processor, [], {"history": ["b"]}, reference="films", training={})
        return re.search(r"\| Base model \| (.*) \|", card.text).group(1), card

    text, card = base()
    assert text == "none"
    assert "Nothing was trained by gradient steps." in card.text
    assert "a new item needs a new training run" in card.text
    (tmp_path / "tiny-llm").mkdir()
    text, card = base(llm_name_or_path=str(tmp_path / "tiny-llm"))
    assert text == "a language model from a folder, `tiny-llm`"
    assert str(tmp_path) not in card.content
    assert base(llm_name_or_path="tester/llm")[0] == "[tester/llm](https://huggingface.co/tester/llm)"
    model.add_items = None
    assert "`add_items` gives it new ones" in base()[1].text
    two = ["tester/one", "tester/two"]
    card = make_model_card(model, processor, [], {"history": ["b"]}, reference="films", base_model=two)
    assert card.data.base_model == two
    assert "[tester/one](https://huggingface.co/tester/one), [tester/two]" in card.text


def test_every_method_names_its_paper():
    import hf_seqrec.modeling as modeling
    from hf_seqrec.cards.citations import METHODS

    types = {
        config.model_type
        for config in vars(modeling).values()
        if isinstance(config, type) and issubclass(config, modeling.SequentialRecommenderConfig) and config.model_type
    }
    assert len(types) >= 9
    assert types <= set(METHODS)
    assert {name for name in types if not METHODS[name].citation} == {"hf_seqrec_popularity", "hf_seqrec_score_sum"}


def test_card_without_evaluation_or_data_set_says_so(tmp_path, model, processor):
    card = ModelCard.load(save_recommender(tmp_path / "films", model, processor) / "README.md")
    assert "No evaluation is recorded" in card.text
    assert "hyper-parameters of the training run were not recorded" in card.text
    assert card.data.eval_results is None


def test_title_cannot_break_out_of_the_card(tmp_path, model, data):
    titles = [f"a|b\n# {number} <script>" for number in range(20)]
    processor = SequentialRecommendationProcessor(data.catalogue.item_ids, titles, 4)
    folder = save_recommender(tmp_path / "films", model, processor)
    card = (folder / "README.md").read_text()
    assert "<script>" not in card.replace(snippet(card), "")
    assert not re.search(r"^# \d+", card, re.MULTILINE)


def test_results_reach_the_leaderboard_file_with_their_protocol(hub, repo_id, model, processor, record):
    push_recommender(model, processor, repo_id, [record], dataset_id="tester/films")
    files = hub.repository(repo_id).files()
    (path,) = [path for path in files if path.startswith(".eval_results/")]
    entries = parse_eval_result_entries(yaml.safe_load(files[path].content))
    assert {entry.task_id: entry.value for entry in entries} == pytest.approx(record.metrics)
    assert all(entry.dataset_id == "tester/films" and record.protocol.describe() in entry.notes for entry in entries)


# --- data sets


@pytest.fixture
def dataset_folder(tmp_path, data):
    rows = pa.table(
        {
            "user_id": [user for user, history in zip(data.sequences.user_ids.to_pylist(), data.sequences, strict=True) for _ in history],
            "item_id": [item for history in data.sequences for item in data.catalogue.to_item_ids(history).to_pylist()],
            "position": [place for history in data.sequences for place in range(len(history))],
        }
    )  # fmt: skip
    card = DatasetDescription(title="Films", summary="Twelve made-up viewers.", simulated=True)
    write_dataset(tmp_path / "films", data.catalogue.table, rows, card)
    return tmp_path / "films"


def test_data_set_comes_back_equal_and_a_revision_pins_it(hub, repo_id, dataset_folder, data):
    first = push_dataset(dataset_folder, repo_id)
    stored = hub.repository(repo_id, "dataset").files()
    assert {path: file.content for path, file in stored.items() if path != ".gitattributes"} == content(dataset_folder)
    loaded = load_recommendation_data(repo_id)
    assert loaded.fingerprint == load_recommendation_data(dataset_folder).fingerprint
    assert loaded.catalogue.table.equals(data.catalogue.table)

    items = data.catalogue.table.set_column(1, "title", pa.array([f"New {number}" for number in range(20)]))
    pa.parquet.write_table(items, dataset_folder / "items" / "train-00000-of-00001.parquet")
    push_dataset(dataset_folder, repo_id)
    assert load_recommendation_data(repo_id).catalogue.titles[0].as_py() == "New 0"
    assert load_recommendation_data(repo_id, revision=first.oid).fingerprint == loaded.fingerprint


def test_folder_that_is_no_data_set_is_not_pushed(hub, repo_id, tmp_path):
    (tmp_path / "README.md").write_text("# mine")
    with pytest.raises(FileNotFoundError, match=r"lacks items/\*\.parquet, interactions/\*\.parquet"):
        push_dataset(tmp_path, repo_id)
    assert ("dataset", repo_id) not in hub.repositories


# --- a machine without the library

ELSEWHERE = """
import re
from huggingface_hub import hf_hub_download
from transformers import AutoModel, AutoProcessor

answer = {}
for repo_id in request["repositories"]:
    model = AutoModel.from_pretrained(repo_id, trust_remote_code=True)
    processor = AutoProcessor.from_pretrained(repo_id, trust_remote_code=True)
    card = open(hf_hub_download(repo_id, "README.md"), encoding="utf-8").read()
    names = {}
    exec(re.findall(r"```python\\n(.*?)```", card, re.DOTALL)[0], names)
    answer[repo_id] = {
        "scores": model.score(processor([request["input"]["history"]])["input_ids"])[0, 1:].tolist(),
        "recommendations": names["recommend"](request["input"]),
        "snippet": len(names["recommendations"]),
    }
"""


def test_every_model_gives_the_same_scores_on_a_machine_without_the_library(hub, elsewhere, model, data, processor):
    torch.manual_seed(0)
    small = {"num_items": 20, "hidden_size": 8, "max_length": 4}
    models = [
        model,
        BERT4RecForSequentialRecommendation(BERT4RecConfig(**small)),
        CaserForSequentialRecommendation(CaserConfig(**small)),
        FMLPRecForSequentialRecommendation(FMLPRecConfig(**small)),
        GRU4RecForSequentialRecommendation(GRU4RecConfig(**small)),
        LightSANsForSequentialRecommendation(LightSANsConfig(**small)),
        NextItNetForSequentialRecommendation(NextItNetConfig(**small)),
        PopularityForSequentialRecommendation.fit(data.sequences, num_items=20),
        ItemItemForSequentialRecommendation.fit(data.sequences, num_items=20),
    ]
    texts = LLMSeqSimForSequentialRecommendation.from_vectors(torch.randn(20, 6).numpy())
    models.append(ScoreSumForSequentialRecommendation.from_parts(model, texts, weight=0.5))
    here = {}
    for one in models:
        repo_id = f"{hub.user}/elsewhere-{one.config.model_type}"
        push_recommender(one.eval(), processor, repo_id)
        here[repo_id] = one

    answers = elsewhere(ELSEWHERE, repositories=list(here), input=HISTORY)
    for repo_id, one in here.items():
        expected = scores(one, processor)[0, 1:]
        torch.testing.assert_close(torch.tensor(answers[repo_id]["scores"]), expected, rtol=1e-6, atol=1e-6)
        recommended = pipeline(model=one, processor=processor)(HISTORY)
        assert [row["title"] for row in answers[repo_id]["recommendations"]] == [row["title"] for row in recommended]
        assert answers[repo_id]["snippet"] >= 1


def test_nothing_of_this_file_reached_the_real_hub(hub):
    assert hub.url == huggingface_hub.constants.ENDPOINT
    with pytest.raises(RepositoryNotFoundError):
        HfApi().model_info("google-bert/bert-base-uncased")
