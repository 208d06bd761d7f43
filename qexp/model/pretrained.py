"""Pretrained weights of libraries: where their files are, and what was loaded into a network."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from urllib.parse import urlparse
from urllib.request import Request, urlopen

import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from qexp.types import UserError

SECONDS = 10  # in which a server must answer


def wanted(model: DictConfig) -> bool:
    """Whether a `model` config asks for pretrained weights."""
    return model.get("pretrained") is True


def without_pretrained(model: DictConfig) -> DictConfig:
    """The `model` config of the same network with random weights, for those that get others from elsewhere."""
    if not wanted(model):
        return model
    model = copy.deepcopy(model)
    model.pretrained = False
    return model


def hub_folder() -> Path:
    """torch.hub's folder of weights, where those of other libraries may be put too."""
    return Path(torch.hub.get_dir()) / "checkpoints"


def downloaded(url: str, name: str) -> Path:
    """The file that a URL names in torch.hub's folder, which is downloaded if it is not there.

    Args:
        url: Where the file is to be had.
        name: The network's name, for the message.

    Raises:
        UserError: It cannot be downloaded. The message says which file to put where.
    """
    file = hub_folder() / Path(urlparse(url).path).name

    def download() -> Path:
        urlopen(Request(url, method="HEAD"), timeout=SECONDS).close()  # torch.hub would wait for minutes
        file.parent.mkdir(parents=True, exist_ok=True)
        digest = torch.hub.HASH_REGEX.search(file.name)
        torch.hub.download_url_to_file(url, str(file), digest[1] if digest else None)
        return file

    return file if file.exists() else fetched(download, name, url, file)


def fetched(fetch: Callable[[], Path], name: str, what: str, place: Path) -> Path:
    """Call a function that downloads a file.

    Args:
        fetch: The function, which returns where the file is.
        name: The network's name.
        what: The file, as a person finds it elsewhere.
        place: Where it is looked for first.

    Raises:
        UserError: The function failed.
    """
    try:
        return fetch()
    except Exception as error:  # each library has its own errors for being offline
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise UserError(
            f"The pretrained weights of {name} are not on this machine, and downloading them failed ({reason}). "
            f"Download {what} elsewhere and save it as {place}, or give other weights (compress.py: checkpoint=FILE, "
            "train.py: init=FILE)."
        ) from error


def taken_over(network: nn.Module, load: Callable[[], nn.Module], name: str, weights: str, file: Path) -> nn.Module:
    """Load pretrained weights into a network, and write down in it which they are.

    Args:
        network: The network.
        load: Makes the same network with the weights and with their classes. Where the data has others, the head keeps
            its random weights.
        name: The network's name, for the message.
        weights: What the library calls the weights.
        file: Their file, for the message.

    Returns:
        The same network.

    Raises:
        UserError: `load` failed.
    """
    try:
        theirs, own = load().state_dict(), network.state_dict()
    except UserError:
        raise
    except Exception as error:  # torch and safetensors raise all sorts of errors on damaged files
        why = " ".join(str(error).split())[:300]
        raise UserError(
            f"The pretrained weights in {file} do not fit {name} with these arguments, or are damaged: {why}"
        ) from error
    head = [key for key in own if key not in theirs or own[key].shape != theirs[key].shape]
    network.load_state_dict({key: tensor if key in head else theirs[key] for key, tensor in own.items()})
    told = f"pretrained ({weights})"
    if head:
        untrained = " and ".join(dict.fromkeys(key.rpartition(".")[0] for key in head))
        told += f", except {untrained}, untrained for these classes: accuracy is chance until train.py fine-tunes it"
    network.pretrained_note = told  # type: ignore[assignment]
    return network


def note_of(network: nn.Module) -> str:
    """What `taken_over` wrote down, or only that the weights are pretrained if the user's own function loaded them."""
    return str(getattr(network, "pretrained_note", "pretrained"))


def weights_digest(network: nn.Module) -> str:
    """SHA-256 (hex) of all weights and buffers with their names."""
    return tensors_digest(network.state_dict())


def tensors_digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 (hex) of tensors with their names."""
    total = hashlib.sha256()
    for name, tensor in tensors.items():
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        total.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return total.hexdigest()
