"""LLMSeqSim: recommend the items whose texts are most like those of the history; no training at all.

Paper: Harte et al., Leveraging Large Language Models for Sequential Recommendation, RecSys 2023 (arXiv 2309.09261). With t_i the
text vector of item i, the user is Σ decay^age(i) t_i over the last `max_length` items, divided by the weights' sum; the score of an
item is its cosine with the user, or the dot product. `decay=1` is the mean, `decay=0` the last item alone.
Inputs: `input_ids` (batch, length) item_index, left-padded with 0.
Built by `from_vectors`.
"""

from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import initialization as init

from .base import NextItemOutput, SequencePreTrainedModel, SequentialRecommenderConfig, register, to_right_padded


@strict
class LLMSeqSimConfig(SequentialRecommenderConfig):
    """Configuration of LLMSeqSim.

    Args:
        hidden_size: Width of the text vectors.
        similarity: `cosine` or `dot`.
        decay: Weight of an item relative to the one after it, in [0, 1].
    """

    model_type = "hf_seqrec_llmseqsim"
    unused_fields: ClassVar[tuple[str, ...]] = ("hidden_dropout_prob", "initializer_range", "fusion")

    max_length: int = 20
    similarity: str = "cosine"
    decay: float | int = 0.7

    def validate_architecture(self):
        """Refuse unknown similarities and numbers out of range."""
        super().validate_architecture()
        if self.fusion != "none":
            raise ValueError(f"LLMSeqSim has no ID table: `fusion` must be 'none', got {self.fusion!r}.")
        if self.similarity not in ("cosine", "dot"):
            raise ValueError(f"`similarity` must be 'cosine' or 'dot', got {self.similarity!r}.")
        if not 0 <= self.decay <= 1:
            raise ValueError(f"`decay` must be in [0, 1], got {self.decay}.")


class LLMSeqSimForSequentialRecommendation(SequencePreTrainedModel):
    """Similarity of texts as a recommender.

    Example:
        >>> model = LLMSeqSimForSequentialRecommendation.from_vectors(np.array([[1.0, 0], [0.9, 0.1], [0, 1]]))
        >>> model.score(torch.tensor([[1]]))[0, 2:].argmax().item() + 2
        2
    """

    config: LLMSeqSimConfig
    supervision: ClassVar[str | None] = None
    is_dot_product: ClassVar[bool] = True
    supports_gradient_checkpointing = False
    item_bias = None

    def __init__(self, config: LLMSeqSimConfig):
        super().__init__(config)
        # A parameter, not a buffer: `model.device` and `model.dtype` ask the parameters.
        self.item_vectors = nn.Parameter(torch.zeros(config.num_items + 1, config.hidden_size), requires_grad=False)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, LLMSeqSimForSequentialRecommendation):
            init.zeros_(module.item_vectors)

    @classmethod
    def from_vectors(cls, vectors: np.ndarray | torch.Tensor, **config) -> "LLMSeqSimForSequentialRecommendation":
        """The recommender of a catalogue's text vectors.

        Args:
            vectors: (num_items, width), such as `encode_items(…).read()`.
            config: Further fields of [`LLMSeqSimConfig`].

        Returns:
            The model, in evaluation mode.

        Raises:
            ValueError: Another shape, or values that are not finite.
        """
        values = torch.as_tensor(vectors).float()
        if values.ndim != 2 or not len(values):
            raise ValueError(f"`vectors` need shape (num_items, width), got {tuple(values.shape)}.")
        if not bool(torch.isfinite(values).all()):
            row = int((~torch.isfinite(values)).any(1).nonzero()[0])
            raise ValueError(f"`vectors` have a value that is not finite at item_index {row + 1}.")
        model = cls(LLMSeqSimConfig(num_items=len(values), hidden_size=values.shape[1], **config))
        model.item_vectors.data[1:] = values
        return model.eval()

    def item_representations(self) -> torch.Tensor:
        """The scoring table (num_items + 1, width), row 0 zeros; unit vectors with `cosine`."""
        return F.normalize(self.item_vectors, dim=-1) if self.config.similarity == "cosine" else self.item_vectors

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor | None = None, **kwargs) -> NextItemOutput:
        """User vectors: (batch, length) item_index, left-padded with 0 -> `user_embeddings` (batch, width).

        Raises:
            TypeError: Labels: there is nothing to train. ValueError: a row without items.
        """
        if labels is not None:
            raise TypeError("LLMSeqSim has nothing to train: build it with `from_vectors`, ask it with `score`.")
        ids, lengths = to_right_padded(input_ids[:, -self.config.max_length :])
        if bool((lengths == 0).any()):
            row = int((lengths == 0).nonzero()[0])
            raise ValueError(f"`input_ids` row {row} has no item: a recommender needs at least one item of history.")
        age = (lengths.unsqueeze(1) - 1 - torch.arange(ids.shape[1], device=ids.device)).clamp(min=0)
        weights = (float(self.config.decay) ** age * (ids != 0)).to(self.item_vectors.dtype)
        users = torch.einsum("bl,bld->bd", weights / weights.sum(1, keepdim=True), self.item_vectors[ids])
        return NextItemOutput(
            user_embeddings=F.normalize(users, dim=-1) if self.config.similarity == "cosine" else users
        )

    def score(
        self,
        input_ids: torch.Tensor,
        candidates: torch.Tensor | None = None,
        item_table: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Scores of items as the next one; see [`SequentialRecommender.score`]."""
        table = self.item_representations() if item_table is None else item_table
        users = self(input_ids).user_embeddings
        if candidates is None:
            scores = users @ table.T
            return torch.cat([torch.full_like(scores[:, :1], -torch.inf), scores[:, 1:]], dim=1)
        scores = torch.einsum("bd,bcd->bc", users, table[candidates])
        return scores.masked_fill(candidates == 0, -torch.inf)


register(LLMSeqSimConfig, LLMSeqSimForSequentialRecommendation)
