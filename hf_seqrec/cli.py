"""The `seqrec` command. Only the module of the command that was asked for is imported, so `seqrec --help` is instant."""

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module

from hf_seqrec import __version__


COMMANDS = {
    "demo": "the main job on a simulated world: train, evaluate, save, reload, recommend",
    "data": "build a data set from raw files, check one, or push one to the Hub",
    "train": "train a recommender, evaluate it and save it",
    "vectors": "make item vectors with a language model, as a data set for every backbone",
    "knowledge": "what a language model writes about items: generate, encode, add new items, compare, push",
    "evaluate": "rank the held-out items with a saved recommender and write a record",
    "compare": "compare two records: paired test and interval of the difference",
    "analyze": "what P2Rec's language model learned, what it costs, and who gains from it",
    "diagnose": "does a recommender understand order, and for whom does it work",
    "recommend": "recommend items for a history of titles or item ids",
    "push": "push a saved recommender to the Hub",
}

# What people can cause and mend; anything else is a defect of the library and keeps its traceback.
_USER_ERRORS = (ValueError, TypeError, LookupError, OSError, ImportError)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        argv: Arguments without the program's name; those of the process by default.

    Returns:
        Exit status: 0, or 1 after an error, which is printed as one message. `--traceback` before the command shows where
        the error arose.

    Raises:
        SystemExit: After `--help`, and with status 2 for arguments that cannot be parsed.

    Example:
        >>> main(["recommend", "--model", "no/such/folder", "--history", "Heat"])           # doctest: +SKIP
        1
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    traceback = argv[:1] == ["--traceback"]
    argv = argv[1:] if traceback else argv
    try:
        return _run(argv)
    except KeyboardInterrupt:
        print("seqrec: stopped.", file=sys.stderr)
        return 130
    except _USER_ERRORS as error:
        # str() of a KeyError is the repr of its message; one word only is a missing key of the code, not a message.
        message = str(error.args[0] if isinstance(error, KeyError) and error.args else error)
        if traceback or " " not in message:
            raise
        notes = "".join(f"\n{note}" for note in getattr(error, "__notes__", ()))
        where = "" if isinstance(error, ValueError | FileExistsError) else " (seqrec --traceback … shows where)"
        print(f"seqrec: error: {message}{notes}{where}", file=sys.stderr)
        return 1


def _run(argv: list[str]) -> int:
    command = argv[0] if argv and argv[0] in COMMANDS else None
    if command == "train":  # its options depend on the model that is named, so it reads its arguments itself
        from hf_seqrec.scripts import train

        return train.run(argv[1:], prog="seqrec train")

    parser = argparse.ArgumentParser(prog="seqrec", description="Sequential recommenders on the Hugging Face Hub.")
    parser.add_argument("--version", action="version", version=f"seqrec {__version__}")
    parser.add_argument("--traceback", action="store_true", help="show where an error arose; goes before the command")
    commands = parser.add_subparsers(dest="command", metavar="command", required=True)
    module = None
    for name, summary in COMMANDS.items():
        if name == command:
            module = import_module(f"hf_seqrec.scripts.{name}")
            module.make_parser(commands)
        else:
            commands.add_parser(name, help=summary)
    args = parser.parse_args(argv)
    if command not in ("data", "compare"):
        from transformers.utils import logging

        logging.disable_progress_bar()  # of every file that is loaded or written
    return (module.main(args) if module else None) or 0


if __name__ == "__main__":
    sys.exit(main())
