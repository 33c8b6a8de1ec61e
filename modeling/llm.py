"""A language model as a frozen part of a recommender: reads prompts with slots, is never saved, comes back by id and revision.

[`PromptEncoder`] runs any LLM of the Auto classes over prompts of `prompting.py` and reads hidden states at a slot.
[`LLMRecommender`] is the base of models built around one: it stores only what was trained.
"""

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn
from transformers import AutoConfig, AutoModel, DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES
from transformers.utils import cached_file
from transformers.utils.hub import extract_commit_hash

from .base import SequencePreTrainedModel, SequentialRecommenderConfig
from .prompting import Slot


# Where to look for files; passed on to the Hub. The first group also holds for the LLM and the teacher.
_ACCESS_KEYS = ("cache_dir", "force_download", "local_files_only", "token")
_PLACE_KEYS = ("revision", "subfolder")

# Tokens (padding included) in one pass of the LLM: small passes stay in a CPU's cache, large ones feed a GPU.
_TOKEN_BUDGET = {"cpu": 2048, "cuda": 32768}
# What starting one more pass costs, as a number of tokens: so much padding is accepted before prompts are split further.
_PASS_COST = {"cpu": 32, "cuda": 1024}


def llm_kind(config) -> str:
    """`"decoder"`, `"encoder-decoder"` or `"encoder"`, from an LLM's configuration."""
    if config.is_encoder_decoder:
        return "encoder-decoder"
    is_encoder = config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not getattr(config, "is_decoder", False)
    return "encoder" if is_encoder else "decoder"


def check_llm_place(name_or_path: str) -> None:
    """Refuse the path of a folder that is not on this machine, which the Hub would take for a wrong repository id.

    Args:
        name_or_path: Hub id or folder of an LLM.

    Raises:
        FileNotFoundError: It is an absolute path, and there is no such folder.
    """
    place = Path(name_or_path)
    if place.is_absolute() and not place.is_dir():
        raise FileNotFoundError(
            f"there is no folder {name_or_path} with a language model here. A model that was trained with one from a folder is loaded by "
            f"naming where {place.name!r} is now, a folder or a Hub id: `from_pretrained(…, llm=…)`, `pipeline(…, model_kwargs="
            '{"llm": …})`, or --llm on the command line.'
        )


def load_llm(
    name_or_path: str,
    revision: str | None = None,
    dtype: str | torch.dtype = "auto",
    attn_implementation: str | None = None,
    quantization: str | None = None,
    **kwargs,
) -> PreTrainedModel:
    """Load an LLM, frozen, without dropout; of an encoder-decoder only the encoder.

    Args:
        name_or_path: Hub id or folder of any model of the Auto classes.
        revision: Commit, tag or branch.
        dtype: Of the weights; `"auto"` is the checkpoint's.
        attn_implementation: `eager`, `sdpa`, `flash_attention_2`, …; None lets transformers choose.
        quantization: `"8bit"` or `"4bit"` (bitsandbytes on a GPU), or None.
        kwargs: For `AutoModel.from_pretrained`, for example `token` or `device_map`.

    Returns:
        The model.

    Raises:
        ImportError: Quantization without bitsandbytes or GPU. ValueError: an unknown quantization. FileNotFoundError: no such folder.

    Example:
        >>> llm = load_llm("sentence-transformers/all-MiniLM-L6-v2")  # doctest: +SKIP
    """
    check_llm_place(name_or_path)
    if quantization is not None:
        kwargs["quantization_config"] = _quantization_config(quantization)
    access = {key: kwargs[key] for key in _ACCESS_KEYS if key in kwargs}
    config = AutoConfig.from_pretrained(name_or_path, revision=revision, **access)
    llm = AutoModel.from_pretrained(
        name_or_path,
        config=without_dropout(config),
        revision=revision,
        dtype=dtype,
        attn_implementation=attn_implementation,
        **kwargs,
    )
    return _prepare(llm)


