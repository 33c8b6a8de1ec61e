"""Item texts through a language model: one vector per item, made once, kept in a cache by content.

The cache's folder is named by a hash over the LLM (id and commit, or its weights), the template, the pooling and every text, so
vectors of another LLM or catalogue are never taken for these. See `item_vectors` for the files.
"""

from __future__ import annotations

import os
import string
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.decomposition import PCA, IncrementalPCA
from transformers import AutoTokenizer, PreTrainedModel

from hf_seqrec.data import Catalogue
from hf_seqrec.modeling.llm import load_llm, pad, resolve_revision
from hf_seqrec.modeling.prompting import UNTITLED, special_tokens_around
from hf_seqrec.modeling.teacher import teacher_fingerprint

from .item_vectors import ItemVectors, content_key, write_shards


POOLINGS = ("mean", "last", "cls")

# One line per column; a line whose columns an item lacks is left out.
TEMPLATES = {
    "title": "{title}",
    "title-brand-categories": "Title: {title}.\nBrand: {brand}.\nCategories: {categories}.",
    "title-genres": "Title: {title}.\nGenres: {genres}.",
    "all": "Title: {title}.\nBrand: {brand}.\nCategories: {categories}.\nGenres: {genres}.\nDescription: {description}",
}
_TOKEN_BUDGET = {"cpu": 2048, "cuda": 65536}
_EXACT_PCA_ROWS = 20_000


def item_texts(catalogue: Catalogue, template: str = "title", start: int = 0, stop: int | None = None) -> list[str]:
    r"""The text of each item.

    Args:
        catalogue: The items.
        template: A name of `TEMPLATES` (columns that the catalogue lacks are left out), or a text with columns in braces. Each
            of its lines is left out for an item that has none of its values.
        start: First row.
        stop: One past the last row; None for all.

    Returns:
        One line of text per item; `"No title"` where nothing is known.

    Raises:
        ValueError: A text that names no column, or one the catalogue lacks.

    Example:
        >>> catalogue = Catalogue(pa.table({"item_id": ["a", "b"], "title": ["Heat", None], "genres": [["Crime"], None]}))
        >>> item_texts(catalogue, "{title}\nGenres: {genres}")
        ['Heat Genres: Crime', 'No title']
    """
    lines = [(line, _fields(line)) for line in TEMPLATES.get(template, template).split("\n") if line]
    known = set(catalogue.table.column_names)
    unknown = sorted({name for _, names in lines for name in names} - known)
    if template in TEMPLATES:
        lines = [(line, names) for line, names in lines if set(names) <= known]
    elif unknown or not any(names for _, names in lines):
        raise ValueError(
            f"the template {template!r} {f'names {unknown}' if unknown else 'names no column'}; the catalogue has "
            f"{', '.join(sorted(known))}, ready templates are {', '.join(TEMPLATES)}."
        )
    wanted = sorted({name for _, names in lines for name in names})
    table = catalogue.table.slice(start, None if stop is None else stop - start)
    columns = {name: [_one_line(value) for value in table[name].to_pylist()] for name in wanted}
    texts = []
    for row in range(table.num_rows):
        values = {name: column[row] for name, column in columns.items()}
        said = [line.format(**values) for line, names in lines if not names or any(values[name] for name in names)]
        texts.append(" ".join(said) if any(values.values()) else UNTITLED)
    return texts


def _fields(line: str) -> list[str]:
    return [name for _, name, _, _ in string.Formatter().parse(line) if name]


