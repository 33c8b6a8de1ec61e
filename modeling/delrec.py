"""DELRec: a recommender's behaviour distilled into soft prompts, which an LLM then reads while it ranks candidates.

Paper: Zhang et al., DELRec: Distilling Sequential Pattern to Enhance LLMs-based Sequential Recommendation, 2024 (arXiv 2406.11156).
Three prompts share one table of k soft prompts: temporal analysis (TA), recommendation pattern simulating (RPS), and recommendation
(LSR). Stage 1 (`SoftPromptTrainer`) trains the table on TA and RPS, stage 2 (`PromptTuningTrainer`) adapters of the LLM on LSR.
Deviations. (1) The wording is ours. (2) Soft prompts stand at the beginning, so that an LLM reads them once for all users. (3) The score of
an item is by default the likelihood of its whole title among the candidates, not of its first token among the catalogue. (4) For
decoder-only LLMs the teacher's list stands before the answer in RPS, because they cannot see what follows. (5) Candidates stand in an
order that says nothing about the target.
Inputs: `input_ids` (batch, length) item_index, left-padded with 0; `candidates` (batch, m) item_index.
"""

import json
import os
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.dataclasses import strict
from safetensors import safe_open
from safetensors.torch import save
from torch import nn
from transformers import AutoTokenizer, PreTrainedModel
from transformers.utils import cached_file, logging

from .base import SequentialRecommender, register
from .candidate_prompts import CandidateProgram, CandidateTemplate
from .llm import SlotVectors, add_lora
from .llm_ranker import LLMRankerConfig, LLMRankerForSequentialRecommendation, LLMRankerOutput
from .processing import SequentialRecommendationProcessor
from .prompting import DOMAINS, Field, Slot, tokenize_texts


logger = logging.get_logger(__name__)

SOFT_PROMPT_FILE = "soft_prompts.safetensors"


TASKS = ("lsr", "ta", "rps")
PATTERNS = ("soft", "manual", "none")
SOFT_INITS = ("random", "vocabulary", "text")

# How a teacher recommends, in words: what stands in the place of the soft prompts with pattern="manual" (the paper's *w MCP*).
DESCRIPTIONS = {
    "hf_seqrec_sasrec": "weighs every item of the history by its relevance to the most recent ones and continues the sequence",
    "hf_seqrec_gru4rec": "reads the history item by item, keeps a memory of it that fades, and continues the sequence",
    "hf_seqrec_caser": "looks for short patterns among the last few items and combines them with the user's general taste",
}
# What prompts call a teacher.
TEACHERS = {
    "hf_seqrec_sasrec": "SASRec", "hf_seqrec_gru4rec": "GRU4Rec", "hf_seqrec_caser": "Caser", "hf_seqrec_bert4rec": "BERT4Rec",
    "hf_seqrec_nextitnet": "NextItNet", "hf_seqrec_fmlprec": "FMLP-Rec", "hf_seqrec_lightsans": "LightSANs",
}  # fmt: skip
DESCRIPTION = "learns from many users which items follow each other and continues the sequence"


