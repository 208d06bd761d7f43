"""The machine on which qexp itself runs."""

from __future__ import annotations

from qexp.measure.device import Device


class Local(Device):
    """This machine, as `Device` describes it."""
