"""Lightning's Trainer as this project uses it: quiet, and with atomic checkpoints.

It shows a progress bar on a terminal and prints one line per epoch elsewhere.
"""

from __future__ import annotations

import ctypes
import logging
import os
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning_fabric.plugins.io.torch_io import TorchCheckpointIO
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import ModelCheckpoint, RichProgressBar
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from torch import distributed

from qexp.types import UserError

# Loggers whose messages below WARNING are unwanted: which devices were found, tips, that the training has ended, that
# processes have found each other, that MLflow creates its database.
INFO_UNWANTED = (
    "pytorch_lightning.utilities.rank_zero",
    "lightning_fabric.utilities.rank_zero",
    "lightning_fabric.utilities.distributed",
    "mlflow.store.db.utils",
)
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # options of mallopt, as malloc.h numbers them
LARGEST_MMAP_THRESHOLD = 32 * 2**20  # bytes, on 64-bit systems
# Beginnings (regular expressions) of warnings whose cause is known and intended.
WARNINGS_UNWANTED = (
    "The `srun` command is available",  # Slurm is installed, but the training runs outside it
    r"Checkpoint directory .* exists and is not empty",  # a resumed training
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",  # it is Lightning that uses torch like this
    r".*does not have many workers",  # batches are slices of an array, which worker processes would slow down
)


def make_trainer(accelerator: str, precision: str, sync_batchnorm: bool | str = False, **options: Any) -> Trainer:
    """Make a quiet Lightning Trainer that shows its progress.

    Args:
        accelerator: Lightning's accelerator, such as `cpu`, `gpu` or `auto`.
        precision: Lightning's precision. `auto` is bf16 autocast if the hardware computes in bf16, and fp32 otherwise.
        sync_batchnorm: Whether processes share the statistics of batch norm. `auto` means that they do on GPUs, since
            PyTorch cannot do it on CPUs.
        **options: Further options of the Trainer. `enable_progress_bar=False` hides the progress.

    Raises:
        UserError: This machine does not have the device, the precision or the strategy.
    """
    be_quiet()
    on_gpu = accelerator in ("gpu", "cuda") or (accelerator == "auto" and torch.cuda.is_available())
    if on_gpu and not torch.cuda.is_available():
        raise UserError(
            f"trainer.accelerator={accelerator}, but PyTorch sees no GPU here. "
            "Use trainer=cpu (or trainer.accelerator=cpu)."
        )
    if precision == "auto":
        fast = (
            torch.cuda.is_bf16_supported(including_emulation=False) if on_gpu else torch.cpu._is_avx512_bf16_supported()
        )
        precision = "bf16-mixed" if fast else "32-true"
    shown = options.pop("enable_progress_bar", True)
    bar = shown and sys.stdout.isatty()
    progress: list[Callback] = [_Bar() if bar else _Lines()] if shown else []
    fixed = {
        "callbacks": [*options.pop("callbacks", []), *progress],
        "plugins": [*options.pop("plugins", []), _AtomicCheckpoints()],
        "sync_batchnorm": on_gpu if sync_batchnorm == "auto" else bool(sync_batchnorm),
        # Every process validates all images: a distributed sampler would repeat some to fill the last batches.
        "use_distributed_sampler": False,
    }
    quiet_options = {
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "log_every_n_steps": 0,
        "enable_progress_bar": bar,
    }
    try:
        return Trainer(
            accelerator=accelerator,
            precision=precision,  # type: ignore[arg-type]
            **{**quiet_options, **fixed, **options},
        )
    except (MisconfigurationException, ValueError) as error:
        raise UserError(f"The trainer's options do not fit this machine: {error}. See conf/trainer/.") from error


