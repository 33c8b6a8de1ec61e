"""`seqrec data`: builds data sets in the Hub layout from the raw files of their owners.

seqrec data list
seqrec data build movielens --edition 1m --raw-dir raw --output-dir data/ml-1m --download
seqrec data build amazon --edition 2023 --category Video_Games --raw-dir raw --output-dir data/games --download
seqrec data build csv --interactions-file plays.csv --user-column who --item-column what --timestamp-column when \
    --items-file songs.csv --raw-dir . --output-dir data/plays --push-to-hub me/plays
seqrec data check data/plays
"""

import argparse
import sys
from dataclasses import MISSING
from pathlib import Path
from typing import Any

from hf_seqrec.data import RecommendationData, load_recommendation_data
from hf_seqrec.dataset_scripts.base import Converter
from hf_seqrec.dataset_scripts.building import Filters, build_dataset
from hf_seqrec.dataset_scripts.registry import CONVERTERS, get_converter


def make_parser(subparsers: Any = None, prog: str | None = None) -> argparse.ArgumentParser:
    """Makes the parser of `seqrec data`.

    Args:
        subparsers: Where `seqrec` collects its commands; None for a parser of its own.
        prog: Name of the program in help texts.

    Returns:
        The parser; what it parses goes into `main`.
    """
    help_text = "build a data set from raw files, check one, or push one to the Hub"
    if subparsers is None:
        parser = argparse.ArgumentParser(prog=prog or "seqrec data", description=help_text)
    else:
        parser = subparsers.add_parser("data", help=help_text, description=help_text)
    actions = parser.add_subparsers(dest="data_action", required=True, metavar="{list,build,check,push}")
    actions.add_parser("list", help="name the data sets that can be built, with their owners' terms")
    check = actions.add_parser("check", help="load a data set, check every rule and print its counts")
    check.add_argument("path_or_repo", help="folder, or owner/name on the Hub")
    check.add_argument("--revision", default=None, help="branch, tag or commit of the Hub repository")
    push = actions.add_parser("push", help="upload a data set folder as it lies on disk")
    push.add_argument("folder", type=Path, help="in the Hub layout, as `build` writes it")
    push.add_argument("repo_id", metavar="repo", help="repository, owner/name; made when missing")
    push.add_argument("--private", action=argparse.BooleanOptionalAction, default=None, help="visibility of a new one")
    build = actions.add_parser("build", help="build one data set")
    names = build.add_subparsers(dest="converter", required=True, metavar="name")
    for converter in CONVERTERS.values():
        one = names.add_parser(
            converter.name, help=converter.about.title, formatter_class=argparse.ArgumentDefaultsHelpFormatter
        )
        _add_converter_options(one, converter)
        _add_common_options(one)
    return parser


def _add_converter_options(parser: argparse.ArgumentParser, converter: type[Converter]) -> None:
    group = parser.add_argument_group(converter.about.title)
    for one in converter.options():
        group.add_argument(
            "--" + one.name.replace("_", "-"),
            type=one.metadata["type"],
            choices=one.metadata["choices"],
            help=one.metadata["help"].replace("%", "%%"),
            **({"required": True} if one.default is MISSING else {"default": one.default}),
        )


def _add_common_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--raw-dir", type=Path, required=True, help="folder with the owner's raw files")
    parser.add_argument("--output-dir", type=Path, required=True, help="folder to write")
    parser.add_argument("--download", action="store_true", help="fetch missing raw files, where the owner allows it")
    parser.add_argument("--overwrite", action="store_true", help="replace what is in the output folder")
    parser.add_argument("--user-core", type=int, default=5, help="fewest interactions of a user; 1 keeps all")
    parser.add_argument("--item-core", type=int, default=5, help="fewest interactions of an item; 1 keeps all")
    parser.add_argument("--min-rating", type=float, default=None, help="lowest rating that counts as an interaction")
    parser.add_argument("--without-titles", action="store_true", help="do not read item texts; all titles are null")
    parser.add_argument("--all-items", action="store_true", help="keep items that nobody met in the catalogue")
    parser.add_argument("--strict", action="store_true", help="fail when counts differ from the published ones")
    parser.add_argument(
        "--push-to-hub", metavar="REPO", default=None, help="also upload the folder to this repository"
    )
    parser.add_argument(
        "--private",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="visibility of the repository; by default private unless the owner allows to pass the data on",
    )


def main(args: argparse.Namespace) -> None:
    """Runs `seqrec data`.

    Args:
        args: What `make_parser` parsed.

    Raises:
        ValueError: If raw files, options or the data set are broken; the message says how to repair it.
        OSError: If a file is missing, or a server cannot be reached.
    """
    if args.data_action == "list":
        _list()
    elif args.data_action == "check":
        _print_statistics(load_recommendation_data(args.path_or_repo, revision=args.revision))
    elif args.data_action == "push":
        _push(args.folder, args.repo_id, args.private)
    else:
        _build(args)


def _build(args: argparse.Namespace) -> None:
    converter_class = get_converter(args.converter)
    converter = converter_class(**{one.name: getattr(args, one.name) for one in converter_class.options()})
    data = build_dataset(
        converter,
        args.raw_dir,
        args.output_dir,
        Filters(user_core=args.user_core, item_core=args.item_core, min_rating=args.min_rating),
        download=args.download,
        with_titles=not args.without_titles,
        all_items=args.all_items,
        strict=args.strict,
        overwrite=args.overwrite,
    )
    _print_statistics(data)
    print(f"written to {args.output_dir}")
    if args.push_to_hub is not None:
        about = converter.about
        private = not about.redistribution if args.private is None else args.private
        if not private and not about.redistribution:
            print(
                f"warning: {args.push_to_hub} will be public, but the owner's terms are: {about.terms}",
                file=sys.stderr,
            )
        _push(args.output_dir, args.push_to_hub, private)


def _push(folder: Path, repo_id: str, private: bool | None) -> None:
    from hf_seqrec.hub import push_dataset

    print(f"pushed to {push_dataset(folder, repo_id, private).commit_url}")


def _print_statistics(data: RecommendationData) -> None:
    print(data)
    for name, value in data.statistics().items():
        print(f"  {name.replace('_', ' ')}: {f'{value:,}' if isinstance(value, int) else f'{value:.4g}'}")


def _list() -> None:
    for name, converter in CONVERTERS.items():
        about = converter.about
        print(f"{name}: {about.title}. {about.homepage}")
        print(f"    Terms: {about.terms}")
        for one in converter.options():
            choices = f" ({', '.join(one.metadata['choices'])})" if one.metadata["choices"] else ""
            print(f"    --{one.name.replace('_', '-')}: {one.metadata['help']}{choices}")


if __name__ == "__main__":
    main(make_parser().parse_args())
