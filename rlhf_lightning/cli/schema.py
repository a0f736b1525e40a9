"""The check of a composed configuration, before any weight is loaded.

Every node with a ``_target_`` is held against the signature of what it names, every plain node against the signature of
what it becomes (``trainer`` and ``strategy`` are arguments of lightning.Trainer). So a new loss, optimiser or callback
is checked without anyone writing a schema for it.
"""

from __future__ import annotations

import collections.abc
import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, get_args, get_origin

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationToMissingValueError, OmegaConfBaseException

from rlhf_lightning.cli.annotations import check_value
from rlhf_lightning.cli.errors import ConfigError, closest, describe, suggestion
from rlhf_lightning.cli.keys import choices_for, right_keys
from rlhf_lightning.cli.metrics import check_optimized
from rlhf_lightning.cli.read_targets import read_target
from rlhf_lightning.cli.roles import role_of
from rlhf_lightning.cli.signature import ImportedSignature, ReadSignature, Signature, is_value_object, signature_of
from rlhf_lightning.cli.targets import TargetError, allow_current_folder, locate, resolve, targets
from rlhf_lightning.cli.top_keys import SEVERAL_JOBS, TOP_KEYS, Harness, Paths
from rlhf_lightning.cli.trust import allowed_targets, leaves, uncommanded
from rlhf_lightning.signatures import UnreadableError, definition_of

_HYDRA_KEYS = frozenset({"_target_", "_partial_", "_recursive_", "_convert_", "_args_"})
#: Where the node of the group ``prompting`` stands once more; its problems are reported once.
_SPEC_PROMPTING = "spec.prompting"
_TRAINER = "lightning.pytorch.Trainer"
#: Trainer arguments that ``train()`` itself gives.
_TRAINER_OURS = frozenset({"self", "callbacks", "logger", "plugins", "default_root_dir"})


def check_config(cfg: DictConfig, command: str, overrides: Sequence[str]) -> None:
    """Check a composed configuration; a float that stands for a whole number (``1e3``) becomes an int in place.

    Args:
        cfg: without Hydra's own part.
        command: one of ``compose.COMMANDS``.
        overrides: the user's: some keys count on the command line alone (``cli.trust``).

    Raises:
        ConfigError: one line for every problem found.
    """
    if several := [name for name in SEVERAL_JOBS if name != command and name in cfg]:
        raise ConfigError(
            f"this is a {several[0]} of several jobs, not rlhf {command}: rlhf {several[0]} experiment=..."
        )
    tree = _resolved(cfg)
    missing = sorted(OmegaConf.missing_keys(tree))
    if missing:
        raise ConfigError(_without_values(missing))
    problems = list(_check_top(cfg, tree, command))
    problems += uncommanded(tree, overrides)
    problems += [] if problems else _check_targets(cfg, tree)
    problems += _unmade(tree)
    if "trainer" in tree and isinstance(tree["trainer"], dict):
        problems += _check_trainer(cfg, tree)
    if command == "train":
        problems += check_optimized(tree)
    if problems:
        raise ConfigError("\n".join(problems))


def _without_values(keys: Sequence[str]) -> str:
    checked_keys = [key for key in keys if not (_SPEC_PROMPTING in key and key.partition("spec.")[2] in keys)]
    return "\n".join(f"{key} has no value and needs one: {key}=..." for key in checked_keys)


def _unset(node: Any, prefix: str = "") -> Iterator[str]:
    """Keys without a value in a tree whose interpolations are not resolved."""
    for key, value in node.items() if isinstance(node, dict) else ():
        if value == "???":
            yield f"{prefix}{key}"
        yield from _unset(value, f"{prefix}{key}.")


