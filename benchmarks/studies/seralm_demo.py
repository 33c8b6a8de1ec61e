"""Does alignment find the knowledge that helps? A controlled proof on the demo world, where it is known which texts are useful.

The metadata of a film are its facts that viewers care about (genre, mood, setting, director) hidden among three times as many technical
notes that nobody cares about (camera, sound, running time). A small language model is trained to write four words of a film's metadata,
any of them. The recommender sees users, films by number and these texts; nobody tells it or the language model which words are facts. Then
both are aligned. Reported per seed, on the test part of leave-one-out with full ranking:

* `base`: SASRec without texts; `unaligned`: trained with fresh texts of the untouched language model at every step; `continued`: the same, then
  trained on for as many steps as alignment takes, with the language model held fixed; `seralm`: aligned language model and recommender;
  `aligned-llm`, `aligned-recommender`: only one of them; `facts`: like `unaligned` on texts of nothing but facts (what is possible at most);
* the share of words that are true facts of their film, of one fresh text per film, before and after;
* `beta=0`: the same alignment without the penalty for half as many steps, and how far it drifts.

    python benchmarks/studies/seralm_demo.py                 # three seeds, under 15 minutes on one CPU thread
    python benchmarks/studies/seralm_demo.py --seeds 0 --steps 60
"""

import argparse
import json
import re
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import transformers
from llm_srec import some_rows
from matplotlib.figure import Figure
from peft import LoraConfig
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, TrainerCallback

from hf_seqrec.data import Catalogue, leave_one_out
from hf_seqrec.data.demo import build_demo_world
from hf_seqrec.data.files import atomic_path
from hf_seqrec.evaluation import Protocol, RankingEvaluator
from hf_seqrec.knowledge import Generator, KnowledgePrompt, Sampling, generate_knowledge
from hf_seqrec.modeling import SASRecConfig, SASRecForSequentialRecommendation
from hf_seqrec.modeling.seralm import SeRALMForSequentialRecommendation
from hf_seqrec.scripts.train_seralm_warmup import reduce_training
from hf_seqrec.trainers import NextItemTrainer, NextItemTrainingArguments
from hf_seqrec.trainers.alignment import AlignmentConfig, AlignmentTrainer


RECORD = Path(__file__).parents[1] / "records" / "seralm_demo.json"
WORDS_PER_TEXT, NOTES_PER_FACT, TEXT_SETS, TRAIN_SHARE = 4, 3, 12, 0.1
NOISE = [f"runtime-{minutes}" for minutes in range(80, 160)] + [
    "anamorphic", "35mm", "70mm", "16mm", "digital", "steadicam", "dolby", "stereo", "mono", "technicolor", "letterbox", "widescreen",
    "4k", "2k", "zoom", "crane", "dolly", "tripod", "squib", "foley", "gaffer", "matte", "greenscreen", "kodak", "fuji", "arri", "red",
    "panavision", "imax", "hdr", "atmos", "dts", "reel", "clapper", "boom", "tungsten", "prime-lens", "wide-lens", "tele-lens", "colour-grade",
]  # fmt: skip
MODEL = {"hidden_size": 32, "max_length": 20, "hidden_dropout_prob": 0.3}
LEARNING_RATE = 3e-3  # of the adapter
PROMPT = KnowledgePrompt("{metadata} :", metadata="title")
SAMPLING = {"max_new_tokens": WORDS_PER_TEXT + 1, "temperature": 1.0}


def facts_of(description: str, genres: list[str]) -> list[str]:
    """The words that say why somebody watches a film."""
    mood = re.search(r"\b[Aa]n? ([\w-]+) (?:[\w ]+?) (?:film|story)\b", description).group(1)
    setting = re.search(r"(?:set in|story from|backdrop of) (.+?)(?:\.|, )", description).group(1)
    name = r"([^\W\d_]+ [^\W\d_]+)"
    director = re.search(rf"Directed by {name},|The film by {name} |{name}'s film |, {name} stages ", description)
    said = [*genres, mood, setting, next(group for group in director.groups() if group)]
    return [re.sub(r"\W+", "-", word).lower() for word in said]


