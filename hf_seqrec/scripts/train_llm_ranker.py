# /// script
# dependencies = ["hf-seqrec"]
# ///
"""Rank what a trained backbone retrieves with a language model's own head: zero-shot, LlamaRec, RecRanker; evaluate and save it.

The preset gives the defaults, `--config file.yaml` overrides them, the command line overrides both; unknown keys fail. Beside the usual
records, `reranking.json` has metrics over all users and over those whose target was retrieved, of the ranker and of the backbone alone.

seqrec train llm-ranker --preset llamarec --dataset data/ml-100k --domain movie --teacher sasrec-out --llm LLM --output_dir llamarec
seqrec train llm-ranker --preset zero-shot --dataset data/ml-100k --domain movie --teacher sasrec-out --llm LLM --output_dir zero-shot
seqrec train llm-ranker --preset recranker-list --dataset data/ml-100k --domain movie --teacher sasrec-out --llm LLM --output_dir recranker
seqrec train llm-ranker --preset llamarec … --candidates retrieved             # learn on what the backbone retrieves, not on random items
"""

import json
import sys
from dataclasses import dataclass, field, make_dataclass, replace
from pathlib import Path
from typing import Any

from .train import ScriptArguments, command, model_arguments
from .train_delrec import check_teacher_split
from .training_run import TrainingRun, clear_configuration_errors


METHOD = "llm-ranker"


@dataclass(kw_only=True)
class RankerScriptArguments(ScriptArguments):
    """What to rank, around which language model and backbone.

    Args:
        llm: Hub id or folder of the language model, with its head.
        llm_revision: Branch, tag or commit of its repository.
        teacher: Hub id or folder of the trained backbone that retrieves.
        teacher_revision: Branch, tag or commit of its repository.
        max_prompt_tokens: Longest prompt.
        num_sampled: Negatives per test row in the record on sampled candidates; 0 leaves this record out.
        candidates_seed: Seed of these candidates.
    """

    llm: str = field(metadata={"help": "Hub id or folder of the language model."})
    teacher: str = field(metadata={"help": "Hub id or folder of the trained backbone that retrieves."})
    llm_revision: str | None = field(
        default=None, metadata={"help": "Branch, tag or commit of the language model's repository."}
    )
    teacher_revision: str | None = field(
        default=None, metadata={"help": "Branch, tag or commit of the backbone's repository."}
    )
    max_prompt_tokens: int | None = field(
        default=None, metadata={"help": "Longest prompt; by default what the language model can, 4096 at most."}
    )
    num_sampled: int = field(
        default=14, metadata={"help": "Negatives per test row of the record on sampled candidates; 0: no such record."}
    )
    candidates_seed: int = field(default=0, metadata={"help": "Seed of the sampled candidates."})


def ranker_model_arguments() -> type:
    """A dataclass with what a person chooses of a ranker."""
    from hf_seqrec.modeling.llm_ranker import LLMRankerForSequentialRecommendation

    left_out = ["prompt", "num_title_tokens", "llm_name_or_path", "llm_revision", "llm_config", "teacher_name_or_path", "teacher_revision",
                "teacher_fingerprint", "teacher_config", "store_teacher", "max_length", "lora", "hidden_size", "hidden_dropout_prob",
                "initializer_range", "seed", "exclude_seen"]  # fmt: skip
    text = 'Adapters of the language model as JSON, arguments of peft\'s LoraConfig: \'{"r": 8, "lora_alpha": 16}\'; none: it stays as it is.'
    own: list[tuple[str, Any, Any]] = [("lora", str | None, field(default=None, metadata={"help": text}))]
    return make_dataclass(
        "RankerArguments", own, bases=(model_arguments(LLMRankerForSequentialRecommendation, left_out),)
    )


