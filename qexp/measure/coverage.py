"""Reads from the artifact how much of the whole network is left, and what share of that is really quantised.

Whatever belongs to no quantised layer counts as not quantised.
"""

from __future__ import annotations

from qexp.measure.base import Context, Measure
from qexp.metrics import METRICS
from qexp.records import Measurement


class Coverage(Measure):
    def measure(self, context: Context) -> list[Measurement]:
        artifact = context.candidate.artifact
        quantized = [layer for layer in artifact.layers if layer.quantized]
        context.notes.update(artifact.notes)
        for name in artifact.files:
            if name.endswith((".csv", ".yaml")):  # tables and plans that the method wrote for people
                context.texts[name] = (artifact.folder / name).read_text()
        found = {
            "params_m": artifact.parameters / 1e6,
            "macs_m": artifact.macs / 1e6,
            "quantized_params_share": sum(layer.parameters for layer in quantized) / max(1, artifact.parameters),
            "quantized_macs_share": artifact.quantized_macs / max(1, artifact.macs),
        }
        if context.baseline and artifact.macs:
            found["macs_ratio"] = context.baseline.artifact.macs / artifact.macs
        if artifact.sparsity is not None:
            found["sparsity"] = artifact.sparsity
        if artifact.islands is not None:
            found |= {"float_operators": artifact.islands.operators, "conversions": artifact.islands.conversions}
        return [METRICS[name].of(value) for name, value in found.items()]
