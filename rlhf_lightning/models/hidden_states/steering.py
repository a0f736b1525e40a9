"""``model.steering``: a model whose hidden states are moved along stored directions, wherever it runs.

The directions lie in a safetensors file (``rlhf steer build``) and are added by forward hooks on decoder blocks, so
training, generation and evaluation have them, and copies of the model too. They are no weights: nothing trains them, no
checkpoint or export holds them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar, cast

from torch import Tensor, nn

from rlhf_lightning.models.blocks import check_layers, decoder_layers
from rlhf_lightning.models.sizes import Sizes
from rlhf_lightning.ops.steering import OPERATORS, Operator, steered

ModelT = TypeVar("ModelT", bound=nn.Module)

#: What a file of directions says of itself.
FORMAT = "rlhf_lightning steering vectors 1"
#: Name of a layer's vector in a file, and of the buffer of a block.
_KEY, _BUFFER = "layer.", "steering_vector"
#: Attribute of a steered block that holds its hook.
_HOOK = "steering_hook"


@dataclass(frozen=True)
class Steering:
    """Options ``model.steering.<field>``.

    Args:
        path: safetensors file of directions.
        coefficient: how far states are moved; 0 is the model as it is, bit for bit.
        operator: see :func:`~rlhf_lightning.ops.steering.steered`.
        layers: whose directions are used; None: all that the file holds.
        rescale: keep the length of each state.

    Raises:
        ValueError: an option is missing or not what it should be.
    """

    path: str
    coefficient: float = 1.0
    operator: Operator = "linear"
    layers: tuple[int, ...] | None = None
    rescale: bool = False

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Steering:
        """Options as a yaml has them.

        Raises:
            ValueError: see the class.
        """
        names = [each.name for each in fields(cls)]
        if unknown := sorted(set(options) - set(names)):
            raise ValueError(f"model.steering.{unknown[0]}: there is no such option; options: {', '.join(names)}")
        if not isinstance(options.get("path"), str):
            raise ValueError("model.steering.path=FILE is missing: a file of rlhf steer build")
        given = {name: value for name, value in options.items() if value is not None}
        layers = given.get("layers")
        return cls(**{**given, "layers": None if layers is None else tuple(layers)})

    def __post_init__(self) -> None:
        number = isinstance(self.coefficient, int | float) and not isinstance(self.coefficient, bool)
        if not number or not math.isfinite(self.coefficient):
            raise ValueError(f"model.steering.coefficient={self.coefficient!r} is not a finite number")
        if self.operator not in OPERATORS:
            raise ValueError(f"model.steering.operator={self.operator!r}; it can be {', '.join(OPERATORS)}")
        if not isinstance(self.rescale, bool):
            raise ValueError(f"model.steering.rescale={self.rescale!r}; it can be true or false")
        if self.layers is not None:
            check_layers("model.steering.layers", self.layers)

    @property
    def file(self) -> Path:
        """The file of directions."""
        return Path(self.path).expanduser()

    def check(self, name: str, sizes: Sizes) -> tuple[int, ...]:
        """The layers that are steered, after a look at the file's header.

        Args:
            name: of the model, for errors.
            sizes: of the model.

        Raises:
            ValueError: the file is none of directions, is for a model of another width, or lacks a layer.
        """
        option = f"model.steering.path={self.path}"
        vectors = read_header(self.file, option)
        layers = tuple(vectors.sizes) if self.layers is None else self.layers
        if missing := sorted(set(layers) - set(vectors.sizes)):
            raise ValueError(
                f"{option} has no direction for layer {missing[0]}; it has those of {sorted(vectors.sizes)}"
            )
        widths = {vectors.sizes[layer] for layer in layers}
        if widths != {sizes.width}:
            raise ValueError(
                f"{option} holds directions of width {', '.join(map(str, sorted(widths)))}, made for "
                f"{vectors.notes.get('model', 'another model')}, and model {name} has width {sizes.width}"
            )
        check_layers("model.steering.layers", layers, sizes.layers)
        return layers

    def install(self, model: nn.Module, layers: tuple[int, ...]) -> None:
        """Steer a model, in place; with coefficient 0 nothing is done.

        Raises:
            ValueError: a direction is zero or not finite.
        """
        vectors = read_vectors(self.file)
        for layer in layers if self.coefficient else ():
            if not vectors[layer].isfinite().all() or not vectors[layer].any():
                raise ValueError(
                    f"model.steering.path={self.path}: the direction of layer {layer} is zero or not finite"
                )
            _steer(decoder_layers(model)[layer - 1], vectors[layer], SteeringHook(self))


@dataclass(frozen=True, kw_only=True)
class Steerable:
    """The option of every source that steers its model.

    Args:
        steering: ``path``, ``coefficient``, ``operator``, ``layers``, ``rescale``
            (:class:`~rlhf_lightning.models.hidden_states.steering.Steering`); None: the model as it is.
    """

    steering: Mapping[str, Any] | None = None

    def check_steering(self, name: str, sizes: Callable[[], Sizes]) -> tuple[Steering, tuple[int, ...]] | None:
        """Change that is made to the model, and its layers; None: none. Reads no weights.

        Args:
            name: of the model, for errors.
            sizes: of the model; asked for where it is steered.

        Raises:
            ValueError: see :class:`Steering`.
        """
        if not self.steering:
            return None
        steering = Steering.of(self.steering)
        return steering, steering.check(name, sizes())

    def steer(self, model: ModelT, name: str, sizes: Callable[[], Sizes]) -> ModelT:
        """A loaded model, steered in place.

        Raises:
            ValueError: see :class:`Steering`.
        """
        if (checked := self.check_steering(name, sizes)) is not None:
            checked[0].install(model, checked[1])
        return model


class SteeringHook:
    """Moves what a decoder block gives along the block's vector, which lies in a buffer of the block."""

    def __init__(self, steering: Steering) -> None:
        self.steering = steering

    def __str__(self) -> str:
        """Settings besides the vector."""
        return f"{self.steering.operator} {self.steering.coefficient} {self.steering.rescale}"

    def __call__(self, block: nn.Module, inputs: Any, output: Any) -> Any:
        """The block's output, its states moved."""
        state = output[0] if isinstance(output, tuple) else output
        vector, options = cast("Tensor", getattr(block, _BUFFER)), self.steering
        moved = steered(state, vector, options.operator, float(options.coefficient), rescale=options.rescale)
        return (moved, *output[1:]) if isinstance(output, tuple) else moved


