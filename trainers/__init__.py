"""Trainers: one objective per file over one small `SeqRecTrainer`."""

if __name__ == "trainers":
    raise ModuleNotFoundError("`trainers` is installed as `hf_seqrec.trainers`: write `import hf_seqrec.trainers`.")

from .base import SeqRecTrainer, SeqRecTrainingArguments
from .ctrl import align_items_with_texts
from .data import DataCollatorForCloze, DataCollatorForNextItem, NegativeSampler, SequenceDataset
from .distillation import DistillationTrainer, DistillationTrainingArguments
from .next_item import NextItemTrainer, NextItemTrainingArguments
from .preference import PreferenceTrainer, PreferenceTrainingArguments
from .prompt_tuning import PromptTuningTrainer, PromptTuningTrainingArguments
from .seralm_warmup import KnowledgeWarmupTrainer, KnowledgeWarmupTrainingArguments
from .soft_prompt import SoftPromptTrainer, SoftPromptTrainingArguments


__all__ = [
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
]
