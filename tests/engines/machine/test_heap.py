"""Giving freed memory back to the system."""

import subprocess
import sys

import pytest

from ebca.engines.machine import heap

# Large blocks between small ones that stay, below the size at which the C library maps a block on its own.
_HOLES = """
import ctypes, re
from ebca.engines.machine import heap
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, (ctypes.c_size_t,)
libc.free.argtypes = (ctypes.c_void_p,)
M_MMAP_THRESHOLD = -3
libc.mallopt(M_MMAP_THRESHOLD, 16 << 20)

def resident():
    return int(re.search(r"RssAnon:\\s+(\\d+)", open("/proc/self/status").read())[1]) >> 10

large, small = [], []
for _ in range(20):
    large.append(libc.malloc(10 << 20))
    ctypes.memset(large[-1], 1, 10 << 20)
    small.append(libc.malloc(200 << 10))
for block in large:
    libc.free(block)
before = resident()
heap.trim()
print(before, resident())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="malloc_trim is glibc's")
def test_holes_between_small_blocks_are_given_back() -> None:
    done = subprocess.run([sys.executable, "-c", _HOLES], capture_output=True, text=True, check=True)
    before, after = map(int, done.stdout.split())
    assert before > 180, "the holes are there"
    assert after < before - 150


def test_a_system_without_the_call_does_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heap.ctypes, "CDLL", lambda name: object())
    heap.trim()
    monkeypatch.setattr(sys, "platform", "win32")
    heap.trim()
