"""The list of devices."""

import ctypes
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import building

from ebca.errors import ParameterError
from ebca.runtime import native
from ebca.runtime.native import structures

LIST = """
import json, sys
from ebca.runtime.native import Library
fields = ("device", "name", "memory_bytes", "capability_major", "capability_minor")
found = [[getattr(device, field) for field in fields] for device in Library(sys.argv[1]).devices()]
print(json.dumps(found, default=bytes.decode))
"""


def listed(library: Path, **environment: str) -> list[list[object]]:
    done = subprocess.run(
        [sys.executable, "-c", LIST, library], env={**os.environ, **environment}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    made: list[list[object]] = json.loads(done.stdout)
    return made


def test_the_cpu_is_the_first_device(library: native.Library) -> None:
    first = library.devices()[0]
    cpuinfo = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    assert first.device == b"cpu" and first.name.decode() in cpuinfo and first.name
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert first.memory_bytes == pytest.approx(memory, rel=0.01)
    assert (first.capability_major, first.capability_minor) == (0, 0)


def test_gpus_follow(library_file: Path, tmp_path: Path, header_options: list[str]) -> None:
    """Over a stand-in for the driver."""
    (tmp_path / "lib").mkdir()
    source, driver = Path(__file__).with_name("fake_cuda.cpp"), tmp_path / "lib" / "libcuda.so.1"
    folder = Path(__file__).parents[2] / "runtime" / "cpp" / "src"
    building.run("c++", "-std=c++17", "-O0", "-shared", "-fPIC", f"-I{folder}", source, "-o", driver)
    fake = {"LD_LIBRARY_PATH": str(driver.parent)}
    cpu, gpu = listed(library_file, **fake)
    assert cpu[0] == "cpu" and gpu == ["cuda:0", "a GPU that is not there", 12 << 30, 8, 9]
    assert [one[0] for one in listed(library_file, **fake, FAKE_CUDA_NO_GPU="1")] == ["cpu"]


def test_what_is_not_there_is_refused(library: native.Library) -> None:
    lib, count = library.lib, len(library.devices())
    info = structures.DeviceInfo(struct_size=ctypes.sizeof(structures.DeviceInfo))
    with pytest.raises(ParameterError, match=f"there is no device {count}; .* there are: {count}"):
        library.check(lib.ebca_device_get_info(count, ctypes.byref(info)))
    for call in (lambda: lib.ebca_device_get_info(0, None), lambda: lib.ebca_device_count(None)):
        assert call() == structures.Status.PARAMETER
    info.struct_size = 3
    with pytest.raises(ParameterError, match="ebca_device_info has struct_size 3"):
        library.check(lib.ebca_device_get_info(0, ctypes.byref(info)))
