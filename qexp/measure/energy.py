"""Measures energy per image by the machine's own counters (RAPL of processors, NVML of NVIDIA GPUs), through Zeus."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable

from qexp.measure.base import Context, Measure
from qexp.metrics import METRICS
from qexp.records import Measurement

# On machines without AMD GPUs, it would warn that ROCm is not installed.
logging.getLogger("zeus.device.gpu.amd").setLevel(logging.ERROR)


class Energy(Measure):
    """Energy per image in millijoules. The counters cover whole processors and GPUs, idle power included."""

    def __init__(self, seconds: float):
        self.seconds = seconds

    def measure(self, context: Context) -> list[Measurement]:
        if context.candidate.artifact.simulated:
            context.notes["energy_mj_per_image"] = (
                "no kernel computes in this format: its accuracy is simulated, energy would mean nothing"
            )
            return []
        if not context.candidate.device.here:
            context.notes["energy_mj_per_image"] = "energy counters are read on the machine of qexp only"
            return []
        try:
            read = counters()
        except LookupError as reason:
            context.notes["energy_mj_per_image"] = str(reason)
            return []
        context.candidate.window(1, self.seconds / 10)
        before = read()
        calls = context.candidate.window(1, self.seconds)
        return [METRICS["energy_mj_per_image"].of((read() - before) / (len(calls) * context.candidate.batch))]


def counters() -> Callable[[], float]:
    """Find the energy counters of this machine.

    Returns:
        A function that reads how many millijoules all processors and GPUs with a counter have used so far.

    Raises:
        LookupError: There is no counter, or it cannot be read. The message says why.
    """
    try:
        from zeus.device import get_cpus, get_gpus
        from zeus.device.exception import ZeusBaseCPUError, ZeusBaseGPUError
    except ImportError as error:
        raise LookupError("Zeus, which reads energy counters, is not installed: pip install qexp[energy]") from error

    def of_cpus() -> list[Callable[[], float]]:
        cpus = get_cpus()
        return [lambda i=i: cpus.get_total_energy_consumption(i).cpu_mj for i in range(len(cpus))]  # type: ignore[misc]

    def of_gpus() -> list[Callable[[], float]]:
        gpus = get_gpus()
        return [lambda i=i: float(gpus.get_total_energy_consumption(i)) for i in range(len(gpus))]  # type: ignore[misc]

    readings: list[Callable[[], float]] = []
    for open_counters in (of_cpus, of_gpus):
        with contextlib.suppress(ZeusBaseCPUError, ZeusBaseGPUError):
            opened = open_counters()
            for reading in opened:
                reading()  # GPUs before Volta are found, but cannot be read
            readings += opened
    if not readings:
        raise LookupError(
            "this machine shows no energy counter: no readable RAPL below /sys/class/powercap, and no NVIDIA GPU"
        )
    return lambda: sum(reading() for reading in readings)
