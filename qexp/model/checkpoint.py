"""Loads the checkpoints that people have: weights with any prefix, in any nesting, beside whatever else was saved."""

from __future__ import annotations

import argparse
import pathlib
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from qexp.model.base import load_weights, shortened
from qexp.types import UserError, nearest

COUNTER = "num_batches_tracked"  # batch norm's counter, which came late to PyTorch and plays no part in inference
TRIED = 8  # names that prefixes are looked for with; the longest are least likely to stand in others
DEEPEST = 4  # nested dicts that are looked into
# Names under which training scripts keep the top-1 accuracy that they reached: best_prec1, val_acc, acc@1, ...
CLAIM = re.compile(r"((best|val|valid|test|eval)[ _/-]?)*(acc|accuracy|prec|precision|top)[@ _-]?1?", re.IGNORECASE)


@dataclass(frozen=True)
class Match:
    """Weights of a checkpoint under the names that they have in a network.

    Attributes:
        place: Where in the checkpoint they are: the keys of the dicts that hold them, joined by dots.
        weights: Those of the network, by its names.
        left: Names of what else is there, and what they are without the prefix.
        total: How many the network has.
    """

    place: str
    weights: dict[str, Tensor]
    left: dict[str, str]
    total: int

    @property
    def fit(self) -> float:
        """The share of the network's weights that are there."""
        return sum(not name.endswith(COUNTER) for name in self.weights) / max(1, self.total)


def load_checkpoint(network: nn.Module, file: Path, place: str | None = None, trusted: bool = False) -> str:
    """Load the weights of a checkpoint into the network.

    Of several state dicts in a file, the one is taken that has most of the network's weights, and among equals the
    first. Whatever prefix all of its names have is taken away, or added.

    Args:
        network: The network.
        file: A `.safetensors` file, a file of torch.save or a TorchScript file.
        place: The key of the state dict, such as `state_dict_ema`, or several joined by dots. None finds it.
        trusted: Whether Python objects may be unpickled, which can run code.

    Returns:
        What was taken and what was left out, or an empty text if the file has nothing but the weights.

    Raises:
        UserError: The file is missing or damaged, holds Python objects, or has no weights that fit the network.
    """
    found = state_dicts(read_checkpoint(file, trusted))
    if place is not None and place not in found:
        raise UserError(f"The checkpoint {file} has no weights under {place!r}. {nearest(place, found)}")
    if not found:
        raise UserError(
            f"The checkpoint {file} is not a state dict (names to tensors), and holds none. "
            "Save one: torch.save(network.state_dict(), FILE)."
        )
    matches = [matched(network, name, found[name]) for name in ([place] if place is not None else found)]
    best = max(matches, key=lambda match: match.fit)  # the first of equals
    foreign = [n for n, bare in best.left.items() if best.fit < 1 or _may_be_of_another_network(bare, network)]
    load_weights(network, {**best.weights, **{name: found[best.place][name] for name in foreign}}, str(file))
    others = [match.place for match in matches if match is not best and match.fit == best.fit]
    return _told(best, others)


def _told(match: Match, others: list[str]) -> str:
    parts = []
    if others:
        parts.append(f"those of {match.place}; checkpoint_key={' or '.join(others)} takes others of the same file")
    if match.left:
        parts.append(f"left out {shortened([*match.left], 4)}, which this network does not have")
    return "; ".join(parts)


def read_checkpoint(file: Path, trusted: bool) -> Any:
    """Read whatever a file holds, without running code unless it is trusted.

    Raises:
        UserError: The file is missing or damaged, or holds Python objects and is not trusted.
    """
    if not file.is_file():
        raise UserError(
            f"There is no checkpoint file {file}. Give checkpoint=auto, random, a folder of train.py or a file."
        )
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        if _is_torchscript(file):
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "`torch.jit.load` is deprecated")
                return torch.jit.load(str(file), map_location="cpu").state_dict()
        with torch.serialization.safe_globals(_harmless()):
            return torch.load(file, map_location="cpu", weights_only=not trusted)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"The checkpoint {file} was not loaded: it is damaged, or holds Python objects, which can run code. "
            "Save only the weights, torch.save(network.state_dict(), FILE), or give trust_checkpoint=true if you "
            "trust the file."
        ) from error
    except Exception as error:  # the libraries raise all sorts of errors on damaged bytes
        why = f"{type(error).__name__}: {str(error).partition(chr(10))[0][:200]}"
        raise UserError(f"The checkpoint {file} is truncated or no checkpoint: {why}") from error


