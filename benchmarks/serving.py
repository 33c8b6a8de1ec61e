"""How long one user waits for recommendations on a CPU: through the model, and through the pipeline.

    python benchmarks/serving.py

A SASRec (untrained: the arithmetic is the same) recommends ten of `--num-items` items for one history at a time, items of the
history excluded. "model" starts from item indices and ends with item indices; "pipeline" starts from titles and ends with
titles and scores. Both must name the same items. History lengths are drawn uniformly from 1 to the model's maximum.
"""

import argparse
import json
import os
import platform
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
from hf_seqrec.modeling import SASRecConfig, SASRecForSequentialRecommendation
from hf_seqrec.modeling.processing import SequentialRecommendationProcessor
from hf_seqrec.pipelines import pipeline


TOP_K = 10
TARGET_MS = {"model": 3.0, "pipeline": 15.0}


@torch.inference_mode()
def recommend(model: SASRecForSequentialRecommendation, history: list[int]) -> list[int]:
    """The ten best items after a history of item indices, without those in it."""
    seen = torch.tensor([history])
    scores = model.score(seen[:, -model.config.max_length :])
    scores.scatter_(1, seen, -torch.inf)
    return scores.topk(TOP_K).indices[0].tolist()


def latencies(answer: Callable[[list], Any], requests: list[list], warm_up: int) -> tuple[np.ndarray, list[list]]:
    """Wall milliseconds of each request, one after the other, shape (requests,), and the answers."""
    for request in requests[:warm_up]:
        answer(request)
    times, answers = np.empty(len(requests)), []
    for number, request in enumerate(requests):
        started = time.perf_counter()
        answers.append(answer(request))
        times[number] = (time.perf_counter() - started) * 1000
    return times, answers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-items", type=int, default=10_000)
    parser.add_argument("--max-length", type=int, default=200)
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--warm-up", type=int, default=50)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--output",
        type=Path,
        default=Path(__file__).resolve().parent / "records" / "serving.json",
        help="record to write",
    )
    args = parser.parse_args()
    if args.requests < 500:
        parser.error(f"--requests {args.requests}: a 99th percentile needs at least 500.")
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    transformers.logging.set_verbosity_error()

    config = SASRecConfig(num_items=args.num_items, max_length=args.max_length)
    model = SASRecForSequentialRecommendation(config).eval()
    titles = [f"Film {number:06d}" for number in range(1, args.num_items + 1)]
    item_ids = [str(number) for number in range(1, args.num_items + 1)]
    processor = SequentialRecommendationProcessor(item_ids, titles, max_length=args.max_length)
    pipe = pipeline(model=model, processor=processor, device="cpu", top_k=TOP_K)

    generator = np.random.default_rng(args.seed)
    histories = [
        generator.choice(args.num_items, generator.integers(1, args.max_length + 1), replace=False) + 1
        for _ in range(args.requests)
    ]
    by_index = [history.tolist() for history in histories]
    by_title = [[titles[item - 1] for item in history] for history in by_index]
    measured, answers = {}, {}
    measured["model"], answers["model"] = latencies(lambda history: recommend(model, history), by_index, args.warm_up)
    measured["pipeline"], recommendations = latencies(
        lambda history: pipe({"history": history}), by_title, args.warm_up
    )
    answers["pipeline"] = [[int(row["item_id"]) for row in rows] for rows in recommendations]
    if answers["model"] != answers["pipeline"]:
        raise RuntimeError("model and pipeline recommend different items: their latencies cannot be compared.")

    results = {
        name: {
            "p50_ms": float(np.percentile(times, 50)),
            "p99_ms": float(np.percentile(times, 99)),
            "mean_ms": float(times.mean()),
            "target_ms": TARGET_MS[name],
        }
        for name, times in measured.items()
    }
    record = {
        "benchmark": "serving",
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "load_average": os.getloadavg()[0],
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "settings": {name: value for name, value in vars(args).items() if name != "output"} | {"top_k": TOP_K},
        "model": config.to_diff_dict(),
        "results": results,
    }
    with atomic_path(args.output) as temporary:
        temporary.write_text(json.dumps(record, indent=1) + "\n")

    table = Table(title=f"One user, {args.num_items:,} items, {args.threads} thread(s), {args.requests} requests")
    for heading in ("through", "p50 ms", "p99 ms", "target ms"):
        table.add_column(heading, justify="left" if heading == "through" else "right")
    for name, values in results.items():
        table.add_row(name, f"{values['p50_ms']:.2f}", f"{values['p99_ms']:.2f}", f"{values['target_ms']:.0f}")
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
