"""LightSANs: each item attends to a few latent interests of the sequence, and to positions on their own.

Paper: Fan et al., Lighter and Better: Low-Rank Decomposed Self-Attention Networks for Next-Item Recommendation, SIGIR 2021.
Deviations. (1) Padding takes no part, neither in the pooling to interests nor in the attention over positions; the original code lets
it in. (2) Attention weights over positions sum to one over keys, as the paper writes; the original code normalises over queries
and scales twice. (3) Positions count from the most recent item. (4) Attention dropout is 0 by default. (5) One joint
key/value projection, same maths.
Interests are pooled from the whole row, later items included: only the last state of a row is trained and used.
Inputs: `input_ids` (batch, length) item_index, left-padded with 0; `labels` (batch, length), -100 except the last.
Trains with: `NextItemTrainer`, rows that carry their label at the last position.
"""

import torch
from huggingface_hub.dataclasses import strict
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .base import SequenceModel, SequentialRecommender, SequentialRecommenderConfig, register
from .layers import Dropout, FeedForward, GradientCheckpointingLayer, eager_attention, length_mask


@strict
class LightSANsConfig(SequentialRecommenderConfig):
    """Configuration of LightSANs.

    Args:
        num_interests: Number of latent interests, k in the paper; about a tenth of `max_length`.
        num_hidden_layers: Number of attention blocks.
        num_attention_heads: Heads per block; must divide `hidden_size`.
        intermediate_size: Width inside the feed-forward map.
        hidden_act: Activation of the feed-forward map.
        attention_probs_dropout_prob: Dropout on attention weights.
        layer_norm_eps: Epsilon of the layer norms.
    """

    model_type = "hf_seqrec_lightsans"

    num_interests: int = 5
    num_hidden_layers: int = 2
    num_attention_heads: int = 2
    intermediate_size: int = 256
    hidden_act: str = "gelu"
    attention_probs_dropout_prob: float | int = 0.0
    layer_norm_eps: float = 1e-12

    def validate_architecture(self):
        """Refuse head counts that do not divide the width, and models without interests."""
        super().validate_architecture()
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"`num_attention_heads` ({self.num_attention_heads}) must divide `hidden_size` ({self.hidden_size})."
            )
        if self.num_interests < 1:
            raise ValueError(f"`num_interests` must be at least 1, got {self.num_interests}.")


class InterestPooling(nn.Module):
    """Pool a sequence to k vectors: each is a mean of the items, weighted by a softmax over the sequence."""

    def __init__(self, config: LightSANsConfig):
        super().__init__()
        self.interests = nn.Linear(config.hidden_size, config.num_interests, bias=False)

    def forward(self, x, mask):
        """(batch, length, hidden), (batch, length) boolean -> (batch, num_interests, hidden)."""
        weights = self.interests(x).masked_fill(~mask.unsqueeze(-1), torch.finfo(x.dtype).min)
        weights = weights.float().softmax(1).to(x.dtype)
        return weights.transpose(1, 2) @ x


