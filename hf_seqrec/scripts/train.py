# /// script
# dependencies = ["hf-seqrec"]
# ///
"""Train a recommender, evaluate it on the test part with and without seen items, and save it with its processor.

The preset gives the defaults, `--config file.yaml` overrides them, the command line overrides both; unknown keys fail.

seqrec train sasrec --dataset data/ml-1m --output_dir out
seqrec train sasrec --dataset data/ml-1m --output_dir out --preset paper --hidden_size 128 --seed 1
seqrec train --config out/run.yaml --output_dir again
seqrec train sasrec --dataset data/ml-1m --output_dir out --resume_from_checkpoint last
seqrec train popularity --dataset data/ml-1m --output_dir floor
seqrec train sasrec --dataset data/ml-1m --output_dir out --item_features vectors/enhanced --fusion gate
seqrec train llm-srec --help                                   # methods around a language model have options of their own
accelerate launch --config_file multi_gpu.yaml -m hf_seqrec.scripts.train sasrec --dataset data/ml-1m --output_dir out
"""

import argparse
import difflib
import inspect
import os
import re
import sys
import types
import typing
from collections.abc import Callable, Sequence
from dataclasses import MISSING, dataclass, field, fields, make_dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import yaml

from .item_features import ItemFeatureArguments, ItemFeatures
from .training_run import TrainingRun, clear_configuration_errors


@dataclass
class ScriptArguments:
    """What to train on what.

    Args:
        model: Name of the method, such as `sasrec`; the first word of the command line.
        dataset: Folder or Hub repository of the data set.
        dataset_revision: Branch, tag or commit of the repository.
        split: How the interactions are divided.
        preset: Named hyper-parameters of the method.
        overwrite: Whether an output folder that holds something may be written to.
        shuffle_training: Seed with which the items of every training sequence are put into random order; None keeps their order.
    """

    model: str = field(metadata={"help": "Name of the method; may be given as the first word without --model."})
    dataset: str = field(metadata={"help": "Folder or Hub repository of the data set."})
    dataset_revision: str | None = field(
        default=None, metadata={"help": "Branch, tag or commit of the data set's repository."}
    )
    split: str = field(
        default="leave_one_out", metadata={"help": "leave_one_out, user_ratio, temporal_ratio or global_time."}
    )
    preset: str = field(default="default", metadata={"help": "Named hyper-parameters: default, paper, paper-code."})
    overwrite: bool = field(default=False, metadata={"help": "Write into an output folder that holds something."})
    shuffle_training: int | None = field(
        default=None,
        metadata={
            "help": "Seed with which the items of each training sequence are shuffled once, to learn what order is worth (seqrec diagnose)."
        },
    )


@dataclass
class BackboneScriptArguments(ItemFeatureArguments, ScriptArguments):
    """What to train on what, with or without item vectors beside the ID table."""


# Methods that are made from more than the data have a script of their own.
OWN_SCRIPTS = {
    "llm-srec": "train_llm_srec",
    "p2rec": "train_p2rec",
    "e4srec": "train_e4srec",
    "llmseqsim": "train_llmseqsim",
    "score-sum": "train_score_sum",
    "seralm-warmup": "train_seralm_warmup",
    "seralm": "train_seralm",
    "delrec-distill": "train_delrec",
    "delrec-tune": "train_delrec",
    "llm-ranker": "train_llm_ranker",
}


def model_classes() -> dict[str, type]:
    """Every recommender that can be made from the data alone, by the name it has on the command line."""
    import hf_seqrec.modeling as modeling

    heads = [getattr(modeling, name) for name in modeling.__all__ if name.endswith("ForSequentialRecommendation")]
    return {
        config_class(head).model_type.removeprefix("hf_seqrec_"): head
        for head in heads
        if not (hasattr(head, "from_parts") or hasattr(head, "from_vectors"))
    }


def config_class(head: type) -> Any:
    """The configuration class of a recommender."""
    return typing.get_type_hints(head)["config"]


def model_arguments(head: type, left_out: Sequence[str] = ()) -> type:
    """A dataclass with the hyper-parameters of a recommender: the fields of its configuration that a person chooses.

    Args:
        head: The recommender's class.
        left_out: Further fields that are not a person's choice.

    Returns:
        The dataclass; types are those a command line can give, help texts come from the configuration's docstring.
    """
    from transformers import PreTrainedConfig

    config = config_class(head)
    # What follows from the data, and side vectors, which no file on the command line gives.
    given = {"num_items", "data_fingerprint", "fusion", "item_features", "pad_token_id", "tie_word_embeddings"}
    given |= {*left_out, *config.unused_fields}
    own = [
        one
        for one in fields(config)
        if one.name not in given and one.name not in PreTrainedConfig.__dataclass_fields__
    ]
    helps = _documented_fields(config)
    chosen = []
    for one in own:
        default = one.default if one.default is not MISSING else one.default_factory()  # type: ignore[misc, operator]
        how: dict[str, Any] = {"metadata": {"help": helps[one.name]}}
        if isinstance(default, list | tuple):
            how["default_factory"] = lambda default=default: list(default)
        else:
            how["default"] = default
        chosen.append((one.name, _one_type(one.type), field(**how)))
    return make_dataclass(config.__name__.replace("Config", "Arguments"), chosen)


