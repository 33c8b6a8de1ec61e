"""Tables of evaluation records: for the terminal, for Markdown, and the results page of the docs.

A table never mixes what cannot be compared: records are grouped by data (name and fingerprint) and protocol first, and the protocol stands
once above the table. Runs of one model that differ only in their seed share a row.

    python -m hf_seqrec.evaluation.tables benchmarks/records docs/results.md
"""

import argparse
import os
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hf_seqrec.data.files import atomic_path

from .protocol import Protocol
from .record import EvaluationRecord


if TYPE_CHECKING:
    from rich.console import Console


METRICS = ("ndcg@10", "hr@10", "mrr@10")
"""Columns by default; names are without the suffix of sampled candidates, which the protocol adds."""

_REDUCED = (
    "**With reduced runs:** fewer users, steps or seeds than the study asks for; `notes` of a record say which. They show how methods "
    "compare after little training, not how good they get."
)
_COMMAND = "python -m hf_seqrec.evaluation.tables benchmarks/records docs/results.md"
_LEGEND = (
    "± is half the width of the bootstrap 95 % interval over users for one seed, the standard deviation between runs for several seeds. "
    "**Bold**: the highest value of a column."
)


@dataclass(frozen=True)
class Cell:
    """A value of a table: the mean over seeds, and how far it can be off.

    Attributes:
        value: The metric, or its mean over seeds.
        spread: Half the 95 % interval of one seed, or the standard deviation between several; None where neither is known.
    """

    value: float
    spread: float | None

    def __str__(self) -> str:
        return f"{self.value:.4f}" if self.spread is None else f"{self.value:.4f} ± {self.spread:.4f}"


@dataclass(frozen=True)
class Row:
    """One model of a table, with the seeds of its runs in order; `(None,)` where nothing is random."""

    model: str
    seeds: tuple[int | None, ...]
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Table:
    """Models evaluated on the same data under the same protocol, the best first.

    Attributes:
        dataset: Name of the data.
        dataset_fingerprint: Fingerprint of their content.
        protocol: What the values mean.
        num_users: Number of users evaluated.
        num_items: Size of the catalogue.
        metrics: Column names, with the suffix of sampled candidates.
        rows: One per model.
        floor: Values of a random order, one per column.
    """

    dataset: str
    dataset_fingerprint: str
    protocol: Protocol
    num_users: int
    num_items: int
    metrics: tuple[str, ...]
    rows: tuple[Row, ...]
    floor: tuple[float | None, ...]

    @property
    def data(self) -> str:
        """The data in one line."""
        return (
            f"{self.dataset}: {self.num_users:,} users evaluated, {self.num_items:,} items, fingerprint "
            f"{self.dataset_fingerprint}"
        )

    def is_best(self, row: Row, column: int) -> bool:
        """Whether a row has the highest value of a column, alone or tied, among at least two rows."""
        return len(self.rows) > 1 and row.cells[column].value == max(other.cells[column].value for other in self.rows)


def make_tables(records: Iterable[EvaluationRecord], metrics: Sequence[str] = METRICS) -> list[Table]:
    """Group records into tables and average over seeds.

    Args:
        records: Any records, with or without their rows.
        metrics: Columns, named without the suffix of sampled candidates: `"ndcg@10"` is also `"ndcg@10/sampled99"`.

    Returns:
        Tables by data set; within one, full ranking before sampled, test before validation, seen items excluded before allowed.
        Rows are sorted by the first metric, best first.

    Raises:
        ValueError: If there is no record, a record lacks a metric, one model has two records with the same seed, or records under one
            model name come from different configurations.
    """
    records = list(records)
    if not records:
        raise ValueError("There is no record to make a table of: evaluate first, with `EvaluationRecord.save`.")
    if not metrics:
        raise ValueError("`metrics` is empty: name at least one column, such as 'ndcg@10'.")
    groups: dict[tuple, dict[str, list[EvaluationRecord]]] = {}
    for record in records:
        group = groups.setdefault(_group_key(record), {})
        group.setdefault(record.model, []).append(record)
    return [_make_table(list(groups[key].values()), metrics) for key in sorted(groups)]


