# /// script
# dependencies = ["hf-seqrec"]
# ///
"""Distil a trained backbone into soft prompts of a language model (DELRec, stage 1), then tune the language model with them (stage 2).

`delrec-distill` leaves `soft_prompts.safetensors` and `agreement.json`; `delrec-tune` evaluates and saves a complete recommender.
The preset gives the defaults, `--config file.yaml` overrides them, the command line overrides both; unknown keys fail.

seqrec train delrec-distill --dataset data/ml-100k --domain movie --teacher sasrec-out --llm LLM --output_dir stage1
seqrec train delrec-tune --dataset data/ml-100k --domain movie --teacher sasrec-out --llm LLM --soft_prompts stage1 --output_dir delrec
seqrec train delrec-distill … --task_weighting fixed --ta_weight 0                       # without temporal analysis; 1: without RPS
seqrec train delrec-tune … --pattern none                                                # without soft prompts; manual: described in words
seqrec train delrec-tune … --soft_prompts random                                         # untrained soft prompts
seqrec train delrec-tune … --soft_prompts stage1 --update_soft_prompts                   # both updated in stage 2
seqrec train delrec-tune … --soft_prompts stage1 --adapter none                          # without stage 2
seqrec train delrec-distill … --adapter '{"type": "adalora"}' --update_llm               # both updated in stage 1
accelerate launch -m hf_seqrec.scripts.train_delrec delrec-distill --dataset data/ml-100k … --output_dir stage1
"""

import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, make_dataclass
from pathlib import Path
from typing import Any

from .train import (
    ScriptArguments,
    check_hub,
    clear_configuration_errors,
    finish,
    introduce,
    load_inputs,
    make_trainer,
    model_arguments,
    parse,
    run_file,
    what_training_did,
)


DISTILL, TUNE = METHODS = ("delrec-distill", "delrec-tune")
UNTRAINED = "random"


@dataclass(kw_only=True)
class DELRecScriptArguments(ScriptArguments):
    """What to train on what, around which language model and backbone.

    Args:
        llm: Hub id or folder of the language model, with its head.
        llm_revision: Branch, tag or commit of its repository.
        teacher: Hub id or folder of a trained backbone.
        teacher_revision: Branch, tag or commit of its repository.
        max_prompt_tokens: Longest prompt.
    """

    llm: str = field(metadata={"help": "Hub id or folder of the language model."})
    teacher: str = field(metadata={"help": "Hub id or folder of a trained backbone."})
    llm_revision: str | None = field(
        default=None, metadata={"help": "Branch, tag or commit of the language model's repository."}
    )
    teacher_revision: str | None = field(
        default=None, metadata={"help": "Branch, tag or commit of the teacher's repository."}
    )
    max_prompt_tokens: int | None = field(
        default=None, metadata={"help": "Longest prompt; by default what the language model can, 4096 at most."}
    )


@dataclass(kw_only=True)
class TuneScriptArguments(DELRecScriptArguments):
    """What to tune on what, with which soft prompts.

    Args:
        soft_prompts: Folder or Hub repository of stage 1, or `random` for untrained ones.
        num_sampled: Negatives per test row in the record on sampled candidates; 0 leaves this record out.
        candidates_seed: Seed of these candidates.
    """

    soft_prompts: str | None = field(
        default=None,
        metadata={
            "help": "Folder or Hub repository of stage 1; random: untrained ones. Not with --pattern none or manual."
        },
    )
    num_sampled: int = field(
        default=14, metadata={"help": "Negatives per test row of the record on sampled candidates; 0: no such record."}
    )
    candidates_seed: int = field(default=0, metadata={"help": "Seed of the sampled candidates."})


