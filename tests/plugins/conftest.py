"""What the GPU tests of all kernels share."""

from collections.abc import Iterator

import pytest

from ebca.errors import BackendError
from ebca.plugins.kernels.launch import CudaLauncher


@pytest.fixture(scope="module")
def launcher() -> Iterator[CudaLauncher]:
    try:
        made = CudaLauncher()
    except BackendError as error:
        pytest.skip(f"needs an NVIDIA GPU: {error}")
    with made:
        yield made
