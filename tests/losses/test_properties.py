"""Properties of every loss, whatever the numbers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from rlhf_lightning import losses
from rlhf_lightning.losses import dft, needs, sft
from tests.helpers.loss_inputs import PREFERENCE, Numbers, gradients, inputs, ragged, run
from tests.helpers.loss_strategies import OPTIONS, batches

REFERENCE_FREE = {name for name in PREFERENCE if "reference" not in needs(getattr(losses, name))}
#: Change when the same constant is added to both log-ratios of a pair.
ANCHORED = {"nca", "sppo", "sppo_soft", "apo_zero", "apo_down", "kto_pair", "bco_pair"}
#: Look at the chosen response's own likelihood as well.
LIKELIHOOD = {"rpo", "dpop", "f_dpo", "xpo"}
#: Divide by each response's own length, so the constant has to be one per token.
PER_TOKEN = {"ipo", "sigmoid_norm", "alpha_dpo"}
DIFFERENCE = set(PREFERENCE) - REFERENCE_FREE - ANCHORED - LIKELIHOOD - PER_TOKEN
#: Each pair's loss depends on the other pairs of the micro-batch.
BATCH_DEPENDENT = {"aot", "aot_unpaired", "kto_pair", "beta_dpo"}


def shifted(batch: Numbers, nats: float, per_token: bool = False) -> Numbers:
    """The policy's log-probs of every response raised by ``nats`` (or by that much per token)."""

    def raised(rows: list[list[float]]) -> list[list[float]]:
        return [[x + (nats if per_token else nats / len(row)) for x in row] for row in rows]

    # the collision probabilities move along, so that WPO's weights stay what they are
    return Numbers(
        **(vars(batch) | {name: raised(value) for name in ("policy_chosen", "policy_rejected", "collision_chosen",
                                                           "collision_rejected") if (value := getattr(batch, name))})
    )  # fmt: skip


