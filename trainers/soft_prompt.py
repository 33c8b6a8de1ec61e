"""Distil a sequential recommender into soft prompts: stage 1 of DELRec.

The LLM reads two kinds of prompts, temporal analysis (equation 4) and recommendation pattern simulating (equation 5), and only the
soft prompts in them learn. Both gradients are taken apart, summed over the whole optimizer step, and joined with λ (equation 6), so
that neither λ nor the step depends on how the step was split over micro-batches and processes.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, Dataset
from transformers.trainer_utils import EvalLoopOutput
from transformers.utils import logging

from hf_seqrec.data import Sequences

from .data import left_pad
from .prompt_tuning import CandidateTrainer, CandidateTrainingArguments, draw_unseen, orthogonality


logger = logging.get_logger(__name__)

TASKS = ("ta", "rps")
WEIGHTINGS = ("gradient", "fixed", "linear")


def inverse_gradient_weight(ta_norm: float, rps_norm: float, exponent: float = 0.5) -> float:
    """λ of equation 6, by the rule of the published code: g_TA^-a / (g_TA^-a + g_RPS^-a), a plain number without gradient.

    Args:
        ta_norm: ‖∇L_TA‖ over the soft prompts.
        rps_norm: ‖∇L_RPS‖ over the soft prompts.
        exponent: a.

    Returns:
        λ in [0, 1]; 0.5 where a norm is 0 or not finite.

    Example:
        >>> round(inverse_gradient_weight(1.0, 4.0), 3)
        0.667
    """
    if not (0 < ta_norm < float("inf") and 0 < rps_norm < float("inf")):
        return 0.5
    return 1.0 / (1.0 + (ta_norm / rps_norm) ** exponent)


@dataclass
class SoftPromptTrainingArguments(CandidateTrainingArguments):
    """Arguments of [`SoftPromptTrainer`].

    > Parameters that control the loss

    Args:
        task_weighting: λ by `gradient` (inverse gradient norms), `fixed` (`ta_weight`), or `linear` (from `ta_weight` to
            `ta_weight_end` over the training).
        ta_weight: λ; with `fixed`, 0 trains without temporal analysis and 1 without recommendation pattern simulating.
        ta_weight_end: λ at the end of the training, with `linear`.
        gradient_exponent: a of the inverse gradient norms.

    > Parameters that control what is trained

    Args:
        update_llm: Also train the adapters in the LLM (the paper's ablation *w UDPSM*).

    > Parameters that control the evaluation

    Args:
        held_out_users: Share of the users that train nothing and on whom agreement with the teacher is measured.

    Defaults that differ from [`SeqRecTrainingArguments`]: Lion, `learning_rate=5e-3`, `weight_decay=1e-5`,
    `per_device_train_batch_size=20`, `num_train_epochs=10`, selection by the loss on held-out users, evaluation also before the first
    step.
    """

    learning_rate: float = 5e-3
    weight_decay: float = 1e-5
    metric_for_best_model: str | None = "loss"
    greater_is_better: bool | None = False
    eval_on_start: bool = True
    task_weighting: str = field(default="gradient", metadata={"help": f"One of {', '.join(WEIGHTINGS)}."})
    ta_weight: float = field(
        default=0.5,
        metadata={"help": "λ with fixed weighting (0: without TA, 1: without RPS), or its start with linear."},
    )
    ta_weight_end: float = field(default=0.5, metadata={"help": "λ at the end, with linear weighting."})
    gradient_exponent: float = field(default=0.5, metadata={"help": "Exponent of the inverse gradient norms."})
    update_llm: bool = field(default=False, metadata={"help": "Also train the adapters in the LLM (ablation)."})
    held_out_users: float = field(
        default=0.1, metadata={"help": "Share of the users on whom agreement with the teacher is measured."}
    )

    def __post_init__(self):
        super().__post_init__()
        if self.task_weighting not in WEIGHTINGS:
            raise ValueError(f"`task_weighting` must be one of {', '.join(WEIGHTINGS)}, got {self.task_weighting!r}.")
        for name in ("ta_weight", "ta_weight_end"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"`{name}` must be in [0, 1], got {getattr(self, name)}.")
        if not 0 <= self.held_out_users < 1:
            raise ValueError(f"`held_out_users` is a share in [0, 1), got {self.held_out_users}.")
        if self.fp16:
            raise ValueError(
                "soft prompts are trained in float32 or bf16, got fp16=True: pass `bf16=True` or neither."
            )

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks that are trained."""
        if self.task_weighting == "fixed" and self.ta_weight in (0, 1):
            return ("rps",) if self.ta_weight == 0 else ("ta",)
        return TASKS


class DistillationPromptDataset(Dataset):
    """One row per user and epoch: a history that is long enough for both tasks, and unseen items for its candidates.

    Args:
        sequences: The training part of a split.
        users: Rows of `sequences` to use; None for all.
        min_length: Shortest history, α + 2; users with fewer items are left out.
        num_items: Size of the catalogue.
        num_candidates: Items in a prompt, m.
        targets: `random` (a prefix drawn anew every epoch) or `last` (all training items).
        seed: Key of all random choices, together with epoch and row.

    Raises:
        ValueError: No user has enough items.
    """

    def __init__(
        self,
        sequences: Sequences,
        users: np.ndarray | None,
        min_length: int,
        num_items: int,
        num_candidates: int,
        targets: str = "random",
        seed: int = 0,
    ):
        users = np.arange(len(sequences)) if users is None else users
        self.users = users[sequences.lengths[users] >= min_length]
        if not len(self.users):
            longest = int(sequences.lengths[users].max(initial=0))
            raise ValueError(
                f"temporal analysis needs histories of at least α + 2 = {min_length} items, the longest of these {len(users):,} users has "
                f"{longest}: lower `alpha`."
            )
        self.left_out = len(users) - len(self.users)
        self.sequences, self.min_length, self.num_items = sequences, min_length, num_items
        self.num_candidates, self.targets, self.seed, self.epoch = num_candidates, targets, seed, 0

    def __len__(self) -> int:
        return len(self.users)

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch follows; part of the key of every random choice."""
        self.epoch = int(epoch)

    def __getitem__(self, row: int) -> dict[str, Any]:
        user = int(self.users[int(row)])
        items = self.sequences[user]
        generator = np.random.default_rng([self.seed, self.epoch, user])
        stop = len(items)
        if self.targets == "random":
            stop = int(generator.integers(self.min_length, len(items) + 1))
        return {
            "history": items[:stop],
            "unseen": draw_unseen(generator, self.num_items, self.num_candidates, items),
            "orders": np.stack([generator.permutation(self.num_candidates) for _ in TASKS]),
            "user": user,
        }


def collate_distillation(examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Rows of [`DistillationPromptDataset`] to `input_ids` (batch, longest), `unseen` (batch, m), `orders` (batch, 2, m), `labels`.

    The labels (batch, 1) only say how many rows there are, which is what the `Trainer` counts to scale the loss.
    """
    return {
        "input_ids": left_pad([row["history"] for row in examples]),
        "unseen": torch.from_numpy(np.stack([row["unseen"] for row in examples]).astype(np.int64)),
        "orders": torch.from_numpy(np.stack([row["orders"] for row in examples])),
        "labels": torch.tensor([[row["user"]] for row in examples]),
    }


class TaskBatch(NamedTuple):
    """Prompts of one task.

    Args:
        input_ids: (batch, length) the history, left-padded.
        candidates: (batch, m) item_index in random order.
        target: (batch,) the item to find among them.
        recommended: (batch, h) the teacher's best items, of which the prompt shows all but the first; None for other tasks.
    """

    input_ids: torch.Tensor
    candidates: torch.Tensor
    target: torch.Tensor
    recommended: torch.Tensor | None = None


def temporal_analysis(input_ids: torch.Tensor, unseen: torch.Tensor, order: torch.Tensor) -> TaskBatch:
    """D_0 of equation 4: the second-to-last item is masked, the last is told.

    Args:
        input_ids: (batch, length) item_index, left-padded, I_1 … I_{n-1}.
        unseen: (batch, m) distinct items outside the histories.
        order: (batch, m) a permutation per row, so that the place of the target says nothing.

    Returns:
        The prompts; the target is I_{n-2}.
    """
    target = input_ids[:, -2]
    candidates = torch.cat([target.unsqueeze(1), unseen[:, :-1]], dim=1).gather(1, order)
    return TaskBatch(input_ids, candidates, target)


def pattern_simulating(
    input_ids: torch.Tensor, recommended: torch.Tensor, unseen: torch.Tensor, order: torch.Tensor
) -> TaskBatch:
    """D_1 of equation 5: the candidates are the teacher's best h and m − h random items, the target is the teacher's best.

    Args:
        input_ids: (batch, length) item_index, left-padded.
        recommended: (batch, h) the teacher's best unseen items, best first.
        unseen: (batch, m) distinct items outside the histories; those the teacher recommends are passed over.
        order: (batch, m) a permutation per row.

    Returns:
        The prompts.
    """
    taken = (unseen.unsqueeze(2) == recommended.unsqueeze(1)).any(2)
    others = unseen.gather(1, torch.argsort(taken.int(), dim=1, stable=True))
    others = others[:, : unseen.shape[1] - recommended.shape[1]]
    candidates = torch.cat([recommended, others], dim=1).gather(1, order)
    return TaskBatch(input_ids, candidates, recommended[:, 0], recommended)


def task_batches(model, inputs: dict[str, torch.Tensor], tasks=TASKS) -> dict[str, TaskBatch]:
    """The prompts of a batch of rows, by task; the teacher is asked with the items that the prompt shows.

    Args:
        model: A DELRec model.
        inputs: From [`collate_distillation`].
        tasks: The tasks wanted.

    Returns:
        `{"ta": …, "rps": …}`.
    """
    input_ids, unseen, orders = inputs["input_ids"], inputs["unseen"], inputs["orders"]
    shown = input_ids[:, -model.config.history_length :]
    batches = {}
    if "ta" in tasks:
        batches["ta"] = temporal_analysis(shown, unseen, orders[:, 0])
    if "rps" in tasks:
        recommended = model.recommend(shown, model.config.num_recommended, seen=input_ids)
        batches["rps"] = pattern_simulating(shown, recommended, unseen, orders[:, 1])
    return batches


def agreement(model, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """How a model does on a batch of rows.

    Args:
        model: A DELRec model; with `pattern="none"` the LLM alone.
        inputs: From [`collate_distillation`].

    Returns:
        (batch,) values of `ta_accuracy`, `ta_agreement`, `rps_agreement`, `lsr_agreement`, `ta_loss` and `rps_loss`, see
        [`SoftPromptTrainer`].
    """
    batches = task_batches(model, inputs)
    found = {}
    for task, batch in (*batches.items(), ("lsr", batches["rps"])):
        recommended = batch.recommended if task == "rps" else None
        scores = model(batch.input_ids, candidates=batch.candidates, task=task, recommended=recommended).scores
        right = (scores.argmax(1) == _column(batch)).float()
        if task == "ta":
            found["ta_accuracy"] = right
            found["ta_agreement"] = (scores.argmax(1) == _expected_before(model, batch)).float()
        else:
            found[f"{task}_agreement"] = right
        if task != "lsr":
            found[f"{task}_loss"] = F.cross_entropy(scores.float(), _column(batch), reduction="none")
    return found


def _expected_before(model, batch: TaskBatch) -> torch.Tensor:
    """(batch,) the candidate that the teacher would have expected where the mask of temporal analysis stands."""
    return model.teacher.score(batch.input_ids[:, :-2], candidates=batch.candidates).argmax(1)


def _batches(model, dataset: DistillationPromptDataset, batch_size: int):
    for begin in range(0, len(dataset), batch_size):
        rows = [dataset[row] for row in range(begin, min(begin + batch_size, len(dataset)))]
        yield {name: tensor.to(model.device) for name, tensor in collate_distillation(rows).items()}


@torch.inference_mode()
def measure_agreement(model, dataset: DistillationPromptDataset, batch_size: int = 32) -> dict[str, float]:
    """Means of [`agreement`] over a data set, for models outside a trainer, such as the LLM without soft prompts.

    Args:
        model: A DELRec model in evaluation mode.
        dataset: Rows of users kept apart.
        batch_size: Rows per call of the model.

    Returns:
        Name -> mean.
    """
    parts = [agreement(model, inputs) for inputs in _batches(model, dataset, batch_size)]
    return {name: float(torch.cat([part[name] for part in parts]).mean()) for name in parts[0]}


@torch.inference_mode()
def agreement_floors(
    model, dataset: DistillationPromptDataset, sequences: Sequences, batch_size: int = 32
) -> dict[str, dict[str, float]]:
    """What agreement needs no knowledge of the user.

    Args:
        model: A DELRec model, whose teacher is asked.
        dataset: Rows of users kept apart.
        sequences: Training sequences, in which popularity is counted.
        batch_size: Rows per call of the teacher.

    Returns:
        `chance` (of a random candidate), `unprinted` (a random candidate that RPS does not print in the teacher's list), `popular` (the
        candidate with most training interactions), each with values of the agreement metrics.
    """
    counts = torch.from_numpy(np.bincount(sequences.item_index, minlength=model.config.num_items + 1)).to(model.device)
    hits: dict[str, list[torch.Tensor]] = {}
    for inputs in _batches(model, dataset, batch_size):
        for task, batch in task_batches(model, inputs).items():
            popular = counts[batch.candidates].argmax(1)
            right = (popular == _column(batch)).float()
            if task == "ta":
                hits.setdefault("ta_accuracy", []).append(right)
                hits.setdefault("ta_agreement", []).append((popular == _expected_before(model, batch)).float())
            else:
                hits.setdefault("rps_agreement", []).append(right)
                hits.setdefault("lsr_agreement", []).append(right)
    m, h = model.config.num_candidates, model.config.num_recommended
    return {
        "chance": dict.fromkeys(hits, 1 / m),
        "unprinted": {"rps_agreement": 1 / (m - h + 1)},
        "popular": {name: float(torch.cat(values).mean()) for name, values in hits.items()},
    }


def weights_fingerprint(named_tensors) -> str:
    """sha256 over names and bytes of tensors."""
    digest = hashlib.sha256()
    for name, tensor in named_tensors:
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


class SoftPromptTrainer(CandidateTrainer):
    """Trains the soft prompts of a DELRec model to imitate its teacher; the LLM stays bit by bit what it was.

    On users kept apart it measures, before training and at every evaluation: `ta_accuracy` (the masked item is found), `ta_agreement` and
    `rps_agreement` (the LLM's choice among the candidates of the prompt is the teacher's), `lsr_agreement` (the same with the prompt of
    stage 2, which does not show the teacher's list), and the losses. Floors: 1 / m; for `rps_agreement` 1 / (m − h + 1), because whoever
    sees that the printed items are not asked for has only so many left.

    Args:
        model: A [`~hf_seqrec.modeling.delrec.DELRecForSequentialRecommendation`].
        args: [`SoftPromptTrainingArguments`].
        train_dataset: The training part of a split ([`~hf_seqrec.data.Sequences`]) or a ready [`DistillationPromptDataset`].
        eval_dataset: A [`DistillationPromptDataset`] of users kept apart; made from `train_dataset` when None.
        kwargs: As in `transformers.Trainer`.

    Raises:
        TypeError: A model without soft prompts or teacher. ValueError: items outside the catalogue, or histories that are too short.
        RuntimeError: From `train`: a weight of the LLM changed.

    Example:
        >>> model, processor = DELRecForSequentialRecommendation.from_parts(                       # doctest: +SKIP
        ...     llm="google/flan-t5-large", teacher="user/sasrec", catalogue=data.catalogue)
        >>> SoftPromptTrainer(model, SoftPromptTrainingArguments("stage1"), train_dataset=split.train).train()  # doctest: +SKIP
        >>> model.save_soft_prompts("stage1/soft_prompts")                                         # doctest: +SKIP
    """

    training_args_class = SoftPromptTrainingArguments

    def __init__(self, model=None, args=None, data_collator=None, train_dataset=None, eval_dataset=None, **kwargs):
        args = self.check_args(args)
        if getattr(model, "soft_prompt", None) is None:
            raise TypeError(
                "stage 1 needs a model with soft prompts and a teacher: build a DELRec model with `pattern='soft'` and `teacher=…`."
            )
        if train_dataset is not None:
            model.set_trainable(soft_prompts=True, llm=args.update_llm)
            if args.update_llm and not any(model.is_adapter(name) for name, _ in model.named_parameters()):
                raise ValueError("`update_llm=True` needs adapters in the LLM: build the model with `adapter=…`.")
        if isinstance(train_dataset, Sequences):
            train_dataset, held_out = self.make_datasets(model, args, train_dataset)
            eval_dataset = held_out if eval_dataset is None else eval_dataset
        self._sums: dict[str, dict[str, Any]] = {}
        self._history: list[dict[str, float]] = []
        super().__init__(model, args, data_collator or collate_distillation, train_dataset, eval_dataset, **kwargs)

    @classmethod
    def make_datasets(cls, model, args: SoftPromptTrainingArguments, sequences: Sequences):
        """Rows of the users that train, and of those kept apart (None without any)."""
        cls.check_sequences(model, sequences)
        config = model.config
        # Seed 0 whatever the run's: every run is measured on the same people.
        users = np.random.default_rng(0).permutation(len(sequences))
        count = round(args.held_out_users * len(users))
        common = (config.alpha + 2, config.num_items, config.num_candidates)
        seed = args.data_seed if args.data_seed is not None else args.seed
        train = DistillationPromptDataset(sequences, np.sort(users[count:]), *common, args.targets, seed)
        if train.left_out:
            logger.warning(
                f"{train.left_out:,} of {train.left_out + len(train):,} users have fewer than alpha + 2 = {config.alpha + 2} items and are "
                "left out of stage 1."
            )
        if not count:
            return train, None
        held_out = DistillationPromptDataset(sequences, np.sort(users[:count]), *common, "last", 0)
        if 0 < args.max_eval_users < len(held_out):
            held_out.users = held_out.users[: args.max_eval_users]
        return train, held_out

    def train(self, resume_from_checkpoint=None, *args, **kwargs):
        """See `Trainer.train`; afterwards the LLM is compared with what it was."""
        if resume_from_checkpoint:
            self.args.eval_on_start = False  # the curve has its first point already
        model = self.accelerator.unwrap_model(self.model)
        before = weights_fingerprint(model.frozen_weights())
        result = super().train(resume_from_checkpoint, *args, **kwargs)
        if weights_fingerprint(model.frozen_weights()) != before:
            raise RuntimeError("a weight of the LLM changed in stage 1, which must train soft prompts only.")
        return result

    # One step ------------------------------------------------------------------------------------------------------------

    def training_step(self, model, inputs, num_items_in_batch=None):
        """Adds the gradients of both tasks to those of the step; at its end they are joined with λ."""
        bare = self.accelerator.unwrap_model(model)
        bare.train()
        inputs = self._prepare_inputs(inputs)
        count = len(inputs["labels"]) if num_items_in_batch is None else num_items_in_batch
        parameters = [parameter for parameter in bare.parameters() if parameter.requires_grad]
        for name, batch in task_batches(bare, inputs, self.args.tasks).items():
            with self.compute_loss_context_manager():
                loss = self.task_loss(bare, name, batch).sum() / count
            gradients = torch.autograd.grad(loss, parameters)
            sums = self._sums.setdefault(name, {"loss": 0.0, "gradients": [0.0] * len(parameters)})
            sums["loss"] = sums["loss"] + loss.detach()
            sums["gradients"] = [old + new for old, new in zip(sums["gradients"], gradients, strict=True)]
        if not self.accelerator.sync_gradients:
            return torch.zeros((), device=self.args.device)
        return self._join(bare, parameters)

    @staticmethod
    def task_loss(model, task: str, batch: TaskBatch) -> torch.Tensor:
        """−log P(target | prompt) over the candidates: (batch,)."""
        scores = model(batch.input_ids, candidates=batch.candidates, task=task, recommended=batch.recommended).scores
        return F.cross_entropy(scores, _column(batch), reduction="none")

    def _join(self, model, parameters) -> torch.Tensor:
        """λ ∇L_TA + (1 − λ) ∇L_RPS as the gradient of the step; returns the loss."""
        sums, self._sums = self._sums, {}
        for kept in sums.values():
            # The Trainer logs the mean over processes of what each returns.
            kept["loss"] = self.accelerator.reduce(kept["loss"], "sum")
            kept["gradients"] = [self.accelerator.reduce(gradient, "sum") for gradient in kept["gradients"]]
        soft = next(number for number, one in enumerate(parameters) if one is model.soft_prompt.weight)
        norms = {name: float(kept["gradients"][soft].norm()) for name, kept in sums.items()}
        weight = self.ta_weight(norms)
        shares = {"ta": weight, "rps": 1 - weight}
        for number, parameter in enumerate(parameters):
            parameter.grad = torch.stack(
                [shares[name] * kept["gradients"][number] for name, kept in sums.items()]
            ).sum(0)
        if self.args.update_llm and model.rank_allocator is not None:
            (model.rank_allocator.peft_config["default"].orth_reg_weight * orthogonality(model)).backward()
        losses = {f"loss_{name}": float(kept["loss"]) for name, kept in sums.items()}
        self._history.append({**losses, "ta_weight": weight})
        return torch.stack([shares[name] * kept["loss"] for name, kept in sums.items()]).sum()

    def ta_weight(self, norms: dict[str, float]) -> float:
        """λ of this step, from the norms of both gradients over the soft prompts."""
        args = self.args
        if args.task_weighting == "gradient":
            return inverse_gradient_weight(norms["ta"], norms["rps"], args.gradient_exponent)
        if args.task_weighting == "linear":
            done = self.state.global_step / max(self.state.max_steps - 1, 1)
            return args.ta_weight + done * (args.ta_weight_end - args.ta_weight)
        return args.ta_weight

    def log(self, logs, start_time=None):
        """Add the means of both losses and of λ since the last log."""
        if self._history and "loss" in logs:
            names = self._history[0]
            logs = {**logs, **{name: float(np.mean([step[name] for step in self._history])) for name in names}}
            self._history = []
        super().log(logs, start_time)

    # Agreement with the teacher ------------------------------------------------------------------------------------------

    def _carrier(self, dataset) -> DataLoader:
        if not isinstance(dataset, DistillationPromptDataset):
            raise TypeError(f"evaluation needs a DistillationPromptDataset, got {type(dataset).__name__}.")
        loader = DataLoader(dataset, self.args.eval_batch_size, collate_fn=self.data_collator)
        return self.accelerator.prepare(loader)

    def evaluation_loop(
        self, dataloader, description, prediction_loss_only=None, ignore_keys=None, metric_key_prefix="eval"
    ) -> EvalLoopOutput:
        """Losses and agreement with the teacher; `predictions` are the values of single users, one column per metric."""
        model = self.accelerator.unwrap_model(self.model)
        was_training = model.training
        model.eval()
        rows, names = [], []
        with torch.inference_mode():
            for inputs in dataloader:
                values = agreement(model, self._prepare_inputs(inputs))
                names = list(values)
                rows.append(self.accelerator.gather_for_metrics(torch.stack(list(values.values()), dim=1)))
        model.train(was_training)
        table = torch.cat(rows).float().cpu().numpy()
        metrics = {f"{metric_key_prefix}_{name}": float(mean) for name, mean in zip(names, table.mean(0), strict=True)}
        losses = [metrics[f"{metric_key_prefix}_{task}_loss"] for task in self.args.tasks]
        metrics[f"{metric_key_prefix}_loss"] = float(np.mean(losses))
        return EvalLoopOutput(predictions=table, label_ids=None, metrics=metrics, num_samples=len(table))


def _column(batch: TaskBatch) -> torch.Tensor:
    """(batch,) where the target stands among the candidates."""
    return (batch.candidates == batch.target.unsqueeze(1)).int().argmax(1)
