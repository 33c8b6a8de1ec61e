"""Item knowledge: what a language model writes about each item of a catalogue, kept so that nothing is written twice.

`generate_knowledge` asks any generating LLM; each text is stored under a hash of everything it depends on (LLM, commit, adapter,
sampling, seed, prompt with the item's metadata). A killed run goes on where it stopped, a catalogue that grew costs its new items
only, and the texts of another adapter are never taken for these. A folder of finished knowledge holds

```
knowledge.json                            how the texts were made, their number, counts of what had to be handled
knowledge/train-00000-of-00001.parquet    item_id, title, text, status, num_tokens, key
item_vectors.json, vectors/…              r_s of every text, when encoded; every backbone reads it (`--item_features`)
README.md                                 card with both configs, so that `datasets.load_dataset` reads the folder
```
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import yaml
from huggingface_hub import constants, snapshot_download
from tqdm.auto import tqdm
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
)
from transformers.generation import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper
from transformers.utils import cached_file

from hf_seqrec.data import Catalogue
from hf_seqrec.data.files import atomic_folder, atomic_path, check_writable_folder
from hf_seqrec.modeling.llm import llm_kind, resolve_revision
from hf_seqrec.modeling.prompting import UNTITLED
from hf_seqrec.modeling.teacher import teacher_fingerprint

from .item_vectors import content_key, write_item_vectors
from .text_vectors import item_texts


# {metadata} is what is known of the item, {domain} what the items are.
PROMPTS = {
    "describe": "{metadata}\nDescribe this {domain} in a few sentences, then say what kind of people would like it and why.",
    "audience": "{metadata}\nSay in a few sentences what kind of people would like this {domain} and why.",
    "continue": "{metadata}\nThis {domain} is about",
}
STATUS = ("ok", "cut", "repeated", "empty", "no_metadata")
MANIFEST, TEXTS = "knowledge.json", "knowledge/train-00000-of-00001.parquet"
FORMAT = 1  # raise it with every change of how texts are made or cleaned

_TOKEN_BUDGET = {"cpu": 4096, "cuda": 65536}  # prompts and new tokens of one batch together
_LONGEST_LOOP = 40  # words


def default_cache() -> Path:
    """Where texts are kept when no cache is named: `hf_seqrec/knowledge` in the Hub client's home."""
    return Path(constants.HF_HOME) / "hf_seqrec" / "knowledge"


@dataclass(frozen=True)
class Sampling:
    """How texts are drawn.

    Args:
        max_new_tokens: Longest text in tokens of the LLM.
        temperature: 1 is the LLM's own distribution, which alignment trains; 0 always takes the likeliest token.
        top_p: Draw from the likeliest tokens that together have this probability.
        top_k: Draw from this many likeliest tokens; 0 from all.
        repetition_penalty: Divides the score of tokens that were said; 1 does nothing.
        seed: Another seed gives other texts.

    Raises:
        ValueError: A value outside its range.
    """

    max_new_tokens: int = 128
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    seed: int = 0

    def __post_init__(self):
        for name, good in {
            "max_new_tokens": self.max_new_tokens >= 1,
            "temperature": self.temperature >= 0,
            "top_p": 0 < self.top_p <= 1,
            "top_k": self.top_k >= 0,
            "repetition_penalty": self.repetition_penalty > 0,
        }.items():
            if not good:
                raise ValueError(f"`{name}` is {getattr(self, name)}, outside its range.")