def _one_type(hint: Any) -> Any:
    """The alternative of a union that a command line parses: float of `float | int`, list of `list | tuple`."""
    if not isinstance(hint, types.UnionType) and typing.get_origin(hint) is not typing.Union:
        return hint
    options = typing.get_args(hint)
    for wanted in (float, int, str):
        if wanted in options:
            return wanted | None if type(None) in options else wanted
    return next(option for option in options if typing.get_origin(option) is list)


def _documented_fields(config: type) -> dict[str, str]:
    """Field -> its text in the `Args:` sections of a class and its parents."""
    found: dict[str, str] = {}
    for parent in reversed(config.__mro__):
        for section in re.findall(r"^Args:\n((?:    .*\n|\n)+)", f"{inspect.getdoc(parent)}\n", re.MULTILINE):
            for name, text in re.findall(r"^    (\w+): ((?:.*\n(?:     +.*\n)*))", section, re.MULTILINE):
                found[name] = " ".join(text.split()).replace("%", "%%")
    return found


def make_parser(
    subparsers: "argparse._SubParsersAction | None" = None, prog: str | None = None, model: str | None = None
):
    """Makes the parser.

    Args:
        subparsers: Where a command line tool collects its commands; None for a parser of its own.
        prog: Name of the program in help texts.
        model: Name of the method whose hyper-parameters are options too; None leaves them out.

    Returns:
        A `TrlParser` for `BackboneScriptArguments`, `NextItemTrainingArguments` and the hyper-parameters of the model.

    Raises:
        ValueError: If no method has that name.
    """
    from trl import TrlParser

    from hf_seqrec.trainers import NextItemTrainingArguments

    kinds: list[Any] = [BackboneScriptArguments, NextItemTrainingArguments]
    heads = model_classes()
    if model is not None:
        if model not in heads:
            near = difflib.get_close_matches(model.lower(), heads, n=1)
            raise ValueError(
                f"there is no method {model!r}{f', did you mean {near[0]!r}?' if near else ''} Choose one of "
                f"{', '.join(heads)}."
            )
        kinds.append(model_arguments(heads[model]))
    description = "Train a recommender, evaluate it, save it."
    if subparsers is not None:
        return subparsers.add_parser("train", help=description, dataclass_types=kinds)
    methods = ", ".join([*heads, *OWN_SCRIPTS])
    return TrlParser(
        kinds,
        prog=prog,
        usage=f"{prog or '%(prog)s'} METHOD --dataset FOLDER_OR_REPO --output_dir FOLDER [options]",
        description=description,
        epilog=f"METHOD is one of {methods}; `METHOD --help` shows its hyper-parameters too.",
        allow_abbrev=False,
    )


def parse(
    argv: Sequence[str], prog: str | None = None, make: Callable[..., Any] = make_parser
) -> tuple[Any, Any, Any]:
    """Reads preset, configuration file and command line, in rising order of precedence.

    Args:
        argv: The words of the command line, the method first.
        prog: Name of the program in help texts.
        make: Makes the parser from `prog` and `model`, the method's name.

    Returns:
        `(script_args, training_args, model_args)`.

    Raises:
        ValueError: If a key is unknown, naming the nearest one.
        SystemExit: After `--help`, or if a value cannot be read.
    """
    import torch

    from hf_seqrec.presets import load_preset

    argv, early = early_arguments(argv)
    model = early.model
    parser = make(prog=prog, model=model)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not torch.cuda.is_available():
        # Without a GPU one process trains on the CPU by itself; several form a group only when they are told to.
        parser.set_defaults_with_config(use_cpu=True)
    if model is not None:
        preset = load_preset(model.replace("-", "_"), early.preset or "default")
        unknown = parser.set_defaults_with_config(**preset.model, **preset.training)
        _refuse_unknown(parser, unknown, f"the preset {preset.name} of {model}")
    *parsed, from_file, from_line = parser.parse_args_and_config(
        argv, return_remaining_strings=True, separate_remaining_strings=True
    )
    _refuse_unknown(parser, from_file, early.config)
    _refuse_unknown(parser, from_line, "the command line")
    script_args, training_args, *model_args = parsed
    return script_args, training_args, model_args[0]