@pytest.mark.parametrize("name", sorted(DIFFERENCE - {"ld_dpo"}))
@settings(max_examples=15, deadline=None)
@given(batch=batches(), nats=st.floats(-5, 5), data=st.data())
def test_common_shift_changes_nothing(name: str, batch: Numbers, nats: float, data: st.DataObject) -> None:
    options = data.draw(st.fixed_dictionaries(OPTIONS[name]))
    before, after = run(name, batch, **options), run(name, shifted(batch, nats), **options)
    torch.testing.assert_close(after.loss, before.loss, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("name", sorted(PER_TOKEN))
@settings(max_examples=15, deadline=None)
@given(batch=batches(), nats=st.floats(-5, 5))
def test_common_shift_per_token_changes_nothing(name: str, batch: Numbers, nats: float) -> None:
    torch.testing.assert_close(run(name, shifted(batch, nats, per_token=True)).loss, run(name, batch).loss)


@pytest.mark.parametrize("name", sorted(ANCHORED | {"rpo", "dpop"}))
def test_common_shift_changes_anchored_losses(name: str) -> None:
    batch = Numbers([[-1.0, -2.0]], [[-2.0]], [[-1.5, -2.0]], [[-1.0]])
    change = run(name, shifted(batch, -2.0), beta=0.5).loss - run(name, batch, beta=0.5).loss
    assert change.abs().item() > 1e-3


@pytest.mark.parametrize("divergence", ["forward_kl", "js", "alpha"])
def test_other_divergences_are_not_shift_invariant(divergence: str) -> None:
    batch = Numbers([[-1.0, -2.0]], [[-2.0]], [[-1.5, -2.0]], [[-1.0]])
    options: dict[str, Any] = {"divergence": divergence, "beta": 0.5}
    change = run("f_dpo", shifted(batch, -2.0), **options).loss - run("f_dpo", batch, **options).loss
    assert change.abs().item() > 1e-3


@pytest.mark.parametrize("name", PREFERENCE)
@settings(max_examples=15, deadline=None)
@given(batch=batches(min_pairs=2), data=st.data())
def test_order_of_pairs_does_not_matter(name: str, batch: Numbers, data: st.DataObject) -> None:
    options = data.draw(st.fixed_dictionaries(OPTIONS[name]))
    order = data.draw(st.permutations(range(len(batch))))
    before, after = run(name, batch, **options).loss, run(name, batch.pick(list(order)), **options).loss
    if name in {"aot", "aot_unpaired"}:  # quantiles are sorted already
        torch.testing.assert_close(after, before)
    else:
        torch.testing.assert_close(after, before[list(order)])


@pytest.mark.parametrize("name", [*sorted(set(PREFERENCE) - BATCH_DEPENDENT), "beta_dpo"])
@settings(max_examples=15, deadline=None)
@given(batch=batches(min_pairs=2), data=st.data())
def test_micro_batches_do_not_matter(name: str, batch: Numbers, data: st.DataObject) -> None:
    options = data.draw(st.fixed_dictionaries(OPTIONS[name]))
    if name == "beta_dpo":  # per pair, and with statistics, it looks at no other pair
        options["level"], batch.running = "pair", (0.5, 1.0, 3.0)
    cut = data.draw(st.integers(1, len(batch) - 1))
    whole = run(name, batch, **options).loss
    parts = [run(name, batch.pick(rows), **options).loss for rows in (list(range(cut)), list(range(cut, len(batch))))]
    torch.testing.assert_close(torch.cat(parts), whole)


@pytest.mark.parametrize("loss", [sft, dft])
@pytest.mark.parametrize("reduction", ["token_mean", "response_mean", "sum"])
def test_supervised_micro_batches_do_not_matter(loss: Any, reduction: str) -> None:
    rows = [[-1.0, -2.0, -0.5], [-4.0], [-0.25, -0.75]]
    whole = loss(ragged(rows), reduction=reduction)
    parts = [loss(ragged(part, mean_length=2.0), reduction=reduction) for part in (rows[:1], rows[1:])]
    torch.testing.assert_close(torch.cat(parts), whole)


def test_token_mean_is_the_mean_over_all_tokens() -> None:
    rows = [[-1.0, -2.0, -0.5], [-4.0], [-0.25, -0.75]]
    assert sft(ragged(rows)).mean().item() == pytest.approx(8.5 / 6)
    assert run("preferred_ft", Numbers(rows, rows, rows, rows)).loss.mean().item() == pytest.approx(8.5 / 6)


# Where policy and reference are equal, a loss that learns the preference lowers the rejected response and, where it
# looks at the chosen one at all, raises it. Exceptions: DiscoPOP first lowers the margin (its docstring says so),
# APO-down leaves the chosen response alone at this very point, Preferred-FT ignores the rejected one.
START = Numbers(
    [[-1.0, -2.0], [-0.5]], [[-2.0], [-1.0, -1.5, -0.5]], [[-1.0, -2.0], [-0.5]], [[-2.0], [-1.0, -1.5, -0.5]],
    [[-0.5, -0.5], [-0.5]], [[-0.5], [-0.5, -0.5, -0.5]], margin=[1.5, 2.0],
)  # fmt: skip


@pytest.mark.parametrize("name", sorted(set(PREFERENCE) - {"discopop", "apo_down", "preferred_ft"}))
def test_first_step_raises_chosen_and_lowers_rejected(name: str) -> None:
    options = {"slic": {"delta": 4.0}}.get(name, {})  # an active hinge
    chosen, rejected = gradients(name, START, **options)
    assert (chosen < 0).all()
    assert (rejected > 0).all()


def test_first_step_of_the_exceptions() -> None:
    assert gradients("apo_down", START)[0].tolist() == pytest.approx([0.0] * 3)
    assert (gradients("apo_down", START)[1] > 0).all()
    assert (gradients("preferred_ft", START)[0] < 0).all()
    assert (gradients("preferred_ft", START)[1] == 0).all()
    # d/dz of DiscoPOP at 0 is (1 - log 2) / (4 tau) - 3/4 = 0.784264 for tau = 0.05; half of it in a mean of 2 pairs
    assert gradients("discopop", START, beta=1.0, tau=0.05)[0].tolist() == pytest.approx([0.392132] * 3, abs=1e-6)


@pytest.mark.parametrize("name", PREFERENCE)
@pytest.mark.parametrize(("chosen", "rejected"), [(-1e4, -1e-3), (-1e-3, -1e4), (-1e4, -1e4), (0.0, 0.0)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_finite_at_extreme_margins(name: str, chosen: float, rejected: float, dtype: torch.dtype) -> None:
    batch = Numbers(
        [[chosen], [chosen, -1.0]], [[rejected, -1.0], [rejected]], [[-1.0], [-1.0, -1.0]], [[-1.0, -1.0], [-1.0]],
        [[-1.0], [-1.0, -1.0]], [[-1.0, -1.0], [-1.0]], margin=[1e-6, 1e6],
    )  # fmt: skip
    variants: list[dict[str, Any]] = [{}]
    if name == "f_dpo":
        variants = [{"divergence": d, "alpha": 1.0} for d in ("forward_kl", "js", "alpha")]
    if name == "discopop":
        variants = [{"tau": 0.05}, {"tau": 1.0}]
    for options in variants:
        assert run(name, batch, dtype, **options).loss.isfinite().all()
        for gradient in gradients(name, batch, dtype, **options):
            assert gradient.isfinite().all()


#: A factor or offset of these is a constant for the gradient; test_detached_factors covers them.
DETACHED_FACTOR = {"wpo", "beta_dpo", "alpha_dpo"}


@pytest.mark.parametrize("name", sorted(set(PREFERENCE) - DETACHED_FACTOR))
@settings(max_examples=8, deadline=None)
@given(data=st.data())
def test_gradient_is_the_derivative_of_the_value(name: str, data: st.DataObject) -> None:
    """Central differences in float64."""
    batch = data.draw(batches(max_pairs=2))
    options = data.draw(st.fixed_dictionaries(OPTIONS[name]))
    if name == "kto_pair":
        options["detach_kl"] = False
    analytic, step = gradients(name, batch, **options)[0], 1e-6
    row = data.draw(st.integers(0, len(batch) - 1))

    def value(change: float) -> float:
        moved = [list(r) for r in batch.policy_chosen]
        moved[row][0] += change
        return run(name, Numbers(**(vars(batch) | {"policy_chosen": moved})), **options).loss.mean().item()

    position = sum(len(r) for r in batch.policy_chosen[:row])
    left, middle, right = value(-step), value(0.0), value(step)
    assume(abs(left + right - 2 * middle) < 1e-10)  # no kink (hinge, clamp, change of rank) in between
    assert (right - left) / (2 * step) == pytest.approx(analytic[position].item(), rel=1e-4, abs=1e-4)


def test_detached_factors() -> None:
    """Weights, dynamic betas and target margins are constants for the gradient: it is DPO's (SimPO's) times them."""
    weight = run("wpo", START, beta=0.5).diagnostics["weight"]
    per_token = torch.cat([weight[:1].expand(2), weight[1:].expand(1)])
    torch.testing.assert_close(gradients("wpo", START, beta=0.5)[0], gradients("dpo", START, beta=0.5)[0] * per_token)

    moved = shifted(START, 1.0)
    moved.policy_chosen = [[-0.5, -1.0], [-0.25]]
    moved.running = (0.25, 0.5, 3.0)
    for name, key in (("beta_dpo", "beta"), ("alpha_dpo", "target")):
        output = run(name, moved)
        assert not output.diagnostics[key].requires_grad
    dynamic = run("beta_dpo", moved, level="pair").diagnostics["beta"].tolist()
    for pair, beta in enumerate(dynamic):
        one = moved.pick([pair])
        expected = gradients("dpo", one, beta=beta)[0]
        torch.testing.assert_close(gradients("beta_dpo", one, level="pair")[0], expected)
    one = moved.pick([0])
    target = run("alpha_dpo", one, beta=2.0).diagnostics["target"].item()
    torch.testing.assert_close(
        gradients("alpha_dpo", one, beta=2.0)[0], gradients("simpo", one, beta=2.0, gamma=2.0 * target)[0]
    )


def test_kto_pair_reference_points_carry_gradient_only_when_asked() -> None:
    batch = Numbers([[-1.0]], [[-2.0]], [[-2.0]], [[-3.0]])  # both log-ratios are 1, so both reference points are 1
    free, constant = gradients("kto_pair", batch), gradients("kto_pair", batch, detach_kl=True)
    assert free[0].item() == pytest.approx(2 * constant[0].item())  # K_w moves with rho_w here, with the same slope
    assert free[0].item() < 0


@pytest.mark.parametrize("name", PREFERENCE)
def test_rewards_and_diagnostics_are_detached(name: str) -> None:
    output = run(name, START)
    values = [output.chosen_reward, output.rejected_reward, *output.diagnostics.values()]
    if output.observed is not None:
        values.append(output.observed)
    assert output.loss.requires_grad
    assert not any(value.requires_grad for value in values)


@pytest.mark.parametrize("name", PREFERENCE)
def test_no_gradient_reaches_the_reference(name: str) -> None:
    """Its leaves would accept one; a method passes tensors without gradient."""
    given_inputs = inputs(START)
    asked = {need: given_inputs[need] for need in needs(getattr(losses, name))}
    getattr(losses, name)(**asked).loss.sum().backward()
    if "collision" in asked:
        assert asked["collision"].chosen.token.grad is None
    if name in {"alpha_dpo"}:  # the reference enters the constant target only
        assert asked["reference"].chosen.token.grad is None


REDUCES_TO_DPO: dict[str, dict[str, Any]] = {
    "cdpo": {"label_smoothing": 0.0},
    "robust_dpo": {"label_smoothing": 0.0},
    "f_dpo": {"divergence": "alpha", "alpha": 0.0},
    "rpo": {"nll_weight": 0.0},
    "dpop": {"penalty": 0.0},
    "odpo": {"alpha": 0.0},
    "r_dpo": {"alpha": 0.0},
    "ld_dpo": {"alpha": 1.0},
    "beta_dpo": {"alpha": 0.0},
    "xpo": {"alpha": 0.0},
}


@pytest.mark.parametrize("name", REDUCES_TO_DPO)
@settings(max_examples=15, deadline=None)
@given(batch=batches(), beta=st.floats(0.05, 2))
def test_reduces_to_dpo(name: str, batch: Numbers, beta: float) -> None:
    torch.testing.assert_close(
        run(name, batch, beta=beta, **REDUCES_TO_DPO[name]).loss, run("dpo", batch, beta=beta).loss
    )


@settings(max_examples=15, deadline=None)
@given(batch=batches(max_pairs=1), beta=st.floats(0.05, 2))
def test_one_pair_at_a_time_optimal_transport_is_dpo(batch: Numbers, beta: float) -> None:
    for name in ("aot", "aot_unpaired"):
        torch.testing.assert_close(run(name, batch, beta=beta).loss, run("dpo", batch, beta=beta).loss)


@settings(max_examples=15, deadline=None)
@given(batch=batches(), beta=st.floats(0.05, 2))
def test_alpha_losses_reduce_to_simpo(batch: Numbers, beta: float) -> None:
    plain = run("simpo", batch, beta=beta, gamma=0.5).loss
    torch.testing.assert_close(run("alpha_po", batch, beta=beta, gamma=0.5, alpha=0.0).loss, plain)
    torch.testing.assert_close(run("alpha_dpo", batch, beta=beta, gamma=0.5 / beta, alpha=0.0).loss, plain)


@settings(max_examples=15, deadline=None)
@given(batch=batches(), beta=st.floats(0.05, 2))
def test_forward_kl_is_the_alpha_divergence_of_order_1(batch: Numbers, beta: float) -> None:
    forward = run("f_dpo", batch, beta=beta, divergence="forward_kl").loss
    for options in ({"alpha": 1.0}, {"alpha": 0.0, "alpha_convention": "trl"}):
        torch.testing.assert_close(run("f_dpo", batch, beta=beta, divergence="alpha", **options).loss, forward)
