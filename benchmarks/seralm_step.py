"""What a step of SeRALM's alignment costs in wall time with texts written before it (`sync`), by an older copy (`stale`) and beside it (`async`).

    python benchmarks/seralm_step.py                       # random language model, CPU, one thread for each of trainer and writer
    python benchmarks/seralm_step.py --device cuda --hidden 2048 --layers 16 --texts 256

All modes run in this process one after the other, in turns, on the same language model, data and seed; the first steps of each turn
are left out. `generation` is the time the texts of a step took to write, `wait` the part of it that the trainer stood still for. Asynchronous
generation can at most hide the shorter of writing and training, so the sizes are chosen for both to take about as long.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
import transformers
from peft import LoraConfig
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, TrainerCallback

from hf_seqrec.data import Sequences
from hf_seqrec.data.files import atomic_path
from hf_seqrec.modeling import SASRecConfig, SASRecForSequentialRecommendation
from hf_seqrec.modeling.seralm import SeRALMForSequentialRecommendation
from hf_seqrec.trainers.alignment import MODES, AlignmentConfig, AlignmentTrainer


RECORD = Path(__file__).parent / "records" / "seralm_step.json"
WORDS, ITEMS = 1000, 500


def write_models(folder: Path, args: argparse.Namespace) -> None:
    """A language model and a text encoder with random weights, and their tokenizers of numbered words."""
    torch.manual_seed(0)
    vocabulary = {"<pad>": 0, "<eos>": 1, **{f"w{n}": n + 2 for n in range(WORDS)}}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<eos>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    plain = PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", eos_token="<eos>", padding_side="left")
    llm = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(vocabulary), hidden_size=args.hidden, intermediate_size=3 * args.hidden, num_hidden_layers=args.layers,
            num_attention_heads=8, max_position_embeddings=512, pad_token_id=0, eos_token_id=1, bos_token_id=None,
        )
    )  # fmt: skip
    llm.save_pretrained(folder / "llm")
    plain.save_pretrained(folder / "llm")
    encoder = BertModel(
        BertConfig(
            vocab_size=len(vocabulary), hidden_size=64, intermediate_size=128, num_hidden_layers=1, num_attention_heads=2,
            max_position_embeddings=512,
        )
    )  # fmt: skip
    encoder.save_pretrained(folder / "encoder")
    inner.post_processor = processors.TemplateProcessing(single="$A <eos>", special_tokens=[("<eos>", 1)])
    PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", eos_token="<eos>").save_pretrained(
        folder / "encoder"
    )


class Clock(TrainerCallback):
    """Wall time between the ends of optimizer steps."""

    def __init__(self):
        self.ends: list[float] = []

    def on_step_end(self, args, state, control, **kwargs):
        """Notes the time, after the device has finished."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.ends.append(time.perf_counter())


def steps(folder: Path, mode: str, args: argparse.Namespace, turn: int) -> dict[str, list[float]]:
    """Seconds of the steps of one turn."""
    generator = np.random.default_rng(turn)
    users, length = max(200, args.texts), 21
    sequences = Sequences(
        generator.integers(1, ITEMS + 1, users * length), np.arange(users + 1) * length, None,
        pa.array([f"u{n}" for n in range(users)]),
    )  # fmt: skip
    transformers.set_seed(turn)
    backbone = SASRecConfig(num_items=ITEMS, hidden_size=64, max_length=20)
    recommender = SeRALMForSequentialRecommendation.from_parts(backbone, folder / "encoder", max_text_tokens=128)
    recommender.set_knowledge(torch.arange(1, ITEMS + 1), torch.randn(ITEMS, 64))
    frozen = SASRecForSequentialRecommendation(SASRecConfig(num_items=ITEMS, hidden_size=64, max_length=20))
    config = AlignmentConfig(
        str(folder / "out"), per_device_train_batch_size=args.texts, max_completion_length=args.tokens, generation_mode=mode,
        refresh_interval=args.refresh_interval, max_steps=args.skip + args.steps, save_strategy="no", logging_steps=1, disable_tqdm=True,
        use_cpu=args.device == "cpu", learning_rate=1e-5, seed=turn, generation_kwargs={"suppress_tokens": [1]},
    )  # fmt: skip
    clock = Clock()
    trainer = AlignmentTrainer(
        str(folder / "llm"), recommender, frozen, sequences, [f"w{n} w{n + 1} w{n + 2}" for n in range(ITEMS)], ["w1"] * ITEMS,
        config, callbacks=[clock], peft_config=LoraConfig(r=8, target_modules="all-linear"),
    )  # fmt: skip
    trainer.remove_callback(transformers.PrinterCallback)
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "step_time" in entry][args.skip :]
    told = {"step": np.diff(clock.ends)[args.skip - 1 :].tolist()}
    for key, name in (("generation/seconds", "generation"), ("generation/wait_seconds", "wait"), ("generation/staleness", "staleness")):  # fmt: skip
        told[name] = [entry[key] for entry in logs if key in entry]
    return told


def main() -> None:
    """All modes, several turns, the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--modes", nargs="+", default=list(MODES), choices=MODES)
    parser.add_argument("--hidden", type=int, default=640)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--texts", type=int, default=48, help="per step")
    parser.add_argument("--tokens", type=int, default=24, help="per text")
    parser.add_argument("--refresh-interval", type=int, default=1)
    parser.add_argument("--steps", type=int, default=10, help="measured steps of a turn")
    parser.add_argument("--skip", type=int, default=3, help="first steps of a turn, not measured")
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--record", type=Path, default=RECORD)
    args = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(1)  # for each of the two threads
    found: dict[str, dict[str, list[float]]] = {mode: {} for mode in args.modes}
    with tempfile.TemporaryDirectory() as temporary:
        write_models(Path(temporary), args)
        for turn in range(args.turns):
            for mode in args.modes:
                for name, values in steps(Path(temporary), mode, args, turn).items():
                    found[mode].setdefault(name, []).extend(values)
    summary = {
        mode: {name: round(statistics.median(v), 4) for name, v in told.items() if v} for mode, told in found.items()
    }
    for mode, told in summary.items():
        ratio = summary[args.modes[0]]["step"] / told["step"]
        print(f"{mode}: {told} (median s per step; {ratio:.2f}x {args.modes[0]})")
    settings = {key: value for key, value in vars(args).items() if key != "record"}
    record = {
        "settings": settings, "median_seconds": summary, "seconds": found, "load_average": os.getloadavg(), "cores": os.cpu_count(),
        "device": torch.cuda.get_device_name() if args.device == "cuda" else "cpu", "torch": torch.__version__,
    }  # fmt: skip
    args.record.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(args.record) as path:
        Path(path).write_text(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