def delrec_model_arguments(method: str) -> type:
    """A dataclass with what a person chooses of a DELRec model in a stage."""
    from hf_seqrec.modeling.delrec import DELRecForSequentialRecommendation as head

    left_out = ["prompt", "task_prompts", "num_title_tokens", "llm_name_or_path", "llm_revision", "llm_config", "teacher_name_or_path",
                "teacher_revision", "teacher_fingerprint", "teacher_config", "store_teacher", "max_length", "lora", "adapter", "hidden_size",
                "hidden_dropout_prob", "initializer_range", "num_opponents", "hint", "seed", "exclude_seen"]  # fmt: skip
    left_out += ["pattern"] if method == DISTILL else []
    text = 'Adapters of the language model as JSON: \'{"type": "adalora", "init_r": 12, "target_r": 8}\', or type lora; none: without.'
    own: list[tuple[str, Any, Any]] = [("adapter", str | None, field(default=None, metadata={"help": text}))]
    return make_dataclass("DELRecArguments", own, bases=(model_arguments(head, left_out),))


def make_parser(prog: str | None = None, model: str | None = DISTILL) -> Any:
    """Makes the parser of a stage.

    Args:
        prog: Name of the program in help texts.
        model: `delrec-distill` or `delrec-tune`.

    Returns:
        A `TrlParser` for the script's, the trainer's and the model's arguments.
    """
    from trl import TrlParser

    from hf_seqrec.trainers.prompt_tuning import PromptTuningTrainingArguments
    from hf_seqrec.trainers.soft_prompt import SoftPromptTrainingArguments

    distill = model == DISTILL
    kinds = [
        DELRecScriptArguments if distill else TuneScriptArguments,
        SoftPromptTrainingArguments if distill else PromptTuningTrainingArguments,
        delrec_model_arguments(str(model)),
    ]
    return TrlParser(
        kinds,
        prog=prog,
        usage=f"{prog or '%(prog)s'} {model} --dataset FOLDER_OR_REPO --llm FOLDER_OR_REPO --teacher FOLDER_OR_REPO "
        f"{'' if distill else '--soft_prompts FOLDER_OR_REPO '}--output_dir FOLDER [options]",
        description="Stage 1 of DELRec: distil a backbone into soft prompts."
        if distill
        else "Stage 2 of DELRec: tune the language model.",
        allow_abbrev=False,
    )


def main(script_args: DELRecScriptArguments, training_args: Any, model_args: Any) -> None:
    """Checks everything, then trains one stage and saves what it made.

    Args:
        script_args: What to train on what; [`TuneScriptArguments`] for stage 2.
        training_args: Of the stage's trainer.
        model_args: Hyper-parameters of the model.

    Raises:
        FileExistsError: If the output folder holds something and neither `overwrite` nor a resume was asked for.
        OSError: If language model, teacher or soft prompts cannot be found.
        ValueError: If the data set, the teacher or its split, the prompts or a hyper-parameter is wrong; nothing was written then.
    """
    from transformers import set_seed

    from hf_seqrec.modeling.delrec import DELRecForSequentialRecommendation, soft_prompt_size

    for name, value in (("llm", script_args.llm), ("teacher", script_args.teacher)):
        if not value:
            raise ValueError(f"no {name} is named: give --{name} FOLDER_OR_REPO.")
    data, split, resume = load_inputs(script_args, training_args)
    check_teacher_split(script_args.teacher, script_args.teacher_revision, split, script_args.shuffle_training)
    hyper_parameters = asdict(model_args)
    hyper_parameters["adapter"] = read_adapter(hyper_parameters["adapter"])
    check_hub(training_args)
    options = dict(hyper_parameters)
    soft_prompts = getattr(script_args, "soft_prompts", None)
    if isinstance(script_args, TuneScriptArguments):
        if (model_args.pattern == "soft") != (soft_prompts is not None):
            raise ValueError(
                f"--pattern {model_args.pattern} and --soft_prompts {soft_prompts} do not go together: soft prompts come from stage 1 "
                f"(--soft_prompts FOLDER) or are untrained (--soft_prompts {UNTRAINED}), other patterns have none."
            )
        if soft_prompts not in (None, UNTRAINED):
            options["num_soft_tokens"] = soft_prompt_size(soft_prompts)
            hyper_parameters["num_soft_tokens"] = options["num_soft_tokens"]
    set_seed(training_args.seed)
    with clear_configuration_errors():
        model, processor = DELRecForSequentialRecommendation.from_parts(
            script_args.llm,
            script_args.teacher,
            data.catalogue,
            data_fingerprint=data.fingerprint,
            llm_revision=script_args.llm_revision,
            teacher_revision=script_args.teacher_revision,
            max_prompt_tokens=script_args.max_prompt_tokens,
            **options,
        )
    notes: dict[str, Any] = {
        "preset": script_args.preset, "hyper_parameters": hyper_parameters, "llm": script_args.llm, "teacher": script_args.teacher,
        "teacher_fingerprint": model.config.teacher_fingerprint, "soft_prompts": soft_prompts,
    }  # fmt: skip
    if isinstance(script_args, TuneScriptArguments):
        if soft_prompts not in (None, UNTRAINED):
            model.load_soft_prompts(str(soft_prompts))
        tune(model, processor, data, split, script_args, training_args, hyper_parameters, notes, resume)
    else:
        distill(model, data, split, script_args, training_args, hyper_parameters, notes, resume)


