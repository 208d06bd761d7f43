"""Chains of methods, each of which goes on from the network that the one before has made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from qexp.artifact import EngineSpec
from qexp.data.base import ImageData
from qexp.method.artifacts import make_artifact
from qexp.method.base import ANY_ENGINE, Compressed, Method
from qexp.method.prune.base import WEIGHTS_FILE, NetworkMethod, restore
from qexp.types import UserError


class Chain(Method):
    """Applies methods, its stages, one after the other.

    Every stage but the last gives a network again, and the last one decides what engines read. The artifacts of the
    stages before the last are kept and found again by their keys, just as those of methods that are used alone. Stages
    that distil do so from the uncompressed network.

    Raises:
        UserError: There are fewer than two stages, or a stage before the last gives no network.
    """

    def __init__(self, stages: Mapping[str, Method]):
        if len(stages) < 2:
            raise UserError(
                f"A chain has at least two stages, not {len(stages)}. Name them in the defaults of the method's file."
            )
        *self.before, self.last = stages.values()
        fixed = [name for name, stage in list(stages.items())[:-1] if not isinstance(stage, NetworkMethod)]
        if fixed:
            raise UserError(
                f"The stage {fixed[0]!r} gives no network that another could go on from: it can only be the last of a "
                "chain."
            )
        self.name = "+".join(stage.name for stage in stages.values())
        self.format, self.supported_bits, self.bits = self.last.format, self.last.supported_bits, self.last.bits
        self.trains = any(stage.trains for stage in stages.values())
        self.calibrates = any(stage.calibrates for stage in stages.values())
        self.torchscript = Chain({**stages, [*stages][-1]: self.last.torchscript}) if self.last.torchscript else None

    def label(self, engine_spec: EngineSpec) -> str:
        return " + ".join([*(stage.label(own_spec(stage)) for stage in self.before), self.last.label(engine_spec)])

    def resolve(self, engine_spec: EngineSpec) -> EngineSpec:
        return self.last.resolve(engine_spec)

    def compress(
        self, network: nn.Module, data: ImageData, engine_spec: EngineSpec, folder: Path, source: dict[str, Any]
    ) -> Compressed:
        changed, labels = network, []
        for stage in (*self.before, self.last):
            stage.teacher, stage.since = network, self.since
        for stage in self.before:
            artifact = make_artifact(stage, changed, data, own_spec(stage), source, folder.parent, self.since)
            changed, source = restore(changed, artifact.folder / WEIGHTS_FILE), {**source, "after": artifact.key}
            labels.append(artifact.label)
        made = self.apply(changed, data, engine_spec, folder)
        result = changed if made.network is None else made.network
        return replace(made, network=result, label=" + ".join([*labels, made.label or self.last.label(engine_spec)]))

    def apply(self, network: nn.Module, data: ImageData, engine_spec: EngineSpec, folder: Path) -> Compressed:
        """Apply the last stage to the network that the others gave."""
        return self.last.apply(network, data, engine_spec, folder)


def own_spec(stage: Method) -> EngineSpec:
    """The spec of a stage's own format, in which it is kept when another stage follows."""
    return replace(ANY_ENGINE, formats=(stage.format,))
