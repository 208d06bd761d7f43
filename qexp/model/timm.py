"""Any network of timm by its name, with as many classes and channels as the data has."""

from __future__ import annotations

from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from qexp.model.pretrained import SECONDS, downloaded, fetched, hub_folder, taken_over
from qexp.types import Preprocessing, UserError, nearest


def preprocessing(name: str, in_channels: int) -> Preprocessing | None:
    """How images were prepared for the weights of a network of timm, as its configuration says.

    Returns:
        The preprocessing, or None if the name is unknown or timm is not installed, which `build` then says.
    """
    try:
        import timm
    except ImportError:
        return None
    architecture, _, tag = name.partition(".")
    if architecture not in timm.list_models():
        return None
    known = timm.models.resolve_pretrained_cfg(architecture, tag)
    size, stretched = (known.input_size[1], known.input_size[2]), known.crop_mode == "squash"
    grey = in_channels == 1  # timm adds up the weights of the three colours
    mean, std = ((sum(v) / len(v),) if grey else tuple(v) for v in (known.mean, known.std))
    return Preprocessing(
        in_channels, size, mean, std, "stretch" if stretched else "crop",
        None if stretched else int(size[0] / known.crop_pct), known.interpolation,
    )  # fmt: skip


def build(
    name: str, num_classes: int, in_channels: int, image_size: int, pretrained: bool, **arguments: Any
) -> nn.Module:
    """Make a network of timm x[B,C,S,S] -> logits[B,K].

    Args:
        name: Name of the network, with or without the tag of its weights.
        num_classes: Number K of classes.
        in_channels: Number C of channels.
        image_size: Side S of the images in pixels, for networks that are built for one size.
        pretrained: Whether it gets the weights of the tag, or of timm's default one. With other classes than theirs,
            the head stays random.
        **arguments: Further arguments of `timm.create_model`.

    Raises:
        UserError: timm is not installed, the name is unknown, or the pretrained weights do not exist, are not to be had
            or do not fit the arguments.
    """
    try:
        import timm
    except ImportError as error:
        raise UserError("timm is not installed: pip install qexp[timm]") from error
    _check_name(name)
    architecture, _, tag = name.partition(".")
    known = timm.models.resolve_pretrained_cfg(architecture, tag)
    options = {"img_size": image_size, **arguments} if known.fixed_input_size else arguments
    make = partial(timm.create_model, name, in_chans=in_channels, **options)
    network = make(num_classes=num_classes)
    if not pretrained:
        return network
    file = _weights_file(name, known)
    load = partial(make, pretrained=True, pretrained_cfg_overlay={"file": str(file)})
    return taken_over(network, load, f"timm/{name}", f"{known.architecture}.{known.tag}", file)


def _check_name(name: str) -> None:
    import timm

    architecture, _, tag = name.partition(".")
    names = timm.list_models()
    if architecture not in names:
        renamed = timm.models.get_deprecated_models().get(name)
        close = [renamed] if renamed else get_close_matches(architecture, names, n=5, cutoff=0.5)
        hint = f"did you mean {' or '.join(map(repr, close))}? " if close else ""
        raise UserError(f"timm has no network {name!r}: {hint}timm.list_models() lists all {len(names)}.")
    tagged = timm.list_models(f"{architecture}.*", include_tags=True)
    if tag and name not in tagged:
        raise UserError(f"timm has no weights {name!r}: {nearest(name, tagged)}")


def _weights_file(name: str, known: Any) -> Path:
    """Find the file of the weights that timm knows of a network, or download it.

    Weights on Hugging Face may also lie in torch.hub's folder, under the network's name.
    """
    import timm

    if not known.hf_hub_id and not known.url:
        with_weights = timm.list_models(f"{name.partition('.')[0]}.*", pretrained=True)
        others = f": {nearest(name, with_weights)}" if with_weights else ", under any tag."
        raise UserError(f"timm has no pretrained weights of {name}{others}")
    if not known.hf_hub_id:
        return downloaded(known.url, f"timm/{name}")
    place = hub_folder() / f"{known.architecture}.{known.tag}.safetensors"
    what = f"model.safetensors of {known.hf_hub_id} (Hugging Face)"
    return (
        place if place.exists() else fetched(lambda: _from_hugging_face(known.hf_hub_id), f"timm/{name}", what, place)
    )


def _from_hugging_face(repository: str) -> Path:
    """Find the file of weights of a repository in Hugging Face's cache, or download it into that."""
    import huggingface_hub as hub
    from huggingface_hub.errors import EntryNotFoundError

    names = ("model.safetensors", "pytorch_model.bin")
    cached = [hub.try_to_load_from_cache(repository, name) for name in names]
    if found := [path for path in cached if isinstance(path, str)]:
        return Path(found[0])
    for name in names:
        try:
            # The download itself would try five times, for half a minute, before it gave up.
            hub.get_hf_file_metadata(hub.hf_hub_url(repository, name), timeout=SECONDS)
            return Path(hub.hf_hub_download(repository, name))
        except EntryNotFoundError as error:
            missing = error
    raise missing
