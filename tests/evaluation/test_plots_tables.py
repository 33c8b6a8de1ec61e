"""Pictures say what they show, and tables never mix what cannot be compared."""

import io
import re
import warnings
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from rich.console import Console

from hf_seqrec.evaluation import EvaluationRecord, Protocol
from hf_seqrec.evaluation.plots import plot_learning_curve, plot_metric_by_activity, plot_metric_by_cutoff
from hf_seqrec.evaluation.record import ROW_COLUMNS
from hf_seqrec.evaluation.tables import main, make_tables, print_table, read_records, results_page, to_markdown
from hf_seqrec.metrics import random_floor, ranking_metrics, ranking_scores


DATASET = "demo-world (simulated)"
LOG = [
    {"epoch": 1.0, "step": 10, "loss": 6.0},
    {"epoch": 1.0, "step": 10, "eval_ndcg@10": 0.10},
    {"epoch": 2.0, "step": 20, "loss": 5.5},
    {"epoch": 2.0, "step": 20, "eval_ndcg@10": 0.16},
    {"epoch": 3.0, "step": 30, "loss": 5.2},
    {"epoch": 3.0, "step": 30, "eval_ndcg@10": 0.15},
    {"train_runtime": 12.0, "epoch": 3.0},
]


def make_record(model="SASRec", seed=0, protocol=None, best_rank=0, **changes):
    """A record of 100 rows; row i has the rank `best_rank + i % 40` and a history of `5 + i // 10` items."""
    protocol = protocol or Protocol()
    ranks = best_rank + np.arange(100, dtype=np.float32) % 40
    metrics = ranking_metrics(ranks, protocol.cutoffs, suffix=protocol.suffix)
    rows = pa.Table.from_arrays(
        [
            pa.array([f"u{i}" for i in range(100)]),
            pa.array(["a"] * 100),
            pa.array(ranks),
            pa.array(5 + np.arange(100) // 10),
        ],
        schema=ROW_COLUMNS,
    )
    values = {
        "model": model,
        "config_hash": "0" * 16,
        "dataset": DATASET,
        "dataset_fingerprint": "f" * 16,
        "protocol": protocol,
        "metrics": metrics,
        "intervals": {name: [value - 0.01, value + 0.01] for name, value in metrics.items()},
        "floor": random_floor(1000, protocol.cutoffs, suffix=protocol.suffix),
        "num_rows": 100,
        "num_users": 100,
        "num_items": 1000,
        "targets_seen": 0,
        "seed": seed,
        "seconds": 0.5,
        "users_per_second": 200.0,
        "versions": {"hf_seqrec": "0.1.0", "torch": "2.11"},
        "candidates": None if protocol.num_negatives is None else {"sha256": "c" * 64},
        "rows": rows,
    }
    return EvaluationRecord(**values | changes)


def texts_of(figure):
    return [text.get_text() for axes in figure.axes for text in axes.texts] + [
        text.get_text() for text in figure.texts
    ]


# Pictures ---------------------------------------------------------------------------------------------------------------


def test_learning_curve_shows_loss_and_metric_and_marks_the_best_epoch():
    figure = plot_learning_curve(LOG, "SASRec", DATASET, Protocol(part="validation"))
    loss, metric = figure.axes
    assert loss.lines[0].get_xydata().tolist() == [[1, 6.0], [2, 5.5], [3, 5.2]]
    assert metric.lines[0].get_xydata().tolist() == [[1, 0.10], [2, 0.16], [3, 0.15]]
    assert metric.lines[1].get_xydata().tolist() == [[2, 0.16]]
    assert metric.get_title(loc="left") == "Validation NDCG@10"
    assert "best 0.1600 at epoch 2" in texts_of(figure)


@pytest.mark.parametrize("missing", ["loss", "eval_ndcg@10"])
def test_learning_curve_refuses_a_log_without_loss_or_metric(missing):
    log = [entry for entry in LOG if missing not in entry]
    with pytest.raises(ValueError, match=re.escape(f"no entry with 'epoch' and '{missing}'")):
        plot_learning_curve(log, "SASRec", DATASET, Protocol(part="validation"))


def test_metric_by_cutoff_draws_value_interval_and_random_order():
    records = [make_record("popularity", seed=None, best_rank=5), make_record("SASRec")]
    figure = plot_metric_by_cutoff(records, "ndcg")
    (axes,) = figure.axes
    floor, best, second = axes.lines[:3]
    assert floor.get_ydata().tolist() == [records[0].floor[f"ndcg@{k}"] for k in (5, 10, 20)]
    assert best.get_ydata().tolist() == [records[1].metrics[f"ndcg@{k}"] for k in (5, 10, 20)]
    assert second.get_ydata().tolist() == [records[0].metrics[f"ndcg@{k}"] for k in (5, 10, 20)]
    heights = axes.collections[0].get_paths()[0].vertices[:, 1]
    assert heights.min() == pytest.approx(records[1].intervals["ndcg@5"][0])
    assert heights.max() == pytest.approx(records[1].intervals["ndcg@20"][1])
    assert {"SASRec", "popularity", "random order"} <= set(texts_of(figure))


def test_metric_by_activity_averages_inside_buckets_of_history_length():
    record = make_record()
    figure = plot_metric_by_activity([record], "hr@10", num_buckets=2)
    (axes,) = figure.axes
    scores = ranking_scores(record.ranks, (10,))["hr@10"]
    short = record.history_lengths <= 9
    assert axes.lines[0].get_ydata().tolist() == [scores[short].mean(), scores[~short].mean()]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["5–9\n50 users", "10–14\n50 users"]
    for (_, low), (_, high) in axes.collections[0].get_segments():
        assert 0 < high - low < 0.5
    segments = [segment[:, 1] for segment in axes.collections[0].get_segments()]
    means = axes.lines[0].get_ydata()
    assert all(low < mean < high for (low, high), mean in zip(segments, means, strict=True))


def test_buckets_shrink_in_number_where_all_histories_are_equally_long():
    record = make_record()
    rows = record.rows.set_column(3, "history_length", pa.array(np.full(100, 7)))
    (axes,) = plot_metric_by_activity([replace(record, rows=rows)]).axes
    assert [label.get_text() for label in axes.get_xticklabels()] == ["7\n100 users"]


@pytest.mark.parametrize("draw", [plot_metric_by_cutoff, plot_metric_by_activity])
def test_titles_say_data_and_protocol(draw):
    sampled = Protocol(candidates="sampled99", exclude_seen=False)
    title = " ".join(texts_of(draw([make_record(protocol=sampled)])))
    assert "demo-world (simulated)" in title
    assert "1 + 99 sampled candidates" in title
    assert "seen items allowed" in title


@pytest.mark.parametrize("draw", [plot_metric_by_cutoff, plot_metric_by_activity])
@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"dataset": "ml-1m"}, "dataset"),
        ({"dataset_fingerprint": "e" * 16}, "dataset_fingerprint"),
        ({"protocol": Protocol(exclude_seen=False)}, "protocol"),
    ],
)
def test_a_picture_refuses_to_mix_data_or_protocols(draw, changes, named):
    with pytest.raises(ValueError, match=f"One picture needs one {named}"):
        draw([make_record(), make_record("GRU4Rec", **changes)])


