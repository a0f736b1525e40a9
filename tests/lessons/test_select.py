"""Contents of a round of groups: samples, steps, reference, and its part of a checkpoint."""

from __future__ import annotations

import io
import json
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from rlhf_lightning.data.module import AlignmentDataModule
from rlhf_lightning.lessons import Rounds, SelectLesson
from rlhf_lightning.models.adapters.lora import Lora
from rlhf_lightning.models.roles.builder import ModelBuilder
from rlhf_lightning.models.sources import TinyRandom
from rlhf_lightning.rounds import OnlineData
from rlhf_lightning.rounds.responses import DataResponses
from rlhf_lightning.selection import best_and_worst
from rlhf_lightning.selection.options import makes, selector
from rlhf_lightning.types import DATA, NONE, Draw, Example, Sample, Selected
from tests.helpers.fake_rollouts import FakeEngine, Sum
from tests.helpers.jobs import Memory
from tests.helpers.online import builder, prompts
from tests.helpers.rounds import data_of, extremes, module_of, rounds_of
from tests.helpers.training import trainer

LN2 = float(torch.tensor(2.0).log())


class Silent(FakeEngine):
    """Cannot say how likely its tokens were."""

    def sample(self, ids):
        return Sample(ids, [], "length" if len(ids) >= self.max_new_tokens else "stop")


class Learner(nn.Module):
    """A method whose policy and reference say of every token its own id."""

    needs, kind, device, tokenizer = frozenset({"reference"}), "preference", torch.device("cpu"), None
    reference, earlier = None, {}

    def __init__(self) -> None:
        super().__init__()
        self.tokenizer = SimpleNamespace(decode=lambda ids, **_: " ".join(map(str, ids)))
        self.policy_batches: list[list[int]] = []

    def policy(self, batch):
        self.policy_batches.append(batch.index.tolist())
        return SimpleNamespace(token=batch.ids[batch.target].float())

    def placed_reference(self):
        return lambda batch: SimpleNamespace(token=-batch.ids[batch.target].float())

    def trained_parameters(self):
        return iter([("weight", torch.ones(2))])


def looped(rounds: Rounds, engine=None, reward=None, count: int = 24, responses=None, kind="preference", folder=None):
    """Rounds over prompts of a few bytes, four a step, without a Trainer."""
    source = AlignmentDataModule(prompts(count), kind="prompt", batch_size=4, seed=3)
    lesson = partial(SelectLesson, kind=kind, seed=3, responses=responses)
    data = OnlineData(source, engine or Silent(), reward or Sum(), rounds, folder, lesson=lesson)
    module = Learner()
    data.attach(module)
    data.setup()
    return data, module


def spans(batch) -> list[list[int]]:
    return [batch.ids[start:end].tolist() for start, end in batch.response_span.tolist()]


def losses(folder, rounds: Rounds, make=builder, **options) -> list[float]:
    logger, module = Memory(), module_of(make)
    run = trainer(folder, [], logger=logger, use_distributed_sampler=False, **options)
    run.fit(module, datamodule=data_of(module, folder / "rollouts", rounds=rounds))
    return logger.series("train/loss")


@pytest.mark.parametrize("accumulate", [1, 4])
@pytest.mark.parametrize("adapter", [None, Lora(r=2, seed=0)])
def test_the_first_loss_of_every_round_is_ln_2(tmp_path, accumulate, adapter):
    """To the last bit: the reference is computed on the micro-batches of the steps. Fails on any other ones."""
    make = partial(ModelBuilder, TinyRandom(hidden_size=16, intermediate_size=32), adapter, "auto")
    values = losses(tmp_path, rounds_of(reference="round_start"), make, accumulate_grad_batches=accumulate)
    assert len(values) == 6
    assert values[::2] == [LN2] * 3
    assert all(value != LN2 for value in values[1::2])


def test_the_references_of_rounds_are_those_that_they_are_called(tmp_path):
    """Two rounds on, each compares with other weights; in the first all compare with the run's start."""
    names = ("initial", "round_start", "previous_round", "ema")
    by_reference = {name: losses(tmp_path / name, rounds_of(reference=name, minibatches=1)) for name in names}
    assert {name: values[0] for name, values in by_reference.items()} == dict.fromkeys(names, LN2)
    assert by_reference["previous_round"][1] == by_reference["initial"][1] != LN2
    assert len({values[2] for values in by_reference.values()}) == 4
    assert by_reference["round_start"][2] == LN2


