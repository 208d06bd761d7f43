"""What tests of methods share that fine-tune: recipes that are short, exact, and on the CPU, and methods with these."""

from __future__ import annotations

from typing import Any

from qexp.artifact import EngineSpec
from qexp.method.prune.channels import PruneChannels
from qexp.method.prune.cluster import Cluster
from qexp.method.prune.low_rank import LowRank
from qexp.method.prune.weights import Prune
from qexp.method.quantize.qat import QAT
from tests import configured

SOURCE = {"model": "small", "weights": "random"}
TORCHSCRIPT = EngineSpec(("torchscript",), kernels="x86")
TRAINER = {"accelerator": "cpu", "devices": 1, "precision": "32-true", "enable_progress_bar": False}
SGD = {"_target_": "torch.optim.SGD", "lr": 0.01, "momentum": 0.9}
RECIPE: dict[str, Any] = {
    "epochs": 2, "batch_size": 16, "channels_last": False, "scheduler": None, "scheduler_per_step": False,
    "distillation": 0.0,
    "optimizer": {**SGD, "nesterov": False, "weight_decay": 0.0}, "trainer": TRAINER,
}  # fmt: skip
QUICK = {**RECIPE, "epochs": 0, "optimizer": {**SGD, "lr": 0.05}}  # learns something in an epoch


def pruning(recipe: dict[str, Any] | None = None, **options: Any) -> Prune:
    return configured.method("prune", recipe={**QUICK, **(recipe or {})}, **options)


def sharing(recipe: dict[str, Any] | None = None, **options: Any) -> Cluster:
    return configured.method("cluster", recipe={**QUICK, **(recipe or {})}, **options)


def pruning_channels(recipe: dict[str, Any] | None = None, **options: Any) -> PruneChannels:
    return configured.method(
        "prune_channels", recipe={**RECIPE, "epochs": 0, **(recipe or {})}, **{"round_to": 2, **options}
    )


def low_rank(recipe: dict[str, Any] | None = None, **options: Any) -> LowRank:
    return configured.method("low_rank", recipe={**RECIPE, "epochs": 0, **(recipe or {})}, **{"round_to": 2, **options})


def qat(recipe: dict[str, Any] | None = None, **options: Any) -> QAT:
    return configured.method("qat", recipe={**RECIPE, **(recipe or {})}, **{"bits": 4, **options})
