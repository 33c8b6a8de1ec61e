# /// script
# dependencies = ["hf-seqrec"]
# ///
"""Train LLM-SRec, or a baseline of its paper, around a language model, evaluate it, and save it with its processor.

The preset gives the defaults, `--config file.yaml` overrides them, the command line overrides both; unknown keys fail.
Presets: default, paper, paper-code, and the baselines tallrec, llara, collm, a_llmrec.

seqrec train llm-srec --dataset data/scientific --teacher sasrec-out --llm meta-llama/Llama-3.2-3B-Instruct --output_dir out
seqrec train llm-srec --dataset data/scientific --teacher sasrec-out --llm LLM --output_dir out --head_epochs 40
seqrec train llm-srec --dataset data/scientific --llm LLM --preset tallrec --output_dir tallrec
seqrec train llm-srec --dataset data/ml-1m --domain movie --teacher sasrec-out --llm LLM --output_dir out --shuffle_training 0
seqrec train --config out/run.yaml --output_dir again
accelerate launch -m hf_seqrec.scripts.train_llm_srec --dataset data/scientific --teacher sasrec-out --llm LLM --output_dir out
"""

import shutil
import sys
from dataclasses import dataclass, field, make_dataclass
from inspect import signature
from typing import Any

from .train import ScriptArguments, command, model_arguments
from .training_run import TrainingRun, clear_configuration_errors, what_training_did


METHOD = "llm-srec"
PROMPT = {
    "style": (str, "Wording of the prompts: paper or compact."),
    "dates": (bool, "Lines of a history show dates; the data must have timestamps."),
    "history_length": (int, "Most items of a history that enter a prompt, the most recent ones."),
    "max_title_tokens": (int, "Titles are cut to this many tokens."),
    "max_prompt_tokens": (int | None, "Longest prompt; by default what the LLM can, 1024 at most."),
}


@dataclass(kw_only=True)
class LLMSRecScriptArguments(ScriptArguments):
    """What to train on what, around which language model.

    Args:
        llm: Hub id or folder of the language model.
        llm_revision: Branch, tag or commit of its repository.
        teacher: Hub id or folder of a trained backbone; methods that read no teacher need none.
        teacher_revision: Branch, tag or commit of its repository.
        domain: What the items are, for the words of the prompts.
        num_sampled: Negatives per test row in the record on sampled candidates; 0 leaves this record out.
        candidates_seed: Seed of these candidates.
        aligned_epochs: Epochs of A-LLMRec's first stage.
        head_epochs: Epochs of a second training, of the heads alone, in which the LLM encodes every prompt once; 0: none.
    """

    llm: str = field(metadata={"help": "Hub id or folder of the language model."})
    llm_revision: str | None = field(
        default=None, metadata={"help": "Branch, tag or commit of the language model's repository."}
    )
    teacher: str | None = field(default=None, metadata={"help": "Hub id or folder of a trained backbone."})
    teacher_revision: str | None = field(
        default=None, metadata={"help": "Branch, tag or commit of the teacher's repository."}
    )
    domain: str = field(default="product", metadata={"help": "movie, product, game or business."})
    num_sampled: int = field(
        default=99, metadata={"help": "Negatives per test row of the record on sampled candidates; 0: no such record."}
    )
    candidates_seed: int = field(default=0, metadata={"help": "Seed of the sampled candidates."})
    aligned_epochs: int = field(
        default=10, metadata={"help": "Epochs of A-LLMRec's first stage (item_vectors=aligned)."}
    )
    head_epochs: float = field(
        default=0.0,
        metadata={"help": "Epochs of a second training, of the heads alone, over states of the LLM that are kept."},
    )


def llm_model_arguments() -> type:
    """A dataclass with what `LLMSRecForSequentialRecommendation.from_parts` lets a person choose."""
    from hf_seqrec.modeling import LLMSRecForSequentialRecommendation as head

    found = ("prompt", "num_title_tokens", "llm_name_or_path", "llm_revision", "llm_config", "teacher_name_or_path",
             "teacher_revision", "teacher_fingerprint", "teacher_config", "store_teacher", "max_length", "lora")  # fmt: skip
    defaults = signature(head.from_parts).parameters
    own: list[tuple[str, Any, Any]] = [
        (name, kind, field(default=defaults[name].default, metadata={"help": text}))
        for name, (kind, text) in PROMPT.items()
    ]
    lora = (
        "Arguments of `peft.LoraConfig` as JSON, such as '{\"r\": 8}'; none keeps every weight of the language model."
    )
    length = "Number of most recent items that a teacher reads; by default the teacher's."
    own.append(("lora", str | None, field(default=None, metadata={"help": lora})))
    own.append(("max_length", int | None, field(default=None, metadata={"help": length})))
    return make_dataclass("LLMSRecArguments", own, bases=(model_arguments(head, found),))