class World:
    """Films, facts and tokenizers of one seed."""

    def __init__(self, seed: int, folder: Path, num_items: int, num_users: int):
        self.folder = folder
        self.data = build_demo_world(folder / "world", seed=seed, num_items=num_items, num_users=num_users)
        # Few users to learn from, many to test on: knowledge matters where data are scarce, and scores are then less noisy.
        self.split = reduce_training(leave_one_out(self.data.sequences), TRAIN_SHARE, seed)
        self.validation = some_rows(self.split.validation, 250)
        table = self.data.catalogue.table
        self.rng = np.random.default_rng([seed, 1])
        self.titles = table["title"].to_pylist()
        self.facts = [
            facts_of(*row) for row in zip(table["description"].to_pylist(), table["genres"].to_pylist(), strict=True)
        ]
        notes = [self.rng.choice(NOISE, NOTES_PER_FACT * len(own), replace=False).tolist() for own in self.facts]
        self.metadata = [
            self.rng.permutation(own + more).tolist() for own, more in zip(self.facts, notes, strict=True)
        ]
        known = [" ".join(words) for words in self.metadata]
        self.catalogue = Catalogue(pa.table({"item_id": table["item_id"], "title": known}))
        facts = sorted({fact for own in self.facts for fact in own})
        self.vocabulary = {word: n for n, word in enumerate(dict.fromkeys(["<pad>", "<eos>", ":", *facts, *NOISE]))}

    def tokenizer(self, around: str | None = None) -> PreTrainedTokenizerFast:
        """One token per word."""
        inner = Tokenizer(models.WordLevel(self.vocabulary, unk_token="<eos>"))
        inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        if around:
            inner.post_processor = processors.TemplateProcessing(single=around, special_tokens=[("<eos>", 1)])
        return PreTrainedTokenizerFast(
            tokenizer_object=inner, pad_token="<pad>", eos_token="<eos>", padding_side="left"
        )

    def text(self, item: int, words: list[list[str]]) -> str:
        """Words of a film in random order; `item` counts from 0."""
        return " ".join(self.rng.permutation(words[item])[:WORDS_PER_TEXT])

    def useful(self, texts: list[str]) -> float:
        """Share of words that are facts of their film; a fact about another film is none."""
        hits = [word in self.facts[item] for item, text in enumerate(texts) for word in text.split()]
        return float(np.mean(hits)) if hits else 0.0