@dataclass(frozen=True)
class KnowledgePrompt:
    r"""What the LLM is asked about an item.

    Args:
        template: A name of `PROMPTS`, or a text with `{metadata}` and, if wanted, `{domain}`.
        metadata: What is told of an item: a template of `item_texts`.
        domain: What the items are: product, movie, book, …

    Raises:
        ValueError: A text without `{metadata}`, or with other braces.

    Example:
        >>> import pyarrow as pa
        >>> catalogue = Catalogue(pa.table({"item_id": ["a"], "title": ["Heat"], "genres": [["Crime"]]}))
        >>> KnowledgePrompt("continue", domain="movie").render(catalogue)
        ['Title: Heat. Genres: Crime.\nThis movie is about']
    """

    template: str = "describe"
    metadata: str = "all"
    domain: str = "product"

    def __post_init__(self):
        try:
            said = self.text.format(metadata="\0", domain=self.domain)
        except (KeyError, IndexError, ValueError) as error:
            raise ValueError(
                f"the prompt {self.template!r} may hold {{metadata}} and {{domain}} only ({error!r}); ready prompts are "
                f"{', '.join(PROMPTS)}."
            ) from error
        if "\0" not in said:
            raise ValueError(
                f"the prompt {self.template!r} has no {{metadata}}, so every item would be asked about in the same words; ready "
                f"prompts are {', '.join(PROMPTS)}."
            )

    @property
    def text(self) -> str:
        """The template in words."""
        return PROMPTS.get(self.template, self.template)

    def render(
        self, catalogue: Catalogue, tokenizer: Any = None, max_prompt_tokens: int | None = None
    ) -> list[str | None]:
        """The prompt of each item.

        Args:
            catalogue: The items.
            tokenizer: The LLM's, to cut metadata and to take its special tokens out of item texts.
            max_prompt_tokens: Longest prompt; metadata are cut, the question never. None cuts nothing.

        Returns:
            One prompt per item, None for an item of which nothing is known.

        Raises:
            ValueError: No item has metadata, or the question alone is longer than a prompt may be.
        """
        known = [None if text == UNTITLED else text for text in item_texts(catalogue, self.metadata)]
        if not any(known):
            raise ValueError(
                f"no item of the catalogue has metadata (columns: {', '.join(catalogue.table.column_names)}), so there is nothing "
                "to ask about: give it titles, categories, brands or descriptions."
            )
        said = [_without(text, _special_strings(tokenizer)) for text in known if text is not None]
        if tokenizer is not None and max_prompt_tokens is not None:
            around = len(_prompt_tokens(tokenizer, [self.text.format(metadata="", domain=self.domain)])[0])
            room = max_prompt_tokens - around - 2  # words may be cut at other places inside the prompt
            if room < 4:
                raise ValueError(
                    f"the question alone has {around} tokens of {max_prompt_tokens}: take a shorter prompt, fewer `max_new_tokens`, "
                    "or an LLM that reads more."
                )
            said = [_first_tokens(tokenizer, text, room) for text in said]
        found = iter(said)
        return [None if text is None else self.text.format(metadata=next(found), domain=self.domain) for text in known]


def _first_tokens(tokenizer: Any, text: str, most: int) -> str:
    """The beginning of a text that has at most this many tokens."""
    if not tokenizer.is_fast:
        row = tokenizer(text, add_special_tokens=False, verbose=False).input_ids
        return text if len(row) <= most else tokenizer.decode(row[:most], skip_special_tokens=True)
    spans = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False).offset_mapping
    return text if len(spans) <= most else text[: spans[most - 1][1]].rstrip()


def _special_strings(tokenizer: Any) -> list[str]:
    return [] if tokenizer is None else sorted(set(tokenizer.all_special_tokens), key=len, reverse=True)


def _without(text: str, strings: Sequence[str]) -> str:
    """The text with a space inside each of these strings, which a tokenizer then reads as words."""
    for string in strings:
        if string in text and len(string) > 1:
            text = text.replace(string, f"{string[0]} {string[1:]}")
    return text


def _prompt_tokens(tokenizer: Any, prompts: Sequence[str]) -> list[list[int]]:
    """Tokens of prompts as the LLM expects them: as a user's turn where it has a chat template, else as they are."""
    if getattr(tokenizer, "chat_template", None):
        turns = [[{"role": "user", "content": prompt}] for prompt in prompts]
        texts = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        return tokenizer(texts, add_special_tokens=False, verbose=False).input_ids
    return tokenizer(list(prompts), verbose=False).input_ids


# The language model ------------------------------------------------------------------------------------------------------


class _DrawPerRow(LogitsProcessor):
    """Turns sampling into a function of each row alone: one number per row and step, looked up in the cumulated probabilities.

    With `do_sample` the rows of a batch would share one stream of random numbers, and a text would depend on its company.
    """

    def __init__(self, uniforms: torch.Tensor, sampling: Sampling):
        self.uniforms = uniforms
        self.start: int | None = None
        self.warpers = LogitsProcessorList()
        if sampling.temperature not in (0.0, 1.0):
            self.warpers.append(TemperatureLogitsWarper(float(sampling.temperature)))
        if sampling.top_k:
            self.warpers.append(TopKLogitsWarper(sampling.top_k))
        if sampling.top_p < 1:
            self.warpers.append(TopPLogitsWarper(sampling.top_p))

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.start = input_ids.shape[1] if self.start is None else self.start
        step = input_ids.shape[1] - self.start
        cumulated = self.warpers(input_ids, scores.float()).softmax(-1).double().cumsum(-1)
        drawn = self.uniforms[:, step : step + 1].to(cumulated.device) * cumulated[:, -1:]
        token = torch.searchsorted(cumulated, drawn, right=True).clamp(max=scores.shape[1] - 1)
        return torch.full_like(scores, -torch.inf).scatter(1, token, 0.0)