def make_parser(prog: str | None = None, model: str | None = METHOD) -> Any:
    """Makes the parser.

    Args:
        prog: Name of the program in help texts.
        model: `llm-ranker`.

    Returns:
        A `TrlParser` for the script's, the trainer's and the model's arguments.
    """
    from trl import TrlParser

    from hf_seqrec.trainers.prompt_tuning import PromptTuningTrainingArguments

    return TrlParser(
        [RankerScriptArguments, PromptTuningTrainingArguments, ranker_model_arguments()],
        prog=prog,
        usage=f"{prog or '%(prog)s'} {METHOD} --dataset FOLDER_OR_REPO --llm FOLDER_OR_REPO --teacher FOLDER_OR_REPO "
        "--output_dir FOLDER [options]",
        description="Rank what a backbone retrieves with a language model's head: zero-shot, LlamaRec, RecRanker.",
        allow_abbrev=False,
    )


def main(script_args: RankerScriptArguments, training_args: Any, model_args: Any) -> None:
    """Checks everything, then trains the adapters, evaluates and saves.

    Args:
        script_args: What to rank.
        training_args: `PromptTuningTrainingArguments`; `output_dir` receives model, processor, records, `reranking.json` and `run.yaml`.
        model_args: Hyper-parameters of the model.

    Raises:
        FileExistsError: If the output folder holds something and neither `overwrite` nor a resume was asked for.
        OSError: If language model or backbone cannot be found.
        ValueError: If the data set, the backbone or its split, the prompts or a hyper-parameter is wrong; nothing was written then.
    """
    from transformers import set_seed

    from hf_seqrec.modeling.llm_ranker import LLMRankerForSequentialRecommendation
    from hf_seqrec.trainers.prompt_tuning import PromptTuningTrainer

    for name, value in (("llm", script_args.llm), ("teacher", script_args.teacher)):
        if not value:
            raise ValueError(f"no {name} is named: give --{name} FOLDER_OR_REPO.")
    run = TrainingRun.open(script_args, training_args, model_args)
    check_teacher_split(run)
    candidates = run.sampled_candidates()
    set_seed(training_args.seed)
    with clear_configuration_errors():
        model, processor = LLMRankerForSequentialRecommendation.from_parts(
            script_args.llm,
            script_args.teacher,
            run.data.catalogue,
            data_fingerprint=run.data.fingerprint,
            llm_revision=script_args.llm_revision,
            teacher_revision=script_args.teacher_revision,
            max_prompt_tokens=script_args.max_prompt_tokens,
            **run.hyper_parameters,
        )
    run.notes["teacher_fingerprint"] = model.config.teacher_fingerprint
    run.introduce(model)
    trainer = None
    if model.config.lora is not None:
        trainer = run.trainer(PromptTuningTrainer, model, processor)
        run.train(trainer)
    run.finish(model, processor, trainer, candidates)
    if run.is_main:
        report_reranking(model, run.split, run.output_dir)


def report_reranking(model: Any, split: Any, folder: Path) -> dict[str, Any]:
    """Overall and subset metrics of the ranker and of its backbone: printed, and `reranking.json` in the folder.

    Args:
        model: The ranker.
        split: The split of its data.
        folder: Has `records/test.json`, the record of the ranker.

    Returns:
        See `reranking_metrics`.
    """
    from hf_seqrec.data.files import atomic_path
    from hf_seqrec.evaluation import EvaluationRecord, RankingEvaluator, reranking_metrics

    record = EvaluationRecord.load(folder / "records" / "test.json")
    evaluator = RankingEvaluator(split.test, num_items=model.config.num_items, protocol=record.protocol)
    retriever = evaluator(model.teacher)
    reranked = replace(retriever, ranks=record.ranks, metrics=dict(record.metrics))
    found = reranking_metrics(reranked, retriever, model.config.num_candidates)
    with atomic_path(folder / "reranking.json") as temporary:
        temporary.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    name = "ndcg@10" if "ndcg@10" in found["overall"] else next(iter(found["overall"]))
    print(
        f"{name}: ranker {found['overall'][name]:.4f}, backbone {found['retriever'][name]:.4f}; of the {found['retrieved']:.1%} of users "
        f"whose target was among the first {model.config.num_candidates}: ranker {found['subset'][name]:.4f}, backbone "
        f"{found['retriever_subset'][name]:.4f}."
    )
    return found


run = command(METHOD, main, make_parser)


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
