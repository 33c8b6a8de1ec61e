"""Stages 1 and 2, and E4SRec, on tiny LLMs."""

import numpy as np
import pyarrow as pa
import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoTokenizer

from hf_seqrec.data import Catalogue, Sequences, leave_one_out
from hf_seqrec.modeling.e4srec import E4SRecForSequentialRecommendation
from hf_seqrec.modeling.llm import load_llm
from hf_seqrec.modeling.p2rec import P2RecModel, preference_loss
from hf_seqrec.preferences import enhance_items, group_items, preference_distributions, write_controls
from hf_seqrec.trainers import NextItemTrainer, NextItemTrainingArguments
from hf_seqrec.trainers.preference import (
    PreferenceDataset,
    PreferenceTrainer,
    PreferenceTrainingArguments,
    collate_preferences,
)


LORA = {"r": 2, "lora_alpha": 4, "target_modules": "all-linear"}


@pytest.fixture
def make(llm_folders, item_table):
    def build(kind="llama", method=P2RecModel, **options):
        torch.manual_seed(0)
        options = {"lora": LORA, "max_length": 6, **({"num_groups": 3} if method is P2RecModel else {}), **options}
        return method.from_parts(llm_folders[kind], item_table, **options)

    return build


def arguments(folder, kind=PreferenceTrainingArguments, **options):
    options = {"num_train_epochs": 1, "per_device_train_batch_size": 5, "logging_strategy": "no", **options}
    return kind(str(folder), use_cpu=True, disable_tqdm=True, save_strategy="no", **options)


# Losses ------------------------------------------------------------------------------------------------------------------


def test_losses_sum_over_groups_and_users():
    generator = np.random.default_rng(0)
    logits, true = generator.normal(size=(4, 5)), generator.dirichlet(np.ones(5), 4)
    true[0] = [1, 0, 0, 0, 0]
    inferred = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)

    def kl(p, q):
        return float(sum(a * np.log(a / b) for a, b in zip(p.ravel(), q.ravel(), strict=True) if a > 0))

    middle = (true + inferred) / 2
    expected = {
        "squared": float(((true - inferred) ** 2).sum()),
        "kl": kl(true, inferred),
        "js": (kl(true, middle) + kl(inferred, middle)) / 2,
    }
    for name, value in expected.items():
        assert preference_loss(torch.tensor(logits), torch.tensor(true), name).item() == pytest.approx(value, rel=1e-5)
    same = torch.tensor(true[1:]).log()
    assert all(abs(preference_loss(same, torch.tensor(true[1:]), name).item()) < 1e-6 for name in expected)
    with pytest.raises(ValueError, match="`divergence` must be one of"):
        preference_loss(torch.zeros(1, 2), torch.zeros(1, 2), "mse")


@pytest.mark.parametrize("divergence", ["squared", "kl", "js"])
def test_losses_have_finite_gradients_at_the_corners(divergence):
    logits = torch.tensor([[200.0, -200.0], [-200.0, 200.0]], requires_grad=True)
    preference_loss(logits, torch.tensor([[1.0, 0.0], [1.0, 0.0]]), divergence).backward()
    assert torch.isfinite(logits.grad).all()


def test_the_models_loss_is_the_sum_over_the_users_of_the_step(make):
    model = make()
    ids, wanted = torch.tensor([[0, 1, 2], [3, 4, 5]]), torch.tensor([[1.0, 0, 0], [0.2, 0.3, 0.5]])
    total = preference_loss(model(ids).logits, wanted)
    assert model(ids, wanted).loss.item() == pytest.approx(total.item() / 2)
    assert model(ids, wanted, num_items_in_batch=8).loss.item() == pytest.approx(total.item() / 8)
    with pytest.raises(ValueError, match=r"need shape \(2, 3\)"):
        model(ids, wanted[:, :2])


