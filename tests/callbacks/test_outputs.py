"""Samples, tables, exports and the progress bar."""

from __future__ import annotations

import io
import json
import logging
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, MLFlowLogger, TensorBoardLogger, WandbLogger
from rich.console import Console
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlhf_lightning.callbacks import (
    AlignmentProgressBar,
    EMAWeights,
    HFExport,
    ImplicitRewards,
    LastCheckpoint,
    PolicySamples,
    Throughput,
)
from rlhf_lightning.callbacks.rich_progress import clock, compact, redirect_handlers, summary
from rlhf_lightning.callbacks.tables import log_table
from rlhf_lightning.data import AlignmentDataModule
from rlhf_lightning.data.batches.packing import pack
from rlhf_lightning.losses import dpo
from rlhf_lightning.methods import Preference
from rlhf_lightning.models.adapters.lora import Lora
from rlhf_lightning.models.roles.builder import ModelBuilder
from rlhf_lightning.models.sources import TinyRandom
from rlhf_lightning.ops.streams import stream_seed
from rlhf_lightning.rewards.base import evaluated
from tests.helpers.jobs import Memory, data, ranks
from tests.helpers.training import examples, loader, preference, trainer


def tiny(reference: str = "frozen", adapter: Lora | None = None, lr: float = 1e-2) -> Preference:
    builder = ModelBuilder(TinyRandom(hidden_size=16, intermediate_size=32), adapter, reference)
    return Preference(builder, partial(dpo, beta=0.1), partial(torch.optim.AdamW, lr=lr))


def rows(folder: Path, step: int) -> list[dict]:
    return [json.loads(line) for line in (folder / "samples" / f"step_{step:08d}.jsonl").read_text().splitlines()]


def sampled(tmp_path, module, **options) -> Memory:
    logger = Memory()
    callback = PolicySamples(pack, **{"prompts": 5, "max_new_tokens": 6} | options)
    trainer(tmp_path, [callback], logger=logger).fit(module, datamodule=data("preference", groups=8))
    return logger


def test_samples_before_and_after(tmp_path):
    """The KL of the table is the log-ratio of the sampled tokens, recomputed one response at a time."""
    module = tiny()
    logger = sampled(tmp_path, module)
    before, after = rows(tmp_path, 0), rows(tmp_path, 2)
    assert [row["row"] for row in before] == [row["row"] for row in after] == [f"pairs.jsonl:{i}" for i in range(5)]
    assert all(row["kl"] == pytest.approx(0, abs=1e-5) for row in before)
    tokenizer = module.tokenizer
    assert after[3]["prompt"] == tokenizer.decode(examples(8)[3].prompt)
    assert after[3]["data"] == tokenizer.decode(examples(8)[3].responses[0], skip_special_tokens=True)
    assert all(0 < row["tokens"] <= 6 for row in after)
    kl = torch.tensor([row["kl"] for row in after])
    assert logger.series("val/kl/reference")[-1] == pytest.approx(float(kl.mean()), abs=1e-5)
    assert float(kl.abs().mean()) > 1e-3
    assert logger.series("val/kl/k3")[-1] > 0
    assert logger.series("val/sample/length")[-1] == pytest.approx(sum(row["tokens"] for row in after) / 5)
    streams = [(stream_seed("samples", 0, *e.prompt), 0) for e in examples(5)]
    responses = module.sample([e.prompt for e in examples(5)], streams=streams, max_new_tokens=6, batch_size=8)
    ratios = module.eval().log_ratios([pack([_example(p, r)]) for p, r in zip(examples(5), responses, strict=True)])
    assert [float(ratio.sum()) for ratio in ratios] == pytest.approx(kl.tolist(), abs=1e-5)


