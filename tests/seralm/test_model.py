"""The SeRALM recommender: any backbone, knowledge at input and scores, texts replaced per row, saved without its encoder."""

import copy
import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn.functional import pad
from transformers import AutoConfig, AutoModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_MAPPING

from hf_seqrec.modeling import SASRecConfig, SeRALMConfig, SeRALMForSequentialRecommendation, seralm
from hf_seqrec.modeling.losses import make_loss
from hf_seqrec.modeling.seralm import catalogue_log_prob, next_item_log_prob
from hf_seqrec.modeling.teacher import BACKBONES


N, D, L, K = 20, 8, 6, 5
SMALL = {"num_items": N, "hidden_size": D, "max_length": L}
LAYERS = {"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
OWN = {
    "sasrec": LAYERS,
    "bert4rec": LAYERS,
    "lightsans": LAYERS | {"num_interests": 3},
    "gru4rec": {"recurrent_size": 12},
    "caser": {"window_size": 3, "num_horizontal_filters": 4},
    "nextitnet": {"dilations": [1, 2], "num_repeats": 1},
    "fmlprec": {"intermediate_size": 16},
}
HEADS = {name.removeprefix("hf_seqrec_"): head for name, head in BACKBONES.items()}
FUSIONS = ["concat", "gate", "add"]
INPUTS = torch.tensor([[0, 0, 1, 2, 3, 4], [5, 6, 7, 8, 9, 10], [0, 0, 0, 0, 0, 11], [0, 12, 13, 12, 20, 12]])
TARGETS = torch.tensor([5, 20, 1, 12])

every_backbone = pytest.mark.parametrize("name", sorted(HEADS))
every_fusion = pytest.mark.parametrize("fusion", FUSIONS)


def build(name="sasrec", fusion="concat", text_encoder=None, known=True, **changes):
    torch.manual_seed(0)
    config = HEADS[name].config_class(**SMALL, **OWN[name], initializer_range=0.5, **changes.pop("backbone", {}))
    size = {} if text_encoder else {"knowledge_size": K}
    model = SeRALMForSequentialRecommendation.from_parts(config, text_encoder, fusion=fusion, **size, **changes)
    if model.item_bias is not None:
        torch.nn.init.normal_(model.item_bias)
    if known:
        model.set_knowledge(torch.arange(1, N + 1), torch.randn(N, model.config.knowledge_size))
    return model


def training_batch(model):
    labels = torch.full_like(INPUTS, -100)
    labels[:, -1] = TARGETS
    if model.supervision == "cloze":
        inputs = INPUTS.clone()
        inputs[:, -1] = N + 1
        return inputs, labels
    return INPUTS, labels


def test_every_backbone_of_the_library_is_tested():
    assert set(HEADS) == set(OWN)


# --- the contract ---


@every_backbone
def test_scores_keep_the_contract_of_a_recommender(name):
    model = build(name)
    users, table = model(INPUTS).user_embeddings, model.item_representations()
    assert users.shape == (4, D)
    assert table.shape == (N + 1, D)
    assert not table[0].any()
    expected = users @ table.T if model.item_bias is None else users @ table.T + model.item_bias
    scores = model.score(INPUTS)
    torch.testing.assert_close(scores[:, 1:], expected[:, 1:])
    assert scores[:, 0].eq(-torch.inf).all()
    candidates = torch.tensor([[0, 3, 7]] * 4)
    torch.testing.assert_close(model.score(INPUTS, candidates), scores.gather(1, candidates))
    torch.testing.assert_close(model.score(pad(INPUTS, (7, 0))), scores)
    with pytest.raises(ValueError, match="row 1 has no item"):
        model.score(torch.tensor([[0, 1], [0, 0]]))


@every_backbone
@every_fusion
def test_knowledge_reaches_the_user_and_the_items_and_every_parameter_learns(name, fusion):
    model = build(name, fusion)
    before = model(INPUTS).user_embeddings.detach(), model.item_representations().detach().clone()
    inputs, labels = training_batch(model)
    model.train()(inputs, labels=labels).loss.backward()
    assert [key for key, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []
    model.eval().set_knowledge(torch.tensor([4, 10]), torch.randn(2, K))
    users, table = model(INPUTS).user_embeddings, model.item_representations()
    changed = (table != before[1]).any(1).nonzero().flatten().tolist()
    assert changed == [4, 10]
    assert not torch.allclose(users[0], before[0][0])
    assert torch.equal(users[2], before[0][2])  # its history has neither item


@every_backbone
@every_fusion
def test_with_knowledge_switched_off_it_is_its_backbone(name, fusion):
    model = build(name, fusion)
    plain = HEADS[name](HEADS[name].config_class(**SMALL, **OWN[name])).eval()
    plain.load_state_dict(model.backbone.state_dict(), strict=False)
    encoder = model.model.item_encoder
    with torch.no_grad():
        if fusion == "concat":
            encoder.projection.weight.copy_(torch.eye(D, D + K))
            encoder.projection.bias.zero_()
        elif fusion == "add":
            encoder.projection.weight.zero_()
            encoder.projection.bias.zero_()
        else:
            encoder.gate.bias.fill_(100.0)
    torch.testing.assert_close(model.score(INPUTS), plain.score(INPUTS))
    torch.testing.assert_close(model.log_prob(INPUTS, TARGETS), next_item_log_prob(plain, INPUTS, TARGETS))


@pytest.mark.parametrize("loss", ["cross_entropy", "bce"])
def test_the_loss_is_the_backbones_with_the_fused_table(loss):
    model = build()
    inputs, labels = training_batch(model)
    negatives = torch.randint(1, N + 1, (*labels.shape, 3))
    given = {"labels": labels, "negatives": negatives, "objective": make_loss(loss), "num_items_in_batch": 7}
    expected = model.backbone(inputs, item_table=model.item_representations(), **given).loss
    torch.testing.assert_close(model(inputs, **given).loss, expected)


def test_a_kept_table_is_made_anew_when_weights_or_knowledge_change():
    model = build()
    with torch.no_grad():
        first = model.item_representations()
        assert model.item_representations() is first
        model.set_knowledge(torch.tensor([3]), torch.ones(1, K))
        second = model.item_representations()
        model.model.item_encoder.projection.bias.add_(1.0)
        third = model.item_representations()
    assert not torch.equal(first, second)
    assert not torch.equal(second, third)
    assert model.item_representations().requires_grad


def test_a_kept_table_does_not_survive_training_with_an_optimizer_that_leaves_the_counters_alone():
    model = build().eval()
    with torch.no_grad():
        before = model.item_representations()
    inputs, labels = training_batch(model.train())
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)
    model(inputs, labels=labels).loss.backward()
    optimizer.step()
    with torch.no_grad():
        after = model.eval().item_representations()
    assert not torch.allclose(before, after)
    torch.testing.assert_close(after, model.backbone.model.item_encoder())


def test_an_evaluator_in_inference_mode_and_training_can_take_turns():
    model = build()
    with torch.inference_mode():
        scores = model.score(INPUTS)
    inputs, labels = training_batch(model)
    model(inputs, labels=labels).loss.backward()
    torch.testing.assert_close(model.score(INPUTS), scores)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_cast_model_scores_and_trains(dtype):
    reference = build()
    model = copy.deepcopy(reference).to(dtype)
    assert model.score(INPUTS).dtype == dtype
    inputs, labels = training_batch(model)
    items, vectors = torch.tensor([3, 4]), torch.randn(2, K)
    model.train()(inputs, labels=labels, knowledge=(items, vectors)).loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())
    found = model.eval().log_prob_with(INPUTS, TARGETS, torch.tensor([4, 5, 11, 1]), torch.randn(4, K))
    assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(
        model.log_prob(INPUTS, TARGETS).float(), reference.log_prob(INPUTS, TARGETS), atol=0.1, rtol=0.05
    )


