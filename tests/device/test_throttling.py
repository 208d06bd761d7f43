"""What the system tells of heat, in a copy of the files in which it does."""

from __future__ import annotations

from pathlib import Path

import pytest

from qexp.measure import throttling
from qexp.measure.throttling import Throttling, temperature_c


@pytest.fixture(autouse=True)
def sys_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(throttling, "SYS", tmp_path)
    return tmp_path


def write(root: Path, place: str, text: str) -> None:
    (root / place).parent.mkdir(parents=True, exist_ok=True)
    (root / place).write_text(f"{text}\n")


def test_where_nothing_is_told_nothing_was_slowed() -> None:
    assert not Throttling().slowed() and temperature_c() is None


def test_counters_of_x86_processors(sys_files: Path) -> None:
    count = "devices/system/cpu/cpu{}/thermal_throttle/{}_throttle_count"
    for core in range(2):
        write(sys_files, count.format(core, "core"), "7")
        write(sys_files, count.format(core, "package"), "3")
    watch = Throttling()
    assert not watch.slowed()
    write(sys_files, count.format(1, "package"), "4")
    assert watch.slowed()
    watch.begin()
    assert not watch.slowed()


@pytest.mark.parametrize(("kind", "state", "slowed"), [
    ("cpufreq-cpu0", "0", False), ("cpufreq-cpu0", "2", True), ("thermal-cpufreq-0", "1", True),
    ("Processor", "3", True), ("pwm-fan", "4", False), ("cpufreq-cpu0", "", False),
])  # fmt: skip
def test_what_the_kernel_holds_down(kind: str, state: str, slowed: bool, sys_files: Path) -> None:
    write(sys_files, "class/thermal/cooling_device0/type", kind)
    write(sys_files, "class/thermal/cooling_device0/cur_state", state)
    assert Throttling().slowed() is slowed


@pytest.mark.parametrize(("bits", "slowed"), [
    ("0", False), ("4", True), ("2", True), ("1", True), ("8", True), ("50000", False), ("50005", True),
])  # fmt: skip
def test_a_raspberry_pi_tells_it_in_bits(bits: str, slowed: bool, sys_files: Path) -> None:
    write(sys_files, "devices/platform/soc/soc:firmware/get_throttled", bits)
    assert Throttling().slowed() is slowed


def test_the_temperature_is_that_of_the_processor(sys_files: Path) -> None:
    for zone, (kind, temp) in enumerate([("acpitz", 90_000), ("cpu-thermal", 48_312), ("x86_pkg_temp", 51_000)]):
        write(sys_files, f"class/thermal/thermal_zone{zone}/type", kind)
        write(sys_files, f"class/thermal/thermal_zone{zone}/temp", str(temp))
    assert temperature_c() == 51.0
