"""Two recommenders as one: the weighted sum of their standardised scores, the weight chosen on validation."""

from collections.abc import Sequence
from typing import Any

import torch
from numpy.typing import ArrayLike
from torch import nn

from hf_seqrec.data import EvaluationSet

from .evaluator import RankingEvaluator
from .protocol import Protocol


WEIGHTS = (0.0, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0, 2.0)


class ScoreSum(nn.Module):
    """Scores of a first recommender plus `weight` times those of a second, each brought to mean 0 and deviation 1 over the catalogue.

    Meant for a backbone and a model around a language model, which know different things. Of an item that the first never met in
    training its score says nothing; such an item has the second's score alone, stretched to the deviation of the sums.

    Args:
        first: A recommender; `first.score(input_ids)` gives (batch, num_items + 1).
        second: A recommender of the same catalogue.
        weight: Of the second's scores.
        known: (num_items + 1,) whether the first knows an item, column 0 is ignored; by default it knows them all.

    Raises:
        ValueError: If fewer than two items are known. When scoring: if the two catalogues differ in size, or from `known`.

    Example:
        >>> from hf_seqrec.modeling import SASRecConfig, SASRecForSequentialRecommendation
        >>> first, second = (SASRecForSequentialRecommendation(SASRecConfig(num_items=20)).eval() for _ in range(2))
        >>> ScoreSum(first, second, weight=0.3).score(torch.tensor([[0, 3, 7]])).shape
        torch.Size([1, 21])
    """

    is_dot_product = False
    known: torch.Tensor | None

    def __init__(self, first: nn.Module, second: nn.Module, weight: float, known: ArrayLike | None = None) -> None:
        super().__init__()
        self.first, self.second, self.weight = first, second, weight
        self.config = getattr(second, "config", None)
        mask = None if known is None else torch.as_tensor(known, dtype=torch.bool)[1:]
        if mask is not None and mask.sum() < 2:
            raise ValueError(
                f"`known` must name at least two items, got {int(mask.sum())}: scores of one have no spread."
            )
        self.register_buffer("known", mask)

    @property
    def needs_timestamps(self) -> bool:
        """Whether one of the two reads times."""
        return any(getattr(one, "needs_timestamps", False) for one in (self.first, self.second))

    def score(
        self, input_ids: torch.Tensor, candidates: torch.Tensor | None = None, timestamps: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Scores of items as the next one; higher is better.

        Args:
            input_ids: (batch, length) item_index, left-padded with 0.
            candidates: (batch, num_candidates) item_index to score, or None for the whole catalogue.
            timestamps: (batch, length) Unix seconds, for models that need them.

        Returns:
            (batch, num_items + 1) with -inf in column 0, or (batch, num_candidates).
        """
        first, second = (self._scores(one, input_ids, timestamps) for one in (self.first, self.second))
        if first.shape != second.shape or (self.known is not None and first.shape[1] != len(self.known)):
            sizes = [first.shape[1], second.shape[1], *([] if self.known is None else [len(self.known)])]
            raise ValueError(f"Both recommenders and `known` must be of one catalogue, got {sizes} items.")
        # Items that the first does not know would only blur its mean and deviation.
        total = _standardised(first, self.known) + self.weight * (second := _standardised(second))
        if (
            self.known is not None
        ):  # sums spread more than one score, so items without a sum would never be among the best
            total = torch.where(self.known, total, second * total[:, self.known].std(1, keepdim=True))
        total = torch.cat([total.new_full((len(total), 1), -torch.inf), total], 1)
        return total if candidates is None else total.gather(1, candidates)

    @staticmethod
    def _scores(model: Any, input_ids: torch.Tensor, timestamps: torch.Tensor | None) -> torch.Tensor:
        extra = {"timestamps": timestamps} if getattr(model, "needs_timestamps", False) else {}
        return model.score(input_ids, **extra)[:, 1:].float()


def _standardised(scores: torch.Tensor, among: torch.Tensor | None = None) -> torch.Tensor:
    chosen = scores if among is None else scores[:, among]
    return (scores - chosen.mean(1, True)) / chosen.std(1, keepdim=True)


def choose_score_sum(
    first: nn.Module,
    second: nn.Module,
    validation: EvaluationSet,
    num_items: int,
    protocol: Protocol,
    known: ArrayLike | None = None,
    weights: Sequence[float] = WEIGHTS,
    metric: str = "ndcg@10",
) -> ScoreSum:
    """The `ScoreSum` whose weight ranks the validation rows best; of equally good weights the first.

    Args:
        first: See `ScoreSum`, also for `second` and `known`.
        second: The other recommender.
        validation: Rows to choose on, never those of a test.
        num_items: Size of the catalogue.
        protocol: Full ranking, with a cut-off that gives `metric`.
        known: Which items the first knows.
        weights: What is tried; with 0.0 among them the sum may turn out to be the first alone.
        metric: What is best.

    Returns:
        The sum, in evaluation mode.
    """
    evaluator = RankingEvaluator(validation, num_items, protocol)
    values = {weight: evaluator(ScoreSum(first, second, weight, known)).metrics[metric] for weight in weights}
    return ScoreSum(first, second, max(values, key=lambda weight: values[weight]), known).eval()
