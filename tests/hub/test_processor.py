import json

import pytest
import torch
from transformers import AutoProcessor

from hf_seqrec.modeling.processing import SequentialRecommendationProcessor


@pytest.fixture
def films():
    return SequentialRecommendationProcessor(
        ["1", "2", "3", "4", "5"], ["Alien (1979)", "Heat (1995)", "Twin", "TWIN ", None], max_length=3
    )


def test_histories_become_left_padded_indices(films):
    inputs = films([["1", "2", "5"], ["3"]])
    assert torch.equal(inputs["input_ids"], torch.tensor([[1, 2, 5], [0, 0, 3]]))
    assert inputs["input_ids"].dtype == torch.int64


def test_only_the_most_recent_items_are_kept(films):
    assert films([["1", "2", "3", "4", "5"]])["input_ids"].tolist() == [[3, 4, 5]]


def test_titles_match_whole_and_without_regard_to_case(films):
    assert films.to_index(["  hEAT (1995)", "1", {"item_id": "5", "title": None, "rank": 1}]).tolist() == [2, 1, 5]


def test_shared_title_is_refused_with_the_ids_to_choose_from(films):
    with pytest.raises(ValueError, match=r"2 items have the title 'twin'.*'3', '4'"):
        films.to_index(["twin"])


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("Alein (1979)", "Alien (1979)"),
        ("alien", "Alien (1979)"),
        ("Heat 1995", "Heat (1995)"),
        ("the heat (1995)", "Heat (1995)"),
    ],
)
def test_unknown_title_is_refused_with_the_nearest_one(films, typed, meant):
    with pytest.raises(KeyError, match="no item has") as error:
        films.to_index([typed])
    assert f"Did you mean {meant!r}" in error.value.args[0]


def test_nothing_is_suggested_where_nothing_is_near(films):
    with pytest.raises(KeyError) as error:
        films.to_index(["Zyzzyva"])
    assert "Did you mean" not in error.value.args[0]


def test_string_that_is_id_and_title_must_be_told_apart():
    processor = SequentialRecommendationProcessor(["2048", "7"], ["Go", "2048"])
    with pytest.raises(ValueError, match=r"is an item id, and also the title of '7'.*by='item_id'"):
        processor.to_index(["2048"])
    assert processor.to_index(["2048"], by="item_id").tolist() == [1]
    assert processor.to_index(["2048"], by="title").tolist() == [2]


def test_id_equal_to_its_own_title_is_no_conflict():
    assert SequentialRecommendationProcessor(["Go"], ["go"]).to_index(["Go"]).tolist() == [1]


def test_decode_gives_ids_and_titles_and_refuses_padding(films):
    assert films.decode(torch.tensor([5, 1])) == [
        {"item_id": "5", "title": None},
        {"item_id": "1", "title": "Alien (1979)"},
    ]
    assert films.batch_decode([[1], [2]]) == [films.decode([1]), films.decode([2])]
    for outside in (0, 6):
        with pytest.raises(IndexError, match="need 1 to 5"):
            films.decode([outside])


@pytest.mark.parametrize(
    ("histories", "error", "message"),
    [
        ("1", TypeError, "one list of items per user"),
        (["1", "2"], TypeError, r"write \['1'\]"),
        ([[1]], TypeError, "named by strings"),
        ([], ValueError, "at least one user"),
        ([["1"], []], ValueError, "history 1 is empty"),
    ],
)
def test_histories_of_another_shape_are_refused(films, histories, error, message):
    with pytest.raises(error, match=message):
        films(histories)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (([],), ValueError, "at least one item"),
        ((["a", "b", "a"],), ValueError, "'a' appears more than once"),
        ((["a", ""],), ValueError, "row 1 is empty"),
        ((["a", 2],), TypeError, "got 2 in row 1"),
        ((["a"], ["x", "y"]), ValueError, "2 entries for 1 item ids"),
        ((["a"], [3]), TypeError, "got 3 in row 0"),
        ((["a"], None, 0), ValueError, "`max_length`"),
    ],
)
def test_catalogue_that_cannot_be_is_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        SequentialRecommendationProcessor(*arguments)


def test_indices_are_those_of_the_catalogue(data, processor):
    item_ids = ["i3", "i19", "i0"]
    assert processor.to_index(item_ids).tolist() == data.catalogue.to_index(item_ids).tolist()
    assert processor.titles == data.catalogue.titles.to_pylist()


def test_saved_and_loaded_processor_is_the_same(tmp_path):
    strange = ["a\nb", 'quote " and \\ and \u2028', "naïve 日本", "  "]
    saved = SequentialRecommendationProcessor(["w", "x", "y", "z"], strange, 7, "abc")
    saved.save_pretrained(tmp_path)
    for loaded in (
        SequentialRecommendationProcessor.from_pretrained(tmp_path),
        AutoProcessor.from_pretrained(tmp_path),
    ):
        assert type(loaded) is SequentialRecommendationProcessor
        assert (loaded.item_ids, loaded.titles) == (["w", "x", "y", "z"], strange)
        assert (loaded.max_length, loaded.data_fingerprint, loaded.fingerprint) == (7, "abc", saved.fingerprint)


def test_items_stay_out_of_the_configuration(films, tmp_path):
    films.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "processor_config.json").read_text())
    assert config["auto_map"] == {"AutoProcessor": "processing.SequentialRecommendationProcessor"}
    assert config["num_items"] == 5
    assert "Heat" not in json.dumps(config)
    assert len((tmp_path / "items.jsonl").read_text().splitlines()) == 5


def test_items_that_were_changed_after_saving_are_refused(films, tmp_path):
    films.save_pretrained(tmp_path)
    path = tmp_path / "items.jsonl"
    path.write_text(path.read_text().replace("Heat", "Cold"))
    with pytest.raises(ValueError, match="is not the one its processor_config"):
        AutoProcessor.from_pretrained(tmp_path)


def test_interrupted_save_leaves_the_old_items(films, tmp_path, monkeypatch):
    films.save_pretrained(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    monkeypatch.setattr("pathlib.Path.replace", lambda self, target: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        SequentialRecommendationProcessor(["other"]).save_pretrained(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
