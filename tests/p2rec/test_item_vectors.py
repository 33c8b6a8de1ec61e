"""Item vectors as files: nothing lost, nothing doubled, nothing of another content taken for one's own."""

import json
import threading

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from hf_seqrec import item_vectors, text_vectors
from hf_seqrec.data import Catalogue
from hf_seqrec.item_vectors import load_item_vectors, write_item_vectors
from hf_seqrec.text_vectors import centre_and_scale, encode_items, item_texts, reduce_by_pca


def encode(llm, catalogue, cache, **options):
    return encode_items(llm, catalogue, cache, **{"device": "cpu", "shard_size": 5, "progress": False, **options})


def shard_files(vectors):
    return sorted((vectors.folder / "vectors").iterdir())


def test_texts_leave_out_what_an_item_lacks(catalogue):
    texts = item_texts(catalogue, "all")
    assert texts[0] == "Title: Film 0. Genres: Crime, War."
    assert texts[1] == "Title: Film x1. Brand: Acme."
    assert item_texts(catalogue)[4] == "No title"
    assert item_texts(catalogue, "{title}", 2, 4) == item_texts(catalogue)[2:4]
    with pytest.raises(ValueError, match=r"names \['price'\].*title"):
        item_texts(catalogue, "{title} {price}")
    with pytest.raises(ValueError, match="names no column"):
        item_texts(catalogue, "an item")


@pytest.mark.parametrize("kind", ["llama", "t5", "bert"])
@pytest.mark.parametrize("pooling", ["mean", "last", "cls"])
def test_vectors_are_the_pooled_states_of_each_text_alone(llm_folders, catalogue, tmp_path, kind, pooling):
    vectors = encode(llm_folders[kind], catalogue, tmp_path, pooling=pooling, token_budget=40).read(
        catalogue=catalogue
    )
    model, tokenizer = (
        AutoModel.from_pretrained(llm_folders[kind]).eval(),
        AutoTokenizer.from_pretrained(llm_folders[kind]),
    )
    model = model.get_encoder() if kind == "t5" else model
    for row, text in enumerate(item_texts(catalogue)):
        with torch.no_grad():
            states = model(input_ids=torch.tensor([tokenizer(text).input_ids])).last_hidden_state[0]
        expected = {"mean": states.mean(0), "last": states[-1], "cls": states[0]}[pooling]
        np.testing.assert_allclose(vectors[row], expected, atol=1e-4)


def test_a_killed_run_goes_on_and_loses_and_doubles_nothing(llm_folders, catalogue, tmp_path, monkeypatch):
    whole = encode(llm_folders["bert"], catalogue, tmp_path / "whole")
    real, calls = text_vectors._encode, []

    def killed_at_the_second_shard(*arguments):
        calls.append(len(arguments[2]))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(text_vectors, "_encode", killed_at_the_second_shard)
    with pytest.raises(KeyboardInterrupt):
        encode(llm_folders["bert"], catalogue, tmp_path / "cut")
    folder = tmp_path / "cut" / whole.folder.name
    assert [path.name for path in (folder / "vectors").iterdir()] == ["train-00000-of-00003.parquet"]
    with pytest.raises(ValueError, match="half-written, 2 of 3 shards are missing"):
        load_item_vectors(folder)
    resumed = encode(llm_folders["bert"], catalogue, tmp_path / "cut")
    assert calls == [5, 5, 5, 2]  # the first shard was kept
    np.testing.assert_array_equal(resumed.read(catalogue=catalogue), whole.read())
    ids = [one for path in shard_files(resumed) for one in pq.read_table(path)["item_id"].to_pylist()]
    assert ids == catalogue.item_ids.to_pylist()
    encode(llm_folders["bert"], catalogue, tmp_path / "cut")
    assert len(calls) == 4  # a whole cache is not computed again


