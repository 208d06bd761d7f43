"""What a method is, and the steps that all share: export, layer table, the artifact folder."""

from __future__ import annotations

import logging
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx import GraphModule
from torch.utils.flop_counter import FlopCounterMode

from qexp import coded_file, coding, onnx_file
from qexp.coded_file import coded_bytes, graph_pieces, is_coded, write_coded, zeros_share
from qexp.data.base import ImageData
from qexp.files import building, check_digests, code_digest, file_digest, write_json
from qexp.method.bits import BitWidths
from qexp.method.facts import FACTS_FILE, Facts, layers_csv, weight_range
from qexp.types import Artifact, Layer, Unsupported, UserError, Wants, digest, versions

# torchao registers an enum in a way that torch 2.15 calls deprecated, and torch says so at each import.
logging.getLogger("torch.utils._pytree").addFilter(lambda record: "KernelPreference" not in record.getMessage())

PACKAGES = ("torch", "torchao", "onnx", "onnxscript")
WEIGHTED = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
ANY = Wants(placement="", activation="")  # form of a graph without quantize/dequantize pairs, the same for all engines
PLAIN = (int, float, str, bool, type(None), dict, tuple)  # options of a method
BITS = {"float32": 32, "float16": 16, "bfloat16": 16}


@dataclass(frozen=True)
class Compressed:
    """What a method wrote into the artifact's folder: the graph's file name and each layer's number formats.

    files: names of what lies beside the graph; label: where it is not the method's, known only now; facts: what layers.csv says of
    each layer, by column; notes: what records say of it, by name; network: the fp32 one that the graph was made from, where it is not
    the one that was given.
    """

    graph: str
    layers: tuple[Layer, ...]
    simulated: bool = False
    files: tuple[str, ...] = ()
    label: str = ""
    facts: Mapping[str, Facts] = field(default_factory=dict)
    notes: Mapping[str, str] = field(default_factory=dict)
    network: nn.Module | None = None


class Method(ABC):
    """name: as in conf/method; format: of the graph it writes; bits: `auto` or a number that `supported_bits` holds (the
    first is auto's); torchscript: its classic torch.ao counterpart, for engines that read TorchScript only; teacher: the uncompressed
    network to distil from, where it is not the one that `apply` is given.
    """

    name: str
    format = "pt2"
    supported_bits: tuple[int, ...] = (8,)
    teacher: nn.Module | None = None

    def __init__(self, bits: int | str = "auto", torchscript: Method | None = None):
        self.bits: int | str = self._check_bits(bits)
        self.torchscript = torchscript

    def _check_bits(self, bits: int | str) -> int | str:
        if bits == "auto":
            return self.supported_bits[0]
        widths = BitWidths.parse(bits)
        return widths.weight if widths.weight == widths.activation else f"w{widths.weight}a{widths.activation}"

    @property
    def options(self) -> dict[str, Any]:
        """What of its attributes decides the result: those with plain values."""
        return {name: value for name, value in vars(self).items() if isinstance(value, PLAIN)}

    def label(self, wants: Wants) -> str:
        """How tables name the artifact for settled `wants`, e.g. `static int8`."""
        return f"{self.name} int{self.bits}"

    def settle(self, wants: Wants) -> Wants:
        """What of `wants` decides the artifact; engines for which it is the same share one.

        Errors: Unsupported, with the reason, where this method cannot give what the engine wants.
        """
        if self.bits not in self.supported_bits:
            known = " and ".join(map(str, self.supported_bits))
            raise Unsupported(f"{self.name} works at {known} bits, not at {self.bits}")
        return replace(ANY, formats=(self.format,))

    @abstractmethod
    def apply(self, network: nn.Module, data: ImageData, wants: Wants, folder: Path) -> Compressed:
        """Compress the network (in eval mode, not changed) into `folder` for settled `wants`. Never times, never logs."""

    def compress(self, network: nn.Module, data: ImageData, wants: Wants, folder: Path, source: dict[str, Any]) -> Compressed:
        """`apply`, for methods that must know where the weights come from, as of `make_artifact`."""
        return self.apply(network, data, wants, folder)