def build_llm(config: dict[str, Any]) -> PreTrainedModel:
    """An LLM with random weights from its configuration as a dictionary; see [`load_llm`] for trained ones."""
    values = dict(config)
    return _prepare(AutoModel.from_config(without_dropout(AutoConfig.for_model(values.pop("model_type"), **values))))


def resolve_revision(name_or_path: str, revision: str | None = None, **access) -> str | None:
    """The commit behind a tag, a branch or None; what was given for a folder, which has no commits."""
    if os.path.isdir(name_or_path):
        return revision
    path = cached_file(name_or_path, "config.json", revision=revision, **access)
    return extract_commit_hash(str(path), None) or revision


def config_as_dict(config) -> dict[str, Any]:
    """The shape of a model, without where it came from and how it was loaded on this machine."""
    leave_out = ("auto_map", "custom_pipelines", "quantization_config")
    return {name: value for name, value in config.to_diff_dict().items() if name[0] != "_" and name not in leave_out}


def without_dropout(config):
    """Set every dropout of a configuration to 0: a frozen LLM gives the same states in training and in evaluation."""
    for name, value in config.to_dict().items():
        if "drop" in name and isinstance(value, int | float) and not isinstance(value, bool):
            setattr(config, name, 0.0)
    return config


def _prepare(llm: PreTrainedModel) -> PreTrainedModel:
    if llm.config.is_encoder_decoder:
        llm = llm.get_encoder()
    if getattr(llm, "pooler", None) is not None:
        llm.pooler = None  # the pooled output is never read, and adapters on it would never train
    return llm.requires_grad_(False).eval()


def _quantization_config(quantization: str):
    if quantization not in ("8bit", "4bit"):
        raise ValueError(f"`llm_quantization` must be '8bit', '4bit' or None, got {quantization!r}.")
    from transformers import BitsAndBytesConfig
    from transformers.utils import is_bitsandbytes_available

    if not (is_bitsandbytes_available() and torch.cuda.is_available()):
        raise ImportError(
            f"`llm_quantization={quantization!r}` needs a GPU and bitsandbytes: pip install bitsandbytes, or use None with "
            "`llm_dtype='bfloat16'`."
        )
    return BitsAndBytesConfig(load_in_8bit=quantization == "8bit", load_in_4bit=quantization == "4bit")


def add_lora(llm: PreTrainedModel, lora: dict[str, Any]) -> None:
    """Put trainable low-rank adapters into an LLM.

    Args:
        llm: Changed in place.
        lora: Arguments of `peft.LoraConfig`: `r`, `lora_alpha`, `lora_dropout`, `target_modules`, …

    Raises:
        ValueError: `target_modules` name nothing in this LLM (peft says which).
    """
    from peft import LoraConfig, inject_adapter_in_model

    inject_adapter_in_model(LoraConfig(**lora), llm)


class SlotVectors(NamedTuple):
    """What fills one kind of slot.

    Args:
        values: (total, width) vectors in the order of the rows, or (k, width) when `counts` is None.
        counts: (rows,) how many vectors belong to each prompt; None puts the same vectors into every prompt: one vector into all
            its slots of the kind, k > 1 into its k slots in their order.
    """

    values: torch.Tensor
    counts: np.ndarray | None = None


