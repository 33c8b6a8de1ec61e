"""What training SASRec costs: CPU seconds per epoch and to the best validation NDCG@10, ours against three libraries.

    python benchmarks/training.py                    # a few epochs of each: cost per epoch
    python benchmarks/training.py --to-best          # until validation NDCG@10 stops rising: cost to the quality both reach

Every library trains in a process of its own, on the same sequences, one after the other, at the same sizes (`SETTINGS`), and
is judged by the same code after every epoch (`peers/common.py`). Peers run in virtual environments that the script makes. CPU
seconds are user plus system time of the training alone. Results are kept in a JSON record after every part; `--resume`
goes on with it, RecTools and RePlay from their last epoch. `--at-once 2` trains two libraries beside each other, each bound
to cores of its own (Linux): half the wait for `--to-best`, and the same slow minutes of a machine fall on both.
"""

import argparse
import hashlib
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from queue import Queue

import numpy as np
import torch
from peers.make_env import DEFAULT_FOLDER, python_of
from rich.console import Console
from rich.table import Table

from hf_seqrec.data import Split, leave_one_out, load_recommendation_data
from hf_seqrec.data.files import atomic_path


HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Library:
    """How to run one row of the table: which environment, which script, which variant of it."""

    environment: str | None
    script: str
    variant: str = ""
    batch_size: int = 128
    intermediate_size: int = 64


LIBRARIES = {
    "ours": Library(None, "ours_sasrec.py"),
    "ours-default": Library(None, "ours_sasrec.py", variant="default", intermediate_size=256),
    "ours-unscaled": Library(None, "ours_sasrec.py", variant="unscaled"),
    "rectools": Library("rectools", "rectools_sasrec.py"),
    "rectools-small-positions": Library("rectools", "rectools_sasrec.py", variant="small-positions"),
    "replay": Library("replay", "replay_sasrec.py"),
    "replay-bucketed": Library("replay", "replay_sasrec.py", variant="bucketed"),
    # A batch is 2,048 prefix rows of one target each, about as many targets as 128 sequences have.
    "recbole": Library("recbole", "recbole_training.py", batch_size=2048),
    # Not SASRec: for the question how good its GRU4Rec gets on our split, over seeds.
    "recbole-gru4rec": Library("recbole", "recbole_training.py", variant="gru4rec", batch_size=2048),
}
# RecBole makes a row of length 200 from each of the 980,000 prefixes of ml-1m: hours per epoch. Ask for it by name.
MAX_LENGTH = {"ml-100k": 50, "ml-1m": 200}
NOT_UNASKED = {("ml-1m", "recbole")} | {
    (dataset, name)
    for dataset in MAX_LENGTH
    for name in ("recbole-gru4rec", "ours-unscaled", "rectools-small-positions")
}
SETTINGS = {"hidden_size": 64, "layers": 2, "heads": 2, "dropout": 0.2, "learning_rate": 1e-3}


def data_folder() -> Path:
    """Where the data sets lie: `$HF_SEQREC_DATA`, or `../shared/data` beside the project."""
    folder = Path(os.environ.get("HF_SEQREC_DATA", HERE.parents[1] / "shared" / "data"))
    if not folder.is_dir():
        raise FileNotFoundError(f"no data at {folder}: set HF_SEQREC_DATA to the folder that holds ml-100k and ml-1m.")
    return folder


def write_interactions(split: Split, num_items: int, path: Path) -> None:
    """Write a split as the flat arrays that the training scripts read: user, item, part (0, 1, 2)."""
    sequences = split.test.sequences
    part = np.zeros(sequences.num_interactions, dtype=np.int8)
    part[split.validation.stop], part[split.test.stop] = 1, 2
    user = np.repeat(np.arange(len(sequences), dtype=np.int32), sequences.lengths)
    np.savez(path, user=user, item=sequences.item_index, part=part, num_items=num_items)


