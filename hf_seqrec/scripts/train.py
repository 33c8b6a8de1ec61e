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
import copy
import difflib
import inspect
import json
import os
import re
import shlex
import shutil
import sys
import tempfile
import time
import types
import typing
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, asdict, dataclass, field, fields, make_dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import yaml

from .item_features import ItemFeatureArguments, ItemFeatures


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
    given = {
        "num_items", "data_fingerprint", "fusion", "item_features", "pad_token_id", "tie_word_embeddings", *left_out,
    }  # fmt: skip
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

    from hf_seqrec.modeling.processing import SequentialRecommendationProcessor

    # Everything that can be wrong is looked at before the first step of training.
    heads = model_classes()
    if script_args.model not in heads:
        raise ValueError(f"there is no method {script_args.model!r}. Choose one of {', '.join(heads)}.")
    head = heads[script_args.model]
    data, split, resume = load_inputs(script_args, training_args)
    hyper_parameters = asdict(model_args) if model_args is not None else {}
    num_items = data.catalogue.num_items
    features = ItemFeatures.open(script_args, head)
    with clear_configuration_errors():
        config = config_class(head)(
            num_items=num_items,
            data_fingerprint=data.fingerprint,
            **hyper_parameters,
            **(features.config if features else {}),
        )
    vectors = features.read(data.catalogue, split.train.item_index, config.hidden_size) if features else None
    check_hub(training_args)
    processor = SequentialRecommendationProcessor.from_catalogue(data.catalogue, config.max_length, data.fingerprint)

    introduce(data, split, training_args)
    begin = time.perf_counter()
    notes: dict[str, Any] = {"preset": script_args.preset, "hyper_parameters": hyper_parameters}
    if features:
        notes["item_features"] = features.notes
    if hasattr(head, "fit"):
        model, trainer = head.fit(split.train, num_items, data_fingerprint=data.fingerprint, **hyper_parameters), None
    else:
        from hf_seqrec.trainers import NextItemTrainer

        set_seed(training_args.seed)
        model = head(config)
        if features:
            features.give(model, vectors, training_args.seed)
        if training_args.process_index == 0:
            print(f"{head.__name__} with {model.num_parameters():,} parameters")
        trainer = make_trainer(NextItemTrainer, model, training_args, split, processor)
        trainer.train(resume_from_checkpoint=resume)
        notes |= what_training_did(trainer)
    notes["training_seconds"] = round(time.perf_counter() - begin, 2)
    finish(model, processor, data, split, script_args, training_args, hyper_parameters, notes, trainer)


def load_inputs(script_args: ScriptArguments, training_args: Any) -> tuple[Any, Any, Any]:
    """Checks the output folder and loads the data.

    Args:
        script_args: What to train on what.
        training_args: The trainer's arguments.

    Returns:
        Data set, split, and where to resume (False, True for the last checkpoint, or a folder).

    Raises:
        FileExistsError: If the output folder holds something and neither `overwrite` nor a resume was asked for.
        ValueError: If the data set or the split is wrong.
    """
    from transformers.utils import logging

    from hf_seqrec.data import load_recommendation_data
    from hf_seqrec.data.files import check_writable_folder
    from hf_seqrec.data.splits import make_split
    from hf_seqrec.evaluation.diagnostics import shuffle_training

    started = int(os.environ.get("WORLD_SIZE", "1"))
    if started > 1 and training_args.world_size != started:
        raise ValueError(
            f"{started} processes were started, but each would train alone and write over the others: pass --use_cpu to train on "
            "CPUs, or start as many processes as there are GPUs."
        )
    logging.disable_progress_bar()  # of every file that is read or written; training keeps its own
    output_dir = Path(training_args.output_dir)
    resume = training_args.resume_from_checkpoint
    resume = True if resume in ("last", "true", "True") else resume
    try:
        check_writable_folder(output_dir, overwrite=script_args.overwrite or bool(resume))
    except FileExistsError as error:
        raise FileExistsError(
            f"{output_dir} is not empty: choose another --output_dir, go on with --resume_from_checkpoint last, or write into "
            "it with --overwrite."
        ) from error
    data = load_recommendation_data(script_args.dataset, revision=script_args.dataset_revision)
    split = make_split(script_args.split, data.sequences)
    if script_args.shuffle_training is not None:
        split = shuffle_training(split, script_args.shuffle_training)
    return data, split, resume


def own_words(argv: Sequence[str], method: str) -> list[str]:
    """The words of a command line with the method first, whether or not it was named.

    Raises:
        ValueError: If another method is named.
    """
    words = list(argv) if argv and not argv[0].startswith("-") else [method, *argv]
    if words[0].replace("_", "-") != method:
        raise ValueError(f"this script trains {method}, not {words[0]}: use `seqrec train {words[0]}`.")
    return words


