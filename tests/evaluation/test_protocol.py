"""A protocol refuses values it does not know, and survives its dictionary."""

import dataclasses
import json

import pytest

from hf_seqrec.evaluation import Protocol


def test_a_protocol_survives_json():
    protocol = Protocol(
        split="user_ratio", part="validation", candidates="sampled19", exclude_seen=False, cutoffs=[10, 1]
    )
    assert Protocol.from_dict(json.loads(json.dumps(protocol.to_dict()))) == protocol
    assert protocol.cutoffs == (1, 10)


def test_names_of_sampled_metrics_carry_the_number_of_negatives():
    assert (Protocol().suffix, Protocol().num_negatives) == ("", None)
    sampled = Protocol(candidates="sampled99")
    assert (sampled.suffix, sampled.num_negatives) == ("/sampled99", 99)


def test_the_description_says_all_that_matters_in_one_line():
    line = Protocol(part="validation", exclude_seen=False, cutoffs=(10,)).describe()
    assert line == "leave_one_out / validation / full ranking / seen items allowed / ties averaged / @10"
    assert "1 + 99 sampled candidates / seen items excluded" in Protocol(candidates="sampled99").describe()


def test_a_protocol_can_not_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Protocol().part = "validation"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"split": ""}, "`split`"),
        ({"part": "train"}, r"\('validation', 'test'\), got 'train'"),
        ({"candidates": "sampled"}, "'sampled99' for 99 sampled negatives, got 'sampled'"),
        ({"candidates": "sampled0"}, "sampled0"),
        ({"exclude_seen": "no"}, "True or False, got 'no'"),
        ({"cutoffs": ()}, "Cut-offs"),
        ({"ties": "optimistic"}, "'average', got 'optimistic'"),
    ],
)
def test_unknown_values_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        Protocol(**values)


def test_a_stored_protocol_is_never_completed_by_guessing():
    values = Protocol().to_dict()
    with pytest.raises(ValueError, match=r"unknown: \['seen'\], missing: \['exclude_seen'\]"):
        Protocol.from_dict({("seen" if key == "exclude_seen" else key): value for key, value in values.items()})
