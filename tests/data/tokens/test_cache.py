from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest

from rlhf_lightning.data.rows.problems import DataError
from rlhf_lightning.data.sources.files import Files
from rlhf_lightning.data.spec import DataSpec
from rlhf_lightning.data.tokens import cache
from rlhf_lightning.data.tokens.encode import Encoder
from rlhf_lightning.data.tokens.tokenize import split, tokenize
from tests.helpers import tokenizers
from tests.helpers.rows import Rows

SUPERVISED, PREFERENCE = "supervised", "preference"


def made(tokenizer, *rows):
    return tokenize(Rows(*rows), tokenizer, DataSpec(cache=False), SUPERVISED)


@pytest.fixture
def file(tmp_path):
    rows = [{"prompt": f"p{i}", "chosen": f"c{i}", "rejected": f"r{i}", "margin": float(i)} for i in range(20)]
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"prompt": ""}]), encoding="utf-8")
    return path


def run(file, tmp_path, tokenizer=None, kind=PREFERENCE, **options):
    spec = DataSpec(cache_dir=str(tmp_path / "cache"), **options)
    return tokenize(Files(str(file)), tokenizer or tokenizers.llama_like(), spec, kind)


def entries(tmp_path):
    return sorted(path.name for path in (tmp_path / "cache" / "tokenised").iterdir() if path.is_dir())


def test_the_cache_returns_what_was_made(file, tmp_path, monkeypatch):
    first = run(file, tmp_path)
    monkeypatch.setattr(Encoder, "encode", lambda *_, **__: pytest.fail("tokenised again"))
    second = run(file, tmp_path, on_bad_row="exclude")  # decides what happens to a bad row, not what the tokens are
    assert list(second.examples) == list(first.examples)
    assert second.report == first.report
    assert second.report.excluded == {"missing field": 1}
    assert isinstance(second.examples.tokens, np.memmap)
    assert len(entries(tmp_path)) == 1


@pytest.mark.parametrize(
    ("kind", "row", "options"),
    [
        ("ranked", {"prompt": "p", "responses": ["a", "b", "c"], "scores": [1, 2, 3]}, {}),
        ("unpaired", {"prompt": "p", "chosen": "a", "rejected": "b"}, {}),
        ("judged", {"prompt": "p", "response": "a", "judgment": "j"}, {}),
        ("paraphrase", {"instruction": "p", "paraphrase": "q", "output": "a"}, {}),
        ("steps", {"prompt": "p", "steps": ["a", "b"], "labels": [1, 0]}, {}),
        ("attributes", {"prompt": "p", "response": "a", "attributes": {"a/b": 1, "..": 2}}, {}),
        ("context", {"prompt": "p", "response": "a"}, {"context": "c"}),
    ],
)
def test_every_column_of_every_kind_is_kept(kind, row, options, tmp_path, monkeypatch):
    # fails if prompts, numbers or step labels are not saved, or a number's name becomes a path
    file = tmp_path / "data.jsonl"
    file.write_text(json.dumps(row) + "\n" + json.dumps({**row, "prompt": "z", "instruction": "z"}) + "\n")
    first = run(file, tmp_path, kind=kind, **options)
    monkeypatch.setattr(Encoder, "encode", lambda *_, **__: pytest.fail("tokenised again"))
    second = run(file, tmp_path, kind=kind, **options)
    assert repr(list(second.examples)) == repr(list(first.examples))  # nan equals itself in words only
    assert (second.examples.prompts, [*second.examples.numbers]) == (first.examples.prompts, [*first.examples.numbers])
    assert second.report == first.report


def test_the_cache_misses_when_anything_that_makes_tokens_changes(file, tmp_path):
    count = 0

    def changed(**options):
        nonlocal count
        run(file, tmp_path, **options)
        count += 1
        assert len(entries(tmp_path)) == count, options

    changed()
    changed(kind=SUPERVISED)
    changed(max_length=50)
    changed(too_long="keep_end")
    changed(template="plain")
    changed(tokenizer=tokenizers.llama_like(tokenizers.CHATML))
    changed(tokenizer=tokenizers.gpt2_like())
    file.write_text(file.read_text().replace("c3", "c33"))
    changed()
    assert cache.TOKENISE_VERSION == 7


def test_the_tokenizer_digest_ignores_padding_asked_for_earlier():
    tokenizer = tokenizers.gpt2_like()
    before = cache.tokenizer_digest(tokenizer)
    tokenizer(["a", "bcd"], padding=True, truncation=True, max_length=2)
    assert cache.tokenizer_digest(tokenizer) == before != cache.tokenizer_digest(tokenizers.llama_like())


