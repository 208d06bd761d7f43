"""Views of MLflow's pages, read as the pages read them."""

from __future__ import annotations

import base64
import json
import zlib
from typing import Any


def unpacked(envelope: dict[str, Any]) -> dict[str, Any]:
    """The state in a view's tag, as MLflow's page reads it: the base64 of what zlib deflated."""
    assert isinstance(envelope["name"], str) and isinstance(envelope["createdAt"], int)
    kind, _, text = envelope["state"].partition(";")
    assert kind == "deflate"
    return json.loads(zlib.decompress(base64.b64decode(text)))