class PromptEncoder(nn.Module):
    """An LLM that reads prompts with slots.

    Args:
        llm: From [`load_llm`]; prompts enter as `inputs_embeds`, so its vocabulary stays as it is.
        token_budget: Tokens in one pass, padding included; None chooses by device.
        share_prefix: Reuse keys and values (decoder-only LLMs): what all prompts of a pass begin with runs once, and what stands
            before their first slot without a graph.
    """

    def __init__(self, llm: PreTrainedModel, token_budget: int | None = None, share_prefix: bool = True):
        super().__init__()
        self.llm = llm
        self.kind = llm_kind(llm.config)
        self.token_budget = token_budget
        self.share_prefix = share_prefix and self.kind == "decoder"
        self.tokens_seen = 0  # tokens that went through the LLM, padding included; benchmarks read it

    @property
    def width(self) -> int:
        """Width of the LLM's input vectors and hidden states."""
        return self.llm.get_input_embeddings().weight.shape[1]

    @torch.no_grad()
    def embedding_statistics(self, rows: int = 8192) -> tuple[float, float]:
        """Mean and standard deviation of the LLM's token vectors, from at most `rows` of them, evenly spaced."""
        table = self.llm.get_input_embeddings()
        size = table.weight.shape[0]
        ids = torch.arange(0, size, max(1, size // rows), device=table.weight.device)
        vectors = table(ids).float()
        return float(vectors.mean()), float(vectors.std())

    def forward(
        self, prompts: list[np.ndarray], vectors: dict[Slot, SlotVectors] | None = None, read: Slot | None = None
    ) -> torch.Tensor:
        """Hidden states of the last layer at one slot of each prompt, or their mean over the prompt.

        Args:
            prompts: Token ids with slots, from a `PromptProgram`; any order, any lengths.
            vectors: What fills each kind of slot.
            read: The slot whose state is wanted, exactly one in every prompt; None for the mean over all tokens.

        Returns:
            (len(prompts), width) float32. Neither the order nor the company of a prompt changes its state.

        Raises:
            ValueError: Slots and vectors do not match in a prompt; the message names prompt, slot and both numbers.
        """
        vectors = vectors or {}
        taken = self._check(prompts, vectors, read)
        lengths = np.array([len(prompt) for prompt in prompts])
        order = np.argsort(-lengths, kind="stable")
        out = []
        for rows in self._passes(order, lengths):
            ids, mask = pad([prompts[row] for row in rows], self.device)
            embeds = self._embed(ids, vectors, taken, rows)
            if read is None:
                weights = (mask / mask.sum(1, keepdim=True)).unsqueeze(-1)
                out.append((self._run(embeds, mask)[0].float() * weights).sum(1))
                continue
            states, skipped = self._run(embeds, mask, [prompts[row] for row in rows] if self.share_prefix else None)
            position = (ids == int(read)).int().argmax(1) - skipped
            out.append(states[torch.arange(len(rows), device=self.device), position].float())
        return torch.cat(out)[torch.from_numpy(np.argsort(order, kind="stable")).to(self.device)]

    @property
    def device(self) -> torch.device:
        """Where the LLM's token vectors are."""
        return self.llm.get_input_embeddings().weight.device

    def _passes(self, order: np.ndarray, lengths: np.ndarray):
        """Rows of similar length, longest first: together within the budget, and with less padding than a pass costs."""
        budget = self.token_budget or _TOKEN_BUDGET.get(self.device.type, 8192)
        begin, padding = 0, 0
        for end, row in enumerate(order):
            longest = lengths[order[begin]]
            padding += longest - lengths[row]
            if end > begin and ((end + 1 - begin) * longest > budget or padding > self._pass_cost):
                yield order[begin:end]
                begin, padding = end, 0
        yield order[begin:]

    @property
    def _pass_cost(self) -> int:
        return _PASS_COST.get(self.device.type, 256)

    def _check(self, prompts, vectors, read) -> dict[Slot, np.ndarray]:
        """Compare slots with vectors; returns for each counted kind the first vector of every prompt."""
        if not prompts:
            raise ValueError("no prompt to read.")
        taken = {}
        for slot in Slot:
            found = np.array([np.count_nonzero(prompt == slot) for prompt in prompts])
            if slot == read and (found != 1).any():
                row = int(np.flatnonzero(found != 1)[0])
                raise ValueError(f"prompt {row} has {found[row]} slots {slot.text} to read, need exactly 1.")
            given = vectors.get(slot)
            if given is None:
                if found.any():
                    raise ValueError(
                        f"prompt {int(found.argmax())} has a slot {slot.text}, but no vectors for it were given."
                    )
                continue
            if given.counts is None and len(given.values) == 1:
                continue
            counts = np.full(len(prompts), len(given.values)) if given.counts is None else np.asarray(given.counts)
            if counts.shape != found.shape or (counts != found).any():
                row = int(np.flatnonzero(counts != found)[0]) if counts.shape == found.shape else 0
                raise ValueError(
                    f"prompt {row} has {found[row]} slots {slot.text}, but {counts.flat[row]} vectors were given for it."
                )
            if given.counts is None:
                taken[slot] = np.zeros(len(prompts), dtype=np.int64)
                continue
            if counts.sum() != len(given.values):
                raise ValueError(f"{counts.sum()} slots {slot.text} need as many vectors, got {len(given.values)}.")
            taken[slot] = np.cumsum(counts) - counts
        return taken

    def _embed(self, ids, vectors, taken, rows) -> torch.Tensor:
        embeds = self.llm.get_input_embeddings()(ids.clamp(min=0))
        for slot, (values, counts) in vectors.items():
            here = (ids == int(slot)).unsqueeze(-1)
            values = values.to(embeds)
            if counts is None and len(values) == 1:
                embeds = torch.where(here, values[0], embeds)
                continue
            size = np.full(len(taken[slot]), len(values)) if counts is None else counts
            index = [taken[slot][row] + offset for row in rows for offset in range(size[row])]
            if index:
                # masked_scatter fills row by row from the left, the order in which `index` lists the vectors.
                # F.embedding instead of values[index]: on a CPU the gradient of an index adds up in an order that changes from run to run.
                listed = F.embedding(torch.tensor(index, device=values.device), values)
                embeds = embeds.masked_scatter(here, listed)
        return embeds

    def _run(self, embeds, mask, prompts: list[np.ndarray] | None = None) -> tuple[torch.Tensor, int]:
        """States of the last layer, and how many positions at the left they leave out.

        With `prompts` (decoder-only LLMs), nothing is done twice for what does not differ: the beginning that all rows share runs
        once, and what stands before the first slot, which nothing trained can change, runs without a graph for the backward pass.
        """
        begin, cache = 0, None
        if prompts is not None:
            adapted = any(parameter.requires_grad for parameter in self.llm.parameters())
            text = embeds if adapted else embeds.detach()
            shared = common_prefix(prompts) if len(prompts) > 1 else 0
            if shared:
                cache = self._read_on(text[:1, :shared], None, None)
            if cache is not None:
                cache.batch_repeat_interleave(len(embeds))
                begin = shared
            before_slots = min(first_slot(prompt) for prompt in prompts)
            worth = len(embeds) * (before_slots - begin) > self._pass_cost
            if worth and begin == shared and embeds.requires_grad and not adapted:
                cache = self._read_on(text[:, begin:before_slots], mask[:, :before_slots], cache)
                begin = before_slots if cache is not None else 0
        self.tokens_seen += embeds[:, begin:].shape[:2].numel()
        extra: dict[str, Any] = {"use_cache": False} if self.kind == "decoder" else {}
        if cache is not None:
            extra = {"use_cache": True, "past_key_values": cache}
        return self.llm(inputs_embeds=embeds[:, begin:], attention_mask=mask, **extra).last_hidden_state, begin

    def _read_on(self, embeds, mask, cache) -> DynamicCache | None:
        """Keys and values after these positions, or None where an LLM keeps others."""
        length = embeds.shape[1] + (0 if cache is None else cache.get_seq_length())
        before = {} if cache is None else {"past_key_values": cache}
        out = self.llm(inputs_embeds=embeds, attention_mask=mask, use_cache=True, **before)
        cache = getattr(out, "past_key_values", None)
        # Other caches (sliding windows, state-space layers) forget or fold what they read, and activation checkpointing keeps
        # none: run plainly then.
        plain = isinstance(cache, DynamicCache) and all(type(layer) is DynamicLayer for layer in cache.layers)
        if plain and cache.get_seq_length() == length:
            self.tokens_seen += embeds.shape[:2].numel()
            return cache
        if not self.training:
            self.share_prefix = False
        return None


def weight_versions(tensors: list[torch.Tensor]) -> tuple:
    """What changes whenever one of the tensors does: place, write counter and norm of each.

    The counters see every write through autograd's eyes, the norms those that go around it (`.data`, fused and sharded optimizers).
    """
    norms = torch.stack(torch._foreach_norm([tensor.detach() for tensor in tensors])).tolist()
    return tuple((tensor.data_ptr(), tensor._version, norm) for tensor, norm in zip(tensors, norms, strict=True))


def pad(prompts: list[np.ndarray], device) -> tuple[torch.Tensor, torch.Tensor]:
    """Right-pad: (rows, longest) ids and mask. Padding is masked, so the LLM needs no pad token and no padding side."""
    ids = np.zeros((len(prompts), max(map(len, prompts))), dtype=np.int64)
    mask = np.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, : len(prompt)] = prompt
        mask[row, : len(prompt)] = 1
    return torch.from_numpy(ids).to(device), torch.from_numpy(mask).to(device)


def common_prefix(prompts: list[np.ndarray]) -> int:
    """How many tokens all prompts begin with, up to the first slot and leaving every prompt at least one token."""
    shortest = min(map(len, prompts)) - 1
    stacked = np.stack([prompt[:shortest] for prompt in prompts])
    differs = (stacked != stacked[0]).any(0) | (stacked[0] < 0)
    return int(differs.argmax()) if differs.any() else shortest


def first_slot(prompt: np.ndarray) -> int:
    """Position of a prompt's first slot, its last token when it has none."""
    slots = np.flatnonzero(prompt < 0)
    return int(slots[0]) if len(slots) else len(prompt) - 1


class LLMRecommender(SequencePreTrainedModel):
    """Base of recommenders around a frozen LLM: saves only its own parts, loads the LLM by id and revision.

    A subclass takes `llm` and `teacher` in `__init__`, and sets `self.encoder = PromptEncoder(self.prepare_llm(llm))` after
    `self.post_init()`, so that no initialisation reaches the LLM. Its configuration has `llm_name_or_path`, `llm_revision`, `llm_config`, `llm_dtype`,
    `llm_attn_implementation`, `llm_quantization`, `lora`, `token_budget` and `share_prefix`.
    """

    config: SequentialRecommenderConfig
    _supports_flash_attn = True
    _supports_attention_backend = True
    frozen_parts: tuple[str, ...] = ("encoder.llm.",)

    @classmethod
    def new_llm(cls, config: Any) -> PreTrainedModel:
        """An LLM of the configured shape with random weights, as this model reads it."""
        return build_llm(config.llm_config)

    @classmethod
    def read_llm(cls, config: Any, *args, **kwargs) -> PreTrainedModel:
        """The trained LLM, as this model reads it; arguments of [`load_llm`]."""
        return load_llm(*args, **kwargs)

    def prepare_llm(self, llm: PreTrainedModel | None) -> PreTrainedModel:
        """The LLM with adapters, if configured; one with random weights of the configured shape when None is given."""
        config: Any = self.config
        if llm is None:
            if config.llm_config is None:
                raise ValueError("the configuration has no `llm_config`: build the model with `from_parts`.")
            llm = self.new_llm(config)
        if config.lora is not None:
            add_lora(llm, config.lora)
        return llm

    def is_own(self, name: str) -> bool:
        """Whether a weight belongs to this model and not to a frozen part: it is trained, saved and loaded."""
        return ".lora_" in name or not name.startswith(self.frozen_parts)

    def own_state_dict(self) -> dict[str, torch.Tensor]:
        """Everything but the weights of frozen parts: what was trained, and this model's buffers."""
        return {name: tensor for name, tensor in self.state_dict().items() if self.is_own(name)}

    def save_pretrained(self, save_directory, *args, state_dict=None, push_to_hub: bool = False, **kwargs) -> None:
        """Write configuration, code and this model's own parts: megabytes, whatever the size of the LLM.

        Args:
            save_directory: Folder; made when missing. Files are replaced one by one, each as a whole.
            args: As in transformers.
            state_dict: Weights to save instead of the current ones; frozen parts in it are left out.
            push_to_hub: Also push, to `repo_id` or the folder's name.
            kwargs: As in transformers; `repo_id`, `revision`, … for the push.

        Raises:
            ValueError: The LLM came from nowhere (random weights), so nobody could load the model again.
        """
        if self.config.llm_name_or_path is None:
            raise ValueError(
                "this model's LLM has no name or path, so it could not be restored: save the LLM to a folder and build the "
                "model from there."
            )
        own = self.own_state_dict()
        if state_dict is not None:
            own = {name: tensor for name, tensor in state_dict.items() if name in own}
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        for left_over in folder.glob(".saving-*"):  # of a save that was killed
            shutil.rmtree(left_over)
        hub = {
            key: kwargs.pop(key)
            for key in ("repo_id", "commit_message", "private", "revision", "create_pr")
            if key in kwargs
        }
        with tempfile.TemporaryDirectory(dir=folder, prefix=".saving-") as temporary:
            super().save_pretrained(temporary, *args, state_dict=own, **kwargs)
            # The configuration last: a folder with a configuration is whole.
            for name in sorted(os.listdir(temporary), key=lambda name: (name == "config.json", name)):
                target = folder / name
                if target.is_dir():
                    shutil.rmtree(target)
                os.replace(Path(temporary) / name, target)
        if push_to_hub:
            self.push_to_hub(hub.pop("repo_id", folder.resolve().name), token=kwargs.get("token"), **hub)

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path, *args, config=None, llm=None, teacher=None, dtype=None, **kwargs
    ):
        """Load this model's own parts, then its LLM and teacher by id and revision.

        Args:
            pretrained_model_name_or_path: Folder or Hub repository.
            args: Unused.
            config: Configuration, when it is not the saved one.
            llm: Another place of the same LLM (a folder), or a loaded one.
            teacher: Another place of the same teacher, or a loaded one.
            dtype: Of the LLM's weights; the model's own parts are float32.
            kwargs: `revision`, `token`, `cache_dir`, `local_files_only`, `subfolder`; `device_map` of the LLM.

        Returns:
            The model in evaluation mode.

        Raises:
            OSError: A file, the LLM or the teacher cannot be found. ValueError: weights are missing, left over or of
                another shape, or the teacher is not the one the model was trained with.
        """
        access = {key: kwargs[key] for key in _ACCESS_KEYS if kwargs.get(key) is not None}
        place = {key: kwargs[key] for key in _PLACE_KEYS if kwargs.get(key) is not None}
        if not isinstance(config, cls.config_class):
            config = cls.config_class.from_pretrained(pretrained_model_name_or_path, **access, **place)
        path = cached_file(pretrained_model_name_or_path, "model.safetensors", **access, **place)
        state = load_file(str(path))
        if llm is None or isinstance(llm, str | os.PathLike):
            llm = cls.read_llm(
                config,
                str(llm) if llm is not None else config.llm_name_or_path,
                config.llm_revision if llm is None else None,
                dtype if dtype is not None else config.llm_dtype,
                kwargs.get("attn_implementation") or config.llm_attn_implementation,
                config.llm_quantization,
                **access,
                **({"device_map": kwargs["device_map"]} if kwargs.get("device_map") is not None else {}),
            )
        model = cls(config, llm=llm, teacher=cls.find_teacher(config, state, teacher, access))
        model.load_own_state_dict(state, pretrained_model_name_or_path)
        return model.eval()

    @classmethod
    def find_teacher(cls, config, state: dict[str, torch.Tensor], teacher, access: dict[str, Any]):
        """The teacher of a saved model; models without one need not change this."""
        return None

    def load_own_state_dict(self, state: dict[str, torch.Tensor], source) -> None:
        """Load what `own_state_dict` gave.

        Raises:
            ValueError: Weights are missing, left over, or of another shape.
        """
        own = self.own_state_dict()
        problems = [f"missing {name}" for name in own if name not in state]
        problems += [f"unknown {name}" for name in state if name not in own]
        problems += [
            f"{name} is {tuple(state[name].shape)}, need {tuple(own[name].shape)}"
            for name in own
            if name in state and state[name].shape != own[name].shape
        ]
        if problems:
            raise ValueError(
                f"the weights of {source} do not fit their configuration or LLM ({len(problems)} problems): {'; '.join(problems[:5])}."
            )
        self.load_state_dict(state, strict=False)
