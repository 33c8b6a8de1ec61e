"""Item vectors in backbones: the gate's formula, no enhancement is the backbone, and the command line."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from hf_seqrec.cli import main
from hf_seqrec.data import load_recommendation_data
from hf_seqrec.data.demo import build_demo_world
from hf_seqrec.evaluation import EvaluationRecord
from hf_seqrec.hub import load_recommender
from hf_seqrec.item_vectors import write_item_vectors
from hf_seqrec.modeling import (
    CaserConfig,
    CaserForSequentialRecommendation,
    FMLPRecConfig,
    FMLPRecForSequentialRecommendation,
    GRU4RecConfig,
    GRU4RecForSequentialRecommendation,
    SASRecConfig,
    SASRecForSequentialRecommendation,
)
from hf_seqrec.preferences import group_items


BACKBONES = [
    (SASRecConfig, SASRecForSequentialRecommendation),
    (GRU4RecConfig, GRU4RecForSequentialRecommendation),
    (CaserConfig, CaserForSequentialRecommendation),
    (FMLPRecConfig, FMLPRecForSequentialRecommendation),
]
SMALL = ["--hidden_size", "8", "--num_hidden_layers", "1", "--intermediate_size", "8", "--max_length", "8",
         "--num_train_epochs", "1", "--use_cpu", "--per_device_train_batch_size", "32"]  # fmt: skip


@pytest.mark.parametrize(("config", "head"), BACKBONES)
def test_a_closed_gate_is_the_plain_backbone(config, head):
    torch.manual_seed(0)
    plain = head(config(num_items=12, hidden_size=8, max_length=6)).eval()
    gated = head(config(num_items=12, hidden_size=8, max_length=6, fusion="gate", item_features={"item": 3})).eval()
    gated.load_state_dict(plain.state_dict(), strict=False)
    encoder = gated.model.item_encoder
    encoder.set_features("item", torch.randn(12, 3))
    with torch.no_grad():
        e, z = encoder.id_embedding.weight[1:], encoder.feature_item[1:] @ encoder.projection.weight.T
        gamma = torch.sigmoid(torch.cat([e, z], 1) @ encoder.gate.weight.T + encoder.gate.bias)
        torch.testing.assert_close(gated.item_representations()[1:], gamma * e + (1 - gamma) * z)
        ids = torch.tensor([[0, 3, 7], [1, 2, 5]])
        assert not torch.allclose(gated.score(ids)[:, 1:], plain.score(ids)[:, 1:])
        encoder.gate.weight.zero_()
        encoder.gate.bias.fill_(50.0)  # γ = 1: the enhancement is off
        torch.testing.assert_close(gated.score(ids), plain.score(ids))


def test_one_hot_groups_give_every_group_a_learnable_vector(item_table):
    """The paper's variant CI."""
    groups = group_items(item_table, 3)
    config = SASRecConfig(num_items=12, hidden_size=8, fusion="add", item_features={"item": 3})
    encoder = SASRecForSequentialRecommendation(config).model.item_encoder
    encoder.set_features("item", torch.from_numpy(groups.one_hot()))
    added = (encoder() - encoder.id_embedding.weight)[1:]
    learnable = (encoder.projection.weight.T + encoder.projection.bias)[torch.from_numpy(groups.group[1:])]
    torch.testing.assert_close(added, learnable)
    added[groups.group[1:] == 1].sum().backward()
    moved = encoder.projection.weight.grad.any(0)
    assert moved.tolist() == [False, True, False]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "world"
    build_demo_world(folder, num_items=100, num_users=40)
    return folder


@pytest.fixture(scope="module")
def vectors(world, tmp_path_factory):
    catalogue = load_recommendation_data(world).catalogue
    values = np.random.default_rng(0).normal(5, 3, (catalogue.num_items, 10))
    return write_item_vectors(
        tmp_path_factory.mktemp("vectors"), catalogue.item_ids, {"vector": values}, {"kind": "noise"}, shard_size=16
    )


