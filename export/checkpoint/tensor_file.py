"""One .safetensors file: its names, its metadata, and its tensors in float32."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from ebca.errors import ModelError
from ebca.export.checkpoint.files import check_safetensors
from ebca.export.checkpoint.places import PICKLE_SUFFIXES

# Of a weight stored as float8 with a factor beside it.
_SCALE = "scale_weight"


@dataclass(frozen=True)
class Place:
    """Where a parameter is stored.

    Attributes:
        spellings: names that files have for it; the first that is there is read.
        third: which third of that tensor's first axis; None: all of it.
        transposed: whether its two axes are stored in the other order.
    """

    spellings: tuple[str, ...]
    third: int | None = None
    transposed: bool = False


class TensorFile:
    """An open file. Only what is asked for is read.

    Attributes:
        path: of the file.
        names: of its tensors, in the file's order.
        metadata: texts that were stored with them.
    """

    def __init__(self, path: Path, file: Any) -> None:
        self.path = path
        self._file = file
        self.names = tuple(file.keys())
        self.metadata: Mapping[str, str] = file.metadata() or {}
        self._known = frozenset(self.names)

    def __contains__(self, name: str) -> bool:
        return name in self._known

    def shape(self, name: str) -> tuple[int, ...]:
        """Of a tensor that is there."""
        return tuple(self._file.get_slice(name).get_shape())

    def read(self, name: str) -> Tensor:
        """A tensor in float32, times its factor if it is a scaled float8 one."""
        value: Tensor = self._file.get_tensor(name).to(torch.float32)
        scale = name.removesuffix("weight") + _SCALE
        if name.endswith(".weight") and scale in self:
            value *= self._file.get_tensor(scale).to(torch.float32)
        return value

    def find(self, place: Place) -> str | None:
        """The first of a parameter's spellings that is there."""
        return next((name for name in place.spellings if name in self), None)

    def fill(self, network: nn.Module, places: Mapping[str, Place], part: str) -> set[str]:
        """Load every parameter of a network, which becomes float32 without gradients, in eval mode.

        Args:
            network: its parameters may be on the meta device.
            places: of each parameter.
            part: the network, for messages.

        Returns:
            The names of the tensors that were read.

        Raises:
            ModelError: a tensor is missing, or has another shape.
        """
        found = {name: self.find(place) for name, place in places.items()}
        if missing := [name for name, source in found.items() if source is None]:
            count = "1 tensor" if len(missing) == 1 else f"{len(missing)} tensors, first"
            raise ModelError(
                f"the {part} in {self.path.name} does not fit the architecture: it lacks {count} "
                f"{places[missing[0]].spellings[0]}",
                "download it again",
            )
        state = {}
        for name, parameter in network.named_parameters():
            source = found[name]
            assert source is not None
            state[name] = self._fitted(source, places[name], tuple(parameter.shape), part)
        # Buffers are made by the network itself.
        network.load_state_dict(state, strict=False, assign=True)
        network.eval().requires_grad_(False)
        return {source for source in found.values() if source is not None}

    def _fitted(self, name: str, place: Place, shape: tuple[int, ...], part: str) -> Tensor:
        stored, third = self.shape(name), place.third
        wanted = shape if third is None else (3 * shape[0], *shape[1:])
        wanted = wanted[::-1] if place.transposed else wanted
        # A linear layer over channels is a convolution of one position.
        if stored not in (wanted, (*wanted, 1, 1), (*wanted, 1)) and (*stored, 1, 1) != wanted:
            raise ModelError(
                f"the {part} in {self.path.name} does not fit the architecture: {name} has shape {list(stored)}, "
                f"not {list(wanted)}"
            )
        value = self.read(name).reshape(wanted)
        if place.transposed:
            return value.T.contiguous()
        return value if third is None else value.chunk(3)[third].clone()


@contextmanager
def open_tensors(path: Path) -> Iterator[TensorFile]:
    """Open a file after its header has been checked.

    Raises:
        ModelError: another kind of file, a pickle, or a file that is broken.
    """
    check_suffix(path)
    check_safetensors(path)
    with safe_open(path, framework="pt") as file:
        yield TensorFile(path, file)


def check_suffix(path: Path) -> None:
    """Raise ModelError unless the file can contain safetensors."""
    if path.suffix.lower() in PICKLE_SUFFIXES:
        raise ModelError(
            f"{path.name} is a pickle, which can run code when it is opened and is never loaded",
            "get the .safetensors version of the model",
        )
    if path.suffix.lower() != ".safetensors":
        raise ModelError(f"{path} is no checkpoint: a .safetensors file or a folder in diffusers format is needed")


def left_out(file: TensorFile, part: str, names: Sequence[str]) -> tuple[str, ...]:
    """A notice about tensors that a network has no place for; none if there are none."""
    if not names:
        return ()
    count = "1 tensor" if len(names) == 1 else f"{len(names)} tensors"
    first = names[0] if len(names) == 1 else f"first {names[0]}"
    return (f"the {part} in {file.path.name} has {count} that its architecture has no place for, {first}; left out",)