class LightSANsAttention(nn.Module):
    """Attention from items to interests, plus attention from positions to positions."""

    is_causal = False

    def __init__(self, config: LightSANsConfig):
        super().__init__()
        self.config = config
        self.num_heads = config.num_attention_heads
        self.scaling = (config.hidden_size // config.num_attention_heads) ** -0.5
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.kv_proj = nn.Linear(config.hidden_size, 2 * config.hidden_size)
        self.key_pooling = InterestPooling(config)
        self.value_pooling = InterestPooling(config)
        self.position_q_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.position_k_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size)

    def _heads(self, x):
        return x.unflatten(-1, (self.num_heads, -1)).transpose(-3, -2)

    def forward(self, x, positions, mask, last_only=False):
        """Attend.

        Args:
            x: (batch, length, hidden), newest item first.
            positions: (length, hidden) position vectors.
            mask: (batch, length) boolean, True at items.
            last_only: Return the state of the newest item only.

        Returns:
            (batch, length or 1, hidden).
        """
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention)
        dropout = self.config.attention_probs_dropout_prob if self.training else 0.0
        queries = 1 if last_only else x.shape[1]
        key, value = self.kv_proj(x).chunk(2, dim=-1)
        to_interests, _ = attend(
            self, self._heads(self.q_proj(x[:, :queries])), self._heads(self.key_pooling(key, mask)),
            self._heads(self.value_pooling(value, mask)), None, scaling=self.scaling, dropout=dropout,
        )  # fmt: skip
        position_query = self._heads(self.position_q_proj(positions[:queries])).expand(len(x), -1, -1, -1)
        position_key = self._heads(self.position_k_proj(positions)).expand(len(x), -1, -1, -1)
        to_positions, _ = attend(
            self, position_query, position_key, self._heads(value), mask[:, None, None].expand(-1, -1, queries, -1),
            scaling=self.scaling, dropout=dropout,
        )  # fmt: skip
        return self.o_proj((to_interests + to_positions).flatten(-2))


class LightSANsLayer(GradientCheckpointingLayer):
    """One block: attention, then feed-forward map, each followed by residual path and norm."""

    def __init__(self, config: LightSANsConfig):
        super().__init__()
        self.attention = LightSANsAttention(config)
        self.attention_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.feed_forward = FeedForward(config)
        self.feed_forward_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = Dropout(config.hidden_dropout_prob)

    def forward(self, x, positions, mask, last_only=False):
        """(batch, length, hidden) -> same, or (batch, 1, hidden) with `last_only`."""
        query = x[:, :1] if last_only else x
        x = self.attention_norm(query + self.dropout(self.attention(x, positions, mask, last_only)))
        return self.feed_forward_norm(x + self.feed_forward(x))


class LightSANsModel(SequenceModel):
    """States of LightSANs."""

    config: LightSANsConfig
    _no_split_modules = ("LightSANsLayer",)
    _supports_attention_backend = True

    def __init__(self, config: LightSANsConfig):
        super().__init__(config)
        self.position_embedding = nn.Embedding(config.max_length, config.hidden_size)
        self.position_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = Dropout(config.hidden_dropout_prob)
        self.layers = nn.ModuleList(LightSANsLayer(config) for _ in range(config.num_hidden_layers))
        self.post_init()

    def encode(self, item_vectors, lengths, last_only=False):
        """See [`SequenceModel.encode`]."""
        width = item_vectors.shape[1]
        # Newest item first: then column = position for all rows, and one matrix of positions serves the batch.
        index = (lengths.unsqueeze(1) - 1 - torch.arange(width, device=lengths.device)).clamp(min=0)
        index = index.unsqueeze(-1).expand_as(item_vectors)
        x = self.dropout(self.norm(item_vectors.gather(1, index)))
        positions = self.dropout(self.position_norm(self.position_embedding.weight[:width]))
        # A row without items looks at its first column: nothing reads it, but nothing may become NaN either.
        mask = length_mask(lengths.clamp(min=1), width)
        for number, layer in enumerate(self.layers):
            x = layer(x, positions, mask, last_only=last_only and number == len(self.layers) - 1)
        return x.squeeze(1) if last_only else x.gather(1, index)


class LightSANsForSequentialRecommendation(SequentialRecommender):
    """LightSANs with a scorer over the catalogue.

    Example:
        >>> model = LightSANsForSequentialRecommendation(LightSANsConfig(num_items=100, hidden_size=16)).eval()
        >>> model.score(torch.tensor([[0, 0, 12, 7]])).argmax(1).shape
        torch.Size([1])
    """

    config: LightSANsConfig
    model_class = LightSANsModel
    supervision = "last_position"
    _no_split_modules = ("LightSANsLayer",)
    _supports_attention_backend = True


register(LightSANsConfig, LightSANsForSequentialRecommendation)
