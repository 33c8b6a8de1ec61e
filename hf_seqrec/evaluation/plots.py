"""Pictures of evaluations: learning curve, metric by cut-off, metric by user activity.

Every picture says in its title which data and which protocol it shows. matplotlib is imported when the first picture is drawn, and
without pyplot: no window, no global state.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_seqrec.data.files import atomic_path
from hf_seqrec.metrics import ranking_scores

from .evaluator import bootstrap_intervals
from .protocol import Protocol
from .record import EvaluationRecord


if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


# Okabe and Ito's colours: told apart by colour-blind readers. Markers and dashes carry the difference in print.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKERS = ("o", "s", "D", "^", "v", "P", "X")
_GREY = "#5f5f5f"
_STYLE: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 11,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.labelcolor": _GREY,
    "axes.edgecolor": "#b0b0b0",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": "#e6e6e6",
    "xtick.color": _GREY,
    "ytick.color": _GREY,
    "lines.linewidth": 2.0,
    "lines.markersize": 6.5,
    "savefig.dpi": 160,
    "figure.facecolor": "white",
}
_METRIC_NAMES = {"hr": "HR", "ndcg": "NDCG", "mrr": "MRR", "recall": "Recall", "precision": "Precision", "map": "MAP"}


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

    with _figure(f"Learning curve of {model} on {dataset}", protocol, panels=2, path=path) as figure:
        left, right = figure.axes
        left.set_title("Training loss")
        left.plot(
            *zip(*losses, strict=True), color=_COLOURS[0], marker="o" if len(losses) < 40 else None, markersize=4
        )
        right.set_title(f"Validation {_metric_name(metric.removeprefix('eval_'))}")
        right.plot(
            *zip(*values, strict=True), color=_COLOURS[1], marker="o" if len(values) < 40 else None, markersize=4
        )
        best_epoch, best = max(values, key=lambda pair: pair[1])
        right.plot([best_epoch], [best], marker="o", markersize=11, color=_COLOURS[1], fillstyle="none")
        right.annotate(
            f"best {best:.4f} at epoch {best_epoch:g}",
            (best_epoch, best),
            xytext=(0, 12),
            textcoords="offset points",
            horizontalalignment="center" if best_epoch < 0.75 * values[-1][0] else "right",
            color=_COLOURS[1],
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
    protocol = _shared_protocol(records)
    keys = [f"{metric}@{k}{protocol.suffix}" for k in protocol.cutoffs]
    _check_metrics(records, keys)

    with _figure(f"{_metric_name(metric)} by cut-off on {records[0].dataset}", protocol, path=path) as figure:
        (axes,) = figure.axes
        floor = [records[0].floor[key] for key in keys]
        axes.plot(protocol.cutoffs, floor, color=_GREY, linestyle=":", linewidth=1.5)
        names: list[tuple[str, float, dict[str, Any]]] = [("random order", floor[-1], {"color": _GREY})]
        for record, look in zip(_best_first(records, keys[-1]), _looks(), strict=False):
            values = [record.metrics[key] for key in keys]
            axes.plot(protocol.cutoffs, values, clip_on=False, **look)
            low, high = zip(*(record.intervals[key] for key in keys), strict=True)
            axes.fill_between(protocol.cutoffs, low, high, color=look["color"], alpha=0.18, linewidth=0)
            names.append((_label(record, records), values[-1], look))
        axes.set_xscale("log", base=2)
        axes.set_xticks(protocol.cutoffs, [str(k) for k in protocol.cutoffs])
        axes.minorticks_off()
        axes.set_xlabel("Cut-off k (length of the recommended list)")
        axes.set_ylabel(f"{_metric_name(metric)}@k, band: 95 % interval")
        axes.set_ylim(bottom=0)
        _name_lines(axes, names)
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
    protocol = _shared_protocol(records)
    whole = f"{metric}{protocol.suffix}"
    _check_metrics(records, [whole])
    name, _, cutoff = metric.partition("@")
    # The rows are the same in all records: same data, same protocol.
    lengths = records[0].history_lengths
    table: Any = records[0].rows
    user = table["user_id"].combine_chunks().dictionary_encode().indices.to_numpy()
    bounds = _bucket_bounds(lengths, num_buckets)
    buckets = [np.flatnonzero((lengths >= low) & (lengths <= high)) for low, high in bounds]
    with _figure(f"{_metric_name(metric)} by user activity on {records[0].dataset}", protocol, path=path) as figure:
        (axes,) = figure.axes
        places = np.arange(len(bounds))
        names = []
        for index, (record, look) in enumerate(zip(_best_first(records, whole), _looks(), strict=False)):
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
            names.append((_label(record, records), means[-1], look))
        num_users = [len(np.unique(user[rows])) for rows in buckets]
        labels = [f"{_span(*bound)}\n{number:,} users" for bound, number in zip(bounds, num_users, strict=True)]
        axes.set_xticks(places, labels)
        axes.tick_params(axis="x", length=0)
        axes.set_xlabel("Items in the history")
        axes.set_ylabel(f"{_metric_name(metric)}, bars: 95 % interval")
        axes.set_ylim(bottom=0)
        _name_lines(axes, names)
    return figure


@contextmanager
def _figure(
    headline: str, protocol: Protocol, panels: int = 1, path: str | os.PathLike | None = None
) -> Iterator["Figure"]:
    """A styled figure with its title; saved to `path` when the block ends without an error."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    suffix = ".png" if path is None else Path(path).suffix.lower()
    if suffix not in (".png", ".svg", ".pdf"):
        raise ValueError(f"`path` must end in .png, .svg or .pdf, got {path}.")
    with rc_context(_STYLE):
        figure = Figure(figsize=(9.0, 4.1) if panels > 1 else (7.8, 4.8), layout="constrained")
        figure.subplots(1, panels)
        layout: Any = figure.get_layout_engine()
        layout.set(rect=(0.005, 0.005, 0.985, 0.835))  # the title stands above
        figure.text(0.015, 0.965, headline, verticalalignment="top", fontsize=13, fontweight="bold")
        figure.text(0.015, 0.895, protocol.describe(), verticalalignment="top", fontsize=9.5, color=_GREY)
        yield figure
        if path is not None:
            with atomic_path(path) as temporary:
                figure.savefig(temporary, format=suffix.removeprefix("."))


