"""What it costs to rank candidates with an LLM's own head: prompts read once against once per candidate, and what soft prompts add.

    python benchmarks/delrec.py                                        # small shapes of three kinds, on the CPU
    python benchmarks/delrec.py --llm llama-1b flan-t5-xl --device cuda

Requests are test users of a data set: ten titles of history, fifteen stored candidates, 80 soft prompts. LLMs have random weights in
a named shape (the arithmetic is the same) or are folders with trained ones. Per LLM and in turns, so that load meets all alike:

    single    every (prompt, candidate) pair by itself: one plain call of the LLM, no padding, no cache
    pairs     the same pairs in batches of similar length, only answers meeting the vocabulary
    shared    ours, one request after the other: the prompt is read once
    batch     ours, all requests in one call
    bare      `shared` with a prompt that has no soft prompts

All but `bare` must give equal scores. Speed is CPU time of the process on a CPU (one thread), which other processes disturb little, and
wall time on a GPU. Memory is the largest growth of the resident set during one request (CPU) or of allocated memory (GPU).
"""

import argparse
import ctypes
import itertools
import json
import os
import platform
import resource
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from rich.console import Console
from rich.table import Table
from studies.backbones import data_folder
from transformers import AutoTokenizer

from hf_seqrec.data import draw_candidates, leave_one_out, load_recommendation_data
from hf_seqrec.data.files import atomic_path
from hf_seqrec.modeling.candidate_prompts import (
    compile_candidate_template,
    distinct_titles,
    make_candidate_template,
)
from hf_seqrec.modeling.llm import SlotVectors, llm_kind
from hf_seqrec.modeling.prompting import Slot, tokenize_titles
from hf_seqrec.modeling.verbalizers import Verbalizer, build_language_model, load_language_model


ROOT = Path(__file__).resolve().parents[1]
TARGETS = {"ratio": 5.0, "overhead": 1.1, "difference": 1e-4}
# Shapes of LLMs; the vocabulary is the tokenizer's.
SHAPES: dict[str, dict[str, Any]] = {
    "llama-tiny": {
        "model_type": "llama", "hidden_size": 256, "num_hidden_layers": 6, "num_attention_heads": 8, "num_key_value_heads": 4,
        "intermediate_size": 688, "max_position_embeddings": 2048,
    },
    "t5-tiny": {
        "model_type": "t5", "d_model": 256, "d_kv": 32, "d_ff": 512, "num_layers": 4, "num_decoder_layers": 4, "num_heads": 8,
        "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False, "decoder_start_token_id": 0, "n_positions": 2048,
    },
    "bert-tiny": {
        "model_type": "bert", "hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 1024,
        "max_position_embeddings": 1024,
    },
    "llama-1b": {
        "model_type": "llama", "hidden_size": 2048, "num_hidden_layers": 16, "num_attention_heads": 32, "num_key_value_heads": 8,
        "intermediate_size": 8192, "max_position_embeddings": 4096, "vocab_size": 128256,
    },
    "flan-t5-xl": {
        "model_type": "t5", "d_model": 2048, "d_kv": 64, "d_ff": 5120, "num_layers": 24, "num_decoder_layers": 24, "num_heads": 32,
        "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False, "decoder_start_token_id": 0, "vocab_size": 32128,
    },
}  # fmt: skip


def tokenizer_folder() -> Path:
    """An English tokenizer of 14,019 pieces."""
    folder = Path(os.environ.get("HF_SEQREC_MODELS", ROOT / ".." / "shared" / "models")) / "tinytalk-gptneo-3m"
    if not folder.is_dir():
        raise SystemExit(f"no tokenizer at {folder}: set HF_SEQREC_MODELS to the folder with small language models.")
    return folder


