"""What P2Rec and E4SRec share: an LLM that reads an instruction, projected item vectors, and a marker for its response.

The items enter as vectors only, d -> width of the LLM by one linear map; their titles may stand before them. What is read is
the last layer's state at the last real position of the prompt.
"""

import os
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import AutoTokenizer, PreTrainedModel
from transformers import initialization as init

from .base import SequentialRecommenderConfig
from .llm import LLMRecommender, PromptEncoder, SlotVectors, config_as_dict, load_llm, resolve_revision
from .prompting import Slot, clean_title, special_tokens_around, tokenize_texts


@strict
class ItemPromptConfig(SequentialRecommenderConfig):
    """Configuration of LLMs that read item vectors.

    Args:
        hidden_size: Width of the frozen item vectors.
        max_length: Most items in a prompt, the most recent ones.
        instruction: Text before the items; `{num_groups}` becomes that number.
        response: Text after the items.
        titles: A title stands before each item vector.
        max_title_tokens: Titles are cut to this many tokens.
        lora: Arguments of `peft.LoraConfig`; None keeps every weight of the LLM.
        prompt: The tokenized texts; filled in by `from_parts`.
        num_title_tokens: Tokens of all titles together; filled in by `from_parts`.
        llm_name_or_path, llm_revision: The LLM.
        llm_config: The LLM's configuration; filled in.
        llm_dtype: Type of the LLM's weights; `auto` is the checkpoint's.
        llm_attn_implementation: `eager`, `sdpa`, `flash_attention_2`, …
        llm_quantization: `8bit`, `4bit` (a GPU and bitsandbytes) or None.
        token_budget: Tokens in one pass of the LLM, padding included; None chooses by device.
        share_prefix: Reuse keys and values of the instruction, with which all prompts begin (decoder-only LLMs).
    """

    hidden_size: int = 64
    max_length: int = 50
    instruction: str = "Given the user's purchase history, predict the next item."
    response: str = "Response:"
    titles: bool = False
    max_title_tokens: int = 16
    lora: dict[str, Any] | None = None
    prompt: dict[str, list[int]] | None = None
    num_title_tokens: int = 0
    llm_name_or_path: str | None = None
    llm_revision: str | None = None
    llm_config: dict[str, Any] | None = None
    llm_dtype: str = "auto"
    llm_attn_implementation: str | None = None
    llm_quantization: str | None = None
    token_budget: int | None = None
    share_prefix: bool = True

    def validate_architecture(self):
        """Refuse an empty response marker, whose state could not be read."""
        super().validate_architecture()
        if not self.response.strip():
            raise ValueError("`response` must hold some text: the LLM's state is read at its end.")
        if self.fusion != "none":
            raise ValueError(f"item vectors are read as they are: `fusion` must be 'none', got {self.fusion!r}.")


