"""What prepared weights depend on."""

from pathlib import Path

import pytest

from ebca.engines.machine import processor


def test_linux_names_model_and_instruction_sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nmodel name\t: A 1\nflags\t\t: fpu avx2\n\nprocessor\t: 1\n")
    monkeypatch.setattr(processor, "_CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(processor.platform, "machine", lambda: "x86_64")
    assert processor.identity() == "x86_64 A 1 fpu avx2"


def test_other_systems_name_what_they_know(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the C library reads it from PROCESSOR_ARCHITECTURE and PROCESSOR_IDENTIFIER."""
    monkeypatch.setattr(processor, "_CPUINFO", tmp_path / "none")
    monkeypatch.setattr(processor.platform, "machine", lambda: "AMD64")
    monkeypatch.setattr(processor.platform, "processor", lambda: "AMD64 Family 25 Model 1 Stepping 1, AuthenticAMD")
    assert processor.identity() == "AMD64 AMD64 Family 25 Model 1 Stepping 1, AuthenticAMD"
