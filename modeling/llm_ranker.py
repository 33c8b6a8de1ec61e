"""Rankers around an LLM's own head: a backbone retrieves candidates, the LLM reads them in a prompt and ranks them.

LlamaRec (Yue et al., 2023, arXiv 2311.02089): the labels of the candidates are scored at one position, trained by cross-entropy.
RecRanker (Luo et al., 2023, arXiv 2312.16018): point-, pair- and list-wise questions with the backbone's own ranking as a hint.
Zero-shot LLMs: the same prompts without training.
Deviations. (1) Prompts are in our words. (2) Candidates stand in an order that says nothing about the target: the backbone's, or a
seeded shuffle of the set; several shuffles may be averaged. (3) Items that the backbone did not retrieve keep its order behind those
it did, so every item has a rank. (4) Histories and candidates are cut at titles, never at the tail of a prompt.
Inputs: `input_ids` (batch, length) item_index, left-padded with 0; `candidates` (batch, m) item_index; `labels` (batch, 1).
Trains with: `PromptTuningTrainer`.
"""

import os
import zlib
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from huggingface_hub.dataclasses import strict
from transformers import AutoTokenizer, PreTrainedModel

from .base import NextItemOutput, SequentialRecommender, SequentialRecommenderConfig, register
from .candidate_prompts import (
    CandidateProgram,
    CandidateTemplate,
    compile_candidate_template,
    distinct_titles,
    make_candidate_template,
)
from .llm import LLMRecommender, SlotVectors, config_as_dict, llm_kind, resolve_revision
from .processing import SequentialRecommendationProcessor
from .prompting import Slot, tokenize_titles
from .teacher import adopt_teacher, build_teacher, freeze_teacher, restore_teacher
from .verbalizers import HEADS, VERBALIZERS, Verbalizer, build_language_model, load_language_model


RANKER_TASKS = ("title", "index", "point", "pair")
ORDERS = ("shuffled", "retriever")