def make_delrec_template(
    task: str,
    domain: str = "product",
    teacher: str = "recommender",
    pattern: str = "soft",
    llm_kind: str = "decoder",
    description: str = DESCRIPTION,
    hint: bool = True,
) -> CandidateTemplate:
    """The wording of one of DELRec's prompts.

    Args:
        task: `ta` (figure 4), `rps` (figure 5) or `lsr` (figure 6).
        domain: `movie`, `product`, `game` or `business`.
        teacher: What the text calls the teacher.
        pattern: What tells of the teacher: `soft` prompts, a `manual` description, or `none`.
        llm_kind: `decoder`, `encoder-decoder` or `encoder`; decides where RPS prints the rest of the teacher's list.
        description: The manual description.
        hint: RPS prints the rest of the teacher's list.

    Returns:
        The template. TA has the fields `example_history` (I_1 … I_{α-2}), `example_next` (I_α), `example_answer` (I_{α-1}), `history`
        (I_α … I_{n-3}), `next` (I_{n-1}) and `candidates`; RPS `history`, `candidates` and `hint`; LSR `history` and `candidates`.

    Raises:
        ValueError: An unknown task, domain or pattern.

    Example:
        >>> make_delrec_template("lsr", "movie", "SASRec").render({"history": ["Heat", "Up"], "candidates": ["Alien", "Ran"]})
        'SASRec recommends like this:[SoftPrompt]. This user has watched a series of movies, oldest first: Heat; Up. Candidates: Alien; Ran. In the light of SASRec, the next movie is: [Answer]'
    """
    for name, value, choices in (("task", task, TASKS), ("domain", domain, DOMAINS), ("pattern", pattern, PATTERNS)):
        if value not in choices:
            raise ValueError(f"`{name}` must be one of {', '.join(choices)}, got {value!r}.")
    words = DOMAINS[domain]
    prompt = {
        "soft": f"{teacher} recommends like this:{Slot.SOFT_PROMPT.text}. ",
        "manual": f"{teacher} recommends like this: it {description}. ",
        "none": "",
    }[pattern]
    history = f"This user {words.did}, oldest first:{{history}}. Candidates:{{candidates}}. "
    if task == "ta":
        prompt += (
            f"Think like {teacher}. After the {words.nouns}{{example_history}} came a hidden one, then{{example_next}}; hidden was"
            f"{{example_answer}}. After the {words.nouns}{{history}} came a hidden one, then{{next}}. Candidates:{{candidates}}. Hidden "
            "was: [Answer]"
        )
    elif task == "rps":
        prompt += history
        if hint and llm_kind == "decoder":
            prompt += f"Behind its first choice {teacher} ranks:{{hint}}. "
        prompt += f"The first choice of {teacher} is: [Answer]"
        if hint and llm_kind != "decoder":
            prompt += "; behind it:{hint}."
    else:
        light = "The" if pattern == "none" else f"In the light of {teacher}, the"
        prompt += f"{history}{light} next {words.noun} is: [Answer]"
    return CandidateTemplate(name="-".join(["delrec", task, domain, pattern]), prompt=prompt)


def query_value_modules(llm: PreTrainedModel) -> list[str]:
    """Names of the linear maps of queries and values in an LLM, of whatever architecture.

    Raises:
        ValueError: None of the known names is there.
    """
    known = ("q", "v", "q_proj", "v_proj", "query", "value", "query_key_value", "qkv_proj", "c_attn", "q_lin", "v_lin")
    ends = {name.rsplit(".", 1)[-1] for name, module in llm.named_modules() if not list(module.children())}
    found = [name for name in known if name in ends]
    if not found:
        raise ValueError(
            f"{type(llm).__name__} names its queries and values otherwise: give `target_modules` in `adapter`, or 'all-linear'."
        )
    return found


def add_adalora(llm: PreTrainedModel, settings: dict[str, Any]):
    """Put AdaLoRA's adapters into an LLM.

    Args:
        llm: Changed in place.
        settings: Arguments of `peft.AdaLoraConfig`: `init_r`, `target_r`, `lora_alpha`, `target_modules`, …

    Returns:
        peft's `AdaLoraModel`, whose `update_and_allocate` must be called after every step. Its `total_step` is set when a training begins.

    Raises:
        ValueError: There is nothing to take away from `init_r`.
    """
    from peft import AdaLoraConfig, AdaLoraModel

    config = AdaLoraConfig(**{"total_step": 10**9, **settings})
    if config.init_r <= config.target_r:
        raise ValueError(
            f"AdaLoRA begins with `init_r` and ends with `target_r` on average: {config.init_r} must be more than {config.target_r}."
        )
    return AdaLoraModel(llm, config, "default")