def early_arguments(argv: Sequence[str]) -> tuple[list[str], argparse.Namespace]:
    """The words as options only, and method, preset and configuration file, which decide what the other words mean."""
    # TrlParser knows `--config FILE` only as two words.
    words = [part for word in argv for part in (word.split("=", 1) if word.startswith("--config=") else [word])]
    if words and not words[0].startswith("-"):
        words = ["--model", *words]
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name in ("--model", "--preset", "--config"):
        first.add_argument(name)
    early, _ = first.parse_known_args(words)
    in_file = yaml.safe_load(Path(early.config).read_text(encoding="utf-8")) if early.config else {}
    in_file = in_file if isinstance(in_file, dict) else {}  # TrlParser refuses anything else
    early.model, early.preset = early.model or in_file.get("model"), early.preset or in_file.get("preset")
    return words, early


def _refuse_unknown(parser, words: list[str], where: str) -> None:
    if not words:
        return
    known = [option for action in parser._actions for option in action.option_strings]
    near = difflib.get_close_matches(words[0], known, n=1)
    hint = f", did you mean {near[0]}?" if near else "; --help lists what there is."
    raise ValueError(f"unknown argument {words[0]} in {where}{hint}")


def main(script_args: BackboneScriptArguments, training_args: Any, model_args: Any = None) -> None:
    """Checks everything, then trains, evaluates and saves.

    Args:
        script_args: What to train on what.
        training_args: `NextItemTrainingArguments`; `output_dir` receives model, processor, records and `run.yaml`.
        model_args: Hyper-parameters of the model; by default those of its configuration.

    Raises:
        FileExistsError: If the output folder holds something and neither `overwrite` nor a resume was asked for.
        ValueError: If the data set, the split or a hyper-parameter is wrong; nothing was written then.
    """
    from transformers import set_seed

    # Everything that can be wrong is looked at before the first step of training.
    heads = model_classes()
    if script_args.model not in heads:
        raise ValueError(f"there is no method {script_args.model!r}. Choose one of {', '.join(heads)}.")
    head = heads[script_args.model]
    run = TrainingRun.open(script_args, training_args, model_args)
    num_items, fingerprint = run.data.catalogue.num_items, run.data.fingerprint
    features = ItemFeatures.open(script_args, head)
    with clear_configuration_errors():
        config = config_class(head)(
            num_items=num_items,
            data_fingerprint=fingerprint,
            **run.hyper_parameters,
            **(features.config if features else {}),
        )
    vectors = None
    if features:
        vectors = features.read(run.data.catalogue, run.split.train.item_index, config.hidden_size)
        run.notes["item_features"] = features.notes
        # Else tables would take it for one more run of the backbone alone.
        run.name = f"{head.__name__.removesuffix('ForSequentialRecommendation')} + {features.name}"

    if hasattr(head, "fit"):
        run.introduce()
        model, trainer = (
            head.fit(run.split.train, num_items, data_fingerprint=fingerprint, **run.hyper_parameters),
            None,
        )
        processor = run.processor(model)
    else:
        from hf_seqrec.trainers import NextItemTrainer

        set_seed(training_args.seed)
        model = head(config)
        if features:
            features.give(model, vectors, training_args.seed)
        processor = run.processor(model)
        trainer = run.trainer(NextItemTrainer, model, processor)
        run.introduce(model)
        run.train(trainer)
    run.finish(model, processor, trainer)


def own_words(argv: Sequence[str], method: str) -> list[str]:
    """The words of a command line with the method first, whether or not it was named.

    Raises:
        ValueError: If another method is named.
    """
    words = list(argv) if argv and not argv[0].startswith("-") else [method, *argv]
    if words[0].replace("_", "-") != method:
        raise ValueError(f"this script trains {method}, not {words[0]}: use `seqrec train {words[0]}`.")
    return words


def command(method: str, main: Callable[..., None], make: Callable[..., Any]) -> Callable[..., int]:
    """Makes the `run` of a script that trains one method.

    Args:
        method: Its name.
        main: Trains; takes what the parser made.
        make: Makes the parser.

    Returns:
        A function that takes the words of a command line, with or without the method first, and the name of the program for help
        texts, trains, and returns the exit status. It raises `ValueError` if another method is named.
    """

    def run(argv: Sequence[str], prog: str | None = None) -> int:
        main(*parse(own_words(argv, method), prog, make))
        return 0

    return run


def run(argv: Sequence[str], prog: str | None = None) -> int:
    """Parses and trains; what `seqrec train` and `python -m hf_seqrec.scripts.train` do.

    Args:
        argv: The words of the command line.
        prog: Name of the program in help texts.

    Returns:
        Exit status.
    """
    method = early_arguments(argv)[1].model
    if method is not None and (own := OWN_SCRIPTS.get(method.replace("_", "-"))):
        return import_module(f"hf_seqrec.scripts.{own}").run(argv, prog)
    main(*parse(argv, prog))
    return 0


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
