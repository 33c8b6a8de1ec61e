"""P2Rec around its LLM: groups of items from a backbone's table, users' preferences for them, enhanced vectors, controls.

Stage 0 here ([`group_items`], [`preference_distributions`]), stage 1 in `trainers/preference.py`, stage 2 here
([`enhance_items`]). Everything is fitted on the training part of a split: give `split.train`, never `data.sequences`.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sklearn.cluster import KMeans
from sklearn.metrics import silhouette_score
from transformers.utils import cached_file

from hf_seqrec.data import Catalogue, Sequences
from hf_seqrec.data.files import atomic_path
from hf_seqrec.modeling.p2rec import P2RecModel
from hf_seqrec.modeling.teacher import teacher_fingerprint

from .item_vectors import ItemVectors, content_key, write_item_vectors, write_shards


NORMALIZATIONS = ("none", "unit", "standard")
CONTROLS = ("noise", "teacher", "groups")
_SILHOUETTE_ROWS = 5000


@dataclass(frozen=True, eq=False)
class ItemGroups:
    """K groups of items.

    Attributes:
        group: int64 (num_items + 1,), 0 … K - 1 for items; -1 for padding.
        centres: (K, width) float32, of normalised vectors.
        inertia: Mean squared distance of the fitted items to their centre.
        silhouette: How much closer items are to their own group than to the next, in [-1, 1]; higher is better.
        normalize: How vectors were normalised.
    """

    group: np.ndarray
    centres: np.ndarray
    inertia: float
    silhouette: float
    normalize: str

    @property
    def num_groups(self) -> int:
        """K."""
        return len(self.centres)

    @property
    def sizes(self) -> np.ndarray:
        """Items per group, int64 (K,)."""
        return np.bincount(self.group[1:], minlength=self.num_groups)

    def one_hot(self) -> np.ndarray:
        """(num_items, K): with `fusion="add"` each group gets a learnable vector, the paper's variant CI."""
        return np.eye(self.num_groups, dtype=np.float32)[self.group[1:]]

    def save(self, path: str | os.PathLike) -> None:
        """Write to one file, whole or not at all; `load` reads it."""
        with atomic_path(path) as temporary, open(temporary, "wb") as file:
            values: dict[str, Any] = {name: np.asarray(value) for name, value in vars(self).items()}
            np.savez_compressed(file, **values)

    @classmethod
    def load(cls, path: str | os.PathLike) -> ItemGroups:
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: No such file. ValueError: a file that is damaged or something else.
        """
        try:
            with np.load(path, allow_pickle=False) as stored:
                return cls(
                    group=stored["group"],
                    centres=stored["centres"],
                    inertia=float(stored["inertia"]),
                    silhouette=float(stored["silhouette"]),
                    normalize=str(stored["normalize"]),
                )
        except (KeyError, ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
            if isinstance(error, FileNotFoundError):
                raise
            raise ValueError(
                f"{path} holds no item groups, or is damaged: make them again with `group_items`."
            ) from error


def load_groups(path_or_repo: str | os.PathLike, revision: str | None = None, token: str | None = None) -> ItemGroups:
    """The groups beside a trained P2Rec.

    Args:
        path_or_repo: Folder or Hub repository that `seqrec train p2rec` wrote.
        revision: Branch, tag or commit of the repository.
        token: Hub token for a private repository.

    Returns:
        The groups.

    Raises:
        OSError: No such folder or repository, or it has no groups. ValueError: a damaged file.
    """
    return ItemGroups.load(str(cached_file(str(path_or_repo), "groups.npz", revision=revision, token=token)))


def group_items(
    item_table: np.ndarray | torch.Tensor,
    num_groups: int = 64,
    normalize: str = "none",
    training_items: Sequence[int] | np.ndarray | None = None,
    seed: int = 0,
    restarts: int = 10,
) -> ItemGroups:
    """Stage 0: k-means over the item table of a trained backbone (equation 1).

    Args:
        item_table: (num_items + 1, width) `backbone.item_representations()`; row 0 is padding and left out.
        num_groups: K.
        normalize: `none`, `unit` length, or `standard` (each column to mean 0 and deviation 1).
        training_items: item_index of the items to fit on, repeats counting once: rows of others were never trained. They get the
            nearest group. None takes all.
        seed: Of the start values.
        restarts: Runs with other start values, of which the best is kept.

    Returns:
        The groups.

    Raises:
        ValueError: More groups than items or than distinct vectors (some group would be empty), fewer than 2 groups, an unknown
            normalisation, or values that are not finite.

    Example:
        >>> group_items(np.array([[0.0], [1.0], [1.1], [9.0]]), num_groups=2).sizes.tolist() in ([2, 1], [1, 2])
        True
    """
    if normalize not in NORMALIZATIONS:
        raise ValueError(f"`normalize` must be one of {', '.join(NORMALIZATIONS)}, got {normalize!r}.")
    vectors = torch.as_tensor(item_table).detach().cpu().numpy()[1:].astype(np.float32)
    if not np.isfinite(vectors).all():
        row = int(np.flatnonzero(~np.isfinite(vectors).all(1))[0])
        raise ValueError(f"the item table has values that are not finite at item_index {row + 1}.")
    fitted = np.arange(len(vectors)) if training_items is None else np.unique(np.asarray(training_items)) - 1
    if not 2 <= num_groups <= len(fitted):
        raise ValueError(
            f"{num_groups} groups of {len(fitted):,} items (catalogue {len(vectors):,}): `num_groups` must be at least 2 and at most "
            "the number of items in training."
        )
    if normalize == "unit":
        vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    elif normalize == "standard":
        vectors = (vectors - vectors[fitted].mean(0)) / np.maximum(vectors[fitted].std(0), 1e-12)
    distinct = len(np.unique(vectors[fitted], axis=0))
    if distinct < num_groups:
        raise ValueError(
            f"the {len(fitted):,} items have only {distinct:,} different vectors, so some of {num_groups} groups would be empty: "
            "lower `num_groups`, or train the backbone longer."
        )
    means = KMeans(num_groups, n_init=restarts, random_state=seed).fit(vectors[fitted])
    labels = means.predict(vectors)
    empty = np.flatnonzero(np.bincount(labels[fitted], minlength=num_groups) == 0)
    if len(empty):
        raise ValueError(f"k-means left {len(empty)} of {num_groups} groups empty: lower `num_groups`.")
    rows = np.random.default_rng(seed).permutation(fitted)[:_SILHOUETTE_ROWS]
    several = 2 <= len(np.unique(labels[rows])) < len(rows)
    return ItemGroups(
        group=np.concatenate([[-1], labels]).astype(np.int64),
        centres=means.cluster_centers_.astype(np.float32),
        inertia=float(means.inertia_ / len(fitted)),
        silhouette=float(silhouette_score(vectors[rows], labels[rows])) if several else 0.0,
        normalize=normalize,
    )


def sweep_groups(item_table, sizes: Sequence[int] = (16, 32, 64, 128), **options) -> dict[int, ItemGroups]:
    """Groups for several K, of which the paper gives none.

    Args:
        item_table: See [`group_items`].
        sizes: The values of K.
        options: Further arguments of `group_items`.

    Returns:
        K -> groups. Inertia falls with K by nature; choose K by the validation metric of what is trained with the vectors.

    Raises:
        ValueError: As `group_items`, before the first run for the largest K.
    """
    num_items = len(item_table) - 1
    if max(sizes) > num_items:
        raise ValueError(f"{max(sizes)} groups of {num_items:,} items: lower the largest of `sizes`.")
    return {size: group_items(item_table, size, **options) for size in sizes}


def preference_distributions(sequences: Sequences, groups: ItemGroups) -> np.ndarray:
    """Each user's share of interactions per group, ḡ.

    Args:
        sequences: The training part of a split.
        groups: Of the same catalogue.

    Returns:
        (num_users, K) float32; rows sum to 1, those of users without training items are 0 throughout.

    Raises:
        ValueError: An item_index outside the grouped catalogue, or no interaction at all.

    Example:
        >>> groups = ItemGroups(np.array([-1, 0, 1, 1]), np.zeros((2, 1)), 0.0, 0.0, "none")
        >>> sequences = Sequences(np.array([1, 2, 3, 3]), np.array([0, 4, 4]), None, pa.array(["ann", "bob"]))
        >>> preference_distributions(sequences, groups).tolist()
        [[0.25, 0.75], [0.0, 0.0]]
    """
    items = sequences.item_index
    if not len(items):
        raise ValueError("no user has a training item: there is no preference to learn.")
    if items.min() < 1 or items.max() >= len(groups.group):
        raise ValueError(
            f"the sequences hold item_index {items.min()} … {items.max()}, the groups know 1 … {len(groups.group) - 1}: group the "
            "items of this data set."
        )
    users = np.repeat(np.arange(len(sequences)), sequences.lengths)
    counts = np.zeros((len(sequences), groups.num_groups), dtype=np.float32)
    np.add.at(counts, (users, groups.group[items]), 1.0)
    return counts / np.maximum(counts.sum(1, keepdims=True), 1.0)


def enhance_items(
    model: P2RecModel,
    catalogue: Catalogue,
    folder: str | os.PathLike,
    shard_size: int = 8192,
    progress: bool = True,
    overwrite: bool = False,
) -> ItemVectors:
    """Stage 2: every item alone through the tuned LLM.

    Args:
        model: Trained by `PreferenceTrainer`.
        catalogue: Of the data set it was trained on.
        folder: Receives columns `vector` (z, width of the LLM) and `categories` (ĝ, K); resumed when an earlier run was stopped.
        shard_size: Items per file.
        progress: Whether to show a bar.
        overwrite: Replace other vectors in the folder, such as those of an earlier state of the model.

    Returns:
        The vectors; any backbone reads them with `fusion="gate"`.

    Raises:
        ValueError: Another catalogue than the model's, or a folder with other vectors.
    """
    if catalogue.num_items != model.config.num_items:
        raise ValueError(
            f"the model knows {model.config.num_items:,} items, the catalogue has {catalogue.num_items:,}: use the data set it was "
            "trained on."
        )
    description = {
        "kind": "p2rec",
        "llm": os.path.basename(str(model.config.llm_name_or_path)),
        "llm_revision": model.config.llm_revision,
        "num_groups": model.config.num_groups,
        "weights": _fingerprint(model),
    }
    device, was_training = model.encoder.device, model.training
    model.eval()

    def compute(start: int, stop: int) -> dict[str, np.ndarray]:
        states, groups = model.enhance(torch.arange(start + 1, stop + 1, device=device))
        return {"vector": states.cpu().numpy(), "categories": groups.cpu().numpy()}

    key = content_key(description, catalogue.item_ids.to_pylist())
    try:
        return write_shards(folder, catalogue.item_ids, compute, description, key, shard_size, progress, overwrite)
    finally:
        model.train(was_training)


def _fingerprint(model: P2RecModel) -> str:
    """Hash of what was trained, with the item vectors."""
    own = torch.nn.Module()
    for number, (_, tensor) in enumerate(sorted(model.own_state_dict().items())):
        own.register_buffer(f"own_{number}", tensor)
    return teacher_fingerprint(own)


def category_agreement(categories: np.ndarray, groups: ItemGroups) -> dict[str, float]:
    """How far the LLM's groups are those of k-means (section 5.4 of the paper).

    Args:
        categories: (num_items, K) ĝ of every item alone.
        groups: The k-means groups.

    Returns:
        Shares that sum to 1: `c1` the most probable group is the item's, `c2` it is the second or third, `c3` neither.

    Raises:
        ValueError: Another number of items or groups.
    """
    if categories.shape != (len(groups.group) - 1, groups.num_groups):
        raise ValueError(
            f"`categories` need shape {(len(groups.group) - 1, groups.num_groups)}, got {categories.shape}."
        )
    own = np.take_along_axis(categories, groups.group[1:, None], axis=1)
    above = (categories > own).sum(1)
    # Among equal probabilities an item's own group counts as the last, so that a model that says nothing agrees with nothing.
    above += (categories == own).sum(1) - 1
    return {
        "c1": float((above == 0).mean()),
        "c2": float(((above > 0) & (above < 3)).mean()),
        "c3": float((above >= 3).mean()),
    }


def write_controls(
    folder: str | os.PathLike,
    catalogue: Catalogue,
    enhanced: ItemVectors,
    item_table: np.ndarray | torch.Tensor,
    groups: ItemGroups,
    seed: int = 0,
    names: Sequence[str] = CONTROLS,
    overwrite: bool = False,
) -> dict[str, ItemVectors]:
    """What stands in for z to tell whether the LLM does anything; text vectors themselves are the control `encode_items` gives.

    Args:
        folder: Receives the folders `noise`, `teacher` and `groups`.
        catalogue: The items.
        enhanced: What [`enhance_items`] gave.
        item_table: (num_items + 1, width) of the backbone that taught the LLM.
        groups: The k-means groups.
        seed: Of the noise.
        names: Which of `noise`, `teacher` and `groups` to write.
        overwrite: Replace other vectors in these folders.

    Returns:
        `noise` (normal, of z's width, mean and deviation), `teacher` (the backbone's own vectors), `groups` (one-hot: the paper's
        variant CI, to be trained with `fusion="add"` and without scaling).

    Raises:
        ValueError: Another catalogue, or an unknown name.
    """
    return {
        name: write_control(
            name, os.path.join(folder, name), catalogue, enhanced, item_table, groups, seed, overwrite=overwrite
        )
        for name in names
    }


def write_control(
    name: str,
    folder: str | os.PathLike,
    catalogue: Catalogue,
    enhanced: ItemVectors | None,
    item_table: np.ndarray | torch.Tensor,
    groups: ItemGroups,
    seed: int = 0,
    overwrite: bool = False,
) -> ItemVectors:
    """One of the controls of [`write_controls`].

    Args:
        name: `noise`, `teacher` or `groups`.
        folder: Where to.
        catalogue: The items.
        enhanced: What [`enhance_items`] gave; only `noise` needs it.
        item_table: (num_items + 1, width) of the backbone that taught the LLM.
        groups: The k-means groups.
        seed: Of the noise.
        overwrite: Replace other vectors in the folder.

    Returns:
        The vectors.

    Raises:
        ValueError: Another catalogue, or an unknown name.
    """
    values, more = None, {}
    if name == "noise" and enhanced is not None:
        vectors = enhanced.read(catalogue=catalogue)
        values, more = np.random.default_rng(seed).normal(vectors.mean(), vectors.std(), vectors.shape), {"seed": seed}
    elif name == "teacher":
        values = torch.as_tensor(item_table).detach().cpu().numpy()[1:]
    elif name == "groups":
        values, more = groups.one_hot(), {"num_groups": groups.num_groups}
    if values is None:
        raise ValueError(f"there is no control {name!r} (noise needs `enhanced`), choose from {', '.join(CONTROLS)}.")
    return write_item_vectors(
        folder, catalogue.item_ids, {"vector": values}, {"kind": name, **more}, overwrite=overwrite
    )
