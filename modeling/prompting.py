"""Prompts with slots: places in a text that are filled with vectors, not words.

A template is compiled once with an LLM's tokenizer into a flat program of token ids, in which negative numbers are slots
([`Slot`]) and fields ([`Field`]). Text is tokenized piece by piece, so a title can never become a slot, whatever it says; a
title is tokenized once and not once per prompt; and what must be cut is cut from titles, never from the tail of a prompt,
where the vectors are read.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from enum import IntEnum
from typing import Any

import numpy as np


TEMPLATE_VERSION = 1  # raise it with every change of a wording or of the tokenization; it is saved with the model


class Slot(IntEnum):
    """Places filled with vectors; the value stands in the token ids of a prompt."""

    ITEM_VECTOR = -1
    USER_VECTOR = -2
    SOFT_PROMPT = -3
    USER_OUT = -4
    ITEM_OUT = -5
    ANSWER = -6

    @property
    def text(self) -> str:
        """How the slot is written in a template."""
        return _SLOT_TEXT[self]


class Field(IntEnum):
    """Places filled with the tokens of titles, one or a list of them, of a line number, a label or a date."""

    HISTORY = -101
    TITLE = -102
    NUMBER = -103
    DATE = -104
    CANDIDATES = -105
    LABEL = -106
    HINT = -107
    NEXT = -108
    EXAMPLE_HISTORY = -109
    EXAMPLE_NEXT = -110
    EXAMPLE_ANSWER = -111


_SLOT_TEXT = {
    Slot.ITEM_VECTOR: "[ItemEmb]",
    Slot.USER_VECTOR: "[UserEmb]",
    Slot.SOFT_PROMPT: "[SoftPrompt]",
    Slot.USER_OUT: "[UserOut]",
    Slot.ITEM_OUT: "[ItemOut]",
    Slot.ANSWER: "[Answer]",
}
_PLACES: dict[str, IntEnum] = {text: slot for slot, text in _SLOT_TEXT.items()}
_PLACES |= {f"{{{place.name.lower()}}}": place for place in Field}
_PLACE = re.compile("(" + "|".join(map(re.escape, _PLACES)) + ")")
_SLOT = re.compile("|".join(map(re.escape, _SLOT_TEXT.values())))

UNTITLED = "No title"


@dataclass(frozen=True)
class Domain:
    """Words for what people do with items."""

    noun: str
    nouns: str
    did: str
    sequence: str


DOMAINS = {
    "movie": Domain("movie", "movies", "has watched a series of movies", "movies watched"),
    "product": Domain("product", "products", "has made a series of purchases", "purchases"),
    "game": Domain("game", "games", "has played a series of games", "games played"),
    "business": Domain("business", "businesses", "has visited a series of businesses", "visits"),
}
STYLES = ("paper", "compact")


def clean_title(title: str | None) -> str:
    r"""A title on one line, without characters or strings that mean something in a prompt.

    Args:
        title: Any text, or None.

    Returns:
        The title without control characters, white space collapsed, the brackets of slot strings made round;
        `"No title"` when nothing is left.

    Example:
        >>> clean_title(" Heat\n(1995) [UserOut]")
        'Heat (1995) (UserOut)'
    """
    text = " ".join("".join(c if c.isprintable() else " " for c in title or "").split())
    return _SLOT.sub(lambda match: f"({match[0][1:-1]})", text) or UNTITLED


@dataclass(frozen=True)
class PromptTemplate:
    """Wordings of the user's and the item's prompt; slots and fields stand in them as text.

    Args:
        name: Style, domain and switches, for people.
        user: Has `{history}` and `[UserOut]`.
        line: One item of a history: `{title}`, optionally `{number}`, `{date}`, `[ItemEmb]`. Begins with its white space.
        separator: Between two lines.
        item: Has `{title}` and `[ItemOut]`.
        version: `TEMPLATE_VERSION` of the release that made it.
    """

    name: str
    user: str
    line: str
    separator: str
    item: str
    version: int = TEMPLATE_VERSION

    @property
    def dated(self) -> bool:
        """Whether lines show dates."""
        return "{date}" in self.line

    def render_user(self, titles: Sequence[str | None], timestamps: Sequence[int] | None = None) -> str:
        """The user's prompt as text, titles whole.

        Args:
            titles: Titles of the history, oldest first.
            timestamps: Unix seconds of the items, when the template shows dates.

        Raises:
            ValueError: The history is empty, or dates are shown and no timestamps came.
        """
        dates = _dates(self.dated, timestamps, len(titles))
        lines = [
            self.line.replace("{number}", str(number))
            .replace("{date}", "".join(date))
            .replace("{title}", clean_title(title))
            for number, (title, date) in enumerate(zip(titles, dates, strict=True), 1)
        ]
        return self.user.replace("{history}", self.separator.join(lines))

    def render_item(self, title: str | None) -> str:
        """The item's prompt as text."""
        return self.item.replace("{title}", clean_title(title))


