"""Who needs the order of a history? LLM-SRec, its baselines and their teacher, trained or tested on shuffled sequences.

Two runs per (data set, method, seed) with the settings of `llm_srec.yaml`: one on the original training sequences, tested on original and
on shuffled histories (the last 10 items, all that a prompt shows), and one on training sequences that were shuffled once, tested on
the original ones. The paper does not say whether the teacher of that run is trained on shuffled sequences too: here it is, unless
`--original-teacher` says otherwise. Everything is ranked over the whole catalogue without seen
items. Finished runs are skipped and an interrupted one goes on from its last checkpoint, so the command can be stopped and
started again. Runs on original sequences also leave the records of `llm_srec.py`, which then skips them; do not run both at once.

    python benchmarks/studies/llm_srec_order.py --reduced                       # one seed, fewer users and steps
    python benchmarks/studies/llm_srec_order.py --reduced --time-limit 540      # in parts of ten minutes, until it prints the table
    python benchmarks/studies/llm_srec_order.py --datasets ml-1m --methods llm-srec collm --seeds 0 1 2

The last lines are the table, which is also written to `order.md` beside the records.
"""

import shutil
import time
from dataclasses import replace

import transformers
from backbones import data_folder
from llm_srec import (
    CUTOFFS,
    RECORDS,
    TEACHER,
    evaluate,
    read_arguments,
    some_rows,
    stored_candidates,
    train_llm,
    train_teacher,
)

from hf_seqrec.data import leave_one_out, load_recommendation_data
from hf_seqrec.evaluation import EvaluationRecord
from hf_seqrec.evaluation.diagnostic_results import ShuffleDiagnostic
from hf_seqrec.evaluation.diagnostics import SequenceDiagnostics, compare_shuffled_training, shuffle_training


METHODS = (TEACHER, "tallrec", "llara", "collm", "a-llmrec", "llm-srec")
LAST = 10  # the most that a prompt shows; longer shuffles would also exchange the items that a model sees
SHUFFLES = (0, 1, 2)


def run(study, args, dataset, method, seed, deadline) -> bool:
    """What is missing of one (data set, method, seed); False when the time was over before its end."""
    records = args.records / dataset
    paths = {
        kind: records / f"{method}-{seed}-{kind}.json" for kind in ("original", "inference", "shuffled", "training")
    }
    if all(path.exists() for path in paths.values()):
        return True
    data = load_recommendation_data(data_folder() / dataset)
    split = leave_one_out(data.sequences)
    rows = some_rows(split.test, study["reduced"]["test_users"] if args.reduced else None)
    validation = some_rows(split.validation, study["reduced"]["validation_users"] if args.reduced else None)
    name = study["methods"][method]["name"]
    for order in ("original", "shuffled"):
        if paths[order].exists():
            continue
        trained_on = replace(split if order == "original" else shuffle_training(split, seed), test=rows)
        keep_teacher = order == "original" or (args.original_teacher and method != TEACHER)
        suffixes = ["" if plain else "-shuffled" for plain in (keep_teacher, order == "original")]
        work = args.work / dataset
        model, notes = train_teacher(
            study, dataset, TEACHER, data, split if keep_teacher else trained_on, validation, seed,
            work / f"{TEACHER}-{seed}{suffixes[0]}", deadline, args.reduced,
        )  # fmt: skip
        folder = work / f"{method}-{seed}{suffixes[1]}{'-original-teacher' * args.original_teacher}"
        if notes is not None and method != TEACHER:
            teacher = None if method == "tallrec" else model
            model, notes = train_llm(
                study, dataset, method, data, trained_on, validation, teacher, args.llm, seed, folder, deadline, args.reduced
            )  # fmt: skip
        if notes is None:
            return False
        measured = SequenceDiagnostics(model, data, trained_on, cutoffs=CUTOFFS, name=name, seed=seed)
        if order == "original":
            measured.shuffled_inference(SHUFFLES, LAST).save(paths["inference"])
            usual = {
                kind: args.usual_records / dataset / f"{method}-{seed}-{kind}.json" for kind in ("masked", "sampled99")
            }
            if not all(path.exists() for path in usual.values()):
                candidates = stored_candidates(
                    args.usual_records / dataset / "candidates-99.parquet", rows, data.catalogue.num_items
                )
                evaluate(model, data, rows, candidates, name, seed, notes, usual)
        measured.record().save(paths[order])
        if method != TEACHER:
            shutil.rmtree(folder)
    original, shuffled = (EvaluationRecord.load(paths[order]) for order in ("original", "shuffled"))
    # The hash of a configuration covers its teacher's weights; settings are the same in both runs.
    shuffled = replace(shuffled, config_hash=original.config_hash)
    compare_shuffled_training(original, shuffled).save(paths["training"])
    return True


def finished(records, dataset, method, seed) -> bool:
    """Whether both comparisons of a run are there."""
    return all((records / dataset / f"{method}-{seed}-{kind}.json").exists() for kind in ("training", "inference"))


def table(study, args, runs, metric: str = "ndcg@10") -> str:
    """Markdown: each run's value, and what shuffling changes, with the 95 % interval of the difference."""
    lines = [
        f"| data set | method | seed | {metric} | trained on shuffled | change | 95 % of the difference | tested on shuffled | change "
        "| 95 % of the difference | cosine |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for dataset, method, seed in runs:
        cells = [dataset, study["methods"][method]["name"], str(seed)]
        found = [
            ShuffleDiagnostic.load(args.records / dataset / f"{method}-{seed}-{kind}.json")
            for kind in ("training", "inference")
        ]
        cells.append(f"{found[0].comparison(metric).first:.4f}")
        for one in (result.comparison(metric) for result in found):
            ratio = "–" if one.relative_gain is None else f"{one.relative_gain:+.1%}"
            cells += [f"{one.second:.4f}", ratio, f"[{one.low:+.4f}, {one.high:+.4f}]"]
        cells.append(f"{found[1].similarity.mean:.3f}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Run what is missing, then print the table of what is there."""
    options = {
        "--original-teacher": {"action": "store_true", "help": "shuffle for the methods, not for their teacher"}
    }
    study, args = read_arguments(__doc__, RECORDS.with_name("llm_srec_order"), METHODS, options)
    kind = "reduced" if args.reduced else "full"
    # Records of runs on original sequences go where llm_srec.py looks for them.
    args.usual_records, args.work = args.records.with_name("llm_srec") / kind, args.work / kind
    args.records = args.records / (f"{kind}-original-teacher" if args.original_teacher else kind)
    deadline = time.monotonic() + args.time_limit
    runs = [
        (dataset, method, seed)
        for dataset in args.datasets
        for seed in args.seeds or ([0] if args.reduced else [0, 1, 2])
        for method in args.methods
    ]
    done = []
    for one in runs:
        begin = time.monotonic()
        if begin > deadline or not run(study, args, *one, deadline):
            print("time is over; start again to go on.")
            break
        done.append(one)
        print(*one, f"{time.monotonic() - begin:.0f} s", flush=True)
    if done:
        print(table(study, args, done))
        # The file shows every finished run, whatever this command was asked for.
        every = [(dataset, method, seed) for dataset in study["datasets"] for seed in (0, 1, 2) for method in METHODS]
        text = table(study, args, [one for one in every if finished(args.records, *one)])
        (args.records / "order.md").write_text(f"Generated by benchmarks/studies/llm_srec_order.py.\n\n{text}\n")


if __name__ == "__main__":
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    main()
