"""What makes each method the method of its paper."""

import math

import pytest
import torch
import torch.nn.functional as F

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
    SASRecConfig,
    SASRecForSequentialRecommendation,
)
from hf_seqrec.modeling.base import to_right_padded
from hf_seqrec.modeling.layers import Dropout
from hf_seqrec.modeling.lightsans import InterestPooling


N, D = 20, 8
HISTORY = torch.tensor([[3, 7, 1, 12, 5, 9, 2, 17]])


def seeded(head_class, config):
    torch.manual_seed(0)
    model = head_class(config).eval()
    # Start values near zero would make wrong and right maths look alike.
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    with torch.no_grad():
        model.model.item_encoder.id_embedding.weight[0] = 0
    return model


def vectors(model, ids=HISTORY):
    return model.item_representations()[ids]


# --- GRU4Rec ---


def test_gru4rec_state_follows_the_gate_equations():
    model = seeded(GRU4RecForSequentialRecommendation, GRU4RecConfig(num_items=N, hidden_size=D, recurrent_size=5))
    gru = model.model.recurrent
    state = torch.zeros(5)
    for x in vectors(model)[0]:
        from_input = (gru.weight_ih_l0 @ x + gru.bias_ih_l0).chunk(3)
        from_state = (gru.weight_hh_l0 @ state + gru.bias_hh_l0).chunk(3)
        reset, update = (torch.sigmoid(a + b) for a, b in zip(from_input[:2], from_state[:2], strict=True))
        candidate = torch.tanh(from_input[2] + reset * from_state[2])
        state = (1 - update) * candidate + update * state
    expected = model.model.output(state)
    torch.testing.assert_close(model(HISTORY).user_embeddings[0], expected)


# --- Caser ---


@pytest.mark.parametrize("window", [1, 2, 5, 8, 11])
def test_caser_in_one_pass_equals_the_original_network_on_every_window(window):
    config = CaserConfig(
        num_items=N, hidden_size=D, window_size=window, num_horizontal_filters=3, num_vertical_filters=2
    )
    model = seeded(CaserForSequentialRecommendation, config)
    caser, sequence = model.model, vectors(model)[0]
    states = caser(HISTORY).last_hidden_state[0]
    padded = torch.cat([torch.zeros(window - 1, D), sequence])
    for position in range(len(sequence)):
        image = padded[position : position + window]  # (L, d), the last L items up to here, zeros before the first
        horizontal = []
        for height in range(1, window + 1):
            weight, bias = caser.horizontal[height - 1].weight, caser.horizontal[height - 1].bias
            for f in range(3):
                places = [
                    F.relu((weight[f].T * image[start : start + height]).sum() + bias[f])
                    for start in range(window - height + 1)
                ]
                horizontal.append(torch.stack(places).max())
        vertical = [caser.vertical.weight[f] @ image + caser.vertical.bias[f] for f in range(2)]
        expected = F.relu(caser.output(torch.cat([torch.stack(horizontal), *vertical])))
        torch.testing.assert_close(states[position], expected)
    torch.testing.assert_close(model(HISTORY).user_embeddings[0], states[-1])


def test_caser_forgets_what_left_its_window():
    model = seeded(CaserForSequentialRecommendation, CaserConfig(num_items=N, hidden_size=D, window_size=3))
    other = torch.cat([torch.full_like(HISTORY[:, :5], 4), HISTORY[:, 5:]], dim=1)
    assert torch.equal(model.score(HISTORY), model.score(other))


# --- NextItNet ---


