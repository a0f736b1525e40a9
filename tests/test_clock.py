"""Templates that read the clock: one date for a run, in every process and on every day that it takes."""

from __future__ import annotations

import json
import locale
import os
import subprocess
import sys
from datetime import date, datetime, time

import pytest

from rlhf_lightning import clock
from rlhf_lightning.data.rows.problems import DataError
from rlhf_lightning.data.sources.files import Files
from rlhf_lightning.data.spec import DataSpec
from rlhf_lightning.data.tokens.templates import chat_text, resolve
from rlhf_lightning.data.tokens.tokenize import tokenize
from rlhf_lightning.models.loading.tokenizers import byte_tokenizer
from rlhf_lightning.rewards.asking import conversation_ids
from rlhf_lightning.rewards.texts import Texts
from tests.data.tokens.test_cache import entries

#: The head of Llama 3.2's template: a date that the user may give, else today's.
DATED = (
    "{%- if not date_string is defined %}{%- set date_string = strftime_now('%d %b %Y') %}{%- endif %}"
    "{{- 'Today Date: ' + date_string + '\n' -}}"
    "{%- for m in messages -%}{{- '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' -}}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}"
)
QUESTION = [{"role": "user", "content": "q"}]
ROW = {"messages": [*QUESTION, {"role": "assistant", "content": "a"}]}


def frozen(text: str) -> type[date]:
    """The class of dates as it is on a day."""
    return type("Day", (date,), {"today": classmethod(lambda cls: date.fromisoformat(text))})


@pytest.fixture
def day(monkeypatch):
    """Begin a process on a day."""
    monkeypatch.delenv(clock.VARIABLE, raising=False)

    def begin(text: str) -> None:
        monkeypatch.setattr(clock, "date", frozen(text))
        monkeypatch.setattr(clock, "_date", None)

    return begin


def dated(template: str = DATED):
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = template
    return tokenizer


def made(tmp_path, tokenizer, **options):
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(ROW) + "\n")
    spec = DataSpec(cache_dir=str(tmp_path / "cache"), **options)
    return tokenize(Files(str(file)), tokenizer, spec, "supervised")


def prompt(tokenizer, tokenized) -> str:
    return tokenizer.decode(tokenized.examples[0].prompt)


def test_a_resume_on_another_day_has_the_same_tokens(tmp_path, day):
    """Fails where a template reads the clock itself, or a run takes the day of its resume."""
    tokenizer = dated()
    day("2026-02-28")
    clock.begin(tmp_path / "run")
    first = made(tmp_path, tokenizer)
    assert "Today Date: 28 Feb 2026" in prompt(tokenizer, first)
    day("2026-03-01")
    clock.begin(tmp_path / "run")
    assert list(made(tmp_path, tokenizer).examples) == list(first.examples)
    assert len(entries(tmp_path)) == 1
    day("2026-03-02")
    clock.take_over(tmp_path / "run")  # an evaluation of the run
    assert prompt(tokenizer, made(tmp_path, tokenizer)) == prompt(tokenizer, first)


def test_midnight_passes_a_run_by(tmp_path, day, monkeypatch):
    day("2026-02-28")
    clock.begin(tmp_path / "run")
    monkeypatch.setattr(clock, "date", frozen("2026-03-01"))
    assert "28 Feb 2026" in resolve(dated(), DataSpec()).prompt(QUESTION)


def test_the_date_is_in_the_key_of_cached_data(tmp_path, day):
    """A run of another day finds an entry of its own; one whose template reads no clock finds the old one."""
    tokenizer, plain = dated(), byte_tokenizer()
    for text, count in (("2026-02-28", 2), ("2026-03-01", 3)):
        day(text)
        assert date.fromisoformat(text).strftime("%d %b %Y") in prompt(tokenizer, made(tmp_path, tokenizer))
        made(tmp_path, plain)
        assert len(entries(tmp_path)) == count


def test_a_date_of_the_user_is_the_users(tmp_path, day):
    """It is in the prompt, in the key by itself, and there is nothing to note."""
    tokenizer, arguments = dated(), {"template_arguments": {"date_string": "1 Jan 2000"}}
    for text in ("2026-02-28", "2026-03-01"):
        day(text)
        tokenized = made(tmp_path, tokenizer, **arguments)
        assert "1 Jan 2000" in prompt(tokenizer, tokenized)
        assert tokenized.report.notes == []
    assert len(entries(tmp_path)) == 1
    assert any("reads the clock: it is given 2026-03-01" in note for note in made(tmp_path, tokenizer).report.notes)


