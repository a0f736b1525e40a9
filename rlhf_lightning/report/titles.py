"""Titles of metrics, as axes and tables show them: words with a unit, in place of ``val/kl/reference``."""

from __future__ import annotations

#: Metric without ``train/`` or ``val/`` -> words, and unit if it has one.
_WORDS: dict[str, tuple[str, str]] = {
    "accuracy": ("accuracy", ""),
    "advantage/mean": ("mean advantage", ""),
    "advantage/std": ("spread of the advantages", ""),
    "approx_kl": ("KL to the policy of the rollout", "nats a token"),
    "clip/high": ("tokens clipped from above", "share"),
    "clip/low": ("tokens clipped from below", "share"),
    "entropy": ("entropy", "nats a token"),
    "gold/calibration": ("correlation of implicit and gold reward", ""),
    "gold/kl": ("KL to the base", "nats"),
    "gold/length": ("length of the responses", "tokens"),
    "gold/reward": ("gold reward", ""),
    "gold/standard_error": ("standard error of the gold reward", ""),
    "grad_norm": ("norm of the gradient", ""),
    "kl/choice": ("most KL added by choosing", "nats"),
    "kl/coef": ("weight of the KL penalty", ""),
    "kl/initial": ("KL to the initial policy", "nats"),
    "kl/reference": ("KL to the reference", "nats"),
    "kl/round_start": ("KL to the round's start", "nats"),
    "kl/token": ("KL to the reference", "nats a token"),
    "log_prob/chosen": ("log-prob of the chosen", "nats"),
    "log_prob/rejected": ("log-prob of the rejected", "nats"),
    "log_prob/response": ("log-prob of the response", "nats"),
    "log_ratio/chosen": ("log-ratio of the chosen", "nats"),
    "log_ratio/mean": ("log-ratio of the data's responses", "nats"),
    "log_ratio/mismatched": ("log-ratio of mismatched responses", "nats"),
    "log_ratio/rejected": ("log-ratio of the rejected", "nats"),
    "loss": ("loss", ""),
    "loss/policy": ("loss of the policy", ""),
    "loss/value": ("loss of the critic", ""),
    "lr": ("learning rate", ""),
    "lr/critic": ("learning rate of the critic", ""),
    "nll": ("negative log-likelihood", "nats"),
    "prompt/added": ("tokens added to the prompt", ""),
    "prompt/tokens": ("length of the prompts", "tokens"),
    "ratio/max": ("largest ratio of probabilities", ""),
    "ratio/mean": ("mean ratio of probabilities", ""),
    "response/length": ("length of the responses", "tokens"),
    "response/max_length": ("longest response", "tokens"),
    "response/truncated": ("responses cut off", "share"),
    "reward/accuracy": ("accuracy of the reward", "share of pairs"),
    "reward/chosen": ("reward of the chosen", ""),
    "reward/length_bias": ("preference for length", "-1 to 1"),
    "reward/margin": ("reward margin, chosen over rejected", ""),
    "reward/mean": ("mean reward", ""),
    "reward/rejected": ("reward of the rejected", ""),
    "reward/std": ("spread of the rewards", ""),
    "sample/drawn": ("samples drawn for one response", ""),
    "sample/finished": ("samples that ended by themselves", "share"),
    "sample/length": ("length of the samples", "tokens"),
    "sample/reward": ("mean reward of the responses", ""),
    "score/mean": ("mean score of the samples", ""),
    "select/cut_off_rate": ("cut-off samples seen by the selector", "share"),
    "select/tie_rate": ("ties seen by the selector", "share"),
    "throughput/tokens_per_second": ("tokens a second", ""),
    "token/accuracy": ("accuracy of the next token", "share"),
    "token/entropy": ("entropy", "nats a token"),
    "value/explained_variance": ("variance explained by the critic", "share"),
}
_PARTS = {"train": "training", "val": "validation"}
#: Metrics of validations that are measured on samples alone: there is nothing of training to tell them from.
_SAMPLED = ("gold/", "sample/", "kl/", "prompt/")
_ERROR = "_error"


def title_of(metric: str, *, unit: bool = True) -> str:
    """Title of a metric: ``KL to the reference (nats)``, ``loss, training``.

    Metrics of others' methods and callbacks, which are not in the table, are written as words.

    Args:
        metric: its name, such as ``val/kl/reference``.
        unit: whether the title ends with the unit, where there is one.
    """
    part, _, rest = metric.partition("/")
    if part not in _PARTS or not rest:
        return metric
    whole = rest.removesuffix(_ERROR)
    error = whole != rest and whole in _WORDS
    words, measure = _WORDS.get(whole if error else rest, (rest.replace("/", " ").replace("_", " "), ""))
    words = f"standard error of the {words}" if error else words
    if not (part == "val" and rest.startswith(_SAMPLED)):
        words = f"{words}, {_PARTS[part]}"
    return f"{words} ({measure})" if measure and unit else words