def to_markdown(records: Iterable[EvaluationRecord], metrics: Sequence[str] = METRICS) -> str:
    """Write records as Markdown tables, each with its data and protocol above it.

    Args:
        records: Any records.
        metrics: Columns.

    Returns:
        Markdown, ending in a newline. Errors are those of `make_tables`.

    Example:
        >>> print(to_markdown(read_records("benchmarks/records"), metrics=["ndcg@10", "hr@10"]))  # doctest: +SKIP
    """
    parts = [
        f"{_escaped(table.data)}\\\n{table.protocol.describe()}\n\n{_markdown_table(table)}"
        for table in make_tables(records, metrics)
    ]
    return "\n\n".join([*parts, _LEGEND]) + "\n"


def print_table(
    records: Iterable[EvaluationRecord], metrics: Sequence[str] = METRICS, console: "Console | None" = None
) -> None:
    """Print records as tables in the terminal, each with its data and protocol above it.

    Args:
        records: Any records. Errors are those of `make_tables`.
        metrics: Columns.
        console: Where to print; by default standard output.

    Example:
        >>> print_table(read_records("benchmarks/records"))  # doctest: +SKIP
    """
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table as RichTable

    console = console or Console()
    for table in make_tables(records, metrics):
        console.print(escape(table.data), highlight=False, soft_wrap=True)
        console.print(escape(table.protocol.describe()), style="dim", highlight=False, soft_wrap=True)
        printed = RichTable("model", box=None, header_style="bold", pad_edge=False)
        for name in table.metrics:
            printed.add_column(name, justify="right")
        printed.add_column("seeds", justify="right")
        for row in table.rows:
            cells = [
                f"[bold]{cell}[/bold]" if table.is_best(row, column) else str(cell)
                for column, cell in enumerate(row.cells)
            ]
            printed.add_row(escape(row.model), *cells, _num_seeds(row))
        if None not in table.floor:
            printed.add_row("random order", *(f"{value:.4f}" for value in table.floor), "", style="dim")
        console.print(printed)
        console.print()


def results_page(
    records: Iterable[EvaluationRecord], metrics: Sequence[str] = METRICS, command: str = _COMMAND
) -> str:
    """Write the page of all results: a section per data set, in it a table per protocol.

    Args:
        records: Any records.
        metrics: Columns.
        command: What makes the page again, printed in its header.

    Returns:
        Markdown, ending in a newline. Errors are those of `make_tables`.
    """
    records = list(records)
    tables = make_tables(records, metrics)
    versions = sorted({f"{name} {number}" for record in records for name, number in record.versions.items()})
    parts = [
        f"<!-- Generated, do not edit. Make it again with: {command} -->",
        "# Results",
        f"Every number comes from an evaluation record. This page is made by\n\n```bash\n{command}\n```",
        _LEGEND,
    ]
    if any(record.notes.get("reduced") for record in records):
        parts.append(_REDUCED)
    section = None
    for table in tables:
        heading = (table.dataset, table.dataset_fingerprint)
        if heading != section:
            section = heading
            parts.append(f"## {_escaped(table.dataset)}")
            parts.append(
                f"{table.num_users:,} users evaluated, {table.num_items:,} items, fingerprint `{table.dataset_fingerprint}`."
            )
        parts.append(f"### {table.protocol.describe()}")
        parts.append(_markdown_table(table))
    parts.append(f"Versions: {', '.join(versions)}.")
    return "\n\n".join(parts) + "\n"


def read_records(folder: str | os.PathLike, rows: bool = False) -> list[EvaluationRecord]:
    """Read all records below a folder, in order of their paths.

    Args:
        folder: Folder with `.json` records, at any depth.
        rows: Whether to read and check the rank of every row too.

    Returns:
        The records.

    Raises:
        NotADirectoryError: If there is no such folder.
        ValueError: If it holds no `.json` file, or one that is no record.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise NotADirectoryError(f"{folder} is no folder; pass the folder that evaluations were saved to.")
    paths = sorted(folder.rglob("*.json"))
    if not paths:
        raise ValueError(f"{folder} holds no .json file; save evaluations there with `EvaluationRecord.save`.")
    return [EvaluationRecord.load(path, rows=rows) for path in paths]


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the results page: `python -m hf_seqrec.evaluation.tables RECORDS_FOLDER PAGE [--metrics ndcg@10 hr@10]`."""
    parser = argparse.ArgumentParser(
        prog="python -m hf_seqrec.evaluation.tables", description="Write the results page."
    )
    parser.add_argument("records", type=Path, help="folder with records (.json), at any depth")
    parser.add_argument("page", type=Path, help="Markdown file to write")
    parser.add_argument("--metrics", nargs="+", default=list(METRICS), help="columns; rows are sorted by the first")
    parsed = parser.parse_args(arguments)
    command = f"python -m hf_seqrec.evaluation.tables {parsed.records} {parsed.page}"
    if parsed.metrics != list(METRICS):
        command += f" --metrics {' '.join(parsed.metrics)}"
    records = read_records(parsed.records)
    page = results_page(records, parsed.metrics, command)
    with atomic_path(parsed.page) as temporary:
        temporary.write_text(page, encoding="utf-8")
    print(f"{parsed.page}: {len(records)} records")


