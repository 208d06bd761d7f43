"""Checks whether a search within limits can begin: its words, its measures, its images, its weights and its engines."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from hydra.core.override_parser.types import Override
from hydra.utils import instantiate
from omegaconf import DictConfig

from qexp.types import Unsupported, UserError, nearest
from qexp.within_limits.limits import Limits

# What the search decides, by the beginnings of keys, and what to give instead.
DECIDED = {
    "method": "limits.methods=[static,...]", "engine": "limits.engines=[onnxruntime,...]", "bits": "limits.bits=[32,8]",
    "measure.accuracy.part": "nothing: validation images choose, and test images are used once, for the answer",
    "phase": "nothing: a search makes and measures", "picture": "nothing, and draw the layers of what was found later",
}  # fmt: skip
MEASURED_BY = {"latency_ms": "latency", "memory_mb": "memory", "size_mb": "size", "macs_m": "coverage"}


def check_words(overrides: Sequence[Override]) -> None:
    """Check that the command line leaves to the search what it decides, and asks for one network.

    Raises:
        UserError: A word says what the search decides, or has several values.
    """
    for override in overrides:
        key = override.get_key_element().lstrip("+~")
        for decided, instead in DECIDED.items():
            if key == decided or key.startswith(f"{decided}."):
                raise UserError(f"{override.input_line}: the search decides {decided}. Give {instead}.")
        if override.is_sweep_override():
            names = str(override.input_line).partition("=")[2]
            hint = f"minimise=[{names}]" if key == "minimise" else "one value"
            raise UserError(f"{override.input_line} has several values, and a search is for one network. Give {hint}.")


def check_measures(config: DictConfig, limits: Limits) -> None:
    """Check that all is measured that is limited or minimised.

    Raises:
        UserError: It is not.
    """
    if config.measure.get("accuracy") is None:
        raise UserError("measure.accuracy is null, and a search within limits chooses by accuracy. Leave it.")
    for name, measure in MEASURED_BY.items():
        if limits.wants(name) and config.measure.get(measure) is None:
            raise UserError(f"measure.{measure} is null, and {name} is limited or minimised. Leave it.")


def check_images(config: DictConfig) -> str:
    """Check that there are validation images that the weights do not know.

    Returns:
        A caveat where it is accepted that the weights may know them, otherwise nothing.

    Raises:
        UserError: There are none, or accuracy means nothing.
    """
    from qexp.data.opening import open_data  # these import torch
    from qexp.jobs.artifact_factory import check_unseen, newest_baseline
    from qexp.jobs.given import NOTHING
    from qexp.jobs.preprocessing import adopt_preprocessing
    from qexp.model.baseline import Baseline
    from qexp.model.pretrained import wanted

    if config.checkpoint == "random":
        raise UserError("checkpoint=random: weights that were not trained have no accuracy to hold. Give trained ones.")
    adopt_preprocessing(config)
    data = open_data(config)
    data.open()
    if data.spec.pretend:
        raise UserError(f"data={data.name} has pretend images, on which accuracy means nothing. Give real ones.")
    if not len(data.validation_indices):
        raise UserError(
            f"{data.name} has no validation images, by which a search chooses: it has no training images, a part of "
            "which validates. Give them too, or choose by hand with a sweep."
        )
    path, pretrained = Path(config.checkpoint), wanted(config.model) and config.train_missing is not True
    trained = None
    if config.checkpoint == "auto" and not pretrained:
        trained = newest_baseline(config, data, NOTHING)  # trained now if need be, as the first trial would do
    elif path.is_dir():
        trained = Baseline.read(path)
    return "".join(check_unseen(config, data, trained.data if trained else None).values())


def usable_engines(
    config: DictConfig, limits: Limits, known: Sequence[str], composed: Callable[[str], DictConfig]
) -> tuple[list[str], dict[str, str]]:
    """Find the engines that may be tried.

    Args:
        config: Config of the command, whose `engine` is that of `engine=auto`.
        limits: The limits.
        known: Names of all engines.
        composed: Composes the config of a job on an engine.

    Returns:
        Names of the engines that run here, and why others do not.

    Raises:
        UserError: An engine that was asked for is unknown or does not run here, or none does.
    """
    for name in limits.engines or ():
        if name not in known:
            raise UserError(f"limits.engines={name} is unknown. {nearest(name, known)}")
    asked = limits.engines or [name for name, node in config.engine.candidates.items() if node is not None]
    found, reasons = list[str](), dict[str, str]()
    for name in asked:
        try:
            instantiate(composed(name).engine).check_machine()
            found.append(name)
        except Unsupported as reason:
            if limits.engines:
                raise UserError(f"limits.engines has {name}, which does not run here: {reason}") from reason
            reasons[f"engine {name}"] = str(reason)
    if not found:
        raise UserError(f"No engine runs here: {'; '.join(reasons.values())}")
    return found, reasons
