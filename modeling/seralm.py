"""SeRALM: a backbone that also reads what a language model wrote about each item, as one vector per item.

Paper: Ren et al., Enhancing Sequential Recommenders with Augmented Knowledge from Aligned Large Language Models, SIGIR 2024.
r_s = Encoder(s) (equation 2) joins the ID row r_id in the ItemEncoder of any backbone; p(y|x, s) is a softmax over the catalogue.
Left open by the paper, and how it is here: the fused vectors feed the input and the scores; r_s is the mean over tokens (or the
first one), moved to mean 0 and a mean squared length of 1 of the first knowledge; the encoder runs without dropout. Deviation: a
step encodes the texts that it is given, all other rows are those of the last refresh.
Inputs: `input_ids` (batch, length) item_index, left-padded with 0; `labels` (batch, length), -100 ignored.
Trains with: `NextItemTrainer` (frozen vectors), `KnowledgeWarmupTrainer` (joint text encoder), `AlignmentTrainer`.
"""

import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from huggingface_hub.dataclasses import strict
from safetensors.torch import load_file
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint
from transformers import AutoTokenizer, PreTrainedModel
from transformers import initialization as init
from transformers.utils import cached_file

from .base import (
    NextItemOutput,
    SequencePreTrainedModel,
    SequentialRecommender,
    SequentialRecommenderConfig,
    register,
    to_right_padded,
)
from .llm import build_llm, config_as_dict, load_llm, pad, resolve_revision
from .losses import NextItemLoss, chunk_rows
from .prompting import special_tokens_around
from .teacher import BACKBONES


KNOWLEDGE = "knowledge"  # the item feature of the backbone that holds r_s
POOLINGS = ("mean", "cls")
TEXT_ENCODER = "text_encoder"  # folder of the trained encoder beside the model's weights

_ACCESS_KEYS = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")
_TOKEN_BUDGET = {"cpu": 2048, "cuda": 65536}

# item_index (n,) and the vectors (n, dim) that stand for these items in one call.
Knowledge = tuple[torch.Tensor, torch.Tensor]


@strict
class SeRALMConfig(SequentialRecommenderConfig):
    """Configuration of SeRALM. What it shares with the backbone (`num_items`, `hidden_size`, `fusion`, …) is the backbone's.

    Args:
        fusion: `concat` (the paper), `gate` or `add`, see [`ItemEncoder`].
        backbone: The backbone's configuration as a dictionary with its `model_type`; filled in by `from_parts`.
        text_encoder_name_or_path, text_encoder_revision: The text encoder, any model of the Auto classes; None for vectors made
            elsewhere.
        text_encoder_config: The encoder's configuration; filled in.
        text_encoder_dtype: Type of the encoder's weights; `auto` is the checkpoint's.
        train_text_encoder: The encoder is trained with the backbone (the paper), else its vectors are made once.
        store_text_encoder: Save the encoder's weights with the model, not only its name.
        pooling: r_s is the `mean` of the last states, or the first one (`cls`).
        max_text_tokens: Texts are cut to this many tokens, special ones included.
        knowledge_key: Key of the knowledge whose vectors the model holds; filled in by whoever sets them.
    """

    model_type = "hf_seqrec_seralm"

    fusion: str = "concat"
    backbone: dict[str, Any] | None = None
    text_encoder_name_or_path: str | None = None
    text_encoder_revision: str | None = None
    text_encoder_config: dict[str, Any] | None = None
    text_encoder_dtype: str = "auto"
    train_text_encoder: bool = False
    store_text_encoder: bool = False
    pooling: str = "mean"
    max_text_tokens: int = 128
    knowledge_key: str | None = None

    def __post_init__(self, **kwargs):
        if self.backbone is not None:
            config = self.backbone_config()
            for name in ("num_items", "hidden_size", "max_length", "fusion", "item_features", "initializer_range"):
                setattr(self, name, getattr(config, name))
            self.hidden_dropout_prob = config.hidden_dropout_prob
        super().__post_init__(**kwargs)

    def validate_architecture(self):
        """Refuse a backbone without a place for knowledge, and unknown poolings."""
        if self.backbone is None:
            return  # transformers makes an empty configuration to compare with
        super().validate_architecture()
        if KNOWLEDGE not in (self.item_features or {}) or self.fusion not in ("concat", "gate", "add"):
            raise ValueError(
                f"the backbone needs `item_features` with {KNOWLEDGE!r} and `fusion` concat, gate or add, got "
                f"{self.item_features} and {self.fusion!r}: build the model with `from_parts`."
            )
        if self.pooling not in POOLINGS:
            raise ValueError(f"`pooling` must be one of {', '.join(POOLINGS)}, got {self.pooling!r}.")
        if self.max_text_tokens < 1:
            raise ValueError(f"`max_text_tokens` must be at least 1, got {self.max_text_tokens}.")
        if self.train_text_encoder and self.text_encoder_config is None:
            raise ValueError("`train_text_encoder=True` needs a text encoder: name one in `from_parts`.")

    def backbone_config(self) -> SequentialRecommenderConfig:
        """The backbone's configuration.

        Raises:
            ValueError: The model was not made by `from_parts`, or names no backbone of the library.
        """
        values = dict(self.backbone or {})
        backbone = BACKBONES.get(values.pop("model_type", ""))
        if backbone is None:
            raise ValueError(
                f"`backbone` names no backbone ({(self.backbone or {}).get('model_type')!r}): build the model with `from_parts`, "
                f"on one of {', '.join(BACKBONES)}."
            )
        return backbone.config_class.from_dict(values)

    @property
    def knowledge_size(self) -> int:
        """Width of a knowledge vector."""
        return (self.item_features or {})[KNOWLEDGE]


