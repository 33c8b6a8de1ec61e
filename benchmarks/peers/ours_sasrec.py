"""SASRec with this library: `NextItemTrainer` over whole sequences, with everything a `Trainer` does around it.

Without a variant the network has the maths of the peers: feed-forward as wide as the model, ReLU, the original block, dropout
on attention weights, float32 throughout. `--variant default` is the library's own default network at the same width;
`--variant unscaled` is the peers' network without the factor sqrt(width) on item vectors, which RecTools leaves out.
"""

import tempfile

import common
import numpy as np
import pyarrow as pa
from transformers import TrainerCallback

from hf_seqrec.data import Sequences
from hf_seqrec.modeling import SASRecConfig, SASRecForSequentialRecommendation
from hf_seqrec.trainers import NextItemTrainer, NextItemTrainingArguments


class Judge(TrainerCallback):
    """Hands the model to the judge after every epoch."""

    def __init__(self, progress: common.Progress):
        self.progress = progress

    def on_train_begin(self, args, state, control, **kwargs):
        """Start the clock."""
        self.progress.start()

    def on_epoch_end(self, args, state, control, model=None, **kwargs):
        """Stop the clock, judge, go on or stop."""
        length = self.progress.args.max_length
        model.eval()
        control.should_training_stop = self.progress.epoch_done(
            lambda histories: model.score(common.left_padded(histories, length))
        )
        model.train()


def main() -> None:
    args = common.arguments()
    data = common.Interactions.read(args.data)
    progress = common.Progress(args, data, "hf-seqrec")
    rows = data.train_sequences()
    sequences = Sequences(
        item_index=np.concatenate(rows),
        offsets=np.cumsum([0, *map(len, rows)]),
        timestamps=None,
        user_ids=pa.array([str(user) for user in range(len(rows))]),
    )
    if args.variant not in ("", "default", "unscaled"):
        raise ValueError(f"unknown --variant {args.variant!r}: this library has 'default', 'unscaled' or none")
    peers_maths = {
        "intermediate_size": args.hidden_size,
        "hidden_act": "relu",
        "norm": "query",
        "attention_probs_dropout_prob": args.dropout,
    }
    config = SASRecConfig(
        num_items=data.num_items,
        max_length=args.max_length,
        hidden_size=args.hidden_size,
        num_hidden_layers=args.layers,
        num_attention_heads=args.heads,
        hidden_dropout_prob=args.dropout,
        scale_embeddings=args.variant != "unscaled",
        **({} if args.variant == "default" else peers_maths),
    )
    with tempfile.TemporaryDirectory() as folder:
        arguments = NextItemTrainingArguments(
            output_dir=folder,
            num_train_epochs=args.epochs,
            per_device_train_batch_size=args.batch_size,
            learning_rate=args.learning_rate,
            lr_scheduler_type="constant",
            seed=args.seed,
            use_cpu=True,
            eval_strategy="no",
            save_strategy="no",
            load_best_model_at_end=False,
            disable_tqdm=True,
        )
        trainer = NextItemTrainer(
            model=SASRecForSequentialRecommendation(config),
            args=arguments,
            train_dataset=sequences,
            callbacks=[Judge(progress)],
        )
        trainer.train()
    progress.report()


if __name__ == "__main__":
    main()
