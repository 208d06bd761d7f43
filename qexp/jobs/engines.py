"""The engines of a job: what the config names, and which of them take what they are given."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from hydra.utils import instantiate
from omegaconf import DictConfig, open_dict

from qexp.engine.base import Engine
from qexp.keys import plain
from qexp.launch import ConnectionLost
from qexp.measure.device import HERE, Device
from qexp.types import Unsupported, UserError

Made = TypeVar("Made")
OF_AUTO = ("candidates", "trial", "accept_points", "accept_images")  # options of conf/engine/auto.yaml


def engines_of(config: DictConfig) -> dict[str, Engine]:
    """Make the engine of a config node, or all candidates of the node of `auto`, by name.

    What an experiment says of the candidates of `auto` is taken out of the node of an engine that is chosen by name.

    Raises:
        UserError: All candidates are null.
    """
    if "_target_" in config:
        with open_dict(config):
            for option in OF_AUTO:
                config.pop(option, None)
        engine = instantiate(config)
        return {engine.name: engine}
    candidates = config.candidates
    engines = {name: instantiate(engine) for name, engine in candidates.items() if engine is not None}
    if not engines:
        raise UserError(
            f"Every candidate is null ({', '.join(candidates)}); leave one of them, or choose an engine by its name."
        )
    return engines


def identities(engines: dict[str, Engine], name: Callable[[Engine], str], device: Device = HERE) -> list[Any]:
    """Say what each engine will run, in plain values that keys can be made of.

    Args:
        engines: Engines by name.
        name: Gives the name of what an engine runs.
        device: Where they run.

    Returns:
        For each engine, the name of what it runs and its options, or its own name and the reason why it runs nothing.
    """
    found: list[Any] = []
    for engine in engines.values():
        try:
            device.check(engine)
            found.append([name(engine), plain(engine, "engine")])
        except (Unsupported, UserError) as reason:
            found.append([engine.name, str(reason)])
    return found


def accepted_by(engines: dict[str, Engine], make: Callable[[Engine], Made], notes: dict[str, str]) -> dict[str, Made]:
    """Call `make` for each engine, and leave out those for which it raises an error, whatever that is.

    Args:
        engines: Engines by name.
        make: What to call.
        notes: Says afterwards which engines were left out, and why.

    Returns:
        What `make` returned, by engine.

    Raises:
        ConnectionLost: The device can no longer be reached, which is no reason to leave an engine out.
        Exception: All engines are left out, the first one for this reason.
    """
    accepted, refusals = {}, list[Exception]()
    for name, engine in engines.items():
        try:
            accepted[name] = make(engine)
        except ConnectionLost:
            raise
        except Exception as reason:  # libraries raise all sorts of errors on networks that they cannot take
            refusals.append(reason)
            notes[f"candidate {name}"] = f"left out: {sentence(reason)}"
    if not accepted:
        raise refusals[0]
    return accepted


def sentence(error: Exception) -> str:
    """What an error says: all of it if it was written for users, otherwise its kind and its first line."""
    if isinstance(error, (Unsupported, UserError)):
        return str(error)
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or ['no message'])[0][:300]}"


def runs(device: Device, engine: Engine) -> bool:
    try:
        device.check(engine)
    except (Unsupported, UserError):
        return False
    return True
