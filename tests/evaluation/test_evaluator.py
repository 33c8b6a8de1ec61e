"""Ranks are those of the definition, whatever the chunking, masking, batch size or kind of model."""

import dataclasses
import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch

from hf_seqrec.evaluation import Protocol, RankingEvaluator, bootstrap_intervals
from hf_seqrec.metrics import ranking_metrics, ranking_scores


_spec = importlib.util.spec_from_file_location("evaluation_world", Path(__file__).with_name("conftest.py"))
world = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(world)
NUM_ITEMS, DotModel, ScoreModel = world.NUM_ITEMS, world.DotModel, world.ScoreModel
make_rows, brute_force_ranks = world.make_rows, world.brute_force_ranks


def evaluate(rows, model, num_items=NUM_ITEMS, exclude_seen=True, candidates=None, cutoffs=(1, 5, 10), **options):
    kind = "full" if candidates is None else f"sampled{candidates.shape[1] - 1}"
    protocol = Protocol(exclude_seen=exclude_seen, candidates=kind, cutoffs=cutoffs)
    return RankingEvaluator(rows, num_items, protocol, candidates=candidates, **options)(model)


def draw(rows, num_negatives=9, num_items=NUM_ITEMS, seed=0):
    rng = np.random.default_rng(seed)
    table = np.empty((len(rows), 1 + num_negatives), dtype=np.int32)
    for i in range(len(rows)):
        allowed = np.setdiff1d(np.arange(1, num_items + 1), [*rows.history(i), rows.target[i]])
        table[i] = [rows.target[i], *rng.choice(allowed, num_negatives, replace=False)]
    return table


def all_scores(rows, model, max_length=None):
    """Scores of every row one by one, without padding and without batching."""
    model.eval()
    with torch.inference_mode():
        histories = [rows.history(i)[-max_length if max_length else 0 :].astype(np.int64) for i in range(len(rows))]
        return np.stack([model.all_scores(torch.from_numpy(h)[None])[0].numpy() for h in histories])


@pytest.mark.parametrize("exclude_seen", [True, False])
@pytest.mark.parametrize("batch_size", [1, 5, 256])
def test_ranks_of_a_dot_product_model_are_those_of_the_definition(rows, exclude_seen, batch_size):
    model = DotModel(bias=True)
    result = evaluate(rows, model, exclude_seen=exclude_seen, batch_size=batch_size)
    expected = brute_force_ranks(rows, all_scores(rows, model), exclude_seen)
    assert result.ranks.dtype == np.float32
    np.testing.assert_array_equal(result.ranks, expected)
    assert result.metrics == ranking_metrics(expected, (1, 5, 10))
    assert len(np.unique(expected)) > 10


@pytest.mark.parametrize("exclude_seen", [True, False])
def test_ties_take_the_middle_place_in_a_model_that_only_scores(rows, exclude_seen):
    scores = np.random.default_rng(0).integers(0, 4, (len(rows), NUM_ITEMS + 1))  # four levels: ties everywhere
    result = evaluate(rows, ScoreModel(rows, scores), exclude_seen=exclude_seen)
    np.testing.assert_array_equal(result.ranks, brute_force_ranks(rows, scores, exclude_seen))
    assert (result.ranks % 1 == 0.5).any()


@pytest.mark.parametrize("item_chunk", [1, 7, 16, 60, 61])
@pytest.mark.parametrize("ties", [True, False])
def test_chunks_of_items_give_bitwise_the_same_ranks_and_lists(rows, item_chunk, ties):
    model = DotModel(bias=True)
    if ties:  # pairs of equal items that stand in different chunks
        with torch.no_grad():
            model.table[31:] = model.table[1:31]
            model.bias[31:] = model.bias[1:31]
    whole = evaluate(rows, model, beyond_accuracy=True)
    chunked = evaluate(rows, model, beyond_accuracy=True, item_chunk=item_chunk)
    np.testing.assert_array_equal(chunked.ranks, whole.ranks)
    assert bool((whole.ranks % 1 == 0.5).any()) is ties
    if not ties:  # among equal items any order is right
        np.testing.assert_array_equal(chunked.recommended, whole.recommended)


