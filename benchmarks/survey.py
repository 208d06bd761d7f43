"""Tries one network of every family of torchvision and 60 of timm with several methods on several engines.

    uv run python benchmarks/survey.py ['networks=[torchvision/*,timm/vit_tiny_patch16_224]'] [methods=[static]] \
        [engines=[eager,onnxruntime]] [again=failed]

survey.yaml says which networks these are, and what the options mean. Every network is made by a process of its own,
and what engines compute comes from the measuring children of every run. A survey that was interrupted goes on where it
was. At the end, the table is written from all results.
"""

from __future__ import annotations

import contextlib
import json
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from common import ROOT, composed, machine
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from survey_table import survey_table

from qexp.artifact import Artifact
from qexp.jobs.run import reason_of
from qexp.launch import Child, ChildFailed
from qexp.measure import candidate as candidates
from qexp.measure.candidate import Candidate, Limits
from qexp.measure.images import EvaluationSet
from qexp.places import CONF
from qexp.types import UserError, nearest

OPTIONS = ROOT / "benchmarks" / "survey.yaml"
HEARTBEAT_S = 8.0
IDENTITY = ("network", "method", "engine")


def options_of(words: list[str]) -> DictConfig:
    """The options of survey.yaml with those that were given as NAME=VALUE.

    Raises:
        UserError: There is no option of this name.
    """
    known, given = OmegaConf.load(OPTIONS), OmegaConf.from_dotlist(words)
    assert isinstance(known, DictConfig)
    for name in given:
        if name not in known:
            raise UserError(f"There is no option {name!r}. {nearest(str(name), map(str, known))}")
    merged = OmegaConf.merge(known, given)
    assert isinstance(merged, DictConfig)
    return merged


def chosen(options: DictConfig) -> dict[str, int]:
    """The networks that were asked for, and the side of their images in pixels."""
    found: dict[str, int] = {}
    for pattern in options.networks:
        matching = {str(name): size for name, size in options.listed.items() if fnmatchcase(str(name), pattern)}
        found |= matching or {pattern: options.image_size}
    return found


@contextlib.contextmanager
def telling(what: str) -> Iterator[None]:
    """Say what is being done whenever that has taken some more seconds."""
    ended, began = threading.Event(), time.perf_counter()

    def tell() -> None:
        while not ended.wait(HEARTBEAT_S):
            print(f"    {what}: {time.perf_counter() - began:.0f} s so far", flush=True)

    teller = threading.Thread(target=tell, daemon=True)
    teller.start()
    try:
        yield
    finally:
        ended.set()
        teller.join()


class Refused(Exception):
    """The network's process gave a reason instead of an answer."""

    def __init__(self, status: str, reason: str):
        super().__init__(reason)
        self.status = status


class Maker:
    """A process that makes networks and artifacts, one after the other. It is started again if it was lost."""

    def __init__(self, options: DictConfig):
        self.options = options
        self.child: Child | None = None

    def process(self) -> Child:
        if self.child is None or not self.child.alive:
            limits = self.options.timeout_s, self.options.memory_mb
            kept = {"tracebacks": self.options.folder}
            self.child = Child("benchmarks.survey_network", kept, self.options.threads, *limits)
        return self.child

    def ask(self, command: str, **arguments: Any) -> dict[str, Any]:
        """Ask the process something.

        Raises:
            Refused: It gave a reason instead of an answer.
            ChildFailed: It was lost.
        """
        answer = self.process().ask(command, **arguments)
        if "status" in answer:
            raise Refused(**answer)
        return answer

    def close(self) -> None:
        if self.child:
            self.child.stop()


@dataclass(frozen=True)
class Network:
    """A network that a maker holds, with the folder of its images and artifacts."""

    name: str
    size: int
    folder: Path
    maker: Maker
    options: DictConfig

    def build(self) -> None:
        """Let the maker hold the network, unless it does."""
        process = self.maker.process()
        if process.holds != self.name:
            asked = {name: self.options[name] for name in ("images", "calibration_images")}
            arguments = OmegaConf.to_container(self.options.arguments).get(self.name, {})  # type: ignore[union-attr]
            asked |= {"name": self.name, "size": self.size, "arguments": arguments, "folder": str(self.folder)}
            self.maker.ask("network", **asked)
            process.holds = self.name

    def candidate(self, method: str, engine: str) -> Candidate:
        """The artifact of a method, made and lowered for an engine."""
        node = OmegaConf.to_container(OmegaConf.load(CONF / "engine" / f"{engine}.yaml"))
        batch, threads = self.options.batch_size, self.options.threads
        config = composed([f"method={method}", "data=random", "model=custom"]).method
        asked: Any = OmegaConf.to_container(config, resolve=True)
        made = self.maker.ask("make", method=asked, engine=node, batch=batch, threads=threads)
        limits = Limits(self.options.timeout_s, self.options.memory_mb)
        return Candidate(
            Artifact.read(Path(made["folder"])), instantiate(node), batch, threads, limits, persistent=True
        )