def _group_key(record: EvaluationRecord) -> tuple:
    """What must be equal in one table; its order is that of the tables on a page."""
    protocol, negatives = record.protocol, record.protocol.num_negatives or 0
    drawn = "" if record.candidates is None else record.candidates["sha256"]
    order = (
        protocol.split != "leave_one_out",
        protocol.split,
        negatives,
        drawn,
        protocol.part,
        not protocol.exclude_seen,
    )
    return record.dataset, record.dataset_fingerprint, *order, protocol.ties, protocol.cutoffs


def _make_table(models: list[list[EvaluationRecord]], metrics: Sequence[str]) -> Table:
    first = models[0][0]
    names = tuple(f"{metric}{first.protocol.suffix}" for metric in metrics)
    rows = [_make_row(runs, names) for runs in models]
    rows.sort(key=lambda row: (-row.cells[0].value, row.model))
    return Table(
        dataset=first.dataset,
        dataset_fingerprint=first.dataset_fingerprint,
        protocol=first.protocol,
        num_users=first.num_users,
        num_items=first.num_items,
        metrics=names,
        rows=tuple(rows),
        floor=tuple(first.floor.get(name) for name in names),
    )


def _make_row(runs: list[EvaluationRecord], metrics: Sequence[str]) -> Row:
    runs = sorted(runs, key=lambda record: -1 if record.seed is None else record.seed)
    model, seeds = runs[0].model, tuple(record.seed for record in runs)
    where = f"{runs[0].dataset} ({runs[0].protocol.describe()})"
    if len(set(seeds)) < len(seeds):
        raise ValueError(
            f"{model} has two records with the same seed on {where}, seeds {seeds}: remove one or rename it."
        )
    if len({record.config_hash for record in runs}) > 1:
        raise ValueError(
            f"The records of {model} on {where} come from models with different configurations: give them different names."
        )
    for record in runs:
        missing = [name for name in metrics if name not in record.metrics]
        if missing:
            raise ValueError(
                f"The record of {model} on {where} has no metric {missing[0]!r}; it has {sorted(record.metrics)}."
            )
    return Row(model, seeds, tuple(_make_cell(runs, name) for name in metrics))


def _make_cell(runs: Sequence[EvaluationRecord], metric: str) -> Cell:
    values = [record.metrics[metric] for record in runs]
    if len(values) > 1:
        return Cell(statistics.fmean(values), statistics.stdev(values))
    interval = runs[0].intervals.get(metric)
    return Cell(values[0], None if interval is None else (interval[1] - interval[0]) / 2)


def _markdown_table(table: Table) -> str:
    lines = [
        f"| model | {' | '.join(table.metrics)} | seeds |",
        f"| --- |{' ---: |' * (len(table.metrics) + 1)}",
    ]
    for row in table.rows:
        cells = [
            f"**{cell.value:.4f}**{str(cell)[len(f'{cell.value:.4f}') :]}" if table.is_best(row, column) else str(cell)
            for column, cell in enumerate(row.cells)
        ]
        lines.append(f"| {_escaped(row.model)} | {' | '.join(cells)} | {_num_seeds(row)} |")
    if None not in table.floor:
        lines.append(f"| *random order* | {' | '.join(f'{value:.4f}' for value in table.floor)} | |")
    return "\n".join(lines)


def _num_seeds(row: Row) -> str:
    return "–" if row.seeds == (None,) else str(len(row.seeds))


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("|", "\\|")


if __name__ == "__main__":
    main()
