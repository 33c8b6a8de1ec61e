"""Accuracy of the ID backbones on real data: leave-one-out, full ranking, seen items masked and unmasked, several seeds.

First every backbone of a data set named under `tuning` is tuned with the same budget: the stages of `backbones.yaml` one after the
other, each keeping the alternative with the best masked validation NDCG@10 of seed 0; test is not looked at. The trials and the
choice are records too. Then every (data set, backbone, seed) is one run: trained with the settings, selected on masked validation
NDCG@10, evaluated once on test under both seen-item rules, written as two records. A finished trial, or run with these settings, is
skipped, so the command can be stopped and started again; it uses a GPU when there is one.

    python benchmarks/studies/backbones.py                                   # everything that is missing
    python benchmarks/studies/backbones.py --datasets ml-100k --backbones sasrec gru4rec --seeds 0
    python benchmarks/studies/backbones.py --time-limit 540                  # start no run that would likely end later
    python -m hf_seqrec.evaluation.tables benchmarks/records/backbones docs/results.md

The data come from $HF_SEQREC_DATA or ../shared/data beside the project, one folder per data set.
"""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

import torch
import transformers
import yaml

import hf_seqrec.modeling as models
from hf_seqrec.data import leave_one_out, load_recommendation_data
from hf_seqrec.data.files import atomic_path
from hf_seqrec.evaluation import EvaluationRecord, Protocol, RankingEvaluator
from hf_seqrec.trainers import NextItemTrainer, NextItemTrainingArguments


HERE = Path(__file__).parent
RECORDS = HERE.parent / "records" / "backbones"
TUNING = HERE.parent / "records" / "backbone_tuning"
CUTOFFS = (1, 5, 10, 20)
CLASSES = {
    "popularity": "Popularity", "itemitem": "ItemItem", "sasrec": "SASRec", "gru4rec": "GRU4Rec", "bert4rec": "BERT4Rec",
    "caser": "Caser", "nextitnet": "NextItNet", "fmlprec": "FMLPRec", "lightsans": "LightSANs",
}  # fmt: skip


def data_folder() -> Path:
    """Where the data sets lie."""
    folder = Path(os.environ.get("HF_SEQREC_DATA", HERE.parents[1] / ".." / "shared" / "data"))
    if not folder.is_dir():
        raise SystemExit(
            f"no data folder at {folder}; set HF_SEQREC_DATA to a folder with one data set per sub-folder."
        )
    return folder


def settings(study: dict, dataset: str, backbone: str, *chosen: dict) -> tuple[dict, dict]:
    """Model and training settings: `all`, then the backbone's, then the data set's, then the pair's, then what tuning chose."""
    layers = [study["all"], study["backbones"].get(backbone), study["datasets"][dataset].get("all")]
    layers += [study["datasets"][dataset].get(backbone), *chosen]
    merged: tuple[dict, dict] = {}, {}
    for layer in layers:
        for target, part in zip(merged, ("model", "training"), strict=True):
            target.update((layer or {}).get(part) or {})
    return merged


def train(name: str, data, split, seed: int, model_settings: dict, training: dict):
    """A trained recommender and what its training cost."""
    config_class = getattr(models, f"{CLASSES[name]}Config")
    model_class = getattr(models, f"{CLASSES[name]}ForSequentialRecommendation")
    start, cpu = time.perf_counter(), time.process_time()
    if hasattr(model_class, "fit"):
        model = model_class.fit(split.train, data.catalogue.num_items)
        notes = {}
    else:
        transformers.set_seed(seed)
        model = model_class(config_class(num_items=data.catalogue.num_items, **model_settings))
        with tempfile.TemporaryDirectory() as folder:
            arguments = NextItemTrainingArguments(
                folder, seed=seed, save_strategy="best", cutoffs=[10], disable_tqdm=True,
                use_cpu=not torch.cuda.is_available(), **training,
            )  # fmt: skip
            trainer = NextItemTrainer(model, arguments, train_dataset=split.train, eval_dataset=split.validation)
            trainer.train()
        curve = [log["eval_ndcg@10"] for log in trainer.state.log_history if "eval_ndcg@10" in log]
        notes = {"validation_ndcg@10": max(curve), "best_epoch": curve.index(max(curve)) + 1, "epochs": len(curve)}
    notes |= {"train_seconds": time.perf_counter() - start, "train_cpu_seconds": time.process_time() - cpu}
    notes |= {"model": model_settings, "training": training, "device": model.device.type}
    return model, notes


