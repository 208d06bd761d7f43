"""Whether an engine computes what the graph says: its logits against those of the reference on the same images."""

from __future__ import annotations

import numpy as np

from qexp.measure.base import Candidate, Context, Measure, ParityError
from qexp.metrics import METRICS
from qexp.types import Measurement


class Parity(Measure):
    """The reference of a quantize/dequantize graph is that graph on eager torch; any other artifact is compared with fp32,
    which is recorded and judges nothing. Neither do pretend images or random weights, whose predictions mean nothing.
    """

    def __init__(self, images: int, least_agreement: float, batch_size: int):
        self.images, self.least_agreement, self.batch_size = images, least_agreement, batch_size

    def measure(self, context: Context) -> list[Measurement]:
        reference = self.reference(context)
        if reference is None or context.test_set is None:
            context.notes["parity_agreement"] = "there is no reference, or no images, to compare with"
            return []
        try:
            expected, _ = reference.logits(context.test_set, self.batch_size, context.cache, self.images)
        finally:
            if reference is not context.baseline:
                reference.close()
        logits, _ = context.candidate.logits(context.test_set, self.batch_size, context.cache, self.images)
        agreement, error = compare(logits, expected)
        if context.test_set.meaningful and context.candidate.artifact.has_qdq and agreement < self.least_agreement:
            raise ParityError(
                f"{context.candidate.engine.name} does not compute what the graph says: of {len(logits)} images {agreement:.1%} get the "
                f"reference's class, at least {self.least_agreement:.1%} must; the largest error is {error:.1%} of the largest logit. Take "
                "another engine, or measure.parity.least_agreement=SHARE if rounding may decide so many images of this network"
            )
        found = [METRICS["parity_agreement"].of(agreement)] if context.test_set.meaningful else []
        if not np.isfinite(error):
            context.notes["parity_max_error"] = "all logits of the reference are zero: no error is relative to them"
            return found
        return [*found, METRICS["parity_max_error"].of(error)]

    def reference(self, context: Context) -> Candidate | None:
        """What the artifact's graph is compared with; None without a baseline."""
        candidate, baseline = context.candidate, context.baseline
        if baseline is None or not candidate.artifact.has_qdq:
            return baseline
        return baseline.beside(candidate.artifact)


def compare(logits: np.ndarray, expected: np.ndarray) -> tuple[float, float]:
    """Share of rows of logits[N,K] with the class of expected[N,K], and the largest difference over the largest expected logit: 0 where
    both are equal, infinite where they differ and all expected ones are zero, as random weights of a deep network may round to."""
    agreement = float((logits.argmax(1) == expected.argmax(1)).mean())
    difference, largest = float(np.abs(logits - expected).max()), float(np.abs(expected).max())
    if not difference:
        return agreement, 0.0
    return agreement, difference / largest if largest else np.inf
