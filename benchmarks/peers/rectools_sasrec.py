"""SASRec with RecTools: `SASRecModel` with its softmax loss, trained through its own Lightning trainer.

Its Xavier initialisation makes position vectors four times as long as item vectors, which it does not scale by sqrt(width); it then
learns slowly per epoch. `--variant small-positions` draws the position vectors with a standard deviation of 0.02 instead.
"""

import common
import numpy as np
import pandas as pd
import torch
from pytorch_lightning import Callback, Trainer, seed_everything
from rectools import Columns
from rectools.dataset import Dataset
from rectools.models import SASRecModel
from rectools.models.nn.transformers.lightning import TransformerLightningModule


class ResumingTrainer(Trainer):
    """Goes on from the checkpoint of an earlier process, which the library's `fit` has no argument for."""

    checkpoint = None

    def fit(self, *args, **kwargs):
        """See the parent."""
        super().fit(*args, **kwargs, ckpt_path=self.checkpoint)


class Judge(Callback):
    """Hands the model to the judge after every epoch."""

    def __init__(self, progress: common.Progress, model_of):
        self.progress, self.model_of = progress, model_of

    def on_train_start(self, trainer, module):
        """Start the clock."""
        self.progress.start()

    def on_train_epoch_end(self, trainer, module):
        """Stop the clock, judge, go on or stop."""
        network, model = module.torch_model, self.model_of()
        # The library numbers items itself, from the training part: item without a training row cannot be recommended.
        ids = model.data_preparator.item_id_map
        known = np.asarray(model.data_preparator.get_known_item_ids(), dtype=np.int64)
        number = np.zeros(self.progress.data.num_items + 1, dtype=np.int64)
        number[known] = ids.convert_to_internal(known)
        item_vectors = network.item_model.get_all_embeddings()

        def score(histories):
            batch = {"x": common.left_padded([number[history] for history in histories], model.session_max_len)}
            logits = network.encode_sessions(batch, item_vectors)[:, -1] @ item_vectors.T
            scores = torch.full((len(histories), len(number)), -torch.inf)
            scores[:, known] = logits[:, number[known]]
            return scores

        network.eval()
        trainer.should_stop = self.progress.epoch_done(score, trainer.save_checkpoint)
        network.train()


class Module(TransformerLightningModule):
    """The library's training module, which keeps the weights of a checkpoint instead of drawing new ones."""

    def on_train_start(self):
        """Draw the start values."""
        if self.trainer.ckpt_path is None:
            super().on_train_start()


class SmallPositions(Module):
    """The library's training module with short position vectors at the start."""

    def _xavier_normal_init(self):
        super()._xavier_normal_init()
        torch.nn.init.normal_(self.torch_model.pos_encoding_layer.pos_emb.weight, std=0.02)


MODULES = {"": Module, "small-positions": SmallPositions}


def main() -> None:
    args = common.arguments()
    if args.variant not in MODULES:
        raise ValueError(f"unknown --variant {args.variant!r}: choose one of {', '.join(map(repr, MODULES))}")
    seed_everything(args.seed)
    data = common.Interactions.read(args.data)
    progress = common.Progress(args, data, "rectools")
    training = data.part == 0
    rows = pd.DataFrame({Columns.User: data.user[training], Columns.Item: data.item[training], Columns.Weight: 1.0})
    # One second per row keeps the given order inside a user.
    rows[Columns.Datetime] = pd.Timestamp(0) + pd.to_timedelta(np.arange(len(rows)), unit="s")

    def trainer() -> Trainer:
        judge = Judge(progress, lambda: model)
        # The model copies the trainer before it fits; the clock must not be copied with it.
        Judge.__deepcopy__ = lambda self, memo: self
        made = ResumingTrainer(
            max_epochs=args.epochs, accelerator="cpu", devices=1, callbacks=[judge],
            logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip
        made.checkpoint = progress.checkpoint
        return made

    model = SASRecModel(
        n_blocks=args.layers,
        n_heads=args.heads,
        n_factors=args.hidden_size,
        dropout_rate=args.dropout,
        session_max_len=args.max_length,
        loss="softmax",
        lr=args.learning_rate,
        batch_size=args.batch_size,
        get_trainer_func=trainer,
        lightning_module_type=MODULES[args.variant],
    )
    model.fit(Dataset.construct(rows))
    progress.report()


if __name__ == "__main__":
    main()
