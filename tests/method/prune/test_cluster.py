"""Clusters of weights are as good as scikit-learn's, and centroids learn by the gradients of their weights.

Indices are what is stored.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans
from torch import nn

from qexp.artifact import EngineSpec
from qexp.coded_file import decoded
from qexp.data.random import RandomData
from qexp.method.artifacts import make_artifact
from qexp.method.chain import Chain
from qexp.method.prune.base import weights_of
from qexp.method.prune.cluster import SharedWeights
from qexp.method.prune.kmeans import inertia, k_means
from qexp.types import UserError
from tests import configured
from tests.method.training import SOURCE, pruning, sharing


def samples(kind: str) -> np.ndarray:
    random = np.random.default_rng(0)
    normal = random.standard_normal(3000).astype(np.float32) * np.float32(0.05)
    return {"normal": normal, "heavy": normal**3 * 1000, "gap": np.concatenate([normal, normal + 100])}[kind]


@pytest.mark.parametrize(
    ("kind", "start", "clusters"),
    [
        ("normal", "linear", 2), ("normal", "linear", 5), ("heavy", "linear", 5), ("gap", "linear", 2),
        ("normal", "density", 5), ("normal", "density", 16), ("heavy", "density", 16), ("heavy", "density", 32),
        ("gap", "density", 6),
    ],
)  # fmt: skip
def test_clusters_are_those_of_scikit_learn(kind: str, start: str, clusters: int) -> None:
    """From the same centroids, where none of them is nearest to nothing."""
    values = samples(kind).astype(np.float64)
    even = np.linspace(0, 1, clusters)
    first = values.min() + even * np.ptp(values) if start == "linear" else np.quantile(values, even)
    theirs = KMeans(clusters, init=first[:, None], n_init=1, tol=0, max_iter=1000).fit(values[:, None])
    centroids, indices = k_means(values.astype(np.float32), clusters, start)
    ours = float(((values - centroids[indices].astype(np.float64)) ** 2).sum())
    assert ours == pytest.approx(theirs.inertia_, rel=1e-6)
    assert np.allclose(centroids, np.sort(theirs.cluster_centers_[:, 0]), rtol=1e-5, atol=1e-7)


def test_centroids_without_values_split_the_widest_clusters() -> None:
    values = samples("gap")
    centroids, indices = k_means(values, 16, "linear")
    assert len(centroids) == 16 == len(np.unique(indices))
    assert inertia(values.astype(np.float64), centroids.astype(np.float64)) < 0.05 * values[:3000].var() * len(values)


@pytest.mark.parametrize("clusters", [3, 8])
def test_clusters_from_random_values_are_as_good_as_scikit_learns(clusters: int) -> None:
    values = samples("normal")
    theirs = KMeans(clusters, n_init=20, tol=0, random_state=0).fit(values.astype(np.float64)[:, None])
    centroids, _ = k_means(values, clusters, "kmeans++")
    assert inertia(values.astype(np.float64), centroids.astype(np.float64)) <= theirs.inertia_ * 1.002


@pytest.mark.parametrize("start", ["linear", "density", "kmeans++"])
def test_every_weight_has_its_nearest_centroid_and_each_is_the_mean_of_its_own(start: str) -> None:
    values = samples("normal")
    centroids, indices = k_means(values, 16, start)
    distances = np.abs(values[:, None].astype(np.float64) - centroids.astype(np.float64))
    assert np.allclose(distances[np.arange(len(values)), indices], distances.min(1), rtol=0, atol=1e-9)
    means = [values[indices == i].astype(np.float64).mean() for i in range(len(centroids))]
    assert len(centroids) == 16 and np.allclose(means, centroids, atol=1e-6)


def test_few_different_values_are_their_own_centroids() -> None:
    values = np.array([3, 1, 1, 2, 3], np.float32)
    centroids, indices = k_means(values, 16, "linear")
    assert centroids.tolist() == [1, 2, 3] and (centroids[indices] == values).all()


@pytest.mark.integration
@pytest.mark.parametrize("per_channel", [False, True])
def test_the_file_holds_the_clusters_and_computes_with_them(
    per_channel: bool, pretend_data: RandomData, network: nn.Module, tmp_path: Path
) -> None:
    artifact = make_artifact(
        sharing(per_channel=per_channel, clusters=4), network, pretend_data, EngineSpec(), SOURCE, tmp_path
    )
    with decoded(artifact.folder / artifact.graph) as file:
        stored = torch.export.load(file).state_dict
    expected = copy.deepcopy(network)
    for name, weight in weights_of(expected).items():
        rows = weight.detach().numpy().reshape(len(weight) if per_channel else 1, -1)
        made = stored[f"{name}.weight"].detach().numpy().reshape(rows.shape)
        for row, own in zip(rows, made, strict=True):
            different = np.unique(own)
            assert len(different) <= 4
            assert (np.abs(row - own) <= np.abs(row[:, None] - different).min(1) + 1e-7).all()
        weight.data = torch.from_numpy(made.reshape(weight.shape).copy())
    x = pretend_data.calibration()[:]
    with torch.no_grad():
        answer = torch.export.export(expected, (x,)).module()(x).numpy()
    assert (configured.engine("eager").open(artifact.folder / artifact.graph, 1)(x.numpy()) == answer).all()


@pytest.mark.integration
def test_sixteen_clusters_take_less_than_four_bits_a_weight(pretend_data: RandomData, tmp_path: Path) -> None:
    torch.manual_seed(0)
    wide = configured.network("resnet8", blocks=[1, 1], widths=[32, 64]).eval()
    artifact = make_artifact(sharing(), wide, pretend_data, EngineSpec(), SOURCE, tmp_path)
    layers = weights_of(wide).values()
    others = 4 * (sum(value.numel() for value in wide.state_dict().values()) - sum(weight.numel() for weight in layers))
    assert artifact.packed_bytes < sum(weight.numel() / 2 + 16 * 4 + 100 for weight in layers) + others


def test_the_gradient_of_a_centroid_is_the_sum_of_its_weights_gradients(
    network: nn.Module, pretend_data: RandomData
) -> None:
    """Deep Compression (Han et al., 2016), eq. 3, computed from the gradients of the free weights in float64."""
    layer = copy.deepcopy(network.get_submodule("blocks.1.body.0")).double()
    weight, x = layer.weight, torch.randn(4, layer.weight.shape[1], 8, 8, dtype=torch.float64)
    shared = sharing(clusters=5).shared(weight.detach().float())
    centroids = shared.right_inverse(weight).double().requires_grad_()
    weight.data = shared(centroids).detach()
    for value in (weight, shared(centroids)):
        torch.nn.functional.conv2d(x, value).square().sum().backward()
    assert weight.grad is not None and centroids.grad is not None
    expected = np.zeros(5)
    np.add.at(expected, shared.indices.numpy().reshape(-1) - 1, weight.grad.numpy().reshape(-1))
    assert np.allclose(centroids.grad.numpy()[0], expected, rtol=1e-9)


def test_zeros_stay_zero_and_take_no_cluster(network: nn.Module) -> None:
    weight = torch.tensor([[0.0, 1.0, 2.0, 0.0], [0.0, -1.0, 0.1, -0.0]])
    kept, free = sharing(clusters=4).shared(weight), sharing(clusters=2, keep_zeros=False).shared(weight)
    assert torch.equal(kept(kept.right_inverse(weight)), weight)
    assert len(free(free.right_inverse(weight)).unique()) == 2
    gone = sharing(per_channel=True).shared(torch.zeros(3, 4))
    assert torch.equal(gone(gone.right_inverse(weight)), torch.zeros(3, 4)) and isinstance(gone, SharedWeights)


@pytest.mark.integration
@pytest.mark.parametrize("per_channel", [False, True])
def test_training_moves_the_values_not_the_indices(
    per_channel: bool, pretend_data: RandomData, network: nn.Module, tmp_path: Path
) -> None:
    (tmp_path / "artifact").mkdir()
    before = sharing(per_channel=per_channel, clusters=4).transform(network, pretend_data, tmp_path)
    after = sharing({"epochs": 2}, per_channel=per_channel, clusters=4).transform(
        network, pretend_data, tmp_path / "artifact"
    )
    assert before.state_dict().keys() == after.state_dict().keys() == network.state_dict().keys()
    for old, new in zip(weights_of(before).values(), weights_of(after).values(), strict=True):
        assert not torch.equal(old, new)
        rows = len(old) if per_channel else 1
        for a, b in zip(old.detach().reshape(rows, -1), new.detach().reshape(rows, -1), strict=True):
            pairs = torch.unique(torch.stack([a, b]), dim=1)
            assert pairs.shape[1] == len(a.unique()) <= 4  # where two were equal before, they still are


def test_first_and_last_layer_can_stay_as_they_are(
    pretend_data: RandomData, network: nn.Module, tmp_path: Path
) -> None:
    result = sharing(first_last=False, clusters=4).transform(network, pretend_data, tmp_path)
    different = [len(weight.unique()) for weight in weights_of(result).values()]
    assert different[0] > 4 and different[-1] > 4 and max(different[1:-1]) <= 4


@pytest.mark.integration
def test_pruned_and_shared_the_file_is_smaller_than_either(
    pretend_data: RandomData, network: nn.Module, tmp_path: Path
) -> None:
    chain = Chain({"prune": pruning(sparsity=0.8), "cluster": sharing()})
    methods = {"pruned": pruning(sparsity=0.8), "shared": sharing(), "both": chain}
    made = {
        name: make_artifact(m, network, pretend_data, EngineSpec(), SOURCE, tmp_path) for name, m in methods.items()
    }
    sizes = {name: (artifact.folder / artifact.graph).stat().st_size for name, artifact in made.items()}
    assert sizes["both"] < min(sizes["pruned"], sizes["shared"]) and made["both"].label == "prune 80% + cluster 16"
    assert made["both"].coded


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"clusters": 1}, "from 2 to 256"),
        ({"clusters": 300}, "from 2 to 256"),
        ({"start": "kmeans"}, "did you mean 'kmeans"),
    ],
)
def test_impossible_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        sharing(**options)
