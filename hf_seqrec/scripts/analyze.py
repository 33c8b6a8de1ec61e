# /// script
# dependencies = ["hf-seqrec"]
# ///
"""What P2Rec's language model learned, what it costs against E4SRec, and who gains from it: tables, pictures, a JSON record.

seqrec analyze p2rec-16 p2rec-64 p2rec-128                                         # runs of `seqrec train p2rec`: K and C1 to C3
seqrec analyze p2rec-64 --dataset data/beauty --sweep 16 32 64 128                 # k-means alone, for other K
seqrec analyze p2rec-64 --dataset data/beauty --cost --output-dir analysis         # LLM time per epoch and per inference
seqrec analyze --base sasrec/records/test.json --enhanced sasrec-p2rec/records/test.json --output-dir analysis
seqrec analyze --base base-0.json base-1.json --enhanced p2rec-0.json p2rec-1.json --against noise-0.json noise-1.json
"""

import argparse
import json
from pathlib import Path
from typing import Any


def make_parser(
    subparsers: "argparse._SubParsersAction | None" = None, prog: str | None = None
) -> argparse.ArgumentParser:
    """Makes the parser, as part of `seqrec` or on its own."""
    description = "What P2Rec's language model learned, what it costs against E4SRec, and who gains from it."
    if subparsers is None:
        parser = argparse.ArgumentParser(prog=prog, description=description)
    else:
        parser = subparsers.add_parser("analyze", help=description, description=description)
    parser.add_argument("runs", nargs="*", type=Path, metavar="RUN", help="Folders that `seqrec train p2rec` wrote.")
    parser.add_argument("--dataset", help="Folder or Hub repository of the data set; --sweep and --cost need it.")
    parser.add_argument("--dataset-revision", "--dataset_revision", help="Branch, tag or commit of its repository.")
    parser.add_argument(
        "--sweep",
        type=int,
        nargs="+",
        default=[],
        metavar="K",
        help="k-means with so many groups over the first run's item vectors.",
    )
    parser.add_argument(
        "--cost", action="store_true", help="Time the first run's language model in P2Rec and in E4SRec."
    )
    parser.add_argument("--sample", type=int, default=64, help="Prompts to time of each kind (default: 64).")
    parser.add_argument("--batch-size", "--batch_size", type=int, default=16, help="Prompts per step (default: 16).")
    parser.add_argument("--device", help="For example cpu or cuda:0 (default: a GPU where there is one).")
    parser.add_argument(
        "--base", type=Path, nargs="+", default=[], metavar="RECORD", help="Evaluations without, one per seed."
    )
    parser.add_argument(
        "--enhanced",
        type=Path,
        nargs="+",
        default=[],
        metavar="RECORD",
        help="Evaluations with enhanced vectors, one per seed.",
    )
    parser.add_argument(
        "--against",
        type=Path,
        nargs="+",
        action="append",
        default=[],
        metavar="RECORD",
        help="Evaluations of a control, one per seed, that the enhanced ones are compared with too; may be repeated.",
    )
    parser.add_argument(
        "--names", nargs="+", help="Names of base, enhanced and each --against (default: those in the records)."
    )
    parser.add_argument("--metric", default="ndcg@10", help="Of the gains (default: ndcg@10).")
    parser.add_argument("--groups", type=int, default=5, help="Groups of users by activity (default: 5).")
    parser.add_argument("--output-dir", "--output_dir", type=Path, help="Folder for record and pictures.")
    parser.add_argument("--overwrite", action="store_true", help="Replace an output folder that holds something.")
    return parser


def main(args: argparse.Namespace) -> None:
    """Measures and prints; writes record and pictures when asked to.

    Args:
        args: What `make_parser` parsed.

    Raises:
        ValueError: If options contradict each other, or records do not belong together.
        FileNotFoundError: If a run or a record is missing.
        FileExistsError: If the output folder holds something and `overwrite` is off.
    """
    from rich.console import Console

    from hf_seqrec.data.files import atomic_folder, check_writable_folder
    from hf_seqrec.evaluation.gains import gains_table, plot_gains

    _check(args)
    if args.output_dir is not None:
        check_writable_folder(args.output_dir, args.overwrite)
    console, content = Console(), {}
    runs = [_read(run) for run in args.runs]
    if runs:
        content["runs"] = runs
        console.print(_runs_table(args.runs, runs))
    if args.sweep or args.cost:
        content |= _with_model(args, console)
    gains = _gains(args)
    if gains:
        content["gains"] = [one.to_dict() for one in gains]
        console.print(gains_table(gains))
    if args.output_dir is None:
        return
    with atomic_folder(args.output_dir, args.overwrite) as folder:
        (folder / "analysis.json").write_text(json.dumps({"format": 1, **content}, indent=1) + "\n", encoding="utf-8")
        if runs:
            plot_agreement(runs, folder / "agreement.png")
        if "cost" in content:
            plot_cost(content["cost"], folder / "cost.png")
        if gains:
            plot_gains(gains, folder / "gains.png")
        written = sorted(path.name for path in folder.iterdir())
    for name in written:
        print(args.output_dir / name)


