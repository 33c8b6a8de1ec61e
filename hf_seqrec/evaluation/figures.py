"""What all pictures of evaluations share: their look, the title that names data and protocol, and the names of lines.

matplotlib is imported when the first picture is drawn, and without pyplot: no window, no global state.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_seqrec.data.files import atomic_path

from .protocol import Protocol
from .record import EvaluationRecord


if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


# Okabe and Ito's colours: told apart by colour-blind readers. Markers and dashes carry the difference in print.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKERS = ("o", "s", "D", "^", "v", "P", "X")
GREY = "#5f5f5f"
STYLE: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 11,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.labelcolor": GREY,
    "axes.edgecolor": "#b0b0b0",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": "#e6e6e6",
    "xtick.color": GREY,
    "ytick.color": GREY,
    "lines.linewidth": 2.0,
    "lines.markersize": 6.5,
    "savefig.dpi": 160,
    "figure.facecolor": "white",
}
_METRIC_NAMES = {"hr": "HR", "ndcg": "NDCG", "mrr": "MRR", "recall": "Recall", "precision": "Precision", "map": "MAP"}


@contextmanager
def evaluation_figure(
    headline: str, protocol: Protocol, panels: int = 1, path: str | os.PathLike | None = None
) -> Iterator["Figure"]:
    """A styled figure with its title; saved to `path` when the block ends without an error."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    suffix = ".png" if path is None else Path(path).suffix.lower()
    if suffix not in (".png", ".svg", ".pdf"):
        raise ValueError(f"`path` must end in .png, .svg or .pdf, got {path}.")
    with rc_context(STYLE):
        figure = Figure(figsize=(9.0, 4.1) if panels > 1 else (7.8, 4.8), layout="constrained")
        figure.subplots(1, panels)
        layout: Any = figure.get_layout_engine()
        layout.set(rect=(0.005, 0.005, 0.985, 0.835))  # the title stands above
        figure.text(0.015, 0.965, headline, verticalalignment="top", fontsize=13, fontweight="bold")
        figure.text(0.015, 0.895, protocol.describe(), verticalalignment="top", fontsize=9.5, color=GREY)
        yield figure
        if path is not None:
            with atomic_path(path) as temporary:
                figure.savefig(temporary, format=suffix.removeprefix("."))


def shared_protocol(records: Sequence[EvaluationRecord]) -> Protocol:
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


def best_first(records: Sequence[EvaluationRecord], metric: str) -> list[EvaluationRecord]:
    """The records, the highest value of a metric first."""
    return sorted(records, key=lambda record: -record.metrics[metric])


def line_looks() -> Iterator[dict[str, Any]]:
    """Colour and marker per series; when the colours are used up, they come again with other markers."""
    for index in count():
        shift = index // len(COLOURS)
        yield {
            "color": COLOURS[index % len(COLOURS)],
            "marker": _MARKERS[(index + shift) % len(_MARKERS)],
        }


def record_label(record: EvaluationRecord, records: Sequence[EvaluationRecord]) -> str:
    """The model, with its seed where several records are of the same model."""
    alone = sum(other.model == record.model for other in records) == 1
    return record.model if alone else f"{record.model}, seed {record.seed}"


def name_lines(axes: "Axes", names: Sequence[tuple[str, float, dict[str, Any]]]) -> None:
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


def metric_name(metric: str) -> str:
    """A metric as people write it: `NDCG@10` for `ndcg@10`."""
    name, at, cutoff = metric.partition("@")
    return f"{_METRIC_NAMES.get(name, name)}{at}{cutoff}"


def bucket_bounds(lengths: np.ndarray, num_buckets: int) -> list[tuple[int, int]]:
    """First and last length of buckets that hold about equally many rows each, and no length twice."""
    if num_buckets < 1:
        raise ValueError(f"`num_buckets` must be at least 1, got {num_buckets}.")
    edges = np.unique(np.quantile(lengths, np.linspace(0, 1, num_buckets + 1)[1:], method="inverted_cdf"))
    present = np.unique(lengths)
    lows = [present[0], *(present[present > edge][0] for edge in edges[:-1])]
    return [(int(low), int(high)) for low, high in zip(lows, edges, strict=True)]


def span_text(low: int, high: int) -> str:
    """`3–7`, or `3` for a span of one number."""
    return f"{low}" if low == high else f"{low}–{high}"
