"""The record of an evaluation: a JSON file every table is made from, and beside it the rank of every row."""

import hashlib
import json
import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from hf_seqrec.data import Candidates, RecommendationData
from hf_seqrec.data.files import atomic_path

from .evaluator import EvaluationResult
from .protocol import Protocol


FORMAT = 1

ROW_COLUMNS = pa.schema(
    [("user_id", pa.string()), ("item_id", pa.string()), ("rank", pa.float32()), ("history_length", pa.int64())]
)
"""Columns of the rows: the user, the target, its 0-based rank (ties averaged), and the number of history items."""


@dataclass(frozen=True, eq=False)
class EvaluationRecord:
    """What was evaluated, how, and with what result.

    Attributes:
        model: Name to print, such as `"SASRec"`.
        config_hash: First 16 hexadecimal digits of the sha256 over the model's configuration; None if it has none.
        dataset: Name of the data set.
        dataset_fingerprint: Fingerprint of its content.
        protocol: What the values mean.
        metrics: Mean of every metric over the rows.
        intervals: Bootstrap 95 % interval over users of every ranking metric, `[low, high]`.
        floor: Expected value of every ranking metric for a random order.
        num_rows: Number of evaluated rows.
        num_users: Number of users they belong to.
        num_items: Size of the catalogue.
        targets_seen: Rows whose target is in their own history; misses where seen items are excluded.
        seed: Seed of the training run, None where nothing is random.
        seconds: Wall time of the evaluation.
        users_per_second: Rows per second of wall time.
        versions: Versions of Python and of the libraries.
        candidates: `seed`, `strategy`, `fingerprint` (of the evaluation set) and `sha256` of sampled candidates, None for full ranking.
        notes: Free JSON values, such as hyper-parameters or the training time.
        rows: One row per evaluated row, columns `ROW_COLUMNS`; None for a record loaded without them.
    """

    model: str
    config_hash: str | None
    dataset: str
    dataset_fingerprint: str
    protocol: Protocol
    metrics: dict[str, float]
    intervals: dict[str, list[float]]
    floor: dict[str, float]
    num_rows: int
    num_users: int
    num_items: int
    targets_seen: int
    seed: int | None
    seconds: float
    users_per_second: float
    versions: dict[str, str]
    candidates: dict[str, Any] | None = None
    notes: dict[str, Any] = field(default_factory=dict)
    rows: pa.Table | None = None

    @classmethod
    def from_result(
        cls,
        result: EvaluationResult,
        data: RecommendationData,
        model: Any,
        name: str | None = None,
        seed: int | None = None,
        candidates: Candidates | None = None,
        notes: Mapping[str, Any] | None = None,
    ) -> "EvaluationRecord":
        """Make the record of an evaluation.

        Args:
            result: What `RankingEvaluator` returned.
            data: The data set that was evaluated on; its ids go into the rows.
            model: The recommender; its `config` is hashed.
            name: Name to print; by default the model's class name without `ForSequentialRecommendation`.
            seed: Seed of the training run.
            candidates: The sampled candidates; needed exactly for a sampled protocol, so that another run can be compared.
            notes: Free JSON values.

        Returns:
            The record, not yet written.

        Raises:
            ValueError: If `candidates` and protocol disagree, or the result comes from another data set.
        """
        rows = result.evaluation_set
        if (candidates is None) != (result.protocol.num_negatives is None):
            raise ValueError(
                f"The protocol says candidates={result.protocol.candidates!r}, but `candidates` are "
                f"{'missing' if candidates is None else 'given'}; pass those that were ranked."
            )
        if result.num_items != data.catalogue.num_items:
            raise ValueError(f"The result ranks {result.num_items} items, {data.name} has {data.catalogue.num_items}.")
        table = pa.Table.from_arrays(
            [rows.user_ids, data.catalogue.to_item_ids(rows.target), pa.array(result.ranks), pa.array(rows.lengths)],
            schema=ROW_COLUMNS,
        )
        config = getattr(model, "config", None)
        return cls(
            model=name or type(model).__name__.removesuffix("ForSequentialRecommendation"),
            config_hash=None if config is None else hash_config(config),
            dataset=data.name,
            dataset_fingerprint=data.fingerprint,
            protocol=result.protocol,
            metrics=dict(result.metrics),
            intervals={metric: list(interval) for metric, interval in result.intervals.items()},
            floor=dict(result.floor),
            num_rows=len(rows),
            num_users=len(np.unique(rows.user)),
            num_items=result.num_items,
            targets_seen=result.targets_seen,
            seed=seed,
            seconds=result.seconds,
            users_per_second=result.users_per_second,
            versions=library_versions(),
            candidates=None if candidates is None else describe_candidates(candidates),
            notes=dict(notes or {}),
            rows=table,
        )

    @property
    def ranks(self) -> NDArray[np.float32]:
        """(num_rows,) 0-based ranks, ties averaged.

        Raises:
            ValueError: If the record was loaded without its rows.
        """
        return self.loaded_rows()["rank"].to_numpy()

    @property
    def history_lengths(self) -> NDArray[np.int64]:
        """(num_rows,) number of history items of each row.

        Raises:
            ValueError: If the record was loaded without its rows.
        """
        return self.loaded_rows()["history_length"].to_numpy()

    def loaded_rows(self) -> pa.Table:
        """The rows, one per evaluated row.

        Raises:
            ValueError: If the record was loaded without them.
        """
        if self.rows is None:
            raise ValueError(f"The record of {self.model} was loaded without its rows; load it with `rows=True`.")
        return self.rows

    def save(self, path: str | os.PathLike) -> Path:
        """Write the record as `path` and its rows as `<stem>.ranks.parquet` beside it; each file whole or not at all.

        Args:
            path: File to write, ending in `.json`; an existing record is replaced.

        Returns:
            The path.

        Raises:
            ValueError: If the name does not end in `.json`, a value is NaN or no JSON value, or the rows are not loaded.
        """
        path = Path(path)
        if path.suffix != ".json":
            raise ValueError(f"A record is a .json file, got {path.name!r}.")
        rows = self.loaded_rows()
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "rows"}
        values["protocol"] = self.protocol.to_dict()
        sidecar = path.with_name(f"{path.stem}.ranks.parquet")
        values = {"format": FORMAT, **values, "ranks": {"file": sidecar.name, "rows": len(rows), "sha256": "0" * 64}}
        to_json(values, path)  # refused before anything is written
        with atomic_path(path) as temporary, atomic_path(sidecar) as temporary_sidecar:
            pq.write_table(rows, temporary_sidecar, compression="zstd")
            values["ranks"]["sha256"] = _sha256(temporary_sidecar)
            temporary.write_text(to_json(values, path), encoding="utf-8")
        return path

    @classmethod
    def load(cls, path: str | os.PathLike, rows: bool = True) -> "EvaluationRecord":
        """Read a record and check that it is whole and unchanged.

        Args:
            path: File written by `save`.
            rows: Whether to read and check the rows too; tables of metrics do without.

        Returns:
            The record.

        Raises:
            FileNotFoundError: If the record or its rows are missing.
            ValueError: If the file is no record, has unknown or missing keys, or the rows are not those it was saved with.
        """
        path = Path(path)
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"{path} is no record of an evaluation: {error}.") from error
        known = {"format", "ranks"} | {f.name for f in fields(cls)} - {"rows"}
        if not isinstance(values, dict) or set(values) != known:
            found = set(values) if isinstance(values, dict) else set()
            raise ValueError(
                f"{path} is no record of an evaluation: unknown keys {sorted(found - known)}, missing {sorted(known - found)}."
            )
        if values.pop("format") != FORMAT:
            raise ValueError(f"{path} was written by another release; evaluate again, or install that release.")
        stored = values.pop("ranks")
        values["protocol"] = Protocol.from_dict(values["protocol"])
        return cls(**values, rows=_read_rows(path.with_name(stored["file"]), stored, path) if rows else None)


