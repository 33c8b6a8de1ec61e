"""`pipeline("sequential-recommendation")`: from the titles a person liked to the titles to show next.

This file also travels to the Hub beside the model, where it runs without the library; it therefore stands alone.
"""

import importlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from typing import Any

import torch
import transformers
from transformers import AutoModel, Pipeline
from transformers.pipelines import PIPELINE_REGISTRY


TASK = "sequential-recommendation"

Recommendation = dict[str, Any]


class SequentialRecommendationPipeline(Pipeline):
    """Recommends the next items for a history of titles or item ids.

    Args:
        model: A sequential recommender. It is put into evaluation mode.
        processor: The `SequentialRecommendationProcessor` saved with the model.
        top_k: Number of items to recommend; fewer come back when fewer are allowed.
        exclude_seen: Leave out the items of the history.
        candidates: Ids or titles of the only items to choose from; None for the whole catalogue.
        by: `"item_id"` or `"title"` when all strings are of that kind; None takes either.
        batch_size: Number of histories per model call when several are given; 64 by default.
        kwargs: `device` and other arguments of `transformers.Pipeline`.

    Raises:
        TypeError: The model has no `score`, or an argument is unknown. ValueError: no processor, one with another
            number of items than the model, or `top_k` below 1.

    Example:
        >>> from hf_seqrec.modeling import SASRecConfig, SASRecForSequentialRecommendation
        >>> from hf_seqrec.modeling.processing import SequentialRecommendationProcessor
        >>> model = SASRecForSequentialRecommendation(SASRecConfig(num_items=3, hidden_size=8))
        >>> processor = SequentialRecommendationProcessor(["b7", "a2", "c1"], ["Heat", "Alien", "Up"])
        >>> pipe = SequentialRecommendationPipeline(model=model, processor=processor, device="cpu")
        >>> answer = pipe({"history": ["Heat"]}, top_k=2)
        >>> sorted(row["title"] for row in answer), sorted(answer[0])
        (['Alien', 'Up'], ['item_id', 'rank', 'score', 'title'])
    """

    model: Any
    processor: Any

    _load_processor = True  # type: ignore[assignment]
    _load_tokenizer = False  # type: ignore[assignment]
    _load_feature_extractor = False  # type: ignore[assignment]
    _load_image_processor = False  # type: ignore[assignment]
    _load_video_processor = False  # type: ignore[assignment]

    def __init__(self, model, processor=None, task: str = TASK, **kwargs):
        if not hasattr(model, "score"):
            raise TypeError(
                f"{type(model).__name__} has no `score`: the {TASK} pipeline needs a `…ForSequentialRecommendation`."
            )
        if processor is None:
            raise ValueError(
                f"the {TASK} pipeline needs a processor, which knows the item ids: pass `processor=`, or load model and "
                "processor from one folder or repository."
            )
        if processor.num_items != model.config.num_items:
            raise ValueError(
                f"the processor has {processor.num_items:,} items, the model {model.config.num_items:,}: load both from "
                "the same place."
            )
        # The factory of transformers puts classes where the names stood, and a configuration with classes cannot be saved.
        for pipelines in (getattr(model.config, "custom_pipelines", None) or {}).values():
            pipelines["pt"] = [getattr(entry, "__name__", entry) for entry in pipelines.get("pt", ())]
        self._cached_table: tuple | None = None
        super().__init__(model=model.eval(), processor=processor, task=task, **kwargs)

    def _sanitize_parameters(
        self,
        top_k: int | None = None,
        exclude_seen: bool | None = None,
        candidates: Sequence[str] | None = None,
        by: str | None = None,
        **unknown,
    ):
        if unknown:
            raise TypeError(
                f"the {TASK} pipeline has no argument {', '.join(map(repr, unknown))}; it has top_k, exclude_seen, "
                "candidates, by, batch_size."
            )
        if top_k is not None and top_k < 1:
            raise ValueError(f"`top_k` must be at least 1, got {top_k}.")
        forward = {"top_k": top_k, "exclude_seen": exclude_seen}
        return (
            {key: value for key, value in {"candidates": candidates, "by": by}.items() if value is not None},
            {key: value for key, value in forward.items() if value is not None},
            {},
        )

    def __call__(  # type: ignore[override]
        self, inputs: Mapping[str, Any] | Iterable[Mapping[str, Any]], batch_size: int | None = None, **parameters
    ) -> Any:
        """Recommend for one history or for many.

        Args:
            inputs: `{"history": [...]}` with ids or titles, oldest first; or a list, a generator or a data set of such. Models whose
                prompts show dates also need `"timestamps"`, Unix seconds of the items.
            batch_size: Number of histories per model call.
            parameters: `top_k`, `exclude_seen`, `candidates`, `by`, as for the class.

        Returns:
            Per history a list of `{"item_id", "title", "score", "rank"}`, best first, rank 1 the best. One such list for
            one history, a list of them for a list, an iterator for anything else.

        Raises:
            TypeError: Not a mapping with `history`. KeyError: an unknown item, with near matches. ValueError: an empty
                history, missing timestamps, or a title that several items share.
        """
        given = self._sanitize_parameters(**parameters)
        merged = [
            {**kept, **new}
            for kept, new in zip(
                (self._preprocess_params, self._forward_params, self._postprocess_params), given, strict=True
            )
        ]
        if isinstance(inputs, Mapping):
            return self.run_single([inputs], *merged)[0]
        if isinstance(inputs, str) or not isinstance(inputs, Iterable):
            raise TypeError(_input_message(inputs))
        answers = self._batches(iter(inputs), batch_size or self._batch_size or 64, merged)
        return list(answers) if isinstance(inputs, list | tuple) else answers

    def _batches(self, inputs, batch_size, parameters) -> Iterator[list[Recommendation]]:
        while batch := list(islice(inputs, batch_size)):
            yield from self.run_single(batch, *parameters)

    def preprocess(self, inputs, candidates=None, by=None):  # type: ignore[override]
        """Names to item indices: `input_ids` and `times` (batch, length), `seen` per row, `candidates` (num_candidates,) or None."""
        for row in inputs:
            if not isinstance(row, Mapping) or "history" not in row:
                raise TypeError(_input_message(row))
        histories = [row["history"] for row in inputs]
        prepared = {
            "input_ids": self.processor(histories, by=by)["input_ids"],
            "seen": [self.processor.to_index(history, by) for history in histories],
            "candidates": None,
        }
        prepared["times"] = self._left_padded_times(inputs, prepared["input_ids"])
        if candidates is not None:
            index = torch.from_numpy(self.processor.to_index(candidates, by)).unique()
            if not len(index):
                raise ValueError("`candidates` is empty: name at least one item, or leave it out.")
            prepared["candidates"] = index
        return prepared

    def _forward(self, prepared, top_k=10, exclude_seen=True):  # type: ignore[override]
        """The best items: `item_index` and `scores`, each (batch, ≤ top_k), -inf where no item is left."""
        input_ids, candidates = prepared["input_ids"], prepared["candidates"]
        known = self._item_table()
        if prepared["times"] is not None:
            known["timestamps"] = prepared["times"]
        if candidates is None:
            scores = self.model.score(input_ids, **known)
        else:
            # Columns by item_index here too, so that what follows is the same for both.
            chosen = self.model.score(input_ids, candidates=candidates.expand(len(input_ids), -1), **known)
            scores = chosen.new_full((len(input_ids), self.model.config.num_items + 1), -torch.inf)
            scores[:, candidates] = chosen
        if bool(torch.isnan(scores).any()):
            raise ValueError(
                "the model's scores are not numbers (NaN): its weights are damaged or its training diverged."
            )
        if exclude_seen:
            for row, seen in enumerate(prepared["seen"]):
                scores[row, torch.from_numpy(seen).to(scores.device)] = -torch.inf
        best = scores.topk(min(top_k, scores.shape[1]), dim=1)
        return {"item_index": best.indices, "scores": best.values}

    def postprocess(self, best):  # type: ignore[override]
        """Item indices to ids, titles, scores and ranks."""
        answers = []
        for index, scores in zip(best["item_index"].tolist(), best["scores"].tolist(), strict=True):
            allowed = [number for number, score in enumerate(scores) if score != -torch.inf]
            items = self.processor.decode([index[number] for number in allowed])
            answers.append(
                [
                    {**item, "score": scores[number], "rank": rank}
                    for rank, (item, number) in enumerate(zip(items, allowed, strict=True), 1)
                ]
            )
        return answers

    def _left_padded_times(self, inputs, input_ids: torch.Tensor) -> torch.Tensor | None:
        """Times of the items in `input_ids`, for a model that asks for them."""
        if not getattr(self.model, "needs_timestamps", False):
            return None
        times = torch.zeros_like(input_ids)
        for row, given in enumerate(inputs):
            stamps = given.get("timestamps")
            if stamps is None or len(stamps) != len(given["history"]):
                raise ValueError(
                    f"the model's prompts show dates, so a history of {len(given['history'])} items needs as many `timestamps` (Unix "
                    f'seconds) beside it, got {None if stamps is None else len(stamps)}: {{"history": […], "timestamps": […]}}.'
                )
            length = int((input_ids[row] > 0).sum())
            times[row, -length:] = torch.tensor(list(stamps)[-length:], dtype=torch.int64)
        return times

    def _item_table(self) -> dict[str, torch.Tensor]:
        """The model's `item_table` argument, fused once per weight version; nothing for models that have no such table."""
        if not getattr(self.model, "is_dot_product", False):
            return {}
        # Norms as well, because fused optimizers write without raising the counters.
        norms = torch.stack(torch._foreach_norm([weight.detach() for weight in self.model.parameters()])).tolist()
        tensors = chain(self.model.parameters(), self.model.buffers())
        version = norms, [(tensor.data_ptr(), tensor._version) for tensor in tensors]
        if self._cached_table is None or self._cached_table[0] != version:
            self._cached_table = version, self.model.item_representations()
        return {"item_table": self._cached_table[1]}

    def save_pretrained(self, save_directory, **kwargs):
        """Write model, processor and the code of both and of this pipeline into a folder."""
        super().save_pretrained(save_directory, **kwargs)
        self.processor.save_pretrained(save_directory)


