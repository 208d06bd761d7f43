"""One heat at the end of a sweep: the rows that could be the fastest are timed once more, all of them in turns.

Rows are measured minutes apart, and the machine drifts meanwhile. Their ratios to fp32 rank most of them, and those
that these do not tell apart are timed against each other.
"""

from __future__ import annotations

import contextlib
import json
import statistics
from dataclasses import dataclass
from pathlib import Path

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from qexp.artifact import Artifact
from qexp.files import write_json
from qexp.jobs.comparison import limits_of
from qexp.keys import key
from qexp.launch import ChildFailed, ConnectionLost
from qexp.measure.base import Turns, ready
from qexp.measure.candidate import Candidate
from qexp.measure.device import HERE, Device
from qexp.measure.timing import bounds
from qexp.progress import doing
from qexp.report.runs import HEAT_FILE, SAME_CALL, SAME_IMAGES, Run, grouped
from qexp.report.verdict import could_be_fastest
from qexp.types import Unsupported, UserError

ROUNDS = 3  # after each, those that have surely lost leave

Result = tuple[float, float, float]  # times as long as the fastest, and the bounds of the 95 % interval


@dataclass(frozen=True)
class Heat:
    """How heats are run.

    Attributes:
        turns: How the rows are timed in turns, in each round.
        rows: The most rows of a heat, the fastest. 0 or 1: there are no heats.
        resolution: Share by which one network differs between two processes, by which intervals are widened.
    """

    turns: Turns
    rows: int
    resolution: float


def run_heats(config: DictConfig, runs: list[Run], sweep: Path) -> None:
    """Time the rows of a sweep that could be the fastest, and write the results beside the records.

    A heat of the same rows that was run before is not run again. One in which a row cannot be timed, or that other
    processes disturb, has no result: then the ratios to fp32 rank its rows alone.

    Args:
        config: Config of the command.
        runs: Runs of the sweep.
        sweep: Folder of the sweep.
    """
    heat = Heat(instantiate(config.heat.turns), config.heat.rows, config.heat.resolution)
    found: dict[str, Result] = {}
    finished = [run for run in runs if run.record.status == "finished" and not run.record.emulated]
    for rows in grouped(finished, [*SAME_IMAGES, *SAME_CALL, "model"]).values():
        rivals = could_be_fastest(rows, config.report.points)[: heat.rows]
        if len({run.record.key for run in rivals}) > 1:
            with contextlib.closing(device_of(rivals[0])) as device:
                found |= heat_on(device, rivals, heat, Path(config.outputs) / "cache" / "heats")
    if found:
        write_json(sweep / HEAT_FILE, found)


def device_of(run: Run) -> Device:
    """The device of a run. Records of earlier versions name none, and are of a machine of qexp itself."""
    node = run.record.config.get("device")
    device: Device = instantiate(OmegaConf.create(node)) if node else HERE
    return device


def heat_on(device: Device, rivals: list[Run], heat: Heat, cache: Path) -> dict[str, Result]:
    """The results of a heat by the keys of its records, or nothing if it has none."""
    try:
        place = device.place()
        if any({name: run.record.environment.get(name) for name in place} != place for run in rivals):
            return {}  # they were measured on another machine
        candidates = {run.record.key: candidate_of(run, device) for run in rivals}
    except (Unsupported, UserError, OSError, ConnectionLost, ChildFailed):  # an artifact was deleted, say
        return {}
    different = {json.dumps(candidate.identity): candidate for candidate in candidates.values()}
    if len(different) < 2:
        return {}
    asked = {name: [c.batch, c.threads] for name, c in different.items()}
    file = cache / f"{key('heat', code=['qexp.jobs.heat'], asked=asked, heat=heat.__dict__, place=place)[:24]}.json"
    if not file.exists():
        names = ", ".join(dict.fromkeys(f"{c.artifact.label} on {c.engine.name}" for c in different.values()))
        print(f"\nOne heat of those that could be the fastest: {names}", flush=True)
        taken = timed(different, heat)
        if taken is None:
            print("  has no result: other processes used the cores, or a row could not be timed", flush=True)
            return {}
        write_json(file, taken)
    known: dict[str, Result] = json.loads(file.read_text())
    return {name: known[json.dumps(candidate.identity)] for name, candidate in candidates.items()}


def candidate_of(run: Run, device: Device) -> Candidate:
    """What a run has measured, to be timed again."""
    config, params = OmegaConf.create(run.record.config), run.record.params
    node = config.engine.candidates[params["engine"]] if "candidates" in config.engine else config.engine
    artifact, engine = Artifact.read(Path(run.record.artifact)), instantiate(node)
    artifact = engine.lower(artifact, params["batch_size"], params["threads"])
    return Candidate(artifact, engine, params["batch_size"], params["threads"], limits_of(config), device=device)


def timed(candidates: dict[str, Candidate], heat: Heat) -> dict[str, Result] | None:
    """Time candidates in rounds of turns.

    Returns:
        The result of each, or None if one failed or other processes disturbed a round.
    """
    medians: dict[str, list[float]] = {name: [] for name in candidates}
    alive = list(candidates)
    device = next(iter(candidates.values())).device
    with device.alone(), contextlib.ExitStack() as closed:
        for candidate in candidates.values():
            closed.callback(candidate.close)
        try:
            with doing(f"Loading {len(candidates)} networks"):
                ready([*candidates.values()])
            for _ in range(ROUNDS):
                with doing(f"Timing {len(alive)} networks in turns", still=True):
                    taken = heat.turns.take_turns([candidates[name] for name in alive])
                if not taken.trusted:
                    return None
                turns = min(map(len, taken.windows))
                for name, windows in zip(alive, taken.windows, strict=True):
                    medians[name] += [statistics.median(window) for window in windows[:turns]]
                results = compared(medians, heat.resolution)
                alive = [name for name in alive if results[name][1] <= 1]
                if len(alive) < 2:
                    break
        except (ChildFailed, ConnectionLost):
            return None
    return compared(medians, heat.resolution)


def compared(medians: dict[str, list[float]], resolution: float) -> dict[str, Result]:
    """How many times as long as the fastest each candidate takes.

    Args:
        medians: Medians of the windows of each candidate, in the order of the turns. Those that have left have fewer.
        resolution: Share by which intervals are widened.
    """
    longest = max(map(len, medians.values()))
    fastest = min((n for n in medians if len(medians[n]) == longest), key=lambda n: statistics.median(medians[n]))
    found: dict[str, Result] = {}
    for name, own in medians.items():
        ratios = [ours / theirs for ours, theirs in zip(own, medians[fastest], strict=False)]
        interval = bounds(ratios, resolution)
        middle = statistics.median(ratios)
        found[name] = (middle, interval.get("low", middle), interval.get("high", middle))
    found[fastest] = (1.0, 1.0, 1.0)
    return found
