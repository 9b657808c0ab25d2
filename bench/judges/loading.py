"""Load a judge through transformers, with errors of one line."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

from ebca.errors import BackendError, ModelError

T = TypeVar("T")


def check_packages(what: str, needed: Sequence[str] = ("torch", "transformers")) -> None:
    """Raise BackendError unless these packages are installed; `what` needs them."""
    missing = [name for name in needed if find_spec(name) is None]
    if missing:
        raise BackendError(f"{what} needs {', '.join(missing)}", 'run `pip install "ebca[bench]"`')


def check_device(device: str) -> None:
    """Raise BackendError unless PyTorch can compute on `device`, such as cpu or cuda:1."""
    import torch

    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise BackendError(
            f"PyTorch cannot use the device '{device}' for the judges: {_first_line(error)}", "give cpu"
        ) from None


def loaded(name: str, kind: str, expected: str, load: Callable[[], T]) -> T:
    """What `load` returns.

    Args:
        name: a folder, or the model's name on the hub.
        kind: what it should be, such as "CLIP model"; for errors.
        expected: the model_type that its configuration should state. A model of another type would be loaded with
            random weights.
        load: loads everything from `name`.

    Raises:
        ModelError: it is missing, cannot be reached, has weights missing, or is of another type.
    """
    from transformers import AutoConfig

    from ebca.export.quiet import quiet

    if not name:
        raise ModelError(f"the name of the {kind} is empty", "name a folder or a model on the hub")
    # transformers would look for a folder that does not exist on the hub.
    if name.startswith((".", "/", "~")) and not Path(name).is_dir():
        raise ModelError(f"there is no folder '{name}' with a {kind}", "check the path")
    try:
        with quiet(), _without_bars():
            found = AutoConfig.from_pretrained(name).model_type
            if found != expected:
                raise ModelError(
                    f"'{name}' is no {kind} but of the type '{found}'", f"name one of the type '{expected}'"
                )
            return load()
    except ModelError:
        raise
    # The libraries raise OSError, ValueError, KeyError and errors of their own for the same few reasons.
    except Exception as error:
        raise ModelError(f"cannot load the {kind} '{name}': {_first_line(error)}", _remedy(name)) from None


def check_complete(model: Any, told: Mapping[str, Iterable[str]], name: str, kind: str) -> None:
    """Raise ModelError if weights were missing, which transformers fills with random numbers.

    Args:
        model: a PyTorch module, which names weights that are tied to each other once.
        told: what `from_pretrained` says about loading it.
        name, kind: as for `loaded`.
    """
    absent = {key for key, _ in model.named_parameters()} & set(told["missing_keys"])
    if absent:
        raise ModelError(f"the {kind} '{name}' lacks weights, such as {min(absent)}", "download it again")


@contextmanager
def _without_bars() -> Iterator[None]:
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _remedy(name: str) -> str:
    if Path(name).is_dir():
        return "download it again, or name another folder"
    return (
        "check the name, the network and HF_HUB_OFFLINE; or download it where there is a network, and give the path of "
        "its folder"
    )


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".:") if lines else type(error).__name__
