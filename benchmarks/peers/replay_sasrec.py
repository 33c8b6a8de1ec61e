"""SASRec with RePlay: `SasRec.from_params` (full cross-entropy) over `ParquetModule`, trained through Lightning.

`--variant bucketed` wraps the encoder in the library's own `LengthBucketedQueryEncoder`.
"""

import tempfile
from pathlib import Path

import common
import lightning
import pyarrow as pa
import pyarrow.parquet as pq
from replay.data import FeatureHint, FeatureSource, FeatureType
from replay.data.nn import ParquetModule, TensorFeatureInfo, TensorFeatureSource, TensorSchema
from replay.nn.lightning import LightningModule
from replay.nn.lightning.optimizer import OptimizerFactory
from replay.nn.sequential import SasRec
from replay.nn.sequential.length_bucket import LengthBucketedQueryEncoder
from replay.nn.transform.template import make_default_sasrec_transforms


class Judge(lightning.Callback):
    """Hands the model to the judge after every epoch. The library numbers items from 0 and pads with the item count."""

    def __init__(self, progress: common.Progress):
        self.progress = progress

    def on_train_start(self, trainer, module):
        """Start the clock."""
        self.progress.start()

    def on_train_epoch_end(self, trainer, module):
        """Stop the clock, judge, go on or stop."""
        model, padding = module.model, self.progress.data.num_items

        def score(histories):
            items = common.left_padded([history - 1 for history in histories], self.progress.args.max_length, padding)
            logits = model(feature_tensors={"item_id": items}, padding_mask=items != padding)["logits"]
            # Column 0 is nobody's, as in the numbering from 1 of the judge.
            return logits.new_zeros(len(histories), padding + 1).index_copy(
                1, common.torch.arange(1, padding + 1), logits[:, :padding]
            )

        model.eval()
        trainer.should_stop = self.progress.epoch_done(score, trainer.save_checkpoint)
        model.train()


def main() -> None:
    args = common.arguments()
    lightning.seed_everything(args.seed)
    data = common.Interactions.read(args.data)
    progress = common.Progress(args, data, "replay-rec")
    schema = TensorSchema(
        TensorFeatureInfo(
            "item_id",
            is_seq=True,
            feature_type=FeatureType.CATEGORICAL,
            feature_hint=FeatureHint.ITEM_ID,
            feature_sources=[TensorFeatureSource(FeatureSource.INTERACTIONS, "item_id")],
            cardinality=data.num_items,
            padding_value=data.num_items,
            embedding_dim=args.hidden_size,
        )
    )
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "train.parquet")
        sequences = [sequence - 1 for sequence in data.train_sequences()]
        pq.write_table(pa.table({"item_id": pa.array(sequences, pa.list_(pa.int64()))}), path)
        module = ParquetModule(
            batch_size=args.batch_size,
            # One more than the model sees, because the next item is the label.
            metadata={"train": {"item_id": {"shape": args.max_length + 1, "padding": data.num_items}}},
            transforms=make_default_sasrec_transforms(schema),
            train_path=path,
        )
        model = SasRec.from_params(
            schema,
            embedding_dim=args.hidden_size,
            num_heads=args.heads,
            num_blocks=args.layers,
            max_sequence_length=args.max_length,
            dropout=args.dropout,
        )
        if args.variant == "bucketed":
            model.body.encoder = LengthBucketedQueryEncoder(model.body.encoder, bucket_size=16)
        elif args.variant:
            raise ValueError(f"unknown --variant {args.variant!r}: this library has 'bucketed' or none")
        trainer = lightning.Trainer(
            max_epochs=args.epochs, accelerator="cpu", devices=1, callbacks=[Judge(progress)], limit_val_batches=0,
            logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip
        optimizer = OptimizerFactory(learning_rate=args.learning_rate)
        module_of_model = LightningModule(model, optimizer_factory=optimizer)
        trainer.fit(module_of_model, datamodule=module, ckpt_path=progress.checkpoint, weights_only=False)
    progress.report()


if __name__ == "__main__":
    main()
