"""Popularity: every user is recommended what most people chose; the floor that any recommender must clear.

As a model it is one number per item, the logarithm of its share of the training interactions, and a user state of 1. Its
cross-entropy is therefore that of guessing by popularity, a yardstick for training curves.
Inputs: `input_ids` (batch, length) item_index, left-padded with 0; the history is not looked at.
Fitted by `fit` from training sequences.
"""

from typing import ClassVar

import numpy as np
import torch
from huggingface_hub.dataclasses import strict

from .base import SequenceModel, SequentialRecommender, SequentialRecommenderConfig, register


@strict
class PopularityConfig(SequentialRecommenderConfig):
    """Configuration of popularity. `hidden_size` is 1, there is nothing to set."""

    model_type = "hf_seqrec_popularity"
    unused_fields: ClassVar[tuple[str, ...]] = ("hidden_size", "hidden_dropout_prob", "initializer_range")

    hidden_size: int = 1

    def validate_architecture(self):
        """Refuse a width other than 1."""
        super().validate_architecture()
        if self.hidden_size != 1:
            raise ValueError(f"popularity has one number per item: `hidden_size` must be 1, got {self.hidden_size}.")


class PopularityModel(SequenceModel):
    """The state 1 for everyone."""

    config: PopularityConfig

    def __init__(self, config: PopularityConfig):
        super().__init__(config)
        self.post_init()

    def encode(self, item_vectors, lengths, last_only=False):
        """See [`SequenceModel.encode`]."""
        return torch.ones_like(item_vectors[:, 0] if last_only else item_vectors)


class PopularityForSequentialRecommendation(SequentialRecommender):
    """Popularity as a recommender.

    Example:
        >>> from types import SimpleNamespace
        >>> sequences = SimpleNamespace(item_index=np.array([1, 2, 2, 3, 2]))
        >>> model = PopularityForSequentialRecommendation.fit(sequences, num_items=3)
        >>> model.score(torch.tensor([[1]])).argmax(1).tolist()
        [2]
    """

    config: PopularityConfig
    model_class = PopularityModel

    @classmethod
    def fit(cls, sequences, num_items: int, **config) -> "PopularityForSequentialRecommendation":
        """Count the training interactions.

        Args:
            sequences: Training sequences with a flat array `item_index` of values 1…num_items.
            num_items: Size of the catalogue; items without interactions count as half of one.
            config: Further fields of [`PopularityConfig`].

        Returns:
            The model, in evaluation mode.

        Raises:
            ValueError: An item_index outside of 1…num_items, or no interaction.
        """
        counts = count_items(sequences.item_index, num_items).astype(np.float64)
        shares = np.maximum(counts, 0.5) / np.maximum(counts[1:], 0.5).sum()
        model = cls(PopularityConfig(num_items=num_items, **config))
        with torch.no_grad():
            table = model.model.item_encoder.id_embedding.weight
            table.copy_(torch.from_numpy(np.log(shares)).unsqueeze(1))
            table[0] = 0
        return model.eval()


def count_items(item_index: np.ndarray, num_items: int) -> np.ndarray:
    """Interactions per item: (num_interactions,) -> (num_items + 1,), refusing what is not an item_index."""
    item_index = np.asarray(item_index)
    if len(item_index) == 0:
        raise ValueError("there is no training interaction to count: pass the training part of a split.")
    lowest, highest = int(item_index.min()), int(item_index.max())
    if lowest < 1 or highest > num_items:
        raise ValueError(f"item_index must be in 1…{num_items} (`num_items`), got values from {lowest} to {highest}.")
    return np.bincount(item_index, minlength=num_items + 1)


register(PopularityConfig, PopularityForSequentialRecommendation)
