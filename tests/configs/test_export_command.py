"""``rlhf export``: after a run the same folder as at its end, in the form that is asked for."""

from __future__ import annotations

from pathlib import Path

import pytest
from omegaconf import OmegaConf
from transformers import AutoModelForCausalLM

from rlhf_lightning.cli.compose import compose
from rlhf_lightning.cli.errors import ConfigError
from rlhf_lightning.cli.export import check_form
from rlhf_lightning.cli.train import train

METHODS = {
    "dpo": ["method=dpo", "adapter=lora", "callbacks=[last,ema,export]", "callbacks.ema.decay=0.5"],
    "bradley_terry": ["method=bradley_terry", "callbacks=[last,export]"],
}


@pytest.mark.parametrize("method", METHODS)
def test_an_export_after_the_run_is_the_one_at_its_end(method, rlhf, tiny, tmp_path):
    """Of a policy with its averaged weights; of a reward model with its head and normalisation."""
    options = [option for option in tiny if option != "callbacks.export=null"]
    train(compose("train", [*options, *METHODS[method], "optimizer.lr=0.05", "paths.output_dir=run"]))
    code, out, err = rlhf("export", "run=run", "output=again")
    assert code == 0, err
    assert "model=run model.run=again" in " ".join(out.split())
    at_its_end, after = files("run/export/last"), files("again")
    assert at_its_end == after
    assert any(name.endswith(".safetensors") for name in after)
    if method == "dpo":
        code, _, err = rlhf("export", "run=run", "form=merged", "dtype=bfloat16", "output=merged")
        assert code == 0, err
        assert AutoModelForCausalLM.from_pretrained(tmp_path / "merged").dtype.itemsize == 2


def files(folder: str) -> dict[str, bytes]:
    """Content of a folder by name."""
    return {file.name: file.read_bytes() for file in Path(folder).iterdir()}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "q8_0"}, r"dtype=q8_0 is none of float32, bfloat16, float16, which form=auto has"),
        ({"form": "gguf", "dtype": "q4"}, r"dtype=q4 is none of .*q8_0, which form=gguf has"),
        ({"form": "mergd"}, r"form=mergd is none of auto, adapter, merged, gguf"),
        ({"dtype": "int3"}, r"dtype=int3 is none of"),
        ({"form": "adapter"}, r"form=adapter: run=r trained whole weights and has no adapter"),
    ],
)
def test_refused_before_weights_load(options, message):
    cfg = OmegaConf.create({"run": "r", "form": "auto", "dtype": None, **options})
    with pytest.raises(ConfigError, match=message):
        check_form(cfg, OmegaConf.create({"adapter": None}))


def test_a_folder_that_is_no_run(rlhf):
    code, _, err = rlhf("export", "run=nowhere")
    assert code == 2
    assert err.startswith("error: run=nowhere is not the folder of a run")
    code, _, err = rlhf("export")
    assert code == 2
    assert "run has no value and needs one" in err
