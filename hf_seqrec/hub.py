"""To the Hub and to disk: model, processor, code, card and evaluations as one folder, pushed as one commit.

A repository is never half new: everything is written and checked in a folder first, and goes up in a single commit
(`hub_commit`).
"""

import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import yaml
from huggingface_hub import CommitInfo
from transformers import AutoModel, AutoProcessor, TrainingArguments
from transformers.utils import logging

from hf_seqrec.cards.model_card import eval_results_yaml, is_folder, make_model_card
from hf_seqrec.data.files import atomic_folder, check_writable_folder
from hf_seqrec.evaluation import EvaluationRecord
from hf_seqrec.hub_commit import Destination, matching_files, recommender_files, refuse_tokens
from hf_seqrec.item_vectors import MANIFEST, load_item_vectors
from hf_seqrec.modeling import processing  # also makes every model known to the Auto classes
from hf_seqrec.pipelines import SequentialRecommendationPipeline


CARD, PIPELINE_CODE = "README.md", "pipelines.py"
GROUPS = "groups.npz"  # of the items, beside P2Rec's weights
_NEEDED = ("config.json", "processor_config.json", processing.ITEMS_NAME, PIPELINE_CODE, CARD)

# Files of an older push that would be wrong beside a new model; what else people keep in a repository stays.
_OURS = re.compile(r"[^/]+\.(py|safetensors|safetensors\.index\.json)|(records|\.eval_results)/.+")
logger = logging.get_logger(__name__)
_EXAMPLE_TIME = 1_700_000_000  # of the card's snippet, where prompts show dates


def save_recommender(
    folder: str | os.PathLike,
    model: Any,
    processor: Any,
    records: Sequence[EvaluationRecord | str | os.PathLike] = (),
    *,
    repo_id: str | None = None,
    dataset_id: str | None = None,
    base_model: str | Sequence[str] | None = None,
    license: str | None = None,
    training: TrainingArguments | Mapping[str, Any] | None = None,
    history: Sequence[str] | None = None,
    overwrite: bool = False,
) -> Path:
    """Write a folder that is complete: it loads here with `from_pretrained`, and elsewhere without this library.

    The folder holds the weights and the configuration, the processor with all items, the code of model, processor and pipeline,
    `README.md` (the card), `records/*.json`, and `.eval_results/*.yaml` when the data set is on the Hub.

    Args:
        folder: Folder to write, whole or not at all.
        model: The recommender.
        processor: Its `SequentialRecommendationProcessor`.
        records: Evaluations of this model, in memory or as files. Ranks of single users are not copied.
        repo_id: Repository that the card's snippet names; the folder's name when not given.
        dataset_id: Data set repository on the Hub.
        base_model: Hub model, or models, that this one was made from.
        license: Hub licence identifier of the weights.
        training: The trainer's arguments, or hyper-parameters by name, for the card; an empty mapping where there is nothing to train.
        history: Titles or item ids for the card's example; two titles of the catalogue when not given.
        overwrite: Whether a folder that holds something is replaced.

    Returns:
        The folder.

    Raises:
        FileExistsError: The folder holds something and `overwrite` is off. ValueError: model, processor and records do not
            belong together, a weight is NaN, or a text holds an access token.

    Example:
        >>> import tempfile
        >>> from hf_seqrec.modeling import SASRecConfig, SASRecForSequentialRecommendation
        >>> from hf_seqrec.modeling.processing import SequentialRecommendationProcessor
        >>> model = SASRecForSequentialRecommendation(SASRecConfig(num_items=3))
        >>> processor = SequentialRecommendationProcessor(["b7", "a2", "c1"], ["Heat", "Alien", "Up"])
        >>> folder = save_recommender(tempfile.mkdtemp() + "/films", model, processor)
        >>> (folder / "README.md").read_text().count("recommend(")
        1
    """
    folder = Path(folder)
    check_writable_folder(folder, overwrite)
    loaded = [record if isinstance(record, EvaluationRecord) else _load_record(record) for record in records]
    _check_together(model, processor, loaded)
    with atomic_folder(folder, overwrite) as temporary, _unchanged(model):
        pipe = SequentialRecommendationPipeline(model=model, processor=processor, device=model.device)
        pipe.save_pretrained(temporary)
        history = list(history) if history is not None else _example_history(processor)
        request: dict[str, Any] = {"history": history}
        if getattr(model, "needs_timestamps", False):
            request["timestamps"] = [_EXAMPLE_TIME + 86_400 * day for day in range(len(history))]
        card = make_model_card(
            model,
            processor,
            pipe(request, top_k=5),
            request,
            reference=repo_id or folder.resolve().name,
            records=loaded,
            dataset_id=dataset_id,
            base_model=base_model,
            license=license,
            training=training,
        )
        card.save(temporary / CARD)
        for number, (record, given) in enumerate(zip(loaded, records, strict=True), 1):
            name = f"{number:02d}-{_slug(record)}"
            _save_record(record, given, temporary / "records" / f"{name}.json")
            if dataset_id is not None:
                (temporary / ".eval_results").mkdir(exist_ok=True)
                content = yaml.safe_dump(eval_results_yaml(record, dataset_id), sort_keys=False, allow_unicode=True)
                (temporary / ".eval_results" / f"{name}.yaml").write_text(content, encoding="utf-8")
        refuse_tokens(temporary)
    return folder


