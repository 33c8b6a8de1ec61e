"""Compare two recorded evaluations on the same users: difference, its interval, and paired tests.

Usage:
    seqrec compare sasrec.json gru4rec.json
    seqrec compare sasrec.json gru4rec.json --metric ndcg@10 --metric hr@10 --output comparison.json
"""

import argparse
import json
from pathlib import Path


def make_parser(
    subparsers: argparse._SubParsersAction | None = None, prog: str | None = None
) -> argparse.ArgumentParser:
    """Build the command's parser, as part of `seqrec` or on its own."""
    description = "Compare two recorded evaluations on the same users, with paired tests."
    if subparsers is None:
        parser = argparse.ArgumentParser(prog=prog, description=description)
    else:
        parser = subparsers.add_parser("compare", help=description, description=description)
    parser.add_argument("first", type=Path, help="Record to compare with, a .json file written by an evaluation.")
    parser.add_argument("second", type=Path, help="Record that is hoped to be better.")
    parser.add_argument(
        "--metric",
        action="append",
        dest="metrics",
        metavar="NAME@K",
        help="Metric to compare, such as ndcg@10; may be repeated. Default: every ranking metric that both records hold.",
    )
    parser.add_argument(
        "--num_resamples", type=int, default=10_000, help="Bootstrap replicates and random swaps (default: 10000)."
    )
    parser.add_argument("--seed", type=int, default=0, help="Seed of both (default: 0).")
    parser.add_argument("--output", type=Path, help="Also write the comparison to this JSON file.")
    return parser


def main(args: argparse.Namespace) -> None:
    """Print the comparison as a table, and write it when asked to."""
    from rich.table import Table

    from hf_seqrec.data.files import atomic_path
    from hf_seqrec.evaluation import EvaluationRecord, compare_records
    from hf_seqrec.scripts.reporting import print_whole

    first, second = EvaluationRecord.load(args.first), EvaluationRecord.load(args.second)
    names = args.metrics or [name for name in first.intervals if name in second.intervals]
    comparisons = [compare_records(first, second, name, args.num_resamples, args.seed) for name in names]

    table = Table()
    for header in (
        "metric",
        *(record.model + ("" if record.seed is None else f"\nseed {record.seed}") for record in (first, second)),
        "difference\n95 % interval",
        "relative",
        "p\nrandomisation",
        "p\nWilcoxon",
        "users\nbetter / worse",
    ):
        table.add_column(header, justify="left" if header == "metric" else "right")
    for c in comparisons:
        gain = "–" if c.relative_gain is None else f"{c.relative_gain:+.1%}"
        table.add_row(
            c.metric,
            f"{c.first:.4f}",
            f"{c.second:.4f}",
            f"{c.difference:+.4f}\n[{c.low:+.4f}, {c.high:+.4f}]",
            gain,
            f"{c.p_randomisation:.4f}",
            f"{c.p_wilcoxon:.4f}",
            f"{c.num_better:,} / {c.num_worse:,}",
        )
    print(f"{first.dataset}, {comparisons[0].num_users:,} users · {first.protocol.describe()}")
    print_whole(table)
    print("One run of each: a claim about methods needs several seeds of both.")
    if args.output is not None:
        report = {
            "first": {
                "file": str(args.first),
                "model": first.model,
                "seed": first.seed,
                "config_hash": first.config_hash,
            },
            "second": {
                "file": str(args.second),
                "model": second.model,
                "seed": second.seed,
                "config_hash": second.config_hash,
            },
            "dataset": first.dataset,
            "dataset_fingerprint": first.dataset_fingerprint,
            "protocol": first.protocol.to_dict(),
            "num_resamples": args.num_resamples,
            "resampling_seed": args.seed,
            "comparisons": [comparison.to_dict() for comparison in comparisons],
        }
        with atomic_path(args.output) as temporary:
            temporary.write_text(json.dumps(report, indent=2, allow_nan=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(make_parser().parse_args())