def _one_line(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(filter(None, map(_one_line, value)))
    return " ".join(str(value).split()) if value is not None else ""


def encode_items(
    llm: str | os.PathLike | PreTrainedModel,
    catalogue: Catalogue,
    cache: str | os.PathLike,
    template: str = "title",
    pooling: str = "mean",
    max_tokens: int = 256,
    revision: str | None = None,
    tokenizer=None,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device | None = None,
    shard_size: int = 8192,
    token_budget: int | None = None,
    progress: bool = True,
) -> ItemVectors:
    """Vectors of item texts, from the cache as far as they are there.

    Args:
        llm: Hub id or folder of any model of the Auto classes, or a loaded one; of an encoder-decoder the encoder is read.
        catalogue: The items.
        cache: Folder of caches; this one is a folder in it, named by its content.
        template: See [`item_texts`].
        pooling: What of the last layer's states is taken: their `mean`, the `last` token's (decoder-only LLMs), or the first's
            (`cls`, BERT and its kind).
        max_tokens: Texts are cut to this many tokens, special ones included.
        revision: Commit, tag or branch of the LLM.
        tokenizer: Of a loaded LLM.
        dtype: Of the LLM's weights; `auto` is the checkpoint's.
        device: Where the LLM runs; None takes a GPU when there is one. A loaded LLM stays where it is.
        shard_size: Items per file, of which one is in memory at a time.
        token_budget: Tokens in one pass, padding included; None chooses by device.
        progress: Whether to show a bar.

    Returns:
        The vectors, float32; `.read(catalogue=catalogue)` gives (num_items, width).

    Raises:
        ValueError: An unknown pooling or template, or a state that is not finite. TypeError: a loaded LLM without its tokenizer.

    Example:
        >>> encode_items("sentence-transformers/all-MiniLM-L6-v2", data.catalogue, "cache").width  # doctest: +SKIP
        384
    """
    if pooling not in POOLINGS:
        raise ValueError(f"`pooling` must be one of {', '.join(POOLINGS)}, got {pooling!r}.")
    if max_tokens < 1:
        raise ValueError(f"`max_tokens` must be at least 1, got {max_tokens}.")
    item_texts(catalogue, template, 0, 1)  # a wrong template fails before the LLM is loaded
    if isinstance(llm, str | os.PathLike):
        name, place = str(llm), device or ("cuda" if torch.cuda.is_available() else "cpu")
        revision = resolve_revision(name, revision)
        tokenizer = tokenizer or AutoTokenizer.from_pretrained(name, revision=revision)
        model = load_llm(name, revision, dtype).to(place)
    elif tokenizer is None:
        raise TypeError("a loaded LLM needs its tokenizer: pass `tokenizer=`, or give the LLM's name.")
    else:
        name, revision, model = llm.config.name_or_path, None, llm
    description = {
        "kind": "text",
        "llm": Path(name).name if os.path.isdir(name) else name,
        # A folder has no commits, and a loaded LLM may have been trained further.
        "revision": revision if isinstance(llm, str) and not os.path.isdir(name) else teacher_fingerprint(model),
        "dtype": str(model.dtype),
        "template": TEMPLATES.get(template, template),
        "pooling": pooling,
        "max_tokens": max_tokens,
    }
    ids, total = catalogue.item_ids, catalogue.num_items

    def content():
        for start in range(0, total, shard_size):
            stop = min(start + shard_size, total)
            yield from ids[start:stop].to_pylist()
            yield from item_texts(catalogue, template, start, stop)

    key = content_key({**description, "shard_size": shard_size}, content())
    around = special_tokens_around(tokenizer)

    def compute(start: int, stop: int) -> dict[str, np.ndarray]:
        texts = item_texts(catalogue, template, start, stop)
        return {"vector": _encode(model, tokenizer, texts, around, pooling, max_tokens, token_budget)}

    return write_shards(Path(cache) / key, ids, compute, description, key, shard_size, progress)


@torch.inference_mode()
def _encode(model, tokenizer, texts: list[str], around, pooling: str, max_tokens: int, budget: int | None):
    start, end = around
    room = max(max_tokens - len(start) - len(end), 1)
    tokens = tokenizer(texts, add_special_tokens=False, split_special_tokens=True, verbose=False).input_ids
    rows = [np.array([*start, *row[:room], *end], dtype=np.int64) for row in tokens]
    device = model.get_input_embeddings().weight.device
    budget = budget or _TOKEN_BUDGET.get(device.type, 8192)
    order = np.argsort([-len(row) for row in rows], kind="stable")
    out, begin = None, 0
    while begin < len(order):
        chosen = order[begin : begin + max(1, budget // len(rows[order[begin]]))]
        ids, mask = pad([rows[row] for row in chosen], device)
        states = model(input_ids=ids, attention_mask=mask).last_hidden_state.float()
        if pooling == "mean":
            vectors = (states * mask.unsqueeze(-1)).sum(1) / mask.sum(1, keepdim=True)
        else:
            column = mask.sum(1) - 1 if pooling == "last" else torch.zeros_like(mask[:, 0])
            vectors = states[torch.arange(len(chosen), device=device), column]
        if out is None:
            out = np.empty((len(rows), vectors.shape[1]), dtype=np.float32)
        out[chosen] = vectors.cpu().numpy()
        begin += len(chosen)
    return out


def reduce_by_pca(
    vectors: ItemVectors,
    size: int,
    catalogue: Catalogue | None = None,
    training_items: Sequence[int] | np.ndarray | None = None,
) -> np.ndarray:
    """Item vectors on their principal axes, fitted on the items of the training part.

    Args:
        vectors: The vectors; one shard is in memory at a time.
        size: Number of axes.
        catalogue: Refuse vectors of another catalogue.
        training_items: item_index of the items to fit on, repeats counting once; None takes all.

    Returns:
        (num_items, size) float32, centred at the mean of the training items.

    Raises:
        ValueError: More axes than the vectors' width or than training items.
    """
    used = np.ones(vectors.num_items + 1, dtype=bool)
    if training_items is not None:
        used[:] = False
        used[np.asarray(training_items)] = True
    used = used[1:]
    rows = int(used.sum())
    if not 1 <= size <= min(vectors.width, rows):
        raise ValueError(
            f"{size} principal axes need vectors of at least that width and as many training items; the vectors are "
            f"{vectors.width} wide, {rows:,} items are in training."
        )
    if rows <= _EXACT_PCA_ROWS:
        axes = PCA(size, svd_solver="full").fit(np.concatenate(list(_chosen_rows(vectors, used, catalogue))))
    else:
        axes, waiting = IncrementalPCA(size), np.empty((0, vectors.width), dtype=np.float32)
        for part in _chosen_rows(vectors, used, catalogue):
            waiting = np.concatenate([waiting, part])
            if len(waiting) >= 2 * size:  # a step needs at least as many rows as axes
                ready, waiting = waiting[: len(waiting) - size], waiting[len(waiting) - size :]
                axes.partial_fit(ready)
        axes.partial_fit(waiting)
    return np.concatenate([axes.transform(part).astype(np.float32) for part in vectors.shards(catalogue=catalogue)])


def _chosen_rows(vectors: ItemVectors, used: np.ndarray, catalogue: Catalogue | None):
    start = 0
    for part in vectors.shards(catalogue=catalogue):
        yield part[used[start : start + len(part)]]
        start += len(part)


def centre_and_scale(vectors: np.ndarray, training_items: Sequence[int] | np.ndarray | None = None) -> np.ndarray:
    """Vectors around 0 with a mean squared length of 1, so that a backbone starts with ID and side vectors of like size.

    States of LLMs lie far from 0 in one direction, and their length differs between LLMs by orders of magnitude.

    Args:
        vectors: (num_items, width).
        training_items: item_index of the items whose mean and length count; None takes all.

    Returns:
        (num_items, width) float32.

    Raises:
        ValueError: All vectors are equal.
    """
    fitted = vectors if training_items is None else vectors[np.unique(np.asarray(training_items)) - 1]
    mean = fitted.mean(0, dtype=np.float64)
    length = float(np.sqrt(np.square(fitted - mean).sum(1).mean()))
    if not length > 0:
        raise ValueError("all item vectors are equal: they say nothing about items.")
    return ((vectors - mean) / length).astype(np.float32)