def push_recommender(
    model: Any,
    processor: Any,
    repo_id: str,
    records: Sequence[EvaluationRecord | str | os.PathLike] = (),
    *,
    dataset_id: str | None = None,
    base_model: str | Sequence[str] | None = None,
    license: str | None = None,
    training: TrainingArguments | Mapping[str, Any] | None = None,
    history: Sequence[str] | None = None,
    private: bool | None = None,
    revision: str | None = None,
    parent_commit: str | None = None,
    commit_message: str | None = None,
    token: str | None = None,
) -> CommitInfo:
    """Push a recommender with everything that belongs to it, in one commit.

    Args:
        model: The recommender.
        processor: Its processor.
        repo_id: `owner/name`, or `name` in your own account; made when missing.
        records: Evaluations of this model.
        dataset_id: Data set repository on the Hub.
        base_model: Hub model, or models, that this one was made from.
        license: Hub licence identifier of the weights.
        training: The trainer's arguments, or hyper-parameters by name, for the card; an empty mapping where there is nothing to train.
        history: Titles or item ids for the card's example.
        private: Visibility of a new repository; None for the owner's default.
        revision: Branch to push to, made when missing; `main` when not given.
        parent_commit: Commit that the push must follow; the branch's newest when the push begins, when not given.
        commit_message: First line of the commit's message.
        token: Hub token, by default the one stored by `hf auth login`.

    Returns:
        The commit; its `oid` pins this version in `from_pretrained(…, revision=oid)`.

    Raises:
        PermissionError: No token. ValueError: see `save_recommender`. ConnectionError: the network failed; pushing again completes.
            huggingface_hub.errors.HfHubHTTPError: the Hub refused, also when the branch changed since `parent_commit`; the
            repository is then what it was before.
    """
    with tempfile.TemporaryDirectory() as temporary:
        folder = save_recommender(
            Path(temporary) / repo_id.split("/")[-1],
            model,
            processor,
            records,
            repo_id=repo_id,
            dataset_id=dataset_id,
            base_model=base_model,
            license=license,
            training=training,
            history=history,
        )
        return push_folder(folder, repo_id, private, revision, parent_commit, commit_message, token)


def push_folder(
    folder: str | os.PathLike,
    repo_id: str,
    private: bool | None = None,
    revision: str | None = None,
    parent_commit: str | None = None,
    commit_message: str | None = None,
    token: str | None = None,
) -> CommitInfo:
    """Push a folder written by `save_recommender`, in one commit; its card's snippet is made to name the repository.

    Args:
        folder: The folder.
        repo_id: `owner/name`, or `name` in your own account; made when missing.
        private: See `push_recommender`, also for the other arguments.
        revision: Branch to push to.
        parent_commit: Commit that the push must follow.
        commit_message: First line of the commit's message.
        token: Hub token.

    Returns:
        The commit.

    Raises:
        FileNotFoundError: The folder is no complete recommender. Otherwise as `push_recommender`.
    """
    folder = Path(folder)
    missing = missing_files(folder)
    if missing:
        raise FileNotFoundError(
            f"{folder} lacks {', '.join(missing)}: write it with `hf_seqrec.hub.save_recommender`, or push it with `seqrec push`, "
            "which completes it."
        )
    refuse_tokens(folder, token)
    llm = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("llm_name_or_path")
    if is_folder(llm):
        logger.warning(
            f"the language model of {repo_id} was read from {llm}, which does not go to the Hub: whoever loads the model must name a "
            "folder or Hub id of it, as the card says. Trained with a Hub id, the model finds it by itself."
        )
    content: dict[str, Path | bytes] = {path: folder / path for path in recommender_files(folder)}
    target = Destination(repo_id, "model", private, revision, parent_commit, commit_message, token).create()
    content[CARD] = _name_repository((folder / CARD).read_text(encoding="utf-8"), target.repo_id).encode()
    return target.commit(content, _OURS, "Recommender")


