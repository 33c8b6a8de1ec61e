"""A ranker goes to the Hub in megabytes and comes back, also on a machine without the library."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_seqrec.modeling.llm_ranker import LLMRankerForSequentialRecommendation


IDS = torch.tensor([[0, 3, 4], [2, 5, 8]])


@pytest.fixture(scope="module")
def pushed(hub, llm_folders):
    """An LLM with its head and tokenizer as a repository of others on the Hub."""
    name = f"{hub.user}/tiny-llm-with-head"
    folder = llm_folders["llama"]
    for part in (AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)):
        part.push_to_hub(name)
    return name


def build(name, teacher, catalogue, **options):
    torch.manual_seed(2)
    options = {"domain": "movie", "num_candidates": 4, "history_length": 4, **options}
    return LLMRankerForSequentialRecommendation.from_parts(name, teacher, catalogue, **options)


ELSEWHERE = """
from transformers import AutoModel, AutoProcessor

model = AutoModel.from_pretrained(request["repository"], trust_remote_code=True)
processor = AutoProcessor.from_pretrained(request["repository"], trust_remote_code=True)
answer = model.score(processor([["i2", "i3"], ["i4", "i7"]])["input_ids"])[:, 1:].tolist()
"""


def test_a_machine_without_the_library_gets_the_same_scores(hub, elsewhere, pushed, teacher, catalogue):
    teacher.push_to_hub(f"{hub.user}/ranker-teacher")
    model, processor = build(pushed, f"{hub.user}/ranker-teacher", catalogue, task="index", hint=2, lora={"r": 2, "target_modules": ["q_proj"]})  # fmt: skip
    assert len(model.config.llm_revision) == len(model.config.teacher_revision) == 40
    assert not model.config.store_teacher
    model.push_to_hub(f"{hub.user}/ranker")
    processor.push_to_hub(f"{hub.user}/ranker")
    wanted = model.score(processor([["i2", "i3"], ["i4", "i7"]])["input_ids"])[:, 1:]
    # The LLM's repository moves on; the model still gets the commit it was made with.
    llm = AutoModelForCausalLM.from_pretrained(pushed)
    with torch.no_grad():
        llm.get_input_embeddings().weight.mul_(2)
    llm.push_to_hub(pushed)
    answer = elsewhere(ELSEWHERE, repository=f"{hub.user}/ranker")
    torch.testing.assert_close(torch.tensor(answer), wanted)
    files = hub.repository(f"{hub.user}/ranker").files()
    assert sum(len(file.content) for file in files.values()) < 2**20