def read_lora(value: str | dict[str, Any] | None) -> dict[str, Any] | None:
    """Arguments of the adapters from the command line (JSON, `none`) or from a file (a mapping).

    Raises:
        ValueError: If the text is no JSON object.

    Example:
        >>> read_lora('{"r": 8}'), read_lora("none")
        ({'r': 8}, None)
    """
    if value is None or isinstance(value, dict):
        return value
    if value.lower() in ("none", "null", ""):
        return None
    try:
        lora = json.loads(value)
    except json.JSONDecodeError as error:
        raise ValueError(f"--lora {value}: need a JSON object such as '{{\"r\": 8}}', or none ({error}).") from error
    if not isinstance(lora, dict):
        raise ValueError(f"--lora {value}: need a JSON object such as '{{\"r\": 8}}', or none.")
    return lora


@contextmanager
def clear_configuration_errors() -> Iterator[None]:
    """What is wrong with a hyper-parameter as a `ValueError` with the message of whoever found it."""
    from huggingface_hub.errors import StrictDataclassError

    try:
        yield
    except StrictDataclassError as error:
        raise ValueError(str(error.__cause__ or error)) from error


def check_hub(training_args: Any) -> None:
    """Fails now, and not after hours of training, where a token for the push is missing or wrong."""
    if training_args.push_to_hub:
        from huggingface_hub import whoami

        whoami(token=training_args.hub_token)


def introduce(data: Any, split: Any, training_args: Any) -> None:
    """One line about the data, on the main process."""
    if training_args.process_index == 0:
        print(
            f"{data.name}: {len(data.sequences):,} users, {data.catalogue.num_items:,} items, "
            f"{data.sequences.num_interactions:,} interactions; {split.name} gives {len(split.train):,} training sequences"
            f"{' (shuffled)' if 'shuffled_training_seed' in split.params else ''} and {len(split.test):,} test rows"
        )


def finish(
    model: Any,
    processor: Any,
    data: Any,
    split: Any,
    script_args: ScriptArguments,
    training_args: Any,
    hyper_parameters: dict[str, Any],
    notes: dict[str, Any],
    trainer: Any = None,
    candidates: Any = None,
    base_model: str | None = None,
) -> None:
    """Evaluates, saves, reports, pushes: what comes after training.

    Args:
        model: The trained recommender.
        processor: Its processor.
        data: The data set.
        split: The split it was trained on.
        script_args: What was trained on what.
        training_args: The trainer's arguments; `output_dir` receives everything.
        hyper_parameters: Hyper-parameters of the model, for `run.yaml`.
        notes: For the records.
        trainer: The trainer; None for models that are fitted, which only the main process evaluates.
        candidates: Sampled candidates of the test part for a third record; they are stored beside it.
        base_model: Model on the Hub that this one was made from, for the card.
    """
    from hf_seqrec.data.files import atomic_path

    is_main, output_dir = training_args.process_index == 0, Path(training_args.output_dir)
    if trainer is None and not is_main:
        return
    if script_args.shuffle_training is not None:
        notes["shuffled_training_seed"] = script_args.shuffle_training
    records = _evaluate(model, data, split, training_args, notes, trainer, candidates)
    if is_main:
        _save(model, processor, records, output_dir, script_args.dataset, training_args, base_model)
        if candidates is not None:
            candidates.save(output_dir / "records" / f"candidates-{candidates.num_negatives}.parquet")
        with atomic_path(output_dir / "run.yaml") as temporary:
            temporary.write_text(run_file(script_args, training_args, hyper_parameters), encoding="utf-8")
        _report(records, script_args, output_dir, data, getattr(model, "needs_timestamps", False))
        if training_args.push_to_hub:
            _push(output_dir, training_args)
    if trainer is not None:
        trainer.end()


def make_trainer(trainer_class: type, model, training_args, split, processor, **more: Any) -> Any:
    """A trainer on the training part of a split that prints a line per evaluation and leaves the push to `finish`."""
    from transformers import PrinterCallback, ProgressCallback

    from hf_seqrec.scripts.reporting import EpochLines

    # The whole repository is pushed once, at the end, with card and metrics; not a checkpoint at every save.
    training_args = copy.copy(training_args)
    training_args.push_to_hub = False
    trainer = trainer_class(
        model,
        training_args,
        train_dataset=split.train,
        eval_dataset=split.validation if training_args.eval_strategy != "no" else None,
        processing_class=processor,
        **more,
    )
    trainer.split_name = split.name
    if not training_args.disable_tqdm:
        trainer.remove_callback(ProgressCallback)
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(EpochLines())
    return trainer