def training_flops(lengths: np.ndarray, num_items: int, max_length: int, library: Library) -> float:
    """Floating-point operations that an epoch needs, without padding and without repeated prefixes.

    Counted: the products of attention and feed-forward, the causal half of the attention matrix, and scores over the whole
    catalogue at every position; the backward pass is twice the forward pass.

    Args:
        lengths: Training items per user, shape (users,).
        num_items: Catalogue size.
        max_length: Positions a model sees.
        library: For the width of the feed-forward map.
    """
    d, layers = SETTINGS["hidden_size"], SETTINGS["layers"]
    positions = np.clip(lengths - 1, 0, max_length).astype(float)
    per_position = layers * (8 * d * d + 4 * d * library.intermediate_size) + 2 * d * num_items
    attention = layers * 4 * d * (positions * (positions + 1) / 2)
    return float(3 * (positions * per_position + attention).sum())


def matrix_product_rate(size: int = 1024, seconds: float = 2.0) -> float:
    """Floating-point operations per CPU second of float32 matrix products here and now; the best of several."""
    a, b = torch.rand(size, size), torch.rand(size, size)
    best, until = 0.0, time.monotonic() + seconds
    while time.monotonic() < until:
        started = time.process_time()
        for _ in range(4):
            a @ b
        best = max(best, 4 * 2 * size**3 / (time.process_time() - started))
    return best


def run(
    python: Path | str,
    library: Library,
    data: Path,
    max_length: int,
    args: argparse.Namespace,
    log: Path,
    cores: Queue[set[int]],
    state: Path,
) -> dict:
    """Train in a process of its own; progress is shown, everything it prints goes to the log.

    Args:
        python: Interpreter of the library's environment.
        library: What to run.
        data: File of `write_interactions`.
        max_length: Positions a model sees.
        args: The command line.
        log: For what it prints.
        cores: Sets of cores to bind a process to, empty for no binding; one is taken and put back.
        state: Folder of the epochs that are done, for the libraries that can go on from a checkpoint.

    Returns:
        The line of JSON it ends with.

    Raises:
        RuntimeError: It failed; the message holds the end of its log.
    """
    options = {**SETTINGS, "data": data, "max_length": max_length, "batch_size": library.batch_size}
    options |= {"epochs": args.epochs, "patience": args.patience if args.to_best else 0, "seed": args.seed}
    options |= {"threads": args.threads, "variant": library.variant, "max_cpu_seconds": args.max_cpu_seconds}
    options["state"] = state
    command = [str(python), str(HERE / "peers" / library.script)]
    command += [text for name, value in options.items() for text in (f"--{name.replace('_', '-')}", str(value))]
    threads = {name: str(args.threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "ARROW_NUM_THREADS")}
    environment = (
        os.environ | threads | {"CUDA_VISIBLE_DEVICES": "", "PYTHONWARNINGS": "ignore", "HF_HUB_OFFLINE": "1"}
    )
    log.parent.mkdir(parents=True, exist_ok=True)
    own = cores.get()
    with (
        log.open("w") as file,
        subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as process,
    ):
        lines = []
        try:
            if own:
                os.sched_setaffinity(process.pid, own)
            for line in process.stdout or ():
                file.write(line)
                lines.append(line)
                if line.startswith("epoch "):
                    print(f"  {log.stem} {line}", end="", flush=True)
        except BaseException:
            process.kill()
            raise
        finally:
            cores.put(own)
    if process.returncode != 0 or not lines or not lines[-1].startswith("{"):
        raise RuntimeError(f"{library.script} failed ({process.returncode}), log in {log}:\n" + "".join(lines[-15:]))
    return json.loads(lines[-1])


def summary(part: dict) -> dict:
    """What the table shows of a part."""
    epochs = part["result"]["epochs"]
    cost = [epoch["train_cpu_s"] for epoch in epochs]
    best = part["result"]["best_epoch"]
    return {
        # The first epoch also warms caches up.
        "cpu_s_per_epoch": statistics.median(cost[1:] or cost),
        "best_epoch": best,
        "cpu_s_to_best": sum(cost[:best]),
        "ndcg@10": epochs[best - 1]["ndcg@10"],
    }