@pytest.mark.parametrize("draw", [plot_metric_by_cutoff, plot_metric_by_activity])
def test_a_picture_refuses_no_records_and_unknown_metrics(draw):
    with pytest.raises(ValueError, match="`records` is empty"):
        draw([])
    with pytest.raises(ValueError, match="no ranking metric 'auc@"):
        draw([make_record()], "auc@10" if draw is plot_metric_by_activity else "auc")


def test_activity_needs_the_rows_of_a_record():
    with pytest.raises(ValueError, match="loaded without its rows"):
        plot_metric_by_activity([replace(make_record(), rows=None)])


@pytest.mark.parametrize("suffix", ["png", "svg", "pdf"])
def test_pictures_are_saved_whole_without_warnings(tmp_path, suffix):
    path = tmp_path / "plots" / f"picture.{suffix}"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plot_metric_by_cutoff([make_record(f"model {n}") for n in range(9)], path=path)
    start = {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}[suffix]
    assert path.read_bytes().startswith(start)
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_an_unknown_picture_format_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError, match=r"must end in .png, .svg or .pdf, got .*picture\.bmp"):
        plot_metric_by_cutoff([make_record()], path=tmp_path / "picture.bmp")
    assert list(tmp_path.iterdir()) == []


def test_names_beside_lines_that_end_together_do_not_overlap():
    records = [make_record(f"model {n}") for n in range(8)]
    (axes,) = plot_metric_by_cutoff(records).axes
    heights = sorted(text.get_position()[1] for text in axes.texts)
    assert min(np.diff(heights)) > 0.055
    assert heights[-1] <= 1.0


# Tables -----------------------------------------------------------------------------------------------------------------


def test_one_seed_shows_half_the_interval_and_several_the_standard_deviation():
    runs = [
        make_record(seed=seed, metrics=make_record().metrics | {"ndcg@10": v})
        for seed, v in enumerate([0.1, 0.2, 0.3])
    ]
    popularity = make_record("popularity", seed=None, metrics=make_record().metrics | {"ndcg@10": 0.05})
    popularity = replace(popularity, intervals={"ndcg@10": [0.03, 0.09]})
    (table,) = make_tables([popularity, *runs], ["ndcg@10"])
    assert [row.model for row in table.rows] == ["SASRec", "popularity"]
    assert str(table.rows[0].cells[0]) == "0.2000 ± 0.1000"
    assert str(table.rows[1].cells[0]) == "0.0500 ± 0.0300"
    text = to_markdown([popularity, *runs], ["ndcg@10"])
    assert "| SASRec | **0.2000** ± 0.1000 | 3 |" in text
    assert "| popularity | 0.0500 ± 0.0300 | – |" in text
    assert "| *random order* | 0.0045 | |" in text


