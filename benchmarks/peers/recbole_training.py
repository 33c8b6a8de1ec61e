"""SASRec with RecBole: its own prefix rows (one row per training position) and its own trainer.

`--variant gru4rec` trains its GRU4Rec instead, with the sizes and the dropout of its own settings file.
"""

import os
import tempfile
from pathlib import Path

import common
import numpy as np
import torch
from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from recbole.trainer import Trainer
from recbole.utils import get_model, init_seed


MODELS = {"": "SASRec", "gru4rec": "GRU4Rec"}


class JudgedTrainer(Trainer):
    """The library's trainer with the common judge in place of its unmasked validation."""

    def __init__(self, config, model, dataset, progress: common.Progress):
        super().__init__(config, model)
        self.progress = progress
        # The library numbers items itself; `number[item]` is its number, 0 where it has none.
        tokens = dataset.field2id_token[dataset.iid_field][1:].astype(np.int64)
        self.number = np.zeros(progress.data.num_items + 1, dtype=np.int64)
        self.number[tokens] = np.arange(1, len(tokens) + 1)

    def _valid_epoch(self, valid_data, show_progress=False):
        length = self.progress.args.max_length

        def score(histories):
            histories = [self.number[history][-length:] for history in histories]
            # This library pads on the right.
            items = torch.from_numpy(np.stack([np.pad(h, (0, length - len(h))) for h in histories]))
            lengths = torch.tensor([len(history) for history in histories])
            user = self.model.forward(items, lengths)
            scores = user @ self.model.item_embedding.weight.T
            return torch.where(torch.from_numpy(self.number > 0), scores[:, self.number], -torch.inf)

        self.model.eval()
        if self.progress.epoch_done(score):
            self.cur_step = self.stopping_step
        value = self.progress.epochs[-1]["ndcg@10"]
        return value, {"ndcg@10": value}


def main() -> None:
    args = common.arguments()
    if args.variant not in MODELS:
        raise ValueError(f"unknown --variant {args.variant!r}: choose one of {', '.join(map(repr, MODELS))}")
    name_of_model = MODELS[args.variant]
    data = common.Interactions.read(args.data)
    progress = common.Progress(args, data, "recbole")
    with tempfile.TemporaryDirectory() as folder:
        name = "benchmark"
        (Path(folder) / name).mkdir()
        # All parts are given; the library cuts off the last two rows of every user itself. Row numbers serve as time.
        table = np.stack([data.user, data.item, np.arange(len(data.user))], axis=1)
        header = "user_id:token\titem_id:token\ttimestamp:float"
        np.savetxt(Path(folder) / name / f"{name}.inter", table, fmt="%d", delimiter="\t", header=header, comments="")
        os.chdir(folder)  # logs and checkpoints go beside the data
        settings = {
            "data_path": folder,
            "checkpoint_dir": folder,
            "use_gpu": False,
            "seed": args.seed,
            "state": "ERROR",
            "show_progress": False,
            "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
            "MAX_ITEM_LIST_LENGTH": args.max_length,
            "loss_type": "CE",
            "train_neg_sample_args": None,
            "learning_rate": args.learning_rate,
            "train_batch_size": args.batch_size,
            "epochs": args.epochs,
            "stopping_step": args.epochs,
            "eval_args": {"split": {"LS": "valid_and_test"}, "order": "TO", "group_by": "user", "mode": "full"},
        }
        if name_of_model == "SASRec":
            settings |= {
                "n_layers": args.layers,
                "n_heads": args.heads,
                "hidden_size": args.hidden_size,
                "inner_size": args.hidden_size,
                "hidden_dropout_prob": args.dropout,
                "attn_dropout_prob": args.dropout,
            }
        config = Config(model=name_of_model, dataset=name, config_dict=settings)
        init_seed(config["seed"], config["reproducibility"])
        torch.set_num_threads(args.threads)
        dataset = create_dataset(config)
        train_data, valid_data, _ = data_preparation(config, dataset)
        model = get_model(name_of_model)(config, train_data.dataset)
        trainer = JudgedTrainer(config, model, dataset, progress)
        progress.start()
        trainer.fit(train_data, valid_data, verbose=False, saved=False)
    progress.report()


if __name__ == "__main__":
    main()
