# /// script
# dependencies = ["hf-seqrec"]
# ///
"""P2Rec in one command: groups of items, a language model tuned to tell users' preferences for them, and enhanced item vectors.

The preset gives the defaults, `--config file.yaml` overrides them, the command line overrides both; unknown keys fail. The last
two commands train backbones with what the first wrote; `--control` takes what stands in for the vectors instead.

seqrec train p2rec --dataset data/beauty --backbone sasrec-out --llm LLM --output_dir p2rec --controls noise teacher groups text
seqrec train gru4rec --dataset data/beauty --output_dir out --item_features p2rec
seqrec train gru4rec --dataset data/beauty --output_dir ci --item_features p2rec --control groups
"""

import json
import shutil
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .item_prompts import ItemPromptScriptArguments, item_prompt_arguments, open_item_table
from .train import command
from .training_run import TrainingRun, clear_configuration_errors, what_training_did


METHOD = "p2rec"
RECORD = "p2rec.json"


@dataclass(kw_only=True)
class P2RecScriptArguments(ItemPromptScriptArguments):
    """What to train on what, and what to write beside the enhanced vectors.

    Args:
        normalize: How vectors are normalised before k-means.
        restarts: Runs of k-means, of which the best is kept.
        controls: What to write that can stand in for the enhanced vectors.
        template: Template of the item texts of the control `text`.
        vectors_repo: Data set repository that receives the enhanced vectors with `--push_to_hub`.
    """

    normalize: str = field(
        default="none", metadata={"help": "How vectors are normalised before k-means: none, unit or standard."}
    )
    restarts: int = field(default=10, metadata={"help": "Runs of k-means, of which the best is kept."})
    controls: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Also write what can stand in for the enhanced vectors: noise, teacher (the backbone's own vectors), groups (the "
            "paper's variant CI), text (raw text vectors of the same language model)."
        },
    )
    template: str = field(
        default="all",
        metadata={"help": "Template of the item texts of the control text: a name, or a text with columns in braces."},
    )
    vectors_repo: str | None = field(
        default=None,
        metadata={
            "help": "Data set repository for the enhanced vectors with --push_to_hub; by default MODEL-vectors."
        },
    )


def make_parser(prog: str | None = None, model: str | None = METHOD) -> Any:
    """Makes the parser.

    Args:
        prog: Name of the program in help texts.
        model: Name of the method.

    Returns:
        A `TrlParser` for [`P2RecScriptArguments`], `PreferenceTrainingArguments` and what the model lets a person choose.
    """
    from trl import TrlParser

    from hf_seqrec.modeling import P2RecModel
    from hf_seqrec.trainers import PreferenceTrainingArguments

    return TrlParser(
        [P2RecScriptArguments, PreferenceTrainingArguments, item_prompt_arguments(P2RecModel)],
        prog=prog,
        usage=f"{prog or '%(prog)s'} {METHOD} --dataset FOLDER_OR_REPO --backbone FOLDER_OR_REPO --llm FOLDER_OR_REPO "
        "--output_dir FOLDER [options]",
        description="Groups of items, a language model that tells preferences for them, enhanced item vectors.",
        allow_abbrev=False,
    )