@dataclass
class Generator:
    """A generating LLM: decoder-only or encoder-decoder, with or without an adapter, in torch or in vLLM.

    Args:
        model: The LLM in evaluation mode, or a `vllm.LLM`.
        tokenizer: Its tokenizer.
        description: What it is: `llm`, `revision`, `adapter`, `dtype`, `engine`; part of every text's key.
        limit: Most tokens of a prompt and its text (encoder-decoder: of each).
    """

    model: Any
    tokenizer: Any
    description: dict[str, Any]
    limit: int
    tokens_generated: int = field(default=0, init=False)

    @classmethod
    def from_model(
        cls, model: PreTrainedModel, tokenizer: Any, description: dict[str, Any] | None = None
    ) -> Generator:
        """A model in memory, known by the hash of its weights.

        Raises:
            TypeError: A model that cannot generate.
        """
        config = model.config
        if not model.can_generate() or llm_kind(config) == "encoder":
            raise TypeError(f"{type(model).__name__} does not generate: take a decoder-only or encoder-decoder LLM.")
        if description is None:
            description = {
                "llm": Path(config.name_or_path).name,
                "revision": teacher_fingerprint(model),
                "adapter": None,
            }
            description |= {"dtype": str(model.dtype).removeprefix("torch."), "engine": "torch"}
        limit = getattr(config, "max_position_embeddings", None) or tokenizer.model_max_length
        return cls(model.eval(), tokenizer, description, int(min(limit, 1 << 15)))

    @property
    def is_encoder_decoder(self) -> bool:
        """Whether prompt and text are in different places and do not share the limit."""
        return self.description["engine"] == "torch" and self.model.config.is_encoder_decoder

    def max_prompt_tokens(self, sampling: Sampling) -> int:
        """Longest prompt that leaves room for a text.

        Raises:
            ValueError: There is no room for a prompt.
        """
        if sampling.max_new_tokens >= self.limit:
            raise ValueError(
                f"{self.description['llm']} holds {self.limit} tokens, a text of `max_new_tokens={sampling.max_new_tokens}` leaves "
                "no room: lower it."
            )
        return self.limit if self.is_encoder_decoder else self.limit - sampling.max_new_tokens

    @torch.inference_mode()
    def write(self, rows: list[list[int]], seeds: list[int], sampling: Sampling) -> list[list[int]]:
        """Texts as tokens, without what follows the end of a text.

        Args:
            rows: Tokens of prompts.
            seeds: One per prompt; the same seed and prompt give the same text in any batch, up to rounding.
            sampling: How to draw.

        Returns:
            Tokens of each text, at most `max_new_tokens`; the end-of-text token stays when there is one.
        """
        if self.description["engine"] == "vllm":
            return self._write_vllm(rows, seeds, sampling)
        model, tokenizer = self.model, self.tokenizer
        settings: GenerationConfig = copy.deepcopy(model.generation_config)
        ends = settings.eos_token_id if settings.eos_token_id is not None else tokenizer.eos_token_id
        ends = [] if ends is None else [ends] if isinstance(ends, int) else list(ends)
        filler = next((t for t in (tokenizer.pad_token_id, settings.pad_token_id, *ends) if t is not None), 0)
        for name, value in {
            "do_sample": False, "num_beams": 1, "temperature": None, "top_p": None, "top_k": None, "max_length": None,
            "max_new_tokens": sampling.max_new_tokens, "min_length": None, "early_stopping": None, "length_penalty": None,
            "repetition_penalty": sampling.repetition_penalty, "eos_token_id": ends or None, "pad_token_id": filler,
            "num_return_sequences": 1, "return_dict_in_generate": False,
        }.items():  # fmt: skip
            setattr(settings, name, value)
        # A text begins right after its prompt, so prompts of decoder-only LLMs are left-padded; positions of an encoder begin at 0.
        width, right = max(map(len, rows)), model.config.is_encoder_decoder
        blanks = [width - len(row) for row in rows]
        ids = [row + [filler] * n if right else [filler] * n + row for row, n in zip(rows, blanks, strict=True)]
        mask = [
            [1] * len(row) + [0] * n if right else [0] * n + [1] * len(row)
            for row, n in zip(rows, blanks, strict=True)
        ]
        draw = LogitsProcessorList()
        if sampling.temperature > 0:
            draws = [
                torch.rand(sampling.max_new_tokens, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
                for seed in seeds
            ]
            draw.append(_DrawPerRow(torch.stack(draws), sampling))
        out = model.generate(
            input_ids=torch.tensor(ids, device=model.device),
            attention_mask=torch.tensor(mask, device=model.device),
            generation_config=settings,
            logits_processor=draw,
        )
        texts = [row[1 if right else width :] for row in out.tolist()]
        texts = [row[: next((i + 1 for i, token in enumerate(row) if token in ends), len(row))] for row in texts]
        self.tokens_generated += sum(map(len, texts))
        return texts

    def _write_vllm(self, rows, seeds, sampling: Sampling) -> list[list[int]]:
        from trl.generation import vllm_generation as engine

        settings = [
            engine.SamplingParams(
                max_tokens=sampling.max_new_tokens, temperature=sampling.temperature, top_p=sampling.top_p, top_k=sampling.top_k,
                repetition_penalty=sampling.repetition_penalty, seed=seed,
            )
            for seed in seeds
        ]  # fmt: skip
        prompts = [{"prompt_token_ids": row} for row in rows]
        found = self.model.generate(prompts, settings, use_tqdm=False)
        texts = [list(one.outputs[0].token_ids) for one in found]
        self.tokens_generated += sum(map(len, texts))
        return texts


def load_generator(
    name_or_path: str | os.PathLike,
    revision: str | None = None,
    adapter: str | os.PathLike | None = None,
    adapter_revision: str | None = None,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device | None = None,
    engine: str = "torch",
) -> Generator:
    """Load an LLM that generates.

    Args:
        name_or_path: Hub id or folder of a decoder-only or encoder-decoder LLM.
        revision: Commit, tag or branch; the commit is what keys the texts.
        adapter: Hub id or folder of an adapter of PEFT, such as the one that alignment trains.
        adapter_revision: Its commit, tag or branch.
        dtype: Of the weights; `auto` is the checkpoint's.
        device: Where it runs; None takes a GPU when there is one.
        engine: `torch`, or `vllm` when it is installed (in a version that TRL supports).

    Returns:
        The [`Generator`].

    Raises:
        ImportError: `engine="vllm"` without vLLM. TypeError: an LLM that does not generate. ValueError: an unknown engine.
        OSError: It cannot be found.

    Example:
        >>> load_generator("meta-llama/Llama-2-7b-chat-hf", adapter="user/seralm-adapter")  # doctest: +SKIP
    """
    if engine not in ("torch", "vllm"):
        raise ValueError(f"`engine` must be 'torch' or 'vllm', got {engine!r}.")
    if engine == "vllm":
        check_vllm()
    name = str(name_or_path)
    revision = resolve_revision(name, revision)
    config = AutoConfig.from_pretrained(name, revision=revision)
    if llm_kind(config) == "encoder":
        raise TypeError(f"{name} is an encoder and does not generate: take a decoder-only or encoder-decoder LLM.")
    tokenizer = AutoTokenizer.from_pretrained(name, revision=revision)
    description: dict[str, Any] = {"llm": Path(name).name if os.path.isdir(name) else name, "engine": engine}
    description["adapter"] = None if adapter is None else adapter_hash(str(adapter), adapter_revision)
    if engine == "vllm":
        return _load_vllm(name, revision, adapter, adapter_revision, tokenizer, config, description, dtype)
    kind = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    model: Any = kind.from_pretrained(name, revision=revision, dtype=dtype)
    # A folder has no commits: what keys its texts is a hash of the weights.
    description["revision"] = teacher_fingerprint(model) if os.path.isdir(name) else revision
    description["dtype"] = str(model.dtype).removeprefix("torch.")
    if adapter is not None:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, str(adapter), revision=adapter_revision).merge_and_unload()
    model = model.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    return Generator.from_model(model, tokenizer, description)


