"""``rlhf data inspect``: what a data set becomes, and everything wrong with it. No weights are loaded."""

from __future__ import annotations

from collections.abc import Sequence

from omegaconf import DictConfig

from rlhf_lightning.cli.compose import compose
from rlhf_lightning.cli.console import OUT, setup_logging
from rlhf_lightning.cli.errors import ConfigError, suggestion

ACTIONS = ("inspect",)


def main(arguments: Sequence[str]) -> int:
    """``rlhf data inspect key=value ...``."""
    action, overrides = (arguments[0], arguments[1:]) if arguments else ("", [])
    if action not in ACTIONS:
        raise ConfigError(f"rlhf data {action}: no such action; write rlhf data inspect.{suggestion(action, ACTIONS)}")
    setup_logging()
    inspect(compose("data", overrides))
    return 0


def inspect(cfg: DictConfig) -> None:
    """Tokenise the training source and show it; problems are shown, not raised.

    Raises:
        DataError: the data set as a whole cannot be used.
    """
    from rlhf_lightning.cli.draws import kind_read
    from rlhf_lightning.cli.instantiate import make
    from rlhf_lightning.data.inspect import inspect as show
    from rlhf_lightning.data.tokens.tokenize import tokenize

    tokenizer, method = make(cfg.model).tokenizer(), make(cfg.method)
    source, spec = make(cfg.data.source), make(cfg.data.spec)
    kind = kind_read(cfg, method.func, method.func.kind_with(method.keywords))
    tokenized = tokenize(source, tokenizer, spec, kind)
    show(tokenized.examples, tokenized.report, tokenizer, OUT, rows=cfg.rows)