def test_every_prompt_once_with_several_responses(tmp_path):
    """Rows that share a prompt are one prompt; each response draws from a stream of its own."""
    repeated = [row for row in examples(4) for _ in range(2)]
    callback = PolicySamples(pack, prompts=3, each=4, max_new_tokens=6)
    run = trainer(tmp_path, [callback], logger=Memory())
    pairs = AlignmentDataModule(
        examples(8), kind="preference", validation=repeated, batch_size=4, loading={"eval_batch_size": 4}
    )
    run.fit(tiny(), datamodule=pairs)
    after = rows(tmp_path, 2)
    assert [row["prompt"] for row in after] == [row["prompt"] for row in after[::4] for _ in range(4)]
    assert len({row["prompt"] for row in after}) == 3
    assert len({row["response"] for row in after[:4]}) > 1


class _Length:
    """Counts tokens, less the mean of the group; remembers what it was asked and by whom."""

    name, policy = "length", None

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.counted = 0

    def __call__(self, groups):
        self.sizes += [len(group.samples) for group in groups]
        self.counted += len(groups)
        means = [sum(map(len, group.responses)) / len(group.responses) for group in groups]
        return [[len(ids) - mean for ids in group.responses] for group, mean in zip(groups, means, strict=True)]

    def metrics(self) -> dict[str, float]:
        self.counted = 0
        return {}


def test_a_reward_sees_the_samples_of_a_prompt_and_the_datas_response_as_a_group(tmp_path):
    """Its counters are left empty: the same reward may train, and logs what it counted there."""
    reward, logger, module = _Length(), Memory(), tiny()
    callback = PolicySamples(pack, prompts=3, each=4, max_new_tokens=6)
    callback.scorer = partial(evaluated, reward)
    trainer(tmp_path, [callback], logger=logger).fit(module, datamodule=data("preference", groups=8))
    assert reward.sizes == [5] * 6  # before training and after it
    assert reward.counted == 0
    assert reward.policy is module
    after = rows(tmp_path, 2)
    lengths = [[row["tokens"] for row in after[at : at + 4]] for at in (0, 4, 8)]
    data_lengths = [len(example.responses[0]) for example in examples(3)]
    means = [(sum(drawn) + length) / 5 for drawn, length in zip(lengths, data_lengths, strict=True)]
    expected = [tokens - mean for drawn, mean in zip(lengths, means, strict=True) for tokens in drawn]
    assert [row["reward"] for row in after] == pytest.approx(expected)
    first, last = logger.series("val/sample/reward")
    assert last == pytest.approx(sum(expected) / 12, abs=1e-6)
    assert first == pytest.approx(sum(row["reward"] for row in rows(tmp_path, 0)) / 12)
    data_reward = sum(length - mean for length, mean in zip(data_lengths, means, strict=True)) / 3
    assert logger.series("val/sample/data_reward") == pytest.approx([data_reward], abs=1e-6)
    wins = [
        (tokens > n) + (tokens == n) / 2 for drawn, n in zip(lengths, data_lengths, strict=True) for tokens in drawn
    ]
    assert logger.series("val/sample/win_rate") == pytest.approx([sum(wins) / 12])


def test_a_reward_that_compares_is_not_asked_about_a_single_response(tmp_path):
    """A sample and the data's own response are two: enough for one that needs two, not for one that needs three."""
    for fewest, asked in ((2, True), (3, False)):
        callback = PolicySamples(pack, prompts=3, max_new_tokens=4)
        reward = _Length()
        reward.smallest_group = fewest
        callback.scorer = partial(evaluated, reward)
        trainer(tmp_path / str(fewest), [callback], logger=Memory()).fit(
            tiny(), datamodule=data("preference", groups=8)
        )
        assert bool(reward.sizes) is asked
        assert {row["reward"] is not None for row in rows(tmp_path / str(fewest), 2)} == {asked}


def test_prompts_do_not_depend_on_how_much_is_validated(tmp_path):
    """Rows of one prompt may fill the batches that are validated; those of later ones get samples too."""
    run = trainer(tmp_path, [PolicySamples(pack, prompts=3, max_new_tokens=6)], limit_val_batches=1)
    repeated = [row for row in examples(4) for _ in range(2)]
    module = tiny()
    run.fit(module, datamodule=AlignmentDataModule(examples(8), kind="preference", validation=repeated, batch_size=2))
    prompts = [module.tokenizer.decode(row.prompt) for row in examples(3)]
    for step in (0, run.global_step):
        assert [row["prompt"] for row in rows(tmp_path, step)] == prompts


