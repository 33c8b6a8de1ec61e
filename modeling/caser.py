"""Caser: the last few items as an image, read by filters that slide over time and over features.

Paper: Tang and Wang, Personalized Top-N Sequential Recommendation via Convolutional Sequence Embedding, WSDM 2018
(arXiv 1809.07426).
Deviations. (1) No user embedding, so that people who were not trained on can be served: the second half of the paper's
output map is absent. (2) All positions of a sequence are computed in one pass: horizontal filters run once over the whole
sequence and their maximum slides with the window, which equals the original network on every window of the last
`window_size` items, zeros before the first. (3) One target per window, the next item; the paper skips to the next
three. (4) The scoring table is the item table, not a second one; its bias stays. (5) The loss is chosen in the
trainer: the paper's is `bce` with three negatives. (6) Windows that reach before the first item are trained on too.
Inputs: `input_ids` (batch, length) item_index, left-padded with 0; `labels` (batch, length), -100 ignored.
Trains with: `NextItemTrainer`, all positions in one pass.
"""

import torch
import torch.nn.functional as F
from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import initialization as init
from transformers.activations import ACT2FN

from .base import SequenceModel, SequentialRecommender, SequentialRecommenderConfig, register
from .layers import Dropout


@strict
class CaserConfig(SequentialRecommenderConfig):
    """Configuration of Caser.

    Args:
        window_size: Number of most recent items in the image, L in the paper.
        num_horizontal_filters: Filters of each height 1…L.
        num_vertical_filters: Filters over the whole height, one feature wide.
        hidden_act: Activation after the horizontal filters and after the dense map.
    """

    model_type = "hf_seqrec_caser"

    window_size: int = 5
    num_horizontal_filters: int = 16
    num_vertical_filters: int = 4
    hidden_act: str = "relu"

    def validate_architecture(self):
        """Refuse an empty window."""
        super().validate_architecture()
        if self.window_size < 1:
            raise ValueError(f"`window_size` must be at least 1, got {self.window_size}.")
        if self.num_horizontal_filters < 1 or self.num_vertical_filters < 1:
            raise ValueError(
                "`num_horizontal_filters` and `num_vertical_filters` must be at least 1, got "
                f"{self.num_horizontal_filters} and {self.num_vertical_filters}."
            )


class CaserModel(SequenceModel):
    """States of Caser."""

    config: CaserConfig

    def __init__(self, config: CaserConfig):
        super().__init__(config)
        window, hidden = config.window_size, config.hidden_size
        self.horizontal = nn.ModuleList(
            nn.Conv1d(hidden, config.num_horizontal_filters, height) for height in range(1, window + 1)
        )
        self.vertical = nn.Linear(window, config.num_vertical_filters)
        self.dropout = Dropout(config.hidden_dropout_prob)
        self.act = ACT2FN[config.hidden_act]
        self.output = nn.Linear(window * config.num_horizontal_filters + config.num_vertical_filters * hidden, hidden)
        self.post_init()

    def encode(self, item_vectors, lengths, last_only=False):
        """See [`SequenceModel.encode`]."""
        window = self.config.window_size
        # (batch, hidden, window - 1 + length): every position has a full window, with zeros before the first item.
        image = F.pad(item_vectors.transpose(1, 2), (window - 1, 0))
        if last_only:
            columns = lengths.clamp(min=1).unsqueeze(1) - 1 + torch.arange(window, device=lengths.device)
            image = image.gather(2, columns.unsqueeze(1).expand(-1, image.shape[1], -1))
        # A filter of height h has window - h + 1 places in a window; their maximum slides along.
        features = [
            F.max_pool1d(self.act(convolution(image)), window - height, stride=1)
            for height, convolution in enumerate(self.horizontal)
        ]
        # (batch, hidden, length, window) -> (batch, hidden, length, filters) -> (batch, filters · hidden, length)
        vertical = self.vertical(image.unfold(2, window, 1)).permute(0, 3, 1, 2).flatten(1, 2)
        states = torch.cat([*features, vertical], dim=1).transpose(1, 2)
        states = self.act(self.output(self.dropout(states)))
        return states.squeeze(1) if last_only else states


class CaserForSequentialRecommendation(SequentialRecommender):
    """Caser with a scorer over the catalogue.

    Example:
        >>> model = CaserForSequentialRecommendation(CaserConfig(num_items=100, hidden_size=16)).eval()
        >>> model.score(torch.tensor([[0, 0, 12, 7]])).argmax(1).shape
        torch.Size([1])
    """

    config: CaserConfig
    model_class = CaserModel

    def __init__(self, config: CaserConfig):
        super().__init__(config)
        self.bias = nn.Parameter(torch.zeros(config.num_items + 1))
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, CaserForSequentialRecommendation):
            init.zeros_(module.bias)

    @property
    def item_bias(self) -> torch.Tensor:
        """(num_items + 1,) trained bias of each item."""
        return self.bias


register(CaserConfig, CaserForSequentialRecommendation)