def train_llm(world: World, steps: int, seed: int) -> Path:
    """A language model that writes any words of the metadata it is shown: fresh texts at every step."""
    torch.manual_seed(seed)
    tokenizer = world.tokenizer()
    llm = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(world.vocabulary), hidden_size=64, intermediate_size=128, num_hidden_layers=1, num_attention_heads=4, initializer_range=0.1, tie_word_embeddings=True,
            max_position_embeddings=64, pad_token_id=0, eos_token_id=1, bos_token_id=None,
        )
    )  # fmt: skip
    optimizer = torch.optim.AdamW(llm.parameters(), lr=5e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, total_steps=steps)
    for _ in range(steps):
        items = world.rng.integers(0, len(world.titles), 128)
        prompts = [f"{' '.join(world.metadata[item])} :" for item in items]
        texts = [f"{world.text(item, world.metadata)} <eos>" for item in items]
        batch = tokenizer([f"{p} {t}" for p, t in zip(prompts, texts, strict=True)], return_tensors="pt", padding=True)
        labels = batch.input_ids.clone()
        labels[:, : -WORDS_PER_TEXT - 1] = -100
        loss = llm(input_ids=batch.input_ids, attention_mask=batch.attention_mask, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    folder = world.folder / "llm"
    llm.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_encoder(world: World, seed: int) -> Path:
    """A text encoder with random weights, frozen: the recommender learns what the words are worth, the words are just different."""
    torch.manual_seed(seed + 100)
    encoder = BertModel(
        BertConfig(
            vocab_size=len(world.vocabulary), hidden_size=128, intermediate_size=128, num_hidden_layers=1, num_attention_heads=2,
            max_position_embeddings=32, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        ),
        add_pooling_layer=False,
    )  # fmt: skip
    encoder.save_pretrained(world.folder / "encoder")
    world.tokenizer("$A <eos>").save_pretrained(world.folder / "encoder")
    return world.folder / "encoder"


def ndcg(model, world: World) -> float:
    """NDCG@10 on the test part."""
    protocol = Protocol(part="test", candidates="full", exclude_seen=True, cutoffs=(10,))
    return float(RankingEvaluator(world.split.test, len(world.titles), protocol)(model).metrics["ndcg@10"])


class FreshTexts(TrainerCallback):
    """Other texts of all films at every step, so that a recommender learns what words mean and not which film has which text."""

    def __init__(self, model, vectors: torch.Tensor, seed: int):
        self.model, self.vectors, self.rng = model, vectors, np.random.default_rng(seed)

    def give(self, number: int) -> None:
        """Store one set of vectors."""
        self.model.set_knowledge(torch.arange(1, self.vectors.shape[1] + 1), self.vectors[number])

    def on_step_begin(self, args, state, control, **kwargs):
        """All sets but the first, which is for evaluations."""
        self.give(int(self.rng.integers(1, len(self.vectors))))

    def on_step_end(self, args, state, control, **kwargs):
        """The first set, in case an evaluation follows."""
        if state.global_step % args.eval_steps == 0:
            self.give(0)


def fit(model, world: World, seed: int, name: str, steps: int, fresh: FreshTexts | None = None) -> None:
    """Next-item training, the best of its evaluations on validation."""
    args = NextItemTrainingArguments(
        str(world.folder / name), seed=seed, max_steps=steps, per_device_train_batch_size=32, learning_rate=1e-3,
        lr_scheduler_type="constant", eval_strategy="steps", eval_steps=20, save_strategy="steps", save_steps=20, early_stopping_patience=5,
        disable_tqdm=True, use_cpu=True, optim="adamw_torch",
    )  # fmt: skip
    trainer = NextItemTrainer(model, args, train_dataset=world.split.train, eval_dataset=world.validation)
    trainer.remove_callback(transformers.PrinterCallback)
    if fresh is not None:
        trainer.add_callback(fresh)
    trainer.train()


def texts_of(llm, world: World, seed: int) -> list[list[str]]:
    """Sets of fresh texts, one text per film in each."""
    generator = Generator.from_model(llm, world.tokenizer())
    return [
        generate_knowledge(
            generator, world.catalogue, world.folder / "cache", PROMPT, Sampling(**SAMPLING, seed=1000 * seed + number), progress=False
        ).texts
        for number in range(TEXT_SETS)
    ]  # fmt: skip


def give(recommender, texts: list[str]) -> None:
    """Store the vectors of texts."""
    vectors = recommender.encode_all(recommender.tokenize(texts))
    recommender.set_knowledge(torch.arange(1, len(texts) + 1), vectors)


def warm(world: World, encoder: Path, sets: list[list[str]], seed: int, name: str, steps: int):
    """A recommender that has learned to read such texts."""
    transformers.set_seed(seed)
    config = SASRecConfig(num_items=len(world.titles), data_fingerprint=world.data.fingerprint, **MODEL)
    model = SeRALMForSequentialRecommendation.from_parts(config, encoder, max_text_tokens=16, fusion="add")
    model.start_from(model.encode_all(model.tokenize(sets[0])))
    vectors = torch.stack([model.encode_all(model.tokenize(texts)) for texts in sets])
    fit(model, world, seed, name, steps, FreshTexts(model, vectors, seed))
    give(model, sets[0])
    return model


def ndcg_with(model, world: World, sets: list[list[str]]) -> float:
    """NDCG@10 on the test part, the mean over three sets of texts."""
    scores = []
    for texts in sets[:3]:
        give(model, texts)
        scores.append(ndcg(model, world))
    give(model, sets[0])
    return float(np.mean(scores))


class Watch(TrainerCallback):
    """Notes the penalty's distance and the entropy as training goes on."""

    def __init__(self):
        self.rows: list[dict[str, float]] = []

    def on_log(self, args, state, control, logs=None, **kwargs):
        """Keeps what the plot needs."""
        if logs and "ratio/mean" in logs:
            keep = ("kl/text", "entropy", "texts/different", "ratio/mean", "recommender/loss")
            self.rows.append({"step": state.global_step, **{name: logs[name] for name in keep if name in logs}})


def align(world: World, llm: Path, recommender, frozen, texts, seed: int, steps: int, beta: float, **options: Any):
    """The trainer after its run, and what was logged."""
    watch = Watch()
    args = AlignmentConfig(
        str(world.folder / "aligned"), seed=seed, max_steps=steps, per_device_train_batch_size=32, num_generations=6,
        baseline="leave_one_out", beta=beta, learning_rate=LEARNING_RATE, lr_scheduler_type="constant_with_warmup", warmup_steps=10,
        max_completion_length=WORDS_PER_TEXT + 1, target_probability=0.5, recommender_learning_rate=3e-4, logging_steps=10,
        save_strategy="no", disable_tqdm=True, use_cpu=True, advantage_min=-4.0, **options,
    )  # fmt: skip
    tokenizer = world.tokenizer()
    trainer = AlignmentTrainer(
        str(llm), recommender, frozen, world.split.train, PROMPT.render(world.catalogue), texts, args,
        data_fingerprint=world.data.fingerprint, processing_class=tokenizer, callbacks=[watch],
        peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear"),
    )  # fmt: skip
    trainer.remove_callback(transformers.PrinterCallback)
    try:
        trainer.train()
    except (
        ValueError
    ) as error:  # without the penalty a language model may end up writing nothing, which stops the training
        watch.rows.append({"step": trainer.state.global_step, "stopped": str(error)})
    return trainer, watch.rows


def copy_of(recommender, world: World):
    """The same weights in another object."""
    folder = world.folder / "copy"
    recommender.save_pretrained(folder)
    return SeRALMForSequentialRecommendation.from_pretrained(folder, text_encoder=True)


def run(seed: int, args: argparse.Namespace) -> dict:
    """All arms of one seed."""
    begin = time.process_time()
    seconds: dict[str, float] = {}

    def lap(name: str) -> None:
        seconds[name] = round(time.process_time() - begin - sum(seconds.values()), 1)
        print(f"seed {seed}: {name} took {seconds[name]} CPU s", flush=True)

    with tempfile.TemporaryDirectory() as temporary:
        world = World(seed, Path(temporary), args.items, args.users)
        llm, encoder = train_llm(world, args.llm_steps, seed), write_encoder(world, seed)
        unaligned = texts_of(LlamaForCausalLM.from_pretrained(llm), world, seed)
        found = {"useful_before": world.useful(unaligned[0])}
        lap("language model")
        transformers.set_seed(seed)
        base = SASRecForSequentialRecommendation(
            SASRecConfig(num_items=len(world.titles), data_fingerprint=world.data.fingerprint, **MODEL)
        )
        fit(base, world, seed, "base", args.recommender_steps)
        warmed = warm(world, encoder, unaligned, seed, "unaligned", args.recommender_steps)
        perfect = [[world.text(i, world.facts) for i in range(len(world.titles))] for _ in range(TEXT_SETS)]
        ideal = warm(world, encoder, perfect, seed, "facts", args.recommender_steps)
        scores = {
            "base": ndcg(base, world),
            "unaligned": ndcg_with(warmed, world, unaligned),
            "facts": ndcg_with(ideal, world, perfect),
        }
        lap("recommenders")

        def aligned_by(beta: float, steps: int = args.steps, **options: Any):
            recommender = copy_of(warmed, world)
            trainer, rows = align(world, llm, recommender, base, unaligned[0], seed, steps, beta, **options)
            try:
                texts = texts_of(trainer.model.merge_and_unload().eval(), world, seed)
            except ValueError:  # it writes nothing any more, which is a result too
                texts = [[""] * len(world.titles)] * TEXT_SETS
            return recommender, texts, rows

        control, _, _ = aligned_by(0.0, train_llm=False)
        scores["continued"] = ndcg_with(control, world, unaligned)
        lap("continued")
        recommender, aligned, curve = aligned_by(args.beta)
        found["useful_after"] = world.useful(aligned[0])
        scores["seralm"] = ndcg_with(recommender, world, aligned)
        scores["aligned-recommender"] = ndcg_with(recommender, world, unaligned)
        scores["aligned-llm"] = ndcg_with(warmed, world, aligned)
        lap("alignment")
        # So small that it penalises nothing, but the distance is still measured.
        free, loose, drift = aligned_by(1e-9, args.steps // 2)
        scores["seralm, beta=0"] = ndcg_with(free, world, loose)
        found["useful_after, beta=0"] = world.useful(loose[0])
        lap("alignment, beta=0")
        sets = {"before": unaligned[0], "after": aligned[0], "beta=0": loose[0]}
        examples = [{"facts": world.facts[i], **{name: texts[i] for name, texts in sets.items()}} for i in range(5)]
    return {
        "seed": seed, "ndcg@10": scores, **found, "curve": curve, "curve, beta=0": drift, "seconds": seconds, "examples": examples,
        "distinct": {name: len(set(texts)) for name, texts in sets.items()},
    }  # fmt: skip


def plot(runs: list[dict], beta: float, path: Path) -> None:
    """Distance from the original language model and entropy, with and without the penalty."""
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    for axis, name, label in zip(
        figure.subplots(1, 2), ("kl/text", "entropy"), ("KL per text (nats)", "entropy per word (nats)"), strict=True
    ):
        for one in runs:
            for key, colour in (("curve", "C0"), ("curve, beta=0", "C3")):
                rows = [row for row in one[key] if name in row]
                said = f"beta={beta:g}" if key == "curve" else "beta=0"
                axis.plot(
                    [r["step"] for r in rows], [r[name] for r in rows], colour, label=said if one is runs[0] else None
                )
        axis.set_xlabel("step")
        axis.set_ylabel(label)
        axis.legend(frameon=False)
    figure.savefig(path, dpi=120)


def main() -> None:
    """All seeds, the record, the plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--items", type=int, default=500)
    parser.add_argument("--users", type=int, default=1000)
    parser.add_argument("--llm-steps", type=int, default=450)
    parser.add_argument("--recommender-steps", type=int, default=400)
    parser.add_argument("--steps", type=int, default=200, help="of alignment")
    parser.add_argument("--beta", type=float, default=0.03)
    parser.add_argument("--record", type=Path, default=RECORD)
    args = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(1)
    begin, cpu, runs = time.perf_counter(), time.process_time(), []
    for seed in args.seeds:
        runs.append(run(seed, args))
        one = runs[-1]
        print(
            f"seed {seed}: useful words {one['useful_before']:.3f} -> {one['useful_after']:.3f} (beta=0: "
            f"{one['useful_after, beta=0']:.3f}); NDCG@10 "
            + ", ".join(f"{name} {value:.4f}" for name, value in one["ndcg@10"].items())
            + f"; {one['seconds']}",
            flush=True,
        )
        for example in one["examples"][:3]:
            print("   ", example, flush=True)
        write(args, runs, time.perf_counter() - begin, time.process_time() - cpu)


def write(args: argparse.Namespace, runs: list[dict], wall: float, cpu: float) -> None:
    """The record and the plot of the seeds so far."""
    settings = {key: value for key, value in vars(args).items() if key != "record"}
    record = {
        "settings": settings, "wall_seconds": wall, "cpu_seconds": cpu, "runs": runs,
    }  # fmt: skip
    args.record.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(args.record) as path:
        Path(path).write_text(json.dumps(record, indent=1))
    plot(runs, args.beta, args.record.with_suffix(".png"))


if __name__ == "__main__":
    main()