@pytest.mark.parametrize("damage", ["cut", "other rows", "other content", "other items"])
def test_a_damaged_or_foreign_shard_is_found_and_made_again(llm_folders, catalogue, tmp_path, damage):
    vectors = encode(llm_folders["bert"], catalogue, tmp_path)
    expected, shard = vectors.read(), shard_files(vectors)[1]
    table = pq.read_table(shard)
    if damage == "cut":
        shard.write_bytes(shard.read_bytes()[:-20])
    elif damage == "other rows":
        pq.write_table(table.slice(0, 3), shard)
    elif damage == "other content":
        pq.write_table(table.replace_schema_metadata({item_vectors._KEY: b"0" * 16}), shard)
    else:
        pq.write_table(table.set_column(0, "item_id", pa.array(["other"] * table.num_rows)), shard)
    with pytest.raises(ValueError, match=r"missing or damaged|not those of the catalogue"):
        load_item_vectors(vectors.folder).read(catalogue=catalogue)
    np.testing.assert_array_equal(encode(llm_folders["bert"], catalogue, tmp_path).read(catalogue=catalogue), expected)


def test_a_lost_manifest_does_not_adopt_the_shards_of_another_content(tmp_path):
    first = write_item_vectors(tmp_path, ["a", "b"], {"vector": np.eye(2)}, {"kind": "first"})
    (first.folder / item_vectors.MANIFEST).unlink()
    second = write_item_vectors(tmp_path, ["a", "b"], {"vector": 2 * np.eye(2)}, {"kind": "second"})
    np.testing.assert_array_equal(second.read(), 2 * np.eye(2))


def test_every_setting_and_every_text_has_a_cache_of_its_own(llm_folders, catalogue, tmp_path):
    texts = catalogue.table.set_column(1, "title", pa.array([f"{n}" for n in range(12)]))
    made = [
        encode(llm_folders["bert"], catalogue, tmp_path),
        encode(llm_folders["llama"], catalogue, tmp_path),
        encode(llm_folders["bert"], catalogue, tmp_path, pooling="cls"),
        encode(llm_folders["bert"], catalogue, tmp_path, template="all"),
        encode(llm_folders["bert"], catalogue, tmp_path, max_tokens=4),
        encode(llm_folders["bert"], Catalogue(texts), tmp_path),
    ]
    assert len({vectors.key for vectors in made}) == len(list(tmp_path.iterdir())) == 6


def test_another_llm_in_the_same_folder_is_not_the_cached_one(llm_folders, catalogue, tmp_path):
    model, tokenizer = (
        AutoModel.from_pretrained(llm_folders["bert"]).eval(),
        AutoTokenizer.from_pretrained(llm_folders["bert"]),
    )
    before = encode(model, catalogue, tmp_path, tokenizer=tokenizer)
    with torch.no_grad():
        model.embeddings.word_embeddings.weight.mul_(torch.linspace(0, 2, 99).unsqueeze(1))
    after = encode(model, catalogue, tmp_path, tokenizer=tokenizer)
    assert before.key != after.key
    assert not np.allclose(before.read(), after.read())
    with pytest.raises(TypeError, match="needs its tokenizer"):
        encode(model, catalogue, tmp_path)


def test_vectors_of_another_catalogue_are_refused(llm_folders, catalogue, tmp_path):
    vectors = encode(llm_folders["bert"], catalogue, tmp_path)
    with pytest.raises(ValueError, match="12 items, the catalogue has 11"):
        vectors.read(catalogue=Catalogue(catalogue.table.slice(0, 11)))
    with pytest.raises(ValueError, match="another catalogue, or its rows have another order"):
        vectors.read(catalogue=Catalogue(catalogue.table.take(list(range(11, -1, -1)))))


def test_other_vectors_in_a_folder_are_refused(tmp_path):
    write_item_vectors(tmp_path, ["a", "b"], {"vector": np.eye(2)}, {"kind": "first"})
    with pytest.raises(ValueError, match=r"holds other vectors .*first.*second"):
        write_item_vectors(tmp_path, ["a", "b"], {"vector": np.ones((2, 2))}, {"kind": "second"})


def test_bad_vectors_and_folders_are_refused(tmp_path, llm_folders, catalogue):
    with pytest.raises(ValueError, match="item_index 2 has values that are not finite"):
        write_item_vectors(tmp_path / "a", ["a", "b"], {"vector": np.array([[1.0], [np.nan]])}, {})
    with pytest.raises(ValueError, match=r"needs shape \(2, width\), got \(3, 3\)"):
        write_item_vectors(tmp_path / "b", ["a", "b"], {"vector": np.eye(3)}, {})
    with pytest.raises(FileNotFoundError, match="holds no item vectors"):
        load_item_vectors(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="`pooling` must be one of"):
        encode(llm_folders["bert"], catalogue, tmp_path / "c", pooling="max")
    assert not (tmp_path / "c").exists()