# --- log p(y|x, s) ---


@every_backbone
@every_fusion
def test_log_prob_is_the_log_softmax_over_the_catalogue(name, fusion):
    model = build(name, fusion)
    expected = model.score(INPUTS)[:, 1:].log_softmax(1).gather(1, TARGETS[:, None] - 1)[:, 0]
    torch.testing.assert_close(model.log_prob(INPUTS, TARGETS), expected)
    everything = model.log_prob(INPUTS[:1].expand(N, -1), torch.arange(1, N + 1)).detach().exp()
    assert float(everything.sum()) == pytest.approx(1)


@every_backbone
@every_fusion
def test_a_vector_of_a_row_equals_a_table_made_for_that_row(name, fusion):
    model = build(name, fusion).double()
    # In the history, twice in the history, the target itself, and an item that is in neither.
    items, vectors = torch.tensor([4, 20, 11, 12]), torch.randn(4, K, dtype=torch.float64, requires_grad=True)
    found = model.log_prob_with(INPUTS, TARGETS, items, vectors)
    expected = torch.cat(
        [
            model.log_prob(INPUTS[i : i + 1], TARGETS[i : i + 1], (items[i : i + 1], vectors[i : i + 1]))
            for i in range(4)
        ]
    )
    torch.testing.assert_close(found, expected)
    assert not torch.allclose(found, model.log_prob(INPUTS, TARGETS))
    gradients = [torch.autograd.grad(value.sum(), [vectors, *model.parameters()]) for value in (found, expected)]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


