"""Vectors of items as a data set: written shard by shard, resumable after a kill, checked when read.

A folder of item vectors holds

```
item_vectors.json                       what the vectors are, their number and width; its `key` is a hash of the content
vectors/train-00000-of-00003.parquet    item_id (string), vector (fixed-size list of float32), and further columns alike
README.md                               card with the config, so that `datasets.load_dataset` reads the folder
```

A shard appears under its name only when it is whole, so a killed process leaves nothing half-written behind: the next one goes
on with the missing shards. Text vectors, vectors enhanced by a tuned LLM and the controls of a study all have this form, and every
backbone reads it (`fusion="gate"`, `concat`, `add`, `init`).
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from tqdm.auto import tqdm

from hf_seqrec.data import Catalogue
from hf_seqrec.data.files import atomic_path


MANIFEST = "item_vectors.json"
_KEY = b"hf_seqrec_key"  # in every shard, so that one of another content is never taken for a part of these
FORMAT = 1  # raise it with every change of the layout or of how vectors are computed


def content_key(description: dict[str, Any], texts: Iterator[str] | Sequence[str]) -> str:
    """The name of a content: first 16 hexadecimal digits of a sha256.

    Args:
        description: How the vectors are made; whatever changes them must be in it.
        texts: What they are made of, such as item ids and texts.

    Returns:
        The key.
    """
    digest = hashlib.sha256(json.dumps([FORMAT, description], sort_keys=True).encode())
    for text in texts:
        encoded = text.encode()
        digest.update(len(encoded).to_bytes(8, "little"))  # so that ("ab", "c") and ("a", "bc") differ
        digest.update(encoded)
    return digest.hexdigest()[:16]


@dataclass(frozen=True)
class ItemVectors:
    """A finished folder of item vectors.

    Attributes:
        folder: Where it is.
        description: What the vectors are.
        key: Hash of the content.
        num_items: Rows.
        widths: Width of each column, `vector` among them.
        shard_size: Rows per shard.

    Example:
        >>> import tempfile
        >>> folder = tempfile.mkdtemp() + "/noise"
        >>> vectors = write_item_vectors(folder, ["a", "b"], {"vector": np.eye(2)}, {"kind": "example"})
        >>> load_item_vectors(folder).read().tolist()
        [[1.0, 0.0], [0.0, 1.0]]
    """

    folder: Path
    description: dict[str, Any]
    key: str
    num_items: int
    widths: dict[str, int]
    shard_size: int

    @property
    def width(self) -> int:
        """Width of a vector."""
        return self.widths["vector"]

    def shards(self, column: str = "vector", catalogue: Catalogue | None = None) -> Iterator[np.ndarray]:
        """The rows, one shard in memory at a time.

        Args:
            column: `vector`, or a further column.
            catalogue: Refuse vectors whose items are not these in this order.

        Yields:
            (rows, width) float32.

        Raises:
            KeyError: No such column. ValueError: a shard is missing or damaged, or the items are another catalogue's.
        """
        if column not in self.widths:
            raise KeyError(f"{self.folder} has no column {column!r}; it has: {', '.join(self.widths)}.")
        if catalogue is not None and catalogue.num_items != self.num_items:
            raise ValueError(
                f"{self.folder} has vectors of {self.num_items:,} items, the catalogue has {catalogue.num_items:,}: make the "
                "vectors of this catalogue."
            )
        for number, (start, stop) in enumerate(_ranges(self.num_items, self.shard_size)):
            path = self.folder / _shard_name(number, self.num_items, self.shard_size)
            table = _read_shard(path, stop - start, self.key, self.widths)
            if table is None:
                raise ValueError(
                    f"{path} is missing or damaged, the vectors are half-written: make them again, what is whole is kept."
                )
            if catalogue is not None:
                ids = catalogue.item_ids.slice(start, stop - start)
                if not table["item_id"].combine_chunks().equals(ids):
                    raise ValueError(
                        f"the items of {path} are not those of the catalogue (rows {start:,} to {stop:,}): the vectors were made "
                        "for another catalogue, or its rows have another order."
                    )
            yield _matrix(table[column])

    def read(self, column: str = "vector", catalogue: Catalogue | None = None) -> np.ndarray:
        """All rows, (num_items, width) float32; arguments and errors as in `shards`."""
        return np.concatenate(list(self.shards(column, catalogue)))


def load_item_vectors(
    path_or_repo: str | os.PathLike, revision: str | None = None, token: str | None = None
) -> ItemVectors:
    """Open item vectors; rows are read, and checked, by its `shards` and `read`.

    Args:
        path_or_repo: Folder that `encode_items`, `enhance_items` or `write_item_vectors` wrote, or a data set repository on the Hub
            that `hf_seqrec.hub.push_item_vectors` filled.
        revision: Branch, tag or commit of the repository; not for folders.
        token: Hub token for a private repository.

    Returns:
        The open folder.

    Raises:
        FileNotFoundError: Neither a folder of item vectors nor a repository of them. ValueError: not all of its shards have been
            written, or a revision of a folder.
    """
    folder = Path(path_or_repo)
    if not folder.exists():
        folder = _download(os.fspath(path_or_repo), revision, token)
    elif revision is not None:
        raise ValueError(f"revision={revision!r} is for Hub repositories, but {folder} is a folder: leave it out.")
    manifest = _read_manifest(folder)
    if manifest is None:
        raise FileNotFoundError(f"{folder} holds no item vectors ({MANIFEST} is missing or unreadable).")
    names = [
        _shard_name(number, manifest["num_items"], manifest["shard_size"])
        for number in range(len(list(_ranges(manifest["num_items"], manifest["shard_size"]))))
    ]
    missing = [name for name in names if not (folder / name).is_file()]
    if missing or "widths" not in manifest:
        raise ValueError(
            f"{folder} is half-written, {len(missing)} of {len(names)} shards are missing: make the vectors again with the same "
            "settings, what is there is kept."
        )
    values = {name: manifest[name] for name in ("description", "key", "num_items", "widths", "shard_size")}
    return ItemVectors(folder=folder, **values)


def _download(repo: str, revision: str | None, token: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError

    try:
        patterns = [MANIFEST, "vectors/*.parquet"]
        return Path(
            snapshot_download(repo, repo_type="dataset", revision=revision, token=token, allow_patterns=patterns)
        )
    except (HFValidationError, RepositoryNotFoundError) as error:
        raise FileNotFoundError(
            f"{repo} holds no item vectors: it is neither a folder nor a Hub repository."
        ) from error


def write_item_vectors(
    folder: str | os.PathLike,
    item_ids: Sequence[str] | pa.Array,
    columns: dict[str, np.ndarray],
    description: dict[str, Any],
    shard_size: int = 8192,
    overwrite: bool = False,
) -> ItemVectors:
    """Write vectors that are in memory.

    Args:
        folder: Where to; other vectors in it are refused, unless `overwrite`.
        item_ids: One per row, in the order of the catalogue.
        columns: `vector` and any further ones, (num_items, width) each.
        description: What the vectors are.
        shard_size: Rows per file.
        overwrite: Replace other vectors.

    Returns:
        The folder, open.

    Raises:
        ValueError: Another number of rows, values that are not finite, or a folder with other vectors.
    """
    columns = {name: np.asarray(values, dtype=np.float32) for name, values in columns.items()}
    ids = pa.array(item_ids, pa.string())
    for name, values in columns.items():
        if values.ndim != 2 or len(values) != len(ids):
            raise ValueError(f"column {name!r} needs shape ({len(ids)}, width), got {values.shape}.")
    digest = hashlib.sha256(b"".join(np.ascontiguousarray(columns[name]).tobytes() for name in sorted(columns)))
    key = content_key({**description, "values": digest.hexdigest()}, ids.to_pylist())
    return write_shards(
        folder,
        ids,
        lambda start, stop: {name: values[start:stop] for name, values in columns.items()},
        description,
        key,
        shard_size,
        progress=False,
        overwrite=overwrite,
    )


def write_shards(
    folder: str | os.PathLike,
    item_ids: pa.Array,
    compute: Callable[[int, int], dict[str, np.ndarray]],
    description: dict[str, Any],
    key: str,
    shard_size: int = 8192,
    progress: bool = True,
    overwrite: bool = False,
) -> ItemVectors:
    """Compute and write the shards that are not there yet; with several processes each does its share.

    Args:
        folder: Where to.
        item_ids: One per row.
        compute: Rows `start` to `stop` as columns, `vector` among them, (stop - start, width) each.
        description: What the vectors are.
        key: Hash of the content, see [`content_key`].
        shard_size: Rows per shard; one shard is in memory at a time.
        progress: Whether to show a bar.
        overwrite: Replace other vectors in the folder instead of refusing them.

    Returns:
        The folder, open.

    Raises:
        ValueError: The folder holds other vectors, `compute` gave another shape or values that are not finite.
    """
    if shard_size < 1:
        raise ValueError(f"`shard_size` must be at least 1, got {shard_size}.")
    if not len(item_ids):
        raise ValueError("there is no item to make vectors of.")
    folder, total = Path(folder), len(item_ids)
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    rank, world = (torch.distributed.get_rank(), torch.distributed.get_world_size()) if distributed else (0, 1)
    manifest = _read_manifest(folder)
    others = manifest is not None and (manifest["key"], manifest["shard_size"]) != (key, shard_size)
    if distributed:
        torch.distributed.barrier()  # nobody changes the manifest before everybody has read it
    if others and overwrite:
        if rank == 0:
            # The manifest first: without it the folder holds no vectors, whatever is left of them.
            (folder / MANIFEST).unlink()
            shutil.rmtree(folder / "vectors", ignore_errors=True)
        if distributed:
            torch.distributed.barrier()
        manifest = None
    elif manifest is not None and others:
        raise ValueError(
            f"{folder} holds other vectors (made from {json.dumps(manifest['description'])}, key {manifest['key']}, shards of "
            f"{manifest['shard_size']}), not {json.dumps(description)}, key {key}, shards of {shard_size}: choose another folder or "
            "delete it."
        )
    content = {"key": key, "num_items": total, "shard_size": shard_size, "description": description}
    if manifest is None:
        _write_json(folder / MANIFEST, content)
    widths = (manifest or {}).get("widths")
    ranges = list(_ranges(total, shard_size))
    with tqdm(
        total=total, desc=folder.name, unit="item", disable=not progress or rank != 0, initial=0, leave=False
    ) as bar:
        for number, (start, stop) in enumerate(ranges):
            path = folder / _shard_name(number, total, shard_size)
            if number % world == rank and _read_shard(path, stop - start, key, widths, item_ids[start:stop]) is None:
                columns = _checked(compute(start, stop), start, stop)
                widths = widths or {name: values.shape[1] for name, values in columns.items()}
                _write_shard(path, item_ids[start:stop], columns, key)
            bar.update(stop - start)
    if distributed:
        torch.distributed.barrier()
    if widths is None:  # the shards were all there, or all another process's
        schema = pq.read_schema(folder / _shard_name(0, total, shard_size))
        widths = {field.name: field.type.list_size for field in schema if field.name != "item_id"}
    if rank == 0:
        _write_card(folder, total, description)
        _write_json(folder / MANIFEST, {**content, "widths": widths})
    if distributed:
        torch.distributed.barrier()
    return load_item_vectors(folder)


def _checked(columns: dict[str, np.ndarray], start: int, stop: int) -> dict[str, np.ndarray]:
    for name, values in columns.items():
        if values.ndim != 2 or len(values) != stop - start:
            raise ValueError(f"column {name!r} of rows {start} to {stop} has the shape {values.shape}.")
        if not np.isfinite(values).all():
            row = start + int(np.flatnonzero(~np.isfinite(values).all(1))[0])
            raise ValueError(
                f"the {name} of item_index {row + 1} has values that are not finite: check the model, or use a wider dtype "
                "such as float32."
            )
    return columns


def _ranges(total: int, size: int) -> Iterator[tuple[int, int]]:
    return ((start, min(start + size, total)) for start in range(0, total, size))


def _shard_name(number: int, total: int, size: int) -> str:
    return f"vectors/train-{number:05}-of-{-(-total // size):05}.parquet"


def _write_shard(path: Path, item_ids: pa.Array, columns: dict[str, np.ndarray], key: str) -> None:
    lists = {
        name: pa.FixedSizeListArray.from_arrays(
            pa.array(np.ascontiguousarray(values, dtype=np.float32).ravel()), values.shape[1]
        )
        for name, values in columns.items()
    }
    with atomic_path(path) as temporary:
        table = pa.table({"item_id": item_ids, **lists}, metadata={_KEY: key})
        pq.write_table(table, temporary, compression="zstd")


def _read_shard(
    path: Path, rows: int, key: str, widths: dict[str, int] | None, item_ids: pa.Array | None = None
) -> pa.Table | None:
    """The shard, or None when it is missing, damaged, of another content, or not of these rows."""
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowInvalid):
        return None
    if table.num_rows != rows or (table.schema.metadata or {}).get(_KEY) != key.encode():
        return None
    if item_ids is not None and not table["item_id"].combine_chunks().equals(item_ids):
        return None
    found = {field.name: field.type.list_size for field in table.schema if field.name != "item_id"}
    return table if widths is None or found == widths else None


def _matrix(column: pa.ChunkedArray) -> np.ndarray:
    array = column.combine_chunks()
    return array.flatten().to_numpy(zero_copy_only=False).reshape(len(array), -1)


def _read_manifest(folder: Path) -> dict[str, Any] | None:
    try:
        return json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError):
        return None


def _write_json(path: Path, content: dict[str, Any]) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def _write_card(folder: Path, total: int, description: dict[str, Any]) -> None:
    head = "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n    path: vectors/train-*\n---\n"
    body = f"# Item vectors\n\n{total:,} items. Made by hf-seqrec from:\n\n```json\n{json.dumps(description, indent=1)}\n```\n"
    with atomic_path(folder / "README.md") as temporary:
        temporary.write_text(head + body, encoding="utf-8")