def test_a_target_score_that_rounds_differently_alone_is_replaced_by_the_one_in_its_chunk(rows, monkeypatch):
    from hf_seqrec.evaluation.evaluator import _DotProduct

    whole = evaluate(rows, DotModel())
    product, passes = _DotProduct._product, []

    def noisy(self, users, items, bias, buffer=None):
        passes.append(buffer is None)
        return product(self, users, items, bias, buffer) + (0.05 if buffer is None else 0.0)

    monkeypatch.setattr(_DotProduct, "_product", noisy)
    np.testing.assert_array_equal(evaluate(rows, DotModel(), item_chunk=20).ranks, whole.ranks)
    assert passes == [True] + [False] * 8  # the wrong guess, then two passes over four chunks


def test_all_scores_equal_gives_the_middle_of_the_allowed_items(rows):
    model = DotModel(dim=64)
    with torch.no_grad():
        model.table[:] = model.table[0]
    for batch_size in (1, 3, 64):
        allowed = NUM_ITEMS - (rows.stop - rows.start)
        result = evaluate(rows, model, batch_size=batch_size)
        np.testing.assert_array_equal(result.ranks, (allowed - 1) / 2)
        np.testing.assert_array_equal(result.num_ranked, allowed)
        np.testing.assert_array_equal(evaluate(rows, model, exclude_seen=False).ranks, (NUM_ITEMS - 1) / 2)
        sampled = evaluate(rows, model, candidates=draw(rows), batch_size=batch_size)
        np.testing.assert_array_equal(sampled.ranks, 4.5)


@pytest.mark.parametrize("kind", ["user", "item", "score", "candidates"])
def test_a_nan_is_an_error_that_names_the_row_and_its_user(rows, kind):
    model = DotModel()
    if kind == "user":
        forward = DotModel.forward

        class Broken(DotModel):
            def forward(self, input_ids, item_table=None):
                out = forward(self, input_ids)
                out.user_embeddings[(input_ids == int(rows.history(3)[-1]))[:, -1]] = torch.nan
                return out

        with pytest.raises(ValueError, match=r"row 3 \(user 'u103'\).*NaN"):
            evaluate(rows, Broken())
    elif kind == "item":
        with torch.no_grad():
            model.table[60] = torch.nan
        with pytest.raises(ValueError, match=r"NaN"):
            evaluate(rows, model, item_chunk=25)
    elif kind == "score":
        scores = np.zeros((len(rows), NUM_ITEMS + 1))
        scores[7, 60] = np.nan
        rows = rows.subset([60 not in rows.history(i) for i in range(len(rows))])  # nobody may mask the NaN away
        scores = scores[: len(rows)]
        with pytest.raises(
            ValueError, match=rf"row 7 \({'user ' + repr(rows.user_ids[7].as_py())}\).*1 of {len(rows)} rows"
        ):
            evaluate(rows, ScoreModel(rows, scores))
    else:
        with torch.no_grad():
            model.table[draw(rows)[9, 4]] = torch.nan
        with pytest.raises(ValueError, match=r"NaN"):
            evaluate(rows, model, candidates=draw(rows), exclude_seen=False)


def test_infinite_scores_of_a_model_that_only_scores_are_ordered_like_numbers(rows):
    scores = np.random.default_rng(1).normal(size=(len(rows), NUM_ITEMS + 1))
    scores[:, 1:20] = -np.inf  # never recommended by the model itself
    scores[:, 20:25] = np.inf
    result = evaluate(rows, ScoreModel(rows, scores))
    np.testing.assert_array_equal(result.ranks, brute_force_ranks(rows, scores))


