"""Prompts in which a language model chooses among candidates: a history, a list of candidates, and a place for the answer.

Templates are compiled as in `prompting.py`: text piece by piece into token ids, titles never into slots, and what must be cut is
cut from titles. `[Answer]` is where a title or the label of a candidate is scored (`verbalizers.py`); `[SoftPrompt]` holds trained
vectors. Equal titles are told apart by numbers behind them ([`distinct_titles`]).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .prompting import (
    DOMAINS,
    TEMPLATE_VERSION,
    UNTITLED,
    Field,
    PromptProgram,
    Slot,
    _compile,
    clean_title,
    special_tokens_around,
    tokenize_texts,
)


ANSWERS = ("plain", "sentinel")
LABELS = ("letters", "numbers")
TASKS = ("title", "index", "point", "pair")

# Fields of a template that hold lists of titles, `candidates` with a wording of its own.
TITLE_FIELDS = ("history", "candidates", "hint", "next", "example_history", "example_next", "example_answer")


@dataclass(frozen=True)
class CandidateTemplate:
    """Wording of a prompt that asks for one of several candidates.

    Args:
        name: For people.
        prompt: Has one ` [Answer]`, for decoder-only LLMs at its end; any of the fields `{history}`, `{candidates}`, `{hint}`,
            `{next}`, `{example_history}`, `{example_next}`, `{example_answer}`, all lists of titles; and `[SoftPrompt]` where the
            soft prompts stand.
        line: One title of a list: ` {title}`, with its white space, optionally `{number}`.
        separator: Between two of them.
        candidate: One title of `{candidates}`: ` {title}`, with its white space, optionally ` {label}` or `{number}`.
        candidate_separator: Between two candidates.
        answer_end: Text that ends a title in a decoder-only LLM's answer and is scored with it.
        version: `TEMPLATE_VERSION` of the release that made it.
    """

    name: str
    prompt: str
    line: str = " {title}"
    separator: str = ";"
    candidate: str = " {title}"
    candidate_separator: str = ";"
    answer_end: str = "."
    version: int = TEMPLATE_VERSION

    def render(self, titles: Mapping[str, Sequence[str | None]], labels: Sequence[str] = ()) -> str:
        """The prompt as text, titles whole, slots in brackets.

        Args:
            titles: Titles of each field of the template, for example `{"history": […], "candidates": […]}`.
            labels: Labels of the candidates, when they have any.

        Returns:
            The text.
        """
        text = self.prompt
        for name, row in titles.items():
            line = self.candidate if name == "candidates" else self.line
            separator = self.candidate_separator if name == "candidates" else self.separator
            rows = [
                line.replace("{number}", str(number + 1))
                .replace("{label}", labels[number] if "{label}" in line else "")
                .replace("{title}", clean_title(title))
                for number, title in enumerate(row)
            ]
            text = text.replace(f"{{{name}}}", separator.join(rows))
        return text


def make_candidate_template(
    task: str = "title", domain: str = "product", hint: bool = False, soft: bool = False, backbone: str = "recommender"
) -> CandidateTemplate:
    """The template of a method that ranks candidates with an LLM's own head.

    Args:
        task: `title`: the answer is the title of a candidate; `index`: the label of a candidate (LlamaRec, list-wise RecRanker);
            `point`: yes or no to a single candidate; `pair`: the label of the better of two.
        domain: `movie`, `product`, `game` or `business`.
        hint: Shows what a backbone would recommend (RecRanker).
        soft: Has soft prompts, before everything that changes from user to user.
        backbone: What the text calls the backbone of the hint or of the soft prompts.

    Returns:
        The template.

    Raises:
        ValueError: An unknown task or domain.

    Example:
        >>> make_candidate_template("title", "movie").render({"history": ["Heat", "Up"], "candidates": ["Alien", "Ran"]})
        'This user has watched a series of movies, oldest first: Heat; Up. Candidates: Alien; Ran. The next movie is: [Answer]'
    """
    if task not in TASKS:
        raise ValueError(f"`task` must be one of {', '.join(TASKS)}, got {task!r}.")
    if domain not in DOMAINS:
        raise ValueError(f"`domain` must be one of {', '.join(DOMAINS)}, got {domain!r}.")
    words = DOMAINS[domain]
    prompt = f"The habits of {backbone} are:{Slot.SOFT_PROMPT.text}. " if soft else ""
    prompt += f"This user {words.did}, oldest first:{{history}}. "
    if hint:
        prompt += f"{backbone[:1].upper()}{backbone[1:]} suggests these {words.nouns}, best first:{{hint}}. "
    prompt += {
        "title": f"Candidates:{{candidates}}. The next {words.noun} is: [Answer]",
        "index": f"Candidates:{{candidates}}. The label of the next {words.noun} is: [Answer]",
        "point": f"Is this the next {words.noun}?{{candidates}}. Answer yes or no: [Answer]",
        "pair": f"Two candidates:{{candidates}}. The label of the more likely next {words.noun} is: [Answer]",
    }[task]
    switches = [word for word, on in (("hint", hint), ("soft", soft)) if on]
    labelled = task in ("index", "pair")
    return CandidateTemplate(
        name="-".join([task, domain, *switches]),
        prompt=prompt,
        candidate=" {label}: {title}" if labelled else " {title}",
    )


@dataclass(frozen=True)
class Answer:
    """What surrounds an answer, in token ids.

    Args:
        fill: In the answer slot of what an encoder reads: a sentinel, or nothing; of a masked LLM its mask token, which is repeated.
        begin: Between the decoder's start token and the answer (encoder-decoder LLMs).
        end: Behind a title, scored with it.
        labels: One token per candidate, in the order of the prompt's list; for yes-no questions those of yes and no.
        masks: Of a masked LLM: number of masks in the prompt; None: as many as the title has tokens.
    """

    fill: list[int] = field(default_factory=list)
    begin: list[int] = field(default_factory=list)
    end: list[int] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    masks: int | None = None


@dataclass(frozen=True)
class CandidateProgram(PromptProgram):
    """A [`CandidateTemplate`] compiled for one LLM: token ids ≥ 0, slots and fields < 0. `user` is the prompt, `item` is empty.

    Args:
        candidate, candidate_separator: The wordings of the list of candidates.
        num_soft: Number k of soft prompts, all in one place.
        answer_fill, answer_begin, answer_end, labels, masks: See [`Answer`].
        answer_room: Tokens kept free for the answer.
        history_limit: Most items of a history.
    """

    candidate: list[int] = field(default_factory=list)
    candidate_separator: list[int] = field(default_factory=list)
    num_soft: int = 0
    answer_fill: list[int] = field(default_factory=list)
    answer_begin: list[int] = field(default_factory=list)
    answer_end: list[int] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    masks: int | None = None
    answer_room: int = 0
    history_limit: int = 10

    @property
    def history_length(self) -> int:
        """Most items of a history that enter a prompt."""
        return self.history_limit

    @property
    def answer(self) -> Answer:
        """What surrounds the answer, for a `Verbalizer`."""
        return Answer(self.answer_fill, self.answer_begin, self.answer_end, self.labels, self.masks)

    @property
    def fields(self) -> list[str]:
        """Names of the lists of titles that a prompt needs."""
        return [name for name in TITLE_FIELDS if Field[name.upper()] in self.user]

    def prompt(self, titles: Mapping[str, Sequence[np.ndarray]]) -> np.ndarray:
        """Token ids of a prompt.

        Args:
            titles: Title tokens of each field, in the order in which they shall stand; exactly the fields of the template.

        Returns:
            (tokens,) int64 with slots.

        Raises:
            KeyError: Fields are missing or left over. ValueError: an empty or too long history, more candidates than labels, or a
                prompt that does not fit the LLM's context however short its titles.
        """
        if set(titles) != set(self.fields):
            raise KeyError(f"the template has the lists {', '.join(self.fields)}, got {', '.join(titles) or 'none'}.")
        history, candidates = titles.get("history", ()), titles.get("candidates", ())
        if "history" in titles and not 1 <= len(history) <= self.history_length:
            raise ValueError(
                f"a prompt holds 1 to {self.history_length} items of a history, got {len(history)}: cut it to the most recent ones."
            )
        if Field.LABEL in self.candidate and len(candidates) > len(self.labels):
            raise ValueError(
                f"{len(candidates)} candidates need as many labels, the prompt knows {len(self.labels)}: lower the number of "
                "candidates, or compile the prompt for more."
            )
        sizes = [len(titles[name]) for name in self.fields]

        def build(flat: list[np.ndarray]) -> list[int]:
            ends = np.cumsum(sizes)
            rows = {
                name: flat[end - size : end] for name, size, end in zip(self.fields, sizes, ends.tolist(), strict=True)
            }
            return self._fill(self.user, **{name: self._list(name, row) for name, row in rows.items()})

        flat = [title for name in self.fields for title in titles[name]]
        advice = "use fewer candidates or a shorter history, or an LLM with a longer context"
        return self._fit(build, flat, self.answer_room, advice)

    def _list(self, name: str, titles: Sequence[np.ndarray]) -> list[int]:
        is_candidates = name == "candidates"
        line, separator = (self.candidate, self.candidate_separator) if is_candidates else (self.line, self.separator)
        tokens: list[int] = []
        for number, title in enumerate(titles):
            label = [self.labels[number]] if Field.LABEL in line else []
            tokens += separator if number else []
            counted = self.numbers[number] if Field.NUMBER in line else []
            tokens += self._fill(line, title=title, number=counted, label=label)
        return tokens


def compile_candidate_template(
    template: CandidateTemplate,
    tokenizer,
    llm_kind: str,
    num_soft: int = 0,
    history_length: int = 10,
    num_candidates: int = 20,
    max_title_tokens: int = 32,
    max_tokens: int = 1024,
    answer: str = "plain",
    labels: str | Sequence[str] = "letters",
    num_masks: int | None = None,
) -> CandidateProgram:
    """Tokenize a template for one LLM.

    Args:
        template: The wording.
        tokenizer: The LLM's fast tokenizer.
        llm_kind: `decoder`, `encoder-decoder` or `encoder` (a masked LLM), see `llm.llm_kind`.
        num_soft: Number k of soft prompts in place of `[SoftPrompt]`.
        history_length: Most items of a history that enter a prompt.
        num_candidates: Most candidates in a prompt.
        max_title_tokens: Titles are cut to this many tokens.
        max_tokens: Longest prompt the LLM takes, with the answer of those that continue it.
        answer: Of an encoder-decoder: `plain` decodes the answer as trained for instructions; `sentinel` fills `<extra_id_0>` of
            the prompt (T5).
        labels: `letters` (A, B, …), `numbers` (1, 2, …), or the words themselves, such as `["yes", "no"]`; each must be one token.
        num_masks: Of a masked LLM: masks in the answer slot, of which a title fills the first ones (longer ones are cut), so that one
            pass answers for all candidates; None: as many as the title has tokens, one pass for each length.

    Returns:
        The program.

    Raises:
        ValueError: No or several answer slots, text behind the answer slot of a decoder-only LLM, soft prompts without a place or a
            place without them, labels that are not single distinct tokens, or a tokenizer without mask or sentinel tokens.
    """
    for name, value in (("history_length", history_length), ("num_candidates", num_candidates), ("num_masks", num_masks),
                        ("max_title_tokens", max_title_tokens), ("max_tokens", max_tokens)):  # fmt: skip
        if value is not None and value < 1:
            raise ValueError(f"`{name}` must be at least 1, got {value}.")
    slots = {slot: template.prompt.count(slot.text) for slot in Slot}
    if slots[Slot.ANSWER] != 1:
        raise ValueError(f"a template needs exactly one [Answer], {template.name!r} has {slots[Slot.ANSWER]}.")
    if slots[Slot.SOFT_PROMPT] != (num_soft > 0):
        raise ValueError(
            f"the template {template.name!r} has {slots[Slot.SOFT_PROMPT]} places [SoftPrompt] for `num_soft={num_soft}` vectors: "
            "give one place with vectors, or none of both."
        )
    if llm_kind == "decoder" and not template.prompt.endswith(Slot.ANSWER.text):
        raise ValueError(f"a decoder-only LLM cannot see text behind [Answer]; {template.name!r} must end with it.")
    label_tokens: list[int] = []
    head: list[int] = []
    spaced = True  # the space before an answer belongs to its first token, as in running text
    if not isinstance(labels, str) or "{label}" in template.candidate:
        label_tokens, head, spaced = _label_tokens(labels, num_candidates, tokenizer)
    start, end = special_tokens_around(tokenizer)
    programs: dict[str, Any] = {}
    for name in ("prompt", "line", "separator", "candidate", "candidate_separator"):
        text = getattr(template, name).replace(" {title}", "{title}")
        if spaced:
            text = text.replace(" {label}", "{label}").replace(f" {Slot.ANSWER.text}", Slot.ANSWER.text)
        programs[name] = []
        for token in _compile(text, tokenizer):
            programs[name] += head if token in (Field.LABEL, Slot.ANSWER) else []
            programs[name] += [token] * (num_soft if token == Slot.SOFT_PROMPT else 1)
    surroundings = _answer_tokens(answer, llm_kind, tokenizer, start, end, template.answer_end)
    longest = 1 if label_tokens else (num_masks or max_title_tokens) + len(surroundings["answer_end"])
    return CandidateProgram(
        template=template.name,
        version=template.version,
        user=programs.pop("prompt"),
        item=[],
        start=start,
        end=[] if llm_kind == "decoder" else end,
        numbers=tokenize_texts([str(number + 1) for number in range(max(history_length, num_candidates))], tokenizer),
        title_prefix=" ",
        untitled=tokenize_texts([" " + UNTITLED], tokenizer)[0][:max_title_tokens],
        max_title_tokens=max_title_tokens,
        max_tokens=max_tokens,
        num_soft=num_soft,
        labels=label_tokens,
        masks=num_masks if llm_kind == "encoder" else None,
        answer_room=len(surroundings["answer_fill"]) if llm_kind == "encoder-decoder" else longest,
        history_limit=history_length,
        **programs,
        **surroundings,
    )


def _answer_tokens(answer: str, llm_kind: str, tokenizer, start, end, answer_end: str) -> dict[str, Any]:
    if answer not in ANSWERS:
        raise ValueError(f"`answer` must be one of {', '.join(ANSWERS)}, got {answer!r}.")
    if answer == "sentinel" and llm_kind != "encoder-decoder":
        raise ValueError(f"answer='sentinel' is for encoder-decoder LLMs such as T5, this one is of kind {llm_kind}.")
    if llm_kind == "decoder":
        return {"answer_fill": [], "answer_begin": [], "answer_end": tokenize_texts([answer_end], tokenizer)[0]}
    if llm_kind == "encoder":
        if tokenizer.mask_token_id is None:
            raise ValueError(
                f"{type(tokenizer).__name__} has no mask token, so its LLM cannot be asked for an answer."
            )
        return {"answer_fill": [tokenizer.mask_token_id], "answer_begin": [], "answer_end": []}
    if answer == "plain":
        return {"answer_fill": [], "answer_begin": start, "answer_end": end}
    sentinels = [tokenizer.convert_tokens_to_ids(f"<extra_id_{number}>") for number in (0, 1)]
    if None in sentinels or tokenizer.unk_token_id in sentinels:
        raise ValueError(f"{type(tokenizer).__name__} has no <extra_id_0>: use answer='plain'.")
    return {"answer_fill": sentinels[:1], "answer_begin": sentinels[:1], "answer_end": sentinels[1:]}


def _label_tokens(labels: str | Sequence[str], count: int, tokenizer) -> tuple[list[int], list[int], bool]:
    """One token per label, tokens that stand before every label, and whether these hold the space before it."""
    if isinstance(labels, str):
        if labels not in LABELS:
            raise ValueError(f"`labels` must be one of {', '.join(LABELS)} or a list of words, got {labels!r}.")
        letters = [chr(code) for first in "Aa" for code in range(ord(first), ord(first) + 26)]
        words = letters[:count] if labels == "letters" else [str(number + 1) for number in range(count)]
        if len(words) < count:
            raise ValueError(f"there are {len(words)} letters for {count} candidates: use labels='numbers'.")
    else:
        words = list(labels)
    for prefix in (" ", ""):
        rows = tokenize_texts([prefix + word for word in words], tokenizer)
        head, tokens = rows[0][:-1], [row[-1] for row in rows if row]
        alike = all(row[:-1] == head for row in rows)
        if alike and len(set(tokens)) == len(words) and tokenizer.unk_token_id not in tokens:
            return tokens, head, prefix == " "
    raise ValueError(
        f"the labels {words[0]!r} … {words[-1]!r} are not one token each for this tokenizer: use other `labels` "
        f"({', '.join(LABELS)}, or a list of words), or fewer candidates."
    )


def distinct_titles(
    tokens: np.ndarray, offsets: np.ndarray, tokenizer, max_title_tokens: int
) -> tuple[np.ndarray, np.ndarray]:
    """Put a number behind titles whose tokens repeat earlier ones, so that every item has a title of its own.

    Args:
        tokens: (total,) tokens of all titles one after another, as `tokenize_titles` gives them.
        offsets: (num_items + 1,) where each title begins.
        tokenizer: The LLM's tokenizer.
        max_title_tokens: Longest title; a numbered one is cut before its number.

    Returns:
        int32 tokens and int64 offsets of the same form. The first item of a title keeps it as it is, so items that are added later
        change nothing.

    Raises:
        ValueError: Titles are too short to be told apart.

    Example:
        The second item called *Heat* becomes *Heat (2)*, an item without a title *No title (2)*.
    """
    taken: set[bytes] = set()
    counts: Counter[bytes] = Counter()
    rows = []
    for begin, end in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True):
        title = row = tokens[begin:end].astype(np.int32)
        while row.tobytes() in taken:
            counts[title.tobytes()] += 1
            number = tokenize_texts([f" ({counts[title.tobytes()] + 1})"], tokenizer)[0]
            if len(number) >= max_title_tokens:
                raise ValueError(
                    f"titles of {max_title_tokens} tokens leave no room for the number behind equal ones: raise `max_title_tokens`."
                )
            row = np.concatenate([title[: max_title_tokens - len(number)], np.array(number, dtype=np.int32)])
        taken.add(row.tobytes())
        rows.append(row)
    lengths = np.fromiter(map(len, rows), dtype=np.int64, count=len(rows))
    return np.concatenate([np.zeros(0, np.int32), *rows]), np.concatenate([[0], np.cumsum(lengths)])
