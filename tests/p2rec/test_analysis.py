"""Gains by activity are paired means over users and seeds, and the cost of the LLM is what the LLM really reads."""

import dataclasses

import numpy as np
import pyarrow as pa
import pytest
import torch

from hf_seqrec.data import Sequences, leave_one_out
from hf_seqrec.evaluation import EvaluationRecord, Protocol
from hf_seqrec.evaluation.gains import gain_by_activity, gains_table, plot_gains
from hf_seqrec.evaluation.record import ROW_COLUMNS
from hf_seqrec.modeling import E4SRecForSequentialRecommendation, P2RecModel
from hf_seqrec.preference_cost import compare_cost


LENGTHS = [2, 2, 2, 5, 5, 9]


def record(ranks, seed=0, model="SASRec", **changes):
    users = [f"u{n}" for n in range(len(ranks))]
    rows = pa.Table.from_arrays(
        [pa.array(users), pa.array(["i1"] * len(ranks)), pa.array(ranks, pa.float32()), pa.array(LENGTHS, pa.int64())],
        schema=ROW_COLUMNS,
    )
    one = EvaluationRecord(
        model=model, config_hash=None, dataset="films", dataset_fingerprint="f", protocol=Protocol(cutoffs=(10,)), metrics={},
        intervals={}, floor={}, num_rows=len(ranks), num_users=len(ranks), num_items=50, targets_seen=0, seed=seed, seconds=1.0,
        users_per_second=1.0, versions={}, rows=rows,
    )  # fmt: skip
    return dataclasses.replace(one, **changes)


def test_gains_are_paired_means_by_length_averaged_over_seeds(tmp_path):
    base = [record([0, 40, 40, 0, 40, 40]), record([0, 40, 40, 40, 40, 40], seed=1)]
    # Given in another order: runs of one seed need not stand at the same place.
    other = [
        record([0, 0, 40, 40, 40, 0], 1, "SASRec + P2Rec"),
        record([0, 40, 40, 40, 40, 0], 0, "SASRec + P2Rec"),
    ]
    gains = gain_by_activity(base, other, "hr@10", num_groups=3)
    assert (gains.base, gains.other, gains.seeds) == ("SASRec", "SASRec + P2Rec", 2)
    assert [(one.shortest, one.longest, one.num_users) for one in gains.groups] == [(2, 2, 3), (5, 5, 2), (9, 9, 1)]
    # By user: 0, +1/2, 0, -1/2, 0, +1.
    assert [one.difference for one in gains.groups] == pytest.approx([0.5 / 3, -0.25, 1.0])
    assert gains.total.difference == pytest.approx(1 / 6)
    assert (gains.total.base, gains.total.other) == pytest.approx((1.5 / 6, 2.5 / 6))
    assert gains.total.relative == pytest.approx(2 / 3)
    assert gains.total.low < gains.total.difference < gains.total.high
    assert gains.groups[1].low == pytest.approx(-0.5)
    assert gains_table([gains]).row_count == 4
    plot_gains([gains], tmp_path / "gains.png")
    assert (tmp_path / "gains.png").stat().st_size > 1000
    same = gain_by_activity(base, [dataclasses.replace(one, model="twin") for one in base])
    assert (same.total.difference, same.total.low, same.total.high) == (0, 0, 0)


def test_records_that_do_not_belong_together_are_refused():
    one, two = record([0, 1, 2, 3, 4, 5]), record([0, 1, 2, 3, 4, 5], seed=1)
    for base, other, message in (
        ([], [], "as many runs"),
        ([one], [one, two], "as many runs"),
        ([one], [two], "the seeds differ"),
        ([one, one], [one, one], "differ by their seed alone"),
        ([one], [dataclasses.replace(one, dataset_fingerprint="g")], "dataset_fingerprint"),
        ([one], [dataclasses.replace(one, protocol=Protocol(cutoffs=(10,), exclude_seen=False))], "exclude_seen"),
    ):
        with pytest.raises(ValueError, match=message):
            gain_by_activity(base, other)
    with pytest.raises(ValueError, match="a name with a cut-off"):
        gain_by_activity([one], [one], "ndcg")


@pytest.mark.parametrize("titles", [False, True])
def test_counted_calls_and_tokens_are_what_the_llm_reads(llm_folders, item_table, sequences, catalogue, titles):
    train = leave_one_out(sequences).train
    options = {"max_length": 3, "lora": {"r": 2, "target_modules": "all-linear"}}
    model = P2RecModel.from_parts(llm_folders["bert"], item_table, catalogue, num_groups=3, titles=titles, **options)
    p2rec, e4srec = compare_cost(model, train, sample=3, batch_size=2, progress=False)
    assert p2rec.calls_per_epoch == int((train.lengths >= 1).sum())
    assert e4srec.calls_per_epoch == int(np.maximum(train.lengths - 1, 0).sum())
    assert (p2rec.inference_calls, e4srec.inference_calls) == (12, p2rec.calls_per_epoch)

    def tokens(one, rows):
        before = one.encoder.tokens_seen
        with torch.no_grad():
            for row in rows:  # alone, so that there is no padding
                one.read(torch.tensor(np.asarray(row)[None].astype(np.int64)))
        return one.encoder.tokens_seen - before

    users = [train[user] for user in range(len(train)) if train.lengths[user]]
    assert tokens(model, [[item] for item in range(1, 13)]) == p2rec.inference_tokens
    if not titles:  # with titles, lengths of other rows are counted by their mean
        assert tokens(model, users) == p2rec.tokens_per_epoch
        other = E4SRecForSequentialRecommendation.from_parts(llm_folders["bert"], item_table, **options)
        prefixes = [items[:count] for items in users for count in range(1, len(items))]
        assert tokens(other, prefixes) == e4srec.tokens_per_epoch
        assert tokens(other, users) == e4srec.inference_tokens
    assert (
        min(p2rec.seconds_per_epoch, e4srec.seconds_per_epoch, p2rec.inference_seconds, e4srec.inference_seconds) > 0
    )
    alone = Sequences(np.array([1, 2]), np.array([0, 1, 2]), None, pa.array(["a", "b"]))
    with pytest.raises(ValueError, match="nothing to train on"):
        compare_cost(model, alone, progress=False)