def test_a_target_in_its_own_history_is_a_miss_when_seen_items_are_excluded():
    rows = make_rows(target_in_history=(2, 8))
    model = DotModel()
    with torch.no_grad():
        model.table[:] = 0  # all scores equal: nothing but the rule decides
    result = evaluate(rows, model, cutoffs=(NUM_ITEMS,))
    assert result.targets_seen == 2
    assert result.ranks[2] == result.ranks[8] == NUM_ITEMS
    assert ranking_scores(result.ranks, [NUM_ITEMS])[f"hr@{NUM_ITEMS}"][[2, 8]].tolist() == [0, 0]
    assert result.num_ranked[2] == NUM_ITEMS - len(set(rows.history(2).tolist())) + 1
    assert result.floor[f"hr@{NUM_ITEMS}"] == result.metrics[f"hr@{NUM_ITEMS}"] == pytest.approx(35 / 37)
    only_seen = evaluate(rows.subset(np.array([2, 8])), model)
    assert set(only_seen.floor.values()) == set(only_seen.metrics.values()) == {0.0}
    allowed = evaluate(rows, model, exclude_seen=False, cutoffs=(NUM_ITEMS,))
    assert allowed.targets_seen == 2
    assert allowed.metrics[f"hr@{NUM_ITEMS}"] == 1.0


def test_seen_items_are_excluded_by_the_full_history_and_the_model_sees_only_its_end(rows):
    model = DotModel(max_length=4)
    result = evaluate(rows, model)
    expected = brute_force_ranks(rows, all_scores(rows, model, max_length=4))
    np.testing.assert_array_equal(result.ranks, expected)
    assert max(model.widths) == 4
    forced = DotModel(max_length=4)
    evaluate(rows, forced, max_length=2)
    assert max(forced.widths) == 2