@strict
class LLMRankerConfig(SequentialRecommenderConfig):
    """Configuration of rankers around an LLM's head.

    Args:
        task: What the LLM is asked: the `title` or the `index` (label) of the next item among all candidates, whether a single one
            is the next (`point`), or which of two is more likely (`pair`).
        verbalizer: How answers to `title` are scored: `title_likelihood` or `first_token`; the other tasks have `index_token`.
        domain: Words of the prompt: `movie`, `product`, `game` or `business`.
        num_candidates: How many items the backbone retrieves, and the most that a prompt holds.
        history_length: Most items of a history that enter a prompt, the most recent ones.
        hint: How many of the candidates the prompt names in the backbone's order, as a hint; 0 for none.
        candidate_order: Order of candidates in a prompt: `shuffled` by a hash of the question, or the `retriever`'s.
        num_permutations: Questions with other shuffles whose scores are averaged (`title`, `index`).
        num_opponents: Of each candidate in pair-wise questions; every pair is asked in both orders.
        seed: Of the shuffles.
        exclude_seen: Items of the history are not retrieved.
        max_title_tokens: Titles are cut to this many tokens.
        answer: Of an encoder-decoder LLM: `plain`, or `sentinel` (T5).
        labels: `letters`, `numbers`, or a list of words; of point-wise questions the words for yes and no.
        num_masks: Of a masked LLM: number of masks for a title; None: as many as it has tokens.
        prompt: The compiled prompt; filled in by `from_parts`.
        num_title_tokens: Tokens of all titles together; filled in by `from_parts`.
        lora: Arguments of `peft.LoraConfig`; None keeps every weight of the LLM.
        llm_name_or_path, llm_revision: The LLM.
        llm_head: `trained`, or `tied` for a text encoder without a head.
        llm_config: The LLM's configuration; filled in.
        llm_dtype: Type of the LLM's weights; `auto` is the checkpoint's.
        llm_attn_implementation: `eager`, `sdpa`, `flash_attention_2`, …
        llm_quantization: `8bit`, `4bit` (a GPU and bitsandbytes) or None.
        token_budget: Tokens in one pass of the LLM, padding included; None chooses by device.
        share_prefix: Read a prompt once for all its candidates; False reads each pair by itself.
        teacher_name_or_path, teacher_revision, teacher_fingerprint: The backbone, and the hash of its weights.
        teacher_config: The backbone's configuration; filled in.
        store_teacher: Save the backbone's weights with the model, not only its name.
    """

    model_type = "hf_seqrec_llm_ranker"

    task: str = "title"
    verbalizer: str = "title_likelihood"
    domain: str = "product"
    num_candidates: int = 20
    history_length: int = 20
    hint: int = 0
    candidate_order: str = "shuffled"
    num_permutations: int = 1
    num_opponents: int = 3
    seed: int = 0
    exclude_seen: bool = True
    max_title_tokens: int = 32
    answer: str = "plain"
    labels: str | list[str] = "letters"
    num_masks: int | None = None
    prompt: dict[str, Any] | None = None
    num_title_tokens: int = 0
    lora: dict[str, Any] | None = None
    llm_name_or_path: str | None = None
    llm_revision: str | None = None
    llm_head: str = "trained"
    llm_config: dict[str, Any] | None = None
    llm_dtype: str = "auto"
    llm_attn_implementation: str | None = None
    llm_quantization: str | None = None
    token_budget: int | None = None
    share_prefix: bool = True
    teacher_name_or_path: str | None = None
    teacher_revision: str | None = None
    teacher_fingerprint: str | None = None
    teacher_config: dict[str, Any] | None = None
    store_teacher: bool = False

    def validate_architecture(self):
        """Refuse values that contradict each other; runs on construction."""
        super().validate_architecture()
        for name, value, choices in (
            ("task", self.task, RANKER_TASKS),
            ("verbalizer", self.verbalizer, VERBALIZERS),
            ("candidate_order", self.candidate_order, ORDERS),
            ("llm_head", self.llm_head, HEADS),
        ):
            if value not in choices:
                raise ValueError(f"`{name}` must be one of {', '.join(choices)}, got {value!r}.")
        for name in ("num_candidates", "history_length", "num_permutations", "num_opponents"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}.")
        if not 0 <= self.hint <= self.num_candidates:
            raise ValueError(f"`hint` must be in 0 … num_candidates = {self.num_candidates}, got {self.hint}.")
        if self.num_permutations > 1 and (self.candidate_order == "retriever" or self.task not in ("title", "index")):
            raise ValueError(
                "`num_permutations` averages over shuffled lists: use it with candidate_order='shuffled' and task 'title' or 'index'."
            )
        if self.task == "title" and self.verbalizer == "index_token":
            raise ValueError("index_token scores labels: use task='index', or another `verbalizer`.")

    @property
    def method(self) -> str:
        """The verbalizer in use."""
        return self.verbalizer if self.task == "title" else "index_token"


@dataclass
class LLMRankerOutput(NextItemOutput):
    """Output of [`LLMRankerForSequentialRecommendation`].

    Args:
        loss: Scalar, when `labels` were given.
        scores: (batch, m) log scores of the candidates.
    """

    scores: torch.Tensor | None = None


