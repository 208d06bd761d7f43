"""What an engine needs that this machine does not have ends as `unsupported`, with a reason that helps."""

from __future__ import annotations

import platform
import tomllib
from collections.abc import Callable
from pathlib import Path

import onnxruntime
import pytest
import torch

from qexp.artifact import Artifact
from qexp.engine import base
from qexp.engine.base import Engine
from qexp.method.base import Method
from qexp.types import Unsupported, UserError
from tests import configured
from tests.engine.support import BATCH, NAMES, engine_named

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", NAMES)
def test_every_engine_runs_on_this_machine(name: str) -> None:
    engine_named(name).check_machine()


@pytest.mark.parametrize("name", [*NAMES, "tensorrt"])
def test_a_missing_library_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "find_spec", lambda package: None)
    engine = engine_named(name)
    with pytest.raises(Unsupported, match=f"{name} needs {engine.packages[0]}, which is not installed"):
        engine.check_machine()


@pytest.mark.parametrize("name", ["openvino", "executorch", "litert", "ncnn"])
def test_the_command_that_installs_an_optional_library_exists(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "find_spec", lambda package: None)
    with pytest.raises(Unsupported, match=rf"pip install qexp\[{name}\]"):
        engine_named(name).check_machine()
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert {package.replace("_", "-") for package in engine_named(name).packages} <= set(extras[name])


@pytest.mark.parametrize("name", ["eager", "inductor"])
def test_torch_without_a_gpu_cannot_use_one(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(Unsupported, match=f"{name} with device=cuda needs an NVIDIA GPU"):
        configured.engine(name, device="cuda").check_machine()
    configured.engine(name, device="cpu").check_machine()


@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_onnxruntime_without_a_provider_cannot_use_it(provider: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(Unsupported, match=f"no provider for {provider}: it needs an NVIDIA GPU and onnxruntime-gpu"):
        configured.engine("onnxruntime", provider=provider).check_machine()
    configured.engine("onnxruntime").check_machine()


def test_inductor_needs_a_compiler() -> None:
    for compiler in ("no-such-compiler", "false"):
        with (
            torch._inductor.config.patch({"cpp.cxx": (None, compiler)}),
            pytest.raises(Unsupported, match=r"needs a C\+\+ compiler.*install g\+\+ or set CXX"),
        ):
            configured.engine("inductor").check_machine()


@pytest.mark.thorough
def test_inductor_has_integer_kernels_for_x86_processors_only(
    lowered: Callable[[Method, Engine], Artifact], monkeypatch: pytest.MonkeyPatch
) -> None:
    integer, plain = (
        lowered(method, configured.engine("inductor"))
        for method in (configured.method("static"), configured.method("none"))
    )
    configured.engine("inductor", device="cuda").check(plain)
    with pytest.raises(Unsupported, match="integer kernels for x86 processors only"):
        configured.engine("inductor", device="cuda").check(integer)
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    configured.engine("inductor").check(plain)
    with pytest.raises(Unsupported, match="integer kernels for x86 processors only"):
        configured.engine("inductor").lower(integer, BATCH, 1)


@pytest.mark.parametrize(
    ("method", "name", "reason"),
    [
        (configured.method("half"), "onnxruntime", "no kernels that compute in half precision"),
        (configured.method("half", dtype="float16"), "openvino", "computes in bfloat16 here, not in float16"),
        (configured.method("half", dtype="bfloat16"), "executorch", "computes in float16 here, not in bfloat16"),
        (configured.method("half", bits=8), "eager", "half works at 16 bits, not at 8"),
        (configured.method("half"), "litert", "no kernels that compute in half precision"),
        (
            configured.method("static", quantize_before_activation=True),
            "ncnn",
            "quantize_before_activation=true needs an engine with integer kernels of its own, such as onnxruntime",
        ),
        (configured.method("half"), "torch_ao", "half gives pt2, and this engine reads torchscript"),
        (
            configured.method("static", fuse=False),
            "inductor",
            "fuse=false needs an engine with integer kernels of its own, such as onnxruntime",
        ),
    ],
)
def test_what_an_engine_cannot_compute_is_said(
    method: Method, name: str, reason: str, lowered: Callable[[Method, Engine], Artifact]
) -> None:
    with pytest.raises(Unsupported, match=reason):
        lowered(method, engine_named(name))


@pytest.mark.parametrize(
    ("make", "nearest"),
    [
        (lambda: configured.engine("eager", device="cuba"), "no device 'cuba'. did you mean 'cuda'"),
        (lambda: configured.engine("inductor", device="cpi"), "no device 'cpi'. did you mean 'cpu'"),
        (
            lambda: configured.engine("onnxruntime", provider="tensort"),
            "no provider 'tensort'. did you mean 'tensorrt'",
        ),
        (lambda: configured.engine("torch_ao", kernels="fbgem"), "no kernels 'fbgem'. did you mean 'fbgemm'"),
    ],
)
def test_an_unknown_name_is_an_error_with_the_nearest(make: Callable[[], Engine], nearest: str) -> None:
    with pytest.raises(UserError, match=nearest):
        make()
