"""BERT4Rec: a bidirectional transformer fills in masked items; the next item is a mask at the end.

Paper: Sun et al., BERT4Rec: Sequential Recommendation with Bidirectional Encoder Representations from Transformer,
CIKM 2019 (arXiv 1904.06690).
Deviations. (1) The mask is a vector of its own beside the item table, so it can never be recommended. (2) Position vectors
count from the most recent position, and padding keys are masked: any amount of padding gives the same scores.
(3) Attention dropout is 0 by default (paper: the same rate as elsewhere). (4) Long histories are cut to the most recent
`max_length` items; the original code also trains on sliding windows and on ten masked copies of each user. (5) Which items
are masked, and how often only the last one is, is chosen in the trainer. (6) One query projection and one joint
key/value projection, same maths.
Inputs: `input_ids` (batch, length) item_index, left-padded with 0, `num_items + 1` at a masked position; `labels` (batch,
length) the true item_index at masked positions, -100 elsewhere.
Trains with: `NextItemTrainer`, cloze rows.
"""

import torch
from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import initialization as init
from transformers.activations import ACT2FN

from .base import SequenceModel, SequentialRecommender, SequentialRecommenderConfig, last_states, register
from .layers import Dropout, FeedForward, GradientCheckpointingLayer, SelfAttention, length_mask


@strict
class BERT4RecConfig(SequentialRecommenderConfig):
    """Configuration of BERT4Rec.

    Args:
        num_hidden_layers: Number of transformer blocks.
        num_attention_heads: Heads per block; must divide `hidden_size`.
        intermediate_size: Width inside the feed-forward map.
        hidden_act: Activation of the feed-forward map and of the head.
        attention_probs_dropout_prob: Dropout on attention weights.
        layer_norm_eps: Epsilon of the layer norms.
    """

    model_type = "hf_seqrec_bert4rec"

    hidden_dropout_prob: float | int = 0.1
    num_hidden_layers: int = 2
    num_attention_heads: int = 2
    intermediate_size: int = 256
    hidden_act: str = "gelu"
    attention_probs_dropout_prob: float | int = 0.0
    layer_norm_eps: float = 1e-12

    def validate_architecture(self):
        """Refuse head counts that do not divide the width, and rows without room for the mask."""
        super().validate_architecture()
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"`num_attention_heads` ({self.num_attention_heads}) must divide `hidden_size` ({self.hidden_size})."
            )
        if self.max_length < 2:
            raise ValueError(f"`max_length` must be at least 2 (an item and the mask), got {self.max_length}.")

    @property
    def mask_token_id(self) -> int:
        """The id that stands for a masked item: `num_items + 1`."""
        return self.num_items + 1


class BERT4RecLayer(GradientCheckpointingLayer):
    """One block of BERT: attention and feed-forward map, each followed by residual path and norm."""

    def __init__(self, config: BERT4RecConfig):
        super().__init__()
        self.attention = SelfAttention(config, is_causal=False)
        self.attention_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.feed_forward = FeedForward(config)
        self.feed_forward_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = Dropout(config.hidden_dropout_prob)

    def forward(self, x, lengths, last_only=False):
        """(batch, length, hidden) -> same, or (batch, 1, hidden) with `last_only`."""
        query = last_states(x, lengths).unsqueeze(1) if last_only else x
        # A row without items looks at its first column: nothing reads it, but nothing may become NaN either.
        mask = length_mask(lengths.clamp(min=1), x.shape[1])[:, None, None]
        x = self.attention_norm(query + self.dropout(self.attention(query, x, mask)))
        return self.feed_forward_norm(x + self.feed_forward(x))


class BERT4RecModel(SequenceModel):
    """States of BERT4Rec."""

    config: BERT4RecConfig
    _no_split_modules = ("BERT4RecLayer",)
    _supports_attention_backend = True

    def __init__(self, config: BERT4RecConfig):
        super().__init__(config)
        self.mask_embedding = nn.Embedding(1, config.hidden_size)
        self.position_embedding = nn.Embedding(config.max_length, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = Dropout(config.hidden_dropout_prob)
        self.layers = nn.ModuleList(BERT4RecLayer(config) for _ in range(config.num_hidden_layers))
        self.post_init()

    def lookup(self, ids: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
        """Vectors of items and masks: (batch, length) -> (batch, length, hidden)."""
        masked = ids == self.config.mask_token_id
        vectors = self.item_encoder.lookup(ids.masked_fill(masked, 0), table)
        return torch.where(masked.unsqueeze(-1), self.mask_embedding.weight[0].to(vectors.dtype), vectors)

    def encode(self, item_vectors, lengths, last_only=False):
        """See [`SequenceModel.encode`]."""
        width = item_vectors.shape[1]
        # 0 is the most recent position; columns beyond the length read row 0 and are masked as keys.
        age = (lengths.unsqueeze(1) - 1 - torch.arange(width, device=lengths.device)).clamp(min=0)
        x = self.dropout(self.norm(item_vectors + self.position_embedding(age)))
        for number, layer in enumerate(self.layers):
            x = layer(x, lengths, last_only=last_only and number == len(self.layers) - 1)
        return x.squeeze(1) if last_only else x


class BERT4RecForSequentialRecommendation(SequentialRecommender):
    """BERT4Rec with a scorer over the catalogue.

    Example:
        >>> model = BERT4RecForSequentialRecommendation(BERT4RecConfig(num_items=100, hidden_size=16)).eval()
        >>> model.score(torch.tensor([[0, 0, 12, 7]])).argmax(1).shape
        torch.Size([1])
    """

    config: BERT4RecConfig
    model_class = BERT4RecModel
    supervision = "cloze"
    _no_split_modules = ("BERT4RecLayer",)
    _supports_attention_backend = True

    def __init__(self, config: BERT4RecConfig):
        super().__init__(config)
        self.head = nn.Linear(config.hidden_size, config.hidden_size)
        self.head_act = ACT2FN[config.hidden_act]
        self.head_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.bias = nn.Parameter(torch.zeros(config.num_items + 1))
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, BERT4RecForSequentialRecommendation):
            init.zeros_(module.bias)

    @property
    def item_bias(self) -> torch.Tensor:
        """(num_items + 1,) trained bias of each item."""
        return self.bias

    def project_states(self, states: torch.Tensor) -> torch.Tensor:
        """The head: dense map, activation, norm; (…, hidden) -> (…, hidden)."""
        return self.head_norm(self.head_act(self.head(states)))

    def prepare_for_scoring(self, ids: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Append the mask whose state predicts the next item, dropping the oldest item of a full row.

        Args:
            ids: (batch, length) right-padded item_index.
            lengths: (batch,) items per row.

        Returns:
            The same with the mask as each row's last position; at most `config.max_length` columns.
        """
        mask = self.config.mask_token_id
        ids = torch.cat([ids, torch.zeros_like(ids[:, :1])], dim=1)
        ids = ids.scatter(1, lengths.unsqueeze(1), mask)
        too_long = lengths == self.config.max_length
        if ids.shape[1] > self.config.max_length:
            # Only then can a row be full; it starts one item later.
            ids = torch.where(too_long.unsqueeze(1), ids.roll(-1, 1), ids)[:, : self.config.max_length]
        return ids, lengths + 1 - too_long.to(lengths.dtype)


register(BERT4RecConfig, BERT4RecForSequentialRecommendation)
