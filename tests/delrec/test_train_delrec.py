"""The commands, from the first stage to the case study, and the way to the Hub and back."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from safetensors.torch import load_file

from hf_seqrec.cli import main
from hf_seqrec.hub import load_recommender
from hf_seqrec.modeling import SASRecConfig, SASRecForSequentialRecommendation
from hf_seqrec.modeling.delrec import SOFT_PROMPT_FILE, DELRecForSequentialRecommendation, soft_prompt_size
from hf_seqrec.presets import list_presets
from hf_seqrec.scripts.train import parse
from hf_seqrec.scripts.train_delrec import METHODS, make_parser
from hf_seqrec.scripts.training_run import read_json


SMALL = [
    "--num_soft_tokens", "3", "--alpha", "3", "--num_recommended", "2", "--num_candidates", "4", "--history_length", "6",
    "--max_title_tokens", "8", "--max_steps", "2", "--per_device_train_batch_size", "4", "--use_cpu", "--disable_tqdm", "true",
    "--eval_strategy", "steps", "--eval_steps", "1", "--save_strategy", "steps", "--save_steps", "1", "--domain", "movie",
    "--logging_strategy", "no",
]  # fmt: skip
TUNE = [
    *SMALL,
    "--num_sampled",
    "3",
    "--eval_negatives",
    "3",
    "--metric_for_best_model",
    "ndcg@10/sampled3",
    "--cutoffs",
    "1",
    "10",
]
ADAPTER = json.dumps({"type": "adalora", "init_r": 3, "target_r": 1})


@pytest.fixture(scope="module")
def world(tmp_path_factory, catalogue, sequences):
    """A data set and a teacher as folders."""
    folder = tmp_path_factory.mktemp("world")
    data = folder / "data"
    data.mkdir()
    pq.write_table(catalogue.table, data / "items.parquet")
    users = [f"u{user}" for user in range(len(sequences)) for _ in sequences[user]]
    items = [f"i{item - 1}" for item in sequences.item_index.tolist()]
    rows = pa.table({"user_id": users, "item_id": items, "timestamp": pa.array(range(len(users)), pa.int64())})
    pq.write_table(rows, data / "interactions.parquet")
    torch.manual_seed(1)
    teacher = SASRecForSequentialRecommendation(
        SASRecConfig(num_items=16, hidden_size=8, intermediate_size=8, num_hidden_layers=1, max_length=8)
    )
    teacher.save_pretrained(folder / "teacher")
    (folder / "teacher" / "run.yaml").write_text(yaml.safe_dump({"split": "leave_one_out"}))
    return folder


def command(world, llms, method, output, *more):
    return [
        "train", method, "--dataset", str(world / "data"), "--llm", llms["llama"], "--teacher", str(world / "teacher"),
        "--output_dir", str(output), *(SMALL if method == METHODS[0] else TUNE), *more,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def stages(world, llms):
    """Both stages, as commands."""
    one, two = world / "stage1", world / "delrec"
    assert main(command(world, llms, "delrec-distill", one)) == 0
    tune = command(world, llms, "delrec-tune", two, "--soft_prompts", str(one), "--adapter", ADAPTER)
    tune[tune.index("--num_soft_tokens") + 1] = "7"  # the file knows better
    assert main(tune) == 0
    return one, two


def test_stage_one_leaves_soft_prompts_a_curve_and_its_settings(stages):
    one, _ = stages
    assert soft_prompt_size(one) == 3
    told = json.loads((one / "agreement.json").read_text())
    evaluated = [log for log in told["curve"] if "eval_rps_agreement" in log]
    assert [log["step"] for log in evaluated] == [0, 1, 2]
    assert told["floors"]["chance"]["rps_agreement"] == 0.25
    assert yaml.safe_load((one / "run.yaml").read_text())["alpha"] == 3


def test_stage_two_leaves_a_recommender_with_those_soft_prompts(stages):
    one, two = stages
    model, processor = load_recommender(two)
    assert isinstance(model, DELRecForSequentialRecommendation)
    assert torch.equal(model.soft_prompt.weight, load_file(one / SOFT_PROMPT_FILE)["soft_prompt"])
    assert any(".lora_E" in name for name in load_file(two / "model.safetensors"))
    assert sorted(path.name for path in (two / "records").glob("*.json")) == [
        "test-sampled3.json", "test-seen-allowed.json", "test.json",
    ]  # fmt: skip
    assert processor.num_items == 16


def test_explain_prints_three_lists_of_titles(stages, capsys):
    _, two = stages
    assert main(["recommend", str(two), "--history", "Heat", "Alien", "--explain", "--top-k", "3", "--json"]) == 0
    lists = json.loads(capsys.readouterr().out)
    assert list(lists) == ["teacher", "llm", "delrec"]
    assert all(len(rows) == 3 and {"title", "item_id", "score"} <= set(rows[0]) for rows in lists.values())
    assert main(["recommend", str(two), "--history", "Heat", "--explain", "--top-k", "2"]) == 0
    assert "language model alone" in capsys.readouterr().out


def test_explain_needs_a_model_that_can(stages, world, capsys):
    _, two = stages
    assert main(["recommend", str(two), "--history", "Heat", "--explain", "--candidates", "Up"]) == 1
    assert "does not go with --explain" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ([], "do not go together"),
        (["--soft_prompts", "random", "--pattern", "none"], "do not go together"),
        (["--soft_prompts", "nowhere"], "nowhere"),
        (["--soft_prompts", "random", "--adapter", "{"], "need a JSON object"),
        (["--soft_prompts", "random", "--adapter", '{"r": 2}'], "adalora or lora"),
        (["--soft_prompts", "random", "--alfa", "3"], "did you mean --alpha"),
        (["--soft_prompts", "random", "--split", "user_ratio"], "was trained on the split leave_one_out"),
        (["--soft_prompts", "random", "--shuffle_training", "0"], r"this run has leave_one_out (shuffled)"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(world, llms, tmp_path, capsys, more, message):
    assert main(command(world, llms, "delrec-tune", tmp_path / "out", *more)) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("method", METHODS)
def test_presets_fit_their_stage(method, tmp_path):
    names = list_presets(method.replace("-", "_"))[method.replace("-", "_")]
    assert names == ["paper", "paper-code", "default"]
    for name in names:
        words = [
            method,
            "--dataset",
            "d",
            "--llm",
            "l",
            "--teacher",
            "t",
            "--output_dir",
            str(tmp_path),
            "--preset",
            name,
            "--use_cpu",
        ]
        _, training, model = parse(words, None, make_parser)
        assert isinstance(training.learning_rate, float)
        assert model.num_soft_tokens in (32, 80, 100)
        adapter = read_json(model.adapter, "adapter")
        assert (adapter is None) == (method == METHODS[0])


def test_soft_prompts_and_model_come_back_from_the_hub(hub, make, stages, llms, teacher, catalogue):
    model = make()
    torch.nn.init.normal_(model.soft_prompt.weight)
    name = f"{hub.user}/delrec-soft-prompts"
    commit = model.push_soft_prompts(name, token=hub.token)
    files = hub.repository(name).files()
    assert set(files) - {".gitattributes"} == {SOFT_PROMPT_FILE, "README.md"}
    assert len(files[SOFT_PROMPT_FILE].content) < 2_000
    other = make()
    other.load_soft_prompts(name, revision=commit.oid)
    assert torch.equal(other.soft_prompt.weight, model.soft_prompt.weight)
    other.push_to_hub(f"{hub.user}/delrec", token=hub.token)
    back = DELRecForSequentialRecommendation.from_pretrained(f"{hub.user}/delrec")
    history, candidates = torch.tensor([[0, 3, 9]]), torch.tensor([[1, 2, 4, 5]])
    torch.testing.assert_close(back.score(history, candidates), model.score(history, candidates))