def test_nextitnet_block_follows_its_definition():
    config = NextItNetConfig(num_items=N, hidden_size=D, dilations=[2], num_repeats=1, kernel_size=3)
    model = seeded(NextItNetForSequentialRecommendation, config)
    block, x = model.model.layers[0], vectors(model)[0]

    def dilated(layer, sequence, dilation):
        out = []
        for t in range(len(sequence)):
            total = layer.convolution.bias
            for k in range(3):  # the last tap is the present, the first the most distant past
                source = t - (2 - k) * dilation
                if source >= 0:
                    total = total + layer.convolution.weight[:, :, k] @ sequence[source]
            out.append(total)
        return F.relu(layer.norm(torch.stack(out)))

    expected = model.model.output(x + dilated(block.second, dilated(block.first, x, 2), 4))
    torch.testing.assert_close(model.model(HISTORY).last_hidden_state[0], expected)


def test_nextitnet_sees_exactly_as_far_as_its_dilations_reach():
    config = NextItNetConfig(num_items=N, hidden_size=D, max_length=30, dilations=[1, 2], num_repeats=1)
    model = seeded(NextItNetForSequentialRecommendation, config)
    reach = 2 * (1 + 2 + 2 + 4)  # (kernel - 1) times all dilations
    history = torch.randint(1, N, (1, 30))
    expected = model.score(history)
    beyond, within = history.clone(), history.clone()
    beyond[0, -1 - reach - 1] = N
    within[0, -1 - reach] = N
    torch.testing.assert_close(model.score(beyond), expected)
    assert not torch.allclose(model.score(within)[:, 1:], expected[:, 1:])


# --- FMLP-Rec ---


@pytest.mark.parametrize("length", [8, 9])
def test_fmlprec_filter_is_a_circular_convolution_over_time(length):
    config = FMLPRecConfig(num_items=N, hidden_size=D, max_length=length)
    model = seeded(FMLPRecForSequentialRecommendation, config)
    layer = model.model.layers[0].filter
    x = torch.randn(2, length, D)
    kernel = torch.fft.irfft(torch.view_as_complex(layer.weight.detach()), n=length, dim=0)
    expected = torch.zeros_like(x)
    for t in range(length):
        for s in range(length):
            expected[:, t] += kernel[s] * x[:, (t - s) % length]
    torch.testing.assert_close(layer(x), expected, atol=1e-5, rtol=1e-4)


def test_fmlprec_filter_of_ones_changes_nothing():
    model = seeded(FMLPRecForSequentialRecommendation, FMLPRecConfig(num_items=N, hidden_size=D, max_length=7))
    layer, x = model.model.layers[0].filter, torch.randn(2, 7, D)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([1.0, 0.0]))
    torch.testing.assert_close(layer(x), x)
    for dtype in (torch.bfloat16, torch.float64):
        assert layer.to(dtype)(x.to(dtype)).dtype == dtype


def test_fmlprec_reads_a_left_padded_row_of_its_full_length():
    config = FMLPRecConfig(num_items=N, hidden_size=D, max_length=12, num_hidden_layers=1, intermediate_size=16)
    model = seeded(FMLPRecForSequentialRecommendation, config)
    fmlp, layer = model.model, model.model.layers[0]
    # The original: items at the right edge of 12 columns, zero vectors before, a position vector in every column.
    row = torch.cat([torch.zeros(1, 4, D), vectors(model)], dim=1)
    x = fmlp.norm(row + fmlp.position_embedding.weight)
    x = layer.filter_norm(x + layer.filter(x))
    x = layer.feed_forward_norm(x + layer.feed_forward(x))
    torch.testing.assert_close(model(HISTORY).user_embeddings, x[:, -1])
    torch.testing.assert_close(fmlp(HISTORY).last_hidden_state, x[:, 4:])


# --- LightSANs ---


def test_lightsans_interests_are_means_over_the_items_of_a_row():
    torch.manual_seed(0)
    pooling = InterestPooling(LightSANsConfig(num_items=N, hidden_size=D, num_interests=3))
    x, mask = torch.randn(2, 5, D), torch.tensor([[True] * 5, [True, True, False, False, False]])
    pooled = pooling(x, mask)
    assert pooled.shape == (2, 3, D)
    for row, length in enumerate([5, 2]):
        weights = torch.softmax(x[row, :length] @ pooling.interests.weight.T, dim=0)
        torch.testing.assert_close(pooled[row], weights.T @ x[row, :length])
    torch.nn.init.zeros_(pooling.interests.weight)
    torch.testing.assert_close(pooling(x, mask)[1], x[1, :2].mean(0).expand(3, -1))


