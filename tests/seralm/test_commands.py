"""The whole way on the command line: texts, warm-up, vectors for serving, new items, comparison, and one collection on the Hub."""

import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModel, AutoModelForCausalLM

from hf_seqrec.cli import main
from hf_seqrec.hub import load_recommender
from hf_seqrec.item_vectors import load_item_vectors
from hf_seqrec.knowledge import load_knowledge
from hf_seqrec.knowledge_hub import push_seralm
from hf_seqrec.pipelines import pipeline
from hf_seqrec.presets import list_presets, load_preset
from hf_seqrec.scripts.train_seralm_warmup import main as train_main
from hf_seqrec.scripts.train_seralm_warmup import make_parser, reduce_training


N = 12
ASKING = ["--prompt", "continue", "--domain", "film", "--max-new-tokens", "10"]
SMALL = '{"hidden_size": 8, "max_length": 6, "intermediate_size": 8, "num_hidden_layers": 1}'


def seqrec(*words):
    assert main([str(word) for word in words]) == 0


def fails(capsys, *words):
    assert main([str(word) for word in words]) == 1
    return capsys.readouterr().err


@pytest.fixture(scope="module")
def adapter(generators, tmp_path_factory) -> Path:
    torch.manual_seed(0)
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(generators["llama"]), LoraConfig(r=2, task_type="CAUSAL_LM")
    )
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    folder = tmp_path_factory.mktemp("adapter") / "lora"
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def work(tmp_path_factory, dataset, generators, text_encoder, adapter) -> Path:
    """Everything once: unaligned texts, a recommender trained on them, texts of the adapter with their recommender."""
    root = tmp_path_factory.mktemp("work")
    llm = ["--llm", generators["llama"], "--cache", root / "cache"]
    seqrec("knowledge", "generate", "--dataset", dataset, *llm, *ASKING, "--output-dir", root / "unaligned")
    seqrec(
        "train", "seralm-warmup", "--dataset", dataset, "--knowledge", root / "unaligned", "--text_encoder", text_encoder,
        "--backbone_config", SMALL, "--output_dir", root / "warm", "--num_train_epochs", 2, "--cutoffs", 5, 10, "--use_cpu",
        "--per_device_train_batch_size", 8, "--train_text_encoder", "true",
    )  # fmt: skip
    seqrec(
        "knowledge", "export", "--dataset", dataset, *llm, *ASKING, "--adapter", adapter, "--recommender", root / "warm",
        "--output-dir", root / "aligned", "--save-recommender", root / "serving",
    )  # fmt: skip
    return root


def test_generated_knowledge_is_a_data_set_of_texts(work, data):
    knowledge = load_knowledge(work / "unaligned")
    knowledge.check(data.catalogue)
    assert knowledge.description["adapter"] is None
    assert knowledge.description["sampling"]["max_new_tokens"] == 10
    assert not (work / "unaligned/item_vectors.json").exists()


def test_warm_up_saves_a_recommender_of_that_knowledge(work, dataset, capsys):
    model, processor = load_recommender(work / "warm")
    assert model.text_encoder is None
    assert model.config.train_text_encoder
    assert model.config.knowledge_key == load_knowledge(work / "unaligned").key
    record = json.loads((work / "warm/records/test.json").read_text())
    assert record["notes"]["knowledge"]["key"] == model.config.knowledge_key
    assert processor.num_items == N
    loaded = AutoModel.from_pretrained(work / "warm", text_encoder=True)
    fresh = loaded.encode_all(loaded.tokenize(load_knowledge(work / "unaligned").texts))
    torch.testing.assert_close(loaded.knowledge[1:], fresh, atol=1e-5, rtol=1e-4)
    seqrec("evaluate", work / "warm", "--dataset", dataset, "--cutoffs", 5)
    assert "seralm" in capsys.readouterr().out.lower()


def test_a_run_can_be_repeated_from_its_file(work, tmp_path):
    seqrec("train", "--config", work / "warm/run.yaml", "--output_dir", tmp_path / "again", "--use_cpu")
    ranks = [pq.read_table(folder / "records/test.ranks.parquet") for folder in (work / "warm", tmp_path / "again")]
    assert ranks[0].equals(ranks[1])


