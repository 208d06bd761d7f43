"""Weight sharing: a layer's weights become few values, which are then trained. Each weight is stored as an index."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from qexp.artifact import EngineSpec
from qexp.data.base import ImageData
from qexp.method.fine_tuning import FineTuningModule
from qexp.method.prune.base import NetworkMethod, weights_of
from qexp.method.prune.kmeans import k_means
from qexp.types import UserError, nearest

STARTS = ("linear", "density", "kmeans++")


class Cluster(NetworkMethod):
    """Shares values among weights (Han et al., 2016).

    Fine-tuning trains these values, but does not change which of them a weight has.

    Raises:
        UserError: An option is unknown or out of range.
    """

    name = "cluster"

    def __init__(
        self, clusters: int, per_channel: bool, start: str, keep_zeros: bool, first_last: bool, seed: int, **common: Any
    ):
        super().__init__(**common)
        if not isinstance(clusters, int) or not 2 <= clusters <= 256:
            raise UserError(
                f"{self.name}: clusters={clusters} is out of range; give a whole number from 2 to 256, such as 16 for "
                "4 bits."
            )
        if start not in STARTS:
            raise UserError(f"{self.name}: k-means cannot start {start!r}. {nearest(str(start), STARTS)}")
        self.clusters, self.per_channel, self.start = clusters, per_channel, start
        self.keep_zeros, self.first_last, self.seed = keep_zeros, first_last, seed

    def label(self, engine_spec: EngineSpec) -> str:
        return f"{self.name} {self.clusters}"

    def transform(self, network: nn.Module, data: ImageData, folder: Path) -> nn.Module:
        result = copy.deepcopy(network)
        modules = dict(result.named_modules())
        layers = weights_of(result, self.first_last)
        for name, weight in layers.items():
            parametrize.register_parametrization(modules[name], "weight", self.shared(weight.detach()), unsafe=True)
        with self.recipe.session(folder, network, data, self) as session:
            session.train(result, ClusteringModule)
        for name in layers:
            parametrize.remove_parametrizations(modules[name], "weight")
        return result

    def shared(self, weight: Tensor) -> SharedWeights:
        """Cluster the values of weight[O,...] by k-means."""
        rows = weight.cpu().numpy().reshape(len(weight) if self.per_channel else 1, -1)
        centroids, indices = np.zeros((len(rows), self.clusters), np.float32), np.zeros(rows.shape, np.int64)
        for row, own, index in zip(rows, centroids, indices, strict=True):
            used = row != 0 if self.keep_zeros else np.ones(len(row), bool)
            if used.any():
                found, places = k_means(row[used], self.clusters, self.start, self.seed)
                own[: len(found)], index[used] = found, places + 1
        return SharedWeights(torch.from_numpy(centroids), torch.from_numpy(indices), weight.shape)


class SharedWeights(nn.Module):
    """A layer's weights as a function of its centroids.

    The gradient of a centroid is therefore the sum of the gradients of its weights (Han et al., 2016, eq. 3).

    Args:
        centroids: centroids[R,K], where each of the R rows belongs to an output channel or, if R is 1, to the layer.
        indices: indices[R,N], which say what centroid each weight has, counted from 1. 0 stands for a weight of zero.
        shape: Shape of the weight.
    """

    indices: Tensor

    def __init__(self, centroids: Tensor, indices: Tensor, shape: torch.Size):
        super().__init__()
        self.found, self.shape = centroids, shape
        self.register_buffer("indices", indices, persistent=False)

    def forward(self, centroids: Tensor) -> Tensor:
        with_zero = torch.cat([centroids.new_zeros(len(centroids), 1), centroids], 1)
        return with_zero.gather(1, self.indices).reshape(self.shape)

    def right_inverse(self, weight: Tensor) -> Tensor:
        """The centroids, which are trained in place of the layer's weight."""
        return self.found


class ClusteringModule(FineTuningModule):
    def parameter_groups(self) -> Any:
        """Put centroids into a group without weight decay, which would shrink all weights that share a value."""
        named = dict(self.network.named_parameters())
        centroids = [
            parameter for name, parameter in named.items() if name.endswith(".parametrizations.weight.original")
        ]
        known = {id(parameter) for parameter in centroids}
        others = [parameter for parameter in named.values() if id(parameter) not in known]
        return [{"params": others}, {"params": centroids, "weight_decay": 0.0}]
