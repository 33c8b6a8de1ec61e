"""Tune an LLM that ranks candidates on what users really chose next: stage 2 of DELRec, and LlamaRec.

Equation 8 of DELRec: the soft prompts stay as they are, adapters in the LLM learn the true next item among m candidates.
With AdaLoRA the budget of ranks is allocated after every step; peft does so only when it is told.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset
from transformers import TrainerCallback
from transformers.utils import logging

from hf_seqrec.data import Sequences, draw_candidates
from hf_seqrec.evaluation import Protocol, RankingEvaluator

from .base import SeqRecTrainer, SeqRecTrainingArguments
from .data import SequenceDataset, left_pad


logger = logging.get_logger(__name__)

CANDIDATES = ("drawn", "retrieved")
_ALLOCATION_FILE = "rank_allocation.pt"


@dataclass
class CandidateTrainingArguments(SeqRecTrainingArguments):
    """What both stages of DELRec share.

    > Parameters that control the rows

    Args:
        targets: `random` (a prefix of each user's training items, drawn anew every epoch) or `last` (all of them).

    > Parameters that control the optimizer

    Args:
        lion: Lion of the package `lion-pytorch`; False takes what `optim` names: AdamW, or on a GPU bitsandbytes' `lion_8bit`.
        rank_warmup: Share of the steps before AdaLoRA takes ranks away.
        rank_final: Share of the steps at the end in which its ranks stay.

    > Parameters that control the evaluation

    Args:
        max_eval_users: Users of an evaluation during training; 0: all.
    """

    per_device_train_batch_size: int = 20
    num_train_epochs: float = 10
    targets: str = field(default="random", metadata={"help": "random or last: which prefix of a user an epoch shows."})
    lion: bool = field(default=True, metadata={"help": "Lion (lion-pytorch); false: what --optim names."})
    rank_warmup: float = field(default=0.1, metadata={"help": "Share of the steps before AdaLoRA takes ranks away."})
    rank_final: float = field(
        default=0.3, metadata={"help": "Share of the steps at the end in which AdaLoRA's ranks stay."}
    )
    max_eval_users: int = field(default=0, metadata={"help": "Users of an evaluation during training; 0: all."})

    def __post_init__(self):
        super().__post_init__()
        if self.targets not in ("random", "last"):
            raise ValueError(f"`targets` must be 'random' or 'last', got {self.targets!r}.")
        if min(self.rank_warmup, self.rank_final) < 0 or self.rank_warmup + self.rank_final >= 1:
            raise ValueError(
                "`rank_warmup` and `rank_final` are shares of the steps and must leave some between them, got "
                f"{self.rank_warmup} and {self.rank_final}."
            )
        if self.max_eval_users < 0:
            raise ValueError(f"`max_eval_users` must not be negative, got {self.max_eval_users}.")

    def optimizer(self) -> tuple[type[torch.optim.Optimizer], dict[str, Any]] | None:
        """Lion's class and arguments, or None where `optim` rules."""
        if not self.lion:
            return None
        from lion_pytorch import Lion

        return Lion, {"lr": self.learning_rate, "weight_decay": self.weight_decay}


@dataclass
class PromptTuningTrainingArguments(CandidateTrainingArguments):
    """Arguments of [`PromptTuningTrainer`].

    > Parameters that control the candidates

    Args:
        candidates: Where the items beside the true one come from: `drawn` (uniformly, unseen) or `retrieved` (the best of the model's
            retriever; the true item takes the last place where it is not among them).
        train_candidates: Items in a training prompt, the true one included; None takes the model's number.
        eval_negatives: Negatives per validation row, drawn once; the metrics are `ndcg@10/sampled14` and so on.

    > Parameters that control what is trained

    Args:
        update_soft_prompts: Also train the soft prompts (the paper's ablation *w ULSR*).

    Defaults that differ from [`SeqRecTrainingArguments`]: Lion, `learning_rate=1e-4`, `weight_decay=1e-6`,
    `per_device_train_batch_size=20`, `num_train_epochs=10`, selection by `ndcg@10/sampled14`, cut-offs 1, 5, 10.
    """

    learning_rate: float = 1e-4
    weight_decay: float = 1e-6
    metric_for_best_model: str | None = "ndcg@10/sampled14"
    cutoffs: list[int] = field(default_factory=lambda: [1, 5, 10], metadata={"help": "Cut-offs of the metrics."})
    candidates: str = field(
        default="drawn", metadata={"help": "drawn (uniformly) or retrieved (the retriever's best)."}
    )
    train_candidates: int | None = field(
        default=None, metadata={"help": "Items in a training prompt; by default the model's number."}
    )
    eval_negatives: int = field(default=14, metadata={"help": "Negatives per validation row, drawn once."})
    update_soft_prompts: bool = field(default=False, metadata={"help": "Also train the soft prompts (ablation)."})

    def __post_init__(self):
        super().__post_init__()
        if self.candidates not in CANDIDATES:
            raise ValueError(f"`candidates` must be one of {', '.join(CANDIDATES)}, got {self.candidates!r}.")
        if self.train_candidates is not None and self.train_candidates < 2:
            raise ValueError(f"`train_candidates` must be at least 2, got {self.train_candidates}.")
        if self.eval_negatives < 1:
            raise ValueError(f"`eval_negatives` must be at least 1, got {self.eval_negatives}.")


def draw_unseen(generator: np.random.Generator, num_items: int, count: int, seen: np.ndarray) -> np.ndarray:
    """Distinct items that a user has not met, in random order.

    Args:
        generator: Source of the draw.
        num_items: Size of the catalogue.
        count: How many.
        seen: item_index that must not be drawn.

    Returns:
        (count,) item_index.

    Raises:
        ValueError: Too few items are left.

    Example:
        >>> sorted(draw_unseen(np.random.default_rng(0), 5, 3, np.array([2, 4])).tolist())
        [1, 3, 5]
    """
    seen = np.unique(seen)
    left = num_items - len(seen)
    if left < count:
        raise ValueError(
            f"a user has met {len(seen):,} of {num_items:,} items, so {count} others cannot be drawn: lower the number of candidates."
        )
    if 2 * (count + len(seen)) > num_items:
        allowed = np.ones(num_items + 1, dtype=bool)
        allowed[0] = allowed[seen] = False
        return generator.choice(np.flatnonzero(allowed), count, replace=False)
    drawn: list[int] = []
    taken = set(seen.tolist())
    while len(drawn) < count:
        for item in generator.integers(1, num_items + 1, count).tolist():
            if item not in taken and len(drawn) < count:
                taken.add(item)
                drawn.append(item)
    return np.array(drawn)


class CandidateDataset(Dataset):
    """One row per user and epoch: a history, the item after it, and unseen items to tell it from.

    Args:
        sequences: The training part of a split.
        max_length: Most items of a history.
        num_items: Size of the catalogue.
        num_candidates: Items in a prompt, m.
        targets: `random` or `last`, see [`CandidateTrainingArguments`].
        seed: Key of all random choices, together with epoch and row.

    Raises:
        ValueError: No sequence with two items.
    """

    def __init__(
        self, sequences: Sequences, max_length: int, num_items: int, num_candidates: int, targets: str, seed: int
    ):
        # `SequenceDataset` owns which prefix an epoch shows.
        rows: dict[str, Any] = {"rows": "prefix", "prefixes_per_sequence": 1} if targets == "random" else {}
        self.prefixes = SequenceDataset(sequences, max_length, seed=seed, **rows)
        self.num_items, self.num_candidates = num_items, num_candidates

    def __len__(self) -> int:
        return len(self.prefixes)

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch follows; part of the key of every random choice."""
        self.prefixes.set_epoch(epoch)

    def __getitem__(self, row: int) -> dict[str, Any]:
        example = self.prefixes[row]
        generator = np.random.default_rng([*example["generator_key"], 1])
        met = self.prefixes.sequences[example["user"]]
        return {
            "history": example["item_index"][:-1],
            "target": int(example["item_index"][-1]),
            "unseen": draw_unseen(generator, self.num_items, self.num_candidates - 1, met),
            "order": generator.permutation(self.num_candidates),
        }


def collate_candidates(examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Rows of [`CandidateDataset`] to `input_ids` (batch, longest), `candidates` (batch, m) in random order and `labels` (batch, 1).

    Example:
        >>> row = {"history": np.array([3]), "target": 7, "unseen": np.array([5, 2]), "order": np.array([1, 0, 2])}
        >>> collate_candidates([row])["candidates"].tolist()
        [[5, 7, 2]]
    """
    candidates = [np.concatenate([[row["target"]], row["unseen"]])[row["order"]] for row in examples]
    return {
        "input_ids": left_pad([row["history"] for row in examples]),
        "candidates": torch.from_numpy(np.stack(candidates).astype(np.int64)),
        "labels": torch.tensor([[row["target"]] for row in examples]),
    }


def allocator_of(trainer: SeqRecTrainer):
    """The `AdaLoraModel` of peft in a trainer's model; None for other adapters, none, or some that this stage does not train."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    tuner = getattr(model, "rank_allocator", None)
    trained = any(p.requires_grad for name, p in model.named_parameters() if ".lora_A." in name)
    return tuner if trained else None


class RankAllocation(TrainerCallback):
    """Calls AdaLoRA's `update_and_allocate` after every optimizer step, and gives it the length of the training.

    Args:
        trainer: Its model's `rank_allocator` is peft's `AdaLoraModel`, or None for other adapters.
    """

    def __init__(self, trainer: SeqRecTrainer):
        self.trainer = trainer

    @property
    def tuner(self):
        """The `AdaLoraModel` of peft, or None."""
        return allocator_of(self.trainer)

    def on_train_begin(self, args, state, control, **kwargs):
        """Sets the schedule, now that the number of steps is known."""
        if self.tuner is None:
            return
        config = self.tuner.peft_config["default"]
        config.total_step = state.max_steps
        config.tinit = int(args.rank_warmup * state.max_steps)
        config.tfinal = int(args.rank_final * state.max_steps)

    def on_optimizer_step(self, args, state, control, **kwargs):
        """Gradients are still there, the step has been made."""
        if self.tuner is not None:
            self.tuner.update_and_allocate(state.global_step + 1)


def orthogonality(model: torch.nn.Module) -> torch.Tensor | None:
    """AdaLoRA's regulariser: the mean over matrices of ‖AAᵀ − I‖ and ‖BᵀB − I‖ (Frobenius); None without AdaLoRA.

    peft adds it to a loss that the LLM itself computes; here the loss is computed outside.
    """
    norms = []
    for name, weight in model.named_parameters():
        if ".lora_A." in name or ".lora_B." in name:
            product = weight @ weight.T if ".lora_A." in name else weight.T @ weight
            norms.append(torch.linalg.norm(product - torch.eye(len(product), device=product.device)))
    return torch.stack(norms).mean() if norms else None


class CandidateTrainer(SeqRecTrainer):
    """What both stages of DELRec share: the optimizer, AdaLoRA's bookkeeping, and what is refused before training."""

    training_args_class: type[CandidateTrainingArguments] = CandidateTrainingArguments

    def __init__(self, model=None, args=None, *positional, **kwargs):
        args = self.check_args(args)
        if args.fp16 and model.config.llm_config.get("model_type", "") in ("t5", "mt5", "umt5"):
            logger.warning("T5 overflows in fp16, which shows as NaN losses: use `bf16=True` or float32.")
        if "optimizers" not in kwargs:
            kwargs.setdefault("optimizer_cls_and_kwargs", args.optimizer())
        super().__init__(model, args, *positional, **kwargs)
        self.add_callback(RankAllocation(self))

    @staticmethod
    def check_sequences(model, sequences: Sequences) -> None:
        """Refuse sequences of another catalogue."""
        highest = int(sequences.item_index.max(initial=0))
        if highest > model.config.num_items:
            raise ValueError(
                f"the training sequences hold item_index {highest}, the model's catalogue ends at "
                f"{model.config.num_items}: build the model with the catalogue of this data set."
            )

    def _save_optimizer_and_scheduler(self, output_dir):
        """Also keeps what AdaLoRA knows of the importance of each rank."""
        super()._save_optimizer_and_scheduler(output_dir)
        tuner = allocator_of(self)
        if tuner is not None and self.args.should_save:
            kept = {name: vars(tuner.rankallocator)[name] for name in ("ipt", "exp_avg_ipt", "exp_avg_unc")}
            kept["rank_pattern"] = tuner.peft_config["default"].rank_pattern
            torch.save(kept, os.path.join(output_dir, _ALLOCATION_FILE))

    def _load_optimizer_and_scheduler(self, checkpoint):
        super()._load_optimizer_and_scheduler(checkpoint)
        tuner = allocator_of(self)
        if checkpoint is None or tuner is None:
            return
        kept = torch.load(os.path.join(checkpoint, _ALLOCATION_FILE), map_location=self.args.device)
        tuner.peft_config["default"].rank_pattern = kept.pop("rank_pattern")
        vars(tuner.rankallocator).update(kept)


class PromptTuningTrainer(CandidateTrainer):
    """Trains the adapters of an LLM that ranks candidates, on true next items.

    Args:
        model: An [`~hf_seqrec.modeling.llm_ranker.LLMRankerForSequentialRecommendation`] or a subclass, with adapters in its LLM.
        args: [`PromptTuningTrainingArguments`].
        train_dataset: The training part of a split ([`~hf_seqrec.data.Sequences`]) or a ready [`CandidateDataset`].
        eval_dataset: [`~hf_seqrec.data.EvaluationSet`], for example `split.validation`.
        kwargs: As in `transformers.Trainer`; `processing_class` takes the processor that travels with the model.

    Raises:
        ValueError: Nothing to train, or items outside the catalogue.

    Example:
        >>> model, processor = DELRecForSequentialRecommendation.from_parts(                       # doctest: +SKIP
        ...     llm="google/flan-t5-large", teacher="user/sasrec", catalogue=data.catalogue,
        ...     adapter={"type": "adalora", "init_r": 12, "target_r": 8})
        >>> model.load_soft_prompts("stage1")                                                      # doctest: +SKIP
        >>> PromptTuningTrainer(model, PromptTuningTrainingArguments("out"), train_dataset=split.train,
        ...                     eval_dataset=split.validation).train()                             # doctest: +SKIP
    """

    training_args_class = PromptTuningTrainingArguments

    def __init__(self, model=None, args=None, data_collator=None, train_dataset=None, eval_dataset=None, **kwargs):
        args = self.check_args(args)
        if train_dataset is not None:
            if hasattr(model, "set_trainable"):
                model.set_trainable(soft_prompts=args.update_soft_prompts, llm=True)
            elif args.update_soft_prompts:
                raise ValueError(
                    f"{type(model).__name__} has no soft prompts to update: leave `update_soft_prompts` out."
                )
            if not any(parameter.requires_grad for parameter in model.parameters()):
                raise ValueError(
                    "the model has no adapter to tune: build it with `adapter={'type': 'adalora', …}` (DELRec) or `lora={'r': 8}` (rankers)."
                )
        if isinstance(train_dataset, Sequences):
            self.check_sequences(model, train_dataset)
            train_dataset = CandidateDataset(
                train_dataset,
                model.config.max_length,
                model.config.num_items,
                args.train_candidates or model.config.num_candidates,
                args.targets,
                args.data_seed if args.data_seed is not None else args.seed,
            )
        self._drawn: dict[str, Any] = {}
        super().__init__(model, args, data_collator or collate_candidates, train_dataset, eval_dataset, **kwargs)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Cross-entropy of the true item among the candidates, and AdaLoRA's regulariser."""
        inputs = dict(inputs)
        bare = self.accelerator.unwrap_model(model)
        if self.args.candidates == "retrieved":
            inputs["candidates"] = with_target(
                retrieve_unseen(bare, inputs["input_ids"], inputs["candidates"].shape[1]),
                inputs["labels"],
                inputs["candidates"],
            )
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        tuner = allocator_of(self)
        if tuner is not None and model.training:
            # Once per optimizer step: gradients of its micro-batches are summed.
            weight = tuner.peft_config["default"].orth_reg_weight / self.current_gradient_accumulation_steps
            loss = loss + weight * orthogonality(bare)
        return (loss, outputs) if return_outputs else loss

    def evaluation_loop(
        self, dataloader, description, prediction_loss_only=None, ignore_keys=None, metric_key_prefix="eval"
    ):
        """Rank every row's target among candidates that are drawn once."""
        from transformers.trainer_utils import EvalLoopOutput

        rows = dataloader.dataset
        key = rows.fingerprint
        if key not in self._drawn:
            if 0 < self.args.max_eval_users < len(rows) and not metric_key_prefix.startswith("test"):
                chosen = np.random.default_rng(0).permutation(len(rows))[: self.args.max_eval_users]
                rows = rows.subset(np.sort(chosen))
            num_items = self.accelerator.unwrap_model(self.model).config.num_items
            self._drawn[key] = rows, draw_candidates(rows, num_items, self.args.eval_negatives, seed=0)
        rows, candidates = self._drawn[key]
        model = self.accelerator.unwrap_model(self.model)
        protocol = Protocol(
            split=self.split_name,
            part="test" if metric_key_prefix.startswith("test") else "validation",
            candidates=f"sampled{self.args.eval_negatives}",
            exclude_seen=self.args.exclude_seen,
            cutoffs=tuple(self.args.cutoffs),
        )
        result = RankingEvaluator(
            rows,
            num_items=model.config.num_items,
            protocol=protocol,
            candidates=candidates,
            batch_size=self.args.ranking_batch_size,
            accelerator=self.accelerator if self.args.world_size > 1 else None,
        )(model)
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in result.metrics.items()}
        return EvalLoopOutput(predictions=result.ranks, label_ids=None, metrics=metrics, num_samples=len(rows))