def main(script_args: P2RecScriptArguments, training_args: Any, model_args: Any) -> None:
    """Checks everything, then runs the three stages.

    Args:
        script_args: What to train on what.
        training_args: `PreferenceTrainingArguments`; `output_dir` receives the tuned parts, `groups.npz`, `vectors/`, `p2rec.json`
            and `run.yaml`.
        model_args: Hyper-parameters of the model.

    Raises:
        FileExistsError: If the output folder holds something and neither `overwrite` nor a resume was asked for.
        OSError: If language model or backbone cannot be found.
        ValueError: If the data set, the backbone or a hyper-parameter is wrong; nothing was written then.
    """
    from transformers import set_seed

    from hf_seqrec.hub import GROUPS
    from hf_seqrec.modeling import P2RecModel
    from hf_seqrec.preferences import group_items, preference_distributions
    from hf_seqrec.trainers import PreferenceTrainer

    # Everything that can be wrong is looked at before the first step of training.
    run = TrainingRun.open(script_args, training_args, model_args)
    _check(run)
    table = open_item_table(script_args, run.data)
    groups = group_items(
        table, model_args.num_groups, script_args.normalize, run.split.train.item_index, training_args.seed, script_args.restarts
    )  # fmt: skip
    set_seed(training_args.seed)
    with clear_configuration_errors():
        model = P2RecModel.from_parts(
            script_args.llm,
            table,
            run.data.catalogue,
            run.data.fingerprint,
            script_args.llm_revision,
            **run.hyper_parameters,
        )
    preferences = preference_distributions(run.split.train, groups)
    trainer = run.trainer(PreferenceTrainer, model, None, preferences=preferences, group=groups.group)

    run.introduce(model)
    if run.is_main:
        print(
            f"{groups.num_groups} groups of {groups.sizes.min():,} to {groups.sizes.max():,} items (silhouette {groups.silhouette:.3f})"
        )
    begin, tokens = time.perf_counter(), model.encoder.tokens_seen
    trainer.train(resume_from_checkpoint=run.resume)
    stage1 = what_training_did(trainer) | {
        "examples_per_epoch": len(trainer.train_dataset),
        "seconds": time.perf_counter() - begin,
        "llm_tokens": model.encoder.tokens_seen - tokens,  # of this process
        "resumed": bool(run.resume),
        "loss": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
    }
    model = trainer.accelerator.unwrap_model(trainer.model).eval()
    if run.is_main:
        run.output_dir.mkdir(parents=True, exist_ok=True)
        model.save_pretrained(run.output_dir)
        groups.save(run.output_dir / GROUPS)
    begin, tokens = time.perf_counter(), model.encoder.tokens_seen
    vectors = _enhance(run, model, groups)
    stage2 = {
        "items": run.data.catalogue.num_items,
        "seconds": time.perf_counter() - begin,
        "llm_tokens": model.encoder.tokens_seen - tokens,
    }
    if run.is_main:
        record = _record(run, groups, stage1, stage2, vectors)
        _write(run, record)
        _report(run, record, vectors)
        if training_args.push_to_hub:
            _push(run, vectors["enhanced"].folder)
    trainer.end()


def _check(run: TrainingRun) -> None:
    from hf_seqrec.preferences import CONTROLS
    from hf_seqrec.text_vectors import item_texts

    script_args = run.script_args
    unknown = sorted(set(script_args.controls) - {*CONTROLS, "text"})
    if unknown:
        raise ValueError(f"--controls knows no {unknown[0]!r}, choose from {', '.join((*CONTROLS, 'text'))}.")
    if "text" in script_args.controls:
        item_texts(run.data.catalogue, script_args.template, 0, 1)
    if run.training_args.eval_strategy != "no":
        raise ValueError(
            f"--eval_strategy {run.training_args.eval_strategy}: p2rec trains a fixed number of epochs, its vectors are judged by the "
            "backbones trained with them: pass --eval_strategy no."
        )


def _enhance(run: TrainingRun, model, groups) -> dict[str, Any]:
    """Stage 2 and the controls; vectors of an earlier state of this run are replaced, half-written ones completed."""
    from hf_seqrec.item_vectors import load_item_vectors
    from hf_seqrec.preferences import CONTROLS, enhance_items, write_controls
    from hf_seqrec.text_vectors import encode_items

    script_args, training_args, data = run.script_args, run.training_args, run.data
    folder, progress = run.output_dir / "vectors", not training_args.disable_tqdm
    vectors = {
        "enhanced": enhance_items(model, data.catalogue, folder / "enhanced", progress=progress, overwrite=True)
    }
    names = [name for name in CONTROLS if name in script_args.controls]
    vectors |= write_controls(
        folder,
        data.catalogue,
        vectors["enhanced"],
        model.item_vectors,
        groups,
        training_args.seed,
        names,
        overwrite=True,
    )
    if "text" in script_args.controls:
        cache = folder / ".text"
        text = encode_items(
            script_args.llm, data.catalogue, cache, script_args.template, revision=script_args.llm_revision,
            device=model.encoder.device, progress=progress,
        )  # fmt: skip
        if run.is_main:
            shutil.rmtree(folder / "text", ignore_errors=True)
            text.folder.rename(folder / "text")
            shutil.rmtree(cache)
            vectors["text"] = load_item_vectors(folder / "text")
    return vectors


