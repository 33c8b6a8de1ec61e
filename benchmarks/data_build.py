"""Builds a data set from a generated table of 30 million ratings: rows per second and peak memory.

The table has the shape of MovieLens 32M: `ratings.csv` and `movies.csv`, 149 ratings per user on average, popularity of films
by a power law, rows grouped by user and not in order of time. The build runs in a process of its own, whose peak memory the
operating system reports.

    python benchmarks/data_build.py [--rows 30000000]
"""

import argparse
import json
import platform
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv


ROWS_PER_USER = 149
MOVIES = 87_585
MEMORY_LIMIT_BYTES = 6 << 30


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=30_000_000)
    parser.add_argument("--record", type=Path, default=Path(__file__).parent / "records" / "data_build.json")
    parser.add_argument("--build", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.build is not None:
        print(json.dumps(build(args.build)))
        return
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder), args.rows)
        output = subprocess.run(
            [sys.executable, __file__, "--build", folder], check=True, stdout=subprocess.PIPE, text=True
        ).stdout
    measured = json.loads(output.splitlines()[-1])
    record = {
        "benchmark": "data_build",
        "rows": args.rows,
        "rows_per_second": round(args.rows / measured["seconds"]),
        "rows_per_cpu_second": round(args.rows / measured["cpu_seconds"]),
        **measured,
        "memory_limit_bytes": MEMORY_LIMIT_BYTES,
        "pyarrow": pa.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
    }
    args.record.parent.mkdir(parents=True, exist_ok=True)
    args.record.write_text(json.dumps(record, indent=2) + "\n")
    print(
        f"{args.rows:,} rows in {measured['seconds']:.1f} s ({measured['cpu_seconds']:.1f} CPU s): "
        f"{record['rows_per_second']:,} rows/s ({record['rows_per_cpu_second']:,} per CPU s), peak memory {measured['peak_rss_bytes'] / 2**30:.2f} GiB"
    )
    if measured["peak_rss_bytes"] > MEMORY_LIMIT_BYTES:
        raise SystemExit(f"more than {MEMORY_LIMIT_BYTES / 2**30:.0f} GiB")


def generate(folder: Path, rows: int) -> None:
    """Writes the raw files, a million rows at a time."""
    random = np.random.default_rng(0)
    (folder / "ml-32m").mkdir()
    popularity = 1.0 / np.arange(1, MOVIES + 1) ** 0.9
    cumulative = np.cumsum(popularity / popularity.sum())
    movie_ids = random.permutation(292_757)[:MOVIES] + 1
    with pa.csv.CSVWriter(folder / "ml-32m" / "ratings.csv", _schema(), write_options=_plain()) as writer:
        for start in range(0, rows, 1_000_000):
            size = min(1_000_000, rows - start)
            user = (np.arange(start, start + size) // ROWS_PER_USER) + 1
            movie = movie_ids[np.minimum(np.searchsorted(cumulative, random.random(size)), MOVIES - 1)]
            rating = random.integers(1, 11, size) / 2
            joined = 800_000_000 + user * 4_000 % 800_000_000
            seconds = joined + random.integers(0, 20_000, size)
            writer.write_table(pa.table([user, movie, rating, seconds], schema=_schema()))
    with (folder / "ml-32m" / "movies.csv").open("w") as file:
        file.write("movieId,title,genres\n")
        file.writelines(f'{movie},"Film, The {movie} (2001)",Comedy|Drama\n' for movie in movie_ids)


def _schema() -> pa.Schema:
    return pa.schema(
        [("userId", pa.int64()), ("movieId", pa.int64()), ("rating", pa.float64()), ("timestamp", pa.int64())]
    )


def _plain() -> pa.csv.WriteOptions:
    return pa.csv.WriteOptions(quoting_style="none", quoting_header="none")


def build(folder: Path) -> dict[str, float | int]:
    """Builds, and measures the whole process including its imports."""
    started = time.perf_counter()
    from hf_seqrec.dataset_scripts.building import PublishedCountsWarning, build_dataset
    from hf_seqrec.dataset_scripts.movielens import MovieLens

    # The generated table is no MovieLens, so that its counts cannot agree with the published ones.
    warnings.simplefilter("ignore", PublishedCountsWarning)
    data = build_dataset(MovieLens(edition="32m"), folder, folder / "built")
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "seconds": round(time.perf_counter() - started, 2),
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 2),
        # Linux counts in KiB, macOS in bytes.
        "peak_rss_bytes": usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024),
        "raw_bytes": sum(file.stat().st_size for file in (folder / "ml-32m").iterdir()),
        "built_bytes": sum(file.stat().st_size for file in (folder / "built").rglob("*") if file.is_file()),
        "users": len(data.sequences),
        "items": data.catalogue.num_items,
        "interactions": data.sequences.num_interactions,
    }


if __name__ == "__main__":
    main()