def test_groups_are_pairs_with_the_numbers_of_their_reference():
    data, module = looped(rounds_of())
    batches = list(data.train_dataloader())
    assert len(batches) == 6
    for batch in batches:
        assert batch.reference_log_probs.tolist() == (-batch.ids[batch.target]).tolist()
        chosen, rejected = spans(batch)[::2], spans(batch)[1::2]
        assert all(sum(one) > sum(other) for one, other in zip(chosen, rejected, strict=True))
        margins = [sum(one) - sum(other) for one, other in zip(chosen, rejected, strict=True)]
        assert batch.margin.tolist() == margins
        assert batch.totals.slot_tokens == (sum(map(len, chosen)), sum(map(len, rejected)))
    assert module.policy_batches == [], "the reference of the run's start is not the policy"


class Tied(Silent):
    """Samples of some prompts differ; those of all others are the same."""

    def __init__(self, seeds: list[int]) -> None:
        super().__init__(lambda seed, j: [1 + j] if seed in seeds else [3])


def tied(positions: list[int], **options):
    probe, _ = looped(rounds_of())
    engine = Tied([probe.stream.seeds(position, 1)[0] for position in positions])
    data, _ = looped(rounds_of(**options), engine)
    return data, engine


def test_ties_are_refilled_from_the_stream_and_what_is_missing_is_left_out():
    """Of the first eight prompts three have pairs, of the next five two; steps keep their number and count groups."""
    data, engine = tied([0, 3, 5, 9, 12], max_refills=1)
    loader = data.train_dataloader()
    batches = [next(iterator) for iterator in [iter(loader)] for _ in range(2)]
    assert [count for count, _ in engine.calls] == [8, 5]
    assert loader.cursor == 13
    assert sorted(row for batch in batches for row in batch.index.tolist()) == sorted(
        data.stream.take(0, 13)[[0, 3, 5, 9, 12]].tolist()
    )
    assert [batch.totals.groups for batch in batches] == [3, 2]
    assert len(loader) == 6
    assert data.metrics["train/select/groups"] == 5


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_step_without_groups_teaches_nothing(tmp_path, accumulate):
    """One pair in two steps: the other one is taken all the same, its loss is 0, and no weight becomes nan."""
    logger, module = Memory(), module_of()
    run = trainer(
        tmp_path, [], logger=logger, use_distributed_sampler=False, accumulate_grad_batches=accumulate, max_steps=2
    )
    probe = data_of(module, None)
    probe.setup()
    first = probe.stream.seeds(0, 1)[0]

    class One(Sum):
        name = "one"

        def __call__(self, groups):
            return [[float(at) if group.index == row else 0.0 for at in range(3)] for group in groups]

    row = int(probe.stream.take(0, 1)[0])
    run.fit(module, datamodule=data_of(module, None, reward=One()))
    assert first
    assert sorted(logger.series("train/loss")) == [0.0, LN2]
    assert all(parameter.isfinite().all() for parameter in module.policy.parameters())


def test_a_round_without_groups_is_skipped_and_too_many_end_the_run():
    class Never(Sum):
        def __call__(self, groups):
            return [[1.0] * len(group.samples) for group in groups]

    data, _ = looped(rounds_of(max_empty=2), reward=Never())
    with pytest.raises(
        RuntimeError, match=r"rollouts 0 to 1 .* all tied, cut off or unscored: draw more .*cut_off=keep"
    ):
        next(iter(data.train_dataloader()))
    data, _ = looped(rounds_of(selector=partial(best_and_worst, cut_off="keep"), max_empty=1), reward=Never())
    with pytest.raises(
        RuntimeError, match=r"all tied or unscored: draw more \(rounds.draws.0.n\), refill \(\S+\)\. As"
    ):
        next(iter(data.train_dataloader()))


@pytest.mark.parametrize(("carry", "expected"), [("none", [4, 4, 4]), ("previous", [4, 8, 8]), ("all", [4, 8, 12])])
def test_earlier_rounds_are_carried_along(carry, expected):
    data, _ = looped(rounds_of(carry=carry, minibatches=1), Tied([]), count=12)
    engine = data.engine
    engine.respond = lambda seed, j: [1 + j]
    batches = list(data.train_dataloader())
    assert [len(batch) for batch in batches] == expected
    later = batches[-1]
    assert later.reference_log_probs.tolist() == (-later.ids[later.target]).tolist(), "of this round's reference"


