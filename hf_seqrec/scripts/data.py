"""`seqrec data`: builds data sets in the Hub layout from the raw files of their owners.

seqrec data list
seqrec data build movielens --edition 1m --raw-dir raw --output-dir data/ml-1m --download
seqrec data build amazon --edition 2023 --category Video_Games --raw-dir raw --output-dir data/games --download
seqrec data build csv --interactions-file plays.csv --user-column who --item-column what --timestamp-column when \
    --items-file songs.csv --raw-dir . --output-dir data/plays --push-to-hub me/plays
"""

import argparse
from dataclasses import MISSING
from pathlib import Path
from typing import Any

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
    help_text = "build data sets in the Hub layout from raw files"
    if subparsers is None:
        parser = argparse.ArgumentParser(prog=prog or "seqrec data", description=help_text)
    else:
        parser = subparsers.add_parser("data", help=help_text, description=help_text)
    actions = parser.add_subparsers(dest="data_action", required=True, metavar="{list,build}")
    actions.add_parser("list", help="name the data sets that can be built, with their owners' terms")
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
        SystemExit: With one line that says what is wrong and how to repair it.
    """
    if args.data_action == "list":
        _list()
        return
    try:
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
    except (ValueError, TypeError, OSError) as error:
        raise SystemExit(f"seqrec data build: {error}") from error
    print(data)
    for name, value in data.statistics().items():
        print(f"  {name.replace('_', ' ')}: {f'{value:,}' if isinstance(value, int) else f'{value:.4g}'}")
    print(f"written to {args.output_dir}")
    if args.push_to_hub is not None:
        private = not converter.about.redistribution if args.private is None else args.private
        if not private and not converter.about.redistribution:
            print(f"warning: {args.push_to_hub} will be public, but the owner's terms are: {converter.about.terms}")
        print(f"pushed to {push_folder(args.output_dir, args.push_to_hub, private)}")


def push_folder(folder: Path, repo_id: str, private: bool | None = None, token: str | None = None) -> str:
    """Uploads a data set folder, exactly as it lies on disk.

    Args:
        folder: In the Hub layout.
        repo_id: `owner/name`; made when missing.
        private: Visibility of a new repository; None for the owner's default.
        token: Hub token, by default the one stored by `hf auth login`.

    Returns:
        Address of the commit.

    Raises:
        FileNotFoundError: If the folder is no data set.
        huggingface_hub.errors.HfHubHTTPError: If the Hub refuses.
    """
    from huggingface_hub import HfApi

    if not (folder / "README.md").is_file():
        raise FileNotFoundError(f"{folder} has no README.md: build it with `seqrec data build` first.")
    api = HfApi(token=token)
    repo = api.create_repo(repo_id, repo_type="dataset", private=private, exist_ok=True)
    commit = api.upload_folder(
        folder_path=folder, repo_id=repo.repo_id, repo_type="dataset", commit_message=f"Data set {folder.name}"
    )
    return commit.commit_url


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
