from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zlib import crc32

import numpy as np
import pytest
from PIL import Image

import benchmark
import compress
from qexp.artifact import Artifact
from qexp.measure import host_lock
from tests import configured
from tests.commands import FEW_FORMATS, RunCommand, write_images

if TYPE_CHECKING:  # fixtures import torch, which takes seconds, only where they are used
    from torch import nn

    from qexp.data.folder import FolderData
    from qexp.data.random import RandomData

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: threads of workers would wait for each other
os.environ.setdefault("QEXP_WATCH", "false")  # other workers use the cores: what they disturb is timed nevertheless
# The files that take longest. They begin first, so that no worker is left alone with one of them at the end.
LONGEST = (
    "test_launchers.py", "test_search.py", "test_compress.py", "test_compress_errors.py", "test_reuse.py",
    "test_prune_channels.py",
    "test_documented_way.py", "test_integers.py", "test_kill.py", "test_documented_commands.py", "test_reproduce.py",
    "test_train.py",
    "test_study.py", "test_engines.py", "test_serving.py",
)  # fmt: skip
# Fixtures that run commands, start children or lower for engines, which makes what asks for them integration tests.
STARTING = {"run", "compose", "make_candidate", "make_context", "lowered", "animal_artifact"}
TIERS = {"thorough": "takes long for what it adds", "slow": "takes minutes"}  # markers, and why they are skipped
FORMS = (("RGB", "jpg"), ("RGBA", "png"), ("L", "png"), ("P", "png"), ("I;16", "png"), ("RGB", "webp"))


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """No workers for files and tests that are named, which then start at once, otherwise one for each core, at most 4.

    With integration tests there is one more, since these wait for the children that they start. Each worker imports
    torch and much else for 30 s, so that more of them would cost more than they gain.
    """
    named = [argument.partition("::")[0] for argument in config.option.file_or_dir]
    if named and all(Path(name).is_file() for name in named):
        return 0
    cores = min(os.cpu_count() or 1, 4)
    return cores if config.option.markexpr == "not integration" else cores + 1


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if STARTING & {*getattr(item, "fixturenames", ())}:
            item.add_marker(pytest.mark.integration)
        for tier, why in TIERS.items():
            variable = f"QEXP_{tier.upper()}"
            if item.get_closest_marker(tier) and not is_due(item.nodeid, os.environ.get(variable, "")):
                item.add_marker(pytest.mark.skip(reason=f"{why}: set {variable}=1"))
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))


def is_due(name: str, asked: str) -> bool:
    """Whether a test of a tier runs: with `1` all do, and with `2/5` the third of five parts, split by name."""
    part, _, parts = asked.partition("/")
    return asked == "1" or bool(parts) and crc32(name.encode()) % int(parts) == int(part)


def write_pictures(root: Path) -> None:
    """Three classes of pictures in many sizes and modes."""
    rng = np.random.default_rng(0)
    for part in ("train", "test"):
        for label, name in enumerate(("ant", "bee", "cow")):
            (root / part / name).mkdir(parents=True)
            for index, (mode, suffix) in enumerate(FORMS):
                pixels = rng.integers(80 * label, 80 * label + 90, (19 + index, 23 - index, 3), np.uint8)
                colour = Image.fromarray(pixels)
                made = (
                    Image.fromarray(pixels[..., 0].astype(np.uint16) * 257) if mode == "I;16" else colour.convert(mode)
                )
                made.save(root / part / name / f"{index}.{suffix}")


@pytest.fixture(scope="session")
def animals(tmp_path_factory: pytest.TempPathFactory) -> FolderData:
    root = tmp_path_factory.mktemp("pictures")
    write_pictures(root)
    made = configured.data(
        "folder",
        root=str(root),
        name="animals",
        image_size=16,
        channels=3,
        cache_dir=str(root / "cache"),
        calibration_images=8,
    )
    made.open()
    return made


@pytest.fixture(scope="session")
def animal_network(animals: FolderData) -> nn.Module:
    import torch

    torch.manual_seed(0)
    made = configured.network("resnet8", blocks=[1, 1], widths=[8, 16], num_classes=3).train()
    with torch.no_grad():
        for _ in range(3):
            made(animals.calibration()[:] * 2)
    return made.eval()


@pytest.fixture(scope="session")
def animal_artifact(
    animals: FolderData, animal_network: nn.Module, tmp_path_factory: pytest.TempPathFactory
) -> Artifact:
    """A small fp32 network, trained on nothing, lowered for ANIMAL_ENGINES."""
    from qexp.method.artifacts import make_artifact
    from tests.engine.support import ANIMAL_ENGINES, engine_named

    engines = [engine_named(name) for name in ANIMAL_ENGINES]
    source = {"model": "small", "weights": "0123"}
    made = make_artifact(
        configured.method("none"),
        animal_network,
        animals,
        engines[0].spec,
        source,
        tmp_path_factory.mktemp("out") / "artifacts",
    )
    for engine in engines:
        made = engine.lower(made, 4 if engine.name == "executorch" else 1, 1)
    return made


@pytest.fixture
def pretend_data(tmp_path: Path) -> RandomData:
    """64 pretend images of 3x16x16 in 10 classes, opened."""
    return configured.pretend_data(tmp_path)


@pytest.fixture
def network() -> nn.Module:
    """A small residual network with batch norms that do something, in eval mode."""
    return configured.small_network()


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Two classes that differ in brightness."""
    return write_images(tmp_path / "pictures")


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> RunCommand:
    """Calls an entry script's main with the given overrides, and returns its exit code and everything that it printed.

    Outputs are below tmp_path. What takes seconds is left out unless an override is about it: MLflow, whose database
    has to be made, and the pictures of a sweep's report.
    No time is checked here, so nobody has to wait until this machine measures nothing else.
    """
    monkeypatch.setattr(host_lock, "HOST_LOCK", tmp_path / "measure.lock")

    def call(*overrides: str, script: Any = compress) -> tuple[int, str]:
        defaults = {"outputs=": f"outputs={tmp_path / 'outputs'}", "tracking": "tracking=none"}
        if script in (compress, benchmark):
            defaults["report."] = FEW_FORMATS
        added = [word for start, word in defaults.items() if not any(o.startswith(start) for o in overrides)]
        monkeypatch.setattr(sys, "argv", [f"{script.__name__}.py", *overrides, *added])
        code: Any = 0
        try:
            script.main()
        except SystemExit as end:
            code = end.code
        out, err = capfd.readouterr()
        message = code if isinstance(code, str) else ""  # sys.exit prints a text only when the interpreter ends
        return (code if isinstance(code, int) else 1), out + err + message

    return call
