"""The process of survey.py that makes one network with sane signals, and artifacts of it."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch.nn.functional import interpolate

from qexp.data.augment import Augmentation
from qexp.data.decoded import write_part
from qexp.data.random import RandomData
from qexp.data.store import PARTS
from qexp.jobs.run import reason_of
from qexp.method.artifacts import make_artifact
from qexp.model.base import bake
from qexp.model.outputs import network_for
from qexp.questions import questions
from qexp.types import Unsupported

CLASSES = 10
NEGLIGIBLE = 1e-3  # a scale or a matrix with no larger value leaves nothing of what it multiplies


class Clouds(RandomData):
    """Pretend images with coarse and fine structure, since noise has the same mean everywhere in every image."""

    def decode(self, part: str, indices: np.ndarray) -> np.ndarray:
        generator = torch.Generator().manual_seed(PARTS.index(part))
        side, summed, (size, _) = 1, torch.zeros(()), self.how.size
        while side <= size:  # each octave has half the amplitude of the coarser one
            octave = torch.randn(self.images, self.channels, side, side, generator=generator)
            summed = summed + interpolate(octave, size, mode="nearest") / side**0.5
            side *= 2
        pixels = (127.5 + 50 * summed).clamp(0, 255).to(torch.uint8)
        return pixels.permute(0, 2, 3, 1).contiguous().numpy()[indices]


def pictures(size: int, images: int, calibration: int) -> Clouds:
    """Pretend images: `images` of 3 x size x size in the test part, and `calibration` to find ranges on."""
    data = Clouds(
        images=max(images, 2 * calibration), num_classes=CLASSES, name="clouds", preprocess="data", image_size=size,
        channels=3, cache_dir="", eval_batch_size=64, seed=0, split_seed=0, validation_share=0.1,
        calibration=None, calibration_images=calibration, generated_images=1, generated_steps=1,
        augmentation=Augmentation(0, False, 0, None, "none", 0, 0), resize="stretch",
        resize_to=None, interpolation="bilinear", orient=False, mean="auto", std="auto", pixel_range=1, transform=None,
    )  # fmt: skip
    data.open()
    return data


def config_of(name: str, size: int, arguments: dict[str, Any]) -> dict[str, Any]:
    """The config of a network, by a name such as `timm/resnet18d`, as conf/model has it."""
    library, _, kind = name.partition("/")
    sizes = {"image_size": size} if library == "timm" else {}
    common = {"name": kind, "num_classes": CLASSES, "in_channels": 3, "pretrained": False}
    return {"id": name, "_target_": f"qexp.model.{library}.build", **common, **sizes, **arguments}


def strengthen(network: nn.Module) -> None:
    """Give ordinary values to parameters that training would have moved away from nothing.

    Layer scales begin at 1e-6, and the last norms of residual branches at 0, which would hide whatever goes wrong in
    the branches. Vectors (other than biases) whose values are negligible become 1, and matrices normal numbers of a
    variance that keeps that of their input.
    """
    with torch.no_grad():
        for name, value in network.named_parameters():
            if name.endswith("bias") or value.abs().max() > NEGLIGIBLE:
                continue
            if value.numel() == max(value.shape, default=1):
                value.fill_(1)
            else:
                value.normal_(0, value[0].numel() ** -0.5)


def show(network: nn.Module, images: Tensor) -> None:
    """Let the batch norms of a network in eval mode take the statistics of images x[N,C,H,W], in batches of 32."""
    norms = [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.train().momentum = None  # which means the average over all batches
    with torch.no_grad():
        for batch in images.split(32):
            network(batch)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.eval().momentum = momentum


class Session:
    """Holds one network, and answers questions about it."""

    def network(
        self, name: str, size: int, arguments: dict[str, Any], images: int, calibration_images: int, folder: str
    ) -> dict[str, Any]:
        """Make a network, which takes the place of the one before, and its logits of the images.

        Args:
            name: Its name, such as `timm/resnet18d`.
            size: The side of an image in pixels.
            arguments: Further arguments of the network.
            images: How many images.
            calibration_images: How many others are there to find ranges on.
            folder: The folder of everything that is written: the images, `logits.npy` and the artifacts.
        """
        torch.manual_seed(0)
        self.folder, node = Path(folder), config_of(name, size, arguments)
        self.data = pictures(size, images, calibration_images)
        network = network_for(OmegaConf.create(node), self.data.spec).eval()
        strengthen(network)
        pixels = torch.from_numpy(self.data.pixels("test", np.arange(images)))
        x = self.data.normalise(pixels).contiguous()
        show(network, torch.cat([self.data.calibration()[:], x]))
        self.made = bake(network)
        self.source = {"model": name, "weights": "random", "network": node}
        with torch.no_grad():
            logits = torch.cat([network(batch) for batch in x.split(16)])
        np.save(self.folder / "logits.npy", logits.numpy())
        write_part(self.folder, "test", pixels.numpy(), np.zeros(images, np.int64))
        (self.folder / "chosen.json").write_text(json.dumps([*range(images)]))
        return {}

    def make(self, method: dict[str, Any], engine: dict[str, Any], batch: int, threads: int) -> dict[str, Any]:
        """Make the artifact of a method for an engine, which are given as in conf/, and lower it.

        Returns:
            `folder`, where the artifact is.
        """
        runs = instantiate(engine)
        runs.check_machine()
        root = self.folder / "artifacts"
        made = make_artifact(instantiate(method), self.made, self.data, runs.spec, self.source, root)
        return {"folder": str(runs.lower(made, batch, threads).folder)}


def main() -> None:
    # Libraries may print to standard output, so the answers go to a private copy of it.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    session = Session()
    for question in questions():
        try:
            answer = getattr(session, question.pop("command"))(**question)
        except Unsupported as error:
            answer = {"status": "unsupported", "reason": str(error)}
        except Exception as error:
            answer = {"status": "failed", "reason": reason_of(error, Path(json.loads(sys.argv[1])["tracebacks"]))}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
