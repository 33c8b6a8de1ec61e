"""The way to the Hub and back, also on a machine without the library."""

import re
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import hf_hub_download
from transformers import AutoModel, AutoProcessor, AutoTokenizer

from hf_seqrec.cli import main
from hf_seqrec.hub import push_recommender
from hf_seqrec.modeling.llm_processing import LLMSequentialRecommendationProcessor
from hf_seqrec.modeling.llm_srec import LLMSRecForSequentialRecommendation


IDS = torch.tensor([[0, 3, 4], [2, 5, 7]])


@pytest.fixture(scope="module")
def pushed(hub, llm_folders):
    """An LLM with its tokenizer, and two commits of it, as repositories of others on the Hub."""
    name = f"{hub.user}/tiny-llm"
    for part in (AutoModel.from_pretrained(llm_folders["llama"]), AutoTokenizer.from_pretrained(llm_folders["llama"])):
        part.push_to_hub(name)
    return name


def build(name, teacher, catalogue, **options):
    torch.manual_seed(2)
    options = {"style": "compact", "dates": False, "hidden_size": 8, "head_size": 16, "history_length": 4, **options}
    model, processor = LLMSRecForSequentialRecommendation.from_parts(name, teacher, catalogue, **options)
    return model.eval(), processor


def test_llm_and_teacher_come_back_by_id_and_commit(hub, pushed, teacher, catalogue, tmp_path):
    teacher.push_to_hub(f"{hub.user}/tiny-teacher")
    model, processor = build(pushed, f"{hub.user}/tiny-teacher", catalogue)
    assert len(model.config.llm_revision) == len(model.config.teacher_revision) == 40
    assert not model.config.store_teacher
    model.push_to_hub(f"{hub.user}/distilled")
    processor.push_to_hub(f"{hub.user}/distilled")
    scores = model.score(IDS)
    # Both repositories move on; the model still gets the commits it was trained with.
    with torch.no_grad():
        teacher.model.item_encoder.id_embedding.weight.mul_(2)
    teacher.push_to_hub(f"{hub.user}/tiny-teacher")
    llm = AutoModel.from_pretrained(pushed)
    with torch.no_grad():
        llm.embed_tokens.weight.mul_(2)
    llm.push_to_hub(pushed)
    loaded = LLMSRecForSequentialRecommendation.from_pretrained(f"{hub.user}/distilled")
    torch.testing.assert_close(loaded.score(IDS), scores)
    again = AutoProcessor.from_pretrained(f"{hub.user}/distilled")
    assert type(again) is LLMSequentialRecommendationProcessor
    assert again.program == processor.program
    files = hub.repository(f"{hub.user}/distilled").files()
    assert "model.safetensors" in files
    assert not any("tokenizer" in name for name in files)


ELSEWHERE = """
from transformers import AutoModel, AutoProcessor

model = AutoModel.from_pretrained(request["repository"], trust_remote_code=True)
processor = AutoProcessor.from_pretrained(request["repository"], trust_remote_code=True)
more = processor.add_items(["new"], ["Dune"])
scores = model.score(processor([["i2", "i3"], ["i4", "i6"]])["input_ids"])[:, 1:].tolist()
model.add_items(more)
assert model.score(more([["i2", "new"]])["input_ids"]).shape == (1, 14)
answer = {"scores": scores, "prompt": processor.render_item("i2")}
"""


def test_a_machine_without_the_library_gets_the_same_scores(hub, elsewhere, pushed, teacher, catalogue):
    lora = {"r": 2, "target_modules": "all-linear"}
    model, processor = build(pushed, teacher, catalogue, user_vector=True, distilled=False, lora=lora)
    model.push_to_hub(f"{hub.user}/elsewhere-llm")
    processor.push_to_hub(f"{hub.user}/elsewhere-llm")
    answer = elsewhere(ELSEWHERE, repository=f"{hub.user}/elsewhere-llm")
    here = model.score(processor([["i2", "i3"], ["i4", "i6"]])["input_ids"])[:, 1:]
    torch.testing.assert_close(torch.tensor(answer["scores"]), here)
    assert answer["prompt"] == processor.render_item("i2")


CARD_ELSEWHERE = """
code, names = request["code"], {}
try:
    exec(code, {})
    answer = {"alone": "no error"}
except Exception as error:
    answer = {"alone": str(error)}
exec(code.replace("/path/to/away", request["llm"]), names)
answer["titles"] = [row["title"] for row in names["recommendations"]]
names["recommend"].processor.render_item("i2")
"""


def test_a_language_model_from_a_folder_is_named_by_who_loads_the_model(
    hub, elsewhere, llm_folders, teacher, catalogue, tmp_path, caplog, capsys
):
    here, moved, repo = tmp_path / "away", tmp_path / "moved", f"{hub.user}/folder-llm"
    shutil.copytree(llm_folders["bert"], here)
    model, processor = build(str(here), teacher, catalogue)
    with caplog.at_level("WARNING", "hf_seqrec.hub"):
        push_recommender(model, processor, repo)
    assert f"the language model of {repo} was read from {here}, which does not go to the Hub" in caplog.text
    here.rename(moved)
    card = Path(hf_hub_download(repo, "README.md")).read_text(encoding="utf-8")
    assert "The language model inside came from a folder" in card
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    answer = elsewhere(CARD_ELSEWHERE, code=code, llm=str(moved))
    assert "there is no folder /path/to/away" in answer["alone"]
    history = [processor.titles[1]]
    assert main(["recommend", repo, "--history", *history]) == 1
    assert "naming where 'away' is now" in capsys.readouterr().err
    assert main(["recommend", repo, "--history", *history, "--llm", str(moved)]) == 0
    printed = capsys.readouterr().out
    assert sum(title in printed for title in processor.titles if title) > 3
