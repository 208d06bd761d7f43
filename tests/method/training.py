"""Options of fine-tuning that tests of methods share: short, exact, and on the CPU."""

from __future__ import annotations

from typing import Any

TRAINER = {"accelerator": "cpu", "devices": 1, "precision": "32-true", "enable_progress_bar": False}
RECIPE: dict[str, Any] = {
    "epochs": 2, "batch_size": 16, "label_smoothing": 0.0, "channels_last": False, "scheduler": None, "scheduler_per_step": False,
    "optimizer": {"_target_": "torch.optim.SGD", "_partial_": True, "lr": 0.01, "momentum": 0.9},
}  # fmt: skip
