"""What ranking the catalogue costs: users per CPU second, ours against two libraries, and with up to 3 million items.

    python benchmarks/evaluation.py                  # everything: about 15 minutes
    python benchmarks/evaluation.py --quick          # ml-100k and small catalogues, one repeat each

Every measurement is a process of its own with an untrained SASRec (width 64, 2 layers, 2 heads, feed-forward as wide): the cost does not
depend on the weights. The clock covers everything from the model and the split to hr, ndcg and mrr at 5, 10 and 20; reading
data and building the model stay outside. CPU seconds are the best of the repeats. Peers run in virtual environments that
the script makes.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

from peers.make_env import DEFAULT_FOLDER, python_of
from rich.console import Console
from rich.table import Table
from training import MAX_LENGTH, data_folder, write_interactions

from hf_seqrec.data import leave_one_out, load_recommendation_data
from hf_seqrec.data.files import atomic_path


HERE = Path(__file__).resolve().parent

# Library, whether history items are excluded, sampled negatives (0: full ranking), users per batch (0: the library's default).
RUNS = [
    ("ours", True, 0, 0),
    ("rectools", True, 0, 0),
    ("rectools", True, 0, 64),
    ("ours", False, 0, 0),
    ("rectools", False, 0, 0),
    ("recbole", False, 0, 0),  # its sequential evaluation never excludes the history
    ("recbole", False, 0, 256),  # its default of 4,096 is slow on a CPU
    ("ours", True, 99, 0),
    ("recbole", False, 99, 256),
]
# RecBole samples for each user in Python: on ml-1m minutes for one evaluation.
NOT_RUN = {("ml-1m", "recbole", 99)}
CATALOGUES = {3_000: 4096, 30_000: 4096, 300_000: 2048, 3_000_000: 512}  # number of items: users


def run(python: Path | str, library: str, options: dict, log: Path) -> dict:
    """Measure in a process of its own; what it prints goes to the log.

    Returns:
        The line of JSON it ends with.

    Raises:
        RuntimeError: It failed; the message holds the end of its log.
    """
    command = [str(python), str(HERE / "peers" / f"{library}_evaluation.py")]
    command += [text for name, value in options.items() for text in (f"--{name.replace('_', '-')}", str(value))]
    threads = {name: str(options["threads"]) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "ARROW_NUM_THREADS")}
    environment = (
        os.environ | threads | {"CUDA_VISIBLE_DEVICES": "", "PYTHONWARNINGS": "ignore", "HF_HUB_OFFLINE": "1"}
    )
    done = subprocess.run(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text(done.stdout)
    lines = done.stdout.strip().splitlines()
    if done.returncode != 0 or not lines or not lines[-1].startswith("{"):
        raise RuntimeError(f"{command[1]} failed ({done.returncode}), log in {log}:\n" + "\n".join(lines[-15:]))
    return json.loads(lines[-1])


def print_tables(parts: list[dict]) -> None:
    """One table per data set, one of catalogue sizes; ratios are ours / theirs of the same run and the same rule for seen items."""
    console = Console(width=140)
    for dataset in dict.fromkeys(part["dataset"] for part in parts if part["dataset"]):
        chosen = [part for part in parts if part["dataset"] == dataset]
        table = Table(title=f"SASRec on {dataset}, length {chosen[0]['max_length']}, {chosen[0]['threads']} thread")
        for heading in ("library", "candidates", "seen items", "batch", "users / CPU s", "ours x", "peak GB"):
            table.add_column(
                heading, justify="left" if heading in ("library", "candidates", "seen items") else "right"
            )
        for part in chosen:
            speed = part["result"]["users_per_cpu_s"]
            same = [p for p in chosen if p["library"] == "ours" and p["candidates"] == part["candidates"]]
            # Ours excludes seen items from candidates when they are drawn, which costs nothing afterwards.
            ours = next((p for p in same if p["exclude_seen"] == part["exclude_seen"] or part["candidates"]), None)
            table.add_row(
                f"{part['library']} {part['result']['version']}",
                f"1 + {part['candidates']}" if part["candidates"] else "all",
                "excluded" if part["exclude_seen"] else "allowed",
                str(part["batch_size"] or "default"),
                f"{speed:,.0f}",
                f"{ours['result']['users_per_cpu_s'] / speed:.1f}" if ours else "-",
                f"{part['result']['peak_rss_gb']:.2f}",
            )
        console.print(table)
    scaling = [part for part in parts if part["random_items"]]
    if scaling:
        table = Table(title="Random catalogues, history of 50, seen items excluded")
        for heading in (
            "items",
            "candidates",
            "users / CPU s",
            "scores / CPU s",
            "peak GB",
            "above model and data, GB",
        ):
            table.add_column(heading, justify="right")
        for part in scaling:
            result = part["result"]
            scored = 1 + part["candidates"] if part["candidates"] else part["random_items"]
            table.add_row(
                f"{part['random_items']:,}",
                f"1 + {part['candidates']}" if part["candidates"] else "all",
                f"{result['users_per_cpu_s']:,.0f}",
                f"{result['users_per_cpu_s'] * scored:.2g}",
                f"{result['peak_rss_gb']:.2f}",
                f"{result['peak_rss_gb'] - result['rss_before_gb']:.2f}",
            )
        console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="ml-100k, catalogues up to 300,000 items, one repeat")
    parser.add_argument("--datasets", nargs="*", choices=MAX_LENGTH, help="default: all, with --quick ml-100k")
    parser.add_argument("--libraries", nargs="+", choices=("ours", "rectools", "recbole"), help="default: all")
    parser.add_argument("--catalogues", nargs="*", type=int, choices=CATALOGUES, help="default: all")
    parser.add_argument("--repeats", type=int, help="default 3, with --quick 1")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, default=HERE / "records" / "evaluation.json")
    parser.add_argument("--environments", type=Path, default=DEFAULT_FOLDER, help="default: %(default)s")
    args = parser.parse_args()
    datasets = (["ml-100k"] if args.quick else list(MAX_LENGTH)) if args.datasets is None else args.datasets
    catalogues = (
        [n for n in CATALOGUES if not args.quick or n <= 300_000] if args.catalogues is None else args.catalogues
    )
    libraries = args.libraries or ["ours", "rectools", "recbole"]
    common = {"repeats": args.repeats or (1 if args.quick else 3), "threads": args.threads}
    # Environments first: what cannot be installed should fail before anything is measured.
    pythons = {name: sys.executable if name == "ours" else python_of(name, args.environments) for name in libraries}
    record: dict = {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "parts": [],
    }

    def measure(library: str, options: dict, **described) -> None:
        label = f"{described['dataset'] or format(described['random_items'], ',')} {library}"
        described |= {"candidates": options["candidates"], "exclude_seen": bool(options["exclude_seen"])}
        described["batch_size"] = options["batch_size"]
        print(
            f"{label}, {'1 + ' + str(options['candidates']) if options['candidates'] else 'all'} candidates:",
            end=" ",
            flush=True,
        )
        log = args.environments / "logs" / f"evaluation-{len(record['parts'])}.log"
        result = run(pythons[library], library, options | common, log)
        print(f"{result['users_per_cpu_s']:,.0f} users / CPU s", flush=True)
        part = {"library": library, **described, "max_length": options["max_length"], **common, "result": result}
        record["parts"].append(part)
        with atomic_path(args.output) as temporary:
            temporary.write_text(json.dumps(record, indent=1) + "\n")

    for dataset in datasets:
        data = load_recommendation_data(data_folder() / dataset)
        with tempfile.TemporaryDirectory() as scratch:
            path = Path(scratch) / "interactions.npz"
            write_interactions(leave_one_out(data.sequences), data.catalogue.num_items, path)
            for library, exclude_seen, candidates, batch_size in RUNS:
                if library in libraries and (dataset, library, candidates) not in NOT_RUN:
                    options = {"data": path, "candidates": candidates, "exclude_seen": int(exclude_seen)}
                    options |= {"max_length": MAX_LENGTH[dataset], "batch_size": batch_size}
                    measure(library, options, dataset=dataset, fingerprint=data.fingerprint, random_items=0)
    if "ours" in libraries:
        for num_items in catalogues:
            for candidates in (0, 99):
                options = {"random_items": num_items, "random_users": CATALOGUES[num_items], "candidates": candidates}
                options |= {"exclude_seen": 1, "max_length": 50, "batch_size": 0}
                measure("ours", options, dataset="", fingerprint="", random_items=num_items)
    print_tables(record["parts"])


if __name__ == "__main__":
    main()