def test_a_row_may_replace_several_items_or_none():
    model = build()
    items = torch.tensor([[4, 5, 1], [0, 0, 0], [0, 11, 20], [12, 3, 0]])
    vectors = torch.randn(4, 3, K)
    found = model.log_prob_with(INPUTS, TARGETS, items, vectors)
    for row in range(4):
        real = items[row] > 0
        alone = model.log_prob(INPUTS[row : row + 1], TARGETS[row : row + 1], (items[row][real], vectors[row][real]))
        torch.testing.assert_close(found[row : row + 1], alone)
    torch.testing.assert_close(found[1:2], model.log_prob(INPUTS[1:2], TARGETS[1:2]))


def test_with_several_threads_gradients_of_many_texts_repeat_to_the_bit(two_threads):
    model = build()
    items = torch.arange(8000).remainder(model.config.num_items).add(1).view(2000, 4)
    vectors = torch.randn(2000, 4, model.config.knowledge_size, generator=torch.Generator().manual_seed(0))
    weight = model.backbone.model.item_encoder.id_embedding.weight
    history, target = items[:, :3], items[:, 3]

    def run():
        model.zero_grad()
        model.log_prob_with(history, target, items, vectors).sum().backward()
        return weight.grad.clone()

    first = run()
    assert all(torch.equal(run(), first) for _ in range(4))


def test_rows_are_scored_in_chunks_with_the_same_values_and_gradients(monkeypatch):
    model = build("caser")
    items, vectors = torch.tensor([4, 20, 11, 12]), torch.randn(4, K)

    def values():
        model.zero_grad()
        found = model.log_prob_with(INPUTS, TARGETS, items, vectors) + model.log_prob(INPUTS, TARGETS)
        found.sum().backward()
        return found.detach(), [p.grad.clone() for p in model.parameters()]

    whole = values()
    sizes = []
    monkeypatch.setattr(seralm, "chunk_rows", lambda width, device: sizes.append(width) or 3)
    parts = values()
    assert sizes == [N + 1, N + 1]
    torch.testing.assert_close(parts, whole)


def test_no_rows_give_no_log_probabilities():
    assert catalogue_log_prob(torch.zeros(0, D), torch.zeros(0, dtype=torch.long), torch.zeros(N + 1, D)).shape == (0,)


def test_replaced_vectors_get_the_gradient_of_the_loss():
    model = build()
    items, vectors = torch.tensor([4, 12]), torch.randn(2, K, requires_grad=True)
    inputs, labels = training_batch(model)
    loss = model(inputs, labels=labels, knowledge=(items, vectors)).loss
    (gradient,) = torch.autograd.grad(loss, vectors)
    assert gradient.any(1).all()
    stored = model.knowledge.clone()
    model.set_knowledge(items, vectors.detach())
    torch.testing.assert_close(model(inputs, labels=labels).loss, loss)
    assert not torch.equal(stored, model.knowledge)


