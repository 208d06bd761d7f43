"""Measures the share of a training step that feeding costs: fetching, augmenting and normalising a batch.

    python benchmarks/feeding.py [data=folder data.root=FOLDER] [model=...] [trainer=cpu] [+steps=100]

It takes the options of train.py, such as recipe.batch_size, and unless told otherwise it trains ResNet-20 on pretend
images in batches of 128. It prints one line of medians.
"""

from __future__ import annotations

import statistics
import sys
import time
from pathlib import Path

from qexp.places import CONF

ROOT = Path(__file__).parents[1]
DEFAULTS = ["data=random", "model=resnet20", "recipe=one_cycle"]


def main(options: list[str]) -> None:
    sys.path.insert(0, str(ROOT))
    import hydra
    import torch
    from hydra.utils import instantiate
    from torch.nn.functional import cross_entropy

    from qexp.data.loaders import Loaders
    from qexp.data.opening import open_data
    from qexp.model.base import build_network
    from qexp.model.trainer import make_trainer

    chosen = {option.partition("=")[0] for option in options}
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        config = hydra.compose("train", [d for d in DEFAULTS if d.partition("=")[0] not in chosen] + options)
    data = open_data(config)
    trainer = make_trainer(**config.trainer, logger=False, enable_checkpointing=False, enable_progress_bar=False)
    device = trainer.strategy.root_device
    network = build_network(config.model).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = instantiate(config.recipe.optimizer)(network.parameters())

    def now() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    feeding, computing, step = [], [], 0
    steps, warm_up = config.get("steps", 40), 5
    while step < steps + warm_up:
        batches = iter(Loaders(data, config.recipe.batch_size).train_dataloader())
        while step < steps + warm_up:
            started = now()
            batch = next(batches, None)
            if batch is None:
                break
            images, labels = (part.to(device) for part in batch)
            x = data.normalise(data.augment(images, step))
            fed = now()
            with trainer.strategy.precision_plugin.forward_context():
                loss = cross_entropy(network(x).float(), labels)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            feeding.append(fed - started)
            computing.append(now() - fed)
            step += 1
    feed, compute = (1000 * statistics.median(seconds[warm_up:]) for seconds in (feeding, computing))
    print(
        f"feeding {feed:.2f} ms + computing {compute:.1f} ms per step: feeding is {feed / (feed + compute):.2%} "
        f"({config.model.id}, {data.name}, batch {config.recipe.batch_size}, {trainer.precision}, {device.type}, "
        f"{torch.get_num_threads()} threads, median of {steps} steps)"
    )


if __name__ == "__main__":
    main(sys.argv[1:])