def push_dataset(
    folder: str | os.PathLike,
    repo_id: str,
    private: bool | None = None,
    revision: str | None = None,
    parent_commit: str | None = None,
    commit_message: str | None = None,
    token: str | None = None,
) -> CommitInfo:
    """Push a data set folder in the Hub layout, exactly as it lies on disk, in one commit.

    Args:
        folder: Written by `write_dataset` or `seqrec data build`.
        repo_id: See `push_recommender`, also for the other arguments.
        private: Visibility of a new repository.
        revision: Branch to push to.
        parent_commit: Commit that the push must follow.
        commit_message: First line of the commit's message.
        token: Hub token.

    Returns:
        The commit; its `oid` pins this version in `load_recommendation_data(…, revision=oid)`.

    Raises:
        FileNotFoundError: The folder is no data set in the Hub layout. Otherwise as `push_recommender`.
    """
    patterns = (CARD, "items/*.parquet", "interactions/*.parquet")
    content = matching_files(Path(folder), patterns, "build it with `seqrec data build` first", token)
    target = Destination(repo_id, "dataset", private, revision, parent_commit, commit_message, token).create()
    return target.commit(content, re.compile(r"(items|interactions)/.+"), "Data set")


def push_item_vectors(
    folder: str | os.PathLike,
    repo_id: str,
    private: bool | None = None,
    revision: str | None = None,
    parent_commit: str | None = None,
    commit_message: str | None = None,
    token: str | None = None,
) -> CommitInfo:
    """Push item vectors as a data set, in one commit; `load_item_vectors` and `seqrec train … --item_features` read it.

    Args:
        folder: A finished folder of item vectors.
        repo_id: See `push_recommender`, also for the other arguments.
        private: Visibility of a new repository.
        revision: Branch to push to.
        parent_commit: Commit that the push must follow.
        commit_message: First line of the commit's message.
        token: Hub token.

    Returns:
        The commit.

    Raises:
        FileNotFoundError: The folder holds no item vectors. ValueError: they are half-written. Otherwise as `push_recommender`.
    """
    folder = load_item_vectors(folder).folder
    content = matching_files(folder, (CARD, MANIFEST, "vectors/*.parquet"), "make the vectors again", token)
    target = Destination(repo_id, "dataset", private, revision, parent_commit, commit_message, token).create()
    return target.commit(content, re.compile(r"vectors/.+"), "Item vectors")


def push_p2rec(
    folder: str | os.PathLike,
    repo_id: str,
    private: bool | None = None,
    revision: str | None = None,
    parent_commit: str | None = None,
    commit_message: str | None = None,
    token: str | None = None,
) -> CommitInfo:
    """Push what P2Rec trained: adapters, projection, head and groups, in one commit; neither the LLM nor the item vectors made with it.

    Args:
        folder: Written by `seqrec train p2rec`.
        repo_id: See `push_recommender`, also for the other arguments.
        private: Visibility of a new repository.
        revision: Branch to push to.
        parent_commit: Commit that the push must follow.
        commit_message: First line of the commit's message.
        token: Hub token.

    Returns:
        The commit; its `oid` pins this version in `P2RecModel.from_pretrained(…, revision=oid)`.

    Raises:
        FileNotFoundError: The folder is no complete run. Otherwise as `push_recommender`.
    """
    patterns = (CARD, "config.json", "*.safetensors", "*.py", GROUPS, "p2rec.json")
    content = matching_files(Path(folder), patterns, "train with `seqrec train p2rec` first", token)
    target = Destination(repo_id, "model", private, revision, parent_commit, commit_message, token).create()
    return target.commit(content, _OURS, "P2Rec")


