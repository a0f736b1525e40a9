"""Messages about configurations that cannot run. Every message names the key, what is allowed and the fix."""

from __future__ import annotations

import pytest

from rlhf_lightning.cli.compose import compose
from rlhf_lightning.cli.errors import ConfigError

MESSAGES = {
    "optimizer.lrr=1": (
        "optimizer.lrr: AdamW has no option 'lrr'. Did you mean lr?\n"
        "  options: amsgrad, betas, capturable, differentiable, eps, foreach, fused, lr, maximize, weight_decay"
    ),
    "+method.loss.gamma=1": ("method.loss.gamma: dpo has no option 'gamma'.\n  options: beta"),
    "optimizer.lr=abc": "optimizer.lr: expected a number, got 'abc'",
    "trainer.max_steps=1.5": "trainer.max_steps: expected a whole number, got 1.5",
    "trainer.log_every_n_steps=true": "trainer.log_every_n_steps: expected a whole number or null, got True",
    "method.loss.beta=-1": "method.loss.beta: -1 is not allowed, it must be a number in (0, inf)",
    "trainer.devices=2": "trainer.devices is set by the strategy group: use strategy.devices=...",
    "paths.otput_dir=x": (
        "paths.otput_dir: paths has no option 'otput_dir'. Did you mean output_dir?\n"
        "  options: output_dir, runs, shared, sweeps"
    ),
    "model=hub": "model.name has no value and needs one: model.name=...",
    "strategy=dpp": (
        "strategy=dpp: there is no strategy/dpp.yaml. Did you mean strategy=ddp?\n"
        "  options: ddp, fsdp, fsdp_offload, single"
    ),
    # groups that are optional, of which Hydra would leave out a file that does not exist
    "experiment=tinny": "experiment=tinny: there is no experiment/tinny.yaml. Did you mean experiment=tiny?",
    "recipe=rounds/spinn": (
        "recipe=rounds/spinn: there is no recipe/rounds/spinn.yaml. Did you mean recipe=rounds/spin?"
    ),
    "sweep=seed": "sweep=seed: there is no sweep/seed.yaml. Did you mean sweep=seeds?",
    "debug=overfitt": "debug=overfitt: there is no debug/overfitt.yaml. Did you mean debug=overfit?",
    "callbacks=[tiny,exprt]": "callbacks=exprt: there is no callbacks/exprt.yaml. Did you mean callbacks=export?",
    "seed": "Error parsing override 'seed'\nmissing EQUAL at '<EOF>'",
    "callbacks.throughput.peak_tflop=1": (
        "callbacks.throughput.peak_tflop: Throughput has no option 'peak_tflop'. Did you mean peak_tflops?"
    ),
    "data.spec.max_lenght=5": "data.spec.max_lenght: DataSpec has no option 'max_lenght'. Did you mean max_length?",
    "model.layers=3": "model.layers: SmolLM2 has no option 'layers'.",
    "optimizer._target_=torch.optim.AdamV": (
        "optimizer._target_: torch.optim.AdamV cannot be imported: torch.optim has no 'AdamV'; did you mean Adam?"
    ),
    "seed=null": "seed: expected a whole number, got None",
    "optimizer.betas=[1]": "optimizer.betas: expected a list of 2, got [1]",
    "learning_rate=1": "learning_rate: rlhf train has no option 'learning_rate'. Did you mean optimizer.lr?\n",
    "lr=1": "lr: rlhf train has no option 'lr'. Did you mean optimizer.lr?\n",
    "batch_size=2": "batch_size: rlhf train has no option 'batch_size'. Did you mean data.batch_size?\n",
    "num_epochs=2": "num_epochs: rlhf train has no option 'num_epochs'. Did you mean trainer.max_epochs?\n",
    "output_dir=x": "output_dir: rlhf train has no option 'output_dir'. Did you mean paths.output_dir?\n",
    "rank=8": (
        "rank: rlhf train has no option 'rank'. "
        "Did you mean adapter.r (with adapter=lora or adapter=qlora or adapter=run)?\n"
    ),
    "optimizer.max_steps=3": "optimizer.max_steps: AdamW has no option 'max_steps'. Did you mean trainer.max_steps?\n",
    "trainer.seed=1": "trainer.seed: lightning.Trainer has no option 'seed'. Did you mean seed?\n",
    "logger.wandb.project=x": (
        "logger.wandb.project is an option of a logger that was not chosen: choose logger=wandb"
    ),
    "callbacks.ema.decay=0.9": (
        "callbacks.ema.decay is an option of a callback that was not chosen: choose callbacks=[default,ema]"
    ),
    "adapter.r=8": "adapter.r is an option of an adapter that was not chosen: choose adapter=lora or adapter=qlora",
    "reference.source.name=x": (
        "reference.source.name is an option of a model that was not chosen: choose reference=teacher"
    ),
    "seed=-1": "seed: -1 is not allowed, it must be a number in [0, 4294967295]",
    "seed=99999999999": "seed: 99999999999 is not allowed, it must be a number in [0, 4294967295]",
    "optimizer=3": "optimizer=3: Config group override must be a string or a list. Got int",
}


@pytest.mark.parametrize("override", MESSAGES)
def test_message(override):
    with pytest.raises(ConfigError) as caught:
        compose("train", [override])
    assert str(caught.value).startswith(MESSAGES[override])


