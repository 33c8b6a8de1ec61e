"""Recommend items for a history of titles or item ids, with a saved recommender.

Usage:
    seqrec recommend outputs/sasrec-ml-100k --history "Toy Story (1995)" "Babe (1995)" --top-k 5
    seqrec recommend user/sasrec-films --revision v1 --history 318 527 --by item_id --json
    seqrec recommend outputs/delrec-ml-100k --history "Toy Story (1995)" --explain
"""

import argparse
import json
from datetime import UTC, datetime
from typing import Any


def make_parser(
    subparsers: argparse._SubParsersAction | None = None, prog: str | None = None
) -> argparse.ArgumentParser:
    """Build the command's parser, as part of `seqrec` or on its own."""
    description = "Recommend items for a history of titles or item ids."
    if subparsers is None:
        parser = argparse.ArgumentParser(prog=prog, description=description)
    else:
        parser = subparsers.add_parser("recommend", help=description, description=description)
    # The generated line would put the model last, where `--history` would swallow it.
    parser.usage = "%(prog)s model --history ITEM [ITEM ...] [options]"
    parser.add_argument("model", help="Folder or Hub repository of a recommender.")
    parser.add_argument(
        "--history", nargs="+", required=True, metavar="ITEM", help="Titles or item ids, the oldest first."
    )
    parser.add_argument(
        "--times",
        nargs="+",
        metavar="TIME",
        help="When each was chosen (2014-05-13, or Unix seconds): for models that read dates.",
    )
    parser.add_argument("--top-k", "--top_k", type=int, default=10, help="Number of items to recommend (default: 10).")
    parser.add_argument(
        "--include-seen", "--include_seen", action="store_true", help="Items of the history may be recommended too."
    )
    parser.add_argument("--candidates", nargs="+", metavar="ITEM", help="Choose only from these titles or item ids.")
    parser.add_argument("--by", choices=("item_id", "title"), help="What the names are, where both would fit.")
    parser.add_argument("--revision", help="Branch, tag or commit of the repository.")
    parser.add_argument(
        "--llm", help="Folder or Hub id of the model's language model, if it is not where it was in training."
    )
    parser.add_argument("--json", action="store_true", help="Print JSON in place of a table.")
    parser.add_argument(
        "--explain",
        action="store_true",
        help="Of a DELRec model: the lists of its teacher, of the language model alone, and its own, side by side.",
    )
    return parser


def main(args: argparse.Namespace) -> None:
    """Print the recommendations."""
    if args.explain:
        return explain(args)
    from hf_seqrec.pipelines import pipeline

    where: dict[str, Any] = {} if args.revision is None else {"revision": args.revision}
    if args.llm is not None:
        where["model_kwargs"] = {"llm": args.llm}
    recommend = pipeline(model=args.model, **where)
    answer = recommend(
        {"history": args.history, **({"timestamps": [_seconds(time) for time in args.times]} if args.times else {})},
        top_k=args.top_k,
        exclude_seen=not args.include_seen,
        candidates=args.candidates,
        by=args.by,
    )
    if args.json:
        print(json.dumps(answer, ensure_ascii=False, indent=2))
        return

    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=f"after {len(args.history)} item(s)", title_justify="left")
    table.add_column("rank", justify="right")
    table.add_column("title")
    table.add_column("item_id")
    table.add_column("score", justify="right")
    for row in answer:
        # `Text` shows a title such as "[REC]" as it is; plain strings would be read as markup.
        title = Text("–" if row["title"] is None else row["title"])
        table.add_row(str(row["rank"]), title, Text(row["item_id"]), f"{row['score']:.3f}")
    Console().print(table)


def explain(args: argparse.Namespace) -> None:
    """Print what teacher, language model and DELRec make of the same candidates.

    Args:
        args: The command line.

    Raises:
        ValueError: The model cannot explain itself, or an option was given that lists side by side do not have.
    """
    from hf_seqrec.hub import load_recommender

    for name, given in (("candidates", args.candidates), ("times", args.times), ("include-seen", args.include_seen)):
        if given:
            raise ValueError(
                f"--{name} does not go with --explain, which ranks what the teacher retrieves: leave one of them out."
            )
    model, processor = load_recommender(args.model, args.revision, llm=args.llm)
    if not hasattr(model, "explain"):
        raise ValueError(
            f"{type(model).__name__} has nothing to set side by side: --explain is for models distilled from a teacher by DELRec."
        )
    input_ids = processor([args.history], by=args.by)["input_ids"]
    lists = {
        name: [
            {**item, "score": score}
            for item, score in zip(processor.decode(items[0].tolist()), scores[0].tolist(), strict=True)
        ]
        for name, (items, scores) in model.explain(input_ids, args.top_k).items()
    }
    if args.json:
        print(json.dumps(lists, ensure_ascii=False, indent=2))
        return

    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    titles = {"teacher": "teacher", "llm": "language model alone", "delrec": "DELRec"}
    table = Table(title=f"after {len(args.history)} item(s)", title_justify="left")
    table.add_column("rank", justify="right")
    for name in lists:
        table.add_column(titles.get(name, name))
    for rank, row in enumerate(zip(*lists.values(), strict=True), 1):
        table.add_row(str(rank), *[Text(item["title"] or item["item_id"]) for item in row])
    Console().print(table)


def _seconds(time: str) -> int:
    if time.isdecimal():
        return int(time)
    try:
        moment = datetime.fromisoformat(time)
    except ValueError as error:
        raise ValueError(f"--times {time}: need a date such as 2014-05-13, or Unix seconds.") from error
    return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp())


if __name__ == "__main__":
    main(make_parser().parse_args())
