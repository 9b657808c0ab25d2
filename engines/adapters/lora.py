"""Reads LoRA files in the key formats of diffusers, PEFT and kohya's scripts, LoHa and LoKr of LyCORIS included."""

import json
import math
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ebca.engines.adapters import factors, safetensors
from ebca.engines.adapters.modules import Modules, Weight
from ebca.engines.adapters.safetensors import TensorFile
from ebca.engines.contract.weights import PARTS
from ebca.errors import ParameterError

# A key is the name of a module, then one of these.
_ROLES: Mapping[str, str] = {
    r"\.lora_(?:A|down)(?:\.\w+)?\.weight": "down",
    r"\.lora_(?:B|up)(?:\.\w+)?\.weight": "up",
    r"\.lora_mid\.weight": "mid",
    r"(?:\.lora|\.lora_linear_layer|_lora)\.down\.weight": "down",
    r"(?:\.lora|\.lora_linear_layer|_lora)\.up\.weight": "up",
    r"\.alpha": "alpha",
    r"\.(?:dora_scale|lora_magnitude_vector(?:\.\w+)*)": "dora",
    r"\.(hada_w[12]_[ab]|hada_t[12])": "",
    r"\.(lokr_w[12](?:_[ab])?|lokr_t2)": "",
}
_KEYS = [(re.compile(f"(.+?){suffix}"), role) for suffix, role in _ROLES.items()]

_METADATA = "lora_adapter_metadata"
_PEFT_FILE, _PEFT_CONFIG = "adapter_model.safetensors", "adapter_config.json"
_SHOWN = 3
# Weights whose inputs are the contexts.
_READ_CONTEXTS = (".attn2.to_k.weight", ".attn2.to_v.weight")


@dataclass(frozen=True)
class Scaling:
    """What a file says about all its modules beside their tensors: alpha of those without one of their own."""

    alpha: float | None = None
    patterns: Mapping[str, float] | None = None
    rank_stabilized: bool = False

    def of(self, module: str) -> float | None:
        """alpha of a module; None for its rank."""
        for pattern, alpha in (self.patterns or {}).items():
            if module == pattern or module.endswith(f".{pattern}"):
                return alpha
        return self.alpha


@dataclass(frozen=True)
class Lora:
    """A LoRA that fits an engine.

    Attributes:
        path: of the file.
        sha256: of its contents.
        scale: factor of all its changes.
    """

    path: Path
    sha256: str
    scale: float
    _file: TensorFile
    _modules: Mapping[Weight, "_Module"]

    @property
    def weights(self) -> tuple[Weight, ...]:
        """The weights that it changes."""
        return tuple(self._modules)

    @property
    def identity(self) -> list[Any]:
        """All that its changes follow from: alphas may come from a file beside it."""
        alphas = [[w.part, w.name, m.alpha, m.rank_stabilized] for w, m in self._modules.items()]
        return [self.sha256, self.scale, alphas]

    def change(self, weight: Weight, shape: tuple[int, ...]) -> np.ndarray:
        """scale * alpha / rank * B A, float32 of the weight's shape. Raises ParameterError if it does not fit."""
        module = self._modules[weight]
        tensors = {role: self._file.array(key) for role, key in module.keys.items()}
        try:
            found = factors.change(tensors, shape, module.alpha, rank_stabilized=module.rank_stabilized)
        except ParameterError as error:
            raise ParameterError(f"'{self.path}' for '{weight.name}': {error.problem}", error.remedy) from None
        with np.errstate(over="ignore"):
            # What is not finite is found when it is stored.
            return np.multiply(found, self.scale, dtype=np.float32)


@dataclass(frozen=True)
class _Module:
    """The keys of one module by role, and how its product is scaled."""

    keys: Mapping[str, str]
    alpha: float | None
    rank_stabilized: bool


