"""Finding the GPU: without one, and from the files that an AMD driver shows."""

from __future__ import annotations

from pathlib import Path

import pytest

from tokenmill.core.errors import ConfigError
from tokenmill.launch import gpu


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without a GPU."""
    for name in ("TRITON_INTERPRET", "HIP_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    for name in ("_nvidia", "_amd", "_by_torch"):
        monkeypatch.setattr(gpu, name, lambda: None)


def test_without_one_the_cpu_computes_unless_a_gpu_is_asked_for() -> None:
    assert gpu.find_gpu("auto") is None and gpu.find_gpu("cpu") is None
    with pytest.raises(ConfigError, match="device cuda: no GPU"):
        gpu.find_gpu("cuda")


def test_the_first_that_is_visible_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    found = gpu.Gpu("one", 10, 9)
    monkeypatch.setattr(gpu, "_nvidia", lambda: found)
    assert gpu.find_gpu("auto") == gpu.find_gpu("cuda") == found and gpu.find_gpu("cpu") is None


def test_amd_cards_are_read_from_the_drivers_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    for number, used in enumerate((7, 3)):
        device = tmp_path / f"card{number}" / "device"
        device.mkdir(parents=True)
        (device / "mem_info_vram_total").write_text("100\n")
        (device / "mem_info_vram_used").write_text(f"{used}\n")
    (tmp_path / "card1" / "device" / "product_name").write_text("MI300X\n")
    monkeypatch.delenv("HIP_VISIBLE_DEVICES", raising=False)
    assert gpu._amd(tmp_path) == gpu.Gpu("AMD GPU", 100, 93)
    monkeypatch.setenv("HIP_VISIBLE_DEVICES", "1,0")
    assert gpu._amd(tmp_path) == gpu.Gpu("MI300X", 100, 97)
    for none in ("2", "-1", ""):
        monkeypatch.setenv("HIP_VISIBLE_DEVICES", none)
        assert gpu._amd(tmp_path) is None


def test_what_is_not_installed_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "find_spec", lambda name: object())
    monkeypatch.setattr(gpu, "version", lambda name: "2.11.0+cpu")
    assert "built for the CPU" in str(gpu.software_obstacle())
    monkeypatch.setattr(gpu, "version", lambda name: "2.11.0")
    assert gpu.software_obstacle() is None
    monkeypatch.setattr(gpu, "find_spec", lambda name: None)
    assert "pip install" in str(gpu.software_obstacle())
