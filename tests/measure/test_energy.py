"""Energy against counters of Zeus that grow by a known amount for each image."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from qexp.measure.base import Context
from qexp.measure.device import HERE, Device
from qexp.measure.energy import Energy


@dataclass
class Network:
    """A candidate that computes 5 calls of 4 images in a window, and 50 in one of a second or more."""

    images: int = 0
    batch: int = 4
    simulated: bool = False
    device: Device = HERE

    @property
    def artifact(self) -> Any:
        return SimpleNamespace(simulated=self.simulated)

    def window(self, calls: int, seconds: float) -> list[float]:
        assert seconds in (2.0, 0.2)
        samples = [1.0] * (50 if seconds > 1 else 5)
        self.images += len(samples) * self.batch
        return samples


class CpuError(Exception):
    """Zeus's for processors."""


class GpuError(Exception):
    """Zeus's for GPUs."""


class Devices:
    """Zeus's processors or GPUs: the counter of each grows by its millijoules per image, from its own beginning."""

    def __init__(
        self, network: Network, per_image: list[float], error: type[Exception] | None = None, wrap: Any = None
    ):
        self.network, self.per_image, self.error, self.wrap = network, per_image, error, wrap

    def __len__(self) -> int:
        return len(self.per_image)

    def get_total_energy_consumption(self, index: int) -> Any:
        if self.error:
            raise self.error("this device has no counter")
        taken = 1_000 * (index + 1) + self.per_image[index] * self.network.images
        return self.wrap(cpu_mj=taken, dram_mj=None) if self.wrap else taken


@pytest.fixture
def network() -> Network:
    return Network()


@pytest.fixture
def context(network: Network) -> Context:
    return Context(network, None, None, Path())  # type: ignore[arg-type]


@pytest.fixture
def zeus(network: Network, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Installs a Zeus that counts, for each processor and GPU, so many millijoules per image.

    Where a list is empty it finds no such device.
    """

    def install(cpus: list[float], gpus: list[float], unreadable: bool = False) -> None:
        def get_cpus() -> Devices:
            if not cpus:
                raise CpuError("RAPL is not available")
            return Devices(network, cpus, wrap=SimpleNamespace)

        def get_gpus() -> Devices:
            if not gpus:
                raise GpuError("NVML is not available")
            return Devices(network, gpus, GpuError if unreadable else None)

        device, exception = ModuleType("zeus.device"), ModuleType("zeus.device.exception")
        device.__dict__.update(get_cpus=get_cpus, get_gpus=get_gpus)
        exception.__dict__.update(ZeusBaseCPUError=CpuError, ZeusBaseGPUError=GpuError)
        for name, module in (
            ("zeus", ModuleType("zeus")),
            ("zeus.device", device),
            ("zeus.device.exception", exception),
        ):
            monkeypatch.setitem(sys.modules, name, module)

    return install


@pytest.mark.parametrize(
    ("cpus", "gpus", "expected"),
    [([3.0], [], 3.0), ([3.0, 0.5], [], 3.5), ([], [7.0], 7.0), ([3.0, 0.5], [7.0, 1.0], 11.5)],
)
def test_energy_is_what_all_counters_together_grow_by_for_an_image(
    cpus: list[float], gpus: list[float], expected: float, zeus: Callable[..., None], context: Context
) -> None:
    zeus(cpus, gpus)
    (energy,) = Energy(seconds=2).measure(context)
    assert (energy.name, energy.unit, energy.kind, energy.value) == ("energy_mj_per_image", "mJ", "measured", expected)
    assert context.notes == {}


def test_a_gpu_that_cannot_be_read_is_left_out(zeus: Callable[..., None], context: Context) -> None:
    zeus([3.0], [7.0], unreadable=True)
    assert [m.value for m in Energy(seconds=2).measure(context)] == [3.0]


@pytest.mark.parametrize("gpus", [[], [7.0]], ids=["none", "unreadable"])
def test_without_a_counter_a_note_says_so(
    gpus: list[float], zeus: Callable[..., None], network: Network, context: Context
) -> None:
    zeus([], gpus, unreadable=True)
    assert Energy(seconds=2).measure(context) == [] and network.images == 0
    assert "this machine shows no energy counter" in context.notes["energy_mj_per_image"]


def test_without_zeus_a_note_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, network: Network, context: Context
) -> None:
    monkeypatch.setitem(sys.modules, "zeus", None)  # as if it was not installed
    assert Energy(seconds=2).measure(context) == [] and network.images == 0
    assert "pip install qexp[energy]" in context.notes["energy_mj_per_image"]


def test_a_simulated_format_has_no_energy(zeus: Callable[..., None], network: Network, context: Context) -> None:
    zeus([3.0], [])
    network.simulated = True
    assert Energy(seconds=2).measure(context) == [] and network.images == 0
    assert "no kernel computes in this format" in context.notes["energy_mj_per_image"]