class TextTokens(NamedTuple):
    """Texts as tokens of the text encoder, without padding.

    Args:
        rows: Token ids per text, special ones included.
    """

    rows: list[np.ndarray]

    def batch(
        self, index: torch.Tensor | np.ndarray | Sequence[int], device=None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """`input_ids` and `attention_mask` (n, longest) of the texts with these positions, right-padded."""
        return pad([self.rows[int(i)] for i in index], device)


class SeRALMForSequentialRecommendation(SequencePreTrainedModel):
    """A backbone whose ItemEncoder has one knowledge vector per item, and the text encoder these vectors come from.

    Recommending needs the stored vectors only: a loaded model has no text encoder (`text_encoder` is None) unless asked for with
    `from_pretrained(…, text_encoder=True)`.

    Example:
        >>> from hf_seqrec.modeling import SASRecConfig
        >>> model = SeRALMForSequentialRecommendation.from_parts(SASRecConfig(num_items=9, hidden_size=4), knowledge_size=6)
        >>> model.set_knowledge(torch.arange(1, 10), torch.randn(9, 6))
        >>> model.score(torch.tensor([[0, 3, 7]])).shape
        torch.Size([1, 10])
        >>> items, vectors = torch.tensor([3]), torch.randn(1, 6, requires_grad=True)
        >>> model.log_prob(torch.tensor([[0, 3, 7]]), torch.tensor([5]), (items, vectors)).sum().backward()
        >>> bool(vectors.grad.any())
        True
    """

    config: SeRALMConfig
    is_dot_product = True
    _supports_flash_attn = True
    _supports_attention_backend = True
    _keys_to_ignore_on_load_missing = (rf"^{TEXT_ENCODER}\.",)

    def __init__(self, config: SeRALMConfig, text_encoder: PreTrainedModel | None = None, text_tokenizer: Any = None):
        super().__init__(config)
        backbone = config.backbone_config()
        self.backbone = BACKBONES[backbone.model_type](backbone)
        # Persistent, like every buffer here: it must survive loading on the meta device.
        self.register_buffer("knowledge_mean", torch.zeros(config.knowledge_size))
        self.register_buffer("knowledge_scale", torch.ones(1))
        self._table: tuple[Any, torch.Tensor] | None = None
        self.text_encoder: Any = None
        self.text_tokenizer: Any = None
        self.post_init()
        # After `post_init`, so that no initialisation reaches what is trained already.
        if text_encoder is not None:
            self._take_text_encoder(text_encoder, text_tokenizer)

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, SeRALMForSequentialRecommendation):
            init.zeros_(module.knowledge_mean)
            init.ones_(module.knowledge_scale)

    # Putting together, saving, loading -----------------------------------------------------------------------------------

    @classmethod
    def from_parts(
        cls,
        backbone: SequentialRecommenderConfig,
        text_encoder: str | os.PathLike | None = None,
        text_encoder_revision: str | None = None,
        knowledge_size: int | None = None,
        fusion: str = "concat",
        **options,
    ) -> "SeRALMForSequentialRecommendation":
        """A new model on a backbone's configuration, its knowledge vectors still zeros.

        Args:
            backbone: Configuration of the backbone; other `item_features` in it stay.
            text_encoder: Hub id or folder of any model of the Auto classes (of an encoder-decoder the encoder is taken); None where
                vectors come from elsewhere.
            text_encoder_revision: Commit, tag or branch; the commit is what is stored.
            knowledge_size: Width of the vectors; the encoder's when not given.
            fusion: How they join the ID rows: `concat`, `gate` or `add`.
            options: Further fields of [`SeRALMConfig`]: `train_text_encoder`, `pooling`, `max_text_tokens`, …

        Returns:
            The model, in evaluation mode.

        Raises:
            TypeError: An unknown option. ValueError: neither encoder nor width, a width that is not the encoder's, a backbone that is
                none of the library's, or an encoder that holds fewer tokens than `max_text_tokens`.
        """
        encoder = tokenizer = None
        if text_encoder is not None:
            name = str(text_encoder)
            revision = resolve_revision(name, text_encoder_revision)
            encoder = load_llm(name, revision, options.get("text_encoder_dtype", "auto"))
            tokenizer = AutoTokenizer.from_pretrained(name, revision=revision)
            width, limit = _width(encoder), getattr(encoder.config, "max_position_embeddings", None)
            if knowledge_size not in (None, width):
                raise ValueError(
                    f"`knowledge_size` is {knowledge_size}, the vectors of {name} have {width}: leave it out."
                )
            if limit is not None and options.get("max_text_tokens", SeRALMConfig.max_text_tokens) > limit:
                raise ValueError(f"{name} takes at most {limit} tokens: lower `max_text_tokens`.")
            knowledge_size = width
            # What was trained, or lies on this machine only, must travel with the model.
            options = {"store_text_encoder": bool(options.get("train_text_encoder")) or os.path.isdir(name), **options}
            # A folder of this machine names nothing elsewhere; stored, the encoder needs no name.
            unnamed = options["store_text_encoder"] and os.path.isdir(name)
            options |= {
                "text_encoder_name_or_path": None if unnamed else name,
                "text_encoder_revision": revision,
                "text_encoder_config": config_as_dict(encoder.config),
            }
        if knowledge_size is None:
            raise ValueError("give a `text_encoder`, or the `knowledge_size` of vectors that come from elsewhere.")
        values = config_as_dict(backbone) | {"model_type": backbone.model_type, "fusion": fusion}
        values["item_features"] = {**(backbone.item_features or {}), KNOWLEDGE: knowledge_size}
        config = SeRALMConfig(backbone=values, data_fingerprint=backbone.data_fingerprint, **options)
        return cls(config, encoder, tokenizer).eval()

    def save_pretrained(self, save_directory, *args, state_dict=None, **kwargs):
        """Write backbone, vectors and code; with `store_text_encoder` also the encoder and its tokenizer in a folder of their own.

        Args:
            save_directory: Folder; made when missing.
            args: As in transformers.
            state_dict: Weights to save instead of the current ones.
            kwargs: As in transformers.
        """
        state = self.state_dict() if state_dict is None else state_dict
        prefix = f"{TEXT_ENCODER}."
        if self.config.store_text_encoder and self.text_encoder is not None:
            folder = Path(save_directory)
            folder.mkdir(parents=True, exist_ok=True)
            own = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
            with tempfile.TemporaryDirectory(dir=folder, prefix=".saving-") as temporary:
                self.text_encoder.save_pretrained(temporary, state_dict=own)
                if self.text_tokenizer is not None:
                    self.text_tokenizer.save_pretrained(temporary)
                os.chmod(temporary, 0o755)
                if (folder / TEXT_ENCODER).exists():
                    shutil.rmtree(folder / TEXT_ENCODER)
                shutil.copytree(temporary, folder / TEXT_ENCODER)
        own = {name: tensor for name, tensor in state.items() if not name.startswith(prefix)}
        return super().save_pretrained(save_directory, *args, state_dict=own, **kwargs)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, text_encoder: Any = False, **kwargs):
        """Load the recommender; the text encoder only when asked for.

        Args:
            pretrained_model_name_or_path: Folder or Hub repository.
            args: As in transformers.
            text_encoder: True loads the stored encoder, or the one of the configured name and revision; a name or folder another
                place of the same one.
            kwargs: As in transformers.

        Returns:
            The model in evaluation mode.

        Raises:
            OSError: A file cannot be found. ValueError: the model has no text encoder, or the found one is another.
        """
        out = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        if text_encoder is not False:
            model = out[0] if isinstance(out, tuple) else out
            access = {key: kwargs[key] for key in _ACCESS_KEYS if kwargs.get(key) is not None}
            where = pretrained_model_name_or_path if text_encoder is True else text_encoder
            model.load_text_encoder(where, own=text_encoder is True, **access)
        return out

    def load_text_encoder(self, source: str | os.PathLike | None = None, own: bool = False, **access) -> None:
        """Give the model its text encoder and tokenizer.

        Args:
            source: Where it is; None for the configured name and revision.
            own: `source` is a saved SeRALM: take the encoder stored with it, or the configured one when it stores none.
            access: `token`, `revision`, `cache_dir`, `local_files_only`, `subfolder`.

        Raises:
            OSError: A file cannot be found. ValueError: the model has no text encoder, or the found one is of another shape.
        """
        config = self.config
        if config.text_encoder_config is None:
            raise ValueError("this model has no text encoder: its vectors were made elsewhere and given to it.")
        if own and config.store_text_encoder and source is not None:
            folder = "/".join(filter(None, (access.pop("subfolder", None), TEXT_ENCODER)))
            path = cached_file(source, "model.safetensors", subfolder=folder, **access)
            encoder = build_llm(config.text_encoder_config)
            encoder.load_state_dict(load_file(str(path)))
            tokenizer = AutoTokenizer.from_pretrained(source, subfolder=folder, **access)
        else:
            name = config.text_encoder_name_or_path if own or source is None else source
            if name is None:
                raise ValueError("this model's text encoder is stored with it: name the place it was saved to.")
            revision = config.text_encoder_revision if own or source is None else None
            access = {key: value for key, value in access.items() if key not in ("revision", "subfolder")}
            encoder = load_llm(str(name), revision, config.text_encoder_dtype, **access)
            tokenizer = AutoTokenizer.from_pretrained(str(name), revision=revision, **access)
        if _width(encoder) != config.knowledge_size:
            raise ValueError(
                f"vectors of this text encoder have width {_width(encoder)}, the model's knowledge {config.knowledge_size}."
            )
        self._take_text_encoder(encoder.to(self.device), tokenizer)

    def _take_text_encoder(self, encoder: PreTrainedModel, tokenizer: Any) -> None:
        self.text_encoder = encoder.requires_grad_(self.config.train_text_encoder)
        self.text_tokenizer = tokenizer

    # Texts and vectors ---------------------------------------------------------------------------------------------------

    def tokenize(self, texts: Sequence[str]) -> TextTokens:
        """Tokens of texts, cut to `max_text_tokens`; text that looks like a special token stays text.

        Raises:
            RuntimeError: The model has no text encoder.
        """
        self._need_text_encoder()
        start, end = special_tokens_around(self.text_tokenizer)
        room = max(self.config.max_text_tokens - len(start) - len(end), 0)
        found = self.text_tokenizer(
            list(texts), add_special_tokens=False, split_special_tokens=True, truncation=True, max_length=max(room, 1)
        ).input_ids
        return TextTokens([np.array([*start, *row[:room], *end] or [0], dtype=np.int64) for row in found])

    def encode_texts(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """r_s = Encoder(s), equation 2, moved to the scale of the first knowledge.

        Args:
            input_ids: (n, length) token ids of the text encoder, right-padded.
            attention_mask: (n, length), 1 at tokens.

        Returns:
            (n, dim) float32, with gradients for the encoder when it is trained.

        Raises:
            RuntimeError: The model has no text encoder.
        """
        self._need_text_encoder()
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.config.train_text_encoder):
            states = self.text_encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state.float()
            if self.config.pooling == "cls":
                pooled = states[:, 0]
            else:
                pooled = (states * attention_mask.unsqueeze(-1)).sum(1) / attention_mask.sum(1, keepdim=True)
            return (pooled - self.knowledge_mean) / self.knowledge_scale

    @torch.no_grad()
    def encode_all(self, tokens: TextTokens, token_budget: int | None = None) -> torch.Tensor:
        """Vectors of many texts without gradients, in passes of similar length: (len(tokens.rows), dim) float32 on the CPU."""
        budget = token_budget or _TOKEN_BUDGET.get(self.device.type, 8192)
        lengths = np.array([len(row) for row in tokens.rows])
        order, out, begin = (
            np.argsort(-lengths, kind="stable"),
            torch.empty(len(lengths), self.config.knowledge_size),
            0,
        )
        while begin < len(order):
            chosen = order[begin : begin + max(1, budget // int(lengths[order[begin]]))]
            out[torch.from_numpy(chosen)] = self.encode_texts(*tokens.batch(chosen, self.device)).cpu()
            begin += len(chosen)
        return out

    @torch.no_grad()
    def fit_scale(self, vectors: torch.Tensor) -> None:
        """Take mean and length of vectors as those of all knowledge; `encode_texts` and given vectors are on this scale afterwards.

        Args:
            vectors: (n, dim) unscaled vectors of the training items' first knowledge.

        Raises:
            ValueError: All vectors are equal, or one is not finite.
        """
        vectors = vectors.double()
        mean = vectors.mean(0)
        scale = (vectors - mean).square().sum(1).mean().sqrt()
        if not bool(torch.isfinite(scale)) or float(scale) <= 1e-6 * float(1 + mean.norm()):
            raise ValueError("knowledge vectors are all equal or not finite: they say nothing about items.")
        self.knowledge_mean.copy_(mean)
        self.knowledge_scale.copy_(scale)

    @torch.no_grad()
    def start_from(self, vectors: torch.Tensor, training_items: torch.Tensor | np.ndarray | None = None) -> None:
        """Store the first knowledge of all items and take its scale, see `fit_scale`.

        Args:
            vectors: (num_items, dim), row r of item_index r + 1; what `encode_all` gives before any scale is set.
            training_items: item_index of the items whose mean and length count, repeats counting once; None takes all.

        Raises:
            ValueError: Another shape, values that are not finite, or vectors that are all equal.
        """
        items = torch.arange(1, self.config.num_items + 1)
        self._check_knowledge(items, vectors)
        chosen = items if training_items is None else torch.as_tensor(np.unique(np.asarray(training_items))).long()
        self.fit_scale(vectors[chosen - 1])
        self.set_knowledge(items, (vectors - self.knowledge_mean.to(vectors)) / self.knowledge_scale.to(vectors))

    @torch.no_grad()
    def set_knowledge(self, item_index: torch.Tensor, vectors: torch.Tensor) -> None:
        """Store vectors of items; all later calls see them, and they are saved with the model.

        Args:
            item_index: (n,) different items, 1…num_items.
            vectors: (n, dim) on the scale of `encode_texts`.

        Raises:
            ValueError: Shapes that do not fit, items outside the catalogue, or values that are not finite.
        """
        self._check_knowledge(item_index, vectors)
        if not bool(torch.isfinite(vectors).all()):
            row = int((~torch.isfinite(vectors)).any(1).nonzero()[0])
            raise ValueError(f"the knowledge of item_index {int(item_index[row])} has a value that is not finite.")
        buffer = self.knowledge
        buffer[item_index.to(buffer.device)] = vectors.to(buffer)

    @property
    def knowledge(self) -> torch.Tensor:
        """(num_items + 1, dim) the stored vectors; row 0 is padding."""
        return getattr(self.backbone.model.item_encoder, f"feature_{KNOWLEDGE}")

    def add_items(self, vectors: torch.Tensor, data_fingerprint: str | None = None) -> None:
        """Take new items that only have knowledge; they can be ranked and be part of histories without training.

        What is known of every item by its ID (its row, its bias) is for them the mean over the known items.

        Args:
            vectors: (n, dim) their knowledge, on the scale of `encode_texts`; they become item_index num_items + 1, …
            data_fingerprint: Fingerprint of the data set that holds them.

        Raises:
            ValueError: Vectors of another width or with values that are not finite.
        """
        added, before = len(vectors), self.config.num_items
        if vectors.ndim != 2 or vectors.shape[1] != self.config.knowledge_size or not added:
            raise ValueError(f"new items need vectors (n, {self.config.knowledge_size}), got {tuple(vectors.shape)}.")
        if not bool(torch.isfinite(vectors).all()):
            raise ValueError("the knowledge of a new item has a value that is not finite.")
        self.config.backbone = {**(self.config.backbone or {}), "num_items": before + added}
        self.config.num_items, self.config.data_fingerprint = before + added, data_fingerprint
        config = self.config.backbone_config()
        larger = BACKBONES[config.model_type](config).to(self.device, self.dtype)
        state = self.backbone.state_dict()
        for name, tensor in larger.state_dict().items():
            if tensor.shape != state[name].shape:  # one row per item
                state[name] = torch.cat(
                    [state[name], state[name][1:].mean(0, keepdim=True).expand_as(tensor[-added:])]
                )
        larger.load_state_dict(state)
        self.backbone = larger.train(self.training)
        self.set_knowledge(torch.arange(before + 1, before + added + 1), vectors)

    def _check_knowledge(self, item_index: torch.Tensor, vectors: torch.Tensor) -> None:
        if item_index.ndim != 1 or vectors.shape != (len(item_index), self.config.knowledge_size):
            raise ValueError(
                f"knowledge needs item_index (n,) and vectors (n, {self.config.knowledge_size}), got {tuple(item_index.shape)} and "
                f"{tuple(vectors.shape)}."
            )
        if len(item_index) and not 1 <= int(item_index.min()) <= int(item_index.max()) <= self.config.num_items:
            raise ValueError(
                f"knowledge is about item_index 1…{self.config.num_items}, got {int(item_index.min())}…{int(item_index.max())}: "
                "was it made for another catalogue?"
            )
        if len(item_index.unique()) != len(item_index):
            raise ValueError("an item stands more than once in `item_index`: give each item's vector once.")

    def _need_text_encoder(self) -> None:
        if self.text_encoder is None or self.text_tokenizer is None:
            raise RuntimeError(
                "texts need the text encoder, which serving goes without: load the model with `text_encoder=True`, or call "
                "`load_text_encoder`."
            )

    # The recommender's contract ------------------------------------------------------------------------------------------

    @property
    def model(self):
        """The backbone's sequence model, with the ItemEncoder."""
        return self.backbone.model

    @property
    def supervision(self) -> str:
        """What one training row teaches: the backbone's."""
        return self.backbone.supervision

    @property
    def item_bias(self) -> torch.Tensor | None:
        """(num_items + 1,) bias of each item, or None."""
        return self.backbone.item_bias

    def project_states(self, states: torch.Tensor) -> torch.Tensor:
        """Sequence states (…, hidden) in the space of the scoring table."""
        return self.backbone.project_states(states)

    def get_input_embeddings(self):
        """The ID table."""
        return self.backbone.get_input_embeddings()

    def train(self, mode: bool = True):
        """See `torch.nn.Module.train`; training will change what the kept item table was made of."""
        self._table = None
        return super().train(mode)

    def item_representations(self, knowledge: Knowledge | None = None) -> torch.Tensor:
        """The fused table that feeds input and scores.

        Args:
            knowledge: item_index (n,) and vectors (n, dim) that replace the stored ones, with gradients, in this table.

        Returns:
            (num_items + 1, hidden), row 0 zeros. Without gradients it is kept for as long as the weights stay.
        """
        encoder = self.backbone.model.item_encoder
        if knowledge is not None:
            items, vectors = knowledge
            self._check_knowledge(items, vectors)
            stored = self.knowledge
            replaced = stored.index_put((items.to(stored.device),), vectors.to(stored))
            return functional_call(encoder, {f"feature_{KNOWLEDGE}": replaced}, ())
        if torch.is_grad_enabled() or torch.compiler.is_compiling() or _any_autocast():
            return encoder()
        # Every request passes here, so looking must cost next to nothing: `parameters()` would take longer than all else.
        modules = filter(None, encoder._modules.values())
        tensors: list[Any] = [p for module in modules for p in module._parameters.values() if p is not None]
        tensors += encoder._buffers.values()
        # Fused optimizers do not count what they write: `train` forgets the table, for there is no training without it.
        key = [(tensor.data_ptr(), -1 if tensor.is_inference() else tensor._version) for tensor in tensors]
        if self._table is None or self._table[0] != key or any(version < 0 for _, version in key):
            # The table outlives this call, so it must be an ordinary tensor also where an evaluator is in inference mode.
            with torch.inference_mode(False), torch.no_grad():
                self._table = key, encoder()
        return self._table[1]

    def forward(
        self,
        input_ids: torch.Tensor,
        labels: torch.Tensor | None = None,
        negatives: torch.Tensor | None = None,
        objective: NextItemLoss | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        item_table: torch.Tensor | None = None,
        knowledge: Knowledge | None = None,
        knowledge_tokens: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None,
        **kwargs,
    ) -> NextItemOutput:
        """Loss of the labelled positions, or the state that predicts the next item; see [`SequentialRecommender.forward`].

        Args:
            input_ids: (batch, length) item_index, left-padded with 0.
            labels: (batch, length) the item_index to predict at each position; -100 is ignored.
            negatives: Sampled item_index, for sampled losses.
            objective: The loss; full cross-entropy when not given.
            num_items_in_batch: Labels in the whole optimizer step.
            item_table: What `item_representations` returned.
            knowledge: item_index (n,) and vectors (n, dim) that replace the stored ones in this call, with gradients.
            knowledge_tokens: item_index (n,), `input_ids` and `attention_mask` (n, tokens) of texts to encode in this call instead.
            kwargs: Unused; declares to the `Trainer` that the loss is already scaled.

        Returns:
            [`NextItemOutput`] with `loss` when labelled, else with `user_embeddings`.

        Raises:
            ValueError: More than one of `item_table`, `knowledge`, `knowledge_tokens`.
        """
        if sum(given is not None for given in (item_table, knowledge, knowledge_tokens)) > 1:
            raise ValueError(
                "give one of `item_table`, `knowledge` and `knowledge_tokens`: each stands for the others."
            )
        if knowledge_tokens is not None:
            items, tokens, mask = knowledge_tokens
            knowledge = items, self.encode_texts(tokens, mask)
        table = self.item_representations(knowledge) if item_table is None else item_table
        return self.backbone(
            input_ids, labels, negatives=negatives, objective=objective, num_items_in_batch=num_items_in_batch, item_table=table
        )  # fmt: skip

    def score(
        self,
        input_ids: torch.Tensor,
        candidates: torch.Tensor | None = None,
        item_table: torch.Tensor | None = None,
        knowledge: Knowledge | None = None,
    ) -> torch.Tensor:
        """Scores of items as the next one; see [`SequentialRecommender.score`], and `forward` for `knowledge`."""
        table = self.item_representations(knowledge) if item_table is None else item_table
        return self.backbone.score(input_ids, candidates, item_table=table)

    # p(y | x, s) ---------------------------------------------------------------------------------------------------------

    def log_prob(
        self, input_ids: torch.Tensor, targets: torch.Tensor, knowledge: Knowledge | None = None
    ) -> torch.Tensor:
        """The log-probability log p(y|x, s): softmax over the whole catalogue.

        Args:
            input_ids: (batch, length) item_index, left-padded with 0.
            targets: (batch,) item_index y.
            knowledge: item_index (n,) and vectors (n, dim) that replace the stored ones, with gradients, for all rows.

        Returns:
            (batch,) float32; float64 of a float64 model.
        """
        return next_item_log_prob(self.backbone, input_ids, targets, self.item_representations(knowledge))

    def log_prob_with(
        self, input_ids: torch.Tensor, targets: torch.Tensor, item_index: torch.Tensor, vectors: torch.Tensor
    ) -> torch.Tensor:
        """As `log_prob`, where every row has vectors of its own for some items: the reward of one sampled text each.

        The table is fused once; of each row only the replaced items are fused again, for its input and its scores.

        Args:
            input_ids: (batch, length) item_index, left-padded with 0.
            targets: (batch,) item_index y.
            item_index: (batch,) or (batch, k) the replaced items, different ones in a row; 0 replaces nothing.
            vectors: (batch, dim) or (batch, k, dim) their vectors in this row.

        Returns:
            (batch,) float32, with gradients.

        Raises:
            ValueError: Shapes that do not fit, or items outside the catalogue.
        """
        if item_index.ndim == 1:
            item_index, vectors = item_index.unsqueeze(1), vectors.unsqueeze(1)
        if len(item_index) != len(input_ids) or vectors.shape != (*item_index.shape, self.config.knowledge_size):
            raise ValueError(
                f"{len(input_ids)} rows need item_index (rows, k) and vectors (rows, k, {self.config.knowledge_size}), got "
                f"{tuple(item_index.shape)} and {tuple(vectors.shape)}."
            )
        if item_index.numel() and not 0 <= int(item_index.min()) <= int(item_index.max()) <= self.config.num_items:
            raise ValueError(f"`item_index` must be 0…{self.config.num_items}, got up to {int(item_index.max())}.")
        rows = self._fuse(item_index.flatten(), vectors.flatten(0, 1)).view(*item_index.shape, -1)
        backbone, table = self.backbone, self.item_representations()
        ids, lengths = to_right_padded(input_ids[:, -self.config.max_length :])
        if bool((lengths == 0).any()):
            raise ValueError(f"`input_ids` row {int((lengths == 0).nonzero()[0])} has no item.")
        ids, lengths = backbone.prepare_for_scoring(ids, lengths)
        match = (ids.unsqueeze(-1) == item_index.unsqueeze(1)) & (ids != 0).unsqueeze(-1)
        own = rows.gather(1, match.int().argmax(-1, keepdim=True).expand(-1, -1, rows.shape[-1]))
        inputs = torch.where(match.any(-1, keepdim=True), own, backbone.model.lookup(ids, table))
        users = backbone.project_states(backbone.model.encode(inputs, lengths, last_only=True))
        return catalogue_log_prob(users, targets, table, backbone.item_bias, item_index, rows)

    def _fuse(self, items: torch.Tensor, vectors: torch.Tensor) -> torch.Tensor:
        """Fused rows of items with given vectors: (n,), (n, dim) -> (n, hidden)."""
        encoder = self.backbone.model.item_encoder
        # The encoder on a small catalogue of these items alone, behind a padding row.
        small = {"id_embedding.weight": F.embedding(items, encoder.id_embedding.weight)}
        small |= {f"feature_{name}": getattr(encoder, f"feature_{name}")[items] for name in encoder.feature_sizes}
        small[f"feature_{KNOWLEDGE}"] = vectors.to(self.knowledge)
        return functional_call(encoder, {name: F.pad(rows, (0, 0, 1, 0)) for name, rows in small.items()}, ())[1:]


def next_item_log_prob(
    recommender: SequentialRecommender,
    input_ids: torch.Tensor,
    targets: torch.Tensor,
    item_table: torch.Tensor | None = None,
) -> torch.Tensor:
    """The log-probability log p(y|x) of any backbone, for example of the frozen one without knowledge.

    Args:
        recommender: A backbone.
        input_ids: (batch, length) item_index, left-padded with 0.
        targets: (batch,) item_index y.
        item_table: What `item_representations` returned.

    Returns:
        (batch,) float32.

    Example:
        >>> from hf_seqrec.modeling import SASRecConfig, SASRecForSequentialRecommendation
        >>> model = SASRecForSequentialRecommendation(SASRecConfig(num_items=9)).eval()
        >>> history = torch.tensor([[0, 3, 7]])
        >>> found = next_item_log_prob(model, history, torch.tensor([5]))
        >>> bool(torch.isclose(found, model.score(history).log_softmax(1)[:, 5]))
        True
    """
    table = recommender.item_representations() if item_table is None else item_table
    users = recommender(input_ids, item_table=table).user_embeddings
    return catalogue_log_prob(users, targets, table, recommender.item_bias)


def catalogue_log_prob(
    users: torch.Tensor,
    targets: torch.Tensor,
    table: torch.Tensor,
    bias: torch.Tensor | None = None,
    item_index: torch.Tensor | None = None,
    rows: torch.Tensor | None = None,
) -> torch.Tensor:
    """Log-softmax of users · table + bias at the targets, a chunk of rows at a time; gradients recompute the chunk.

    Args:
        users: (batch, dim).
        targets: (batch,) item_index.
        table: (num_items + 1, dim), row 0 padding.
        bias: (num_items + 1,) or None.
        item_index: (batch, k) items that have another vector in a row; 0 for none.
        rows: (batch, k, dim) these vectors.

    Returns:
        (batch,) float32.
    """

    def chunk(users, targets, item_index, rows):
        scores = users @ table.T
        scores = scores if scores.dtype == torch.float64 else scores.float()
        if bias is not None:
            scores = scores + bias
        if item_index is not None:
            own = torch.einsum("bd,bkd->bk", users, rows).to(scores.dtype)
            own = own if bias is None else own + bias[item_index]
            # Items 0 fall on the padding column, whose score nothing reads.
            scores = scores.scatter(1, item_index, own)
        true = scores.gather(1, targets.unsqueeze(1)).squeeze(1)
        return true - scores[:, 1:].logsumexp(1)

    size, out = chunk_rows(len(table), users.device), []
    for part in (slice(start, start + size) for start in range(0, len(users), size)):
        given = [None if tensor is None else tensor[part] for tensor in (users, targets, item_index, rows)]
        out.append(checkpoint(chunk, *given, use_reentrant=False) if torch.is_grad_enabled() else chunk(*given))
    return torch.cat(out) if out else users.new_zeros(0, dtype=torch.float32)


def _any_autocast() -> bool:
    return torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda")


def _width(encoder: PreTrainedModel) -> int:
    return (
        encoder.get_input_embeddings().weight.shape[1]
        if not hasattr(encoder.config, "hidden_size")
        else int(encoder.config.hidden_size)
    )


register(SeRALMConfig, SeRALMForSequentialRecommendation)
