from __future__ import annotations

import pytest

from rlhf_lightning.data.rows.formats import Record
from rlhf_lightning.data.rows.problems import DataError, ProblemKind, RowError
from rlhf_lightning.data.spec import DataSpec
from rlhf_lightning.data.tokens.templates import ChatTemplate, render, resolve
from tests.helpers import tokenizers


def user(content):
    return {"role": "user", "content": content}


def assistant(content):
    return {"role": "assistant", "content": content}


def rendered(tokenizer, *turns, prompt=1, **options):
    template = resolve(tokenizer, DataSpec(**options))
    return template.record(Record(list(turns[:prompt]), (list(turns[prompt:]),), "messages"))


#: style -> prompt, segments of the response to [user a, assistant b, user c, assistant d], closed
MULTI_TURN = {
    "llama": ("<s>[a]", [(" b</s>", True), ("[c]", False), (" d</s>", True)], True),
    "qwen": (
        "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n",
        [
            ("b<|im_end|>", True),
            ("\n<|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\n", False),
            ("d<|im_end|>", True),
        ],
        True,
    ),
    "gpt2": (
        "\n\nHuman: a\n\nAssistant:",
        [(" b", True), ("\n\nHuman: c\n\nAssistant:", False), (" d", True)],
        False,
    ),
    "default_system": (
        "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n",
        [
            ("b<|im_end|>", True),
            ("\n<|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\n", False),
            ("d<|im_end|>", True),
        ],
        True,
    ),
    # the header of a response belongs to the prompt although the template has no generation prompt
    "headless": (
        "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n",
        [
            ("b<|im_end|>", True),
            ("\n<|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\n", False),
            ("d<|im_end|>", True),
        ],
        True,
    ),
}


@pytest.mark.parametrize("style", MULTI_TURN)
def test_segments_of_a_multi_turn_demonstration(style):
    text = rendered(tokenizers.STYLES[style](), user("a"), assistant("b"), user("c"), assistant("d"))
    prompt, segments, closed = MULTI_TURN[style]
    assert (text.prompt, text.responses, text.closed) == (prompt, [segments], [closed])
    assert text.unscored_turns == 0


@pytest.mark.parametrize("style", tokenizers.STYLES)
def test_prompt_and_segments_are_the_rendering_up_to_the_end_of_turn(style):
    tokenizer = tokenizers.STYLES[style]()
    turns = [user("a"), assistant("b"), user("c"), assistant("d")]
    template = resolve(tokenizer, DataSpec())
    text = template.record(Record(turns[:1], (turns[1:],), "messages"))
    whole = text.prompt + "".join(segment for segment, _ in text.responses[0])
    assert whole + template.tail == template.render(turns)
    assert text.prompt == template.prompt(turns[:1])


def test_a_template_that_hides_earlier_thoughts_scores_only_what_the_model_would_write():
    thought = "<think>x</think> b"
    text = rendered(tokenizers.thinking(), user("a"), assistant(thought), user("c"), assistant(thought))
    shown, response = text.responses[0]
    assert shown == ("b<|im_end|>\n<|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\n", False)
    assert response == (f"{thought}<|im_end|>", True)
    assert text.unscored_turns == 1


def test_a_template_that_trims_scores_the_trimmed_text():
    text = rendered(tokenizers.thinking(), user(" a "), assistant(" b \n"))
    assert text.responses[0] == [("b<|im_end|>", True)]


def test_tool_turns_are_shown_and_not_scored():
    tool = {"role": "tool", "content": "7"}
    text = rendered(tokenizers.qwen_like(), user("a"), assistant("call"), tool, assistant("b"))
    assert [segment for segment, counts in text.responses[0] if counts] == ["call<|im_end|>", "b<|im_end|>"]
    assert "tool\n7<|im_end|>" in text.responses[0][1][0]


def test_both_responses_of_a_pair_follow_the_same_prompt():
    template = resolve(tokenizers.qwen_like(), DataSpec())
    text = template.record(Record([user("a")], ([assistant("b")], [assistant("c")]), "preference"))
    assert text.responses == [[("b<|im_end|>", True)], [("c<|im_end|>", True)]]


@pytest.mark.parametrize(
    ("style", "choice", "name"),
    [
        ("qwen", "auto", "tokenizer"),
        ("gpt2", "auto", "plain"),
        ("qwen", "plain", "plain"),
        ("gpt2", "chatml", "chatml"),
    ],
)
def test_choice_of_template(style, choice, name):
    assert resolve(tokenizers.STYLES[style](), DataSpec(template=choice)).name == name


def test_chatml_on_a_tokenizer_without_its_tokens_still_needs_an_eos():
    text = rendered(tokenizers.gpt2_like(), user("a"), assistant("b"), template="chatml")
    assert text.responses == [[("b<|im_end|>", True)]]
    assert text.closed == [False]


