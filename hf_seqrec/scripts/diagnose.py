# /// script
# dependencies = ["hf-seqrec"]
# ///
"""Does a recommender understand the order of a sequence, and for whom does it work? Tables, pictures, JSON records.

seqrec diagnose sasrec --dataset data/ml-1m --output-dir diagnosis
seqrec diagnose sasrec llm-srec --dataset data/beauty --test shuffle cold --last 10 --output-dir diagnosis
seqrec diagnose sasrec --dataset data/ml-1m --trained-on-shuffled sasrec-shuffled
seqrec diagnose llm-srec --dataset data/electronics --test cross-domain --cross-dataset data/scientific data/cds
"""

import argparse
import re
from pathlib import Path
from typing import Any


TESTS = ("shuffle", "groups", "cold", "activity", "cross-domain")


def make_parser(
    subparsers: "argparse._SubParsersAction | None" = None, prog: str | None = None
) -> argparse.ArgumentParser:
    """Makes the parser, as part of `seqrec` or on its own."""
    description = "Does a recommender understand the order of a sequence, and for whom does it work?"
    if subparsers is None:
        parser = argparse.ArgumentParser(prog=prog, description=description)
    else:
        parser = subparsers.add_parser("diagnose", help=description, description=description)
    parser.add_argument(
        "models", nargs="+", metavar="MODEL", help="Folders or Hub repositories of recommenders for the same data."
    )
    parser.add_argument(
        "--dataset", required=True, help="Folder or Hub repository of the data set that the models were made for."
    )
    parser.add_argument("--dataset-revision", "--dataset_revision", help="Branch, tag or commit of its repository.")
    parser.add_argument(
        "--test",
        nargs="+",
        choices=TESTS,
        dest="tests",
        help="shuffle: tested on shuffled histories, with the cosine of user vectors; groups: users with common and with rare "
        "transitions; cold: items by popularity; activity: users by length of history; cross-domain: other data without training "
        "(default: all that the other options allow).",
    )
    parser.add_argument(
        "--cross-dataset",
        "--cross_dataset",
        nargs="+",
        default=[],
        metavar="DATASET",
        help="Data sets for cross-domain.",
    )
    parser.add_argument(
        "--trained-on-shuffled",
        "--trained_on_shuffled",
        nargs="+",
        default=[],
        metavar="MODEL",
        help="The same recommenders trained on shuffled sequences, in the same order: compared on the original test histories.",
    )
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=[0, 1, 2], help="Seeds of the shuffles (default: 0 1 2)."
    )
    parser.add_argument(
        "--last",
        type=int,
        help="Shuffle only so many most recent items: give the number that the model looks at, else it also sees other items.",
    )
    parser.add_argument(
        "--share", type=float, default=0.35, help="Share of items that is cold, and that is warm (default: 0.35)."
    )
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
    parser.add_argument(
        "--sampled", type=int, metavar="N", help="Rank against N sampled negatives (seed 0), not the whole catalogue."
    )
    parser.add_argument("--cutoffs", type=int, nargs="+", default=[5, 10, 20], metavar="K", help="(default: 5 10 20)")
    parser.add_argument("--metric", default="ndcg@10", help="What the pictures show (default: ndcg@10).")
    parser.add_argument("--batch-size", "--batch_size", type=int, help="Users scored at once.")
    parser.add_argument("--device", help="For example cpu or cuda:0 (default: a GPU where there is one).")
    parser.add_argument(
        "--names",
        nargs="+",
        help="Names of the models in tables and pictures (default: as they were trained, else their classes).",
    )
    parser.add_argument(
        "--output-dir",
        "--output_dir",
        type=Path,
        help="Folder for JSON records and pictures; without it, tables only.",
    )
    parser.add_argument("--overwrite", action="store_true", help="Replace an output folder that holds something.")
    parser.add_argument(
        "--allow-other-data",
        "--allow_other_data",
        action="store_true",
        help="Diagnose on interactions the model was not made for; the catalogue must still be the same.",
    )
    return parser


def main(args: argparse.Namespace) -> None:
    """Measures, prints, and writes records and pictures when asked to.

    Args:
        args: What `make_parser` parsed.

    Raises:
        ValueError: If options contradict each other, or a model was made for other data.
        TypeError: If a model that knows items only by id is to rank those of another data set.
        FileExistsError: If the output folder holds something and `--overwrite` is missing.
    """
    from rich.console import Console

    from hf_seqrec.data.files import atomic_folder, check_writable_folder

    tests = _check(args)
    if args.output_dir is not None:
        check_writable_folder(args.output_dir, args.overwrite)
    results = _measure(args, tests, Console())
    if args.output_dir is None:
        return
    with atomic_folder(args.output_dir, args.overwrite) as folder:
        for title, of_models in results.items():
            for number, (_, result) in enumerate(of_models, 1):
                result.save(folder / f"{title}-{number:02d}-{_slug(result.model)}.json")
            _draw([result for _, result in of_models], args.metric, folder, title)
        written = sorted(path.name for path in folder.iterdir())
    for name in written:
        print(args.output_dir / name)


