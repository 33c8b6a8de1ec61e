"""Evaluation with RecTools: `recommend` for every user, then its own metrics. Masked or not; it has no sampled candidates."""

import numpy as np
import pandas as pd
import ranking_clock
from common import Interactions
from pytorch_lightning import Trainer
from rectools import Columns
from rectools.dataset import Dataset
from rectools.metrics import MRR, NDCG, HitRate, calc_metrics
from rectools.models import SASRecModel


CUTOFFS = (5, 10, 20)


def main() -> None:
    args = ranking_clock.arguments()
    if args.candidates or args.random_items:
        raise SystemExit("RecTools ranks whole catalogues of real data only")
    data = Interactions.read(args.data)
    rows = pd.DataFrame({Columns.User: data.user, Columns.Item: data.item, Columns.Weight: 1.0})
    # One second per row keeps the given order inside a user.
    rows[Columns.Datetime] = pd.Timestamp(0) + pd.to_timedelta(np.arange(len(rows)), unit="s")
    history, test = rows[data.part < 2], rows[data.part == 2]

    def trainer() -> Trainer:
        # One batch: the weights do not matter, but a model must be fitted before it recommends.
        return Trainer(
            max_epochs=1, limit_train_batches=1, accelerator="cpu", devices=1,
            logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip

    model = SASRecModel(
        n_blocks=args.layers,
        n_heads=args.heads,
        n_factors=args.hidden_size,
        session_max_len=args.max_length,
        loss="softmax",
        batch_size=8,
        **({"recommend_batch_size": args.batch_size} if args.batch_size else {}),
        get_trainer_func=trainer,
    )
    dataset = Dataset.construct(history)
    model.fit(dataset)
    metrics = {
        f"{name}@{k}": kind(k=k) for name, kind in (("hr", HitRate), ("ndcg", NDCG), ("mrr", MRR)) for k in CUTOFFS
    }
    users = test[Columns.User].to_numpy()

    def evaluate() -> dict[str, float]:
        lists = model.recommend(users, dataset, k=max(CUTOFFS), filter_viewed=bool(args.exclude_seen))
        return calc_metrics(metrics, lists, interactions=test)

    ranking_clock.measure(evaluate, len(users), "rectools", args)


if __name__ == "__main__":
    main()
