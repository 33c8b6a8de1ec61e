"""Results of diagnostics: values with intervals that print as a table and travel as a JSON record."""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from hf_seqrec.data.files import atomic_path

from .protocol import Protocol
from .record import library_versions, to_json
from .significance import Comparison


if TYPE_CHECKING:
    from rich.table import Table


FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class Diagnostic:
    """What the results have in common; see the subclasses.

    Attributes:
        model: Name to print.
        config_hash: Hash of the model's configuration, None if it has none.
        seed: Seed of the training run, None where nothing is random.
        dataset: Name of the data set evaluated on.
        dataset_fingerprint: Fingerprint of its content.
        protocol: What the values mean.
        candidates: Origin of sampled candidates, None for full ranking.
        num_rows: Number of evaluated rows.
        versions: Versions of Python and of the libraries.
    """

    kind: ClassVar[str]

    model: str
    config_hash: str | None
    seed: int | None
    dataset: str
    dataset_fingerprint: str
    protocol: Protocol
    candidates: dict[str, Any] | None
    num_rows: int
    versions: dict[str, str] = field(default_factory=library_versions)

    def to_dict(self) -> dict[str, Any]:
        """Return format, kind and fields as values that JSON can hold."""
        return {"format": FORMAT, "kind": self.kind, **asdict(self), "protocol": self.protocol.to_dict()}

    def save(self, path: str | os.PathLike) -> Path:
        """Write the result, whole or not at all.

        Args:
            path: File to write, ending in `.json`; an existing one is replaced.

        Returns:
            The path.

        Raises:
            ValueError: If the name does not end in `.json`, or a value is NaN.
        """
        path = Path(path)
        if path.suffix != ".json":
            raise ValueError(f"A record is a .json file, got {path.name!r}.")
        content = to_json(self.to_dict(), path)  # refused before anything is written
        with atomic_path(path) as temporary:
            temporary.write_text(content, encoding="utf-8")
        return path

    @classmethod
    def load(cls, path: str | os.PathLike) -> Self:
        """Read a result that `save` wrote; `Diagnostic.load` reads any kind, a subclass only its own.

        Args:
            path: The file.

        Returns:
            The result.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If it is no result of a diagnostic, of another kind, or of another release.
        """
        try:
            values = json.loads(Path(path).read_text(encoding="utf-8"))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"{path} is no result of a diagnostic: {error}.") from error
        kinds: dict[Any, Any] = {
            kind.kind: kind for kind in (ShuffleDiagnostic, GroupDiagnostic, CrossDomainDiagnostic)
        }
        kind = kinds.get(values.get("kind")) if isinstance(values, dict) else None
        if kind is None or not issubclass(kind, cls):
            wanted = cls.kind if cls is not Diagnostic else " or ".join(kinds)
            raise ValueError(f"{path} is no result of a diagnostic of kind {wanted}.")
        names = {"format", "kind"} | {one.name for one in fields(kind)}
        if values["format"] != FORMAT or set(values) != names:
            raise ValueError(f"{path} was written by another release (other keys: {sorted(set(values) ^ names)}).")
        del values["format"], values["kind"]
        return kind(**{**values, "protocol": Protocol.from_dict(values["protocol"])})

    def to_table(self, metrics: Sequence[str] | None = None) -> "Table":
        """The result as a table for the terminal; see the subclasses."""
        raise NotImplementedError

    def __rich__(self) -> "Table":
        return self.to_table()

    def _new_table(self, headline: str, *columns: str) -> "Table":
        from rich.table import Table

        run = self.model if self.seed is None else f"{self.model}, seed {self.seed}"
        title = f"{headline} · {run} on {self.dataset}\n{self.protocol.describe()}"
        table = Table(title=title, title_justify="left")
        for number, column in enumerate(columns):
            table.add_column(column, justify="right" if number else "left")
        return table

    def _shown(self, metrics: Sequence[str] | None, known: Sequence[str]) -> list[str]:
        """Names to show: those asked for, or all with cut-off 10, or the largest cut-off where there is no 10."""
        suffix = self.protocol.suffix
        if metrics is None:
            cutoff = 10 if 10 in self.protocol.cutoffs else max(self.protocol.cutoffs)
            return [name for name in known if name.removesuffix(suffix).endswith(f"@{cutoff}")]
        names = [name if name.endswith(suffix) else f"{name}{suffix}" for name in metrics]
        unknown = [name for name in names if name not in known]
        if unknown:
            raise ValueError(f"there is no metric {unknown[0]!r}; the result has {', '.join(known)}.")
        return names