def check_vllm() -> None:
    """Raise an `ImportError` where vLLM is missing, or is of a version that TRL cannot drive."""
    from trl.import_utils import is_vllm_available

    if not is_vllm_available():
        raise ImportError("`engine='vllm'` needs vLLM and a GPU: pip install 'trl[vllm]', or take engine='torch'.")


def _load_vllm(name, revision, adapter, adapter_revision, tokenizer, config, description, dtype) -> Generator:
    from trl.generation import vllm_generation as engine  # TRL's integration, which holds vLLM to versions it knows

    if os.path.isdir(name):
        digest = hashlib.sha256()
        for path in sorted(Path(name).glob("*.safetensors")):
            digest.update(path.read_bytes())
        revision = digest.hexdigest()[:16]
    description |= {"revision": revision, "dtype": str(dtype)}
    limit = getattr(config, "max_position_embeddings", None) or tokenizer.model_max_length
    place = {"model": name, "revision": None if os.path.isdir(name) else revision}
    with tempfile.TemporaryDirectory() as temporary:
        if adapter is not None:
            from peft import PeftModel

            # Merged into the weights: any kind of adapter, and no price per token.
            plain = AutoModelForCausalLM.from_pretrained(**_renamed(place), dtype=dtype)
            PeftModel.from_pretrained(
                plain, str(adapter), revision=adapter_revision
            ).merge_and_unload().save_pretrained(temporary)
            tokenizer.save_pretrained(temporary)
            place = {"model": temporary, "revision": None}
        model = engine.LLM(**place, dtype=str(dtype))
    return Generator(model, tokenizer, description, int(min(limit, 1 << 15)))


def _renamed(place: dict[str, Any]) -> dict[str, Any]:
    return {"pretrained_model_name_or_path": place["model"], "revision": place["revision"]}


def adapter_hash(adapter: str, revision: str | None) -> str:
    """First 16 hexadecimal digits of the sha256 over an adapter's weights and configuration."""
    digest = hashlib.sha256()
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        digest.update(Path(str(cached_file(adapter, file, revision=revision))).read_bytes())
    return digest.hexdigest()[:16]


# Cleaning ----------------------------------------------------------------------------------------------------------------


