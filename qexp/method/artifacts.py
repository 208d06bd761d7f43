"""Artifact folders, which are found by their keys or made by a method, whole or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from filelock import FileLock
from torch import Tensor, nn

from qexp.artifact import Artifact, EngineSpec, Layer
from qexp.coded_file import coded_bytes, is_coded, zeros_share
from qexp.data.base import ImageData
from qexp.files import RECORDS, building_anew, check_digests, file_digest, made_since, mend, write_json
from qexp.keys import key, plain
from qexp.method.base import ANY_ENGINE, Method, counterpart
from qexp.method.graph import count_macs
from qexp.method.layers import weight_named
from qexp.method.layers_csv import LAYERS_FILE, layers_csv, weight_range
from qexp.method.verification import check_alone
from qexp.model.base import identity_of
from qexp.types import versions

PACKAGES = ("qexp", "torch", "torchao", "onnx", "onnxscript")
# The method of the fp32 artifact that others are compared with, in the form that `plain` gives. It is written out here
# because nothing imports the module of a single method.
REFERENCE = {"_target_": "qexp.method.none.NoCompression", "bits": 32}
GENERATED_MARK = " (generated images)"  # after the label of what was calibrated on these
BITS = {"float32": 32, "float16": 16, "bfloat16": 16}


def make_artifact(
    method: Method, network: nn.Module, data: ImageData, engine_spec: EngineSpec, source: dict[str, Any], root: Path,
    since: int = 0,
) -> Artifact:  # fmt: skip
    """Find the artifact of a method on a network below `root`, or make it there.

    Args:
        method: What compresses the network.
        network: The network in eval mode, with trained weights.
        data: The dataset that the network was trained on.
        engine_spec: What the engines that are to run the artifact ask for.
        source: Identity of the weights. `model` is the id of the model, `weights` is the digest of the weights or
            "random", and `network` is the config that builds the network. If the weights are what another artifact
            holds, `after` is the key of that artifact. `calibration` says which images were generated, if they were.
            A network that no config builds is known by the digest `graph` of what it computes, and for methods that
            train also by `training_graph`.
        root: The folder of all artifacts.
        since: An artifact that was made before this time, in nanoseconds, is made anew. The records of its runs stay.

    Raises:
        Unsupported: The method cannot give what the engines ask for.
        UserError: Files of the artifact that was found are missing or were changed.
    """
    chosen = counterpart(method, engine_spec)
    resolved = chosen.resolve(engine_spec)
    name = artifact_name(method, network, data, engine_spec, source)
    first = {what: value for what, value in source.items() if what not in ("after", "training_graph")}
    reference = _folder_name("none", 32, ANY_ENGINE, REFERENCE, network, data, first)
    root.mkdir(parents=True, exist_ok=True)
    with FileLock(root / f".{name}.lock"):
        mend(root / name, RECORDS)
        if made_since(root / name / LAYERS_FILE, since):  # unlike artifact.json, it is never written to later
            check_digests(root / name, Artifact.read(root / name).files)
        else:
            chosen.since = since
            write_artifact(chosen, network.eval(), data, resolved, source, root / name, reference)
    return Artifact.read(root / name)


def artifact_name(
    method: Method, network: nn.Module, data: ImageData, engine_spec: EngineSpec, source: dict[str, Any]
) -> str:
    """Tell the name of the folder of `make_artifact` before it is made. It ends with the artifact's key.

    Arguments and errors are those of `make_artifact`.
    """
    chosen = counterpart(method, engine_spec)
    node, training = plain(chosen, "method"), data.training_options if chosen.trains else None
    return _folder_name(chosen.name, chosen.bits, chosen.resolve(engine_spec), node, network, data, source, training)


def _folder_name(
    method: str, bits: int | str, engine_spec: EngineSpec, node: dict[str, Any], network: nn.Module, data: ImageData,
    source: dict[str, Any], training: dict[str, Any] | None = None,
) -> str:  # fmt: skip
    code = [data] if identity_of(network) else [network, data]
    made = key(
        "artifact", code=["qexp.method.artifacts", *code], name=method, method=node, engine_spec=engine_spec,
        source=source, spec=data.spec, calibration_images=data.calibration_images, training=training,
    )  # fmt: skip
    width = f"{bits}bit" if isinstance(bits, int) else bits
    return f"{source['model']}-{method}-{width}-{engine_spec.formats[0]}-{made[:10]}".replace("/", "_")


def write_artifact(
    method: Method,
    network: nn.Module,
    data: ImageData,
    engine_spec: EngineSpec,
    source: dict[str, Any],
    target: Path,
    reference: str,
) -> None:
    """Make the folder of an artifact, whole or not at all.

    Arguments that are not listed here are those of `make_artifact`.

    Args:
        engine_spec: What the engines ask for, as the method's `resolve` returned it.
        target: The folder to make.
        reference: Folder name of the fp32 artifact of the same baseline.
    """
    check_alone(network, data.calibration())
    with building_anew(target, RECORDS) as folder:
        compressed = method.compress(network, data, engine_spec, folder, source)
        result = network if compressed.network is None else compressed.network
        parameters = sum(p.numel() for p in result.parameters())
        known = {
            la.name: {**weight_range(weight_named(result, la.name).detach()), **compressed.statistics.get(la.name, {})}
            for la in compressed.layers
        }
        (folder / LAYERS_FILE).write_text(layers_csv(compressed.layers, known))
        names = (compressed.graph, LAYERS_FILE, *compressed.files)
        graph = folder / compressed.graph
        coded, packed = is_coded(graph), packed_bytes(result, compressed.layers)
        label = compressed.label or method.label(engine_spec)
        if method.calibrates and "calibration" in source:
            label += GENERATED_MARK
        artifact = Artifact(
            folder=folder, key=target.name, engine_spec=engine_spec, graph=compressed.graph, model=source["model"],
            method=method.name, bits=method.bits, label=label, data=data.spec,
            layers=compressed.layers, parameters=parameters, macs=count_macs(result, data),
            packed_bytes=coded_bytes(graph) if coded else packed, reference=reference,
            files={name: file_digest(folder / name) for name in names}, source=source, versions=versions(*PACKAGES),
            simulated=compressed.simulated, random_weights=source["weights"] == "random", coded=coded,
            sparsity=zeros_share(graph) if compressed.graph.endswith(".pt2") else None, notes=dict(compressed.notes),
            islands=compressed.islands, product_macs=compressed.product_macs,
        )  # fmt: skip
        write_json(folder / "artifact.json", artifact.to_json())


def packed_bytes(network: nn.Module, layers: tuple[Layer, ...]) -> int:
    """Count the bytes of all parameters, each at exactly its bits.

    Weights that became integers count as in `packed_bits`, weights in 16-bit floating point at 16 bits, and everything
    else in fp32.
    """
    bits = 32 * sum(p.numel() for p in network.parameters())
    for layer in layers:
        if layer.quantized:
            weight = weight_named(network, layer.name)
            if layer.weight in BITS:
                bits += weight.numel() * (BITS[layer.weight] - 32)
            else:
                bits += (
                    packed_bits(weight, int(layer.weight.removeprefix("u").removeprefix("int"))) - 32 * weight.numel()
                )
    return (bits + 7) // 8


def packed_bits(weight: Tensor, width: int) -> int:
    """Count the bits of weight[O,...] as integers of `width` bits, with one fp32 scale per output channel."""
    return weight.numel() * width + 32 * weight.shape[0]