def make_parser(prog: str | None = None, model: str | None = METHOD) -> Any:
    """Makes the parser.

    Args:
        prog: Name of the program in help texts.
        model: Name of the method.

    Returns:
        A `TrlParser` for [`LLMSRecScriptArguments`], `DistillationTrainingArguments` and `llm_model_arguments()`.
    """
    from trl import TrlParser

    from hf_seqrec.trainers import DistillationTrainingArguments

    return TrlParser(
        [LLMSRecScriptArguments, DistillationTrainingArguments, llm_model_arguments()],
        prog=prog,
        usage=f"{prog or '%(prog)s'} {METHOD} --dataset FOLDER_OR_REPO --llm FOLDER_OR_REPO [--teacher FOLDER_OR_REPO] "
        "--output_dir FOLDER [options]",
        description="Train LLM-SRec or one of its baselines, evaluate it, save it.",
        allow_abbrev=False,
    )


def main(script_args: LLMSRecScriptArguments, training_args: Any, model_args: Any) -> None:
    """Checks everything, then trains, evaluates and saves.

    Args:
        script_args: What to train on what.
        training_args: `DistillationTrainingArguments`; `output_dir` receives model, processor, records, candidates and `run.yaml`.
        model_args: Hyper-parameters of the model and wording of its prompts.

    Raises:
        FileExistsError: If the output folder holds something and neither `overwrite` nor a resume was asked for.
        OSError: If language model or teacher cannot be found.
        ValueError: If the data set, the teacher, the prompts or a hyper-parameter is wrong; nothing was written then.
    """
    from transformers import set_seed

    from hf_seqrec.modeling import LLMSRecForSequentialRecommendation
    from hf_seqrec.trainers import DistillationTrainer
    from hf_seqrec.trainers.a_llmrec import train_aligned_items
    from hf_seqrec.trainers.base import last_whole_checkpoint
    from hf_seqrec.trainers.distillation import heads_arguments

    # Everything that can be wrong is looked at before the first step of training.
    if not script_args.llm:
        raise ValueError("no language model is named: give --llm FOLDER_OR_REPO.")
    run = TrainingRun.open(script_args, training_args, model_args)
    data = run.data
    if model_args.dates and data.sequences.timestamps is None:
        raise ValueError(f"of {data.name} only the order is known, so prompts cannot show dates: pass --dates false.")
    candidates = run.sampled_candidates()
    set_seed(training_args.seed)
    with clear_configuration_errors():
        model, processor = LLMSRecForSequentialRecommendation.from_parts(
            llm=script_args.llm,
            teacher=script_args.teacher,
            catalogue=data.catalogue,
            data_fingerprint=data.fingerprint,
            llm_revision=script_args.llm_revision,
            teacher_revision=script_args.teacher_revision,
            domain=script_args.domain,
            **run.hyper_parameters,
        )
    run.notes["teacher_fingerprint"] = model.config.teacher_fingerprint
    trainer = run.trainer(DistillationTrainer, model, processor)

    run.introduce(model)
    if model.config.item_vectors == "aligned" and not run.resume:  # a checkpoint holds what the first stage made
        model.to(training_args.device)
        losses = train_aligned_items(model, run.split.train, script_args.aligned_epochs, seed=training_args.seed)
        run.notes["first_stage"] = losses[-1] if losses else None
    run.train(trainer)
    if script_args.head_epochs:
        second = heads_arguments(training_args, script_args.head_epochs)
        heads = run.trainer(DistillationTrainer, model, processor, second)
        try:
            checkpoint = last_whole_checkpoint(second.output_dir) if run.resume else None
        except ValueError:  # the run ended before the heads had one
            checkpoint = None
        heads.train(resume_from_checkpoint=checkpoint)
        run.notes["heads"] = what_training_did(heads)
        if heads.is_world_process_zero():
            shutil.rmtree(second.output_dir, ignore_errors=True)  # the best one is in the model now
    run.finish(model, processor, trainer, candidates)


run = command(METHOD, main, make_parser)


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
