"""Models that travel to the Hub with their code: one file per method over a few shared pieces."""

if __name__ == "modeling":
    raise ModuleNotFoundError("`modeling` is installed as `hf_seqrec.modeling`: write `import hf_seqrec.modeling`.")

from .base import NextItemOutput, SequenceModel, SequentialRecommender, SequentialRecommenderConfig
from .bert4rec import BERT4RecConfig, BERT4RecForSequentialRecommendation, BERT4RecModel
from .gru4rec import GRU4RecConfig, GRU4RecForSequentialRecommendation, GRU4RecModel
from .item_encoder import ItemEncoder
from .losses import (
    BinaryCrossEntropyLoss,
    BPRLoss,
    CrossEntropyLoss,
    GeneralizedBinaryCrossEntropyLoss,
    NextItemLoss,
    SampledCrossEntropyLoss,
    make_loss,
)
from .sasrec import SASRecConfig, SASRecForSequentialRecommendation, SASRecModel


__all__ = [
    "BERT4RecConfig",
    "BERT4RecForSequentialRecommendation",
    "BERT4RecModel",
    "BPRLoss",
    "BinaryCrossEntropyLoss",
    "CrossEntropyLoss",
    "GRU4RecConfig",
    "GRU4RecForSequentialRecommendation",
    "GRU4RecModel",
    "GeneralizedBinaryCrossEntropyLoss",
    "ItemEncoder",
    "NextItemLoss",
    "NextItemOutput",
    "SASRecConfig",
    "SASRecForSequentialRecommendation",
    "SASRecModel",
    "SampledCrossEntropyLoss",
    "SequenceModel",
    "SequentialRecommender",
    "SequentialRecommenderConfig",
    "make_loss",
]
