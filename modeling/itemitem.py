"""Item-item: recommend what people chose together with the items of the history; a floor without any training.

Papers: Sarwar et al., Item-based collaborative filtering recommendation algorithms, WWW 2001 (cosine); Deshpande and Karypis,
Item-based top-N recommendation algorithms, TOIS 2004 (conditional probability). Deviation: items of the history count less
the older they are, by `decay` per step.
With c_i the users of item i and c_ij those of both, a neighbour j of i has the similarity c_ij / sqrt(c_i c_j) (`cosine`) or
c_ij / (c_i c_j^α) (`conditional`). The score of j is Σ over the last `max_length` items i of decay^age(i) · similarity(i, j).
Inputs: `input_ids` (batch, length) item_index, left-padded with 0.
Fitted by `fit` from training sequences.
"""

from typing import ClassVar

import numpy as np
import torch
from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import initialization as init

from .base import NextItemOutput, SequencePreTrainedModel, SequentialRecommenderConfig, register, to_right_padded
from .popularity import count_items


# Elements of the dense block of co-occurrence rows held at once while fitting (128 MB of float64).
_BLOCK_ELEMENTS = 1 << 24


@strict
class ItemItemConfig(SequentialRecommenderConfig):
    """Configuration of item-item.

    Args:
        num_neighbours: Most similar items kept per item.
        similarity: `cosine` or `conditional`.
        popularity_damping: α of the conditional similarity, in [0, 1]; 0 favours popular neighbours, 1 rare ones.
        decay: Weight of an item relative to the one after it, in (0, 1].
    """

    model_type = "hf_seqrec_itemitem"
    unused_fields: ClassVar[tuple[str, ...]] = ("hidden_size", "hidden_dropout_prob", "initializer_range", "fusion")

    max_length: int = 20
    num_neighbours: int = 100
    similarity: str = "cosine"
    popularity_damping: float | int = 0.5
    decay: float | int = 0.7

    def validate_architecture(self):
        """Refuse unknown similarities and numbers out of range."""
        super().validate_architecture()
        if self.fusion != "none":
            raise ValueError(f"item-item has no item vectors: `fusion` must be 'none', got {self.fusion!r}.")
        if self.num_neighbours < 1:
            raise ValueError(f"`num_neighbours` must be at least 1, got {self.num_neighbours}.")
        if self.similarity not in ("cosine", "conditional"):
            raise ValueError(f"`similarity` must be 'cosine' or 'conditional', got {self.similarity!r}.")
        if not 0 <= self.popularity_damping <= 1:
            raise ValueError(f"`popularity_damping` must be in [0, 1], got {self.popularity_damping}.")
        if not 0 < self.decay <= 1:
            raise ValueError(f"`decay` must be in (0, 1], got {self.decay}.")


