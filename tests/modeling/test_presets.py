import pytest
import yaml

from hf_seqrec.presets import list_presets, load_preset
from hf_seqrec.scripts.train import OWN_SCRIPTS, config_class, model_classes
from hf_seqrec.trainers import NextItemTrainingArguments


# The presets of methods that have a script of their own have tests of their own.
CONFIGS = {name: config_class(head) for name, head in model_classes().items()}
OWN = {name.replace("-", "_") for name in OWN_SCRIPTS}
ALL = [(method, name) for method, names in list_presets().items() if method in CONFIGS for name in names]
FITTED = {"popularity", "itemitem"}


def test_every_method_has_presets():
    assert set(list_presets()) == {*CONFIGS, *OWN}
    for method, names in list_presets().items():
        assert "default" in names
        if method not in FITTED and method not in OWN:
            assert {"paper", "paper-code"} <= set(names)


@pytest.mark.parametrize(("method", "name"), ALL)
def test_model_fields_make_a_configuration(method, name):
    preset = load_preset(method, name)
    config = CONFIGS[method](num_items=10, **preset.model)
    for key, value in preset.model.items():
        assert getattr(config, key) == value
    assert len(preset.source) > 10


@pytest.mark.parametrize(("method", "name"), [pair for pair in ALL if pair[0] not in FITTED])
def test_training_fields_make_training_arguments(method, name, tmp_path):
    preset = load_preset(method, name)
    arguments = NextItemTrainingArguments(output_dir=str(tmp_path), use_cpu=True, **preset.training)
    for key, value in preset.training.items():
        assert getattr(arguments, key) == value
        # YAML 1.1 reads 1e-3 as text
        assert not isinstance(value, str) or not value[0].isdigit()


def test_default_presets_agree_with_the_defaults_of_the_configurations():
    for method, config in CONFIGS.items():
        if method in ("sasrec", "gru4rec", "bert4rec", "itemitem", "popularity"):
            defaults = config(num_items=10)
            for key, value in load_preset(method).model.items():
                assert getattr(defaults, key) == value, (method, key)


def test_a_preset_is_the_callers_own_copy():
    load_preset("sasrec").model["hidden_size"] = 1
    assert load_preset("sasrec").model["hidden_size"] == 64


def test_unknown_names_list_the_choices():
    with pytest.raises(KeyError, match=r"no presets for the method 'sasrek'.*gru4rec.*sasrec"):
        load_preset("sasrek")
    with pytest.raises(KeyError, match=r"sasrec has no preset 'papper'.*paper, paper-code, default"):
        load_preset("sasrec", "papper")
    with pytest.raises(KeyError, match="sasrek"):
        list_presets("sasrek")


def test_files_are_plain_yaml_with_three_keys_each():
    from importlib import resources

    for file in resources.files("hf_seqrec.presets").iterdir():
        if file.name.endswith(".yaml"):
            for name, preset in yaml.safe_load(file.read_text()).items():
                assert set(preset) == {"model", "training", "source"}, (file.name, name)
