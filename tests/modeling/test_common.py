"""What every recommender owes its users, checked for each of them."""

import copy
import json
import logging
import shutil
import sys

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch.nn.functional import pad
from transformers import AutoConfig, AutoModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_MAPPING

from hf_seqrec.modeling import (
    BERT4RecConfig,
    BERT4RecForSequentialRecommendation,
    CaserConfig,
    CaserForSequentialRecommendation,
    FMLPRecConfig,
    FMLPRecForSequentialRecommendation,
    GRU4RecConfig,
    GRU4RecForSequentialRecommendation,
    LightSANsConfig,
    LightSANsForSequentialRecommendation,
    NextItNetConfig,
    NextItNetForSequentialRecommendation,
    PopularityConfig,
    PopularityForSequentialRecommendation,
    SASRecConfig,
    SASRecForSequentialRecommendation,
)
from hf_seqrec.modeling.losses import LOSSES, make_loss


N, D, L = 20, 8, 6
SMALL = {"num_items": N, "hidden_size": D, "max_length": L}
TWO_LAYERS = {"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}

MODELS = {
    "sasrec": (SASRecConfig, SASRecForSequentialRecommendation, TWO_LAYERS),
    "sasrec-query": (SASRecConfig, SASRecForSequentialRecommendation, TWO_LAYERS | {"norm": "query"}),
    "sasrec-post": (SASRecConfig, SASRecForSequentialRecommendation, TWO_LAYERS | {"norm": "post"}),
    "gru4rec": (GRU4RecConfig, GRU4RecForSequentialRecommendation, {"recurrent_size": 12, "num_hidden_layers": 2}),
    "bert4rec": (BERT4RecConfig, BERT4RecForSequentialRecommendation, TWO_LAYERS),
    "caser": (CaserConfig, CaserForSequentialRecommendation, {"window_size": 3, "num_horizontal_filters": 4}),
    "nextitnet": (NextItNetConfig, NextItNetForSequentialRecommendation, {"dilations": [1, 2], "num_repeats": 1}),
    "fmlprec": (FMLPRecConfig, FMLPRecForSequentialRecommendation, {"intermediate_size": 16}),
    "lightsans": (LightSANsConfig, LightSANsForSequentialRecommendation, TWO_LAYERS | {"num_interests": 3}),
    "popularity": (PopularityConfig, PopularityForSequentialRecommendation, {"hidden_size": 1}),
}
ATTENTION = ["sasrec", "sasrec-query", "sasrec-post", "bert4rec", "lightsans"]
BACKBONES = [name for name in MODELS if name != "popularity"]
CHECKPOINTED = [name for name in MODELS if name not in ("gru4rec", "caser", "popularity")]
CAUSAL = [name for name, (_, head, _) in MODELS.items() if head.supervision == "all_positions"]
FUSIONS = ["none", "init", "concat", "add", "gate"]

# Rows of different lengths: full, in between, a single item, and a repeated item.
INPUTS = torch.tensor(
    [[0, 0, 1, 2, 3, 4], [5, 6, 7, 8, 9, 10], [0, 0, 0, 0, 0, 11], [0, 12, 13, 12, 20, 12]]
)  # fmt: skip
FOLLOWING = torch.tensor(
    [[-100, -100, 2, 3, 4, 14], [6, 7, 8, 9, 10, 15], [-100] * 5 + [16], [-100, 13, 12, 20, 12, 17]]
)  # fmt: skip


def build(name, seed=0, **changes):
    config_class, head_class, own = MODELS[name]
    torch.manual_seed(seed)
    return head_class(config_class(**(SMALL | own | changes))).eval()


def training_batch(model):
    """Inputs and labels of the kind the model trains on."""
    if model.supervision == "cloze":
        hidden = torch.zeros_like(INPUTS, dtype=torch.bool)
        hidden[:, -1] = hidden[1, 2] = True
        return INPUTS.masked_fill(hidden, N + 1), INPUTS.masked_fill(~hidden, -100)
    labels = FOLLOWING.clone()
    if model.supervision == "last_position":
        labels[:, :-1] = -100
    return INPUTS, labels


def finite(scores):
    """Scores without the padding column, which is -inf."""
    return scores[:, 1:]


every_model = pytest.mark.parametrize("name", list(MODELS))
every_backbone = pytest.mark.parametrize("name", BACKBONES)


# --- outputs ---


@every_model
def test_outputs_have_the_shapes_of_the_contract(name):
    model = build(name)
    dim = model.config.hidden_size
    assert model(INPUTS).loss is None
    assert model(INPUTS).user_embeddings.shape == (4, dim)
    assert model.item_representations().shape == (N + 1, dim)
    assert model.score(INPUTS).shape == (4, N + 1)
    candidates = torch.tensor([[1, 2, 3]] * 4)
    assert model.score(INPUTS, candidates).shape == (4, 3)
    inputs, labels = training_batch(model)
    loss = model(inputs, labels=labels).loss
    assert loss.shape == ()
    assert torch.isfinite(loss)
    states = model.model(INPUTS).last_hidden_state
    assert states.shape == (4, L, dim)
    assert not states[0, :2].any()
    assert states[:, -1].any(1).all()


@every_model
def test_scores_are_user_embeddings_times_item_representations(name):
    model = build(name)
    assert model.is_dot_product
    expected = model(INPUTS).user_embeddings @ model.item_representations().T
    if model.item_bias is not None:
        with torch.no_grad():
            model.item_bias.copy_(torch.randn(N + 1))
        expected = expected + model.item_bias
    torch.testing.assert_close(finite(model.score(INPUTS)), finite(expected))


@every_model
def test_padding_is_never_recommended(name):
    model = build(name)
    assert model.score(INPUTS)[:, 0].eq(-torch.inf).all()
    scores = model.score(INPUTS, torch.tensor([[0, 3]] * 4))
    assert scores[:, 0].eq(-torch.inf).all()
    assert torch.isfinite(scores[:, 1]).all()


@every_model
def test_candidate_scores_are_the_full_scores_of_the_candidates(name):
    model = build(name)
    if model.item_bias is not None:
        torch.nn.init.normal_(model.item_bias)
    candidates = torch.stack([torch.randperm(N)[:7] + 1 for _ in range(4)])
    expected = model.score(INPUTS).gather(1, candidates)
    torch.testing.assert_close(model.score(INPUTS, candidates), expected)


@every_model
def test_the_same_seed_gives_the_same_model_and_scores(name):
    first, second, other = build(name, seed=1), build(name, seed=1), build(name, seed=2)
    assert torch.equal(first.score(INPUTS), second.score(INPUTS))
    assert not torch.equal(first.score(INPUTS), other.score(INPUTS))


# --- gradients ---


@every_model
@pytest.mark.parametrize("loss", LOSSES)
def test_every_parameter_gets_a_gradient(name, loss):
    model = build(name).train()
    inputs, labels = training_batch(model)
    negatives = torch.randint(1, N + 1, (*labels.shape, 3))
    model(inputs, labels=labels, negatives=negatives, objective=make_loss(loss)).loss.backward()
    without = [key for key, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == []
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


@every_model
def test_loss_is_the_sum_over_labels_divided_by_their_number_in_the_step(name):
    model = build(name)
    inputs, labels = training_batch(model)
    count = int((labels != -100).sum())
    mean = model(inputs, labels=labels).loss
    halves = [model(inputs[rows], labels=labels[rows], num_items_in_batch=count).loss for rows in ([0, 3], [1, 2])]
    torch.testing.assert_close(sum(halves), mean)


@every_model
def test_negatives_shared_by_a_row_equal_the_same_negatives_at_each_position(name):
    model = build(name)
    inputs, labels = training_batch(model)
    shared = torch.randint(1, N + 1, (4, 1, 3))
    losses = [
        model(inputs, labels=labels, negatives=negatives, objective=make_loss("bce")).loss
        for negatives in (shared, shared.expand(-1, L, -1))
    ]
    torch.testing.assert_close(*losses)


@every_model
def test_training_lowers_the_loss(name):
    model = build(name, hidden_dropout_prob=0.0)
    inputs, labels = training_batch(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    losses = []
    for _ in range(15):
        loss = model(inputs, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.95 * losses[0]


@pytest.mark.parametrize("name", CHECKPOINTED)
def test_activation_checkpointing_gives_the_same_gradients(name):
    plain = build(name, hidden_dropout_prob=0.0).train()
    saving = copy.deepcopy(plain)
    saving.gradient_checkpointing_enable()
    inputs, labels = training_batch(plain)
    assert any(getattr(module, "gradient_checkpointing", False) for module in saving.modules())
    for model in (plain, saving):
        model(inputs, labels=labels).loss.backward()
    for (key, p), q in zip(plain.named_parameters(), saving.parameters(), strict=True):
        torch.testing.assert_close(q.grad, p.grad, msg=key)


# --- padding, causality, dtypes, attention ---


@every_model
def test_extra_left_padding_changes_nothing(name):
    model = build(name)
    expected, states = model.score(INPUTS), model.model(INPUTS).last_hidden_state
    for extra in (1, 7, 50):
        padded = pad(INPUTS, (extra, 0))
        assert torch.equal(finite(model.score(padded)), finite(expected))
        torch.testing.assert_close(model.model(padded).last_hidden_state[:, extra:], states)
    inputs, labels = training_batch(model)
    torch.testing.assert_close(
        model(pad(inputs, (5, 0)), labels=pad(labels, (5, 0), value=-100)).loss, model(inputs, labels=labels).loss
    )


@every_model
def test_a_row_scores_the_same_alone_and_in_a_batch(name):
    model = build(name)
    together = model.score(INPUTS)
    for row, length in enumerate([4, 6, 1, 5]):
        alone = model.score(INPUTS[row : row + 1, -length:])
        torch.testing.assert_close(finite(alone)[0], finite(together)[row])


@every_model
def test_only_the_last_max_length_items_count(name):
    model = build(name)
    longer = torch.cat([torch.randint(1, N + 1, (1, 9)), INPUTS[1:2]], dim=1)
    torch.testing.assert_close(finite(model.score(longer)), finite(model.score(INPUTS[1:2])))


@pytest.mark.parametrize("name", CAUSAL)
def test_a_later_item_never_changes_an_earlier_state(name):
    model = build(name)
    changed = INPUTS.clone()
    changed[:, -1] = 18
    before, after = (model.model(ids).last_hidden_state for ids in (INPUTS, changed))
    torch.testing.assert_close(after[:, :-1], before[:, :-1])
    if name != "popularity":
        assert not torch.allclose(after[:, -1], before[:, -1])


@pytest.mark.parametrize("name", CAUSAL)
def test_the_state_of_a_position_is_that_of_the_sequence_cut_there(name):
    # Otherwise training on all positions would train something else than what is asked for later.
    model = build(name)
    if name.startswith("sasrec"):
        torch.nn.init.zeros_(model.model.position_embedding.weight)  # positions count from the end of the row
    row = INPUTS[1:2]
    states = model.model(row).last_hidden_state
    for stop in range(1, L + 1):
        torch.testing.assert_close(model.model(row[:, :stop]).last_hidden_state[:, -1], states[:, stop - 1])


@every_backbone
def test_scores_depend_on_the_order_of_the_history(name):
    model = build(name, initializer_range=0.5)
    scores, swapped = model.score(INPUTS[1:2]), model.score(INPUTS[1:2, [1, 0, 2, 3, 5, 4]])
    assert not torch.allclose(finite(scores), finite(swapped))


@every_model
def test_empty_history_is_refused_and_the_row_named(name):
    inputs = INPUTS.clone()
    inputs[2] = 0
    with pytest.raises(ValueError, match=r"row 2 has no item"):
        build(name).score(inputs)


@every_model
def test_right_padded_input_is_refused_and_the_row_named(name):
    model = build(name)
    inputs = INPUTS.clone()
    inputs[1, -1] = 0
    for call in (model.score, model, model.model):
        with pytest.raises(ValueError, match=r"must be left-padded: row 1 has a 0 after an item"):
            call(inputs)


@every_model
def test_a_training_row_without_items_does_no_harm(name):
    model = build(name)
    inputs, labels = training_batch(model)
    with_empty = pad(inputs, (0, 0, 0, 1)), pad(labels, (0, 0, 0, 1), value=-100)
    losses = [model(ids, labels=target).loss for ids, target in ((inputs, labels), with_empty)]
    torch.testing.assert_close(losses[1], losses[0])
    losses[1].backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())
    assert torch.isfinite(model.model(with_empty[0].clamp(max=N)).last_hidden_state).all()


@every_model
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_cast_model_scores_and_trains(name, dtype):
    reference = build(name)
    model = copy.deepcopy(reference).to(dtype)
    scores = model.score(INPUTS)
    assert scores.dtype == dtype
    close = {"atol": 2e-2, "rtol": 5e-2} if dtype == torch.bfloat16 else {"atol": 1e-5, "rtol": 1e-4}
    torch.testing.assert_close(finite(scores).float(), finite(reference.score(INPUTS)), **close)
    inputs, labels = training_batch(model)
    loss = model.train()(inputs, labels=labels).loss
    loss.backward()
    assert all(p.grad.dtype == dtype and torch.isfinite(p.grad).all() for p in model.parameters())


@every_model
def test_autocast_trains(name):
    model = build(name, hidden_dropout_prob=0.0)
    inputs, labels = training_batch(model)
    expected = model(inputs, labels=labels).loss
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(inputs, labels=labels).loss
    loss.backward()
    torch.testing.assert_close(loss, expected, atol=2e-2, rtol=2e-2)
    assert all(p.grad.dtype == torch.float32 for p in model.parameters())


@pytest.mark.parametrize("name", ATTENTION)
def test_eager_attention_equals_sdpa(name):
    model = build(name)
    model.set_attn_implementation("sdpa")
    assert model.config._attn_implementation == "sdpa"
    expected, states = model.score(INPUTS), model.model(INPUTS).last_hidden_state
    model.set_attn_implementation("eager")
    assert model.model.config._attn_implementation == "eager"
    torch.testing.assert_close(finite(model.score(INPUTS)), finite(expected))
    torch.testing.assert_close(model.model(INPUTS).last_hidden_state, states)


# --- saving and loading ---


@every_model
@pytest.mark.parametrize("fusion", ["none", "gate"])
def test_a_saved_model_scores_the_same_through_the_auto_classes(name, fusion, tmp_path):
    features = {} if fusion == "none" else {"item_features": {"text": 5, "knowledge": 3}}
    model = build(name, fusion=fusion, **features)
    for feature, size in features.get("item_features", {}).items():
        model.model.item_encoder.set_features(feature, torch.randn(N, size))
    if model.item_bias is not None:
        torch.nn.init.normal_(model.item_bias)
    model.save_pretrained(tmp_path)
    loaded, info = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert type(loaded) is type(model)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    torch.testing.assert_close(loaded.score(INPUTS), model.score(INPUTS), rtol=1e-5, atol=1e-6)
    config = AutoConfig.from_pretrained(tmp_path)
    assert type(config) is type(model.config)
    assert config.to_dict() | {"architectures": None} == loaded.config.to_dict() | {"architectures": None}
    assert torch.equal(AutoModel.from_config(config).eval().score(INPUTS).isinf(), model.score(INPUTS).isinf())


@every_model
def test_weights_missing_in_a_checkpoint_are_initialised_and_not_garbage(name, tmp_path):
    model = build(name, fusion="concat", item_features={"text": 5})
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(tmp_path)
    save_file({"nothing": torch.zeros(1)}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    loaded = type(model).from_pretrained(tmp_path)
    for key, value in loaded.state_dict().items():
        assert torch.isfinite(value).all(), key
        assert value.abs().max() <= 3, key
    assert not loaded.model.item_encoder.id_embedding.weight[0].any()
    assert loaded.model.item_encoder.id_embedding.weight[1:].any(1).all()
    assert not loaded.model.item_encoder.feature_text.any()
    assert loaded.score(INPUTS).shape == (4, N + 1)


@every_model
def test_a_new_model_is_initialised_like_one_with_missing_weights(name, tmp_path):
    # Meta-device loading takes another path than construction; both must know how every parameter starts.
    model = build(name, initializer_range=0.3)
    model.config.save_pretrained(tmp_path)
    save_file({"nothing": torch.zeros(1)}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    loaded = type(model).from_pretrained(tmp_path)
    for (key, value), other in zip(model.state_dict().items(), loaded.state_dict().values(), strict=True):
        if value.numel() >= 30:
            assert value.std().item() == pytest.approx(other.std().item(), rel=0.6, abs=1e-6), key
        assert bool(value.any()) == bool(other.any()), key


@every_model
def test_unknown_configuration_fields_are_refused_and_the_known_ones_listed(name):
    config_class, _, _ = MODELS[name]
    with pytest.raises(TypeError, match=rf"{config_class.__name__} has no field 'hiden_size'.*hidden_size"):
        config_class(num_items=3, hiden_size=3)


@every_model
def test_a_configuration_of_a_newer_release_loads_with_a_warning(name, tmp_path, caplog):
    model = build(name)
    model.save_pretrained(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text()) | {"field_of_the_future": 7}
    (tmp_path / "config.json").write_text(json.dumps(values))
    logger = logging.getLogger("hf_seqrec.modeling.base")
    logger.addHandler(caplog.handler)
    try:
        loaded = AutoModel.from_pretrained(tmp_path)
    finally:
        logger.removeHandler(caplog.handler)
    assert "field_of_the_future" in caplog.text
    torch.testing.assert_close(loaded.score(INPUTS), model.score(INPUTS), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_items": 0}, "num_items"),
        ({"max_length": 0}, "max_length"),
        ({"fusion": "sum"}, "fusion.*none, init, concat, add, gate"),
        ({"fusion": "add"}, "needs `item_features`"),
        ({"hidden_dropout_prob": 1.0}, "dropout"),
    ],
)
@every_model
def test_impossible_configurations_are_refused(name, changes, message):
    if changes.get("hidden_dropout_prob") and name == "popularity":
        pytest.skip("popularity has no dropout")
    with pytest.raises(Exception, match=message):
        build(name, **changes)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("sasrec", {"num_attention_heads": 3}, r"num_attention_heads` \(3\) must divide `hidden_size` \(8\)"),
        ("sasrec", {"norm": "middle"}, "'pre', 'query' or 'post'"),
        ("bert4rec", {"num_attention_heads": 3}, "must divide"),
        ("bert4rec", {"max_length": 1}, "an item and the mask"),
        ("lightsans", {"num_attention_heads": 3}, "must divide"),
        ("lightsans", {"num_interests": 0}, "num_interests"),
        ("caser", {"window_size": 0}, "window_size"),
        ("caser", {"num_vertical_filters": 0}, "num_vertical_filters"),
        ("nextitnet", {"dilations": []}, "dilations"),
        ("nextitnet", {"dilations": [1, 0]}, "dilations"),
        ("nextitnet", {"kernel_size": 0}, "kernel_size"),
        ("popularity", {"hidden_size": 2}, "hidden_size` must be 1"),
    ],
)
def test_impossible_values_of_a_method_are_refused(name, changes, message):
    with pytest.raises(Exception, match=message):
        build(name, **changes)


# --- side vectors ---


def with_features(name, fusion):
    sizes = {"text": 5, "knowledge": 3} if fusion in ("concat", "add", "gate") else None
    model = build(name, fusion=fusion, item_features=sizes)
    for feature, size in (sizes or {}).items():
        model.model.item_encoder.set_features(feature, torch.randn(N, size))
    return model


@every_backbone
@pytest.mark.parametrize("fusion", FUSIONS)
def test_every_fusion_works_with_every_backbone(name, fusion):
    model = with_features(name, fusion)
    if fusion == "init":
        model.model.item_encoder.initialize_from(torch.randn(N, D))
    inputs, labels = training_batch(model)
    scores = model.score(INPUTS)
    assert torch.isfinite(finite(scores)).all()
    model.train()(inputs, labels=labels).loss.backward()
    assert all(p.grad is not None and p.grad.any() for p in model.parameters())
    # Side vectors reach input and scoring: other vectors, other users and other items.
    if model.model.item_encoder.feature_sizes:
        before = model.eval()(INPUTS).user_embeddings, model.item_representations()
        model.model.item_encoder.set_features("text", torch.randn(N, 5))
        after = model(INPUTS).user_embeddings, model.item_representations()
        for old, new in zip(before, after, strict=True):
            assert not torch.allclose(old, new)


@every_backbone
@pytest.mark.parametrize("fusion", FUSIONS[1:])
def test_with_its_enhancement_off_a_model_equals_its_backbone(name, fusion):
    backbone, enhanced = build(name), with_features(name, fusion)
    enhanced.load_state_dict(backbone.state_dict(), strict=False)
    encoder = enhanced.model.item_encoder
    with torch.no_grad():
        if fusion == "concat":  # W = [identity, 0]
            encoder.projection.weight.copy_(torch.eye(D, D + 8))
            encoder.projection.bias.zero_()
        elif fusion == "add":
            encoder.projection.weight.zero_()
            encoder.projection.bias.zero_()
        elif fusion == "gate":  # an open gate lets the ID row through alone
            encoder.gate.bias.fill_(100.0)
    torch.testing.assert_close(enhanced.score(INPUTS), backbone.score(INPUTS))
    inputs, labels = training_batch(backbone)
    torch.testing.assert_close(enhanced(inputs, labels=labels).loss, backbone(inputs, labels=labels).loss)


@pytest.mark.parametrize("name", [name for name in MODELS if name != "bert4rec"])
def test_the_user_embedding_is_the_projected_state_of_the_last_item(name):
    # Requests take a shorter way (last query only) than training; BERT4Rec's request has an own test, it adds a mask.
    model = build(name, initializer_range=0.5)
    states = model.model(INPUTS).last_hidden_state[:, -1]
    torch.testing.assert_close(model(INPUTS).user_embeddings, model.project_states(states))


# --- code that travels ---


@pytest.fixture
def no_registered_classes():
    """The Auto classes as they are where this package is not installed."""
    kept = dict(CONFIG_MAPPING._extra_content), dict(MODEL_MAPPING._extra_content)
    for mapping in (CONFIG_MAPPING, MODEL_MAPPING):
        mapping._extra_content.clear()
    yield
    for mapping, content in zip((CONFIG_MAPPING, MODEL_MAPPING), kept, strict=True):
        mapping._extra_content.clear()
        mapping._extra_content.update(content)


@pytest.mark.parametrize("name", [name for name in MODELS if "-" not in name])
def test_a_model_loads_from_the_code_in_its_folder(name, tmp_path, no_registered_classes):
    model = build(name)
    model.save_pretrained(tmp_path)
    auto_map = json.loads((tmp_path / "config.json").read_text())["auto_map"]
    assert set(auto_map) == {"AutoConfig", "AutoModel"}
    for reference in auto_map.values():
        assert (tmp_path / f"{reference.split('.')[0]}.py").is_file()
    with pytest.raises(ValueError, match=r"model type|trust_remote_code"):
        AutoConfig.from_pretrained(tmp_path, trust_remote_code=False)
    loaded = AutoModel.from_pretrained(tmp_path, trust_remote_code=True)
    assert type(loaded).__module__.startswith("transformers_modules.")
    assert type(loaded) is not type(model)
    torch.testing.assert_close(loaded.score(INPUTS), model.score(INPUTS), rtol=1e-5, atol=1e-6)
    # Nothing of the installed package is behind it.
    folder = type(loaded).__module__.rsplit(".", 1)[0]
    assert f"{folder}.base" in sys.modules
    assert type(loaded).__mro__[1].__module__.startswith("transformers_modules.")


def test_with_the_package_installed_its_own_code_wins(tmp_path):
    model = build("sasrec")
    model.save_pretrained(tmp_path)
    assert type(AutoModel.from_pretrained(tmp_path, trust_remote_code=True)) is type(model)


# --- many devices, compilation ---


@pytest.fixture
def one_process_group(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def sgd_steps(model, steps=2):
    inputs, labels = training_batch(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    losses = []
    for _ in range(steps):
        loss = model(inputs, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("name", CHECKPOINTED)
def test_sharded_training_equals_plain_training(name, one_process_group):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor

    plain = build(name, initializer_range=0.3, hidden_dropout_prob=0.0).train()
    sharded = copy.deepcopy(plain)
    mesh = init_device_mesh("cpu", (1,))
    blocks = [module for module in sharded.modules() if type(module).__name__ in sharded._no_split_modules]
    assert len(blocks) == 2
    for module in [*blocks, sharded]:
        fully_shard(module, mesh=mesh)
    assert all(isinstance(parameter, DTensor) for parameter in sharded.parameters())
    before = [parameter.detach().clone() for parameter in plain.parameters()]
    assert sgd_steps(sharded) == pytest.approx(sgd_steps(plain), rel=1e-6)
    for (key, p), q, start in zip(plain.named_parameters(), sharded.parameters(), before, strict=True):
        torch.testing.assert_close(q.full_tensor(), p, msg=key)
        assert not torch.equal(p, start), key


@pytest.mark.parametrize("name", CHECKPOINTED)
def test_states_are_captured_in_one_graph(name):
    torch.compiler.reset()
    model = build(name)
    captured = torch.compile(model.model, backend="eager", fullgraph=True)
    torch.testing.assert_close(captured(INPUTS).last_hidden_state, model.model(INPUTS).last_hidden_state)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU")
def test_a_compiled_model_gives_the_same_loss_and_gradients():
    torch.compiler.reset()
    model = build("sasrec", num_hidden_layers=1, hidden_dropout_prob=0.0)
    inputs, labels = training_batch(model)
    loss = torch.compile(model)(inputs, labels=labels).loss
    loss.backward()
    gradients = {key: parameter.grad.clone() for key, parameter in model.named_parameters()}
    model.zero_grad()
    expected = model(inputs, labels=labels).loss
    expected.backward()
    torch.testing.assert_close(loss, expected)
    for key, parameter in model.named_parameters():
        torch.testing.assert_close(gradients[key], parameter.grad, msg=key)
