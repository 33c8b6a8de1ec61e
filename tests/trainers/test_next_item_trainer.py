"""NextItemTrainer: what moves, what stays equal, what is kept, what is refused."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import TrainingArguments

from hf_seqrec.evaluation import Protocol, RankingEvaluator
from hf_seqrec.modeling import (
    BERT4RecConfig,
    BERT4RecForSequentialRecommendation,
    CaserConfig,
    CaserForSequentialRecommendation,
    FMLPRecConfig,
    FMLPRecForSequentialRecommendation,
    GRU4RecConfig,
    GRU4RecForSequentialRecommendation,
    SASRecConfig,
    SASRecForSequentialRecommendation,
)
from hf_seqrec.modeling.processing import SequentialRecommendationProcessor
from hf_seqrec.trainers import NextItemTrainer, NextItemTrainingArguments


SASREC = (SASRecForSequentialRecommendation, SASRecConfig)
BERT4REC = (BERT4RecForSequentialRecommendation, BERT4RecConfig)
KINDS = {
    "all positions": SASREC,
    "cloze": BERT4REC,
    "last position": (FMLPRecForSequentialRecommendation, FMLPRecConfig),
    "recurrent": (GRU4RecForSequentialRecommendation, GRU4RecConfig),
    "convolution": (CaserForSequentialRecommendation, CaserConfig),
}
# Loss -> what it needs beside its name.
LOSSES = {
    "cross_entropy": {},
    "sampled_cross_entropy": {"num_negatives": 4},
    "bce": {"num_negatives": 2, "negatives_exclude_history": True},
    "gbce": {"num_negatives": 4, "negatives_per": "sequence"},
    "bpr": {"num_negatives": 1, "negative_sampling": "popularity"},
}


def weights(model):
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def largest_difference(first, second):
    assert first.keys() == second.keys()
    return max(float((first[name].double() - second[name].double()).abs().max()) for name in first)


def test_every_loss_is_tested():
    from hf_seqrec.modeling.losses import LOSSES as ALL

    assert set(ALL) == set(LOSSES)


@pytest.mark.parametrize("kind", KINDS)
def test_two_steps_move_every_parameter(make_model, make_trainer, kind):
    model = make_model(*KINDS[kind])
    before = weights(model)
    make_trainer(model, max_steps=2).train()
    still = [name for name, parameter in model.named_parameters() if torch.equal(before[name], parameter)]
    assert not still
    assert all(torch.isfinite(tensor).all() for tensor in weights(model).values())


@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_moves_every_parameter(make_model, make_trainer, loss):
    model = make_model()
    before = weights(model)
    make_trainer(model, max_steps=2, loss=loss, **LOSSES[loss]).train()
    assert not [name for name, parameter in model.named_parameters() if torch.equal(before[name], parameter)]


def test_the_padding_row_stays_zero(make_model, make_trainer):
    model = make_model()
    make_trainer(model, max_steps=2).train()
    assert not model.item_representations()[0].any()


def test_training_learns_the_ring(make_model, make_trainer, split):
    model = make_model(hidden_dropout_prob=0.0)
    trainer = make_trainer(model, num_train_epochs=40, cutoffs=[1, 5])
    before = trainer.evaluate()["eval_hr@5"]
    trainer.train()
    after = trainer.evaluate()
    assert after["eval_hr@5"] > before + 0.3
    assert after["eval_hr@1"] > 0.5  # nine of ten steps go to the next item


def test_the_loss_is_the_mean_over_labelled_positions_of_the_whole_step(make_model, make_trainer, split):
    # A recurrent model: its state after a prefix is the same whether the sequence goes on or not.
    model = make_model(*KINDS["recurrent"], hidden_dropout_prob=0.0)
    trainer = make_trainer(
        model, per_device_train_batch_size=40, max_steps=1, logging_strategy="steps", logging_steps=1
    )
    total, count = 0.0, 0
    model.eval()
    with torch.no_grad():
        for row in range(len(split.train)):
            items = torch.from_numpy(split.train[row][-9:].astype(np.int64))
            if len(items) < 2:
                continue
            for stop in range(1, len(items)):
                scores = model.score(items[None, :stop])[:, 1:]
                total += float(F.cross_entropy(scores, items[stop : stop + 1] - 1))
                count += 1
    trainer.train()
    assert trainer.state.log_history[0]["loss"] == pytest.approx(total / count, rel=1e-4)


@pytest.mark.parametrize(
    ("kind", "loss"),
    [(SASREC, "cross_entropy"), (SASREC, "sampled_cross_entropy"), (SASREC, "bce"), (BERT4REC, "cross_entropy")],
)
def test_accumulation_does_not_change_the_weights(make_model, make_trainer, kind, loss):
    """16 rows at once and 4 times 4 rows are the same step."""
    found = []
    for batch, accumulation in ((16, 1), (4, 4)):
        model = make_model(*kind, hidden_dropout_prob=0.0)
        make_trainer(
            model, per_device_train_batch_size=batch, gradient_accumulation_steps=accumulation, optim="sgd",
            learning_rate=1.0, lr_scheduler_type="constant", max_grad_norm=0.0, max_steps=3, loss=loss, **LOSSES[loss],
        ).train()  # fmt: skip
        found.append(weights(model))
    started = weights(make_model(*kind, hidden_dropout_prob=0.0))
    assert largest_difference(found[0], started) > 1e-2  # otherwise equality says nothing
    assert largest_difference(*found) < 2e-6


@pytest.mark.parametrize("stop", [2, 3], ids=["in the middle of an epoch", "between epochs"])
@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        (SASREC, {"loss": "cross_entropy", "crop": "random"}),
        (SASREC, {"loss": "cross_entropy", "crop": "sliding"}),
        (SASREC, {"loss": "sampled_cross_entropy", "num_negatives": 4}),
        (BERT4REC, {}),
        (KINDS["last position"], {"prefixes_per_sequence": 1}),
    ],
    ids=["random crop", "sliding windows", "sampled negatives", "cloze masks", "drawn prefixes"],
)
def test_a_resumed_run_equals_an_uninterrupted_one(make_model, make_trainer, tmp_path, kind, arguments, stop):
    """40 rows in batches of 16 make 3 steps per epoch; dropout is on, so random states are resumed too."""
    common = {"max_steps": 6, "save_strategy": "steps", "save_steps": stop, "save_total_limit": None, **arguments}
    whole = make_model(*kind)
    make_trainer(whole, "whole", **common).train()
    resumed = make_model(*kind, seed=99)  # other weights: all of them must come from the checkpoint
    make_trainer(resumed, "resumed", **common).train(
        resume_from_checkpoint=str(tmp_path / "whole" / f"checkpoint-{stop}")
    )
    assert largest_difference(weights(whole), weights(resumed)) == 0.0


def test_what_is_drawn_changes_from_epoch_to_epoch(make_model, make_trainer):
    """Epochs with the same masks would be noticed nowhere else."""
    trainer = make_trainer(make_model(*BERT4REC), num_train_epochs=2, per_device_train_batch_size=40)
    labels, compute_loss = [], trainer.compute_loss

    def spy(model, inputs, *rest, **kwargs):
        # Rows come in another order every epoch; their sums do not tell rows apart, their sorted contents do.
        labels.append(sorted(inputs["labels"].tolist()))
        return compute_loss(model, inputs, *rest, **kwargs)

    trainer.compute_loss = spy
    trainer.train()
    assert len(labels) == 2
    assert labels[0] != labels[1]


def test_early_stopping_keeps_the_best_checkpoint(make_model, make_trainer):
    """The values are scripted, the weights are real: those of the third evaluation must come back."""
    script, evaluated = [0.1, 0.2, 0.3, 0.25, 0.2, 0.9], []
    trainer = make_trainer(
        make_model(), num_train_epochs=6, eval_strategy="epoch", save_strategy="epoch", load_best_model_at_end=True,
        early_stopping_patience=2, metric_for_best_model="ndcg@10", save_total_limit=1,
    )  # fmt: skip
    evaluation_loop = trainer.evaluation_loop

    def scripted(*args, **kwargs):
        output = evaluation_loop(*args, **kwargs)
        output.metrics["eval_ndcg@10"] = script[len(evaluated)]
        evaluated.append(weights(trainer.model))
        return output

    trainer.evaluation_loop = scripted
    trainer.train()
    assert len(evaluated) == 5  # stopped two evaluations after the best, before the sixth
    assert trainer.state.best_metric == 0.3
    assert largest_difference(weights(trainer.model), evaluated[2]) == 0.0
    assert largest_difference(weights(trainer.model), evaluated[4]) > 0.0


def test_patience_goes_on_counting_after_a_resume(make_model, make_trainer):
    """Values fall from the first evaluation on: with a patience of 3 the fourth is the last, wherever the run was cut."""

    def run(epochs, evaluations, **options):
        trainer = make_trainer(
            make_model(), "cut", num_train_epochs=epochs, eval_strategy="epoch", save_strategy="epoch",
            load_best_model_at_end=True, early_stopping_patience=3, metric_for_best_model="ndcg@10", save_total_limit=None,
        )  # fmt: skip
        evaluation_loop = trainer.evaluation_loop

        def falling(*args, **kwargs):
            output = evaluation_loop(*args, **kwargs)
            evaluations.append(trainer.state.epoch)
            output.metrics["eval_ndcg@10"] = 1.0 - 0.1 * trainer.state.epoch
            return output

        trainer.evaluation_loop = falling
        trainer.train(**options)

    first, second = [], []
    run(3, first)
    run(9, second, resume_from_checkpoint=True)
    assert (first, second) == ([1, 2, 3], [4])


def test_no_patience_never_stops(make_model, make_trainer):
    trainer = make_trainer(
        make_model(), num_train_epochs=5, learning_rate=0.0, eval_strategy="epoch", early_stopping_patience=0
    )
    trainer.train()
    assert trainer.state.epoch == 5


def test_evaluation_and_prediction_are_those_of_the_evaluator(make_model, make_trainer, split):
    model = make_model()
    trainer = make_trainer(model, cutoffs=[3, 10], exclude_seen=False)
    predicted = trainer.predict(split.test)
    protocol = Protocol(part="test", exclude_seen=False, cutoffs=(3, 10))
    expected = RankingEvaluator(split.test, model.config.num_items, protocol)(model)
    np.testing.assert_array_equal(predicted.predictions, expected.ranks)
    assert len(predicted.predictions) == len(split.test) == 39
    for name, value in expected.metrics.items():
        assert predicted.metrics[f"test_{name}"] == value
    assert {"eval_ndcg@3", "eval_ndcg@10", "eval_hr@3", "eval_mrr@10"} <= trainer.evaluate().keys()
    assert trainer.protocol().part == "validation"


def test_several_evaluation_sets_are_named(make_model, make_trainer, split):
    trainer = make_trainer(make_model())
    trainer.eval_dataset = {"early": split.validation, "late": split.test}
    assert {"eval_early_ndcg@10", "eval_late_ndcg@10"} <= trainer.evaluate().keys()


def test_the_processor_is_in_every_checkpoint_and_stays_what_it_was(make_model, make_trainer, tmp_path):
    processor = SequentialRecommendationProcessor([f"i{number}" for number in range(30)], max_length=8)
    trainer = make_trainer(make_model(), processing_class=processor, max_steps=1, save_strategy="steps", save_steps=1)
    trainer.train()
    assert not hasattr(processor, "tokenizer")
    loaded = SequentialRecommendationProcessor.from_pretrained(tmp_path / "out" / "checkpoint-1")
    assert loaded.item_ids == processor.item_ids


def test_arguments_of_another_type_are_refused(make_model, split, tmp_path):
    with pytest.raises(TypeError, match="NextItemTrainingArguments, got TrainingArguments"):
        NextItemTrainer(make_model(), TrainingArguments(str(tmp_path)), train_dataset=split.train)


def test_a_catalogue_smaller_than_the_data_is_refused(make_model, make_trainer):
    with pytest.raises(ValueError, match="hold item_index 30, the model's catalogue ends at 20"):
        make_trainer(make_model(num_items=20))


def test_an_evaluation_set_of_another_type_is_refused(make_model, make_trainer):
    with pytest.raises(TypeError, match=r"needs an EvaluationSet .* got list"):
        make_trainer(make_model()).evaluate([1, 2, 3])


def test_a_cloze_model_refuses_sampled_losses(make_model, make_trainer):
    with pytest.raises(ValueError, match="cloze models train with `loss='cross_entropy'`, got 'bce'"):
        make_trainer(make_model(*BERT4REC), loss="bce")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"loss": "hinge"}, "unknown `loss` 'hinge'; choose one of"),
        ({"negative_sampling": "hard"}, "'uniform' or 'popularity', got 'hard'"),
    ],
)
def test_unknown_choices_are_refused(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        NextItemTrainingArguments(str(tmp_path), **arguments)


def test_a_diverged_model_is_an_error_in_evaluation_not_a_number(make_model, make_trainer):
    model = make_model()
    with torch.no_grad():
        model.model.item_encoder.id_embedding.weight[5] = torch.nan
    with pytest.raises(ValueError, match="NaN"):
        make_trainer(model).evaluate()


def test_prefixes_of_a_model_that_learns_at_every_position_are_refused(split, tmp_path):
    model = SASRecForSequentialRecommendation(SASRecConfig(num_items=100, hidden_size=8, max_length=5))
    with pytest.raises(ValueError, match="SASRecForSequentialRecommendation learns at every position"):
        NextItemTrainer(
            model,
            NextItemTrainingArguments(str(tmp_path), prefixes_per_sequence=2, use_cpu=True),
            train_dataset=split.train,
        )


@pytest.mark.parametrize("crop", ["random", "sliding"])
def test_windows_for_a_model_that_learns_from_prefixes_are_refused(split, tmp_path, crop):
    model = FMLPRecForSequentialRecommendation(FMLPRecConfig(num_items=100, hidden_size=8, max_length=5))
    with pytest.raises(ValueError, match=f"FMLPRecForSequentialRecommendation is trained on prefixes.*'{crop}'"):
        NextItemTrainer(
            model, NextItemTrainingArguments(str(tmp_path), crop=crop, use_cpu=True), train_dataset=split.train
        )