def cost_to_quality(part: dict, quality: float) -> float | None:
    """CPU seconds until validation NDCG@10 reached `quality` for the first time; None when it never did."""
    spent = 0.0
    for epoch in part["result"]["epochs"]:
        spent += epoch["train_cpu_s"]
        if epoch["ndcg@10"] >= quality:
            return spent
    return None


def print_table(parts: list[dict]) -> None:
    """One table per data set; ratios are peer / ours of the same run."""
    for dataset in dict.fromkeys(part["dataset"] for part in parts):
        chosen = {part["library"]: part for part in parts if part["dataset"] == dataset}
        ours = chosen.get("ours")
        to_best = any(part["to_best"] for part in chosen.values())
        table = Table(title=f"Training on {dataset}, {next(iter(chosen.values()))['threads']} thread(s)")
        headings = ["library", "CPU s / epoch", "x ours", "share of matmul rate", "peak GB"]
        if to_best:
            headings += ["best epoch", "NDCG@10", "CPU s to it", "both reach", "CPU s to that", "ours", "x ours"]
        else:
            headings.append("NDCG@10")
        for heading in headings:
            table.add_column(heading, justify="left" if heading == "library" else "right")
        for name, part in chosen.items():
            values = summary(part)
            row = [
                f"{name} {part['result']['version']}",
                f"{values['cpu_s_per_epoch']:.2f}",
                f"{values['cpu_s_per_epoch'] / summary(ours)['cpu_s_per_epoch']:.2f}" if ours else "-",
                f"{part['flops_per_epoch'] / values['cpu_s_per_epoch'] / part['matrix_product_rate']:.1%}",
                f"{peak:.2f}" if (peak := part["result"]["peak_rss_gb"]) else "-",
            ]
            if to_best:
                more = "+" if part["result"].get("stopped_by_limit") else ""
                row += [str(values["best_epoch"]) + more, f"{values['ndcg@10']:.4f}", f"{values['cpu_s_to_best']:.1f}"]
                # The quality that both reach: the lower one of the two bests.
                both = min(values["ndcg@10"], summary(ours)["ndcg@10"]) if ours else 0.0
                costs = [cost_to_quality(it, both) for it in (part, ours)] if ours else []
                row += (
                    [f"{both:.4f}", *(f"{cost:.1f}" for cost in costs), f"{costs[0] / costs[1]:.1f}"]
                    if ours
                    else ["-"] * 4
                )
            else:
                row.append(f"{part['result']['epochs'][-1]['ndcg@10']:.4f}")
            table.add_row(*row)
        Console(width=150).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--datasets", nargs="+", choices=MAX_LENGTH, default=list(MAX_LENGTH))
    parser.add_argument("--libraries", nargs="+", choices=LIBRARIES, help="default: those that can do the data set")
    parser.add_argument("--epochs", type=int, help="epochs of each library; default 3, or at most 300 with --to-best")
    parser.add_argument("--to-best", action="store_true", help="train until validation NDCG@10 stops rising")
    parser.add_argument("--patience", type=int, default=10, help="epochs without a better value, with --to-best")
    parser.add_argument("--max-cpu-seconds", type=float, default=float("inf"), help="of training for one library")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--at-once", type=int, default=1, help="libraries beside each other, on cores of their own")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resume", action="store_true", help="keep the finished parts of the record, do the others")
    parser.add_argument("--output", type=Path, default=HERE / "records" / "training.json")
    parser.add_argument("--environments", type=Path, default=DEFAULT_FOLDER, help="default: %(default)s")
    args = parser.parse_args()
    args.epochs = args.epochs or (300 if args.to_best else 3)
    if args.output.exists() and not args.resume:
        parser.error(f"{args.output} exists: go on with it (--resume), move it away, or choose another --output.")
    # Bound to cores only where several run: macOS cannot bind.
    available = sorted(os.sched_getaffinity(0)) if args.at_once != 1 else []
    if args.at_once != 1 and not args.threads <= args.at_once * args.threads <= len(available):
        parser.error(
            f"--at-once {args.at_once} with --threads {args.threads}: need at least one and {args.threads} cores for each; this "
            f"process may use {len(available)} cores."
        )
    record: dict[str, list[dict]] = {"parts": []}
    if args.resume and args.output.exists():
        record = json.loads(args.output.read_text())
    torch.set_num_threads(args.threads)
    folder = data_folder()
    asked = {
        dataset: args.libraries or [name for name in LIBRARIES if (dataset, name) not in NOT_UNASKED]
        for dataset in args.datasets
    }
    # Environments first: what cannot be installed should fail before hours of training.
    interpreters = {}
    for name in {name for names in asked.values() for name in names}:
        environment = LIBRARIES[name].environment
        interpreters[name] = python_of(environment, args.environments) if environment else sys.executable
    run_settings = {"epochs": args.epochs, "to_best": args.to_best, "threads": args.threads, "seed": args.seed}
    wanted, jobs = [], []
    for dataset, names in asked.items():
        data = load_recommendation_data(folder / dataset)
        split = leave_one_out(data.sequences)
        for name in names:
            key = {
                "dataset": dataset,
                "library": name,
                **run_settings,
                "max_length": MAX_LENGTH[dataset],
                **SETTINGS,
                **asdict(LIBRARIES[name]),
                "data_fingerprint": data.fingerprint,
            }
            wanted.append(key)
            of_key = [part for part in record["parts"] if part.items() >= key.items()]
            # A part that a smaller limit stopped goes on.
            stopped = [
                part
                for part in of_key
                if part["result"].get("stopped_by_limit")
                and part.get("max_cpu_seconds", float("inf")) < args.max_cpu_seconds
            ]
            if of_key and not stopped:
                print(f"{dataset} {name}: in the record already", flush=True)
            else:
                jobs.append((key, split, data.catalogue.num_items))
    cores: Queue[set[int]] = Queue()
    for start in range(args.at_once):
        cores.put(set(available[start :: args.at_once]))
    rate = matrix_product_rate() if jobs else 0.0

    def measure(key: dict, split: Split, num_items: int) -> dict:
        dataset, name = key["dataset"], key["library"]
        with tempfile.TemporaryDirectory() as scratch:
            path = Path(scratch) / "interactions.npz"
            write_interactions(split, num_items, path)
            log = args.environments / "logs" / f"training-{dataset}-{name}.log"
            name_of_state = hashlib.sha256(f"{json.dumps(key, sort_keys=True)} {args.output.resolve()}".encode())
            state = args.environments / "states" / name_of_state.hexdigest()[:16]
            if not args.resume:
                shutil.rmtree(state, ignore_errors=True)
            result = run(interpreters[name], LIBRARIES[name], path, key["max_length"], args, log, cores, state)
            if not result["stopped_by_limit"]:
                shutil.rmtree(state, ignore_errors=True)
        return {
            **key,
            "max_cpu_seconds": args.max_cpu_seconds,
            "at_once": args.at_once,
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "machine": f"{platform.machine()}, {os.cpu_count()} cores",
            "matrix_product_rate": rate,
            "flops_per_epoch": training_flops(split.train.lengths, num_items, key["max_length"], LIBRARIES[name]),
            "result": result,
        }

    keys = jobs[0][0].keys() if jobs else ()
    with ThreadPoolExecutor(args.at_once) as pool:
        for finished in as_completed([pool.submit(measure, *job) for job in jobs]):
            made = finished.result()
            record["parts"] = [part for part in record["parts"] if any(part.get(n) != made[n] for n in keys)] + [made]
            with atomic_path(args.output) as temporary:
                temporary.write_text(json.dumps(record, indent=1) + "\n")
    print_table([part for part in record["parts"] if any(part.items() >= key.items() for key in wanted)])


if __name__ == "__main__":
    main()
