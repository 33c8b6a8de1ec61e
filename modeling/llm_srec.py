"""LLM-SRec and the retrieval family: a frozen LLM that learns a sequential recommender's knowledge of order.

Paper: Kim et al., Lost in Sequence: Do Large Language Models Understand Sequential Recommendation?, 2025 (arXiv 2502.13909).
Switches of the same class give the paper's retrieval baselines: TALLRec (titles, LoRA), LLaRA (titles and item vectors, LoRA),
CoLLM (and the user's vector, LoRA), A-LLMRec (item vectors of its stage-1 encoder and the user's vector, no LoRA).
Deviations. (1) Prompts are built from tokens of titles, tokenized once; titles are cut, never the tail of a prompt. (2) Each
distinct item of a step is encoded once. (3) Out-tokens are read by index and padding is masked, so padding never matters. (4) An
encoder-decoder LLM is read at its encoder. (5) Attention and adapter dropout of the LLM are 0, except `lora_dropout`. (6) The
vector of an item that the teacher never trained on is the mean of those it did, and such an item is no negative; as an option other
items' vectors are now and then replaced by it, so that titles count (`item_vector_dropout`). (7) As an option the heads go on
training alone (`train_heads_only`): the LLM's states are then computed once, and the whole catalogue is candidates. (8) As options
a prompt is read as the mean of its states, which is what most text encoders were trained for, and not at its out-token (`pooling`);
scores are cosines times a learned scale (`cosine`); f_item starts as a copy of f_user, so that an untrained model ranks by how alike
the states are (`alike_heads`); the heads drop inputs out (`head_dropout`).
Inputs: `input_ids` (batch, length) item_index, left-padded with 0; `timestamps` (batch, length) Unix seconds when prompts show
dates; `labels` (batch, length), -100 ignored; `negatives` (batch, length or 1, n) item_index.
Trains with: `DistillationTrainer`, on the last position of a row or on every prefix.
"""

import math
import os
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.activations import ACT2FN

from .base import IGNORE_INDEX, NextItemOutput, SequentialRecommender, SequentialRecommenderConfig, register
from .distillation import DistillationObjective
from .llm import (
    LLMRecommender,
    PromptEncoder,
    SlotVectors,
    config_as_dict,
    load_llm,
    resolve_revision,
    weight_versions,
)
from .llm_processing import LLMSequentialRecommendationProcessor
from .prompting import PromptProgram, Slot
from .teacher import adopt_teacher, build_teacher, freeze_teacher, restore_teacher


ITEM_VECTORS = ("none", "teacher", "aligned")
HEADS = ("user_head.", "item_head.", "teacher_head.", "logit_scale")
POOLINGS = ("out_token", "mean")
LARGEST_SCALE = 100.0
MAX_REMEMBERED_BYTES = 2**29