@pytest.mark.parametrize(
    ("items", "vectors", "message"),
    [
        (torch.tensor([0]), torch.zeros(1, K), "1…20, got 0…0"),
        (torch.tensor([21]), torch.zeros(1, K), "made for another catalogue"),
        (torch.tensor([3, 3]), torch.zeros(2, K), "more than once"),
        (torch.tensor([3]), torch.zeros(1, K + 1), r"vectors \(n, 5\)"),
        (torch.tensor([3]), torch.full((1, K), torch.nan), "item_index 3 has a value that is not finite"),
    ],
)
def test_knowledge_that_does_not_fit_is_refused(items, vectors, message):
    model = build()
    before = model.knowledge.clone()
    with pytest.raises(ValueError, match=message):
        model.set_knowledge(items, vectors)
    assert torch.equal(model.knowledge, before)


def test_rows_that_do_not_fit_their_vectors_are_refused():
    model = build()
    with pytest.raises(ValueError, match=r"4 rows need item_index"):
        model.log_prob_with(INPUTS, TARGETS, torch.tensor([1]), torch.zeros(1, K))
    with pytest.raises(ValueError, match=r"0…20"):
        model.log_prob_with(INPUTS[:1], TARGETS[:1], torch.tensor([21]), torch.zeros(1, K))
    with pytest.raises(ValueError, match="row 0 has no item"):
        model.log_prob_with(torch.zeros(1, 3, dtype=torch.long), TARGETS[:1], torch.tensor([1]), torch.zeros(1, K))
    with pytest.raises(ValueError, match="one of `item_table`"):
        model(INPUTS, item_table=model.item_representations(), knowledge=(torch.tensor([1]), torch.zeros(1, K)))


# --- texts ---


@pytest.mark.parametrize("kind", ["bert", "llama", "t5"])
@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_any_encoder_gives_vectors_that_do_not_depend_on_padding(kind, pooling, text_encoders):
    model = build(text_encoder=text_encoders[kind], known=False, pooling=pooling, max_text_tokens=12)
    tokens = model.tokenize(["A heist.", "A long voyage </s> to the end of the world", ""])
    assert max(map(len, tokens.rows)) == 12
    together = model.encode_all(tokens)
    assert together.shape == (3, 16)
    alone = torch.cat([model.encode_texts(*tokens.batch([row])) for row in range(3)])
    torch.testing.assert_close(together, alone)
    torch.testing.assert_close(model.encode_all(tokens, token_budget=1), together)


def test_the_first_knowledge_sets_the_scale_of_all_later_texts(text_encoder):
    model = build(text_encoder=text_encoder, known=False)
    texts = [f"film number {n}" for n in range(N)]
    raw = model.encode_all(model.tokenize(texts))
    training = np.array([1, 2, 3, 3, 9])
    model.start_from(raw, training)
    known = model.knowledge[torch.tensor([1, 2, 3, 9])]
    torch.testing.assert_close(known.mean(0), torch.zeros(16), atol=1e-5, rtol=0)
    assert float(known.square().sum(1).mean()) == pytest.approx(1, rel=1e-4)
    torch.testing.assert_close(model.encode_all(model.tokenize(texts)), model.knowledge[1:])
    with pytest.raises(ValueError, match="all equal"):
        model.start_from(torch.ones(N, 16))


def test_a_trained_encoder_gets_gradients_and_a_frozen_one_none(text_encoder):
    for train in (True, False):
        model = build(text_encoder=text_encoder, train_text_encoder=train)
        tokens = model.tokenize(["one", "two"])
        inputs, labels = training_batch(model)
        items = torch.tensor([4, 12])
        loss = model(inputs, labels=labels, knowledge_tokens=(items, *tokens.batch([0, 1]))).loss
        loss.backward()
        moved = [p.grad is not None and bool(p.grad.any()) for p in model.text_encoder.parameters()]
        assert (sum(moved) > 10) == train
        expected = model(inputs, labels=labels, knowledge=(items, model.encode_texts(*tokens.batch([0, 1])))).loss
        torch.testing.assert_close(loss, expected)


