"""What every training script shares: the data, the clock, the judge and the line it prints.

Each script trains SASRec with one library, in that library's own environment, so this file needs numpy and torch only. All libraries are given the same sequences and are judged by the same code: after every epoch the clock stops, the
validation items are ranked against the whole catalogue with the history masked, and the clock goes on.
"""

import argparse
import json
import os
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata

import numpy as np
import torch


PARTS = ("train", "validation", "test")
CUTOFF = 10


@dataclass
class Interactions:
    """Interactions of one data set, sorted by user and position.

    Attributes:
        user: User number from 0, shape (rows,).
        item: Item number from 1, shape (rows,).
        part: 0 for training, 1 for the validation item of a user, 2 for the test item, shape (rows,).
        num_items: Items in the catalogue.
    """

    user: np.ndarray
    item: np.ndarray
    part: np.ndarray
    num_items: int

    @classmethod
    def read(cls, path: str) -> "Interactions":
        """Read the file that `benchmarks/training.py` wrote."""
        with np.load(path) as arrays:
            return cls(arrays["user"], arrays["item"], arrays["part"], num_items=int(arrays["num_items"]))

    def train_sequences(self) -> list[np.ndarray]:
        """Training items of every user, oldest first."""
        training = self.part == 0
        return np.split(self.item[training], np.flatnonzero(np.diff(self.user[training])) + 1)

    def validation_targets(self) -> np.ndarray:
        """The validation item of every user, shape (users,)."""
        return self.item[self.part == 1]


def left_padded(histories: list[np.ndarray], length: int, padding: int = 0) -> torch.Tensor:
    """The last `length` items of every history as int64 (batch, length), padded on the left."""
    batch = np.full((len(histories), length), padding, dtype=np.int64)
    for row, history in zip(batch, histories, strict=True):
        row[length - min(length, len(history)) :] = history[-length:]
    return torch.from_numpy(batch)


def masked_ndcg(score: Callable[[list[np.ndarray]], torch.Tensor], data: Interactions, batch_size: int = 256) -> float:
    """NDCG@10 of the validation items, full ranking, items of the history masked, ties at their average rank.

    Args:
        score: Takes a batch of histories and answers (batch, num_items + 1) scores; column 0 is never read.
        data: The interactions.
        batch_size: Users per call.
    """
    histories, targets = data.train_sequences(), torch.from_numpy(data.validation_targets().astype(np.int64))
    gains = []
    for start in range(0, len(histories), batch_size):
        batch = histories[start : start + batch_size]
        target = targets[start : start + batch_size, None]
        scores = score(batch).float().clone()
        scores[:, 0] = -torch.inf
        rows = torch.arange(len(batch)).repeat_interleave(torch.tensor([len(history) for history in batch]))
        scores[rows, torch.from_numpy(np.concatenate(batch).astype(np.int64))] = -torch.inf
        if scores.isnan().any():
            raise ValueError("the model answered NaN scores")
        own = scores.gather(1, target)
        better, equal = (scores > own).sum(1), (scores == own).sum(1) - 1
        rank = better + equal / 2
        gains.append(torch.where((rank < CUTOFF) & own.isfinite()[:, 0], 1 / torch.log2(rank + 2), torch.zeros(())))
    return float(torch.cat(gains).double().mean())


def arguments() -> argparse.Namespace:
    """The command line that all training scripts share."""
    parser = argparse.ArgumentParser(description="Train SASRec with one library and print one line of JSON.")
    parser.add_argument("--data", required=True, help=".npz file written by benchmarks/training.py")
    parser.add_argument("--epochs", type=int, required=True, help="most epochs to train")
    parser.add_argument(
        "--patience", type=int, default=0, help="epochs without a better value before stopping; 0: never"
    )
    parser.add_argument("--max-cpu-seconds", type=float, default=float("inf"), help="of training, then it stops")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--max-length", type=int, default=200)
    parser.add_argument("--hidden-size", type=int, default=64)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--heads", type=int, default=2)
    parser.add_argument("--dropout", type=float, default=0.2)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--batch-size", type=int, default=128, help="sequences (RecBole: prefix rows) per step")
    parser.add_argument("--variant", default="", help="a named way of running the library, where it has one")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    return args


class Progress:
    """Clock and judge of one run.

    CPU seconds are user plus system time of this process, all threads; what the judge itself uses is kept apart. The clock
    starts with the construction, so reading the data and building the model come out as `prepare_cpu_s`.

    Args:
        args: The command line.
        data: The interactions, for the judge.
        library: Name of the distribution whose version is reported.
    """

    def __init__(self, args: argparse.Namespace, data: Interactions, library: str):
        self.args, self.data, self.library = args, data, library
        self.epochs: list[dict[str, float]] = []
        self.prepare_cpu_s = 0.0
        self.mark = time.process_time()

    def start(self) -> None:
        """Call right before the first epoch."""
        now = time.process_time()
        self.prepare_cpu_s, self.mark = now - self.mark, now

    def epoch_done(self, score: Callable[[list[np.ndarray]], torch.Tensor]) -> bool:
        """Judge the model after an epoch; True when training should stop early."""
        trained = time.process_time()
        with torch.no_grad():
            value = masked_ndcg(score, self.data)
        judged = time.process_time()
        self.epochs.append({"train_cpu_s": trained - self.mark, "judge_cpu_s": judged - trained, "ndcg@10": value})
        print(
            f"epoch {len(self.epochs)}: {trained - self.mark:.2f} CPU s, NDCG@10 {value:.4f}",
            file=sys.stderr,
            flush=True,
        )
        self.mark = time.process_time()
        return self.out_of_time or (
            self.args.patience > 0 and len(self.epochs) - self.best_epoch >= self.args.patience
        )

    @property
    def out_of_time(self) -> bool:
        """Whether training has cost what it may."""
        return sum(epoch["train_cpu_s"] for epoch in self.epochs) >= self.args.max_cpu_seconds

    @property
    def best_epoch(self) -> int:
        """The epoch of the best validation value, counted from 1; the first of equals."""
        return 1 + int(np.argmax([epoch["ndcg@10"] for epoch in self.epochs]))

    def report(self) -> None:
        """Print the result as the last line of standard output."""
        if not self.epochs:
            raise RuntimeError("no epoch was trained")
        result = {
            "version": metadata.version(self.library),
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "prepare_cpu_s": self.prepare_cpu_s,
            "epochs": self.epochs,
            "best_epoch": self.best_epoch,
            "stopped_by_limit": self.out_of_time,
            # Linux counts in KiB, macOS in bytes.
            "peak_rss_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            * (1 if sys.platform == "darwin" else 1024)
            / 1e9,
            "load_average": os.getloadavg()[0],
        }
        print(json.dumps(result), flush=True)