def _resolved(cfg: DictConfig) -> dict[str, Any]:
    """Plain containers with every interpolation resolved; the run's folder need not be known yet."""
    copy = cfg.copy()
    if OmegaConf.select(copy, "paths.output_dir", default="") is None:
        copy.paths.output_dir = "."
    try:
        tree = OmegaConf.to_container(copy, resolve=True, enum_to_str=True)
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", None)
        taken_over = isinstance(error, InterpolationToMissingValueError)
        missing = list(_unset(OmegaConf.to_container(copy))) if taken_over else []
        message = f"{key}: {describe(error)}" if key else describe(error)
        raise ConfigError(_without_values(missing) or message) from error
    assert isinstance(tree, dict)
    return {str(key): value for key, value in tree.items()}


def _check_top(cfg: DictConfig, tree: dict[str, Any], command: str) -> Iterator[str]:
    yield from _check_call(cfg, "", ImportedSignature(TOP_KEYS[command]), tree, f"rlhf {command}", partial=False)
    if command in SEVERAL_JOBS and isinstance(tree.get(command), dict):
        several = ImportedSignature(SEVERAL_JOBS[command])
        yield from _check_call(cfg, command, several, tree[command], command, partial=False)
    for key, node in (("paths", Paths), ("harness", Harness)):
        if isinstance(tree.get(key), dict):
            yield from _check_call(cfg, key, ImportedSignature(node), tree[key], key, partial=False)


def _check_trainer(cfg: DictConfig, tree: dict[str, Any]) -> Iterator[str]:
    trainer = _signature_of_trainer()
    strategy = dict(tree.get("strategy") or {})
    yield from _check_timeout(strategy.pop("timeout", None), strategy)
    for key, options in (("trainer", tree["trainer"]), ("strategy", strategy)):
        if "_target_" not in options:
            yield from _check_call(cfg, key, trainer, options, "lightning.Trainer", partial=True, hidden=_TRAINER_OURS)
    for option in sorted(set(strategy) & set(tree["trainer"])):
        yield f"trainer.{option} is set by the strategy group: use strategy.{option}=..."


def _signature_of_trainer() -> Signature:
    try:
        return ReadSignature(definition_of(_TRAINER))
    except UnreadableError:
        return ImportedSignature(locate(_TRAINER))


def _check_timeout(timeout: Any, strategy: Mapping[str, Any]) -> Iterator[str]:
    if timeout is None:
        return
    _, problem = check_value(timeout, float)
    if problem is not None or not 0 < float(timeout) < math.inf:
        yield f"strategy.timeout: {problem or f'{timeout} is no number of seconds above 0'}"
    elif not isinstance(strategy.get("strategy"), dict):
        yield (
            f"strategy.timeout={timeout} is how long processes wait for each other, and strategy.strategy="
            f"{strategy.get('strategy', 'auto')} has no such option: choose strategy=ddp or strategy=fsdp"
        )


def _unmade(node: Any, key: str = "") -> Iterator[str]:
    """Options of something that nothing makes: of a logger that was not chosen, for example.

    What is an option of something that is made is judged by its signature.
    """
    for name, inner in node.items() if isinstance(node, dict) and "_target_" not in node else ():
        full = f"{key}.{name}" if key else str(name)
        if isinstance(inner, dict) and inner and "_target_" not in inner and (role := role_of(full)) is not None:
            first = next((leaf for leaf, _ in leaves(inner, full)), full)
            choices = choices_for(first) or choices_for(full)
            fix = f"choose {' or '.join(choices)}" if choices else "it needs a _target_"
            yield f"{first} is an option of {role.noun} that was not chosen: {fix}"
        else:
            yield from _unmade(inner, full)


def _check_targets(cfg: DictConfig, tree: dict[str, Any]) -> Iterator[str]:
    allowed = allowed_targets(tree)
    allow_current_folder(allowed)
    users: list[str] = []  # keys of what the user's own code makes
    for key, node in targets(tree):
        if key.endswith(_SPEC_PROMPTING) and node == tree.get("prompting"):
            continue  # the group's own node once more
        path, within = node["_target_"], any(key.startswith((f"{outer}.", f"{outer}[")) for outer in users)
        try:
            signature = read_target(key, path, allowed) or _imported(resolve(key, path, allowed, within=within))
        except TargetError as error:
            yield f"{key}._target_: {error}"
        except ImportError as error:
            yield f"{key}._target_: {path} cannot be imported: {error}"
        else:
            users += [] if path.startswith("rlhf_lightning.") or within else [key]
            yield from _check_made(cfg, key, node, signature)


