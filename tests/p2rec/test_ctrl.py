"""CTRL's contrast of items and texts."""

import numpy as np
import pytest
import torch

from hf_seqrec.modeling import ItemItemConfig, ItemItemForSequentialRecommendation, SASRecConfig
from hf_seqrec.modeling import SASRecForSequentialRecommendation as SASRec
from hf_seqrec.trainers.ctrl import align_items_with_texts, alignment_loss, likeness


def test_likeness_is_the_best_match_of_each_sub_space():
    items, texts = torch.randn(3, 4, generator=torch.Generator().manual_seed(0)), torch.eye(4)[:2] + 0.5
    found = likeness(items, texts, 2)
    for row in range(3):
        for column in range(2):
            a, b = items[row].numpy().reshape(2, 2), texts[column].numpy().reshape(2, 2)
            a, b = (one / np.linalg.norm(one, axis=1, keepdims=True) for one in (a, b))
            assert found[row, column].item() == pytest.approx((a @ b.T).max(1).sum(), rel=1e-5)


def test_the_loss_is_the_mean_of_both_directions():
    items, texts = torch.eye(2), torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    scores = np.array([[1, 0.5**0.5], [0, 0.5**0.5]]) / 0.5
    by_row = -np.log(np.exp(np.diag(scores)) / np.exp(scores).sum(1)).mean()
    by_column = -np.log(np.exp(np.diag(scores)) / np.exp(scores).sum(0)).mean()
    assert alignment_loss(items, texts, 0.5).item() == pytest.approx((by_row + by_column) / 2, rel=1e-5)


def test_alignment_brings_the_texts_neighbours_into_the_table_and_touches_nothing_else():
    torch.manual_seed(0)
    model = SASRec(SASRecConfig(num_items=24, hidden_size=8, max_length=5, num_hidden_layers=1, intermediate_size=8))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    kind = np.arange(24) % 3
    texts = np.eye(3)[kind] * 4 + np.random.default_rng(0).normal(size=(24, 3)) * 0.3 + 50
    history = align_items_with_texts(model, texts, epochs=60, learning_rate=1e-2)
    assert history[-1] < 0.8 * history[0]
    table = torch.nn.functional.normalize(model.item_representations()[1:].detach(), dim=1)
    nearest = (table @ table.T).fill_diagonal_(-1).argmax(1).numpy()
    assert (kind[nearest] == kind).mean() > 0.8
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {"model.item_encoder.id_embedding.weight"}
    assert not model.item_representations()[0].any()


def test_bad_input_is_refused():
    model = SASRec(SASRecConfig(num_items=4, hidden_size=8))
    texts = np.eye(4)
    for arguments, message in (
        ({"text_vectors": texts[:3]}, r"need 4 finite rows, got shape \(3, 4\)"),
        ({"text_vectors": texts, "subspaces": 3}, "must divide"),
        ({"text_vectors": texts, "temperature": 0}, "must be positive"),
        ({"text_vectors": texts, "batch_size": 1}, "at least two items"),
    ):
        with pytest.raises(ValueError, match=message):
            align_items_with_texts(model, **arguments)
    with pytest.raises(TypeError, match="has no item encoder"):
        align_items_with_texts(ItemItemForSequentialRecommendation(ItemItemConfig(num_items=4)), texts)
