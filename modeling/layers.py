"""Blocks that at least three methods share."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS


class Dropout(nn.Module):
    """Dropout whose mask costs one random byte per element on a CPU, where PyTorch's own draws a float for each.

    The drop rate is rounded to a multiple of 1/256 and the kept values are scaled by exactly that rate, so expectations are
    kept. Draws from PyTorch's default generator: seeding and resuming work as usual. On other devices it is `F.dropout`.

    Args:
        p: Share of elements to drop, in [0, 1).
    """

    def __init__(self, p: float = 0.0):
        super().__init__()
        if not 0 <= p < 1:
            raise ValueError(f"dropout must be in [0, 1), got {p}.")
        self.p = p

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Same shape as `x`."""
        if not self.training or self.p == 0:
            return x
        if x.device.type != "cpu" or torch.compiler.is_compiling():
            return F.dropout(x, self.p, True)
        dropped = round(self.p * 256)
        if dropped == 0 or dropped == 256:
            return F.dropout(x, self.p, True)
        words = torch.empty((x.numel() + 7) // 8, dtype=torch.int64).random_(-(2**63), None)
        keep = words.view(torch.uint8)[: x.numel()].view(x.shape) >= dropped
        return x * (keep * (256 / (256 - dropped))).to(x.dtype)

    def extra_repr(self) -> str:
        """Shown by `print(model)`."""
        return f"p={self.p}"


def eager_attention(module, query, key, value, attention_mask, scaling, dropout=0.0, **kwargs):
    """Plain attention: (batch, heads, queries, head_dim) each -> ((batch, queries, heads, head_dim), weights)."""
    weights = query @ key.transpose(2, 3) * scaling
    if attention_mask is not None:
        weights = weights.masked_fill(~attention_mask, torch.finfo(weights.dtype).min)
    elif module.is_causal and query.shape[2] > 1:
        future = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool, device=query.device).triu(1)
        weights = weights.masked_fill(future, torch.finfo(weights.dtype).min)
    weights = weights.float().softmax(-1).to(query.dtype)
    weights = F.dropout(weights, dropout, module.training)
    return (weights @ value).transpose(1, 2).contiguous(), weights


class SelfAttention(nn.Module):
    """Multi-head self-attention over right-padded sequences, through the attention interface of transformers.

    Args:
        config: Uses `hidden_size`, `num_attention_heads`, `attention_probs_dropout_prob`.
        is_causal: A causal sequence that is right-padded needs no mask: nothing before the padding ever looks at it.
    """

    def __init__(self, config, is_causal: bool):
        super().__init__()
        self.config = config
        self.is_causal = is_causal
        self.num_heads = config.num_attention_heads
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.scaling = self.head_dim**-0.5
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.kv_proj = nn.Linear(config.hidden_size, 2 * config.hidden_size)
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, query_states, key_states, mask=None):
        """Attend.

        Args:
            query_states: (batch, queries, hidden).
            key_states: (batch, length, hidden).
            mask: (batch, 1, 1 or queries, length) boolean, True where attention is allowed; None: causal or full.

        Returns:
            (batch, queries, hidden).
        """
        batch = query_states.shape[0]
        query = self.q_proj(query_states).view(batch, -1, self.num_heads, self.head_dim).transpose(1, 2)
        key, value = (
            part.view(batch, -1, self.num_heads, self.head_dim).transpose(1, 2)
            for part in self.kv_proj(key_states).chunk(2, dim=-1)
        )
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention)
        if mask is not None and self.config._attn_implementation == "sdpa":
            mask = mask.expand(-1, -1, query.shape[2], -1)
        out, _ = attend(
            self, query, key, value, mask, scaling=self.scaling,
            dropout=self.config.attention_probs_dropout_prob if self.training else 0.0,
        )  # fmt: skip
        return self.o_proj(out.reshape(batch, -1, self.num_heads * self.head_dim))


class FeedForward(nn.Module):
    """hidden -> intermediate -> hidden, then dropout.

    Args:
        config: Uses `hidden_size`, `intermediate_size`, `hidden_act`, `hidden_dropout_prob`.
    """

    def __init__(self, config):
        super().__init__()
        self.up = nn.Linear(config.hidden_size, config.intermediate_size)
        self.down = nn.Linear(config.intermediate_size, config.hidden_size)
        self.act = ACT2FN[config.hidden_act]
        self.dropout = Dropout(config.hidden_dropout_prob)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(…, hidden) -> (…, hidden)."""
        return self.dropout(self.down(self.act(self.up(x))))


def length_mask(lengths: torch.Tensor, width: int) -> torch.Tensor:
    """(batch,) -> (batch, width) boolean, True at items."""
    return torch.arange(width, device=lengths.device) < lengths.unsqueeze(1)


__all__ = ["Dropout", "FeedForward", "GradientCheckpointingLayer", "SelfAttention", "eager_attention", "length_mask"]
