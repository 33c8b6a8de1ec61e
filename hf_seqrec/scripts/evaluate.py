# /// script
# dependencies = ["hf-seqrec"]
# ///
"""Rank the held-out items of a data set with a saved recommender, print the metrics, and write a record.

seqrec evaluate out --dataset data/ml-1m
seqrec evaluate out --dataset data/ml-1m --include-seen --output unmasked.json
seqrec evaluate user/sasrec-films --revision v1 --dataset user/films --sampled 99 --seed 0
"""

import argparse
from pathlib import Path
from typing import Any


def make_parser(
    subparsers: "argparse._SubParsersAction | None" = None, prog: str | None = None
) -> argparse.ArgumentParser:
    """Makes the parser, as part of `seqrec` or on its own."""
    description = "Rank the held-out items of a data set with a saved recommender and write a record."
    if subparsers is None:
        parser = argparse.ArgumentParser(prog=prog, description=description)
    else:
        parser = subparsers.add_parser("evaluate", help=description, description=description)
    parser.add_argument("model", help="Folder or Hub repository of the recommender.")
    parser.add_argument("--dataset", required=True, help="Folder or Hub repository of the data set.")
    parser.add_argument("--revision", help="Branch, tag or commit of the model's repository.")
    parser.add_argument(
        "--llm", help="Folder or Hub id of the model's language model, if it is not where it was in training."
    )
    parser.add_argument("--dataset-revision", "--dataset_revision", help="The same of the data set's repository.")
    parser.add_argument(
        "--split",
        default="leave_one_out",
        choices=("leave_one_out", "user_ratio", "temporal_ratio", "global_time"),
        help="How the interactions are divided; must be that of the training (default: leave_one_out).",
    )
    parser.add_argument("--part", default="test", choices=("validation", "test"), help="(default: test)")
    parser.add_argument(
        "--include-seen", "--include_seen", action="store_true", help="Items of the history may be recommended too."
    )
    candidates = parser.add_mutually_exclusive_group()
    candidates.add_argument(
        "--sampled", type=int, metavar="N", help="Rank against N sampled negatives, not the whole catalogue."
    )
    candidates.add_argument("--candidates", type=Path, metavar="FILE", help="Rank stored candidates (parquet).")
    parser.add_argument("--seed", type=int, default=0, help="Seed of the sampled negatives (default: 0).")
    parser.add_argument("--cutoffs", type=int, nargs="+", default=[5, 10, 20], metavar="K", help="(default: 5 10 20)")
    parser.add_argument(
        "--batch-size", "--batch_size", type=int, help="Users scored at once (default: what suits the device)."
    )
    parser.add_argument("--device", help="For example cpu or cuda:0 (default: a GPU where there is one).")
    parser.add_argument("--name", help="Name of the model in the record (default: as it was trained, else its class).")
    parser.add_argument("--output", type=Path, metavar="FILE", help="Where to write the record, a .json file.")
    parser.add_argument(
        "--allow-other-data",
        "--allow_other_data",
        action="store_true",
        help="Evaluate on interactions the model was not made for; the catalogue must still be the same.",
    )
    return parser


def main(args: argparse.Namespace) -> None:
    """Evaluates, prints, and writes the record when asked to.

    Args:
        args: What `make_parser` parsed.

    Raises:
        ValueError: If the model was made for other data, or the output is no `.json` file.
    """
    import torch

    from hf_seqrec.data import Candidates, draw_candidates, load_recommendation_data
    from hf_seqrec.data.splits import make_split
    from hf_seqrec.hub import load_recommender
    from hf_seqrec.scripts.reporting import evaluate_model

    if args.output is not None and args.output.suffix != ".json":
        raise ValueError(f"--output {args.output}: a record is a .json file.")
    data = load_recommendation_data(args.dataset, revision=args.dataset_revision)
    split = make_split(args.split, data.sequences)
    model, processor = load_recommender(args.model, revision=args.revision, llm=args.llm)
    check_same_data(args.model, model, processor, data, args.allow_other_data)
    name, seed = trained_as(args.model, args.revision)
    candidates = None
    if args.candidates is not None:
        candidates = Candidates.load(args.candidates, getattr(split, args.part))
    elif args.sampled is not None:
        candidates = draw_candidates(getattr(split, args.part), data.catalogue.num_items, args.sampled, args.seed)
    record = evaluate_model(
        model.to(args.device or ("cuda" if torch.cuda.is_available() else "cpu")),
        data,
        split,
        part=args.part,
        exclude_seen=not args.include_seen,
        cutoffs=args.cutoffs,
        candidates=candidates,
        batch_size=args.batch_size,
        name=args.name or name,
        seed=seed,
        notes={"model": str(args.model), "revision": args.revision},
        progress=True,
    )
    print_record(record)
    if args.output is not None:
        print(f"Record: {record.save(args.output)}")


def print_record(record: Any) -> None:
    """Prints data, protocol, and one line per metric with its 95 % interval and what a random order would reach."""
    print(f"{record.model} on {record.dataset}: {record.num_rows:,} rows, {record.num_items:,} items")
    print(record.protocol.describe())
    if record.targets_seen:
        print(f"{record.targets_seen:,} targets are in their own history: misses where seen items are excluded")
    for name, value in record.metrics.items():
        low, high = record.intervals.get(name, (None, None))
        more = "" if low is None else f"  [{low:.4f}, {high:.4f}]   random {record.floor[name]:.4f}"
        print(f"  {name:<20}{value:.4f}{more}")
    print(f"{record.seconds:.1f} s, {record.users_per_second:,.0f} rows per second")


def check_same_data(name: str, model: Any, processor: Any, data: Any, allow_other_data: bool = False) -> None:
    """Refuses a model that was made for other data.

    Args:
        name: What to call the model in messages.
        model: The recommender.
        processor: Its processor.
        data: The data set to evaluate on.
        allow_other_data: Whether other interactions over the same catalogue are fine.

    Raises:
        ValueError: If the catalogues differ, or the fingerprints differ and `allow_other_data` is off.
    """
    if processor.item_ids != data.catalogue.item_ids.to_pylist():
        raise ValueError(
            f"{name} knows {processor.num_items:,} items, {data.name} has {data.catalogue.num_items:,}, and they are not the "
            "same in the same order: its scores would belong to other items. Evaluate on the data it was trained with."
        )
    made_for = model.config.data_fingerprint
    if made_for not in (None, data.fingerprint) and not allow_other_data:
        raise ValueError(
            f"{name} was made for the data with fingerprint {made_for}, {data.name} has {data.fingerprint}: test items may "
            "have been trained on. Evaluate on that data, or pass --allow-other-data if you know they were not."
        )


def trained_as(model: str, revision: str | None = None) -> tuple[str | None, int | None]:
    """Name and seed in the record that `seqrec train` writes beside a model, in a folder or on the Hub.

    The class alone does not tell SASRec from SASRec with item vectors.

    Args:
        model: Folder or Hub repository.
        revision: Branch, tag or commit of the repository.

    Returns:
        The two, each None where nothing tells it.
    """
    from transformers.utils import cached_file

    from hf_seqrec.evaluation import EvaluationRecord

    path = cached_file(model, "records/test.json", revision=revision, _raise_exceptions_for_missing_entries=False)
    if path is None:
        return None, None
    record = EvaluationRecord.load(path, rows=False)
    return record.model, record.seed


if __name__ == "__main__":
    main(make_parser().parse_args())
