# /// script
# dependencies = ["hf-seqrec"]
# ///
"""Align a language model with a warmed-up recommender (SeRALM): both learn from each other; evaluate, save adapter, recommender, knowledge.

The preset gives the defaults, `--config file.yaml` overrides them, the command line overrides both; unknown keys fail. The recommender
comes from `seqrec train seralm-warmup` on the knowledge that is given, the base from `seqrec train` on the same data. Texts are drawn
as those of the knowledge were (prompt, length, temperature). The output folder receives `adapter` (or `llm` without --use_peft),
`knowledge`, and `recommender`, which serves from the vectors of that knowledge.

seqrec knowledge generate --dataset data/ml-1m --llm LLM --domain movie --output-dir knowledge
seqrec train sasrec --dataset data/ml-1m --output_dir base
seqrec train seralm-warmup --dataset data/ml-1m --knowledge knowledge --text_encoder ENCODER --output_dir warm
seqrec train seralm --dataset data/ml-1m --knowledge knowledge --recommender warm --base base --model_name_or_path LLM --output_dir out
seqrec train seralm … --generation_mode async --refresh_interval 50
seqrec train seralm … --generation_mode stale --refresh_interval 3000 --output_dir slow_refresh
seqrec train seralm … --beta 0 --output_dir no-penalty
seqrec train seralm … --train_llm false --output_dir recommender-only
accelerate launch -m hf_seqrec.scripts.train_seralm --dataset data/ml-1m --knowledge knowledge --recommender warm --base base …
"""

import copy
import os
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from .train import ScriptArguments, command
from .training_run import TrainingRun


METHOD = "seralm"


@dataclass(kw_only=True)
class SeRALMScriptArguments(ScriptArguments):
    """What to align with what.

    Args:
        knowledge: Folder or Hub repository of the un-aligned knowledge that the recommender was warmed up on.
        knowledge_revision: Branch, tag or commit of its repository.
        recommender: Folder or Hub repository of the warmed-up recommender.
        recommender_revision: Branch, tag or commit of its repository.
        base: Folder or Hub repository of the backbone trained without knowledge, which is the frozen p0.
        base_revision: Branch, tag or commit of its repository.
        text_encoder: Where the recommender's text encoder is, when not where it says.
    """

    knowledge: str = field(metadata={"help": "Folder or Hub repository of the knowledge that the recommender knows."})
    knowledge_revision: str | None = field(
        default=None, metadata={"help": "Branch, tag or commit of the knowledge's repository."}
    )
    recommender: str = field(metadata={"help": "Folder or Hub repository of the warmed-up recommender."})
    recommender_revision: str | None = field(
        default=None, metadata={"help": "Branch, tag or commit of the recommender's repository."}
    )
    base: str = field(metadata={"help": "Folder or Hub repository of the backbone trained without knowledge."})
    base_revision: str | None = field(
        default=None, metadata={"help": "Branch, tag or commit of the base's repository."}
    )
    text_encoder: str | None = field(
        default=None, metadata={"help": "Where the recommender's text encoder is, when not where it says."}
    )


def make_parser(prog: str | None = None, model: str | None = METHOD) -> Any:
    """Makes the parser.

    Args:
        prog: Name of the program in help texts.
        model: Name of the method.

    Returns:
        A `TrlParser` for [`SeRALMScriptArguments`], `AlignmentConfig` and TRL's `ModelConfig`.
    """
    from trl import ModelConfig, TrlParser

    from hf_seqrec.trainers.alignment import AlignmentConfig

    return TrlParser(
        [SeRALMScriptArguments, AlignmentConfig, ModelConfig],
        prog=prog,
        usage=f"{prog or '%(prog)s'} {METHOD} --dataset FOLDER_OR_REPO --knowledge FOLDER_OR_REPO --recommender FOLDER_OR_REPO "
        "--base FOLDER_OR_REPO --model_name_or_path FOLDER_OR_REPO --output_dir FOLDER [options]",
        description="Align a language model and a recommender with each other, evaluate, save.",
        allow_abbrev=False,
    )


