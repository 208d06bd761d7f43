"""Devices for tests: a command in the place of ssh that runs everything here, and one that gives made-up answers."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from qexp.device.ssh import Ssh
from qexp.places import CONF

# It takes the arguments of ssh, and runs the command in a folder that stands for the home of the device.
FAKE_SSH = """#!/bin/sh
while [ "$1" != "--" ]; do shift; done
shift 2
cd {home}
exec /bin/sh -c "$*"
"""


def script(file: Path, text: str) -> Path:
    file.write_text(text)
    file.chmod(0o755)
    return file


def fake_ssh(folder: Path) -> Path:
    """A command that takes the arguments of ssh. The folder `home` stands for the device's."""
    (folder / "home").mkdir(exist_ok=True)
    return script(folder / "ssh", FAKE_SSH.format(home=folder / "home"))


def options_of(place: Path, /, **options: Any) -> dict[str, Any]:
    """The options of conf/device/ssh.yaml for a device that is this machine."""
    node: Any = OmegaConf.to_container(OmegaConf.load(CONF / "device" / "ssh.yaml"))
    own = {"name": "loopback", "host": "loopback", "ssh": str(fake_ssh(place)), "python": sys.executable}
    return {**node, **own, "retry_s": 0.01, **options}


def device(place: Path, /, **options: Any) -> Ssh:
    given = options_of(place, **options)
    del given["_target_"]
    return Ssh(**given)


def answering(folder: Path, answers: str) -> Path:
    """A command in the place of ssh whose Python program answers each line of its input.

    Args:
        folder: Folder for it.
        answers: The body of a function of `question`, the number of the line, which returns what is printed.
    """
    body = "\n".join(f"    {line}" for line in answers.strip().splitlines())
    return script(
        folder / "made_up_ssh",
        f"#!{sys.executable}\nimport sys, time\n\ndef answer(question):\n{body}\n"
        "for number, line in enumerate(sys.stdin):\n    print(answer(number), flush=True)\n",
    )


def write_device(root: Path, name: str, **options: Any) -> None:
    """Write conf/device/NAME.yaml for a device that is this machine into a folder of the user's own."""
    place = root / "conf" / "device"
    place.mkdir(parents=True, exist_ok=True)
    OmegaConf.save(options_of(root, name=name, **options), place / f"{name}.yaml")