def _check(args: argparse.Namespace) -> None:
    if not (args.runs or args.base):
        raise ValueError(
            "nothing to look at: name runs of `seqrec train p2rec`, or records with --base and --enhanced."
        )
    if bool(args.base) != bool(args.enhanced) or (args.against and not args.enhanced):
        raise ValueError("--base, --enhanced and --against are compared with each other: give --base and --enhanced.")
    if args.names and len(args.names) != (expected := 2 + len(args.against)):
        raise ValueError(
            f"--names has {len(args.names)} entries, need {expected}: base, enhanced, and each --against."
        )
    if (args.sweep or args.cost) and not (args.runs and args.dataset):
        raise ValueError("--sweep and --cost need a run and --dataset.")


def _read(run: Path) -> dict[str, Any]:
    path = run / "p2rec.json"
    if not path.is_file():
        raise FileNotFoundError(f"{run} holds no p2rec.json: name a folder that `seqrec train p2rec` finished.")
    return json.loads(path.read_text(encoding="utf-8"))


def _runs_table(folders: list[Path], runs: list[dict[str, Any]]) -> Any:
    from rich.table import Table

    table = Table(
        title="C1: the most probable group is the item's own, C2: it is second or third, C3: neither",
        title_justify="left",
    )
    headings = (
        "run",
        "K",
        "silhouette",
        "first loss",
        "last loss",
        "C1",
        "C2",
        "C3",
        "stage 1 s / epoch",
        "tokens / epoch",
        "stage 2 s",
    )
    for heading in headings:
        table.add_column(heading, justify="left" if heading == "run" else "right")
    for folder, run in zip(folders, runs, strict=True):
        stage, losses = run["stage1"], run["stage1"]["loss"] or [float("nan")]
        epochs = stage["epochs"] or 1
        table.add_row(
            folder.name, str(run["groups"]["num_groups"]), f"{run['groups']['silhouette']:.3f}", f"{losses[0]:.4f}", f"{losses[-1]:.4f}",
            *(f"{run['agreement'][name]:.1%}" for name in ("c1", "c2", "c3")),
            "resumed" if stage["resumed"] else f"{stage['seconds'] / epochs:.1f}",
            "resumed" if stage["resumed"] else f"{stage['llm_tokens'] / epochs:,.0f}", f"{run['stage2']['seconds']:.1f}",
        )  # fmt: skip
    return table


def _with_model(args: argparse.Namespace, console: Any) -> dict[str, Any]:
    """What needs the first run's model: k-means for other K, and cost."""
    import torch
    from rich.table import Table

    from hf_seqrec.data import load_recommendation_data
    from hf_seqrec.data.splits import make_split
    from hf_seqrec.modeling import P2RecModel
    from hf_seqrec.preference_cost import compare_cost
    from hf_seqrec.preferences import sweep_groups

    data = load_recommendation_data(args.dataset, revision=args.dataset_revision)
    model = P2RecModel.from_pretrained(args.runs[0])
    if model.config.data_fingerprint not in (None, data.fingerprint):
        raise ValueError(
            f"{args.runs[0]} was made for the data with fingerprint {model.config.data_fingerprint}, {data.name} has {data.fingerprint}."
        )
    run = _read(args.runs[0])
    train = make_split(run["split"], data.sequences).train
    content: dict[str, Any] = {}
    if args.sweep:
        swept = sweep_groups(
            model.item_vectors,
            args.sweep,
            normalize=run["groups"]["normalize"],
            training_items=train.item_index,
            seed=run["seed"],
        )
        table = Table(title="k-means over the backbone's item vectors", title_justify="left")
        for heading in ("K", "silhouette", "mean squared distance", "smallest group", "largest group"):
            table.add_column(heading, justify="right")
        content["sweep"] = [
            {
                "num_groups": size, "silhouette": one.silhouette, "inertia": one.inertia, "smallest": int(one.sizes.min()),
                "largest": int(one.sizes.max()),
            }
            for size, one in swept.items()
        ]  # fmt: skip
        for row in content["sweep"]:
            table.add_row(
                str(row["num_groups"]),
                f"{row['silhouette']:.3f}",
                f"{row['inertia']:.4f}",
                f"{row['smallest']:,}",
                f"{row['largest']:,}",
            )
        console.print(table)
    if args.cost:
        device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
        costs = compare_cost(model.to(device), train, args.sample, args.batch_size)
        content["cost"] = [one.to_dict() for one in costs]
        console.print(cost_table(content["cost"], f"{run['llm']} on {data.name}, {device}"))
    return content


