"""Does alignment find the knowledge that helps? A controlled proof on the demo world, where it is known which texts are useful.

A small language model is trained to know the films of a demo world: about a title it writes four words, of which about one in four is
a fact that viewers care about (genre, mood, setting, director) and the others are technical notes that nobody cares about (camera,
sound, running time). The recommender sees users, titles by number and these texts; nobody tells either which words are facts. Then
both are aligned. Reported per seed, on the test part of leave-one-out with full ranking:

* `base`: SASRec without texts; `unaligned`: with the texts of the untouched language model; `continued`: the same, with the recommender
  trained on fresh unaligned texts for as many steps as alignment takes (`train_llm` off); `seralm`: aligned language model and
  recommender; `aligned-llm`, `aligned-recommender`: only one of them; `facts`: texts of nothing but facts (what is possible at most);
* the share of words that are true facts of their film, of one fresh text per film, before and after;
* `beta=0`: the same alignment without the penalty, and how far it drifts.

    python benchmarks/studies/seralm_demo.py                 # three seeds, under 15 minutes on one CPU thread
    python benchmarks/studies/seralm_demo.py --seeds 0 --steps 60
"""

import argparse
import json
import re
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
import transformers
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
from hf_seqrec.trainers import NextItemTrainer, NextItemTrainingArguments
from hf_seqrec.trainers.alignment import AlignmentConfig, AlignmentTrainer


RECORD = Path(__file__).parents[1] / "records" / "seralm_demo.json"
WORDS_PER_TEXT, FACT_SHARE = 4, 0.25
NOISE = [f"runtime-{minutes}" for minutes in range(80, 160)] + [
    "anamorphic", "35mm", "70mm", "16mm", "digital", "steadicam", "dolby", "stereo", "mono", "technicolor", "letterbox", "widescreen",
    "4k", "2k", "zoom", "crane", "dolly", "tripod", "squib", "foley", "gaffer", "matte", "greenscreen", "kodak", "fuji", "arri", "red",
    "panavision", "imax", "hdr", "atmos", "dts", "reel", "clapper", "boom", "tungsten", "prime-lens", "wide-lens", "tele-lens", "colour-grade",
]  # fmt: skip
MODEL = {"hidden_size": 32, "max_length": 20, "hidden_dropout_prob": 0.3}
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
        self.split = leave_one_out(self.data.sequences)
        table = self.data.catalogue.table
        # A title is one word of the language model, which has to remember what it stands for.
        self.titles = [re.sub(r"\W+", "-", title).lower() for title in table["title"].to_pylist()]
        self.facts = [
            facts_of(*row) for row in zip(table["description"].to_pylist(), table["genres"].to_pylist(), strict=True)
        ]
        # The recommender's side is told no more than item ids and titles.
        self.catalogue = Catalogue(pa.table({"item_id": table["item_id"], "title": self.titles}))
        facts = sorted({fact for own in self.facts for fact in own})
        self.vocabulary = {
            word: n for n, word in enumerate(dict.fromkeys(["<pad>", "<eos>", ":", *facts, *NOISE, *self.titles]))
        }
        self.rng = np.random.default_rng([seed, 1])

    def tokenizer(self, around: str | None = None) -> PreTrainedTokenizerFast:
        """One token per word."""
        inner = Tokenizer(models.WordLevel(self.vocabulary, unk_token="<eos>"))
        inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        if around:
            inner.post_processor = processors.TemplateProcessing(single=around, special_tokens=[("<eos>", 1)])
        return PreTrainedTokenizerFast(
            tokenizer_object=inner, pad_token="<pad>", eos_token="<eos>", padding_side="left"
        )

    def text(self, item: int, fact_share: float = FACT_SHARE) -> str:
        """A text as the language model learns to write it; `item` counts from 0."""
        words = [
            self.rng.choice(self.facts[item]) if self.rng.random() < fact_share else self.rng.choice(NOISE)
            for _ in range(WORDS_PER_TEXT)
        ]
        return " ".join(words)

    def useful(self, texts: list[str]) -> float:
        """Share of words that are facts of their film; a fact about another film is none."""
        hits = [word in self.facts[item] for item, text in enumerate(texts) for word in text.split()]
        return float(np.mean(hits)) if hits else 0.0


def train_llm(world: World, steps: int, seed: int) -> Path:
    """A language model that has read about the films: fresh texts at every step."""
    torch.manual_seed(seed)
    tokenizer = world.tokenizer()
    llm = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(world.vocabulary), hidden_size=64, intermediate_size=128, num_hidden_layers=1, num_attention_heads=4,
            max_position_embeddings=32, pad_token_id=0, eos_token_id=1, bos_token_id=None,
        )
    )  # fmt: skip
    optimizer = torch.optim.AdamW(llm.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=steps)
    for _ in range(steps):
        items = world.rng.integers(0, len(world.titles), 128)
        prompts = [f"{world.titles[item]} :" for item in items]
        texts = [f"{world.text(item)} <eos>" for item in items]
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


def fit(model, world: World, seed: int, name: str, steps: int) -> None:
    """Next-item training, the best of its evaluations on validation."""
    args = NextItemTrainingArguments(
        str(world.folder / name), seed=seed, max_steps=steps, per_device_train_batch_size=32, learning_rate=1e-3,
        lr_scheduler_type="constant", eval_strategy="steps", eval_steps=20, save_strategy="steps", save_steps=20, early_stopping_patience=5,
        disable_tqdm=True, use_cpu=True, optim="adamw_torch",
    )  # fmt: skip
    trainer = NextItemTrainer(model, args, train_dataset=world.split.train, eval_dataset=world.split.validation)
    trainer.remove_callback(transformers.PrinterCallback)
    trainer.train()


