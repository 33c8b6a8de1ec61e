"""Next-item losses over a scoring table. Each is an object: sum over labelled positions, gradients computed chunk by chunk.

The full cross-entropy never holds (positions × items): a chunk of rows is scored, turned into probabilities and into
gradients, and its buffer is reused. The chunk is sized for the cache of a CPU core, or larger on a GPU.

Notation: h (positions, dim) states, w_i (dim) item rows, b_i biases, s_i = h·w_i + b_i, y the true item, N_y its negatives.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F


# Elements of one score chunk: 0.5 M floats are 2 MB and stay in a core's second-level cache; a GPU wants larger launches.
_CHUNK_ELEMENTS = {"cpu": 1 << 19, "cuda": 1 << 28}


def chunk_rows(width: int, device: torch.device) -> int:
    """Rows of `width` numbers that one chunk holds, as many as suit the device."""
    return max(16, _CHUNK_ELEMENTS.get(device.type, 1 << 24) // max(width, 1))


def _compute_dtype(hidden: torch.Tensor) -> torch.dtype:
    """Matrix products follow autocast; the softmax is always in float32."""
    device = hidden.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype


class _FullCrossEntropy(torch.autograd.Function):
    """Σ −log softmax(h·w + b)_y with its gradients, computed together in the forward pass, chunk by chunk."""

    @staticmethod
    def forward(ctx, hidden, table, bias, target):
        device_type = hidden.device.type
        dtype = _compute_dtype(hidden)
        with torch.autocast(device_type, enabled=False):
            h, w = hidden.detach().to(dtype), table.detach().to(dtype)
            rows = chunk_rows(w.shape[0], h.device)
            need_h, need_w, need_b = ctx.needs_input_grad[:3]
            total = torch.zeros((), dtype=torch.float64 if device_type == "cpu" else torch.float32, device=h.device)
            grad_h: Any = torch.empty_like(h) if need_h else None
            # Sums over many chunks keep full precision whatever the compute type.
            grad_w: Any = torch.zeros(w.shape, dtype=torch.float32, device=h.device) if need_w else None
            grad_b: Any = torch.zeros(w.shape[0], dtype=torch.float32, device=h.device) if need_b else None
            buffer = torch.empty(min(rows, len(h)), w.shape[0], dtype=dtype, device=h.device)
            for start in range(0, len(h), rows):
                part, y = h[start : start + rows], target[start : start + rows].unsqueeze(1)
                scores = torch.mm(part, w.T, out=buffer[: len(part)])
                if dtype != torch.float32:
                    scores = scores.float()
                if bias is not None:
                    scores += bias.detach()
                true, highest = scores.gather(1, y), scores.amax(1, keepdim=True)
                p = torch.softmax(scores, 1, out=scores)
                # log Σ exp(s) from the largest score: its probability is at least 1/N, so its log is always safe.
                log_z = highest - p.amax(1, keepdim=True).log()
                total += (log_z - true).sum(dtype=total.dtype)
                if not (need_h or need_w or need_b):
                    continue
                p.scatter_add_(1, y, torch.full_like(true, -1.0))
                if need_b:
                    grad_b += p.sum(0)
                p = p.to(dtype)
                if need_h:
                    torch.mm(p, w, out=grad_h[start : start + rows])
                if need_w:
                    grad_w.addmm_(p.T, part) if dtype == torch.float32 else grad_w.add_(p.T @ part)
        ctx.save_for_backward(grad_h, grad_w, grad_b)
        ctx.dtypes = hidden.dtype, table.dtype
        return total.to(torch.float32)

    @staticmethod
    def backward(ctx, grad_output):
        grad_h, grad_w, grad_b = ctx.saved_tensors
        return (
            None if grad_h is None else (grad_h * grad_output).to(ctx.dtypes[0]),
            None if grad_w is None else (grad_w * grad_output).to(ctx.dtypes[1]),
            None if grad_b is None else grad_b * grad_output,
            None,
        )


class _ChunkedSum(torch.autograd.Function):
    """Σ over chunks of `term(h, w, b, target, negatives)`, gradients by autograd inside each chunk, then summed."""

    @staticmethod
    def forward(ctx, hidden, table, bias, target, negatives, term):
        inputs: list[Any] = [None if t is None else t.detach().requires_grad_() for t in (hidden, table, bias)]
        rows = chunk_rows(negatives.shape[1] * table.shape[1], hidden.device)
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        grad_h = torch.zeros_like(hidden)
        wanted = any(ctx.needs_input_grad[:3])
        with torch.set_grad_enabled(wanted):
            for start in range(0, len(hidden), rows):
                part = slice(start, start + rows)
                h = hidden.detach()[part].requires_grad_()
                value = term(h, inputs[1], inputs[2], target[part], negatives[part])
                total += value.detach()
                if wanted:
                    value.backward()
                    grad_h[part] = h.grad
        ctx.save_for_backward(grad_h, inputs[1].grad, None if bias is None else inputs[2].grad)
        return total

    @staticmethod
    def backward(ctx, grad_output):
        return *(None if g is None else g * grad_output for g in ctx.saved_tensors), None, None, None


class NextItemLoss:
    """A loss over labelled positions.

    Calling it with `hidden` (positions, dim), `target` (positions,) item_index in 1…N, `table` (N + 1, dim), `bias` (N + 1,)
    or None, and `negatives` (positions, num_negatives) item_index or None gives the *sum* over positions, a scalar.
    """

    needs_negatives = True

    @torch.compiler.disable
    def __call__(self, hidden, target, table, bias=None, negatives=None) -> torch.Tensor:
        """Sum of the loss over positions."""
        if negatives is None:
            raise ValueError(f"{type(self).__name__} needs `negatives` (positions, num_negatives), got None.")
        return _ChunkedSum.apply(hidden, table, bias, target, negatives, self.term)

    def term(self, hidden, table, bias, target, negatives) -> torch.Tensor:
        """Sum over one chunk; ordinary differentiable code."""
        raise NotImplementedError

    @staticmethod
    def scores(hidden, table, bias, target, negatives) -> tuple[torch.Tensor, torch.Tensor]:
        """Scores of the true item (positions,) and of the negatives (positions, num_negatives), in float32."""
        positive = (hidden * F.embedding(target, table)).sum(-1)
        negative = torch.einsum("pd,pnd->pn", hidden, F.embedding(negatives, table))
        if bias is not None:
            # The gradient of bias[negatives] would add up in no fixed order on a CPU with several threads.
            column = bias.unsqueeze(1)
            positive = positive + F.embedding(target, column).squeeze(-1)
            negative = negative + F.embedding(negatives, column).squeeze(-1)
        return positive.float(), negative.float()


@dataclass(frozen=True)
class CrossEntropyLoss(NextItemLoss):
    """Softmax over the whole catalogue: −log (exp s_y / Σ_i exp s_i), padding excluded.

    Example:
        >>> h, w = torch.randn(3, 4), torch.randn(6, 4)
        >>> loss = CrossEntropyLoss()(h, torch.tensor([1, 5, 2]), w)
        >>> plain = F.cross_entropy(h @ w[1:].T, torch.tensor([0, 4, 1]), reduction="sum")
        >>> bool(torch.isclose(loss, plain))
        True
    """

    needs_negatives = False

    @torch.compiler.disable
    def __call__(self, hidden, target, table, bias=None, negatives=None) -> torch.Tensor:
        """Sum of the loss over positions; `negatives` are not used."""
        return _FullCrossEntropy.apply(hidden, table[1:], None if bias is None else bias[1:], target - 1)


@dataclass(frozen=True)
class SampledCrossEntropyLoss(NextItemLoss):
    """Softmax over the true item and its negatives.

    Args:
        log_q: (N + 1,) log of the expected number of draws of each item; subtracted from its score so that the sampled
            softmax estimates the full one (Bengio and Senécal 2008; log-Q correction of Yi et al. 2019). None: no correction.
    """

    log_q: torch.Tensor | None = None

    def term(self, hidden, table, bias, target, negatives):
        """Sum over one chunk."""
        positive, negative = self.scores(hidden, table, bias, target, negatives)
        if self.log_q is not None:
            log_q = self.log_q.to(positive.device)
            positive, negative = positive - log_q[target], negative - log_q[negatives]
        # A negative that hits the true item would be pushed up and down at once.
        negative = negative.masked_fill(negatives == target.unsqueeze(1), -torch.inf)
        logits = torch.cat([positive.unsqueeze(1), negative], dim=1)
        return F.cross_entropy(logits, torch.zeros_like(target), reduction="sum")


@dataclass(frozen=True)
class BinaryCrossEntropyLoss(NextItemLoss):
    """−log σ(s_y) − Σ_{n ∈ N_y} log(1 − σ(s_n)); with one negative the loss of SASRec's paper (eq. 7)."""

    def term(self, hidden, table, bias, target, negatives):
        """Sum over one chunk."""
        positive, negative = self.scores(hidden, table, bias, target, negatives)
        return F.softplus(-positive).sum() + F.softplus(negative).sum()


