"""Scores of items from an LLM's own head: how likely is a candidate's title, or its label, as the answer to a prompt.

[`load_language_model`] loads any LLM with its head; a [`Verbalizer`] runs prompts of `candidate_prompts.py` through it. A user's
prompt is read once and shared by all candidates: as keys and values (decoder-only), as encoder output with the decoder's
cross-attention (encoder-decoder), or in one pass per length of title (masked LLMs, whose prompt holds the masks).
"""

import copy
import inspect
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    DynamicCache,
    EncoderDecoderCache,
    PreTrainedModel,
)
from transformers.cache_utils import DynamicLayer
from transformers.modeling_outputs import (
    BaseModelOutput,
    BaseModelOutputWithPastAndCrossAttentions,
    MaskedLMOutput,
)
from transformers.utils import logging

from .candidate_prompts import Answer
from .llm import (
    _ACCESS_KEYS,
    PromptEncoder,
    SlotVectors,
    _quantization_config,
    check_llm_place,
    llm_kind,
    pad,
    weight_versions,
    without_dropout,
)
from .prompting import Slot


logger = logging.get_logger(__name__)

VERBALIZERS = ("title_likelihood", "index_token", "first_token")
HEADS = ("trained", "tied")

_AUTO_CLASSES: dict[str, Any] = {
    "decoder": AutoModelForCausalLM,
    "encoder-decoder": AutoModelForSeq2SeqLM,
    "encoder": AutoModelForMaskedLM,
}
_OVERFLOWS_IN_FP16 = ("t5", "mt5", "umt5", "longt5")

# Tokens (padding included) in one pass. Prompts in a pass share what they begin with; continuations also hold copies of their
# prompt's keys and values, of which a pass may hold _CACHED_PER_TOKEN times as many.
_TOKENS = {"cpu": 2048, "cuda": 32768}
_CACHED_PER_TOKEN = 16
# Most tokens of answers side by side in one row; each of them is compared with each.
_PACK = 512
# A shared beginning shorter than this is not worth a pass of its own.
_WORTH_A_PASS = 16


class TiedHeadLM(PreTrainedModel):
    """A text encoder whose states are compared with its own table of token vectors, in place of a trained head.

    Args:
        config: Of the encoder.
        model: The encoder; one with random weights when None.
    """

    base_model_prefix = "model"
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True

    def __init__(self, config, model: PreTrainedModel | None = None):
        super().__init__(config)
        self.model = AutoModel.from_config(config) if model is None else model
        if getattr(self.model, "pooler", None) is not None:
            self.model.pooler = None  # never read, and adapters on it would never train
        self.post_init()  # leaves weights alone that were loaded or drawn already

    def get_input_embeddings(self):
        """The table of token vectors."""
        return self.model.get_input_embeddings()

    def forward(self, **inputs) -> MaskedLMOutput:
        """Logits (batch, length, vocabulary); `inputs` are the encoder's."""
        states = self.model(**inputs).last_hidden_state
        return MaskedLMOutput(logits=states @ self.get_input_embeddings().weight.T.to(states.dtype))


def load_language_model(
    name_or_path: str,
    revision: str | None = None,
    dtype: str | torch.dtype = "auto",
    attn_implementation: str | None = None,
    quantization: str | None = None,
    head: str = "trained",
    **kwargs,
) -> PreTrainedModel:
    """Load an LLM with its language-model head, frozen, without dropout.

    Args:
        name_or_path: Hub id or folder of a causal, an encoder-decoder or a masked language model.
        revision: Commit, tag or branch.
        dtype: Of the weights; `"auto"` is the checkpoint's.
        attn_implementation: `eager`, `sdpa`, `flash_attention_2`, …; None lets transformers choose.
        quantization: `"8bit"` or `"4bit"` (bitsandbytes on a GPU), or None.
        head: `trained`: the checkpoint's; `tied`: states are compared with the table of token vectors (text encoders, such as
            MiniLM, that come without a head).
        kwargs: For `from_pretrained`, for example `token` or `device_map`.

    Returns:
        The model in evaluation mode.

    Raises:
        ValueError: The checkpoint has no head, the architecture is none of the three kinds, or `head` is unknown.
        ImportError: Quantization without bitsandbytes or GPU. FileNotFoundError: no such folder.

    Example:
        >>> llm = load_language_model("google/flan-t5-small")  # doctest: +SKIP
    """
    check_llm_place(name_or_path)
    if quantization is not None:
        kwargs["quantization_config"] = _quantization_config(quantization)
    access = {key: kwargs[key] for key in _ACCESS_KEYS if key in kwargs}
    config = without_dropout(AutoConfig.from_pretrained(name_or_path, revision=revision, **access))
    kwargs |= {"config": config, "revision": revision, "dtype": dtype, "attn_implementation": attn_implementation}
    auto = _auto_class(config, head, name_or_path)
    llm, report = auto.from_pretrained(name_or_path, output_loading_info=True, **kwargs)
    missing = sorted(report["missing_keys"]) if head == "trained" else []
    if missing:
        advice = "use `head='tied'`, or " if llm_kind(config) == "encoder" else ""
        raise ValueError(
            f"{name_or_path} has no trained language-model head ({', '.join(missing[:3])} and others are missing): {advice}name a "
            f"checkpoint that was saved with one (as {type(llm).__name__})."
        )
    if llm.dtype == torch.float16 and config.model_type in _OVERFLOWS_IN_FP16:
        logger.warning(
            f"{name_or_path} is a {config.model_type} model in float16, in which its feed-forward layers overflow to inf or NaN: "
            "load it with dtype='bfloat16' or 'float32'."
        )
    return _freeze(TiedHeadLM(config, llm) if head == "tied" else llm)


