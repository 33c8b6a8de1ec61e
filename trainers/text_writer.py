"""Who writes the texts while a language model is trained: a copy of it that is some optimizer steps old, maybe in a thread.

The paper of SeRALM calls it the generator job. A copy shares the frozen weights with the trained model (with adapters only the
adapters exist twice) and samples from a random generator of its own, so that what it writes depends on (seed, round) and its
weights and on nothing that runs beside it.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList
from transformers.generation.logits_process import (
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)


@dataclass
class Written:
    """Texts and how they came about.

    Args:
        completion_ids: Token ids per text, up to and including the end token.
        logprobs: Log-probability of each of these tokens under the weights that wrote them.
        step: The optimizer step whose weights these are.
        seconds: Time it took.
    """

    completion_ids: list[list[int]]
    logprobs: list[list[float]]
    step: int
    seconds: float


class GumbelSampling(LogitsProcessor):
    """Turns greedy decoding into sampling with a random generator of its own: argmax(logits + Gumbel noise) is a sample.

    Args:
        generator: The random generator.

    Attributes:
        taken: The sampled token of every call, (batch,) each.

    Example:
        >>> scores = torch.log(torch.tensor([[0.1, 0.7, 0.2]])).expand(20_000, 3)
        >>> drawn = GumbelSampling(torch.Generator().manual_seed(0))(torch.zeros(20_000, 1), scores).argmax(1)
        >>> [round(share, 1) for share in (drawn.bincount() / 20_000).tolist()]
        [0.1, 0.7, 0.2]
    """

    def __init__(self, generator: torch.Generator):
        self.generator = generator
        self.taken: list[torch.Tensor] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """(batch, vocabulary) scores with noise."""
        noise = torch.empty_like(scores, dtype=torch.float32).exponential_(generator=self.generator)
        noisy = scores - noise.log()
        self.taken.append(noisy.argmax(-1))
        return noisy


class TokenLogProbs:
    """Log-probabilities of sampled tokens, taken while they are sampled, so that nobody has to read the finished texts again.

    They are those of the model at a temperature, before penalties and truncation (top-k, top-p, min-p), as the trainer computes
    them; hence they come from the model's output and not from the scores that processors have changed.

    Args:
        model: The module that generates; its output has `logits`.
        sampling: Says which token was taken.
        temperature: Divides the logits.
    """

    def __init__(self, model: nn.Module, sampling: GumbelSampling, temperature: float):
        self.sampling, self.temperature = sampling, temperature
        self.found: list[torch.Tensor] = []
        self.last: torch.Tensor | None = None
        self.model = model

    def __enter__(self) -> TokenLogProbs:
        self.hook = self.model.register_forward_hook(self._after_forward)
        return self

    def __exit__(self, *error: object) -> None:
        self.hook.remove()

    def _after_forward(self, module, inputs, output) -> None:
        self._settle()
        self.last = output.logits[:, -1].float() / self.temperature

    def _settle(self) -> None:
        if self.last is not None:
            token = self.sampling.taken[-1][:, None]
            self.found.append(self.last.gather(1, token)[:, 0] - self.last.logsumexp(-1))
        self.last = None

    def result(self) -> torch.Tensor:
        """Of all tokens so far, (batch, tokens)."""
        self._settle()
        return torch.stack(self.found, 1)


def copy_of(model: nn.Module) -> nn.Module:
    """A copy of a language model for writing: weights that are trained are copied, frozen ones shared.

    TRL replaces `forward` of the instance by a function that holds on to the original model, so that a plain deep copy would
    follow every update; the copy gets the forward of its class back.
    """
    shared = {id(parameter): parameter for parameter in model.parameters() if not parameter.requires_grad}
    with torch.no_grad():
        twin = copy.deepcopy(model, shared)
    for module in twin.modules():
        module.__dict__.pop("forward", None)
        module.__dict__.pop("_original_forward", None)
    for parameter in twin.parameters():
        if id(parameter) not in shared:
            parameter.requires_grad_(False)
    return twin.eval()


class CopyWriter:
    """Writes with a copy of the trained model.

    Args:
        model: The trained model, unwrapped.
        generation: TRL's generation settings.
        pad_token_id: Padding token.
        batch_size: Texts written at once.
        autocast: Makes the context in which the model runs.
    """

    def __init__(
        self,
        model: nn.Module,
        generation: GenerationConfig,
        pad_token_id: int,
        batch_size: int,
        autocast: Callable[[], Any] = nullcontext,
    ):
        self.live = model
        self.copy: Any = copy_of(model)
        self.autocast = autocast
        self.temperature = float(generation.temperature or 1.0)
        self.pad_token_id, self.batch_size = pad_token_id, batch_size
        # The settings of sampling are processors here, because decoding is greedy on noisy scores.
        self.warpers = LogitsProcessorList()
        if generation.temperature not in (None, 1.0):
            self.warpers.append(TemperatureLogitsWarper(self.temperature))
        if generation.top_k:
            self.warpers.append(TopKLogitsWarper(int(generation.top_k)))
        if generation.top_p not in (None, 1.0):
            self.warpers.append(TopPLogitsWarper(float(generation.top_p)))
        if generation.min_p:
            self.warpers.append(MinPLogitsWarper(float(generation.min_p)))
        self.generation = copy.deepcopy(generation)
        self.generation.update(do_sample=False, temperature=None, top_k=None, top_p=None, min_p=None)
        self.copy.generation_config = copy.deepcopy(self.generation)  # else its own defaults would fill the gaps
        eos = generation.eos_token_id
        self.eos_token_ids = torch.tensor([eos] if isinstance(eos, int) else list(eos or []))
        self.step = 0

    @torch.no_grad()
    def refresh(self, step: int) -> None:
        """Take over the weights of the trained model; must not be called while texts are written."""
        live = dict(self.live.named_parameters())
        for name, parameter in self.copy.named_parameters():
            if parameter is not live[name]:
                parameter.copy_(live[name])
        self.step = step

    @torch.no_grad()
    def write(self, prompt_ids: list[list[int]], seed: int) -> Written:
        """Sample one text per prompt.

        Args:
            prompt_ids: Token ids of the prompts.
            seed: Seed of this call's random generator.

        Returns:
            The texts with the log-probabilities of their tokens.
        """
        begin, device = time.perf_counter(), next(self.copy.parameters()).device
        generator = torch.Generator(device).manual_seed(seed)
        ids: list[list[int]] = []
        logprobs: list[list[float]] = []
        for start in range(0, len(prompt_ids), self.batch_size):
            rows = prompt_ids[start : start + self.batch_size]
            width = max(map(len, rows))
            prompts = torch.full((len(rows), width), self.pad_token_id)
            mask = torch.zeros_like(prompts)
            for number, row in enumerate(rows):
                prompts[number, width - len(row) :] = torch.tensor(row)
                mask[number, width - len(row) :] = 1
            prompts, mask = prompts.to(device), mask.to(device)
            sampling = GumbelSampling(generator)
            base = self.copy.get_base_model() if hasattr(self.copy, "get_base_model") else self.copy
            with self.autocast(), TokenLogProbs(base, sampling, self.temperature) as trace:
                out = self.copy.generate(
                    input_ids=prompts,
                    attention_mask=mask,
                    generation_config=self.generation,
                    logits_processor=LogitsProcessorList([*self.warpers, sampling]),
                )
            completion = out[:, width:]
            ended = torch.isin(completion, self.eos_token_ids.to(device)).int()
            inside = (ended.cumsum(1) - ended) == 0  # up to and including the first end token
            for row, kept, values in zip(completion.cpu(), inside.cpu(), trace.result().cpu(), strict=True):
                ids.append(row[kept].tolist())
                logprobs.append(values[kept].tolist())
        return Written(ids, logprobs, self.step, time.perf_counter() - begin)


class VllmWriter:
    """Writes with the vLLM engine that TRL drives; `refresh` ships the weights.

    Args:
        engine: TRL's `VLLMGeneration`.
        num_generations: Texts per prompt; equal prompts stand one after another.
    """

    def __init__(self, engine: Any, num_generations: int):
        self.engine, self.num_generations, self.step = engine, num_generations, 0

    def refresh(self, step: int) -> None:
        """Ship the weights of the trained model to the engine."""
        self.engine.sync_weights()
        self.step = step

    def write(self, prompt_ids: list[list[int]], seed: int) -> Written:
        """See [`CopyWriter.write`]; vLLM has a seed of its own."""
        begin = time.perf_counter()
        _, ids, logprobs, _ = self.engine.generate(
            prompts=prompt_ids, images=None, num_generations=self.num_generations, profiler=nullcontext()
        )
        # One list of the most likely tokens per position; the sampled token comes first. None: vLLM had no number.
        taken = [[float("nan") if token[0] is None else token[0] for token in text] for text in logprobs]
        return Written(ids, taken, self.step, time.perf_counter() - begin)


class Worker:
    """Runs a writer in one thread of its own, on a CUDA stream of its own where there is a GPU.

    Args:
        writer: What to run.
        device: Where the model is.
    """

    def __init__(self, writer: CopyWriter | VllmWriter, device: torch.device):
        self.writer = writer
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self.pool = ThreadPoolExecutor(1, thread_name_prefix="text-writer")

    def submit(self, prompt_ids: list[list[int]], seed: int) -> Future[Written]:
        """Start writing; the weights that `refresh` copied before are in place when it begins."""
        ready = torch.cuda.current_stream().record_event() if self.stream is not None else None

        def work() -> Written:
            if self.stream is None:
                return self.writer.write(prompt_ids, seed)
            with torch.cuda.stream(self.stream):
                if ready is not None:
                    self.stream.wait_event(ready)
                return self.writer.write(prompt_ids, seed)  # ends with copies to the CPU, so the stream is done

        return self.pool.submit(work)

    def close(self) -> None:
        """Wait for what is being written and end the thread."""
        self.pool.shutdown(cancel_futures=True)
