"""What a test is given more of where QEXP_THOROUGH asks for it; .ci/run asks for a part."""

from __future__ import annotations

from typing import Any

import pytest


def more(*cases: Any) -> list[Any]:
    """Cases of a parametrised test that run only where QEXP_THOROUGH=1 asks for them."""
    return [pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=pytest.mark.thorough) for case in cases]
