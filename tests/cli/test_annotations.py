"""Types of options: every target of conf has usable ones, and a value that does not fit is refused."""

from __future__ import annotations

import inspect
import math
import re
from typing import Annotated, Any

import pytest

from rlhf_lightning.cli.annotations import annotations_of, check_value
from rlhf_lightning.cli.build import make_optimizer
from rlhf_lightning.cli.compose import compose
from rlhf_lightning.cli.errors import ConfigError
from rlhf_lightning.cli.targets import locate
from rlhf_lightning.conf_dir import conf_dir
from rlhf_lightning.options import Positive, Range

TARGETS = sorted(
    {name for file in conf_dir().rglob("*.yaml") for name in re.findall(r"_target_: *([\w.]+)", file.read_text())}
)
#: Written without annotations; what its defaults say is what there is.
UNTYPED = {"bitsandbytes.optim.AdamW8bit": {"params", "args"}}


def test_every_target_of_conf_has_usable_type_hints():
    assert len(TARGETS) > 150
    for name in TARGETS:
        if name.startswith("hydra_plugins.hydra_ray"):  # cannot be installed beside the joblib launcher
            continue
        target = locate(name)
        hints = annotations_of(target)
        kinds = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
        options = {p.name for p in inspect.signature(target).parameters.values() if p.kind not in kinds}
        assert options - set(hints) == UNTYPED.get(name, set()), name
        assert not any(isinstance(hint, str) for hint in hints.values()), name


REFUSED = {
    "data.loading.shuffle=no": "data.loading.shuffle: expected true or false, got 'no'",
    "data.batch_size=1.5": "data.batch_size: expected a whole number or null, got 1.5",
    "data.loading.num_workers=true": "data.loading.num_workers: expected a whole number, got True",
    "optimizer.lr=nan": "optimizer.lr: expected a number, got nan",
    "optimizer.lr=inf": "optimizer.lr: expected a number, got inf",
    "optimizer.betas=[nan,0.9]": "optimizer.betas: expected a list of 2, got [nan, 0.9]",
    "method.loss=sigmoid": "method.loss: expected an object, which a yaml makes with _target_, got 'sigmoid'",
}


@pytest.mark.parametrize("override", REFUSED)
def test_a_value_of_another_type_is_refused(override: str):
    with pytest.raises(ConfigError) as caught:
        compose("train", ["data=json", "data.source.path=x.jsonl", override])
    assert str(caught.value).startswith(REFUSED[override])


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        (["method=ppo", "reward=length", "method.normalize=no"], "method.normalize"),
        (["method=bradley_terry", "method.head.bias=0"], "method.head.bias: expected true or false, got 0"),
        (["method=grpo", "reward=exact_match", "reward.ignore_case=yes"], "reward.ignore_case"),
        (["optimizer=adamw8bit", "optimizer.lr=fast"], "optimizer.lr: expected a number, got 'fast'"),
    ],
)
def test_relatives_in_other_groups(chosen: list[str], message: str):
    with pytest.raises(ConfigError) as caught:
        compose("train", chosen)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("override", "interval"),
    [
        ("callbacks.last.every_n_minutes=-1", "(0, inf)"),
        ("callbacks.samples.top_p=1.5", "(0, 1]"),
        ("model.layers=0", "[1, inf)"),
        ("reward.max_tokens=0", "[1, inf)"),
        ("rollout.requests.timeout=0", "(0, inf)"),
        ("method.value_loss.critic_warmup=-1", "[0, inf)"),
    ],
)
def test_a_value_out_of_its_range_is_refused(override: str, interval: str):
    chosen = [
        "method=ppo",
        "model=tiny_random",
        "rollout=openai",
        "rollout.url=http://x",
        "reward=model",
        "reward.path=x",
    ]
    with pytest.raises(ConfigError, match=re.escape(f"is not allowed, it must be a number in {interval}")):
        compose("train", [*chosen, override])


@pytest.mark.parametrize("optimizer", ["torch.optim.SGD", "torch.optim.AdamW"])
def test_an_optimizer_out_of_its_range_is_refused_before_weights(optimizer: str):
    cfg = compose("train", [], check=False)
    cfg.optimizer = {"_target_": optimizer, "_partial_": True, "lr": -1.0}
    with pytest.raises(ConfigError, match=r"optimizer: Invalid learning rate: -1\.0"):
        make_optimizer(cfg)


def test_infinity_fits_where_a_range_includes_it():
    closed = Annotated[float, Range("(0, inf]")]
    assert check_value(math.inf, closed)[1] is None
    assert check_value(math.inf, Positive)[1] is not None
    assert check_value(math.nan, closed)[1] is not None
    assert check_value(math.inf, Any)[1] is None