def test_what_cannot_be_compared_stands_in_separate_tables():
    sampled = Protocol(candidates="sampled99")
    records = [
        make_record(),
        make_record(protocol=Protocol(exclude_seen=False)),
        make_record(protocol=Protocol(part="validation")),
        make_record(protocol=sampled),
        make_record(protocol=sampled, candidates={"sha256": "d" * 64}),
        make_record(dataset_fingerprint="e" * 16),
        make_record(dataset="another"),
    ]
    tables = make_tables(reversed(records))
    assert len(tables) == 7
    assert [table.dataset for table in tables] == ["another"] + [DATASET] * 6
    of_main = [table.protocol.describe() for table in tables if table.dataset_fingerprint == "f" * 16][1:]
    assert [("sampled" in text, "validation" in text, "allowed" in text) for text in of_main] == [
        (False, False, False),
        (False, False, True),
        (False, True, False),
        (True, False, False),
        (True, False, False),
    ]
    assert tables[-1].metrics == ("ndcg@10/sampled99", "hr@10/sampled99", "mrr@10/sampled99")


def test_the_protocol_is_printed_once_above_a_table():
    out = io.StringIO()
    records = [make_record(), make_record("GRU4Rec [small]", best_rank=3)]
    print_table(records, console=Console(file=out, width=100))
    text = out.getvalue()
    assert text.count(Protocol().describe()) == text.count(DATASET) == 1
    lines = [line.split() for line in text.splitlines()]
    assert lines[2] == ["model", "ndcg@10", "hr@10", "mrr@10", "seeds"]
    assert lines[3][:3] == ["SASRec", f"{records[0].metrics['ndcg@10']:.4f}", "±"]
    assert lines[4][:2] == ["GRU4Rec", "[small]"]
    assert lines[5][:3] == ["random", "order", "0.0045"]


@pytest.mark.parametrize(
    ("records", "error"),
    [
        ([], "There is no record"),
        ([make_record(seed=1), make_record(seed=1)], r"SASRec has two records with the same seed .* seeds \(1, 1\)"),
        ([make_record(seed=1), make_record(seed=2, config_hash="1" * 16)], "different configurations"),
        ([make_record(metrics={"ndcg@10": 0.1})], r"no metric 'hr@10'; it has \['ndcg@10'\]"),
    ],
)
def test_records_that_cannot_share_a_table_are_refused(records, error):
    with pytest.raises(ValueError, match=error):
        make_tables(records)


def test_the_results_page_is_made_from_a_folder_of_records(tmp_path, capsys):
    make_record().save(tmp_path / "records" / "demo" / "sasrec.json")
    make_record(protocol=Protocol(exclude_seen=False)).save(tmp_path / "records" / "demo" / "sasrec-unmasked.json")
    make_record(dataset="ml|1m").save(tmp_path / "records" / "ml.json")
    (tmp_path / "records" / "demo" / "sasrec.ranks.parquet").unlink()  # a table does without the ranks
    main([str(tmp_path / "records"), str(tmp_path / "docs" / "results.md")])
    assert "3 records" in capsys.readouterr().out
    page = (tmp_path / "docs" / "results.md").read_text(encoding="utf-8")
    assert page.splitlines()[0].startswith("<!-- Generated, do not edit.")
    assert f"python -m hf_seqrec.evaluation.tables {tmp_path / 'records'} {tmp_path / 'docs' / 'results.md'}" in page
    assert [line for line in page.splitlines() if line.startswith("#")] == [
        "# Results",
        "## demo-world (simulated)",
        f"### {Protocol().describe()}",
        f"### {Protocol(exclude_seen=False).describe()}",
        "## ml\\|1m",
        f"### {Protocol().describe()}",
    ]
    assert page == results_page(
        iter(read_records(tmp_path / "records")),
        command=f"python -m hf_seqrec.evaluation.tables {tmp_path / 'records'} {tmp_path / 'docs' / 'results.md'}",
    )


def test_a_page_with_reduced_runs_says_so():
    whole, reduced = make_record(), make_record(model="GRU4Rec", notes={"reduced": "100 test users"})
    assert "reduced runs" not in results_page([whole])
    assert "**With reduced runs:**" in results_page([whole, reduced])


def test_a_folder_without_records_is_refused_and_the_page_left_alone(tmp_path):
    page = tmp_path / "results.md"
    page.write_text("old")
    with pytest.raises(NotADirectoryError, match="no folder"):
        main([str(tmp_path / "nowhere"), str(page)])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"holds no \.json file"):
        main([str(tmp_path / "empty"), str(page)])
    (tmp_path / "empty" / "log.json").write_text("{}")
    with pytest.raises(ValueError, match="no record of an evaluation"):
        main([str(tmp_path / "empty"), str(page)])
    assert page.read_text() == "old"