def test_a_template_that_asks_for_the_date_now_and_then_is_keyed_by_it(day):
    """No probe finds out that it does, so its source decides."""
    day("2026-02-28")
    rare = (
        "{%- if messages[0]['content'] == 'when?' %}{{ strftime_now('%Y') }}{% endif %}"
        + byte_tokenizer().chat_template
    )
    assert resolve(dated(rare), DataSpec(template_arguments={"other": 1})).reads_clock
    assert not resolve(byte_tokenizer(), DataSpec()).reads_clock


def test_rewards_see_the_date_of_the_run(tmp_path, day):
    """Else the content of a prompt could not be taken out of its template on another day."""
    tokenizer = dated()
    day("2026-02-28")
    clock.begin(tmp_path)
    ids = tokenizer.encode(resolve(tokenizer, DataSpec()).prompt(QUESTION), add_special_tokens=False)
    day("2026-03-01")
    clock.begin(tmp_path)
    assert Texts(byte_tokenizer(), tokenizer).content(ids) == "q"
    assert conversation_ids(tokenizer, QUESTION) == ids


def test_processes_that_begin_around_midnight_agree(tmp_path):
    begin = "import sys, pathlib; from rlhf_lightning import clock; print(clock.begin(pathlib.Path(sys.argv[1])))"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", begin, tmp_path / "run"], env={**os.environ, clock.VARIABLE: day},
            stdout=subprocess.PIPE, text=True,
        )
        for day in ["2026-02-28", "2026-03-01"] * 4
    ]  # fmt: skip
    dates = [process.communicate(timeout=60)[0] for process in processes]
    assert len(set(dates)) == 1
    assert date.fromisoformat(dates[0].strip()) in (date(2026, 2, 28), date(2026, 3, 1))


FORM = "%A %a, %d %-d %B %b %h %Y %y %j %p %x %X %r %c %F %D %H:%M:%S %I %U %W %u %w %G %V 100%% %%A %^a"


@pytest.mark.parametrize("day", [date(2026, 2, 28), date(2001, 11, 3), date(2024, 1, 1), date(2012, 12, 31)])
def test_directives_are_those_of_strftime(day):
    """In the C locale, on this machine's C library; the template's own function puts them together."""
    expected = datetime.combine(day, time()).strftime(FORM)
    shown = chat_text(dated(f"{{{{ strftime_now('{FORM}') }}}}"), QUESTION, day=day)
    assert shown == expected


def test_names_of_days_are_english_in_every_locale():
    expected = clock.directives(date(2026, 2, 28))
    try:
        others = [name for name in ("de_DE.UTF-8", "fr_FR.UTF-8", "C.UTF-8") if _set(name)]
        assert [clock.directives(date(2026, 2, 28)) for name in others if _set(name)] == [expected] * len(others)
    finally:
        locale.setlocale(locale.LC_TIME, "C")


@pytest.mark.parametrize("head", ["", "\n\n", "  {% if true %}x{% endif %}\n", "{# note #}\n "])
def test_a_template_begins_as_it_does_alone(head):
    """A prefix must not change how its first white space is read."""
    alone = head + "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    asking = alone + "{% if false %}{{ strftime_now('%d') }}{% endif %}"
    assert chat_text(dated(asking), QUESTION) == chat_text(dated(alone), QUESTION)


def _set(name: str) -> bool:
    try:
        locale.setlocale(locale.LC_TIME, name)
    except locale.Error:
        return False
    return True


def test_the_date_can_be_given(tmp_path, monkeypatch, day):
    day("2026-03-01")
    monkeypatch.setenv(clock.VARIABLE, "2024-07-26")
    assert clock.begin(tmp_path / "run") == date(2024, 7, 26)
    monkeypatch.setenv(clock.VARIABLE, "2025-01-01")
    assert clock.begin(tmp_path / "run") == date(2024, 7, 26), "a run keeps its date"
    monkeypatch.setenv(clock.VARIABLE, "today")
    with pytest.raises(ValueError, match="RLHF_DATE holds 'today' and must hold a date such as 2026-01-31"):
        clock.begin(tmp_path / "other")


def test_templates_that_draw_at_random_are_refused():
    for source in ("{{ ['a', 'b'] | random }}", "{{ lipsum(1) }}"):
        with pytest.raises(DataError, match="draws at random"):
            resolve(dated(source + byte_tokenizer().chat_template), DataSpec())


def test_a_report_of_cached_data_keeps_the_note(tmp_path, day):
    day("2026-02-28")
    tokenizer = dated()
    assert made(tmp_path, tokenizer).report.notes == made(tmp_path, tokenizer).report.notes != []
    assert json.dumps(made(tmp_path, tokenizer).report.to_dict())
