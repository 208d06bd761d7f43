"""Measures what feeding and Lightning add to the steps of a training.

    python benchmarks/feeding.py [data=folder data.root=FOLDER] [model=...] [trainer=cpu] [+steps=60] [+rounds=3]

A bare loop is timed: fetching, augmenting and normalising a batch is feeding, the rest is computing. In turns with it,
Lightning makes the same steps with the module of train.py, which keeps metrics and logs them. It takes the options of
train.py, such as recipe.batch_size, and unless told otherwise it trains ResNet-20 on pretend images in batches of 128.
It prints one line of medians.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from qexp.places import CONF

ROOT = Path(__file__).parents[1]
DEFAULTS = ["data=random", "model=resnet20", "recipe=one_cycle"]
WARM_UP = 5  # steps of each round that do not count


def main(options: list[str]) -> None:
    sys.path.insert(0, str(ROOT))
    import hydra
    import torch

    from qexp.data.opening import open_data
    from qexp.model.trainer import keeping_freed_memory

    chosen = {option.partition("=")[0] for option in options}
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        config = hydra.compose("train", [d for d in DEFAULTS if d.partition("=")[0] not in chosen] + options)
    data = open_data(config)
    data.prepare_training()
    steps, rounds = config.get("steps", 60), config.get("rounds", 3)
    feeding, computing, stepping = list[float](), list[float](), list[float]()
    with keeping_freed_memory():  # as train.py does
        for _ in range(rounds):
            for fed, computed in [*bare_steps(config, data, WARM_UP + steps // rounds)][WARM_UP:]:
                feeding.append(fed)
                computing.append(computed)
            trainer, seconds = lightning_steps(config, data, WARM_UP + steps // rounds)
            stepping += seconds[WARM_UP:]
    feed, compute, step = (1000 * statistics.median(seconds) for seconds in (feeding, computing, stepping))
    print(
        f"feeding {feed:.2f} ms + computing {compute:.1f} ms per step: feeding is {feed / (feed + compute):.2%}; "
        f"in Lightning {step:.1f} ms: {step / (feed + compute) - 1:+.2%} "
        f"({config.model.id}, {data.name}, batch {config.recipe.batch_size}, {trainer.precision}, "
        f"{trainer.strategy.root_device.type}, {torch.get_num_threads()} threads, medians of {len(stepping)} steps in "
        f"{rounds} rounds)"
    )


def new_trainer(config: Any, **options: Any) -> Any:
    from qexp.model.trainer import make_trainer

    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    return make_trainer(**{**config.trainer, **quiet, **options})


def synchronised(device: Any) -> float:
    """The time in seconds when a device has computed all that it was given."""
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def bare_steps(config: Any, data: Any, steps: int) -> Iterator[tuple[float, float]]:
    """Train in a plain loop, and tell what feeding and computing took in each step, in seconds."""
    import torch
    from hydra.utils import instantiate
    from torch.nn.functional import cross_entropy

    from qexp.data.loaders import Loaders
    from qexp.model.base import build_network
    from qexp.model.training_module import length_of

    trainer = new_trainer(config)
    device = trainer.strategy.root_device
    network: Any = build_network(config.model)
    network = network.to(device, memory_format=torch.channels_last)
    recipe = instantiate(config.recipe)
    optimizer = recipe.optimizer(network.parameters())
    total = length_of(recipe.scheduler, steps) if recipe.scheduler and recipe.scheduler_per_step else {}
    scheduler = recipe.scheduler(optimizer, **total) if total else None
    batches: Iterator[Any] = iter([])
    for step in range(steps):
        started = synchronised(device)
        batch = next(batches, None)
        if batch is None:
            batches = iter(Loaders(data, config.recipe.batch_size).train_dataloader())
            batch = next(batches)
        images, labels, heads = (part.to(device) for part in batch)
        x = data.normalise(data.augment(images, step, mirrored=heads))
        fed = synchronised(device)
        with trainer.strategy.precision_plugin.forward_context():
            loss = cross_entropy(network(x).float(), labels, label_smoothing=config.recipe.label_smoothing)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if scheduler:
            scheduler.step()
        yield fed - started, synchronised(device) - fed


def lightning_steps(config: Any, data: Any, steps: int) -> tuple[Any, list[float]]:
    """Make the same steps as train.py does.

    Returns:
        The trainer, and what each step took in seconds, from the end of one to the end of the next.
    """
    from hydra.utils import instantiate
    from pytorch_lightning import Callback

    from qexp.data.loaders import Loaders
    from qexp.model.base import build_network
    from qexp.model.training_module import TrainingModule

    ends = list[float]()

    class Clock(Callback):
        def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, index: int) -> None:
            if not ends:
                ends.append(synchronised(trainer.strategy.root_device))

        def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, index: int) -> None:
            ends.append(synchronised(trainer.strategy.root_device))

    recipe = instantiate(config.recipe)
    module = TrainingModule(
        build_network(config.model), data.spec.num_classes, recipe.optimizer, recipe.scheduler,
        recipe.scheduler_per_step, recipe.label_smoothing, recipe.channels_last, config.seed, recipe.frozen,
        recipe.frozen_from,
    )  # fmt: skip
    trainer = new_trainer(config, max_steps=steps, limit_val_batches=1, callbacks=[Clock()])
    trainer.fit(module, Loaders(data, config.recipe.batch_size))
    return trainer, [end - start for start, end in zip(ends, ends[1:], strict=False)]


if __name__ == "__main__":
    main(sys.argv[1:])