def build_language_model(config: dict[str, Any], head: str = "trained") -> PreTrainedModel:
    """An LLM with head and random weights from its configuration as a dictionary; see [`load_language_model`] for trained ones."""
    values = dict(config)
    built = without_dropout(AutoConfig.for_model(values.pop("model_type"), **values))
    if head == "tied":
        return _freeze(TiedHeadLM(built))
    return _freeze(_auto_class(built, head, built.model_type).from_config(built))


def _auto_class(config, head: str, name: str):
    if head not in HEADS:
        raise ValueError(f"`head` must be one of {', '.join(HEADS)}, got {head!r}.")
    kind = llm_kind(config)
    if head == "tied":
        if kind != "encoder":
            raise ValueError(f"head='tied' is for text encoders, {name} is of kind {kind}: use head='trained'.")
        return AutoModel
    auto = _AUTO_CLASSES[kind]
    if type(config) not in auto._model_mapping:
        raise ValueError(
            f"{name} ({config.model_type}) has no language-model head: name a causal, an encoder-decoder or a masked language model."
        )
    return auto


def _freeze(llm: PreTrainedModel) -> PreTrainedModel:
    return llm.requires_grad_(False).eval()


class _Given(nn.Module):
    """Stands for a base model whose states are known already; for everything else it refers to that model."""

    def __init__(self, states: torch.Tensor, base: nn.Module):
        super().__init__()
        self.states = states
        self.__dict__["base"] = base  # no part of this module

    def __getattr__(self, name: str):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.__dict__["base"], name)

    def forward(self, *args, **kwargs) -> BaseModelOutputWithPastAndCrossAttentions:
        return BaseModelOutputWithPastAndCrossAttentions(last_hidden_state=self.states)


class _Reading(NamedTuple):
    """Prompts that were read once, to be continued by the answers of their candidates."""

    first: torch.Tensor  # (rows, vocabulary) logits of the answer's first token
    cache: Any  # keys and values of the prompts; None where an LLM keeps others
    mask: torch.Tensor  # (rows, tokens)
    lengths: torch.Tensor  # (rows,) tokens of each prompt
    states: torch.Tensor | None = None  # (rows, tokens, width) of the encoder


