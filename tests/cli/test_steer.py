"""``rlhf steer``: directions equal those worked out row by row; what cannot be built is refused before weights load."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from rlhf_lightning.cli import steer
from rlhf_lightning.cli.errors import ConfigError
from rlhf_lightning.cli.identity import digest, file_contents
from rlhf_lightning.models.hidden_states.steering import read_header, read_vectors, write_vectors
from rlhf_lightning.models.sources import TinyRandom

PAIRS = [
    {"prompt": "Hello", "chosen": " dear friend", "rejected": " fool"},
    {"prompt": "Why?", "chosen": " Since it is so.", "rejected": " Go away now"},
]


def build(tmp_path: Path, *options: str) -> dict[int, torch.Tensor]:
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in PAIRS))
    given = ["model=tiny_random", "model.layers=3", "data=json", f"data.source.path={tmp_path}/pairs.jsonl"]
    plain = ["data.spec.cache=false", "data.spec.template=none", "data.validation=null", "data.batch_size=2"]
    assert steer.main(["build", *given, *plain, f"output={tmp_path}/v.safetensors", *options]) == 0
    return read_vectors(tmp_path / "v.safetensors")


def mean_state(prompt: str, response: str, layer: int) -> torch.Tensor:
    """Over the response's tokens, its end included, by transformers alone."""
    source = TinyRandom(layers=3)
    tokenizer = source.tokenizer()
    before, after = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (prompt, response))
    first = tokenizer("a")["input_ids"][:1] if tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id] else []
    ids = torch.tensor([[*first, *before, *after, tokenizer.eos_token_id]])
    states = source.load()(ids, output_hidden_states=True).hidden_states[layer][0]
    return states[-len(after) - 1 :].mean(0)


def test_built_from_pairs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    vectors = build(tmp_path, "layers=[1,2]")
    for layer in (1, 2):
        gaps = [
            mean_state(row["prompt"], row["chosen"], layer) - mean_state(row["prompt"], row["rejected"], layer)
            for row in PAIRS
        ]
        torch.testing.assert_close(vectors[layer], torch.stack(gaps).mean(0), atol=1e-5, rtol=1e-4)
    notes = read_header(tmp_path / "v.safetensors", "path").notes
    assert (notes["model"], notes["direction"], notes["examples"]) == ("tiny_random", "mean_diff", "2")
    shown = capsys.readouterr().out
    assert "tiny_random" in shown
    assert f"{vectors[1].norm():.4g}" in shown


def test_built_from_instructions_at_the_last_token_of_the_prompt(tmp_path: Path) -> None:
    contexts = ["data.spec.positive_context=P", "data.spec.negative_context=N"]
    vectors = build(tmp_path, "contrast=instructions", "tokens=last_prompt", "layers=[3]", *contexts)
    assert vectors.keys() == {3}
    assert vectors[3].norm() > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["make"], "rlhf steer make: no such action"),
        (["show"], "rlhf steer show takes one file"),
        (["build", "tokens=last_prompt"], "tokens=last_prompt with contrast=responses"),
        (["build", "layers=[1,9]", "model=tiny_random"], r"layers=\[1, 9\]: there is no layer 9. .* 1 .. 2"),
        (["build", "direction=mean"], "direction: expected one of mean_diff, pca, random, got 'mean'"),
    ],
)
def test_what_cannot_be_built_is_refused(arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TinyRandom, "_load", lambda *_: pytest.fail("weights were loaded"))
    with pytest.raises((ConfigError, ValueError), match=message):
        steer.main(arguments)


def test_a_file_of_other_content_is_another_job(tmp_path: Path) -> None:
    """The same path with other directions, of the model or of a teacher; without a file nothing is added."""
    file = tmp_path / "v.safetensors"
    tree = {"paths": {}, "model": {"steering": {"path": str(file)}}, "reference": {"source": None}}
    jobs = []
    for value in (1.0, 2.0):
        write_vectors(file, {1: torch.full((4,), value)}, {})
        assert file_contents(OmegaConf.create(tree)).keys() == {"model.steering.path"}
        jobs.append(digest(OmegaConf.create(tree)))
    assert jobs[0] != jobs[1]
    assert file_contents(OmegaConf.create({"model": {"steering": None}})) == {}
