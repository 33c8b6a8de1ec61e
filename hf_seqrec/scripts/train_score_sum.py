# /// script
# dependencies = ["hf-seqrec"]
# ///
"""Two saved recommenders as one: the sum of their scores, with the weight that is best on validation. Nothing is trained.

seqrec train score-sum --dataset data/beauty --first sasrec --second llmseqsim --output_dir both
seqrec train score-sum --dataset data/beauty --first user/sasrec --second user/llmseqsim --output_dir both --weights 0 0.1 0.2
"""

import sys
from dataclasses import dataclass, field
from typing import Any

from .train import ScriptArguments, command
from .training_run import TrainingRun


METHOD = "score-sum"


@dataclass(kw_only=True)
class ScoreSumScriptArguments(ScriptArguments):
    """What to add up.

    Args:
        first: Folder or Hub repository of the first recommender; of items without training interactions only the second's score counts.
        second: The same of the second one, such as LLMSeqSim.
        first_revision: Branch, tag or commit of the first's repository.
        second_revision: The same of the second's.
    """

    first: str = field(metadata={"help": "Folder or Hub repository of a recommender that knows the training items."})
    second: str = field(
        metadata={"help": "Folder or Hub repository of one that knows other things, such as LLMSeqSim."}
    )
    first_revision: str | None = field(
        default=None, metadata={"help": "Branch, tag or commit of the first's repository."}
    )
    second_revision: str | None = field(
        default=None, metadata={"help": "Branch, tag or commit of the second's repository."}
    )


@dataclass
class ScoreSumArguments:
    """What is chosen from.

    Args:
        weights: Of the second's scores; that with the best validation NDCG@10 is taken.
    """

    weights: list[float] = field(
        default_factory=list,
        metadata={"help": "Weights of the second's scores to choose from by validation NDCG@10."},
    )


def make_parser(prog: str | None = None, model: str | None = METHOD) -> Any:
    """Makes the parser.

    Args:
        prog: Name of the program in help texts.
        model: Name of the method.

    Returns:
        A `TrlParser` for [`ScoreSumScriptArguments`], `NextItemTrainingArguments` (of which evaluation and push count) and
        [`ScoreSumArguments`].
    """
    from trl import TrlParser

    from hf_seqrec.trainers import NextItemTrainingArguments

    return TrlParser(
        [ScoreSumScriptArguments, NextItemTrainingArguments, ScoreSumArguments],
        prog=prog,
        usage=f"{prog or '%(prog)s'} {METHOD} --dataset FOLDER_OR_REPO --first FOLDER_OR_REPO --second FOLDER_OR_REPO "
        "--output_dir FOLDER [options]",
        description="Add up the scores of two saved recommenders; nothing is trained.",
        allow_abbrev=False,
    )


def main(script_args: ScoreSumScriptArguments, training_args: Any, model_args: ScoreSumArguments) -> None:
    """Checks everything, chooses the weight, then evaluates and saves.

    Args:
        script_args: What to add up.
        training_args: `output_dir` receives model, processor, records and `run.yaml`.
        model_args: The weights to choose from.

    Raises:
        FileExistsError: If the output folder holds something and `overwrite` is off.
        TypeError: If a recommender cannot be saved within a sum.
        ValueError: If data set, recommenders or weights do not fit; nothing was written then.
    """
    import numpy as np

    from hf_seqrec.evaluation import EvaluationRecord, Protocol
    from hf_seqrec.hub import load_recommender
    from hf_seqrec.modeling.score_sum import check_part
    from hf_seqrec.scripts.evaluate import check_same_data
    from hf_seqrec.scripts.reporting import evaluate_model, print_gains
    from hf_seqrec.trainers import choose_score_sum

    run = TrainingRun.open(script_args, training_args, model_args)
    parts: dict[str, Any] = {}
    for name in ("first", "second"):
        place = getattr(script_args, name)
        part, processor = load_recommender(place, getattr(script_args, f"{name}_revision"))
        check_same_data(place, part, processor, run.data)
        check_part(part)
        parts[name] = part.to(training_args.device)
    run.introduce()
    known = np.bincount(run.split.train.item_index, minlength=run.data.catalogue.num_items + 1) > 0
    protocol = Protocol(
        split=run.split.name, part="validation", exclude_seen=training_args.exclude_seen, cutoffs=(10,)
    )
    both, values = choose_score_sum(
        parts["first"], parts["second"], run.split.validation, protocol, known, model_args.weights,
        progress=run.is_main and not training_args.disable_tqdm,
    )  # fmt: skip
    run.notes |= {
        "weight": both.config.weight,
        "validation_ndcg@10": {f"{key:g}": value for key, value in values.items()},
    }
    if run.is_main:
        for weight, value in values.items():
            chosen = "   chosen" if weight == both.config.weight else ""
            print(f"weight {weight:<6g} validation ndcg@10 {value:.4f}{chosen}")
    run.finish(both, run.processor(both))
    if run.is_main:
        alone = evaluate_model(
            parts["first"],
            run.data,
            run.split,
            exclude_seen=training_args.exclude_seen,
            cutoffs=training_args.cutoffs,
            name=f"first: {script_args.first}",
        )
        name = "test.json" if training_args.exclude_seen else "test-seen-allowed.json"
        print_gains([alone, EvaluationRecord.load(run.output_dir / "records" / name)], run.data, run.split.train)


run = command(METHOD, main, make_parser)


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
