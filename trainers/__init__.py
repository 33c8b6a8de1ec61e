"""Trainers: one objective per file over one small `SeqRecTrainer`."""

if __name__ == "trainers":
    raise ModuleNotFoundError("`trainers` is installed as `hf_seqrec.trainers`: write `import hf_seqrec.trainers`.")

from .base import SeqRecTrainer, SeqRecTrainingArguments
from .data import DataCollatorForCloze, DataCollatorForNextItem, NegativeSampler, SequenceDataset
from .distillation import DistillationTrainer, DistillationTrainingArguments
from .next_item import NextItemTrainer, NextItemTrainingArguments


__all__ = [
    "DataCollatorForCloze",
    "DataCollatorForNextItem",
    "DistillationTrainer",
    "DistillationTrainingArguments",
    "NegativeSampler",
    "NextItemTrainer",
    "NextItemTrainingArguments",
    "SeqRecTrainer",
    "SeqRecTrainingArguments",
    "SequenceDataset",
]