@pytest.mark.parametrize("taken", [0, 1, 2, 3, 4, 5, 7])
@pytest.mark.parametrize("carry", ["none", "all"])
def test_state_resumes_anywhere(taken, carry):
    """Within a round the state brings its groups and the carried ones; at its end those that later rounds need."""
    rounds = rounds_of(carry=carry, inner_epochs=2)

    def numbers(batch):
        return [batch.ids.tolist(), batch.reference_log_probs.tolist(), batch.margin.tolist(), batch.index.tolist()]

    loader = looped(rounds)[0].train_dataloader()
    expected = [numbers(batch) for batch in loader]
    loader = looped(rounds)[0].train_dataloader()
    iterator = iter(loader)
    for _ in range(taken):
        next(iterator)
    stored = io.BytesIO()
    torch.save(loader.state_dict(), stored)
    stored.seek(0)
    resumed = looped(rounds)[0].train_dataloader()
    resumed.load_state_dict(torch.load(stored, weights_only=True))
    assert [numbers(batch) for batch in resumed] == expected[taken:]


def test_what_a_selector_sees():
    """Every input of the declared shape; the whole round at once; random numbers of its own in each round."""
    seen: list[dict[str, Tensor]] = []

    @selector
    @makes("preference")
    def watching(score, truncated, length, same_as, source, generator):
        seen.append({"score": score, "truncated": truncated, "length": length, "same_as": same_as, "source": source})
        seen[-1]["random"] = torch.rand(2, generator=generator)
        return extremes(score)

    respond = {0: [1, 1, 1, 1], 1: [2], 2: [2]}
    engine = Silent(lambda seed, j: respond[j])
    rows = {f"prompts.jsonl:{row}": Example([1], [[1, 1, 1, 1]]) for row in range(24)}
    data, _ = looped(rounds_of(selector=watching, length_unit="characters"), engine, responses=rows)
    list(data.train_dataloader())
    first = seen[0]
    assert first["score"].shape == (8, 3)
    assert first["score"].dtype == torch.float64
    assert first["score"].tolist() == [[4.0, 2.0, 2.0]] * 8
    assert first["truncated"].tolist() == [[True, False, False]] * 8
    assert first["length"].tolist() == [[7.0, 1.0, 1.0]] * 8  # "1 1 1 1"
    assert first["same_as"].tolist() == [[DATA, 1, 1]] * 8
    assert first["source"].tolist() == [0, 0, 0]
    assert len({tuple(one["random"].tolist()) for one in seen}) == 3


def test_slots_of_the_data_and_empty_ones():
    """A list of the data's response, the best sample and nothing, of kind ranked, with a score each."""

    @selector
    @makes("ranked")
    def lists(score):
        best = score.argmax(1)
        slots = torch.stack([torch.full_like(best, DATA), best, torch.full_like(best, NONE)], dim=1)
        numbers = torch.tensor([2.0, 1.0, 0.0]).repeat(len(best), 1)
        return Selected(torch.arange(len(best)), slots, {"score": numbers})

    rows = {f"prompts.jsonl:{row}": Example([1], [[9, row]]) for row in range(24)}
    data, _ = looped(rounds_of(selector=lists), responses=rows, kind="ranked")
    batch = next(iter(data.train_dataloader()))
    assert [response[0] for response in spans(batch)[::3]] == [9] * 4
    assert spans(batch)[2::3] == [[]] * 4
    assert batch.score.tolist() == [2.0, 1.0, 0.0] * 4


def test_the_mask_of_the_data_is_kept_also_in_a_checkpoint():
    """A response of several turns: what the user said within it is not scored."""

    @selector
    @makes("preference")
    def against_data(score):
        return Selected(torch.arange(len(score)), torch.tensor([[DATA, 0]] * len(score)))

    rows = {f"prompts.jsonl:{row}": Example([1], [[9, 8, 7]], [[True, False, True]]) for row in range(24)}
    data, _ = looped(rounds_of(selector=against_data), responses=rows)
    loader = data.train_dataloader()
    batch = next(iter(loader))
    assert batch.totals.slot_tokens[0] == 2 * 4
    held = loader.experience
    assert data.lesson.restore(held.state_dict()).examples.content() == held.examples.content()