@strict
class DELRecConfig(LLMRankerConfig):
    """Configuration of DELRec.

    Args:
        pattern: What tells the LLM of the teacher: `soft` prompts, a `manual` description, or `none`.
        num_soft_tokens: Number k of soft prompts.
        soft_init: They start as `random` numbers, as rows of the LLM's `vocabulary`, or as the words of a `text`.
        soft_text: The text, repeated until there are k tokens.
        alpha: Temporal analysis tells of the first α items of a history as an example.
        num_recommended: Number h of the teacher's best items that stand among the candidates of RPS.
        show_recommended: RPS prints all of them but the first.
        teacher_label: What prompts call the teacher.
        adapter: `{"type": "adalora" or "lora", …}` with arguments of peft's `AdaLoraConfig` or `LoraConfig`; None keeps the LLM. Without
            `target_modules` the maps of queries and values are adapted.
        task_prompts: The compiled prompts of stage 1; filled in by `from_parts`.
    """

    model_type = "hf_seqrec_delrec"

    pattern: str = "soft"
    num_soft_tokens: int = 80
    soft_init: str = "vocabulary"
    soft_text: str | None = None
    alpha: int = 4
    num_recommended: int = 10
    show_recommended: bool = True
    teacher_label: str | None = None
    adapter: dict[str, Any] | None = None
    task_prompts: dict[str, Any] | None = None

    def validate_architecture(self):
        """Refuse numbers that contradict each other; runs on construction."""
        super().validate_architecture()
        if self.pattern not in PATTERNS:
            raise ValueError(f"`pattern` must be one of {', '.join(PATTERNS)}, got {self.pattern!r}.")
        if self.soft_init not in SOFT_INITS:
            raise ValueError(f"`soft_init` must be one of {', '.join(SOFT_INITS)}, got {self.soft_init!r}.")
        if self.soft_init == "text" and not self.soft_text:
            raise ValueError("soft_init='text' needs `soft_text`.")
        if self.num_soft_tokens < 1:
            raise ValueError(
                f"`num_soft_tokens` must be at least 1, got {self.num_soft_tokens}; for none use pattern='none'."
            )
        if self.alpha < 3:
            raise ValueError(f"`alpha` must be at least 3, so that its example has a history, got {self.alpha}.")
        if self.alpha + 2 > self.history_length:
            raise ValueError(
                f"temporal analysis needs alpha + 2 = {self.alpha + 2} items in a prompt, `history_length` is {self.history_length}."
            )
        if self.num_recommended > self.num_items:
            raise ValueError(
                f"`num_recommended` is {self.num_recommended}, the catalogue has {self.num_items} items: lower it."
            )
        if not 1 <= self.num_recommended <= self.num_candidates:
            raise ValueError(
                f"`num_recommended` must be in 1 … num_candidates = {self.num_candidates}, got {self.num_recommended}."
            )
        if self.adapter is not None and self.adapter.get("type") not in ("adalora", "lora"):
            raise ValueError(f"`adapter` needs a `type` adalora or lora, got {self.adapter!r}.")


def soft_prompt_size(path_or_repo: str | os.PathLike, revision: str | None = None, **access) -> int:
    """How many soft prompts a folder or repository holds; arguments as in `load_soft_prompts`."""
    with safe_open(_soft_prompt_file(path_or_repo, revision, access), "pt") as file:
        return file.get_slice("soft_prompt").get_shape()[0]


def _soft_prompt_file(path_or_repo: str | os.PathLike, revision: str | None, access: dict[str, Any]) -> str:
    try:
        return str(cached_file(path_or_repo, SOFT_PROMPT_FILE, revision=revision, **access))
    except OSError as error:
        raise OSError(
            f"no soft prompts at {path_or_repo}: need a folder or Hub repository with {SOFT_PROMPT_FILE}, as stage 1 leaves it ({error})"
        ) from error