@torch.no_grad()
def retrieve_unseen(model, input_ids: torch.Tensor, count: int) -> torch.Tensor:
    """The best items of a ranker's backbone that are not in the histories: (batch, length) -> (batch, count), best first."""
    scores = model.teacher.score(input_ids).scatter(1, input_ids, -torch.inf)
    return scores.index_fill(1, input_ids.new_zeros(1), -torch.inf).topk(count, dim=1).indices


def with_target(retrieved: torch.Tensor, labels: torch.Tensor, drawn: torch.Tensor) -> torch.Tensor:
    """Retrieved candidates of which one is the true item.

    Args:
        retrieved: (batch, m) item_index, best first.
        labels: (batch, 1) the true item.
        drawn: (batch, m) candidates in random order with the true item among them; says at which place it goes.

    Returns:
        (batch, m): the true item where `drawn` has it, the others in the retriever's order around it.

    Example:
        >>> with_target(torch.tensor([[5, 6, 7]]), torch.tensor([[9]]), torch.tensor([[1, 9, 2]])).tolist()
        [[5, 9, 6]]
    """
    # A stable sort moves the true item, where it was retrieved, to the end, and the last of the others leaves.
    rest = retrieved.gather(1, torch.argsort((retrieved == labels).int(), dim=1, stable=True))[:, :-1]
    place = (drawn == labels).int().argmax(1, keepdim=True)
    column = torch.arange(retrieved.shape[1], device=labels.device).expand(len(labels), -1)
    moved = rest.gather(1, (column - (column > place).int()).clamp(max=rest.shape[1] - 1))
    return torch.where(column == place, labels, moved)