def _shared_protocol(records: Sequence[EvaluationRecord]) -> Protocol:
    """The protocol of all records; they must be comparable."""
    if not records:
        raise ValueError("`records` is empty: pass at least one EvaluationRecord.")
    for record in records[1:]:
        for what in ("dataset", "dataset_fingerprint", "protocol"):
            first, other = getattr(records[0], what), getattr(record, what)
            if first != other:
                raise ValueError(
                    f"One picture needs one {what}; {records[0].model} has {first}, {record.model} has {other}."
                )
    return records[0].protocol


def _check_metrics(records: Sequence[EvaluationRecord], names: Sequence[str]) -> None:
    for record in records:
        missing = [name for name in names if name not in record.intervals]
        if missing:
            raise ValueError(
                f"The record of {record.model} has no ranking metric {missing[0]!r}; it has {sorted(record.intervals)}."
            )


def _best_first(records: Sequence[EvaluationRecord], metric: str) -> list[EvaluationRecord]:
    return sorted(records, key=lambda record: -record.metrics[metric])


def _looks() -> Iterator[dict[str, Any]]:
    """Colour and marker per series; when the colours are used up, they come again with other markers."""
    for index in count():
        shift = index // len(_COLOURS)
        yield {
            "color": _COLOURS[index % len(_COLOURS)],
            "marker": _MARKERS[(index + shift) % len(_MARKERS)],
        }


def _label(record: EvaluationRecord, records: Sequence[EvaluationRecord]) -> str:
    """The model, with its seed where several records are of the same model."""
    alone = sum(other.model == record.model for other in records) == 1
    return record.model if alone else f"{record.model}, seed {record.seed}"


def _name_lines(axes: "Axes", names: Sequence[tuple[str, float, dict[str, Any]]]) -> None:
    """Write (name, last value, look) of every line beside its end, pushed apart where lines end close together."""
    low, high = axes.get_ylim()
    heights = np.array([(value - low) / (high - low) for _, value, _ in names])
    order = np.lexsort((-np.arange(len(names)), heights))  # of equal ones the first on top
    gap = 0.058  # of the height of the axes: one line of text
    placed = heights[order]
    for index in range(1, len(placed)):
        placed[index] = max(placed[index], placed[index - 1] + gap)
    placed[-1] = min(placed[-1], 1.0)
    for index in range(len(placed) - 2, -1, -1):
        placed[index] = min(placed[index], placed[index + 1] - gap)
    for name_index, height in zip(order, placed, strict=True):
        name, _, look = names[name_index]
        axes.plot([1.025], [height], transform=axes.transAxes, clip_on=False, scalex=False, scaley=False, **look)
        axes.text(1.045, height, name, color=look["color"], transform=axes.transAxes, verticalalignment="center")


def _metric_name(metric: str) -> str:
    name, at, cutoff = metric.partition("@")
    return f"{_METRIC_NAMES.get(name, name)}{at}{cutoff}"


def _bucket_bounds(lengths: np.ndarray, num_buckets: int) -> list[tuple[int, int]]:
    """First and last length of buckets that hold about equally many rows each, and no length twice."""
    if num_buckets < 1:
        raise ValueError(f"`num_buckets` must be at least 1, got {num_buckets}.")
    edges = np.unique(np.quantile(lengths, np.linspace(0, 1, num_buckets + 1)[1:], method="inverted_cdf"))
    present = np.unique(lengths)
    lows = [present[0], *(present[present > edge][0] for edge in edges[:-1])]
    return [(int(low), int(high)) for low, high in zip(lows, edges, strict=True)]


def _span(low: int, high: int) -> str:
    return f"{low}" if low == high else f"{low}–{high}"