def _example(example, response):
    from rlhf_lightning.types import Example

    return Example(example.prompt, [response])


def test_kl_is_measured_without_dropout():
    """Before training the module is in training mode; fails when the policy drops and the reference does not."""
    module = tiny("adapter_off", Lora(r=2, alpha=64, dropout=0.5, seed=1))
    module.configure_model()
    for name, parameter in module.trained_parameters():
        if "lora_B" in name:
            parameter.data += 0.1
    batch = pack([_example(row, row.responses[0]) for row in examples(3)])
    ratios = [module.train().log_ratios([batch])[0].token for _ in range(2)]
    assert module.policy.training
    assert torch.equal(*ratios)
    assert float(ratios[0].abs().max()) > 1e-3


@pytest.mark.parametrize(
    ("reference", "options"), [("none", {}), ("frozen", {"temperature": 0.5}), ("frozen", {"top_p": 0.9})]
)
def test_no_kl_where_it_would_be_another_number(tmp_path, reference, options):
    from rlhf_lightning.losses import simpo

    builder = ModelBuilder(TinyRandom(hidden_size=16, intermediate_size=32), None, reference)
    module = Preference(builder, simpo, partial(torch.optim.AdamW, lr=1e-2))
    logger = sampled(tmp_path, module, **options)
    assert logger.series("val/kl/reference") == []
    assert [row["kl"] for row in rows(tmp_path, 2)] == [None] * 5


def _sample_in_two(folder: Path, strategy) -> None:
    run = trainer(folder, [PolicySamples(pack, prompts=3, max_new_tokens=4)], devices=2, strategy=strategy())
    run.fit(tiny(), datamodule=data("preference", groups=8))


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_samples_of_several_processes_are_in_one_table(tmp_path, strategy):
    from lightning.pytorch.strategies import DDPStrategy

    from rlhf_lightning.strategies import FSDP2Strategy

    assert ranks(2, _sample_in_two, tmp_path, {"ddp": DDPStrategy, "fsdp": FSDP2Strategy}[strategy]) == [0, 0]
    table = rows(tmp_path, 2)
    assert [row["row"] for row in table] == [f"pairs.jsonl:{i}" for i in range(3)]
    assert [row["index"] for row in table] == [0, 1, 2]


def test_tables_of_loggers(tmp_path, monkeypatch):
    table = [{"step": 3, "prompt": "a|b", "response": "two\nlines", "kl": 0.123456}]
    board = TensorBoardLogger(tmp_path, name="", version="")
    log_table(board, "samples", table, 3)
    board.experiment.flush()
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path))
    events.Reload()
    text = events.Tensors("samples/text_summary")[0].tensor_proto.string_val[0].decode()
    assert "| a\\|b | two<br>lines | 0.1235 |" in text
    calls = []
    for kind, name in ((WandbLogger, "log_table"), (MLFlowLogger, "experiment")):
        logger = kind.__new__(kind)
        if kind is WandbLogger:
            monkeypatch.setattr(kind, name, lambda self, key, **arguments: calls.append((key, arguments)))
        else:
            from types import SimpleNamespace

            fake = SimpleNamespace(log_table=lambda run, **arguments: calls.append((run, arguments)))
            monkeypatch.setattr(kind, "experiment", fake)
            monkeypatch.setattr(kind, "run_id", "run")
        log_table(logger, "samples", table, 3)
    assert calls[0] == ("samples", {"columns": list(table[0]), "data": [list(table[0].values())]})
    assert calls[1][1]["artifact_file"] == "samples/step_00000003.json"
    log_table(CSVLogger(tmp_path), "samples", table, 3)  # has none


