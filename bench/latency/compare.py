"""The rows that an engine is compared with. Each does the same UNet evaluation on the same inputs.

    pytorch_sdpa            the plain UNet of diffusers with scaled_dot_product_attention, in float32 (in float16 on a
    GPU
                            if the engine computes in float16)
    pytorch_ebca            the same UNet with the energy update in PyTorch
    one_piece               the full UNet as one graph, with the engine's own backend and precision
    pytorch_ebca_compiled   as pytorch_ebca, after torch.compile; only if named, since compiling takes minutes

All rows are checked against PyTorch before they are timed. PyTorch is loaded only if rows are asked for.
"""

import gc
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING

from ebca.bench.latency.subject import FULL_UNET, Subject
from ebca.bench.timing import Contender
from ebca.errors import ModelError, ParameterError

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel

USUAL = ("pytorch_sdpa", "pytorch_ebca", FULL_UNET)
ROWS = (*USUAL, "pytorch_ebca_compiled")

_NEEDED = ("torch", "diffusers", "transformers", "onnx", "onnxscript", "safetensors")


def check_packages() -> None:
    """Raises ParameterError if a package that a comparison needs is not installed."""
    if missing := [name for name in _NEEDED if find_spec(name) is None]:
        raise ParameterError(f"--compare needs {', '.join(missing)}", 'run `pip install "ebca[export]"`')


def parse_rows(text: str) -> tuple[str, ...]:
    """The names in a list separated by commas. "full_unet" is another name for "one_piece"."""
    names = (part.strip() for part in text.split(","))
    return tuple(FULL_UNET if name == "full_unet" else name for name in names if name)


@contextmanager
def contenders_of(
    subject: Subject, model: str | None, rows: Sequence[str]
) -> Iterator[tuple[list[Contender], dict[str, float]]]:
    """The contenders named in `rows`, ready to run, and the errors measured while checking them.

    Args:
        subject: the engine under test.
        model: checkpoint, as `ebca-export --model` takes it.
        rows: names of ROWS; without any, nothing is loaded.

    Raises:
        ModelError: the checkpoint cannot be loaded, or is another model than the engine's.
        NumericalError: the engine or a contender disagrees with PyTorch.
    """
    if not rows:
        yield [], {}
        return
    from ebca.bench.latency.pytorch import PyTorchUNet
    from ebca.export.checkpoint.load import load_checkpoint
    from ebca.export.quiet import quiet

    assert model is not None
    with quiet():
        unet = load_checkpoint(model).unet
    _check_same_model(unet, subject, model)
    with ExitStack() as stack:
        reference = stack.enter_context(PyTorchUNet(unet, subject))
        plain = reference.sdpa().copy()
        errors = {
            "unet_step/pytorch_ebca": subject.compare(
                "unet_step", subject.step(), "pytorch_ebca", reference.ebca_once()
            ),
            "unet_step_vanilla/pytorch_sdpa": subject.compare(
                "unet_step_vanilla", subject.plain_step(), "pytorch_sdpa", plain
            ),
        }
        found = {c.name: c for c in reference.contenders()}
        if FULL_UNET in rows:
            from ebca.bench.latency.full_unet import FullUNet

            full = stack.enter_context(FullUNet(unet, subject))
            errors[f"{FULL_UNET}/pytorch_sdpa"] = subject.compare(FULL_UNET, full.run(), "pytorch_sdpa", plain)
            found[FULL_UNET] = Contender(FULL_UNET, full.run)
        if "pytorch_ebca_compiled" in rows:
            compiled = stack.enter_context(reference.compiled())
            errors["pytorch_ebca_compiled/pytorch_ebca"] = subject.compare(
                "pytorch_ebca_compiled", compiled(), "pytorch_ebca", reference.ebca_once()
            )
            found["pytorch_ebca_compiled"] = Contender("pytorch_ebca_compiled", compiled)
        if not {"pytorch_sdpa", "pytorch_ebca"} & set(rows):
            # The graph has its own copy of the weights.
            reference.close()
            del unet
            gc.collect()
        yield [found[name] for name in ROWS if name in rows], errors


def _check_same_model(unet: "UNet2DConditionModel", subject: Subject, model: str) -> None:
    from ebca.export.graph.trace import layers_of

    spec = subject.engine.manifest.unet
    given = [(layer.name, layer.heads, layer.head_dim) for layer in layers_of(unet)]
    expected = [(layer.name, layer.heads, layer.head_dim) for layer in spec.layers]
    config = unet.config
    if given != expected or (config.in_channels, config.cross_attention_dim) != (
        spec.in_channels,
        spec.context_dim,
    ):
        name = subject.engine.manifest.model["name"]
        raise ModelError(
            f"--model {model} has another UNet than the engine, which was exported from '{name}'",
            "name that checkpoint",
        )
