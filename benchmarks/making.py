"""Tells how many seconds the artifacts of torchvision's networks take to make, with random weights on pretend images.

    uv run python benchmarks/making.py networks=densenet121,swin_t data.image_size=224 data.calibration_images=128

The other options are those of compress.py. Processor seconds are those of all threads, and say more than the wall clock
on a machine that does other work.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import torch
from common import composed, machine
from hydra.utils import instantiate

from qexp.artifact import EngineSpec
from qexp.data.opening import open_data
from qexp.method.artifacts import make_artifact
from qexp.model.base import build_network


def main(options: list[str]) -> None:
    networks, *rest = options
    for name in networks.removeprefix("networks=").split(","):
        config = composed(["data=random", "model=torchvision", f"model.name={name}", "method=static", *rest])
        torch.set_num_threads(config.threads)
        data = open_data(config)
        network, method = build_network(config.model).eval(), instantiate(config.method)
        source = {"model": name, "weights": "random", "network": {}}
        with tempfile.TemporaryDirectory() as folder:
            began, used = time.perf_counter(), time.process_time()
            make_artifact(method, network, data, EngineSpec(), source, Path(folder))
            wall, processor = time.perf_counter() - began, time.process_time() - used
        print(f"{name}: {wall:.1f} s, {processor:.1f} processor seconds", flush=True)
    print(f"\n{machine()}")


if __name__ == "__main__":
    main(sys.argv[1:])