def clean_text(text: str, complete: bool = True) -> tuple[str, str]:
    """What is worth keeping of a generated text.

    Args:
        text: As decoded, without special tokens.
        complete: Whether the LLM ended it; else it ran into `max_new_tokens`.

    Returns:
        The text on one line, and its status: `ok`; `cut`, over-long, ended after its last whole sentence when that is at
        least half of it; `repeated`, ended where it began to go in circles; `empty`, nothing was said.

    Example:
        >>> clean_text("A heist. It was dark. It was dark. It was dark. It was dark.")
        ('A heist. It was dark.', 'repeated')
        >>> clean_text("A heist in Los Angeles. The pol", complete=False)
        ('A heist in Los Angeles.', 'cut')
    """
    text = " ".join("".join(char if char.isprintable() else " " for char in text).split())
    words = text.split(" ")
    if not any(char.isalnum() for char in text):
        return "", "empty"
    status = "ok"
    stop = _circle(words, _LONGEST_LOOP)
    if stop is not None:
        words, status = words[:stop], "repeated"
    letters = _circle(list(" ".join(words)), 8, times=8)
    text = " ".join(words) if letters is None else " ".join(words)[:letters]
    status = status if letters is None else "repeated"
    if status == "ok" and not complete:
        status = "cut"
        end = max(text.rfind(mark) for mark in ".!?。！？") + 1
        text = text[:end] if 2 * end >= len(text) else text
    return text, status


