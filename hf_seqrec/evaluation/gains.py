"""Who gains: the difference of two methods over all users and by their activity, averaged over seeds, with intervals."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hf_seqrec.metrics import ranking_scores

from .evaluator import bootstrap_intervals
from .figures import evaluation_figure, metric_name
from .protocol import Protocol
from .record import EvaluationRecord
from .significance import check_comparable


if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.table import Table


@dataclass(frozen=True)
class Gain:
    """A difference over some users.

    Attributes:
        shortest, longest: Number of items in the histories.
        num_users: Users.
        base, other: Mean of the metric, over users and seeds.
        difference: `other - base`.
        low, high: Its bootstrap 95 % interval over users.
    """

    shortest: int
    longest: int
    num_users: int
    base: float
    other: float
    difference: float
    low: float
    high: float

    @property
    def span(self) -> str:
        """Number of items in the histories, in words: `4` or `7–9`."""
        return str(self.shortest) if self.shortest == self.longest else f"{self.shortest}–{self.longest}"

    @property
    def relative(self) -> float | None:
        """Difference over base; None where base is 0."""
        return self.difference / self.base if self.base else None


@dataclass(frozen=True)
class Gains:
    """The difference of one pair of methods.

    Attributes:
        base, other: Names of the methods.
        dataset: Name of the data set.
        dataset_fingerprint: Fingerprint of its content.
        protocol: What the values mean.
        metric: Name with cut-off.
        seeds: How many runs of each method were averaged.
        total: Over all users.
        groups: By activity, shortest histories first.
    """

    base: str
    other: str
    dataset: str
    dataset_fingerprint: str
    protocol: Protocol
    metric: str
    seeds: int
    total: Gain
    groups: list[Gain]

    def to_dict(self) -> dict[str, Any]:
        """The fields as values that JSON can hold."""
        return {**asdict(self), "protocol": self.protocol.to_dict()}


def gain_by_activity(
    base: Sequence[EvaluationRecord],
    other: Sequence[EvaluationRecord],
    metric: str = "ndcg@10",
    num_groups: int = 5,
    num_resamples: int = 10_000,
    names: tuple[str, str] | None = None,
) -> Gains:
    """What a method gains over another one, for all users and for those with short to long histories.

    Each user's score is first averaged over the seeds of a method, so that the interval, over users, is that of the mean run. The
    groups hold about equally many users, and no length is in two.

    Args:
        base: Runs of the method to compare with, one per seed, with their rows.
        other: Runs of the other method.
        metric: Name with cut-off.
        num_groups: Groups of users; fewer where many share a length.
        num_resamples: Bootstrap replicates.
        names: What to call the methods; by default what their records say.

    Returns:
        The gains.

    Raises:
        ValueError: No record, records of other rows or protocols, two of the same seed, or another number of seeds.

    Example:
        >>> gain_by_activity([EvaluationRecord.load("sasrec-0.json")], [EvaluationRecord.load("p2rec-0.json")])  # doctest: +SKIP
        Gains(base='SASRec', other='SASRec + P2Rec', …)
    """
    if not base or len(base) != len(other):
        raise ValueError(f"need as many runs of both methods, got {len(base)} and {len(other)}.")
    if sorted(map(_seed, base)) != sorted(map(_seed, other)):
        raise ValueError(f"the seeds differ: {[one.seed for one in base]} and {[one.seed for one in other]}.")
    for runs in (base, other):
        if len({one.model for one in runs}) > 1 or len({one.seed for one in runs}) < len(runs):
            raise ValueError(
                f"the runs of one method differ by their seed alone, got {[(one.model, one.seed) for one in runs]}."
            )
    for one in (*base[1:], *other):
        check_comparable(base[0], one)
    name, _, cutoff = metric.partition("@")
    if not cutoff.isdigit():
        raise ValueError(f"a metric is a name with a cut-off, such as 'ndcg@10', got {metric!r}.")
    scores = [
        np.mean(
            [next(iter(ranking_scores(one.ranks, [int(cutoff)], metrics=[name]).values())) for one in runs], axis=0
        )
        for runs in (base, other)
    ]
    lengths = base[0].history_lengths
    users = base[0].loaded_rows()["user_id"].to_numpy(zero_copy_only=False)

    def gain(rows: NDArray[np.bool_]) -> Gain:
        before, after = (values[rows] for values in scores)
        low, high = bootstrap_intervals({metric: after - before}, users[rows], num_resamples=num_resamples)[metric]
        span = int(lengths[rows].min()), int(lengths[rows].max())
        means = float(before.mean()), float(after.mean())
        return Gain(*span, len(np.unique(users[rows])), *means, means[1] - means[0], float(low), float(high))

    edges = np.unique(np.quantile(lengths, np.linspace(0, 1, num_groups + 1)[1:], method="inverted_cdf"))
    group = np.searchsorted(edges, lengths)
    return Gains(
        base=names[0] if names else base[0].model,
        other=names[1] if names else other[0].model,
        dataset=base[0].dataset,
        dataset_fingerprint=base[0].dataset_fingerprint,
        protocol=base[0].protocol,
        metric=f"{metric}{base[0].protocol.suffix}",
        seeds=len(base),
        total=gain(np.ones(len(lengths), dtype=bool)),
        groups=[gain(group == number) for number in np.unique(group)],
    )


def _seed(record: EvaluationRecord) -> int:
    return -1 if record.seed is None else record.seed


def gains_table(gains: Sequence[Gains]) -> "Table":
    """One row per pair of methods and group of users, for the terminal."""
    from rich.table import Table

    first = gains[0]
    table = Table(title=f"{first.metric} on {first.dataset}\n{first.protocol.describe()}", title_justify="left")
    for heading in ("", "items in history", "users", "base", "other", "difference", "95 % interval", "relative"):
        table.add_column(heading, justify="right" if heading else "left")
    for one in gains:
        for number, gain in enumerate([one.total, *one.groups]):
            span = gain.span if number else "all"
            relative = "–" if gain.relative is None else f"{gain.relative:+.1%}"
            table.add_row(
                "" if number else f"{one.other} over {one.base} ({one.seeds} seed{'s' * (one.seeds > 1)})", span, f"{gain.num_users:,}", f"{gain.base:.4f}",
                f"{gain.other:.4f}", f"{gain.difference:+.4f}", f"{gain.low:+.4f} … {gain.high:+.4f}", relative,
            )  # fmt: skip
    return table


def plot_gains(gains: Sequence[Gains], path: Any = None) -> "Figure":
    """Draw differences by user activity, one series per pair of methods, bars being 95 % intervals over users.

    Args:
        gains: Of the same data and metric.
        path: Where to save the picture, if at all.

    Returns:
        The matplotlib figure.

    Raises:
        ValueError: No gains, or gains of other data or another metric.
    """
    from .figures import GREY, line_looks

    if not gains:
        raise ValueError("`gains` is empty: pass at least one pair of methods.")
    if len({(one.dataset_fingerprint, one.metric, one.protocol) for one in gains}) > 1:
        raise ValueError("one picture needs one data set, protocol and metric.")
    first = gains[0]
    headline = f"Gain in {metric_name(first.metric)} by user activity on {first.dataset}"
    with evaluation_figure(headline, first.protocol, path=path) as figure:
        (axes,) = figure.axes
        axes.axhline(0, color=GREY, linewidth=1)
        for index, (one, look) in enumerate(zip(gains, line_looks(), strict=False)):
            values = np.array([(gain.difference, gain.low, gain.high) for gain in one.groups]).T
            axes.errorbar(
                np.arange(len(one.groups)) + 0.09 * (index - (len(gains) - 1) / 2),
                values[0],
                yerr=np.maximum([values[0] - values[1], values[2] - values[0]], 0),
                linewidth=1.2,
                elinewidth=2,
                label=f"{one.other} over {one.base}",
                **look,
            )
        labels = [f"{gain.span}\n{gain.num_users:,} users" for gain in first.groups]
        axes.set_xticks(np.arange(len(first.groups)), labels)
        axes.set_xlabel("Items in the history")
        axes.set_ylabel("Difference, bars: 95 % interval")
        bottom, top = axes.get_ylim()
        axes.set_ylim(
            bottom, top + 0.08 * len(gains) * (top - bottom)
        )  # room above the bars, a line of the legend each
        axes.legend(frameon=False, fontsize=9, loc="upper right")
    return figure