class Bench:
    """One LLM, its prompts for a number of requests, and the ways of scoring them."""

    def __init__(self, name: str, args, data, split):
        torch.manual_seed(args.seed)
        if name in SHAPES:
            self.tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder())
            self.llm = build_language_model({"vocab_size": len(self.tokenizer) + 1, "dropout": 0.0, **SHAPES[name]})
            self.tokenizer.add_special_tokens({"mask_token": "<mask>"})
        else:
            self.tokenizer, self.llm = AutoTokenizer.from_pretrained(name), load_language_model(name, head=args.head)
        self.name, self.device = name, args.device
        self.llm = self.llm.to(args.device, torch.bfloat16 if args.device == "cuda" else torch.float32)
        self.kind = llm_kind(self.llm.config)
        limit = getattr(self.llm.config, "max_position_embeddings", None) or 2048
        test, count = split.test, args.candidates
        rows = np.random.default_rng(args.seed).permutation(len(test))[: args.requests]
        drawn = draw_candidates(test, data.catalogue.num_items, count - 1, seed=args.seed).items
        self.candidates = torch.from_numpy(drawn[rows].astype(np.int64))
        self.prompts: dict[str, list[np.ndarray]] = {}
        for soft in (True, False):
            program = compile_candidate_template(
                make_candidate_template("title", "movie", soft=soft, backbone="SASRec"),
                self.tokenizer,
                self.kind,
                args.soft if soft else 0,
                history_length=args.history,
                num_candidates=count,
                max_tokens=limit,
                num_masks=args.masks,
            )
            if soft:
                titles = tokenize_titles(data.catalogue.titles.to_pylist(), self.tokenizer, program)
                self.titles = distinct_titles(*titles, self.tokenizer, program.max_title_tokens)
                self.answer = program.answer
                tokens, offsets = self.titles
                self.rows = [tokens[begin:end] for begin, end in itertools.pairwise(offsets)]
            order = np.random.default_rng(args.seed)  # the target must not stand first
            self.prompts["soft" if soft else "bare"] = [
                program.prompt(
                    {
                        "history": [self.rows[item - 1] for item in test.history(row)[-args.history :]],
                        "candidates": [self.rows[item - 1] for item in order.permutation(candidates)],
                    }
                )
                for row, candidates in zip(rows.tolist(), self.candidates.tolist(), strict=True)
            ]
        width = self.llm.get_input_embeddings().weight.shape[1]
        self.soft = torch.randn(args.soft, width, device=args.device)
        self.ours = self.verbalizer(True)
        self.bare_ours = self.verbalizer(True)
        self.by_pair = self.verbalizer(False)

    def verbalizer(self, share: bool) -> Verbalizer:
        """A scorer of titles."""
        return Verbalizer(self.llm, self.answer, share_prefix=share).eval()

    def ask(self, verbalizer: Verbalizer, kind: str, rows: slice) -> torch.Tensor:
        """Scores of some requests."""
        vectors = {Slot.SOFT_PROMPT: SlotVectors(self.soft)} if kind == "soft" else {}
        return verbalizer(self.prompts[kind][rows], vectors, self.candidates[rows], self.titles)

    def single(self, number: int) -> torch.Tensor:
        """Scores of one request, pair by pair, through the LLM's plain call."""
        prompt, out = self.prompts["soft"][number], []
        place = int(np.flatnonzero(prompt == Slot.ANSWER)[0])
        for item in self.candidates[number].tolist():
            title = np.concatenate([self.rows[item - 1], np.array(self.answer.end, np.int64)])
            title = title[: self.answer.masks]
            fill = np.repeat(np.array(self.answer.fill, np.int64), self._masks(title))
            behind = title[:-1] if self.kind == "decoder" else prompt[place + 1 :]
            ids = torch.from_numpy(np.concatenate([prompt[:place], fill, behind])).to(self.device)
            embeds = self.llm.get_input_embeddings()(ids.clamp(min=0))
            embeds = embeds.masked_scatter((ids == Slot.SOFT_PROMPT).unsqueeze(1), self.soft.to(embeds)).unsqueeze(0)
            if self.kind == "encoder-decoder":
                begin = [self.llm.config.decoder_start_token_id, *self.answer.begin]
                decoder_ids = torch.tensor([[*begin, *title[:-1].tolist()]], device=self.device)
                logits = self.llm(inputs_embeds=embeds, decoder_input_ids=decoder_ids).logits[0, len(begin) - 1 :]
            else:
                first = place - (self.kind == "decoder")
                logits = self.llm(inputs_embeds=embeds).logits[0, first : first + len(title)]
            chosen = logits.float().log_softmax(1)[torch.arange(len(title)), torch.from_numpy(title).long()]
            out.append(chosen.mean())
        return torch.stack(out)

    def _masks(self, title: np.ndarray) -> int:
        if self.kind != "encoder":
            return 1
        return self.answer.masks or len(title)


