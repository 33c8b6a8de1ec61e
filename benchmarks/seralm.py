"""How much longer one user waits for recommendations of SeRALM than for those of its base recommender, on a CPU.

    python benchmarks/seralm.py serving

Both answer the same requests in turns, one user at a time: ten of `--num-items` items for one history, items of the history
excluded, through the model (item indices in and out) and through the pipeline (titles in and out). Weights are random: the
arithmetic is the same. SeRALM reads stored vectors; that no language model and no text encoder is loaded is checked.
Processor time (of the one thread that answers) is what a busy machine does not change; wall time is what a user waits.
"first request" contains what is made once per weight version: the fused table. The paper reports 3.36 ms against 2.81 ms
(LightSANs, ml-1m, A100), a ratio of 1.20.
"""

import argparse
import json
import os
import platform
import tempfile
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

from hf_seqrec.data.files import atomic_path
from hf_seqrec.hub import load_recommender, save_recommender
from hf_seqrec.modeling import LightSANsConfig, SASRecConfig, SeRALMForSequentialRecommendation
from hf_seqrec.modeling.processing import SequentialRecommendationProcessor
from hf_seqrec.modeling.teacher import BACKBONES
from hf_seqrec.pipelines import pipeline


TOP_K, BLOCK, TARGET, PAPER = 10, 20, 1.05, 1.20
CONFIGS = {"sasrec": SASRecConfig, "lightsans": LightSANsConfig}


@torch.inference_mode()
def recommend(model: Any, history: list[int]) -> list[int]:
    """The ten best items after a history of item indices, without those in it."""
    seen = torch.tensor([history])
    scores = model.score(seen[:, -model.config.max_length :])
    scores.scatter_(1, seen, -torch.inf)
    return scores.topk(TOP_K).indices[0].tolist()


def take_turns(answers: dict[str, Callable[[Any], Any]], requests: list, warm_up: int) -> dict[str, np.ndarray]:
    """Wall and processor milliseconds (requests, 2) of every request by everyone, asked in turns."""
    for request in requests[:warm_up]:
        for answer in answers.values():
            answer(request)
    times = {name: np.empty((len(requests), 2)) for name in answers}
    # A server answers one user after another with the same model: turns are taken by blocks, so that its caches are warm.
    for number, start in enumerate(range(0, len(requests), BLOCK)):
        for name in list(answers)[:: 1 if number % 2 else -1]:
            for row in range(start, min(start + BLOCK, len(requests))):
                started = time.perf_counter(), time.thread_time()
                answers[name](requests[row])
                stopped = time.perf_counter(), time.thread_time()
                times[name][row] = [1000 * (b - a) for a, b in zip(started, stopped, strict=True)]
    return times


def build(name: str, num_items: int, max_length: int, width: int, seed: int) -> dict[str, Any]:
    """The base recommender and SeRALM on it, as a server would load them from disk, with their pipelines."""
    torch.manual_seed(seed)
    config = CONFIGS[name](num_items=num_items, max_length=max_length)
    base = BACKBONES[config.model_type](config)
    seralm = SeRALMForSequentialRecommendation.from_parts(config, knowledge_size=width)
    seralm.set_knowledge(torch.arange(1, num_items + 1), torch.randn(num_items, width) / width**0.5)
    titles = [f"Film {number:06d}" for number in range(1, num_items + 1)]
    item_ids = [str(number) for number in range(1, num_items + 1)]
    processor = SequentialRecommendationProcessor(item_ids, titles, max_length=max_length)
    found = {}
    for key, model in (("base", base.eval()), ("seralm", seralm)):
        with tempfile.TemporaryDirectory() as folder:
            save_recommender(f"{folder}/{key}", model, processor)
            loaded, its_processor = load_recommender(f"{folder}/{key}")
        found[key] = loaded, pipeline(model=loaded, processor=its_processor, device="cpu", top_k=TOP_K)
    if found["seralm"][0].text_encoder is not None:
        raise RuntimeError("serving loaded a text encoder: what is measured would not be what is promised.")
    return found


