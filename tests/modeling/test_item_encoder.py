import pytest
import torch

from hf_seqrec.modeling import ItemEncoder, SASRecConfig, SASRecForSequentialRecommendation


N, D = 9, 4
FEATURES = {"text": 3, "knowledge": 2}


def encoder(fusion, item_features=FEATURES, seed=0):
    torch.manual_seed(seed)
    config = SASRecConfig(num_items=N, hidden_size=D, fusion=fusion, item_features=item_features)
    module = ItemEncoder(config)
    module.reset(0.5)
    for name, size in module.feature_sizes.items():
        module.set_features(name, torch.randn(N, size))
    return module


def side(module):
    return torch.cat([module.feature_knowledge, module.feature_text], dim=1)


def by_definition(module):
    """The table of fused vectors from the formulas, row by row, without the padding row."""
    rows = []
    for i in range(1, N + 1):
        e, z = module.id_embedding.weight[i], side(module)[i] if module.feature_sizes else None
        if module.fusion in ("none", "init"):
            row = e
        elif module.fusion == "concat":
            row = module.projection.weight @ torch.cat([e, z]) + module.projection.bias
        elif module.fusion == "add":
            row = e + module.projection.weight @ z + module.projection.bias
        else:
            z = module.projection.weight @ z
            gate = torch.sigmoid(module.gate.weight @ torch.cat([e, z]) + module.gate.bias)
            row = gate * e + (1 - gate) * z
        rows.append(row)
    return torch.stack(rows)


@pytest.mark.parametrize("fusion", ["none", "init", "concat", "add", "gate"])
def test_fused_vectors_follow_their_formula(fusion):
    module = encoder(fusion)
    table = module()
    assert table.shape == (N + 1, D)
    assert not table[0].any()
    torch.testing.assert_close(table[1:], by_definition(module))


@pytest.mark.parametrize("fusion", ["none", "concat", "add", "gate"])
def test_some_items_are_rows_of_the_whole_table(fusion):
    module = encoder(fusion)
    some = torch.tensor([[0, 3], [9, 3]])
    torch.testing.assert_close(module(some), module()[some])
    torch.testing.assert_close(module.lookup(some, module()), module()[some])


@pytest.mark.parametrize("fusion", ["concat", "add", "gate"])
def test_side_vectors_are_frozen_and_saved(fusion):
    module = encoder(fusion)
    assert {"feature_text", "feature_knowledge"} <= set(module.state_dict())
    assert not any("feature" in name for name, _ in module.named_parameters())
    module().sum().backward()
    assert module.feature_text.grad is None


def test_features_are_ordered_by_name_however_they_are_declared():
    # A saved configuration has sorted keys: the same columns must meet the same weights after loading.
    one, other = encoder("add"), encoder("add", {"knowledge": 2, "text": 3})
    other.load_state_dict(one.state_dict())
    assert torch.equal(one(), other())


def test_the_padding_row_gets_no_gradient():
    module = encoder("none")
    module.lookup(torch.tensor([0, 3]), module()).sum().backward()
    assert not module.id_embedding.weight.grad[0].any()
    assert module.id_embedding.weight.grad[3].any()


def test_set_features_takes_vectors_with_and_without_a_padding_row():
    module = encoder("add")
    vectors = torch.randn(N, 3)
    module.set_features("text", vectors)
    without = module.feature_text.clone()
    module.set_features("text", torch.cat([torch.ones(1, 3), vectors]))
    assert torch.equal(module.feature_text, without)
    assert not without[0].any()


def test_bad_side_vectors_are_refused_and_leave_the_model_as_it_was():
    module = encoder("add")
    before = module.feature_text.clone()
    with pytest.raises(KeyError, match=r"no item feature 'txt'; this model has: knowledge, text"):
        module.set_features("txt", torch.zeros(N, 3))
    with pytest.raises(ValueError, match=r"'text' needs shape \(10, 3\).*got \(9, 4\)"):
        module.set_features("text", torch.zeros(N, 4))
    broken = torch.zeros(N, 3)
    broken[4, 1] = torch.nan
    with pytest.raises(ValueError, match=r"'text' has a value that is not finite at item_index 5"):
        module.set_features("text", broken)
    with pytest.raises(KeyError, match="this model has: none"):
        encoder("none").set_features("text", torch.zeros(N, 3))
    assert torch.equal(module.feature_text, before)


def test_initialize_from_sets_the_table_and_rescales():
    module = encoder("init")
    vectors = 7 * torch.randn(N, D)
    module.initialize_from(vectors)
    assert torch.equal(module()[1:], vectors)
    assert not module()[0].any()
    module.initialize_from(vectors, std=0.02)
    assert module()[1:].std().item() == pytest.approx(0.02, rel=1e-5)
    torch.testing.assert_close(module()[1] / module()[2], vectors[0] / vectors[1])
    assert module.id_embedding.weight.requires_grad


def test_initialize_from_refuses_other_fusions_and_shapes():
    with pytest.raises(ValueError, match="needs a model with fusion='init', this one has 'none'"):
        encoder("none").initialize_from(torch.zeros(N, D))
    with pytest.raises(ValueError, match=r"need shape \(10, 4\), got \(9, 5\)"):
        encoder("init").initialize_from(torch.zeros(N, 5))


def test_input_embeddings_are_the_id_table():
    model = SASRecForSequentialRecommendation(SASRecConfig(num_items=N, hidden_size=D))
    assert model.get_input_embeddings() is model.model.item_encoder.id_embedding
    replacement = torch.nn.Embedding(N + 1, D, padding_idx=0)
    model.set_input_embeddings(replacement)
    assert torch.equal(model.item_representations(), replacement.weight)
