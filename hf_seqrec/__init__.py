"""Sequential recommenders, at home on the Hugging Face Hub.

Names are imported when they are first used, so that `import hf_seqrec` and `seqrec --help` cost nothing.
"""

from importlib import import_module
from typing import Any


__version__ = "0.1.0"

_MODULE_OF = {
    name: module
    for module, names in {
        "hf_seqrec.data": "RecommendationData draw_candidates global_time leave_one_out load_recommendation_data "
        "temporal_ratio user_ratio write_dataset",
        "hf_seqrec.data.demo": "build_demo_world",
        "hf_seqrec.evaluation": "EvaluationRecord Protocol RankingEvaluator compare_records",
        "hf_seqrec.modeling": "BERT4RecConfig BERT4RecForSequentialRecommendation CaserConfig CaserForSequentialRecommendation "
        "DELRecConfig DELRecForSequentialRecommendation E4SRecConfig E4SRecForSequentialRecommendation FMLPRecConfig "
        "FMLPRecForSequentialRecommendation GRU4RecConfig GRU4RecForSequentialRecommendation ItemItemConfig "
        "ItemItemForSequentialRecommendation LLMRankerConfig LLMRankerForSequentialRecommendation LLMSRecConfig "
        "LLMSRecForSequentialRecommendation LLMSeqSimConfig LLMSeqSimForSequentialRecommendation "
        "LLMSequentialRecommendationProcessor LightSANsConfig LightSANsForSequentialRecommendation NextItNetConfig "
        "NextItNetForSequentialRecommendation P2RecConfig P2RecModel PopularityConfig PopularityForSequentialRecommendation "
        "SASRecConfig SASRecForSequentialRecommendation ScoreSumConfig ScoreSumForSequentialRecommendation SeRALMConfig "
        "SeRALMForSequentialRecommendation",
        "hf_seqrec.knowledge": "generate_knowledge load_knowledge",
        "hf_seqrec.modeling.processing": "SequentialRecommendationProcessor",
        "hf_seqrec.pipelines": "SequentialRecommendationPipeline pipeline",
        "hf_seqrec.presets": "load_preset",
        "hf_seqrec.trainers": "AlignmentConfig AlignmentTrainer DistillationTrainer DistillationTrainingArguments NextItemTrainer "
        "NextItemTrainingArguments PreferenceTrainer PreferenceTrainingArguments PromptTuningTrainer PromptTuningTrainingArguments "
        "SeqRecTrainer SeqRecTrainingArguments SoftPromptTrainer SoftPromptTrainingArguments choose_score_sum",
    }.items()
    for name in names.split()
}
_SUBMODULES = (
    "data",
    "dataset_scripts",
    "evaluation",
    "hub",
    "metrics",
    "modeling",
    "pipelines",
    "presets",
    "trainers",
)

__all__ = sorted(["__version__", *_MODULE_OF])


def __getattr__(name: str) -> Any:
    if name in _SUBMODULES:
        return import_module(f"hf_seqrec.{name}")
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'hf_seqrec' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_MODULE_OF[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_SUBMODULES})