def counterpart(method: Method, wants: Wants) -> Method:
    """`method` itself or its TorchScript counterpart, whichever writes what the engine reads. Errors: Unsupported for neither."""
    written = [m for m in (method, method.torchscript) if m]
    for candidate in written:
        if candidate.format in wants.formats:
            return candidate
    gives, reads = (" and ".join(formats) for formats in ([m.format for m in written], wants.formats))
    raise Unsupported(f"{method.name} gives {gives}, and this engine reads {reads}")


def make_artifact(method: Method, network: nn.Module, data: ImageData, wants: Wants, source: dict[str, Any], root: Path) -> Artifact:
    """The artifact of `method` on `network` for engines that want `wants`, found below `root` or made there.

    source: identity of the weights (`model`, `weights` digest or "random", ...), and, where they are what another artifact holds,
    its key as `after`. Its key is the digest of all that determines the result, this package's code included.
    Errors: Unsupported as of `counterpart` and `settle`.
    """
    chosen = counterpart(method, wants)
    settled = chosen.settle(wants)
    name = artifact_name(method, data, wants, source)
    reference = _folder_name("none", 32, ANY, {key: value for key, value in source.items() if key != "after"}, data, {})
    root.mkdir(parents=True, exist_ok=True)
    with FileLock(root / f".{name}.lock"):
        if not (root / name).exists():
            write_artifact(chosen, network.eval(), data, settled, source, root / name, reference)
        else:
            check_digests(root / name, Artifact.read(root / name).files)
    return Artifact.read(root / name)


def artifact_name(method: Method, data: ImageData, wants: Wants, source: dict[str, Any]) -> str:
    """The folder of `make_artifact`, which ends with its key, before it is made. Errors: as of `make_artifact`."""
    chosen = counterpart(method, wants)
    settled = chosen.settle(wants)
    if chosen.name == "none" and settled == ANY:
        return _folder_name("none", 32, ANY, source, data, {})
    return _folder_name(chosen.name, chosen.bits, settled, source, data, chosen.options)


def _folder_name(method: str, bits: int | str, wants: Wants, source: dict[str, Any], data: ImageData, options: dict[str, Any]) -> str:
    key = digest([
        method, bits, repr(wants), options, source, data.spec.to_json(), data.calibration_images,
        code_digest(Path(__file__).parent, *(Path(str(module.__file__)) for module in (onnx_file, coded_file, coding))), torch.__version__,
    ])  # fmt: skip
    width = f"{bits}bit" if isinstance(bits, int) else bits
    return f"{source['model']}-{method}-{width}-{wants.formats[0]}-{key[:10]}".replace("/", "_")


def write_artifact(
    method: Method, network: nn.Module, data: ImageData, wants: Wants, source: dict[str, Any], target: Path, reference: str
) -> None:
    """Make the folder `target`, whole or not at all; the rest as of `make_artifact`."""
    with building(target) as folder:
        compressed = method.compress(network, data, wants, folder, source)
        result = network if compressed.network is None else compressed.network
        parameters = sum(p.numel() for p in result.parameters())
        modules = dict(result.named_modules())
        known = {
            la.name: {**weight_range(modules[la.name].weight.detach()), **compressed.facts.get(la.name, {})} for la in compressed.layers
        }
        (folder / FACTS_FILE).write_text(layers_csv(compressed.layers, known))
        names = (compressed.graph, FACTS_FILE, *compressed.files)
        graph = folder / compressed.graph
        coded, packed = is_coded(graph), packed_bytes(result, compressed.layers)
        artifact = Artifact(
            folder=folder, key=target.name, form=wants, graph=compressed.graph, model=source["model"], method=method.name,
            bits=method.bits, label=compressed.label or method.label(wants), data=data.spec, layers=compressed.layers,
            parameters=parameters, macs=count_macs(result, data)[""], packed_bytes=coded_bytes(graph) if coded else packed,
            reference=reference, files={name: file_digest(folder / name) for name in names}, source=source,
            versions=versions(*PACKAGES), simulated=compressed.simulated, random_weights=source["weights"] == "random", coded=coded,
            sparsity=zeros_share(graph) if compressed.graph.endswith(".pt2") else None, notes=dict(compressed.notes),
        )  # fmt: skip
        write_json(folder / "artifact.json", artifact.to_json())