def _circle(parts: list[str], longest: int, times: int = 3) -> int | None:
    """Where a sequence has said its loop once: the end of the first of at least `times` equal neighbours; None without a loop."""
    codes = np.unique(np.array(parts, dtype=object).astype(str), return_inverse=True)[1]
    found = None
    for period in range(1, min(longest, len(codes) // times) + 1):
        wanted = max(times, 4 if period == 1 else times) - 1  # "very very very" is emphasis
        same = np.concatenate([[False], codes[:-period] == codes[period:], [False]]).astype(np.int8)
        starts, ends = np.flatnonzero(np.diff(same) == 1), np.flatnonzero(np.diff(same) == -1)
        long = starts[ends - starts >= wanted * period]
        if len(long) and (found is None or long[0] + period < found):
            found = int(long[0]) + period
    return found


# Generating --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Knowledge:
    """Texts of a catalogue's items, in its order.

    Attributes:
        table: Columns `item_id`, `title`, `text`, `status`, `num_tokens`, `key`.
        description: How the texts were made.
        folder: Where they were read from; None for texts in memory.
    """

    table: pa.Table
    description: dict[str, Any]
    folder: Path | None = None

    @property
    def texts(self) -> list[str]:
        """One text per item."""
        return self.table["text"].to_pylist()

    @property
    def num_items(self) -> int:
        """Number of items."""
        return self.table.num_rows

    @property
    def key(self) -> str:
        """Hash of the texts and of how they were made."""
        return content_key(self.description, [*self.table["item_id"].to_pylist(), *self.texts])

    @property
    def counts(self) -> dict[str, int]:
        """Items per status, and how many texts differ."""
        found = Counter(self.table["status"].to_pylist())
        return {**{status: found[status] for status in STATUS}, "distinct": len(set(self.texts))}

    def check(self, catalogue: Catalogue) -> None:
        """Refuse knowledge of another catalogue.

        Raises:
            ValueError: Other items, or the same in another order.
        """
        ids = self.table["item_id"].combine_chunks()
        if ids.equals(catalogue.item_ids):
            return
        row = next(
            (
                r
                for r, (a, b) in enumerate(zip(ids.to_pylist(), catalogue.item_ids.to_pylist(), strict=False))
                if a != b
            ),
            min(len(ids), catalogue.num_items),
        )
        raise ValueError(
            f"the knowledge is about {len(ids):,} items, the catalogue has {catalogue.num_items:,}; they differ from row {row} on: "
            "make the knowledge of this catalogue, or add its new items with `seqrec knowledge add`."
        )

    def save(
        self,
        folder: str | os.PathLike,
        vectors: np.ndarray | torch.Tensor | None = None,
        encoder: dict[str, Any] | None = None,
        overwrite: bool = False,
        card: str = "",
    ) -> Path:
        """Write a data set in the Hub layout, whole or not at all.

        Args:
            folder: Where to.
            vectors: (num_items, dim) r_s of the texts.
            encoder: What encoded them.
            overwrite: Whether a folder that holds something is replaced.
            card: Further text of the card.

        Returns:
            The folder.

        Raises:
            FileExistsError: The folder holds something and `overwrite` is off. ValueError: vectors of another number of items.
        """
        folder = Path(folder)
        check_writable_folder(folder, overwrite)
        with atomic_folder(folder, overwrite) as temporary:
            if vectors is not None:
                description = {"kind": "knowledge", "knowledge": self.key, "encoder": encoder}
                write_item_vectors(
                    temporary, self.table["item_id"].combine_chunks(), {"vector": np.asarray(vectors)}, description
                )
            (temporary / TEXTS).parent.mkdir()
            pq.write_table(self.table, temporary / TEXTS, compression="zstd")
            manifest = {"format": FORMAT, "key": self.key, "num_items": self.num_items, "counts": self.counts}
            manifest |= {"description": self.description, "encoder": encoder}
            (temporary / MANIFEST).write_text(json.dumps(manifest, indent=1, ensure_ascii=False), encoding="utf-8")
            (temporary / "README.md").write_text(
                _card(self, folder.resolve().name, vectors, encoder, card), encoding="utf-8"
            )
        return folder


def load_knowledge(
    path_or_repo: str | os.PathLike, revision: str | None = None, token: str | None = None
) -> Knowledge:
    """Open finished knowledge.

    Args:
        path_or_repo: Folder that `Knowledge.save` wrote, or a data set repository on the Hub.
        revision: Branch, tag or commit of the repository.
        token: Hub token of a private repository.

    Returns:
        The knowledge.

    Raises:
        FileNotFoundError: It is no folder of knowledge. ValueError: its texts are not those its manifest was written for.
    """
    folder = Path(path_or_repo)
    if not folder.is_dir() and str(path_or_repo).count("/") == 1 and not str(path_or_repo).startswith((".", "/")):
        folder = Path(snapshot_download(str(path_or_repo), repo_type="dataset", revision=revision, token=token))
    if not (folder / MANIFEST).is_file() or not (folder / TEXTS).is_file():
        raise FileNotFoundError(f"{path_or_repo} holds no knowledge: make it with `seqrec knowledge generate`.")
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    found = Knowledge(pq.read_table(folder / TEXTS), manifest["description"], folder)
    if found.key != manifest["key"]:
        raise ValueError(
            f"the texts of {folder} are not those of its {MANIFEST} (key {found.key}, need {manifest['key']}): download or make "
            "both again."
        )
    return found


def generate_knowledge(
    llm: Generator | str | os.PathLike,
    catalogue: Catalogue,
    cache: str | os.PathLike | None = None,
    prompt: KnowledgePrompt | None = None,
    sampling: Sampling | None = None,
    shard_size: int = 256,
    token_budget: int | None = None,
    progress: bool = True,
) -> Knowledge:
    """Texts about all items, from the cache as far as they are there.

    Args:
        llm: A loaded LLM, or its name.
        catalogue: The items.
        cache: Folder of caches; None for `default_cache()`.
        prompt: What is asked.
        sampling: How texts are drawn.
        shard_size: Texts per file of the cache: what a kill can cost at most.
        token_budget: Tokens of prompts and texts in one batch; None chooses by device.
        progress: Whether to show a bar with items per second.

    Returns:
        The [`Knowledge`]. An item without metadata is not asked about, one about which the LLM said nothing keeps its metadata as
        its text; `counts` says how many.

    Raises:
        ValueError: A catalogue without metadata, an LLM that holds no prompt, or one that says nothing about any item.

    Example:
        >>> knowledge = generate_knowledge("meta-llama/Llama-2-7b-chat-hf", data.catalogue)      # doctest: +SKIP
        >>> knowledge.texts[0]                                                                   # doctest: +SKIP
        'Titanic is a historical romance … It appeals to fans of disaster movies.'
    """
    prompt, sampling = prompt or KnowledgePrompt(), sampling or Sampling()
    if shard_size < 1:
        raise ValueError(f"`shard_size` must be at least 1, got {shard_size}.")
    prompt.render(catalogue)  # a catalogue without metadata is refused before an LLM is loaded
    generator = llm if isinstance(llm, Generator) else load_generator(llm)
    tokenizer = generator.tokenizer
    prompts = prompt.render(catalogue, tokenizer, generator.max_prompt_tokens(sampling))
    settings = {"format": FORMAT, **generator.description, "sampling": asdict(sampling)}
    folder = Path(cache or default_cache()) / content_key(settings, [])
    keys = [content_key({}, [text]) if text is not None else "" for text in prompts]
    known = _read_cache(folder)
    if _distributed():
        torch.distributed.barrier()  # nobody writes before everybody has read: all must agree on what is missing
    wanted = {key: text for key, text in zip(keys, prompts, strict=True) if text is not None and key not in known}
    if wanted:
        _write_settings(folder, settings)
        rows = dict(zip(wanted, _prompt_tokens(tokenizer, list(wanted.values())), strict=True))
        known |= _generate_missing(generator, rows, folder, sampling, shard_size, token_budget, progress, not known)
    metadata = item_texts(catalogue, prompt.metadata)
    columns: dict[str, list] = {"text": [], "status": [], "num_tokens": []}
    for key, fallback in zip(keys, metadata, strict=True):
        text, status, length = known[key] if key else ("", "no_metadata", 0)
        columns["text"].append(text or fallback)
        columns["status"].append(status)
        columns["num_tokens"].append(length)
    table = pa.table({"item_id": catalogue.item_ids, "title": catalogue.titles, **columns, "key": keys})
    description = {**settings, "prompt": asdict(prompt) | {"text": prompt.text}}
    found = Knowledge(table, description)
    if not found.counts["ok"] + found.counts["cut"] + found.counts["repeated"]:
        raise ValueError(_says_nothing(generator, len(keys)))
    return found


def _generate_missing(
    generator: Generator, rows: dict[str, list[int]], folder: Path, sampling: Sampling, shard_size: int,
    token_budget: int | None, progress: bool, is_first: bool,
) -> dict[str, tuple[str, str, int]]:  # fmt: skip
    """Texts of prompts by key, written to the cache shard by shard; with several processes each does its share."""
    distributed = _distributed()
    rank, world = (torch.distributed.get_rank(), torch.distributed.get_world_size()) if distributed else (0, 1)
    device = "cuda" if generator.description["engine"] == "vllm" else generator.model.device.type
    budget = token_budget or _TOKEN_BUDGET.get(device, 8192)
    order = sorted(rows, key=lambda key: (-len(rows[key]), key))
    shards = [order[start : start + shard_size] for start in range(0, len(order), shard_size)]
    found: dict[str, tuple[str, str, int]] = {}
    with tqdm(total=len(order), desc="knowledge", unit="item", disable=not progress or rank != 0, leave=False) as bar:
        for number, shard in enumerate(shards):
            if number % world == rank:
                texts: dict[str, tuple[str, str, int]] = {}
                for batch in _batches(shard, rows, budget, sampling.max_new_tokens):
                    seeds = [_seed(key, sampling.seed) for key in batch]
                    written = generator.write([rows[key] for key in batch], seeds, sampling)
                    texts |= {key: _finish(generator, row, sampling) for key, row in zip(batch, written, strict=True)}
                    bar.update(len(batch))
                if is_first and not found and not any(text for text, _, _ in texts.values()) and len(texts) > 1:
                    raise ValueError(_says_nothing(generator, len(texts)))
                _write_shard(folder, texts)
                found |= texts
    if distributed:
        torch.distributed.barrier()
        found = _read_cache(folder)
    return found


def _distributed() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def _batches(keys: list[str], rows: dict[str, list[int]], budget: int, new: int) -> Iterator[list[str]]:
    """Prompts of similar length, which are sorted, within a budget of tokens."""
    begin = 0
    while begin < len(keys):
        size = max(1, budget // (len(rows[keys[begin]]) + new))
        yield keys[begin : begin + size]
        begin += size


def _seed(key: str, seed: int) -> int:
    """Of one item: the same whatever stands beside it."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{key}".encode()).digest()[:7], "little")


def _finish(generator: Generator, tokens: list[int], sampling: Sampling) -> tuple[str, str, int]:
    text = generator.tokenizer.decode(tokens, skip_special_tokens=True)
    complete = len(tokens) < sampling.max_new_tokens or tokens[-1] in set(generator.tokenizer.all_special_ids)
    return *clean_text(text, complete), len(tokens)


def _says_nothing(generator: Generator, number: int) -> str:
    return (
        f"{generator.description['llm']} said nothing about any of {number:,} items (empty texts or only special tokens): check its "
        "prompt format with another `template`, or take another LLM."
    )


def _write_settings(folder: Path, settings: Mapping[str, Any]) -> None:
    if not (folder / "settings.json").is_file():
        with atomic_path(folder / "settings.json") as temporary:
            temporary.write_text(json.dumps(settings, indent=1), encoding="utf-8")


def _write_shard(folder: Path, texts: dict[str, tuple[str, str, int]]) -> None:
    if not texts:
        return
    columns = list(zip(*texts.values(), strict=True))
    table = pa.table(
        {
            "key": list(texts),
            **{name: list(column) for name, column in zip(("text", "status", "num_tokens"), columns, strict=True)},
        }
    )
    name = hashlib.sha256("".join(sorted(texts)).encode()).hexdigest()[:16]
    with atomic_path(folder / f"texts-{name}.parquet") as temporary:
        pq.write_table(table, temporary, compression="zstd")


def _read_cache(folder: Path) -> dict[str, tuple[str, str, int]]:
    """Texts by key. A shard has its name only when it is whole; one that was damaged later is left out and made again."""
    found: dict[str, tuple[str, str, int]] = {}
    for path in sorted(folder.glob("texts-*.parquet")):
        try:
            table = pq.read_table(path)
            rows = zip(*(table[name].to_pylist() for name in ("text", "status", "num_tokens")), strict=True)
            found |= dict(zip(table["key"].to_pylist(), rows, strict=True))
        except (pa.ArrowException, KeyError, OSError):
            path.unlink()
    return found


# Catalogues that grow, and comparisons -----------------------------------------------------------------------------------


def extend_knowledge(before: Knowledge, new: Knowledge) -> Knowledge:
    """Knowledge with further items at its end.

    Raises:
        ValueError: An item is in both, or the texts were made in another way.
    """
    twice = sorted(set(before.table["item_id"].to_pylist()) & set(new.table["item_id"].to_pylist()))
    if twice:
        raise ValueError(f"{len(twice)} items already have knowledge, first {twice[0]!r}: add new items only.")
    if before.description != new.description:
        differing = [name for name in before.description if before.description[name] != new.description.get(name)]
        raise ValueError(
            f"the new texts were made in another way ({', '.join(differing)} differ): take the LLM, adapter, prompt and sampling "
            "of the knowledge they join, or make all texts again."
        )
    return Knowledge(pa.concat_tables([before.table, new.table.cast(before.table.schema)]), before.description)


@dataclass(frozen=True)
class RankChange:
    """Of one user: what other knowledge did to the rank of the item that came next.

    Attributes:
        user_id, item_id, title: Who, and what came next.
        before, after: 1-based rank of that item among the items not in the history.
        score_before, score_after: log p(y|x, s).
    """

    user_id: str
    item_id: str
    title: str | None
    before: float
    after: float
    score_before: float
    score_after: float


@torch.inference_mode()
def rank_changes(
    score_before: Callable[[torch.Tensor], torch.Tensor],
    score_after: Callable[[torch.Tensor], torch.Tensor],
    evaluation_set: Any,
    catalogue: Catalogue,
    user_ids: Sequence[str],
    rows: Sequence[int],
    max_length: int,
) -> list[RankChange]:
    """Ranks of users' targets under two recommenders, or one with two kinds of knowledge.

    Args:
        score_before: (1, length) item_index -> (1, num_items + 1) scores.
        score_after: The same with the other knowledge.
        evaluation_set: The rows' histories and targets.
        catalogue: The items.
        user_ids: By user of the evaluation set.
        rows: Which rows.
        max_length: Items of a history that count.

    Returns:
        One change per row.
    """
    found = []
    for row in rows:
        history, target = evaluation_set.history(row), int(evaluation_set.target[row])
        ids = torch.tensor([history[-max_length:].tolist()])
        ranks, logs = [], []
        for score in (score_before, score_after):
            scores = score(ids)[0].float().cpu()
            logs.append(float(scores[1:].log_softmax(0)[target - 1]))
            true = scores[target].clone()
            scores[torch.from_numpy(np.unique(history)).long()] = -torch.inf
            scores[target] = -torch.inf
            ranks.append(1 + float((scores > true).sum() + 0.5 * (scores == true).sum()))
        found.append(
            RankChange(
                str(user_ids[int(evaluation_set.user[row])]), catalogue.to_item_ids([target])[0].as_py(),
                catalogue.to_titles([target])[0].as_py(), *ranks, *logs,
            )
        )  # fmt: skip
    return found


def _card(knowledge: Knowledge, name: str, vectors: Any, encoder: dict[str, Any] | None, further: str) -> str:
    size = next((label for most, label in _SIZES if knowledge.num_items < most), "n>1M")
    configs = [
        {
            "config_name": "knowledge",
            "data_files": [{"split": "train", "path": "knowledge/*.parquet"}],
            "default": True,
        }
    ]
    if vectors is not None:
        configs.append({"config_name": "vectors", "data_files": [{"split": "train", "path": "vectors/*.parquet"}]})
    head = {
        "configs": configs,
        "size_categories": [size],
        "tags": ["hf_seqrec", "recommendation", "item-knowledge", "seralm"],
    }
    made, counts = knowledge.description, knowledge.counts
    lines = [
        f"---\n{yaml.safe_dump(head, sort_keys=False)}---\n# {name}\n",
        f"What a language model wrote about {knowledge.num_items:,} items of a catalogue, and about who would like them. These are",
        "generated texts: they may be wrong, and say nothing about the items that anybody has checked.\n",
        "| made with | |\n| --- | --- |",
        f"| language model | {made['llm']} ({made['revision']}) |",
        f"| adapter | {made['adapter'] or 'none: not aligned'} |",
        f"| prompt | {json.dumps(made['prompt']['text'], ensure_ascii=False)} |",
        f"| sampling | {json.dumps(made['sampling'])} |",
        *(
            [f"| vectors | {np.asarray(vectors).shape[1]} wide, {json.dumps(encoder)} |"]
            if vectors is not None
            else []
        ),
        f"| key | {knowledge.key} |\n",
        "| texts | items |\n| --- | --- |",
        f"| as generated | {counts['ok']:,} |",
        f"| over-long, ended after the last whole sentence | {counts['cut']:,} |",
        f"| going in circles, ended at the first turn | {counts['repeated']:,} |",
        f"| nothing said, metadata instead | {counts['empty']:,} |",
        f"| without metadata, not asked about | {counts['no_metadata']:,} |",
        f"| different texts | {counts['distinct']:,} |\n",
        further,
    ]
    return "\n".join(lines)


_SIZES = ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"))