@strict
class LLMSRecConfig(SequentialRecommenderConfig):
    """Configuration of LLM-SRec and its baselines.

    Args:
        hidden_size: Width d' of user and item vectors.
        head_size: Inner width of f_user and f_item.
        head_act: Activation of f_I, f_user and f_item (f_CF-user has GELU).
        pooling: What is read of a prompt: the last state at its `out_token`, as in the paper, or the `mean` over all its tokens.
        cosine: Scores are the cosine of both vectors times a scale that is learned, at most 100, and not their product.
        alike_heads: f_item starts with the weights of f_user; both are trained apart.
        head_dropout: Dropout of the states that enter f_user and f_item.
        item_vectors: What stands in the item slot of prompts: `none` (no slot), `teacher` (f_I of the teacher's item vector), or
            `aligned` (f_I of the latent of A-LLMRec's stage-1 encoder).
        item_vector_dropout: Share of items whose prompt, in training, holds the vector of an unknown item instead of its own.
        latent_size: Width of that latent.
        user_vector: The user's prompt begins with f_U of the teacher's user vector.
        distilled: Has f_CF-user, the map of the teacher's user vector that distillation needs.
        in_batch_negatives: A row's negatives are all distinct items of the step but those of its history, not only its own draw.
        lora: Arguments of `peft.LoraConfig`; None keeps every weight of the LLM.
        prompt: The compiled prompts; filled in by `from_parts`.
        num_title_tokens: Tokens of all titles together; filled in by `from_parts`.
        llm_name_or_path, llm_revision: The LLM.
        llm_config: The LLM's configuration; filled in.
        llm_dtype: Type of the LLM's weights; `auto` is the checkpoint's.
        llm_attn_implementation: `eager`, `sdpa`, `flash_attention_2`, …
        llm_quantization: `8bit`, `4bit` (a GPU and bitsandbytes) or None.
        token_budget: Tokens in one pass of the LLM, padding included; None chooses by device.
        share_prefix: Reuse keys and values of what all prompts of a pass begin with (decoder-only LLMs).
        teacher_name_or_path, teacher_revision, teacher_fingerprint: The teacher, and the hash of its weights.
        teacher_config: The teacher's configuration; filled in.
        store_teacher: Save the teacher's weights with the model, not only its name.
    """

    model_type = "hf_seqrec_llm_srec"

    hidden_size: int = 128
    head_size: int = 2048
    head_act: str = "leaky_relu"
    pooling: str = "out_token"
    cosine: bool = False
    alike_heads: bool = False
    head_dropout: float = 0.0
    item_vectors: str = "teacher"
    item_vector_dropout: float = 0.0
    latent_size: int = 128
    user_vector: bool = False
    distilled: bool = True
    in_batch_negatives: bool = True
    lora: dict[str, Any] | None = None
    prompt: dict[str, Any] | None = None
    num_title_tokens: int = 0
    llm_name_or_path: str | None = None
    llm_revision: str | None = None
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
        """Refuse switches that contradict each other; runs on construction."""
        super().validate_architecture()
        if self.item_vectors not in ITEM_VECTORS:
            raise ValueError(f"`item_vectors` must be one of {', '.join(ITEM_VECTORS)}, got {self.item_vectors!r}.")
        if not 0 <= self.item_vector_dropout <= 1:
            raise ValueError(f"`item_vector_dropout` is a share in [0, 1], got {self.item_vector_dropout}.")
        if self.pooling not in POOLINGS:
            raise ValueError(f"`pooling` must be one of {', '.join(POOLINGS)}, got {self.pooling!r}.")
        if not 0 <= self.head_dropout < 1:
            raise ValueError(f"`head_dropout` is a share in [0, 1), got {self.head_dropout}.")
        if self.head_act not in ACT2FN:
            raise ValueError(f"unknown `head_act` {self.head_act!r}.")
        if self.teacher_config is None and self.needs_teacher:
            raise ValueError(
                f"item_vectors={self.item_vectors!r}, user_vector={self.user_vector}, distilled={self.distilled} need a teacher: "
                "build the model with `from_parts(…, teacher=…)`."
            )

    @property
    def needs_teacher(self) -> bool:
        """Whether a part of the model reads the teacher."""
        return self.item_vectors != "none" or self.user_vector or self.distilled


@dataclass
class LLMSRecOutput(NextItemOutput):
    """Output of [`LLMSRecForSequentialRecommendation`].

    Args:
        loss: Scalar, when `labels` were given.
        user_embeddings: (rows, dim) f_user(h_U).
        terms: The terms of the loss by name.
    """

    terms: dict[str, torch.Tensor] | None = None


class Projector(nn.Sequential):
    """Two linear maps with a layer norm and an activation between them: f_I, f_U, f_user, f_item, f_CF-user."""

    def __init__(self, width_in: int, width_inside: int, width_out: int, act: str):
        super().__init__(
            nn.Linear(width_in, width_inside),
            nn.LayerNorm(width_inside),
            ACT2FN[act],
            nn.Linear(width_inside, width_out),
        )


class AlignedItemEncoder(nn.Module):
    """Stage 1 of A-LLMRec: auto-encoders of the teacher's item vector and of a text vector that meet in one latent space."""

    def __init__(self, item_size: int, text_size: int, latent_size: int):
        super().__init__()
        self.encode_item, self.decode_item = nn.Linear(item_size, latent_size), nn.Linear(latent_size, item_size)
        self.encode_text, self.decode_text = nn.Linear(text_size, latent_size), nn.Linear(latent_size, text_size)


