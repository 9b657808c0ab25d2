"""The kernel of exclusive attention in Triton's interpreter, launched as on a GPU. Runs in a separate process."""

import os
from pathlib import Path

import numpy as np


def main(folder: str) -> None:
    """Run every case of test_exclusive_attention.py and save its results."""
    os.environ["TRITON_INTERPRET"] = "1"
    import test_exclusive_attention as cases
    import torch

    from ebca.plugins.exclusive_attention import kernels
    from ebca.plugins.exclusive_attention.launches import BLOCK, launch

    def exclude(arrays: dict[str, np.ndarray]) -> None:
        # Layers further apart than their maps need, with NaN between them.
        maps = arrays["maps"]
        spread = np.full((len(maps), maps[0].size + 3), np.nan, np.float32)
        spread[:, : maps[0].size] = maps.reshape(len(maps), -1)
        planned = launch({name: array.shape for name, array in arrays.items()}, spread.shape[1])
        tensors = {name: torch.from_numpy(array) for name, array in {**arrays, "maps": spread}.items()}
        pointers = {f"{name}_ptr": tensors[name] for name in planned.tensors}
        kernels.ebca_exclude[(planned.blocks,)](**pointers, **planned.values, BLOCK=BLOCK)

    for name, case in cases.CASES.items():
        arrays = cases.make_case(**case)
        cases.evaluations(arrays, exclude)
        np.savez(Path(folder) / f"{name}.npz", **arrays)