def clock(device: str) -> float:
    """Seconds: of this process on the CPU, of the wall on a GPU when it has done its work."""
    if device == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def memory_of(work: Callable[[], Any], device: str) -> float | None:
    """MiB that a piece of work needs at its peak, beyond what was in use before; None where the system does not tell."""
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # give back what earlier work left behind, or growth would not show
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak of the resident set
        before = _resident("VmRSS")
        work()
        return _resident("VmHWM") - before
    except OSError:
        return None


def _resident(name: str) -> float:
    """MiB of the resident set, now (VmRSS) or at its peak (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1]) / 2**10


def measure(bench: Bench, args) -> dict[str, Any]:
    """Times of all ways in turns, differences of scores, memory."""
    requests, rounds = len(bench.candidates), args.rounds
    times: dict[str, list[float]] = {name: [] for name in ("single", "pairs", "shared", "batch", "bare")}
    scores: dict[str, list[torch.Tensor]] = {name: [] for name in ("single", "pairs", "shared", "batch")}

    def timed(name: str, work: Callable[[], torch.Tensor]) -> torch.Tensor:
        begin = clock(args.device)
        out = work()
        times[name].append(clock(args.device) - begin)
        return out

    everything = slice(0, requests)
    for number in range(2):  # what templates begin with is read now, as a server would when it starts
        bench.ask(bench.ours, "soft", slice(number, number + 1))
        bench.ask(bench.bare_ours, "bare", slice(number, number + 1))
    for number in range(requests):
        row = slice(number, number + 1)
        scores["single"].append(timed("single", lambda number=number: bench.single(number)))
        scores["pairs"].append(timed("pairs", lambda row=row: bench.ask(bench.by_pair, "soft", row))[0])
    for turn in range(rounds):  # never one request twice in a row, whose whole prompt would be remembered
        for number in range(requests):
            row = slice(number, number + 1)
            ours = timed("shared", lambda row=row: bench.ask(bench.ours, "soft", row))[0]
            timed("bare", lambda row=row: bench.ask(bench.bare_ours, "bare", row))
            scores["shared"] += [ours] if turn == 0 else []
    for _ in range(rounds):
        scores["batch"] = list(timed("batch", lambda: bench.ask(bench.ours, "soft", everything)))
    together = {name: torch.stack(rows).float() for name, rows in scores.items()}
    difference = max(float((together[name] - together["single"]).abs().max()) for name in ("pairs", "shared", "batch"))
    limit = TARGETS["difference"] if args.device == "cpu" else 0.1  # bfloat16 rounds differently in other batch shapes
    if not difference <= limit:
        raise RuntimeError(f"{bench.name}: scores of shared and separate prompts differ by {difference:.2g}.")
    seconds = {name: float(np.median(values)) for name, values in times.items()}
    seconds["batch"] /= requests
    paired = np.array(times["shared"]) / np.array(times["bare"])
    memory = {
        "single": memory_of(lambda: bench.single(0), args.device),
        "pairs": memory_of(lambda: bench.ask(bench.by_pair, "soft", slice(0, 1)), args.device),
        "shared": memory_of(lambda: bench.ask(bench.ours, "soft", slice(0, 1)), args.device),
        "batch": memory_of(lambda: bench.ask(bench.ours, "soft", everything), args.device),
    }
    return {
        "kind": bench.kind,
        "parameters": sum(parameter.numel() for parameter in bench.llm.parameters()),
        "prompt_tokens": float(np.mean([len(prompt) for prompt in bench.prompts["soft"]])),
        "bare_prompt_tokens": float(np.mean([len(prompt) for prompt in bench.prompts["bare"]])),
        "title_tokens": float(np.mean([len(bench.rows[item - 1]) for item in bench.candidates.flatten().tolist()])),
        "seconds_per_request": seconds,
        "requests_per_second": {name: 1 / value for name, value in seconds.items()},
        "ratio_to_single": seconds["single"] / seconds["shared"],
        "ratio_to_pairs": seconds["pairs"] / seconds["shared"],
        "batch_ratio_to_pairs": seconds["pairs"] / seconds["batch"],
        "soft_prompt_overhead": float(np.median(paired)),
        "largest_score_difference": difference,
        "peak_memory_mib": memory,
    }


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llm", nargs="+", default=["llama-tiny", "t5-tiny", "bert-tiny", "bert-tiny:masks"],
                        help=f"{', '.join(SHAPES)}, or folders; ':masks' behind a masked LLM fixes the number of masks")  # fmt: skip
    parser.add_argument("--head", default="trained", help="of folders: trained, or tied for text encoders")
    parser.add_argument("--dataset", default="ml-100k")
    parser.add_argument("--candidates", type=int, default=15)
    parser.add_argument("--history", type=int, default=10)
    parser.add_argument("--soft", type=int, default=80)
    parser.add_argument("--requests", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=3, help="measurements of the cheap ways per request")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path(__file__).resolve().parent / "records" / "delrec.json", help="record to write")  # fmt: skip
    args = parser.parse_args()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    data = load_recommendation_data(data_folder() / args.dataset)
    split = leave_one_out(data.sequences)

    results = {}
    for name in args.llm:
        args.masks = 8 if name.endswith(":masks") else None
        results[name] = measure(Bench(name.removesuffix(":masks"), args, data, split), args)
        print(json.dumps({name: results[name]}, indent=1), flush=True)
    settings = {name: value for name, value in vars(args).items() if name not in ("output", "masks")}
    record = {
        "benchmark": "delrec",
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": torch.cuda.get_device_name()
        if args.device == "cuda"
        else f"{platform.machine()}, one thread of {os.cpu_count()}",
        "clock": "CPU time of the process" if args.device == "cpu" else "wall",
        "load_average": os.getloadavg()[0],
        "largest_resident_set_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10,
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "settings": settings,
        "shapes": {name: SHAPES[name] for name in (llm.removesuffix(":masks") for llm in args.llm) if name in SHAPES},
        "targets": TARGETS,
        "data_fingerprint": data.fingerprint,
        "results": results,
    }
    with atomic_path(args.output) as temporary:
        temporary.write_text(json.dumps(record, indent=1) + "\n")

    table = Table(
        title=f"{args.candidates} candidates, {args.soft} soft prompts, {args.requests} requests of {args.dataset}"
    )
    for heading in (
        "LLM",
        "single s",
        "pairs s",
        "shared s",
        "batch s",
        "x single",
        "x pairs",
        "soft/bare",
        "difference",
    ):
        table.add_column(heading, justify="left" if heading == "LLM" else "right")
    for name, found in results.items():
        seconds = [f"{found['seconds_per_request'][way]:.3f}" for way in ("single", "pairs", "shared", "batch")]
        ratios = [f"{found[key]:.2f}" for key in ("ratio_to_single", "ratio_to_pairs", "soft_prompt_overhead")]
        table.add_row(name, *seconds, *ratios, f"{found['largest_score_difference']:.1e}")
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
