"""Two recommenders as one: the weighted sum of their standardised scores.

With a and b the scores of both over the catalogue, each brought to mean 0 and deviation 1, an item's score is a + `weight` · b. Meant
for a backbone and a model that reads texts, which know different things. Of an item that the first never met in training its score
says nothing; such an item has the second's score alone, stretched to the deviation of the sums.
Inputs: `input_ids` (batch, length) item_index, left-padded with 0.
Built by `from_parts`, or with the weight that is best on validation by `choose_score_sum`.
"""

from typing import Any, ClassVar

import torch
from huggingface_hub.dataclasses import strict
from numpy.typing import ArrayLike
from torch import nn
from transformers import initialization as init

from .base import NextItemOutput, SequencePreTrainedModel, SequentialRecommenderConfig, register
from .itemitem import ItemItemForSequentialRecommendation
from .llm import config_as_dict
from .llmseqsim import LLMSeqSimForSequentialRecommendation
from .popularity import PopularityForSequentialRecommendation
from .teacher import BACKBONES


# What a saved sum can hold: recommenders whose configuration and weights are all there is of them.
PARTS: dict[str, Any] = BACKBONES | {
    head.config_class.model_type: head
    for head in (
        ItemItemForSequentialRecommendation,
        LLMSeqSimForSequentialRecommendation,
        PopularityForSequentialRecommendation,
    )
}


@strict
class ScoreSumConfig(SequentialRecommenderConfig):
    """Configuration of a sum of scores.

    Args:
        first: Configuration of the first recommender, with its `model_type`; None for one that cannot be saved within a sum.
        second: The same of the second.
        weight: Of the second's standardised scores.
    """

    model_type = "hf_seqrec_score_sum"
    unused_fields: ClassVar[tuple[str, ...]] = ("hidden_size", "hidden_dropout_prob", "initializer_range", "fusion")

    first: dict[str, Any] | None = None
    second: dict[str, Any] | None = None
    weight: float | int = 1.0