def test_export_gives_vectors_and_a_recommender_that_serves_from_them(work, data, monkeypatch):
    knowledge = load_knowledge(work / "aligned")
    assert knowledge.description["adapter"] is not None
    assert knowledge.texts != load_knowledge(work / "unaligned").texts
    vectors = torch.from_numpy(load_item_vectors(work / "aligned").read(catalogue=data.catalogue))
    model, _ = load_recommender(work / "serving")
    torch.testing.assert_close(model.knowledge[1:], vectors)
    assert model.config.knowledge_key == knowledge.key

    # Neither a language model nor a text encoder is loaded for a request.
    def no(*args, **kwargs):
        raise AssertionError("a language model was loaded")

    monkeypatch.setattr("hf_seqrec.modeling.seralm.load_llm", no)
    monkeypatch.setattr("hf_seqrec.modeling.seralm.build_llm", no)
    answer = pipeline(model=str(work / "serving"))({"history": ["Film 0", "Film x1"]}, top_k=3)
    assert len(answer) == 3


def test_exporting_again_costs_nothing_and_given_texts_are_encoded(
    work, dataset, generators, adapter, tmp_path, capsys
):
    seqrec(
        "knowledge", "export", "--dataset", dataset, "--llm", generators["llama"], "--cache", work / "cache", *ASKING,
        "--adapter", adapter, "--recommender", work / "warm", "--output-dir", tmp_path / "again",
    )  # fmt: skip
    assert "tokens/s" not in capsys.readouterr().out
    seqrec(
        "knowledge", "export", "--dataset", dataset, "--knowledge", work / "aligned", "--recommender", work / "warm",
        "--output-dir", tmp_path / "given",
    )  # fmt: skip
    both = [load_item_vectors(tmp_path / name).read().tolist() for name in ("again", "given")]
    assert both[0] == both[1]


def add(work, generators, adapter, items, target, *more):
    return (
        "knowledge", "add", work / "aligned", "--items", items, "--recommender", work / "serving", "--llm", generators["llama"],
        "--adapter", adapter, "--cache", work / "cache", "--output-dir", target / "knowledge", "--save-recommender",
        target / "recommender", *more,
    )  # fmt: skip


def test_new_items_are_added_by_one_command(work, generators, adapter, tmp_path, capsys):
    new = pa.table(
        {"item_id": ["i3", "007", "n2"], "title": ["Film xxx3", "Spectre", "Heat"], "year": ["", "2015", "1995"]}
    )
    pa.csv.write_csv(new, tmp_path / "today.csv")
    seqrec(*add(work, generators, adapter, tmp_path / "today.csv", tmp_path))
    assert "2 new items" in capsys.readouterr().out
    before, after = load_knowledge(work / "aligned"), load_knowledge(tmp_path / "knowledge")
    assert after.table["item_id"].to_pylist() == [*before.table["item_id"].to_pylist(), "007", "n2"]
    assert after.texts[:N] == before.texts
    assert load_item_vectors(tmp_path / "knowledge").num_items == N + 2
    (old, old_items), (model, items) = load_recommender(work / "serving"), load_recommender(tmp_path / "recommender")
    ids = items([["Film 0", "i5"]])["input_ids"]
    torch.testing.assert_close(model.score(ids)[:, : N + 1], old.score(old_items([["Film 0", "i5"]])["input_ids"]))
    assert items.decode([N + 1]) == [{"item_id": "007", "title": "Spectre"}]
    assert model.config.knowledge_key == after.key
    assert pipeline(model=str(tmp_path / "recommender"))({"history": ["Spectre", "Heat"]}, top_k=3)
    # The next day builds on what this day wrote.
    pq.write_table(pa.table({"item_id": ["n3"], "title": ["Ran"]}), tmp_path / "tomorrow.parquet")
    seqrec(
        "knowledge", "add", tmp_path / "knowledge", "--items", tmp_path / "tomorrow.parquet", "--recommender",
        tmp_path / "recommender", "--llm", generators["llama"], "--adapter", adapter, "--cache", work / "cache",
        "--output-dir", tmp_path / "k2", "--save-recommender", tmp_path / "r2",
    )  # fmt: skip
    assert load_recommender(tmp_path / "r2")[0].config.num_items == N + 3


def test_adding_what_does_not_belong_is_refused_and_writes_nothing(work, generators, adapter, tmp_path, capsys):
    pq.write_table(pa.table({"item_id": ["n1"], "title": ["Heat"]}), tmp_path / "new.parquet")
    pq.write_table(pa.table({"item_id": ["i1"], "title": ["Film"]}), tmp_path / "old.parquet")
    words = add(work, generators, adapter, tmp_path / "new.parquet", tmp_path)
    assert "nothing to add" in fails(capsys, *add(work, generators, adapter, tmp_path / "old.parquet", tmp_path))
    without = [word for word in words if word not in ("--adapter", adapter)]
    assert "give it with --adapter" in fails(capsys, *without)
    other = [work / "warm" if word == work / "serving" else word for word in words]
    assert "holds the vectors of the knowledge" in fails(capsys, *other)
    texts = [work / "unaligned" if word == work / "aligned" else word for word in words]
    assert "texts without vectors" in fails(capsys, *texts)
    # Another adapter under the same options: its texts must not stand beside those of the first.
    changed = tmp_path / "changed"
    shutil.copytree(adapter, changed)
    config = json.loads((changed / "adapter_config.json").read_text())
    (changed / "adapter_config.json").write_text(json.dumps(config | {"lora_alpha": 99}))
    assert "adapter differ" in fails(capsys, *[changed if word == adapter else word for word in words])
    assert not (tmp_path / "knowledge").exists()
    assert not (tmp_path / "recommender").exists()


