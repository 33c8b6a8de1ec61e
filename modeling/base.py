"""What every recommender of the library shares: configuration, output, the sequence model and the scoring head.

`ItemEncoder -> sequence model -> scorer`. A method file adds its configuration and its `encode`; everything that must be
equal for all methods (padding, losses over the catalogue, scoring, exclusion of the padding item) is here, once.

Inputs are left-padded with 0, as users of recommenders expect. Inside, sequences are moved to the left edge (right-padded),
because then causal models need no mask at all and every padding amount gives the same result.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.generation import GenerationConfig
from transformers.modeling_outputs import BaseModelOutput
from transformers.utils import ModelOutput, logging

from .item_encoder import FUSIONS, ItemEncoder
from .losses import CrossEntropyLoss, NextItemLoss


logger = logging.get_logger(__name__)

IGNORE_INDEX = -100

# Keys that transformers itself hands to a configuration beside its declared fields.
_FRAMEWORK_KEYS = {
    "attn_implementation", "auto_map", "custom_pipelines", "experts_implementation", "model_type", "name_or_path",
    "num_labels", "output_attentions", "per_layer_config", "torch_dtype",
}  # fmt: skip


@strict
class SequentialRecommenderConfig(PreTrainedConfig):
    """Configuration shared by all recommenders.

    Args:
        num_items: Size of the catalogue, N. Items are numbered 1…N inside a model; 0 is padding.
        hidden_size: Width of item vectors and of the sequence states.
        max_length: Number of most recent items a model looks at.
        hidden_dropout_prob: Dropout on embeddings and between layers.
        initializer_range: Standard deviation of the normal initialisation.
        fusion: How side vectors join the ID table, see [`ItemEncoder`].
        item_features: Width of each named side vector, for example `{"text": 384}`.
        data_fingerprint: Fingerprint of the data set the model was made for; filled in by the trainer.

    Raises:
        TypeError: An argument that no field has. A configuration loaded from a newer release drops such keys with a
            warning instead.
    """

    attribute_map: ClassVar[dict[str, str]] = {"max_position_embeddings": "max_length"}
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["user_embeddings"]
    unused_fields: ClassVar[tuple[str, ...]] = ()  # what a method inherits and never reads: no option, not on its card

    num_items: int = 1
    hidden_size: int = 64
    max_length: int = 50
    hidden_dropout_prob: float | int = 0.2
    initializer_range: float = 0.02
    fusion: str = "none"
    item_features: dict[str, int] | None = None
    data_fingerprint: str | None = None
    pad_token_id: int | None = 0
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs):
        unknown = self._unknown_keys(kwargs)
        if unknown:
            fields = ", ".join(
                sorted(set(type(self).__dataclass_fields__) - set(PreTrainedConfig.__dataclass_fields__))
            )
            raise TypeError(
                f"{type(self).__name__} has no field {', '.join(map(repr, unknown))}. Its fields: {fields}."
            )
        super().__post_init__(**kwargs)

    @classmethod
    def _unknown_keys(cls, values: dict[str, Any]) -> list[str]:
        known = set(cls.__dataclass_fields__) | _FRAMEWORK_KEYS | set(cls.attribute_map)
        known |= set(GenerationConfig._get_default_generation_params())
        return sorted(key for key in values if key not in known and not key.startswith("_"))

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs):
        """Build from a dictionary read from disk; keys this release does not know are dropped with a warning."""
        unknown = cls._unknown_keys(config_dict)
        if unknown:
            logger.warning(
                f"{cls.__name__}: ignoring {', '.join(map(repr, unknown))}, written by another release of the library."
            )
            config_dict = {key: value for key, value in config_dict.items() if key not in unknown}
        return super().from_dict(config_dict, **kwargs)

    def validate_architecture(self):
        """Refuse values that cannot make a model; runs on construction."""
        if self.num_items < 1:
            raise ValueError(f"`num_items` must be at least 1, got {self.num_items}.")
        if self.max_length < 1:
            raise ValueError(f"`max_length` must be at least 1, got {self.max_length}.")
        if self.fusion not in FUSIONS:
            raise ValueError(f"`fusion` must be one of {', '.join(FUSIONS)}, got {self.fusion!r}.")
        if self.fusion in ("concat", "add", "gate") and not self.item_features:
            raise ValueError(f"`fusion={self.fusion!r}` needs `item_features`, for example {{'text': 384}}.")


@dataclass
class NextItemOutput(ModelOutput):
    """Output of every recommender.

    Args:
        loss: Scalar, when `labels` were given.
        user_embeddings: (batch, dim), the state that predicts the next item.
    """

    loss: torch.Tensor | None = None
    user_embeddings: torch.Tensor | None = None


def to_right_padded(input_ids: torch.Tensor, *aligned: torch.Tensor | None):
    """Move left-padded rows to the left edge.

    Args:
        input_ids: (batch, length) item_index; zeros only before the first item.
        aligned: Further (batch, length, …) tensors moved the same way, or None.

    Returns:
        `(input_ids, lengths, *aligned)`, with `lengths` (batch,), columns beyond the longest row removed.

    Raises:
        ValueError: A zero after an item: rows must be left-padded.
    """
    is_item = input_ids != 0
    lengths = is_item.sum(1)
    batch, width = input_ids.shape
    # A row is left-padded exactly when its last `lengths` columns are all items.
    column = torch.arange(width, device=input_ids.device)
    expected = column >= (width - lengths).unsqueeze(1)
    # `torch._assert_async` would not name the row; on a GPU the check costs one small synchronisation.
    if not torch.compiler.is_compiling() and not torch.equal(is_item, expected):
        row = int((is_item != expected).any(1).nonzero()[0])
        raise ValueError(
            f"`input_ids` must be left-padded: row {row} has a 0 after an item: {input_ids[row].tolist()[:20]}…"
        )
    longest = max(int(lengths.max()) if not torch.compiler.is_compiling() else width, 1)
    source = (column[:longest] + (width - lengths).unsqueeze(1)).clamp(max=width - 1)
    inside = column[:longest] < lengths.unsqueeze(1)
    moved: list[Any] = [input_ids.gather(1, source) * inside]
    for tensor in aligned:
        if tensor is None:
            moved.append(None)
            continue
        index = source.view(batch, longest, *[1] * (tensor.dim() - 2)).expand(-1, -1, *tensor.shape[2:])
        moved.append(tensor.gather(1, index))
    if aligned and moved[1] is not None:  # labels: nothing beyond the sequence counts
        moved[1] = moved[1].masked_fill(~inside, IGNORE_INDEX)
    return moved[0], lengths, *moved[1:]


def length_groups(lengths: torch.Tensor, most: int = 8) -> list[torch.Tensor]:
    """Split the rows of a batch into groups of similar length, so that a CPU does not compute on padding.

    Args:
        lengths: (batch,) lengths.
        most: Number of groups at most.

    Returns:
        Row indices per group, shortest first. One group on a GPU, where one large launch is cheaper than less work.
    """
    if lengths.device.type != "cpu" or torch.compiler.is_compiling() or len(lengths) < 2 * most:
        return [torch.arange(len(lengths), device=lengths.device)]
    return list(torch.argsort(lengths, stable=True).tensor_split(most))


class SequencePreTrainedModel(PreTrainedModel):
    """Loading, saving and initialisation common to all models."""

    config: SequentialRecommenderConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _can_compile_fullgraph = True

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, ItemEncoder):
            module.reset(self.config.initializer_range)


class SequenceModel(SequencePreTrainedModel):
    """The states of a sequence: item vectors in, one state per position out. Method files subclass it.

    A subclass builds its layers in `__init__`, ends it with `self.post_init()`, and implements
    `encode(item_vectors, lengths, last_only)`.
    """

    def __init__(self, config: SequentialRecommenderConfig):
        super().__init__(config)
        self.item_encoder = ItemEncoder(config)

    def get_input_embeddings(self):
        """The ID table."""
        return self.item_encoder.id_embedding

    def set_input_embeddings(self, value):
        """Replace the ID table."""
        self.item_encoder.id_embedding = value

    @property
    def state_size(self) -> int:
        """Width of the states, equal to the width of the scoring table."""
        return self.config.hidden_size

    def lookup(self, ids: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
        """Input vectors of right-padded ids: (batch, length) and the fused table -> (batch, length, hidden)."""
        return self.item_encoder.lookup(ids, table)

    def encode(self, item_vectors: torch.Tensor, lengths: torch.Tensor, last_only: bool = False) -> torch.Tensor:
        """States of right-padded sequences.

        Args:
            item_vectors: (batch, length, hidden) vectors; zeros beyond `lengths`.
            lengths: (batch,) number of items per row.
            last_only: Return only the state of each row's last item.

        Returns:
            (batch, length, hidden), or (batch, hidden) with `last_only`. States beyond `lengths` are undefined.
        """
        raise NotImplementedError(f"{type(self).__name__} must define `encode`.")

    def forward(self, input_ids: torch.Tensor, **kwargs) -> BaseModelOutput:
        """States of left-padded sequences.

        Args:
            input_ids: (batch, length) item_index, left-padded with 0.
            kwargs: Unused; accepted for the `Trainer`.

        Returns:
            `last_hidden_state` (batch, length, hidden), zero at padding.
        """
        ids, lengths = to_right_padded(input_ids)
        states = self.encode(self.lookup(ids, self.item_encoder()), lengths)
        # Back to the caller's columns: column j of a row of length n holds state j - (width - n).
        width = input_ids.shape[1]
        source = torch.arange(width, device=ids.device) - (width - lengths).unsqueeze(1)
        index = source.clamp(min=0).unsqueeze(-1).expand(-1, -1, states.shape[-1])
        states = states.gather(1, index) * (source >= 0).unsqueeze(-1)
        return BaseModelOutput(last_hidden_state=states)


class SequentialRecommender(SequencePreTrainedModel):
    """A sequence model with a scorer over the catalogue. Method files subclass it and set `model_class`.

    Class attributes:
        model_class: The [`SequenceModel`] inside.
        supervision: What one training row teaches: `"all_positions"` (causal: every position in one pass), `"cloze"`
            (masked items), or `"last_position"` (the item after the row).
        is_dot_product: Scores are `user_embeddings @ item_representations().T (+ item_bias)`, so an evaluator may
            stream over chunks of items.
    """

    model_class: ClassVar[type[SequenceModel]]
    supervision: ClassVar[str] = "all_positions"
    is_dot_product: ClassVar[bool] = True

    def __init__(self, config: SequentialRecommenderConfig):
        super().__init__(config)
        self.model = self.model_class(config)
        self.post_init()

    @property
    def item_bias(self) -> torch.Tensor | None:
        """(num_items + 1,) bias added to every user's scores, or None."""
        return None

    def item_representations(self) -> torch.Tensor:
        """The scoring table: (num_items + 1, dim), ID, text and knowledge fused; row 0 is padding."""
        return self.model.item_encoder()

    def project_states(self, states: torch.Tensor) -> torch.Tensor:
        """Map sequence states (…, hidden) to the space of the scoring table; identity unless a method has a head."""
        return states

    def prepare_for_scoring(self, ids: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Hook for models that read their prediction at an added position (cloze models); identity otherwise."""
        return ids, lengths

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
        """Loss of the labelled positions, or the state that predicts the next item.

        Args:
            input_ids: (batch, length) item_index, left-padded with 0.
            labels: (batch, length) the item_index to predict at each position; -100 is ignored.
            negatives: (batch, length, num_negatives) or (batch, 1, num_negatives) sampled item_index, for sampled losses.
            objective: The loss; full cross-entropy when not given.
            num_items_in_batch: Number of labels over all micro-batches and processes of an optimizer step; the loss is
                the sum divided by it, so that it does not depend on how the step was split. Mean when not given.
            item_table: (num_items + 1, dim) what `item_representations` returned, where a caller scores many batches with
                the same weights; computed when not given.
            kwargs: Unused; declares to the `Trainer` that the loss is already scaled.

        Returns:
            [`NextItemOutput`] with `loss` when labelled, else with `user_embeddings`.
        """
        table = self.item_representations() if item_table is None else item_table
        if labels is None:
            return NextItemOutput(user_embeddings=self._user_embeddings(input_ids, table))
        ids, lengths, labels, negatives = to_right_padded(input_ids, labels, _per_position(negatives, labels))
        if ids.shape[1] > self.config.max_length:
            raise ValueError(
                f"training rows of {ids.shape[1]} positions exceed `max_length` {self.config.max_length}: crop them, as "
                "`SequenceDataset` does."
            )
        last_only = self.supervision == "last_position"
        if last_only and not torch.compiler.is_compiling() and bool((labels != IGNORE_INDEX).sum(1).gt(1).any()):
            raise ValueError(
                f"{type(self).__name__} learns the last position only: label nothing else, use prefix rows."
            )
        states, targets, sampled = [], [], []
        for rows in length_groups(lengths):
            width = max(int(lengths[rows].max()), 1) if not torch.compiler.is_compiling() else ids.shape[1]
            columns = (rows, lengths[rows] - 1) if last_only else (rows, slice(width))
            labelled = labels[columns] != IGNORE_INDEX
            vectors = self.model.lookup(ids[rows, :width], table)
            encoded = self.model.encode(vectors, lengths[rows], last_only=last_only)
            states.append(encoded[labelled])
            targets.append(labels[columns][labelled])
            if negatives is not None:
                sampled.append(negatives[columns][labelled])
        objective = objective or CrossEntropyLoss()
        total = objective(
            self.project_states(torch.cat(states)), torch.cat(targets), table, self.item_bias,
            torch.cat(sampled) if sampled else None,
        )  # fmt: skip
        count = num_items_in_batch if num_items_in_batch is not None else max(sum(len(t) for t in targets), 1)
        return NextItemOutput(loss=total / count)

    def _user_embeddings(self, input_ids: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
        ids, lengths = to_right_padded(input_ids[:, -self.config.max_length :])
        if not torch.compiler.is_compiling() and bool((lengths == 0).any()):
            row = int((lengths == 0).nonzero()[0])
            raise ValueError(f"`input_ids` row {row} has no item: a recommender needs at least one item of history.")
        ids, lengths = self.prepare_for_scoring(ids, lengths)
        return self.project_states(self.model.encode(self.model.lookup(ids, table), lengths, last_only=True))

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
            (batch, num_items + 1) with -inf in column 0 (padding is never recommended), or (batch, num_candidates).

        Example:
            >>> from hf_seqrec.modeling import SASRecConfig, SASRecForSequentialRecommendation
            >>> model = SASRecForSequentialRecommendation(SASRecConfig(num_items=20)).eval()
            >>> model.score(torch.tensor([[0, 3, 7]])).shape
            torch.Size([1, 21])
        """
        table = self.item_representations() if item_table is None else item_table
        bias = self.item_bias
        users = self._user_embeddings(input_ids, table)
        if candidates is None:
            scores = users @ table.T
            scores = scores if bias is None else scores + bias
            return torch.cat([torch.full_like(scores[:, :1], -torch.inf), scores[:, 1:]], dim=1)
        scores = torch.einsum("bd,bcd->bc", users, table[candidates])
        scores = scores if bias is None else scores + bias[candidates]
        return scores.masked_fill(candidates == 0, -torch.inf)


def _per_position(negatives: torch.Tensor | None, labels: torch.Tensor) -> torch.Tensor | None:
    if negatives is None or negatives.shape[1] == labels.shape[1]:
        return negatives
    return negatives.expand(-1, labels.shape[1], -1)


def last_states(states: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """Pick each row's last state: (batch, length, hidden), (batch,) -> (batch, hidden)."""
    index = (lengths - 1).clamp(min=0).view(-1, 1, 1).expand(-1, 1, states.shape[-1])
    return states.gather(1, index).squeeze(1)


def register(config_class, head_class) -> None:
    """Make a recommender known to the Auto classes, here and on machines that load it with `trust_remote_code`.

    Args:
        config_class: Configuration with a `model_type` of its own.
        head_class: The recommender that `AutoModel` builds for it.
    """
    # Only the installed library may claim a model type. Code that came with one trusted repository must not: another
    # repository of the same type would then run it without being trusted.
    if config_class.__module__.startswith("hf_seqrec."):
        AutoConfig.register(config_class.model_type, config_class, exist_ok=True)
        AutoModel.register(config_class, head_class, exist_ok=True)
    config_class.register_for_auto_class()
    head_class.register_for_auto_class("AutoModel")


__all__ = [
    "IGNORE_INDEX", "NextItemOutput", "SequenceModel", "SequencePreTrainedModel", "SequentialRecommender",
    "SequentialRecommenderConfig", "init", "last_states", "length_groups", "nn", "register", "to_right_padded",
]  # fmt: skip
