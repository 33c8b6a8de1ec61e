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
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from .item_prompts import ItemPromptScriptArguments, base_model_of, item_prompt_arguments, open_item_table
from .train import (
    check_hub,
    clear_configuration_errors,
    finish,
    introduce,
    load_inputs,
    make_trainer,
    own_words,
    parse,
    read_lora,
    what_training_did,
)


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
    from hf_seqrec.modeling.processing import SequentialRecommendationProcessor
    from hf_seqrec.trainers import NextItemTrainer

    # Everything that can be wrong is looked at before the first step of training.
    data, split, resume = load_inputs(script_args, training_args)
    table = open_item_table(script_args, data)
    hyper_parameters = asdict(model_args)
    hyper_parameters["lora"] = read_lora(hyper_parameters["lora"])
    check_hub(training_args)
    set_seed(training_args.seed)
    with clear_configuration_errors():
        model = E4SRecForSequentialRecommendation.from_parts(
            script_args.llm, table, data.catalogue, data.fingerprint, script_args.llm_revision, **hyper_parameters
        )
    processor = SequentialRecommendationProcessor.from_catalogue(
        data.catalogue, model.config.max_length, data.fingerprint
    )
    trainer = make_trainer(NextItemTrainer, model, training_args, split, processor)

    introduce(data, split, training_args)
    if training_args.process_index == 0:
        trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
        print(f"{type(model).__name__} with {model.num_parameters():,} parameters, of which {trained:,} are trained")
    begin = time.perf_counter()
    notes: dict[str, Any] = {
        "preset": script_args.preset, "hyper_parameters": hyper_parameters, "llm": script_args.llm,
        "backbone": script_args.backbone,
    }  # fmt: skip
    trainer.train(resume_from_checkpoint=resume)
    notes |= what_training_did(trainer) | {"llm_tokens": model.encoder.tokens_seen}
    notes["training_seconds"] = round(time.perf_counter() - begin, 2)
    finish(
        model, processor, data, split, script_args, training_args, hyper_parameters, notes, trainer,
        base_model=base_model_of(script_args),
    )  # fmt: skip


def run(argv: Sequence[str], prog: str | None = None) -> int:
    """Parses and trains; what `seqrec train e4srec` and `python -m hf_seqrec.scripts.train_e4srec` do.

    Args:
        argv: The words of the command line.
        prog: Name of the program in help texts.

    Returns:
        Exit status.

    Raises:
        ValueError: If another method is named.
    """
    main(*parse(own_words(argv, METHOD), prog, make_parser))
    return 0


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