def tune(study: dict, dataset: str, backbone: str, data, split, time_is_up) -> list[dict] | None:
    """The alternatives chosen on validation, one per stage; None if time ran out before."""
    path = TUNING / dataset / f"{backbone}.json"
    trials = json.loads(path.read_text())["trials"] if path.exists() else []
    chosen: list[dict] = []
    for stage in study["stages"]:
        best: tuple[float, dict] = (-1.0, {})
        for alternative in ([{}] if chosen else []) + stage:
            layers = [layer for layer in (*chosen, alternative) if layer]
            known = next((trial for trial in trials if trial["layers"] == layers), None)
            if known is None:
                if time_is_up():
                    return None
                _, notes = train(backbone, data, split, 0, *settings(study, dataset, backbone, *layers))
                known = {"layers": layers} | notes
                trials.append(known)
                with atomic_path(path) as partial:
                    partial.write_text(
                        json.dumps({"dataset": dataset, "backbone": backbone, "trials": trials}, indent=1)
                    )
                value, cost = known["validation_ndcg@10"], known["train_cpu_seconds"]
                print(
                    f"{dataset} {backbone} trial {layers}: validation NDCG@10 {value:.4f}, {cost:.0f} CPU s",
                    flush=True,
                )
            best = max(best, (known["validation_ndcg@10"], alternative), key=lambda pair: pair[0])
        chosen += [best[1]] if best[1] else []
    return chosen


def made_with(path: Path, wanted: dict) -> bool:
    """Whether there is a record, of a run with these settings."""
    return path.exists() and wanted.items() <= json.loads(path.read_text())["notes"].items()


def main() -> None:
    """Run what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    study = yaml.safe_load((HERE / "backbones.yaml").read_text())
    parser.add_argument("--datasets", nargs="+", default=list(study["datasets"]), choices=list(study["datasets"]))
    parser.add_argument("--backbones", nargs="+", choices=list(CLASSES), help="default: those the study names")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--records", type=Path, default=RECORDS)
    parser.add_argument("--time-limit", type=float, default=float("inf"), help="seconds after which no run starts")
    args = parser.parse_args()
    transformers.logging.set_verbosity_error()
    begun = time.monotonic()
    for dataset in args.datasets:
        data = load_recommendation_data(data_folder() / dataset)
        split = leave_one_out(data.sequences)
        for backbone in args.backbones or study["datasets"][dataset]["backbones"]:
            chosen: list[dict] | None = []
            if backbone in study["datasets"][dataset].get("tuning", []):
                chosen = tune(
                    study, dataset, backbone, data, split, lambda: time.monotonic() - begun > args.time_limit
                )
            if chosen is None:
                continue
            model_settings, training = settings(study, dataset, backbone, *chosen)
            for seed in args.seeds[:1] if backbone in ("popularity", "itemitem") else args.seeds:
                stem = args.records / dataset / f"{backbone}-{seed}"
                paths = {rule: stem.with_name(f"{stem.name}-{rule}.json") for rule in ("masked", "unmasked")}
                wanted = {"model": model_settings, "training": training}
                if (
                    all(made_with(path, wanted) for path in paths.values())
                    or time.monotonic() - begun > args.time_limit
                ):
                    continue
                model, notes = train(backbone, data, split, seed, model_settings, training)
                for rule, path in paths.items():
                    protocol = Protocol(
                        split="leave_one_out",
                        part="test",
                        candidates="full",
                        exclude_seen=rule == "masked",
                        cutoffs=CUTOFFS,
                    )
                    result = RankingEvaluator(split.test, data.catalogue.num_items, protocol)(model)
                    record = EvaluationRecord.from_result(
                        result, data, model, name=CLASSES[backbone], seed=seed, notes=notes
                    )
                    path.parent.mkdir(parents=True, exist_ok=True)
                    record.save(path)
                    print(
                        f"{dataset} {CLASSES[backbone]} seed {seed} {rule}: HR@10 {result.metrics['hr@10']:.4f} "
                        f"NDCG@10 {result.metrics['ndcg@10']:.4f} (validation {notes.get('validation_ndcg@10', 0):.4f}, "
                        f"epoch {notes.get('best_epoch', 0)} of {notes.get('epochs', 0)}, "
                        f"{notes['train_cpu_seconds']:.0f} CPU s)",
                        flush=True,
                    )


if __name__ == "__main__":
    main()
