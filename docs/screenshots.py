"""Takes the picture of a report that README.md shows.

    uv run python docs/screenshots.py [outputs=FOLDER] [sweep=NAME]

It opens report.html of a sweep (default: the newest below `outputs`) in Chromium, which Debian's package chromium
installs, and writes docs/report.png.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

SIZE = (1400, 1500)  # width and height of the window in pixels
LOADING_MS = 10_000  # of the page's own time, in which its plots are drawn


def main(words: list[str]) -> int:
    given = {"outputs": "outputs", "sweep": "*", **dict(word.split("=", 1) for word in words if "=" in word)}
    pages = sorted(Path(given["outputs"]).glob(f"sweeps/{given['sweep']}/report.html"))
    chromium = shutil.which("chromium")
    if not chromium or not pages:
        missing = "no Chromium: apt-get install chromium" if not chromium else f"no report below {given['outputs']}"
        print(f"error: There is {missing}.", file=sys.stderr)
        return 1
    capture(chromium, pages[-1].resolve().as_uri(), Path(__file__).parent / "report.png")
    return 0


def capture(chromium: str, address: str, file: Path) -> None:
    """Write what a window of SIZE shows of a page."""
    with tempfile.TemporaryDirectory() as profile:
        subprocess.run(
            [
                chromium, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
                f"--user-data-dir={profile}", f"--window-size={','.join(map(str, SIZE))}",
                f"--virtual-time-budget={LOADING_MS}", f"--screenshot={file.resolve()}", address,
            ],
            check=True, capture_output=True, timeout=120,
        )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
