"""SeRALM before alignment: a backbone with knowledge vectors, and the text encoder they come from, trained on next items.

With a frozen encoder this is `NextItemTrainer`. With a trained one (section 4.3 of the paper) a step encodes texts of its own
items with gradients; vectors of all other items are those of the last refresh.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

from hf_seqrec.modeling.seralm import TEXT_ENCODER, SeRALMForSequentialRecommendation, TextTokens

from .next_item import NextItemTrainer, NextItemTrainingArguments


@dataclass
class KnowledgeWarmupTrainingArguments(NextItemTrainingArguments):
    """Arguments of [`KnowledgeWarmupTrainer`].

    > Parameters that control the text encoder, when it is trained

    Args:
        texts_per_step: Texts of a step's items that are encoded with gradients, drawn anew each step; 0 takes all.
        refresh_steps: Optimizer steps after which the texts of all items are encoded anew; 0: only before every evaluation and
            checkpoint.
        text_encoder_learning_rate: Of the text encoder's weights, which are pretrained.
    """

    texts_per_step: int = field(
        default=256, metadata={"help": "Texts of a step's items that are encoded with gradients; 0 takes all."}
    )
    refresh_steps: int = field(
        default=0,
        metadata={"help": "Steps after which all texts are encoded anew; 0: only before evaluations and checkpoints."},
    )
    text_encoder_learning_rate: float = field(
        default=2e-5, metadata={"help": "Learning rate of the text encoder, when it is trained."}
    )

    def __post_init__(self):
        super().__post_init__()
        if self.texts_per_step < 0 or self.refresh_steps < 0:
            raise ValueError(
                f"`texts_per_step` and `refresh_steps` must not be negative, got {self.texts_per_step} and {self.refresh_steps}."
            )


class _RefreshCallback(TrainerCallback):
    def __init__(self, trainer: KnowledgeWarmupTrainer):
        self.trainer = trainer

    def on_step_end(self, args, state, control, **kwargs):
        due = args.refresh_steps and state.global_step % args.refresh_steps == 0
        if due or control.should_evaluate or control.should_save:
            self.trainer.refresh_knowledge()

    def on_epoch_end(self, args, state, control, **kwargs):
        if control.should_evaluate or control.should_save:
            self.trainer.refresh_knowledge()


class KnowledgeWarmupTrainer(NextItemTrainer):
    """Trains a SeRALM recommender on next items: the paper's Base + NA_LLM, from which alignment starts.

    Args:
        model: A [`~hf_seqrec.modeling.SeRALMForSequentialRecommendation`] that holds its first knowledge (`start_from`).
        args: [`KnowledgeWarmupTrainingArguments`].
        texts: One text per item, row r of item_index r + 1; needed when the text encoder is trained.
        kwargs: As in [`NextItemTrainer`].

    Raises:
        TypeError: Another kind of model. ValueError: a trained encoder without texts, or a model whose knowledge is still zeros.

    Example:
        >>> trainer = KnowledgeWarmupTrainer(model, KnowledgeWarmupTrainingArguments("out"), texts=knowledge.texts,
        ...                                  train_dataset=split.train, eval_dataset=split.validation)   # doctest: +SKIP
        >>> trainer.train()                                                                             # doctest: +SKIP
    """

    training_args_class = KnowledgeWarmupTrainingArguments

    def __init__(self, model=None, args=None, *positional, texts: Sequence[str] | None = None, **kwargs):
        if not isinstance(model, SeRALMForSequentialRecommendation):
            raise TypeError(
                f"KnowledgeWarmupTrainer trains SeRALMForSequentialRecommendation, got {type(model).__name__}: other recommenders "
                "have the NextItemTrainer."
            )
        args = self.check_args(args)
        if not bool(model.knowledge[1:].any()):
            raise ValueError(
                "the model's knowledge is still zeros: encode the texts and give it with `start_from` first."
            )
        self.tokens: TextTokens | None = None
        if model.config.train_text_encoder:
            if texts is None or len(texts) != model.config.num_items:
                raise ValueError(
                    f"a trained text encoder needs `texts`, one for each of the {model.config.num_items:,} items, got "
                    f"{None if texts is None else len(texts)}."
                )
            self.tokens = model.tokenize(texts)
        self._refreshed_at = -1
        super().__init__(model, args, *positional, **kwargs)
        if self.tokens is not None:
            self.add_callback(_RefreshCallback(self))

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """The next-item loss; with a trained encoder over vectors of which some are encoded in this step."""
        if self.tokens is not None and model.training:
            items = self._items_of_step(inputs)
            inputs = {**inputs, "knowledge_tokens": (items, *self.tokens.batch(items - 1, items.device))}
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)

    def _items_of_step(self, inputs) -> torch.Tensor:
        """Distinct items of inputs and labels, at most `texts_per_step`, drawn by seed, step and the items themselves."""
        found = torch.cat([inputs["input_ids"].flatten(), inputs["labels"].flatten()]).unique()
        num_items = self.accelerator.unwrap_model(self.model).config.num_items
        found = found[(found >= 1) & (found <= num_items)]  # neither padding nor a mask
        most = self.args.texts_per_step
        if most and len(found) > most:
            draw = np.random.default_rng([self.args.seed, self.state.global_step, int(found.sum())])
            found = found[torch.from_numpy(np.sort(draw.choice(len(found), most, replace=False))).to(found.device)]
        return found

    def refresh_knowledge(self) -> None:
        """Encode the texts of all items with the weights as they are, once per step at most; a frozen encoder has nothing to do."""
        if self.tokens is None or self._refreshed_at == self.state.global_step:
            return
        self._refreshed_at = self.state.global_step
        model = self.accelerator.unwrap_model(self.model)
        model.set_knowledge(torch.arange(1, model.config.num_items + 1), model.encode_all(self.tokens))

    def create_optimizer(self, model=None):
        """The optimizer with groups of their own, and a learning rate of their own, for the text encoder's weights."""
        optimizer = super().create_optimizer(*(() if model is None else (model,)))
        inner = self.accelerator.unwrap_model(self.model)
        if self.tokens is not None:
            own = {id(parameter) for parameter in inner.text_encoder.parameters()}
            for group in list(optimizer.param_groups):
                moved = [parameter for parameter in group["params"] if id(parameter) in own]
                if moved:
                    group["params"] = [parameter for parameter in group["params"] if id(parameter) not in own]
                    rest = {name: value for name, value in group.items() if name not in ("params", "lr", "initial_lr")}
                    optimizer.add_param_group({**rest, "params": moved, "lr": self.args.text_encoder_learning_rate})
            optimizer.param_groups[:] = [group for group in optimizer.param_groups if group["params"]]
        return optimizer

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        self._load_text_encoder(resume_from_checkpoint)

    def _load_best_model(self):
        super()._load_best_model()
        self._load_text_encoder(self.state.best_model_checkpoint)

    def _issue_warnings_after_load(self, load_result):
        # The encoder's weights are not missing, they come from their own folder.
        missing = [name for name in load_result.missing_keys if not name.startswith(f"{TEXT_ENCODER}.")]
        super()._issue_warnings_after_load(type(load_result)(missing, load_result.unexpected_keys))

    def _load_text_encoder(self, folder) -> None:
        """The encoder lies in a folder of its own, so that serving need not read it."""
        if self.tokens is not None:
            model = self.accelerator.unwrap_model(self.model)
            model.text_encoder.load_state_dict(load_file(Path(folder) / TEXT_ENCODER / "model.safetensors"))
