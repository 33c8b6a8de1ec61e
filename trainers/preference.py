"""P2Rec's stage 1: an LLM learns to tell a user's distribution over groups of items from the user's history.

One example per user and epoch, whatever the length of the history. The loss is summed over groups and users and divided by the
users of the whole optimizer step, so that it does not depend on how the step was split.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset
from transformers import Trainer
from transformers.trainer_utils import EvalLoopOutput

from hf_seqrec.data import Sequences

from .base import SeqRecTrainer, SeqRecTrainingArguments
from .data import left_pad


SUB_SEQUENCE_TARGETS = ("own", "user")


@dataclass
class PreferenceTrainingArguments(SeqRecTrainingArguments):
    """Arguments of [`PreferenceTrainer`].

    > Parameters that control the rows

    Args:
        sub_sequence_probability: Share of rows in which a short part of the history stands for it, drawn anew every epoch: stage 2
            asks for single items, which full histories never show. 0 as in the paper.
        sub_sequence_length: Longest such part; each length from 1 on is as likely.
        sub_sequence_target: What such a row asks for: the distribution of its `own` items, or that of the `user`.

    Defaults that differ from [`SeqRecTrainingArguments`]: `learning_rate=1e-4`, `num_train_epochs=10`, no evaluation, no early
    stopping.
    """

    learning_rate: float = 1e-4
    num_train_epochs: float = 10
    eval_strategy: str = "no"
    load_best_model_at_end: bool = False
    metric_for_best_model: str | None = "loss"
    greater_is_better: bool | None = False
    sub_sequence_probability: float = field(
        default=0.0, metadata={"help": "Share of rows that show a short part of the history."}
    )
    sub_sequence_length: int = field(default=3, metadata={"help": "Longest such part."})
    sub_sequence_target: str = field(
        default="own", metadata={"help": "What a short part asks for: own (its items' groups) or user."}
    )

    def __post_init__(self):
        super().__post_init__()
        if not 0 <= self.sub_sequence_probability <= 1:
            raise ValueError(f"`sub_sequence_probability` must be in [0, 1], got {self.sub_sequence_probability}.")
        if self.sub_sequence_length < 1:
            raise ValueError(f"`sub_sequence_length` must be at least 1, got {self.sub_sequence_length}.")
        if self.sub_sequence_target not in SUB_SEQUENCE_TARGETS:
            raise ValueError(
                f"`sub_sequence_target` must be one of {', '.join(SUB_SEQUENCE_TARGETS)}, got {self.sub_sequence_target!r}."
            )


class PreferenceDataset(Dataset):
    """One row per user with training items: the most recent items, and the distribution over groups of all of them.

    Args:
        sequences: The training part of a split.
        preferences: (num_users, K), rows sum to 1; rows of users without items are not read.
        max_length: Most items in a prompt.
        group: (num_items + 1,) the group of each item; needed where short parts ask for their own distribution.
        sub_sequence_probability, sub_sequence_length, sub_sequence_target: See [`PreferenceTrainingArguments`].
        seed: Key of all random choices, together with epoch and row.

    Raises:
        ValueError: Other numbers of users, a row that is no distribution, no user with items, or a missing `group`.
    """

    def __init__(
        self,
        sequences: Sequences,
        preferences: np.ndarray,
        max_length: int,
        group: np.ndarray | None = None,
        sub_sequence_probability: float = 0.0,
        sub_sequence_length: int = 3,
        sub_sequence_target: str = "own",
        seed: int = 0,
    ):
        preferences = np.asarray(preferences, dtype=np.float32)
        if preferences.ndim != 2 or len(preferences) != len(sequences):
            raise ValueError(f"`preferences` need a row per user ({len(sequences):,}), got shape {preferences.shape}.")
        # A user without training items has nothing to show and nothing to ask for.
        self.users = np.flatnonzero(sequences.lengths >= 1)
        if not len(self.users):
            raise ValueError(f"none of the {len(sequences):,} users has a training item, nothing can be learned.")
        sums = preferences[self.users].sum(1)
        if not np.allclose(sums, 1, atol=1e-3) or (preferences[self.users] < 0).any():
            user = int(self.users[np.argmax(np.abs(sums - 1))])
            raise ValueError(
                f"the preferences of user {user} sum to {preferences[user].sum():.3f}, need a distribution: make them with "
                "`preference_distributions` from the same training sequences."
            )
        if sub_sequence_probability and sub_sequence_target == "own" and group is None:
            raise ValueError(
                "short parts that ask for their own distribution need `group`, or sub_sequence_target='user'."
            )
        self.sequences, self.preferences, self.max_length, self.group = sequences, preferences, max_length, group
        self.probability, self.longest, self.target = (
            sub_sequence_probability,
            sub_sequence_length,
            sub_sequence_target,
        )
        self.seed, self.epoch = seed, 0

    def __len__(self) -> int:
        return len(self.users)

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch follows; part of the key of every random choice."""
        self.epoch = int(epoch)

    def __getitem__(self, row: int) -> dict[str, Any]:
        user = int(self.users[int(row)])
        items, wanted = self.sequences[user], self.preferences[user]
        if self.probability:
            generator = np.random.default_rng([self.seed, self.epoch, int(row)])
            if generator.random() < self.probability:
                length = int(generator.integers(1, min(self.longest, len(items)) + 1))
                start = int(generator.integers(len(items) - length + 1))
                items = items[start : start + length]
                if self.target == "own" and self.group is not None:
                    counts = np.bincount(self.group[items], minlength=len(wanted))
                    wanted = (counts / counts.sum()).astype(np.float32)
        return {"item_index": items[-self.max_length :], "preferences": wanted, "user": user}


