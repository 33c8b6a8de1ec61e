"""E4SRec: an LLM that reads projected item vectors and scores the catalogue with one linear map.

Paper: Li et al., E4SRec: An Elegant Effective Efficient Extensible Solution of Large Language Models for Sequential Recommendation,
2023 (arXiv 2312.02443). h = LLM(instruction; W_p e_1 … W_p e_n; response), score of item i: w_i · h, without bias, full
cross-entropy. Trained are LoRA, W_p and w; the item vectors e (of a trained SASRec) and the LLM's weights are frozen.
Deviations: padding is on the right and masked, so its amount never matters; start values of W_p give item vectors the spread of
tokens; our wording of the instruction.
Inputs: `input_ids` (batch, length) item_index, left-padded with 0; `labels` (batch, length), -100 ignored.
Trains with: `NextItemTrainer`, one LLM call for each labelled position.
"""

from typing import ClassVar

import torch
from huggingface_hub.dataclasses import strict
from torch import nn

from .base import IGNORE_INDEX, NextItemOutput, register
from .llm_items import ItemPromptConfig, ItemPromptModel
from .losses import CrossEntropyLoss, NextItemLoss


@strict
class E4SRecConfig(ItemPromptConfig):
    """Configuration of E4SRec."""

    model_type = "hf_seqrec_e4srec"

    instruction: str = "### Instruction:\nGiven the user's purchase history, predict the next item the user will purchase.\n\n### Input:\n"
    response: str = "\n\n### Response:\n"


class E4SRecForSequentialRecommendation(ItemPromptModel):
    """An LLM over item vectors with a linear map over the catalogue.

    Example:
        >>> model = E4SRecForSequentialRecommendation.from_parts(                                # doctest: +SKIP
        ...     "meta-llama/Llama-2-13b-hf", teacher.item_representations(), lora={"r": 16, "lora_alpha": 16})
        >>> model.score(torch.tensor([[0, 3, 7]])).shape                                         # doctest: +SKIP
        torch.Size([1, 12102])
    """

    config: E4SRecConfig
    supervision: ClassVar[str] = "last_position"
    is_dot_product: ClassVar[bool] = True
    item_bias = None

    def make_head(self, width: int) -> None:
        """w, one row per item."""
        self.item_head = nn.Linear(width, self.config.num_items + 1, bias=False)

    def item_representations(self) -> torch.Tensor:
        """The scoring table (num_items + 1, width of the LLM), row 0 zeros."""
        weight = self.item_head.weight
        return torch.cat([torch.zeros_like(weight[:1]), weight[1:]])

    def forward(
        self,
        input_ids: torch.Tensor,
        labels: torch.Tensor | None = None,
        negatives: torch.Tensor | None = None,
        objective: NextItemLoss | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        item_table: torch.Tensor | None = None,
        **kwargs,
    ) -> NextItemOutput:
        """User vectors h, or the loss of labelled positions.

        Args:
            input_ids: (batch, length) item_index, left-padded with 0.
            labels: (batch, length) the item_index that follows each position; -100 is ignored. Each label costs one prompt.
            negatives: (batch, length or 1, n) item_index, for sampled losses.
            objective: The loss; full cross-entropy when not given.
            num_items_in_batch: Number of labels in the whole optimizer step; those given here when None.
            item_table: What `item_representations` returned, where a caller keeps it.
            kwargs: Unused; declares to the `Trainer` that the loss is already scaled.

        Returns:
            [`NextItemOutput`]; with labels, `user_embeddings` has a row per label.

        Raises:
            ValueError: An empty history, an item outside the catalogue, or no label.
        """
        if labels is None:
            return NextItemOutput(user_embeddings=self.read(input_ids))
        row, column = (labels != IGNORE_INDEX).nonzero(as_tuple=True)
        if not len(row):
            raise ValueError("no position is labelled: all `labels` are -100.")
        # Column c of the history of a label at position j is column c - (width - 1 - j) of the row.
        width = input_ids.shape[1]
        source = torch.arange(width, device=row.device) - (width - 1 - column).unsqueeze(1)
        histories = input_ids[row].gather(1, source.clamp(min=0)) * (source >= 0)
        drawn = None
        if negatives is not None:
            drawn = negatives[row, column if negatives.shape[1] == width else torch.zeros_like(column)]
        users = self.read(histories)
        table = self.item_representations() if item_table is None else item_table
        total = (objective or CrossEntropyLoss())(users, labels[row, column], table, None, drawn)
        count = len(row) if num_items_in_batch is None else num_items_in_batch
        return NextItemOutput(loss=total / count, user_embeddings=users)

    @torch.no_grad()
    def score(
        self,
        input_ids: torch.Tensor,
        candidates: torch.Tensor | None = None,
        item_table: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Scores of items as the next one; higher is better.

        Args:
            input_ids: (batch, length) item_index, left-padded with 0; only the last `config.max_length` count.
            candidates: (batch, num_candidates) item_index to score, or None for the whole catalogue.
            item_table: See `forward`.

        Returns:
            (batch, num_items + 1) with -inf in column 0, or (batch, num_candidates).
        """
        table = self.item_representations() if item_table is None else item_table
        users = self.read(input_ids)
        if candidates is None:
            scores = users @ table.T
            return torch.cat([torch.full_like(scores[:, :1], -torch.inf), scores[:, 1:]], dim=1)
        scores = torch.einsum("bd,bcd->bc", users, table[candidates])
        return scores.masked_fill(candidates == 0, -torch.inf)


register(E4SRecConfig, E4SRecForSequentialRecommendation)