class Verbalizer(PromptEncoder):
    """An LLM that scores candidates as answers to prompts with slots.

    Args:
        llm: From [`load_language_model`].
        answer: What surrounds an answer, `CandidateProgram.answer`.
        method: `title_likelihood`: mean log-probability of the tokens of a candidate's title (and of what ends it), read by
            teacher forcing; `index_token`: log-probability of the candidate's label among the labels in use; `first_token`:
            log-probability of the first token of its title, as DELRec's published code has it, equal for titles that begin alike.
        token_budget: Tokens in one pass, padding included; None chooses by device.
        share_prefix: Read a prompt once for all its candidates; of decoder-only LLMs also what all prompts begin with, up to and
            including slots whose vectors are the same in every prompt, and without gradients once for many calls. False reads
            every pair of prompt and candidate by itself.

    Raises:
        ValueError: An unknown method, `index_token` without labels, or a masked LLM without a mask token.
    """

    def __init__(
        self,
        llm: PreTrainedModel,
        answer: Answer,
        method: str = "title_likelihood",
        token_budget: int | None = None,
        share_prefix: bool = True,
    ):
        super().__init__(llm, token_budget, share_prefix)
        if method not in VERBALIZERS:
            raise ValueError(f"`method` must be one of {', '.join(VERBALIZERS)}, got {method!r}.")
        if method == "index_token" and not answer.labels:
            raise ValueError("index_token needs labels: compile the prompt from a template with {label}.")
        if self.kind == "encoder" and len(answer.fill) != 1:
            raise ValueError(
                "a masked LLM needs its mask token in `answer.fill`: compile the prompt for kind 'encoder'."
            )
        self.answer, self.method = answer, method
        self.share_prefix = share_prefix  # also encoder-decoder LLMs share what they read
        self._warned = False
        self._remembered: tuple[Any, torch.Tensor, Any] | None = None
        self._takes_positions = "position_ids" in inspect.signature(llm.forward).parameters
        # Positions enter rotary models nowhere but through `position_ids`, so that answers may stand side by side.
        rotary = getattr(llm.config, "rope_parameters", None) is not None
        self._packs = self.kind == "decoder" and rotary and self._takes_positions

    def train(self, mode: bool = True):
        """Set the mode; what was remembered of the LLM before is forgotten."""
        self._remembered = None
        return super().train(mode)

    def forward(  # type: ignore[override]
        self,
        prompts: list[np.ndarray],
        vectors: dict[Slot, SlotVectors] | None,
        candidates: torch.Tensor,
        titles: tuple[np.ndarray, np.ndarray],
        places: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Log scores of candidates.

        Args:
            prompts: Token ids with slots, one per row, each with one answer slot; from `CandidateProgram.prompt`.
            vectors: What fills the other slots; `SlotVectors(values)` without counts puts the same k vectors into every prompt.
            candidates: (rows, m) item_index; 0 is nobody and scores -inf.
            titles: int32 tokens (total,) and int64 offsets (num_items + 1,) of all titles, as `title_tokens` gives them.
            places: (rows, m) 0-based place of each candidate in its prompt's list, for `index_token`; 0 … m - 1 when None.

        Returns:
            (rows, m) float32, differentiable with respect to `vectors` and trained weights of the LLM. Neither the order nor the
            company of a row or candidate changes its score (`index_token` is normalised over the labels in use).

        Raises:
            ValueError: A prompt without exactly one answer slot, slots without vectors, or shapes that do not fit.
        """
        if candidates.dim() != 2 or len(candidates) != len(prompts):
            raise ValueError(
                f"`candidates` must be ({len(prompts)}, m), one row per prompt, got {tuple(candidates.shape)}."
            )
        somebody = candidates.to(self.device) > 0
        if int(candidates.max()) >= len(titles[1]):
            raise ValueError(f"`candidates` name item {int(candidates.max())}, `titles` end at {len(titles[1]) - 1}.")
        question = self._question(prompts, vectors or {})
        tokens, offsets = titles
        if self.method == "title_likelihood":
            row, column = somebody.nonzero(as_tuple=True)
            end = np.array(self.answer.end, dtype=np.int64)
            items = candidates[row.to(candidates.device), column.to(candidates.device)].tolist()
            answers = [np.concatenate([tokens[offsets[item - 1] : offsets[item]], end]) for item in items]
            values = self._mean_log_likelihood(question, row.cpu().numpy(), answers)
            scores = torch.full(candidates.shape, -torch.inf, device=self.device)
            return scores.index_put((row, column), values)
        logits = self._first_logits(question)
        if self.method == "first_token":
            first = torch.from_numpy(tokens[offsets[:-1]].astype(np.int64)).to(self.device)
            wanted = first[(candidates.to(self.device) - 1).clamp(min=0)]
            self._warn_of_ties(wanted, somebody)
            scores = logits.log_softmax(1).gather(1, wanted)
            return scores.masked_fill(~somebody, -torch.inf)
        if candidates.shape[1] > len(self.answer.labels):
            raise ValueError(f"{candidates.shape[1]} candidates for {len(self.answer.labels)} labels: give fewer.")
        labels = torch.tensor(self.answer.labels, device=self.device)
        wanted = labels[: candidates.shape[1]].expand(len(prompts), -1)
        if places is not None:
            wanted = wanted.gather(1, places.to(self.device))
        return logits.gather(1, wanted).masked_fill(~somebody, -torch.inf).log_softmax(1)

    def _warn_of_ties(self, first: torch.Tensor, somebody: torch.Tensor) -> None:
        if self._warned:
            return
        self._warned = True
        equal = (first.unsqueeze(2) == first.unsqueeze(1)) & somebody.unsqueeze(1) & somebody.unsqueeze(2)
        tied = (equal.sum(2) > 1) & somebody
        rate = float(tied.sum() / somebody.sum().clamp(min=1))
        logger.warning(
            f"first_token cannot tell apart titles that begin with the same token: {rate:.1%} of the first candidates seen are tied "
            "with another one of their list. Use title_likelihood or index_token unless the published behaviour is wanted."
        )

    # Prompts -------------------------------------------------------------------------------------------------------------

    def _question(self, prompts: list[np.ndarray], vectors: dict[Slot, SlotVectors]) -> "_Question":
        """Check prompts and take the answer slot out: nothing stays there (decoders), a sentinel, or one mask."""
        found = np.array([np.count_nonzero(prompt == Slot.ANSWER) for prompt in prompts])
        if (found != 1).any():
            row = int(np.flatnonzero(found != 1)[0])
            raise ValueError(f"prompt {row} has {found[row]} slots {Slot.ANSWER.text}, need exactly 1.")
        places = np.array([int(np.flatnonzero(prompt == Slot.ANSWER)[0]) for prompt in prompts])
        for row, (prompt, place) in enumerate(zip(prompts, places, strict=True)):
            if self.kind == "decoder" and place + 1 < len(prompt):
                raise ValueError(
                    f"prompt {row} has {len(prompt) - place - 1} tokens behind {Slot.ANSWER.text}, which a decoder-only LLM cannot "
                    "see when it answers: end the prompt with the slot."
                )
            if self.kind == "decoder" and place == 0:
                raise ValueError(
                    f"prompt {row} has nothing before {Slot.ANSWER.text}: a decoder-only LLM needs a token."
                )
        texts = [
            np.concatenate([prompt[:place], np.array(self.answer.fill, np.int64), prompt[place + 1 :]])
            for prompt, place in zip(prompts, places.tolist(), strict=True)
        ]
        return _Question(texts, places, vectors, self._check(texts, vectors, None))

    def _batches(self, lengths: np.ndarray, equal: bool = False) -> Iterator[np.ndarray]:
        """Rows of similar (or `equal`) length, longest first, within the budget."""
        budget = self.token_budget or _TOKENS.get(self.device.type, 8192)
        order = np.argsort(-lengths, kind="stable")
        begin = 0
        while begin < len(order):
            longest = int(lengths[order[begin]])
            end = begin + max(1, budget // longest)
            if equal:
                end = min(end, begin + int((lengths[order[begin:]] == longest).sum()))
            yield order[begin:end]
            begin = end

    def _readings(self, question: "_Question") -> Iterator[tuple[np.ndarray, _Reading]]:
        """Every prompt read once: rows and what continues them (not for masked LLMs)."""
        lengths = np.array([len(text) for text in question.texts])
        # An LLM that does not take positions counts padding, too, when it goes on behind a prompt.
        equal = self.kind == "decoder" and not self._takes_positions
        for rows in self._batches(lengths, equal):
            ids, mask = pad([question.texts[row] for row in rows], self.device)
            embeds = self._embed(ids, question.vectors, question.taken, rows)
            read = self._read_encoder if self.kind == "encoder-decoder" else self._read_decoder
            yield rows, read(embeds, mask)

    def _read_decoder(self, embeds: torch.Tensor, mask: torch.Tensor) -> _Reading:
        begin, cache = self._shared_beginning(embeds, mask)
        self.tokens_seen += embeds[:, begin:].shape[:2].numel()
        repeated = (
            None if cache is None else _rows_of(cache, torch.zeros(len(embeds), dtype=torch.long, device=self.device))
        )
        out = self.llm.base_model(
            inputs_embeds=embeds[:, begin:], attention_mask=mask, past_key_values=repeated, use_cache=self.share_prefix
        )
        lengths = mask.sum(1)
        last = out.last_hidden_state[torch.arange(len(embeds), device=self.device), lengths - 1 - begin]
        cache = _plain(getattr(out, "past_key_values", None), embeds.shape[1])
        if self._may_remember and self._remembered is None and len(embeds) == 1:
            self._remember(embeds[0], cache)
        return _Reading(self._head(last.unsqueeze(1))[:, 0], cache, mask, lengths)

    def _read_encoder(self, embeds: torch.Tensor, mask: torch.Tensor) -> _Reading:
        self.tokens_seen += mask.numel()
        states = self.llm.get_encoder()(inputs_embeds=embeds, attention_mask=mask).last_hidden_state
        begin = torch.tensor(self._decoder_begin, device=self.device).expand(len(embeds), -1)
        self.tokens_seen += begin.numel()
        out = self.llm(
            encoder_outputs=BaseModelOutput(last_hidden_state=states),
            attention_mask=mask,
            decoder_input_ids=begin,
            use_cache=self.share_prefix,
        )
        cache = _plain(out.past_key_values, begin.shape[1], embeds.shape[1])
        return _Reading(out.logits[:, -1].float(), cache, mask, mask.sum(1), states)

    @property
    def _decoder_begin(self) -> list[int]:
        start = self.llm.config.decoder_start_token_id
        if start is None:
            start = self.llm.generation_config.decoder_start_token_id
        return [start, *self.answer.begin]

    # What prompts begin with ---------------------------------------------------------------------------------------------

    @property
    def _may_remember(self) -> bool:
        return self.share_prefix and not self.training and not torch.is_grad_enabled()

    def _shared_beginning(self, embeds: torch.Tensor, mask: torch.Tensor) -> tuple[int, DynamicCache | None]:
        """Keys and values (1, …) of what all rows begin with, and how many positions that are.

        Rows of one call share it. Without gradients, what calls have had in common is kept for the next one: instructions and soft
        prompts, which are then read once for all requests.
        """
        if not self.share_prefix:
            return 0, None
        with torch.no_grad():
            shortest = int(mask.sum(1).min()) - 1  # every row keeps a token, whose state gives the answer's first
            length = _leading((embeds[:, :shortest] == embeds[:1, :shortest]).all(2).all(0))
        begin, cache = self._recall(embeds[0, :length]) if self._may_remember else (0, None)
        if len(embeds) > 1 and length - begin >= _WORTH_A_PASS:
            out = self.llm.base_model(inputs_embeds=embeds[:1, begin:length], past_key_values=cache, use_cache=True)
            self.tokens_seen += length - begin
            read_on = _plain(out.past_key_values, length)
            if read_on is None:
                return 0, None
            begin, cache = length, read_on
            if self._may_remember and self._remembered is None:
                self._remember(embeds[0, :length], cache)
        return begin, cache

    def _recall(self, embeds: torch.Tensor) -> tuple[int, DynamicCache | None]:
        """Keys and values of the remembered beginning, as far as these positions (length, width) begin alike."""
        if self._remembered is None:
            return 0, None
        weights, known, cache = self._remembered
        most = min(len(known), len(embeds))
        length = 0
        if weights == self._weights and known.dtype == embeds.dtype and known.device == embeds.device:
            length = _leading((known[:most] == embeds[:most]).all(1))
        if length < _WORTH_A_PASS:
            self._remembered = None
            return 0, None
        cache = _rows_of(cache, None, length)
        if length < len(known):
            self._remembered = weights, known[:length].clone(), _rows_of(cache, None)
        return length, cache

    def _remember(self, embeds: torch.Tensor, cache: DynamicCache | None) -> None:
        if cache is not None and len(embeds) >= _WORTH_A_PASS:
            self._remembered = self._weights, embeds.clone(), _rows_of(cache, None)

    @property
    def _weights(self) -> tuple:
        """Changes whenever a weight of the LLM is written or moved."""
        frozen = (weight for weight in self.llm.parameters() if not weight.requires_grad)
        trained = [weight for weight in self.llm.parameters() if weight.requires_grad]
        counted = tuple((weight.data_ptr(), 0 if weight.is_inference() else weight._version) for weight in frozen)
        return counted + (weight_versions(trained) if trained else ())

    # Answers -------------------------------------------------------------------------------------------------------------

    def _first_logits(self, question: "_Question") -> torch.Tensor:
        """(rows, vocabulary) float32 logits of the first token of an answer."""
        if self.kind == "encoder":
            out = [
                (rows, logits[:, 0])
                for rows, logits in self._masked(question, [(row, 1) for row in range(len(question.texts))])
            ]
        else:
            out = [(rows, reading.first) for rows, reading in self._readings(question)]
        order = np.argsort(np.concatenate([rows for rows, _ in out]), kind="stable")
        return torch.cat([logits for _, logits in out])[torch.from_numpy(order).to(self.device)]

    def _mean_log_likelihood(self, question: "_Question", rows: np.ndarray, answers: list[np.ndarray]) -> torch.Tensor:
        """(pairs,) mean log-probability of the tokens of each answer to the prompt of its row."""
        if self.kind == "encoder":
            return self._masked_likelihood(question, rows, answers)
        if not self.share_prefix:
            return self._pairwise_likelihood(question, rows, answers)
        done: list[tuple[np.ndarray, torch.Tensor]] = []
        for prompts, reading in self._readings(question):
            place = np.full(len(question.texts), -1)
            place[prompts] = np.arange(len(prompts))
            pairs = np.flatnonzero(place[rows] >= 0)
            if reading.cache is None:
                subset = [answers[pair] for pair in pairs]
                done.append((pairs, self._pairwise_likelihood(question, rows[pairs], subset)))
                continue
            if self._packs and self.llm.config._attn_implementation in ("eager", "sdpa"):
                values = self._continue_packed(reading, place[rows[pairs]], [answers[pair] for pair in pairs])
                done.append((pairs, values))
                continue
            # On a CPU one user after the other, whose keys and values then need no copies.
            groups = [pairs[rows[pairs] == row] for row in prompts] if self.device.type == "cpu" else [pairs]
            for group in groups:
                for chunk in self._chunks(np.array([len(answers[pair]) for pair in group]), reading.mask.shape[1]):
                    index = torch.from_numpy(place[rows[group[chunk]]]).to(self.device)
                    subset = [answers[pair] for pair in group[chunk]]
                    done.append((group[chunk], self._continue(reading, index, subset)))
        order = np.argsort(np.concatenate([pairs for pairs, _ in done]), kind="stable")
        return torch.cat([values for _, values in done])[torch.from_numpy(order).to(self.device)]

    def _chunks(self, lengths: np.ndarray, cached: int) -> Iterator[np.ndarray]:
        """Answers of similar length, within the budget of tokens and of copied keys and values."""
        budget = self.token_budget or _TOKENS.get(self.device.type, 8192)
        order = np.argsort(-lengths, kind="stable")
        begin = 0
        while begin < len(order):
            longest = int(lengths[order[begin]])
            size = max(1, min(budget // longest, budget * _CACHED_PER_TOKEN // (cached + longest)))
            yield order[begin : begin + size]
            begin += size

    def _continue(self, reading: _Reading, index: torch.Tensor, answers: list[np.ndarray]) -> torch.Tensor:
        """(pairs,) mean log-probabilities: answer `i` to the prompt `index[i]` that was read."""
        tokens, inside = pad(answers, self.device)
        total = reading.first.log_softmax(1)[index, tokens[:, 0]]
        if tokens.shape[1] > 1:
            going_on, cache = tokens[:, :-1], _rows_of(reading.cache, index)
            self.tokens_seen += going_on.numel()
            if reading.states is None:
                mask = torch.cat([reading.mask[index], inside[:, :-1]], dim=1)
                steps = torch.arange(going_on.shape[1], device=self.device)
                positions = (
                    {"position_ids": reading.lengths[index].unsqueeze(1) + steps} if self._takes_positions else {}
                )
                out = self.llm(
                    input_ids=going_on, attention_mask=mask, past_key_values=cache, use_cache=True, **positions
                )
            else:
                # The cross-attention's keys and values are in the cache; of the encoder's states only the shape is looked at.
                states = reading.states[:1].expand(len(index), -1, -1)
                out = self.llm(
                    encoder_outputs=BaseModelOutput(last_hidden_state=states),
                    attention_mask=reading.mask[index],
                    decoder_input_ids=going_on,
                    past_key_values=cache,
                    use_cache=True,
                )
            total = total + (_log_probabilities(out.logits.float(), tokens[:, 1:]) * inside[:, 1:]).sum(1)
        return total / inside.sum(1)

    def _continue_packed(self, reading: _Reading, rows: np.ndarray, answers: list[np.ndarray]) -> torch.Tensor:
        """The same with the answers of a prompt side by side in one row, so that its keys and values are not copied.

        A mask lets every token see the prompt and its own answer; positions go on behind the prompt in every answer.
        """
        tokens, inside = pad(answers, self.device)
        index = torch.from_numpy(rows).to(self.device)
        total = reading.first.log_softmax(1)[index, tokens[:, 0]]
        packs: list[tuple[int, list[int]]] = []
        for pair in np.argsort(rows, kind="stable").tolist():
            row, length = int(rows[pair]), len(answers[pair]) - 1
            if not packs or packs[-1][0] != row or sum(len(answers[p]) - 1 for p in packs[-1][1]) + length > _PACK:
                packs.append((row, []))
            packs[-1][1].append(pair)
        lengths = np.array([sum(len(answers[pair]) - 1 for pair in pairs) for _, pairs in packs])
        for batch in self._batches(np.maximum(lengths, 1)):
            if not lengths[batch].any():
                continue
            ids, present = pad([np.concatenate([answers[p][:-1] for p in packs[n][1]]) for n in batch], self.device)
            owner, step, following = (
                np.full(ids.shape, -1),
                np.zeros(ids.shape, np.int64),
                np.zeros(ids.shape, np.int64),
            )
            for line, number in enumerate(batch.tolist()):
                end = 0
                for pair in packs[number][1]:
                    size = len(answers[pair]) - 1
                    owner[line, end : end + size], step[line, end : end + size] = pair, np.arange(size)
                    following[line, end : end + size] = answers[pair][1:]
                    end += size
            of, steps = torch.from_numpy(owner).to(self.device), torch.from_numpy(step).to(self.device)
            prompt = torch.tensor([packs[number][0] for number in batch], device=self.device)
            own = (of.unsqueeze(2) == of.unsqueeze(1)) & (steps.unsqueeze(2) >= steps.unsqueeze(1))
            seen = torch.cat([reading.mask[prompt].bool().unsqueeze(1).expand(-1, ids.shape[1], -1), own], dim=2)
            dtype = self.llm.get_input_embeddings().weight.dtype
            mask = torch.zeros(seen.shape, dtype=dtype, device=self.device).masked_fill(~seen, torch.finfo(dtype).min)
            everybody = torch.equal(prompt, torch.arange(len(reading.first), device=self.device))
            self.tokens_seen += ids.numel()
            states = self.llm.base_model(
                input_ids=ids,
                attention_mask=mask.unsqueeze(1),
                position_ids=reading.lengths[prompt].unsqueeze(1) + steps,
                past_key_values=_rows_of(reading.cache, None if everybody else prompt),
                use_cache=True,
            ).last_hidden_state
            real = present.bool()
            wanted = torch.from_numpy(following).to(self.device)[real]
            found = _log_probabilities(self._head(states[real].unsqueeze(0))[0], wanted)
            total = total.index_add(0, of[real], found)
        return total / inside.sum(1)

    def _pairwise_likelihood(self, question: "_Question", rows: np.ndarray, answers: list[np.ndarray]) -> torch.Tensor:
        """The same with every pair of prompt and answer read by itself."""
        extra = np.array([len(answer) for answer in answers])
        lengths = np.array([len(question.texts[row]) for row in rows]) + extra
        done = []
        for pairs in self._batches(lengths):
            tokens, inside = pad([answers[pair] for pair in pairs], self.device)
            going_on = [answers[pair][:-1] for pair in pairs]
            texts = [question.texts[row] for row in rows[pairs]]
            ends = torch.tensor([len(text) for text in texts], device=self.device)
            steps = torch.arange(tokens.shape[1], device=self.device)
            if self.kind == "decoder":
                texts = [np.concatenate(both) for both in zip(texts, going_on, strict=True)]
            ids, mask = pad(texts, self.device)
            embeds = self._embed(ids, question.vectors, question.taken, rows[pairs])
            self.tokens_seen += mask.numel()
            if self.kind == "decoder":
                states = self.llm.base_model(
                    inputs_embeds=embeds, attention_mask=mask, use_cache=False
                ).last_hidden_state
                logits = self._head(_states_at(states, (ends - 1).unsqueeze(1) + steps))
            else:
                begin = torch.tensor(self._decoder_begin, device=self.device).expand(len(pairs), -1)
                decoder_ids = torch.cat([begin, tokens[:, :-1]], dim=1)
                self.tokens_seen += decoder_ids.numel()
                out = self.llm(
                    inputs_embeds=embeds, attention_mask=mask, decoder_input_ids=decoder_ids, use_cache=False
                )
                logits = out.logits[:, begin.shape[1] - 1 :].float()
            values = (_log_probabilities(logits, tokens) * inside).sum(1) / inside.sum(1)
            done.append((pairs, values))
        order = np.argsort(np.concatenate([pairs for pairs, _ in done]), kind="stable")
        return torch.cat([values for _, values in done])[torch.from_numpy(order).to(self.device)]

    def _masked_likelihood(self, question: "_Question", rows: np.ndarray, answers: list[np.ndarray]) -> torch.Tensor:
        """The same of a masked LLM: as many masks as the answer has tokens, or a fixed number, all predicted at once."""
        fixed = self.answer.masks
        answers = [answer[:fixed] for answer in answers]
        of_pair = [(int(row), fixed or len(answer)) for row, answer in zip(rows, answers, strict=True)]
        asked = of_pair if not self.share_prefix else list(dict.fromkeys(of_pair))
        pairs_of: dict[int, list[int]] = {}
        number = {unit: place for place, unit in enumerate(asked)}
        for pair, unit in enumerate(of_pair):
            pairs_of.setdefault(pair if not self.share_prefix else number[unit], []).append(pair)
        values: list[torch.Tensor] = []
        order: list[int] = []
        for units, logits in self._masked(question, asked):
            pairs = [(place, pair) for place, unit in enumerate(units.tolist()) for pair in pairs_of[unit]]
            tokens, inside = pad([answers[pair] for _, pair in pairs], self.device)
            place = torch.tensor([place for place, _ in pairs], device=self.device).unsqueeze(1)
            steps = torch.arange(tokens.shape[1], device=self.device)
            found = logits.log_softmax(2)[place, steps, tokens]
            values.append((found * inside).sum(1) / inside.sum(1))
            order += [pair for _, pair in pairs]
        back = torch.from_numpy(np.argsort(np.array(order), kind="stable")).to(self.device)
        return torch.cat(values)[back]

    def _masked(
        self, question: "_Question", asked: list[tuple[int, int]]
    ) -> Iterator[tuple[np.ndarray, torch.Tensor]]:
        """For each (row, number of masks) that is asked: logits (…, masks, vocabulary), with the places in `asked` they answer."""
        texts = []
        for row, masks in asked:
            text, place = question.texts[row], question.places[row]
            texts.append(np.concatenate([text[:place], np.repeat(text[place], masks), text[place + 1 :]]))
        for units in self._batches(np.array([len(text) for text in texts])):
            rows = np.array([asked[unit][0] for unit in units])
            ids, mask = pad([texts[unit] for unit in units], self.device)
            embeds = self._embed(ids, question.vectors, question.taken, rows)
            self.tokens_seen += mask.numel()
            states = self.llm.base_model(inputs_embeds=embeds, attention_mask=mask).last_hidden_state
            most = max(asked[unit][1] for unit in units)
            first = torch.from_numpy(question.places[rows]).to(self.device).unsqueeze(1)
            yield units, self._head(_states_at(states, first + torch.arange(most, device=self.device)))

    def _head(self, states: torch.Tensor) -> torch.Tensor:
        """Logits (rows, n, vocabulary) float32 of chosen states (rows, n, width), so that no others meet the vocabulary.

        The LLM's own `forward` runs, as it may scale or cap logits, on a copy whose base model gives these states; the LLM itself
        is not touched, so that threads may share it.
        """
        llm = copy.copy(self.llm)
        llm.__dict__.pop("forward", None)  # a wrapper that is bound to the LLM itself
        llm._modules = {**llm._modules, llm.base_model_prefix: _Given(states, llm.base_model)}
        return llm(inputs_embeds=states).logits.float()


class _Question(NamedTuple):
    """Checked prompts."""

    texts: list[np.ndarray]
    places: np.ndarray  # of the answer in each
    vectors: dict[Slot, SlotVectors]
    taken: dict[Slot, np.ndarray]


def _leading(same: torch.Tensor) -> int:
    """How many values at the beginning of a boolean vector are true."""
    return int(same.long().cumprod(0).sum())


def _states_at(states: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """(rows, length, width) at (rows, n) positions -> (rows, n, width); positions behind the end give the last state."""
    index = positions.clamp(max=states.shape[1] - 1).unsqueeze(2).expand(-1, -1, states.shape[2])
    return states.gather(1, index)


def _log_probabilities(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """(…, vocabulary) logits and (…) tokens -> (…) log-probabilities."""
    return -F.cross_entropy(logits.flatten(0, -2), tokens.flatten(), reduction="none").view(tokens.shape)


def _plain(cache, length: int, cross_length: int = 0):
    """The cache, if it holds the keys and values of all positions as they are; None otherwise.

    Others (sliding windows, state-space layers) forget or fold what they read, and activation checkpointing keeps none.
    """
    if isinstance(cache, EncoderDecoderCache):
        both = _plain(cache.self_attention_cache, length), _plain(cache.cross_attention_cache, cross_length)
        return None if None in both else cache
    plain = isinstance(cache, DynamicCache) and all(
        type(layer) is DynamicLayer and layer.is_initialized for layer in cache.layers
    )
    return cache if plain and cache.get_seq_length() == length else None


def _rows_of(cache, rows: torch.Tensor | None, length: int | None = None):
    """A new cache of chosen rows (None: all), and of the first `length` positions only; the old one is not changed.

    Rows are not copied where they are all the same one.
    """
    if isinstance(cache, EncoderDecoderCache):
        return EncoderDecoderCache(
            _rows_of(cache.self_attention_cache, rows), _rows_of(cache.cross_attention_cache, rows)
        )
    same = rows is not None and bool((rows == rows[0]).all())

    def choose(tensor: torch.Tensor) -> torch.Tensor:
        tensor = tensor[:, :, :length]
        if rows is None:
            return tensor
        return tensor[rows[:1]].expand(len(rows), -1, -1, -1) if same else tensor[rows]

    out = DynamicCache()
    for layer in cache.layers:
        chosen = DynamicLayer()
        chosen.dtype, chosen.device, chosen.is_initialized = layer.dtype, layer.device, True
        chosen.keys, chosen.values = choose(layer.keys), choose(layer.values)
        out.layers.append(chosen)
    return out


__all__ = ["HEADS", "VERBALIZERS", "TiedHeadLM", "Verbalizer", "build_language_model", "load_language_model"]
