"""Tells what a device is and which engines run there, or removes what is kept there.

qexp device check device=NAME [device.OPTION=VALUE ...]
    Processor, memory, temperature, libraries and engines, and the commands that install what is missing.
qexp device clean device=NAME [device.OPTION=VALUE ...]
    Remove the code, networks and images that were sent there.

device: name of a file in conf/device, such as ssh or one of your own
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf

from qexp.engine.base import Engine
from qexp.errors import explain
from qexp.launch import ChildFailed, ConnectionLost
from qexp.measure.device import Device
from qexp.places import CONF, choices, conf_file
from qexp.types import Unsupported, UserError

COMMANDS = ("check", "clean")


def main(words: list[str]) -> int:
    command, *overrides = words or [""]
    groups = {override.partition("=")[0] for override in overrides}
    if command not in COMMANDS or "device" not in groups or any(not name.startswith("device") for name in groups):
        print(__doc__, file=sys.stderr)
        return 2
    try:
        with contextlib.closing(device_of(overrides)) as device:
            device.connect()
            print("\n".join(check(device) if command == "check" else [clean(device)]))
    except (ChildFailed, ConnectionLost) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except Exception as error:
        if (message := explain(error)) is None:
            raise
        print(f"error: {message}", file=sys.stderr)
        return 1
    return 0


def device_of(overrides: list[str]) -> Device:
    """The device that a command line names, as it does for compress.py."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("compress", overrides)
    device: Device = instantiate(config.device)
    return device


def check(device: Device) -> list[str]:
    """Describe a device in lines."""
    reasons = {engine.name: reason_of(device, engine) for engine in engines()}
    width = max(map(len, reasons))
    told = device.environment(Path(__file__).parents[2])
    return [
        f"{device.name}: {told['host']}, {told['cpu']}, {told['cores'] or device.physical_cores()} cores"
        + (f", {told['memory_gb']:.1f} GB" if told.get("memory_gb") else ""),
        f"  {told['system']}, Python {told['python']}",
        f"  {', '.join(state(device, told)) or 'neither governor nor temperature are told'}",
        f"  {', '.join(f'{name} {version}' for name, version in told['versions'].items())}",
        "engines:",
        *(f"  {name:{width}}  {reason or 'runs'}" for name, reason in reasons.items()),
        *advice(device, told),
    ]


def state(device: Device, told: dict[str, Any]) -> Iterator[str]:
    """What changes at the device, and decides how fast it is."""
    if told.get("governor"):
        yield f"governor {told['governor']}"
    if told.get("temperature_c") is not None:
        yield f"{told['temperature_c']:.0f} °C"
    if told.get("load") is not None:
        yield f"load {told['load']:.2f}"
    if device.emulated:
        yield "emulated: its times mean nothing"


def advice(device: Device, told: dict[str, Any]) -> Iterator[str]:
    """What would make times steadier, as a command."""
    if told.get("governor") not in (None, "performance"):
        change = "echo performance | sudo tee /sys/devices/system/cpu/cpu*/cpufreq/scaling_governor"
        yield "its frequency changes with the load. For steadier times, type there"
        yield f"  {change}"


def reason_of(device: Device, engine: Engine) -> str:
    """Why an engine does not run on a device, or an empty string if it does."""
    try:
        device.check(engine)
    except (Unsupported, UserError) as reason:
        return str(reason)
    return ""


def engines() -> Iterator[Engine]:
    """Every engine in conf/engine."""
    for name in choices("engine"):
        if name != "auto":
            yield instantiate(OmegaConf.load(conf_file(f"engine/{name}.yaml")))


def clean(device: Device) -> str:
    """Remove what was sent to a device, and say how much that was."""
    return f"{device.name}: removed {device.clean():.1f} MB of code, networks and images"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
