"""Stage 1 of A-LLMRec: one latent space for the teacher's item vectors and item texts.

Paper: Kim et al., Large Language Models meet Collaborative Filtering, KDD 2024 (arXiv 2404.11343). With E_i the teacher's item
vector, Q_i a text vector, f and g the encoders, f' and g' the decoders, x_u the teacher's user vector:

L = BCE(x_u · f'(f(E_i))) + MSE(f(E_i), g(Q_i)) + α MSE(E_i, f'(f(E_i))) + β MSE(Q_i, g'(g(Q_i))), α = 0.5, β = 0.2.

Deviation: Q_i is the mean state of the model's own LLM over the title, so no second text encoder is needed.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from hf_seqrec.data import Sequences
from hf_seqrec.modeling.llm_srec import LLMSRecForSequentialRecommendation

from .data import DataCollatorForNextItem, NegativeSampler, SequenceDataset


def aligned_item_losses(aligned, items, texts, users, positive, negative) -> dict[str, torch.Tensor]:
    """The four terms of stage 1, unweighted.

    Args:
        aligned: An `AlignedItemEncoder`.
        items: (num_items + 1, d) teacher's item vectors.
        texts: (num_items + 1, t) text vectors.
        users: (batch, d) teacher's user vectors.
        positive: (batch,) item_index that follows each history.
        negative: (batch,) item_index that does not.

    Returns:
        `recommendation`, `matching`, `item_reconstruction`, `text_reconstruction`, means over the batch.
    """
    both = torch.cat([positive, negative])
    latent = aligned.encode_item(items[both])
    decoded = aligned.decode_item(latent)
    scores = (users.repeat(2, 1) * decoded).sum(-1)
    liked = torch.cat([torch.ones(len(positive)), torch.zeros(len(negative))]).to(scores)
    text_latent = aligned.encode_text(texts[both])
    return {
        "recommendation": F.binary_cross_entropy_with_logits(scores, liked),
        "matching": F.mse_loss(latent, text_latent),
        "item_reconstruction": F.mse_loss(decoded, items[both]),
        "text_reconstruction": F.mse_loss(aligned.decode_text(text_latent), texts[both]),
    }


def train_aligned_items(
    model: LLMSRecForSequentialRecommendation,
    sequences: Sequences,
    epochs: int = 10,
    batch_size: int = 64,
    learning_rate: float = 1e-4,
    alpha: float = 0.5,
    beta: float = 0.2,
    seed: int = 0,
    text_vectors: torch.Tensor | None = None,
) -> list[dict[str, float]]:
    """Train the item encoder of a model built with `item_vectors="aligned"`, then fill its item slots with the latents.

    Args:
        model: Changed in place; do this before its stage 2, which is `DistillationTrainer`.
        sequences: The training part of a split. Every epoch visits one random prefix of each sequence.
        epochs: Passes over the users.
        batch_size: Users per step.
        learning_rate: Of Adam.
        alpha: Weight of the reconstruction of item vectors.
        beta: Weight of the reconstruction of text vectors.
        seed: Of prefixes, negatives and order.
        text_vectors: (num_items + 1, LLM width); None takes the LLM's mean states over titles.

    Returns:
        Mean of every term per epoch.

    Raises:
        ValueError: The model's item slots hold something else, or text vectors of another shape.
    """
    if model.config.item_vectors != "aligned":
        raise ValueError(
            f"stage 1 of A-LLMRec needs item_vectors='aligned', the model has {model.config.item_vectors!r}."
        )
    num_items, device = model.teacher.config.num_items, model.user_out.device
    items = model.teacher.item_representations().detach().float()
    if text_vectors is None:
        text_vectors = F.pad(model.text_vectors(torch.arange(1, num_items + 1, device=device)), (0, 0, 1, 0))
    if text_vectors.shape != (num_items + 1, model.encoder.width):
        raise ValueError(
            f"`text_vectors` needs shape {(num_items + 1, model.encoder.width)}, got {tuple(text_vectors.shape)}."
        )
    dataset = SequenceDataset(sequences, model.config.max_length, rows="prefix", prefixes_per_sequence=1, seed=seed)
    collate = DataCollatorForNextItem(
        True, NegativeSampler(num_items, 1, per="sequence", exclude_history=True), sequences
    )
    aligned, generator, history = model.aligned, torch.Generator().manual_seed(seed), []
    aligned.requires_grad_(True)
    optimizer = torch.optim.Adam(aligned.parameters(), lr=learning_rate)
    for epoch in range(epochs):
        dataset.set_epoch(epoch)
        sums: dict[str, float] = {}
        for rows in torch.randperm(len(dataset), generator=generator).split(batch_size):
            batch = {name: tensor.to(device) for name, tensor in collate([dataset[int(row)] for row in rows]).items()}
            users = model.teacher_users(batch["input_ids"])
            terms = aligned_item_losses(
                aligned, items, text_vectors, users, batch["labels"][:, -1], batch["negatives"][:, 0, 0]
            )
            loss = terms["recommendation"] + terms["matching"]
            loss = loss + alpha * terms["item_reconstruction"] + beta * terms["text_reconstruction"]
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            for name, term in terms.items():
                sums[name] = sums.get(name, 0.0) + float(term.detach()) * len(rows) / len(dataset)
        history.append(sums)
    aligned.requires_grad_(False)
    model.update_item_latents()
    return history