def test_unknown_top_level_key_lists_all():
    with pytest.raises(
        ConfigError, match=r"(?s)mehtod: rlhf train has no option 'mehtod'\. Did you mean method.*scheduler"
    ):
        compose("train", ["+mehtod=dpo"])


def test_all_problems_are_reported_at_once():
    with pytest.raises(ConfigError) as caught:
        compose("train", ["optimizer.lrr=1", "trainer.max_step=1", "method.loss.beta=0"])
    assert [line.split(":")[0] for line in str(caught.value).splitlines() if not line.startswith("  ")] == [
        "method.loss.beta",
        "optimizer.lrr",
        "trainer.max_step",
    ]


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "builtins.eval",
        "torch.os.system",
        "rlhf_lightning.cli.worker.run_job",
        "lightning.pytorch.trainer.trainer.os.system",  # reached through an allowed package
        "rlhf_lightning.conf_dir.Path",
    ],
)
def test_a_target_outside_the_allowed_packages_is_refused(target):
    problem = r"is not from a package that a yaml may use|cannot be|is not an optimizer"
    with pytest.raises(ConfigError, match=rf"optimizer\._target_: .*({problem})"):
        compose("train", [f"optimizer._target_={target}"])


def test_a_package_can_be_allowed(tmp_path, monkeypatch):
    (tmp_path / "my_losses.py").write_text("def mine(policy, reference, *, beta: float = 0.1):\n    return policy\n")
    monkeypatch.syspath_prepend(tmp_path)
    chosen = ["method.loss._target_=my_losses.mine"]
    with pytest.raises(ConfigError, match=r"allow_targets=\[my_losses\]"):
        compose("train", chosen)
    cfg = compose("train", [*chosen, "allow_targets=[my_losses]"])
    assert cfg.method.loss._target_ == "my_losses.mine"


def test_hydras_own_part_cannot_run_anything_else():
    with pytest.raises(ConfigError, match=r"hydra\.callbacks\.x\._target_: os\.getcwd does not belong"):
        compose("train", ["+hydra.callbacks.x._target_=os.getcwd"])


def test_broken_yaml_of_a_user(tmp_path):
    (tmp_path / "method").mkdir()
    (tmp_path / "method" / "mine.yaml").write_text("a: [1\nb: 2")
    with pytest.raises(ConfigError, match="not valid YAML"):
        compose("train", ["method=mine"], config_dirs=[tmp_path])


class TestCommand:
    """Exit codes and what stands on standard error."""

    def test_user_error(self, rlhf):
        assert rlhf("train", "optimizer.lr=abc") == (2, "", "error: optimizer.lr: expected a number, got 'abc'\n")

    def test_unknown_command(self, rlhf):
        code, _, err = rlhf("trian")
        assert code == 2
        assert err.startswith("error: rlhf has no command 'trian'. Did you mean train?")

    def test_unknown_flag(self, rlhf):
        code, _, err = rlhf("train", "--mulitrun")
        assert code == 2
        assert err.startswith("error: there is no flag --mulitrun. Did you mean --multirun?")

    def test_several_values_without_m(self, rlhf):
        code, _, err = rlhf("train", "optimizer.lr=1,2")
        assert code == 2
        assert "optimizer.lr=1,2 names several values: add -m" in err

    def test_a_sweep_is_checked_before_its_first_job(self, rlhf, tiny, tmp_path):
        code, _, err = rlhf("train", "-m", "method=dpo,ipo", "method.loss.beta=0.1,-1", *tiny)
        assert code == 2
        assert err.startswith("error: method.loss.beta: -1 is not allowed")
        assert not (tmp_path / "multirun").exists()

    def test_no_weights_are_loaded_for_bad_data(self, rlhf, tiny, tmp_path, monkeypatch):
        from rlhf_lightning.models.roles.builder import ModelBuilder

        def fail(self):
            raise AssertionError("weights were loaded")

        bad = tmp_path / "bad.jsonl"
        bad.write_text('{"prompt": "a", "chosen": "b", "rejected": "b"}\n{"prompt": "a", "chosen": "b"}\n')
        monkeypatch.setattr(ModelBuilder, "__call__", fail)
        code, _, err = rlhf("train", *tiny, f"data.source.path={bad}", "paths.output_dir=run")
        assert code == 2
        assert "bad.jsonl:1: chosen equals rejected" in err
        assert "bad.jsonl:2: missing field" in err

    def test_a_missing_extra_is_named(self, rlhf, tiny, monkeypatch):
        class Absent:
            def __bool__(self) -> bool:
                return False

            def __str__(self) -> str:
                return "Requirement 'wandb' not met"

        monkeypatch.setattr("lightning.pytorch.loggers.wandb._WANDB_AVAILABLE", Absent())
        code, _, err = rlhf("train", *tiny, "logger=wandb")
        assert code == 2
        assert "pip install 'rlhf-lightning[wandb]'" in err

    def test_a_bug_is_one_line_and_a_file(self, rlhf, tiny, tmp_path, monkeypatch):
        monkeypatch.setattr("rlhf_lightning.cli.train.make_run", lambda cfg: {}["nothing"])
        code, _, err = rlhf("train", *tiny, "paths.output_dir=run")
        assert code == 1
        assert err.startswith("error: KeyError: 'nothing'")
        assert "Traceback" not in err
        assert "Traceback" in (tmp_path / "run" / "error.log").read_text()

    def test_full_error_shows_the_traceback(self, rlhf):
        code, _, err = rlhf("train", "optimizer.lr=abc", "--full-error")
        assert code == 2
        assert "Traceback" in err
