"""What P2Rec asks of its LLM, against E4SRec, which asks once per interaction: calls, tokens and seconds per epoch and per user.

Both have the same LLM, adapters, item vectors and cap on history. Calls and tokens of a whole epoch are counted, not estimated;
seconds are measured on a sample of rows and scaled to the tokens of the epoch.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from hf_seqrec.data import Sequences
from hf_seqrec.modeling.e4srec import E4SRecForSequentialRecommendation
from hf_seqrec.modeling.llm_items import ItemPromptModel
from hf_seqrec.modeling.p2rec import P2RecModel


@dataclass(frozen=True)
class LLMCost:
    """Cost of one method.

    Attributes:
        method: Name.
        calls_per_epoch: Prompts that go through the LLM in an epoch of training.
        tokens_per_epoch: Tokens in them, without padding.
        seconds_per_epoch: Forward and backward passes of an epoch, scaled from the sample.
        sampled_calls: Prompts that were timed.
        inference_calls: Prompts that must be read before every user of the data can be served once.
        inference_tokens: Tokens in them.
        inference_seconds: Forward passes of these, scaled from the sample.
    """

    method: str
    calls_per_epoch: int
    tokens_per_epoch: int
    seconds_per_epoch: float
    sampled_calls: int
    inference_calls: int
    inference_tokens: int
    inference_seconds: float

    def to_dict(self) -> dict[str, Any]:
        """The fields as values that JSON can hold."""
        return asdict(self)


def compare_cost(
    model: P2RecModel,
    sequences: Sequences,
    sample: int = 64,
    batch_size: int = 16,
    seed: int = 0,
    clock: Callable[[], float] = time.perf_counter,
    progress: bool = True,
) -> tuple[LLMCost, LLMCost]:
    """Count and time P2Rec's stages and E4SRec's training and serving.

    P2Rec: an epoch reads every user once; to serve anybody, every item is read once and the LLM is not asked again. E4SRec: an epoch reads
    every prefix of every user (instance-level training, as its code does), serving reads every user once.

    Args:
        model: P2Rec; its LLM, item vectors, LoRA and cap on history are E4SRec's too.
        sequences: The training part of a split.
        sample: Prompts to time of each kind, drawn at random.
        batch_size: Prompts per step.
        seed: Of the draw.
        clock: Seconds; `time.process_time` where other programs share the machine.
        progress: Whether to show a bar.

    Returns:
        P2Rec's cost and E4SRec's.

    Raises:
        ValueError: No user with two training items, which E4SRec needs.
    """
    lengths, config = sequences.lengths, model.config
    if not (lengths >= 2).any():
        raise ValueError("no user has two training items: E4SRec has nothing to train on.")
    e4srec = E4SRecForSequentialRecommendation.from_parts(
        str(config.llm_name_or_path), model.item_vectors.cpu(), llm_revision=config.llm_revision, lora=config.lora, max_length=config.max_length,
        llm_dtype=config.llm_dtype, token_budget=config.token_budget,
    ).to(model.encoder.device)  # fmt: skip
    users = np.flatnonzero(lengths >= 1)
    # Prefix p of a user shows p items; the next one is its label.
    owner = np.repeat(np.arange(len(lengths)), np.maximum(lengths - 1, 0))
    first = np.cumsum(np.maximum(lengths - 1, 0)) - np.maximum(lengths - 1, 0)
    shown = np.arange(len(owner)) - first[owner] + 1
    generator = np.random.default_rng(seed)

    def cap(values: np.ndarray) -> int:
        return int(np.minimum(values, config.max_length).sum())

    def some(count: int) -> np.ndarray:
        return generator.permutation(count)[:sample]

    whole = [sequences[int(user)] for user in users[some(len(users))]]
    prefixes = [(sequences[int(owner[row])], int(shown[row])) for row in some(len(owner))]
    items = [np.array([item]) for item in some(config.num_items) + 1]
    wanted = torch.full((1, config.num_groups), 1 / config.num_groups, device=model.encoder.device)

    def p2rec_step(rows: list[np.ndarray]) -> None:
        model(_ids(rows, config.max_length, wanted.device), wanted.expand(len(rows), -1)).loss.backward()

    def e4srec_step(rows: list[tuple[np.ndarray, int]]) -> None:
        ids = _ids([items[:count] for items, count in rows], config.max_length, wanted.device)
        labels = torch.full_like(ids, -100)
        labels[:, -1] = torch.tensor([int(items[count]) for items, count in rows])
        e4srec(ids, labels).loss.backward()

    def read(one: ItemPromptModel) -> Callable[[list[np.ndarray]], Any]:
        return torch.no_grad()(lambda rows: one.read(_ids(rows, config.max_length, wanted.device)))

    kinds: list[tuple[str, Any, list, Callable]] = [
        ("P2Rec trains", model, whole, p2rec_step),
        ("E4SRec trains", e4srec, prefixes, e4srec_step),
        ("P2Rec reads items", model, items, read(model)),
        ("E4SRec serves", e4srec, whole, read(e4srec)),
    ]
    was_training, rates = model.training, []
    try:
        for title, one, rows, step in tqdm(kinds, desc="LLM", leave=False, disable=not progress):
            one.train("trains" in title)
            parts = [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]
            step(parts[0])  # warms up
            begun = clock()
            for part in parts:
                step(part)
                if wanted.is_cuda:
                    torch.cuda.synchronize()
            spent = clock() - begun
            counted = cap(np.array([row[1] if isinstance(row, tuple) else len(row) for row in rows]))
            rates.append(spent / _tokens(one, counted, len(rows)))
            one.zero_grad(set_to_none=True)
    finally:
        model.train(was_training)

    epoch = (
        _tokens(model, cap(lengths[users]), len(users)),
        _tokens(e4srec, cap(shown), len(owner)),
    )
    serve = (
        _tokens(model, config.num_items, config.num_items),
        _tokens(e4srec, cap(lengths[users]), len(users)),
    )
    return (
        LLMCost(
            "P2Rec",
            len(users),
            epoch[0],
            epoch[0] * rates[0],
            len(whole),
            config.num_items,
            serve[0],
            serve[0] * rates[2],
        ),
        LLMCost(
            "E4SRec",
            len(owner),
            epoch[1],
            epoch[1] * rates[1],
            len(prefixes),
            len(users),
            serve[1],
            serve[1] * rates[3],
        ),
    )


def _tokens(model: ItemPromptModel, items: int, prompts: int) -> int:
    """Tokens of prompts that show so many items together; titles count with their mean length."""
    per_item = 1 + (model.config.num_title_tokens / model.config.num_items if model.config.titles else 0)
    return round(prompts * (len(model.program["start"]) + len(model.program["end"])) + items * per_item)


def _ids(rows: list[np.ndarray], max_length: int, device) -> torch.Tensor:
    kept = [row[-max_length:] for row in rows]
    ids = torch.zeros(len(kept), max(map(len, kept)), dtype=torch.long)
    for number, row in enumerate(kept):
        ids[number, -len(row) :] = torch.from_numpy(row.astype(np.int64))
    return ids.to(device)
