# /// script
# dependencies = ["hf-seqrec"]
# ///
"""The main job from end to end on a simulated world: no download, no GPU, a few minutes.

It builds the demo world, trains SASRec, evaluates it beside popularity, item-item and an untrained model, draws three pictures,
saves the model, loads it again, and recommends films to one viewer.

seqrec demo --output-dir demo-output
"""

import argparse
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


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
    parser.add_argument("--epochs", type=int, default=30, help="Most epochs of training (default: 30).")
    parser.add_argument("--seed", type=int, default=0, help="Seed of world and training (default: 0).")
    return parser


def main(args: argparse.Namespace) -> None:
    """Runs the demo.

    Args:
        args: What `make_parser` parsed.

    Raises:
        FileExistsError: If the output folder holds something and `--overwrite` is missing.
        RuntimeError: If the reloaded model does not give the scores of the one that was saved.
    """
    from hf_seqrec.data.files import atomic_folder, check_writable_folder

    try:
        check_writable_folder(args.output_dir, args.overwrite)
    except FileExistsError as error:
        raise FileExistsError(f"{args.output_dir} is not empty: pass --overwrite or another --output-dir.") from error
    begin = time.perf_counter()
    with atomic_folder(args.output_dir, overwrite=args.overwrite) as folder, _one_thread():
        _run(args, folder)
    print(f"\nDone in {time.perf_counter() - begin:.0f} s. Everything is in {args.output_dir}:")
    for path, what in (
        ("data/", "the simulated data set, in the layout of any other"),
        ("model/", "the recommender: weights, items, code, card"),
        ("records/", "one JSON record per evaluation, with the rank of every viewer's held-out film"),
        ("plots/", "learning curve, NDCG by cut-off, NDCG by viewer activity"),
    ):
        print(f"  {path:<10}{what}")
    print(
        "\nThe same on real data (seqrec data list names the data sets):\n"
        "  seqrec data build movielens --edition 1m --raw-dir raw --output-dir data/ml-1m --download\n"
        "  seqrec train sasrec --dataset data/ml-1m --output_dir sasrec-ml-1m --max_length 200\n"
        '  seqrec recommend sasrec-ml-1m --history "Toy Story (1995)" "Babe (1995)"'
    )


def _run(args: argparse.Namespace, folder: Path) -> None:
    from transformers import set_seed
    from transformers.utils import logging

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

    logging.set_verbosity_error()
    logging.disable_progress_bar()

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
        trainer = _train(sasrec, preset, split, args, folder / "checkpoints")

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
                cutoffs=(1, 2, 5, 10, 20, 50),
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
        _recommend_to_somebody(folder / "model", sasrec, data, split)


def _train(model, preset, split, args, checkpoints: Path) -> Any:
    """Trains in place and returns the trainer."""
    import shutil

    from transformers import PrinterCallback, ProgressCallback

    from hf_seqrec.scripts.reporting import EpochLines
    from hf_seqrec.trainers import NextItemTrainer, NextItemTrainingArguments

    training_args = NextItemTrainingArguments(
        output_dir=str(checkpoints),
        **{**preset.training, "num_train_epochs": args.epochs, "early_stopping_patience": 3},
        seed=args.seed,
        use_cpu=True,
    )
    trainer = NextItemTrainer(model, training_args, train_dataset=split.train, eval_dataset=split.validation)
    trainer.remove_callback(ProgressCallback)
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(EpochLines())
    trainer.train()
    shutil.rmtree(checkpoints)  # the best one is in the model now
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


def _recommend_to_somebody(folder: Path, saved, data, split) -> None:
    """Loads the model as anybody would, checks it against the one in memory, and shows one viewer's recommendations."""
    import torch
    from transformers import AutoModel

    from hf_seqrec.pipelines import pipeline

    loaded = AutoModel.from_pretrained(folder).eval()
    # A viewer with a middling history, so that it fits on the screen.
    row = int(abs(split.test.lengths - 12).argmin())
    watched = split.test.history(row)
    ids = torch.from_numpy(watched).long().unsqueeze(0)
    with torch.inference_mode():
        if not torch.equal(loaded.score(ids), saved.to("cpu").eval().score(ids)):
            raise RuntimeError("the reloaded model gives other scores than the saved one.")
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
