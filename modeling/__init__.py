"""Models that travel to the Hub with their code: one file per method over a few shared pieces."""

if __name__ == "modeling":
    raise ModuleNotFoundError("`modeling` is installed as `hf_seqrec.modeling`: write `import hf_seqrec.modeling`.")

from .base import NextItemOutput, SequenceModel, SequentialRecommender, SequentialRecommenderConfig
from .bert4rec import BERT4RecConfig, BERT4RecForSequentialRecommendation, BERT4RecModel
from .caser import CaserConfig, CaserForSequentialRecommendation, CaserModel
from .delrec import DELRecConfig, DELRecForSequentialRecommendation
from .e4srec import E4SRecConfig, E4SRecForSequentialRecommendation
from .fmlprec import FMLPRecConfig, FMLPRecForSequentialRecommendation, FMLPRecModel
from .gru4rec import GRU4RecConfig, GRU4RecForSequentialRecommendation, GRU4RecModel
from .item_encoder import ItemEncoder
from .itemitem import ItemItemConfig, ItemItemForSequentialRecommendation
from .lightsans import LightSANsConfig, LightSANsForSequentialRecommendation, LightSANsModel
from .llm_processing import LLMSequentialRecommendationProcessor
from .llm_ranker import LLMRankerConfig, LLMRankerForSequentialRecommendation
from .llm_srec import LLMSRecConfig, LLMSRecForSequentialRecommendation
from .llmseqsim import LLMSeqSimConfig, LLMSeqSimForSequentialRecommendation
from .losses import (
    BinaryCrossEntropyLoss,
    BPRLoss,
    CrossEntropyLoss,
    GeneralizedBinaryCrossEntropyLoss,
    NextItemLoss,
    SampledCrossEntropyLoss,
    make_loss,
)
from .nextitnet import NextItNetConfig, NextItNetForSequentialRecommendation, NextItNetModel
from .p2rec import P2RecConfig, P2RecModel
from .popularity import PopularityConfig, PopularityForSequentialRecommendation, PopularityModel
from .sasrec import SASRecConfig, SASRecForSequentialRecommendation, SASRecModel
from .score_sum import ScoreSumConfig, ScoreSumForSequentialRecommendation
from .seralm import SeRALMConfig, SeRALMForSequentialRecommendation


__all__ = [
    "BERT4RecConfig",
    "BERT4RecForSequentialRecommendation",
    "BERT4RecModel",
    "BPRLoss",
    "BinaryCrossEntropyLoss",
    "CaserConfig",
    "CaserForSequentialRecommendation",
    "CaserModel",
    "CrossEntropyLoss",
    "DELRecConfig",
    "DELRecForSequentialRecommendation",
    "E4SRecConfig",
    "E4SRecForSequentialRecommendation",
    "FMLPRecConfig",
    "FMLPRecForSequentialRecommendation",
    "FMLPRecModel",
    "GRU4RecConfig",
    "GRU4RecForSequentialRecommendation",
    "GRU4RecModel",
    "GeneralizedBinaryCrossEntropyLoss",
    "ItemEncoder",
    "ItemItemConfig",
    "ItemItemForSequentialRecommendation",
    "LLMRankerConfig",
    "LLMRankerForSequentialRecommendation",
    "LLMSRecConfig",
    "LLMSRecForSequentialRecommendation",
    "LLMSeqSimConfig",
    "LLMSeqSimForSequentialRecommendation",
    "LLMSequentialRecommendationProcessor",
    "LightSANsConfig",
    "LightSANsForSequentialRecommendation",
    "LightSANsModel",
    "NextItNetConfig",
    "NextItNetForSequentialRecommendation",
    "NextItNetModel",
    "NextItemLoss",
    "NextItemOutput",
    "P2RecConfig",
    "P2RecModel",
    "PopularityConfig",
    "PopularityForSequentialRecommendation",
    "PopularityModel",
    "SASRecConfig",
    "SASRecForSequentialRecommendation",
    "SASRecModel",
    "SampledCrossEntropyLoss",
    "ScoreSumConfig",
    "ScoreSumForSequentialRecommendation",
    "SeRALMConfig",
    "SeRALMForSequentialRecommendation",
    "SequenceModel",
    "SequentialRecommender",
    "SequentialRecommenderConfig",
    "make_loss",
]
