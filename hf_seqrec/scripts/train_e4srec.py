# /// script
# dependencies = ["hf-seqrec"]
# ///
"""Train E4SRec, a language model that reads a backbone's item vectors, evaluate it, and save it with its processor.

The preset gives the defaults, `--config file.yaml` overrides them, the command line overrides both; unknown keys fail.

seqrec train e4srec --dataset data/beauty --backbone sasrec-out --llm meta-llama/Llama-3.2-1B --output_dir out
seqrec train e4srec --dataset data/beauty --backbone sasrec-out --llm LLM --output_dir out --preset paper-code
seqrec train --config out/run.yaml --output_dir again
accelerate launch -m hf_seqrec.scripts.train_e4srec --dataset data/beauty --backbone sasrec-out --llm LLM --output_dir out
"""

import sys
from typing import Any

from .item_prompts import ItemPromptScriptArguments, item_prompt_arguments, open_item_table
from .train import command
from .training_run import TrainingRun, clear_configuration_errors


METHOD = "e4srec"


def make_parser(prog: str | None = None, model: str | None = METHOD) -> Any:
    """Makes the parser.

    Args:
        prog: Name of the program in help texts.
        model: Name of the method.

    Returns:
        A `TrlParser` for `ItemPromptScriptArguments`, `NextItemTrainingArguments` and what the model lets a person choose.
    """
    from trl import TrlParser

    from hf_seqrec.modeling import E4SRecForSequentialRecommendation
    from hf_seqrec.trainers import NextItemTrainingArguments

    return TrlParser(
        [
            ItemPromptScriptArguments,
            NextItemTrainingArguments,
            item_prompt_arguments(E4SRecForSequentialRecommendation),
        ],
        prog=prog,
        usage=f"{prog or '%(prog)s'} {METHOD} --dataset FOLDER_OR_REPO --backbone FOLDER_OR_REPO --llm FOLDER_OR_REPO "
        "--output_dir FOLDER [options]",
        description="Train E4SRec, evaluate it, save it.",
        allow_abbrev=False,
    )


def main(script_args: ItemPromptScriptArguments, training_args: Any, model_args: Any) -> None:
    """Checks everything, then trains, evaluates and saves.

    Args:
        script_args: What to train on what.
        training_args: `NextItemTrainingArguments`; `output_dir` receives model, processor, records and `run.yaml`.
        model_args: Hyper-parameters of the model.

    Raises:
        FileExistsError: If the output folder holds something and neither `overwrite` nor a resume was asked for.
        OSError: If language model or backbone cannot be found.
        ValueError: If the data set, the backbone or a hyper-parameter is wrong; nothing was written then.
    """
    from transformers import set_seed

    from hf_seqrec.modeling import E4SRecForSequentialRecommendation
    from hf_seqrec.trainers import NextItemTrainer

    # Everything that can be wrong is looked at before the first step of training.
    run = TrainingRun.open(script_args, training_args, model_args)
    table = open_item_table(script_args, run.data)
    set_seed(training_args.seed)
    with clear_configuration_errors():
        model = E4SRecForSequentialRecommendation.from_parts(
            script_args.llm,
            table,
            run.data.catalogue,
            run.data.fingerprint,
            script_args.llm_revision,
            **run.hyper_parameters,
        )
    processor = run.processor(model)
    trainer = run.trainer(NextItemTrainer, model, processor)

    run.introduce(model)
    run.train(trainer)
    run.notes["llm_tokens"] = model.encoder.tokens_seen
    run.finish(model, processor, trainer)


run = command(METHOD, main, make_parser)


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
