"""The model card: what a recommender is, how to use it, what it reached under which protocol, and where it ends."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, EvalResultEntry, ModelCard, ModelCardData, eval_result_entries_to_yaml
from transformers import PreTrainedConfig, TrainingArguments

from hf_seqrec.evaluation import EvaluationRecord

from .citations import METHODS, Method


TASK = "sequential-recommendation"
TEMPLATE = Path(__file__).with_name("model_card.md")

# Of the many fields of `TrainingArguments`, those that change the result; fields of a subclass are all shown.
_TRAINING_FIELDS = (
    "learning_rate", "lr_scheduler_type", "warmup_steps", "weight_decay", "optim", "max_grad_norm",
    "per_device_train_batch_size", "gradient_accumulation_steps", "num_train_epochs", "max_steps", "bf16", "fp16", "seed",
)  # fmt: skip
_NOT_ARCHITECTURE = {
    "num_items", "max_length", "data_fingerprint", "pad_token_id", "tie_word_embeddings",
    "prompt", "llm_config", "teacher_config",  # whole structures; they are in config.json
}  # fmt: skip

# Where models built around others keep them; adapters inside are the model's own.
_FROZEN_PARTS = {"encoder.llm.": "language model", "teacher.": "teacher"}


def make_model_card(
    model: Any,
    processor: Any,
    answer: Sequence[Mapping[str, Any]],
    request: Mapping[str, Any],
    *,
    reference: str,
    records: Sequence[EvaluationRecord] = (),
    dataset_id: str | None = None,
    base_model: str | Sequence[str] | None = None,
    license: str | None = None,
    training: TrainingArguments | Mapping[str, Any] | None = None,
) -> ModelCard:
    """Fill the template.

    Args:
        model: The recommender.
        processor: Its processor.
        answer: What the pipeline recommends for `request`: `item_id`, `title`, `score`, `rank` per row.
        request: What the snippet asks the pipeline: `history`, titles or item ids, and `timestamps` where prompts show dates.
        reference: What the snippet loads: repository id, or folder name.
        records: Evaluations of the model.
        dataset_id: Data set repository on the Hub.
        base_model: Hub model, or models, that this one was made from.
        license: Hub licence identifier.
        training: The trainer's arguments, or hyper-parameters by name; an empty mapping where there is nothing to train.

    Returns:
        The card; `.save(path)` writes it.

    Example:
        >>> from hf_seqrec.modeling import SASRecConfig, SASRecForSequentialRecommendation
        >>> from hf_seqrec.modeling.processing import SequentialRecommendationProcessor
        >>> model = SASRecForSequentialRecommendation(SASRecConfig(num_items=2))
        >>> processor = SequentialRecommendationProcessor(["b7", "a2"], ["Heat", "Alien"])
        >>> card = make_model_card(model, processor, [], {"history": ["Heat"]}, reference="me/films", license="mit")
        >>> card.data.license, card.data.library_name
        ('mit', 'transformers')
    """
    config = model.config
    method = METHODS.get(config.model_type) or Method(type(model).__name__, _first_line(model))
    name = reference.split("/")[-1]
    llm = getattr(config, "llm_name_or_path", None)
    bases = [base_model] if isinstance(base_model, str) else [*(base_model or [])]
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag=TASK,
        tags=[TASK, "recommendation", "hf-seqrec", method.name.lower()],
        license=license,
        base_model=bases if len(bases) > 1 else next(iter(bases), None),
        datasets=dataset_id,
        metrics=sorted({metric.split("@")[0] for record in records for metric in record.metrics}) or None,
        model_name=name,
        eval_results=[result for record in records for result in _model_index(record, dataset_id)] or None,
    )
    return ModelCard.from_template(
        data,
        template_path=str(TEMPLATE),
        title=name,
        method=method,
        class_name=type(model).__name__,
        base_model=_bases(bases, config),
        dataset=_dataset(records, dataset_id, config),
        num_items=f"{config.num_items:,}",
        num_titles=f"{sum(title is not None for title in processor.titles):,}",
        max_length=f"{config.max_length:,}",
        num_parameters=_parameters(model),
        model_reference=json.dumps(reference),
        llm_folder=json.dumps(f"/path/to/{Path(str(llm)).name}") if is_folder(llm) else None,
        request=json.dumps(dict(request), ensure_ascii=False),
        answer=[
            {
                "rank": row["rank"],
                "title": _cell(row["title"] if row["title"] is not None else "–"),
                "item_id": _cell(row["item_id"]),
                "score": f"{row['score']:.3f}",
            }
            for row in answer
        ],
        evaluations=[_evaluation(record) for record in records],
        architecture={name: _cell(value) for name, value in _architecture(config).items()},
        training={name: _cell(value) for name, value in _training(training).items()},
        trainable=training is None or bool(_training(training)),
        takes_new_items=hasattr(model, "add_items"),
    )


def eval_results_yaml(record: EvaluationRecord, dataset_id: str) -> list[dict[str, Any]]:
    """One record as the content of an `.eval_results/*.yaml` file.

    Args:
        record: The evaluation.
        dataset_id: Data set repository on the Hub that it was measured on.

    Returns:
        One entry per metric; the protocol and the interval stand in its notes.
    """
    entries = []
    for metric, value in record.metrics.items():
        interval = record.intervals.get(metric)
        notes = record.protocol.describe()
        if interval:
            notes += f"; 95 % interval {interval[0]:.4f} to {interval[1]:.4f}"
        notes += f"; data fingerprint {record.dataset_fingerprint}"
        entries.append(EvalResultEntry(dataset_id=dataset_id, task_id=metric, value=value, notes=notes))
    return eval_result_entries_to_yaml(entries)


def _model_index(record: EvaluationRecord, dataset_id: str | None) -> list[EvalResult]:
    return [
        EvalResult(
            task_type=TASK,
            task_name="Sequential recommendation",
            dataset_type=dataset_id or record.dataset,
            dataset_name=record.dataset,
            # Results of one data set and configuration are put together; values of two protocols must not be.
            dataset_config=record.protocol.describe(),
            dataset_split=record.protocol.part,
            dataset_args={"fingerprint": record.dataset_fingerprint},
            metric_type=metric,
            metric_name=metric,
            metric_value=value,
        )
        for metric, value in record.metrics.items()
    ]


def _evaluation(record: EvaluationRecord) -> dict[str, Any]:
    def interval(metric: str) -> str:
        low_high = record.intervals.get(metric)
        return f"{low_high[0]:.4f} – {low_high[1]:.4f}" if low_high else "–"

    return {
        "dataset": record.dataset,
        "protocol": record.protocol.describe(),
        "sampled": record.protocol.num_negatives is not None,
        "exclude_seen": record.protocol.exclude_seen,
        "rows": f"{record.num_rows:,}",
        "users": f"{record.num_users:,}",
        "num_items": f"{record.num_items:,}",  # `items` is what a template finds as the method of a dictionary
        "fingerprint": record.dataset_fingerprint,
        "seed": record.seed,
        "targets_seen": record.targets_seen,
        "metrics": [
            {
                "name": metric,
                "value": f"{value:.4f}",
                "interval": interval(metric),
                "floor": f"{record.floor[metric]:.4f}" if metric in record.floor else "–",
            }
            for metric, value in record.metrics.items()
        ],
    }


def _parameters(model: Any) -> str:
    """How many parameters were trained, and how many belong to frozen parts: `"5,120 trained, beside frozen ones: …"`."""
    counts: dict[str | None, int] = {None: 0}
    for name, parameter in model.named_parameters():
        part = next((part for prefix, part in _FROZEN_PARTS.items() if name.startswith(prefix)), None)
        part = None if parameter.requires_grad or ".lora_" in name else part
        counts[part] = counts.get(part, 0) + parameter.numel()
    frozen = [f"{part} {count:,}" for part, count in counts.items() if part is not None]
    return f"{counts[None]:,}" + (f" trained, beside frozen ones: {', '.join(frozen)}" if frozen else "")


def _dataset(records: Sequence[EvaluationRecord], dataset_id: str | None, config: Any) -> str:
    name = dataset_id or next((record.dataset for record in records), None)
    linked = f"[{dataset_id}](https://huggingface.co/datasets/{dataset_id})" if dataset_id else name
    fingerprint = config.data_fingerprint or next((record.dataset_fingerprint for record in records), None)
    return ", ".join(filter(None, [linked or "not named", fingerprint and f"fingerprint `{fingerprint}`"]))


def _bases(bases: Sequence[str], config: Any) -> str:
    """Where the model comes from: Hub models, a language model of a folder, or nothing."""
    if not bases:
        names = (getattr(config, name, None) for name in ("llm_name_or_path", "text_encoder_name_or_path"))
        inside = next((name for name in names if name), None)
        if inside is None:
            return "none"
        if is_folder(inside):
            return f"a language model from a folder, `{Path(inside).name}`"
        bases = [inside]
    return ", ".join(f"[{base}](https://huggingface.co/{base})" for base in bases)


def _architecture(config: Any) -> dict[str, Any]:
    inherited = {field.name for field in fields(PreTrainedConfig)} | _NOT_ARCHITECTURE
    inherited |= set(getattr(config, "unused_fields", ()))
    values = {field.name: getattr(config, field.name) for field in fields(config) if field.name not in inherited}
    return {name: _short(name, value) for name, value in values.items() if value is not None}


def _short(name: str, value: Any) -> Any:
    """The name of a method in place of a whole configuration, and of a folder in place of its path."""
    if name.endswith("_name_or_path") and is_folder(value):
        return Path(value).name
    kind = value.get("model_type") if isinstance(value, Mapping) else None
    return METHODS[kind].name if kind in METHODS else value


def is_folder(name: str | None) -> bool:
    """Whether a model's name is a place on a machine, which is nobody's business on the Hub.

    Args:
        name: Hub id or folder, or None.

    Returns:
        True for an absolute path and for a folder that is there.
    """
    if name is None:
        return False
    return Path(name).is_absolute() or Path(name).is_dir()


def _training(training: TrainingArguments | Mapping[str, Any] | None) -> dict[str, Any]:
    if training is None:
        return {}
    if isinstance(training, Mapping):
        return dict(training)
    own = {field.name for field in fields(training)} - {field.name for field in fields(TrainingArguments)}
    values = training.to_dict()
    return {name: values[name] for name in [*_TRAINING_FIELDS, *sorted(own)] if values.get(name) is not None}


def _first_line(model: Any) -> str:
    return (type(model).__doc__ or type(model).__name__).strip().splitlines()[0].rstrip(".")


def _cell(value: Any) -> str:
    """A value that cannot break out of its cell of a Markdown table."""
    return " ".join(str(value).split()).replace("|", "\\|").replace("<", "&lt;")
