"""Evaluation with this library: `RankingEvaluator` over an untrained SASRec, all or sampled candidates."""

import numpy as np
import pyarrow as pa
import ranking_clock
from common import Interactions

from hf_seqrec.data import EvaluationSet, Sequences, draw_candidates
from hf_seqrec.evaluation import Protocol, RankingEvaluator
from hf_seqrec.modeling import SASRecConfig, SASRecForSequentialRecommendation


def rows_and_items(args) -> tuple[EvaluationSet, int]:
    """The test rows of a data set, or of a random one: users with 51 items, the last of them the target."""
    if args.random_items:
        drawn = np.random.default_rng(0).integers(1, args.random_items + 1, (args.random_users, 51))
        offsets = np.arange(args.random_users + 1) * 51
        items, num_items = drawn.reshape(-1), args.random_items
    else:
        data = Interactions.read(args.data)
        offsets = np.concatenate([[0], np.cumsum(np.bincount(data.user))])
        items, num_items = data.item, data.num_items
    users = np.arange(len(offsets) - 1)
    sequences = Sequences(items, offsets, None, pa.array(users.astype(str)))
    return EvaluationSet.before(sequences, users, offsets[1:] - 1), num_items


def main() -> None:
    args = ranking_clock.arguments()
    rows, num_items = rows_and_items(args)
    config = SASRecConfig(
        num_items=num_items,
        max_length=args.max_length,
        hidden_size=args.hidden_size,
        intermediate_size=args.hidden_size,
        num_hidden_layers=args.layers,
        num_attention_heads=args.heads,
    )
    model = SASRecForSequentialRecommendation(config)
    candidates = draw_candidates(rows, num_items, args.candidates) if args.candidates else None
    protocol = Protocol(
        candidates=f"sampled{args.candidates}" if args.candidates else "full", exclude_seen=bool(args.exclude_seen)
    )
    ranking_clock.measure(
        lambda: (
            RankingEvaluator(rows, num_items, protocol, candidates=candidates, batch_size=args.batch_size or None)(
                model
            ).metrics
        ),
        len(rows),
        "hf-seqrec",
        args,
    )


if __name__ == "__main__":
    main()
