"""k-means of weights, which lie on a line: centroids of a sorted row by prefix sums. Pure NumPy in float64."""

from __future__ import annotations

import numpy as np

ITERATIONS = 300  # at most; a line needs some tens


def k_means(values: np.ndarray, clusters: int, start: str, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """centroids[K] float32, ascending, and the index[N] of the nearest to each of values[N]; K is less than `clusters` where fewer differ.

    start: where Lloyd's algorithm begins, as in Deep Compression (Han et al., 2016, 3.2): `linear` evenly between the least and the
    largest, `density` at even shares of the values; or `kmeans++` (Arthur & Vassilvitskii, 2007), the best of ten.
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
    # Rounded first: the nearest is that of the values that are stored.
    stored = np.unique(centroids.astype(np.float32))
    return stored, nearest_index(values.astype(np.float64), stored.astype(np.float64))


def lloyd(line: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """Centroids[K] of line[N], ascending, that are the means of what is nearest to them. One that is nearest to nothing goes where the
    squared distances of a cluster are largest in sum, one deviation from its mean."""
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
    """Where on the sorted line each cluster begins, and the last ends: [K+1]."""
    borders = (centroids[1:] + centroids[:-1]) / 2
    return np.concatenate([[0], np.searchsorted(line, borders, side="right"), [len(line)]])


def spread_out(line: np.ndarray, clusters: int, random: np.random.Generator) -> np.ndarray:
    """Centroids[K] drawn from line[N] one after the other, each as likely as its squared distance from those before."""
    chosen = [random.choice(line)]
    distance = (line - chosen[0]) ** 2
    while len(chosen) < clusters:
        drawn = np.searchsorted(np.cumsum(distance), random.random() * distance.sum(), side="right")
        chosen.append(line[min(drawn, len(line) - 1)])
        distance = np.minimum(distance, (line - chosen[-1]) ** 2)
    return np.array(chosen)


def inertia(values: np.ndarray, centroids: np.ndarray) -> float:
    """Sum of squared distances of values[N] from the nearest of centroids[K]."""
    centroids = np.sort(centroids)
    return float(((values - centroids[nearest_index(values, centroids)]) ** 2).sum())


def nearest_index(values: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """Of centroids[K], ascending, for each of values[N]."""
    return np.searchsorted((centroids[1:] + centroids[:-1]) / 2, values)