@pytest.mark.parametrize("adapter", [None, Lora(r=2)], ids=["full", "merged"])
def test_export_loads_in_transformers(tmp_path, adapter):
    module = tiny(adapter=adapter)
    callback = HFExport(form="auto" if adapter is None else "merged", monitor="val/loss")
    trainer(tmp_path, [callback]).fit(module, datamodule=data("preference", groups=8))
    batch = next(iter(loader(1)))
    for name in ("last", "best"):
        model = AutoModelForCausalLM.from_pretrained(tmp_path / "export" / name)
        logits = model(batch.ids[None, :4]).logits
        module.eval()
        with torch.no_grad():
            expected = module.policy.model(batch.ids[None, :4]).logits
        torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-4)
    assert AutoTokenizer.from_pretrained(tmp_path / "export" / "last").chat_template
    metric = json.loads((tmp_path / "export" / "best" / "metric.json").read_text())
    assert (metric["metric"], metric["step"]) == ("val/loss", 2)


def test_best_export_is_the_best(tmp_path):
    """The learning rate wrecks the policy after the first epoch: the best export is that of the first."""

    class Wreck(EMAWeights):
        def on_train_epoch_start(self, trainer, module) -> None:
            if trainer.current_epoch == 1:
                for group in trainer.optimizers[0].param_groups:
                    group["lr"] = 10.0

    module = tiny()
    run = trainer(tmp_path, [HFExport(monitor="val/loss", last=False), Wreck(decay=0.0)], max_epochs=2)
    run.fit(module, datamodule=data("preference", groups=8))
    assert json.loads((tmp_path / "export" / "best" / "metric.json").read_text())["step"] == 2
    assert not (tmp_path / "export" / "last").exists()


@pytest.mark.parametrize(
    ("adapter", "form", "words"),
    [(None, "adapter", "no adapter to export"), (Lora(r=2, options={"lora_bias": True}), "merged", "cannot merge")],
    ids=["no adapter", "not mergeable"],
)
def test_what_cannot_be_exported_is_refused_before_training(tmp_path, adapter, form, words):
    fit = trainer(tmp_path, [HFExport(form=form)])
    with pytest.raises(ValueError, match=words):
        fit.fit(tiny(adapter=adapter), datamodule=data("preference", groups=8))
    assert fit.global_step == 0


@pytest.mark.parametrize("options", [{}, {"monitor": "val/loss", "last": False}], ids=["last", "best"])
def test_a_failing_export_comes_after_the_checkpoints(tmp_path, options):
    """Whatever the order in which they are given."""
    (tmp_path / "full").write_text("a file where the export's folder would be")
    best = ModelCheckpoint(tmp_path / "best", monitor="val/loss", save_on_train_epoch_end=False)
    callbacks = [HFExport(str(tmp_path / "full"), **options), LastCheckpoint(every_n_steps=None), best]
    with pytest.raises(OSError, match="full"):
        trainer(tmp_path, callbacks, enable_checkpointing=True).fit(tiny(), datamodule=data("preference", groups=8))
    assert list((tmp_path / "best").glob("*.ckpt"))
    if not options:
        saved = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
        assert saved["global_step"] == 2


def test_export_of_an_unknown_metric_names_the_known_ones(tmp_path):
    with pytest.raises(ValueError, match=r"val/los was not logged.*val/loss"):
        trainer(tmp_path, [HFExport(monitor="val/los")]).fit(tiny(), datamodule=data("preference", groups=8))


def test_bar_fits_80_columns(tmp_path):
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=80, legacy_windows=False, color_system=None)
    bar = AlignmentProgressBar(console=console)
    callbacks = [bar, ImplicitRewards(), Throughput()]
    trainer(tmp_path, callbacks, enable_progress_bar=True).fit(preference(), loader(6), loader(2))
    lines = [
        line.split("\r")[-1] for line in screen.getvalue().replace("\x1b[2K", "\n").replace("\x1b[1A", "").split("\n")
    ]
    final = [line for line in lines if "6/6" in line][-1]
    assert len(final) <= 80
    for part in ("train", "loss 0.", "margin ", "tok/s", "total"):
        assert part in final


