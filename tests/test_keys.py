"""Keys change with everything that decides a result, and with nothing else."""

from __future__ import annotations

import importlib
import math
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import spec_from_file_location
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from torch import nn

from qexp import sources
from qexp.artifact import Artifact, EngineSpec, Executable
from qexp.engine.base import file_key
from qexp.jobs.engines import identities
from qexp.jobs.fp32 import fastest_key
from qexp.jobs.run import JobPlan, job_key
from qexp.jobs.train import baseline_key
from qexp.keys import key, plain
from qexp.measure.candidate import Candidate
from qexp.measure.children import Limits
from qexp.measure.images import EvaluationSet
from qexp.method.artifacts import REFERENCE, artifact_name
from qexp.method.base import Method
from qexp.method.none import NoCompression
from qexp.places import CONF
from qexp.search.search import CODE
from tests import configured
from tests.method.training import TRAINER
from tests.method.training import qat as qat_of

ROOT = Path(__file__).parents[1]


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder in which code is found first."""
    folder = tmp_path / "tree"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    forget()
    yield folder
    forget()


def forget() -> None:
    """As if this process had just begun: it keeps what it has read of code."""
    sources._find.cache_clear()
    sources._installed.cache_clear()
    sources._source.cache_clear()


def of(folder: Path, name: str, text: str, root: str = "") -> str:
    """The key of code, after one of its files was written."""
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text)
    forget()
    return key("test", code=[root or name.removesuffix(".py").replace("/", ".")])


@dataclass(frozen=True)
class Frozen:
    pair: tuple[int, ...]


class Told:
    def __init__(self, value: Any):
        self.value = value

    @property
    def options(self) -> dict[str, Any]:
        return vars(self)


def test_plain_values() -> None:
    value = {"b": (1, 2.5, None, True, "x"), "a": Frozen((1,)), "c": Told([Told(3)])}
    told = {"_target_": f"{__name__}.Told"}
    assert plain(value, "here") == {
        "b": [1, 2.5, None, True, "x"], "a": {"pair": [1]}, "c": {**told, "value": [{**told, "value": 3}]},
    }  # fmt: skip


def test_keys_do_not_depend_on_the_order_of_names_and_differ_by_value_kind_and_name() -> None:
    assert key("a", x=1, y={"p": 1, "q": 2}) == key("a", y={"q": 2, "p": 1}, x=1)
    different = [
        key("a", x=1), key("b", x=1), key("a", y=1), key("a", x="1"), key("a", x=1.0), key("a", x=True),
        key("a", x=[1]),
        key("a", x=None), key("a", x=math.nan),
    ]  # fmt: skip
    assert len({*different}) == len(different) and all(len(each) == 64 for each in different)


@pytest.mark.parametrize("value", [{1: 2}, {1, 2}, b"x", object(), Path("x"), nn.ReLU, OmegaConf.create({"a": 1}), 1j])
def test_a_value_that_cannot_be_digested_raises_and_is_named(value: Any) -> None:
    with pytest.raises(TypeError, match=r"kind\.options\.deep\[1\]\.value is .* of the type \w+"):
        key("kind", options={"deep": [1, Told(value)]})


def test_a_list_decides_and_what_a_method_cannot_tell_raises() -> None:
    class Listed(NoCompression):
        def __init__(self, levels: Any):
            super().__init__(torchscript=None)
            self.levels = levels

    assert key("a", method=Listed([1, 2])) != key("a", method=Listed([1, 3]))
    with pytest.raises(TypeError, match=r"Listed\.levels is .* of the type ReLU"):
        _ = Listed(nn.ReLU()).options


CODE_TEXT = '''"""What it does."""
import math
def area(r):
    return math.pi * r ** 2
'''
SAME = {
    "a comment": CODE_TEXT.replace("import math", "# why\nimport math  # what"),
    "a docstring": CODE_TEXT.replace("area(r):", 'area(r):\n    """Of a circle."""'),
    "no docstring": CODE_TEXT.replace('"""What it does."""', ""),
    "formatting": CODE_TEXT.replace("math.pi * r ** 2", "(\n        math.pi*r**2\n    )"),
}
OTHER = {
    "a number": CODE_TEXT.replace("2", "3"),
    "a type": CODE_TEXT.replace("2", "2.0"),
    "an operator": CODE_TEXT.replace("*", "+", 1),
    "a name": CODE_TEXT.replace("area", "ares"),
    "a text": CODE_TEXT + "x = 'doc'\n",
    "a line": CODE_TEXT + "area(1)\n",
}


@pytest.mark.parametrize("change", [*SAME, *OTHER])
def test_comments_docstrings_and_formatting_keep_keys_and_code_changes_them(tree: Path, change: str) -> None:
    before = of(tree, "circles.py", CODE_TEXT)
    assert (of(tree, "circles.py", {**SAME, **OTHER}[change]) == before) == (change in SAME)


IMPORTS = {
    "import parts.leaf": "parts.leaf", "from parts import leaf": "parts.leaf", "from parts.leaf import x": "parts.leaf",
    "def f():\n    from .parts import leaf": "house.parts.leaf", "from .parts.leaf import *": "house.parts.leaf",
    "from . import leaf": "house.leaf", "import parts.leaf as p": "parts", "from house import parts": "house",
}  # fmt: skip


@pytest.mark.parametrize("statement", IMPORTS)
def test_what_a_module_imports_counts_however_it_says_so(tree: Path, statement: str) -> None:
    """Each statement in house/main.py, and the module that it reaches, which nothing else names."""
    reached = IMPORTS[statement].replace(".", "/")
    for folder in ("house", "house/parts", "parts"):
        of(tree, f"{folder}/__init__.py", "x = 1")
        of(tree, f"{folder}/leaf.py", "x = 1")
        of(tree, f"{folder}/unused.py", "x = 1")
    before = of(tree, "house/main.py", statement)
    file = f"{reached}/__init__.py" if (tree / reached).is_dir() else f"{reached}.py"
    assert of(tree, file, "x = 2", "house.main") != before
    for folder in ("house", "house/parts", "parts"):
        of(tree, f"{folder}/unused.py", "x = 2")
    assert of(tree, file, "x = 1", "house.main") == before


def test_what_is_imported_for_type_checkers_alone_does_not_count(tree: Path) -> None:
    of(tree, "leaf.py", "x = 1")
    before = of(tree, "main.py", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import leaf")
    assert of(tree, "leaf.py", "x = 2", "main") == before


def test_libraries_count_by_their_version_and_by_whether_they_are_there(tree: Path) -> None:
    of(tree, "main.py", "import yaml, PIL.Image, not_installed, rich, os")
    found = sources.code_digests(["main"])
    assert found["yaml"].startswith("pyyaml-") and found["PIL"].startswith("pillow-")
    assert found["not_installed"] == "absent" and not {"rich", "os"} & {*found}
    with pytest.raises(ModuleNotFoundError, match=r"not_installed\.Net takes part"):
        key("a", model={"_target_": "not_installed.Net"})
    with pytest.raises(TypeError, match="give a list"):
        key("a", code="main")


def test_all_modules_of_a_package_count_where_it_is_named(tree: Path) -> None:
    of(tree, "house/__init__.py", "")
    before = of(tree, "house/deep/leaf.py", "x = 1", "house")
    assert of(tree, "house/deep/leaf.py", "x = 2", "house") != before
    assert key("a", code=["house"], without=["house.deep"]) == of_without(tree, "house/deep/leaf.py", "x = 3")


def of_without(folder: Path, name: str, text: str) -> str:
    of(folder, name, text, "house")
    return key("a", code=["house"], without=["house.deep"])


def test_a_users_own_network_counts_with_what_it_imports(
    tree: Path, pretend_data: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    of(tree, "blocks.py", "from torch import nn\nclass Block(nn.ReLU): pass")
    net = "import blocks\nclass Net(blocks.Block):\n    def forward(self, x):\n        return super().forward(x)"
    of(tree, "my_networks.py", net)
    network = importlib.import_module("my_networks").Net()
    monkeypatch.delitem(sys.modules, "my_networks")
    source = {"model": "net", "weights": "0123"}

    def name() -> str:
        return artifact_name(configured.method("static"), network, pretend_data, EngineSpec(), source)

    before = name()
    of(tree, "my_networks.py", f"# of mine\n{net}")
    assert name() == before
    of(tree, "my_networks.py", net.replace("forward(x)", "forward(x) * 2"))
    edited = name()
    of(tree, "blocks.py", "from torch import nn\nclass Block(nn.SiLU): pass")
    assert len({before, edited, name()}) == 3


def test_code_counts_that_only_a_finder_knows(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As setuptools installs a package that is to be edited."""
    far = tree.parent / "far"

    class Finder:
        @staticmethod
        def find_spec(name: str, path: Any = None, target: Any = None) -> Any:
            file = far / "__init__.py"
            return (
                spec_from_file_location("far", file, submodule_search_locations=[str(far)]) if name == "far" else None
            )

    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path, Finder])
    for name, text in {"__init__.py": "", "net.py": "from far.blocks import x"}.items():
        of(far, name, text, "math")
    assert of(far, "blocks.py", "x = 1", "far.net") != of(far, "blocks.py", "x = 2", "far.net")