def test_template_from_a_file(tmp_path):
    file = tmp_path / "mine.jinja"
    file.write_text("{{ mark }}{% for m in messages %}({{ m.content }}){% endfor %}", encoding="utf-8")
    template = resolve(tokenizers.gpt2_like(), DataSpec(template=str(file), template_arguments={"mark": "!"}))
    assert template.prompt([user("a")]) == "!(a)("  # also without a generation prompt


def test_plain_template_puts_a_system_message_first():
    text = rendered(tokenizers.gpt2_like(), {"role": "system", "content": "S"}, user("a"), assistant("b"), prompt=2)
    assert text.prompt == "S\n\nHuman: a\n\nAssistant:"


def test_template_none_renders_text_only():
    assert resolve(tokenizers.qwen_like(), DataSpec(template="none")) is None
    assert render(Record("a", ("b",), "text"), None).responses == [[("b", True)]]
    with pytest.raises(RowError, match=r"data\.spec\.template=none renders text only"):
        render(Record([user("a")], ([assistant("b")],), "messages"), None)


def test_text_is_left_alone_by_a_chat_template():
    text = render(Record("a", ("b",), "prompt_response"), resolve(tokenizers.qwen_like(), DataSpec()))
    assert (text.prompt, text.responses, text.templated) == ("a", [[("b", True)]], False)


def test_what_is_learnt_from_the_probe():
    llama = resolve(tokenizers.llama_like(), DataSpec())
    assert (llama.ending, llama.tail, llama.end_token, llama.bos_marks_turns) == ("</s>", "", "</s>", False)
    qwen = resolve(tokenizers.qwen_like(), DataSpec())
    assert (qwen.ending, qwen.tail, qwen.end_token) == ("<|im_end|>", "\n", "<|im_end|>")
    assert resolve(tokenizers.default_system(), DataSpec()).bos_marks_turns
    plain = resolve(tokenizers.gpt2_like(), DataSpec())
    assert (plain.ending, plain.tail, plain.end_token) == ("", "", None)


def test_what_follows_the_end_of_turn_token_is_dropped_even_if_it_is_an_eos():
    # Phi-3 ends a conversation with end-of-turn, line break and EOS: generation stops at the first of them
    tokenizer = tokenizers.headless()
    tokenizer.chat_template = tokenizers.CHATML + "{% if not add_generation_prompt %}{{ eos_token }}{% endif %}"
    template = resolve(tokenizer, DataSpec())
    assert (template.ending, template.tail) == ("<|im_end|>", "\n<|endoftext|>")
    assert rendered(tokenizer, user("a"), assistant("b")).responses == [[("b<|im_end|>", True)]]


#: template, part of the error
UNUSABLE = {
    "refuses": ("{{ raise_exception('never') }}", "cannot render a prompt and a response: TemplateError: never"),
    "drops responses": ("{{ messages[0]['content'] }}", "the response is not in the rendered text"),
    "opens a thought in the generation prompt": (
        tokenizers.CHATML.replace("assistant\n'", "assistant\n<think>\n'"),
        "generation prompt ends with .*<think>.*template_arguments",
    ),
}


@pytest.mark.parametrize("name", UNUSABLE)
def test_unusable_templates_are_refused_at_once(name):
    source, message = UNUSABLE[name]
    with pytest.raises(DataError, match=message):
        resolve(tokenizers.qwen_like(source), DataSpec())


def test_missing_templates_name_the_choices():
    with pytest.raises(DataError, match="the tokenizer has no chat template"):
        resolve(tokenizers.gpt2_like(), DataSpec(template="tokenizer"))
    with pytest.raises(DataError, match="neither one of auto, tokenizer, plain, chatml, none nor a file"):
        resolve(tokenizers.gpt2_like(), DataSpec(template="nowhere.jinja"))


def test_a_row_that_the_template_refuses_is_a_row_error():
    with pytest.raises(RowError, match="no system turn") as raised:
        rendered(tokenizers.llama_like(), {"role": "system", "content": "s"}, user("a"), assistant("b"), prompt=2)
    assert raised.value.kind is ProblemKind.TEMPLATE


def test_a_template_that_rewrites_the_prompt_is_a_row_error():
    counting = "{{ messages | length }}" + tokenizers.CHATML
    tokenizer = tokenizers.qwen_like(tokenizers.CHATML)
    template = resolve(tokenizer, DataSpec())
    template.source = counting
    with pytest.raises(RowError, match="shows the prompt differently when a response follows"):
        template.record(Record([user("a")], ([assistant("b")],), "messages"))


def test_the_digest_follows_source_and_arguments():
    base = resolve(tokenizers.qwen_like(), DataSpec()).digest()
    assert resolve(tokenizers.qwen_like(), DataSpec(mask="response")).digest() == base
    assert resolve(tokenizers.thinking(), DataSpec()).digest() != base
    assert resolve(tokenizers.qwen_like(), DataSpec(template_arguments={"a": 1})).digest() != base
    assert isinstance(resolve(tokenizers.qwen_like(), DataSpec(template="plain")), ChatTemplate)