class LLMRankerForSequentialRecommendation(LLMRecommender):
    """A backbone retrieves candidates, an LLM ranks them by its own head.

    `score(input_ids)` ranks the catalogue: the backbone's best `num_candidates` in the LLM's order, all others behind them in the
    backbone's. `score(input_ids, candidates)` is the LLM's alone.

    Example:
        >>> model, processor = LLMRankerForSequentialRecommendation.from_parts(                        # doctest: +SKIP
        ...     llm="meta-llama/Llama-3.2-1B", teacher="user/sasrec-ml-100k", catalogue=data.catalogue,
        ...     data_fingerprint=data.fingerprint, domain="movie", task="index")
        >>> model.score(torch.tensor([[0, 3, 7]])).shape                                               # doctest: +SKIP
        torch.Size([1, 1683])
    """

    config: LLMRankerConfig
    supervision: ClassVar[str] = "last_position"
    is_dot_product: ClassVar[bool] = False
    encoder: Verbalizer
    teacher: Any  # a SequentialRecommender
    title_tokens: torch.Tensor
    title_offsets: torch.Tensor

    def __init__(
        self, config: LLMRankerConfig, llm: PreTrainedModel | None = None, teacher: SequentialRecommender | None = None
    ):
        super().__init__(config)
        if config.prompt is None or config.teacher_config is None:
            raise ValueError("the configuration has no prompt or no backbone: build the model with `from_parts`.")
        self.program = CandidateProgram(**config.prompt)
        self.register_buffer("title_tokens", torch.zeros(config.num_title_tokens, dtype=torch.int32))
        self.register_buffer("title_offsets", torch.zeros(config.num_items + 1, dtype=torch.int64))
        self._title_arrays: tuple[Any, tuple[np.ndarray, np.ndarray]] | None = None
        llm = self.prepare_llm(llm)
        self.add_parts(llm)
        self.post_init()
        # After `post_init`, so that no initialisation reaches what is trained already.
        self.encoder = Verbalizer(llm, self.program.answer, config.method, config.token_budget, config.share_prefix)
        self.teacher = freeze_teacher(build_teacher(config.teacher_config) if teacher is None else teacher)

    # What a subclass changes ---------------------------------------------------------------------------------------------

    def add_parts(self, llm: PreTrainedModel) -> None:
        """Add a method's own modules, for example a table of soft prompts; called before `post_init`."""

    @classmethod
    def make_template(cls, config: LLMRankerConfig) -> CandidateTemplate:
        """The wording of the prompt."""
        backbone = (config.teacher_config or {}).get("model_type", "recommender").removeprefix("hf_seqrec_")
        return make_candidate_template(config.task, config.domain, hint=config.hint > 0, backbone=backbone)

    @classmethod
    def compile_prompts(cls, config: LLMRankerConfig, tokenizer, kind: str, max_tokens: int) -> dict[str, Any]:
        """Fields of the configuration that hold compiled prompts.

        Args:
            config: All but these fields.
            tokenizer: The LLM's.
            kind: `decoder`, `encoder-decoder` or `encoder`.
            max_tokens: Longest prompt.

        Returns:
            `prompt`, and what else a subclass compiles.
        """
        return {"prompt": cls.compile(config, cls.make_template(config), tokenizer, kind, max_tokens).to_dict()}

    @classmethod
    def compile(
        cls,
        config: LLMRankerConfig,
        template: CandidateTemplate,
        tokenizer,
        kind: str,
        max_tokens: int,
        num_soft: int = 0,
    ) -> CandidateProgram:
        """A template compiled with the numbers of a configuration; see `compile_candidate_template`."""
        return compile_candidate_template(
            template,
            tokenizer,
            kind,
            num_soft,
            history_length=config.history_length,
            num_candidates={"point": 2, "pair": 2}.get(config.task, config.num_candidates),
            max_title_tokens=config.max_title_tokens,
            max_tokens=max_tokens,
            answer=config.answer,
            labels=["yes", "no"] if config.task == "point" and isinstance(config.labels, str) else config.labels,
            num_masks=config.num_masks,
        )

    def prompt_items(self, history: list[int], candidates: list[int], ranking: list[int]) -> dict[str, list[int]]:
        """Which items stand in which list of a prompt.

        Args:
            history: item_index of the history, oldest first, cut to `history_length`.
            candidates: item_index of the candidates in the order of the prompt.
            ranking: All candidates of the question in the backbone's order; empty when no hint is shown.

        Returns:
            Field of the template -> item_index.
        """
        items = {"history": history, "candidates": candidates}
        return items | {"hint": ranking[: self.config.hint]} if self.config.hint else items

    def slot_vectors(self) -> dict[Slot, SlotVectors]:
        """What fills the slots of the prompts, the same in all of them: none here."""
        return {}

    # Putting together, saving, loading -----------------------------------------------------------------------------------

    @classmethod
    def from_parts(
        cls,
        llm: str | os.PathLike,
        teacher: str | os.PathLike | SequentialRecommender,
        catalogue,
        data_fingerprint: str | None = None,
        llm_revision: str | None = None,
        teacher_revision: str | None = None,
        max_prompt_tokens: int | None = None,
        **options,
    ) -> tuple["LLMRankerForSequentialRecommendation", SequentialRecommendationProcessor]:
        """A new model around an LLM and a backbone, and the processor that travels with it.

        Args:
            llm: Hub id or folder of the LLM.
            teacher: Hub id or folder of a trained backbone, or the backbone itself: it retrieves, and gives hints.
            catalogue: Has `.item_ids` and `.titles`, such as `hf_seqrec.data.Catalogue`.
            data_fingerprint: Fingerprint of the data set; a backbone trained on another one is refused.
            llm_revision: Commit, tag or branch of the LLM; the commit is what is stored.
            teacher_revision: The same of the backbone.
            max_prompt_tokens: Longest prompt; None takes what the LLM can, 4096 at most.
            options: Fields of the configuration.

        Returns:
            The model and its processor.

        Raises:
            TypeError: A backbone without vectors, or an unknown option. ValueError: a backbone of another catalogue or with NaN, an
                LLM without a head, or candidates that exceed the LLM's context.
        """
        taught, named = adopt_teacher(
            teacher, len(catalogue.item_ids), data_fingerprint, teacher_revision, options.pop("store_teacher", None)
        )
        llm_revision = resolve_revision(str(llm), llm_revision)
        loaded = load_language_model(
            str(llm),
            llm_revision,
            options.get("llm_dtype", "auto"),
            options.get("llm_attn_implementation"),
            options.get("llm_quantization"),
            options.get("llm_head", "trained"),
        )
        tokenizer = AutoTokenizer.from_pretrained(str(llm), revision=llm_revision)
        config = cls.config_class(
            **{
                "num_items": len(catalogue.item_ids),
                "max_length": taught.config.max_length,
                "data_fingerprint": data_fingerprint,
                "llm_name_or_path": str(llm),
                "llm_revision": llm_revision,
                "llm_config": config_as_dict(loaded.config),
                **named,
                **options,
            }
        )
        limits = [max_prompt_tokens or 4096, tokenizer.model_max_length, _positions(loaded.config) or 4096]
        for name, value in cls.compile_prompts(config, tokenizer, llm_kind(loaded.config), int(min(limits))).items():
            setattr(config, name, value)
        processor = SequentialRecommendationProcessor.from_catalogue(catalogue, config.max_length, data_fingerprint)
        program = CandidateProgram(**config.prompt)
        tokens, offsets = distinct_titles(
            *tokenize_titles(processor.titles, tokenizer, program), tokenizer, config.max_title_tokens
        )
        config.num_title_tokens = len(tokens)
        out = cls(config, llm=loaded, teacher=taught)
        out.title_tokens.copy_(torch.from_numpy(tokens))
        out.title_offsets.copy_(torch.from_numpy(offsets))
        out.check_room()
        return out.eval(), processor

    def check_room(self) -> None:
        """Refuse prompts that cannot hold their items even with titles of one token, now and not in the middle of training.

        Raises:
            ValueError: They exceed the LLM's context.
        """
        count = {"point": 1, "pair": 2}.get(self.config.task, self.config.num_candidates)
        most = [1] * self.config.num_candidates
        items = self.prompt_items([1] * self.program.history_length, [1] * count, most)
        self.program.prompt({name: [np.zeros(1, np.int64)] * len(row) for name, row in items.items()})

    @classmethod
    def new_llm(cls, config) -> PreTrainedModel:
        """An LLM with head and random weights."""
        return build_language_model(config.llm_config, config.llm_head)

    @classmethod
    def read_llm(cls, config, *args, **kwargs) -> PreTrainedModel:
        """The trained LLM with its head."""
        return load_language_model(*args, **{"head": config.llm_head, **kwargs})

    @classmethod
    def find_teacher(cls, config, state, teacher, access):
        """The stored backbone, or the one of the configured name; see `restore_teacher`."""
        return restore_teacher(config, state, teacher, **access)

    @property
    def frozen_parts(self) -> tuple[str, ...]:  # type: ignore[override]
        """Prefixes of weights that are not saved."""
        return ("encoder.llm.",) if self.config.store_teacher else ("encoder.llm.", "teacher.")

    def train(self, mode: bool = True):
        """Set the mode of everything but the backbone, which never drops anything out."""
        super().train(mode)
        if getattr(self, "teacher", None) is not None:
            self.teacher.eval()
        return self

    # Prompts -------------------------------------------------------------------------------------------------------------

    @property
    def titles(self) -> tuple[np.ndarray, np.ndarray]:
        """Tokens of all titles one after another, and where each begins."""
        key = (self.title_tokens.data_ptr(), self.title_tokens._version, self.title_offsets._version)
        if self._title_arrays is None or self._title_arrays[0] != key:
            self._title_arrays = key, (self.title_tokens.cpu().numpy(), self.title_offsets.cpu().numpy())
        return self._title_arrays[1]

    def title_rows(self, items: list[int]) -> list[np.ndarray]:
        """Title tokens of items."""
        tokens, offsets = self.titles
        return [tokens[offsets[item - 1] : offsets[item]] for item in items]

    def histories(self, input_ids: torch.Tensor) -> list[list[int]]:
        """The items that enter each prompt: (batch, length) item_index, left-padded -> the last `history_length` of each row.

        Raises:
            ValueError: An empty history, or an item outside the catalogue.
        """
        rows = []
        for number, row in enumerate(input_ids.tolist()):
            items = row[next((column for column, item in enumerate(row) if item), len(row)) :]
            if not items:
                raise ValueError(
                    f"`input_ids` row {number} has no item: a recommender needs at least one item of history."
                )
            if min(items) < 1 or max(items) > self.config.num_items:
                raise ValueError(
                    f"`input_ids` row {number} must be item_index 1 … {self.config.num_items}, left-padded with 0; got {row[-20:]}."
                )
            rows.append(items[-self.program.history_length :])
        return rows

    def build_prompt(self, items: dict[str, list[int]], program: CandidateProgram | None = None) -> np.ndarray:
        """Token ids of a prompt, from the items of each of its lists."""
        return (program or self.program).prompt({name: self.title_rows(row) for name, row in items.items()})

    def describe(self, input_ids: torch.Tensor, candidates: torch.Tensor, tokenizer) -> list[str]:
        """Prompts as text, slots in brackets: what the LLM reads of each row, with its candidates in the given order."""
        rankings = self._rankings(input_ids, candidates)
        out = []
        for history, row, ranking in zip(self.histories(input_ids), candidates.tolist(), rankings, strict=True):
            asked = [item for item in row if item][: {"point": 1, "pair": 2}.get(self.config.task, len(row))]
            prompt = self.build_prompt(self.prompt_items(history, asked, ranking))
            text, begin = "", 0
            for place in [*np.flatnonzero(prompt < 0).tolist(), len(prompt)]:
                text += tokenizer.decode(prompt[begin:place])
                text += Slot(int(prompt[place])).text if place < len(prompt) else ""
                begin = place + 1
            out.append(text)
        return out

    # Ranking -------------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def retrieve(self, input_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The backbone's scores and best items.

        Args:
            input_ids: (batch, length) item_index, left-padded with 0.

        Returns:
            (batch, num_items + 1) scores, and (batch, k) item_index, best first, 0 where fewer than k items are allowed.
        """
        scores = self.teacher.score(input_ids).float()
        allowed = scores
        if self.config.exclude_seen:
            allowed = scores.scatter(1, input_ids, -torch.inf)
        allowed = allowed.index_fill(1, torch.zeros(1, dtype=torch.long, device=scores.device), -torch.inf)
        best, items = allowed.topk(min(self.config.num_candidates, self.config.num_items))
        return scores, items.masked_fill(best == -torch.inf, 0)

    @torch.no_grad()
    def _rankings(self, input_ids: torch.Tensor, candidates: torch.Tensor) -> list[list[int]]:
        """Candidates in the backbone's order, where the prompt or its order needs them; else empty lists."""
        if not (self.config.hint or self.config.candidate_order == "retriever"):
            return [[] for _ in range(len(candidates))]
        # Candidates are sorted first, so that equal scores do not tell in which column the target stands.
        items = candidates.sort(1).values
        scores = self.teacher.score(input_ids, items).float()
        order = torch.sort(scores, dim=1, descending=True, stable=True).indices
        return [[item for item in row if item] for row in items.gather(1, order).tolist()]

    def _order(self, history: list[int], candidates: list[int], ranking: list[int], number: int) -> list[int]:
        """Candidates in the order of prompt `number` of a question, the same in whatever order they were given."""
        present = sorted(item for item in candidates if item)
        if self.config.candidate_order == "retriever":
            return list(ranking)
        question = np.array([self.config.seed, number, len(history), *history, *present], dtype=np.int64)
        generator = np.random.default_rng(zlib.crc32(question.tobytes()))
        return [present[place] for place in generator.permutation(len(present))]

    def rank(self, input_ids: torch.Tensor, candidates: torch.Tensor) -> torch.Tensor:
        """The LLM's log scores of candidates.

        Args:
            input_ids: (batch, length) item_index, left-padded with 0.
            candidates: (batch, m) item_index, distinct in a row; 0 is nobody and scores -inf.

        Returns:
            (batch, m) float32. The order in which candidates are given does not matter.

        Raises:
            ValueError: An empty history, items outside the catalogue, candidates that repeat, too many of them, or prompts that do not
                fit the LLM's context.
        """
        self._check_candidates(candidates, len(input_ids))
        histories, rankings = self.histories(input_ids), self._rankings(input_ids, candidates)
        given = candidates.tolist()
        total = torch.zeros(candidates.shape, device=self.encoder.device)
        for number in range(self.config.num_permutations):
            orders = [
                self._order(history, row, ranking, number)
                for history, row, ranking in zip(histories, given, rankings, strict=True)
            ]
            width = max(map(len, orders))
            listed = torch.tensor([order + [0] * (width - len(order)) for order in orders])
            scores = self._ask(histories, listed, rankings)
            # Where each given candidate stands in its list; nobody gets a place of its own, with -inf.
            places = [
                [order.index(item) if item else width for item in row]
                for order, row in zip(orders, given, strict=True)
            ]
            index = torch.tensor(places, device=scores.device)
            total = total + F.pad(scores, (0, 1), value=-torch.inf).gather(1, index)
        return total / self.config.num_permutations

    def _check_candidates(self, candidates: torch.Tensor, rows: int) -> None:
        if candidates.dim() != 2 or len(candidates) != rows:
            raise ValueError(f"`candidates` must be ({rows}, m), one row per history, got {tuple(candidates.shape)}.")
        lowest, highest = int(candidates.min()), int(candidates.max())
        if lowest < 0 or highest > self.config.num_items:
            raise ValueError(
                f"`candidates` must be item_index 1 … {self.config.num_items} (0 is nobody), got {lowest} … {highest}."
            )
        ordered = candidates.sort(1).values
        repeated = (ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] > 0)
        empty = (candidates > 0).sum(1) == 0
        if bool(repeated.any()) or bool(empty.any()):
            row = int((repeated.any(1) | empty).nonzero()[0])
            raise ValueError(
                f"`candidates` row {row} must hold at least one item and none twice, got {candidates[row].tolist()[:20]}."
            )

    def _ask(self, histories: list[list[int]], listed: torch.Tensor, rankings: list[list[int]]) -> torch.Tensor:
        """(batch, m) log scores of candidates that stand in prompts as listed; 0 is nobody, at the end of a row."""
        if self.config.task in ("point", "pair"):
            ask = self._ask_point if self.config.task == "point" else self._ask_pairs
            rows = zip(histories, listed.tolist(), rankings, strict=True)
            return torch.stack([ask(history, row, ranking) for history, row, ranking in rows])
        prompts = [
            self.build_prompt(self.prompt_items(history, [item for item in row if item], ranking))
            for history, row, ranking in zip(histories, listed.tolist(), rankings, strict=True)
        ]
        return self.encoder(prompts, self.slot_vectors(), listed, self.titles)

    def _ask_point(self, history: list[int], row: list[int], ranking: list[int]) -> torch.Tensor:
        """(m,) log-probabilities of yes; a user's questions go together, so that they share what they begin with."""
        prompts = [self.build_prompt(self.prompt_items(history, [item], ranking)) for item in row if item]
        answers = torch.ones(len(prompts), 2, dtype=torch.long)  # yes and no stand for two candidates
        scores = self.encoder(prompts, self.slot_vectors(), answers, self.titles)[:, 0]
        return F.pad(scores, (0, len(row) - len(prompts)), value=-torch.inf)

    def _ask_pairs(self, history: list[int], row: list[int], ranking: list[int]) -> torch.Tensor:
        """(m,) mean log-probabilities of being preferred to the next `num_opponents` of the list, and to those before."""
        items = [item for item in row if item]
        count = len(items)
        reach = range(1, min(self.config.num_opponents, count - 1) + 1)
        pairs = sorted({(a, (a + step) % count) for a in range(count) for step in reach})
        pairs = sorted({*pairs, *[(b, a) for a, b in pairs]})
        if not pairs:  # a single candidate has nobody to lose to
            return F.pad(torch.zeros(count, device=self.encoder.device), (0, len(row) - count), value=-torch.inf)
        prompts = [self.build_prompt(self.prompt_items(history, [items[a], items[b]], ranking)) for a, b in pairs]
        listed = torch.tensor([[items[a], items[b]] for a, b in pairs])
        scores = self.encoder(prompts, self.slot_vectors(), listed, self.titles)
        index = torch.tensor(pairs, device=scores.device).flatten()
        total = torch.zeros(count, device=scores.device).index_add(0, index, scores.flatten())
        times = torch.bincount(index, minlength=count)
        return F.pad(total / times, (0, len(row) - count), value=-torch.inf)

    # The recommender's contract ------------------------------------------------------------------------------------------

    def forward(
        self,
        input_ids: torch.Tensor,
        labels: torch.Tensor | None = None,
        candidates: torch.Tensor | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        **kwargs,
    ) -> LLMRankerOutput:
        """Log scores of candidates, and the loss of the labelled ones.

        Args:
            input_ids: (batch, length) item_index, left-padded with 0; the last `history_length` items enter the prompt.
            labels: (batch,) or (batch, 1) the candidate to choose.
            candidates: (batch, m) item_index in the order in which they stand in the prompt; 0 at the end is nobody.
            num_items_in_batch: Rows of the whole optimizer step; the loss is the sum divided by it. Mean over rows when None.
            kwargs: Unused; declares to the `Trainer` that the loss is already scaled.

        Returns:
            [`LLMRankerOutput`]. The loss is the cross-entropy over the candidates of a row; of point-wise questions over yes and no,
            summed over the candidates.

        Raises:
            ValueError: No candidates, a label that is none of them, an empty history, items outside the catalogue, or prompts that do
                not fit the LLM's context.
        """
        if candidates is None:
            raise ValueError("an LLM that ranks needs `candidates`, (batch, m) item_index.")
        self._check_candidates(candidates, len(input_ids))
        scores = self._ask(self.histories(input_ids), candidates, self._rankings(input_ids, candidates))
        if labels is None:
            return LLMRankerOutput(scores=scores)
        hit = (candidates == labels.view(-1, 1)).to(scores.device)
        if not bool(hit.any(1).all()):
            raise ValueError(f"row {int((~hit.any(1)).nonzero()[0])}: the label is not among the candidates.")
        if self.config.task == "point":
            no = torch.log1p(-scores.exp().clamp(max=1 - 1e-6))
            per_candidate = -torch.where(hit, scores, no)
            total = per_candidate.masked_fill((candidates == 0).to(scores.device), 0).sum()
        else:
            total = F.cross_entropy(scores, hit.int().argmax(1), reduction="sum")
        return LLMRankerOutput(
            loss=total / (len(scores) if num_items_in_batch is None else num_items_in_batch), scores=scores
        )

    @torch.no_grad()
    def score(
        self, input_ids: torch.Tensor, candidates: torch.Tensor | None = None, item_table: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Scores of items as the next one; higher is better.

        Args:
            input_ids: (batch, length) item_index, left-padded with 0.
            candidates: (batch, m) item_index to rank by the LLM; None: the whole catalogue, of which the LLM ranks what the backbone
                retrieved, and the backbone the rest behind it.
            item_table: Unused; the backbone keeps its own.

        Returns:
            (batch, num_items + 1) with -inf in column 0, or (batch, m).
        """
        if candidates is not None:
            return self.rank(input_ids, candidates)
        scores, items = self.retrieve(input_ids)
        ranked = self.rank(input_ids, items)
        lowest = torch.where(items > 0, ranked, torch.inf).amin(1, keepdim=True)
        above = scores[:, 1:].amax(1, keepdim=True) + 1
        lifted = torch.where(items > 0, ranked - lowest + above, scores.gather(1, items))
        out = scores.scatter(1, items, lifted)
        out[:, 0] = -torch.inf
        return out


def _positions(config) -> int | None:
    """Longest input of an LLM that counts positions; None for relative ones."""
    return getattr(config, "max_position_embeddings", None)


register(LLMRankerConfig, LLMRankerForSequentialRecommendation)

# Elsewhere this file runs as a repository's remote code, which must not answer for other repositories.
if __package__ == "hf_seqrec.modeling":
    from transformers import AutoProcessor

    AutoProcessor.register(LLMRankerConfig, SequentialRecommendationProcessor, exist_ok=True)
