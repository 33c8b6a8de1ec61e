import pytest

from hf_seqrec.modeling.e4srec import E4SRecConfig
from hf_seqrec.modeling.p2rec import P2RecConfig
from hf_seqrec.presets import list_presets, load_preset
from hf_seqrec.trainers import NextItemTrainingArguments
from hf_seqrec.trainers.preference import PreferenceTrainingArguments


KINDS = {"p2rec": (P2RecConfig, PreferenceTrainingArguments), "e4srec": (E4SRecConfig, NextItemTrainingArguments)}
ALL = [(method, name) for method in KINDS for name in list_presets(method)[method]]


def test_the_presets_are_there():
    assert {"paper", "default"} <= set(list_presets("p2rec")["p2rec"])
    assert {"paper-code", "default"} <= set(list_presets("e4srec")["e4srec"])
    assert load_preset("bert4rec", "llm2bert4rec").model["fusion"] == "init"


@pytest.mark.parametrize(("method", "name"), ALL)
def test_values_arrive(method, name, tmp_path):
    config_class, argument_class = KINDS[method]
    preset = load_preset(method, name)
    config = config_class(num_items=100, **preset.model)
    arguments = argument_class(str(tmp_path), use_cpu=True, **preset.training)
    for built, values in ((config, preset.model), (arguments, preset.training)):
        for key, value in values.items():
            assert getattr(built, key) == value
            assert not isinstance(value, str) or not value[0].isdigit()  # YAML 1.1 reads 1e-3 as text
