"""Scores of items from an LLM's own head: how likely is a candidate's title, or its label, as the answer to a prompt.

[`load_language_model`] loads any LLM with its head; a [`Verbalizer`] runs prompts of `candidate_prompts.py` through it. A user's
prompt is read once and shared by all candidates: as keys and values (decoder-only), as encoder output with the decoder's
cross-attention (encoder-decoder), or in one pass per length of title (masked LLMs, whose prompt holds the masks).
"""

from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from .candidate_prompts import Answer
from .llm import PromptEncoder, SlotVectors
from .prompting import Slot


VERBALIZERS = ("title_likelihood", "index_token", "first_token")


def load_language_model(
    name_or_path: str,
    revision: str | None = None,
    dtype: str | torch.dtype = "auto",
    attn_implementation: str | None = None,
    quantization: str | None = None,
    head: str = "trained",
    **kwargs,
) -> PreTrainedModel:
    """Load an LLM with its language-model head, frozen, without dropout.

    Args:
        name_or_path: Hub id or folder of a causal, an encoder-decoder or a masked language model.
        revision: Commit, tag or branch.
        dtype: Of the weights; `"auto"` is the checkpoint's.
        attn_implementation: `eager`, `sdpa`, `flash_attention_2`, …; None lets transformers choose.
        quantization: `"8bit"` or `"4bit"` (bitsandbytes on a GPU), or None.
        head: `trained`: the checkpoint's; `tied`: states are compared with the table of token vectors (text encoders, such as
            MiniLM, that come without a head).
        kwargs: For `from_pretrained`, for example `token` or `device_map`.

    Returns:
        The model in evaluation mode.

    Raises:
        ValueError: The checkpoint has no head, or the architecture none of the three kinds.
        ImportError: Quantization without bitsandbytes or GPU.

    Example:
        >>> llm = load_language_model("google/flan-t5-small")  # doctest: +SKIP
    """
    raise NotImplementedError


def build_language_model(config: dict[str, Any], head: str = "trained") -> PreTrainedModel:
    """An LLM with head and random weights from its configuration as a dictionary; see [`load_language_model`] for trained ones."""
    raise NotImplementedError


class Verbalizer(PromptEncoder):
    """An LLM that scores candidates as answers to prompts with slots.

    Args:
        llm: From [`load_language_model`].
        answer: What surrounds an answer, `CandidateProgram.answer`.
        method: `title_likelihood`: mean log-probability of the tokens of a candidate's title (and of what ends it), read by
            teacher forcing; `index_token`: log-probability of the candidate's label among the labels in use; `first_token`:
            log-probability of the first token of its title, as DELRec's published code has it, equal for titles that begin alike.
        token_budget: Tokens in one pass, padding and cached tokens included; None chooses by device.
        share_prefix: Read a prompt once for all its candidates, and what all prompts begin with once for all of them, up to and
            including slots whose vectors are the same in every prompt (decoder-only LLMs). False scores pair by pair.

    Raises:
        ValueError: An unknown method, or `index_token` without labels.
    """

    def __init__(
        self,
        llm: PreTrainedModel,
        answer: Answer,
        method: str = "title_likelihood",
        token_budget: int | None = None,
        share_prefix: bool = True,
    ):
        super().__init__(llm, token_budget, share_prefix)
        self.answer, self.method = answer, method

    def forward(  # type: ignore[override]
        self,
        prompts: list[np.ndarray],
        vectors: dict[Slot, SlotVectors] | None,
        candidates: torch.Tensor,
        titles: tuple[np.ndarray, np.ndarray],
        places: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Log scores of candidates.

        Args:
            prompts: Token ids with slots, one per row, each with one answer slot; from `CandidateProgram.prompt`.
            vectors: What fills the other slots; `SlotVectors(values)` without counts puts the same k vectors into every prompt.
            candidates: (rows, m) item_index; 0 is nobody and scores -inf.
            titles: int32 tokens (total,) and int64 offsets (num_items + 1,) of all titles, as `title_tokens` gives them.
            places: (rows, m) 0-based place of each candidate in its prompt's list, for `index_token`; 0 … m - 1 when None.

        Returns:
            (rows, m) float32, differentiable with respect to `vectors` and trained weights of the LLM. Neither the order nor the
            company of a row or candidate changes its score (`index_token` is normalised over the labels in use).

        Raises:
            ValueError: A prompt without exactly one answer slot, slots without vectors, or shapes that do not fit.
        """
        raise NotImplementedError


__all__ = ["VERBALIZERS", "Verbalizer", "build_language_model", "load_language_model"]
