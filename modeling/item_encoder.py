"""Everything known about an item, as one vector: the ID table and frozen side vectors, fused.

The fused table feeds the sequence model's input *and* the scorer, so an enhancement reaches both and works with every
backbone. With `fusion="none"` the table is the ID table itself and a model equals its plain backbone.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn
from transformers import initialization as init


FUSIONS = ("none", "init", "concat", "add", "gate")


class ItemEncoder(nn.Module):
    """ID table plus named side vectors (a text embedding, an enhanced vector, a knowledge vector).

    With E the ID rows (N + 1, d), z the side vectors of all features concatenated (N + 1, f), W, W_g, b trained:

    | `fusion` | item vector |
    | --- | --- |
    | `none` | E |
    | `init` | E, whose start values are given vectors (`initialize_from`) |
    | `concat` | W [E; z] + b |
    | `add` | E + W z + b |
    | `gate` | γ ⊙ E + (1 − γ) ⊙ z', with z' = W z and γ = σ(W_g [E; z'] + b) (methods of P2Rec's kind) |

    Args:
        config: Uses `num_items`, `hidden_size`, `fusion`, `item_features`.

    Example:
        >>> from hf_seqrec.modeling import SASRecConfig
        >>> encoder = ItemEncoder(SASRecConfig(num_items=9, hidden_size=4, fusion="add", item_features={"text": 3}))
        >>> encoder.set_features("text", torch.randn(10, 3))
        >>> encoder().shape
        torch.Size([10, 4])
    """

    def __init__(self, config):
        super().__init__()
        self.fusion = config.fusion
        # By name: a configuration's keys are sorted when it is saved, and the columns of z must be the same after loading.
        features = sorted((config.item_features or {}).items())
        self.feature_sizes = dict(features) if config.fusion in ("concat", "add", "gate") else {}
        hidden, side = config.hidden_size, sum(self.feature_sizes.values())
        self.id_embedding = nn.Embedding(config.num_items + 1, hidden, padding_idx=0)
        for name, size in self.feature_sizes.items():
            # A persistent buffer: it travels with the checkpoint and is restored when weights are built on the meta device.
            self.register_buffer(f"feature_{name}", torch.zeros(config.num_items + 1, size))
        if self.fusion == "concat":
            self.projection = nn.Linear(hidden + side, hidden)
        elif self.fusion == "add":
            self.projection = nn.Linear(side, hidden)
        elif self.fusion == "gate":
            self.projection = nn.Linear(side, hidden, bias=False)
            self.gate = nn.Linear(2 * hidden, hidden)

    def reset(self, std: float) -> None:
        """Start values: N(0, std²) rows, a zero padding row, zero side vectors."""
        init.normal_(self.id_embedding.weight, std=std)
        init.zeros_(self.id_embedding.weight[0])
        for name in self.feature_sizes:
            init.zeros_(getattr(self, f"feature_{name}"))

    def set_features(self, name: str, vectors: torch.Tensor) -> None:
        """Store the frozen side vectors of one feature.

        Args:
            name: A key of `config.item_features`.
            vectors: (num_items + 1, size) with row 0 for padding, or (num_items, size).

        Raises:
            KeyError: No such feature. ValueError: another shape, or a value that is not finite.
        """
        if name not in self.feature_sizes:
            known = ", ".join(self.feature_sizes) or "none"
            raise KeyError(f"no item feature {name!r}; this model has: {known} (fusion={self.fusion!r}).")
        buffer = getattr(self, f"feature_{name}")
        if vectors.shape == (buffer.shape[0] - 1, buffer.shape[1]):
            vectors = F.pad(vectors, (0, 0, 1, 0))
        if vectors.shape != buffer.shape:
            raise ValueError(
                f"item feature {name!r} needs shape {tuple(buffer.shape)} (row 0 is padding), got {tuple(vectors.shape)}."
            )
        if not bool(torch.isfinite(vectors).all()):
            row = int((~torch.isfinite(vectors)).any(1).nonzero()[0])
            raise ValueError(f"item feature {name!r} has a value that is not finite at item_index {row}.")
        buffer.copy_(vectors)
        buffer[0] = 0

    @torch.no_grad()
    def initialize_from(self, vectors: torch.Tensor, std: float | None = None) -> None:
        """Start the ID table from given vectors (`fusion="init"`).

        Args:
            vectors: (num_items, hidden) or (num_items + 1, hidden).
            std: Rescale the vectors to this standard deviation; None keeps them.

        Raises:
            ValueError: The model's fusion is not `init`, or another shape.
        """
        if self.fusion != "init":
            raise ValueError(f"`initialize_from` needs a model with fusion='init', this one has {self.fusion!r}.")
        weight = self.id_embedding.weight
        if vectors.shape == (weight.shape[0] - 1, weight.shape[1]):
            vectors = F.pad(vectors, (0, 0, 1, 0))
        if vectors.shape != weight.shape:
            raise ValueError(f"start vectors need shape {tuple(weight.shape)}, got {tuple(vectors.shape)}.")
        if std is not None:
            vectors = vectors * (std / vectors[1:].std())
        weight.copy_(vectors)
        weight[0] = 0

    def forward(self, item_index: torch.Tensor | None = None) -> torch.Tensor:
        """Fused vectors.

        Args:
            item_index: (…) items, or None for all.

        Returns:
            (num_items + 1, hidden) with a zero row 0, or (…, hidden).
        """
        if item_index is None:
            ids, take = self.id_embedding.weight, lambda buffer: buffer
        else:
            ids, take = self.id_embedding(item_index), lambda buffer: buffer[item_index]
        if not self.feature_sizes:
            return ids
        side = torch.cat([take(getattr(self, f"feature_{name}")) for name in self.feature_sizes], dim=-1)
        if self.fusion == "concat":
            fused = self.projection(torch.cat([ids, side], dim=-1))
        elif self.fusion == "add":
            fused = ids + self.projection(side)
        else:
            side = self.projection(side)
            gamma = torch.sigmoid(self.gate(torch.cat([ids, side], dim=-1)))
            fused = gamma * ids + (1 - gamma) * side
        if item_index is None:
            item_index = torch.arange(fused.shape[0], device=fused.device)
        return fused * (item_index != 0).unsqueeze(-1).to(fused.dtype)

    @staticmethod
    def lookup(item_index: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
        """Rows of an already fused table: (…) -> (…, hidden)."""
        return F.embedding(item_index, table, padding_idx=0)
