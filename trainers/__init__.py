"""Trainers: one objective per file over one small `SeqRecTrainer`."""

if __name__ == "trainers":
    raise ModuleNotFoundError("`trainers` is installed as `hf_seqrec.trainers`: write `import hf_seqrec.trainers`.")

from typing import TYPE_CHECKING, Any

from .base import SeqRecTrainer, SeqRecTrainingArguments
from .ctrl import align_items_with_texts
from .data import DataCollatorForCloze, DataCollatorForNextItem, NegativeSampler, SequenceDataset
from .distillation import DistillationTrainer, DistillationTrainingArguments
from .next_item import NextItemTrainer, NextItemTrainingArguments
from .preference import PreferenceTrainer, PreferenceTrainingArguments
from .prompt_tuning import PromptTuningTrainer, PromptTuningTrainingArguments
from .score_sum import choose_score_sum
from .seralm_warmup import KnowledgeWarmupTrainer, KnowledgeWarmupTrainingArguments
from .soft_prompt import SoftPromptTrainer, SoftPromptTrainingArguments


if TYPE_CHECKING:
    from .alignment import AlignmentConfig, AlignmentTrainer


def __getattr__(name: str) -> Any:
    if name in ("AlignmentConfig", "AlignmentTrainer"):  # TRL takes long to import, and only these need it
        from . import alignment

        return getattr(alignment, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "AlignmentConfig",
    "AlignmentTrainer",
    "DataCollatorForCloze",
    "DataCollatorForNextItem",
    "DistillationTrainer",
    "DistillationTrainingArguments",
    "KnowledgeWarmupTrainer",
    "KnowledgeWarmupTrainingArguments",
    "NegativeSampler",
    "NextItemTrainer",
    "NextItemTrainingArguments",
    "PreferenceTrainer",
    "PreferenceTrainingArguments",
    "PromptTuningTrainer",
    "PromptTuningTrainingArguments",
    "SeqRecTrainer",
    "SeqRecTrainingArguments",
    "SequenceDataset",
    "SoftPromptTrainer",
    "SoftPromptTrainingArguments",
    "align_items_with_texts",
    "choose_score_sum",
]
