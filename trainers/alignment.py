"""SeRALM's alignment: a language model learns to write what helps a recommender, the recommender learns to read it.

Paper: Ren et al., SIGIR 2024, section 4.4. For a history x, the next item y and texts s ~ p(s|x), equation 6 with the frozen
recommender's p0(y|x) for the marginal gives the gradient [p(y|x, s) / p0(y|x) - 1] grad log p(s|x); the 1 changes no expectation. In
the same step the recommender learns from cross-entropy of y given the same texts.
Left open by the paper, and how it is here: which texts of x are written anew (`credit`), the clipping of the ratio, how one number is
spread over tokens (a sum over the tokens of a text, which is the gradient of log p(s|x)), alpha (`beta`). Deviations: the penalty is
part of the reward (`kl_estimator`), because the gradient of a sampled log-ratio is zero in expectation; texts by old weights are
corrected by a truncated ratio; the reward is always that of the present recommender, also where the paper's generator uses an old one.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from accelerate.utils import gather_object
from datasets import Dataset
from safetensors.torch import load_file
from torch.utils.data import Sampler
from transformers import PreTrainedModel, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from hf_seqrec.data import Sequences
from hf_seqrec.data.files import atomic_path
from hf_seqrec.data.splits import EvaluationSet
from hf_seqrec.evaluation import Protocol, RankingEvaluator
from hf_seqrec.modeling.base import SequentialRecommender
from hf_seqrec.modeling.seralm import SeRALMForSequentialRecommendation, next_item_log_prob

from .data import SequenceDataset, left_pad
from .text_writer import CopyWriter, VllmWriter, Worker, Written


CREDIT = ("single_item", "batch_pool", "literal")
MODES = ("sync", "stale", "async")
RECOMMENDER, TEXTS = "recommender", "texts.json"  # in every checkpoint

Prompt = str | list[dict[str, str]]


@dataclass
class AlignmentConfig(GRPOConfig):
    """`GRPOConfig` for [`AlignmentTrainer`]; a batch counts sequences, each of which has `num_generations` samples per text.

    > Parameters that control the reward

    Args:
        credit: Which items' texts are written anew for a sequence: `single_item` (one random item of it, the others keep their text),
            `batch_pool` (every item of the mini-batch once; a text earns the sum over the sequences that contain its item) or
            `literal` (every item of the sequence, for this sequence alone).
        reward: `ratio`, p(y|x, s)/p0(y|x) - 1, or `log_ratio`, log p(y|x, s) - log p0(y|x), whose maximum is a lower bound.
        baseline: What is taken off the reward, the same for all texts of an example: `none`, `cached` (the reward of the texts that are
            stored now) or `leave_one_out` (the mean over the other samples, needs two).
        advantage_min, advantage_max: The advantage is clipped to these.
        ratio_limit: Training stops with an error when half of the ratios of a round are above this.
        kl_estimator: How `beta`, the paper's alpha, penalises distance from the original model: `reward` (each token pays for the
            log-ratios from it to the end: the gradient of KL(aligned ‖ original) of whole texts) or `k3` (TRL's term in the loss).
        token_reduction: `sum` over the tokens of a text, or their `mean`.
        regenerate_targets: The target's text is written anew too; the fused table scores with it.
        target_probability: With `single_item`, how often the target is the chosen item; None: like any other item.
        pool_size: With `batch_pool`, at most this many items of a mini-batch.
        prefixes_per_sequence: Prefixes of each training sequence in an epoch, drawn anew every epoch; 0 takes all.

    > Parameters that control the generation

    Args:
        generation_mode: `sync` (the present weights write), `stale` (a copy writes that is refreshed every `refresh_interval` steps) or
            `async` (this copy writes the next round in a thread while the present round trains; with `use_vllm` in server mode the
            vLLM server does).
        refresh_interval: Optimizer steps between refreshes (the paper: 50, its `slow_refresh` 3000).
        importance: Correction for texts by older weights: `text` (the ratio of the text's probabilities), `token` (of each token's, as in
            PPO; biased, smaller variance) or `none`.
        importance_max: The ratio is cut here.

    > Parameters that control the recommender

    Args:
        train_llm, train_recommender: Switches for ablations.
        recommender_learning_rate: Learning rate of the recommender without its text encoder.
        text_encoder_learning_rate: Learning rate of a text encoder that is trained.
        recommender_weight_decay: Weight decay of both.
        recommender_max_grad_norm: Their gradient is clipped to this norm; 0: never.
        update_knowledge: New texts replace the stored ones.
        encode_interval: With a trained text encoder, optimizer steps after which all stored texts are encoded anew.
        exclude_seen, cutoffs, ranking_batch_size: As in `SeqRecTrainingArguments`, for evaluation.

    Defaults that differ from `GRPOConfig`: `num_generations=1` (the paper's k), `beta=0.1`, `temperature=1.0`, no checkpointing of
    activations, bfloat16 only where there is a GPU, `report_to="none"`.
    """

    num_generations: int = 1  # type: ignore[assignment]
    beta: float = 0.1
    gradient_checkpointing: bool = False
    report_to: None | str | list[str] = "none"  # noqa: RUF036 (the parser of transformers needs this order)
    logging_nan_inf_filter: bool = False
    dataloader_pin_memory: bool = torch.cuda.is_available()

    credit: str = field(default="single_item", metadata={"help": "single_item, batch_pool or literal."})
    reward: str = field(default="ratio", metadata={"help": "ratio (the paper) or log_ratio."})
    baseline: str = field(default="none", metadata={"help": "none (the paper), cached or leave_one_out."})
    advantage_min: float = field(default=-1.0, metadata={"help": "Lower bound of the advantage."})
    advantage_max: float = field(default=4.0, metadata={"help": "Upper bound of the advantage."})
    ratio_limit: float = field(default=1e4, metadata={"help": "Largest median of the ratios of a round."})
    kl_estimator: str = field(default="reward", metadata={"help": "reward or k3."})
    token_reduction: str = field(default="sum", metadata={"help": "sum or mean over the tokens of a text."})
    regenerate_targets: bool = field(default=True, metadata={"help": "The target's text is written anew too."})
    target_probability: float | None = field(
        default=None, metadata={"help": "How often single_item chooses the target; by default like any other item."}
    )
    pool_size: int | None = field(default=None, metadata={"help": "Most items of a mini-batch with batch_pool."})
    prefixes_per_sequence: int = field(default=1, metadata={"help": "Prefixes of a sequence per epoch; 0: all."})
    generation_mode: str = field(default="sync", metadata={"help": "sync, stale or async."})
    refresh_interval: int = field(default=50, metadata={"help": "Optimizer steps between refreshes of the writer."})
    importance: str = field(default="text", metadata={"help": "text, token or none."})
    importance_max: float = field(default=2.0, metadata={"help": "Upper bound of the importance ratio."})
    train_llm: bool = field(default=True, metadata={"help": "Train the language model."})
    train_recommender: bool = field(default=True, metadata={"help": "Train the recommender."})
    recommender_learning_rate: float = field(default=1e-3, metadata={"help": "Learning rate of the recommender."})
    text_encoder_learning_rate: float = field(default=2e-5, metadata={"help": "Learning rate of the text encoder."})
    recommender_weight_decay: float = field(default=0.0, metadata={"help": "Weight decay of the recommender."})
    recommender_max_grad_norm: float = field(default=1.0, metadata={"help": "Gradient norm of the recommender."})
    update_knowledge: bool = field(default=True, metadata={"help": "New texts replace the stored ones."})
    encode_interval: int = field(default=100, metadata={"help": "Steps after which all texts are encoded anew."})
    exclude_seen: bool = field(default=True, metadata={"help": "Items of the history cannot be recommended."})
    cutoffs: list[int] = field(default_factory=lambda: [5, 10, 20], metadata={"help": "Cut-offs of the metrics."})
    ranking_batch_size: int | None = field(default=None, metadata={"help": "Users scored at once in evaluation."})

    def __post_init__(self):
        self.bf16: bool | None
        self.generation_batch_size: int  # type: ignore[assignment]
        for name, allowed in {
            "credit": CREDIT, "generation_mode": MODES, "reward": ("ratio", "log_ratio"), "kl_estimator": ("reward", "k3"),
            "baseline": ("none", "cached", "leave_one_out"), "token_reduction": ("sum", "mean"), "importance": ("text", "token", "none"),
        }.items():  # fmt: skip
            if getattr(self, name) not in allowed:
                raise ValueError(f"`{name}` must be one of {', '.join(allowed)}, got {getattr(self, name)!r}.")
        for name, least in {
            "num_generations": 1, "refresh_interval": 1, "encode_interval": 1, "prefixes_per_sequence": 0, "beta": 0,
        }.items():  # fmt: skip
            if getattr(self, name) < least:
                raise ValueError(f"`{name}` must be at least {least}, got {getattr(self, name)}.")
        if not self.advantage_min < self.advantage_max:
            raise ValueError(
                f"`advantage_min` must be below `advantage_max`, got {self.advantage_min} and {self.advantage_max}."
            )
        if self.target_probability is not None and not 0 <= self.target_probability <= 1:
            raise ValueError(f"`target_probability` must be between 0 and 1, got {self.target_probability}.")
        if self.baseline == "leave_one_out" and self.num_generations < 2:
            raise ValueError("`baseline='leave_one_out'` compares samples: set `num_generations` to 2 or more.")
        if not (self.train_llm or self.train_recommender):
            raise ValueError("nothing is trained: set `train_llm` or `train_recommender`.")
        if self.generation_mode == "async" and self.use_vllm and self.vllm_mode != "server":
            raise ValueError("`generation_mode='async'` with vLLM needs a server: set `vllm_mode='server'`.")
        if self.bf16 is None and not torch.cuda.is_available():
            self.bf16 = False
        # GRPO counts texts and wants whole groups of two or more of them. Here a batch counts sequences, so it is told of two each.
        texts, self.num_generations = self.num_generations, 2
        self.per_device_train_batch_size *= 2
        if self.generation_batch_size is not None and self.steps_per_generation is None:
            self.generation_batch_size *= 2
        elif self.generation_batch_size is not None:  # both are set in arguments that were saved and read again
            self.generation_batch_size = None  # type: ignore[assignment]
        super().__post_init__()
        self.num_generations = texts
        self.per_device_train_batch_size //= 2
        self.generation_batch_size //= 2


class _Part(NamedTuple):
    """One mini-batch: its sequences and the items whose texts are written anew.

    Args:
        history: (rows, length) item_index, left-padded.
        target: (rows,) item_index.
        items: (texts,) the items.
        slots: (rows, width) which of the items are replaced in each row alone, -1 for none; None: all of them, for all rows.
        member: (rows, texts) whether a text belongs to a row, which is whose reward it earns; a text of no row only fills up.
    """

    history: torch.Tensor
    target: torch.Tensor
    items: np.ndarray
    slots: np.ndarray | None
    member: np.ndarray

    @property
    def counts(self) -> np.ndarray:
        """(texts,) whether a text is of any row."""
        return np.logical_or.reduce(self.member)


class _Round(NamedTuple):
    """What is generated at once: the mini-batches of `steps_per_generation` steps, on one process."""

    key: tuple[int, int]  # epoch and number in the epoch
    rows: list[int]
    parts: list[_Part]

    @property
    def items(self) -> np.ndarray:
        """Items to write about, in the order of the parts."""
        return np.concatenate([part.items for part in self.parts])


class _RoundSampler(Sampler):
    """Rows of an epoch, whole rounds only, each as often as it is trained on; a pure function of the epoch."""

    def __init__(self, order: Callable[[int], np.ndarray], epoch: Callable[[], int], per_round: int, repeats: int):
        self.order, self.epoch, self.per_round, self.repeats = order, epoch, per_round, repeats

    def __len__(self) -> int:
        return len(self.order(0)) * self.repeats

    def __iter__(self):
        for chunk in self.order(self.epoch()).reshape(-1, self.per_round):
            for _ in range(self.repeats):
                yield from chunk.tolist()


class _AlignmentCallback(TrainerCallback):
    """Ties what `Trainer` does not know of, the recommender and the writer, into the loop."""

    def __init__(self, trainer: AlignmentTrainer):
        self.trainer = trainer

    def on_train_begin(self, args, state, control, **kwargs):
        self.trainer._begin()

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        self.trainer._finish_recommender_gradient()

    def on_optimizer_step(self, args, state, control, **kwargs):
        self.trainer.recommender.zero_grad(set_to_none=True)
        # Fused optimizers leave the version counters alone, by which a recommender knows that its fused table is old.
        torch.autograd.graph.increment_version(list(self.trainer.recommender.parameters()))

    def on_step_end(self, args, state, control, **kwargs):
        if args.train_recommender and state.global_step % args.encode_interval == 0:
            self.trainer.encode_knowledge()

    def on_train_end(self, args, state, control, **kwargs):
        self.trainer._end()


class AlignmentTrainer(GRPOTrainer):
    """Aligns a generating language model with a recommender, and the recommender with it.

    Args:
        model: The language model (decoder-only): Hub id, folder or model. With `peft_config` its un-adapted self is the original model of
            the penalty; without, the original is loaded once more from where the model came from (`beta=0` needs none).
        recommender: A warmed-up [`SeRALMForSequentialRecommendation`] with its text encoder and the vectors of `texts`.
        frozen_recommender: A backbone trained without knowledge, p0; never changed.
        train_dataset: Training `Sequences`, such as `split.train`.
        prompts: One per item, item_index 1…N in order: text, the messages of a chat, or None for an item that is not asked about.
        texts: The text of each item that the recommender's stored vectors come from, in the same order.
        args: [`AlignmentConfig`].
        eval_dataset: An `EvaluationSet` (or a dict of them) on which `evaluate` ranks with the recommender.
        data_fingerprint: Fingerprint of the data set that prompts and sequences are of; None leaves this check out.
        knowledge_key: Key of the knowledge that `texts` are; must be the recommender's, None leaves this check out.
        clean: What is done to a text before the recommender reads it, as it was to `texts`; None: nothing.
        kwargs: Further arguments of `GRPOTrainer`: `processing_class`, `peft_config`, `callbacks`, `optimizers`, `quantization_config`.

    Raises:
        TypeError: Arguments of another kind.
        ValueError: Parts that do not belong together (another catalogue, another knowledge), a language model that is no decoder, too few
            rows for a round. While training: a reward that is not finite or explodes, a language model that writes nothing.
    """

    _tag_names: ClassVar[list[str]] = ["trl", "seralm", "hf-seqrec"]
    _name = "SeRALM"
    _paper: ClassVar[dict[str, str]] = {}  # TRL's template knows arXiv only, where this paper is not

    def __init__(
        self,
        model: str | PreTrainedModel,
        recommender: SeRALMForSequentialRecommendation,
        frozen_recommender: SequentialRecommender,
        train_dataset: Sequences,
        prompts: Sequence[Prompt | None],
        texts: Sequence[str],
        args: AlignmentConfig | None = None,
        eval_dataset: EvaluationSet | dict[str, EvaluationSet] | None = None,
        data_fingerprint: str | None = None,
        knowledge_key: str | None = None,
        clean: Callable[[str], str] | None = None,
        **kwargs,
    ):
        args = AlignmentConfig("trainer_output") if args is None else args
        if not isinstance(args, AlignmentConfig):
            raise TypeError(f"AlignmentTrainer needs `args` of type AlignmentConfig, got {type(args).__name__}.")
        if not isinstance(train_dataset, Sequences):
            raise TypeError(
                f"`train_dataset` must be Sequences such as `split.train`, got {type(train_dataset).__name__}."
            )
        check_parts(
            model, recommender, frozen_recommender, train_dataset, prompts, texts, data_fingerprint, knowledge_key
        )
        self.recommender = recommender.eval()
        self.frozen_recommender = frozen_recommender.requires_grad_(False).eval()
        if not args.train_recommender:
            recommender.requires_grad_(False)
        self.prompts, self.texts, self.clean = list(prompts), list(texts), clean
        self._has_prompt = np.array([False, *(prompt is not None for prompt in prompts)])
        self.rows = SequenceDataset(
            train_dataset, recommender.config.max_length, "prefix", prefixes_per_sequence=args.prefixes_per_sequence or None,
            seed=args.seed,
        )  # fmt: skip
        self.rows_per_round = int(args.generation_batch_size)
        if len(self.rows) < self.rows_per_round:
            raise ValueError(
                f"{len(self.rows)} training rows are fewer than the {self.rows_per_round} sequences of one round of generation: lower "
                "`per_device_train_batch_size` or `steps_per_generation`."
            )
        self._orders: dict[int, np.ndarray] = {}
        self._round: _Round | None = None
        self._scored: list[dict[str, Any]] | None = None
        self._writer: CopyWriter | VllmWriter | None = None
        self._worker: Worker | None = None
        self._ahead: tuple[_Round, Future[Written]] | None = None
        self._wrote: Written | None = None
        self._since_encoded = 0
        rows = Dataset.from_dict({"row": range(len(self.rows))})
        super().__init__(model, [self._advantages], args, rows, eval_dataset, **kwargs)
        if self.is_deepspeed_enabled or self.is_fsdp_enabled:
            raise ValueError(
                "AlignmentTrainer trains on one process or with data parallelism (DDP), not with FSDP or DeepSpeed."
            )
        if not args.train_llm:
            self.beta = 0.0  # no penalty to compute
        self.recommender.to(self.accelerator.device)
        self.frozen_recommender.to(self.accelerator.device)
        self.add_callback(_AlignmentCallback(self))
        if args.generation_mode != "sync":
            self._writer = self._make_writer()
        if args.generation_mode == "async" and args.use_vllm and self.accelerator.num_processes > 1:
            raise ValueError(
                "`generation_mode='async'` with vLLM works on one process: TRL gathers prompts of all processes in one call."
            )

    # Rounds ----------------------------------------------------------------------------------------------------------------

    def _order(self, epoch: int) -> np.ndarray:
        """Rows of an epoch in their order, whole rounds only."""
        if epoch not in self._orders:
            order = np.arange(len(self.rows))
            if self.shuffle_dataset:
                np.random.default_rng([self.args.seed, epoch]).shuffle(order)
            keep = len(order) - len(order) % self.rows_per_round
            self._orders = {**{e: o for e, o in self._orders.items() if e >= epoch - 1}, epoch: order[:keep]}
        return self._orders[epoch]

    def _repeats(self) -> int:
        return self.num_iterations * self.args.steps_per_generation

    def _get_train_sampler(self, dataset=None) -> Sampler:
        # `state.epoch` is whole at the start of an epoch, and says where a resumed run is.
        return _RoundSampler(self._order, lambda: int(self.state.epoch or 0), self.rows_per_round, self._repeats())

    def _key(self, ahead: int = 0) -> tuple[int, int]:
        """Epoch and number of the present round, or of one that follows."""
        return divmod(self._step // self._repeats() + ahead, len(self._order(0)) // self.rows_per_round)

    def _plan(self, key: tuple[int, int]) -> _Round:
        """What is written in a round on this process; a pure function of the seed and the round."""
        epoch, number = key
        size = self.rows_per_round // self.accelerator.num_processes
        begin = number * self.rows_per_round + self.accelerator.process_index * size
        rows = self._order(epoch)[begin : begin + size].tolist()
        self.rows.set_epoch(epoch)
        per_part = size // self.args.steps_per_generation
        parts = [self._part(rows[start : start + per_part], epoch) for start in range(0, size, per_part)]
        missing = self._most(sum(len(part.items) for part in parts)) - sum(len(part.items) for part in parts)
        if missing:  # the processes gather what they wrote, so all write equally many texts
            last = parts[-1]
            parts[-1] = last._replace(
                items=np.concatenate([last.items, np.resize(last.items, missing)]),
                member=np.pad(last.member, ((0, 0), (0, missing))),
            )
        return _Round(key, rows, parts)

    def _most(self, count: int) -> int:
        if self.accelerator.num_processes == 1 or self.args.credit == "single_item":
            return count
        return int(self.accelerator.gather(torch.tensor([count], device=self.accelerator.device)).max())

    def _part(self, rows: list[int], epoch: int) -> _Part:
        examples = [self.rows[row]["item_index"] for row in rows]
        history = left_pad([example[:-1] for example in examples])
        target = torch.tensor([int(example[-1]) for example in examples])
        generators = [np.random.default_rng([self.args.seed, epoch, row, 2]) for row in rows]
        args = self.args
        choices = [np.unique(example if args.regenerate_targets else example[:-1]) for example in examples]
        choices = [own[self._has_prompt[own]] for own in choices]
        number = np.arange(len(rows))
        if args.credit == "single_item":
            chosen = [self._one_item(*row) for row in zip(choices, examples, generators, strict=True)]
            has = np.array([item > 0 for item in chosen])  # nothing is known of any item of some rows
            items = np.where(has, chosen, self._has_prompt.argmax())
            return _Part(history, target, items, np.where(has, number, -1)[:, None], np.diag(has))
        if args.credit == "literal":
            owner = np.repeat(number, [len(own) for own in choices])
            slots = np.full((len(rows), max(1, *map(len, choices))), -1)
            for row, own in enumerate(choices):
                slots[row, : len(own)] = np.flatnonzero(owner == row)
            return self._filled(_Part(history, target, np.concatenate(choices), slots, owner == number[:, None]))
        items = np.unique(np.concatenate(choices))
        if args.pool_size is not None and len(items) > args.pool_size:
            items = np.sort(generators[0].permutation(items)[: args.pool_size])
        return self._filled(_Part(history, target, items, None, np.stack([np.isin(items, own) for own in choices])))

    def _filled(self, part: _Part) -> _Part:
        """With a text that counts nothing where nothing is known of any item, because TRL wants a text to generate."""
        if len(part.items):
            return part
        return part._replace(items=np.array([self._has_prompt.argmax()]), member=np.zeros((len(part.target), 1), bool))

    def _one_item(self, choices: np.ndarray, example: np.ndarray, generator: np.random.Generator) -> int:
        share, target = self.args.target_probability, int(example[-1])
        if share is not None and self.args.regenerate_targets and self._has_prompt[target]:
            others = np.setdiff1d(choices, [target])
            return target if generator.random() < share or not len(others) else int(generator.choice(others))
        return int(generator.choice(choices)) if len(choices) else 0

    # Generation ------------------------------------------------------------------------------------------------------------

    def _make_writer(self) -> CopyWriter | VllmWriter:
        if self.use_vllm:
            return VllmWriter(self.vllm_generation, self.num_generations)
        return CopyWriter(
            self.accelerator.unwrap_model(self.model),
            self.generation_config,
            self._tokenizer.pad_token_id,
            self.args.generation_batch_size * self.num_generations,  # a round at once, as TRL does
            self.accelerator.autocast,
        )

    def _seed_of(self, key: tuple[int, int]) -> int:
        return int(np.random.SeedSequence([self.args.seed, self.accelerator.process_index, *key]).generate_state(1)[0])

    def _generate_single_turn(self, prompt_ids, *positional, **kwargs):
        """Texts and, where older weights write, their log-probabilities."""
        if self._writer is None or self._round is None:
            return super()._generate_single_turn(prompt_ids, *positional, **kwargs)
        begin = time.perf_counter()
        if self._worker is None:
            self._refresh_if_due()
            written = self._writer.write(prompt_ids, self._seed_of(self._round.key))
        else:
            ahead, self._ahead = self._ahead, None
            if ahead is not None and ahead[0].key == self._round.key:
                written = ahead[1].result()
            else:  # the first round of this run
                if ahead is not None:
                    ahead[1].result()
                self._refresh_if_due()
                written = self._worker.submit(prompt_ids, self._seed_of(self._round.key)).result()
            self._write_ahead()
        self._wrote = written
        self._metric("generation/wait_seconds", time.perf_counter() - begin)
        self._metric("generation/seconds", written.seconds)
        return written.completion_ids, written.logprobs

    def _refresh_if_due(self) -> None:
        assert self._writer is not None
        if self.state.global_step - self._writer.step >= self.args.refresh_interval:
            self._writer.refresh(self.state.global_step)
            self._metric("generation/refreshes", 1.0)

    def _write_ahead(self) -> None:
        """Start writing the next round; the thread is idle here, so that its weights can be exchanged."""
        assert self._worker is not None
        self._refresh_if_due()
        following = self._plan(self._key(ahead=1))
        prompt_ids, _, _ = self._tokenize_prompts(self._prompts_of(following))
        self._ahead = following, self._worker.submit(prompt_ids, self._seed_of(following.key))

    def _prompts_of(self, this: _Round) -> list[Any]:
        return [self.prompts[item - 1] for item in this.items for _ in range(self.num_generations)]

    def _prepare_inputs(self, generation_batch):
        """The mini-batch of this step; at the start of a round its texts are written and scored first."""
        every = self._repeats()
        if self._step % every == 0 or self._scored is None:
            self._round = self._take_plan()
            if isinstance(generation_batch, list) and [row["row"] for row in generation_batch] != self._round.rows:
                raise RuntimeError(
                    "the rows of this round are not those that were planned; this is a defect, please report it."
                )
            inputs = [{"prompt": prompt} for prompt in self._prompts_of(self._round)]
            self._wrote = None
            out = self._generate_and_score_completions(inputs)
            self._scored = self._split(self._round, out)
        return self._scored[self._step % self.args.steps_per_generation]

    def _take_plan(self) -> _Round:
        key = self._key()
        if self._ahead is not None and self._ahead[0].key == key:
            return self._ahead[0]
        return self._plan(key)

    # Reward ----------------------------------------------------------------------------------------------------------------

    def _log_prob(self, part: _Part, vectors: torch.Tensor) -> torch.Tensor:
        """The log-probability of each target with each sample: (texts, k, dim) -> (rows, k)."""
        device, samples = vectors.device, vectors.shape[1]
        history, target = part.history.to(device), part.target.to(device)
        if part.slots is None:
            real = torch.from_numpy(part.counts).to(device)
            items = torch.from_numpy(part.items).to(device)[real]
            found = [self.recommender.log_prob(history, target, (items, vectors[real, k])) for k in range(samples)]
            return torch.stack(found, 1)
        slots = torch.from_numpy(part.slots).to(device)
        items = torch.from_numpy(part.items).to(device)[slots].masked_fill(slots < 0, 0)  # 0 replaces nothing
        chosen = vectors[slots].transpose(1, 2)  # (rows, k, slots, dim)
        found = self.recommender.log_prob_with(
            history.repeat_interleave(samples, 0), target.repeat_interleave(samples),
            items.repeat_interleave(samples, 0), chosen.flatten(0, 1),
        )  # fmt: skip
        return found.view(-1, samples)

    @torch.no_grad()
    def _advantages(self, prompts, completions, **kwargs) -> list[float]:
        """What every text of the round is worth; TRL's reward function.

        Raises:
            ValueError: All texts are empty, a ratio is not finite, or half of them are beyond `ratio_limit`.
        """
        assert self._round is not None
        texts = [c if isinstance(c, str) else c[0]["content"] for c in completions]
        texts = texts if self.clean is None else [self.clean(text) for text in texts]
        self._check_texts(texts)
        samples = self.num_generations
        vectors = self.recommender.encode_all(self.recommender.tokenize(texts)).to(self.accelerator.device)
        vectors = vectors.view(-1, samples, vectors.shape[-1])
        out, ratios, begin = [], [], 0
        self._part_vectors = []
        for part in self._round.parts:
            own = vectors[begin : begin + len(part.items)]
            begin += len(part.items)
            self._part_vectors.append(own)
            history, target = part.history.to(own.device), part.target.to(own.device)
            without = next_item_log_prob(self.frozen_recommender, history, target).unsqueeze(1)
            log_ratio = self._log_prob(part, own) - without
            self._check_ratio(log_ratio, part)
            ratios.append(log_ratio.exp())
            reward = log_ratio if self.args.reward == "log_ratio" else log_ratio.exp() - 1
            advantage = (reward - self._baseline(reward, part, without)).clamp(
                self.args.advantage_min, self.args.advantage_max
            )
            member = torch.from_numpy(part.member).to(advantage)
            out.append((member.T @ advantage).flatten())  # a text earns the rewards of all rows that it belongs to
        ratio = torch.cat([r.flatten() for r in ratios])
        if float(ratio.median()) > self.args.ratio_limit:
            raise ValueError(
                f"half of the ratios p(y|x, s)/p0(y|x) of a round are above {float(ratio.median()):.3g} (`ratio_limit` "
                f"{self.args.ratio_limit:g}): the frozen recommender gives the next items next to nothing. Was it trained on these data?"
            )
        self._metric("ratio/mean", float(ratio.mean()))
        self._metric("ratio/median", float(ratio.median()))
        self._metric("ratio/max", float(ratio.max()))
        advantages = torch.cat(out)
        self._metric("advantage/std", float(advantages.std(correction=0)))
        bounds = (self.args.advantage_min, self.args.advantage_max)
        self._metric("advantage/clipped", float(sum((advantages == bound).float().mean() for bound in bounds)))
        if self.args.update_knowledge:
            self._store(texts, vectors)
        self._round_texts = texts
        return advantages.tolist()

    def _baseline(self, reward: torch.Tensor, part: _Part, without: torch.Tensor) -> torch.Tensor | float:
        """Constant for the texts of an example, so it moves no expectation: (rows, 1), (rows, k) or 0."""
        if self.args.baseline == "leave_one_out":
            return (reward.sum(1, keepdim=True) - reward) / (reward.shape[1] - 1)
        if self.args.baseline == "cached":
            device = reward.device
            log_ratio = (
                self.recommender.log_prob(part.history.to(device), part.target.to(device)).unsqueeze(1) - without
            )
            return log_ratio if self.args.reward == "log_ratio" else log_ratio.exp() - 1
        return 0.0

    def _check_texts(self, texts: list[str]) -> None:
        empty = np.mean([not text.strip() for text in texts])
        self._metric("texts/empty", float(empty))
        self._metric("texts/different", len(set(texts)) / len(texts))
        if empty == 1:
            raise ValueError(
                "the language model wrote nothing: all texts of a round are empty or consist of special tokens. Check the prompt and the "
                "chat template, or lower `learning_rate`."
            )

    def _check_ratio(self, log_ratio: torch.Tensor, part: _Part) -> None:
        if bool(torch.isfinite(log_ratio.exp()).all()):
            return
        row = int((~torch.isfinite(log_ratio.exp())).any(1).nonzero()[0])
        raise ValueError(
            f"the reward is not finite: log p(y|x, s) - log p0(y|x) is {log_ratio[row].tolist()} at step {self.state.global_step} for the "
            f"history {part.history[row].tolist()[-10:]} and the target {int(part.target[row])}. One of the recommenders has diverged; "
            "lower `recommender_learning_rate` or look at the frozen one."
        )

    def _store(self, texts: list[str], vectors: torch.Tensor) -> None:
        """The first sample of each item becomes its stored text, on all processes."""
        assert self._round is not None
        counts = np.concatenate([part.counts for part in self._round.parts])
        first = {
            int(item): (texts[number * self.num_generations], vectors[number, 0].cpu().numpy())
            for number, item in enumerate(self._round.items)
            if counts[number]
        }
        for found in gather_object([first]) if self.accelerator.num_processes > 1 else [first]:
            items = torch.tensor(list(found))
            self.recommender.set_knowledge(items, torch.from_numpy(np.stack([vector for _, vector in found.values()])))
            for item, (text, _) in found.items():
                self.texts[item - 1] = text

    @torch.no_grad()
    def encode_knowledge(self) -> None:
        """Encode all stored texts with the present text encoder; nothing to do where it is not trained."""
        if not self.recommender.config.train_text_encoder:
            return
        vectors = self.recommender.encode_all(self.recommender.tokenize(self.texts))
        self.recommender.set_knowledge(torch.arange(1, len(vectors) + 1), vectors)

    def _calculate_rewards(self, *args, **kwargs):
        self._rewards = super()._calculate_rewards(*args, **kwargs)
        return self._rewards

    def _generate_and_score_completions(self, inputs):
        """TRL's, with the advantages as they are: no group is subtracted, nothing is scaled."""
        out = super()._generate_and_score_completions(inputs)
        size, process = len(inputs), self.accelerator.process_index
        out["advantages"] = self._rewards[:, 0][process * size : (process + 1) * size]
        # TRL logged those that it had computed itself.
        self._logs["advantages"].clear()
        self._logs["advantages"].extend(self._rewards[:, 0].tolist())
        return out

    def _split(self, this: _Round, out: dict[str, Any]) -> list[dict[str, Any]]:
        """One dictionary per mini-batch from that of the round."""
        parts, begin, samples = [], 0, self.num_generations
        names = [name for name, value in out.items() if isinstance(value, torch.Tensor) and value.ndim]
        for part, vectors in zip(this.parts, self._part_vectors, strict=True):
            end = begin + len(part.items) * samples
            inputs: dict[str, Any] = {name: out[name][begin:end] for name in names}
            inputs["counts"] = torch.from_numpy(part.counts).float().to(vectors.device).repeat_interleave(samples)
            inputs["part"], inputs["vectors"] = part, vectors
            inputs["step"] = self.state.global_step if self._wrote is None else self._wrote.step
            if self.recommender.config.train_text_encoder:
                inputs["tokens"] = self.recommender.tokenize(self._round_texts[begin:end])
            parts.append(inputs)
            begin = end
        return parts

    # Losses ----------------------------------------------------------------------------------------------------------------

    def _compute_loss(self, model, inputs):
        accumulation = self.current_gradient_accumulation_steps
        loss = torch.zeros((), device=self.accelerator.device)
        if self.args.train_llm:
            loss = loss + self._policy_loss(model, inputs) / accumulation
        if self.args.train_recommender:
            loss = loss + self._recommender_loss(inputs) / accumulation
        return loss

    def _policy_loss(self, model, inputs) -> torch.Tensor:
        """Minus the objective of the language model: the mean over examples and samples of the sum over their texts and tokens."""
        args, beta = self.args, self.beta
        ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1)
        attention = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1)
        log_probs, entropies, _ = self._get_per_token_logps_and_entropies(
            model, ids, attention, inputs["completion_ids"].shape[1], compute_entropy=True
        )
        mask = inputs["completion_mask"] * inputs["counts"].unsqueeze(1)
        held, advantage = log_probs.detach(), inputs["advantages"].unsqueeze(1)
        ratio = self._importance(held, inputs, mask)
        weight = ratio * advantage.expand_as(held)
        penalty = torch.zeros_like(log_probs)
        if beta:
            drift = (held - inputs["ref_per_token_logps"]) * mask
            if args.kl_estimator == "reward":
                to_the_end = (
                    drift.flip(1).cumsum(1).flip(1)
                )  # what a token can still change: its own log-ratio and later ones
                weight = weight - beta * ratio * to_the_end
            else:
                gap = inputs["ref_per_token_logps"] - log_probs
                penalty = beta * ratio * (gap.exp() - gap - 1)
            self._metric("kl/token", self._mean(drift, mask))
            self._metric("kl/text", self._mean(drift.sum(1), inputs["counts"]))
        per_token = (penalty - weight * log_probs) * mask
        if args.token_reduction == "mean":
            per_token = per_token / mask.sum(1, keepdim=True).clamp(min=1)
        self._metric("entropy", self._mean(entropies, mask))
        return per_token.sum() / (len(inputs["part"].target) * self.num_generations)

    def _importance(self, held: torch.Tensor, inputs, mask: torch.Tensor) -> torch.Tensor:
        """Truncated ratio of the present to the writing probabilities, (texts, 1) or (texts, length)."""
        wrote = inputs.get("sampling_per_token_logps", inputs.get("old_per_token_logps"))
        self._metric("generation/staleness", float(self.state.global_step - inputs["step"]))
        if wrote is None:
            return torch.ones_like(held[:, :1])
        log_ratio = torch.nan_to_num((held - wrote) * mask, nan=0.0)  # NaN: vLLM gave no number for a token
        if self.args.importance != "token":
            log_ratio = log_ratio.sum(1, keepdim=True)
        ratio = log_ratio.exp()
        self._metric("importance/mean", self._mean(ratio, inputs["counts"].unsqueeze(1)))
        self._metric("importance/max", float(ratio.max()))
        self._metric(
            "importance/cut", self._mean((ratio > self.args.importance_max).float(), inputs["counts"].unsqueeze(1))
        )
        return torch.ones_like(ratio) if self.args.importance == "none" else ratio.clamp(max=self.args.importance_max)

    def _recommender_loss(self, inputs) -> torch.Tensor:
        """Cross-entropy of the next item given the texts that were just written."""
        self.recommender.train()
        vectors = inputs["vectors"]
        if "tokens" in inputs:
            tokens = inputs["tokens"].batch(range(len(inputs["tokens"].rows)), vectors.device)
            vectors = self.recommender.encode_texts(*tokens).view_as(vectors)
        loss = -self._log_prob(inputs["part"], vectors).mean()
        self.recommender.eval()
        self._metric("recommender/loss", float(loss.detach()))
        return loss

    def _mean(self, values: torch.Tensor, mask: torch.Tensor) -> float:
        mask = mask.expand_as(values)
        return float((values.detach() * mask).sum() / mask.sum().clamp(min=1))

    def _metric(self, name: str, value: float) -> None:
        """Note a number of this process for the next log."""
        self._metrics["train" if self.model.training else "eval"][name].append(value)

    # The recommender in the training loop ------------------------------------------------------------------------------------

    def create_optimizer(self, model=None):
        """One optimizer with groups of their own for the recommender and its text encoder."""
        optimizer = super().create_optimizer(model)
        if self.args.train_recommender:
            encoder = self.recommender.text_encoder
            texts = [] if encoder is None else [p for p in encoder.parameters() if p.requires_grad]
            known = {id(parameter) for parameter in texts}
            own = [p for p in self.recommender.parameters() if p.requires_grad and id(p) not in known]
            decay = self.args.recommender_weight_decay
            optimizer.add_param_group(
                {"params": own, "lr": self.args.recommender_learning_rate, "weight_decay": decay}
            )
            if texts:
                optimizer.add_param_group(
                    {"params": texts, "lr": self.args.text_encoder_learning_rate, "weight_decay": decay}
                )
        return optimizer

    @torch.no_grad()
    def _finish_recommender_gradient(self) -> None:
        """Mean over processes and clipping; `Trainer` does both for the language model only."""
        gradients = [p.grad for p in self.recommender.parameters() if p.grad is not None]
        if not gradients:
            return
        if self.accelerator.num_processes > 1:
            for gradient in gradients:
                gradient.copy_(self.accelerator.reduce(gradient, "mean"))
        limit = self.args.recommender_max_grad_norm or math.inf
        norm = torch.nn.utils.clip_grad_norm_([p for p in self.recommender.parameters() if p.grad is not None], limit)
        self._metric("recommender/grad_norm", float(norm))

    def _begin(self) -> None:
        """Where a run starts or goes on: the writer has the loaded weights, and rounds are counted from the right one."""
        accumulation, micro = (
            self.args.gradient_accumulation_steps,
            len(self._order(0)) // self.rows_per_round * self._repeats(),
        )
        epoch, update = divmod(self.state.global_step, math.ceil(micro / accumulation))
        self._step = epoch * micro + update * accumulation
        self._scored = None
        if self._writer is not None:
            self._writer.refresh(self.state.global_step)
        if self.args.generation_mode == "async" and self._writer is not None:
            self._worker = Worker(self._writer, self.accelerator.device)

    def _end(self) -> None:
        if self._worker is not None:
            self._worker.close()
        self._worker = self._ahead = None

    def train(self, *args, **kwargs):
        """See `Trainer.train`; the writing thread ends with it, also after an error."""
        try:
            return super().train(*args, **kwargs)
        finally:
            self._end()

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix: str = "eval") -> dict[str, float]:
        """Rank with the recommender and its stored knowledge.

        Args:
            eval_dataset: An `EvaluationSet`, or a dict of them; the trainer's by default.
            ignore_keys: Unused.
            metric_key_prefix: Begins the metrics' names.

        Returns:
            `eval_ndcg@10` and so on.

        Raises:
            TypeError: The data is no `EvaluationSet`.
        """
        eval_dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        if isinstance(eval_dataset, dict):
            found: dict[str, float] = {}
            for name, own in eval_dataset.items():
                found |= self.evaluate(own, metric_key_prefix=f"{metric_key_prefix}_{name}")
            return found
        if not isinstance(eval_dataset, EvaluationSet):
            raise TypeError(
                f"evaluation needs an EvaluationSet such as `split.validation`, got {type(eval_dataset).__name__}."
            )
        self.encode_knowledge()
        part = "test" if metric_key_prefix.startswith("test") else "validation"
        protocol = Protocol(
            part=part, candidates="full", exclude_seen=self.args.exclude_seen, cutoffs=tuple(self.args.cutoffs)
        )
        evaluator = RankingEvaluator(
            eval_dataset, self.recommender.config.num_items, protocol, batch_size=self.args.ranking_batch_size,
            accelerator=self.accelerator if self.args.world_size > 1 else None,
        )  # fmt: skip
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in evaluator(self.recommender).metrics.items()}
        training = self.model.training
        self.model.eval()  # TRL's log would mix the metrics of training in
        self.log(metrics)
        self.model.train(training)
        self.control: Any = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _save(self, output_dir=None, state_dict=None) -> None:
        super()._save(output_dir, state_dict)
        if not self.args.should_save:
            return
        folder = Path(output_dir or self.args.output_dir)
        self.recommender.save_pretrained(folder / RECOMMENDER)
        with atomic_path(folder / TEXTS) as temporary:
            Path(temporary).write_text(json.dumps(self.texts, ensure_ascii=False))

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        self._load_recommender(Path(resume_from_checkpoint))

    def _load_best_model(self) -> None:
        super()._load_best_model()
        self._load_recommender(Path(self.state.best_model_checkpoint))

    def _load_recommender(self, folder: Path) -> None:
        """Weights, knowledge and texts of a checkpoint.

        Raises:
            OSError: The checkpoint has none.
        """
        missing = [name for name in (f"{RECOMMENDER}/model.safetensors", TEXTS) if not (folder / name).is_file()]
        if missing:
            raise OSError(f"{folder} is no checkpoint of AlignmentTrainer: {', '.join(missing)} is missing.")
        state = load_file(folder / RECOMMENDER / "model.safetensors")
        encoder = folder / RECOMMENDER / "text_encoder" / "model.safetensors"
        if encoder.is_file():
            state |= {f"text_encoder.{name}": tensor for name, tensor in load_file(encoder).items()}
        found = self.recommender.load_state_dict(state, strict=False)
        lost = [name for name in found.missing_keys if not name.startswith("text_encoder.")]
        if lost or found.unexpected_keys:
            raise ValueError(f"the recommender in {folder} is another one: {(lost or found.unexpected_keys)[:3]}.")
        self.texts = json.loads((folder / TEXTS).read_text())


