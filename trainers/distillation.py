"""Distil a sequential recommender into a frozen LLM: retrieval, closeness to the teacher's user vector, uniformity."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.optim.lr_scheduler import LambdaLR
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from hf_seqrec.data import Sequences
from hf_seqrec.modeling.distillation import DISTILLATIONS, DistillationObjective

from .base import SeqRecTrainer, SeqRecTrainingArguments
from .data import DataCollatorForNextItem, NegativeSampler, SequenceDataset, left_pad


@dataclass
class DistillationTrainingArguments(SeqRecTrainingArguments):
    """Arguments of [`DistillationTrainer`].

    > Parameters that control the loss

    Args:
        distillation: `mse`, `infonce` or `none`.
        distillation_weight: Weight of the distillation term.
        uniformity_weight: Weight of the uniformity term; 0 leaves it out.
        normalize: Unit vectors in these two terms (published code; the equations do not normalise).
        mse_reduction: `mean` over dimensions, or `sum`.
        temperature: Of InfoNCE.
        uniformity_includes_self: Count each user's pair with itself (equation 3 as written).
        num_negatives: Items drawn per row, uniformly among those of the training data, never of the user's training sequence.

    > Parameters that control what is trained

    Args:
        train_heads_only: Train f_user, f_item and f_CF-user alone. The LLM then encodes each item and each history once, a step costs
            next to nothing, and all items of the training data are candidates. Meant for a second training of the same model.

    > Parameters that control the rows

    Args:
        targets: `last` (one example per user: its last training item) or `all` (auto-regressive: every item but the first).
        prefixes_per_sequence: With `targets="all"`, how many prefixes of each sequence an epoch visits, drawn anew; 0: all.
        prefix_cycle: After so many epochs the same prefixes come again; 0: never. Bounds what `train_heads_only` must encode.

    > Parameters that control the schedule

    Args:
        lr_decay_per_evaluation: The learning rate is multiplied by this at every evaluation; 1 keeps to `lr_scheduler_type`.

    Defaults that differ from [`SeqRecTrainingArguments`]: `per_device_train_batch_size=20`, `num_train_epochs=10`.
    """

    per_device_train_batch_size: int = 20
    num_train_epochs: float = 10
    distillation: str = field(default="mse", metadata={"help": f"One of {', '.join(DISTILLATIONS)}."})
    distillation_weight: float = field(default=1.0, metadata={"help": "Weight of the distillation term."})
    uniformity_weight: float = field(default=1.0, metadata={"help": "Weight of the uniformity term; 0: without."})
    normalize: bool = field(default=True, metadata={"help": "Unit vectors in distillation and uniformity."})
    mse_reduction: str = field(default="mean", metadata={"help": "mean or sum over dimensions."})
    temperature: float = field(default=0.07, metadata={"help": "Temperature of InfoNCE."})
    uniformity_includes_self: bool = field(
        default=False, metadata={"help": "Count the pair of each user with itself, as equation 3 is written."}
    )
    num_negatives: int = field(default=3, metadata={"help": "Items drawn per row as negatives."})
    targets: str = field(default="last", metadata={"help": "last (one example per user) or all (auto-regressive)."})
    prefixes_per_sequence: int = field(
        default=0, metadata={"help": "With targets=all: prefixes of each sequence per epoch, drawn anew; 0: all."}
    )
    prefix_cycle: int = field(
        default=0, metadata={"help": "After so many epochs the same prefixes come again; 0: never."}
    )
    train_heads_only: bool = field(
        default=False,
        metadata={
            "help": "Train only the heads: each prompt runs once, all items of the training data are candidates."
        },
    )
    lr_decay_per_evaluation: float = field(
        default=1.0, metadata={"help": "Factor on the learning rate at every evaluation; 1: lr_scheduler_type rules."}
    )

    def __post_init__(self):
        super().__post_init__()
        if self.targets not in ("last", "all"):
            raise ValueError(f"`targets` must be 'last' or 'all', got {self.targets!r}.")
        if not 0 < self.lr_decay_per_evaluation <= 1:
            raise ValueError(f"`lr_decay_per_evaluation` must be in (0, 1], got {self.lr_decay_per_evaluation}.")
        if self.num_negatives < 0:
            raise ValueError(f"`num_negatives` must not be negative, got {self.num_negatives}.")
        if self.prefix_cycle < 0:
            raise ValueError(f"`prefix_cycle` must not be negative, got {self.prefix_cycle}.")
        self.make_objective()

    def make_objective(self) -> DistillationObjective:
        """The loss these arguments describe."""
        return DistillationObjective(
            distillation=self.distillation,
            distillation_weight=self.distillation_weight,
            uniformity_weight=self.uniformity_weight,
            normalize=self.normalize,
            mse_reduction=self.mse_reduction,
            temperature=self.temperature,
            include_self=self.uniformity_includes_self,
        )


def heads_arguments(args: DistillationTrainingArguments, epochs: float, **changes) -> DistillationTrainingArguments:
    """Arguments of a second training, of the heads alone, made from those of the first.

    Args:
        args: Of the first training; the loss, seed and device are kept.
        epochs: Passes over the users, each with one of four prefixes of every user, or with what `targets="last"` says.
        changes: Other fields, for example `learning_rate`.

    Returns:
        Arguments with a folder of their own inside `args.output_dir`.

    Example:
        >>> second = heads_arguments(DistillationTrainingArguments("out", report_to="none"), epochs=40)
        >>> second.train_heads_only, second.num_train_epochs
        (True, 40)
    """
    second = copy.copy(args)
    settings = {
        "output_dir": str(Path(args.output_dir) / "heads"), "train_heads_only": True, "num_train_epochs": epochs, "max_steps": -1,
        "per_device_train_batch_size": 128, "gradient_accumulation_steps": 1, "learning_rate": 2e-3, "lr_scheduler_type": "linear",
        "lr_decay_per_evaluation": 1.0, "prefix_cycle": 4, "prefixes_per_sequence": min(args.prefixes_per_sequence or 1, 1),
    }  # fmt: skip
    if args.eval_strategy != "no":
        settings |= {"eval_strategy": IntervalStrategy.EPOCH, "save_strategy": SaveStrategy.EPOCH, "eval_steps": None}
        settings |= {"logging_strategy": IntervalStrategy.EPOCH}
    for name, value in (settings | changes).items():
        if not hasattr(second, name):
            raise TypeError(f"DistillationTrainingArguments has no field {name!r}.")
        setattr(second, name, value)
    return second


class TimedSequenceDataset(SequenceDataset):
    """[`SequenceDataset`] whose rows also have `timestamps`, when the sequences do.

    Args:
        cycle: After so many epochs the same draws come again; 0: never.
        kwargs: As in [`SequenceDataset`].
    """

    def __init__(self, *args, cycle: int = 0, **kwargs):
        super().__init__(*args, **kwargs)
        self.cycle = cycle

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch follows; part of the key of every random choice."""
        super().set_epoch(epoch % self.cycle if self.cycle else epoch)

    def __getitem__(self, row: int) -> dict[str, Any]:
        example = super().__getitem__(row)
        if self.sequences.timestamps is not None:
            start, stop, *_ = self._range(int(row))
            example["timestamps"] = self.sequences.timestamps[start:stop]
        return example


