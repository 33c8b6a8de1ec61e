import math

import pytest
import torch
import torch.nn.functional as F

from hf_seqrec.modeling import losses
from hf_seqrec.modeling.losses import (
    LOSSES,
    BinaryCrossEntropyLoss,
    BPRLoss,
    CrossEntropyLoss,
    GeneralizedBinaryCrossEntropyLoss,
    NextItemLoss,
    SampledCrossEntropyLoss,
    make_loss,
    uniform_cross_entropy,
)


# One user state, four items (and padding): scores are 1, 2, -1, 0.5 for items 1…4; with the biases 1.5, 2, -2, 0.5.
HIDDEN = torch.tensor([[1.0, 2.0]])
TABLE = torch.tensor([[9.0, 9.0], [1.0, 0.0], [0.0, 1.0], [1.0, -1.0], [-0.5, 0.5]])
BIAS = torch.tensor([9.0, 0.5, 0.0, -1.0, 0.0])
TARGET = torch.tensor([2])
NEGATIVES = torch.tensor([[1, 3]])


def log_sigmoid(score):
    return -math.log(1 + math.exp(-score))


def problem(positions=50, items=23, dim=5, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(positions, dim, generator=generator, dtype=dtype).requires_grad_()
    table = torch.randn(items + 1, dim, generator=generator, dtype=dtype).requires_grad_()
    bias = torch.randn(items + 1, generator=generator, dtype=dtype).requires_grad_()
    target = torch.randint(1, items + 1, (positions,), generator=generator)
    negatives = torch.randint(1, items + 1, (positions, 4), generator=generator)
    return hidden, table, bias, target, negatives


def gradients(value, *inputs):
    return torch.autograd.grad(value, [tensor for tensor in inputs if tensor is not None])


@pytest.fixture(params=[16, 17, 25, 50, 64], ids=lambda rows: f"{rows} rows at once")
def chunk_rows(request, monkeypatch):
    """Some divide the 50 positions, some leave a rest, one is larger than all."""
    monkeypatch.setattr(losses, "chunk_rows", lambda width, device: request.param)
    return request.param


# --- full cross-entropy ---


@pytest.mark.parametrize("with_bias", [True, False])
def test_chunked_cross_entropy_equals_plain_in_value_and_gradients(chunk_rows, with_bias):
    hidden, table, bias, target, _ = problem()
    bias = bias if with_bias else None
    plain_scores = hidden @ table[1:].T + (0 if bias is None else bias[1:])
    plain = F.cross_entropy(plain_scores, target - 1, reduction="sum")
    chunked = CrossEntropyLoss()(hidden, target, table, bias)
    torch.testing.assert_close(chunked, plain)
    for ours, reference in zip(
        gradients(3 * chunked, hidden, table, bias), gradients(3 * plain, hidden, table, bias), strict=True
    ):
        torch.testing.assert_close(ours, reference)


def test_the_default_chunk_fits_the_cache_and_never_holds_all_scores():
    cpu = torch.device("cpu")
    for width in (100, 3_000, 30_000):
        assert losses.chunk_rows(width, cpu) * width <= 1 << 19
    assert losses.chunk_rows(10_000_000, cpu) == 16


def test_cross_entropy_ignores_the_padding_item():
    hidden, table, bias, target, _ = problem()
    loss = CrossEntropyLoss()(hidden, target, table, bias)
    grad_table, grad_bias = gradients(loss, table, bias)
    assert not grad_table[0].any()
    assert grad_bias[0] == 0
    with torch.no_grad():
        table[0], bias[0] = 1000.0, 1000.0
    torch.testing.assert_close(CrossEntropyLoss()(hidden, target, table, bias), loss)


def test_cross_entropy_by_hand():
    scores = [1.5, 2.0, -2.0, 0.5]
    expected = math.log(sum(math.exp(s) for s in scores)) - 2.0
    assert CrossEntropyLoss()(HIDDEN, TARGET, TABLE, BIAS).item() == pytest.approx(expected, rel=1e-6)


def test_cross_entropy_of_a_model_that_knows_nothing_is_the_log_of_the_catalogue():
    loss = CrossEntropyLoss()(torch.zeros(7, 2), torch.ones(7, dtype=torch.long), torch.randn(31, 2)) / 7
    assert loss.item() == pytest.approx(uniform_cross_entropy(30), rel=1e-6)


def test_cross_entropy_stays_finite_for_huge_scores():
    hidden = torch.tensor([[1e4, 0.0], [-1e4, 0.0]], requires_grad=True)
    table = torch.tensor([[0.0, 0.0], [1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]], requires_grad=True)
    loss = CrossEntropyLoss()(hidden, torch.tensor([1, 1]), table)
    assert loss.item() == pytest.approx(2e4)
    assert all(torch.isfinite(g).all() for g in gradients(loss, hidden, table))


def test_cross_entropy_computes_only_the_gradients_asked_for():
    hidden, table, bias, target, _ = problem()
    expected = gradients(CrossEntropyLoss()(hidden, target, table, bias), hidden)[0]
    loss = CrossEntropyLoss()(hidden, target, table.detach(), bias.detach())
    torch.testing.assert_close(gradients(loss, hidden)[0], expected)
    expected = gradients(CrossEntropyLoss()(hidden, target, table, bias), table)[0]
    loss = CrossEntropyLoss()(hidden.detach(), target, table, None if bias is None else bias.detach())
    torch.testing.assert_close(gradients(loss, table)[0], expected)
    assert not CrossEntropyLoss()(hidden.detach(), target, table.detach(), bias.detach()).requires_grad


def test_cross_entropy_in_bfloat16_has_a_float32_softmax():
    hidden, table, bias, target, _ = problem(dtype=torch.bfloat16)
    reference = CrossEntropyLoss()(hidden.float(), target, table.float(), bias.float())
    loss = CrossEntropyLoss()(hidden, target, table, bias)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, reference, rtol=1e-2, atol=0)
    assert all(g.dtype == torch.bfloat16 for g in gradients(loss, hidden, table))