def make_template(
    style: str = "paper",
    domain: str = "product",
    item_vectors: bool = True,
    user_vector: bool = False,
    dates: bool = True,
) -> PromptTemplate:
    """The template of a method of the retrieval family.

    Args:
        style: `paper` (wording of table 2 of LLM-SRec), or `compact` (ours, about half the tokens).
        domain: `movie`, `product`, `game` or `business`.
        item_vectors: A vector follows each title (LLaRA, CoLLM, A-LLMRec, LLM-SRec).
        user_vector: The prompt begins with the user's vector (CoLLM, A-LLMRec).
        dates: Lines show dates.

    Returns:
        The template.

    Raises:
        ValueError: An unknown style or domain.

    Example:
        >>> make_template("compact", "movie", dates=False).render_user(["Heat", "Up"])
        'movies in order: 1. Heat[ItemEmb] 2. Up[ItemEmb]. The user:[UserOut]'
    """
    if style not in STYLES:
        raise ValueError(f"`style` must be one of {', '.join(STYLES)}, got {style!r}.")
    if domain not in DOMAINS:
        raise ValueError(f"`domain` must be one of {', '.join(DOMAINS)}, got {domain!r}.")
    words, vector = DOMAINS[domain], Slot.ITEM_VECTOR.text if item_vectors else ""
    switches = [word for word, on in (("items", item_vectors), ("user", user_vector), ("dates", dates)) if on]
    name = "-".join([style, domain, *switches])
    if style == "compact":
        return PromptTemplate(
            name=name,
            user=(f"user:{Slot.USER_VECTOR.text}. " if user_vector else "")
            + f"{words.nouns} in order:{{history}}. The user:{Slot.USER_OUT.text}",
            line=(" {number}, {date}. {title}" if dates else " {number}. {title}") + vector,
            separator="",
            item=f"{words.noun}: {{title}}{vector}. The item:{Slot.ITEM_OUT.text}",
        )
    subject = "this user" if user_vector else "This user"
    return PromptTemplate(
        name=name,
        user=(f"This is the user representation from a recommendation model:{Slot.USER_VECTOR.text}, and " if user_vector else "")
        + f"{subject} {words.did} in the following order:{{history}}. Based on this sequence of {words.sequence}"
        + (" and the user representation" if user_vector else "")
        + f", generate the user representation token:{Slot.USER_OUT.text}",
        line=" Item No.{number}, " + ("Time: {date}, " if dates else "") + f'"{{title}}"{vector}',
        separator=",",
        item=("The item title and item embedding are" if item_vectors else "The item title is")
        + f' as follows: "{{title}}"{vector}, then generate the item representation token:{Slot.ITEM_OUT.text}',
    )  # fmt: skip