@dataclass(frozen=True)
class Similarity:
    """Cosine between user vectors of original and shuffled histories; 1 means that the order makes no difference.

    Attributes:
        mean: Mean over rows and shuffles.
        low: Lower end of its 95 % interval over rows.
        high: Upper end.
        quantiles: Value below which 5, 25, 50, 75 and 95 % of rows and shuffles lie, by percentage.
        edges: Bounds of the histogram's bins, from -1 to 1.
        shares: Share of rows and shuffles in each bin.
    """

    mean: float
    low: float
    high: float
    quantiles: dict[str, float]
    edges: list[float]
    shares: list[float]


@dataclass(frozen=True, kw_only=True)
class ShuffleDiagnostic(Diagnostic):
    """What shuffling does to a recommender.

    Attributes:
        shuffled: `"inference"` (trained on the original order, tested on shuffled histories) or `"training"` (the other way round).
        comparisons: One per metric: `first` is the original, `second` the shuffled one, `relative_gain` the paper's change ratio.
        shuffle_seeds: Seeds of the shuffles; `second` is the mean over them. Empty for training, where the data were shuffled elsewhere.
        by_shuffle: Value of every metric for each of the seeds.
        last: How many most recent items were shuffled, None for whole histories.
        reordered: Share of rows whose history really has another order; a single item cannot be shuffled.
        similarity: Of the user vectors; None for shuffled training, and for a model without user vectors.
    """

    kind = "shuffle"

    shuffled: str
    comparisons: list[Comparison]
    shuffle_seeds: list[int] = field(default_factory=list)
    by_shuffle: dict[str, list[float]] = field(default_factory=dict)
    last: int | None = None
    reordered: float | None = None
    similarity: Similarity | None = None

    def __post_init__(self) -> None:
        found = [Comparison(**one) if isinstance(one, dict) else one for one in self.comparisons]
        object.__setattr__(self, "comparisons", found)
        if isinstance(self.similarity, dict):
            object.__setattr__(self, "similarity", Similarity(**self.similarity))

    @property
    def metrics(self) -> dict[str, float]:
        """The values in original order."""
        return {one.metric: one.first for one in self.comparisons}

    def comparison(self, metric: str) -> Comparison:
        """The comparison of one metric; the suffix of sampled candidates may be left out.

        Raises:
            ValueError: If there is no such metric.
        """
        (name,) = self._shown([metric], list(self.metrics))
        return next(one for one in self.comparisons if one.metric == name)

    def to_table(self, metrics: Sequence[str] | None = None) -> "Table":
        """One row per metric: both values, change ratio, difference with interval, p-value."""
        table = self._new_table(
            f"Shuffled {self.shuffled}", "metric", "original", "shuffled", "change ratio", "difference\n95 % interval",
            "p\nrandomisation",
        )  # fmt: skip
        for name in self._shown(metrics, list(self.metrics)):
            one = self.comparison(name)
            table.add_row(
                name, f"{one.first:.4f}", f"{one.second:.4f}", "–" if one.relative_gain is None else f"{one.relative_gain:+.2%}",
                f"{one.difference:+.4f}\n[{one.low:+.4f}, {one.high:+.4f}]", f"{one.p_randomisation:.4f}",
            )  # fmt: skip
        lines = []
        if self.shuffled == "inference":
            what = "whole histories" if self.last is None else f"the last {self.last} items"
            lines.append(
                f"Mean of {len(self.shuffle_seeds)} shuffle(s) of {what}; {self.reordered:.1%} of {self.num_rows:,} histories changed"
            )
            lines.append(
                "No user vectors: the model is not a dot product."
                if self.similarity is None
                else f"Cosine of user vectors: {self.similarity.mean:.4f} [{self.similarity.low:.4f}, {self.similarity.high:.4f}], "
                f"median {self.similarity.quantiles['50']:.4f}"
            )
        table.caption = "\n".join(lines) or None
        table.caption_justify = "left"
        return table