def _input_message(given: Any) -> str:
    return f'the {TASK} pipeline takes {{"history": [titles or item ids]}}, or a list of such; got {given!r}.'


def pipeline(task: str = TASK, model=None, **kwargs) -> SequentialRecommendationPipeline:
    """A recommendation pipeline from the library's own code; no `trust_remote_code` is needed.

    `transformers.pipeline("sequential-recommendation", model=…, trust_remote_code=True)` gives the same from the code in
    the repository, also where this library is not installed.

    Args:
        task: `"sequential-recommendation"`.
        model: Folder, repository id, or a recommender (then `processor=` is needed too).
        kwargs: `revision`, `token`, `device`, `processor`, and the arguments of `SequentialRecommendationPipeline`.

    Raises:
        ValueError: Another task, or no model.

    Example:
        >>> from hf_seqrec.pipelines import pipeline
        >>> recommend = pipeline("sequential-recommendation", model="user/sasrec-films")     # doctest: +SKIP
        >>> recommend({"history": ["Toy Story (1995)", "Babe (1995)"]}, top_k=3)             # doctest: +SKIP
    """
    if task != TASK:
        raise ValueError(
            f"this pipeline's task is {TASK!r}, got {task!r}: other tasks are in `transformers.pipeline`."
        )
    if model is None:
        raise ValueError("`model` is missing: give a folder, a repository id or a recommender.")
    if not isinstance(model, str | os.PathLike) and kwargs.get("processor") is None:
        raise ValueError(
            "a recommender in memory needs its processor, which knows the item ids: pass `processor=` too."
        )
    importlib.import_module("hf_seqrec.modeling.processing")  # makes models and processor known to the Auto classes
    return transformers.pipeline(  # type: ignore[call-overload]
        task, model=model, pipeline_class=SequentialRecommendationPipeline, **kwargs
    )


if __name__ == "hf_seqrec.pipelines":
    PIPELINE_REGISTRY.register_pipeline(
        TASK, pipeline_class=SequentialRecommendationPipeline, pt_model=AutoModel, type="text"
    )
else:
    # As a repository's remote code the class must not answer for other repositories; it still tells `save_pretrained` itself.
    SequentialRecommendationPipeline._registered_impl = {  # type: ignore[attr-defined]
        TASK: {"impl": SequentialRecommendationPipeline, "pt": (AutoModel,), "type": "text"}
    }
