"""Pictures of diagnostics, in the style of `plots`: what shuffling costs, how similar user vectors stay, metrics by group."""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from .diagnostic_results import CrossDomainDiagnostic, GroupDiagnostic, ShuffleDiagnostic
from .figures import (
    GREY,
    best_first,
    evaluation_figure,
    line_looks,
    metric_name,
    name_lines,
    record_label,
    shared_protocol,
)


def plot_shuffle(
    results: Sequence[ShuffleDiagnostic], metric: str = "ndcg@10", path: str | os.PathLike | None = None
) -> Any:
    """Draw what shuffling changes, one line per model from the value on original to that on shuffled histories.

    Args:
        results: Of the same data, protocol and kind of shuffling.
        metric: Name with cut-off.
        path: Where to save the picture (`.png`, `.svg` or `.pdf`), if at all.

    Returns:
        The matplotlib figure.

    Raises:
        ValueError: If there is no result, the results do not belong together, or the metric is unknown.

    Example:
        >>> figure = plot_shuffle([sasrec.shuffled_inference(), gru.shuffled_inference()], path="shuffle.png")  # doctest: +SKIP
    """
    shown: list[Any] = list(results)  # they have what the helpers read of records
    protocol = shared_protocol(shown)
    _same(shown, "shuffled")
    _same(shown, "last")
    ordered: list[Any] = best_first(shown, results[0].comparison(metric).metric)
    shuffled = "shuffled training" if results[0].shuffled == "training" else "shuffled histories"
    headline = f"{metric_name(metric)} with {shuffled} on {results[0].dataset}"
    with evaluation_figure(headline, protocol, path=path) as figure:
        (axes,) = figure.axes
        for place, (result, look) in enumerate(zip(ordered, line_looks(), strict=False)):
            one = result.comparison(metric)
            marker, colour = look["marker"], look["color"]
            # The interval is that of the paired difference: drawn around the shuffled value, it holds the original one exactly
            # when the difference is not significant.
            axes.plot([one.first + one.low, one.first + one.high], [place] * 2, color=colour, linewidth=7, alpha=0.22)
            axes.plot([one.first, one.second], [place] * 2, color=colour, linewidth=1.5)
            axes.plot([one.first], [place], marker=marker, color=colour, fillstyle="none", markersize=8)
            axes.plot([one.second], [place], marker=marker, color=colour, markersize=5)
            ratio = "–" if one.relative_gain is None else f"{one.relative_gain:+.1%}"
            axes.text(
                1.02, place, ratio, color=colour, transform=axes.get_yaxis_transform(), verticalalignment="center"
            )
        axes.set_yticks(range(len(ordered)), [record_label(result, ordered) for result in ordered])
        axes.set_ylim(len(ordered) - 0.5, -0.5)
        axes.set_xlim(left=0)
        axes.grid(axis="y", visible=False)
        axes.grid(axis="x", visible=True)
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel(
            f"{metric_name(metric)}: hollow original, filled shuffled, band: 95 % interval of the difference"
        )
    return figure


def plot_similarity(results: Sequence[ShuffleDiagnostic], path: str | os.PathLike | None = None) -> Any:
    """Draw how many histories keep a user vector of at least some cosine when they are shuffled, one curve per model.

    Args:
        results: Of the same data and protocol; those of models without user vectors are left out.
        path: Where to save the picture, if at all.

    Returns:
        The matplotlib figure.

    Raises:
        ValueError: If there is no result with a similarity, or the results do not belong together.

    Example:
        >>> figure = plot_similarity([diagnostics.shuffled_inference()], path="similarity.png")  # doctest: +SKIP
    """
    shown: list[Any] = [result for result in results if result.similarity is not None]
    if not shown:
        raise ValueError(
            "no result has a similarity: pass results of `shuffled_inference` of models with user vectors."
        )
    protocol = shared_protocol(shown)
    _same(shown, "last")
    shown = sorted(shown, key=lambda result: -result.similarity.mean)
    with evaluation_figure(
        f"User vectors of original and shuffled histories on {shown[0].dataset}", protocol, path=path
    ) as figure:
        (axes,) = figure.axes
        left = 0.9
        for result, look in zip(shown, line_looks(), strict=False):
            similarity = result.similarity
            edges, above = np.array(similarity.edges), 1 - np.cumsum([0.0, *similarity.shares])
            label = f"{record_label(result, shown)}, mean {similarity.mean:.3f}"
            axes.plot(edges, np.clip(above, 0, 1), markevery=8, label=label, **look)
            left = min(left, edges[np.flatnonzero(similarity.shares)[0]])
        axes.legend(frameon=False, loc="lower left")
        axes.set_xlim(left, 1)
        axes.set_ylim(0, 1.03)
        axes.set_xlabel("Cosine of a user's vectors before and after the shuffle")
        axes.set_ylabel("Share of histories above")
    return figure