def test_texts_without_the_encoder_say_how_to_get_it():
    with pytest.raises(RuntimeError, match="text_encoder=True"):
        build().tokenize(["a"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "give a `text_encoder`, or the `knowledge_size`"),
        ({"knowledge_size": 4, "fusion": "none"}, "concat, gate or add"),
        ({"knowledge_size": 4, "pooling": "max"}, "mean, cls"),
        ({"knowledge_size": 4, "train_text_encoder": True}, "needs a text encoder"),
    ],
)
def test_parts_that_do_not_fit_are_refused(options, message):
    with pytest.raises(Exception, match=message):
        SeRALMForSequentialRecommendation.from_parts(SASRecConfig(num_items=3), **options)


def test_an_encoder_that_is_too_short_or_of_another_width_is_refused(text_encoder):
    with pytest.raises(ValueError, match="at most 512 tokens"):
        build(text_encoder=text_encoder, max_text_tokens=513)
    with pytest.raises(ValueError, match="have 16"):
        SeRALMForSequentialRecommendation.from_parts(SASRecConfig(num_items=3), text_encoder, knowledge_size=4)


# --- saving, loading, growing ---


@every_backbone
def test_a_saved_model_scores_the_same_through_the_auto_classes(name, tmp_path):
    model = build(name, backbone={"item_features": {"text": 3}})
    model.save_pretrained(tmp_path)
    loaded, info = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert type(loaded) is type(model)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    torch.testing.assert_close(loaded.score(INPUTS), model.score(INPUTS), rtol=1e-5, atol=1e-6)
    assert AutoConfig.from_pretrained(tmp_path).backbone == model.config.backbone
    assert AutoModel.from_config(model.config).config.num_items == N


def test_serving_loads_no_text_encoder_and_a_trained_one_comes_back_when_asked_for(text_encoder, tmp_path):
    model = build(text_encoder=text_encoder, train_text_encoder=True)
    with torch.no_grad():
        next(model.text_encoder.parameters()).add_(0.1)
    model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    assert not any(key.startswith("text_encoder") for key in weights)
    serving = AutoModel.from_pretrained(tmp_path)
    assert serving.text_encoder is None
    torch.testing.assert_close(serving.score(INPUTS), model.score(INPUTS), rtol=1e-5, atol=1e-6)
    loaded = AutoModel.from_pretrained(tmp_path, text_encoder=True)
    tokens = model.tokenize(["A heist.", "A voyage"])
    assert [row.tolist() for row in loaded.tokenize(["A heist.", "A voyage"]).rows] == [
        r.tolist() for r in tokens.rows
    ]
    torch.testing.assert_close(loaded.encode_all(tokens), model.encode_all(tokens))
    assert all(p.requires_grad for p in loaded.text_encoder.parameters())
    # What a trainer hands over holds everything; the files are the same.
    model.save_pretrained(tmp_path / "again", state_dict=model.state_dict())
    torch.testing.assert_close(load_file(tmp_path / "again/model.safetensors"), weights)
    assert (tmp_path / "again/text_encoder/model.safetensors").is_file()


def test_a_frozen_encoder_that_is_not_stored_comes_back_by_its_name(text_encoder, tmp_path):
    model = build(text_encoder=text_encoder, store_text_encoder=False)
    model.save_pretrained(tmp_path)
    assert not (tmp_path / "text_encoder").exists()
    tokens = model.tokenize(["A heist."])
    for where in (True, text_encoder):
        loaded = AutoModel.from_pretrained(tmp_path, text_encoder=where)
        torch.testing.assert_close(loaded.encode_all(tokens), model.encode_all(tokens))
    with pytest.raises(ValueError, match="has no text encoder"):
        build().load_text_encoder()