class ItemItemForSequentialRecommendation(SequencePreTrainedModel):
    """Item-item neighbourhoods as a recommender.

    Example:
        >>> from types import SimpleNamespace
        >>> sequences = SimpleNamespace(item_index=np.array([1, 2, 1, 2, 3, 4]), offsets=np.array([0, 2, 4, 6]))
        >>> model = ItemItemForSequentialRecommendation.fit(sequences, num_items=4)
        >>> model.score(torch.tensor([[1]])).argmax(1).tolist()
        [2]
    """

    config: ItemItemConfig
    supervision: ClassVar[str | None] = None
    is_dot_product: ClassVar[bool] = False
    supports_gradient_checkpointing = False

    def __init__(self, config: ItemItemConfig):
        super().__init__(config)
        shape = config.num_items + 1, min(config.num_neighbours, config.num_items)
        self.neighbours = nn.Buffer(torch.zeros(shape, dtype=torch.long))
        # A parameter, not a buffer: `model.device` and `model.dtype` ask the parameters.
        self.similarities = nn.Parameter(torch.zeros(shape), requires_grad=False)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, ItemItemForSequentialRecommendation):
            init.zeros_(module.neighbours)
            init.zeros_(module.similarities)

    @classmethod
    def fit(cls, sequences, num_items: int, **config) -> "ItemItemForSequentialRecommendation":
        """Find each item's neighbours in training sequences.

        Args:
            sequences: Training sequences with flat arrays `item_index` (values 1…num_items) and `offsets`: user u owns
                `item_index[offsets[u]:offsets[u + 1]]`.
            num_items: Size of the catalogue.
            config: Further fields of [`ItemItemConfig`].

        Returns:
            The model, in evaluation mode.

        Raises:
            ValueError: An item_index outside of 1…num_items, or no interaction.
        """
        from scipy.sparse import csr_array

        model = cls(ItemItemConfig(num_items=num_items, **config))
        items, offsets = np.asarray(sequences.item_index), np.asarray(sequences.offsets)
        count_items(items, num_items)  # refuses bad values before they index anything
        shape = len(offsets) - 1, num_items + 1
        # A copy: `sum_duplicates` works in place and would move the borders between the users of the caller's data.
        users_items = csr_array((np.ones(len(items)), items, offsets), shape=shape, copy=True)
        users_items.sum_duplicates()
        users_items.data[:] = 1.0  # an item counts once per user
        users = np.maximum(users_items.sum(0), 1.0)  # c_i; an item nobody has is divided by 1, not by 0
        items_users = users_items.T.tocsr()
        kept, block = model.neighbours.shape[1], max(1, _BLOCK_ELEMENTS // (num_items + 1))
        for start in range(1, num_items + 1, block):
            rows = np.arange(start, min(start + block, num_items + 1))
            together = (items_users[rows] @ users_items).toarray()
            together[np.arange(len(rows)), rows] = 0.0  # an item is not its own neighbour
            if model.config.similarity == "cosine":
                together /= np.sqrt(np.outer(users[rows], users))
            else:
                together /= np.outer(users[rows], users**model.config.popularity_damping)
            best = np.argpartition(-together, kept - 1, axis=1)[:, :kept]
            values = np.take_along_axis(together, best, axis=1)
            best[values == 0] = 0  # free places point to padding, which is never recommended
            model.neighbours[rows] = torch.from_numpy(best)
            model.similarities[rows] = torch.from_numpy(values).to(model.similarities.dtype)
        return model.eval()

    def forward(self, input_ids: torch.Tensor, **kwargs) -> NextItemOutput:
        """There is no loss and no user vector; raises a `TypeError` that names what there is."""
        raise TypeError("item-item has no loss and no user vector: fit it with `fit`, ask it with `score`.")

    def score(self, input_ids: torch.Tensor, candidates: torch.Tensor | None = None) -> torch.Tensor:
        """Scores of items as the next one; see [`SequentialRecommender.score`].

        Args:
            input_ids: (batch, length) item_index, left-padded with 0; only the last `config.max_length` count.
            candidates: (batch, num_candidates) item_index to score, or None for the whole catalogue.

        Returns:
            (batch, num_items + 1) with -inf in column 0, or (batch, num_candidates).
        """
        ids, lengths = to_right_padded(input_ids[:, -self.config.max_length :])
        if bool((lengths == 0).any()):
            row = int((lengths == 0).nonzero()[0])
            raise ValueError(f"`input_ids` row {row} has no item: a recommender needs at least one item of history.")
        age = (lengths.unsqueeze(1) - 1 - torch.arange(ids.shape[1], device=ids.device)).clamp(min=0)
        weights = (self.config.decay**age * (ids != 0)).to(self.similarities.dtype)
        scores = self.similarities.new_zeros(len(ids), self.config.num_items + 1)
        scores.scatter_add_(
            1, self.neighbours[ids].flatten(1), (self.similarities[ids] * weights.unsqueeze(-1)).flatten(1)
        )
        scores[:, 0] = -torch.inf
        return scores if candidates is None else scores.gather(1, candidates)


register(ItemItemConfig, ItemItemForSequentialRecommendation)