def plot_groups(
    results: Sequence[GroupDiagnostic], metric: str = "ndcg@10", path: str | os.PathLike | None = None
) -> Any:
    """Draw a metric by group, one series per model with 95 % intervals over users; dots mark what a random order reaches.

    Args:
        results: The same groups for one or more models.
        metric: Name with cut-off.
        path: Where to save the picture, if at all.

    Returns:
        The matplotlib figure.

    Raises:
        ValueError: If there is no result, the results do not belong together, or the metric is unknown.

    Example:
        >>> figure = plot_groups([diagnostics.popularity()], "hr@10", path="popularity.png")  # doctest: +SKIP
    """
    shown: list[Any] = list(results)
    protocol = shared_protocol(shown)
    _same(shown, "definition")
    groups = [group for group in results[0].groups if group.num_rows]
    whole = results[0]._shown([metric], list(groups[0].metrics))[0]
    by = {"transition": "transition set", "popularity": "popularity of the target", "activity": "user activity"}
    headline = f"{metric_name(metric)} by {by[results[0].by]} on {results[0].dataset}"
    with evaluation_figure(headline, protocol, path=path) as figure:
        (axes,) = figure.axes
        places = np.arange(len(groups))
        axes.plot(places, [group.floor[whole] for group in groups], color=GREY, linestyle=":", linewidth=1.5)
        names: list[tuple[str, float, dict[str, Any]]] = [("random order", groups[-1].floor[whole], {"color": GREY})]
        ordered = sorted(shown, key=lambda result: -result.group(groups[-1].name).metrics[whole])
        for index, (result, look) in enumerate(zip(ordered, line_looks(), strict=False)):
            of_model = [result.group(group.name) for group in groups]
            means = np.array([group.metrics[whole] for group in of_model])
            low, high = np.array([group.intervals[whole] for group in of_model]).T
            axes.errorbar(
                places + 0.06 * (index - (len(ordered) - 1) / 2),
                means,
                yerr=np.maximum([means - low, high - means], 0),
                linewidth=1.2,
                elinewidth=2,
                clip_on=False,
                **look,
            )
            names.append((record_label(result, shown), means[-1], look))
        labels = [f"{group.name}\n{group.num_users:,} users" for group in groups]
        axes.set_xticks(places, labels)
        axes.set_xlim(-0.35, len(groups) - 0.65)
        axes.tick_params(axis="x", length=0)
        axes.set_ylabel(f"{metric_name(metric)}, bars: 95 % interval")
        axes.set_ylim(bottom=0)
        name_lines(axes, names)
    return figure


def plot_cross_domain(
    results: Sequence[CrossDomainDiagnostic], metric: str = "ndcg@10", path: str | os.PathLike | None = None
) -> Any:
    """Draw a metric on data that were not trained on, one line per model and data set, with what a random order reaches.

    Args:
        results: Of one protocol; data sets may differ.
        metric: Name with cut-off.
        path: Where to save the picture, if at all.

    Returns:
        The matplotlib figure.

    Raises:
        ValueError: If there is no result, the protocols differ, or the metric is unknown.

    Example:
        >>> figure = plot_cross_domain([cross_domain(model, processor, cds, split)], path="cross-domain.png")  # doctest: +SKIP
    """
    if not results:
        raise ValueError("`results` is empty: pass at least one result of `cross_domain`.")
    _same(results, "protocol")
    (whole,) = results[0]._shown([metric], list(results[0].metrics))
    datasets = list(dict.fromkeys(result.dataset for result in results))
    models = list(dict.fromkeys(result.model for result in results))
    ordered = sorted(results, key=lambda result: (datasets.index(result.dataset), -result.metrics[whole]))
    headline = f"{metric_name(metric)} without training on the data"
    with evaluation_figure(headline, results[0].protocol, path=path) as figure:
        (axes,) = figure.axes
        looks = dict(zip(models, line_looks(), strict=False))
        for place, result in enumerate(ordered):
            look, (low, high) = looks[result.model], result.intervals[whole]
            axes.plot([low, high], [place] * 2, color=look["color"], linewidth=2)
            axes.plot([result.metrics[whole]], [place], **look)
            axes.plot([result.floor[whole]], [place], marker="|", color=GREY, markersize=16, markeredgewidth=2)
        labels = [f"{result.model}\n{result.source}\n→ {result.dataset}" for result in ordered]
        axes.set_yticks(range(len(ordered)), labels)
        axes.set_ylim(len(ordered) - 0.5, -0.5)
        axes.set_xlim(left=0)
        axes.grid(axis="y", visible=False)
        axes.grid(axis="x", visible=True)
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel(f"{metric_name(metric)}, bars: 95 % interval, grey: random order")
    return figure


def _same(results: Sequence[Any], name: str) -> None:
    for result in results[1:]:
        first, other = getattr(results[0], name), getattr(result, name)
        if first != other:
            raise ValueError(
                f"One picture needs one `{name}`; {results[0].model} has {first!r}, {result.model} {other!r}."
            )
