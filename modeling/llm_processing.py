"""The processor of recommenders around an LLM: also knows the prompts, and takes new items that only have a text."""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from transformers import AutoTokenizer
from transformers.utils import PROCESSOR_NAME, cached_file

from .llm import check_llm_place
from .processing import SequentialRecommendationProcessor
from .prompting import PromptProgram, PromptTemplate, compile_template, make_template, tokenize_titles


_PROMPT_FIELDS = (
    "llm_name_or_path", "llm_revision", "style", "domain", "item_vectors", "user_vector", "dates", "history_length",
    "max_title_tokens", "max_prompt_tokens",
)  # fmt: skip
_HUB_KEYS = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")


class LLMSequentialRecommendationProcessor(SequentialRecommendationProcessor):
    """Maps item ids and titles to item indices and back, and to the prompts of an LLM.

    Args:
        item_ids: The owner's item ids; entry `r` has the item_index `r + 1`.
        titles: One title per item, None where there is none.
        max_length: Number of most recent items a history is cut to.
        data_fingerprint: Fingerprint of the data set that the catalogue belongs to.
        llm_name_or_path: Hub id or folder of the LLM, whose tokenizer is used.
        llm_revision: Its commit, tag or branch.
        style: Wording of the prompts, `paper` or `compact`.
        domain: `movie`, `product`, `game` or `business`.
        item_vectors: A vector follows each title.
        user_vector: The user's prompt begins with the user's vector.
        dates: Lines of a history show dates.
        history_length: Most items of a history that enter a prompt, the most recent ones.
        max_title_tokens: Titles are cut to this many tokens.
        max_prompt_tokens: Longest prompt; None asks the tokenizer, and takes 1024 at most.

    Example:
        >>> processor = LLMSequentialRecommendationProcessor(["b7", "a2"], ["Heat", "Up"], domain="movie", dates=False)
        >>> processor.render_item("a2")
        'The item title and item embedding are as follows: "Up"[ItemEmb], then generate the item representation token:[ItemOut]'
    """

    def __init__(
        self,
        item_ids,
        titles=None,
        max_length=50,
        data_fingerprint=None,
        llm_name_or_path: str | None = None,
        llm_revision: str | None = None,
        style: str = "paper",
        domain: str = "product",
        item_vectors: bool = True,
        user_vector: bool = False,
        dates: bool = True,
        history_length: int = 10,
        max_title_tokens: int = 32,
        max_prompt_tokens: int | None = None,
    ):
        super().__init__(item_ids, titles, max_length, data_fingerprint)
        self.llm_name_or_path, self.llm_revision = llm_name_or_path, llm_revision
        self.style, self.domain = style, domain
        self.item_vectors, self.user_vector, self.dates = item_vectors, user_vector, dates
        self.history_length, self.max_title_tokens = history_length, max_title_tokens
        self.max_prompt_tokens = max_prompt_tokens
        self.template  # noqa: B018 (refuses an unknown style or domain now, not at the first prompt)

    @classmethod
    def from_catalogue(cls, catalogue, max_length: int, data_fingerprint: str | None = None, **prompt):
        """The processor of a data set's catalogue; `prompt` are the further arguments of the class."""
        return cls(catalogue.item_ids, catalogue.titles, max_length, data_fingerprint, **prompt)

    @cached_property
    def llm_tokenizer(self):
        """The LLM's tokenizer, loaded when first needed.

        Raises:
            ValueError: No LLM is named. OSError: it cannot be found (FileNotFoundError: its folder is not here).
        """
        if self.llm_name_or_path is None:
            raise ValueError("the processor names no LLM: give `llm_name_or_path`, or set `processor.llm_tokenizer`.")
        check_llm_place(self.llm_name_or_path)
        return AutoTokenizer.from_pretrained(self.llm_name_or_path, revision=self.llm_revision)

    @cached_property
    def template(self) -> PromptTemplate:
        """The wordings."""
        return make_template(self.style, self.domain, self.item_vectors, self.user_vector, self.dates)

    @cached_property
    def program(self) -> PromptProgram:
        """The template compiled for the LLM's tokenizer."""
        longest = self.max_prompt_tokens or min(self.llm_tokenizer.model_max_length, 1024)
        return compile_template(self.template, self.llm_tokenizer, self.history_length, self.max_title_tokens, longest)

    def title_tokens(self) -> tuple[np.ndarray, np.ndarray]:
        """Tokens of all titles one after another, int32, and int64 offsets (num_items + 1,)."""
        return tokenize_titles(self.titles, self.llm_tokenizer, self.program)

    def render_user(self, history, timestamps=None, by=None) -> str:
        """The user's prompt as text, slots in brackets.

        Args:
            history: Item ids or titles, oldest first.
            timestamps: Unix seconds of the items, when the template shows dates.
            by: As in `to_index`.
        """
        index = self.to_index(history, by)[-self.history_length :]
        titles = [self.titles[number - 1] for number in index]
        return self.template.render_user(titles, None if timestamps is None else timestamps[-self.history_length :])

    def render_item(self, item, by=None) -> str:
        """The item's prompt as text, slots in brackets."""
        return self.template.render_item(self.titles[int(self.to_index([item], by)[0]) - 1])

    def add_items(self, item_ids, titles) -> LLMSequentialRecommendationProcessor:
        """A processor that also knows new items; their indices follow the present ones.

        Args:
            item_ids: Ids of the new items.
            titles: Their titles.

        Returns:
            The new processor; give it to the model's `add_items`.

        Raises:
            ValueError: An id that is known already or repeats. TypeError: an id or title that is no string.
        """
        processor = type(self)(
            [*self.item_ids, *item_ids],
            [*self.titles, *titles],
            self.max_length,
            self.data_fingerprint,
            **self._prompt_settings(),
        )
        processor.llm_tokenizer = self.llm_tokenizer
        return processor

    def _prompt_settings(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in _PROMPT_FIELDS}

    def to_dict(self) -> dict[str, Any]:
        """The content of `processor_config.json`; the template's name and version are in it for people."""
        return {
            **super().to_dict(),
            **self._prompt_settings(),
            "template": self.template.name,
            "template_version": self.template.version,
        }

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, llm: str | None = None, **kwargs):
        """Load from a folder or a Hub repository; `llm` names another place of the same LLM. See the base class."""
        base = SequentialRecommendationProcessor.from_pretrained(pretrained_model_name_or_path, **kwargs)
        where = {key: kwargs[key] for key in _HUB_KEYS if kwargs.get(key) is not None}
        config = json.loads(
            Path(str(cached_file(pretrained_model_name_or_path, PROCESSOR_NAME, **where))).read_bytes()
        )
        settings = {name: config[name] for name in _PROMPT_FIELDS if name in config}
        if llm is not None:
            settings |= {"llm_name_or_path": llm, "llm_revision": None}
        return cls(base.item_ids, base.titles, base.max_length, base.data_fingerprint, **settings)


LLMSequentialRecommendationProcessor.register_for_auto_class("AutoProcessor")
