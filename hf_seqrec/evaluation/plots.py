"""Pictures of evaluations: learning curve, metric by cut-off, metric by user activity.

Every picture says in its title which data and which protocol it shows.
"""

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_seqrec.metrics import ranking_scores

from .evaluator import bootstrap_intervals
from .figures import (
    COLOURS,
    GREY,
    best_first,
    bucket_bounds,
    evaluation_figure,
    line_looks,
    metric_name,
    name_lines,
    record_label,
    shared_protocol,
    span_text,
)
from .protocol import Protocol
from .record import EvaluationRecord


if TYPE_CHECKING:
    from matplotlib.figure import Figure


def plot_learning_curve(
    log_history: Sequence[Mapping[str, Any]],
    model: str,
    dataset: str,
    protocol: Protocol,
    metric: str = "eval_ndcg@10",
    path: str | os.PathLike | None = None,
) -> "Figure":
    """Draw training loss and validation metric by epoch, from the log of a `Trainer`.

    Args:
        log_history: `trainer.state.log_history`: dictionaries with `epoch` and `loss`, or `epoch` and the metric.
        model: Name of the model, for the title.
        dataset: Name of the data, for the title.
        protocol: What the metric means.
        metric: Key of the validation metric; larger is better. The best epoch is marked.
        path: Where to save the picture (`.png`, `.svg` or `.pdf`), if at all.

    Returns:
        The matplotlib figure.

    Raises:
        ValueError: If the log holds no training loss or no such metric.

    Example:
        >>> log = [{"epoch": 1, "loss": 6.2}, {"epoch": 1, "eval_ndcg@10": 0.05}, {"epoch": 2, "loss": 5.8}]
        >>> figure = plot_learning_curve(log, "SASRec", "demo-world (simulated)", Protocol(part="validation"))
        >>> [axes.get_title(loc="left") for axes in figure.axes]
        ['Training loss', 'Validation NDCG@10']
    """
    losses = [(entry["epoch"], entry["loss"]) for entry in log_history if "loss" in entry and "epoch" in entry]
    values = [(entry["epoch"], entry[metric]) for entry in log_history if metric in entry and "epoch" in entry]
    for name, found in (("loss", losses), (metric, values)):
        if not found:
            keys = sorted({key for entry in log_history for key in entry})
            raise ValueError(f"`log_history` has no entry with 'epoch' and {name!r}, only the keys {keys}.")

    with evaluation_figure(f"Learning curve of {model} on {dataset}", protocol, panels=2, path=path) as figure:
        left, right = figure.axes
        left.set_title("Training loss")
        left.plot(*zip(*losses, strict=True), color=COLOURS[0], marker="o" if len(losses) < 40 else None, markersize=4)
        right.set_title(f"Validation {metric_name(metric.removeprefix('eval_'))}")
        right.plot(
            *zip(*values, strict=True), color=COLOURS[1], marker="o" if len(values) < 40 else None, markersize=4
        )
        best_epoch, best = max(values, key=lambda pair: pair[1])
        right.plot([best_epoch], [best], marker="o", markersize=11, color=COLOURS[1], fillstyle="none")
        right.annotate(
            f"best {best:.4f} at epoch {best_epoch:g}",
            (best_epoch, best),
            xytext=(0, 12),
            textcoords="offset points",
            horizontalalignment="center" if best_epoch < 0.75 * values[-1][0] else "right",
            color=COLOURS[1],
        )
        right.margins(y=0.18)
        for axes in figure.axes:
            axes.set_xlabel("Epoch")
            axes.locator_params(axis="x", integer=True)
    return figure


