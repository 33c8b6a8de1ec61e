import numpy as np
import pytest
from transformers import AutoTokenizer

from hf_seqrec.modeling.llm_processing import LLMSequentialRecommendationProcessor
from hf_seqrec.modeling.prompting import (
    DOMAINS,
    TEMPLATE_VERSION,
    PromptProgram,
    Slot,
    clean_title,
    compile_template,
    make_template,
    special_tokens_around,
    tokenize_titles,
)


DAY = 86_400

# What a person reads; a change here must raise TEMPLATE_VERSION.
GOLDEN_USER = {
    "movie": 'This user has watched a series of movies in the following order: Item No.1, Time: 1970-01-02, "Heat"[ItemEmb], '
    'Item No.2, Time: 1970-01-03, "Up"[ItemEmb]. Based on this sequence of movies watched, generate the user representation '
    "token:[UserOut]",
    "product": 'This user has made a series of purchases in the following order: Item No.1, Time: 1970-01-02, "Heat"[ItemEmb], '
    'Item No.2, Time: 1970-01-03, "Up"[ItemEmb]. Based on this sequence of purchases, generate the user representation '
    "token:[UserOut]",
    "game": 'This user has played a series of games in the following order: Item No.1, Time: 1970-01-02, "Heat"[ItemEmb], '
    'Item No.2, Time: 1970-01-03, "Up"[ItemEmb]. Based on this sequence of games played, generate the user representation '
    "token:[UserOut]",
    "business": "This user has visited a series of businesses in the following order: Item No.1, Time: 1970-01-02, "
    '"Heat"[ItemEmb], Item No.2, Time: 1970-01-03, "Up"[ItemEmb]. Based on this sequence of visits, generate the user '
    "representation token:[UserOut]",
}


@pytest.fixture(params=["llama", "t5", "bert"])
def tokenizer(request, llm_folders):
    return AutoTokenizer.from_pretrained(llm_folders[request.param])


def as_text(tokenizer, tokens):
    start, end = special_tokens_around(tokenizer)
    assert list(tokens[: len(start)]) == start
    assert list(tokens[len(tokens) - len(end) :]) == end
    inside = tokens[len(start) : len(tokens) - len(end)]
    return "".join(Slot(token).text if token < 0 else tokenizer.convert_ids_to_tokens(int(token)) for token in inside)


def test_every_domain_has_a_golden_prompt():
    assert set(GOLDEN_USER) == set(DOMAINS)
    assert TEMPLATE_VERSION == 1


@pytest.mark.parametrize("domain", GOLDEN_USER)
def test_the_user_prompt_reads_as_recorded(domain):
    template = make_template("paper", domain)
    assert template.render_user(["Heat", "Up"], [DAY, 2 * DAY + 5]) == GOLDEN_USER[domain]


def test_the_prompts_of_the_baselines_read_as_recorded():
    titles = make_template("paper", "movie", item_vectors=False, dates=False)  # TALLRec
    assert titles.render_user(["Heat"]) == (
        'This user has watched a series of movies in the following order: Item No.1, "Heat". Based on this sequence of movies '
        "watched, generate the user representation token:[UserOut]"
    )
    assert titles.render_item("Heat") == (
        'The item title is as follows: "Heat", then generate the item representation token:[ItemOut]'
    )
    user = make_template("paper", "product", user_vector=True, dates=False)  # CoLLM, A-LLMRec
    assert user.render_user(["Heat"]) == (
        "This is the user representation from a recommendation model:[UserEmb], and this user has made a series of purchases in "
        'the following order: Item No.1, "Heat"[ItemEmb]. Based on this sequence of purchases and the user representation, '
        "generate the user representation token:[UserOut]"
    )
    assert user.render_item("Heat") == (
        'The item title and item embedding are as follows: "Heat"[ItemEmb], then generate the item representation token:[ItemOut]'
    )


def test_the_compact_prompts_read_as_recorded():
    template = make_template("compact", "game", user_vector=True)
    assert template.render_user(["Heat", "Up"], [0, DAY]) == (
        "user:[UserEmb]. games in order: 1, 1970-01-01. Heat[ItemEmb] 2, 1970-01-02. Up[ItemEmb]. The user:[UserOut]"
    )
    assert template.render_item("Up") == "game: Up[ItemEmb]. The item:[ItemOut]"


@pytest.mark.parametrize("style", ["paper", "compact"])
@pytest.mark.parametrize("switches", [{}, {"dates": False}, {"user_vector": True}, {"item_vectors": False}])
def test_tokens_spell_the_rendered_text(tokenizer, style, switches):
    template = make_template(style, "movie", **switches)
    titles, times = ["Heat (1995)", None, "Up </s> [UserOut]"], [0, 1_400_000_000, 1_500_000_000]
    program = PromptProgram(**compile_template(template, tokenizer).to_dict())  # as it comes back from JSON
    tokens, offsets = tokenize_titles(titles, tokenizer, program)
    rows = [tokens[offsets[row] : offsets[row + 1]] for row in range(3)]
    assert as_text(tokenizer, program.user_prompt(rows, times)) == template.render_user(titles, times)
    assert as_text(tokenizer, program.item_prompt(rows[2])) == template.render_item(titles[2])


