"""Checks whether an engine computes what the graph says, by comparing its logits with those of a reference."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from qexp.artifact import Artifact
from qexp.measure.base import Context, Measure, ParityError
from qexp.measure.candidate import Candidate
from qexp.measure.images import EvaluationSet
from qexp.metrics import METRICS
from qexp.records import Measurement


class Parity(Measure):
    """Agreement with a reference on the same images.

    The reference of a graph is the same graph on eager PyTorch. The run fails if a quantize/dequantize graph agrees
    with it too rarely on the images about which the reference is decided. These are those whose two best logits differ
    by `decided` times what integers change in a logit: closer ones are ties that rounding decides. Agreement is only
    recorded for pretend images and random weights, whose predictions mean nothing. The run fails too if the graph is
    further from it than rounding has put the graph from fp32. It fails too if the error of a graph in floating
    point is larger than rounding can make it. In half precision, a deep network may round so much that two engines
    which both compute it rightly differ by more than that; then, too, the graph's distance from fp32 is the measure.
    Artifacts in a form that eager PyTorch does not run are compared with
    fp32, and the result is only recorded.
    """

    def __init__(
        self,
        images: int,
        least_agreement: float,
        decided: float,
        most_error: float,
        most_error_half: float,
        most_rounding: float,
        batch_size: int,
    ):
        self.images, self.batch_size = images, batch_size
        self.least_agreement, self.decided = least_agreement, decided
        self.most_error, self.most_error_half, self.most_rounding = most_error, most_error_half, most_rounding

    def measure(self, context: Context) -> list[Measurement]:
        """Compare the candidate with its reference.

        Raises:
            ParityError: The engine does not execute the graph it was given.
        """
        expected = self.expected(context)
        if expected is None or context.test_set is None:
            context.notes["parity_agreement"] = "there is no reference, or no images, to compare with"
            return []
        asked = context.test_set, self.batch_size, context.cache, self.count(context.candidate)
        logits, _ = context.candidate.logits(*asked)
        agreement, error = compare(logits, expected)
        fp32 = context.exact
        exact = (lambda: fp32.logits(*asked)[0]) if fp32 else None
        self.check_error(context.candidate, logits, expected, exact)
        if context.test_set.meaningful and context.candidate.artifact.has_qdq and agreement < self.least_agreement:
            self.check_decided(context.candidate, logits, expected, exact)
        if exact:
            self.check_rounding(context.candidate, logits, expected, exact)
        found = [METRICS["parity_agreement"].of(agreement)] if context.test_set.meaningful else []
        if not np.isfinite(error):
            context.notes["parity_max_error"] = "all logits of the reference are zero: no error is relative to them"
            return found
        return [*found, METRICS["parity_max_error"].of(error)]

    def prepare(self, context: Context) -> None:
        """Compute the reference's logits and, for a graph of integers, those of fp32, which may be asked for."""
        if self.expected(context) is not None and context.test_set and context.exact:
            asked = context.test_set, self.batch_size, context.cache, self.count(context.candidate)
            context.exact.logits(*asked)

    def expected(self, context: Context) -> np.ndarray | None:
        """The reference's logits[N,K], or None without a reference or images."""
        reference = self.reference(context)
        if reference is None or context.test_set is None:
            return None
        try:
            asked = context.test_set, self.batch_size, context.cache, self.count(context.candidate)
            return reference.logits(*asked)[0]
        finally:
            if reference is not context.exact:
                reference.close()

    def count(self, candidate: Candidate) -> int:
        """How many images are compared, which are fewer on devices that a slow network leads to."""
        return min(self.images, candidate.device.parity_images or self.images)

    def check_decided(
        self, candidate: Candidate, logits: np.ndarray, expected: np.ndarray, exact: Callable[[], np.ndarray] | None
    ) -> None:
        """Check that an engine gives the reference's class for the images about which that is decided.

        Arguments are those of `check_error`.

        Raises:
            ParityError: It does so too rarely.
        """
        rounding = root_mean_square(expected, exact()) if exact else 0.0
        best = np.sort(expected.astype(np.float64), axis=1)
        counts = best[:, -1] - best[:, -2] >= self.decided * rounding if best.shape[1] > 1 else np.ones(len(best), bool)
        same = (logits.argmax(1) == expected.argmax(1))[counts]
        if len(same) and same.mean() < self.least_agreement:
            raise ParityError(
                f"{candidate.engine.name} does not compute what the graph says: of {len(same)} images about which the "
                f"reference is decided {same.mean():.1%} get its class, at least {self.least_agreement:.1%} must; the "
                f"largest error is {compare(logits, expected)[1]:.1%} of the largest logit. Take another engine, or "
                "measure.parity.least_agreement=SHARE if rounding may decide so many images of this network"
            )

    def check_error(
        self, candidate: Candidate, logits: np.ndarray, expected: np.ndarray, exact: Callable[[], np.ndarray] | None
    ) -> None:
        """Check that the logits[N,K] are numbers, and the error of a network in floating point.

        Args:
            candidate: The network on an engine.
            logits: What it gives.
            expected: What its graph gives.
            exact: Gives those of the network in fp32, which are asked for if a network in half precision is far off.
                None if they are not known, or are `expected` themselves.

        Raises:
            ParityError: The error is larger than rounding can make it, or is no number.
        """
        error = compare(logits, expected)[1]
        if np.isnan(error):
            raise ParityError(f"{candidate.engine.name}, or what it is compared with, gives logits that are not finite")
        limit = self._error_limit(candidate.artifact)
        if limit is not None and limit < error < np.inf:
            half = limit != self.most_error
            if half and exact and times_rounding(logits, expected, exact()) <= self.most_rounding:
                return
            option = "most_error" if limit == self.most_error else "most_error_half"
            raise ParityError(
                f"{candidate.engine.name} does not compute what the graph says: the largest error is {error:.1%} of "
                f"the largest logit, and rounding makes at most {limit:.1%} of it. Take another engine, or "
                f"measure.parity.{option}=SHARE if this network's rounding makes more"
            )

    def check_rounding(
        self, candidate: Candidate, logits: np.ndarray, expected: np.ndarray, exact: Callable[[], np.ndarray]
    ) -> None:
        """Check the logits[N,K] of a network in integers, which an engine may round otherwise than its graph does.

        Args:
            candidate: The network on an engine. Nothing is checked if it is not in integers.
            logits: What it gives.
            expected: What its graph gives.
            exact: Gives those of the network in fp32, which are asked for if the error is not negligible.

        Raises:
            ParityError: They are much further from the graph's than these are from those of fp32.
        """
        if not candidate.artifact.has_qdq or compare(logits, expected)[1] <= self.most_error:
            return
        times = times_rounding(logits, expected, exact())
        if times > self.most_rounding:
            raise ParityError(
                f"{candidate.engine.name} does not compute what the graph says: its error is {times:.3g} times what "
                f"integers change in the network, and rounding makes at most {self.most_rounding:g} times of it. "
                "Take another engine, or measure.parity.most_rounding=FACTOR if this network's rounding makes more"
            )

    def _error_limit(self, artifact: Artifact) -> float | None:
        formats = {layer.weight for layer in artifact.layers}
        if "pt2" not in artifact.engine_spec.formats or not formats <= {"float32", "float16", "bfloat16"}:
            return None
        return self.most_error if formats <= {"float32"} else self.most_error_half

    def check_fp32(self, candidate: Candidate, baseline: Candidate, tests: EvaluationSet, cache: Path) -> None:
        """Check that an engine computes the fp32 network, before anything is compared with its time.

        Raises:
            ParityError: The error is larger than rounding can make it.
        """
        count = self.count(candidate)
        logits, expected = (each.logits(tests, self.batch_size, cache, count)[0] for each in (candidate, baseline))
        self.check_error(candidate, logits, expected, None)

    def reference(self, context: Context) -> Candidate | None:
        """The candidate that the artifact's graph is compared with. None without a baseline."""
        artifact, baseline = context.candidate.artifact, context.exact
        return baseline.beside(artifact) if baseline and "pt2" in artifact.engine_spec.formats else baseline


def times_rounding(logits: np.ndarray, expected: np.ndarray, exact: np.ndarray) -> float:
    """How many times as large an engine's error is as what rounding changes in the network, both as root mean squares.

    Args:
        logits: What the engine gives, logits[N,K].
        expected: What the graph gives.
        exact: What the network gives in fp32.
    """
    error, rounding = root_mean_square(logits, expected), root_mean_square(expected, exact)
    return error / rounding if rounding else np.inf


def root_mean_square(logits: np.ndarray, others: np.ndarray) -> float:
    """The root mean square of the differences of logits[N,K]."""
    return float(np.sqrt(np.square(logits.astype(np.float64) - others).mean()))


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