def train(world, out, *more):
    return main(["train", "sasrec", "--dataset", str(world), "--output_dir", str(out), *SMALL, *more])


def test_the_command_trains_a_gate_and_its_model_comes_back_whole(world, vectors, tmp_path):
    assert train(world, tmp_path / "out", "--item_features", str(vectors.folder)) == 0
    model, _ = load_recommender(tmp_path / "out")
    assert model.config.fusion == "gate"
    stored = model.model.item_encoder.feature_item[1:]
    used = np.unique(load_recommendation_data(world).sequences.item_index)
    assert abs(stored[used - 1].mean().item()) < 0.1
    assert np.corrcoef(stored.numpy().ravel(), vectors.read().ravel())[0, 1] > 0.95
    record = EvaluationRecord.load(tmp_path / "out" / "records" / "test.json")
    assert "noise" in str(record)


def test_init_starts_from_principal_axes(world, vectors, tmp_path):
    assert train(
        world, tmp_path / "out", "--item_features", str(vectors.folder), "--fusion", "init", "--learning_rate", "1e-9"
    ) == 0  # fmt: skip
    table = load_file(tmp_path / "out" / "model.safetensors")["model.item_encoder.id_embedding.weight"][1:]
    centred = table - table.mean(0)
    assert np.linalg.matrix_rank(np.concatenate([centred, vectors.read() - vectors.read().mean(0)], 1), tol=1e-2) == 10
    assert table.std().item() == pytest.approx(0.02, rel=0.1)


def test_align_moves_the_table_towards_the_vectors_and_leaves_nothing_of_them_in_the_model(world, vectors, tmp_path):
    still = ("--item_features", str(vectors.folder), "--fusion", "align", "--learning_rate", "1e-9")
    assert train(world, tmp_path / "out", *still) == 0
    assert train(world, tmp_path / "plain", "--learning_rate", "1e-9") == 0
    model, _ = load_recommender(tmp_path / "out")
    assert model.config.fusion == "none"
    assert not model.config.item_features

    def agreement(folder):
        table = load_file(folder / "model.safetensors")["model.item_encoder.id_embedding.weight"][1:].numpy()
        parts = [one - one.mean(0) for one in (table, vectors.read())]
        parts = [one / np.linalg.norm(one, axis=1, keepdims=True) for one in parts]
        above = np.triu_indices(len(table), 1)
        return np.corrcoef(*((part @ part.T)[above] for part in parts))[0, 1]

    assert abs(agreement(tmp_path / "plain")) < 0.1 < 0.2 < agreement(tmp_path / "out")
    record = EvaluationRecord.load(tmp_path / "out" / "records" / "test.json")
    assert record.notes["item_features"]["fusion"] == "align"


def test_what_does_not_fit_is_refused_before_anything_is_written(world, vectors, tmp_path, capsys):
    other = write_item_vectors(tmp_path / "other", ["a", "b"], {"vector": np.eye(2)}, {"kind": "other"})
    for options, message in (
        (["--item_features", str(other.folder)], "has vectors of 2 items, the catalogue has 100"),
        (["--item_features", str(tmp_path / "none")], "holds no item vectors"),
        (["--item_features", str(vectors.folder), "--fusion", "sum"], "--fusion must be one of gate"),
        (
            ["--item_features", str(vectors.folder), "--fusion", "init", "--hidden_size", "16"],
            "16 principal axes need",
        ),
    ):
        assert train(world, tmp_path / "out", *options) == 1
        assert message in capsys.readouterr().err
        assert not (tmp_path / "out").exists()
    argv = ["train", "popularity", "--dataset", str(world), "--output_dir", str(tmp_path / "out"), "--use_cpu"]
    assert main([*argv, "--item_features", str(vectors.folder)]) == 1
    assert "has no item table" in capsys.readouterr().err