def _steer(block: nn.Module, vector: Tensor, hook: SteeringHook) -> None:
    weight = next(block.parameters())
    block.register_buffer(_BUFFER, vector.to(weight.device), persistent=False)
    setattr(block, _HOOK, hook)
    block.register_forward_hook(hook)


def steered_blocks(model: nn.Module) -> Iterator[tuple[int, SteeringHook, Tensor]]:
    """The steered layers of a model: number, hook and vector."""
    for number, block in enumerate(decoder_layers(model), start=1):
        if (hook := getattr(block, _HOOK, None)) is not None:
            yield number, hook, getattr(block, _BUFFER)


def copy_steering(source: nn.Module, target: nn.Module) -> None:
    """Steer a model that was made without hooks as another of the same layers."""
    blocks = decoder_layers(target)
    for number, hook, vector in steered_blocks(source):
        _steer(blocks[number - 1], vector.clone(), hook)


def refuse_steered(model: nn.Module, what: str) -> None:
    """Refuse what has the weights of a model alone, where its states are moved as well.

    Args:
        model: perhaps steered.
        what: has the weights alone, and what to do instead.

    Raises:
        ValueError: it is steered.
    """
    if layers := [number for number, _, _ in steered_blocks(model)]:
        raise ValueError(f"model.steering moves the states of layers {layers}, which is no weight: {what}")


@dataclass(frozen=True)
class Header:
    """Metadata of a file of directions, without its numbers."""

    sizes: dict[int, int]  #: width of each layer's direction
    notes: dict[str, str]


def read_header(path: Path, option: str) -> Header:
    """Layers, widths and notes of a file of directions.

    Args:
        path: of the file.
        option: that names it, for errors.

    Raises:
        ValueError: there is no such file, or it holds something else.
    """
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise ValueError(f"{option}: there is no such file")
    try:
        with safe_open(path, framework="pt") as file:
            notes = file.metadata() or {}
            shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118  (no mapping)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{option} is no safetensors file: {error}") from error
    if notes.get("format") != FORMAT or not all(name.startswith(_KEY) and len(shapes[name]) == 1 for name in shapes):
        raise ValueError(f"{option} holds no directions: it is no file of rlhf steer build")
    sizes = {int(name.removeprefix(_KEY)): int(shape[0]) for name, shape in shapes.items()}
    return Header(dict(sorted(sizes.items())), notes)


def read_vectors(path: Path) -> dict[int, Tensor]:
    """The directions of a file, by layer."""
    from safetensors.torch import load_file

    return {int(name.removeprefix(_KEY)): vector for name, vector in sorted(load_file(path).items())}


def write_vectors(path: Path, vectors: Mapping[int, Tensor], notes: Mapping[str, str]) -> None:
    """Write directions by layer, with what they are."""
    from safetensors.torch import save_file

    tensors = {f"{_KEY}{layer}": vector.contiguous() for layer, vector in vectors.items()}
    save_file(tensors, path, metadata={"format": FORMAT, **notes})