def what_training_did(trainer) -> dict[str, Any]:
    """Epochs, and the best validation value with its epoch, for the record."""
    metric = f"eval_{(trainer.args.metric_for_best_model or 'ndcg@10').removeprefix('eval_')}"
    values = [(entry[metric], entry["epoch"]) for entry in trainer.state.log_history if metric in entry]
    did: dict[str, Any] = {"epochs": trainer.state.epoch, "steps": trainer.state.global_step}
    if values:
        best, epoch = max(values, key=lambda pair: pair[0])
        did |= {"best_epoch": epoch, f"best_validation_{metric.removeprefix('eval_')}": best}
    return did


def _evaluate(model, data, split, training_args, notes, trainer, candidates) -> dict[str, Any]:
    """Records of the test part: once without and once with the items of the history, once on sampled candidates if there are some."""
    from hf_seqrec.scripts.reporting import evaluate_model

    several = trainer is not None and training_args.world_size > 1
    parts: list[tuple[str, bool, Any]] = [("test", True, None), ("test-seen-allowed", False, None)]
    if candidates is not None:
        parts.append((f"test-sampled{candidates.num_negatives}", True, candidates))
    return {
        name: evaluate_model(
            model,
            data,
            split,
            exclude_seen=exclude_seen,
            candidates=chosen,
            cutoffs=training_args.cutoffs,
            batch_size=training_args.ranking_batch_size,
            seed=training_args.seed if trainer is not None else None,
            notes=notes,
            accelerator=trainer.accelerator if several else None,
        )
        for name, exclude_seen, chosen in parts
    }


def _save(
    model, processor, records: dict[str, Any], output_dir: Path, dataset: str, training_args, base_model: str | None
) -> None:
    """The complete recommender into the output folder, beside the checkpoints, and the records with their ranks."""
    from hf_seqrec.hub import save_recommender

    output_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output_dir, prefix=".saving-") as temporary:
        complete = save_recommender(
            Path(temporary) / output_dir.resolve().name,
            model,
            processor,
            list(records.values()),
            repo_id=training_args.hub_model_id,
            dataset_id=None if Path(dataset).is_dir() else dataset,
            base_model=base_model,
            training=training_args,
        )
        for path in complete.iterdir():
            if path.is_dir():
                shutil.rmtree(output_dir / path.name, ignore_errors=True)
            path.replace(output_dir / path.name)
    # The card's copies are without the ranks of single users, which comparisons need.
    shutil.rmtree(output_dir / "records", ignore_errors=True)
    for name, record in records.items():
        record.save(output_dir / "records" / f"{name}.json")


def _push(output_dir: Path, training_args) -> None:
    from hf_seqrec.hub import push_folder

    repo_id = training_args.hub_model_id or output_dir.resolve().name
    commit = push_folder(
        output_dir, repo_id, private=training_args.hub_private_repo, revision=training_args.hub_revision,
        token=training_args.hub_token,
    )  # fmt: skip
    print(f"Pushed: {commit.commit_url}")


def run_file(script_args, training_args, hyper_parameters: dict[str, Any]) -> str:
    """The run as a file for `--config`: everything that differs from the classes' defaults, and no secret."""
    plain = type(training_args)(output_dir=training_args.output_dir).to_dict()
    left_out = {"push_to_hub", "hub_token", "resume_from_checkpoint"}
    training = {
        key: value
        for key, value in training_args.to_dict().items()
        if key not in left_out and (value != plain[key] or key in ("output_dir", "seed"))
    }
    values = {key: value for key, value in asdict(script_args).items() if value is not None and key != "overwrite"}
    header = "# This run again: seqrec train --config run.yaml --output_dir another-folder\n"
    return header + yaml.safe_dump({**values, **hyper_parameters, **training}, sort_keys=False, allow_unicode=True)


def _report(records: dict[str, Any], script_args, output_dir: Path, data, dated: bool) -> None:
    from hf_seqrec.evaluation.tables import print_table

    print()
    print_table(records.values(), metrics=("ndcg@10", "hr@10", "mrr@10"))
    ids, titles = (column[:2].to_pylist() for column in (data.catalogue.item_ids, data.catalogue.titles))
    history = [_quoted(title or item_id) for item_id, title in zip(ids, titles, strict=True)]
    print(f"Model, processor and records are in {output_dir}. Next:")
    times = f" --times {' '.join(['2024-01-31'] * len(history))}" if dated else ""
    print(f"  seqrec recommend {output_dir} --history {' '.join(history)}{times}")
    print(f"  seqrec evaluate {output_dir} --dataset {script_args.dataset} --sampled 99")
    print(f"  seqrec push {output_dir} USER/NAME")


def _quoted(text: str) -> str:
    """For a shell; in double quotes where these are enough, which an apostrophe survives."""
    return shlex.quote(text) if set(text) & set('"$`\\!') else f'"{text}"'


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