def distill(model, data, split, script_args, training_args, hyper_parameters, notes, resume) -> None:
    """Stage 1: leaves `soft_prompts.safetensors`, `agreement.json` and `run.yaml`."""
    from transformers import PrinterCallback, ProgressCallback

    from hf_seqrec.data.files import atomic_path
    from hf_seqrec.trainers.soft_prompt import SoftPromptTrainer, agreement_floors

    push, training_args.push_to_hub = training_args.push_to_hub, False  # the soft prompts alone are pushed, at the end
    trainer = SoftPromptTrainer(model, training_args, train_dataset=split.train)
    if not training_args.disable_tqdm:
        trainer.remove_callback(ProgressCallback)
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(_agreement_lines())
    introduce(data, split, training_args)
    begin = time.perf_counter()
    floors = {}
    if trainer.eval_dataset is not None:
        floors = agreement_floors(model, trainer.eval_dataset, split.train)
    trainer.train(resume_from_checkpoint=resume)
    if trainer.is_world_process_zero():
        folder = Path(training_args.output_dir)
        model.save_soft_prompts(folder)
        keys = ("ta", "rps", "lsr", "loss")
        curve = [
            {name: value for name, value in log.items() if name == "step" or any(key in name for key in keys)}
            for log in trainer.state.log_history
        ]
        notes |= {
            "dataset": data.name,
            "seconds": round(time.perf_counter() - begin, 1),
            "floors": floors,
            "curve": curve,
        }
        with atomic_path(folder / "agreement.json") as temporary:
            temporary.write_text(json.dumps(notes, indent=1), encoding="utf-8")
        with atomic_path(folder / "run.yaml") as temporary:
            temporary.write_text(run_file(script_args, training_args, hyper_parameters), encoding="utf-8")
        print(f"Soft prompts are in {folder}. Next:")
        print(
            f"  seqrec train {TUNE} --dataset {script_args.dataset} --llm {script_args.llm} --teacher {script_args.teacher} "
            f"--soft_prompts {folder} --output_dir FOLDER"
        )
        if push:
            name = training_args.hub_model_id or folder.resolve().name
            commit = model.push_soft_prompts(name, training_args.hub_private_repo, token=training_args.hub_token)
            print(f"Pushed: {commit.commit_url}")
    trainer.end()


