"""Two records are compared only where that means something, and then as the statistics books say."""

import dataclasses
import json

import numpy as np
import pyarrow as pa
import pytest
from scipy import stats

from hf_seqrec.data import draw_candidates
from hf_seqrec.evaluation import compare_records, randomisation_test
from hf_seqrec.metrics import ranking_scores
from hf_seqrec.scripts import compare


def with_ranks(record, ranks):
    column = pa.array(np.asarray(ranks, dtype=np.float32))
    return dataclasses.replace(record, rows=record.rows.set_column(2, "rank", column))


def test_a_comparison_has_the_difference_its_interval_and_both_tests(make_record):
    first, second = make_record(0), make_record(1)
    comparison = compare_records(first, second, "ndcg@10")
    a, b = (ranking_scores(record.ranks, [10])["ndcg@10"] for record in (first, second))
    assert comparison.first == pytest.approx(first.metrics["ndcg@10"])
    assert comparison.difference == pytest.approx((b - a).mean())
    assert comparison.relative_gain == pytest.approx((b - a).mean() / a.mean())
    assert comparison.p_wilcoxon == pytest.approx(stats.wilcoxon(b - a, method="asymptotic").pvalue)
    assert (comparison.num_better, comparison.num_worse) == ((b > a).sum(), (b < a).sum())
    spread = 1.96 * (b - a).std() / np.sqrt(len(a))
    assert comparison.low == pytest.approx(comparison.difference - spread, abs=0.25 * spread)
    assert comparison.high == pytest.approx(comparison.difference + spread, abs=0.25 * spread)


@pytest.mark.parametrize("discrete", [True, False])
def test_the_randomisation_test_agrees_with_scipy(discrete):
    rng = np.random.default_rng(0)
    difference = rng.normal(0.1, 1, 60)
    if discrete:
        difference = np.round(difference)
    scipy_test = stats.permutation_test(
        (difference,), np.sum, permutation_type="samples", n_resamples=20_000, rng=np.random.default_rng(1)
    )
    assert randomisation_test(difference, 20_000) == pytest.approx(scipy_test.pvalue, abs=0.012)
    assert 0.01 < scipy_test.pvalue < 0.5


def test_equal_records_are_not_different(make_record):
    comparison = compare_records(make_record(0), make_record(0))
    assert (comparison.difference, comparison.low, comparison.high) == (0, 0, 0)
    assert comparison.p_randomisation == comparison.p_wilcoxon == 1.0


def test_a_clear_gain_is_found_and_its_mirror_has_the_mirrored_interval(make_record):
    first = make_record(0)
    second = with_ranks(first, np.maximum(first.ranks - 25, 0))
    there, back = compare_records(first, second, "hr@10"), compare_records(second, first, "hr@10")
    assert there.low > 0
    assert there.p_randomisation < 0.01
    assert there.p_wilcoxon < 0.01
    assert (there.num_worse, back.num_better) == (0, 0)
    assert (there.low, there.high) == pytest.approx((-back.high, -back.low))


def test_a_gain_over_nothing_has_no_relative_size(make_record):
    record = make_record(0)
    comparison = compare_records(with_ranks(record, np.full(37, 50)), with_ranks(record, np.zeros(37)))
    assert (comparison.first, comparison.second, comparison.relative_gain) == (0, 1, None)


def test_rows_of_one_user_count_as_one_observation(make_record):
    first = make_record(0)
    second = with_ranks(first, np.maximum(first.ranks - 2, 0))
    one_user = pa.array([f"u{row // 6}" for row in range(37)])
    grouped = [dataclasses.replace(r, rows=r.rows.set_column(0, "user_id", one_user)) for r in (first, second)]
    alone, together = compare_records(first, second), compare_records(*grouped)
    assert (alone.num_users, together.num_users) == (37, 7)
    assert together.difference == pytest.approx(alone.difference)
    assert together.p_randomisation > alone.p_randomisation


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"exclude_seen": False}, r"protocol\.exclude_seen: True and False"),
        ({"split": "user_ratio"}, r"protocol\.split: 'leave_one_out' and 'user_ratio'"),
    ],
)
def test_records_of_other_protocols_are_refused_naming_the_field(make_record, change, message):
    with pytest.raises(ValueError, match=message):
        compare_records(make_record(), make_record(**change))


def test_records_of_full_and_sampled_ranking_or_other_candidates_are_refused(make_record, rows):
    sampled = [make_record(candidates=draw_candidates(rows, 60, num_negatives=9, seed=seed)) for seed in (0, 1)]
    with pytest.raises(ValueError, match=r"protocol\.candidates: 'full' and 'sampled9'"):
        compare_records(make_record(), sampled[0])
    with pytest.raises(ValueError, match="differ in candidates"):
        compare_records(*sampled)
    assert compare_records(sampled[0], sampled[0], "hr@5/sampled9").metric == "hr@5/sampled9"
    assert compare_records(sampled[0], sampled[0], "hr@5").metric == "hr@5/sampled9"


def test_records_of_other_data_users_or_targets_are_refused(make_record, rows):
    record = make_record()
    with pytest.raises(ValueError, match="dataset_fingerprint"):
        compare_records(record, dataclasses.replace(record, dataset_fingerprint="other"))
    with pytest.raises(ValueError, match="37 and 36 rows"):
        compare_records(record, make_record(rows=rows.subset(np.arange(36))))
    with pytest.raises(ValueError, match=r"user_id from row 0 on: 'u100' and 'u136'"):
        compare_records(record, make_record(rows=rows.subset(np.arange(37)[::-1])))
    items = pa.array(["i0", *record.rows["item_id"].to_pylist()[1:]])
    other = dataclasses.replace(record, rows=record.rows.set_column(1, "item_id", items))
    with pytest.raises(ValueError, match="item_id from row 0"):
        compare_records(record, other)


def test_other_cutoffs_do_not_matter_but_the_name_must_be_a_metric(make_record):
    assert compare_records(make_record(cutoffs=(5,)), make_record(1, cutoffs=(10,)), "ndcg@7").metric == "ndcg@7"
    for name in ("ndcg", "ndcg@0", "ndcg@10/sampled99"):
        with pytest.raises(ValueError, match="name with a cut-off"):
            compare_records(make_record(), make_record(), name)
    with pytest.raises(ValueError, match="Unknown metrics"):
        compare_records(make_record(), make_record(), "hit@10")


def test_the_command_prints_a_table_and_writes_json(make_record, tmp_path, capsys):
    paths = [str(make_record(seed, seed=seed).save(tmp_path / f"{seed}.json")) for seed in (0, 1)]
    output = tmp_path / "comparison.json"
    arguments = [*paths, "--metric", "ndcg@10", "--output", str(output), "--num_resamples", "200"]
    compare.main(compare.make_parser().parse_args(arguments))
    printed = capsys.readouterr().out
    assert "full ranking" in printed
    assert "ndcg@10" in printed
    report = json.loads(output.read_text())
    assert [c["metric"] for c in report["comparisons"]] == ["ndcg@10"]
    assert report["comparisons"][0]["difference"] != 0
    assert (report["first"]["seed"], report["second"]["seed"]) == (0, 1)
    compare.main(compare.make_parser().parse_args([*paths, "--num_resamples", "200"]))
    assert "mrr@5" in capsys.readouterr().out


def test_the_command_fits_into_a_parent_command():
    import argparse

    parser = argparse.ArgumentParser()
    compare.make_parser(parser.add_subparsers(dest="command"))
    args = parser.parse_args(["compare", "a.json", "b.json"])
    assert (args.command, str(args.first), args.metrics) == ("compare", "a.json", None)
