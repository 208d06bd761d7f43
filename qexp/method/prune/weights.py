"""Unstructured pruning: the smallest weights become zero, stay so while the rest is fine-tuned, and are not stored."""

from __future__ import annotations

import copy
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from qexp.artifact import EngineSpec
from qexp.data.base import ImageData
from qexp.method.fine_tuning import FineTuningModule
from qexp.method.prune.base import NetworkMethod, weights_of
from qexp.method.prune.masks import Masks, apply_masks, global_masks, gradual_sparsity, local_masks, two_of_four_mask
from qexp.types import UserError, nearest

SCOPES = {"global": global_masks, "layer": local_masks}
SCHEDULES = ("one_shot", "gradual")
PATTERNS = ("2:4",)


class Prune(NetworkMethod):
    """Prunes by magnitude (masks.py), before fine-tuning or gradually during it.

    It writes sparsity.csv beside the graph.

    Raises:
        UserError: Options are unknown, out of range, or contradict each other.
    """

    name = "prune"

    def __init__(
        self, sparsity: float, scope: str, pattern: str | None, schedule: str, ramp: float, interval: int,
        first_last: bool, **common: Any,
    ):  # fmt: skip
        super().__init__(**common)
        if not 0 < sparsity < 1:
            raise UserError(
                f"{self.name}: sparsity={sparsity} is out of range; give a share between 0 and 1, such as 0.6."
            )
        if not 0 < ramp <= 1 or interval < 1:
            raise UserError(
                f"{self.name}: ramp={ramp} is a share of the fine-tuning, up to 1, and interval={interval} a number of "
                "steps."
            )
        choices = (("scope", scope, SCOPES), ("schedule", schedule, SCHEDULES), ("pattern", pattern or "2:4", PATTERNS))
        for what, name, known in choices:
            if name not in known:
                raise UserError(f"{self.name}: there is no {what} {name!r}. {nearest(str(name), known)}")
        if schedule == "gradual" and (pattern or not self.recipe.epochs):
            raise UserError(
                f"{self.name}: schedule=gradual prunes to a sparsity while it fine-tunes, so it needs recipe.epochs of "
                "at least 1, and no pattern. Give these, or schedule=one_shot."
            )
        self.sparsity, self.scope, self.pattern, self.schedule = float(sparsity), scope, pattern, schedule
        self.ramp, self.interval, self.first_last = ramp, interval, first_last

    def label(self, engine_spec: EngineSpec) -> str:
        return f"{self.name} {self.pattern or format(self.sparsity, '.0%')}"

    @property
    def notes(self) -> dict[str, str]:
        if not self.pattern:
            return super().notes
        return {
            **super().notes,
            "pattern": "2:4 is for sparse tensor cores of NVIDIA GPUs, which no engine here uses: no speed is claimed",
        }

    def transform(self, network: nn.Module, data: ImageData, folder: Path) -> nn.Module:
        result = copy.deepcopy(network)
        weights = weights_of(result, self.first_last)
        if self.schedule == "one_shot":
            apply_masks(weights, self.masks(weights, self.sparsity))
        with self.recipe.session(folder, network, data, self) as session:
            session.train(result, partial(PruningModule, method=self))
        (folder / "sparsity.csv").write_text(sparsity_csv(result))
        return result

    def masks(self, weights: dict[str, Tensor], sparsity: float) -> Masks:
        """The masks of the weights that are left.

        Args:
            weights: The weights by module path.
            sparsity: The share to prune, which does not matter if there is a pattern.

        Raises:
            UserError: No layer can have the pattern.
        """
        if not self.pattern:
            return SCOPES[self.scope](weights, sparsity)
        found = {name: mask for name, weight in weights.items() if (mask := two_of_four_mask(weight)) is not None}
        if not found:
            raise UserError(
                f"{self.name}: pattern=2:4 needs layers whose input channels are a multiple of 4, and this network has "
                "none."
            )
        return found


class PruningModule(FineTuningModule):
    """Fine-tuning in which zeros stay zero and, on a gradual schedule, more weights become zero."""

    def __init__(self, *arguments: Any, method: Prune):
        super().__init__(*arguments)
        self.method = method

    def on_train_start(self) -> None:
        # Masks are read off the weights: the pruned ones are zero in the checkpoint of an interrupted training too.
        self.weights = weights_of(self.network, self.method.first_last)
        self.masks = {name: weight != 0 for name, weight in self.weights.items()}
        self.fully_pruned = self.complete

    def after_step(self) -> None:
        if not self.fully_pruned and (self.complete or self.global_step % self.method.interval == 0):
            self.fully_pruned = self.complete
            self.masks = self.method.masks(self.weights, gradual_sparsity(self.method.sparsity, self.progress))
        apply_masks(self.weights, self.masks)

    @property
    def progress(self) -> float:
        """How much of the gradual schedule is over. From 1 on, everything is pruned."""
        return self.global_step / (self.method.ramp * self.trainer.estimated_stepping_batches)

    @property
    def complete(self) -> bool:
        return self.method.schedule == "one_shot" or self.progress >= 1


def sparsity_csv(network: nn.Module) -> str:
    """A table for people, which says how many weights of each layer are zero."""
    counts = [(name, weight.numel(), int((weight == 0).sum())) for name, weight in weights_of(network).items()]
    return "\n".join(
        [
            "layer,weights,zeros,share",
            *(f"{name},{all_},{zeros},{zeros / all_:.4f}" for name, all_, zeros in counts),
            "",
        ]
    )