def test_weights_missing_in_a_checkpoint_are_initialised_and_not_garbage(tmp_path):
    model = build("bert4rec")
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(tmp_path)
    save_file({"nothing": torch.zeros(1)}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    loaded = AutoModel.from_pretrained(tmp_path)
    assert all(torch.isfinite(value).all() and value.abs().max() < 9 for value in loaded.state_dict().values())
    assert not loaded.knowledge.any()
    assert loaded.knowledge_scale.tolist() == [1]
    assert loaded.model.item_encoder.id_embedding.weight[1:].any(1).all()


def test_a_model_loads_from_the_code_in_its_folder(tmp_path):
    model = build()
    model.save_pretrained(tmp_path)
    assert set(json.loads((tmp_path / "config.json").read_text())["auto_map"]) == {"AutoConfig", "AutoModel"}
    kept = dict(CONFIG_MAPPING._extra_content), dict(MODEL_MAPPING._extra_content)
    for mapping in (CONFIG_MAPPING, MODEL_MAPPING):
        mapping._extra_content.clear()
    try:
        loaded = AutoModel.from_pretrained(tmp_path, trust_remote_code=True)
    finally:
        for mapping, content in zip((CONFIG_MAPPING, MODEL_MAPPING), kept, strict=True):
            mapping._extra_content.update(content)
    assert type(loaded).__module__.startswith("transformers_modules.")
    torch.testing.assert_close(loaded.score(INPUTS), model.score(INPUTS), rtol=1e-5, atol=1e-6)


@every_backbone
def test_new_items_are_ranked_by_their_knowledge_and_old_ones_as_before(name, tmp_path):
    model = build(name)
    before = model.score(INPUTS)
    model.add_items(torch.randn(2, K), data_fingerprint="newer")
    scores = model.score(INPUTS)
    assert scores.shape == (4, N + 3)
    torch.testing.assert_close(scores[:, : N + 1], before)
    assert torch.isfinite(scores[:, N + 1 :]).all()
    assert not torch.allclose(scores[:, N + 1], scores[:, N + 2])  # they differ in their knowledge alone
    model.score(torch.tensor([[1, N + 2]]))
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path)
    assert loaded.config.num_items == N + 2
    assert loaded.config.data_fingerprint == "newer"
    torch.testing.assert_close(loaded.score(INPUTS), scores, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="not finite"):
        model.add_items(torch.full((1, K), torch.inf))


def test_the_configuration_needs_a_backbone():
    with pytest.raises(ValueError, match=r"from_parts.*hf_seqrec_sasrec"):
        SeRALMForSequentialRecommendation(SeRALMConfig())
    assert SeRALMConfig.from_dict(build().config.to_dict()).num_items == N


# --- what a backbone can do, it can do inside ---


@pytest.mark.parametrize("name", ["sasrec", "bert4rec", "lightsans"])
def test_the_kind_of_attention_is_chosen_for_the_backbone_inside(name):
    model = build(name)
    model.set_attn_implementation("sdpa")
    expected = model.score(INPUTS)
    model.set_attn_implementation("eager")
    assert model.backbone.model.config._attn_implementation == "eager"
    torch.testing.assert_close(model.score(INPUTS), expected)


def test_activation_checkpointing_gives_the_same_gradients():
    plain = build(backbone={"hidden_dropout_prob": 0.0}).train()
    saving = copy.deepcopy(plain)
    saving.gradient_checkpointing_enable()
    assert any(getattr(module, "gradient_checkpointing", False) for module in saving.modules())
    inputs, labels = training_batch(plain)
    for model in (plain, saving):
        model(inputs, labels=labels).loss.backward()
    for (key, p), q in zip(plain.named_parameters(), saving.parameters(), strict=True):
        torch.testing.assert_close(q.grad, p.grad, msg=key)


def test_autocast_trains_and_keeps_no_table_of_half_precision():
    model = build(backbone={"hidden_dropout_prob": 0.0})
    inputs, labels = training_batch(model)
    expected = model(inputs, labels=labels).loss
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(inputs, labels=labels).loss
        with torch.no_grad():
            model.score(INPUTS)
    loss.backward()
    torch.testing.assert_close(loss, expected, atol=2e-2, rtol=2e-2)
    with torch.no_grad():
        assert model.item_representations().dtype == torch.float32
