"""From titles or item ids to a model's input and back, so that a Hub repository alone is enough to recommend.

The catalogue travels as `items.jsonl`, one line per item in the order of the model's item table, beside
`processor_config.json`.
"""

import hashlib
import json
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from functools import cached_property
from heapq import nlargest
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from transformers import AutoProcessor, BatchFeature, ProcessorMixin
from transformers.dynamic_module_utils import custom_object_save
from transformers.utils import PROCESSOR_NAME, cached_file


ITEMS_NAME = "items.jsonl"

By = Literal["item_id", "title"]

# The keyword arguments of `from_pretrained` that say where a file is; all others belong to the Auto classes.
_HUB_KEYS = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")


class SequentialRecommendationProcessor(ProcessorMixin):
    """Maps item ids and titles to item indices and back.

    Args:
        item_ids: The owner's item ids; entry `r` has the item_index `r + 1`, 0 is padding.
        titles: One title per item, None where there is none; all None when not given.
        max_length: Number of most recent items a history is cut to.
        data_fingerprint: Fingerprint of the data set that the catalogue belongs to.

    Raises:
        TypeError: An item id or a title is not a string. ValueError: no item, an id that repeats or is empty, another
            number of titles than of ids, or a `max_length` below 1.

    Example:
        >>> processor = SequentialRecommendationProcessor(["b7", "a2", "c1"], ["Heat", "Alien", None], max_length=4)
        >>> processor([["alien", "c1"], ["b7"]])["input_ids"]
        tensor([[2, 3],
                [0, 1]])
        >>> processor.decode([2])
        [{'item_id': 'a2', 'title': 'Alien'}]
    """

    def __init__(self, item_ids, titles=None, max_length=50, data_fingerprint=None):
        super().__init__()
        self._item_ids = _to_list(item_ids)
        self._titles = _to_list(titles) if titles is not None else [None] * len(self._item_ids)
        self.max_length = max_length
        self.data_fingerprint = data_fingerprint
        self._check()

    def _check(self) -> None:
        if not isinstance(self.max_length, int) or self.max_length < 1:
            raise ValueError(f"`max_length` must be a whole number of at least 1, got {self.max_length!r}.")
        if not self._item_ids:
            raise ValueError("`item_ids` is empty: a catalogue needs at least one item.")
        if len(self._titles) != len(self._item_ids):
            raise ValueError(
                f"`titles` has {len(self._titles)} entries for {len(self._item_ids)} item ids: give one title per item, "
                "None where there is none."
            )
        for row, item_id in enumerate(self._item_ids):
            if not isinstance(item_id, str):
                raise TypeError(f"item ids must be strings, got {item_id!r} in row {row}: convert them with str().")
        for row, title in enumerate(self._titles):
            if title is not None and not isinstance(title, str):
                raise TypeError(f"titles must be strings or None, got {title!r} in row {row}.")
        if len(self._index_of) < len(self._item_ids):
            twice = Counter(self._item_ids).most_common(1)[0][0]
            raise ValueError(f"item id {twice!r} appears more than once: item ids must be unique.")
        if "" in self._index_of:
            raise ValueError(f"the item id in row {self._index_of[''] - 1} is empty.")

    @classmethod
    def from_catalogue(cls, catalogue, max_length: int, data_fingerprint: str | None = None):
        """The processor of a data set's catalogue.

        Args:
            catalogue: Has `.item_ids` and `.titles`, such as `hf_seqrec.data.Catalogue`.
            max_length: Number of most recent items a history is cut to, the model's `config.max_length`.
            data_fingerprint: Fingerprint of the data set.

        Returns:
            A processor whose item indices are those of the catalogue.
        """
        return cls(catalogue.item_ids, catalogue.titles, max_length, data_fingerprint)

    @property
    def num_items(self) -> int:
        """Number of items N; item indices are 1…N."""
        return len(self._item_ids)

    @property
    def item_ids(self) -> list[str]:
        """The owner's item ids; entry `r` belongs to item_index `r + 1`."""
        return self._item_ids

    @property
    def titles(self) -> list[str | None]:
        """Titles in the order of `item_ids`, None where there is none."""
        return self._titles

    @cached_property
    def fingerprint(self) -> str:
        """First 16 hexadecimal digits of the sha256 over item ids and titles."""
        return _fingerprint(self._items_as_bytes())

    @cached_property
    def _index_of(self) -> dict[str, int]:
        return {item_id: index for index, item_id in enumerate(self._item_ids, 1)}

    @cached_property
    def _index_of_title(self) -> dict[str, int]:
        """Normalised title -> item_index, 0 where several items share the title."""
        index: dict[str, int] = {}
        for number, title in enumerate(self._titles, 1):
            if title is not None:
                key = _normalise(title)
                index[key] = 0 if key in index else number
        return index

    def to_index(self, items: Sequence[str | Mapping[str, Any]], by: By | None = None) -> np.ndarray:
        """Item indices of items named by id or title.

        Args:
            items: Item ids or titles, mixed as you like, oldest first. Titles are compared whole, without regard to case.
                A mapping with `item_id`, such as one recommendation of the pipeline, names its item too.
            by: `"item_id"` or `"title"` when all strings are of that kind; None takes either.

        Returns:
            int64, values 1…N, shape `(len(items),)`.

        Raises:
            TypeError: `items` is no list of strings. KeyError: an unknown item; the message names near matches.
                ValueError: a title that several items share, or a string that is the id of one item and the title of
                another; the message lists the item ids.

        Example:
            >>> SequentialRecommendationProcessor(["b7", "a2"], ["Heat", "Alien"]).to_index(["ALIEN", "b7"])
            array([2, 1])
        """
        if isinstance(items, str | Mapping) or not isinstance(items, Iterable):
            raise TypeError(f"a history is a list of item ids or titles, got {items!r}: write [{items!r}].")
        if by not in (None, "item_id", "title"):
            raise ValueError(f"`by` must be 'item_id', 'title' or None, got {by!r}.")
        return np.fromiter((self._find(item, by) for item in items), dtype=np.int64)

    def _find(self, item: str | Mapping[str, Any], by: By | None) -> int:
        if isinstance(item, Mapping) and "item_id" in item:
            item, by = item["item_id"], "item_id"
        if not isinstance(item, str):
            raise TypeError(
                f"items are named by strings, an item id or a title, got {item!r} ({type(item).__name__})."
            )
        index = self._index_of.get(item) if by != "title" else None
        titled = self._index_of_title.get(_normalise(item)) if by != "item_id" else None
        if index is None and titled is None:
            raise KeyError(self._unknown_message(item, by))
        if titled == 0 or (None not in (index, titled) and index != titled):
            raise ValueError(self._ambiguous_message(item, index))
        return index or titled  # type: ignore[return-value]

    def _ambiguous_message(self, item: str, index: int | None) -> str:
        key = _normalise(item)
        rows = [row for row, title in enumerate(self._titles) if title is not None and _normalise(title) == key]
        named = ", ".join(repr(self._item_ids[row]) for row in rows[:10]) + ("…" if len(rows) > 10 else "")
        if index is not None:
            return f"{item!r} is an item id, and also the title of {named}: say which with `by='item_id'` or `by='title'`."
        return f"{len(rows)} items have the title {item!r}: name one by its item id: {named}."

    def _unknown_message(self, item: str, by: By | None) -> str:
        kind = {"item_id": "item id", "title": "title", None: "item id or title"}[by]
        message = f"no item has the {kind} {item!r} (the catalogue has {self.num_items:,} items)."
        near = self.near_matches(item)
        if near:
            return message + " Did you mean " + " or ".join(f"{m['title']!r} ({m['item_id']!r})" for m in near) + "?"
        return message

    def near_matches(self, text: str, most: int = 3) -> list[dict[str, str | None]]:
        """Items whose title or id resembles a text, best first.

        Args:
            text: What somebody typed.
            most: Largest number of items to return.

        Returns:
            `{"item_id", "title"}` per item; empty when nothing is near.
        """
        key = _normalise(text)
        pairs = {key[i : i + 2] for i in range(len(key) - 1)} or {key}
        items_of: dict[str, list[int]] = defaultdict(list)
        for row, (item_id, title) in enumerate(zip(self._item_ids, self._titles, strict=True)):
            items_of[_normalise(item_id if title is None else title)].append(row)
        # difflib needs 10 µs per name and more: it sees only the names that share most letter pairs with the text.
        shared = {name: 2 * sum(pair in name for pair in pairs) / (len(pairs) + len(name)) for name in items_of}
        likely = nlargest(200, shared, key=shared.__getitem__)
        close = [name for name in likely if key and name.startswith(key)]
        close += [name for name in get_close_matches(key, likely, n=most, cutoff=0.6) if name not in close]
        return self.decode([row + 1 for name in close for row in items_of[name]][:most])

    def __call__(  # type: ignore[override]
        self, histories: Sequence[Sequence[str | Mapping[str, Any]]], by: By | None = None
    ) -> BatchFeature:
        """Model input of histories.

        Args:
            histories: One list of items per user, oldest first; see `to_index` for how items are named.
            by: `"item_id"`, `"title"`, or None for either.

        Returns:
            `input_ids`, int64 (batch, length) item_index, left-padded with 0, cut to the last `max_length` items.

        Raises:
            TypeError: Not a list of lists. ValueError: no history, an empty one, or an ambiguous title. KeyError: an
                unknown item.

        Example:
            >>> processor = SequentialRecommendationProcessor(["b7", "a2"], ["Heat", "Alien"])
            >>> processor([["Heat"], ["Alien", "Heat"]])["input_ids"].tolist()
            [[0, 1], [2, 1]]
        """
        if isinstance(histories, str | Mapping) or not isinstance(histories, Iterable):
            raise TypeError(f"`histories` is a list with one list of items per user, got {histories!r}.")
        rows = [self.to_index(history, by)[-self.max_length :] for history in histories]
        if not rows:
            raise ValueError("`histories` is empty: give at least one user's history.")
        width = max(map(len, rows))
        input_ids = np.zeros((len(rows), width), dtype=np.int64)
        for number, row in enumerate(rows):
            if not len(row):
                raise ValueError(f"history {number} is empty: a recommender needs at least one item.")
            input_ids[number, width - len(row) :] = row
        return BatchFeature({"input_ids": torch.from_numpy(input_ids)})

    def decode(self, item_index: Iterable[int]) -> list[dict[str, str | None]]:  # type: ignore[override]
        """Ids and titles of items.

        Args:
            item_index: Values 1…N, `(n,)`.

        Returns:
            `{"item_id", "title"}` per item; the title is None where there is none.

        Raises:
            IndexError: Padding (0), or a value outside 1…N.
        """
        indices = item_index.tolist() if hasattr(item_index, "tolist") else list(item_index)
        for index in indices:
            if not 1 <= index <= self.num_items:
                raise IndexError(f"item_index {index} is not an item: need 1 to {self.num_items} (0 is padding).")
        return [{"item_id": self._item_ids[index - 1], "title": self._titles[index - 1]} for index in indices]

    def batch_decode(self, item_index: Iterable[Iterable[int]]) -> list[list[dict[str, str | None]]]:  # type: ignore[override]
        """Ids and titles of several rows of items; see `decode`."""
        return [self.decode(row) for row in item_index]

    @property
    def model_input_names(self) -> list[str]:
        """Names of what `__call__` returns."""
        return ["input_ids"]

    def to_dict(self) -> dict[str, Any]:
        """The content of `processor_config.json`: everything but the items, and their fingerprint."""
        return {
            "processor_class": type(self).__name__,
            "max_length": self.max_length,
            "num_items": self.num_items,
            "data_fingerprint": self.data_fingerprint,
            "fingerprint": self.fingerprint,
            **({"auto_map": self.auto_map} if hasattr(self, "auto_map") else {}),
        }

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.num_items:,} items, max_length={self.max_length})"

    def _items_as_bytes(self) -> bytes:
        encode = json.JSONEncoder(ensure_ascii=False).encode
        lines = [
            encode({"item_id": item_id, "title": title})
            for item_id, title in zip(self._item_ids, self._titles, strict=True)
        ]
        return ("\n".join(lines) + "\n").encode()

    def save_pretrained(self, save_directory, push_to_hub: bool = False, **kwargs) -> list[str]:
        """Write the items, the configuration, and the code that reads them.

        Args:
            save_directory: Folder; made when missing. Each file is replaced as a whole.
            push_to_hub: Also push, to `repo_id` or the folder's name.
            kwargs: For `push_to_hub`.

        Returns:
            The paths written.
        """
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        code = custom_object_save(self, folder, config=self) if self._auto_class else []  # type: ignore[arg-type]
        items = self._items_as_bytes()
        _write(folder / ITEMS_NAME, items)
        _write(folder / PROCESSOR_NAME, self.to_json_string().encode())
        if push_to_hub:
            self.push_to_hub(kwargs.pop("repo_id", folder.resolve().name), **kwargs)
        return [str(path) for path in (folder / ITEMS_NAME, folder / PROCESSOR_NAME, *(code or []))]

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, **kwargs):  # type: ignore[override]
        """Load from a folder or a Hub repository.

        Args:
            pretrained_model_name_or_path: Folder or repository id.
            kwargs: `revision`, `token`, `cache_dir`, `subfolder` and other places to look; `max_length` to override.

        Returns:
            The processor.

        Raises:
            OSError: A missing file. ValueError: the items are damaged or are not those the configuration was saved with.
        """
        where = {key: kwargs[key] for key in _HUB_KEYS if kwargs.get(key) is not None}
        paths = [cached_file(pretrained_model_name_or_path, name, **where) for name in (PROCESSOR_NAME, ITEMS_NAME)]
        config, data = json.loads(Path(str(paths[0])).read_bytes()), Path(str(paths[1])).read_bytes()
        if _fingerprint(data) != config["fingerprint"]:
            raise ValueError(
                f"{ITEMS_NAME} of {pretrained_model_name_or_path} is not the one its {PROCESSOR_NAME} was saved with "
                f"(fingerprint {_fingerprint(data)}, need {config['fingerprint']}): save or download both again."
            )
        # One call parses all lines: a raw line end never stands inside a JSON string.
        rows = json.loads(b"[" + data.rstrip().replace(b"\n", b",") + b"]")
        return cls(
            [row["item_id"] for row in rows],
            [row["title"] for row in rows],
            kwargs.get("max_length", config["max_length"]),
            config["data_fingerprint"],
        )


def _normalise(title: str) -> str:
    return title.strip().casefold()


def _to_list(values) -> list:
    # Arrow arrays would otherwise be iterated as Arrow scalars.
    return values.to_pylist() if hasattr(values, "to_pylist") else list(values)


def _fingerprint(items: bytes) -> str:
    return hashlib.sha256(items).hexdigest()[:16]


def _write(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


SequentialRecommendationProcessor.register_for_auto_class("AutoProcessor")

# Elsewhere this file runs as a repository's remote code, which must not answer for other repositories.
if __package__ == "hf_seqrec.modeling":
    from .base import SequentialRecommenderConfig

    AutoProcessor.register(SequentialRecommenderConfig, SequentialRecommendationProcessor, exist_ok=True)
