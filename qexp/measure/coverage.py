"""How much of the whole network really is quantised, read off the artifact's layers: what is in no such layer counts as not."""

from __future__ import annotations

from qexp.measure.base import Bench, Measure
from qexp.types import Measurement


class Coverage(Measure):
    def measure(self, bench: Bench) -> list[Measurement]:
        artifact = bench.subject.artifact
        quantized = [layer for layer in artifact.layers if layer.quantized]
        bench.texts["layers.csv"] = "\n".join([
            "layer,kind,parameters,macs,weight,activation",
            *(f"{la.name},{la.kind},{la.parameters},{la.macs},{la.weight},{la.activation}" for la in artifact.layers),
        ])  # fmt: skip
        return [
            Measurement("params_m", artifact.parameters / 1e6, "M"),
            Measurement("macs_m", artifact.macs / 1e6, "M"),
            Measurement("quantized_params_share", sum(la.parameters for la in quantized) / max(1, artifact.parameters), "fraction"),
            Measurement("quantized_macs_share", sum(la.macs for la in quantized) / max(1, artifact.macs), "fraction"),
        ]
