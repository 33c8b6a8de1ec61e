"""FMLP-Rec: a learned filter in the frequency domain in place of attention.

Paper: Zhou, Yu, Zhao and Wen, Filter-enhanced MLP is All You Need for Sequential Recommendation, WWW 2022 (arXiv 2202.13556).
Deviations. (1) The loss is chosen in the trainer: the paper's is `bce` with one negative on the last position. (2) Position vectors
count from the most recent item, as the left-padding of the original code makes them do. Otherwise the maths is the original's,
including padding columns, whose position vectors take part in the filter.
The filter is circular over exactly `max_length` columns, so it sees items after a position as well as before: only the last
state of a row is trained and used.
Inputs: `input_ids` (batch, length) item_index, left-padded with 0; `labels` (batch, length), -100 except the last.
Trains with: `NextItemTrainer`, rows that carry their label at the last position.
"""

import torch
from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import initialization as init

from .base import SequenceModel, SequentialRecommender, SequentialRecommenderConfig, register
from .layers import Dropout, FeedForward, GradientCheckpointingLayer


@strict
class FMLPRecConfig(SequentialRecommenderConfig):
    """Configuration of FMLP-Rec.

    Args:
        num_hidden_layers: Number of blocks, each a filter and a feed-forward map.
        intermediate_size: Width inside the feed-forward map.
        hidden_act: Activation of the feed-forward map.
        layer_norm_eps: Epsilon of the layer norms.
    """

    model_type = "hf_seqrec_fmlprec"

    hidden_dropout_prob: float | int = 0.5
    num_hidden_layers: int = 2
    intermediate_size: int = 256
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-12


class FrequencyFilter(nn.Module):
    """Multiply each frequency of each feature by a learned complex number."""

    def __init__(self, config: FMLPRecConfig):
        super().__init__()
        # Real and imaginary parts in the last axis: optimizers, casts and files know real numbers.
        self.weight = nn.Parameter(torch.empty(config.max_length // 2 + 1, config.hidden_size, 2))

    def forward(self, x):
        """(batch, max_length, hidden) -> same."""
        # The transform knows no 16-bit numbers.
        precise = x if x.dtype == torch.float64 else x.float()
        spectrum = torch.fft.rfft(precise, dim=1, norm="ortho")
        spectrum = spectrum * torch.view_as_complex(self.weight.to(precise.dtype))
        return torch.fft.irfft(spectrum, n=x.shape[1], dim=1, norm="ortho").to(x.dtype)


class FMLPRecLayer(GradientCheckpointingLayer):
    """One block: filter, then feed-forward map, each followed by residual path and norm."""

    def __init__(self, config: FMLPRecConfig):
        super().__init__()
        self.filter = FrequencyFilter(config)
        self.filter_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.feed_forward = FeedForward(config)
        self.feed_forward_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = Dropout(config.hidden_dropout_prob)

    def forward(self, x, last_only=False):
        """(batch, max_length, hidden) -> same, or (batch, 1, hidden) with `last_only`."""
        x = x + self.dropout(self.filter(x))
        x = self.filter_norm(x[:, -1:] if last_only else x)
        return self.feed_forward_norm(x + self.feed_forward(x))


class FMLPRecModel(SequenceModel):
    """States of FMLP-Rec."""

    config: FMLPRecConfig
    _no_split_modules = ("FMLPRecLayer",)

    def __init__(self, config: FMLPRecConfig):
        super().__init__(config)
        self.position_embedding = nn.Embedding(config.max_length, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = Dropout(config.hidden_dropout_prob)
        self.layers = nn.ModuleList(FMLPRecLayer(config) for _ in range(config.num_hidden_layers))
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, FrequencyFilter):
            init.normal_(module.weight, std=self.config.initializer_range)

    def encode(self, item_vectors, lengths, last_only=False):
        """See [`SequenceModel.encode`]."""
        width, hidden = item_vectors.shape[1:]
        length = self.config.max_length
        # Left-pad to the filter's length: column j holds item j - start of its row.
        start = (length - lengths).unsqueeze(1)
        source = torch.arange(length, device=lengths.device) - start
        index = source.clamp(0, width - 1).unsqueeze(-1).expand(-1, -1, hidden)
        x = item_vectors.gather(1, index) * (source >= 0).unsqueeze(-1)
        x = self.dropout(self.norm(x + self.position_embedding.weight))
        for number, layer in enumerate(self.layers):
            x = layer(x, last_only=last_only and number == len(self.layers) - 1)
        if last_only:
            return x.squeeze(1)
        index = (start + torch.arange(width, device=lengths.device)).clamp(max=length - 1)
        return x.gather(1, index.unsqueeze(-1).expand(-1, -1, hidden))


class FMLPRecForSequentialRecommendation(SequentialRecommender):
    """FMLP-Rec with a scorer over the catalogue.

    Example:
        >>> model = FMLPRecForSequentialRecommendation(FMLPRecConfig(num_items=100, hidden_size=16)).eval()
        >>> model.score(torch.tensor([[0, 0, 12, 7]])).argmax(1).shape
        torch.Size([1])
    """

    config: FMLPRecConfig
    model_class = FMLPRecModel
    supervision = "last_position"
    _no_split_modules = ("FMLPRecLayer",)


register(FMLPRecConfig, FMLPRecForSequentialRecommendation)