@dataclass(frozen=True)
class PromptProgram:
    """A template compiled for one tokenizer: token ids ≥ 0, slots and fields < 0. Plain lists, so that it is saved as JSON.

    Args:
        template: Name of the template.
        version: Version of the template.
        user, line, separator, item: The four wordings.
        start, end: Special tokens that the LLM wants around a text.
        numbers: Tokens of 1, 2, … up to the longest history.
        dates: Tokens of the pieces of a date (`2014`, `-05`, `-03`); empty when the template shows none.
        title_prefix: `" "` when titles follow a space, else empty.
        untitled: Tokens in place of a missing title.
        max_title_tokens: Titles are cut to this many tokens.
        max_tokens: Prompts are at most this long; titles are shortened further where needed.
    """

    template: str
    version: int
    user: list[int]
    line: list[int]
    separator: list[int]
    item: list[int]
    start: list[int]
    end: list[int]
    numbers: list[list[int]]
    title_prefix: str
    untitled: list[int]
    max_title_tokens: int
    max_tokens: int
    dates: dict[str, list[int]] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """As plain lists and numbers."""
        return asdict(self)

    @property
    def history_length(self) -> int:
        """Most items of a history that enter a prompt."""
        return len(self.numbers)

    @property
    def dated(self) -> bool:
        """Whether lines show dates."""
        return Field.DATE in self.line

    def item_prompt(self, title: np.ndarray) -> np.ndarray:
        """Token ids of an item's prompt: (title tokens,) -> (tokens,) int64 with slots."""
        return self._fit(lambda titles: self._fill(self.item, title=titles[0]), [title])

    def user_prompt(self, titles: Sequence[np.ndarray], timestamps: Sequence[int] | None = None) -> np.ndarray:
        """Token ids of a user's prompt.

        Args:
            titles: Title tokens of the history, oldest first, at most `history_length` of them.
            timestamps: Unix seconds of the items, when the template shows dates.

        Returns:
            (tokens,) int64 with slots.

        Raises:
            ValueError: An empty or too long history, missing timestamps, or a prompt that does not fit however short its titles.
        """
        if len(titles) > self.history_length:
            raise ValueError(f"a prompt holds {self.history_length} items of a history, got {len(titles)}.")
        dates = _dates(self.dated, timestamps, len(titles))
        dated = [[token for piece in date for token in self._date_piece(piece)] for date in dates]

        def build(titles):
            lines: list[int] = []
            for number, (title, date) in enumerate(zip(titles, dated, strict=True)):
                lines += self.separator if number else []
                lines += self._fill(self.line, title=title, number=self.numbers[number], date=date)
            return self._fill(self.user, history=lines)

        return self._fit(build, titles)

    def _date_piece(self, piece: str) -> list[int]:
        if piece not in self.dates:
            raise ValueError(
                f"a timestamp lies in the year {piece}; prompts know the years {_FIRST_YEAR} to {_LAST_YEAR}."
            )
        return self.dates[piece]

    @staticmethod
    def _fill(program: list[int], **fields) -> list[int]:
        out: list[int] = []
        for token in program:
            if token <= Field.HISTORY:
                out += list(fields[Field(token).name.lower()])
            else:
                out.append(token)
        return out

    def _fit(
        self,
        build,
        titles: Sequence[np.ndarray],
        reserved: int = 0,
        advice: str = "lower `history_length` or use style='compact'",
    ) -> np.ndarray:
        titles = [title[: self.max_title_tokens] for title in titles]
        tokens = build(titles)
        room = self.max_tokens - len(self.start) - len(self.end) - reserved
        if len(tokens) > room:
            lengths = np.array([len(title) for title in titles])
            room_for_titles = room - (len(tokens) - lengths.sum())
            caps = [cap for cap in range(1, lengths.max() + 1) if np.minimum(lengths, cap).sum() <= room_for_titles]
            if not caps:
                raise ValueError(
                    f"a prompt of {len(titles)} items needs {len(tokens) - lengths.sum() + len(titles)} tokens even with titles "
                    f"of one token, the LLM takes {room}: {advice}."
                )
            tokens = build([title[: caps[-1]] for title in titles])
        return np.array([*self.start, *tokens, *self.end], dtype=np.int64)


_FIRST_YEAR, _LAST_YEAR = 1970, 2069


def _dates(dated: bool, timestamps: Sequence[int] | None, count: int) -> list[tuple[str, ...]]:
    """Year, month and day of each timestamp (UTC); empty pieces when the template shows no dates."""
    if count == 0:
        raise ValueError("the history is empty: a prompt needs at least one item.")
    if not dated:
        return [()] * count
    if timestamps is None or len(timestamps) != count:
        raise ValueError(
            f"the template shows dates, so it needs {count} timestamps, got {None if timestamps is None else len(timestamps)}: "
            "pass `timestamps`, or use a template with dates=False for data of which only the order is known."
        )
    days = np.asarray(timestamps).astype("datetime64[s]").astype("datetime64[D]").astype(str)
    return [(day[:-6], day[-6:-3], day[-3:]) for day in days]