@dataclass(frozen=True)
class GeneralizedBinaryCrossEntropyLoss(NextItemLoss):
    """gBCE of gSASRec (Petrov and Macdonald 2023, eq. 10): −β log σ(s_y) − Σ log(1 − σ(s_n)).

    β = α (t (1 − 1/α) + 1/α) with α = num_negatives / (N − 1), the sampling rate. t = 0 is BCE, t = 1 calibrates fully.

    Args:
        t: Calibration in [0, 1].
    """

    t: float = 0.75

    def __post_init__(self):
        if not 0 <= self.t <= 1:
            raise ValueError(f"gBCE's calibration `t` must be in [0, 1], got {self.t}.")

    def beta(self, num_negatives: int, num_items: int) -> float:
        """The exponent β of the positive term."""
        alpha = num_negatives / (num_items - 1)
        return alpha * (self.t * (1 - 1 / alpha) + 1 / alpha)

    def term(self, hidden, table, bias, target, negatives):
        """Sum over one chunk."""
        positive, negative = self.scores(hidden, table, bias, target, negatives)
        beta = self.beta(negatives.shape[1], table.shape[0] - 1)
        return beta * F.softplus(-positive).sum() + F.softplus(negative).sum()


@dataclass(frozen=True)
class BPRLoss(NextItemLoss):
    """Bayesian personalised ranking (Rendle et al. 2009): mean over negatives of −log σ(s_y − s_n)."""

    def term(self, hidden, table, bias, target, negatives):
        """Sum over one chunk."""
        positive, negative = self.scores(hidden, table, bias, target, negatives)
        return F.softplus(negative - positive.unsqueeze(1)).mean(1).sum()


