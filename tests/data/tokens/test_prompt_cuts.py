"""Prompts cut to whole sentences or lines (data.spec.prompt_start, prompt_end)."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf_lightning.data.rows.problems import DataError, ProblemKind, RowError
from rlhf_lightning.data.rows.records import Record
from rlhf_lightning.data.sources.files import Files
from rlhf_lightning.data.spec import DataSpec
from rlhf_lightning.data.tokens import prompt_cuts
from rlhf_lightning.data.tokens.encode import Encoder
from rlhf_lightning.data.tokens.prompt_cuts import ENDS
from rlhf_lightning.data.tokens.tokenize import Tokenized, tokenize
from tests.helpers import tokenizers
from tests.helpers.rows import Rows

BOTH: dict[str, Any] = {"prompt_start": "sentence", "prompt_end": "sentence"}


def cut(text: str, **options: Any) -> str:
    """The prompt that is left, with a character a token."""
    record = prompt_cuts.cut(Record(text, (), "prompt", kind="prompt"), DataSpec(**{**BOTH, **options}), len)
    assert isinstance(record.prompt, str)
    assert record.cut == len(text) - len(record.prompt)
    return record.prompt


def made(*rows: dict[str, Any], tokenizer: Any = None, kind: Any = "prompt", **options: Any) -> Tokenized:
    spec = DataSpec(**{"cache": False, "template": "none", "max_left_out": 1, **BOTH, **options})
    result = tokenize(Rows(*rows), tokenizer or tokenizers.gpt2_like(), spec, kind)
    result.report.enforce(spec)
    return result


# Where sentences end


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("One. Two? Three!", ["One.", " Two?", " Three!"]),
        ("Wait... What?! Yes", ["Wait...", " What?!"]),
        ("Pi is 3.14, see example.com/a.b for more", []),
        ("Pi is 3.14.", ["Pi is 3.14."]),
        ('He said "no." (Why?) Then', ['He said "no."', " (Why?)"]),
        ("“Nein.” «Non.» end", ["“Nein.”", " «Non.»"]),
        ("First.\nSecond.\n\nThird", ["First.", "\nSecond."]),
        ("A title\n\nA line without", []),
        ("私は学生です。「そうですか？」と言った", ["私は学生です。", "「そうですか？」"]),  # noqa: RUF001
        ("円周率は３．１４です．次", ["円周率は３．１４です．"]),  # noqa: RUF001
        ("यह एक वाक्य है। और", ["यह एक वाक्य है।"]),
        ("كيف حالك؟ أنا بخير. ثم", ["كيف حالك؟", " أنا بخير."]),
        ("یہ ایک جملہ ہے۔ اور", ["یہ ایک جملہ ہے۔"]),  # noqa: RUF001
        # the limits of not parsing, as documented: an abbreviation's point is an end, whatever it means
        ("Ask Dr. Who, e.g. now. So", ["Ask Dr.", " Who, e.g.", " now."]),
    ],
)
def test_sentences_by_hand(text: Any, sentences: Any) -> None:
    ends = [match.end() for match in ENDS["sentence"].finditer(text)]
    assert [text[start:end] for start, end in zip([0, *ends], ends, strict=False)] == sentences


# What is left of a prompt


@pytest.mark.parametrize(
    ("text", "options", "left"),
    [
        ("of it. He came. He saw. He", {}, "He came. He saw."),
        ("of it.\n\n  He came.", {}, "He came."),
        ("of it. He came. He saw. He", {"prompt_start": "any"}, "of it. He came. He saw."),
        ("of it. He came. He saw. He", {"prompt_end": "any"}, "He came. He saw. He"),
        # the only end is the text's own: nothing is behind it, so the text keeps its beginning
        ("He came.", {}, "He came."),
        ("He came. \n", {}, "He came."),
        ("He came. And", {"prompt_start": "any"}, "He came."),
        # lines end with their break; white space in front of a line is its indentation
        ("a\nb c\nd", {"prompt_start": "any", "prompt_end": "line"}, "a\nb c\n"),
        ("a\n\n  b\nd", {"prompt_start": "line", "prompt_end": "line"}, "  b\n"),
        ("a\nb. c\nd", {"prompt_start": "line", "prompt_end": "sentence"}, "b."),
        ("\n\na\nb", {"prompt_start": "any", "prompt_end": "line"}, "\n\na\n"),
        ("a\r\nb\r\nc", {"prompt_start": "line", "prompt_end": "line"}, "b\r\n"),
    ],
)
def test_what_is_left_by_hand(text: Any, options: Any, left: Any) -> None:
    assert cut(text, **options) == left


@pytest.mark.parametrize(
    ("limit", "left"),
    [
        (8, "He came."),  # exactly at the limit
        (15, "He came."),  # one short of the second sentence
        (16, "He came. He saw."),  # exactly at the limit
        (24, "He came. He saw. He won."),
        (500, "He came. He saw. He won."),
        (None, "He came. He saw. He won."),
    ],
)
@pytest.mark.parametrize("name", ["max_prompt_length", "max_length"])
def test_sentences_within_the_limit(name: Any, limit: Any, left: Any) -> None:
    other = {"max_prompt_length": "max_length", "max_length": "max_prompt_length"}[name]
    assert cut("it. He came. He saw. He won. Then", **{name: limit, other: None}) == left


def test_the_nearer_limit_counts() -> None:
    text = "it. He came. He saw. He won."
    assert (
        cut(text, max_length=8, max_prompt_length=500) == cut(text, max_length=500, max_prompt_length=8) == "He came."
    )


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("nothing ends here", {}, "no sentence ends in its 17 characters"),
        ("nothing ends here", {"prompt_start": "any"}, "no sentence ends in the 17 characters"),
        ("It ends. not here", {}, "no sentence ends in the 8 characters from where the prompt begins"),
        ("it. He came home.", {"max_prompt_length": 12}, r"first sentence has 13 tokens.*max_prompt_length=12"),
        ("it. He came home.", {"max_length": 12}, r"first sentence has 13 tokens.*data.spec.max_length=12"),
        ("a line", {"prompt_end": "line", "prompt_start": "any"}, "no line ends"),
        ("\n \n", {"prompt_end": "line", "prompt_start": "any"}, "no line ends"),  # nothing stands in them
    ],
)
def test_prompts_without_a_whole_sentence(text: Any, options: Any, message: Any) -> None:
    with pytest.raises(RowError, match=message) as raised:
        cut(text, **options)
    assert raised.value.kind is ProblemKind.NO_BOUNDARY


PIECES = st.text(alphabet=st.sampled_from('ab .!\n。"'), max_size=60)


@given(PIECES, st.integers(2, 40))
def test_what_is_left_is_the_longest_run_of_whole_sentences(text: Any, limit: Any) -> None:
    """Against a plain loop over every candidate; cutting twice is cutting once where only the end is cut."""
    options = {"max_prompt_length": limit, "prompt_start": "any"}
    ends = [match.end() for match in ENDS["sentence"].finditer(text)]
    fitting = [end for end in ends if end <= limit]
    if not fitting:
        with pytest.raises(RowError):
            cut(text, **options)
        return
    left = cut(text, **options)
    assert left == text[: max(fitting)]
    assert cut(left, **options) == left


def test_a_book_is_not_tokenised_for_a_few_sentences() -> None:
    seen: list[int] = []

    def length(text: str) -> int:
        seen.append(len(text))
        return len(text)

    book = "It is so. " * 10_000
    spec = DataSpec(**BOTH, max_prompt_length=64)
    assert len(str(prompt_cuts.cut(Record(book, (), "prompt"), spec, length).prompt)) == 59
    assert max(seen) < 256


# In the pipeline


def test_tokens_the_reward_sees_and_the_report() -> None:
    rows = [
        {"prompt": "of it. He came. He saw. He", "answer": "x"},
        {"prompt": "He came."},
        {"prompt": "end. " + "He came. " * 20},
    ]
    result = made(*rows, max_prompt_length=18)
    tokenizer = tokenizers.gpt2_like()
    texts = ["He came. He saw.", "He came.", "He came. He came."]
    assert [tokenizer.decode(example.prompt) for example in result.examples] == texts
    assert result.examples.columns_of(0) == {"prompt": texts[0], "answer": "x"}
    report = result.report
    assert (report.cut_prompts, report.cut_characters) == (2, 10 + 5 + 163)
    assert (report.kept, report.excluded, report.warnings) == (3, {}, {})
    assert [note for note in report.notes if note.startswith("2 of 3 prompts are cut") and "lost 89 characters" in note]


@pytest.mark.parametrize("style", ["llama", "gpt2", "sentencepiece", "qwen"])
@pytest.mark.parametrize("boundary", ["ids", "prefix"])
def test_a_bos_and_merged_tokens_stay_within_the_limit(style: Any, boundary: Any) -> None:
    """ "." and the line break behind it are one token here: cut at the text, the full stop stays a token of its own."""
    tokenizer = tokenizers.STYLES[style]()
    text = "a.\nhi hi.\nhi.\n"
    for limit in range(6, 14):
        result = made({"prompt": text}, tokenizer=tokenizer, max_prompt_length=limit, boundary=boundary)
        (example,) = result.examples
        asked = result.examples.columns_of(0)["prompt"]
        assert asked in ("hi hi.", "hi hi.\nhi.")
        assert len(example.prompt) <= limit
        encoder = Encoder(tokenizer, DataSpec(), None)
        assert (asked == "hi hi.\nhi.") == (encoder.prompt_length("hi hi.\nhi.") <= limit)
    bos = style in ("llama", "sentencepiece")
    assert encoder.prompt_length("a.") == len(tokenizer("a.", add_special_tokens=False)["input_ids"]) + bos


def test_rows_without_a_sentence_are_named_and_may_be_left_out() -> None:
    rows = [{"prompt": "it. He came."}, {"prompt": "no end"}, {"prompt": "it. " + "a" * 40 + "."}]
    with pytest.raises(
        DataError, match=r"(?s)2 of 3 rows.*rows:2: no boundary: no sentence.*rows:3: no boundary:"
    ) as raised:
        made(*rows, max_prompt_length=20)
    for advice in ("raise data.spec.max_prompt_length", "data.spec.prompt_end=any", "data.spec.on_bad_row=exclude"):
        assert advice in str(raised.value)
    result = made(*rows, max_prompt_length=20, on_bad_row="exclude")
    assert (result.report.kept, result.report.excluded) == (1, {"no boundary": 2})
    with pytest.raises(DataError, match="none of its 1 rows can be used"):
        made(rows[1], on_bad_row="exclude")


@pytest.mark.parametrize("too_long", ["exclude", "error", "keep_end", "keep_start"])
def test_what_ends_at_a_sentence_is_never_too_long(too_long: Any) -> None:
    result = made({"prompt": "it. He came. He saw."}, max_prompt_length=10, too_long=too_long)
    assert result.examples.columns_of(0)["prompt"] == "He came."
    assert result.report.warnings == {}


def test_a_prompt_with_its_start_alone_cut_may_be_too_long() -> None:
    result = made(
        {"prompt": "it. He came."}, {"prompt": "it. He came. He saw."}, max_prompt_length=10, prompt_end="any"
    )
    assert (result.report.kept, result.report.excluded) == (1, {"too long": 1})


def test_prompts_that_become_equal_are_remarked() -> None:
    result = made({"prompt": "one. He came."}, {"prompt": "another. He came. And"})
    assert result.report.warnings == {"duplicate": 1}


def test_scored_samples_of_a_prompt_are_one_prompt_still() -> None:
    rows = [{"prompt": "of it. He came. He", "response": f" r{draw}", "score": draw} for draw in range(3)]
    result = made(*rows)
    assert [result.examples.columns_of(group)["prompt"] for group in range(len(result.examples))] == ["He came."]


def test_texts_serve_as_prompts() -> None:
    result = made({"text": "of it. He came. He"}, columns={"prompt": "text"})
    assert result.examples.columns_of(0)["prompt"] == "He came."


# Where it makes no sense

TURNS = [
    {"role": "user", "content": "A. B."},
    {"role": "assistant", "content": "C."},
    {"role": "user", "content": "D."},
]


@pytest.mark.parametrize("row", [{"messages": TURNS}, {"prompt": TURNS}, {"prompt": "A. B.", "system": "S."}])
@pytest.mark.parametrize("template", ["auto", "none"])
def test_conversations_are_refused_row_by_row(row: Any, template: Any) -> None:
    good = {"prompt": "it. He came."}
    with pytest.raises(
        DataError, match=r"rows:2: wrong type: the prompt is a conversation, but data.spec.prompt_start"
    ):
        made(good, row, template=template, tokenizer=tokenizers.qwen_like())
    result = made(good, row, template=template, tokenizer=tokenizers.qwen_like(), on_bad_row="exclude")
    assert (result.report.kept, result.report.bad) == (1, 1)


@pytest.mark.parametrize("template", ["tokenizer", "plain", "chatml", "x.jinja"])
@pytest.mark.parametrize("name", ["prompt_start", "prompt_end"])
def test_templates_are_refused(name: Any, template: Any) -> None:
    with pytest.raises(ValueError, match=rf"data.spec.{name}=line cuts plain text.*template={template}.*template=none"):
        DataSpec(**dict[str, Any]({"template": template, name: "line"}))


@pytest.mark.parametrize("kind", ["preference", "supervised"])
def test_data_with_responses_is_refused_before_a_row_is_read(kind: Any) -> None:
    class Unread(Rows):
        def rows(self) -> Any:
            pytest.fail("read")

    spec = DataSpec(cache=False, prompt_end="sentence")
    message = r"^data.spec.prompt_end=sentence cuts prompts.*learns from (pairs|demonstrations).*prompt_end to any"
    with pytest.raises(DataError, match=message):
        tokenize(Unread(), tokenizers.gpt2_like(), spec, kind)


def test_unknown_boundaries_are_refused() -> None:
    with pytest.raises(ValueError, match=r"data.spec.prompt_end='sentences' is not one of.*Did you mean 'sentence'"):
        DataSpec(prompt_end="sentences")  # type: ignore[arg-type]


# Defaults and the cache


def test_by_default_prompts_are_as_the_data_have_them() -> None:
    text = "of it. He came. He"
    result = made({"prompt": text}, prompt_start="any", prompt_end="any")
    assert result.examples.columns_of(0)["prompt"] == text
    assert (DataSpec().prompt_start, DataSpec().prompt_end) == ("any", "any")
    assert (result.report.cut_prompts, result.report.notes) == (0, [])


def test_cut_prompts_are_cached_apart(tmp_path: Any) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"prompt": "of it. He came. He"}\n')
    source = Files(str(file), name="rows")

    def read(**options: Any) -> Tokenized:
        spec = DataSpec(cache_dir=str(tmp_path / "cache"), template="none", **options)
        return tokenize(source, tokenizers.gpt2_like(), spec, "prompt")

    choices: list[dict[str, Any]] = [{}, {"prompt_start": "sentence"}, {"prompt_end": "sentence"}, dict(BOTH)]
    first, second = ([read(**options) for options in choices] for _ in range(2))
    texts = [result.examples.columns_of(0)["prompt"] for result in first]
    assert texts == ["of it. He came. He", "He came. He", "of it. He came.", "He came."]
    assert [result.examples.columns_of(0)["prompt"] for result in second] == texts
    assert [result.report for result in second] == [result.report for result in first]
    assert len(list((tmp_path / "cache" / "tokenised").glob("*/rows.arrow"))) == len(choices)