def read(path: str | Path, scale: float, modules: Modules) -> Lora:
    """Read a LoRA and find the weights that it changes. Warns of keys that fit nothing.

    Args:
        path: a .safetensors file.
        scale: factor of its changes; negative ones are fine.
        modules: of the engine.

    Raises:
        ParameterError: the file cannot be read, is no LoRA, is a DoRA, or fits no module of the engine.
    """
    if not math.isfinite(scale):
        raise ParameterError(f"the scale of '{path}' is {scale}", "give a finite number, such as 0.8")
    file = safetensors.read(path)
    grouped, unknown = dict[str, dict[str, str]](), list[str]()
    for key in file.names:
        found = _split(key)
        if found is None:
            unknown.append(key)
        elif found[1] == "dora":
            raise ParameterError(
                f"'{path}' is a DoRA ('{key}'), which rescales whole weights", "merge it into the checkpoint first"
            )
        else:
            grouped.setdefault(found[0], {})[found[1]] = key
    if not grouped:
        raise ParameterError(f"'{path}' is no LoRA: it has no key such as '....lora_down.weight'", "name a LoRA file")
    matched = dict[Weight, _Module]()
    scalings = _scalings(file)
    for module, keys in grouped.items():
        weight = modules.find(module)
        if weight is None:
            unknown += keys.values()
            continue
        if weight in matched:
            raise ParameterError(f"'{path}' has two changes of '{weight.name}'", "use another file")
        _check_context(file, weight, keys, modules)
        matched[weight] = _module(file, module, keys, scalings[weight.part])
    if not matched:
        raise ParameterError(
            f"'{path}' fits no weight of this engine ({_listed(unknown)})",
            "use a LoRA that was made for this architecture",
        )
    if unknown:
        count = f"{len(unknown)} of {len(file.names)} tensors"
        warnings.warn(
            f"'{path}': {count} fit nothing in this engine and are left out ({_listed(unknown)})", stacklevel=2
        )
    return Lora(Path(path), file.sha256, scale, file, matched)


def _check_context(file: TensorFile, weight: Weight, keys: Mapping[str, str], modules: Modules) -> None:
    """Raise ParameterError for a LoRA of a model with texts of another width, whose other modules may fit by chance."""
    if "down" not in keys or not weight.name.endswith(_READ_CONTEXTS):
        return
    its, ours = file.shape(keys["down"])[1:2], modules.shape(weight)[1:2]
    if its != ours:
        raise ParameterError(
            f"'{file.path}' was made for texts of width {its[0] if its else 1}, and this engine's have {ours[0]}",
            "use a LoRA of the same architecture: Stable Diffusion 1.x has 768, 2.x 1024, XL 2048",
        )


def _split(key: str) -> tuple[str, str] | None:
    """(module, role) of a key; None if it has another form."""
    for pattern, role in _KEYS:
        if found := pattern.fullmatch(key):
            module = found[1].replace(".processor.", ".")
            return module, role or found[2]
    return None


def _module(file: TensorFile, module: str, keys: Mapping[str, str], scaling: Scaling) -> _Module:
    tensors = {role: key for role, key in keys.items() if role != "alpha"}
    if "alpha" not in keys:
        return _Module(tensors, scaling.of(module), scaling.rank_stabilized)
    alpha = file.array(keys["alpha"])
    if alpha.size != 1:
        raise ParameterError(f"'{keys['alpha']}' in '{file.path}' is not one number", "use another file")
    return _Module(tensors, float(alpha.reshape(-1)[0]), scaling.rank_stabilized)


def _listed(keys: list[str]) -> str:
    shown = ", ".join(repr(key[:100]) for key in keys[:_SHOWN])
    return shown + (", ..." if len(keys) > _SHOWN else "")


def _scalings(file: TensorFile) -> Mapping[str, Scaling]:
    """What the file's metadata (diffusers), or the configuration beside it (PEFT), says for each part of the model."""
    parts = dict.fromkeys(PARTS, Scaling())
    for prefix, config in _configs(file):
        for part in parts:
            if prefix in ("", part):
                parts[part] = _scaling(config, file.path)
    return parts


def _configs(file: TensorFile) -> Iterator[tuple[str, dict[str, Any]]]:
    """(part of the model, "" for all, and its PEFT configuration)."""
    with suppress(ValueError):
        found = json.loads(file.metadata.get(_METADATA, "null"))
        for part in PARTS:
            if isinstance(found, dict):
                own = {
                    key.removeprefix(f"{part}."): value for key, value in found.items() if key.startswith(f"{part}.")
                }
                if own:
                    yield part, own
    beside = file.path.with_name(_PEFT_CONFIG)
    if file.path.name == _PEFT_FILE and beside.is_file():
        try:
            config = json.loads(beside.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ParameterError(f"'{beside}' cannot be read: {error}", "download it again") from None
        if isinstance(config, dict):
            yield "", config


def _scaling(config: Mapping[str, Any], path: Path) -> Scaling:
    if config.get("use_dora"):
        raise ParameterError(f"'{path}' is a DoRA, which rescales whole weights", "merge it into the checkpoint first")
    alpha: Any = config.get("lora_alpha")
    patterns = config.get("alpha_pattern")
    numbers = {str(k): float(v) for k, v in patterns.items() if _is_number(v)} if isinstance(patterns, dict) else {}
    return Scaling(float(alpha) if _is_number(alpha) else None, numbers, config.get("use_rslora") is True)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