def check_parts(
    model, recommender, frozen_recommender, sequences, prompts, texts, data_fingerprint=None, knowledge_key=None
) -> None:
    """Refuse parts that do not belong together, before anything is trained or written.

    Raises:
        TypeError: Models of the wrong kind.
        ValueError: What does not fit, with both sides and what to do.
    """
    if not isinstance(recommender, SeRALMForSequentialRecommendation):
        raise TypeError(
            f"`recommender` must be a SeRALMForSequentialRecommendation that was warmed up, got {type(recommender).__name__}."
        )
    if isinstance(frozen_recommender, SeRALMForSequentialRecommendation):
        raise TypeError("`frozen_recommender` must know no texts: give the plain backbone.")
    if not isinstance(model, str) and getattr(model.config, "is_encoder_decoder", False):
        raise ValueError(
            f"{type(model).__name__} is an encoder-decoder; alignment runs on TRL's GRPO, which trains decoder-only language models. "
            "Encoder-decoders can write knowledge, but not be aligned."
        )
    if recommender.text_encoder is None:
        raise ValueError(
            "the recommender has no text encoder to read new texts with: load it with `text_encoder=True`."
        )
    count = recommender.config.num_items
    for name, found in {
        "the frozen recommender": frozen_recommender.config.num_items,
        "`prompts`": len(prompts),
        "`texts`": len(texts),
    }.items():
        if found != count:
            raise ValueError(f"the recommender knows {count} items, {name} {found}: they are of different catalogues.")
    if len(sequences.item_index) and int(sequences.item_index.max()) > count:
        raise ValueError(
            f"the sequences name item_index {int(sequences.item_index.max())}, the recommender knows {count} items."
        )
    known = {
        "the recommender": recommender.config.data_fingerprint,
        "the frozen recommender": frozen_recommender.config.data_fingerprint,
        "the data": data_fingerprint,
    }
    if len({value for value in known.values() if value is not None}) > 1:
        told = ", ".join(f"{name}: {value}" for name, value in known.items())
        raise ValueError(
            f"recommenders and data are of different catalogues ({told}): train both recommenders on these data."
        )
    own = recommender.config.knowledge_key
    if knowledge_key is not None and own is not None and own != knowledge_key:
        raise ValueError(
            f"the recommender was warmed up on knowledge {own}, the texts are of knowledge {knowledge_key} (another language model, adapter, "
            "prompt, sampling or item text): warm up on these texts, or give those that it knows."
        )
    if all(prompt is None for prompt in prompts):
        raise ValueError("there is no prompt for any item: the catalogue has no metadata to ask about.")
    if not bool(recommender.knowledge.any()):
        raise ValueError(
            "the recommender has no knowledge yet: set the vectors of `texts` and warm it up on them first."
        )