@dataclass(frozen=True)
class Group:
    """Some of the rows, with their metrics.

    Attributes:
        name: Name of the group.
        description: What its members have in common.
        num_rows: Number of rows.
        num_users: Number of users.
        metrics: Mean over the rows; empty for a group without rows.
        intervals: 95 % intervals over users, `[low, high]`.
        floor: Expected values of a random order.
    """

    name: str
    description: str
    num_rows: int
    num_users: int
    metrics: dict[str, float]
    intervals: dict[str, list[float]]
    floor: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class GroupDiagnostic(Diagnostic):
    """Metrics by group of users or items.

    Attributes:
        by: `"transition"`, `"popularity"` or `"activity"`.
        definition: How the groups were formed, in one sentence.
        groups: The groups, in order.
    """

    kind = "groups"

    by: str
    definition: str
    groups: list[Group]

    def __post_init__(self) -> None:
        object.__setattr__(self, "groups", [Group(**one) if isinstance(one, dict) else one for one in self.groups])

    def group(self, name: str) -> Group:
        """The group of that name.

        Raises:
            KeyError: If there is none.
        """
        found = [one for one in self.groups if one.name == name]
        if not found:
            raise KeyError(f"there is no group {name!r}; the groups are {', '.join(one.name for one in self.groups)}.")
        return found[0]

    def to_table(self, metrics: Sequence[str] | None = None) -> "Table":
        """One row per group: its size, and each metric with its interval and the value of a random order."""
        shown = self._shown(metrics, list(next(one for one in self.groups if one.num_rows).metrics))
        table = self._new_table(f"By {self.by}", "group", "rows", *shown)
        for one in self.groups:
            cells = ["–"] * len(shown)
            if one.num_rows:
                cells = [
                    "{:.4f}\n[{:.4f}, {:.4f}]\nrandom {:.4f}".format(
                        one.metrics[name], *one.intervals[name], one.floor[name]
                    )
                    for name in shown
                ]
            table.add_row(f"{one.name}\n{one.description}", f"{one.num_rows:,}", *cells)
        table.caption = self.definition
        table.caption_justify = "left"
        return table


@dataclass(frozen=True, kw_only=True)
class CrossDomainDiagnostic(Diagnostic):
    """A recommender on data it was not trained on; its items are known by their texts only.

    Attributes:
        source: Name of the data it was trained on.
        source_fingerprint: Fingerprint of that data, None if the model does not say.
        num_items: Size of the new catalogue; only its items are ranked.
        num_shared_items: Item ids that the model's own catalogue has too. Their texts are encoded anew like all others.
        metrics: Mean over the rows.
        intervals: 95 % intervals over users, `[low, high]`.
        floor: Expected values of a random order.
    """

    kind = "cross-domain"

    source: str
    source_fingerprint: str | None
    num_items: int
    num_shared_items: int
    metrics: dict[str, float]
    intervals: dict[str, list[float]]
    floor: dict[str, float]

    def to_table(self, metrics: Sequence[str] | None = None) -> "Table":
        """One row per metric, with its interval and the value of a random order."""
        table = self._new_table(f"Trained on {self.source} only", "metric", "value", "95 % interval", "random")
        for name in self._shown(metrics, list(self.metrics)):
            low, high = self.intervals[name]
            table.add_row(name, f"{self.metrics[name]:.4f}", f"[{low:.4f}, {high:.4f}]", f"{self.floor[name]:.4f}")
        shared = f", {self.num_shared_items:,} with an id of the training data" if self.num_shared_items else ""
        table.caption = f"{self.num_items:,} items known by their texts{shared}; {self.num_rows:,} rows"
        table.caption_justify = "left"
        return table