# Which keys change with a line of which file, of an ONNX Runtime run of a ResNet on a folder of images.
ARTIFACTS = {"static", "qat", "fp32"}
MEASURED = {"run", "logits", "fastest"}
TRAINED = {"training", "baseline"}
CHANGES: dict[str, set[str]] = {
    "method/quantize/numerics.py": {*ARTIFACTS, "training"},  # by which layers.csv says how well weights were rounded
    "method/quantize/qat.py": {"qat", "training"},
    "method/fine_tuning.py": {"qat", "training"},
    "method/none.py": {"fp32"},
    "method/artifacts.py": ARTIFACTS,
    "method/prune/masks.py": set(),
    "model/resnet.py": {*ARTIFACTS, *TRAINED},
    "model/vgg.py": set(),
    "model/training_module.py": {"qat", *TRAINED},
    "data/augment.py": {*ARTIFACTS, *TRAINED},
    "data/folder.py": {*ARTIFACTS, *TRAINED, "decoder"},
    "data/classes.py": {*ARTIFACTS, *TRAINED, "decoder"},
    "data/labels.py": {*ARTIFACTS, *TRAINED},
    "data/dataset.py": set(),
    "data/store.py": {*ARTIFACTS, *TRAINED, "decoder"},
    "data/decoded.py": {*ARTIFACTS, *TRAINED, *MEASURED, "decoder"},
    "data/splitting.py": {*ARTIFACTS, *TRAINED},
    "data/pixels.py": {*ARTIFACTS, *TRAINED, *MEASURED, "decoder"},
    "data/mnist.py": set(),
    "measure/child.py": MEASURED,
    "measure/timing.py": MEASURED,
    "launch.py": MEASURED,
    "measure/latency.py": {"run", "fastest"},
    "measure/accuracy.py": {"run"},
    "engine/onnxruntime.py": {*MEASURED, "engine file"},
    "engine/eager.py": {"run", "fastest"},
    "engine/torch_ao.py": set(),
    "onnx_file.py": {*MEASURED, "engine file"},
    "onnx_rewrites.py": {*MEASURED, "engine file"},
    "coding.py": {*ARTIFACTS, *MEASURED, "training", "engine file"},
    "jobs/comparison.py": {"run"},
    "jobs/fp32.py": {"run"},
    "jobs/train.py": {"baseline"},
    "search/space.py": set(),
}  # fmt: skip
SHOWN = ("metrics.py", "report/table.py", "tracking/store.py", "deploy/write.py", "cli.py", "loading.py")


