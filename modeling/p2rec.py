"""P2Rec, stages 1 and 2: an LLM that reads item vectors and tells how a user's interest is spread over groups of items.

Paper: Liu et al., A Practice-Friendly LLM-Enhanced Paradigm with Preference Parsing for Sequential Recommendation, RecSys 2024.
h = LLM(instruction; W_p e_1 … W_p e_n; response), ĝ = softmax(W h + b); ḡ is the share of each group in the user's training items.
Trained are LoRA, W_p and (W, b). Stage 2 reads every item alone: its h is the enhanced vector z, its ĝ the inferred groups.
Left open by the paper, and how it is here: h is the last layer's state at the last real position; histories are cut to their
`max_length` most recent items while ḡ counts all training items; start values of W_p give item vectors the spread of tokens.
Inputs: `input_ids` (batch, length) item_index, left-padded with 0; `preferences` (batch, num_groups), rows sum to 1.
Trains with: `PreferenceTrainer`.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from huggingface_hub.dataclasses import strict
from torch import nn
from transformers.utils import ModelOutput

from .base import register
from .llm_items import ItemPromptConfig, ItemPromptModel


DIVERGENCES = ("squared", "kl", "js")


@strict
class P2RecConfig(ItemPromptConfig):
    """Configuration of P2Rec's LLM.

    Args:
        num_groups: K, the number of groups of items.
        divergence: Between ḡ and ĝ: `squared` (the paper's, summed over groups), `kl` or `js`.
    """

    model_type = "hf_seqrec_p2rec"

    num_groups: int = 64
    divergence: str = "squared"
    instruction: str = (
        "Given the user's purchase history, predict the user's distribution among {num_groups} purchase preferences."
    )

    def validate_architecture(self):
        """Refuse an unknown divergence and fewer than two groups."""
        super().validate_architecture()
        if self.num_groups < 2:
            raise ValueError(f"`num_groups` must be at least 2, got {self.num_groups}.")
        if self.num_groups > self.num_items:
            raise ValueError(f"{self.num_groups} groups of {self.num_items} items: lower `num_groups`.")
        if self.divergence not in DIVERGENCES:
            raise ValueError(f"`divergence` must be one of {', '.join(DIVERGENCES)}, got {self.divergence!r}.")


def preference_loss(logits: torch.Tensor, preferences: torch.Tensor, divergence: str = "squared") -> torch.Tensor:
    """Distance of inferred and true distributions, summed over users and groups.

    Args:
        logits: (users, K), ĝ = softmax(logits).
        preferences: (users, K) ḡ, rows sum to 1.
        divergence: `squared`: Σ (ḡ − ĝ)² (equation 4); `kl`: Σ ḡ log(ḡ / ĝ); `js`: ½ KL(ḡ ‖ m) + ½ KL(ĝ ‖ m), m = ½ (ḡ + ĝ).

    Returns:
        Scalar sum.

    Raises:
        ValueError: An unknown divergence.

    Example:
        >>> preference_loss(torch.zeros(1, 2), torch.tensor([[1.0, 0.0]])).item()
        0.5
    """
    log_inferred = F.log_softmax(logits.float(), dim=-1)
    true = preferences.float()
    if divergence == "squared":
        return (true - log_inferred.exp()).square().sum()
    if divergence == "kl":
        return F.kl_div(log_inferred, true, reduction="sum")
    if divergence == "js":
        inferred = log_inferred.exp()
        log_middle = ((true + inferred) / 2).clamp(min=torch.finfo(torch.float32).tiny).log()
        return (
            F.kl_div(log_middle, true, reduction="sum")
            + F.kl_div(log_middle, log_inferred, reduction="sum", log_target=True)
        ) / 2
    raise ValueError(f"`divergence` must be one of {', '.join(DIVERGENCES)}, got {divergence!r}.")


@dataclass
class P2RecOutput(ModelOutput):
    """Output of [`P2RecModel`].

    Args:
        loss: Scalar, when `preferences` were given.
        logits: (rows, K); ĝ is their softmax.
        states: (rows, width of the LLM) h.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    states: torch.Tensor | None = None


class P2RecModel(ItemPromptModel):
    """An LLM that maps a history to a distribution over groups of items, and an item alone to its enhanced vector.

    Example:
        >>> model = P2RecModel.from_parts("meta-llama/Llama-2-13b-hf", teacher.item_representations(),  # doctest: +SKIP
        ...                               num_groups=64, lora={"r": 16, "lora_alpha": 16})
        >>> model(torch.tensor([[0, 3, 7]])).logits.shape                                              # doctest: +SKIP
        torch.Size([1, 64])
    """

    config: P2RecConfig

    def make_head(self, width: int) -> None:
        """W and b of ĝ."""
        self.group_head = nn.Linear(width, self.config.num_groups)

    def forward(
        self,
        input_ids: torch.Tensor,
        preferences: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        **kwargs: Any,
    ) -> P2RecOutput:
        """Distributions of histories, and their loss.

        Args:
            input_ids: (rows, length) item_index, left-padded with 0.
            preferences: (rows, K) ḡ.
            labels: (rows, 1), one number per user: what the `Trainer` counts users by; not read.
            num_items_in_batch: Users in the whole optimizer step; the loss is the sum divided by it. Mean over rows when None.
            kwargs: Unused; declares to the `Trainer` that the loss is already scaled.

        Returns:
            [`P2RecOutput`].

        Raises:
            ValueError: An empty history, an item outside the catalogue, or preferences of another shape.
        """
        states = self.read(input_ids)
        logits = self.group_head(states)
        if preferences is None:
            return P2RecOutput(logits=logits, states=states)
        if preferences.shape != logits.shape:
            raise ValueError(f"`preferences` need shape {tuple(logits.shape)}, got {tuple(preferences.shape)}.")
        count = len(states) if num_items_in_batch is None else num_items_in_batch
        loss = preference_loss(logits, preferences, self.config.divergence) / count
        return P2RecOutput(loss=loss, logits=logits, states=states)

    @torch.inference_mode()
    def enhance(self, items: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Stage 2: every item alone.

        Args:
            items: (n,) item_index.

        Returns:
            z (n, width of the LLM) and ĝ (n, K), float32.

        Raises:
            RuntimeError: The model is in training mode, whose dropout would blur the vectors.
        """
        if self.training:
            raise RuntimeError("enhanced vectors need the model in evaluation mode: call `model.eval()` first.")
        out = self(items.unsqueeze(1))
        return out.states.float(), out.logits.float().softmax(-1)


register(P2RecConfig, P2RecModel)
