"""CTRL's first stage for item vectors: a backbone's item table and text vectors meet by contrast, before ordinary training.

Paper: Li et al., CTRL: Connect Collaborative and Language Model for CTR Prediction, 2023 (arXiv 2306.02841). Both kinds of vectors are
mapped into M sub-spaces; the likeness of item a and text b is Σ_m max_n a_m · b_n over unit vectors a_m, b_n; InfoNCE in both
directions with the other items of a batch as negatives. Then the backbone is trained alone, without any text.
Deviation: CTRL aligns rows of a click table (user, item and context fields) with their description; a sequential recommender has
no such rows, so its items are aligned with their texts.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn


def likeness(items: torch.Tensor, texts: torch.Tensor, subspaces: int = 1) -> torch.Tensor:
    """Σ_m max_n a_m · b_n of every item with every text; the cosine with one sub-space.

    Args:
        items: (n, size), cut into `subspaces` equal parts of unit length.
        texts: (k, size).
        subspaces: M, a divisor of size.

    Returns:
        (n, k).

    Example:
        >>> likeness(torch.tensor([[3.0, 0.0]]), torch.tensor([[1.0, 1.0]])).round(decimals=3).tolist()
        [[0.7070000171661377]]
    """
    parts = [F.normalize(one.float().unflatten(-1, (subspaces, -1)), dim=-1) for one in (items, texts)]
    return torch.einsum("amd,bnd->abmn", *parts).amax(-1).sum(-1)


def alignment_loss(
    items: torch.Tensor, texts: torch.Tensor, temperature: float = 0.1, subspaces: int = 1
) -> torch.Tensor:
    """Mean of InfoNCE from items to texts and from texts to items; row r of both is the same item.

    Args:
        items: (n, size).
        texts: (n, size).
        temperature: Divides likeness.
        subspaces: See [`likeness`].

    Returns:
        Scalar, mean over rows.
    """
    to_text = likeness(items, texts, subspaces) / temperature
    to_item = likeness(texts, items, subspaces) / temperature
    own = torch.arange(len(items), device=items.device)
    return (F.cross_entropy(to_text, own) + F.cross_entropy(to_item, own)) / 2


def align_items_with_texts(
    model,
    text_vectors: np.ndarray | torch.Tensor,
    epochs: int = 20,
    batch_size: int = 256,
    learning_rate: float = 1e-3,
    temperature: float = 0.1,
    subspaces: int = 1,
    seed: int = 0,
) -> list[float]:
    """Train a backbone's item table to tell items apart as their texts do; the two maps are thrown away afterwards.

    Args:
        model: A [`~hf_seqrec.modeling.SequentialRecommender`]; its item encoder is changed in place, nothing else.
        text_vectors: (num_items, width), such as `encode_items(…).read()`.
        epochs: Passes over the items.
        batch_size: Items per step, each other's negatives.
        learning_rate: Of Adam.
        temperature: Of InfoNCE.
        subspaces: M; must divide the width of the item table.
        seed: Of the maps and the order of items.

    Returns:
        Mean loss of each epoch.

    Raises:
        TypeError: A model without an item encoder. ValueError: text vectors of another shape or not finite, a batch of one item, a
            temperature that is not positive, or sub-spaces that do not divide the width.
    """
    encoder = getattr(getattr(model, "model", None), "item_encoder", None)
    if encoder is None:
        raise TypeError(f"{type(model).__name__} has no item encoder: align one of the ID-based backbones.")
    texts = torch.as_tensor(text_vectors).float().to(model.device)
    num_items, size = model.config.num_items, model.item_representations().shape[1]
    if texts.ndim != 2 or len(texts) != num_items or not bool(torch.isfinite(texts).all()):
        raise ValueError(f"`text_vectors` need {num_items:,} finite rows, got shape {tuple(texts.shape)}.")
    if size % subspaces:
        raise ValueError(f"`subspaces` ({subspaces}) must divide the width of the item table ({size}).")
    if temperature <= 0:
        raise ValueError(f"`temperature` must be positive, got {temperature}.")
    if min(batch_size, num_items) < 2:
        raise ValueError("contrast needs at least two items in a batch: raise `batch_size`.")
    # Texts of LLMs share one large direction, which says nothing about an item.
    texts = texts - texts.mean(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        of_item, of_text = (nn.Linear(width, size).to(model.device) for width in (size, texts.shape[1]))
    trained = [one for one in encoder.parameters() if one.requires_grad]
    optimizer = torch.optim.Adam([*trained, *of_item.parameters(), *of_text.parameters()], lr=learning_rate)
    generator, history = torch.Generator().manual_seed(seed), []
    for _ in range(epochs):
        total = 0.0
        for rows in torch.randperm(num_items, generator=generator).tensor_split(-(-num_items // batch_size)):
            rows = rows.to(model.device)
            items = model.item_representations()[rows + 1]
            loss = alignment_loss(of_item(items), of_text(texts[rows]), temperature, subspaces)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += float(loss.detach()) * len(rows) / num_items
        history.append(total)
    return history