# --- sampled losses ---


def test_sampled_cross_entropy_by_hand():
    expected = math.log(math.exp(1.5) + math.exp(2.0) + math.exp(-2.0)) - 2.0
    loss = SampledCrossEntropyLoss()(HIDDEN, TARGET, TABLE, BIAS, NEGATIVES)
    assert loss.item() == pytest.approx(expected, rel=1e-6)


def test_log_q_is_subtracted_from_every_score():
    q = torch.tensor([1.0, 0.4, 0.3, 0.2, 0.1])
    corrected = {1: 1.5 - math.log(0.4), 2: 2.0 - math.log(0.3), 3: -2.0 - math.log(0.2)}
    expected = math.log(sum(math.exp(s) for s in corrected.values())) - corrected[2]
    loss = SampledCrossEntropyLoss(log_q=q.log())(HIDDEN, TARGET, TABLE, BIAS, NEGATIVES)
    assert loss.item() == pytest.approx(expected, rel=1e-6)


def test_log_q_makes_popular_negatives_count_less():
    # With 4,000 negatives drawn by popularity, the corrected loss estimates the full one (up to a constant), the plain one does not.
    torch.manual_seed(0)
    hidden, table = torch.randn(1, 4), torch.randn(7, 4)
    q = torch.tensor([0.0, 0.6, 0.2, 0.1, 0.05, 0.03, 0.02])
    negatives = torch.multinomial(q, 200_000, replacement=True).unsqueeze(0)
    target = torch.tensor([6])
    scores = (hidden @ table.T)[0]
    # The true item is excluded among negatives, so the estimate is of the sum over the others.
    others = math.log(sum(math.exp(scores[i]) for i in range(1, 6)))
    loss = SampledCrossEntropyLoss(log_q=(q * 200_000).clamp(min=1e-9).log())
    positive = float(scores[6] - math.log(0.02 * 200_000))
    expected = math.log(math.exp(positive) + math.exp(others)) - positive
    assert loss(hidden, target, table, None, negatives).item() == pytest.approx(expected, abs=0.02)
    assert SampledCrossEntropyLoss()(hidden, target, table, None, negatives).item() != pytest.approx(expected, abs=0.5)


def test_sampled_cross_entropy_over_all_other_items_equals_the_full_one():
    hidden, table, bias, target, _ = problem()
    everything = torch.arange(1, 24).expand(50, -1)
    sampled = SampledCrossEntropyLoss()(
        hidden, target, table, bias, everything
    )  # the hit of the true item is left out
    torch.testing.assert_close(sampled, CrossEntropyLoss()(hidden, target, table, bias))


def test_bce_by_hand():
    expected = -log_sigmoid(2.0) - log_sigmoid(-1.5) - log_sigmoid(2.0)
    assert BinaryCrossEntropyLoss()(HIDDEN, TARGET, TABLE, BIAS, NEGATIVES).item() == pytest.approx(expected, rel=1e-6)