# Prompts -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["llama", "t5", "bert"])
def test_h_is_the_last_state_of_instruction_items_and_response(make, llm_folders, item_table, kind):
    model = make(kind, lora=None)
    llm, tokenizer = load_llm(llm_folders[kind]), AutoTokenizer.from_pretrained(llm_folders[kind])
    before = "Given the user's purchase history, predict the user's distribution among 3 purchase preferences."
    whole = tokenizer(before).input_ids
    ends = 0 if kind == "llama" else 1
    first, last = (
        whole[: len(whole) - ends],
        [*tokenizer("Response:", add_special_tokens=False).input_ids, *whole[len(whole) - ends :]],
    )
    table = llm.get_input_embeddings()
    items = model.item_projector(torch.tensor(item_table[[2, 7]]))
    embeds = torch.cat([table(torch.tensor(first)), items, table(torch.tensor(last))]).unsqueeze(0)
    with torch.no_grad():
        expected = llm(inputs_embeds=embeds).last_hidden_state[0, -1]
        found = model(torch.tensor([[0, 2, 7]]))
    torch.testing.assert_close(found.states[0], expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found.logits[0], model.group_head(expected), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_padding_company_and_sharing_change_nothing(make, kind):
    model = make(kind)
    rows = torch.tensor([[0, 0, 0, 4], [1, 2, 3, 4], [0, 0, 9, 8]])
    with torch.no_grad():
        together = model(rows).logits
        alone = torch.cat([model(row[row > 0].unsqueeze(0)).logits for row in rows])
        model.encoder.share_prefix = False
        torch.testing.assert_close(model(rows).logits, together, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-4)


def test_only_the_most_recent_items_are_read(make):
    model = make(max_length=2)
    with torch.no_grad():
        torch.testing.assert_close(model(torch.tensor([[5, 1, 2]])).logits, model(torch.tensor([[1, 2]])).logits)
        assert not torch.allclose(model(torch.tensor([[1, 2]])).logits, model(torch.tensor([[2, 1]])).logits)


def test_titles_are_an_option(make, catalogue):
    model = make(titles=True, catalogue=catalogue, max_title_tokens=3)
    (prompt,), _, _ = model.prompts(torch.tensor([[1, 2]]))
    (plain,), _, _ = make().prompts(torch.tensor([[1, 2]]))
    assert len(prompt) == len(plain) + 6
    with pytest.raises(ValueError, match="needs `catalogue`"):
        make(titles=True)


def test_item_vectors_start_with_the_spread_of_tokens(make):
    model = make()
    _, spread = model.encoder.embedding_statistics()
    assert 0.5 < model.item_projector(model.item_vectors[1:]).std().item() / spread < 2


def test_bad_input_is_refused(make, catalogue, item_table, llm_folders):
    model = make()
    with pytest.raises(ValueError, match="row 1 has no item"):
        model(torch.tensor([[1], [0]]))
    with pytest.raises(ValueError, match="must be item_index 1 … 12"):
        model(torch.tensor([[13]]))
    with pytest.raises(StrictDataclassError, match="13 groups of 12 items"):
        make(num_groups=13)
    with pytest.raises(ValueError, match="a prompt of 500 items has up to"):
        make(max_length=500)
    with pytest.raises(ValueError, match=r"12 items have the shape \(12, 4\)"):
        P2RecModel.from_parts(llm_folders["llama"], item_table[2:], catalogue=catalogue, num_groups=3)
    bad = item_table.copy()
    bad[3] = np.nan
    with pytest.raises(ValueError, match="not finite at item_index 3"):
        P2RecModel.from_parts(llm_folders["llama"], bad, catalogue=catalogue, num_groups=3)


# Stage 1 -----------------------------------------------------------------------------------------------------------------


def test_users_without_training_items_are_left_out_and_the_rest_is_whole(item_table):
    sequences = Sequences(np.array([1, 2, 5]), np.array([0, 2, 2, 3]), None, pa.array(["a", "b", "c"]))
    groups = group_items(item_table, 3)
    dataset = PreferenceDataset(sequences, preference_distributions(sequences, groups), max_length=1)
    assert [dataset[row]["user"] for row in range(len(dataset))] == [0, 2]
    # The prompt shows the most recent items, the target counts all of them.
    assert dataset[0]["item_index"].tolist() == [2]
    assert dataset[0]["preferences"][groups.group[1]] == 1
    batch = collate_preferences([dataset[0], dataset[1]])
    assert batch["labels"].shape == (2, 1)
    empty = Sequences(np.array([]), np.array([0, 0]), None, pa.array(["a"]))
    with pytest.raises(ValueError, match="none of the 1 users has a training item"):
        PreferenceDataset(empty, np.zeros((1, 3)), 5)
    with pytest.raises(ValueError, match=r"user 0 sum to 0\.500"):
        PreferenceDataset(sequences, np.full((3, 3), 1 / 6), 5)


def test_short_parts_are_drawn_by_epoch_and_row(sequences, item_table):
    groups = group_items(item_table, 3)
    preferences = preference_distributions(sequences, groups)
    options = {"sub_sequence_probability": 1.0, "sub_sequence_length": 2}
    own = PreferenceDataset(sequences, preferences, 6, groups.group, **options)
    user = PreferenceDataset(sequences, preferences, 6, sub_sequence_target="user", **options)
    seen = {len(own[row]["item_index"]) for row in range(len(own))}
    assert seen == {1, 2}
    for row in range(len(own)):
        np.testing.assert_array_equal(own[row]["item_index"], user[row]["item_index"])
        np.testing.assert_array_equal(user[row]["preferences"], preferences[row])
        expected = np.bincount(groups.group[own[row]["item_index"]], minlength=3) / len(own[row]["item_index"])
        np.testing.assert_allclose(own[row]["preferences"], expected)
    before = [own[row]["item_index"].tolist() for row in range(len(own))]
    own.set_epoch(1)
    assert [own[row]["item_index"].tolist() for row in range(len(own))] != before
    with pytest.raises(ValueError, match="need `group`"):
        PreferenceDataset(sequences, preferences, 6, **options)


def test_stage_1_learns_preferences_and_changes_only_what_it_trains(make, sequences, item_table, tmp_path):
    model, train = make(), leave_one_out(sequences).train
    preferences = preference_distributions(train, group_items(item_table, 3))
    frozen = {name: tensor.clone() for name, tensor in model.state_dict().items() if not model.is_own(name)}
    before = {name: tensor.clone() for name, tensor in model.own_state_dict().items()}
    held = PreferenceDataset(train, preferences, 6)
    settings = arguments(tmp_path, num_train_epochs=25, learning_rate=1e-2, lr_scheduler_type="constant")
    trainer = PreferenceTrainer(model, settings, train_dataset=train, preferences=preferences, eval_dataset=held)
    trainer.train()
    # Below what the mean distribution, the same for everybody, would reach: the items were read.
    constant = float(np.square(preferences - preferences.mean(0)).sum(1).mean())
    assert trainer.evaluate()["eval_loss"] < 0.5 * constant
    after = model.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in frozen.items())
    changed = {name for name, tensor in before.items() if not torch.equal(after[name], tensor)}
    assert changed == {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    batch = collate_preferences([held[row] for row in range(len(held))])
    with torch.no_grad():
        mean = model(batch["input_ids"], batch["preferences"]).loss.item()
    assert trainer.evaluate()["eval_loss"] == pytest.approx(mean, rel=1e-4)


def test_accumulation_does_not_change_a_step(make, sequences, item_table, tmp_path):
    train = leave_one_out(sequences).train
    preferences = preference_distributions(train, group_items(item_table, 3))
    ends = []
    for size, times in ((20, 1), (3, 7)):
        model = make(lora=None)
        settings = arguments(
            tmp_path,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=times,
            optim="sgd",
            learning_rate=0.1,
        )
        PreferenceTrainer(model, settings, train_dataset=train, preferences=preferences).train()
        ends.append(model.group_head.weight.detach())
    torch.testing.assert_close(ends[0], ends[1], atol=1e-5, rtol=1e-4)


def test_the_trainer_refuses_what_does_not_fit(make, sequences, item_table, tmp_path):
    preferences = preference_distributions(sequences, group_items(item_table, 2))
    with pytest.raises(ValueError, match="have 2 groups, the model 3"):
        PreferenceTrainer(make(), arguments(tmp_path), train_dataset=sequences, preferences=preferences)
    with pytest.raises(ValueError, match="need `preferences="):
        PreferenceTrainer(make(), arguments(tmp_path), train_dataset=sequences)
    with pytest.raises(ValueError, match="`sub_sequence_probability` must be in"):
        arguments(tmp_path, sub_sequence_probability=2.0)


@pytest.mark.parametrize("method", [P2RecModel, E4SRecForSequentialRecommendation])
def test_saved_models_come_back_without_the_llms_weights(make, tmp_path, method):
    model = make(method=method)
    model.save_pretrained(tmp_path)
    again = method.from_pretrained(tmp_path)
    ids = torch.tensor([[0, 3, 4], [1, 2, 5]])
    with torch.no_grad():
        torch.testing.assert_close(again.read(ids), model.read(ids))
        assert torch.equal(again.item_vectors, model.item_vectors)
    from safetensors.torch import load_file

    names = load_file(tmp_path / "model.safetensors")
    assert not [name for name in names if name.startswith("encoder.llm.") and "lora_" not in name]


# Stage 2 -----------------------------------------------------------------------------------------------------------------


def test_enhanced_vectors_are_each_item_alone_and_resume(make, catalogue, tmp_path, monkeypatch):
    model = make()
    whole = enhance_items(model, catalogue, tmp_path / "z", shard_size=5, progress=False)
    z, categories = whole.read(catalogue=catalogue), whole.read("categories")
    assert z.shape == (12, 16)
    np.testing.assert_allclose(categories.sum(1), 1, rtol=1e-5)
    with torch.no_grad():
        out = model(torch.tensor([[7]]))
    np.testing.assert_allclose(z[6], out.states[0], atol=1e-4)
    np.testing.assert_allclose(categories[6], out.logits[0].softmax(-1), atol=1e-5)
    (whole.folder / "vectors" / "train-00001-of-00003.parquet").unlink()
    calls = []
    real = model.enhance
    monkeypatch.setattr(model, "enhance", lambda items: calls.append(items.tolist()) or real(items))
    np.testing.assert_allclose(enhance_items(model, catalogue, tmp_path / "z", 5, False).read(), z)
    assert calls == [[6, 7, 8, 9, 10]]
    with torch.no_grad():
        model.group_head.weight.add_(1)
    with pytest.raises(ValueError, match="holds other vectors"):
        enhance_items(model, catalogue, tmp_path / "z", 5, False)
    with pytest.raises(ValueError, match="knows 12 items, the catalogue has 11"):
        enhance_items(model, Catalogue(catalogue.table.slice(0, 11)), tmp_path / "y")
    with pytest.raises(RuntimeError, match="evaluation mode"):
        model.train().enhance(torch.tensor([1]))


def test_controls_have_the_shape_of_what_they_replace(make, catalogue, item_table, tmp_path):
    z = enhance_items(make(), catalogue, tmp_path / "z", progress=False)
    groups = group_items(item_table, 3)
    controls = write_controls(tmp_path, catalogue, z, item_table, groups)
    noise, real = controls["noise"].read(catalogue=catalogue), z.read()
    assert noise.shape == real.shape
    assert abs(noise.std() / real.std() - 1) < 0.2
    assert abs(np.corrcoef(noise.ravel(), real.ravel())[0, 1]) < 0.2
    np.testing.assert_array_equal(controls["teacher"].read(), item_table[1:])
    np.testing.assert_array_equal(controls["groups"].read().argmax(1), groups.group[1:])


# E4SRec ------------------------------------------------------------------------------------------------------------------


def test_e4srec_scores_are_a_linear_map_of_h_and_its_loss_the_cross_entropy(make):
    model = make(method=E4SRecForSequentialRecommendation)
    ids = torch.tensor([[0, 3, 4], [1, 2, 5]])
    labels = torch.tensor([[-100, -100, 9], [-100, 7, 6]])
    with torch.no_grad():
        scores = model.score(ids)
        assert scores.shape == (2, 13)
        assert torch.isneginf(scores[:, 0]).all()
        torch.testing.assert_close(scores[:, 1:], model.read(ids) @ model.item_head.weight[1:].T)
        torch.testing.assert_close(
            model.score(ids, torch.tensor([[3, 1], [2, 9]])), scores.gather(1, torch.tensor([[3, 1], [2, 9]]))
        )
        rows = torch.cat([model.score(torch.tensor(row)) for row in ([[3, 4]], [[1, 2]], [[1, 2, 5]])])
        expected = torch.nn.functional.cross_entropy(rows, torch.tensor([9, 7, 6]))
        torch.testing.assert_close(model(ids, labels).loss, expected, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(model(ids, labels, num_items_in_batch=6).loss, expected / 2, atol=1e-4, rtol=1e-4)


def test_e4srec_trains_with_the_ordinary_trainer(make, sequences, tmp_path):
    split, model = leave_one_out(sequences), make(method=E4SRecForSequentialRecommendation)
    settings = arguments(
        tmp_path, NextItemTrainingArguments, eval_strategy="no", load_best_model_at_end=False, learning_rate=1e-2,
        prefixes_per_sequence=1, num_train_epochs=3, cutoffs=[10],
    )  # fmt: skip
    trainer = NextItemTrainer(model, settings, train_dataset=split.train, eval_dataset=split.validation)
    head = model.item_head.weight.detach().clone()
    trainer.train()
    assert not torch.equal(head, model.item_head.weight)
    assert 0 <= trainer.evaluate()["eval_ndcg@10"] <= 1


def test_a_resumed_run_ends_where_an_unbroken_one_does(make, sequences, item_table, tmp_path):
    train, groups = leave_one_out(sequences).train, group_items(item_table, 3)
    preferences = preference_distributions(train, groups)

    def run(resume=None):
        model = make()
        settings = PreferenceTrainingArguments(
            str(tmp_path), use_cpu=True, disable_tqdm=True, num_train_epochs=2, per_device_train_batch_size=5,
            learning_rate=1e-2, sub_sequence_probability=0.5, save_total_limit=None,
        )  # fmt: skip
        trainer = PreferenceTrainer(model, settings, train_dataset=train, preferences=preferences, group=groups.group)
        trainer.train(resume_from_checkpoint=resume)
        return model.own_state_dict()

    whole, resumed = run(), run(str(tmp_path / "checkpoint-4"))
    for name, tensor in whole.items():
        torch.testing.assert_close(resumed[name], tensor, msg=name)