class DELRecForSequentialRecommendation(LLMRankerForSequentialRecommendation):
    """An LLM that ranks candidates in the light of soft prompts, into which a recommender's behaviour was distilled.

    Example:
        >>> model, processor = DELRecForSequentialRecommendation.from_parts(                           # doctest: +SKIP
        ...     llm="google/flan-t5-xl", teacher="user/sasrec-ml-100k", catalogue=data.catalogue, domain="movie",
        ...     data_fingerprint=data.fingerprint, adapter={"type": "adalora", "init_r": 12, "target_r": 8})
        >>> model.load_soft_prompts("user/delrec-soft-prompts")                                        # doctest: +SKIP
        >>> model.score(torch.tensor([[0, 3, 7]]), candidates=torch.tensor([[5, 9, 12]])).shape        # doctest: +SKIP
        torch.Size([1, 3])
    """

    config: DELRecConfig
    soft_prompt: Any  # an nn.Embedding, or None

    def __init__(self, config: DELRecConfig, llm: PreTrainedModel | None = None, teacher=None):
        if config.task_prompts is None:
            raise ValueError("the configuration has no prompts: build the model with `from_parts`.")
        super().__init__(config, llm=llm, teacher=teacher)
        self.programs = {name: CandidateProgram(**values) for name, values in config.task_prompts.items()}
        self.programs["lsr"] = self.program

    @classmethod
    def make_template(cls, config: Any, task: str = "lsr", llm_kind: str = "decoder") -> CandidateTemplate:
        """The wording of one of the three prompts."""
        model_type = (config.teacher_config or {}).get("model_type", "")
        template = make_delrec_template(
            task,
            config.domain,
            config.teacher_label or TEACHERS.get(model_type, "the recommender"),
            config.pattern,
            llm_kind,
            DESCRIPTIONS.get(model_type, DESCRIPTION),
            config.show_recommended and config.num_recommended > 1,
        )
        return replace(template, candidate=" {label}: {title}") if config.task == "index" else template

    @classmethod
    def compile_prompts(cls, config: Any, tokenizer, kind: str, max_tokens: int) -> dict[str, Any]:
        """The three prompts; see the base class."""
        num_soft = config.num_soft_tokens if config.pattern == "soft" else 0
        programs = {
            task: cls.compile(
                config, cls.make_template(config, task, kind), tokenizer, kind, max_tokens, num_soft
            ).to_dict()
            for task in TASKS
        }
        # What the LLM alone is asked, for `explain`.
        plain = make_delrec_template("lsr", config.domain, pattern="none", llm_kind=kind)
        plain = replace(plain, candidate=" {label}: {title}") if config.task == "index" else plain
        programs["plain"] = cls.compile(config, plain, tokenizer, kind, max_tokens).to_dict()
        return {"prompt": programs.pop("lsr"), "task_prompts": programs}

    @classmethod
    def from_parts(
        cls,
        llm: str | os.PathLike,
        teacher: str | os.PathLike | SequentialRecommender,
        catalogue,
        data_fingerprint: str | None = None,
        **options,
    ) -> tuple["DELRecForSequentialRecommendation", SequentialRecommendationProcessor]:
        """A new model around an LLM and a teacher, with fresh soft prompts, and the processor that travels with it.

        Args:
            llm: Hub id or folder of the LLM.
            teacher: Hub id or folder of a trained backbone, or the backbone itself.
            catalogue: Has `.item_ids` and `.titles`, such as `hf_seqrec.data.Catalogue`.
            data_fingerprint: Fingerprint of the data set; a teacher trained on another one is refused.
            options: `llm_revision`, `teacher_revision`, `max_prompt_tokens` as in the base class, and fields of [`DELRecConfig`].

        Returns:
            The model and its processor.

        Raises:
            TypeError: A teacher without vectors, or an unknown option. ValueError: a teacher of another catalogue or data set, an LLM
                without a head, switches that contradict each other, or prompts that exceed the LLM's context.
        """
        model, processor = super().from_parts(llm, teacher, catalogue, data_fingerprint, **options)
        if model.soft_prompt is not None:
            model.init_soft_prompts(AutoTokenizer.from_pretrained(str(llm), revision=model.config.llm_revision))
        return model, processor

    def add_parts(self, llm: PreTrainedModel) -> None:
        """The table of soft prompts, float32 whatever the LLM's type: a step of Lion is lost in the rounding of bfloat16."""
        width = llm.get_input_embeddings().weight.shape[1]
        self.soft_prompt = nn.Embedding(self.config.num_soft_tokens, width) if self.config.pattern == "soft" else None

    def check_room(self) -> None:
        """Refuse prompts that cannot hold their items; see the base class."""
        length, m = self.config.history_length, self.config.num_candidates
        for task, program in self.programs.items():
            items = self.task_items(task, [1] * length, [1] * m, [1] * self.config.num_recommended)
            program.prompt(
                {name: [torch.zeros(1, dtype=torch.int64).numpy()] * len(row) for name, row in items.items()}
            )

    def slot_vectors(self) -> dict[Slot, SlotVectors]:
        """The soft prompts, the same in all prompts."""
        return {} if self.soft_prompt is None else {Slot.SOFT_PROMPT: SlotVectors(self.soft_prompt.weight)}

    # What is trained -----------------------------------------------------------------------------------------------------

    def prepare_llm(self, llm: PreTrainedModel | None) -> PreTrainedModel:
        """The LLM with adapters, if configured; see the base class."""
        llm = super().prepare_llm(llm)
        self._tuner: list[Any] = []  # a list, so that the LLM is not registered a second time
        if self.config.adapter is not None:
            settings = dict(self.config.adapter)
            kind = settings.pop("type")
            settings.setdefault("target_modules", query_value_modules(llm))
            if kind == "lora":
                add_lora(llm, settings)
            else:
                self._tuner = [add_adalora(llm, settings)]
        return llm

    @property
    def rank_allocator(self):
        """The `AdaLoraModel` of peft, whose `update_and_allocate` a trainer calls after every step; None for other adapters."""
        return self._tuner[0] if self._tuner else None

    def ranks(self) -> dict[str, int] | None:
        """Ranks of the updates that AdaLoRA left to each matrix: singular values other than zero; None without AdaLoRA."""
        if self.rank_allocator is None:
            return None
        names = self.encoder.llm.named_parameters()
        return {name.split(".lora_E")[0]: int((p != 0).sum()) for name, p in names if ".lora_E." in name}

    def is_adapter(self, name: str) -> bool:
        """Whether a parameter belongs to an adapter of the LLM."""
        return name.startswith("encoder.llm.") and ".lora_" in name

    def set_trainable(self, soft_prompts: bool, llm: bool) -> None:
        """Choose what a stage trains.

        Args:
            soft_prompts: The table of soft prompts.
            llm: The adapters in the LLM; its own weights never are.
        """
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(
                llm if self.is_adapter(name) else soft_prompts and name.startswith("soft_prompt.")
            )

    def frozen_weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Names and values of the LLM's own weights, in a fixed order."""
        for name, tensor in sorted(self.encoder.llm.state_dict().items()):
            if ".lora_" not in name:
                yield name, tensor

    # Soft prompts --------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def init_soft_prompts(self, tokenizer) -> None:
        """Fill the table as `config.soft_init` says, with torch's random generator; `random` is N(0, 1) as in the paper."""
        table, words = self.soft_prompt.weight, self.encoder.llm.get_input_embeddings().weight
        k = len(table)
        if self.config.soft_init == "random":
            table.normal_()
            return
        if self.config.soft_init == "text":
            tokens = tokenize_texts([str(self.config.soft_text)], tokenizer)[0]
            rows = torch.tensor([tokens[number % len(tokens)] for number in range(k)])
        else:
            rows = torch.randperm(min(len(tokenizer), len(words)))[:k]
            rows = rows.repeat(-(-k // len(rows)))[:k]
        table.copy_(words[rows.to(words.device)].float())

    def save_soft_prompts(self, folder: str | os.PathLike) -> Path:
        """Write the table of soft prompts alone, in kilobytes: `soft_prompts.safetensors`, whole or not at all.

        Args:
            folder: Folder; made when missing.

        Returns:
            The file.

        Raises:
            ValueError: The model has no soft prompts.
        """
        if self.soft_prompt is None:
            raise ValueError(f"there are no soft prompts to save with pattern={self.config.pattern!r}.")
        path = Path(folder) / SOFT_PROMPT_FILE
        path.parent.mkdir(parents=True, exist_ok=True)
        told = {key: json.dumps(value) for key, value in self._soft_prompt_notes().items()}
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".saving-", delete=False) as temporary:
            temporary.write(save({"soft_prompt": self.soft_prompt.weight.detach().cpu().contiguous()}, told))
        os.chmod(temporary.name, 0o644)  # temporary files are the owner's alone
        os.replace(temporary.name, path)
        return path

    def _soft_prompt_notes(self) -> dict[str, Any]:
        names = (
            "llm_name_or_path",
            "llm_revision",
            "teacher_fingerprint",
            "data_fingerprint",
            "alpha",
            "num_recommended",
        )
        return {name: getattr(self.config, name) for name in names}

    def load_soft_prompts(self, path_or_repo: str | os.PathLike, revision: str | None = None, **access) -> None:
        """Take the soft prompts of another run or of the Hub.

        Args:
            path_or_repo: Folder or Hub repository with `soft_prompts.safetensors`.
            revision: Commit, tag or branch.
            access: `token`, `cache_dir`, `local_files_only`.

        Raises:
            OSError: No such file. ValueError: the model has no place for them, they have another size, or they were distilled from
                another teacher.
        """
        with safe_open(_soft_prompt_file(path_or_repo, revision, access), "pt") as file:
            table = file.get_tensor("soft_prompt")
            notes = {key: json.loads(value) for key, value in (file.metadata() or {}).items() if key != "format"}
        if self.soft_prompt is None:
            raise ValueError(f"soft prompts have no place in a model with pattern={self.config.pattern!r}.")
        if table.shape != self.soft_prompt.weight.shape:
            raise ValueError(
                f"the soft prompts of {path_or_repo} are {tuple(table.shape)}, the model needs {tuple(self.soft_prompt.weight.shape)}: "
                f"build it with `num_soft_tokens={len(table)}` and the LLM they were trained for ({notes.get('llm_name_or_path')})."
            )
        mine, theirs = self.config.teacher_fingerprint, notes.get("teacher_fingerprint")
        if None not in (mine, theirs) and mine != theirs:
            raise ValueError(
                f"the soft prompts of {path_or_repo} were distilled from the teacher {theirs}, the model has {mine}: use the same teacher."
            )
        if notes.get("llm_name_or_path") != self.config.llm_name_or_path:
            logger.warning(
                f"the soft prompts of {path_or_repo} were trained for {notes.get('llm_name_or_path')}, this model has "
                f"{self.config.llm_name_or_path}: they mean something only if these are the same LLM."
            )
        with torch.no_grad():
            self.soft_prompt.weight.copy_(table)

    def push_soft_prompts(
        self, repo_id: str, private: bool | None = None, revision: str | None = None, token: str | None = None
    ):
        """Push the soft prompts alone, with a card, in one commit.

        Args:
            repo_id: `owner/name`, made when missing.
            private: Visibility of a new repository.
            revision: Branch, made when missing.
            token: Hub token; the stored login when not given.

        Returns:
            The commit.
        """
        api = HfApi(token=token)
        repo_id = str(api.create_repo(repo_id, private=private, exist_ok=True).repo_id)
        if revision is not None:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        base, config = self.config.llm_name_or_path, self.config
        head = {"library_name": "hf-seqrec", "tags": ["sequential-recommendation", "soft-prompts", "delrec"]}
        if base is not None and not os.path.isdir(base):
            head["base_model"] = base
        card = (
            f"---\n{json.dumps(head)}\n---\n\n# Soft prompts of DELRec\n\n{config.num_soft_tokens} vectors for the language model "
            f"`{Path(str(base)).name}`, into which the behaviour of {config.teacher_label} was distilled.\n\n```python\n"
            f'model.load_soft_prompts("{repo_id}")\n```\n'
        )
        with tempfile.TemporaryDirectory() as folder:
            content = self.save_soft_prompts(folder).read_bytes()
        files = {SOFT_PROMPT_FILE: content, "README.md": card.encode()}
        operations = [CommitOperationAdd(path_in_repo=name, path_or_fileobj=data) for name, data in files.items()]
        return api.create_commit(repo_id, operations, commit_message="Soft prompts", revision=revision)

    # Prompts and scores --------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def recommend(self, input_ids: torch.Tensor, count: int, seen: torch.Tensor | None = None) -> torch.Tensor:
        """The teacher's best items: sr_1 … sr_h of equation 5.

        Args:
            input_ids: (batch, length) item_index, left-padded with 0: what the teacher reads.
            count: h.
            seen: (batch, longer) item_index that are not recommended; `input_ids` when None.

        Returns:
            (batch, h) item_index, best first.

        Raises:
            ValueError: A user has met all but fewer than h items.
        """
        scores = self.teacher.score(input_ids).float()
        scores = scores.scatter(1, input_ids if seen is None else seen, -torch.inf)
        scores[:, 0] = -torch.inf
        left = int((scores > -torch.inf).sum(1).min())
        if left < count:
            raise ValueError(
                f"a user has only {left} unseen items, the teacher's best {count} are wanted: lower `num_recommended`."
            )
        return scores.topk(count, dim=1).indices

    def task_items(
        self, task: str, history: list[int], candidates: list[int], recommended: list[int] | None = None
    ) -> dict[str, list[int]]:
        """Which items stand in which list of a prompt.

        Args:
            task: `ta`, `rps` or `lsr`.
            history: I_1 … I_{n-1}, at most `history_length` of them.
            candidates: The candidates in the order of the prompt.
            recommended: The teacher's best items, best first; for `rps`.

        Returns:
            Field of the template -> item_index.

        Raises:
            ValueError: A history that is too short for TA.
        """
        if task == "ta":
            alpha = self.config.alpha
            if len(history) < alpha + 2:
                raise ValueError(
                    f"temporal analysis needs a history of at least alpha + 2 = {alpha + 2} items, got {len(history)}."
                )
            return {
                "example_history": history[: alpha - 2],
                "example_answer": [history[alpha - 2]],
                "example_next": [history[alpha - 1]],
                "history": history[alpha - 1 : -2],
                "next": [history[-1]],
                "candidates": candidates,
            }
        items = {"history": history, "candidates": candidates}
        if task == "rps" and Field.HINT in self.programs[task].user:
            items["hint"] = (recommended or [])[1:]
        return items

    def forward(
        self,
        input_ids: torch.Tensor,
        labels: torch.Tensor | None = None,
        candidates: torch.Tensor | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        task: str = "lsr",
        recommended: torch.Tensor | None = None,
        **kwargs,
    ) -> LLMRankerOutput:
        """Log scores of candidates in one of the three prompts, and the cross-entropy of the labelled ones.

        Args:
            input_ids: (batch, length) item_index, left-padded with 0; the last `history_length` items enter the prompt.
            labels: (batch, 1) the candidate to choose; only with `lsr`.
            candidates: (batch, m) item_index in the order in which they stand in the prompt.
            num_items_in_batch: See the base class.
            task: `lsr`, or `ta` or `rps` for stage 1.
            recommended: (batch, h) the teacher's best items, for `rps`.
            kwargs: See the base class.

        Returns:
            `loss` and `scores` (batch, m).

        Raises:
            ValueError: See the base class; also a history that is too short for TA.
        """
        if task == "lsr":
            return super().forward(input_ids, labels, candidates, num_items_in_batch, **kwargs)
        if candidates is None or task not in TASKS:
            raise ValueError(f"`candidates` and a `task` of {', '.join(TASKS)} are needed, got task={task!r}.")
        tops = [None] * len(input_ids) if recommended is None else recommended.tolist()
        prompts = [
            self.build_prompt(self.task_items(task, history, row, top), self.programs[task])
            for history, row, top in zip(self.histories(input_ids), candidates.tolist(), tops, strict=True)
        ]
        return LLMRankerOutput(scores=self.encoder(prompts, self.slot_vectors(), candidates, self.titles))

    @torch.no_grad()
    def explain(self, input_ids: torch.Tensor, top_k: int = 5) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        """What the teacher, the LLM alone and DELRec make of the same candidates, side by side (the paper's case study).

        The candidates are the teacher's best `num_candidates`. The LLM alone reads the prompt without soft prompts and without adapters.

        Args:
            input_ids: (batch, length) item_index, left-padded with 0.
            top_k: Length of the lists.

        Returns:
            `teacher`, `llm` and `delrec`, each items (batch, top_k) and scores (batch, top_k), best first.
        """
        candidates = self.recommend(input_ids, self.config.num_candidates)
        scores = {"teacher": self.teacher.score(input_ids, candidates), "llm": self._alone(input_ids, candidates)}
        scores["delrec"] = self.rank(input_ids, candidates)
        best = {name: values.topk(min(top_k, candidates.shape[1]), dim=1) for name, values in scores.items()}
        return {
            name: (candidates.gather(1, found.indices.to(candidates.device)), found.values)
            for name, found in best.items()
        }

    def _alone(self, input_ids: torch.Tensor, candidates: torch.Tensor) -> torch.Tensor:
        """Scores of the LLM without soft prompts and adapters."""
        from peft.tuners.tuners_utils import BaseTunerLayer

        layers = [layer for layer in self.encoder.llm.modules() if isinstance(layer, BaseTunerLayer)]
        program, soft = self.program, self.soft_prompt
        self.program, self.soft_prompt = self.programs["plain"], None
        for layer in layers:
            layer.enable_adapters(False)
        try:
            return self.rank(input_ids, candidates)
        finally:
            self.program, self.soft_prompt = program, soft
            for layer in layers:
                layer.enable_adapters(True)


register(DELRecConfig, DELRecForSequentialRecommendation)

# Elsewhere this file runs as a repository's remote code, which must not answer for other repositories.
if __package__ == "hf_seqrec.modeling":
    from transformers import AutoProcessor

    AutoProcessor.register(DELRecConfig, SequentialRecommendationProcessor, exist_ok=True)
