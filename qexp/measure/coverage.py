"""How much of the whole network is left, and how much of that really is quantised, read off the artifact: what is in no layer that is
quantised counts as not."""

from __future__ import annotations

from qexp.measure.base import Context, Measure
from qexp.types import Measurement


class Coverage(Measure):
    def measure(self, context: Context) -> list[Measurement]:
        artifact = context.candidate.artifact
        quantized = [layer for layer in artifact.layers if layer.quantized]
        context.notes.update(artifact.notes)
        for name in artifact.files:
            if name.endswith((".csv", ".yaml")):  # what its method wrote for people
                context.texts[name] = (artifact.folder / name).read_text()
        found = [
            Measurement("params_m", artifact.parameters / 1e6, "M"),
            Measurement("macs_m", artifact.macs / 1e6, "M"),
            Measurement(
                "quantized_params_share",
                sum(la.parameters for la in quantized) / max(1, artifact.parameters),
                "fraction",
            ),
            Measurement("quantized_macs_share", sum(la.macs for la in quantized) / max(1, artifact.macs), "fraction"),
        ]
        if context.baseline and artifact.macs:
            found.append(Measurement("macs_ratio", context.baseline.artifact.macs / artifact.macs, "x"))
        if artifact.sparsity is not None:
            found.append(Measurement("sparsity", artifact.sparsity, "fraction"))
        return found
