"""The sampling kernels in Triton's interpreter, launched as on a GPU. Runs in a separate process."""

import os
from pathlib import Path

import numpy as np


def main(folder: str) -> None:
    """Run every case of test_sampling.py and save its results."""
    os.environ["TRITON_INTERPRET"] = "1"
    import test_sampling as cases
    import torch

    from ebca.plugins.sampling import kernels
    from ebca.plugins.sampling.launches import launch

    def run(kernel: str, arrays: dict[str, np.ndarray]) -> None:
        planned = launch(kernel, {name: array.shape for name, array in arrays.items()}, block=32)
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
        pointers = {f"{name}_ptr": tensors[name] for name in planned.tensors}
        constants = {"BLOCK": 32} if planned.values else {}
        getattr(kernels, f"ebca_{kernel}")[(planned.blocks,)](**pointers, **planned.values, **constants)

    for name, case in cases.CASES.items():
        arrays = cases.state(**case)
        cases.steps(arrays, run)
        np.savez(Path(folder) / f"{name}.npz", **arrays)
    arrays = cases.state(**cases.CASES["guided"])
    cases.steps(arrays, run, broken=1)
    np.savez(Path(folder) / "broken.npz", **arrays)
    arrays = cases.state(**cases.CASES["guided"])
    arrays["coefficients"][:] = 1e300
    cases.steps(arrays, run, count=1)
    np.savez(Path(folder) / "away.npz", **arrays)
    arrays = cases.embeddings()
    cases.embed_all(arrays, run, Path(folder) / "embeddings.npy")
