"""Tells whether a machine slowed its cores down because they were hot, or because their power was too low.

It runs on devices, so it needs the standard library alone. Where the system does not tell, nothing counts as slowed.
"""

from __future__ import annotations

from pathlib import Path

SYS = Path("/sys")
THROTTLED = "the cores were slowed down, because they were hot or their power was too low"
# The bits of the Raspberry Pi's firmware that hold at the moment: low voltage, capped frequency, throttled, and hot.
FIRMWARE_NOW = 0xF


class Throttling:
    """Tells whether the cores were slowed down since `begin`."""

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """Count from now on."""
        self._before = events()

    def slowed(self) -> bool:
        """Whether they were since `begin`, or are now."""
        return events() > self._before or is_capped()


def events() -> int:
    """How often the cores, and the packages that they are in, were slowed down so far, as x86 processors count it."""
    return sum(_number(file) for file in SYS.glob("devices/system/cpu/cpu[0-9]*/thermal_throttle/*_throttle_count"))


def is_capped() -> bool:
    """Whether the kernel, or the firmware of a Raspberry Pi, holds the frequency down now."""
    coolers = (file for file in SYS.glob("class/thermal/cooling_device*/cur_state") if _slows_cores(file.parent))
    firmware = SYS.glob("devices/platform/soc/soc:firmware/get_throttled")
    return any(_number(file) > 0 for file in coolers) or any(_number(file, 16) & FIRMWARE_NOW for file in firmware)


def temperature_c() -> float | None:
    """Degrees Celsius of the warmest sensor of the processor, or None where there is none."""
    zones = list(SYS.glob("class/thermal/thermal_zone*"))
    of_cores = [zone for zone in zones if any(part in _text(zone / "type") for part in ("cpu", "soc", "pkg", "core"))]
    found = [_number(zone / "temp") / 1000 for zone in of_cores or zones if (zone / "temp").exists()]
    return max(found, default=None)


def _slows_cores(cooler: Path) -> bool:
    return any(part in _text(cooler / "type") for part in ("cpufreq", "processor"))


def _text(file: Path) -> str:
    try:
        return file.read_text().strip().lower()
    except OSError:
        return ""


def _number(file: Path, base: int = 10) -> int:
    try:
        return int(_text(file), base)
    except ValueError:
        return 0