def plot_metric_by_cutoff(
    records: Sequence[EvaluationRecord],
    metric: str = "ndcg",
    path: str | os.PathLike | None = None,
) -> "Figure":
    """Draw a metric at every cut-off of the protocol, one line per record with its 95 % interval as a band.

    Args:
        records: Evaluations of the same data under the same protocol.
        metric: Name without cut-off: `"hr"`, `"ndcg"`, `"mrr"`, …
        path: Where to save the picture, if at all.

    Returns:
        The matplotlib figure.

    Raises:
        ValueError: If there is no record, the records differ in data or protocol, or lack the metric.

    Example:
        >>> from hf_seqrec.evaluation.tables import read_records
        >>> figure = plot_metric_by_cutoff(read_records("outputs/demo"), path="cutoffs.png")  # doctest: +SKIP
    """
    protocol = shared_protocol(records)
    keys = [f"{metric}@{k}{protocol.suffix}" for k in protocol.cutoffs]
    _check_metrics(records, keys)

    with evaluation_figure(f"{metric_name(metric)} by cut-off on {records[0].dataset}", protocol, path=path) as figure:
        (axes,) = figure.axes
        floor = [records[0].floor[key] for key in keys]
        axes.plot(protocol.cutoffs, floor, color=GREY, linestyle=":", linewidth=1.5)
        names: list[tuple[str, float, dict[str, Any]]] = [("random order", floor[-1], {"color": GREY})]
        for record, look in zip(best_first(records, keys[-1]), line_looks(), strict=False):
            values = [record.metrics[key] for key in keys]
            axes.plot(protocol.cutoffs, values, clip_on=False, **look)
            low, high = zip(*(record.intervals[key] for key in keys), strict=True)
            axes.fill_between(protocol.cutoffs, low, high, color=look["color"], alpha=0.18, linewidth=0)
            names.append((record_label(record, records), values[-1], look))
        axes.set_xscale("log", base=2)
        axes.set_xticks(protocol.cutoffs, [str(k) for k in protocol.cutoffs])
        axes.minorticks_off()
        axes.set_xlabel("Cut-off k (length of the recommended list)")
        axes.set_ylabel(f"{metric_name(metric)}@k, band: 95 % interval")
        axes.set_ylim(bottom=0)
        name_lines(axes, names)
    return figure


def plot_metric_by_activity(
    records: Sequence[EvaluationRecord],
    metric: str = "ndcg@10",
    num_buckets: int = 5,
    path: str | os.PathLike | None = None,
) -> "Figure":
    """Draw a metric for users with short to long histories, one series per record with 95 % intervals over users.

    Args:
        records: Evaluations of the same data under the same protocol, with their rows.
        metric: Name with cut-off.
        num_buckets: Buckets of about equally many users; fewer where many users share a length.
        path: Where to save the picture, if at all.

    Returns:
        The matplotlib figure.

    Raises:
        ValueError: If there is no record, the records differ in data or protocol, were loaded without their rows, or the metric
            is unknown.

    Example:
        >>> from hf_seqrec.evaluation.tables import read_records
        >>> records = read_records("outputs/demo", rows=True)  # doctest: +SKIP
        >>> figure = plot_metric_by_activity(records, "hr@10", path="activity.png")  # doctest: +SKIP
    """
    protocol = shared_protocol(records)
    whole = f"{metric}{protocol.suffix}"
    _check_metrics(records, [whole])
    name, _, cutoff = metric.partition("@")
    # The rows are the same in all records: same data, same protocol.
    lengths = records[0].history_lengths
    table: Any = records[0].rows
    user = table["user_id"].combine_chunks().dictionary_encode().indices.to_numpy()
    bounds = bucket_bounds(lengths, num_buckets)
    buckets = [np.flatnonzero((lengths >= low) & (lengths <= high)) for low, high in bounds]
    with evaluation_figure(
        f"{metric_name(metric)} by user activity on {records[0].dataset}", protocol, path=path
    ) as figure:
        (axes,) = figure.axes
        places = np.arange(len(bounds))
        names = []
        for index, (record, look) in enumerate(zip(best_first(records, whole), line_looks(), strict=False)):
            scores = ranking_scores(record.ranks, (int(cutoff),), metrics=[name], suffix=protocol.suffix)
            means, low, high = [], [], []
            for rows in buckets:
                of_bucket = {whole: scores[whole][rows]}
                interval = bootstrap_intervals(of_bucket, user[rows])[whole]
                means.append(of_bucket[whole].mean())
                low.append(means[-1] - interval[0])
                high.append(interval[1] - means[-1])
            shift = 0.09 * (index - (len(records) - 1) / 2)
            axes.errorbar(
                places + shift,
                means,
                yerr=np.maximum([low, high], 0),
                linewidth=1.2,
                elinewidth=2,
                clip_on=False,
                **look,
            )
            names.append((record_label(record, records), means[-1], look))
        num_users = [len(np.unique(user[rows])) for rows in buckets]
        labels = [f"{span_text(*bound)}\n{number:,} users" for bound, number in zip(bounds, num_users, strict=True)]
        axes.set_xticks(places, labels)
        axes.tick_params(axis="x", length=0)
        axes.set_xlabel("Items in the history")
        axes.set_ylabel(f"{metric_name(metric)}, bars: 95 % interval")
        axes.set_ylim(bottom=0)
        name_lines(axes, names)
    return figure


def _check_metrics(records: Sequence[EvaluationRecord], names: Sequence[str]) -> None:
    for record in records:
        missing = [name for name in names if name not in record.intervals]
        if missing:
            raise ValueError(
                f"The record of {record.model} has no ranking metric {missing[0]!r}; it has {sorted(record.intervals)}."
            )