def hash_config(config: Any) -> str:
    """Hash a model's configuration: equal for equal architectures, whatever library version wrote it or folder it came from.

    Args:
        config: A `PreTrainedConfig`, anything else with `to_dict`, or a mapping.

    Returns:
        First 16 hexadecimal digits of a sha256.

    Example:
        >>> hash_config({"hidden_size": 64, "transformers_version": "5.17.0"}) == hash_config({"hidden_size": 64})
        True
    """
    values = dict(config.to_dict() if hasattr(config, "to_dict") else config)
    for key in (
        "transformers_version",
        "_name_or_path",
        "name_or_path",
        "architectures",
        "auto_map",
        "custom_pipelines",
        "torch_dtype",
        "dtype",
    ):
        values.pop(key, None)
    values.setdefault("use_cache", False)  # a `Trainer` adds it to the configuration in memory; no file keeps it
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _read_rows(sidecar: Path, stored: Mapping[str, Any], record: Path) -> pa.Table:
    if not sidecar.is_file():
        raise FileNotFoundError(
            f"{record} needs {sidecar.name} beside it; copy both, or load the record with `rows=False`."
        )
    if _sha256(sidecar) != stored["sha256"]:
        raise ValueError(f"{sidecar} is not the file {record.name} was saved with (sha256 differs); evaluate again.")
    return pq.read_table(sidecar)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def to_json(values: Mapping[str, Any], path: Path) -> str:
    """The text of a JSON file; a value that JSON has no word for (NaN) is refused before anything is written."""
    try:
        return json.dumps(values, indent=2, allow_nan=False, ensure_ascii=False) + "\n"
    except (TypeError, ValueError) as error:
        raise ValueError(f"The record for {path.name} holds a value that JSON can not hold: {error}.") from error


def describe_candidates(candidates: Candidates) -> dict[str, Any]:
    """What a record says of stored candidates."""
    items = np.ascontiguousarray(candidates.items, dtype=np.int32)
    return {
        "seed": candidates.seed,
        "strategy": candidates.strategy,
        "fingerprint": candidates.fingerprint,
        "sha256": hashlib.sha256(items.tobytes()).hexdigest(),
    }


def library_versions() -> dict[str, str]:
    """Versions of Python and of the libraries that numbers depend on."""
    names = {"hf_seqrec": "hf-seqrec", "torch": "torch", "transformers": "transformers", "numpy": "numpy"}
    return {"python": platform.python_version()} | {name: version(package) for name, package in names.items()}
