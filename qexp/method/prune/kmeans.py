"""k-means for weights, in pure NumPy and float64.

Weights lie on a line, so a cluster is a run of the sorted weights, and prefix sums give its mean.
"""

from __future__ import annotations

import numpy as np

ITERATIONS = 300  # at most, while some tens are enough on a line


def k_means(values: np.ndarray, clusters: int, start: str, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Cluster values by Lloyd's algorithm.

    Args:
        values: values[N].
        clusters: The largest number of centroids.
        start: Where the algorithm begins. `linear` spaces the first centroids evenly between the smallest and the
            largest value, and `density` puts them at even shares of the values, both as in Deep Compression (Han et
            al., 2016, section 3.2). `kmeans++` (Arthur & Vassilvitskii, 2007) keeps the best of ten random starts.
        seed: Seed of the random starts.

    Returns:
        centroids[K] in float32, ascending, and for each value the index[N] of its nearest centroid. K is less than
        `clusters` if there are fewer different values.
    """
    line = np.sort(values.astype(np.float64))
    different = line[np.concatenate([[True], line[1:] != line[:-1]])]
    if len(different) <= clusters:
        centroids = different
    elif start == "kmeans++":
        random = np.random.default_rng(seed)
        centroids = min(
            (lloyd(line, spread_out(line, clusters, random)) for _ in range(10)), key=lambda found: inertia(line, found)
        )
    else:
        places = np.linspace(0, 1, clusters)
        centroids = lloyd(
            line, line[0] + places * (line[-1] - line[0]) if start == "linear" else np.quantile(line, places)
        )
    # Rounded first, so that each value gets the index of the centroid that is nearest once stored.
    stored = np.unique(centroids.astype(np.float32))
    return stored, nearest_index(values.astype(np.float64), stored.astype(np.float64))


def lloyd(line: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """Move centroids until each is the mean of the values that are nearest to it.

    Centroids that are nearest to no value move to the clusters with the largest sums of squared distances, one standard
    deviation from their means.

    Args:
        line: The values [N], ascending.
        centroids: The centroids [K] to start from.

    Returns:
        The centroids [K], ascending.
    """
    sums, squares = (np.concatenate([[0.0], np.cumsum(terms)]) for terms in (line, line**2))
    centroids = np.sort(centroids)
    ends = None
    for _ in range(ITERATIONS):
        before, ends = ends, _ends(line, centroids)
        if before is not None and (ends == before).all():
            break
        counts = np.diff(ends)
        means = np.diff(sums[ends]) / np.maximum(1, counts)
        empty = np.flatnonzero(counts == 0)
        if len(empty):
            scatter = np.maximum(0, np.diff(squares[ends]) - counts * means**2)
            widest = np.argsort(scatter)[-len(empty) :]
            means[empty] = means[widest] + np.sqrt(scatter[widest] / np.maximum(1, counts[widest]))
            ends = None
        centroids = np.sort(means)
    return centroids


def _ends(line: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """The positions [K+1] on the sorted line where each cluster begins, and where the last one ends."""
    borders = (centroids[1:] + centroids[:-1]) / 2
    return np.concatenate([[0], np.searchsorted(line, borders, side="right"), [len(line)]])


def spread_out(line: np.ndarray, clusters: int, random: np.random.Generator) -> np.ndarray:
    """Draw the centroids [K] that k-means++ starts from out of line[N].

    They are drawn one after the other. The probability of a value is proportional to its squared distance from the
    nearest centroid so far.
    """
    chosen = [random.choice(line)]
    distance = (line - chosen[0]) ** 2
    while len(chosen) < clusters:
        drawn = np.searchsorted(np.cumsum(distance), random.random() * distance.sum(), side="right")
        chosen.append(line[min(drawn, len(line) - 1)])
        distance = np.minimum(distance, (line - chosen[-1]) ** 2)
    return np.array(chosen)


def inertia(values: np.ndarray, centroids: np.ndarray) -> float:
    """The sum of the squared distances between values[N] and the centroid nearest to each, out of centroids[K]."""
    centroids = np.sort(centroids)
    return float(((values - centroids[nearest_index(values, centroids)]) ** 2).sum())


def nearest_index(values: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """The index[N] of the centroid nearest to each of values[N]. The centroids[K] must be ascending."""
    return np.searchsorted((centroids[1:] + centroids[:-1]) / 2, values)