def _check(args: argparse.Namespace) -> list[str]:
    """The tests to run; refuses options that contradict each other."""
    tests = args.tests or [test for test in TESTS if test != "cross-domain" or args.cross_dataset]
    if ("cross-domain" in tests) != bool(args.cross_dataset):
        raise ValueError(
            "--test cross-domain and --cross-dataset need each other: name the data sets that were not trained on."
        )
    for option, given in (("--trained-on-shuffled", args.trained_on_shuffled), ("--names", args.names or [])):
        if given and len(given) != len(args.models):
            raise ValueError(
                f"{option} has {len(given)} entries for {len(args.models)} models: give one for each, in order."
            )
    name, at, cutoff = args.metric.partition("@")
    if not at or name not in ("hr", "ndcg", "mrr") or cutoff not in map(str, args.cutoffs):
        raise ValueError(
            f"--metric {args.metric}: need hr, ndcg or mrr with one of the cut-offs {', '.join(map(str, args.cutoffs))}, such as "
            f"ndcg@{args.cutoffs[0]}."
        )
    return tests


def _measure(args: argparse.Namespace, tests: list[str], console: Any) -> dict[str, list[tuple[str, Any]]]:
    """Every result with its model, by the name of its test; each is printed as soon as it is there."""
    import torch

    from hf_seqrec.data import draw_candidates, load_recommendation_data
    from hf_seqrec.data.splits import make_split
    from hf_seqrec.evaluation.diagnostics import SequenceDiagnostics, compare_shuffled_training, cross_domain
    from hf_seqrec.hub import load_recommender
    from hf_seqrec.scripts.evaluate import check_same_data, trained_as

    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    common = {
        "part": args.part,
        "exclude_seen": not args.include_seen,
        "cutoffs": args.cutoffs,
        "batch_size": args.batch_size,
    }

    def load(source: str, revision: str | None = None) -> dict[str, Any]:
        data = load_recommendation_data(source, revision=revision)
        split = make_split(args.split, data.sequences)
        candidates = None
        if args.sampled is not None:
            candidates = draw_candidates(getattr(split, args.part), data.catalogue.num_items, args.sampled, seed=0)
        return {"data": data, "split": split, "candidates": candidates, **common}

    def diagnostics(name: str, model: Any, processor: Any, title: str | None) -> SequenceDiagnostics:
        check_same_data(name, model, processor, own["data"], args.allow_other_data)
        trained, seed = trained_as(name)
        return SequenceDiagnostics(
            model, name=title or trained, seed=seed, allow_other_data=args.allow_other_data, **own
        )

    own = load(args.dataset, args.dataset_revision)
    others = [load(source) for source in args.cross_dataset]
    results: dict[str, list[tuple[str, Any]]] = {}

    def keep(title: str, name: str, result: Any) -> None:
        results.setdefault(title, []).append((name, result))
        console.print(result)

    for number, name in enumerate(args.models):
        title = args.names[number] if args.names else None
        model, processor = load_recommender(name)
        model = model.to(device)
        measured = diagnostics(name, model, processor, title)
        if "shuffle" in tests:
            keep("shuffled-inference", name, measured.shuffled_inference(args.seeds, args.last))
        if "groups" in tests:
            keep("transition", name, measured.transitions())
        if "cold" in tests:
            keep("popularity", name, measured.popularity(args.share))
        if "activity" in tests:
            keep("activity", name, measured.activity())
        if args.trained_on_shuffled:
            second = args.trained_on_shuffled[number]
            model_2, processor_2 = load_recommender(second)
            shuffled = diagnostics(second, model_2.to(device), processor_2, title)
            keep("shuffled-training", name, compare_shuffled_training(measured.record(), shuffled.record()))
        for other in others:
            source, (trained, seed) = own["data"].name, trained_as(name)
            about = {"source": source, "name": title or trained, "seed": seed}
            keep("cross-domain", name, cross_domain(model, processor, **about, **other))
    return results


def _draw(results: list[Any], metric: str, folder: Path, title: str) -> None:
    from hf_seqrec.evaluation import diagnostic_plots as plots

    if title == "cross-domain":
        plots.plot_cross_domain(results, metric, folder / f"{title}.png")
    elif title.startswith("shuffled"):
        plots.plot_shuffle(results, metric, folder / f"{title}.png")
        if any(result.similarity is not None for result in results):
            plots.plot_similarity(results, folder / "user-vectors.png")
    else:
        plots.plot_groups(results, metric, folder / f"{title}.png")


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "model"


if __name__ == "__main__":
    main(make_parser().parse_args())