def load_recommender(
    path_or_repo: str | os.PathLike, revision: str | None = None, token: str | None = None, llm: str | None = None
):
    """Load model and processor with this library's own code.

    Args:
        path_or_repo: Folder or repository id.
        revision: Branch, tag or commit.
        token: Hub token for a private repository.
        llm: Where the model's LLM is now, a folder or Hub id, if not where it was in training.

    Returns:
        `(model, processor)`, the model in evaluation mode.

    Raises:
        OSError: No such folder or repository, or a file is missing.
    """
    where: dict[str, Any] = {"revision": revision, "token": token}
    where = {name: value for name, value in where.items() if value is not None}
    if llm is not None:
        where["llm"] = llm
    model = AutoModel.from_pretrained(path_or_repo, **where)
    return model.eval(), AutoProcessor.from_pretrained(path_or_repo, **where)


def missing_files(folder: str | os.PathLike) -> list[str]:
    """Names of what a folder lacks to be a complete recommender; empty when it is one."""
    folder = Path(folder)
    missing = [name for name in _NEEDED if not (folder / name).is_file()]
    return missing if any(folder.glob("*.safetensors")) else [*missing, "*.safetensors"]


@contextmanager
def _unchanged(model: Any) -> Iterator[None]:
    """Saving notes the pipeline in the configuration and needs evaluation mode; the caller's model keeps neither."""
    training, noted = model.training, getattr(model.config, "custom_pipelines", None)
    try:
        yield
    finally:
        model.train(training)
        if noted is None:
            vars(model.config).pop("custom_pipelines", None)
        else:
            model.config.custom_pipelines = noted


def _check_together(model: Any, processor: Any, records: Sequence[EvaluationRecord]) -> None:
    num_items, fingerprint = model.config.num_items, model.config.data_fingerprint
    others = [("the processor", processor.num_items, processor.data_fingerprint)]
    others += [(f"the record on {r.dataset}", r.num_items, r.dataset_fingerprint) for r in records]
    for name, its_items, its_fingerprint in others:
        if its_items != num_items:
            raise ValueError(
                f"the model has {num_items:,} items, {name} has {its_items:,}: they do not belong together."
            )
        if None not in (fingerprint, its_fingerprint) and fingerprint != its_fingerprint:
            raise ValueError(
                f"the model was made for the data set with fingerprint {fingerprint}, {name} belongs to {its_fingerprint}."
            )
    for name, weights in model.state_dict().items():
        if torch.isnan(weights).any():
            raise ValueError(
                f"weight {name!r} holds NaN: the training diverged, and there is nothing to recommend with."
            )


def _load_record(path: str | os.PathLike) -> EvaluationRecord:
    return EvaluationRecord.load(path, rows=False)


def _save_record(record: EvaluationRecord, given: EvaluationRecord | str | os.PathLike, path: Path) -> None:
    """Copy a record without its rows: they name people."""
    path.parent.mkdir(exist_ok=True)
    if not isinstance(given, EvaluationRecord):
        shutil.copyfile(given, path)
        return
    with tempfile.TemporaryDirectory() as temporary:
        shutil.copyfile(record.save(Path(temporary) / path.name), path)


def _slug(record: EvaluationRecord) -> str:
    protocol = record.protocol
    words = (record.dataset.split("/")[-1], protocol.split, protocol.part, protocol.candidates)
    return re.sub(r"[^a-z0-9]+", "-", "-".join(words).lower()).strip("-")


def _example_history(processor: Any) -> list[str]:
    """Two items of the catalogue, by title where titles name exactly one item."""
    named: list[str] = []
    for item_id, title in zip(processor.item_ids, processor.titles, strict=True):
        try:
            processor.to_index([title])
            named.append(title)
        except (TypeError, KeyError, ValueError):  # no title, or one that several items share
            named.append(item_id)
        if len(named) == 2:
            break
    return named


def _name_repository(card: str, repo_id: str) -> str:
    return re.sub(
        r'(pipeline\("sequential-recommendation", model=)"[^"\n]*"', lambda found: found[1] + json.dumps(repo_id), card
    )