def trainer_options(config: DictConfig) -> dict[str, Any]:
    """The options of a trainer's config that decide what becomes of a network, beside epochs and precision.

    The accelerator tells only where a network is trained: who trains it on a GPU and goes on, or measures it, on
    another machine must find it again. For the same reason precision `auto` counts as what it is, not as what it comes
    to on a machine.
    """
    options: Any = OmegaConf.to_container(config, resolve=True)
    return {name: value for name, value in options.items() if name not in ("accelerator", "max_epochs", "precision")}


@contextmanager
def keeping_freed_memory() -> Iterator[None]:
    """Make glibc keep freed memory until the end of the block.

    By default it returns the memory of large tensors at every step and asks for it again, page by page. That takes a
    quarter of the time of quantisation-aware training on a CPU, which makes more such tensors than other training, and
    a smaller part of that. Other C libraries are left as they are.
    """
    set_option = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if set_option is None:
        yield
        return
    set_option(M_MMAP_THRESHOLD, LARGEST_MMAP_THRESHOLD)
    set_option(M_TRIM_THRESHOLD, 2**31 - 1)
    try:
        yield
    finally:
        set_option(M_TRIM_THRESHOLD, 2 * LARGEST_MMAP_THRESHOLD)  # what glibc would have arrived at by itself
        ctypes.CDLL(None).malloc_trim(0)


def leave_one_process(trainer: Trainer) -> None:
    """End all but the first process of a distributed training. That one alone tests, once per image, and writes."""
    if distributed.is_initialized():
        distributed.barrier()
        distributed.destroy_process_group()
    if not trainer.is_global_zero:
        sys.exit()


def be_quiet() -> None:
    """Silence the messages that this file lists, and no others."""
    for name in INFO_UNWANTED:
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("pytorch_lightning.loggers.mlflow").addFilter(_no_new_experiment)
    for message in WARNINGS_UNWANTED:
        warnings.filterwarnings("ignore", message)


def _no_new_experiment(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith("Experiment with name")  # "... not found. Creating it."


def best_and_last(folder: Path) -> list[ModelCheckpoint]:
    """Make the callbacks that keep `best.ckpt`, by validation top-1, and `last.ckpt`, which every epoch replaces.

    There are two because Lightning's `save_last` saves only those epochs that were the best. They must be in this
    order, so that `last.ckpt` remembers the score of `best.ckpt`.
    """
    options: dict[str, Any] = {"save_on_train_epoch_end": True, "enable_version_counter": False}
    return [
        _Best(folder, "best", monitor="val_top1", mode="max", **options),
        ModelCheckpoint(folder, "last", **options),
    ]


class _Best(ModelCheckpoint):
    """Considers only epochs after which the network is complete.

    A half-pruned network would score better, but is not what was asked for.
    """

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if getattr(pl_module, "complete", True):
            super().on_train_epoch_end(trainer, pl_module)


class _AtomicCheckpoints(TorchCheckpointIO):
    """Gives a checkpoint its name when it is whole, so that a kill at any moment leaves the previous one."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        partial = Path(f"{path}.partial")
        partial.parent.mkdir(parents=True, exist_ok=True)
        try:
            with partial.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
        except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError
            partial.unlink(missing_ok=True)
            raise UserError(
                f"Cannot write {path}: {error}. Free some space and give the same command: it goes on."
            ) from error


class _Bar(RichProgressBar):
    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        return {
            k: v for k, v in super().get_metrics(trainer, pl_module).items() if k != "v_num" and not k.endswith("top5")
        }


class _Lines(Callback):
    """Prints one line per epoch, for log files.

    Example: `epoch 3/20  train_loss 1.2345  train_top1 0.5678  val_top1 0.5432  12.3 s`.
    """

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.started = time.perf_counter()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero:
            values = [
                f"{k} {float(v):.4f}" for k, v in sorted(trainer.callback_metrics.items()) if not k.endswith("_top5")
            ]
            epoch, seconds = (
                f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}",
                f"{time.perf_counter() - self.started:.1f} s",
            )
            print("  ".join([epoch, *values, seconds]), flush=True)