def all_keys(network: nn.Module, images: Path) -> Callable[[], dict[str, str]]:
    with initialize_config_dir(str(CONF), version_base=None):
        words = [
            "model=resnet8",
            "data=folder",
            f"data.root={images}",
            "engine=onnxruntime",
            "engine@fp32_engines=eager",
            "threads=1",
        ]
        config = compose("compress", words)
    config.data.num_classes = 2
    source = {"model": "small", "weights": "0123", "network": OmegaConf.to_container(config.model, resolve=True)}
    qat = configured.method("qat")
    timer, engine, limits = configured.measure("latency"), configured.engine("onnxruntime"), Limits(60, None)
    eager = configured.engine("eager")
    executable = Executable("onnxruntime", engine.target, engine.options, "model.onnx", 1, 1)
    plan = {"model": source["network"]}

    def made() -> dict[str, str]:
        cache = str(images / "cache")
        data = configured.data("folder", root=str(images), image_size=16, channels=1, cache_dir=cache)
        artifact = Artifact(
            Path("artifact"), "key", EngineSpec(), "model.pt2", "small", "static", 8, "static int8", data.open(), (),
            1, 1, 1, "", {"model.pt2": "1", "model.onnx": "2"}, source, {},
        )  # fmt: skip
        candidates = {each.name: Candidate(artifact, each, 1, 1, limits) for each in (engine, eager)}
        tests = EvaluationSet("images", Path("x"), "test", Path("y"), True)
        measured = identities({"onnxruntime": engine, "eager": eager}, lambda engine: artifact.key)
        job = JobPlan(measured, lambda: pytest.fail("it is not run"), None)
        with qat.recipe.session(Path("artifacts/artifact"), network, data, qat, EngineSpec()) as session:
            pass
        return {
            "static": artifact_name(configured.method("static"), network, data, EngineSpec(), source),
            "qat": artifact_name(qat, network, data, EngineSpec(), source),
            "fp32": artifact_name(configured.method("none"), network, data, EngineSpec(), source),
            "training": session.folder.name,
            "run": job_key("compress", job, config), "logits": candidates["onnxruntime"].logits_key(tests, 25, None),
            "fastest": fastest_key(candidates, timer), "engine file": file_key(artifact, executable),
            "study": key("code", code=CODE),
            "baseline": baseline_key(config, data, plan), "decoder": data.spec.decoder,
        }  # fmt: skip

    return made