def compile_template(
    template: PromptTemplate, tokenizer, history_length: int = 10, max_title_tokens: int = 32, max_tokens: int = 1024
) -> PromptProgram:
    """Tokenize a template.

    Args:
        template: The wordings.
        tokenizer: The LLM's fast tokenizer.
        history_length: Most items of a history that enter a prompt.
        max_title_tokens: Titles are cut to this many tokens.
        max_tokens: Longest prompt the LLM takes.

    Returns:
        The program.

    Raises:
        ValueError: A length below 1.
    """
    for name, value in (
        ("history_length", history_length),
        ("max_title_tokens", max_title_tokens),
        ("max_tokens", max_tokens),
    ):
        if value < 1:
            raise ValueError(f"`{name}` must be at least 1, got {value}.")
    start, end = special_tokens_around(tokenizer)
    # The space before a field belongs to the first token of what fills it, as in running text.
    prefix = " " if " {title}" in template.item else ""
    programs = {
        name: _compile(getattr(template, name).replace(" {title}", "{title}"), tokenizer)
        for name in ("user", "line", "separator", "item")
    }
    dates = [str(year) for year in range(_FIRST_YEAR, _LAST_YEAR + 1)] + [f"-{number:02}" for number in range(1, 32)]
    return PromptProgram(
        template=template.name,
        version=template.version,
        start=start,
        end=end,
        numbers=tokenize_texts([str(number) for number in range(1, history_length + 1)], tokenizer),
        dates=dict(zip(dates, tokenize_texts(dates, tokenizer), strict=True)) if template.dated else {},
        title_prefix=prefix,
        untitled=tokenize_texts([prefix + UNTITLED], tokenizer)[0][:max_title_tokens],
        max_title_tokens=max_title_tokens,
        max_tokens=max_tokens,
        **programs,
    )


def tokenize_titles(titles: Sequence[str | None], tokenizer, program: PromptProgram) -> tuple[np.ndarray, np.ndarray]:
    """Tokens of all titles, one after another.

    Args:
        titles: One per item, None where there is none.
        tokenizer: The LLM's tokenizer.
        program: Says how titles are cut.

    Returns:
        int32 tokens (total,), and int64 offsets (len(titles) + 1,); title `r` owns `tokens[offsets[r]:offsets[r + 1]]`.
    """
    rows = tokenize_texts([program.title_prefix + clean_title(title) for title in titles], tokenizer)
    rows = [row[: program.max_title_tokens] or program.untitled for row in rows]
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in rows], dtype=np.int64)])
    return np.fromiter((token for row in rows for token in row), dtype=np.int32, count=int(offsets[-1])), offsets


def special_tokens_around(tokenizer) -> tuple[list[int], list[int]]:
    """Special tokens that a tokenizer puts before and after a text, for example `[CLS]` and `[SEP]`."""
    bare, full = tokenize_texts(["a"], tokenizer)[0], list(tokenizer("a").input_ids)
    for begin in range(len(full) - len(bare) + 1):
        if bare and full[begin : begin + len(bare)] == bare:
            return full[:begin], full[begin + len(bare) :]
    raise ValueError(
        f"{type(tokenizer).__name__} tokenizes 'a' differently with special tokens; it cannot be used for prompts."
    )


def _compile(text: str, tokenizer) -> list[int]:
    program: list[int] = []
    for piece in filter(None, _PLACE.split(text)):
        program += [int(_PLACES[piece])] if piece in _PLACES else tokenize_texts([piece], tokenizer)[0]
    return program


def tokenize_texts(texts: list[str], tokenizer) -> list[list[int]]:
    """Tokens of texts, strings like `</s>` in them being text, too."""
    return [
        list(row)
        for row in tokenizer(texts, add_special_tokens=False, split_special_tokens=True, verbose=False).input_ids
    ]
