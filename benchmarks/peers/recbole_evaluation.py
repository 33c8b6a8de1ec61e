"""Evaluation with RecBole: its `Trainer.evaluate` over an untrained SASRec, unmasked as its sequential evaluation always is."""

import os
import tempfile
from pathlib import Path

import numpy as np
import ranking_clock
import torch
from common import Interactions
from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from recbole.model.sequential_recommender import SASRec
from recbole.trainer import Trainer
from recbole.utils import init_seed


def main() -> None:
    args = ranking_clock.arguments()
    if args.exclude_seen or args.random_items:
        raise SystemExit("RecBole's sequential evaluation does not mask the history, and real data only")
    data = Interactions.read(args.data)
    with tempfile.TemporaryDirectory() as folder:
        name = "benchmark"
        (Path(folder) / name).mkdir()
        # Row numbers serve as time; the library cuts off the last two rows of every user itself.
        table = np.stack([data.user, data.item, np.arange(len(data.user))], axis=1)
        header = "user_id:token\titem_id:token\ttimestamp:float"
        np.savetxt(Path(folder) / name / f"{name}.inter", table, fmt="%d", delimiter="\t", header=header, comments="")
        os.chdir(folder)  # logs and checkpoints go beside the data
        settings = {
            "data_path": folder,
            "checkpoint_dir": folder,
            "use_gpu": False,
            "seed": 0,
            "state": "ERROR",
            "show_progress": False,
            "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
            "MAX_ITEM_LIST_LENGTH": args.max_length,
            "n_layers": args.layers,
            "n_heads": args.heads,
            "hidden_size": args.hidden_size,
            "inner_size": args.hidden_size,
            "loss_type": "CE",
            "train_neg_sample_args": None,
            "metrics": ["Hit", "NDCG", "MRR"],
            "topk": [5, 10, 20],
            "valid_metric": "NDCG@10",
            "eval_args": {
                "split": {"LS": "valid_and_test"},
                "order": "TO",
                "group_by": "user",
                "mode": f"uni{args.candidates}" if args.candidates else "full",
            },
        }
        if args.batch_size:
            settings["eval_batch_size"] = args.batch_size
        config = Config(model="SASRec", dataset=name, config_dict=settings)
        init_seed(config["seed"], config["reproducibility"])
        torch.set_num_threads(args.threads)
        train_data, _, test_data = data_preparation(config, create_dataset(config))
        trainer = Trainer(config, SASRec(config, train_data.dataset))
        ranking_clock.measure(
            lambda: trainer.evaluate(test_data, load_best_model=False),
            int((data.part == 2).sum()),
            "recbole",
            args,
        )


if __name__ == "__main__":
    main()