def test_without_a_terminal_every_tenth_of_the_run_is_a_line(tmp_path):
    log = io.StringIO()
    bar = AlignmentProgressBar(console=Console(file=log, force_terminal=False))
    trainer(tmp_path, [bar], enable_progress_bar=True).fit(preference(), loader(20))
    lines = log.getvalue().splitlines()
    assert [line.split()[1] for line in lines] == [f"{step}/20" for step in range(2, 21, 2)]
    assert "loss" in lines[-1]


def test_tokens_of_samples_are_counted(tmp_path):
    """Before training and in the validation; without a terminal in lines."""
    log = io.StringIO()
    bar = AlignmentProgressBar(console=Console(file=log, force_terminal=False))
    samples = PolicySamples(pack, prompts=2, max_new_tokens=8, folder=str(tmp_path / "samples"))
    trainer(tmp_path, [bar, samples], enable_progress_bar=True).fit(tiny(), datamodule=data("preference", groups=8))
    assert log.getvalue().splitlines().count("tokens 2/8") >= 2


def test_log_handlers_follow_the_line():
    old, new = io.StringIO(), io.StringIO()
    handler = logging.StreamHandler(old)
    logging.getLogger("rlhf_lightning.test").addHandler(handler)
    redirect_handlers(old, new)
    assert handler.stream is new
    redirect_handlers(new, old)
    assert handler.stream is old
    logging.getLogger("rlhf_lightning.test").removeHandler(handler)


@pytest.mark.parametrize(
    ("number", "text"), [(5.0, "5.00"), (87.25, "87.2"), (1234.0, "1.23k"), (45_600_000.0, "45.6M"), (999.6, "1.00k")]
)
def test_compact(number, text):
    assert compact(number) == text


def test_words_of_the_line():
    metrics = {"train/loss": torch.tensor(0.5), "train/throughput/tokens_per_second": 1500.0, "other": 1.0}
    assert summary(metrics) == "loss 0.5000 1.50k tok/s"
    assert (clock(5), clock(65.4), clock(3700)) == ("00:05", "01:05", "1:01:40")


def test_words_of_an_on_policy_line():
    """Shares of all phases, those that are not shown included."""
    seconds = {"generate": 4.5, "score": 0.8, "reward": 0.2, "train": 4.5}
    metrics = {"train/loss": 0.01, "train/reward/mean": 0.5, "train/throughput/tokens_per_second": 1500.0}
    metrics |= {f"train/time/{name}": value for name, value in seconds.items()}
    assert summary(metrics) == "loss 0.010 reward +0.50 gen 45% train 45%"


def test_rewards_of_every_process_are_kept_once(tmp_path):
    """Two processes score half of the validation pairs each; the file has all, in the order of the data set."""
    assert ranks(2, _validate_in_two, tmp_path) == [0, 0]
    kept = np.load(tmp_path / "implicit_rewards.npz")
    assert kept["index"].tolist() == list(range(10))
    trainer(tmp_path / "one", [ImplicitRewards()]).validate(_moved(tiny()), datamodule=data("preference", groups=10))
    alone = np.load(tmp_path / "one" / "implicit_rewards.npz")
    assert kept["chosen"] == pytest.approx(alone["chosen"], abs=1e-5)
    assert kept["rejected"] == pytest.approx(alone["rejected"], abs=1e-5)
    assert np.abs(alone["chosen"]).max() > 1e-3


def _validate_in_two(folder: Path) -> None:
    from lightning.pytorch.strategies import DDPStrategy

    options = {"strategy": DDPStrategy(), "devices": 2, "use_distributed_sampler": False}
    trainer(folder, [ImplicitRewards()], **options).validate(_moved(tiny()), datamodule=data("preference", groups=10))


def _moved(module: Preference) -> Preference:
    """With a policy that is not the reference, so that rewards are not 0."""
    module.configure_model()
    with torch.no_grad():
        for parameter in module.policy.parameters():
            parameter.mul_(1.05)
    return module