def test_bpr_by_hand():
    expected = (-log_sigmoid(2.0 - 1.5) - log_sigmoid(2.0 + 2.0)) / 2
    assert BPRLoss()(HIDDEN, TARGET, TABLE, BIAS, NEGATIVES).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("t", [0.0, 0.25, 0.75, 1.0])
def test_gbce_by_hand(t):
    alpha = 2 / (4 - 1)
    beta = alpha * (t * (1 - 1 / alpha) + 1 / alpha)
    loss = GeneralizedBinaryCrossEntropyLoss(t=t)
    assert loss.beta(2, 4) == pytest.approx(beta)
    expected = -beta * log_sigmoid(2.0) - log_sigmoid(-1.5) - log_sigmoid(2.0)
    assert loss(HIDDEN, TARGET, TABLE, BIAS, NEGATIVES).item() == pytest.approx(expected, rel=1e-6)


def test_gbce_without_calibration_is_bce_and_with_all_of_it_weighs_by_the_sampling_rate():
    assert GeneralizedBinaryCrossEntropyLoss(t=0.0).beta(256, 3_417) == pytest.approx(1.0)
    assert GeneralizedBinaryCrossEntropyLoss(t=1.0).beta(256, 3_417) == pytest.approx(256 / 3_416)
    with pytest.raises(ValueError, match=r"must be in \[0, 1\], got 1.5"):
        GeneralizedBinaryCrossEntropyLoss(t=1.5)


@pytest.mark.parametrize("name", [name for name, loss in LOSSES.items() if loss.needs_negatives])
@pytest.mark.parametrize("with_bias", [True, False])
def test_chunked_sampled_losses_equal_plain_in_value_and_gradients(name, with_bias, chunk_rows):
    hidden, table, bias, target, negatives = problem()
    bias = bias if with_bias else None
    loss = make_loss(name)
    plain = loss.term(hidden, table, bias, target, negatives)
    chunked = loss(hidden, target, table, bias, negatives)
    torch.testing.assert_close(chunked, plain)
    for ours, reference in zip(
        gradients(3 * chunked, hidden, table, bias), gradients(3 * plain, hidden, table, bias), strict=True
    ):
        torch.testing.assert_close(ours, reference)


@pytest.mark.parametrize("name", LOSSES)
def test_a_batch_without_labels_sums_to_zero(name):
    hidden, table, bias, target, negatives = problem(positions=0)
    loss = make_loss(name)(hidden, target, table, bias, negatives)
    assert loss.item() == 0
    if name == "cross_entropy":
        assert not any(g.any() for g in gradients(loss, table, bias))


@pytest.mark.parametrize("name", LOSSES)
def test_the_loss_falls_when_the_true_item_scores_higher(name):
    better = BIAS.clone()
    better[2] += 1.0
    loss = make_loss(name)
    assert loss(HIDDEN, TARGET, TABLE, better, NEGATIVES) < loss(HIDDEN, TARGET, TABLE, BIAS, NEGATIVES)


def test_with_several_threads_sampled_gradients_repeat_to_the_bit(two_threads):
    hidden, table, bias, target, _ = problem(positions=4000)
    negatives = torch.randint(1, 24, (4000, 20), generator=torch.Generator().manual_seed(0))

    def run():
        return gradients(SampledCrossEntropyLoss()(hidden, target, table, bias, negatives), hidden, table, bias)

    first = run()
    for _ in range(20):
        assert all(map(torch.equal, run(), first))


# --- choosing ---


def test_sampled_losses_without_negatives_say_so():
    for name, loss in LOSSES.items():
        if loss.needs_negatives:
            with pytest.raises(ValueError, match=r"needs `negatives` \(positions, num_negatives\), got None"):
                make_loss(name)(HIDDEN, TARGET, TABLE)


def test_make_loss_passes_what_a_loss_needs():
    assert make_loss("gbce", t=0.5).t == 0.5
    log_q = torch.zeros(3)
    assert make_loss("sampled_cross_entropy", log_q=log_q).log_q is log_q
    assert isinstance(make_loss("bpr"), BPRLoss)
    with pytest.raises(ValueError, match=r"unknown loss 'hinge'; choose one of cross_entropy, .*bpr"):
        make_loss("hinge")


def test_a_loss_must_define_its_term():
    with pytest.raises(NotImplementedError):
        NextItemLoss().term(HIDDEN, TABLE, BIAS, TARGET, NEGATIVES)