def tune(model, processor, data, split, script_args, training_args, hyper_parameters, notes, resume) -> None:
    """Stage 2: leaves a complete recommender with its records."""
    from hf_seqrec.data import draw_candidates
    from hf_seqrec.trainers.prompt_tuning import PromptTuningTrainer

    candidates = None
    if script_args.num_sampled:
        candidates = draw_candidates(
            split.test, data.catalogue.num_items, script_args.num_sampled, script_args.candidates_seed
        )
    begin = time.perf_counter()
    trainer = None
    if model.config.adapter is not None or training_args.update_soft_prompts:
        trainer = make_trainer(PromptTuningTrainer, model, training_args, split, processor)
        introduce(data, split, training_args)
        trainer.train(resume_from_checkpoint=resume)
        notes |= what_training_did(trainer) | {"ranks": model.ranks()}
    notes["training_seconds"] = round(time.perf_counter() - begin, 2)
    base_model = None if os.path.isdir(script_args.llm) else script_args.llm
    finish(
        model, processor, data, split, script_args, training_args, hyper_parameters, notes, trainer, candidates, base_model
    )  # fmt: skip


def check_teacher_split(teacher: str, revision: str | None, split, shuffled: int | None) -> None:
    """Refuse a teacher that was trained on another split, as far as its `run.yaml` tells.

    Args:
        teacher: Folder or Hub repository.
        revision: Branch, tag or commit.
        split: The split in use.
        shuffled: `shuffle_training` in use.

    Raises:
        ValueError: The teacher's run names another split.
    """
    import yaml
    from transformers.utils import cached_file

    path = cached_file(teacher, "run.yaml", revision=revision, _raise_exceptions_for_missing_entries=False)
    if path is None:
        return
    told = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    theirs = (told.get("split", "leave_one_out"), told.get("shuffle_training"))
    if theirs != (split.name, shuffled):
        raise ValueError(
            f"the teacher {teacher} was trained on the split {theirs[0]}{'' if theirs[1] is None else ' (shuffled)'}, this run has "
            f"{split.name}{'' if shuffled is None else ' (shuffled)'}: what one of them tests the other may have learned. Train the teacher "
            "on the same split."
        )


def read_adapter(value: str | dict[str, Any] | None) -> dict[str, Any] | None:
    """Adapters from the command line (JSON, `none`) or from a file (a mapping).

    Raises:
        ValueError: If the text is no JSON object.

    Example:
        >>> read_adapter('{"type": "lora", "r": 8}'), read_adapter("none")
        ({'type': 'lora', 'r': 8}, None)
    """
    if value is None or isinstance(value, dict):
        return value
    if value.lower() in ("none", "null", ""):
        return None
    try:
        adapter = json.loads(value)
    except json.JSONDecodeError as error:
        raise ValueError(
            f'--adapter {value}: need a JSON object such as \'{{"type": "adalora"}}\', or none ({error}).'
        ) from error
    if not isinstance(adapter, dict):
        raise ValueError(f'--adapter {value}: need a JSON object such as \'{{"type": "adalora"}}\', or none.')
    return adapter


def _agreement_lines():
    from hf_seqrec.scripts.reporting import EpochLines

    class AgreementLines(EpochLines):
        """One short line per evaluation: agreement with the teacher on the users kept apart."""

        def on_log(self, args, state, control, logs=None, **kwargs):
            if state.is_world_process_zero and self.training_bar is not None and "eval_rps_agreement" in logs:
                names = ("ta_accuracy", "ta_agreement", "rps_agreement", "lsr_agreement", "loss")
                shown = "   ".join(f"{name} {logs[f'eval_{name}']:.3f}" for name in names)
                self.training_bar.write(f"step {state.global_step}   {shown}")

    return AgreementLines()


def run(argv: Sequence[str], prog: str | None = None) -> int:
    """Parses and trains; what `seqrec train delrec-…` and `python -m hf_seqrec.scripts.train_delrec delrec-…` do.

    Args:
        argv: The words of the command line.
        prog: Name of the program in help texts.

    Returns:
        Exit status.

    Raises:
        ValueError: If neither stage is named.
    """
    from .train import early_arguments

    method = str(early_arguments(argv)[1].model or "").replace("_", "-")
    if method not in METHODS:
        raise ValueError(
            f"this script trains {' and '.join(METHODS)}, not {method or 'nothing'}: name one of them first."
        )
    words = list(argv) if not argv[0].startswith("-") else [method, *argv]
    main(*parse([method, *words[1:]], prog, make_parser))
    return 0


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
