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

import copy
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, make_dataclass
from pathlib import Path
from typing import Any

from .train import ScriptArguments, early_arguments, model_arguments, parse
from .training_run import TrainingRun, clear_configuration_errors


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
    run = TrainingRun.open(script_args, training_args, model_args)
    check_teacher_split(run)
    soft_prompts = getattr(script_args, "soft_prompts", None)
    if isinstance(script_args, TuneScriptArguments):
        if (model_args.pattern == "soft") != (soft_prompts is not None):
            raise ValueError(
                f"--pattern {model_args.pattern} and --soft_prompts {soft_prompts} do not go together: soft prompts come from stage 1 "
                f"(--soft_prompts FOLDER) or are untrained (--soft_prompts {UNTRAINED}), other patterns have none."
            )
        if soft_prompts not in (None, UNTRAINED):
            run.hyper_parameters["num_soft_tokens"] = soft_prompt_size(soft_prompts)
    set_seed(training_args.seed)
    with clear_configuration_errors():
        model, processor = DELRecForSequentialRecommendation.from_parts(
            script_args.llm,
            script_args.teacher,
            run.data.catalogue,
            data_fingerprint=run.data.fingerprint,
            llm_revision=script_args.llm_revision,
            teacher_revision=script_args.teacher_revision,
            max_prompt_tokens=script_args.max_prompt_tokens,
            **run.hyper_parameters,
        )
    run.notes |= {"teacher_fingerprint": model.config.teacher_fingerprint, "soft_prompts": soft_prompts}
    if isinstance(script_args, TuneScriptArguments):
        if soft_prompts not in (None, UNTRAINED):
            model.load_soft_prompts(str(soft_prompts))
        tune(run, model, processor)
    else:
        distill(run, model)


def distill(run: TrainingRun, model: Any) -> None:
    """Stage 1: leaves `soft_prompts.safetensors`, `agreement.json` and `run.yaml`."""
    from transformers import PrinterCallback, ProgressCallback

    from hf_seqrec.trainers.soft_prompt import SoftPromptTrainer, agreement_floors

    training_args = copy.copy(run.training_args)
    training_args.push_to_hub = False  # the soft prompts alone are pushed, at the end
    trainer = SoftPromptTrainer(model, training_args, train_dataset=run.split.train)
    if not training_args.disable_tqdm:
        trainer.remove_callback(ProgressCallback)
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(_agreement_lines())
    run.introduce(model)
    floors = {}
    if trainer.eval_dataset is not None:
        floors = agreement_floors(model, trainer.eval_dataset, run.split.train)
    trainer.train(resume_from_checkpoint=run.resume)
    if run.is_main:
        script_args, folder = run.script_args, run.output_dir
        model.save_soft_prompts(folder)
        keys = ("ta", "rps", "lsr", "loss")
        curve = [
            {name: value for name, value in log.items() if name == "step" or any(key in name for key in keys)}
            for log in trainer.state.log_history
        ]
        run.notes |= {"dataset": run.data.name, "seconds": run.seconds, "floors": floors, "curve": curve}
        run.write("agreement.json", json.dumps(run.notes, indent=1))
        run.write("run.yaml", run.run_file())
        print(f"Soft prompts are in {folder}. Next:")
        print(
            f"  seqrec train {TUNE} --dataset {script_args.dataset} --llm {script_args.llm} --teacher {script_args.teacher} "
            f"--soft_prompts {folder} --output_dir FOLDER"
        )
        if run.training_args.push_to_hub:
            options = run.hub_options
            commit = model.push_soft_prompts(run.repo_id, options["private"], token=options["token"])
            print(f"Pushed: {commit.commit_url}")
    trainer.end()


def tune(run: TrainingRun, model: Any, processor: Any) -> None:
    """Stage 2: leaves a complete recommender with its records."""
    from hf_seqrec.trainers.prompt_tuning import PromptTuningTrainer

    candidates = run.sampled_candidates()
    run.introduce(model)
    trainer = None
    if model.config.adapter is not None or run.training_args.update_soft_prompts:
        trainer = run.trainer(PromptTuningTrainer, model, processor)
        run.train(trainer)
        run.notes["ranks"] = model.ranks()
    run.finish(model, processor, trainer, candidates)


def check_teacher_split(run: TrainingRun) -> None:
    """Refuse a teacher that was trained on another split, as far as its `run.yaml` tells.

    Args:
        run: Names the teacher, holds the split in use.

    Raises:
        ValueError: The teacher's run names another split.
    """
    import yaml
    from transformers.utils import cached_file

    teacher, split, shuffled = run.script_args.teacher, run.split, run.script_args.shuffle_training
    path = cached_file(
        teacher, "run.yaml", revision=run.script_args.teacher_revision, _raise_exceptions_for_missing_entries=False
    )
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
