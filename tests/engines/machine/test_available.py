"""Available memory within the limits of containers and of the process."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from ebca.engines.machine import available
from ebca.engines.machine.available import available_bytes

GIGABYTE = 10**9


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with 100 GB available and no swap, a process of 1 GB of its own, and a folder of control groups."""
    monkeypatch.setattr(available.psutil, "virtual_memory", lambda: SimpleNamespace(available=100 * GIGABYTE, total=0))
    monkeypatch.setattr(available.psutil, "swap_memory", lambda: SimpleNamespace(free=0, total=0))
    own = SimpleNamespace(rss=3 * GIGABYTE, shared=2 * GIGABYTE, vms=0)
    monkeypatch.setattr(available.psutil, "Process", lambda: SimpleNamespace(memory_info=lambda: own))
    monkeypatch.setattr(available, "_CGROUPS", tmp_path)
    monkeypatch.setattr(available, "_OWN_CGROUP", tmp_path / "self")
    monkeypatch.setattr(available.sys, "platform", "linux")
    (tmp_path / "self").write_text("")
    return tmp_path


def group(folder: Path, **numbers: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in numbers.items():
        (folder / f"memory.{name}").write_text(f"{value}\n")


def test_without_limits_it_is_what_the_machine_has_and_what_the_process_holds(machine: Path) -> None:
    assert available_bytes() == 101 * GIGABYTE


def test_the_tightest_group_counts_and_pages_of_files_do_not(machine: Path) -> None:
    (machine / "self").write_text("0::/outer/inner\n")
    group(machine / "outer", max=20 * GIGABYTE, current=12 * GIGABYTE, stat=f"anon 5\ninactive_file {2 * GIGABYTE}\n")
    group(machine / "outer/inner", max="max", current=GIGABYTE)
    assert available_bytes() == (20 - 12 + 2 + 1) * GIGABYTE
    group(machine / "outer/inner", max=4 * GIGABYTE)
    assert available_bytes() == (4 - 1 + 1) * GIGABYTE


def test_a_container_sees_its_own_group_as_the_root(machine: Path) -> None:
    (machine / "self").write_text("0::/docker/0123\n")
    group(machine, max=2 * GIGABYTE, current=GIGABYTE)
    assert available_bytes() == 2 * GIGABYTE


def test_control_groups_of_version_1(machine: Path) -> None:
    (machine / "self").write_text("12:pids:/x\n9:memory,hugetlb:/x\n")
    group(machine / "memory", limit_in_bytes=2**63 - 4096, usage_in_bytes=GIGABYTE)
    assert available_bytes() == 101 * GIGABYTE
    group(machine / "memory/x", limit_in_bytes=8 * GIGABYTE, usage_in_bytes=GIGABYTE)
    assert available_bytes() == (8 - 1 + 1) * GIGABYTE


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_AS of Linux")
def test_a_limit_of_the_address_space_counts() -> None:
    limit = 4 * GIGABYTE
    code = f"""
import resource; resource.setrlimit(resource.RLIMIT_AS, ({limit}, {limit}))
from ebca.engines.machine.available import available_bytes; print(available_bytes())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 0 < int(done.stdout) <= limit