def test_lightsans_attention_follows_its_definition():
    config = LightSANsConfig(num_items=N, hidden_size=D, num_interests=3, num_attention_heads=2, num_hidden_layers=1)
    model = seeded(LightSANsForSequentialRecommendation, config)
    attention = model.model.layers[0].attention
    x, positions = torch.randn(1, 5, D), torch.randn(5, D)
    mask = torch.ones(1, 5, dtype=torch.bool)
    query, (key, value) = attention.q_proj(x)[0], (part[0] for part in attention.kv_proj(x).chunk(2, -1))
    pooled_key = attention.key_pooling(key[None], mask)[0]
    pooled_value = attention.value_pooling(value[None], mask)[0]
    position_query, position_key = attention.position_q_proj(positions), attention.position_k_proj(positions)
    heads = []
    for head in (slice(0, 4), slice(4, 8)):
        to_interests = torch.softmax(query[:, head] @ pooled_key[:, head].T / math.sqrt(4), dim=-1)
        to_positions = torch.softmax(position_query[:, head] @ position_key[:, head].T / math.sqrt(4), dim=-1)
        heads.append(to_interests @ pooled_value[:, head] + to_positions @ value[:, head])
    expected = attention.o_proj(torch.cat(heads, dim=-1))
    torch.testing.assert_close(attention(x, positions, mask)[0], expected)
    torch.testing.assert_close(attention(x, positions, mask, last_only=True)[0, 0], expected[0])


# --- BERT4Rec ---


def bert4rec(**changes):
    return seeded(
        BERT4RecForSequentialRecommendation,
        BERT4RecConfig(num_items=N, hidden_size=D, intermediate_size=16, **({"max_length": 10} | changes)),
    )


def test_bert4rec_asks_with_a_mask_after_the_last_item():
    model = bert4rec()
    mask = model.config.mask_token_id
    assert mask == N + 1
    ids, lengths = model.prepare_for_scoring(torch.tensor([[4, 5, 6], [7, 0, 0]]), torch.tensor([3, 1]))
    assert ids.tolist() == [[4, 5, 6, mask], [7, mask, 0, 0]]
    assert lengths.tolist() == [4, 2]


def test_bert4rec_drops_the_oldest_item_of_a_full_row_only():
    model = bert4rec(max_length=3)
    ids, lengths = model.prepare_for_scoring(torch.tensor([[4, 5, 6], [7, 8, 0], [9, 0, 0]]), torch.tensor([3, 2, 1]))
    assert ids.tolist() == [[5, 6, 21], [7, 8, 21], [9, 21, 0]]
    assert lengths.tolist() == [3, 3, 2]


def test_bert4rec_trains_the_very_state_it_is_asked_for():
    model = bert4rec()
    masked = torch.cat([HISTORY[:, :-1], torch.tensor([[N + 1]])], dim=1)
    labels = torch.full_like(masked, -100)
    labels[0, -1] = 13
    scores = model.score(HISTORY[:, :-1])
    expected = F.cross_entropy(scores[:, 1:], torch.tensor([12]))
    torch.testing.assert_close(model(masked, labels=labels).loss, expected)


def test_bert4rec_sees_later_items():
    model = bert4rec()
    changed = HISTORY.clone()
    changed[0, -1] = 18
    states = [model.model(ids).last_hidden_state[:, 0] for ids in (HISTORY, changed)]
    assert not torch.allclose(*states)


def test_bert4rec_mask_is_a_vector_of_its_own_that_is_never_scored():
    model = bert4rec()
    assert model.item_representations().shape == (N + 1, D)
    before = model.score(HISTORY)
    with torch.no_grad():
        model.model.mask_embedding.weight.normal_()
    assert not torch.allclose(model.score(HISTORY)[:, 1:], before[:, 1:])