def test_pairs_of_one_response_are_left_out():
    """A judge that rates one response twice differently: nothing can be learned from it."""

    class Noisy(Sum):
        def __call__(self, groups):
            return [[float(number) for number, _ in enumerate(group.samples)] for group in groups]

    data, _ = looped(rounds_of(max_empty=1), Silent(lambda seed, j: [5]), Noisy())
    with pytest.raises(RuntimeError, match=r"the selector made no group .* As many in a row as rounds.max_empty=1"):
        next(iter(data.train_dataloader()))


def test_draws_of_several_sources_are_scored_together(tmp_path):
    """The data's own response is a sample like the others, and a row of the rollout's file."""

    class Group(Sum):
        def __call__(self, groups):
            assert [len(group.samples) for group in groups] == [3] * len(groups)
            return super().__call__(groups)

    rows = {f"prompts.jsonl:{row}": Example([1], [[90, row + 1]]) for row in range(24)}
    rounds = rounds_of(draws=[Draw(n=2), Draw("data")])
    data, _ = looped(rounds, reward=Group(), responses=rows, folder=tmp_path)
    data.responses = rows
    batch = next(iter(data.train_dataloader()))
    assert all(response[0] == 90 for response in spans(batch)[::2])
    written = [json.loads(line) for line in (tmp_path / "00000.jsonl").read_text().splitlines()]
    assert len(written) == 24
    assert [row["source"] for row in written[:3]] == ["policy", "policy", "data"]
    assert [row["kept"] for row in written[2::3]] == [["chosen"]] * 8
    assert {row["trained"] for row in written[2::3]} == {True}


def test_responses_of_the_data_are_found_by_row():
    examples = [Example([1, 2], [[3, 4]], row=f"rows:{row}") for row in range(3)]
    responses = DataResponses(AlignmentDataModule(examples, kind="supervised", batch_size=1))
    assert {row: example.responses for row, example in responses.items()} == {f"rows:{n}": [[3, 4]] for n in range(3)}
    data = AlignmentDataModule([*examples, Example([1], [[5]], row="rows:9")], kind="prompt", batch_size=1)
    data.setup("fit")
    with pytest.raises(ValueError, match=r"1 of 4 prompts have no response .* first rows:9"):
        responses.check(data.train_examples)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"draws": [Draw(n=1)]}, r"rounds.draws gives 1 response a prompt, .* at least 2: set rounds.draws.0.n=2"),
        ({"draws": []}, "rounds.draws is empty"),
        ({"draws": [{"source": "policy", "m": 2}]}, r"rounds.draws.0.m is no option of a draw. There are source, n"),
        ({"draws": [{"n": 2}, {"source": "nobody"}]}, r"rounds.draws.1.source=nobody can be policy, reference"),
        ({"reference": "last"}, "rounds.reference='last' can be initial, round_start, previous_round, ema"),
        ({"carry": "some"}, "rounds.carry='some' can be none, previous, all"),
        ({"length_unit": "words"}, "rounds.length_unit='words' can be tokens, characters"),
        ({"loss_options": {"beta": 0.1}}, r"rounds.loss_options.beta=0.1 must list a value for every round: \[0.1"),
        ({"loss_options": {"beta": []}}, r"rounds.loss_options.beta=\[\] must list a value"),
        ({"ema_weight": 0.0}, "rounds.ema_weight=0.0 must be in"),
        ({"minibatches": 0}, "rounds.minibatches=0 must be at least 1"),
        ({"max_refills": -1}, "rounds.max_refills=-1 must be at least 0"),
    ],
)
def test_impossible_rounds(options, message):
    with pytest.raises(ValueError, match=message):
        rounds_of(**options)


def test_the_probe_holds_samples_against_the_trainer(tmp_path):
    """Samples of the policy at temperature 1 carry the engine's log-probs, those of another one do not."""
    for temperature, has_gap in ((1.0, True), (0.7, False)):
        module = module_of()
        run = trainer(tmp_path, [], use_distributed_sampler=False, max_steps=1)
        data = data_of(module, None, rounds=rounds_of(draws=[Draw(n=3, temperature=temperature)]))
        run.fit(module, datamodule=data)
        assert ("train/mismatch/mean_gap" in data.metrics) == has_gap
        assert data.metrics.get("train/mismatch/max_gap", 0.0) < 1e-4
        assert isinstance(data.metrics["train/select/tie_rate"], float)


def test_samples_without_log_probs_are_no_problem():
    data, _ = looped(rounds_of())
    next(iter(data.train_dataloader()))
    assert not [name for name in data.metrics if "gap" in name]