@pytest.mark.integration
def test_a_line_in_a_file_changes_the_keys_of_what_it_takes_part_in(
    tree: Path, network: nn.Module, images: Path
) -> None:
    shutil.copytree(ROOT / "qexp", tree / "qexp", ignore=shutil.ignore_patterns("baselines", "__pycache__"))
    forget()
    made = all_keys(network, images)
    before = made()
    assert len({*before.values()}) == len(before)
    wrong = {}
    for file, expected in {
        **{name: {*found, "study"} for name, found in CHANGES.items()},
        **dict.fromkeys(SHOWN, set()),
    }.items():
        changed = tree / "qexp" / file
        text = changed.read_text()
        changed.write_text(f"{text}\n_changed = 1\n")
        sources._source.cache_clear()
        after = made()
        changed.write_text(text)
        if (differing := {name for name in before if after[name] != before[name]}) != expected:
            wrong[file] = differing ^ expected
    assert not wrong
    sources._source.cache_clear()
    assert made() == before


def test_the_reference_is_what_the_baselines_method_says_of_itself() -> None:
    assert plain(configured.method("none"), "method") == REFERENCE


def test_what_a_method_is_told_of_the_place_of_training_does_not_decide() -> None:
    def qat(**trainer: Any) -> Method:
        return qat_of({"trainer": {**TRAINER, **trainer}})

    first = key("a", method=qat())
    assert key("a", method=qat(accelerator="gpu")) == key("a", method=qat(max_epochs=7)) == first
    others = [qat(devices=2), qat(gradient_clip_val=1.0), qat(precision="bf16-mixed")]
    assert len({first, *(key("a", method=other) for other in others)}) == 4
