"""The PyTorch side of a comparison: one diffusers UNet, plain or with the energy update.

It computes in float32 on a CPU, and in float16 on a GPU if the engine does. Its inputs are on the device already; times
include copying the result to the host.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor2_0
from torch._dynamo.exc import BackendCompilerFailed

from ebca.bench.latency.subject import Subject
from ebca.bench.timing import Contender
from ebca.errors import ParameterError
from ebca.export.graph.torch_op import TorchEnergyAttention
from ebca.export.graph.trace import EnergyUNet, added_conditions, energy_unet, layers_of


class PyTorchUNet:
    """A UNet on the subject's inputs and threads. A context manager that restores PyTorch's own thread count.

    Args:
        unet: float32; its attention processors are replaced, and its weights rounded if the engine stores
            float16. It moves to the engine's device.
        subject: whose inputs and control to use.
    """

    def __init__(self, unet: UNet2DConditionModel, subject: Subject) -> None:
        self.unet: UNet2DConditionModel | None = unet.float().eval()
        unet.set_attn_processor(AttnProcessor2_0())
        if subject.engine.manifest.precision == "fp16":
            with torch.no_grad():
                for parameter in unet.parameters():
                    parameter.copy_(parameter.half())
        executor, control = subject.executor, subject.control
        where = subject.engine.device.name
        dtype = torch.float16 if where != "cpu" and subject.engine.manifest.compute == "fp16" else torch.float32
        unet.to(where)
        if dtype is torch.float16:
            unet.half()

        def here(array: np.ndarray) -> torch.Tensor:
            return torch.from_numpy(array.copy()).to(where, dtype)

        given = executor.sample, executor.timestep, *executor.conditions.values()
        self._inputs = [here(array) for array in given]
        weights, attn, norm = (here(array) for array in (control.weights, control.gamma_attn, control.gamma_norm))
        self._op = TorchEnergyAttention([layer.heads for layer in layers_of(unet)], weights, attn, norm)
        self._module: EnergyUNet | None = None
        self._threads = torch.get_num_threads()
        torch.set_num_threads(subject.threads)

    def sdpa(self) -> np.ndarray:
        """Noise prediction [B,C,h,w] of the plain UNet."""
        assert self.unet is not None
        sample, timestep, contexts, *added = self._inputs
        more = {"added_cond_kwargs": added_conditions(added), "return_dict": False}
        with torch.inference_mode():
            return self.unet(sample, timestep, contexts[:, 0], **more)[0].float().cpu().numpy()

    @contextmanager
    def energy(self) -> Iterator[None]:
        """A block in which the UNet's cross-attention includes the energy update, so that `ebca` may be called."""
        assert self.unet is not None
        with energy_unet(self.unet, self._op) as module:
            self._module = module
            try:
                yield
            finally:
                self._module = None

    def ebca(self) -> np.ndarray:
        """Noise prediction [B,C,h,w] with the energy update."""
        assert self._module is not None
        return self._noise(self._module)

    def ebca_once(self) -> np.ndarray:
        """The same as `ebca`, outside of an `energy` block."""
        with self.energy():
            return self.ebca()

    def contenders(self) -> list[Contender]:
        return [Contender("pytorch_sdpa", self.sdpa), Contender("pytorch_ebca", self.ebca, self.energy)]

    @contextmanager
    def compiled(self) -> Iterator[Callable[[], np.ndarray]]:
        """A block with `ebca` after torch.compile, on a copy of the UNet: swapping attention processors would trigger
        recompilation.

        Raises:
            ParameterError: torch.compile does not work on this machine.
        """
        assert self.unet is not None
        with energy_unet(copy.deepcopy(self.unet), self._op) as module:
            # On a GPU with CUDA graphs: launching the kernels of a UNet takes as long as running them.
            fast = torch.compile(module, mode="reduce-overhead" if self._inputs[0].is_cuda else None)
            try:
                self._noise(fast)
            except BackendCompilerFailed as error:
                reason = str(error).strip().splitlines()[0]
                raise ParameterError(
                    f"torch.compile does not work here ({reason})", "leave pytorch_ebca_compiled out of --compare-with"
                ) from None
            yield lambda: self._noise(fast)

    def _noise(self, module: Callable[..., tuple[torch.Tensor, torch.Tensor]]) -> np.ndarray:
        with torch.inference_mode():
            return module(*self._inputs)[0].float().cpu().numpy()

    def close(self) -> None:
        """Release the UNet. May be called twice."""
        self.unet = None
        torch.set_num_threads(self._threads)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