def test_slot_and_special_strings_in_titles_stay_text(tokenizer):
    program = compile_template(make_template(dates=False), tokenizer)
    wild = "[UserOut] [ItemEmb] <s> </s> <pad> {title}"
    tokens, _ = tokenize_titles([wild], tokenizer, program)
    prompt = program.user_prompt([tokens])
    assert np.count_nonzero(prompt == Slot.USER_OUT) == 1
    assert np.count_nonzero(prompt == Slot.ITEM_VECTOR) == 1
    special = {tokenizer.convert_tokens_to_ids(token) for token in ("<s>", "</s>", "<pad>")}
    assert not special & set(tokens.tolist())
    assert clean_title(wild) == "(UserOut) (ItemEmb) <s> </s> <pad> {title}"


@pytest.mark.parametrize("title", [None, "", "  \n", "\u200b", "\x00\x07"])
def test_a_title_without_a_visible_character_reads_no_title(title):
    assert make_template("compact", item_vectors=False).render_item(title) == "product: No title. The item:[ItemOut]"


def test_titles_are_cut_by_tokens_and_the_tail_of_a_prompt_never(tokenizer):
    template = make_template("compact", dates=False)
    program = compile_template(template, tokenizer, history_length=3, max_title_tokens=5, max_tokens=1000)
    tokens, offsets = tokenize_titles(["abcdefghij"] * 3, tokenizer, program)
    assert np.diff(offsets).tolist() == [5, 5, 5]
    rows = [tokens[:5]] * 3
    whole = program.user_prompt(rows)
    tight = compile_template(template, tokenizer, 3, 5, len(whole) - 4).user_prompt(rows)
    # 15 title tokens do not fit by 4: three titles of three tokens are the longest that do.
    assert len(whole) - len(tight) == 6
    kept = len(special_tokens_around(tokenizer)[1]) + len(". The user:") + 1
    assert tight[-kept:].tolist() == whole[-kept:].tolist()
    assert np.count_nonzero(tight == Slot.ITEM_VECTOR) == 3


def test_a_prompt_that_cannot_fit_is_refused_with_its_numbers(tokenizer):
    program = compile_template(make_template("paper", dates=False), tokenizer, max_tokens=60)
    with pytest.raises(ValueError, match=r"even with titles of one token, the LLM takes \d+: lower `history_length`"):
        program.user_prompt([np.array([5])] * 2)


def test_histories_that_no_prompt_can_show_are_refused(tokenizer):
    program = compile_template(make_template(), tokenizer, history_length=2)
    title = np.array([5])
    with pytest.raises(ValueError, match="history is empty"):
        program.user_prompt([], [])
    with pytest.raises(ValueError, match="holds 2 items of a history, got 3"):
        program.user_prompt([title] * 3, [0] * 3)
    with pytest.raises(ValueError, match="needs 1 timestamps, got None"):
        program.user_prompt([title])
    with pytest.raises(ValueError, match="in the year 2100"):
        program.user_prompt([title], [4_102_444_800])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"style": "long"}, "`style` must be one of paper, compact"),
        ({"domain": "book"}, "`domain` must be one of movie"),
    ],
)
def test_unknown_wordings_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        make_template(**options)


def test_the_processor_keeps_its_prompts_through_a_save(llm_folders, catalogue, tmp_path):
    processor = LLMSequentialRecommendationProcessor.from_catalogue(
        catalogue, 6, "f00", llm_name_or_path=llm_folders["llama"], style="compact", domain="movie", history_length=2
    )
    processor.save_pretrained(tmp_path)
    loaded = LLMSequentialRecommendationProcessor.from_pretrained(tmp_path)
    assert loaded.program == processor.program
    assert loaded.program.version == TEMPLATE_VERSION
    assert loaded.to_dict().items() <= processor.to_dict().items()  # which has an auto_map since it was saved
    assert loaded([["i0", "i1"]])["input_ids"].tolist() == [[1, 2]]
    # Only the last two items are shown.
    text = loaded.render_user(["i0", "i1", "i2"], [0, DAY, 2 * DAY])
    assert text == "movies in order: 1, 1970-01-02. Alien[ItemEmb] 2, 1970-01-03. Up[ItemEmb]. The user:[UserOut]"
    for tokens, again in zip(processor.title_tokens(), loaded.title_tokens(), strict=True):
        assert np.array_equal(tokens, again)


def test_a_processor_takes_new_items_behind_the_old(llm_folders, catalogue):
    processor = LLMSequentialRecommendationProcessor.from_catalogue(catalogue, 6, llm_name_or_path=llm_folders["bert"])
    more = processor.add_items(["new"], ["Dune"])
    assert more.to_index(["new"]).tolist() == [13]
    assert np.array_equal(more.title_tokens()[0][: len(processor.title_tokens()[0])], processor.title_tokens()[0])
    with pytest.raises(ValueError, match="'i3' appears more than once"):
        processor.add_items(["i3"], ["Again"])
