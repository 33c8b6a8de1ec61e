"""Popularity and item-item: recommenders that count."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModel

from hf_seqrec.modeling import ItemItemForSequentialRecommendation, PopularityForSequentialRecommendation, itemitem


N = 7
USERS = [[1, 2, 3], [2, 3, 2, 4], [3, 1], [5], [1, 2, 6, 3]]  # nobody has met item 7


def flat(users=USERS):
    lengths = [len(user) for user in users]
    return SimpleNamespace(
        item_index=np.concatenate([np.array(user, np.int32) for user in users]),
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
    )


def similarity_by_definition(similarity="cosine", damping=0.5):
    sets = [set(user) for user in USERS]
    out = torch.zeros(N + 1, N + 1)
    for i in range(1, N + 1):
        for j in range(1, N + 1):
            both = sum(i in s and j in s for s in sets)
            c_i, c_j = (max(sum(k in s for s in sets), 1) for k in (i, j))
            if i != j:
                out[i, j] = both / (math.sqrt(c_i * c_j) if similarity == "cosine" else c_i * c_j**damping)
    return out


def test_popularity_ranks_by_training_interactions():
    model = PopularityForSequentialRecommendation.fit(flat(), N)
    scores = model.score(torch.tensor([[0, 5], [1, 2]]))
    assert torch.equal(scores[0], scores[1])
    counts = {1: 3, 2: 4, 3: 4, 4: 1, 5: 1, 6: 1, 7: 0.5}
    expected = torch.tensor([math.log(c / sum(counts.values())) for c in counts.values()])
    torch.testing.assert_close(scores[0, 1:], expected)
    assert scores[0, 2] == scores[0, 3]


def test_popularity_loss_is_the_cross_entropy_of_guessing_by_share():
    model = PopularityForSequentialRecommendation.fit(flat(), N)
    loss = model(torch.tensor([[1, 2]]), labels=torch.tensor([[2, 7]])).loss
    expected = -(math.log(4 / 14.5) + math.log(0.5 / 14.5)) / 2
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_popularity_survives_saving(tmp_path):
    model = PopularityForSequentialRecommendation.fit(flat(), N)
    model.save_pretrained(tmp_path)
    inputs = torch.tensor([[1]])
    assert torch.equal(AutoModel.from_pretrained(tmp_path).score(inputs), model.score(inputs))


@pytest.mark.parametrize("head", [PopularityForSequentialRecommendation, ItemItemForSequentialRecommendation])
@pytest.mark.parametrize(
    ("users", "message"),
    [
        ([[1, 8]], r"must be in 1…7 \(`num_items`\), got values from 1 to 8"),
        ([[0, 1]], r"got values from 0 to 1"),
        ([[]], "no training interaction"),
    ],
)
def test_bad_training_sequences_are_refused(head, users, message):
    with pytest.raises(ValueError, match=message):
        head.fit(flat(users), N)


@pytest.mark.parametrize("block", [1, 3 * (N + 1), 1 << 24])
@pytest.mark.parametrize(
    "options", [{}, {"similarity": "conditional"}, {"similarity": "conditional", "popularity_damping": 1}]
)
def test_itemitem_scores_follow_their_definition(options, block, monkeypatch):
    monkeypatch.setattr(itemitem, "_BLOCK_ELEMENTS", block)
    model = ItemItemForSequentialRecommendation.fit(flat(), N, decay=0.5, max_length=3, **options)
    similarity = similarity_by_definition(options.get("similarity", "cosine"), options.get("popularity_damping", 0.5))
    scores = model.score(torch.tensor([[5, 1, 4, 6], [0, 0, 0, 3]]))
    assert scores[:, 0].eq(-torch.inf).all()
    torch.testing.assert_close(
        scores[0, 1:], (similarity[6] + 0.5 * similarity[4] + 0.25 * similarity[1])[1:]
    )  # item 5 is the fourth last: beyond max_length
    torch.testing.assert_close(scores[1, 1:], similarity[3][1:])


def test_itemitem_keeps_the_nearest_neighbours_only():
    model = ItemItemForSequentialRecommendation.fit(flat(), N, num_neighbours=2, similarity="conditional")
    similarity = similarity_by_definition("conditional")
    for item in range(1, N + 1):
        kept = {int(j): float(s) for j, s in zip(model.neighbours[item], model.similarities[item], strict=True) if s}
        best = similarity[item].sort(descending=True).values[:2]
        assert sorted(kept.values(), reverse=True) == pytest.approx([float(b) for b in best if b > 0])
        assert all(s == pytest.approx(float(similarity[item, j])) for j, s in kept.items())


def test_fitting_a_floor_leaves_the_training_data_as_they_were():
    users = [[2, 1, 2], [3, 3, 1], [1, 2, 3]]
    items, offsets = np.concatenate(users).astype(np.int32), np.array([0, 3, 6, 9])
    before = items.copy(), offsets.copy()
    for model_class in (PopularityForSequentialRecommendation, ItemItemForSequentialRecommendation):
        model_class.fit(SimpleNamespace(item_index=items, offsets=offsets), num_items=3)
    assert (items == before[0]).all()
    assert (offsets == before[1]).all()


def test_itemitem_counts_a_repeated_item_once_per_user():
    once, twice = (ItemItemForSequentialRecommendation.fit(flat(users), N) for users in ([[1, 2]], [[1, 2, 2, 1]]))
    assert torch.equal(once.similarities, twice.similarities)


def test_itemitem_candidates_padding_and_dtypes():
    model = ItemItemForSequentialRecommendation.fit(flat(), N)
    inputs = torch.tensor([[0, 1, 2], [3, 3, 6]])
    scores = model.score(inputs)
    candidates = torch.tensor([[7, 3, 0], [1, 2, 5]])
    assert torch.equal(model.score(inputs, candidates), scores.gather(1, candidates))
    assert torch.equal(model.score(torch.nn.functional.pad(inputs, (9, 0))), scores)
    assert model.to(torch.bfloat16).score(inputs).dtype == torch.bfloat16
    with pytest.raises(ValueError, match="row 0 has no item"):
        model.score(torch.tensor([[0, 0], [0, 1]]))
    with pytest.raises(ValueError, match="must be left-padded: row 1"):
        model.score(torch.tensor([[0, 1], [1, 0]]))


def test_itemitem_survives_saving_and_missing_weights(tmp_path):
    model = ItemItemForSequentialRecommendation.fit(flat(), N, num_neighbours=3)
    model.save_pretrained(tmp_path)
    inputs = torch.tensor([[0, 1, 2], [3, 4, 6]])
    loaded = AutoModel.from_pretrained(tmp_path)
    assert not loaded.is_dot_product
    assert torch.equal(loaded.score(inputs), model.score(inputs))
    save_file({"nothing": torch.zeros(1)}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    empty = AutoModel.from_pretrained(tmp_path)
    assert not empty.neighbours.any()
    assert not empty.score(inputs)[:, 1:].any()


def test_itemitem_says_that_it_is_not_trained():
    model = ItemItemForSequentialRecommendation.fit(flat(), N)
    with pytest.raises(TypeError, match="fit it with `fit`"):
        model(torch.tensor([[1]]), labels=torch.tensor([[2]]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"similarity": "jaccard"}, "'cosine' or 'conditional', got 'jaccard'"),
        ({"num_neighbours": 0}, "num_neighbours"),
        ({"decay": 0.0}, "decay"),
        ({"popularity_damping": 2.0}, "popularity_damping"),
        ({"fusion": "init"}, "no item vectors"),
    ],
)
def test_impossible_itemitem_configurations_are_refused(changes, message):
    with pytest.raises(Exception, match=message):
        itemitem.ItemItemConfig(num_items=N, **changes)
