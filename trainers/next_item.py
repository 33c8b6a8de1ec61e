"""Predict the next item: the objective of all ID backbones, with or without side vectors.

Causal models learn every position of a sequence in one pass, cloze models learn hidden items, the others learn the item
after a prefix; a model says which by its `supervision`. The loss is one of `hf_seqrec.modeling.losses`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch

from hf_seqrec.data import Sequences
from hf_seqrec.modeling.losses import LOSSES, make_loss

from .base import SeqRecTrainer, SeqRecTrainingArguments
from .data import (
    DataCollatorForCloze,
    DataCollatorForNextItem,
    NegativeSampler,
    SequenceDataset,
)


@dataclass
class NextItemTrainingArguments(SeqRecTrainingArguments):
    """Arguments of [`NextItemTrainer`].

    > Parameters that control the loss

    Args:
        loss: `cross_entropy` (over the whole catalogue), `sampled_cross_entropy`, `bce`, `gbce` or `bpr`.
        num_negatives: Negatives per position of the sampled losses.
        negatives_per: `position` draws anew at each position, `sequence` shares one set per row.
        negative_sampling: `uniform`, or `popularity` (training counts).
        negatives_exclude_history: Never draw an item of the user's training sequence (SASRec's paper).
        log_q_correction: Subtract log expected counts in `sampled_cross_entropy`.
        gbce_t: Calibration of gBCE.

    > Parameters that control the rows

    Args:
        crop: What an epoch sees of a sequence longer than `max_length`: its `last` part, a `random` part, or all of it in `sliding`
            windows that overlap by half ([`SequenceDataset`]). Models trained on prefixes take `last` only.
        prefixes_per_sequence: Prefixes of each sequence that an epoch visits, for models trained on prefixes; 0: all.
        mask_probability: Share of items hidden, for cloze models.
        last_only_probability: Share of rows in which only the last item is hidden, for cloze models.
    """

    loss: str = field(default="cross_entropy", metadata={"help": f"One of {', '.join(LOSSES)}."})
    num_negatives: int = field(default=256, metadata={"help": "Negatives per position of the sampled losses."})
    negatives_per: str = field(default="position", metadata={"help": "position or sequence."})
    negative_sampling: str = field(default="uniform", metadata={"help": "uniform or popularity."})
    negatives_exclude_history: bool = field(
        default=False, metadata={"help": "Never draw an item of the user's training sequence."}
    )
    log_q_correction: bool = field(default=True, metadata={"help": "Correct sampled_cross_entropy by log counts."})
    gbce_t: float = field(default=0.75, metadata={"help": "Calibration of gBCE."})
    crop: str = field(
        default="last",
        metadata={"help": "What an epoch sees of a too long sequence: last, random, or sliding windows."},
    )
    prefixes_per_sequence: int = field(
        default=0, metadata={"help": "Prefixes of each sequence per epoch for models that are not causal; 0: all."}
    )
    mask_probability: float = field(default=0.2, metadata={"help": "Share of items hidden (cloze models)."})
    last_only_probability: float = field(
        default=0.5, metadata={"help": "Share of rows with only the last item hidden (cloze models)."}
    )

    def __post_init__(self):
        super().__post_init__()
        if self.loss not in LOSSES:
            raise ValueError(f"unknown `loss` {self.loss!r}; choose one of {', '.join(LOSSES)}.")
        if self.negative_sampling not in ("uniform", "popularity"):
            raise ValueError(f"`negative_sampling` must be 'uniform' or 'popularity', got {self.negative_sampling!r}.")


class NextItemTrainer(SeqRecTrainer):
    """Trains any recommender of the library on next items.

    Args:
        model: A [`~hf_seqrec.modeling.SequentialRecommender`].
        args: [`NextItemTrainingArguments`].
        train_dataset: The training part of a split ([`~hf_seqrec.data.Sequences`]) or a ready [`SequenceDataset`].
        eval_dataset: [`~hf_seqrec.data.EvaluationSet`], for example `split.validation`.
        kwargs: As in `transformers.Trainer`; `processing_class` takes the processor that travels with the model.

    Example:
        >>> from hf_seqrec.data import leave_one_out, load_recommendation_data                          # doctest: +SKIP
        >>> data = load_recommendation_data("path/to/data")                                             # doctest: +SKIP
        >>> split = leave_one_out(data.sequences)                                                       # doctest: +SKIP
        >>> model = SASRecForSequentialRecommendation(SASRecConfig(num_items=data.catalogue.num_items)) # doctest: +SKIP
        >>> NextItemTrainer(model, NextItemTrainingArguments("out"), train_dataset=split.train,
        ...                 eval_dataset=split.validation).train()                                      # doctest: +SKIP
    """

    training_args_class = NextItemTrainingArguments

    def __init__(self, model=None, args=None, data_collator=None, train_dataset=None, eval_dataset=None, **kwargs):
        args = self.check_args(args)
        if isinstance(train_dataset, Sequences):
            highest = int(train_dataset.item_index.max(initial=0))
            if highest > model.config.num_items:
                raise ValueError(
                    f"the training sequences hold item_index {highest}, the model's catalogue ends at "
                    f"{model.config.num_items}: build the model with `num_items=data.catalogue.num_items`."
                )
            train_dataset = self.make_dataset(model, args, train_dataset)
        self.objective = make_loss(args.loss)
        if data_collator is None and train_dataset is not None:
            data_collator = self.make_collator(model, args, train_dataset)
        super().__init__(model, args, data_collator, train_dataset, eval_dataset, **kwargs)

    @staticmethod
    def make_dataset(model, args: NextItemTrainingArguments, sequences: Sequences) -> SequenceDataset:
        """Rows for a model's supervision."""
        if args.prefixes_per_sequence and model.supervision != "last_position":
            raise ValueError(
                f"`prefixes_per_sequence` is for models trained on prefixes; {type(model).__name__} learns at every position of a "
                "sequence: leave it at 0 (`crop` varies its windows)."
            )
        if args.crop != "last" and model.supervision == "last_position":
            raise ValueError(
                f"`crop` is for models that learn at every position of a sequence; {type(model).__name__} is trained on prefixes, of which "
                f"`prefixes_per_sequence` says how many: leave it at 'last', got {args.crop!r}."
            )
        return SequenceDataset(
            sequences,
            model.config.max_length,
            rows="prefix" if model.supervision == "last_position" else "sequence",
            crop=args.crop,
            prefixes_per_sequence=args.prefixes_per_sequence or None,
            seed=args.data_seed if args.data_seed is not None else args.seed,
        )

    def make_collator(self, model, args: NextItemTrainingArguments, dataset):
        """Collator for a model's supervision; sets `objective` with what it needs to know about sampling."""
        num_items, sampler = model.config.num_items, None
        sequences = getattr(dataset, "sequences", None)
        if make_loss(args.loss).needs_negatives:
            weights = np.ones(num_items + 1)
            if args.negative_sampling == "popularity":
                if sequences is None:
                    raise ValueError("`negative_sampling='popularity'` needs training `Sequences` to count items in.")
                weights = np.bincount(sequences.item_index, minlength=num_items + 1).astype(float)
            weights[0] = 0
            sampler = NegativeSampler(
                num_items,
                args.num_negatives,
                per=args.negatives_per,
                exclude_history=args.negatives_exclude_history,
                weights=weights if args.negative_sampling == "popularity" else None,
            )
            log_q = torch.from_numpy(np.log(np.maximum(weights / weights.sum(), 1e-12))).float()
            self.objective = make_loss(args.loss, t=args.gbce_t, log_q=log_q if args.log_q_correction else None)
        if model.supervision == "cloze":
            if sampler is not None:
                raise ValueError(f"cloze models train with `loss='cross_entropy'`, got {args.loss!r}.")
            return DataCollatorForCloze(
                num_items + 1, args.mask_probability, args.last_only_probability, model.config.max_length
            )
        return DataCollatorForNextItem(model.supervision == "last_position", sampler, sequences)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Sum of `objective` over labelled positions, divided by their number in the whole optimizer step."""
        inputs = {**inputs, "objective": self.objective}
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