def _imported(target: Callable[..., Any]) -> Signature | None:
    """The signature of an object; None of one that is written in C without: its own call has to judge."""
    try:
        return ImportedSignature(target)
    except (TypeError, ValueError):
        return None


def _check_made(cfg: DictConfig, key: str, node: dict[str, Any], signature: Signature | None) -> Iterator[str]:
    if node.get("_args_"):
        yield f"{key}._args_: give options by their names, so that each is checked"
    if signature is None:
        return
    options = {name: value for name, value in node.items() if name not in _HYDRA_KEYS}
    name = node["_target_"].rpartition(".")[2]
    yield from _check_call(cfg, key, signature, options, name, partial=bool(node.get("_partial_")))


def _check_call(
    cfg: DictConfig,
    key: str,
    signature: Signature,
    options: Mapping[str, Any],
    name: str,
    *,
    partial: bool,
    hidden: frozenset[str] = frozenset({"self"}),
) -> Iterator[str]:
    """Problems of a call with options, each with the full key of its option."""
    parameters = signature.parameters
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    names = [p.name for p in parameters.values() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL, p.POSITIONAL_ONLY)]
    names = [option for option in names if option not in hidden]
    for option, value in options.items():
        full = f"{key}.{option}" if key else option
        if option in names:
            yield from _check_option(cfg, full, value, signature.annotation(option))
        elif not open_ended:
            # A partial's positional parameters are given in code: legal in principle, no use to a reader.
            offered = [other for other in names if not partial or not _given_later(parameters[other])]
            yield f"{full}: {name} has no option {option!r}.{_advice(cfg, full, offered)}"
    if not partial:
        for option in names:
            if parameters[option].default is inspect.Parameter.empty and option not in options:
                yield f"{key}.{option} has no value and needs one ({name})" if key else f"{option} is missing"


def _advice(cfg: DictConfig, full: str, offered: Sequence[str]) -> str:
    """The end of a message about an unknown option: where it belongs, or what it is a misspelling of."""
    node, _, option = full.rpartition(".")
    tree = OmegaConf.to_container(cfg, resolve=False)
    assert isinstance(tree, dict)
    right = right_keys(full, {str(key): value for key, value in tree.items()})
    if not right or (node and closest(option, offered, cutoff=0.8) is not None):
        return suggestion(option, offered)
    return f" Did you mean {' or '.join(right)}?\n  options: {', '.join(sorted(offered))}"


def _value_object(annotation: Any) -> type | None:
    """The class of a value object that a yaml gives as a mapping: ``Options | Mapping[str, Any] | None``."""
    arms = get_args(annotation)
    if not any(get_origin(arm) is collections.abc.Mapping for arm in arms):
        return None
    return next(filter(is_value_object, arms), None)


def _given_later(parameter: inspect.Parameter) -> bool:
    return parameter.default is parameter.empty and parameter.kind is parameter.POSITIONAL_OR_KEYWORD


def _check_option(cfg: DictConfig, full: str, value: Any, annotation: Any) -> Iterator[str]:
    if (kind := _value_object(annotation)) is not None and isinstance(value, dict) and "_target_" not in value:
        yield from _check_call(cfg, full, signature_of(kind), value, full, partial=False)
        return
    if any(True for _ in targets(value)):
        return  # the objects that these nodes become are judged by their own signatures
    accepted, problem = check_value(value, annotation)
    if problem is not None:
        yield f"{full}: {problem}"
    elif accepted is not value and type(accepted) is int:
        OmegaConf.update(cfg, full, accepted)