def main(script_args: SeRALMScriptArguments, training_args: Any, model_args: Any) -> None:
    """Checks everything, then aligns, writes the catalogue's knowledge anew, evaluates and saves.

    Args:
        script_args: What to align with what.
        training_args: `AlignmentConfig`; `output_dir` receives everything.
        model_args: TRL's `ModelConfig`: the language model and its adapter.

    Raises:
        FileExistsError: If the output folder holds something and neither `overwrite` nor a resume was asked for.
        OSError: If a model or the knowledge cannot be found.
        ValueError: If the parts do not belong together; nothing was written then.
    """
    from transformers import AutoTokenizer, PrinterCallback
    from trl import get_peft_config, get_quantization_config

    from hf_seqrec.knowledge import Sampling, clean_text, load_knowledge
    from hf_seqrec.modeling import SeRALMForSequentialRecommendation
    from hf_seqrec.modeling.teacher import load_teacher
    from hf_seqrec.trainers.alignment import AlignmentTrainer

    # Everything that can be wrong is looked at before the first step of training.
    for name in ("knowledge", "recommender", "base"):
        if not getattr(script_args, name):
            raise ValueError(f"--{name} is missing; `seqrec train seralm --help` says where it comes from.")
    if not model_args.model_name_or_path:
        raise ValueError("no language model is named: give --model_name_or_path FOLDER_OR_REPO.")
    run = TrainingRun.open(script_args, training_args, model_args)
    data, split = run.data, run.split
    knowledge = load_knowledge(script_args.knowledge, script_args.knowledge_revision)
    knowledge.check(data.catalogue)
    check_language_model(knowledge, model_args.model_name_or_path)
    recommender = SeRALMForSequentialRecommendation.from_pretrained(
        script_args.recommender, revision=script_args.recommender_revision, text_encoder=script_args.text_encoder or True
    )  # fmt: skip
    base = load_teacher(script_args.base, script_args.base_revision)
    sampling = Sampling(**knowledge.description["sampling"])
    training_args = copy.copy(training_args)
    training_args.max_completion_length, training_args.temperature = (
        sampling.max_new_tokens,
        sampling.temperature or 1.0,
    )
    training_args.top_p, training_args.top_k = sampling.top_p, sampling.top_k
    training_args.repetition_penalty = sampling.repetition_penalty
    quantization = get_quantization_config(model_args)
    training_args.model_init_kwargs = {
        "revision": model_args.model_revision, "dtype": model_args.dtype, "attn_implementation": model_args.attn_implementation,
    }  # fmt: skip
    tokenizer = AutoTokenizer.from_pretrained(
        model_args.model_name_or_path, revision=model_args.model_revision, padding_side="left"
    )
    training_args.push_to_hub = False  # once, at the end
    trainer = AlignmentTrainer(
        model_args.model_name_or_path,
        recommender,
        base,
        split.train,
        prompts_of(knowledge, data.catalogue, tokenizer, sampling),
        knowledge.texts,
        training_args,
        eval_dataset=split.validation,
        data_fingerprint=data.fingerprint,
        knowledge_key=knowledge.key,
        clean=lambda text: clean_text(text)[0],
        processing_class=tokenizer,
        peft_config=get_peft_config(model_args),
        quantization_config=quantization,
    )
    trainer.remove_callback(PrinterCallback)
    run.introduce()
    trainer.train(resume_from_checkpoint=run.resume)
    run.notes = {
        "preset": script_args.preset, "llm": model_args.model_name_or_path, "adapter": model_args.use_peft, "steps": trainer.state.global_step,
        "training_seconds": run.seconds, "unaligned_knowledge": knowledge.key,
    }  # fmt: skip
    output_dir = run.output_dir
    where = output_dir / ("adapter" if model_args.use_peft else "llm")
    if run.is_main:
        trainer.accelerator.unwrap_model(trainer.model).save_pretrained(where)
        tokenizer.save_pretrained(where)
    trainer.accelerator.wait_for_everyone()
    aligned = write_again(trainer, knowledge, data.catalogue, model_args, where, sampling)
    run.notes["knowledge"] = {**aligned.description, "key": aligned.key, **aligned.counts}
    if run.is_main:
        stored = recommender.knowledge[1:].float().cpu().numpy()
        aligned.save(output_dir / "knowledge", stored, {"recommender": "recommender"}, overwrite=True)
    own = copy.copy(training_args)
    own.output_dir, own.push_to_hub = str(output_dir / "recommender"), run.training_args.push_to_hub
    replace(run, training_args=own).finish(recommender, run.processor(recommender), trainer)


def check_language_model(knowledge: Any, name: str) -> None:
    """Refuse another language model than the one that wrote the knowledge, and knowledge of an adapter.

    Raises:
        ValueError: If they differ.
    """
    wrote = knowledge.description
    given = Path(name).name if os.path.isdir(name) else name
    if wrote.get("llm") != given:
        raise ValueError(
            f"the knowledge was written by {wrote.get('llm')}, not by {given}: give that language model, or make knowledge with this one."
        )
    if wrote.get("adapter") is not None:
        raise ValueError(
            f"the knowledge was written with the adapter {wrote['adapter']}: alignment starts from the un-adapted language model, give its "
            "knowledge and the recommender that was warmed up on it."
        )


def prompts_of(knowledge: Any, catalogue: Any, tokenizer: Any, sampling: Any) -> list[Any]:
    """What the language model is asked about each item, as it was for the knowledge; None for an item that is not asked about."""
    from hf_seqrec.knowledge import KnowledgePrompt

    asked = {key: value for key, value in knowledge.description["prompt"].items() if key != "text"}
    limit = tokenizer.model_max_length - sampling.max_new_tokens
    prompts = KnowledgePrompt(**asked).render(catalogue, tokenizer, limit if limit < 1 << 20 else None)
    if not getattr(tokenizer, "chat_template", None):
        return prompts
    return [None if prompt is None else [{"role": "user", "content": prompt}] for prompt in prompts]


def write_again(trainer: Any, knowledge: Any, catalogue: Any, model_args: Any, where: Path, sampling: Any) -> Any:
    """The knowledge of the aligned language model; its vectors are those of the recommender afterwards."""
    import torch

    from hf_seqrec.knowledge import Generator, KnowledgePrompt, generate_knowledge, load_generator

    device = trainer.accelerator.device
    if model_args.use_peft:
        generator = load_generator(
            model_args.model_name_or_path, model_args.model_revision, where, dtype=model_args.dtype or "auto", device=device
        )  # fmt: skip
    else:
        generator = load_generator(where, dtype=model_args.dtype or "auto", device=device)
    assert isinstance(generator, Generator)
    asked = {key: value for key, value in knowledge.description["prompt"].items() if key != "text"}
    found = generate_knowledge(generator, catalogue, where.parent / ".texts", KnowledgePrompt(**asked), sampling)
    recommender = trainer.recommender
    vectors = recommender.encode_all(recommender.tokenize(found.texts))
    recommender.set_knowledge(torch.arange(1, len(vectors) + 1), vectors)
    recommender.config.knowledge_key = found.key
    return found


run = command(METHOD, main, make_parser)


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