def test_bert4rec_has_a_head_and_a_bias():
    model = bert4rec()
    states = torch.randn(3, D)
    expected = model.head_norm(F.gelu(model.head(states)))
    torch.testing.assert_close(model.project_states(states), expected)
    before = model.score(HISTORY)
    with torch.no_grad():
        model.bias[4] += 5.0
    difference = (model.score(HISTORY) - before)[0, 1:]
    torch.testing.assert_close(difference, F.one_hot(torch.tensor(3), N) * 5.0, atol=1e-5, rtol=0)


# --- SASRec ---


@pytest.mark.parametrize("norm", ["pre", "query", "post"])
def test_sasrec_block_follows_its_definition(norm):
    config = SASRecConfig(
        num_items=N, hidden_size=D, max_length=10, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, norm=norm
    )  # fmt: skip
    model = seeded(SASRecForSequentialRecommendation, config)
    sasrec, layer = model.model, model.model.layers[0]
    x = vectors(model)[0] * math.sqrt(D) + sasrec.position_embedding.weight[torch.arange(7, -1, -1)]

    def attend(query, key):
        query, (key, value) = layer.attention.q_proj(query), layer.attention.kv_proj(key).chunk(2, -1)
        future = torch.ones(8, 8, dtype=torch.bool).triu(1)
        heads = []
        for head in (slice(0, 4), slice(4, 8)):
            scores = (query[:, head] @ key[:, head].T / math.sqrt(4)).masked_fill(future, -torch.inf)
            heads.append(torch.softmax(scores, dim=-1) @ value[:, head])
        return layer.attention.o_proj(torch.cat(heads, dim=-1))

    def forward_map(x):
        return layer.feed_forward.down(F.gelu(layer.feed_forward.up(x)))

    first, second = layer.attention_norm, layer.feed_forward_norm
    if norm == "pre":
        x = x + attend(first(x), first(x))
        expected = sasrec.norm(x + forward_map(second(x)))
    elif norm == "query":
        x = second(first(x) + attend(first(x), x))
        expected = sasrec.norm(x + forward_map(x))
    else:
        x = first(x + attend(x, x))
        expected = second(x + forward_map(x))
    torch.testing.assert_close(sasrec(HISTORY).last_hidden_state[0], expected, atol=1e-5, rtol=1e-4)


# --- shared pieces ---


def test_rows_move_to_the_left_edge_with_what_belongs_to_them():
    inputs = torch.tensor([[0, 0, 4, 5], [0, 0, 0, 6]])
    labels = torch.tensor([[-100, 9, 5, 7], [-100, -100, -100, 8]])
    negatives = torch.arange(8).view(2, 4, 1)
    ids, lengths, moved, drawn = to_right_padded(inputs, labels, negatives)
    assert ids.tolist() == [[4, 5], [6, 0]]
    assert lengths.tolist() == [2, 1]
    assert moved.tolist() == [[5, 7], [8, -100]]
    assert drawn[0].flatten().tolist() == [2, 3]
    assert drawn[1, 0].item() == 7


def test_dropout_drops_its_share_keeps_expectations_and_follows_the_seed():
    dropout, x = Dropout(0.3), torch.ones(200, 500)
    torch.manual_seed(0)
    first = dropout(x)
    torch.manual_seed(0)
    assert torch.equal(dropout(x), first)
    assert not torch.equal(dropout(x), first)
    assert (first == 0).float().mean().item() == pytest.approx(77 / 256, abs=0.01)  # 0.3 in steps of 1/256
    assert first.mean().item() == pytest.approx(1.0, abs=0.01)
    assert torch.equal(dropout.eval()(x), x)
    with pytest.raises(ValueError, match=r"must be in \[0, 1\), got 1.0"):
        Dropout(1.0)
