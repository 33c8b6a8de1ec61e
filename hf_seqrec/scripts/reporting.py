"""What the scripts share: evaluating a model into a record, comparing records by how rare the target is, and showing the progress of training."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tqdm.auto import tqdm
from transformers import ProgressCallback


if TYPE_CHECKING:
    from accelerate import Accelerator
    from rich.table import Table

    from hf_seqrec.data import Candidates, RecommendationData, Sequences, Split
    from hf_seqrec.evaluation import EvaluationRecord


def evaluate_model(
    model: Any,
    data: "RecommendationData",
    split: "Split",
    part: str = "test",
    exclude_seen: bool = True,
    cutoffs: Sequence[int] = (5, 10, 20),
    candidates: "Candidates | None" = None,
    batch_size: int | None = None,
    name: str | None = None,
    seed: int | None = None,
    notes: Mapping[str, Any] | None = None,
    progress: bool = False,
    accelerator: "Accelerator | None" = None,
) -> "EvaluationRecord":
    """Ranks the targets of one part of a split and makes the record of it.

    Args:
        model: A recommender.
        data: The data set.
        split: A split of it.
        part: `"validation"` or `"test"`.
        exclude_seen: Items of the history cannot be recommended.
        cutoffs: Cut-offs of the metrics.
        candidates: Sampled candidates; None ranks the whole catalogue and adds coverage and popularity bias.
        batch_size: Users scored at once; None for what suits the device.
        name: Name in the record; by default that of the model's class.
        seed: Seed the model was trained with.
        notes: Free JSON values for the record.
        progress: Whether to show a progress bar.
        accelerator: Shares the users out over processes.

    Returns:
        The record, not yet written.
    """
    import numpy as np

    from hf_seqrec.evaluation import EvaluationRecord, Protocol, RankingEvaluator

    full = candidates is None
    num_items = data.catalogue.num_items
    evaluator = RankingEvaluator(
        getattr(split, part),
        num_items=num_items,
        protocol=Protocol(
            split=split.name,
            part=part,
            candidates="full" if candidates is None else f"sampled{candidates.num_negatives}",
            exclude_seen=exclude_seen,
            cutoffs=tuple(cutoffs),
        ),
        candidates=candidates,
        batch_size=batch_size,
        progress=progress,
        beyond_accuracy=full,
        item_popularity=np.bincount(split.train.item_index, minlength=num_items + 1) if full else None,
        accelerator=accelerator,
    )
    return EvaluationRecord.from_result(
        evaluator(model), data, model, name=name, seed=seed, candidates=candidates, notes=notes
    )


def print_gains(records: "Sequence[EvaluationRecord]", data: "RecommendationData", train: "Sequences") -> None:
    """A table of NDCG@10: all rows and the groups of `seqrec diagnose --test cold`, with the paired difference of last and first.

    Args:
        records: At least two, of the same rows and protocol.
        data: Their data set.
        train: What the models were trained on.
    """
    from rich.table import Table

    from hf_seqrec.evaluation.diagnostics import compare_by_popularity

    first, last = records[0], records[-1]
    table = Table()
    for column in ("next item", "users", *(record.model for record in records), "last - first, 95 % interval"):
        table.add_column(column, justify="left" if column == "next item" else "right", no_wrap=True)
    gains = [compare_by_popularity(first, record, data, train) for record in records[1:]]
    for name, gain in gains[-1].items():
        table.add_row(
            name, f"{gain.num_users:,}", f"{gain.first:.4f}", *(f"{one[name].second:.4f}" for one in gains),
            f"{gain.difference:+.4f} [{gain.low:+.4f}, {gain.high:+.4f}]",
        )  # fmt: skip
    print(f"NDCG@10, {first.protocol.describe()}")
    print_whole(table)
    print("never seen: not in training; cold, warm: the 35 % least and most frequent of the others")
    if (relative := gains[-1]["all"].relative_gain) is not None:
        print(f"{last.model} relative to {first.model}, all users: {relative:+.1%}.")


def print_whole(table: "Table") -> None:
    """Prints a table as wide as its content: a terminal may break its lines, but no number is cut."""
    from rich.console import Console
    from rich.measure import Measurement

    console = Console()
    wanted = Measurement.get(console, console.options.update(max_width=200), table).maximum
    Console(width=max(console.width, wanted)).print(table)


class EpochLines(ProgressCallback):
    """A progress bar, and above it one short line per evaluation instead of a printed dictionary."""

    def __init__(self):
        super().__init__()
        self.loss: float | None = None

    def on_train_begin(self, args, state, control, **kwargs):
        """Opens the bar; into a file go the lines only."""
        if state.is_world_process_zero:
            self.training_bar = tqdm(total=state.max_steps, dynamic_ncols=True, disable=None)
        self.current_step = 0

    def on_log(self, args, state, control, logs=None, **kwargs):
        """Remembers the loss; writes a line when the validation metric comes, or at once when there is none."""
        if not state.is_world_process_zero or self.training_bar is None:
            return
        metric = f"eval_{(args.metric_for_best_model or 'ndcg@10').removeprefix('eval_')}"
        self.loss = logs.get("loss", self.loss)
        evaluates = args.eval_strategy != "no"
        if (metric if evaluates else "loss") not in logs:
            return
        line = f"epoch {round(state.epoch, 2):g}"
        if self.loss is not None:
            line += f"   loss {self.loss:.4f}"
        if evaluates:
            line += f"   validation {metric.removeprefix('eval_')} {logs[metric]:.4f}"
            before = [entry[metric] for entry in state.log_history[:-1] if metric in entry]
            line += "   best so far" if logs[metric] > max(before, default=-1.0) else ""
        self.training_bar.write(line)
