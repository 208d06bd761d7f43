"""The job of compress.py: compresses a trained network, and measures the artifact on engines."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig

from qexp.artifact import Artifact
from qexp.data.base import ImageData
from qexp.jobs.artifact_factory import ASSUMED, prepare
from qexp.jobs.comparison import Outcome, measure, quantise_unlike, test_images
from qexp.jobs.engines import accepted_by, engines_of, identities
from qexp.jobs.fp32 import baseline_on, fp32_on
from qexp.jobs.given import NOTHING, Given
from qexp.jobs.run import JobPlan, run_job
from qexp.measure.device import HERE, Device
from qexp.measure.images import EvaluationSet
from qexp.model.checkpoint import claimed_top1

BELOW_CLAIM = 0.05  # top-1 below what a checkpoint says it reached, from which the preprocessing is suspected
NEAR_CHANCE = 4  # times as good as chance, above which a network seems to see what it was trained on


def main(config: DictConfig, given: Given = NOTHING) -> None:
    run_job(config, "compress", planned_params(config), partial(compress, given=given), given.call)


def compress(config: DictConfig, device: Device, given: Given = NOTHING) -> JobPlan:
    """Plan to compress the network of the config, or one that stands in for it, and to measure it on a device."""
    method, fp32 = instantiate(config.method), instantiate(config.baseline.method)
    engines, fp32_engines = engines_of(config.engine), engines_of(config.fp32_engines)
    baseline_engine = instantiate(config.baseline.engine)
    factory = prepare(config, given)

    def make(notes: dict[str, str]) -> dict[str, Artifact]:
        for engine in [baseline_engine, *fp32_engines.values()]:
            accepted_by({engine.name: engine}, lambda engine: factory.artifact(fp32, engine), {})
        return accepted_by(engines, lambda engine: factory.artifact(method, engine), notes)

    def run() -> Outcome:
        tested = prepare_images(config, factory.data)
        notes = {**factory.notes, **factory.data.notes()}
        for name, note in factory.data.notes().items():
            print(f"  {name}: {note}", flush=True)
        candidates = accepted_by(engines, lambda engine: factory.candidate(method, engine, device=device), notes)
        artifacts = [candidate.artifact for candidate in candidates.values()]
        if quantise_unlike(artifacts) and len(factory.data.validation_indices):
            factory.data.prepare_evaluation("validation", config.engine.accept_images)
        threads = config.threads if device.here else HERE.physical_cores()
        exact = factory.candidate(fp32, baseline_engine, persistent=True, threads=threads)
        on_device = partial(factory.candidate, fp32, device=device)
        compared = fp32_on(device, fp32_engines, on_device)
        baseline = exact if device.here else baseline_on(device, baseline_engine, compared, on_device, notes)
        tests = EvaluationSet.test(exact.artifact, Path(config.outputs) / "cache", tested)
        outcome = measure(config, candidates, baseline, compared, tests, notes, exact)
        in_file = ASSUMED in notes and config.checkpoint != "auto"
        claimed = claimed_top1(Path(config.checkpoint), config.trust_checkpoint) if in_file else None
        hint_at_preprocessing(outcome, exact.artifact.data.num_classes, claimed)
        return outcome

    identity = [
        identities(engines, factory.named(method), device),
        identities({"baseline": baseline_engine}, factory.named(fp32)),
        identities(fp32_engines, factory.named(fp32), device),
    ]
    return JobPlan(identity, run, make)


def prepare_images(config: DictConfig, data: ImageData) -> int | None:
    """Decode the images that are evaluated, unless that was done before.

    Returns:
        How many test images are, or None for all.
    """
    accuracy, test = config.measure.get("accuracy"), test_images(config)
    data.prepare_evaluation("test", test)
    if accuracy and accuracy.part != "test":
        data.prepare_evaluation("validation", accuracy.images)
    return test


def hint_at_preprocessing(outcome: Outcome, num_classes: int, claimed: tuple[str, float] | None) -> None:
    """Say that wrong preprocessing may be why the fp32 network is worse than it should be, where it was assumed.

    Args:
        outcome: What was measured. Its note on the preprocessing gets the hint too.
        num_classes: Number of classes of the images.
        claimed: The top-1 accuracy that the weights' file says it reached, and the name of that entry, or None.
    """
    values = {measurement.name: measurement.value for measurement in outcome.measurements}
    if ASSUMED not in outcome.notes or not {"top1", "top1_drop"} <= values.keys():
        return
    top1 = values["top1"] + values["top1_drop"]
    if claimed and top1 < claimed[1] - BELOW_CLAIM:
        beside = f"the file says {claimed[1]:.1%} ({claimed[0]})"
    elif top1 < min(NEAR_CHANCE / num_classes, 0.5):
        beside = f"chance gets {1 / num_classes:.1%}"
    else:
        return
    hint = (
        f"fp32 gets {top1:.1%} of the images right, and {beside}: the images may have been prepared otherwise. "
        "Give data.resize, data.interpolation, data.mean, data.std, data.pixel_range"
    )
    outcome.notes[ASSUMED] += f"; {hint}"
    print(f"  {hint}", flush=True)


def planned_params(config: DictConfig) -> dict[str, Any]:
    """What the record says of the job if nothing but the config is known."""
    choices = HydraConfig.get().runtime.choices
    return {
        "model": config.model.id,
        "data": config.data.name or choices["data"],
        "method": choices["method"],
        "bits": config.bits,
    }
