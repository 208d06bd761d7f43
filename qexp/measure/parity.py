"""Checks whether an engine computes what the graph says, by comparing its logits with those of a reference."""

from __future__ import annotations

import numpy as np

from qexp.measure.base import Context, Measure, ParityError
from qexp.measure.candidate import Candidate
from qexp.metrics import METRICS
from qexp.records import Measurement


class Parity(Measure):
    """Agreement with a reference on the same images.

    The reference of a quantize/dequantize graph is the same graph on eager PyTorch, and the run fails if the two agree
    too rarely. Any other artifact is compared with fp32, and the result is only recorded. It is also only recorded for
    pretend images and random weights, whose predictions mean nothing.
    """

    def __init__(self, images: int, least_agreement: float, batch_size: int):
        self.images, self.least_agreement, self.batch_size = images, least_agreement, batch_size

    def measure(self, context: Context) -> list[Measurement]:
        """Compare the candidate with its reference.

        Raises:
            ParityError: The engine does not execute the graph it was given.
        """
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
                f"{context.candidate.engine.name} does not compute what the graph says: "
                f"of {len(logits)} images {agreement:.1%} get the reference's class, "
                f"at least {self.least_agreement:.1%} must; the largest error is {error:.1%} of the largest logit. "
                "Take another engine, or measure.parity.least_agreement=SHARE if rounding may decide "
                "so many images of this network"
            )
        found = [METRICS["parity_agreement"].of(agreement)] if context.test_set.meaningful else []
        if not np.isfinite(error):
            context.notes["parity_max_error"] = "all logits of the reference are zero: no error is relative to them"
            return found
        return [*found, METRICS["parity_max_error"].of(error)]

    def reference(self, context: Context) -> Candidate | None:
        """The candidate that the artifact's graph is compared with. None without a baseline."""
        candidate, baseline = context.candidate, context.baseline
        if baseline is None or not candidate.artifact.has_qdq:
            return baseline
        return baseline.beside(candidate.artifact)


def compare(logits: np.ndarray, expected: np.ndarray) -> tuple[float, float]:
    """Compare logits[N,K] with expected[N,K].

    Returns:
        The share of rows in which both predict the same class, and the largest difference divided by the largest
        expected logit. The latter is 0 if both are equal. It is infinite if they differ and all expected logits are
        zero, to which a deep network with random weights may round.
    """
    agreement = float((logits.argmax(1) == expected.argmax(1)).mean())
    difference, largest = float(np.abs(logits - expected).max()), float(np.abs(expected).max())
    if not difference:
        return agreement, 0.0
    return agreement, difference / largest if largest else np.inf
