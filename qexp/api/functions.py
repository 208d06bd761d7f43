"""The functions of `import qexp`: compress, compare, sweep and train."""

from __future__ import annotations

import copy
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from torch import nn

from qexp.api.comparison import Comparison, comparison
from qexp.api.compressed import CompressedNetwork
from qexp.api.nodes import Network, call_text, images_of, modules_of, network_of
from qexp.api.options import Words, listed, literal, of_a_method, words_of
from qexp.api.running import run, told_alone
from qexp.api.trained import TrainedNetwork
from qexp.data.parts import Parts
from qexp.jobs.given import Given
from qexp.model.base import load_weights, read_weights
from qexp.model.outputs import network_for
from qexp.report.runs import runs_of
from qexp.types import UserError

IMAGES = ("data", "data.root", "data.name")  # overrides that say which images there are
NO_PAGE = {"report.formats": "[]"}  # of a sweep in which nothing was measured


@told_alone
def compress(
    network: Any, data: Any, *, method: str = "static", bits: int | str = "auto", name: str | None = None,
    overrides: Sequence[str] = (), **options: Any,
) -> CompressedNetwork:  # fmt: skip
    """Compress a network, as `compress.py phase=compress` does. What was made before is found again and reused.

    Args:
        network: A `torch.nn.Module` in eval mode from x[B,C,H,W] float32 to logits[B,K], which stays as it is; a
            network that `qexp.train` gave; or the name of a file in conf/model, whose newest baseline is taken.
        data: Images with classes, to calibrate with and to train on where the method does so: a folder with
            `train/CLASS/IMAGE` and `test/CLASS/IMAGE`; `(images, labels)`, two arrays or tensors; a torch dataset whose
            items are (image, class); or `{"train": ..., "test": ...}` with one of these each, of which `"calibration"`
            may take the place of `"train"` and needs no classes. Of one dataset or pair, a fixed fifth of each class is
            set aside to test on. Images of uint8 ([H,W], [H,W,C], or [C,H,W] in tensors) or Pillow's are prepared as
            options say; tensors of floats x[C,H,W] are taken as they are, so they must be normalised already.
        method: Name of a file in conf/method: `none`, `half`, `dynamic`, `static`, `reconstruct`, `qat`, `mixed`,
            `prune`, ...
        bits: Bits of weights and activations: 8 to 2, `"w4a8"`, or `"auto"`.
        name: What tables call the network, by default the name of its class.
        overrides: Further options as on the command line, such as `["method.recipe.epochs=2"]`.
        **options: Options of the method (`observer="mse"`, `recipe={"epochs": 2}`), of the images (`image_size=224,
            mean=[...], std=[...], calibration_images=256`) and of the command (`engine="onnxruntime"`,
            `outputs="elsewhere"`), with the names and values that they have in conf/.

    Returns:
        The compressed network, which predicts, is deployed, and is compared.

    Raises:
        UserError: The network, the images or an option is wrong. The message says what to do.

    Example:
        >>> small = qexp.compress(network, "pictures", method="static", bits=8, observer="mse")
        >>> small.predict("photo.jpg").label
        'cat'
    """
    call = call_text("compress", {"network": network, "data": data, "method": method, "bits": bits, **options})
    chosen = network_of(network, name)
    nodes, images = images_of(data)
    words, more = words_of(
        "compress", {**chosen.words, **nodes}, {"method": method, "bits": bits, **options}, overrides
    )
    all_words = [*listed({**chosen.words, **nodes, **NO_PAGE, **words, "phase": "compress"}), *more]
    folder, _ = run("compress", all_words, Given(modules_of([chosen]), images, call))
    record = runs_of(folder)[0].record
    if record.status != "compressed":
        raise UserError(record.reason)
    root, prefix = Path(record.artifact).parent, "artifact for "
    return CompressedNetwork(
        network=chosen,
        artifacts={
            note.removeprefix(prefix): root / value for note, value in record.notes.items() if note.startswith(prefix)
        },
        notes={note: why for note, why in record.notes.items() if not note.startswith(prefix)},
        method={key: value for key, value in words.items() if of_a_method(key)},
        shared={**nodes, **{key: value for key, value in words.items() if not of_a_method(key)}},
        overrides=tuple(more), images=images,
    )  # fmt: skip