def test_diff_shows_texts_and_the_rank_of_the_next_item(work, dataset, capsys):
    seqrec("knowledge", "diff", work / "unaligned", work / "aligned", "--item", "i3")
    shown = capsys.readouterr().out
    assert "Film xxx3 (i3)" in shown
    assert f"before: {load_knowledge(work / 'unaligned').texts[3]}" in shown
    assert f"after: {load_knowledge(work / 'aligned').texts[3]}" in shown
    seqrec(
        "knowledge",
        "diff",
        work / "unaligned",
        work / "aligned",
        "--recommender",
        work / "serving",
        "--dataset",
        dataset,
    )
    shown = capsys.readouterr().out
    assert "24 users: the next item gained ranks for" in shown
    assert "rank " in shown
    seqrec(
        "knowledge", "diff", work / "unaligned", work / "aligned", "--recommender", work / "serving", "--recommender-before",
        work / "warm", "--dataset", dataset, "--user", "u3",
    )  # fmt: skip
    assert "User u3: next item" in capsys.readouterr().out


def test_the_ranks_of_diff_are_those_of_the_recommenders(work, data):
    from hf_seqrec.data import leave_one_out
    from hf_seqrec.evaluation import Protocol, RankingEvaluator
    from hf_seqrec.knowledge import rank_changes

    models = [load_recommender(work / name)[0] for name in ("warm", "serving")]
    split = leave_one_out(data.sequences)
    users = data.sequences.user_ids.to_pylist()
    changes = rank_changes(
        models[0].score, models[1].score, split.test, data.catalogue, users, range(24), models[0].config.max_length
    )
    for model, name in zip(models, ("before", "after"), strict=True):
        result = RankingEvaluator(split.test, N, Protocol(cutoffs=(5,)))(model)
        assert [getattr(change, name) - 1 for change in changes] == pytest.approx(result.ranks.tolist())
    assert any(change.before != change.after for change in changes)


def test_a_share_of_the_training_sequences_is_drawn_by_seed(data):
    from hf_seqrec.data import leave_one_out

    split = leave_one_out(data.sequences)
    few, more = (reduce_training(split, share, seed=1) for share in (0.25, 0.5))
    assert (len(few.train), len(more.train)) == (6, 12)
    assert set(few.train.user_ids.to_pylist()) < set(more.train.user_ids.to_pylist())
    assert few.test is split.test
    where = {user: row for row, user in enumerate(split.train.user_ids.to_pylist())}
    for row, user in enumerate(few.train.user_ids.to_pylist()):
        assert few.train[row].tolist() == split.train[where[user]].tolist()
    assert reduce_training(split, 1.0, 0) is split
    with pytest.raises(ValueError, match=r"in \(0, 1\]"):
        reduce_training(split, 0, 0)


def test_bad_input_of_warm_up_is_refused_before_anything_is_written(work, dataset, text_encoder, tmp_path, capsys):
    base = ["train", "seralm-warmup", "--dataset", dataset, "--output_dir", tmp_path / "out", "--use_cpu"]
    known = ["--knowledge", work / "unaligned"]
    assert "texts only" in fails(capsys, *base, *known)
    assert "take one of" in fails(capsys, *base, *known, "--backbone", "popularity")
    assert "need a JSON object" in fails(
        capsys, *base, *known, "--text_encoder", text_encoder, "--backbone_config", "8"
    )
    assert "hiden_size" in fails(
        capsys, *base, *known, "--text_encoder", text_encoder, "--backbone_config", '{"hiden_size": 8}'
    )
    assert "do not train" in fails(capsys, *base, "--knowledge", work / "aligned", "--train_text_encoder", "true")
    other = tmp_path / "other"
    shutil.copytree(work / "unaligned", other)
    table = pq.read_table(other / "knowledge/train-00000-of-00001.parquet").slice(0, 5)
    pq.write_table(table, other / "knowledge/train-00000-of-00001.parquet")
    assert "are not those of its" in fails(capsys, *base, "--knowledge", other, "--text_encoder", text_encoder)
    assert not (tmp_path / "out").exists()
    assert train_main.__doc__