class ScoreSumForSequentialRecommendation(SequencePreTrainedModel):
    """Scores of a first recommender plus `weight` times those of a second, each brought to mean 0 and deviation 1 over the catalogue.

    Saved as one model with the weights of both, where both are backbones of the library, LLMSeqSim, item-item or popularity.

    Args:
        config: [`ScoreSumConfig`].
        first: The first recommender; built from `config.first` when not given.
        second: The second one, likewise.

    Raises:
        ValueError: A part is not given, and the configuration has none that can be built.

    Example:
        >>> from hf_seqrec.modeling import SASRecConfig, SASRecForSequentialRecommendation
        >>> first, second = (SASRecForSequentialRecommendation(SASRecConfig(num_items=20)).eval() for _ in range(2))
        >>> both = ScoreSumForSequentialRecommendation.from_parts(first, second, weight=0.3)
        >>> both.score(torch.tensor([[0, 3, 7]])).shape
        torch.Size([1, 21])
    """

    config: ScoreSumConfig
    supervision: ClassVar[str | None] = None
    is_dot_product: ClassVar[bool] = False
    supports_gradient_checkpointing = False
    known_items: torch.Tensor

    def __init__(self, config: ScoreSumConfig, first: nn.Module | None = None, second: nn.Module | None = None):
        super().__init__(config)
        self.known_items = nn.Buffer(torch.ones(config.num_items, dtype=torch.bool))  # by the first
        self.post_init()
        # After `post_init`, so that no initialisation reaches what is trained already.
        self.first, self.second = (
            _build(getattr(config, name), name) if part is None else part
            for name, part in (("first", first), ("second", second))
        )

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, ScoreSumForSequentialRecommendation):
            init.ones_(module.known_items)

    @classmethod
    def from_parts(
        cls, first: Any, second: Any, weight: float, known: ArrayLike | None = None
    ) -> "ScoreSumForSequentialRecommendation":
        """The sum of two recommenders.

        Args:
            first: A recommender; `first.score(input_ids)` gives (batch, num_items + 1). It is not copied.
            second: A recommender of the same catalogue.
            weight: Of the second's scores.
            known: (num_items + 1,) whether the first knows an item, entry 0 is ignored; by default it knows them all.

        Returns:
            The model, in evaluation mode.

        Raises:
            ValueError: Different catalogues or data sets, or fewer than two known items.
        """
        configs = [first.config, second.config]
        sizes = [config.num_items for config in configs]
        sizes += [] if known is None else [len(torch.as_tensor(known)) - 1]
        if len(set(sizes)) > 1:
            raise ValueError(f"both recommenders and `known` must be of one catalogue, got {sizes} items.")
        fingerprints = (getattr(config, "data_fingerprint", None) for config in configs)
        made_for = {fingerprint for fingerprint in fingerprints if fingerprint is not None}
        if len(made_for) > 1:
            raise ValueError(
                f"both recommenders must be made for one data set, got the fingerprints {', '.join(sorted(made_for))}."
            )
        mask = torch.ones(sizes[0]) if known is None else torch.as_tensor(known)[1:]
        mask = mask.to(torch.bool)
        if mask.sum() < 2:
            raise ValueError(
                f"`known` must name at least two items, got {int(mask.sum())}: scores of one have no spread."
            )
        config = ScoreSumConfig(
            num_items=sizes[0],
            max_length=max(config.max_length for config in configs),
            data_fingerprint=next(iter(made_for), None),
            weight=weight,
            **{
                name: config_as_dict(part.config) if _is_whole(part) else None
                for name, part in (("first", first), ("second", second))
            },
        )
        model = cls(config, first, second)
        model.known_items.copy_(mask)
        return model.eval()

    def save_pretrained(self, save_directory, **kwargs):
        """Write configuration and weights of both; see [`~transformers.PreTrainedModel.save_pretrained`].

        Raises:
            TypeError: See [`check_part`].
        """
        for part in (self.first, self.second):
            check_part(part)
        super().save_pretrained(save_directory, **kwargs)

    @property
    def needs_timestamps(self) -> bool:
        """Whether one of the two reads times."""
        return any(getattr(one, "needs_timestamps", False) for one in (self.first, self.second))

    def forward(self, input_ids: torch.Tensor, **kwargs) -> NextItemOutput:
        """There is no loss and no user vector; raises a `TypeError` that names what there is."""
        raise TypeError("a sum of scores has no loss and no user vector: train its parts, ask it with `score`.")

    def score(
        self, input_ids: torch.Tensor, candidates: torch.Tensor | None = None, timestamps: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Scores of items as the next one; see [`SequentialRecommender.score`].

        Args:
            input_ids: (batch, length) item_index, left-padded with 0.
            candidates: (batch, num_candidates) item_index to score, or None for the whole catalogue.
            timestamps: (batch, length) Unix seconds, for models that need them.

        Returns:
            (batch, num_items + 1) with -inf in column 0, or (batch, num_candidates).
        """
        first, second = (_scores(one, input_ids, timestamps) for one in (self.first, self.second))
        known = self.known_items.to(first.device)  # parts on a GPU do not take the mask along
        # Items that the first does not know would only blur its mean and deviation.
        total = _standardised(first, known) + self.config.weight * (second := _standardised(second))
        # Sums spread more than one score, so items without a sum would never be among the best.
        total = torch.where(known, total, second * total[:, known].std(1, keepdim=True))
        total = torch.cat([total.new_full((len(total), 1), -torch.inf), total], 1)
        return total if candidates is None else total.gather(1, candidates)


def check_part(part: Any) -> None:
    """Refuse a recommender that cannot be saved within a sum.

    Args:
        part: A recommender.

    Raises:
        TypeError: It is none of [`PARTS`] because it keeps something elsewhere, such as a language model.
    """
    if not _is_whole(part):
        raise TypeError(
            f"{type(part).__name__} cannot be saved within a sum, it is more than its own weights: save it alone and add it up after "
            "loading, with `ScoreSumForSequentialRecommendation.from_parts(first, second, weight)`."
        )


def _is_whole(part: Any) -> bool:
    return type(part) in PARTS.values()


def _build(config: dict[str, Any] | None, name: str) -> Any:
    if config is None or (head := PARTS.get(config["model_type"])) is None:
        found = None if config is None else config["model_type"]
        raise ValueError(
            f"the configuration's `{name}` is {found!r}, which is none of {', '.join(PARTS)}: use `from_parts`."
        )
    values = {key: value for key, value in config.items() if key != "model_type"}
    return head(head.config_class.from_dict(values))


def _scores(model: Any, input_ids: torch.Tensor, timestamps: torch.Tensor | None) -> torch.Tensor:
    extra = {"timestamps": timestamps} if getattr(model, "needs_timestamps", False) else {}
    return model.score(input_ids, **extra)[:, 1:].float()


def _standardised(scores: torch.Tensor, among: torch.Tensor | None = None) -> torch.Tensor:
    chosen = scores if among is None else scores[:, among]
    # Equal scores, such as item-item's of a history without neighbours, say nothing: zeros, not 0 / 0.
    return (scores - chosen.mean(1, True)) / chosen.std(1, keepdim=True).clamp(min=torch.finfo(scores.dtype).tiny)


register(ScoreSumConfig, ScoreSumForSequentialRecommendation)