def texts_of(llm, tokenizer, world: World, seed: int) -> list[str]:
    """One fresh text per film."""
    generator = Generator.from_model(llm, tokenizer)
    found = generate_knowledge(
        generator, world.catalogue, world.folder / "cache", PROMPT, Sampling(**SAMPLING, seed=seed), progress=False
    )
    return found.texts


def give(recommender, texts: list[str]) -> None:
    """Store the vectors of texts."""
    vectors = recommender.encode_all(recommender.tokenize(texts))
    recommender.set_knowledge(torch.arange(1, len(texts) + 1), vectors)


def warm(world: World, encoder: Path, texts: list[str], seed: int, name: str, steps: int):
    """A recommender that has learned with these texts."""
    transformers.set_seed(seed)
    config = SASRecConfig(num_items=len(world.titles), data_fingerprint=world.data.fingerprint, **MODEL)
    model = SeRALMForSequentialRecommendation.from_parts(config, encoder, max_text_tokens=16, fusion="add")
    model.fit_scale(model.encode_all(model.tokenize(texts)))
    give(model, texts)
    fit(model, world, seed, name, steps)
    return model


class Watch(TrainerCallback):
    """Notes the penalty's distance and the entropy as training goes on."""

    def __init__(self):
        self.rows: list[dict[str, float]] = []

    def on_log(self, args, state, control, logs=None, **kwargs):
        """Keeps what the plot needs."""
        if logs and "kl/text" in logs:
            keep = ("kl/text", "entropy", "texts/different", "ratio/mean", "recommender/loss")
            self.rows.append({"step": state.global_step, **{name: logs[name] for name in keep if name in logs}})


def align(world: World, llm: Path, recommender, frozen, texts, seed: int, steps: int, beta: float, **options):
    """The trainer after its run, and what was logged."""
    watch = Watch()
    args = AlignmentConfig(
        str(world.folder / "aligned"), seed=seed, max_steps=steps, per_device_train_batch_size=64, num_generations=4,
        baseline="leave_one_out", beta=beta, learning_rate=3e-3, lr_scheduler_type="constant_with_warmup", warmup_steps=10,
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
    trainer.train()
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
        plain = LlamaForCausalLM.from_pretrained(llm)
        unaligned = texts_of(plain, world.tokenizer(), world, seed)
        lap("language model")
        transformers.set_seed(seed)
        base = SASRecForSequentialRecommendation(
            SASRecConfig(num_items=len(world.titles), data_fingerprint=world.data.fingerprint, **MODEL)
        )
        fit(base, world, seed, "base", args.recommender_steps)
        warmed = warm(world, encoder, unaligned, seed, "unaligned", args.recommender_steps)
        ideal = warm(
            world,
            encoder,
            [world.text(i, 1.0) for i in range(len(world.titles))],
            seed,
            "facts",
            args.recommender_steps,
        )
        scores = {"base": ndcg(base, world), "unaligned": ndcg(warmed, world), "facts": ndcg(ideal, world)}
        lap("recommenders")
        found = {"useful_before": world.useful(unaligned)}

        control = copy_of(warmed, world)
        align(world, llm, control, base, unaligned, seed, args.steps, 0.0, train_llm=False)
        give(control, unaligned)
        scores["continued"] = ndcg(control, world)
        lap("continued")

        recommender = copy_of(warmed, world)
        trainer, curve = align(world, llm, recommender, base, unaligned, seed, args.steps, args.beta)
        tokenizer = world.tokenizer()
        aligned = texts_of(trainer.model.merge_and_unload().eval(), tokenizer, world, seed)
        give(recommender, aligned)
        found["useful_after"] = world.useful(aligned)
        scores["seralm"] = ndcg(recommender, world)
        give(recommender, unaligned)
        scores["aligned-recommender"] = ndcg(recommender, world)
        give(warmed, aligned)
        scores["aligned-llm"] = ndcg(warmed, world)
        give(warmed, unaligned)
        retrained = warm(world, encoder, aligned, seed, "retrained", args.recommender_steps)
        scores["retrained"] = ndcg(retrained, world)
        lap("alignment")

        free = copy_of(warmed, world)
        trainer, drift = align(world, llm, free, base, unaligned, seed, args.steps, 0.0)
        loose = texts_of(trainer.model.merge_and_unload().eval(), tokenizer, world, seed)
        give(free, loose)
        scores["seralm, beta=0"] = ndcg(free, world)
        found["useful_after, beta=0"] = world.useful(loose)
        lap("alignment, beta=0")
        examples = [[world.titles[i], world.facts[i], unaligned[i], aligned[i], loose[i]] for i in range(5)]
    return {
        "seed": seed, "ndcg@10": scores, **found, "curve": curve, "curve, beta=0": drift, "seconds": seconds, "examples": examples,
        "distinct": {"before": len(set(unaligned)), "after": len(set(aligned)), "beta=0": len(set(loose))},
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
    parser.add_argument("--users", type=int, default=120)
    parser.add_argument("--llm-steps", type=int, default=400)
    parser.add_argument("--recommender-steps", type=int, default=400)
    parser.add_argument("--steps", type=int, default=100, help="of alignment")
    parser.add_argument("--beta", type=float, default=0.05)
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
    settings = {key: value for key, value in vars(args).items() if key != "record"}
    record = {
        "settings": settings, "wall_seconds": time.perf_counter() - begin, "cpu_seconds": time.process_time() - cpu, "runs": runs,
    }  # fmt: skip
    args.record.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(args.record) as path:
        Path(path).write_text(json.dumps(record, indent=1))
    plot(runs, args.beta, args.record.with_suffix(".png"))


if __name__ == "__main__":
    main()