def test_vectors_of_the_knowledge_serve_any_backbone(work, dataset, tmp_path):
    seqrec(
        "train", "seralm-warmup", "--dataset", dataset, "--knowledge", work / "aligned", "--backbone", "gru4rec", "--backbone_config",
        '{"hidden_size": 8, "max_length": 6}', "--fusion", "gate", "--output_dir", tmp_path / "gru", "--num_train_epochs", 1,
        "--cutoffs", 5, 10, "--use_cpu",
    )  # fmt: skip
    model, _ = load_recommender(tmp_path / "gru")
    assert type(model.backbone).__name__.startswith("GRU4Rec")
    assert model.config.fusion == "gate"
    with pytest.raises(ValueError, match="vectors were made elsewhere"):
        model.load_text_encoder(tmp_path / "gru", own=True)


def test_presets_are_options_of_the_command():
    assert list_presets("seralm_warmup")["seralm_warmup"] == ["paper", "default"]
    parser = make_parser()
    known = {action.dest for action in parser._actions}
    for name in ("paper", "default"):
        preset = load_preset("seralm_warmup", name)
        assert set(preset.model) | set(preset.training) <= known
    assert parser.get_default("learning_rate") == load_preset("sasrec").training["learning_rate"]
    other = make_parser(backbone="caser", backbone_preset="paper")
    training = load_preset("caser", "paper").training
    assert {name: other.get_default(name) for name in training} == training


# --- the Hub ---


def test_everything_is_pushed_as_one_collection_with_cards_that_link_each_other(
    hub, work, adapter, text_encoder, generators
):
    name = f"{hub.user}/seralm-walks"
    pushed = push_seralm(name, work / "serving", work / "aligned", adapter)
    (collection,) = (one for one in hub.collections.values() if one["title"] == "SeRALM seralm-walks")
    assert pushed.collection == f"{hub.url}/collections/{collection['slug']}"
    names = {"recommender": name, "knowledge": f"{name}-knowledge", "adapter": f"{name}-adapter"}
    assert {item["id"] for item in collection["items"]} == set(names.values())
    for part, where in names.items():
        kind = "dataset" if part == "knowledge" else "model"
        card = hub.repository(where, kind).files()["README.md"].content.decode()
        assert all(
            f"https://huggingface.co/{'datasets/' if p == 'knowledge' else ''}{w})" in card for p, w in names.items()
        )
        assert card.count("## Belongs together") == 1
    # Each part is usable from the Hub alone.
    model, processor = load_recommender(name)
    local, _ = load_recommender(work / "serving")
    ids = processor([["Film 0"]])["input_ids"]
    assert torch.equal(model.score(ids), local.score(ids))
    assert load_knowledge(names["knowledge"]).key == load_knowledge(work / "aligned").key
    encoder = AutoModel.from_pretrained(name, text_encoder=True)
    assert encoder.encode_all(encoder.tokenize(["a film"])).shape == (1, 16)
    config = json.loads(hub.repository(names["adapter"]).files()["adapter_config.json"].content)
    assert "/" not in config["base_model_name_or_path"]
    files = "".join(
        file.content.decode(errors="ignore") for w in names.values() for kind in ("model", "dataset")
        if (kind, w) in hub.repositories for path, file in hub.repository(w, kind).files().items()
        if path.endswith((".json", ".md", ".yaml"))
    )  # fmt: skip
    assert not [place for place in (str(work), text_encoder, generators["llama"]) if place in files]
    # Pushing again changes nothing and makes no second collection.
    push_seralm(name, work / "serving", work / "aligned", adapter)
    assert len([one for one in hub.collections.values() if one["title"] == "SeRALM seralm-walks"]) == 1
    assert hub.repository(name).files()["README.md"].content.decode().count("## Belongs together") == 1


def test_parts_that_do_not_belong_together_are_not_pushed(hub, work, adapter, tmp_path):
    name = f"{hub.user}/mixed"
    with pytest.raises(ValueError, match="holds the vectors of the knowledge"):
        push_seralm(name, work / "warm", work / "aligned", adapter)
    with pytest.raises(ValueError, match="give it, so that new items"):
        push_seralm(name, work / "serving", work / "aligned")
    changed = tmp_path / "changed"
    shutil.copytree(adapter, changed)
    (changed / "adapter_config.json").write_text("{}")
    with pytest.raises(ValueError, match="is the adapter"):
        push_seralm(name, work / "serving", work / "aligned", changed)
    (changed / "adapter_model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"adapter_model\.safetensors"):
        push_seralm(name, work / "serving", work / "aligned", changed)
    assert not any(where.startswith(name) for _, where in hub.repositories)