def packed_bytes(network: nn.Module, layers: tuple[Layer, ...]) -> int:
    """Bytes of all parameters at exactly their bits: weights of `layers` as of `packed_bits`, the rest fp32."""
    modules = dict(network.named_modules())
    bits = 32 * sum(p.numel() for p in network.parameters())
    for layer in layers:
        if layer.quantized:
            weight = modules[layer.name].weight
            if layer.weight in BITS:
                bits += weight.numel() * (BITS[layer.weight] - 32)
            else:
                bits += packed_bits(weight, int(layer.weight.removeprefix("u").removeprefix("int"))) - 32 * weight.numel()
    return (bits + 7) // 8


def packed_bits(weight: Tensor, width: int) -> int:
    """Bits of a weight [O,...] as integers of `width` bits, with one fp32 scale per output channel."""
    return weight.numel() * width + 32 * weight.shape[0]


def example_input(data: ImageData, batch: int = 2) -> Tensor:
    """x[B,C,H,W] of zeros in the shape of the data; two images, since torch.export takes a batch of one for a constant."""
    return torch.zeros(batch, *data.spec.input_shape)


def count_macs(network: nn.Module, data: ImageData) -> dict[str, int]:
    """Multiply-accumulate operations for one image by module path; "" is the whole network.

    Counted by torch's FlopCounterMode, two per multiply-accumulate, whichever module asks for them.
    """
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(example_input(data, 1))
    root = type(network).__name__
    macs = {path.removeprefix(f"{root}."): sum(flops.values()) // 2 for path, flops in counter.get_flop_counts().items()}
    return {**macs, "": counter.get_total_flops() // 2}


def layer_table(network: nn.Module, data: ImageData) -> tuple[Layer, ...]:
    """Every convolution and linear layer of the fp32 network with its parameters and multiply-accumulate operations."""
    macs = count_macs(network, data)
    return tuple(
        Layer(name, type(module).__name__.lower(), sum(p.numel() for p in module.parameters()), macs.get(name, 0))
        for name, module in network.named_modules()
        if isinstance(module, WEIGHTED)
    )


def export(network: nn.Module, data: ImageData) -> ExportedProgram:
    """The network as an ATen graph with a free batch size. Errors: UserError where torch.export cannot trace it."""
    try:
        shapes = ({0: torch.export.Dim("batch")},)
        return torch.export.export(network, (example_input(data),), dynamic_shapes=shapes)
    except Exception as error:
        raise UserError(f"torch.export cannot trace {type(network).__name__}: {str(error)[:600]}") from error


def fold_batch_norms(graph: Any) -> GraphModule:
    """An exported graph with its batch norms folded into the convolutions before them, in fp32."""
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer import Quantizer

    class Nothing(Quantizer):
        """Quantises nothing: what is left of the flow is the folding."""

        def annotate(self, model: GraphModule) -> GraphModule:
            return model

        def validate(self, model: GraphModule) -> None:
            """Nothing was annotated."""

    return convert_pt2e(prepare_pt2e(graph, Nothing()))


def save_graph(program: ExportedProgram, file: Path, coded: bool = False) -> None:
    """Write a `.pt2` without the debug information (source lines and module paths) that would dwarf a small network.

    coded: in the form of qexp.coded_file, small where weights are zero or shared.
    """
    for module in program.graph_module.modules():
        if isinstance(module, GraphModule):
            for node in module.graph.nodes:
                for key in ("stack_trace", "nn_module_stack", "source_fn_stack", "from_node", "torch_fn"):
                    node.meta.pop(key, None)
    program.example_inputs = None
    whole = file.with_name(f".{file.name}")
    torch.export.save(program, whole)
    with zipfile.ZipFile(whole) as archive, zipfile.ZipFile(file, "w") as compressed:
        for entry in archive.infolist():  # the text of the graph, which would be larger than a small network's weights
            text = entry.filename.endswith(".json") and not coded
            compressed.writestr(entry, archive.read(entry), zipfile.ZIP_DEFLATED if text else zipfile.ZIP_STORED)
    whole.unlink()
    if coded:
        write_coded(file, graph_pieces(file))


def with_formats(layers: tuple[Layer, ...], formats: dict[str, tuple[str, str]]) -> tuple[Layer, ...]:
    """`layers` with the (weight, activation) formats found for some of them by name."""
    return tuple(replace(la, weight=formats[la.name][0], activation=formats[la.name][1]) if la.name in formats else la for la in layers)
