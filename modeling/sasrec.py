"""SASRec: self-attention over the history, one item vector table for input and output.

Paper: Kang and McAuley, Self-Attentive Sequential Recommendation, ICDM 2018 (arXiv 1808.09781).
Deviations. (1) Attention dropout is 0 by default: it changes quality little and is dear on a CPU; the `paper` presets switch it
on. (2) `norm="pre"` (our default) normalises queries, keys and values and leaves the residual path alone; `norm="query"` is
the original block, which normalises only the query and adds the *normalised* query back; `norm="post"` is the BERT block
of RecBole. (3) Position vectors count from the most recent item, as left-padding does in the original code. (4) The
loss is chosen in the trainer: the paper's is `bce` with one negative, ours the full cross-entropy. (5) One query
projection and one joint key/value projection, same maths. (6) Padding keys are masked; the original code lets its zero
vectors take part in the softmax.
Inputs: `input_ids` (batch, length) item_index, left-padded with 0; `labels` (batch, length), -100 ignored.
Trains with: `NextItemTrainer`, all positions in one pass.
"""

import torch
from huggingface_hub.dataclasses import strict
from torch import nn

from .base import SequenceModel, SequentialRecommender, SequentialRecommenderConfig, last_states, register
from .layers import Dropout, FeedForward, GradientCheckpointingLayer, SelfAttention, length_mask


@strict
class SASRecConfig(SequentialRecommenderConfig):
    """Configuration of SASRec.

    Args:
        num_hidden_layers: Number of attention blocks.
        num_attention_heads: Heads per block; must divide `hidden_size`.
        intermediate_size: Width inside the feed-forward map (the paper's equals `hidden_size`).
        hidden_act: Activation of the feed-forward map.
        attention_probs_dropout_prob: Dropout on attention weights.
        norm: `pre`, `query` (original code) or `post`.
        scale_embeddings: Multiply item vectors by sqrt(hidden_size), as the original code does.
        layer_norm_eps: Epsilon of the layer norms.
    """

    model_type = "hf_seqrec_sasrec"

    hidden_dropout_prob: float | int = 0.3
    num_hidden_layers: int = 2
    num_attention_heads: int = 2
    intermediate_size: int = 256
    hidden_act: str = "gelu"
    attention_probs_dropout_prob: float | int = 0.0
    norm: str = "pre"
    scale_embeddings: bool = True
    layer_norm_eps: float = 1e-8

    def validate_architecture(self):
        """Refuse head counts that do not divide the width, and unknown block kinds."""
        super().validate_architecture()
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"`num_attention_heads` ({self.num_attention_heads}) must divide `hidden_size` ({self.hidden_size})."
            )
        if self.norm not in ("pre", "query", "post"):
            raise ValueError(f"`norm` must be 'pre', 'query' or 'post', got {self.norm!r}.")


class SASRecLayer(GradientCheckpointingLayer):
    """One block: attention, then the feed-forward map, each with a residual path."""

    def __init__(self, config: SASRecConfig):
        super().__init__()
        self.norm = config.norm
        self.attention = SelfAttention(config, is_causal=True)
        self.attention_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.feed_forward = FeedForward(config)
        self.feed_forward_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = Dropout(config.hidden_dropout_prob)

    def forward(self, x, lengths, last_only=False):
        """(batch, length, hidden) -> same, or (batch, 1, hidden) with `last_only`: keys from all, queries from the last."""
        # Only the last block of a request reads one state per user; it then skips the work for all other queries.
        query = last_states(x, lengths).unsqueeze(1) if last_only else x
        mask = length_mask(lengths, x.shape[1])[:, None, None] if last_only else None
        if self.norm == "pre":
            normed = self.attention_norm(x)
            normed_query = last_states(normed, lengths).unsqueeze(1) if last_only else normed
            x = query + self.dropout(self.attention(normed_query, normed, mask))
            return x + self.feed_forward(self.feed_forward_norm(x))
        if self.norm == "query":
            normed_query = self.attention_norm(query)
            x = self.feed_forward_norm(normed_query + self.attention(normed_query, x, mask))
            return x + self.feed_forward(x)
        x = self.attention_norm(query + self.dropout(self.attention(query, x, mask)))
        return self.feed_forward_norm(x + self.feed_forward(x))


class SASRecModel(SequenceModel):
    """States of SASRec."""

    config: SASRecConfig
    _no_split_modules = ("SASRecLayer",)
    _supports_attention_backend = True

    def __init__(self, config: SASRecConfig):
        super().__init__(config)
        self.position_embedding = nn.Embedding(config.max_length, config.hidden_size)
        self.dropout = Dropout(config.hidden_dropout_prob)
        self.layers = nn.ModuleList(SASRecLayer(config) for _ in range(config.num_hidden_layers))
        self.norm = (
            nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps) if config.norm != "post" else nn.Identity()
        )
        self.scale = config.hidden_size**0.5 if config.scale_embeddings else 1.0
        self.post_init()

    def encode(self, item_vectors, lengths, last_only=False):
        """See [`SequenceModel.encode`]."""
        width = item_vectors.shape[1]
        # 0 is the most recent item's position; columns beyond the length read row 0 and are never used.
        age = (lengths.unsqueeze(1) - 1 - torch.arange(width, device=lengths.device)).clamp(min=0)
        x = self.dropout(item_vectors * self.scale + self.position_embedding(age))
        for number, layer in enumerate(self.layers):
            x = layer(x, lengths, last_only=last_only and number == len(self.layers) - 1)
        x = self.norm(x)
        return x.squeeze(1) if last_only else x


class SASRecForSequentialRecommendation(SequentialRecommender):
    """SASRec with a scorer over the catalogue.

    Example:
        >>> model = SASRecForSequentialRecommendation(SASRecConfig(num_items=100, hidden_size=16)).eval()
        >>> model.score(torch.tensor([[0, 0, 12, 7]])).argmax(1).shape
        torch.Size([1])
    """

    config: SASRecConfig
    model_class = SASRecModel
    _no_split_modules = ("SASRecLayer",)
    _supports_attention_backend = True


register(SASRecConfig, SASRecForSequentialRecommendation)
