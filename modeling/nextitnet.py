"""NextItNet: stacked dilated causal convolutions see far back with few layers.

Paper: Yuan et al., A Simple Convolutional Generative Network for Next Item Recommendation, WSDM 2019 (arXiv 1808.05163).
Deviations. (1) The paper's second residual block (two convolutions, the second with twice the dilation, each followed by layer
norm and ReLU) is the only one here. (2) A dense map follows the blocks and the scoring table is the item table; the paper
has a ReLU and a second table with bias. (3) Zeros stand before the first item, whatever the padding. (4) Dropout on
the item vectors is an option; the paper has none.
Inputs: `input_ids` (batch, length) item_index, left-padded with 0; `labels` (batch, length), -100 ignored.
Trains with: `NextItemTrainer`, all positions in one pass.
"""

import torch.nn.functional as F
from huggingface_hub.dataclasses import strict
from torch import nn

from .base import SequenceModel, SequentialRecommender, SequentialRecommenderConfig, last_states, register
from .layers import Dropout, GradientCheckpointingLayer


@strict
class NextItNetConfig(SequentialRecommenderConfig):
    """Configuration of NextItNet.

    Args:
        dilations: Dilation of the first convolution of each residual block; the second has twice as much.
        num_repeats: How often the list of blocks is repeated.
        kernel_size: Number of items each convolution sees.
        layer_norm_eps: Epsilon of the layer norms.
    """

    model_type = "hf_seqrec_nextitnet"

    dilations: list[int] | tuple[int, ...] = (1, 4)
    num_repeats: int = 5
    kernel_size: int = 3
    layer_norm_eps: float = 1e-8

    def validate_architecture(self):
        """Refuse networks without blocks and dilations below 1."""
        super().validate_architecture()
        if not self.dilations or min(self.dilations) < 1 or self.num_repeats < 1:
            raise ValueError(
                "`dilations` needs at least one number, all at least 1, and `num_repeats` must be at least 1; got "
                f"{list(self.dilations)} and {self.num_repeats}."
            )
        if self.kernel_size < 1:
            raise ValueError(f"`kernel_size` must be at least 1, got {self.kernel_size}.")


class CausalConvolution(nn.Module):
    """Convolution over time that sees the present and the past, then layer norm and ReLU."""

    def __init__(self, config: NextItNetConfig, dilation: int):
        super().__init__()
        self.convolution = nn.Conv1d(config.hidden_size, config.hidden_size, config.kernel_size, dilation=dilation)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.reach = (config.kernel_size - 1) * dilation

    def forward(self, x):
        """(batch, length, hidden) -> same."""
        x = self.convolution(F.pad(x.transpose(1, 2), (self.reach, 0)))
        return F.relu(self.norm(x.transpose(1, 2)))


class NextItNetLayer(GradientCheckpointingLayer):
    """Residual block of two causal convolutions."""

    def __init__(self, config: NextItNetConfig, dilation: int):
        super().__init__()
        self.first = CausalConvolution(config, dilation)
        self.second = CausalConvolution(config, 2 * dilation)

    def forward(self, x):
        """(batch, length, hidden) -> same."""
        return x + self.second(self.first(x))


class NextItNetModel(SequenceModel):
    """States of NextItNet."""

    config: NextItNetConfig
    _no_split_modules = ("NextItNetLayer",)

    def __init__(self, config: NextItNetConfig):
        super().__init__(config)
        self.dropout = Dropout(config.hidden_dropout_prob)
        self.layers = nn.ModuleList(
            NextItNetLayer(config, dilation) for _ in range(config.num_repeats) for dilation in config.dilations
        )
        self.output = nn.Linear(config.hidden_size, config.hidden_size)
        self.post_init()

    def encode(self, item_vectors, lengths, last_only=False):
        """See [`SequenceModel.encode`]."""
        x = self.dropout(item_vectors)
        for layer in self.layers:
            x = layer(x)
        return self.output(last_states(x, lengths) if last_only else x)


class NextItNetForSequentialRecommendation(SequentialRecommender):
    """NextItNet with a scorer over the catalogue.

    Example:
        >>> model = NextItNetForSequentialRecommendation(NextItNetConfig(num_items=100, hidden_size=16)).eval()
        >>> model.score(torch.tensor([[0, 0, 12, 7]])).argmax(1).shape
        torch.Size([1])
    """

    config: NextItNetConfig
    model_class = NextItNetModel
    _no_split_modules = ("NextItNetLayer",)


register(NextItNetConfig, NextItNetForSequentialRecommendation)
