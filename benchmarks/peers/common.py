"""What every training script shares: the data, the clock, the judge and the line it prints.

Each script trains SASRec with one library, in that library's own environment, so this file needs numpy and torch only. All
libraries are given the same sequences and are judged by the same code: after every epoch the clock stops, the validation items
are ranked against the whole catalogue with the history masked, after a new best also the test items (for the record, nothing
is chosen by them), and the clock goes on.
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
from pathlib import Path

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
        return self.histories(1)

    def histories(self, part: int) -> list[np.ndarray]:
        """What comes before the item of that part, for every user, oldest first."""
        before = self.part < part
        return np.split(self.item[before], np.flatnonzero(np.diff(self.user[before])) + 1)

    def targets(self, part: int) -> np.ndarray:
        """The item of that part of every user, shape (users,)."""
        return self.item[self.part == part]


def left_padded(histories: list[np.ndarray], length: int, padding: int = 0) -> torch.Tensor:
    """The last `length` items of every history as int64 (batch, length), padded on the left."""
    batch = np.full((len(histories), length), padding, dtype=np.int64)
    for row, history in zip(batch, histories, strict=True):
        row[length - min(length, len(history)) :] = history[-length:]
    return torch.from_numpy(batch)


def ranks(
    score: Callable[[list[np.ndarray]], torch.Tensor],
    histories: list[np.ndarray],
    targets: np.ndarray,
    masked: tuple[bool, ...] = (True,),
    batch_size: int = 256,
) -> list[torch.Tensor]:
    """Rank of every user's target in the whole catalogue from 0, ties at their average rank, infinite where it cannot be reached.

    Args:
        score: Takes a batch of histories and answers (batch, num_items + 1) scores; column 0 is never read.
        histories: Items of every user, oldest first.
        targets: The item to rank, shape (users,).
        masked: Whether items of the history are left out; each gives a tensor of ranks, from the same scores.
        batch_size: Users per call.
    """
    found: list[list[torch.Tensor]] = [[] for _ in masked]
    for start in range(0, len(histories), batch_size):
        batch = histories[start : start + batch_size]
        target = torch.from_numpy(targets[start : start + batch_size, None].astype(np.int64))
        scores = score(batch).float().clone()
        scores[:, 0] = -torch.inf
        if scores.isnan().any():
            raise ValueError("the model answered NaN scores")
        rows = torch.arange(len(batch)).repeat_interleave(torch.tensor([len(history) for history in batch]))
        seen = torch.from_numpy(np.concatenate(batch).astype(np.int64))
        for ranks_of, without_seen in zip(found, masked, strict=True):
            allowed = scores.clone() if without_seen else scores
            if without_seen:
                allowed[rows, seen] = -torch.inf
            own = allowed.gather(1, target)
            better, equal = (allowed > own).sum(1), (allowed == own).sum(1) - 1
            ranks_of.append(torch.where(own.isfinite()[:, 0], better + equal / 2, torch.inf))
    return [torch.cat(ranks_of).double() for ranks_of in found]


def quality(ranks: torch.Tensor) -> dict[str, float]:
    """HR@10 and NDCG@10 of ranks that start from 0."""
    hit = ranks < CUTOFF
    gain = torch.where(hit, 1 / torch.log2(ranks + 2), 0.0)
    return {"hr@10": float(hit.double().mean()), "ndcg@10": float(gain.mean())}


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
    parser.add_argument("--state", type=Path, help="folder to keep each epoch in, and to go on from")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    return args


class Progress:
    """Clock and judge of one run.

    CPU seconds are user plus system time of this process, all threads; what the judge itself uses is kept apart. The clock
    starts with the construction, so reading the data and building the model come out as `prepare_cpu_s`.

    With `--state` the epochs are kept in that folder, with a checkpoint where the library can write one, and another process goes
    on after the last of them.

    Args:
        args: The command line.
        data: The interactions, for the judge.
        library: Name of the distribution whose version is reported.
    """

    def __init__(self, args: argparse.Namespace, data: Interactions, library: str):
        self.args, self.data, self.library = args, data, library
        self.epochs: list[dict[str, float]] = []
        self.test: dict[str, dict[str, float]] = {}
        self.prepare_cpu_s = 0.0
        self.mark = time.process_time()
        self.resumed_after: list[int] = []
        # What to go on from, if there is something.
        self.checkpoint: Path | None = None
        if args.state is not None and (args.state / "epochs.json").exists():
            kept = json.loads((args.state / "epochs.json").read_text())
            self.epochs, self.test = kept["epochs"], kept["test"]
            self.resumed_after = [*kept["resumed_after"], len(self.epochs)]
            self.checkpoint = args.state / f"epoch-{len(self.epochs)}.ckpt"

    def start(self) -> None:
        """Call right before the first epoch."""
        now = time.process_time()
        self.prepare_cpu_s, self.mark = now - self.mark, now

    def epoch_done(
        self,
        score: Callable[[list[np.ndarray]], torch.Tensor],
        save: Callable[[Path], None] | None = None,
    ) -> bool:
        """Judge the model after an epoch.

        Args:
            score: See `ranks`.
            save: Writes a checkpoint, where the library can go on from one.

        Returns:
            Whether training should stop early.
        """
        trained = time.process_time()
        with torch.no_grad():
            (of_validation,) = ranks(score, self.data.histories(1), self.data.targets(1))
            value = quality(of_validation)["ndcg@10"]
            if all(value > epoch["ndcg@10"] for epoch in self.epochs):
                both = ranks(score, self.data.histories(2), self.data.targets(2), masked=(True, False))
                self.test = dict(zip(("masked", "unmasked"), map(quality, both), strict=True))
        judged = time.process_time()
        self.epochs.append({"train_cpu_s": trained - self.mark, "judge_cpu_s": judged - trained, "ndcg@10": value})
        print(
            f"epoch {len(self.epochs)}: {trained - self.mark:.2f} CPU s, NDCG@10 {value:.4f}",
            file=sys.stderr,
            flush=True,
        )
        if save is not None and self.args.state is not None:
            self._keep(save)
        self.mark = time.process_time()
        return self.out_of_time or (
            self.args.patience > 0 and len(self.epochs) - self.best_epoch >= self.args.patience
        )

    def _keep(self, save: Callable[[Path], None]) -> None:
        """Checkpoint first, then the epochs that name it, then the older checkpoints go: a kill loses the last epoch at most."""
        folder = self.args.state
        folder.mkdir(parents=True, exist_ok=True)
        current = folder / f"epoch-{len(self.epochs)}.ckpt"
        save(current)
        kept = {"epochs": self.epochs, "test": self.test, "resumed_after": self.resumed_after}
        (folder / "epochs.json.new").write_text(json.dumps(kept))
        (folder / "epochs.json.new").replace(folder / "epochs.json")
        for old in folder.glob("epoch-*.ckpt"):
            if old != current:
                old.unlink()

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
            "test_of_best_epoch": self.test,
            "stopped_by_limit": self.out_of_time,
            "resumed_after": self.resumed_after,
            # Linux counts in KiB, macOS in bytes.
            "peak_rss_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            * (1 if sys.platform == "darwin" else 1024)
            / 1e9,
            "load_average": os.getloadavg()[0],
        }
        print(json.dumps(result), flush=True)