def _record(run: TrainingRun, groups, stage1, stage2, vectors) -> dict[str, Any]:
    from hf_seqrec.evaluation.record import library_versions
    from hf_seqrec.preferences import category_agreement

    script_args = run.script_args
    return {
        "format": 1,
        "method": METHOD,
        "dataset": run.data.name,
        "dataset_fingerprint": run.data.fingerprint,
        "split": run.split.name,
        "seed": run.training_args.seed,
        "llm": Path(script_args.llm).name if Path(script_args.llm).is_dir() else script_args.llm,
        "backbone": Path(script_args.backbone).name,
        "preset": script_args.preset,
        "hyper_parameters": run.hyper_parameters,
        "processes": run.training_args.world_size,
        "groups": {
            "num_groups": groups.num_groups, "normalize": groups.normalize, "inertia": groups.inertia, "silhouette": groups.silhouette,
            "sizes": groups.sizes.tolist(),
        },
        "stage1": stage1,
        "stage2": stage2,
        "agreement": category_agreement(vectors["enhanced"].read("categories"), groups),
        "versions": library_versions(),
    }  # fmt: skip


def _write(run: TrainingRun, record: dict[str, Any]) -> None:
    from hf_seqrec.cards.citations import METHODS

    method, bases = METHODS["hf_seqrec_p2rec"], run.base_models
    card = (
        "---\nlibrary_name: transformers\n"
        + "".join(f"base_model: {base}\n" for base in bases)
        + "tags:\n- hf-seqrec\n- p2rec\n---\n"
    )
    card += (
        f"# {run.output_dir.resolve().name}\n\n{method.name}: {method.summary}. Adapters, projection and head over `{record['llm']}`, made for "
        f"{record['dataset']} (fingerprint `{record['dataset_fingerprint']}`); the language model itself is not in here. It is no "
        "recommender: its enhanced item vectors train one.\n\n```python\nfrom hf_seqrec import P2RecModel\n\n"
        f'model = P2RecModel.from_pretrained("{run.repo_id}")\nmodel.enhance(item_index)  # vectors, groups\n```\n\n'
        f"```bibtex\n{method.citation}\n```\n"
    )
    run.write("README.md", card)
    run.write(RECORD, json.dumps(record, indent=1) + "\n")
    run.write("run.yaml", run.run_file())


def _report(run: TrainingRun, record, vectors) -> None:
    script_args, output_dir = run.script_args, run.output_dir
    shares = ", ".join(f"{name.upper()} {share:.1%}" for name, share in record["agreement"].items())
    print(f"Inferred against k-means groups: {shares}")
    print(f"Vectors: {', '.join(str(one.folder) for one in vectors.values())}. Next:")
    print(
        f"  seqrec train sasrec --dataset {script_args.dataset} --item_features {output_dir} --output_dir sasrec-p2rec"
    )
    if script_args.controls:
        name = script_args.controls[0]
        print(
            f"  seqrec train sasrec --dataset {script_args.dataset} --item_features {output_dir} --control {name} --output_dir "
            f"sasrec-{name}"
        )


def _push(run: TrainingRun, vectors: Path) -> None:
    from hf_seqrec.hub import push_item_vectors, push_p2rec

    print(f"Pushed: {push_p2rec(run.output_dir, run.repo_id, **run.hub_options).commit_url}")
    vectors_repo = run.script_args.vectors_repo or f"{run.repo_id}-vectors"
    print(f"Pushed: {push_item_vectors(vectors, vectors_repo, **run.hub_options).commit_url}")


run = command(METHOD, main, make_parser)


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