def tried(network: Network, method: str, engine: str) -> dict[str, Any]:
    """What becomes of a method on an engine: `status`, `reason`, and figures where it finished.

    These are `int8_share`, the share of multiply-accumulates that are computed in integers, and, of the logits against
    those of the network in fp32, `signal_to_noise_db` and `agreement`, the share of equal predictions.
    """
    try:
        candidate = network.candidate(method, engine)
        with contextlib.closing(candidate):
            return figures(candidate, network)
    except Refused as refusal:
        return {"status": refusal.status, "reason": str(refusal)}
    except Exception as error:
        return {"status": "failed", "reason": reason_of(error, network.folder.parent)}


def figures(candidate: Candidate, network: Network) -> dict[str, Any]:
    """The figures of `tried`, after the engine was compared with the reference as in every run with random weights."""
    artifact, cache = candidate.artifact, network.folder / "cache"
    tests = EvaluationSet(network.name, network.folder, "test", network.folder / "chosen.json", meaningful=False)
    logits, _ = candidate.logits(tests, candidate.batch, cache)
    exact = np.load(network.folder / "logits.npy").astype(np.float64)
    if candidate.engine.name != "eager" and "pt2" in artifact.engine_spec.formats:
        limits, threads = candidate.limits, candidate.threads
        reference = Candidate(artifact, engine_named("eager"), candidate.batch, threads, limits, persistent=True)
        expected, _ = reference.logits(tests, candidate.batch, cache)
        parity = instantiate(OmegaConf.load(CONF / "measure" / "parity.yaml").parity)
        parity.check_error(candidate, logits, expected, lambda: exact)
        parity.check_rounding(candidate, logits, expected, lambda: exact)
    return {
        "status": "finished",
        "reason": "",
        "int8_share": artifact.quantized_macs / max(1, artifact.macs),
        "signal_to_noise_db": 10 * float(np.log10((exact**2).sum() / max(1e-300, ((logits - exact) ** 2).sum()))),
        "agreement": float((logits.argmax(1) == exact.argmax(1)).mean()),
    }


def engine_named(name: str) -> Any:
    return instantiate(OmegaConf.load(CONF / "engine" / f"{name}.yaml"))


def read_results(file: Path) -> dict[tuple[str, ...], dict[str, Any]]:
    """The newest result of each network, method and engine."""
    lines = file.read_text().splitlines() if file.exists() else []
    return {tuple(result[name] for name in IDENTITY): result for result in map(json.loads, lines)}


def survey(options: DictConfig) -> None:
    """Compute what is missing among the results, and write the table."""
    folder = Path(options.folder)
    folder.mkdir(parents=True, exist_ok=True)
    results = folder / "results.jsonl"
    known = read_results(results)
    networks = chosen(options)
    candidates.PERSISTENT.most = len(options.engines)
    keeps = {"none": lambda result: True, "failed": lambda r: r["status"] != "failed", "all": lambda result: False}
    if options.again not in keeps:
        raise UserError(f"again={options.again} is unknown. {nearest(options.again, keeps)}")
    maker = Maker(options)
    try:
        for number, (name, size) in enumerate(networks.items(), start=1):
            missing = [
                (method, engine)
                for method in options.methods
                for engine in options.engines
                if (old := known.get((name, method, engine))) is None or not keeps[options.again](old)
            ]
            if missing:
                print(f"{number} of {len(networks)}: {name}, {size} px ...", flush=True)
                for result in of_network(name, size, missing, maker):
                    with results.open("a") as file:
                        file.write(json.dumps(result) + "\n")
    finally:
        maker.close()
    write_table(options, read_results(results))


def of_network(name: str, size: int, wanted: list[tuple[str, str]], maker: Maker) -> Iterator[dict[str, Any]]:
    """The results of a network, by method and engine, one after the other."""
    options = maker.options
    with TemporaryDirectory(dir=options.folder) as folder:
        network, unusable = Network(name, size, Path(folder), maker, options), None
        for method, engine in wanted:
            try:
                with telling("making the network"):
                    network.build()
            except (Refused, ChildFailed) as error:
                unusable = {"status": "failed", "reason": str(error)}
            began = time.perf_counter()
            with telling(f"{method} on {engine}"):
                result = unusable or tried(network, method, engine)
            seconds = time.perf_counter() - began
            print(f"  {method} on {engine}: {told(result)} in {seconds:.1f} s", flush=True)
            yield {
                "network": name, "method": method, "engine": engine, "size": size, **result,
                "seconds": seconds,
            }  # fmt: skip


def told(result: dict[str, Any]) -> str:
    """A result in words."""
    if result["status"] != "finished":
        return f"{result['status']}: {result['reason']}"
    share, decibels = result["int8_share"], result["signal_to_noise_db"]
    return f"{decibels:.1f} dB, {share:.1%} of the MACs in integers, {result['agreement']:.0%} of predictions equal"


def write_table(options: DictConfig, results: dict[tuple[str, ...], dict[str, Any]]) -> None:
    listed = [str(name) for name in [*options.listed, *chosen(options)]]
    rows = [r for r in results.values() if r["network"] in listed]
    text = survey_table(sorted(rows, key=lambda result: listed.index(result["network"])), options, machine())
    Path(options.table).parent.mkdir(parents=True, exist_ok=True)
    Path(options.table).write_text(text)
    print(f"\nThe table is in {options.table}.")


if __name__ == "__main__":
    try:
        survey(options_of(sys.argv[1:]))
    except UserError as error:
        sys.exit(str(error))
    finally:
        candidates.PERSISTENT.stop()
