"""What must be the same for every objective so that results can be compared: evaluation, metric names, seeding, cards."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import torch
from torch.utils.data import DataLoader
from transformers import EarlyStoppingCallback, Trainer, TrainerCallback, TrainerState, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import EvalLoopOutput

from hf_seqrec.data.splits import EvaluationSet
from hf_seqrec.evaluation import Protocol, RankingEvaluator


@dataclass
class SeqRecTrainingArguments(TrainingArguments):
    """`TrainingArguments` with the defaults of this field: select on validation NDCG@10 of full ranking, keep the best.

    > Parameters that control the evaluation during training

    Args:
        exclude_seen: Items of the history cannot be recommended.
        cutoffs: Cut-offs of the metrics.
        early_stopping_patience: Stop after this many evaluations without a better value; 0 never stops early.
        ranking_batch_size: Users scored at once in evaluation; None: what suits the device.

    Defaults that differ from `TrainingArguments`: `learning_rate=1e-3`, `per_device_train_batch_size=128`,
    `num_train_epochs=100`, evaluation, logging and checkpoints once per epoch, the best checkpoint (by `ndcg@10`) loaded at the
    end, one older checkpoint kept, `remove_unused_columns=False`, `report_to="none"`, `logging_nan_inf_filter=False`,
    `ddp_find_unused_parameters=False`, `restore_callback_states_from_checkpoint=True`.
    """

    learning_rate: float = 1e-3
    per_device_train_batch_size: int = 128
    num_train_epochs: float = 100
    eval_strategy: str = "epoch"
    save_strategy: str = "epoch"
    logging_strategy: str = "epoch"
    load_best_model_at_end: bool = True
    metric_for_best_model: str | None = "ndcg@10"
    greater_is_better: bool | None = True
    save_total_limit: int | None = 1
    remove_unused_columns: bool = False
    logging_nan_inf_filter: bool = False  # a loss that is not a number must show
    restore_callback_states_from_checkpoint: bool = True  # else a resumed run would count its patience from zero
    ddp_find_unused_parameters: bool | None = False  # every parameter of a recommender takes part in its loss
    dataloader_pin_memory: bool = torch.cuda.is_available()  # without a GPU it only warns

    exclude_seen: bool = field(default=True, metadata={"help": "Items of the history cannot be recommended."})
    cutoffs: list[int] = field(default_factory=lambda: [5, 10, 20], metadata={"help": "Cut-offs of the metrics."})
    early_stopping_patience: int = field(
        default=10, metadata={"help": "Stop after this many evaluations without a better value; 0: never."}
    )
    ranking_batch_size: int | None = field(
        default=None, metadata={"help": "Users scored at once in evaluation; by default what suits the device."}
    )


class _EpochCallback(TrainerCallback):
    """Tells the data set which epoch begins, also where a sharded data loader does not."""

    def __init__(self, trainer: SeqRecTrainer):
        self.trainer = trainer

    def on_epoch_begin(self, args, state, control, **kwargs):
        if hasattr(self.trainer.train_dataset, "set_epoch"):
            self.trainer.train_dataset.set_epoch(int(state.epoch or 0))


class SeqRecTrainer(Trainer):
    """`Trainer` that evaluates recommenders by ranking the catalogue.

    `eval_dataset` is an [`~hf_seqrec.data.EvaluationSet`] (or a dict of them); `evaluate` returns `eval_ndcg@10` and so on,
    and `predict` returns the 0-based rank of each target, both through [`~hf_seqrec.evaluation.RankingEvaluator`].
    Subclasses own their loss and declare `training_args_class`.
    """

    training_args_class: type[SeqRecTrainingArguments] = SeqRecTrainingArguments
    split_name = "leave_one_out"

    def __init__(self, model=None, args=None, *positional, **kwargs):
        args = self.check_args(args)
        super().__init__(model, args, *positional, **kwargs)
        self.add_callback(_EpochCallback(self))
        if args.early_stopping_patience > 0 and args.eval_strategy != "no" and args.metric_for_best_model:
            self.add_callback(EarlyStoppingCallback(args.early_stopping_patience))

    @classmethod
    def check_args(cls, args):
        """The arguments, or default ones for None; a `TypeError` for those of another trainer."""
        if args is None:
            return cls.training_args_class(output_dir="trainer_output")
        if not isinstance(args, cls.training_args_class):
            raise TypeError(
                f"{cls.__name__} needs `args` of type {cls.training_args_class.__name__}, got {type(args).__name__}."
            )
        return args

    def train(self, resume_from_checkpoint=None, *args, **kwargs):
        """See `Trainer.train`; True resumes from the last checkpoint that is whole, a kill may have cut a later one.

        Raises:
            ValueError: True, and no checkpoint is whole.
        """
        if resume_from_checkpoint is True:
            resume_from_checkpoint = last_whole_checkpoint(self.args.output_dir)
        processor = self.processing_class
        if processor is None or hasattr(processor, "tokenizer"):
            return super().train(resume_from_checkpoint, *args, **kwargs)
        # `Trainer` takes the special tokens of every processor's tokenizer over into the model; ours has neither.
        processor.tokenizer = SimpleNamespace(eos_token_id=None, bos_token_id=None, pad_token_id=None)
        try:
            return super().train(resume_from_checkpoint, *args, **kwargs)
        finally:
            del processor.tokenizer

    def get_eval_dataloader(self, eval_dataset=None):
        """The evaluation set in a thin loader; ranking batches are made by the evaluator, by history length."""
        if isinstance(eval_dataset, str):
            eval_dataset = self.eval_dataset[eval_dataset]
        return self._carrier(self.eval_dataset if eval_dataset is None else eval_dataset)

    def get_test_dataloader(self, test_dataset):
        """See `get_eval_dataloader`."""
        return self._carrier(test_dataset)

    def _carrier(self, dataset) -> DataLoader:
        if not isinstance(dataset, EvaluationSet):
            raise TypeError(
                f"evaluation needs an EvaluationSet (for example `split.validation`), got {type(dataset).__name__}."
            )
        # It has length and items, which is all that a loader asks for.
        return DataLoader(dataset, batch_size=self.args.ranking_batch_size or 256)  # type: ignore[arg-type]

    def protocol(self, part: str = "validation") -> Protocol:
        """The protocol under which this trainer evaluates."""
        return Protocol(
            split=self.split_name,
            part=part,
            candidates="full",
            exclude_seen=self.args.exclude_seen,
            cutoffs=tuple(self.args.cutoffs),
        )

    def evaluation_loop(
        self, dataloader, description, prediction_loss_only=None, ignore_keys=None, metric_key_prefix="eval"
    ) -> EvalLoopOutput:
        """Rank every row's target; `predictions` are the ranks."""
        part = "test" if metric_key_prefix.startswith("test") else "validation"
        model = self.accelerator.unwrap_model(self.model)
        evaluator = RankingEvaluator(
            dataloader.dataset,
            num_items=model.config.num_items,
            protocol=self.protocol(part),
            batch_size=self.args.ranking_batch_size,
            accelerator=self.accelerator if self.args.world_size > 1 else None,
        )
        result = evaluator(model)
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in result.metrics.items()}
        return EvalLoopOutput(
            predictions=result.ranks, label_ids=None, metrics=metrics, num_samples=len(dataloader.dataset)
        )

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs,
    ):
        """Push model, processor, code and card as one commit to `args.hub_model_id`, see [`~hf_seqrec.hub.push_recommender`].

        Args:
            commit_message: First line of the commit's message.
            blocking: Must be True; the push is one checked commit.
            token: Hub token; `args.hub_token` or the stored login when not given.
            revision: Branch; `main` when not given.
            private: Visibility of a new repository; `args.hub_private_repo` when not given.
            kwargs: Further arguments of `push_recommender`, such as `records` and `dataset_id`.

        Returns:
            The commit on the main process, None on others.

        Raises:
            ValueError: No `processing_class`, without which titles cannot be mapped to items, or `blocking=False`.
        """
        from hf_seqrec.hub import push_recommender  # above this layer; only a push needs it

        if self.processing_class is None:
            raise ValueError(
                "pushing needs the processor that travels with the model: pass `processing_class=` to the trainer, for "
                "example `SequentialRecommendationProcessor.from_catalogue(data.catalogue, max_length)`."
            )
        if not blocking:
            raise ValueError(
                "`blocking=False` is not supported: the push is one commit that is checked before it is made."
            )
        if not self.is_world_process_zero():
            return None
        return push_recommender(
            self.accelerator.unwrap_model(self.model),
            self.processing_class,
            self.args.hub_model_id or Path(self.args.output_dir).name,
            training=self.args,
            private=self.args.hub_private_repo if private is None else private,
            revision=revision,
            commit_message=commit_message,
            token=token or self.args.hub_token,
            **kwargs,
        )


def last_whole_checkpoint(output_dir: str | os.PathLike) -> str:
    """The last checkpoint in a folder whose writing ended; the trainer's state is the last file of one.

    Raises:
        ValueError: There is none.
    """
    found = Path(output_dir).glob("checkpoint-[0-9]*")
    for folder in sorted(found, key=lambda folder: int(folder.name.rpartition("-")[2]), reverse=True):
        try:
            TrainerState.load_from_json(str(folder / TRAINER_STATE_NAME))
            return str(folder)
        except (OSError, ValueError):
            continue
    raise ValueError(f"{output_dir} holds no whole checkpoint to resume from: start anew.")
