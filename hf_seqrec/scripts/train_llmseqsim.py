# /// script
# dependencies = ["hf-seqrec"]
# ///
"""LLMSeqSim, a recommender by likeness of item texts, which needs vectors and no training: evaluate it and save it.

seqrec vectors text --dataset data/beauty --llm sentence-transformers/all-MiniLM-L6-v2 --output-dir vectors
seqrec train llmseqsim --dataset data/beauty --item_features vectors/KEY --output_dir out
seqrec train llmseqsim --dataset data/beauty --item_features user/beauty-text-vectors --output_dir out --decay 0.5
"""

import sys
from dataclasses import dataclass, field
from typing import Any

from .train import ScriptArguments, command, model_arguments
from .training_run import TrainingRun, clear_configuration_errors


METHOD = "llmseqsim"


@dataclass(kw_only=True)
class LLMSeqSimScriptArguments(ScriptArguments):
    """What to recommend from.

    Args:
        item_features: Folder or Hub repository of text vectors.
        item_features_revision: Branch, tag or commit of the repository.
    """

    item_features: str = field(metadata={"help": "Folder or Hub repository of text vectors."})
    item_features_revision: str | None = field(
        default=None, metadata={"help": "Branch, tag or commit of the vectors' repository."}
    )


def make_parser(prog: str | None = None, model: str | None = METHOD) -> Any:
    """Makes the parser.

    Args:
        prog: Name of the program in help texts.
        model: Name of the method.

    Returns:
        A `TrlParser` for [`LLMSeqSimScriptArguments`], `NextItemTrainingArguments` (of which evaluation and push count) and the
        hyper-parameters.
    """
    from trl import TrlParser

    from hf_seqrec.modeling import LLMSeqSimForSequentialRecommendation
    from hf_seqrec.trainers import NextItemTrainingArguments

    return TrlParser(
        [
            LLMSeqSimScriptArguments,
            NextItemTrainingArguments,
            model_arguments(LLMSeqSimForSequentialRecommendation, ("hidden_size",)),  # that of the vectors
        ],
        prog=prog,
        usage=f"{prog or '%(prog)s'} {METHOD} --dataset FOLDER_OR_REPO --item_features FOLDER_OR_REPO --output_dir FOLDER [options]",
        description="Recommend what reads like the history; nothing is trained.",
        allow_abbrev=False,
    )


def main(script_args: LLMSeqSimScriptArguments, training_args: Any, model_args: Any) -> None:
    """Checks everything, then evaluates and saves.

    Args:
        script_args: What to recommend from.
        training_args: `output_dir` receives model, processor, records and `run.yaml`.
        model_args: Hyper-parameters of the model.

    Raises:
        FileExistsError: If the output folder holds something and `overwrite` is off.
        FileNotFoundError: If there are no such vectors.
        ValueError: If data set, vectors or a hyper-parameter are wrong; nothing was written then.
    """
    from hf_seqrec.item_vectors import load_item_vectors
    from hf_seqrec.modeling import LLMSeqSimForSequentialRecommendation

    run = TrainingRun.open(script_args, training_args, model_args)
    vectors = load_item_vectors(script_args.item_features, script_args.item_features_revision)
    values = vectors.read(catalogue=run.data.catalogue)
    run.notes["item_features"] = {**vectors.description, "key": vectors.key}
    run.introduce()
    with clear_configuration_errors():
        model = LLMSeqSimForSequentialRecommendation.from_vectors(
            values, data_fingerprint=run.data.fingerprint, **run.hyper_parameters
        )
    run.finish(model, run.processor(model))


run = command(METHOD, main, make_parser)


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