class ItemPromptModel(LLMRecommender):
    """Base of P2Rec and E4SRec; `read(input_ids)` gives h (rows, width of the LLM)."""

    config: ItemPromptConfig
    program: dict[str, list[int]]  # tokens before and after the items
    item_vectors: torch.Tensor
    title_tokens: torch.Tensor
    title_offsets: torch.Tensor

    def __init__(self, config: ItemPromptConfig, llm: PreTrainedModel | None = None, teacher=None):
        super().__init__(config)
        if config.prompt is None:
            raise ValueError("the configuration has no prompts: build the model with `from_parts`.")
        self.program = config.prompt
        self.register_buffer("item_vectors", torch.zeros(config.num_items + 1, config.hidden_size))
        self.register_buffer("title_tokens", torch.zeros(config.num_title_tokens, dtype=torch.int32))
        self.register_buffer(
            "title_offsets", torch.zeros(config.num_items + 1 if config.titles else 0, dtype=torch.int64)
        )
        llm = self.prepare_llm(llm)
        width = llm.get_input_embeddings().weight.shape[1]
        self.item_projector = nn.Linear(config.hidden_size, width)
        self.make_head(width)
        self.post_init()
        # After `post_init`, so that no initialisation reaches what is trained already.
        self.encoder = PromptEncoder(llm, config.token_budget, config.share_prefix)

    def make_head(self, width: int) -> None:
        """Add what is trained on top of h, a vector of this width."""
        raise NotImplementedError(f"{type(self).__name__} must define `make_head`.")

    @classmethod
    def from_parts(
        cls,
        llm: str | os.PathLike,
        item_vectors: torch.Tensor | np.ndarray,
        catalogue=None,
        data_fingerprint: str | None = None,
        llm_revision: str | None = None,
        **options,
    ):
        """A new model around an LLM and frozen item vectors.

        Args:
            llm: Hub id or folder of the LLM.
            item_vectors: (num_items + 1, d) the item table of a trained backbone, whose row 0 is zeros, or (num_items, d).
            catalogue: Has `.item_ids` and `.titles`; needed with `titles=True`, and compared with the vectors when given.
            data_fingerprint: Fingerprint of the data set.
            llm_revision: Commit, tag or branch of the LLM; the commit is what is stored.
            options: Fields of the configuration.

        Returns:
            The model, in evaluation mode.

        Raises:
            ValueError: Item vectors of another shape than the catalogue's or with values that are not finite, titles without a
                catalogue, or a prompt that the LLM cannot hold. TypeError: an unknown option.
        """
        vectors = torch.as_tensor(item_vectors).detach().float().cpu()
        if vectors.ndim == 2 and bool(vectors[:1].any()):
            vectors = F.pad(vectors, (0, 0, 1, 0))
        num_items = len(vectors) - 1 if catalogue is None else len(catalogue.item_ids)
        if vectors.ndim != 2 or len(vectors) != num_items + 1 or num_items < 1:
            raise ValueError(
                f"`item_vectors` of {num_items:,} items have the shape {tuple(vectors.shape)}, padding included: need one row per "
                "item of the catalogue."
            )
        if not bool(torch.isfinite(vectors).all()):
            row = int((~torch.isfinite(vectors)).any(1).nonzero()[0])
            raise ValueError(f"`item_vectors` have a value that is not finite at item_index {row}.")
        vectors[0] = 0
        if options.get("titles") and catalogue is None:
            raise ValueError("`titles=True` needs `catalogue`, which has the titles.")
        llm_revision = resolve_revision(str(llm), llm_revision)
        tokenizer = AutoTokenizer.from_pretrained(str(llm), revision=llm_revision)
        model = load_llm(
            str(llm), llm_revision, options.get("llm_dtype", "auto"), options.get("llm_attn_implementation"),
            options.get("llm_quantization"),
        )  # fmt: skip
        config = cls.config_class(
            num_items=num_items,
            hidden_size=vectors.shape[1],
            data_fingerprint=data_fingerprint,
            llm_name_or_path=str(llm),
            llm_revision=llm_revision,
            llm_config=config_as_dict(model.config),
            **options,
        )
        start, end = special_tokens_around(tokenizer)
        before = config.instruction.replace("{num_groups}", str(getattr(config, "num_groups", "")))
        texts = tokenize_texts([before, config.response], tokenizer)
        config.prompt = {"start": [*start, *texts[0]], "end": [*texts[1], *end]}
        rows: list[list[int]] = []
        if config.titles:
            titles = [f" {clean_title(title)}" for title in _as_list(catalogue.titles)]
            rows = [row[: config.max_title_tokens] for row in tokenize_texts(titles, tokenizer)]
            config.num_title_tokens = sum(map(len, rows))
        limit = getattr(model.config, "max_position_embeddings", None)
        per_item = 1 + (config.max_title_tokens if config.titles else 0)
        longest = len(config.prompt["start"]) + len(config.prompt["end"]) + per_item * config.max_length
        if limit is not None and longest > limit:
            raise ValueError(
                f"a prompt of {config.max_length} items has up to {longest} tokens, {llm} takes {limit}: lower `max_length`"
                + (" or `max_title_tokens`." if config.titles else ".")
            )
        out = cls(config, llm=model)
        out.item_vectors.copy_(vectors)
        if config.titles:
            out.title_tokens.copy_(torch.tensor([token for row in rows for token in row], dtype=torch.int32))
            out.title_offsets.copy_(torch.tensor(np.cumsum([0, *map(len, rows)])))
        # Projected items start with the spread of the LLM's own token vectors, whatever the length of the backbone's.
        _, spread = out.encoder.embedding_statistics()
        length = float(vectors[1:].square().sum(1).mean().sqrt())
        nn.init.normal_(out.item_projector.weight, std=spread / max(length, 1e-8))
        return out.eval()

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, ItemPromptModel):
            for name in ("item_vectors", "title_tokens", "title_offsets"):
                init.zeros_(getattr(module, name))

    def prompts(self, input_ids: torch.Tensor) -> tuple[list[np.ndarray], torch.Tensor, np.ndarray]:
        """Prompts of histories.

        Args:
            input_ids: (rows, length) item_index, left-padded with 0.

        Returns:
            Token ids with slots, the items of all rows one after another, and how many each row has.

        Raises:
            ValueError: A row without items, or with item_index outside the catalogue.
        """
        # The last token of the prompt is a slot filled with that token's own vector: the place whose state is read.
        start, end = self.program["start"], [*self.program["end"][:-1], int(Slot.USER_OUT)]
        offsets = self.title_offsets.cpu().numpy() if self.config.titles else None
        titles = self.title_tokens.cpu().numpy() if self.config.titles else None
        prompts, shown = [], []
        for number, row in enumerate(input_ids.tolist()):
            items = [item for item in row if item][-self.config.max_length :]
            if not items:
                raise ValueError(f"`input_ids` row {number} has no item: the LLM needs at least one item of history.")
            if min(items) < 0 or max(items) > self.config.num_items:
                raise ValueError(
                    f"`input_ids` row {number} must be item_index 1 … {self.config.num_items}, left-padded with 0; got "
                    f"{row[-20:]}."
                )
            middle: list[int] = []
            for item in items:
                if titles is not None and offsets is not None:
                    middle += titles[offsets[item - 1] : offsets[item]].tolist()
                middle.append(int(Slot.ITEM_VECTOR))
            prompts.append(np.array([*start, *middle, *end], dtype=np.int64))
            shown.append(items)
        flat = torch.tensor([item for items in shown for item in items], device=input_ids.device)
        return prompts, flat, np.array([len(items) for items in shown])

    def read(self, input_ids: torch.Tensor) -> torch.Tensor:
        """The states h of histories: (rows, length) item_index, left-padded with 0 -> (rows, width of the LLM) float32.

        Raises:
            ValueError: A row without items, or with item_index outside the catalogue.
        """
        prompts, items, counts = self.prompts(input_ids)
        table = self.encoder.llm.get_input_embeddings()
        last = table(torch.tensor([self.program["end"][-1]], device=self.encoder.device))
        vectors = {
            Slot.ITEM_VECTOR: SlotVectors(self.item_projector(self.item_vectors[items]), counts),
            Slot.USER_OUT: SlotVectors(last),
        }
        return self.encoder(prompts, vectors, Slot.USER_OUT)


def _as_list(values) -> list:
    return values.to_pylist() if hasattr(values, "to_pylist") else list(values)