LOSSES: dict[str, type[NextItemLoss]] = {
    "cross_entropy": CrossEntropyLoss,
    "sampled_cross_entropy": SampledCrossEntropyLoss,
    "bce": BinaryCrossEntropyLoss,
    "gbce": GeneralizedBinaryCrossEntropyLoss,
    "bpr": BPRLoss,
}


def make_loss(name: str, *, t: float = 0.75, log_q: torch.Tensor | None = None) -> NextItemLoss:
    """A loss by its name.

    Args:
        name: One of `cross_entropy`, `sampled_cross_entropy`, `bce`, `gbce`, `bpr`.
        t: Calibration of gBCE.
        log_q: Correction of the sampled cross-entropy.

    Raises:
        ValueError: An unknown name; the message lists the choices.
    """
    if name not in LOSSES:
        raise ValueError(f"unknown loss {name!r}; choose one of {', '.join(LOSSES)}.")
    if name == "gbce":
        return GeneralizedBinaryCrossEntropyLoss(t=t)
    if name == "sampled_cross_entropy":
        return SampledCrossEntropyLoss(log_q=log_q)
    return LOSSES[name]()


def uniform_cross_entropy(num_items: int) -> float:
    """Loss in nats of a model that knows nothing, a yardstick for training curves."""
    return math.log(num_items)