def test_the_item_table_is_computed_once_and_batches_hold_rows_of_similar_length(rows):
    model = DotModel()
    evaluate(rows, model, batch_size=4, item_chunk=20)
    assert model.num_item_representations == 1
    assert model.widths == sorted(model.widths, reverse=True)
    assert len(model.widths) == -(-len(rows) // 4)


def test_training_flags_are_restored_part_by_part_even_after_an_error(rows):
    model = DotModel()
    model.frozen = torch.nn.Dropout()
    model.train()
    model.frozen.eval()
    evaluate(rows, model)
    assert (model.training, model.frozen.training) == (True, False)
    with torch.no_grad():
        model.table[:] = torch.nan
    with pytest.raises(ValueError, match="NaN"):
        evaluate(rows, model)
    assert (model.training, model.frozen.training) == (True, False)


def test_half_precision_tables_are_scored_in_float32(rows):
    model = DotModel(dim=32, dtype=torch.bfloat16)
    result = evaluate(rows, model)
    np.testing.assert_array_equal(result.ranks, brute_force_ranks(rows, all_scores(rows, model)))


@pytest.mark.parametrize("exclude_seen", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_sampled_candidates_rank_the_target_among_them_only(rows, exclude_seen, bias):
    model, candidates = DotModel(bias=bias), draw(rows)
    result = evaluate(rows, model, candidates=candidates, exclude_seen=exclude_seen, batch_size=8)
    scores = all_scores(rows, model)
    np.testing.assert_array_equal(result.ranks, brute_force_ranks(rows, scores, exclude_seen, candidates))
    assert set(result.metrics) == {f"{m}@{k}/sampled9" for m in ("hr", "ndcg", "mrr") for k in (1, 5, 10)}
    narrow = evaluate(rows, model, candidates=candidates, item_chunk=8 * 3)  # three candidates at a time
    np.testing.assert_array_equal(narrow.ranks, result.ranks)
    plain = evaluate(rows, ScoreModel(rows, scores), candidates=candidates)
    np.testing.assert_array_equal(plain.ranks, result.ranks)
    assert result.floor["hr@5/sampled9"] == pytest.approx(0.5)


def test_a_random_model_meets_the_floor_of_full_and_sampled_ranking():
    rows = make_rows(num_rows=1500, num_items=200, max_history=40)
    scores = np.random.default_rng(0).normal(size=(1500, 201))
    for candidates in (None, draw(rows, 99, 200)):
        result = evaluate(rows, ScoreModel(rows, scores), 200, candidates=candidates, cutoffs=(10,))
        for name, (low, high) in result.intervals.items():
            assert low - 0.004 < result.floor[name] < high + 0.004
            assert low < result.metrics[name] < high


def test_lists_hold_the_best_allowed_items_and_give_coverage_and_popularity(rows):
    model = DotModel()
    popularity = np.arange(NUM_ITEMS + 1)
    result = evaluate(rows, model, beyond_accuracy=True, item_popularity=popularity, cutoffs=(3, 5))
    scores = all_scores(rows, model)
    scores[:, 0] = -np.inf
    for i in range(len(rows)):
        scores[i, rows.history(i)] = -np.inf
    expected = np.argsort(-scores, axis=1)[:, :5]
    np.testing.assert_array_equal(result.recommended, expected)
    assert result.metrics["coverage@3"] == pytest.approx(len(np.unique(expected[:, :3])) / NUM_ITEMS)
    lift = [
        np.log1p(popularity[e[:3]]).mean() - np.log1p(popularity[rows.history(i)]).mean()
        for i, e in enumerate(expected)
    ]
    assert result.metrics["popularity_bias@3"] == pytest.approx(np.mean(lift))
    assert 0 < result.metrics["popularity_rank@5"] < 1


@pytest.mark.parametrize("item_chunk", [20, 65536])
@pytest.mark.parametrize("dot_product", [True, False])
def test_no_list_holds_a_seen_item_even_where_it_is_the_target(item_chunk, dot_product):
    rows = make_rows(target_in_history=(2, 8))
    model = DotModel()
    if not dot_product:
        model = ScoreModel(rows, all_scores(rows, model))
    whole = evaluate(rows, model, cutoffs=(NUM_ITEMS,), beyond_accuracy=True, item_chunk=item_chunk)
    for i in range(len(rows)):
        listed = whole.recommended[i]
        seen = set(rows.history(i).tolist())
        assert sorted(listed[listed > 0]) == sorted(set(range(1, NUM_ITEMS + 1)) - seen)
    assert whole.ranks[2] == whole.ranks[8] == NUM_ITEMS


def test_intervals_resample_users_with_all_their_rows():
    rng = np.random.default_rng(0)
    per_user = (rng.random(400) < 0.3).astype(float)
    alone = bootstrap_intervals({"hr@1": per_user}, np.arange(400))["hr@1"]
    half_width = 1.96 * per_user.std() / 20
    assert alone[0] == pytest.approx(per_user.mean() - half_width, abs=0.006)
    assert alone[1] == pytest.approx(per_user.mean() + half_width, abs=0.006)
    # Ten equal rows per user tell nothing new about users.
    repeated = bootstrap_intervals({"hr@1": np.repeat(per_user, 10)}, np.repeat(np.arange(400), 10))["hr@1"]
    assert repeated == pytest.approx(alone, abs=0.006)
    assert bootstrap_intervals({"hr@1": per_user}, np.arange(400))["hr@1"] == alone


class _Accelerator:
    """One of several processes, without the processes: `reduce` adds up what the others would send."""

    def __init__(self, num_processes, process_index, others=None):
        self.num_processes, self.process_index = num_processes, process_index
        self.is_main_process, self.others, self.sent = process_index == 0, others or [], []

    def unwrap_model(self, model):
        return model

    def reduce(self, tensor, reduction):
        assert reduction == "sum"
        self.sent.append(tensor.clone())
        return sum((other.sent[len(self.sent) - 1] for other in self.others), tensor)


def test_every_process_gets_all_ranks_exactly_once(rows):
    expected = evaluate(rows, DotModel(), batch_size=4, beyond_accuracy=True)
    others = [_Accelerator(3, 1), _Accelerator(3, 2)]
    for other in others:
        part = evaluate(rows, DotModel(), batch_size=4, beyond_accuracy=True, accelerator=other)
        assert 0 < np.count_nonzero(part.ranks) < np.count_nonzero(expected.ranks)
    whole = evaluate(rows, DotModel(), batch_size=4, beyond_accuracy=True, accelerator=_Accelerator(3, 0, others))
    np.testing.assert_array_equal(whole.ranks, expected.ranks)
    np.testing.assert_array_equal(whole.recommended, expected.recommended)


def test_a_nan_on_one_process_is_an_error_on_every_process(rows):
    class BrokenForLongest(DotModel):
        def forward(self, input_ids, item_table=None):
            out = super().forward(input_ids)
            if input_ids.shape[1] > 15:
                out.user_embeddings[:] = torch.nan
            return out

    first, second = _Accelerator(2, 0), _Accelerator(2, 1)
    with pytest.raises(ValueError, match="NaN"):  # has the longest rows
        evaluate(rows, BrokenForLongest(), batch_size=20, accelerator=first)
    second.others = [first]
    with pytest.raises(ValueError, match="NaN"):
        evaluate(rows, BrokenForLongest(), batch_size=20, accelerator=second)


def _broken(**changes):
    """The rows with one of their arrays changed, as data read from elsewhere could be."""
    rows = make_rows()
    return dataclasses.replace(rows, **{name: change(getattr(rows, name)) for name, change in changes.items()})


def _foreign_history():
    rows = make_rows()
    items = _with(rows.item_index, int(rows.start[4]) + 1, 61)
    return dataclasses.replace(rows, sequences=dataclasses.replace(rows.sequences, item_index=items))


def _with(array, position, value):
    array = array.copy()
    array[position] = value
    return array


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        (
            _broken(stop=lambda a: _with(a, 4, make_rows().start[4])),
            {},
            r"Row 4 \(user 'u104'\): the history is empty",
        ),
        (_broken(target=lambda a: _with(a, 6, 61)), {}, r"Row 6 \(user 'u106'\): the target lies outside .* 1 … 60"),
        (_broken(target=lambda a: _with(a, 6, 0)), {}, "Row 6"),
        (_foreign_history(), {}, "Histories must hold item_index 1 … 60, got 1 … 61"),
        (make_rows().subset(np.zeros(37, bool)), {}, "no row"),
        (make_rows(), {"batch_size": 0}, "`batch_size` must be at least 1, got 0"),
        (make_rows(), {"num_items": 2**23}, "`num_items`"),
        (make_rows(), {"cutoffs": (61,)}, "cut-off of 61"),
        (make_rows(), {"candidates": draw(make_rows())[:-1]}, r"shape \(37, 10\)"),
        (make_rows(), {"candidates": draw(make_rows())[:, ::-1]}, "column 0 of `candidates` is not the target"),
        (make_rows(), {"candidates": _with(draw(make_rows()), (3, 1), 99)}, "1 … 60"),
        (
            make_rows(),
            {"candidates": _with(draw(make_rows()), (3, 1), draw(make_rows())[3, 2])},
            r"Row 3 .*repeat an item",
        ),
        (
            make_rows(),
            {"candidates": _with(draw(make_rows()), (3, 1), make_rows().history(3)[0])},
            r"Row 3 .*hit the history",
        ),
        (make_rows(), {"candidates": draw(make_rows()), "beyond_accuracy": True}, "whole catalogue"),
    ],
)
def test_broken_evaluation_sets_are_refused_before_any_model_runs(rows, options, message):
    with pytest.raises(ValueError, match=message):
        evaluate(rows, None, **options)


def test_candidates_and_protocol_must_agree(rows):
    with pytest.raises(ValueError, match="full ranking"):
        RankingEvaluator(rows, NUM_ITEMS, Protocol(), candidates=draw(rows))
    with pytest.raises(ValueError, match="draw_candidates"):
        RankingEvaluator(rows, NUM_ITEMS, Protocol(candidates="sampled9"))


def test_tables_and_scores_of_a_wrong_shape_are_refused(rows):
    with pytest.raises(ValueError, match=r"must have 62 rows .* got \(61, 8\)"):
        evaluate(rows, DotModel(), num_items=NUM_ITEMS + 1)
    with pytest.raises(ValueError, match=r"must give shape \(37, 62\), got \(37, 61\)"):
        evaluate(rows, ScoreModel(rows, np.zeros((37, 61))), num_items=NUM_ITEMS + 1)


def test_a_printed_result_carries_protocol_intervals_and_floor(rows):
    text = str(evaluate(rows, DotModel()))
    assert text.startswith("leave_one_out / test / full ranking / seen items excluded / ties averaged / @1, 5, 10")
    assert "ndcg@10" in text
    assert "random 0." in text