@dataclass
class DataCollatorForDistillation(DataCollatorForNextItem):
    """Histories, the one item after each, negatives (batch, 1, n), and `timestamps` when the rows have them."""

    last_position_only: bool = True

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Rows of [`TimedSequenceDataset`] to tensors (batch, longest)."""
        batch = super().__call__(examples)
        if "timestamps" in examples[0]:
            batch["timestamps"] = left_pad([np.asarray(example["timestamps"])[:-1] for example in examples])
        return batch


class DistillationTrainer(SeqRecTrainer):
    """Trains LLM-SRec, and as its special cases without distillation TALLRec, LLaRA, CoLLM and A-LLMRec.

    Args:
        model: An [`~hf_seqrec.modeling.llm_srec.LLMSRecForSequentialRecommendation`].
        args: [`DistillationTrainingArguments`].
        train_dataset: The training part of a split ([`~hf_seqrec.data.Sequences`]), or a ready data set.
        eval_dataset: [`~hf_seqrec.data.EvaluationSet`], for example `split.validation`.
        kwargs: As in `transformers.Trainer`; `processing_class` takes the processor that travels with the model.

    Raises:
        ValueError: The sequences hold items outside the model's catalogue, or no timestamps where prompts show dates; or the loss
            needs a teacher head that the model has not.

    Example:
        >>> trainer = DistillationTrainer(model, DistillationTrainingArguments("out"), train_dataset=split.train,
        ...                               eval_dataset=split.validation, processing_class=processor)  # doctest: +SKIP
        >>> trainer.train()                                                                           # doctest: +SKIP
    """

    training_args_class = DistillationTrainingArguments

    def __init__(self, model=None, args=None, data_collator=None, train_dataset=None, eval_dataset=None, **kwargs):
        args = args if args is not None else self.training_args_class(output_dir="trainer_output")
        self.objective = args.make_objective()
        if self.objective.needs_teacher and not model.config.distilled:
            raise ValueError(
                f"distillation={args.distillation!r} needs a model built with `distilled=True`; train this one with "
                "distillation='none'."
            )
        if self.objective.uniformity_weight and not self.objective.needs_teacher and model.config.distilled:
            raise ValueError(
                "a model built with `distilled=True` has a teacher head, which distillation='none' never trains."
            )
        if isinstance(train_dataset, Sequences):
            highest = int(train_dataset.item_index.max(initial=0))
            if highest > model.config.num_items:
                raise ValueError(
                    f"the training sequences hold item_index {highest}, the model's catalogue ends at "
                    f"{model.config.num_items}: build the model with the catalogue of this data set."
                )
            if model.needs_timestamps and train_dataset.timestamps is None:
                raise ValueError(
                    "the model's prompts show dates, but of this data set only the order is known: build the model with "
                    "`dates=False`."
                )
            model.set_known_items(train_dataset.item_index)
            train_dataset = self.make_dataset(model, args, train_dataset)
        if data_collator is None and train_dataset is not None:
            sampler = None
            if args.num_negatives and not args.train_heads_only:
                sampler = NegativeSampler(
                    model.config.num_items, args.num_negatives, per="sequence", exclude_history=True,
                    weights=model.known_items.cpu().numpy(),
                )  # fmt: skip
            data_collator = DataCollatorForDistillation(
                sampler=sampler, sequences=getattr(train_dataset, "sequences", None)
            )
        model.train_heads_only(args.train_heads_only)
        self._terms: dict[str, list[torch.Tensor]] = {}
        super().__init__(model, args, data_collator, train_dataset, eval_dataset, **kwargs)

    @staticmethod
    def make_dataset(model, args: DistillationTrainingArguments, sequences: Sequences) -> TimedSequenceDataset:
        """One row per user, or one per prefix of a user's sequence."""
        return TimedSequenceDataset(
            sequences,
            model.config.max_length,
            rows="sequence" if args.targets == "last" else "prefix",
            prefixes_per_sequence=(args.prefixes_per_sequence or None) if args.targets == "all" else None,
            seed=args.data_seed if args.data_seed is not None else args.seed,
            cycle=args.prefix_cycle,
        )

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """L_Retrieval + L_Distill + L_Uniform; each term is also logged."""
        inputs = {**inputs, "objective": self.objective}
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        for name, term in outputs.terms.items():
            self._terms.setdefault(name, []).append(term.detach())
        return (loss, outputs) if return_outputs else loss

    def log(self, logs, start_time=None):
        """Add the mean of each term per optimizer step since the last log."""
        if self._terms and "loss" in logs:
            steps = max(1, len(next(iter(self._terms.values()))) // self.args.gradient_accumulation_steps)
            logs = {
                **logs,
                **{f"loss_{name}": float(torch.stack(values).sum()) / steps for name, values in self._terms.items()},
            }
            self._terms = {}
        super().log(logs, start_time)

    def create_scheduler(self, num_training_steps, optimizer=None):
        """A learning rate that falls by a factor at every evaluation, when asked for."""
        factor = self.args.lr_decay_per_evaluation
        if factor == 1 or self.lr_scheduler is not None:
            return super().create_scheduler(num_training_steps, optimizer)
        if self.args.eval_strategy == "no":
            raise ValueError("`lr_decay_per_evaluation` needs evaluations: set `eval_strategy`.")
        every = num_training_steps / self.args.num_train_epochs
        if self.args.eval_strategy == "steps":
            every = self.args.eval_steps if self.args.eval_steps >= 1 else num_training_steps * self.args.eval_steps
        self.lr_scheduler: Any = LambdaLR(
            optimizer or self.optimizer, lambda step: factor ** int(step / max(every, 1))
        )
        return self.lr_scheduler
