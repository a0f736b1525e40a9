"""The reference cache: hits and misses, many writers, kills at any moment, damage."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from rlhf_lightning.data.batches.loader import ListLoader, reference_batches
from rlhf_lightning.data.batches.packing import pack
from rlhf_lightning.data.reference import shards
from rlhf_lightning.data.reference.store import (
    ReferenceCacheError,
    ReferenceStore,
    ReferenceWriter,
    batch_keys,
    response_keys,
)
from rlhf_lightning.data.tokens.examples import Examples
from rlhf_lightning.models.fingerprint import reference_fingerprint
from rlhf_lightning.types import Example, PackedBatch, Ragged

PAIR = Example([5, 6, 7], [[1, 2, 3], [4, 5]], row="pairs.jsonl:1")


def pairs(count: int = 24, seed: int = 0) -> Examples:
    """Pairs of random tokens; some have masks."""
    rng = np.random.default_rng(seed)
    made = []
    for i in range(count):
        prompt, *responses = (rng.integers(0, 90, rng.integers(2, 9)).tolist() for _ in range(3))
        masks = [[True] + [bool(rng.integers(2)) for _ in r[1:]] for r in responses] if i % 3 == 0 else None
        made.append(Example(prompt, responses, masks, row=f"pairs.jsonl:{i}"))
    return Examples.build(made)


def score(batch: PackedBatch, slope: float = 0.25) -> Ragged:
    """A 'model' whose log-prob of a token depends on the token, its position and its prompt."""
    prompt_start = batch.prompt_span[batch.parent[batch.sequence], 0]
    value = batch.ids[batch.target] + 7 * batch.positions[batch.target] + 3 * batch.ids[prompt_start]
    return batch.ragged(-slope * value.float() - 0.1)


def fill(store: ReferenceStore, examples: Examples, rows: int = 8) -> list[int]:
    """Score the missing groups; return their numbers."""
    groups = []
    with ReferenceWriter(store, rows=rows) as writer:
        for batch in ListLoader(reference_batches([(examples, store.missing(examples))], size=2)):
            writer.put(batch, score(batch))
            groups += batch.index.tolist()
    return groups


def contents(store: ReferenceStore, examples: Examples) -> list[np.ndarray]:
    """Everything stored for a data set."""
    return store.get(response_keys(examples).ravel())


def test_what_is_stored_is_what_was_scored(tmp_path: Path) -> None:
    examples = pairs()
    store = ReferenceStore(tmp_path, "model")
    assert sorted(fill(store, examples)) == list(range(24))
    assert len(store) == 48
    reopened = ReferenceStore(tmp_path, "model")
    assert reopened.missing(examples).tolist() == []
    chosen = examples.select(np.array([7, 3, 3, 12]))
    batch = pack(chosen, reference_log_probs=reopened.log_probs(chosen))
    assert batch.reference_log_probs is not None
    assert torch.equal(batch.reference_log_probs, score(batch).token)
    assert not list(store.path.glob(".*"))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 9), min_size=2, max_size=9), st.integers(1, 8), st.integers(1, 8))
def test_a_key_tells_prompt_from_response(tokens: list[int], first: int, second: int) -> None:
    cuts = [min(cut, len(tokens) - 1) for cut in (first, second)]
    keys = [response_keys(Examples.build([Example(tokens[:cut], [tokens[cut:]])])).item() for cut in cuts]
    assert (keys[0] == keys[1]) == (cuts[0] == cuts[1])


def test_a_mask_is_not_confused_with_a_token() -> None:
    # token 0 is four zero bytes, like four unscored tokens: without the prompt's length these two rows are the same
    short = Example([1, 2, 3, 4, 5, 6], [[0]], [[True]])
    long = Example([1], [[2, 3, 4, 5, 6]], [[False, False, False, False, True]])
    keys = [response_keys(Examples.build([example])).item() for example in (short, long)]
    assert keys[0] != keys[1]


def test_keys_from_a_batch_are_keys_of_its_rows() -> None:
    examples = pairs()
    assert batch_keys(pack(examples)).tolist() == response_keys(examples).ravel().tolist()
    alone = response_keys(examples.first_response())
    assert alone.ravel().tolist() == response_keys(examples)[:, 0].tolist()  # SFT on chosen shares a DPO run's entries


@pytest.mark.parametrize(
    ("change", "example"),
    [
        ("another template", replace(PAIR, prompt=[9, 5, 6, 7])),
        ("a prompt cut at its start", replace(PAIR, prompt=[6, 7])),
        ("a response cut at its end", replace(PAIR, responses=[[1, 2], [4, 5]])),
        ("another mask", replace(PAIR, loss_mask=[[True, False, True], [True, True]])),
        ("a token moved over the boundary", replace(PAIR, prompt=[5, 6, 7, 1], responses=[[2, 3], [4, 5]])),
    ],
)
def test_rows_that_changed_miss(change: str, example: Example, tmp_path: Path) -> None:
    store = ReferenceStore(tmp_path, "model")
    fill(store, Examples.build([PAIR]))
    assert store.missing(Examples.build([example])).tolist() == [0], change


def test_rows_that_did_not_change_hit(tmp_path: Path) -> None:
    # A hit whatever file and order the row comes from: all that a learning rate, a loss, beta, a seed, an output folder
    # or a reshuffled file can change about it.
    fill(ReferenceStore(tmp_path, "model"), pairs())
    moved = [replace(example, row="copy.jsonl:9", margin=1.0) for example in reversed(list(pairs()))]
    store = ReferenceStore(tmp_path, "model")
    assert store.missing(Examples.build(moved)).tolist() == []
    explicit = replace(PAIR, loss_mask=[[True] * 3, [True] * 2])
    fill(store, Examples.build([PAIR]))
    assert store.missing(Examples.build([explicit])).tolist() == []


@dataclass(frozen=True)
class Run:
    """Options of a run that are part of a key; learning rate, loss and output folder are not."""

    weights: int = 0
    seed: int = 0  #: draws the adapter's random matrices
    adapter: bool = False  #: whether a trained adapter belongs to the reference
    precision: str = "32-true"
    system: tuple[int, ...] = ()  #: what the template puts first
    max_length: int = 99

    def fingerprint(self) -> str:
        torch.manual_seed(self.weights)
        config = LlamaConfig(
            vocab_size=20, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1
        )
        model = LlamaForCausalLM(config)
        torch.manual_seed(self.seed + 100)
        adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"]))
        if self.adapter:
            adapted.base_model.model.model.layers[0].self_attn.q_proj.lora_B["default"].weight.data.fill_(0.1)
        return reference_fingerprint(adapted, adapter=self.adapter, precision=self.precision)

    def rows(self) -> Examples:
        cut = [replace(e, prompt=[*self.system, *e.prompt][-self.max_length :], loss_mask=None) for e in pairs(6)]
        return Examples.build(cut)


@pytest.mark.parametrize(
    ("run", "hits"),
    [
        (Run(), True),
        (Run(seed=1), True),
        (Run(weights=1), False),
        (Run(adapter=True), False),
        (Run(precision="bf16-true"), False),
        (Run(system=(1, 2)), False),
        (Run(max_length=1), False),
    ],
    ids=str,
)
def test_what_may_change_between_runs(run: Run, hits: bool, tmp_path: Path) -> None:
    fill(ReferenceStore(tmp_path, Run().fingerprint()), Run().rows())
    missing = ReferenceStore(tmp_path, run.fingerprint()).missing(run.rows())
    assert len(missing) == (0 if hits else 6)


def test_another_model_misses(tmp_path: Path) -> None:
    fill(ReferenceStore(tmp_path, "one"), pairs())
    assert len(ReferenceStore(tmp_path, "two").missing(pairs())) == 24
    with pytest.raises(ValueError, match="must consist of letters"):
        ReferenceStore(tmp_path, "../one")


def _fill_in_process(folder: str, seed: int) -> None:
    examples = pairs(40)
    order = np.random.default_rng(seed).permutation(40)
    fill(ReferenceStore(folder, "model"), examples.select(order), rows=4)


def test_concurrent_writers(tmp_path: Path) -> None:
    with ProcessPoolExecutor(4, mp_context=get_context("fork")) as pool:
        for future in [pool.submit(_fill_in_process, str(tmp_path), seed) for seed in range(4)]:
            future.result(timeout=60)
    store = ReferenceStore(tmp_path, "model")
    assert store.missing(pairs(40)).tolist() == []
    alone = ReferenceStore(tmp_path / "alone", "model")
    fill(alone, pairs(40))
    for one, other in zip(contents(store, pairs(40)), contents(alone, pairs(40)), strict=True):
        assert np.array_equal(one, other)


def test_rows_that_are_stored_are_not_written_again(tmp_path: Path) -> None:
    store = ReferenceStore(tmp_path, "model")
    fill(store, pairs(4))
    before = sorted(store.path.iterdir())
    with ReferenceWriter(store) as writer:
        writer.put(pack(pairs(4)), score(pack(pairs(4))))
    assert sorted(store.path.iterdir()) == before


def test_a_writer_sees_what_others_have_written(tmp_path: Path) -> None:
    store, other = ReferenceStore(tmp_path, "model"), ReferenceStore(tmp_path, "model")
    fill(other, pairs())
    assert len(store) == 0
    assert store.missing(pairs()).tolist() == []


SLOW_FILL = """
import sys, time
sys.path[:0] = [sys.argv[1]]
import test_store as t
plain = t.score
t.score = lambda batch: (time.sleep(0.02), plain(batch))[1]
print("started", flush=True)
t.fill(t.ReferenceStore(sys.argv[2], "model"), t.pairs(200), rows=6)
"""


@pytest.mark.parametrize("shards_before_kill", [pytest.param(1, marks=pytest.mark.slow), 9])
def test_kill_in_the_middle_of_a_fill(shards_before_kill: int, tmp_path: Path) -> None:
    examples = pairs(200)
    root = Path(__file__).parents[3]
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW_FILL, str(Path(__file__).parent), str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(root)},
    )
    folder = tmp_path / "model"
    deadline = time.monotonic() + 90
    while len(list(folder.glob("*.safetensors"))) < shards_before_kill:
        assert process.poll() is None, "the fill ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    store = ReferenceStore(tmp_path, "model")
    missing = store.missing(examples)
    assert 0 < len(missing) < 200
    assert sorted(fill(store, examples)) == missing.tolist()  # only those, and each once
    whole = ReferenceStore(tmp_path / "whole", "model")
    fill(whole, examples)
    for one, other in zip(contents(store, examples), contents(whole, examples), strict=True):
        assert np.array_equal(one, other)


def test_a_kill_between_write_and_rename_leaves_no_entry(tmp_path: Path) -> None:
    store = ReferenceStore(tmp_path, "model")
    fill(store, pairs(4))
    fresh, stale = (store.path / f".{name}.tmp" for name in ("fresh", "stale"))
    for path in (fresh, stale):
        path.write_bytes(b"half a shard")
    os.utime(stale, (0, 0))
    reopened = ReferenceStore(tmp_path, "model")
    assert reopened.missing(pairs(4)).tolist() == []
    assert fresh.exists()  # may belong to a writer that is alive
    assert not stale.exists()


def test_a_full_disk_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = ReferenceStore(tmp_path, "model")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(shards.os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            fill(store, pairs(4))
    assert list(store.path.iterdir()) == []
    assert sorted(fill(store, pairs(4))) == [0, 1, 2, 3]


def _shard(store: ReferenceStore) -> Path:
    return next(iter(store.path.glob("*.safetensors")))


@pytest.mark.parametrize("where", ["header", "keys", "cut"])
def test_a_damaged_shard_is_found_when_the_cache_is_opened(where: str, tmp_path: Path) -> None:
    store = ReferenceStore(tmp_path, "model")
    fill(store, pairs(4), rows=100)
    shard = _shard(store)
    data = bytearray(shard.read_bytes())
    if where == "cut":
        data = data[:-5]
    else:
        at = 12 if where == "header" else data.index(response_keys(pairs(4))[0, 0])
        data[at] ^= 0xFF
    shard.write_bytes(data)
    with pytest.raises(ReferenceCacheError, match=f"{shard.name} is damaged.*Delete this file"):
        ReferenceStore(tmp_path, "model")
    shard.unlink()
    assert len(fill(ReferenceStore(tmp_path, "model"), pairs(4))) == 4


def test_a_damaged_entry_is_found_when_it_is_read(tmp_path: Path) -> None:
    store = ReferenceStore(tmp_path, "model")
    fill(store, pairs(4), rows=100)
    shard = _shard(store)
    data = bytearray(shard.read_bytes())
    data[data.index(contents(store, pairs(4))[2].tobytes())] ^= 1  # a log-prob; the index is intact
    shard.write_bytes(data)
    reopened = ReferenceStore(tmp_path, "model")
    with pytest.raises(ReferenceCacheError, match="does not match its checksum"):
        contents(reopened, pairs(4))


def test_verify_scores_a_few_rows_again(tmp_path: Path) -> None:
    examples = pairs()
    store = ReferenceStore(tmp_path, "model")
    fill(store, examples)
    read_ids: list[int] = []

    def same(batch: PackedBatch) -> Ragged:
        read_ids.extend(batch.ids.tolist())
        return score(batch)

    assert store.verify(examples, same, rows=3) == 0.0
    assert 0 < len(read_ids) < len(examples.tokens)
    with pytest.raises(ReferenceCacheError, match=r"pairs\.jsonl:\d+: the stored .* written by another model"):
        store.verify(examples, lambda batch: score(batch, slope=0.26))


def test_missing_and_impossible_numbers_are_named(tmp_path: Path) -> None:
    store = ReferenceStore(tmp_path, "model")
    with pytest.raises(ReferenceCacheError, match=r"pairs\.jsonl:0 has no reference log-probs"):
        store.log_probs(pairs())
    batch = pack(pairs())
    token = score(batch).token.clone()
    token[-1] = float("nan")
    with pytest.raises(ReferenceCacheError, match=r"pairs\.jsonl:23: the reference model gives a log-prob that is not"):
        ReferenceWriter(store).put(batch, token)


def test_a_slow_fill_is_written_by_the_clock(tmp_path: Path) -> None:
    store = ReferenceStore(tmp_path, "model")
    writer = ReferenceWriter(store, rows=10_000, seconds=0.0)
    batch = pack(pairs(2))
    writer.put(batch, score(batch))
    assert len(ReferenceStore(tmp_path, "model")) == 4
    patient = ReferenceWriter(store, rows=10_000, seconds=1e9)
    other = pack(pairs(2, seed=1))
    patient.put(other, score(other))
    assert len(ReferenceStore(tmp_path, "model")) == 4
    patient.flush()
    assert len(ReferenceStore(tmp_path, "model")) == 8