def collate_preferences(examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Rows of [`PreferenceDataset`] to `input_ids` (batch, longest), `preferences` (batch, K), `labels` (batch, 1).

    The labels only say how many users there are, which is what the `Trainer` counts to scale the loss.
    """
    return {
        "input_ids": left_pad([np.asarray(example["item_index"]) for example in examples]),
        "preferences": torch.from_numpy(np.stack([example["preferences"] for example in examples])),
        "labels": torch.tensor([[example["user"]] for example in examples]),
    }


class PreferenceTrainer(SeqRecTrainer):
    """Trains P2Rec's LLM on user preferences.

    Args:
        model: A [`~hf_seqrec.modeling.p2rec.P2RecModel`].
        args: [`PreferenceTrainingArguments`].
        train_dataset: The training part of a split ([`~hf_seqrec.data.Sequences`]) or a ready [`PreferenceDataset`].
        preferences: (num_users, K) of `preference_distributions(split.train, groups)`, with `Sequences`.
        group: (num_items + 1,) `groups.group`, where short parts ask for their own distribution.
        eval_dataset: A [`PreferenceDataset`] of users kept apart, for `eval_loss`; None evaluates nothing.
        kwargs: As in `transformers.Trainer`.

    Raises:
        ValueError: Sequences without preferences or with items outside the model's catalogue, or another number of groups.

    Example:
        >>> groups = group_items(teacher.item_representations(), 64, training_items=split.train.item_index)  # doctest: +SKIP
        >>> trainer = PreferenceTrainer(model, PreferenceTrainingArguments("out"), train_dataset=split.train,  # doctest: +SKIP
        ...                             preferences=preference_distributions(split.train, groups))
        >>> trainer.train()                                                                                   # doctest: +SKIP
    """

    training_args_class = PreferenceTrainingArguments

    def __init__(
        self,
        model=None,
        args=None,
        data_collator=None,
        train_dataset=None,
        eval_dataset=None,
        preferences: np.ndarray | None = None,
        group: np.ndarray | None = None,
        **kwargs,
    ):
        args = self.check_args(args)
        if isinstance(train_dataset, Sequences):
            if preferences is None:
                raise ValueError("training sequences need `preferences=preference_distributions(sequences, groups)`.")
            train_dataset = PreferenceDataset(
                train_dataset,
                preferences,
                model.config.max_length,
                group,
                args.sub_sequence_probability,
                args.sub_sequence_length,
                args.sub_sequence_target,
                args.data_seed if args.data_seed is not None else args.seed,
            )
        for dataset in (train_dataset, eval_dataset):
            if isinstance(dataset, PreferenceDataset):
                self._check(model, dataset)
        super().__init__(model, args, data_collator or collate_preferences, train_dataset, eval_dataset, **kwargs)

    @staticmethod
    def _check(model, dataset: PreferenceDataset) -> None:
        highest, groups = int(dataset.sequences.item_index.max(initial=0)), dataset.preferences.shape[1]
        if highest > model.config.num_items:
            raise ValueError(
                f"the sequences hold item_index {highest}, the model's catalogue ends at {model.config.num_items}: build the "
                "model with the item table of this data set."
            )
        if groups != model.config.num_groups:
            raise ValueError(f"the preferences have {groups} groups, the model {model.config.num_groups}.")

    def _carrier(self, dataset) -> DataLoader:
        if not isinstance(dataset, PreferenceDataset):
            raise TypeError(f"evaluation needs a PreferenceDataset, got {type(dataset).__name__}.")
        loader = DataLoader(dataset, self.args.eval_batch_size, collate_fn=self.data_collator)
        return self.accelerator.prepare(loader)

    def evaluation_loop(
        self, dataloader, description, prediction_loss_only=None, ignore_keys=None, metric_key_prefix="eval"
    ) -> EvalLoopOutput:
        """Mean loss per user."""
        # There is no ranking here: past the base class, to that of transformers.
        return Trainer.evaluation_loop(self, dataloader, description, True, ignore_keys, metric_key_prefix)
