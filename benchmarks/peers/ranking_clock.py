"""What every evaluation script shares: its command line, the clock, and the line it prints."""

import argparse
import json
import os
import resource
import sys
import time
from collections.abc import Callable
from importlib import metadata

import torch


def arguments() -> argparse.Namespace:
    """Read the command line that all evaluation scripts share."""
    parser = argparse.ArgumentParser(description="Evaluate an untrained SASRec and print one line of JSON.")
    parser.add_argument("--data", default="", help=".npz file written by benchmarks/evaluation.py")
    parser.add_argument("--random-items", type=int, default=0, help="instead: a random catalogue of this size")
    parser.add_argument("--random-users", type=int, default=0, help="and as many users with 50 items each")
    parser.add_argument("--candidates", type=int, default=0, help="sampled negatives per user; 0: full ranking")
    parser.add_argument("--exclude-seen", type=int, default=1, help="1: items of the history cannot be recommended")
    parser.add_argument("--batch-size", type=int, default=0, help="users per batch; 0: the library's default")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--max-length", type=int, default=200)
    parser.add_argument("--hidden-size", type=int, default=64)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--heads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    return args


def peak_rss_gb() -> float:
    """Largest resident memory of this process so far, in units of 10**9 bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9


def measure(evaluate: Callable[[], dict[str, float]], num_users: int, library: str, args: argparse.Namespace) -> None:
    """Evaluate several times and print the CPU seconds of each as the last line of standard output.

    Args:
        evaluate: Ranks every user's held-out item and answers metrics; everything from the fitted model to the metrics is inside.
        num_users: Users it evaluates.
        library: Name of the distribution whose version is reported.
        args: The command line.
    """
    before = peak_rss_gb()
    seconds, metrics = [], {}
    for _ in range(args.repeats):
        started = time.process_time()
        metrics = evaluate()
        seconds.append(time.process_time() - started)
    result = {
        "version": metadata.version(library),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "num_users": num_users,
        "cpu_s": seconds,
        "users_per_cpu_s": num_users / min(seconds),
        "metrics": {name: float(value) for name, value in metrics.items()},
        "rss_before_gb": before,
        "peak_rss_gb": peak_rss_gb(),
        "load_average": os.getloadavg()[0],
    }
    print(json.dumps(result), flush=True)