def claimed_top1(file: Path, trusted: bool = False) -> tuple[str, float] | None:
    """The top-1 accuracy that a checkpoint says it reached, if it holds such a number beside its weights.

    Args:
        file: The file, which is one that `load_checkpoint` has taken.
        trusted: As `load_checkpoint` takes it.

    Returns:
        The name of the entry and the accuracy as a fraction, of the largest if there are several, or None.
    """
    content = read_checkpoint(file, trusted)
    found: dict[str, float] = {}
    for name, value in content.items() if isinstance(content, Mapping) else ():
        if not isinstance(name, str) or not CLAIM.fullmatch(name) or isinstance(value, bool):
            continue
        if isinstance(value, (int, float, np.number)) or (isinstance(value, Tensor) and value.numel() == 1):
            found[name] = float(value) if float(value) <= 1 else float(value) / 100
    likely = {name: value for name, value in found.items() if 0 < value <= 1}
    return max(likely.items(), key=lambda item: item[1], default=None)


def _is_torchscript(file: Path) -> bool:
    if not zipfile.is_zipfile(file):
        return False
    with zipfile.ZipFile(file) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def _harmless() -> list[Any]:
    """What people save beside weights and what cannot run code: arguments of a command line, paths, NumPy's values."""
    scalar, rebuild = np.float64(0).__reduce__()[0], np.zeros(0).__reduce__()[0]
    numpy: list[Any] = [np.dtype, np.ndarray, *{type(np.dtype(kind)) for kind in np.typecodes["All"]}]
    for module in ("numpy.core.multiarray", "numpy._core.multiarray"):  # before and since NumPy 2
        numpy += [(scalar, f"{module}.scalar"), (rebuild, f"{module}._reconstruct")]
    return [argparse.Namespace, pathlib.PosixPath, pathlib.WindowsPath, pathlib.PurePosixPath, *numpy]


def state_dicts(content: Any, place: str = "", depth: int = 0) -> dict[str, dict[str, Tensor]]:
    """Find all dicts of names to tensors, by the keys that lead to them, joined by dots. The outermost comes first.

    Values that are no tensors, such as an epoch, are left out, and modules count as their state dicts.
    """
    if isinstance(content, nn.Module):
        content = content.state_dict()
    if not isinstance(content, Mapping) or depth > DEEPEST:
        return {}
    named = {key: value for key, value in content.items() if isinstance(key, str)}
    tensors = {key: value for key, value in named.items() if isinstance(value, Tensor)}
    found = {place: tensors} if tensors else {}
    for key, value in named.items():
        found |= state_dicts(value, f"{place}.{key}".lstrip("."), depth + 1)
    return found


def matched(network: nn.Module, place: str, weights: dict[str, Tensor]) -> Match:
    """Take away or add the prefix by which the names of a state dict and those of the network differ."""
    own, theirs = ([name for name in names if not name.endswith(COUNTER)] for names in (network.state_dict(), weights))
    away, added = {"", *_prefixes(theirs, own)}, _prefixes(own, theirs)
    changes = [
        *({name: name.removeprefix(prefix) for name in weights if name.startswith(prefix)} for prefix in sorted(away)),
        *({name: prefix + name for name in weights} for prefix in sorted(added)),
    ]
    known = network.state_dict().keys()
    best = max(changes, key=lambda names: len(known & {*names.values()}))
    taken = {name: weights[stored] for stored, name in best.items() if name in known}
    left = {
        name: best.get(name, name) for name in weights if best.get(name) not in known and not name.endswith(COUNTER)
    }
    return Match(place, taken, left, len(own))


def _prefixes(names: list[str], ends: list[str]) -> set[str]:
    """What stands in front of the longest of the `ends` in those `names` that end with it."""
    longest = sorted(ends, key=len)[-TRIED:]
    return {name.removesuffix(end) for end in longest for name in names if name != end and name.endswith(end)}


def _may_be_of_another_network(name: str, network: nn.Module) -> bool:
    """Whether an entry that the network lacks lies in a part that the network has: it is then another network's.

    Auxiliary heads, losses and metrics are parts of their own.
    """
    part, dot, _ = name.partition(".")
    return bool(dot) and (part.isdigit() or part in {own.partition(".")[0] for own in network.state_dict()})
