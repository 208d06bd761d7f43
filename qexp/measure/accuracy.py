"""Measures top-1, top-5 and loss of the artifact as its engine runs it, and how it differs from the baseline."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from qexp.data.decoded import evenly
from qexp.measure.base import Context, Measure
from qexp.measure.candidate import Candidate
from qexp.measure.images import EvaluationSet
from qexp.metrics import METRICS, VALIDATION
from qexp.records import Measurement
from qexp.types import UserError, nearest

NORMAL = 1.959964  # 97.5th percentile of the normal distribution
SIGNIFICANT = 0.05  # p-value below which one network is worse than another
PARTS = {"test": ("",), "validation": (VALIDATION,), "both": ("", VALIDATION)}  # with the prefixes of their metrics


class Accuracy(Measure):
    """Accuracy on test images, on validation images, or on both.

    Variants are chosen by the validation images, never by the test images.

    Args:
        part: One of PARTS.
        images: How many images of the part, spread over the classes, or None for all.
        batch_size: Images per call.

    Raises:
        UserError: The part is unknown, or the number of images is no positive whole number.
    """

    def __init__(self, part: str, images: int | None, batch_size: int):
        if part not in PARTS:
            raise UserError(f"measure.accuracy.part={part} is unknown. {nearest(part, PARTS)}")
        if images is not None and (not isinstance(images, int) or images < 1):
            raise UserError(
                f"measure.accuracy.images is {images!r}; give a whole number of at least 1, or null for all."
            )
        self.part, self.images, self.batch_size = part, images, batch_size

    def measure(self, context: Context) -> list[Measurement]:
        return [measurement for prefix in PARTS[self.part] for measurement in self.measure_part(context, prefix)]

    def measure_part(self, context: Context, prefix: str) -> list[Measurement]:
        images = context.validation_set(self.images) if prefix else context.test_set
        if images is None or not images.meaningful:
            context.notes[f"{prefix}top1"] = "there are no real images, or no trained weights"
            return []
        candidate, labels = context.judged or context.candidate, images.classes
        count = candidate.device.accuracy_images
        if count is None and not candidate.device.here:
            context.notes[f"{prefix}top1"] = (
                f"{candidate.engine.name} does not run on this machine: device.accuracy_images lets "
                f"{candidate.device.name} classify so many images"
            )
            return []
        if count is not None:
            labels = labels[evenly(len(labels), count)]
        logits, seconds = candidate.logits(images, self.batch_size, context.cache, count)
        found = score(logits, labels)
        if context.exact:
            reference, _ = context.exact.logits(images, self.batch_size, context.cache, count)
            before, after = (top_k_hits(each, labels, 1) for each in (reference, logits))
            found["top1_drop"] = float(before.mean() - after.mean())
            found["top1_drop_low"], found["top1_drop_high"] = drop_interval(before, after)
            found["agreement"] = float((reference.argmax(1) == logits.argmax(1)).mean())
            found["mcnemar_p"] = mcnemar(before, after)
        made = [METRICS[prefix + name].of(value) for name, value in found.items()]
        return made if prefix or context.judged else [*made, METRICS["test_seconds"].of(seconds)]

    def prepare(self, context: Context) -> None:
        """Compute the logits that are scored, and those of fp32, unless a device classifies the images itself."""
        if context.judged:
            self.measure(context)
            context.judged.close()

    def outdone(self, candidate: Candidate, rival: Candidate, images: EvaluationSet, cache: Path, points: float) -> str:
        """Compare a candidate with one that quantises the same network in another way.

        Args:
            candidate: The candidate.
            rival: What it is compared with.
            images: The images on which both are compared, which no result is reported of.
            cache: Folder below which logits are kept.
            points: Percentage points of top-1 that it may lose against the rival.

        Returns:
            Why it is worse than the rival, or an empty string if it is not.
        """
        labels = images.classes
        ours, theirs = (
            top_k_hits(each.logits(images, self.batch_size, cache)[0], labels, 1) for each in (candidate, rival)
        )
        chance = mcnemar(ours, theirs)
        if theirs.mean() - ours.mean() <= points / 100 and (chance >= SIGNIFICANT or ours.mean() >= theirs.mean()):
            return ""
        return (
            f"it quantises by itself and gets {ours.mean():.2%} of {len(labels)} validation images right, and the "
            f"graph on {rival.engine.name} gets {theirs.mean():.2%} (McNemar's test: p = {chance:.2g}), while "
            f"engine.accept_points is {points:g}"
        )


def score(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Compute accuracy and loss.

    The 95 % interval of top-1 is the one for another draw of as many images (Wilson, "Probable inference, the law of
    succession, and statistical inference", 1927).

    Args:
        logits: logits[N,K].
        labels: labels[N].

    Returns:
        Values by the names of metrics: `top1` with its interval, `top5` if there are more than five classes, and
        `loss`, the mean cross entropy in nats.
    """
    from scipy.stats import binomtest  # takes a second to import

    shifted = logits.astype(np.float64) - logits.max(1, keepdims=True)
    log_probability = shifted[np.arange(len(labels)), labels] - np.log(np.exp(shifted).sum(1))
    hits = top_k_hits(logits, labels, 1)
    interval = binomtest(int(hits.sum()), len(hits)).proportion_ci(0.95, "wilson")
    found = {"top1": float(hits.mean()), "top1_low": float(interval.low), "top1_high": float(interval.high)}
    found["loss"] = float(-log_probability.mean())
    if logits.shape[1] > 5:
        found["top5"] = top_k(logits, labels, 5)
    return found


def top_k(logits: np.ndarray, labels: np.ndarray, k: int) -> float:
    """The share of rows whose label is among the k largest of logits[N,K]."""
    return float(top_k_hits(logits, labels, k).mean())


def top_k_hits(logits: np.ndarray, labels: np.ndarray, k: int) -> np.ndarray:
    """hits[N]: whether each label is among the k largest of logits[N,K]. Of equal logits, the lower class is first."""
    order = np.argsort(-logits, axis=1, kind="stable")[:, :k]
    return (order == labels[:, None]).any(1)


def drop_interval(before: np.ndarray, after: np.ndarray) -> tuple[float, float]:
    """The 95 % interval of the accuracy that one network loses against another on another draw of as many images.

    The images are the same for both, so only those on which one network alone is right decide. See Agresti and Min,
    "Simple improved confidence intervals for comparing matched proportions", 2005, section 2: Wald's interval after
    half an image was added to each of the four cells.

    Args:
        before: before[N], whether the network that is compared with is right on each image.
        after: after[N], whether the other network is right on the same images.

    Returns:
        The lower and the upper bound, as fractions.
    """
    lost, gained, count = int((before & ~after).sum()) + 0.5, int((after & ~before).sum()) + 0.5, len(before) + 2
    middle = (lost - gained) / count
    width = NORMAL * ((lost + gained) / count - middle**2) ** 0.5 / count**0.5
    return middle - width, middle + width


def mcnemar(one: np.ndarray, other: np.ndarray) -> float:
    """Test whether two networks differ in accuracy by more than chance, with McNemar's exact, two-sided test.

    See McNemar, "Note on the sampling error of the difference between correlated proportions", 1947.

    Args:
        one: one[N], whether one network is right on each image.
        other: other[N], whether the other network is right on the same images.

    Returns:
        The probability that two networks that are right equally often differ by as much as here, or by more.
    """
    from scipy.stats import binomtest

    only_one, only_other = int((one & ~other).sum()), int((other & ~one).sum())
    return float(binomtest(only_one, only_one + only_other).pvalue) if only_one + only_other else 1.0
