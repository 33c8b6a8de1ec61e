"""Push a saved recommender to the Hub, with its processor, code, card and evaluations, in one commit.

Usage:
    seqrec push outputs/sasrec-ml-100k user/sasrec-films --private
    seqrec push outputs/sasrec-ml-100k user/sasrec-films --record outputs/test.json --dataset user/films --license mit

A folder that a trainer wrote lacks card and pipeline code; the command adds them to what is pushed, not to the folder.
"""

import argparse
from pathlib import Path


def make_parser(
    subparsers: argparse._SubParsersAction | None = None, prog: str | None = None
) -> argparse.ArgumentParser:
    """Build the command's parser, as part of `seqrec` or on its own."""
    description = "Push a saved recommender to the Hub, in one commit."
    if subparsers is None:
        parser = argparse.ArgumentParser(prog=prog, description=description)
    else:
        parser = subparsers.add_parser("push", help=description, description=description)
    parser.add_argument("folder", type=Path, help="Folder with model and processor.")
    parser.add_argument("repo_id", metavar="repo", help="Repository, owner/name; made when missing.")
    parser.add_argument("--private", action="store_true", default=None, help="Make a new repository private.")
    parser.add_argument("--revision", help="Branch to push to; made when missing (default: main).")
    parser.add_argument(
        "--parent-commit", "--parent_commit", help="Refuse to push unless the branch still stands at this commit."
    )
    parser.add_argument("--message", help="First line of the commit's message.")
    card = parser.add_argument_group("card", "Any of these writes the card anew.")
    card.add_argument(
        "--record",
        action="append",
        type=Path,
        dest="records",
        metavar="FILE",
        help="Evaluation record; may be repeated.",
    )
    card.add_argument(
        "--dataset", dest="dataset_id", metavar="REPO", help="Data set repository that it was trained on."
    )
    card.add_argument("--base-model", "--base_model", metavar="REPO", help="Model that this one was made from.")
    card.add_argument("--license", help="Licence identifier of the weights, such as mit.")
    return parser


def main(args: argparse.Namespace) -> None:
    """Push, and print the address of the commit."""
    from hf_seqrec import hub

    if not args.folder.is_dir():
        raise FileNotFoundError(f"{args.folder} is no folder: name the folder that holds model and processor.")
    to = {
        "private": args.private,
        "revision": args.revision,
        "parent_commit": args.parent_commit,
        "commit_message": args.message,
    }
    card = {"dataset_id": args.dataset_id, "base_model": args.base_model, "license": args.license}
    if hub.missing_files(args.folder) or args.records or any(card.values()):
        model, processor = hub.load_recommender(args.folder)
        records = args.records or sorted((args.folder / "records").glob("*.json"))
        commit = hub.push_recommender(model, processor, args.repo_id, records, **card, **to)
    else:
        commit = hub.push_folder(args.folder, args.repo_id, **to)
    print(commit.commit_url)


if __name__ == "__main__":
    main(make_parser().parse_args())