@told_alone
def compare(
    networks: Sequence[Any] | Mapping[str, Any], data: Any = None, *, engines: str | list[str] = "auto",
    batch_size: int | list[int] = 1, overrides: Sequence[str] = (), **options: Any,
) -> Comparison:  # fmt: skip
    """Measure networks in the same way, one in each row, as a sweep of `compress.py` does.

    Accuracy, size, latency, memory and more are measured in a process of its own for each row, in turns with fp32 on
    PyTorch. Rows that were measured before are reused.

    Args:
        networks: Networks as `compress` takes them, which are measured in fp32, and what it gave. A mapping names them.
            Or folders of artifacts, such as `outputs/artifacts/NAME`, as `benchmark.py artifact=` takes them.
        data: Images as `compress` takes them. None: those that the first compressed network was calibrated with. They
            must be the same for all.
        engines: `"auto"` measures each network on the fastest engine that runs here. A name or a list of names, such as
            `["onnxruntime", "openvino"]`, makes a row for each.
        batch_size: Images of a call, or a list of such numbers.
        overrides: Further options as on the command line.
        **options: Options of the images and of the command, such as `threads=1` or `measure={"accuracy": {"images":
            2000}}`, with the names and values that they have in conf/. A list holds several values, each with rows of
            its own, except for options of the images. Those that the compressed networks were made with hold too.

    Returns:
        The table. Rows that failed are below it, with their reasons.

    Raises:
        UserError: A network, the images or an option is wrong, or no row could be measured.

    Example:
        >>> table = qexp.compare([network, small], "pictures", engines="auto", batch_size=1)
        >>> table.report("report.html")
    """
    arguments = {"engines": engines, "batch_size": batch_size, **options}
    call = call_text("compare", {"networks": networks, "data": data, **arguments})
    if isinstance(networks, (str, nn.Module, CompressedNetwork, TrainedNetwork)):
        raise UserError("qexp.compare takes a list of networks, such as [network, small].")
    if any(map(_is_artifact, networks)):
        return _artifacts_compared(networks, data, arguments, overrides, call)
    named = networks.items() if isinstance(networks, Mapping) else ((None, network) for network in networks)
    items = [each if isinstance(each, CompressedNetwork) else network_of(each, name) for name, each in named]
    made = [item for item in items if isinstance(item, CompressedNetwork)]
    if not items:
        raise UserError("There is no network to compare. Give a list of them.")
    shared, shared_more, images = _shared(made, data)
    chosen = [item.network if isinstance(item, CompressedNetwork) else item for item in items]
    words, more = words_of("compress", {**chosen[0].words, **shared}, arguments, overrides, sweeps=True)
    for key in words:
        if of_a_method(key):
            raise UserError(f"{key} is fixed by each network. Give it to qexp.compress.")
    rows = {_row(item): item for item in items}
    text = literal([{"name": name, "run": run_words} for name, run_words in rows], "rows")
    all_words = [
        *listed({**shared, **words}), *shared_more, *more, "hydra/sweeper=rows", f"hydra.sweeper.rows={text}",
    ]  # fmt: skip
    expected = frozenset(item.artifact.data.digest for item in made)
    folder, _ = run("compress", all_words, Given(modules_of(chosen), images, call, expected))
    found = comparison(folder)
    _check_measured([*rows.values()], found)
    return found


@told_alone
def sweep(
    network: Any, data: Any, *, name: str | None = None, overrides: Sequence[str] = (), **options: Any
) -> Comparison:
    """Compress a network in every combination of options, and measure all, as `compress.py -m` does.

    Args:
        network: A network as `compress` takes it.
        data: Images as `compress` takes them.
        name: What tables call the network.
        overrides: Further options as on the command line. Several values are separated by commas.
        **options: Options as `compress` and `compare` take them. A list holds several values to go through, except for
            options of the images. Options that only some of the methods have are for these.

    Returns:
        The table.

    Raises:
        UserError: The network, the images or an option is wrong, or no run finished.

    Example:
        >>> qexp.sweep(network, "pictures", method=["none", "dynamic", "static"], bits=[8, 4], engine="auto")
    """
    call = call_text("sweep", {"network": network, "data": data, **options})
    chosen = network_of(network, name)
    nodes, images = images_of(data)
    words, more = words_of("compress", {**chosen.words, **nodes}, options, overrides, sweeps=True)
    all_words = [*listed({**chosen.words, **nodes, **words}), *more]
    folder, _ = run("compress", all_words, Given(modules_of([chosen]), images, call))
    return comparison(folder)


