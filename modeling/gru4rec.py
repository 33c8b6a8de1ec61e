"""GRU4Rec: a recurrent network reads the history and its last state scores the catalogue.

Paper: Hidasi, Karatzoglou, Baltrunas and Tikk, Session-based Recommendations with Recurrent Neural Networks, ICLR 2016
(arXiv 1511.06939).
Deviations. (1) A dense map brings the recurrent state back to the width of the item vectors, so that input and output share
one table; the paper reads one-hot items and has a separate output matrix. (2) Whole sequences are rows of a batch; the paper
runs sessions in parallel, carries the state along and takes the other sessions' items as negatives. (3) Dropout is on
the item vectors; the paper's is on the recurrent state. (4) The loss is chosen in the trainer: the paper's are BPR and
TOP1, ours the full cross-entropy. (5) Gates start Xavier-uniform with zero biases.
Inputs: `input_ids` (batch, length) item_index, left-padded with 0; `labels` (batch, length), -100 ignored.
Trains with: `NextItemTrainer`, all positions in one pass.
"""

import torch
from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import initialization as init

from .base import SequenceModel, SequentialRecommender, SequentialRecommenderConfig, last_states, register
from .layers import Dropout


@strict
class GRU4RecConfig(SequentialRecommenderConfig):
    """Configuration of GRU4Rec.

    Args:
        recurrent_size: Width of the recurrent state.
        num_hidden_layers: Number of stacked recurrent layers, with `hidden_dropout_prob` between them.
    """

    model_type = "hf_seqrec_gru4rec"

    max_length: int = 100
    hidden_dropout_prob: float | int = 0.5
    initializer_range: float = 0.1
    recurrent_size: int = 128
    num_hidden_layers: int = 1


class GRU4RecModel(SequenceModel):
    """States of GRU4Rec."""

    config: GRU4RecConfig
    _can_compile_fullgraph = False  # the recurrence runs outside of the compiled graph

    def __init__(self, config: GRU4RecConfig):
        super().__init__(config)
        self.dropout = Dropout(config.hidden_dropout_prob)
        self.recurrent = nn.GRU(
            config.hidden_size,
            config.recurrent_size,
            config.num_hidden_layers,
            batch_first=True,
            dropout=config.hidden_dropout_prob if config.num_hidden_layers > 1 else 0.0,
        )
        self.output = nn.Linear(config.recurrent_size, config.hidden_size)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, nn.GRU):
            for name, parameter in module.named_parameters():
                init.xavier_uniform_(parameter) if "weight" in name else init.zeros_(parameter)

    def encode(self, item_vectors, lengths, last_only=False):
        """See [`SequenceModel.encode`]."""
        # Padding stands behind the items, so no state that is read has seen it: there is nothing to pack.
        states, _ = self.recurrent(self.dropout(item_vectors))
        return self.output(last_states(states, lengths) if last_only else states)


class GRU4RecForSequentialRecommendation(SequentialRecommender):
    """GRU4Rec with a scorer over the catalogue.

    Example:
        >>> model = GRU4RecForSequentialRecommendation(GRU4RecConfig(num_items=100, hidden_size=16)).eval()
        >>> model.score(torch.tensor([[0, 0, 12, 7]])).argmax(1).shape
        torch.Size([1])
    """

    config: GRU4RecConfig
    model_class = GRU4RecModel
    _can_compile_fullgraph = False


register(GRU4RecConfig, GRU4RecForSequentialRecommendation)