def measure(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """Latencies of one backbone with and without knowledge."""
    served = build(name, args.num_items, args.max_length, args.knowledge_size, args.seed)
    generator = np.random.default_rng(args.seed)
    histories = [
        (generator.choice(args.num_items, generator.integers(1, args.max_length + 1), replace=False) + 1).tolist()
        for _ in range(args.requests)
    ]
    titles = [[f"Film {item:06d}" for item in history] for history in histories]
    first = {}
    for key, (model, _) in served.items():
        started = time.perf_counter()
        recommend(model, histories[0])
        first[key] = (time.perf_counter() - started) * 1000
    results: dict[str, Any] = {"first_request_ms": first}
    ways = {
        "model": ({key: lambda h, m=model: recommend(m, h) for key, (model, _) in served.items()}, histories),
        "pipeline": ({key: lambda h, p=pipe: p({"history": h}) for key, (_, pipe) in served.items()}, titles),
    }
    for way, (answers, requests) in ways.items():
        times = take_turns(answers, requests, args.warm_up)
        results[way] = {}
        for column, clock in enumerate(("wall", "processor")):
            base, seralm = (times[key][:, column] for key in ("base", "seralm"))
            # Of the same request answered by both; its middle is not moved by a few interrupted requests.
            ratios = seralm / base
            draws = np.random.default_rng(args.seed).choice(ratios, (1000, len(ratios)))
            results[way][clock] = {
                "base_p50_ms": float(np.median(base)),
                "seralm_p50_ms": float(np.median(seralm)),
                "base_p99_ms": float(np.percentile(base, 99)),
                "seralm_p99_ms": float(np.percentile(seralm, 99)),
                "ratio_p50": float(np.median(ratios)),
                "ratio_p50_95": [float(value) for value in np.percentile(np.median(draws, axis=1), [2.5, 97.5])],
            }
    return results


def serving(args: argparse.Namespace) -> None:
    """Measures every backbone, writes the record, prints the table."""
    torch.set_num_threads(args.threads)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    load = os.getloadavg()[0]
    results = {name: measure(name, args) for name in args.backbones}
    record = {
        "benchmark": "seralm-serving",
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "load_average": [load, os.getloadavg()[0]],
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "settings": {name: value for name, value in vars(args).items() if name not in ("output", "part")}
        | {"top_k": TOP_K},
        "target_ratio": TARGET,
        "ratio_of_the_paper": PAPER,
        "results": results,
    }
    with atomic_path(args.output) as temporary:
        temporary.write_text(json.dumps(record, indent=1) + "\n")
    table = Table(
        title=f"One user, {args.num_items:,} items, knowledge of {args.knowledge_size}, {args.requests} requests"
    )
    for heading in ("backbone", "through", "clock", "base p50 ms", "SeRALM p50 ms", "ratio (95 %)", "target"):
        table.add_column(heading, justify="left" if heading in ("backbone", "through", "clock") else "right")
    for name, found in results.items():
        for way in ("model", "pipeline"):
            for clock, one in found[way].items():
                low, high = one["ratio_p50_95"]
                table.add_row(
                    name, way, clock, f"{one['base_p50_ms']:.2f}", f"{one['seralm_p50_ms']:.2f}",
                    f"{one['ratio_p50']:.3f} ({low:.3f} … {high:.3f})", f"<= {TARGET}",
                )  # fmt: skip
    Console(width=110).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(dest="part", required=True)
    one = parts.add_parser("serving", help="latency of SeRALM over its base recommender")
    one.add_argument("--backbones", nargs="+", default=list(CONFIGS), choices=list(CONFIGS))
    one.add_argument("--num-items", type=int, default=10_000)
    one.add_argument("--max-length", type=int, default=200)
    one.add_argument("--knowledge-size", type=int, default=384)
    one.add_argument("--requests", type=int, default=600)
    one.add_argument("--warm-up", type=int, default=30)
    one.add_argument("--threads", type=int, default=1)
    one.add_argument("--seed", type=int, default=0)
    one.add_argument(
        "--output", type=Path, default=Path(__file__).resolve().parent / "records" / "seralm_serving.json"
    )
    args = parser.parse_args()
    if args.requests < 100:
        parser.error(f"--requests {args.requests}: an interval of the ratio needs at least 100.")
    serving(args)


if __name__ == "__main__":
    main()