class LLMSRecForSequentialRecommendation(LLMRecommender):
    """A frozen LLM that reads histories and items, with small trained maps around it.

    Score of item i for user u: f_item(h_I) · f_user(h_U), the states of the LLM at the out-tokens of their prompts (`pooling` and
    `cosine` change that).

    Example:
        >>> model, processor = LLMSRecForSequentialRecommendation.from_parts(                  # doctest: +SKIP
        ...     llm="meta-llama/Llama-3.2-3B-Instruct", teacher="user/sasrec-scientific", catalogue=data.catalogue,
        ...     data_fingerprint=data.fingerprint, dates=False)
        >>> model.score(torch.tensor([[0, 3, 7]])).shape                                       # doctest: +SKIP
        torch.Size([1, 4345])
    """

    config: LLMSRecConfig
    supervision: ClassVar[str] = "last_position"
    is_dot_product: ClassVar[bool] = True
    item_bias = None
    title_tokens: torch.Tensor
    title_offsets: torch.Tensor
    known_items: torch.Tensor
    item_latents: torch.Tensor
    teacher: Any  # a SequentialRecommender, or None

    def __init__(
        self, config: LLMSRecConfig, llm: PreTrainedModel | None = None, teacher: SequentialRecommender | None = None
    ):
        super().__init__(config)
        if config.prompt is None:
            raise ValueError("the configuration has no prompts: build the model with `from_parts`.")
        if teacher is None and config.teacher_config is not None:
            teacher = build_teacher(config.teacher_config)
        self.program = PromptProgram(**config.prompt)
        self.register_buffer("title_tokens", torch.zeros(config.num_title_tokens, dtype=torch.int32))
        self.register_buffer("title_offsets", torch.zeros(config.num_items + 1, dtype=torch.int64))
        known = torch.ones(config.num_items + 1, dtype=torch.bool)
        known[0] = False
        self.register_buffer("known_items", known)  # what training met; `set_known_items`
        llm = self.prepare_llm(llm)
        width = llm.get_input_embeddings().weight.shape[1]
        self.user_head = Projector(width, config.head_size, config.hidden_size, config.head_act)
        self.item_head = Projector(width, config.head_size, config.hidden_size, config.head_act)
        teacher_width = 0 if teacher is None else teacher.item_representations().shape[1]
        if config.item_vectors == "aligned":
            self.aligned = AlignedItemEncoder(teacher_width, width, config.latent_size)
            self.aligned.requires_grad_(False)  # trained beforehand, by `train_aligned_items`
            self.register_buffer("item_latents", torch.zeros(config.num_items + 1, config.latent_size))
        if config.item_vectors != "none":
            item_width = config.latent_size if config.item_vectors == "aligned" else teacher_width
            self.item_projector = Projector(item_width, width, width, config.head_act)
        if config.user_vector:
            self.user_projector = Projector(teacher_width, width, width, config.head_act)
        if config.distilled:
            self.teacher_head = Projector(teacher_width, config.hidden_size, config.hidden_size, "gelu")
        self.user_out, self.item_out = nn.Parameter(torch.empty(1, width)), nn.Parameter(torch.empty(1, width))
        if config.cosine:
            self.logit_scale = nn.Parameter(torch.empty(1))
        self._heads_only = False
        self._table: tuple[Any, torch.Tensor] | None = None
        self._items: tuple[Any, dict[bool, torch.Tensor]] | None = None
        self._users: tuple[Any, dict[tuple[bytes, bytes], torch.Tensor]] | None = None
        self._titles: tuple[Any, np.ndarray, np.ndarray] | None = None
        self._teacher_table: tuple[Any, torch.Tensor] | None = None
        self.post_init()
        if config.alike_heads:
            self.item_head.load_state_dict(self.user_head.state_dict())
        # After `post_init`, so that no initialisation reaches what is trained already.
        self.encoder = PromptEncoder(llm, config.token_budget, config.share_prefix)
        self.teacher = None if teacher is None else freeze_teacher(teacher)
        mean, std = self.encoder.embedding_statistics()
        for token in (self.user_out, self.item_out):
            nn.init.normal_(token, mean, std)
        if config.cosine:
            nn.init.constant_(self.logit_scale, math.log(1 / 0.07))

    # Putting together, saving, loading -----------------------------------------------------------------------------------

    @classmethod
    def from_parts(
        cls,
        llm: str | os.PathLike,
        teacher: str | os.PathLike | SequentialRecommender | None,
        catalogue,
        data_fingerprint: str | None = None,
        llm_revision: str | None = None,
        teacher_revision: str | None = None,
        style: str = "paper",
        domain: str = "product",
        dates: bool = True,
        history_length: int = 10,
        max_title_tokens: int = 32,
        max_prompt_tokens: int | None = None,
        **options,
    ) -> tuple["LLMSRecForSequentialRecommendation", LLMSequentialRecommendationProcessor]:
        """A new model around an LLM and a teacher, and the processor that travels with it.

        Args:
            llm: Hub id or folder of the LLM.
            teacher: Hub id or folder of a trained backbone, or the backbone itself; None for models without a teacher.
            catalogue: Has `.item_ids` and `.titles`, such as `hf_seqrec.data.Catalogue`.
            data_fingerprint: Fingerprint of the data set; a teacher trained on another one is refused.
            llm_revision: Commit, tag or branch of the LLM; the commit is what is stored.
            teacher_revision: The same of the teacher.
            style: Wording of the prompts, `paper` or `compact`.
            domain: `movie`, `product`, `game` or `business`.
            dates: Lines of a history show dates; the data must have timestamps.
            history_length: Most items of a history that enter a prompt, the most recent ones.
            max_title_tokens: Titles are cut to this many tokens.
            max_prompt_tokens: Longest prompt; None takes what the LLM can, 1024 at most.
            options: Fields of [`LLMSRecConfig`].

        Returns:
            The model and its processor.

        Raises:
            TypeError: A teacher without vectors, or an unknown option. ValueError: a teacher of another catalogue or with NaN,
                switches that need a teacher without one, or prompts that the LLM cannot hold.
        """
        reads = [name for name in ("user_vector", "distilled") if options.get(name, name == "distilled")]
        reads += ["item_vectors"] if options.get("item_vectors", "teacher") != "none" else []
        if teacher is None and reads:
            raise ValueError(f"{' and '.join(reads)} need a teacher: give `teacher`, or switch them off.")
        taught = None
        if teacher is not None:
            taught, found = adopt_teacher(
                teacher,
                len(catalogue.item_ids),
                data_fingerprint,
                teacher_revision,
                options.pop("store_teacher", None),
            )
            options |= found
        llm_revision = resolve_revision(str(llm), llm_revision)
        model = load_llm(
            str(llm), llm_revision, options.get("llm_dtype", "auto"), options.get("llm_attn_implementation"),
            options.get("llm_quantization"),
        )  # fmt: skip
        limit = getattr(model.config, "max_position_embeddings", None)
        processor = LLMSequentialRecommendationProcessor.from_catalogue(
            catalogue,
            options.pop("max_length", None) or (history_length if taught is None else taught.config.max_length),
            data_fingerprint,
            llm_name_or_path=str(llm),
            llm_revision=llm_revision,
            style=style,
            domain=domain,
            item_vectors=options.get("item_vectors", "teacher") != "none",
            user_vector=options.get("user_vector", False),
            dates=dates,
            history_length=history_length,
            max_title_tokens=max_title_tokens,
        )
        limits = [max_prompt_tokens or 1024, processor.llm_tokenizer.model_max_length, limit or 1024]
        processor.max_prompt_tokens = int(min(limits))
        tokens, offsets = processor.title_tokens()
        config = LLMSRecConfig(
            num_items=processor.num_items,
            max_length=processor.max_length,
            data_fingerprint=data_fingerprint,
            prompt=processor.program.to_dict(),
            num_title_tokens=len(tokens),
            llm_name_or_path=str(llm),
            llm_revision=llm_revision,
            llm_config=config_as_dict(model.config),
            **options,
        )
        out = cls(config, llm=model, teacher=taught)
        # The longest prompt there can be: one that does not fit is refused now, not in the middle of training.
        length = out.program.history_length
        out.program.user_prompt([tokens[:1]] * length, [0] * length)
        out.title_tokens.copy_(torch.from_numpy(tokens))
        out.title_offsets.copy_(torch.from_numpy(offsets))
        if config.item_vectors == "aligned":
            out.update_item_latents()
        return out, processor

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, nn.Linear):
            init.xavier_normal_(module.weight)

    def train(self, mode: bool = True):
        """Set the mode of everything but the teacher, which never drops anything out."""
        super().train(mode)
        if self.teacher is not None:
            self.teacher.eval()
        if self._heads_only:
            self.encoder.eval()
        return self

    def train_heads_only(self, only: bool = True) -> None:
        """Freeze all that reaches the LLM, adapters included, and train f_user, f_item and f_CF-user alone; or undo it.

        The states of the LLM are then computed once for each item and each history and kept (up to `MAX_REMEMBERED_BYTES`), so a
        step costs next to nothing and every known item is a candidate of every row.
        """
        self._heads_only = only
        for name, parameter in self.named_parameters():
            if self.is_own(name) and not name.startswith((*HEADS, "aligned.", "teacher.")):
                parameter.requires_grad_(not only)
        self.train(self.training)

    @property
    def frozen_parts(self) -> tuple[str, ...]:  # type: ignore[override]
        """Prefixes of weights that are not saved."""
        return ("encoder.llm.",) if self.config.store_teacher else ("encoder.llm.", "teacher.")

    @classmethod
    def find_teacher(cls, config, state, teacher, access):
        """The stored teacher, or the one of the configured name.

        Raises:
            ValueError: It is not the teacher of the saved model.
        """
        return None if config.teacher_config is None else restore_teacher(config, state, teacher, **access)

    # Items ---------------------------------------------------------------------------------------------------------------

    def add_items(self, processor: LLMSequentialRecommendationProcessor) -> None:
        """Take new items that only have a text; they can be ranked and be part of histories without training.

        Args:
            processor: From the `add_items` of this model's processor.

        Raises:
            ValueError: Its first items are not this model's, or it holds no new ones.
        """
        tokens, offsets = processor.title_tokens()
        before, known = self.config.num_items, len(self.title_tokens)
        if processor.num_items <= before:
            raise ValueError(
                f"the processor has {processor.num_items:,} items, the model {before:,}: there is none to add."
            )
        if not (
            np.array_equal(offsets[: before + 1], self.title_offsets.cpu().numpy())
            and np.array_equal(tokens[:known], self.title_tokens.cpu().numpy())
        ):
            raise ValueError("the processor's first items are not this model's: make it with `processor.add_items`.")
        device = self.title_tokens.device
        self.title_tokens = torch.from_numpy(tokens).to(device)
        self.title_offsets = torch.from_numpy(offsets).to(device)
        self.config.num_items, self.config.num_title_tokens = processor.num_items, len(tokens)
        self.known_items = F.pad(self.known_items, (0, processor.num_items - before))
        if self.config.item_vectors == "aligned":
            new = torch.arange(before + 1, processor.num_items + 1, device=device)
            with torch.no_grad():
                latents = self.aligned.encode_text(self.text_vectors(new))
            self.item_latents = torch.cat([self.item_latents, latents])

    @torch.no_grad()
    def text_vectors(self, items: torch.Tensor) -> torch.Tensor:
        """Mean states of the LLM over titles: (n,) item_index -> (n, width)."""
        start, end = self.program.start, self.program.end
        return self.encoder([np.array([*start, *title, *end]) for title in self._title_rows(items)])

    @torch.no_grad()
    def update_item_latents(self) -> None:
        """Compute the vectors in item slots from A-LLMRec's stage-1 encoder (after it has changed)."""
        latents = self.aligned.encode_item(self._items_of_teacher())
        new = (~self.known_items[: len(latents)]).nonzero().flatten()[1:]  # all but padding
        if len(new):
            latents[new] = self.aligned.encode_text(self.text_vectors(new))
        latents[0] = 0
        self.item_latents[: len(latents)] = latents

    def set_known_items(self, items: np.ndarray) -> None:
        """Say which items training meets; of all others the teacher's vectors are what they were initialised to, and are not read.

        Args:
            items: (n,) item_index, for example `split.train.item_index`.

        Raises:
            ValueError: An item outside the catalogue.
        """
        if len(items) == 0 or items.min() < 1 or items.max() > self.config.num_items:
            raise ValueError(f"`items` must be item_index 1 … {self.config.num_items}, at least one.")
        self.known_items.zero_()
        self.known_items[torch.from_numpy(np.unique(items)).to(self.known_items.device, torch.long)] = True
        self._teacher_table = self._table = self._items = self._users = None
        if self.config.item_vectors == "aligned":
            self.update_item_latents()

    def _items_of_teacher(self) -> torch.Tensor:
        """(teacher's items + 1, width) with the mean of known items at all others; computed once per state of its weights."""
        key = (
            weight_versions(list(self.teacher.parameters())),
            self.known_items.data_ptr(),
            int(self.known_items.sum()),
        )
        if self._teacher_table is None or self._teacher_table[0] != key:
            with torch.inference_mode(False), torch.no_grad():
                table = self.teacher.item_representations().detach().float()
                known = self.known_items[: len(table)].unsqueeze(-1)
                mean = (table * known).sum(0) / known.sum().clamp(min=1)
                self._teacher_table = key, torch.where(known, table, mean)
        return self._teacher_table[1]

    def _item_slot_vectors(self, items: torch.Tensor, own: torch.Tensor | None = None) -> torch.Tensor:
        """f_I: (n,) item_index, and (n,) whether the item's own vector is shown -> (n, LLM width)."""
        if self.config.item_vectors == "aligned":
            vectors, mean = self.item_latents[items], self.item_latents[self.known_items].mean(0)
        else:
            table = self._items_of_teacher()
            vectors, mean = table[torch.where(items < len(table), items, 0)], table[0]
        return self.item_projector(vectors if own is None else torch.where(own.unsqueeze(1), vectors, mean))

    def _title_rows(self, items: torch.Tensor) -> list[np.ndarray]:
        key = (self.title_tokens.data_ptr(), self.title_tokens._version, len(self.title_offsets))
        if self._titles is None or self._titles[0] != key:
            self._titles = key, self.title_tokens.cpu().numpy(), self.title_offsets.cpu().numpy()
        _, tokens, offsets = self._titles
        return [tokens[offsets[item - 1] : offsets[item]] for item in items.tolist()]

    def item_states(self, items: torch.Tensor, own: torch.Tensor | None = None) -> torch.Tensor:
        """h_I: (n,) item_index, and (n,) whether the prompt shows the item's own vector (default: yes) -> (n, LLM width)."""
        prompts = [self.program.item_prompt(title) for title in self._title_rows(items)]
        vectors = {Slot.ITEM_OUT: SlotVectors(self.item_out)}
        if self.config.item_vectors != "none":
            vectors[Slot.ITEM_VECTOR] = SlotVectors(
                self._item_slot_vectors(items, own), np.ones(len(items), dtype=int)
            )
        return self.encoder(prompts, vectors, self._read(Slot.ITEM_OUT))

    def encode_items(self, items: torch.Tensor) -> torch.Tensor:
        """f_item(h_I) of items: (n,) item_index -> (n, dim); in training with `item_vector_dropout`."""
        return self._item_vectors(self.item_states(items, self._draw_own(len(items))))

    def _read(self, out_token: Slot) -> Slot | None:
        return out_token if self.config.pooling == "out_token" else None

    def _item_vectors(self, states: torch.Tensor) -> torch.Tensor:
        vectors = self.item_head(self._dropped(states))
        if not self.config.cosine:
            return vectors
        # The scale is in the items' vectors, so that scores are products of vectors here too.
        return F.normalize(vectors, dim=-1) * self.logit_scale.clamp(max=math.log(LARGEST_SCALE)).exp()

    def _dropped(self, states: torch.Tensor) -> torch.Tensor:
        return F.dropout(states, self.config.head_dropout, self.training)

    def _user_vectors(self, states: torch.Tensor) -> torch.Tensor:
        vectors = self.user_head(self._dropped(states))
        return F.normalize(vectors, dim=-1) if self.config.cosine else vectors

    def _draw_own(self, count: int) -> torch.Tensor | None:
        """Which of so many items show their own vector; None: all."""
        share = self.config.item_vector_dropout
        if not self.training or share == 0 or self.config.item_vectors == "none":
            return None
        return torch.rand(count, device=self.user_out.device) >= share

    @torch.no_grad()
    def catalogue_states(self, own: bool = True) -> torch.Tensor:
        """h_I of all items, (num_items + 1, LLM width), row 0 zeros: encoded once for each state of what reaches the LLM.

        Args:
            own: Prompts show the items' own vectors; otherwise that of an unknown item.
        """
        state = self._state_of_inputs()
        tables = self._items[1] if self._items is not None and self._items[0] == state else {}
        if own not in tables:
            # The states outlive this call, so they must be ordinary tensors also where an evaluator is in inference mode.
            with torch.inference_mode(False), torch.no_grad():
                items = torch.arange(1, self.config.num_items + 1, device=self.user_out.device)
                shown = None if own else torch.zeros(len(items), dtype=torch.bool, device=items.device)
                tables[own] = F.pad(self.item_states(items, shown), (0, 0, 1, 0))
        if tables[own].nbytes <= MAX_REMEMBERED_BYTES:
            self._items = state, tables
        return tables[own]

    @torch.no_grad()
    def item_representations(self) -> torch.Tensor:
        """The scoring table (num_items + 1, dim), row 0 zeros: each item encoded once for each state of the weights.

        Without gradients: training encodes the items of a step only.
        """
        scale = [self.logit_scale] if self.config.cosine else []
        state = self._state_of_inputs(), weight_versions([*self.item_head.parameters(), *scale])
        if self._table is None or self._table[0] != state:
            with torch.inference_mode(False), torch.no_grad():
                self._table = state, F.pad(self._item_vectors(self.catalogue_states()[1:]), (0, 0, 1, 0))
        return self._table[1]

    def _state_of_inputs(self) -> tuple:
        """Differs whenever the LLM's states of an item or a history would be different."""
        trained = [
            parameter
            for name, parameter in self.named_parameters()
            if self.is_own(name) and not name.startswith(HEADS)
        ]
        trained += [self.item_latents] if self.config.item_vectors == "aligned" else []
        known = int(self.known_items.sum())
        return (
            weight_versions(trained),
            self.config.num_items,
            known,
            self.title_tokens.data_ptr(),
            self.encoder.training,
        )

    # Users ---------------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def teacher_users(self, input_ids: torch.Tensor) -> torch.Tensor:
        """O_u: (batch, length) item_index -> (batch, teacher width); zeros for a history of items the teacher never met."""
        known = (input_ids > 0) & (input_ids <= self.teacher.config.num_items)
        # Unknown items leave the row; a stable sort moves the others to the right edge in their order.
        order = torch.argsort(known.int(), dim=1, stable=True)
        ids = (input_ids * known).gather(1, order)
        some = known.any(1)
        users = torch.zeros(len(ids), self._items_of_teacher().shape[1], device=ids.device)
        if bool(some.any()):
            users[some] = self.teacher(ids[some]).user_embeddings.float()
        return users

    def user_states(
        self,
        input_ids: torch.Tensor,
        timestamps: torch.Tensor | None = None,
        teacher_users: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """h_U: (batch, length) item_index, left-padded -> (batch, LLM width); the last `history_length` items count."""
        prompts, shown = [], []
        times = None if timestamps is None else timestamps.tolist()
        for number, items in enumerate(self._shown_items(input_ids)):
            shown.append(torch.tensor(items, device=input_ids.device))
            when = times[number][-len(items) :] if times is not None and self.program.dated else None
            prompts.append(self.program.user_prompt(self._title_rows(shown[-1]), when))
        vectors = {Slot.USER_OUT: SlotVectors(self.user_out)}
        if self.config.item_vectors != "none":
            distinct, back = torch.unique(torch.cat(shown), return_inverse=True)
            # The gradient of [back] would add up in no fixed order on a CPU with several threads.
            values = F.embedding(back, self._item_slot_vectors(distinct))
            vectors[Slot.ITEM_VECTOR] = SlotVectors(values, np.array([len(items) for items in shown]))
        if self.config.user_vector:
            users = self.teacher_users(input_ids) if teacher_users is None else teacher_users
            vectors[Slot.USER_VECTOR] = SlotVectors(self.user_projector(users), np.ones(len(prompts), dtype=int))
        return self.encoder(prompts, vectors, self._read(Slot.USER_OUT))

    def encode_users(
        self,
        input_ids: torch.Tensor,
        timestamps: torch.Tensor | None = None,
        teacher_users: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """f_user(h_U): (batch, length) item_index, left-padded -> (batch, dim); the last `history_length` items count."""
        return self._user_vectors(self.user_states(input_ids, timestamps, teacher_users))

    def _shown_items(self, input_ids: torch.Tensor) -> list[list[int]]:
        """The items of each history that its prompt shows; refuses what is no history."""
        shown = []
        for number, row in enumerate(input_ids.tolist()):
            first = next((column for column, item in enumerate(row) if item), len(row))
            items = row[max(first, len(row) - self.program.history_length) :]
            if not items:
                raise ValueError(
                    f"`input_ids` row {number} has no item: a recommender needs at least one item of history."
                )
            if 0 in items or max(items) > self.config.num_items:
                raise ValueError(
                    f"`input_ids` row {number} must be item_index 1 … {self.config.num_items}, left-padded with 0; got {row[-20:]}."
                )
            shown.append(items)
        return shown

    def user_representations(self, input_ids: torch.Tensor, timestamps: torch.Tensor | None = None) -> torch.Tensor:
        """[`encode_users`] where the LLM is not trained: no prompt runs twice (see `remembered_user_states`)."""
        return self._user_vectors(self.remembered_user_states(input_ids, timestamps))

    def remembered_user_states(self, input_ids: torch.Tensor, timestamps: torch.Tensor | None = None) -> torch.Tensor:
        """[`user_states`] without gradients: each distinct history is encoded once for each state of what reaches the LLM.

        Ranking the same users under another protocol or with other candidates then runs no prompt; at most `MAX_REMEMBERED_BYTES`
        of states are kept.
        """
        self._shown_items(input_ids)
        state, most = self._state_of_inputs(), MAX_REMEMBERED_BYTES // (4 * self.encoder.width)
        if self._users is None or self._users[0] != state or len(self._users[1]) > most:
            self._users = state, {}
        known = self._users[1]
        times = timestamps if self.program.dated else None
        keys = []
        for row, ids in enumerate(input_ids.cpu().numpy()):
            first = int((ids != 0).argmax())
            when = b"" if times is None else times[row, first:].cpu().numpy().tobytes()
            keys.append((ids[first:].tobytes(), when))
        new = list({key: row for row, key in enumerate(keys) if key not in known}.values())
        if new:
            with torch.inference_mode(False), torch.no_grad():
                users = self.user_states(input_ids[new], None if times is None else times[new])
                known.update(zip([keys[row] for row in new], users, strict=True))
        return torch.stack([known[key] for key in keys])

    @property
    def needs_timestamps(self) -> bool:
        """Whether prompts show dates, so that `timestamps` must come with `input_ids`."""
        return self.program.dated

    # The recommender's contract ------------------------------------------------------------------------------------------

    def forward(
        self,
        input_ids: torch.Tensor,
        labels: torch.Tensor | None = None,
        negatives: torch.Tensor | None = None,
        timestamps: torch.Tensor | None = None,
        objective: DistillationObjective | None = None,
        item_table: torch.Tensor | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        **kwargs,
    ) -> LLMSRecOutput:
        """User vectors, and the loss of labelled positions.

        Args:
            input_ids: (batch, length) item_index, left-padded with 0.
            labels: (batch, length) the item_index that follows each position; -100 is ignored. Each label costs one user prompt.
            negatives: (batch, length or 1, n) item_index; with `in_batch_negatives` they join the candidates of all rows.
            timestamps: (batch, length) Unix seconds, when prompts show dates.
            objective: The loss; that of the published code when None, without distillation when `config.distilled` is not set.
            item_table: What `item_representations` returned; vectors of users do not depend on it, and a loss, which trains the vectors
                of items, cannot be had with it.
            num_items_in_batch: Number of labels in the whole optimizer step; those given here when None.
            kwargs: Unused; declares to the `Trainer` that the loss is already scaled.

        Returns:
            [`LLMSRecOutput`]; with labels, `user_embeddings` has a row per label.

        Raises:
            ValueError: An empty history, an item outside the catalogue, missing timestamps, labels without any negative, or labels
                together with a table.
        """
        if labels is not None and item_table is not None:
            raise ValueError(
                "`labels` train the vectors of items, which an `item_table` holds fixed: give one of the two."
            )
        if labels is None:
            encode = self.encode_users if torch.is_grad_enabled() else self.user_representations
            return LLMSRecOutput(user_embeddings=encode(input_ids, timestamps))
        row, column = (labels != IGNORE_INDEX).nonzero(as_tuple=True)
        if not len(row):
            raise ValueError("no position is labelled: all `labels` are -100.")
        target, width = labels[row, column], input_ids.shape[1]
        # Column c of the history of a label at position j is column c - (width - 1 - j) of the row.
        source = torch.arange(width, device=row.device) - (width - 1 - column).unsqueeze(1)
        histories = input_ids[row].gather(1, source.clamp(min=0)) * (source >= 0)
        times = None if timestamps is None else timestamps[row].gather(1, source.clamp(min=0))
        drawn = target.new_zeros(len(row), 0)
        if negatives is not None:
            drawn = negatives[row, column if negatives.shape[1] == width else torch.zeros_like(column)]
        objective = objective or self.default_objective()
        read_teacher = self.config.user_vector or objective.needs_teacher
        teacher_users = self.teacher_users(histories) if read_teacher and self.teacher is not None else None
        if self._heads_only:
            users = self._user_vectors(self.remembered_user_states(histories, times))
            scores, column_of_target = self._score_catalogue(users, target, histories), target
        else:
            users = self.encode_users(histories, times, teacher_users)
            items, back = torch.unique(torch.cat([target.unsqueeze(1), drawn], dim=1), return_inverse=True)
            scores, column_of_target = self._score_step(users, self.encode_items(items), items, back, histories)
        taught = self.teacher_head(teacher_users) if objective.needs_teacher and self.config.distilled else None
        terms = objective(scores, column_of_target, users, taught, num_items_in_batch)
        return LLMSRecOutput(loss=torch.stack(list(terms.values())).sum(), user_embeddings=users, terms=terms)

    def default_objective(self) -> DistillationObjective:
        """The objective of the published code for this model's switches."""
        if self.config.distilled:
            return DistillationObjective()
        return DistillationObjective(distillation="none", uniformity_weight=0.0)

    def _score_step(self, users, vectors, items, back, histories) -> tuple[torch.Tensor, torch.Tensor]:
        """Scores of each row's candidates and the target's column; `back` maps (rows, 1 + n) to the distinct items."""
        if not self.config.in_batch_negatives:
            if back.shape[1] == 1:
                raise ValueError("a retrieval loss needs negatives: pass `negatives`, or set `in_batch_negatives`.")
            return torch.einsum("bd,bcd->bc", users, F.embedding(back, vectors)), torch.zeros(
                len(back), dtype=torch.long, device=back.device
            )
        if len(items) == 1:
            raise ValueError(
                "all rows of the step have the same target and no negatives: nothing can be learned from it."
            )
        scores = users @ vectors.T
        seen = (items.view(1, 1, -1) == histories.unsqueeze(-1)).any(1)
        seen[torch.arange(len(back), device=back.device), back[:, 0]] = False
        return scores.masked_fill(seen, -torch.inf), back[:, 0]

    def _score_catalogue(self, users, target, histories) -> torch.Tensor:
        """Scores (rows, num_items + 1) of all known items but those of the row's history; -inf for the others."""
        states, own = self.catalogue_states(), self._draw_own(self.config.num_items + 1)
        if own is not None:
            states = torch.where(own.unsqueeze(1), states, self.catalogue_states(own=False))
        out = (
            (~self.known_items)
            .expand(len(target), -1)
            .scatter(1, histories, True)
            .scatter(1, target.unsqueeze(1), False)
        )
        return (users @ self._item_vectors(states).T).masked_fill(out, -torch.inf)

    @torch.no_grad()
    def score(
        self,
        input_ids: torch.Tensor,
        candidates: torch.Tensor | None = None,
        item_table: torch.Tensor | None = None,
        timestamps: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Scores of items as the next one; higher is better.

        Args:
            input_ids: (batch, length) item_index, left-padded with 0.
            candidates: (batch, num_candidates) item_index to score, or None for the whole catalogue.
            item_table: What `item_representations` returned, where a caller keeps it; the model also does.
            timestamps: (batch, length) Unix seconds, when prompts show dates.

        Returns:
            (batch, num_items + 1) with -inf in column 0, or (batch, num_candidates).
        """
        table = self.item_representations() if item_table is None else item_table
        users = self.user_representations(input_ids, timestamps)
        if candidates is None:
            scores = users @ table.T
            return torch.cat([torch.full_like(scores[:, :1], -torch.inf), scores[:, 1:]], dim=1)
        scores = torch.einsum("bd,bcd->bc", users, table[candidates])
        return scores.masked_fill(candidates == 0, -torch.inf)


register(LLMSRecConfig, LLMSRecForSequentialRecommendation)

# Elsewhere this file runs as a repository's remote code, which must not answer for other repositories.
if __package__ == "hf_seqrec.modeling":
    from transformers import AutoProcessor

    AutoProcessor.register(LLMSRecConfig, LLMSequentialRecommendationProcessor, exist_ok=True)