def test_datasets_reads_the_folder(tmp_path):
    import datasets

    write_item_vectors(
        tmp_path / "v", ["a", "b", "c"], {"vector": np.eye(3), "categories": np.ones((3, 2))}, {}, shard_size=2
    )
    table = datasets.load_dataset(str(tmp_path / "v"), split="train", cache_dir=str(tmp_path / "cache"))
    assert table["item_id"][:] == ["a", "b", "c"]
    assert table["vector"][1] == [0.0, 1.0, 0.0]


def test_pca_is_fitted_on_training_items_only_and_streams(tmp_path, monkeypatch):
    values = np.random.default_rng(0).normal(size=(60, 6)) * [9, 5, 1, 0.1, 0.1, 0.1]
    training = np.arange(1, 41).repeat(2)
    poisoned = values.copy()
    poisoned[40:] *= 1000
    ids = [str(n) for n in range(60)]
    one = write_item_vectors(tmp_path / "one", ids, {"vector": values}, {}, shard_size=16)
    other = write_item_vectors(tmp_path / "other", ids, {"vector": poisoned}, {}, shard_size=16)
    reduced = reduce_by_pca(one, 2, training_items=training)
    np.testing.assert_allclose(reduced[:40], reduce_by_pca(other, 2, training_items=training)[:40], rtol=1e-4)
    centred = values - values[:40].mean(0)
    axes = np.linalg.svd(centred[:40], full_matrices=False)[2][:2]
    np.testing.assert_allclose(np.abs(reduced), np.abs(centred @ axes.T), atol=1e-3)
    monkeypatch.setattr(text_vectors, "_EXACT_PCA_ROWS", 10)
    streamed = reduce_by_pca(one, 2, training_items=training)
    for axis in range(2):
        assert abs(np.corrcoef(streamed[:, axis], reduced[:, axis])[0, 1]) > 0.99
    with pytest.raises(ValueError, match="7 principal axes need vectors of at least that width"):
        reduce_by_pca(one, 7)
    with pytest.raises(ValueError, match="3 items are in training"):
        reduce_by_pca(one, 4, training_items=[1, 2, 3])


def test_scaling_gives_mean_zero_and_unit_mean_squared_length():
    values = np.random.default_rng(0).normal(size=(50, 8)).astype(np.float32) * 30 + 100
    scaled = centre_and_scale(values, np.arange(1, 31))
    np.testing.assert_allclose(scaled[:30].mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(np.square(scaled[:30]).sum(1).mean(), 1, rtol=1e-5)
    with pytest.raises(ValueError, match="all item vectors are equal"):
        centre_and_scale(np.ones((4, 2)))


def test_the_manifest_says_what_the_vectors_are(llm_folders, catalogue, tmp_path):
    vectors = encode(llm_folders["bert"], catalogue, tmp_path)
    manifest = json.loads((vectors.folder / item_vectors.MANIFEST).read_text())
    assert manifest["description"]["template"] == "{title}"
    assert manifest["widths"] == {"vector": 16}
    assert str(tmp_path.parent) not in (vectors.folder / "README.md").read_text() + json.dumps(manifest)


def test_two_processes_write_each_shard_once(tmp_path, monkeypatch):
    local, meeting, calls = threading.local(), threading.Barrier(2, timeout=30), []
    for name, value in {
        "is_initialized": lambda: True,
        "get_rank": lambda: local.rank,
        "get_world_size": lambda: 2,
        "barrier": meeting.wait,
    }.items():
        monkeypatch.setattr(torch.distributed, name, value)
    ids, values = pa.array([str(n) for n in range(23)]), np.arange(46.0).reshape(23, 2)
    opened = [None, None]

    def work(rank):
        local.rank = rank

        def compute(start, stop):
            calls.append((rank, start))
            return {"vector": values[start:stop]}

        opened[rank] = item_vectors.write_shards(tmp_path, ids, compute, {"kind": "two"}, "k", 5, progress=False)

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert sorted(start for _, start in calls) == [0, 5, 10, 15, 20]
    assert {rank for rank, _ in calls} == {0, 1}
    for vectors in opened:
        np.testing.assert_array_equal(vectors.read(), values)