@told_alone
def train(
    network: Any, data: Any, *, recipe: str = "one_cycle", name: str | None = None, overrides: Sequence[str] = (),
    **options: Any,
) -> TrainedNetwork:  # fmt: skip
    """Train a network, or fine-tune it, as `train.py` does. The epoch with the best validation accuracy is kept.

    Args:
        network: A `torch.nn.Module`, whose weights are what the training starts from and stay as they are; or the name
            of a file in conf/model.
        data: Images as `compress` takes them. A tenth of each class of the training images is set aside to validate on.
        recipe: Name of a file in conf/recipe: `one_cycle`, `multi_step`, `finetune`, ...
        name: What tables call the network.
        overrides: Further options as on the command line, such as `["data.augmentation.flip=false"]`.
        **options: Options of the recipe (`epochs=5`), of the images and of the command (`seed=1`), with the names and
            values that they have in conf/.

    Returns:
        The trained network. A training of the same network, images, options and code is not repeated.

    Raises:
        UserError: The network, the images or an option is wrong.

    Example:
        >>> trained = qexp.train(network, "pictures", epochs=5, image_size=32)
        >>> small = qexp.compress(trained, "pictures", method="static", image_size=32)
    """
    call = call_text("train", {"network": network, "data": data, "recipe": recipe, **options})
    chosen = network_of(network, name, trains=True)
    nodes, images = images_of(data)
    words, more = words_of("train", {**chosen.words, **nodes}, {"recipe": recipe, **options}, overrides)
    given = Given(modules_of([chosen]), images, call)
    all_words = [*listed({**chosen.words, **nodes, **words}), *more]
    _, (baseline,) = run("train", all_words, given)
    built_by = chosen.name if chosen.module is None else ""
    if chosen.module is None:
        made = network_for(OmegaConf.create(baseline.model), baseline.data)
    else:
        made = copy.deepcopy(chosen.module)
    load_weights(made, read_weights(baseline.weights), str(baseline.folder))
    return TrainedNetwork(chosen.name, made.eval(), dict(baseline.metrics), baseline.folder, built_by)


def _is_artifact(network: Any) -> bool:
    return isinstance(network, (str, Path)) and (Path(network) / "artifact.json").is_file()


def _artifacts_compared(
    folders: Iterable[Any], data: Any, arguments: Mapping[str, Any], overrides: Sequence[str], call: str
) -> Comparison:
    """Measure folders of artifacts, as `benchmark.py -m artifact=...` does.

    Raises:
        UserError: Something else is among them, images are given, or no row could be measured.
    """
    if data is not None or not all(map(_is_artifact, folders)):
        raise UserError(
            "An artifact is measured on the test images that it was made with, and beside other artifacts only. Leave "
            "data out, and give qexp.compare either folders of artifacts or networks."
        )
    words, more = words_of("benchmark", {}, arguments, overrides, sweeps=True)
    words["artifact"] = ",".join(literal(str(folder), "artifact") for folder in folders)
    folder, _ = run("benchmark", [*listed(words), *more], Given({}, None, call))
    return comparison(folder)


def _row(item: Network | CompressedNetwork) -> tuple[str, str]:
    """What a row is called, and its overrides."""
    if isinstance(item, Network):
        return f"{item.name} fp32", shlex.join(listed({**item.words, "method": "none"}))
    own = [override for override in item.overrides if of_a_method(override)]
    return f"{item.network.name} {item.label}", shlex.join([*listed({**item.network.words, **item.method}), *own])


def _shared(made: Sequence[CompressedNetwork], data: Any) -> tuple[Words, list[str], Parts | None]:
    """What all rows of a comparison have in common: overrides, and the object that stands in for the images.

    Raises:
        UserError: CompressedNetwork networks were made with different options, or there are no images.
    """
    if data is None and not made:
        raise UserError("There are no images to compare the networks on. Give data, such as a folder.")
    nodes, images = images_of(data) if data is not None else ({}, made[0].images)
    options = {key: value for item in made[:1] for key, value in item.shared.items() if key not in ("engine", *nodes)}
    if data is not None:
        options = {key: value for key, value in options.items() if key not in IMAGES}
    more = [override for item in made[:1] for override in item.overrides if not of_a_method(override)]
    for item in made[1:]:
        theirs = [override for override in item.overrides if not of_a_method(override)]
        differing = sorted(
            key for key in {**item.shared, **made[0].shared}
            if key not in ("engine", *IMAGES) and item.shared.get(key) != made[0].shared.get(key)
        )  # fmt: skip
        if differing or theirs != more:
            raise UserError(
                f"{made[0].label} and {item.label} were made with different options "
                f"({', '.join(differing) or 'overrides'}), so that they cannot be compared on the same images. "
                "Compress both with the same."
            )
    return {**options, **nodes}, more, images


def _check_measured(rows: Sequence[Network | CompressedNetwork], found: Comparison) -> None:
    """Check that what was measured is what qexp.compress gave.

    Raises:
        UserError: It is another artifact.
    """
    for run_ in found.runs:
        item, record = rows[int(run_.folder.name) % len(rows)], run_.record
        if not isinstance(item, CompressedNetwork) or record.status != "finished":
            continue
        made = item.artifacts.get(record.params["engine"])
        if made is not None and made.name != Path(record.artifact).name:
            raise UserError(
                f"{item.label} was measured as {Path(record.artifact).name}, and qexp.compress made {made.name}: the "
                "network, an option or the code has changed since. Compress it again, and give qexp.compare no options "
                "that change how it is compressed."
            )
