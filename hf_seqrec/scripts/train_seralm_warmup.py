# /// script
# dependencies = ["hf-seqrec"]
# ///
"""Train SeRALM before alignment (Base + NA_LLM): a backbone that also reads what a language model wrote about the items.

The backbone's preset gives the defaults, the method's preset overrides them, then `--config file.yaml`, then the command line.

seqrec knowledge generate --dataset data/ml-1m --llm LLM --domain movie --output-dir knowledge
seqrec train seralm-warmup --dataset data/ml-1m --knowledge knowledge --text_encoder sentence-transformers/all-MiniLM-L6-v2 --output_dir out
seqrec train seralm-warmup --dataset data/ml-1m --knowledge knowledge --text_encoder ENCODER --backbone lightsans --output_dir out
seqrec train seralm-warmup --dataset data/ml-1m --knowledge knowledge --text_encoder bert-base-uncased --preset paper --output_dir out
seqrec train seralm-warmup --dataset data/ml-1m --knowledge knowledge --text_encoder ENCODER --train_share 0.01 --output_dir few
seqrec train --config out/run.yaml --output_dir again
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, make_dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from .train import ScriptArguments, config_class, model_classes, own_words, parse
from .training_run import TrainingRun, clear_configuration_errors, read_json


METHOD = "seralm-warmup"


@dataclass(kw_only=True)
class SeRALMWarmupScriptArguments(ScriptArguments):
    """What to train on what, with which knowledge.

    Args:
        knowledge: Folder or Hub repository of the knowledge, from `seqrec knowledge generate` or `export`.
        knowledge_revision: Branch, tag or commit of its repository.
        text_encoder: Hub id or folder of the text encoder; without one the vectors stored with the knowledge are taken.
        text_encoder_revision: Branch, tag or commit of its repository.
        backbone: The ID-based recommender.
        backbone_preset: Its hyper-parameters by name.
        backbone_config: Its hyper-parameters that differ from the preset, as JSON.
        train_share: Share of the training sequences that is used, drawn by `train_share_seed` (low-resource studies).
        train_share_seed: Seed of that draw.
    """

    knowledge: str = field(metadata={"help": "Folder or Hub repository of the knowledge."})
    knowledge_revision: str | None = field(
        default=None, metadata={"help": "Branch, tag or commit of the knowledge's repository."}
    )
    text_encoder: str | None = field(
        default=None,
        metadata={
            "help": "Hub id or folder of the text encoder; by default the vectors stored with the knowledge are taken."
        },
    )
    text_encoder_revision: str | None = field(
        default=None, metadata={"help": "Branch, tag or commit of the text encoder's repository."}
    )
    backbone: str = field(default="sasrec", metadata={"help": "The ID-based recommender: sasrec, lightsans, caser, …"})
    backbone_preset: str = field(default="default", metadata={"help": "Hyper-parameters of the backbone by name."})
    backbone_config: str | None = field(
        default=None,
        metadata={
            "help": "Hyper-parameters of the backbone that differ from its preset, as JSON: '{\"hidden_size\": 128}'."
        },
    )
    train_share: float = field(default=1.0, metadata={"help": "Share of the training sequences that is used."})
    train_share_seed: int = field(default=0, metadata={"help": "Seed with which these sequences are drawn."})


def seralm_arguments() -> type:
    """A dataclass with what a person chooses about SeRALM itself."""
    from hf_seqrec.modeling import SeRALMConfig

    helps = {
        "fusion": "How vectors join the ID rows: concat (the paper), gate or add.",
        "train_text_encoder": "Train the text encoder with the recommender (the paper); else its vectors are made once.",
        "pooling": "A text's vector is the mean of the encoder's states, or the first one: mean or cls.",
        "max_text_tokens": "Texts are cut to this many tokens.",
    }
    defaults = SeRALMConfig.__dataclass_fields__
    own: list[tuple[str, Any, Any]] = [
        (name, type(defaults[name].default), field(default=defaults[name].default, metadata={"help": text}))
        for name, text in helps.items()
    ]
    return make_dataclass("SeRALMArguments", own)


def make_parser(
    prog: str | None = None, model: str | None = METHOD, backbone: str = "sasrec", backbone_preset: str = "default"
) -> Any:
    """Makes the parser.

    Args:
        prog: Name of the program in help texts.
        model: Name of the method.
        backbone: Whose preset gives the defaults of training.
        backbone_preset: Which of its presets.

    Returns:
        A `TrlParser` for [`SeRALMWarmupScriptArguments`], `KnowledgeWarmupTrainingArguments` and `seralm_arguments()`.
    """
    from trl import TrlParser

    from hf_seqrec.presets import load_preset
    from hf_seqrec.trainers.seralm_warmup import KnowledgeWarmupTrainingArguments

    parser = TrlParser(
        [SeRALMWarmupScriptArguments, KnowledgeWarmupTrainingArguments, seralm_arguments()],
        prog=prog,
        usage=f"{prog or '%(prog)s'} {METHOD} --dataset FOLDER_OR_REPO --knowledge FOLDER_OR_REPO "
        "--text_encoder FOLDER_OR_REPO --output_dir FOLDER [options]",
        description="Train a backbone with knowledge of a language model about the items, evaluate it, save it.",
        allow_abbrev=False,
    )
    if backbone in trainable_backbones():
        parser.set_defaults_with_config(**load_preset(backbone, backbone_preset).training)
    return parser


def trainable_backbones() -> dict[str, type]:
    """The backbones that take knowledge, by the name they have on the command line."""
    from hf_seqrec.modeling.teacher import BACKBONES

    return {name: head for name, head in model_classes().items() if head in BACKBONES.values()}


def main(script_args: SeRALMWarmupScriptArguments, training_args: Any, model_args: Any) -> None:
    """Checks everything, then trains, evaluates and saves.

    Args:
        script_args: What to train on what.
        training_args: `KnowledgeWarmupTrainingArguments`; `output_dir` receives model, processor, records and `run.yaml`.
        model_args: What a person chose about SeRALM itself.

    Raises:
        FileExistsError: If the output folder holds something and neither `overwrite` nor a resume was asked for.
        OSError: If knowledge or text encoder cannot be found.
        ValueError: If the data set, the knowledge or a hyper-parameter is wrong; nothing was written then.
    """
    from transformers import set_seed

    from hf_seqrec.knowledge import load_knowledge
    from hf_seqrec.presets import load_preset
    from hf_seqrec.trainers.seralm_warmup import KnowledgeWarmupTrainer

    # Everything that can be wrong is looked at before the first step of training.
    if not script_args.knowledge:
        raise ValueError(
            "no knowledge is named: make it with `seqrec knowledge generate`, then give --knowledge FOLDER."
        )
    heads = trainable_backbones()
    if script_args.backbone not in heads:
        raise ValueError(f"--backbone {script_args.backbone}: take one of {', '.join(heads)}.")
    run = TrainingRun.open(script_args, training_args, model_args)
    run.split = reduce_training(run.split, script_args.train_share, script_args.train_share_seed)
    knowledge = load_knowledge(script_args.knowledge, script_args.knowledge_revision)
    knowledge.check(run.data.catalogue)
    backbone_values = dict(load_preset(script_args.backbone, script_args.backbone_preset).model)
    backbone_values |= read_json(script_args.backbone_config, "backbone_config") or {}
    set_seed(training_args.seed)
    with clear_configuration_errors():
        backbone = config_class(heads[script_args.backbone])(
            num_items=run.data.catalogue.num_items, data_fingerprint=run.data.fingerprint, **backbone_values
        )
        model = make_model(script_args, run.hyper_parameters, backbone, knowledge)
    model.to(training_args.device)
    model.start_from(first_vectors(model, knowledge), run.split.train.item_index)
    model.config.knowledge_key = knowledge.key
    run.notes |= {
        "backbone_config": backbone_values, "knowledge": {**knowledge.description, "key": knowledge.key, **knowledge.counts},
        "text_encoder": model.config.text_encoder_name_or_path, "train_share": script_args.train_share,
    }  # fmt: skip
    processor = run.processor(model)
    trainer = run.trainer(KnowledgeWarmupTrainer, model, processor, texts=knowledge.texts)

    run.introduce(model)
    run.train(trainer)
    trainer.refresh_knowledge()
    run.finish(model, processor, trainer)


def make_model(script_args: Any, hyper_parameters: dict[str, Any], backbone: Any, knowledge: Any) -> Any:
    """The recommender with its text encoder, or with a place for the vectors that are stored with the knowledge.

    Raises:
        ValueError: Neither an encoder nor stored vectors, or a trained encoder without an encoder.
    """
    from hf_seqrec.item_vectors import MANIFEST, load_item_vectors
    from hf_seqrec.modeling import SeRALMForSequentialRecommendation

    width = None
    if script_args.text_encoder is None:
        if knowledge.folder is None or not (knowledge.folder / MANIFEST).is_file():
            raise ValueError(
                f"the knowledge {script_args.knowledge} holds texts only: give --text_encoder, or take one that "
                "`seqrec knowledge export` encoded."
            )
        if hyper_parameters["train_text_encoder"]:
            raise ValueError("--train_text_encoder needs --text_encoder: stored vectors do not train.")
        width = load_item_vectors(knowledge.folder).width
    return SeRALMForSequentialRecommendation.from_parts(
        backbone,
        script_args.text_encoder,
        script_args.text_encoder_revision,
        knowledge_size=width,
        **hyper_parameters,
    )


def first_vectors(model: Any, knowledge: Any) -> Any:
    """(num_items, dim) unscaled vectors of the texts: encoded now, or stored with the knowledge."""
    import torch

    from hf_seqrec.item_vectors import load_item_vectors

    if model.text_encoder is not None:
        return model.encode_all(model.tokenize(knowledge.texts))
    return torch.from_numpy(load_item_vectors(knowledge.folder).read())


def reduce_training(split: Any, share: float, seed: int) -> Any:
    """A split with a share of its training sequences, at least one; validation and test stay.

    Args:
        split: The split.
        share: In (0, 1].
        seed: Of the draw; a larger share with the same seed holds a smaller one.

    Returns:
        The split, itself where nothing is left out.

    Raises:
        ValueError: A share outside its range.
    """
    import numpy as np

    from hf_seqrec.data import Sequences
    from hf_seqrec.data.sequences import flat_positions

    if not 0 < share <= 1:
        raise ValueError(f"--train_share must be in (0, 1], got {share}.")
    if share == 1:
        return split
    train = split.train
    order = np.random.default_rng(seed).permutation(len(train))
    kept = np.sort(order[: max(1, round(share * len(train)))])
    rows = flat_positions(train.offsets[kept], train.offsets[kept + 1])
    fewer = Sequences(
        train.item_index[rows],
        np.concatenate([[0], np.cumsum(train.lengths[kept])]),
        None if train.timestamps is None else train.timestamps[rows],
        train.user_ids.take(kept),
    )
    return replace(split, train=fewer)


def _backbone(argv: Sequence[str]) -> dict[str, str]:
    """Which backbone is asked for, on the command line or in the configuration file: it decides defaults of training."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name in ("--backbone", "--backbone_preset", "--config"):
        first.add_argument(name)
    early, _ = first.parse_known_args(list(argv))
    in_file = yaml.safe_load(Path(early.config).read_text(encoding="utf-8")) if early.config else {}
    in_file = in_file if isinstance(in_file, dict) else {}
    chosen = {name: getattr(early, name) or in_file.get(name) for name in ("backbone", "backbone_preset")}
    return {name: value for name, value in chosen.items() if value}


def run(argv: Sequence[str], prog: str | None = None) -> int:
    """Parses and trains; what `seqrec train seralm-warmup` and `python -m hf_seqrec.scripts.train_seralm_warmup` do.

    Args:
        argv: The words of the command line.
        prog: Name of the program in help texts.

    Returns:
        Exit status.

    Raises:
        ValueError: If another method is named.
    """
    words = own_words(argv, METHOD)
    main(*parse(words, prog, partial(make_parser, **_backbone(words[1:]))))
    return 0


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
