import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from hf_seqrec.modeling.llm import PromptEncoder, SlotVectors, add_lora, common_prefix, llm_kind, load_llm
from hf_seqrec.modeling.prompting import Slot, compile_template, make_template, tokenize_titles


# A plain sum of normalised states is nearly constant and would have no gradient.
WEIGHTS = torch.linspace(-1, 2, 16)


@pytest.fixture(params=["llama", "t5", "bert"])
def kind(request):
    return request.param


def random_prompts(lengths, seed=0):
    """Prompts with an item slot in the middle and an out slot near the end, all with the same first three tokens."""
    generator = np.random.default_rng(seed)
    prompts = [np.concatenate([[5, 6, 7], generator.integers(4, 99, length)]) for length in lengths]
    for prompt in prompts:
        prompt[len(prompt) // 2], prompt[-2] = Slot.ITEM_VECTOR, Slot.USER_OUT
    return prompts


def vectors_for(prompts, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {
        Slot.ITEM_VECTOR: SlotVectors(torch.randn(len(prompts), 16, generator=generator), np.ones(len(prompts), int)),
        Slot.USER_OUT: SlotVectors(torch.randn(1, 16, generator=generator)),
    }


def test_the_kind_of_an_llm_is_known(llm_folders):
    kinds = {name: llm_kind(load_llm(folder).config) for name, folder in llm_folders.items()}
    # Of an encoder-decoder only the encoder is loaded.
    assert kinds == {"llama": "decoder", "t5": "encoder", "bert": "encoder"} or kinds["t5"] == "encoder-decoder"


def test_states_equal_those_of_the_bare_llm(llm_folders, kind):
    llm = load_llm(llm_folders[kind])
    (prompt,) = random_prompts([9])
    vectors = vectors_for([prompt])
    embeds = llm.get_input_embeddings()(torch.from_numpy(prompt).clamp(min=0)[None])
    embeds[0, prompt == Slot.ITEM_VECTOR] = vectors[Slot.ITEM_VECTOR].values
    embeds[0, prompt == Slot.USER_OUT] = vectors[Slot.USER_OUT].values
    expected = llm(inputs_embeds=embeds).last_hidden_state[:, -2]
    torch.testing.assert_close(PromptEncoder(llm)([prompt], vectors, Slot.USER_OUT), expected)


def test_neither_company_nor_order_changes_a_state(llm_folders, kind):
    prompts = random_prompts([30, 4, 17, 9, 30, 11])
    vectors = vectors_for(prompts)
    llm = load_llm(llm_folders[kind])
    together = PromptEncoder(llm)(prompts, vectors, Slot.USER_OUT)
    assert together.std(0).min() > 1e-3  # the prompts differ, or this test could not fail
    small_passes = PromptEncoder(llm, token_budget=40)(prompts, vectors, Slot.USER_OUT)
    torch.testing.assert_close(small_passes, together)
    turned = vectors | {Slot.ITEM_VECTOR: SlotVectors(vectors[Slot.ITEM_VECTOR].values.flip(0), np.ones(6, int))}
    torch.testing.assert_close(PromptEncoder(llm)(prompts[::-1], turned, Slot.USER_OUT).flip(0), together)
    means = PromptEncoder(llm)(prompts, vectors)
    alone = [
        PromptEncoder(llm)(
            [p],
            {**vectors, Slot.ITEM_VECTOR: SlotVectors(vectors[Slot.ITEM_VECTOR].values[i : i + 1], np.ones(1, int))},
        )
        for i, p in enumerate(prompts)
    ]
    torch.testing.assert_close(means, torch.cat(alone))


def test_the_padding_side_of_the_tokenizer_never_matters(llm_folders, kind, catalogue):
    tokens = {}
    for side in ("left", "right"):
        tokenizer = AutoTokenizer.from_pretrained(llm_folders[kind], padding_side=side)
        program = compile_template(make_template(dates=False), tokenizer)
        tokens[side] = tokenize_titles(catalogue.titles.to_pylist(), tokenizer, program)
    assert all(np.array_equal(a, b) for a, b in zip(tokens["left"], tokens["right"], strict=True))


def test_a_shared_prefix_changes_nothing_but_the_work(llm_folders):
    prompts = random_prompts([40, 38, 40])
    vectors = vectors_for(prompts)
    for prompt in prompts:
        prompt[:12] = np.arange(5, 17)
    values = vectors[Slot.ITEM_VECTOR].values.requires_grad_()
    states, gradients, seen = [], [], []
    for share in (False, True):
        encoder = PromptEncoder(load_llm(llm_folders["llama"]), share_prefix=share)
        out = encoder(prompts, vectors, Slot.USER_OUT)
        states.append(out.detach())
        gradients.append(torch.autograd.grad((out * WEIGHTS).sum(), values)[0])
        seen.append(encoder.tokens_seen)
    assert common_prefix(prompts) == 12
    assert seen == [3 * 43, 12 + 3 * 31]
    torch.testing.assert_close(states[1], states[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(gradients[1], gradients[0], atol=1e-5, rtol=1e-5)
    assert gradients[0].abs().max() > 1e-3


@pytest.mark.parametrize("lora", [None, {"r": 2, "target_modules": "all-linear"}])
def test_what_stands_before_the_first_slot_needs_no_graph_and_has_the_same_gradients(llm_folders, monkeypatch, lora):
    monkeypatch.setattr("hf_seqrec.modeling.llm._PASS_COST", {"cpu": 4})
    prompts = random_prompts([40, 40, 38])
    for row, prompt in enumerate(prompts):
        prompt[3:6] = 8, 9, 50 + row  # five tokens are shared; fifteen more stand before the first slot
    states, gradients, graphs = [], [], []
    for share in (False, True):
        torch.manual_seed(0)
        llm = load_llm(llm_folders["llama"])
        if lora:
            add_lora(llm, lora)
            for name, parameter in llm.named_parameters():
                if ".lora_B" in name:
                    torch.nn.init.normal_(parameter, std=0.3)
        vectors = vectors_for(prompts)
        trained = [vectors[Slot.ITEM_VECTOR].values.requires_grad_()]
        trained += [parameter for parameter in llm.parameters() if parameter.requires_grad]
        # What a layer of the LLM is given, and whether its work is kept for the backward pass.
        seen = []
        llm.layers[0].register_forward_hook(
            lambda _, __, out, seen=seen: seen.append((out.shape[1], out.requires_grad))
        )
        out = PromptEncoder(llm, share_prefix=share, token_budget=1000)(prompts, vectors, Slot.USER_OUT)
        states.append(out.detach())
        gradients.append(torch.autograd.grad((out * WEIGHTS).sum(), trained))
        graphs.append(seen)
    assert graphs[0] == [(43, True)]
    # The shared part, what differs before the first slot (of the shortest prompt), and the rest.
    assert graphs[1] == ([(5, True), (38, True)] if lora else [(5, False), (15, False), (23, True)])
    torch.testing.assert_close(states[1], states[0], atol=1e-5, rtol=1e-5)
    for found, expected in zip(gradients[1], gradients[0], strict=True):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
        assert expected.abs().max() > 1e-4


def test_a_long_prompt_does_not_pad_the_others_and_a_few_tokens_of_padding_are_accepted(llm_folders, monkeypatch):
    monkeypatch.setattr("hf_seqrec.modeling.llm._PASS_COST", {"cpu": 8})
    lengths = [100, 20, 21, 20, 22, 20, 20]
    prompts = random_prompts([length - 3 for length in lengths])
    encoder = PromptEncoder(load_llm(llm_folders["bert"]))
    shapes = []
    encoder.llm.register_forward_pre_hook(
        lambda _, __, given: shapes.append(tuple(given["inputs_embeds"].shape[:2])), with_kwargs=True
    )
    encoder(prompts, vectors_for(prompts), Slot.USER_OUT)
    assert shapes == [(1, 100), (5, 22), (1, 20)]  # the second has 0 + 1 + 2 + 2 + 2 of padding, one more would be 9
    assert encoder.tokens_seen == 100 + 110 + 20


def test_an_llm_without_a_pad_token_reads_prompts_of_all_lengths(llm_folders):
    tokenizer, llm = AutoTokenizer.from_pretrained(llm_folders["llama"]), load_llm(llm_folders["llama"])
    assert tokenizer.pad_token is None
    assert llm.config.pad_token_id is None
    prompts = random_prompts([30, 4, 17])
    vectors = vectors_for(prompts)
    together = PromptEncoder(llm)(prompts, vectors, Slot.USER_OUT)
    short = {**vectors, Slot.ITEM_VECTOR: SlotVectors(vectors[Slot.ITEM_VECTOR].values[1:2], np.ones(1, int))}
    torch.testing.assert_close(PromptEncoder(llm)(prompts[1:2], short, Slot.USER_OUT), together[1:2])


def test_the_common_prefix_ends_before_a_slot_and_leaves_a_token():
    rows = [np.array(row) for row in ([5, 6, -1, 7], [5, 6, -1, 8])]
    assert common_prefix(rows) == 2
    assert common_prefix([np.array([5, 6, 7]), np.array([5, 6])]) == 1
    assert common_prefix([np.array([5]), np.array([6])]) == 0


def test_slots_are_counted_per_prompt(llm_folders):
    encoder = PromptEncoder(load_llm(llm_folders["bert"]))
    prompts = random_prompts([6, 8])
    vectors = vectors_for(prompts)
    # The totals agree, the rows do not.
    shifted = vectors | {Slot.ITEM_VECTOR: SlotVectors(torch.randn(2, 16), np.array([2, 0]))}
    with pytest.raises(ValueError, match=r"prompt 0 has 1 slots \[ItemEmb\], but 2 vectors were given"):
        encoder(prompts, shifted, Slot.USER_OUT)
    with pytest.raises(ValueError, match=r"2 slots \[ItemEmb\] need as many vectors, got 3"):
        encoder(prompts, vectors | {Slot.ITEM_VECTOR: SlotVectors(torch.randn(3, 16), np.ones(2, int))}, Slot.USER_OUT)
    with pytest.raises(ValueError, match=r"prompt 0 has a slot \[ItemEmb\], but no vectors"):
        encoder(prompts, {Slot.USER_OUT: vectors[Slot.USER_OUT]}, Slot.USER_OUT)
    with pytest.raises(ValueError, match=r"prompt 1 has 0 slots \[UserOut\] to read, need exactly 1"):
        encoder([prompts[0], prompts[1][:-2]], vectors, Slot.USER_OUT)
    with pytest.raises(ValueError, match="no prompt"):
        encoder([], vectors, Slot.USER_OUT)


def test_several_slots_of_a_prompt_are_filled_from_the_left(llm_folders):
    llm = load_llm(llm_folders["llama"])
    prompts = [np.array([5, -1, 6, -1, -4]), np.array([7, -1, -4])]
    values, out = torch.randn(3, 16), torch.randn(1, 16)
    vectors = {Slot.ITEM_VECTOR: SlotVectors(values, np.array([2, 1])), Slot.USER_OUT: SlotVectors(out)}
    token = llm.get_input_embeddings()
    first = torch.stack([token.weight[5], values[0], token.weight[6], values[1], out[0]])
    expected = llm(inputs_embeds=first[None]).last_hidden_state[0, -1]
    torch.testing.assert_close(PromptEncoder(llm)(prompts, vectors, Slot.USER_OUT)[0], expected)


def test_a_frozen_llm_has_no_dropout_and_no_gradient(llm_folders, kind):
    llm = load_llm(llm_folders[kind])
    assert not any(parameter.requires_grad for parameter in llm.parameters())
    prompts = random_prompts([12, 5])
    encoder = PromptEncoder(llm).train()
    first, second = (encoder(prompts, vectors_for(prompts), Slot.USER_OUT) for _ in range(2))
    assert torch.equal(first, second)


def test_activation_checkpointing_gives_the_same_gradient(llm_folders, kind):
    prompts = random_prompts([12, 5])
    gradients = []
    for checkpointing in (False, True):
        llm = load_llm(llm_folders[kind])
        if checkpointing:
            getattr(llm, "activation_checkpointing_enable", llm.gradient_checkpointing_enable)()
        vectors = vectors_for(prompts)
        values = vectors[Slot.ITEM_VECTOR].values.requires_grad_()
        encoder = PromptEncoder(llm).train()
        gradients.append(torch.autograd.grad((encoder(prompts, vectors, Slot.USER_OUT) * WEIGHTS).sum(), values)[0])
    torch.testing.assert_close(gradients[1], gradients[0], atol=1e-5, rtol=1e-5)
    assert gradients[0].abs().max() > 1e-3


def test_adapters_train_and_the_llm_does_not(llm_folders, kind):
    llm = load_llm(llm_folders[kind])
    add_lora(llm, {"r": 2, "target_modules": "all-linear"})
    prompts = random_prompts([12, 5])
    (PromptEncoder(llm)(prompts, vectors_for(prompts), Slot.USER_OUT) * WEIGHTS).sum().backward()
    trained = {name for name, parameter in llm.named_parameters() if parameter.requires_grad}
    assert trained
    assert all(".lora_" in name for name in trained)
    # B starts at zero, so in the first step only B has a gradient that is not zero.
    assert all(p.grad.abs().max() > 0 for name, p in llm.named_parameters() if ".lora_B" in name)


def test_quantization_without_a_gpu_says_what_to_do(llm_folders):
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(ImportError, match="needs a GPU and bitsandbytes"):
        load_llm(llm_folders["llama"], quantization="8bit")
    with pytest.raises(ValueError, match="must be '8bit', '4bit' or None, got 'int8'"):
        load_llm(llm_folders["llama"], quantization="int8")


@pytest.mark.parametrize("name", ["stories260k-llama", "tinytalk-gptneo-3m", "g2p-bart-en-us"])
def test_trained_llms_of_other_architectures_read_prompts(stored_models, name):
    llm, tokenizer = load_llm(str(stored_models / name)), AutoTokenizer.from_pretrained(stored_models / name)
    program = compile_template(make_template("compact", item_vectors=False, dates=False), tokenizer, max_tokens=64)
    tokens, offsets = tokenize_titles(["Heat", "The Big Fish", None], tokenizer, program)
    prompts = [program.item_prompt(tokens[offsets[row] : offsets[row + 1]]) for row in range(3)]
    out = {Slot.ITEM_OUT: SlotVectors(torch.randn(1, llm.get_input_embeddings().weight.shape[1]))}
    together = PromptEncoder(llm)(prompts, out, Slot.ITEM_OUT)
    alone = torch.cat([PromptEncoder(llm, share_prefix=False)([prompt], out, Slot.ITEM_OUT) for prompt in prompts])
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-4)
    assert together.std(0).max() > 1e-3