def cost_table(costs: list[dict[str, Any]], title: str) -> Any:
    """Calls, tokens and seconds of both methods, and their ratio.

    Args:
        costs: P2Rec's and E4SRec's, as dictionaries.
        title: Above the table.
    """
    from rich.table import Table

    table = Table(title=f"{title}; seconds are scaled from {costs[0]['sampled_calls']} prompts", title_justify="left")
    for heading in ("", "P2Rec", "E4SRec", "E4SRec / P2Rec"):
        table.add_column(heading, justify="right" if heading else "left")
    for name, text in (
        ("calls_per_epoch", "LLM calls per epoch of training"), ("tokens_per_epoch", "LLM tokens per epoch"),
        ("seconds_per_epoch", "LLM seconds per epoch"), ("inference_calls", "LLM calls to serve every user once"),
        ("inference_tokens", "LLM tokens to serve every user once"), ("inference_seconds", "LLM seconds to serve every user once"),
    ):  # fmt: skip
        first, second = costs[0][name], costs[1][name]
        shown = (f"{value:,.1f}" if "seconds" in name else f"{value:,}" for value in (first, second))
        table.add_row(text, *shown, f"{second / first:.1f}x")
    return table


def _gains(args: argparse.Namespace) -> list[Any]:
    from hf_seqrec.evaluation import EvaluationRecord
    from hf_seqrec.evaluation.gains import gain_by_activity

    if not args.enhanced:
        return []
    enhanced = [EvaluationRecord.load(path) for path in args.enhanced]
    others = [[EvaluationRecord.load(path) for path in paths] for paths in (args.base, *args.against)]
    called: list[Any] = [None] * len(others)
    if args.names:
        base, own, *controls = args.names
        called = [(name, own) for name in (base, *controls)]
    return [
        gain_by_activity(other, enhanced, args.metric, args.groups, names=names)
        for other, names in zip(others, called, strict=True)
    ]


def plot_agreement(runs: list[dict[str, Any]], path: Any = None) -> Any:
    """Draw the shares C1, C2 and C3 of runs by K.

    Args:
        runs: Contents of `p2rec.json`.
        path: Where to save the picture, if at all.

    Returns:
        The matplotlib figure.
    """
    from hf_seqrec.evaluation.figures import COLOURS

    return _bars(
        "Inferred against k-means groups",
        f"{runs[0]['llm']} on {runs[0]['dataset']}",
        [f"K = {run['groups']['num_groups']}\nseed {run['seed']}" for run in runs],
        {
            name: ([run["agreement"][key] for run in runs], colour)
            for (key, name), colour in zip(
                (("c1", "C1 own group first"), ("c2", "C2 second or third"), ("c3", "C3 neither")),
                COLOURS,
                strict=False,
            )
        },
        "Share of items",
        path,
    )


def plot_cost(costs: list[dict[str, Any]], path: Any = None) -> Any:
    """Draw LLM seconds per epoch and per inference of both methods, on a logarithmic axis.

    Args:
        costs: P2Rec's and E4SRec's, as dictionaries.
        path: Where to save the picture, if at all.

    Returns:
        The matplotlib figure.
    """
    from hf_seqrec.evaluation.figures import COLOURS

    figure = _bars(
        "Time of the language model",
        "scaled from a sample to all prompts of the data",
        ["epoch of training", "serving every user once"],
        {
            cost["method"]: ([cost["seconds_per_epoch"], cost["inference_seconds"]], colour)
            for cost, colour in zip(costs, COLOURS, strict=False)
        },
        "Seconds",
        path,
        log=True,
    )
    return figure


def _bars(
    headline: str,
    below: str,
    places: list[str],
    series: dict[str, tuple[list[float], str]],
    label: str,
    path: Any,
    log=False,
):
    import numpy as np
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    from hf_seqrec.data.files import atomic_path
    from hf_seqrec.evaluation.figures import GREY, STYLE

    with rc_context(STYLE):
        figure = Figure(figsize=(7.8, 4.8), layout="constrained")
        axes = figure.subplots()
        width = 0.8 / len(series)
        for number, (name, (values, colour)) in enumerate(series.items()):
            at = np.arange(len(places)) + width * (number - (len(series) - 1) / 2)
            drawn = axes.bar(at, values, 0.9 * width, color=colour, label=name)
            axes.bar_label(drawn, [f"{value:.2g}" for value in values], color=GREY, fontsize=9)
        if log:
            axes.set_yscale("log")
        axes.set_xticks(np.arange(len(places)), places)
        axes.set_ylabel(label)
        axes.legend(frameon=False)
        axes.set_title(f"{headline}\n{below}")
        if path is not None:
            with atomic_path(path) as temporary:
                figure.savefig(temporary, format=Path(path).suffix.removeprefix("."))
    return figure


if __name__ == "__main__":
    main(make_parser().parse_args())