@pytest.mark.parametrize("damage", ["truncate", "remove", "garble"])
def test_a_damaged_entry_is_made_again(file, tmp_path, damage, caplog):
    before = list(run(file, tmp_path).examples)
    (entry,) = entries(tmp_path)
    folder = tmp_path / "cache" / "tokenised" / entry
    if damage == "truncate":
        os.truncate(folder / "tokens.npy", 100)
    elif damage == "remove":
        (folder / "rows.arrow").unlink()
    else:
        (folder / "report.json").write_text("{")
    again = run(file, tmp_path)
    assert list(again.examples) == before
    assert "is damaged" in caplog.text
    assert isinstance(again.examples.tokens, np.memmap)


def test_a_cache_that_cannot_be_written_costs_only_time(file, tmp_path, caplog):
    (tmp_path / "cache").write_text("a file where the folder should be")
    assert len(run(file, tmp_path)) == 20
    assert "data.spec.cache_dir" in caplog.text


def test_a_full_disk_costs_only_time(file, tmp_path, monkeypatch, caplog):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache.np, "save", full)
    assert len(run(file, tmp_path)) == 20
    assert "No space left on device" in caplog.text
    assert entries(tmp_path) == []


WORKER = """
import os, signal, sys
from rlhf_lightning.data.sources.files import Files
from rlhf_lightning.data.spec import DataSpec
from rlhf_lightning.data.tokens import cache
from rlhf_lightning.data.tokens.tokenize import tokenize
from tests.helpers.tokenizers import llama_like

if sys.argv[3] == "kill":
    cache._flush = lambda file: os.kill(os.getpid(), signal.SIGKILL)
made = tokenize(Files(sys.argv[1]), llama_like(), DataSpec(cache_dir=sys.argv[2]), "preference")
print(len(made), sum(e.prompt[-1] for e in made.examples))
"""


def start(file, tmp_path, how):
    command = [sys.executable, "-c", WORKER, str(file), str(tmp_path / "cache"), how]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


def test_a_kill_while_writing_leaves_nothing_that_is_read(file, tmp_path):
    process = start(file, tmp_path, "kill")
    process.communicate(timeout=120)
    assert process.returncode == -signal.SIGKILL
    assert all(name.endswith(".tmp") for name in entries(tmp_path))
    assert len(run(file, tmp_path)) == 20
    (entry,) = entries(tmp_path)  # and the half-written folder is gone
    assert not entry.endswith(".tmp")


@pytest.mark.slow
def test_concurrent_jobs_share_one_entry(file, tmp_path):
    jobs = [start(file, tmp_path, "write") for _ in range(4)]
    outputs = {job.communicate(timeout=300)[0] for job in jobs}
    assert len(outputs) == 1
    assert next(iter(outputs)).startswith("20 ")
    assert len(entries(tmp_path)) == 1


# The split


def pairs(count):
    return [{"prompt": f"p{i % (count // 2)}", "response": f"r{i}"} for i in range(count)]


def test_split_keeps_prompts_together_and_sides_stable():
    tokenizer = tokenizers.llama_like()
    examples = made(tokenizer, *pairs(600)).examples
    train, validation = split(examples, 0.2, seed=3)
    prompts = [tuple(e.prompt) for e in examples]
    assert sorted([*train, *validation]) == list(range(600))
    assert not {prompts[i] for i in train} & {prompts[i] for i in validation}
    assert len(validation) / 600 == pytest.approx(0.2, abs=0.07)
    fewer = made(tokenizer, *reversed(pairs(600)[:400])).examples
    kept = {tuple(fewer[int(i)].prompt) for i in split(fewer, 0.2, seed=3)[1]}
    assert kept == {prompts[i] for i in validation} & {tuple(e.prompt) for e in fewer}
    assert set(split(examples, 0.2, seed=4)[1]) != set(validation)


def test_split_of_plain_text_and_of_few_rows():
    texts = made(tokenizers.llama_like(), *({"text": f"t{i}"} for i in range(50))).examples
    train, validation = split(texts, 0.3)
    assert min(len(train), len(validation)) > 5
    two = made(tokenizers.llama_like(), *pairs(4)[:2]).examples
    for fraction in (0.001, 0.999):
        assert [len(side) for side in split(two, fraction)] == [1, 1]
    one_prompt = made(tokenizers.llama_like(), *({"prompt": "p", "response": f"r{i}"} for i in range(3))).examples
    with pytest.raises(DataError, match="3 rows with one prompt cannot be split"):
        split(one_prompt, 0.5)
    with pytest.raises(DataError, match=r"data\.validation=1\.5 must lie between 0 and 1"):
        split(two, 1.5)
