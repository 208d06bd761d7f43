"""The options of methods in which runs differ. They tell rows apart that have the same model, method and bits."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from qexp.records import Record

# Keys of methods and stages that tell no rows apart: bits are part of the label, and the others say how, not what.
NOT_OPTIONS = ("bits", "torchscript", "trainer", "timer")
WHOLE = ("layer_bits",)  # dictionaries that are one option: their keys are names of layers


def differing_options(records: list[Record], taken: Collection[str] = ()) -> dict[str, str]:
    """Find the options in which records of the same method differ.

    An option that always repeats another, as `method.seed` repeats `seed`, is left out.

    Args:
        records: Records of the runs that are shown beside each other.
        taken: Titles that no option may have, because other columns have them.

    Returns:
        Titles by the names that set the options on the command line. A title is the last part of the name, or the
        whole name if that part is taken or two options share it.
    """
    rows = [(_method(record), option_texts(record)) for record in records]
    kept: list[str] = []
    for name in dict.fromkeys(name for _, texts in rows for name in texts):
        values = {(method, texts.get(name)) for method, texts in rows}
        repeats = any(all(name not in texts or texts.get(other) == texts[name] for _, texts in rows) for other in kept)
        if len(values) > len({method for method, _ in rows}) and not repeats:
            kept.append(name)
    short = [name.rpartition(".")[2] for name in kept]
    return {
        name: name if title in taken or short.count(title) > 1 else title
        for name, title in zip(kept, short, strict=True)
    }


def option_texts(record: Record) -> dict[str, str]:
    """The seed and all options of the record's method, as they are written on the command line.

    The result is empty if no method ran.
    """
    method = record.config.get("method")
    if not method:
        return {}
    seed = {key: value for key, value in record.config.items() if key == "seed"}
    return {name: _text(value) for name, value in (seed | _flat(method, "method.")).items()}


def option_suffix(record: Record, titles: Mapping[str, str]) -> str:
    """The end of a run's name that tells it apart from the others, such as ` · observer mse`.

    Args:
        record: Record of the run.
        titles: Titles of the options in which all runs beside it differ, by name (see `differing_options`).
    """
    texts = option_texts(record)
    return "".join(f" · {title} {texts[name]}" for name, title in titles.items() if name in texts)


def _method(record: Record) -> object:
    """The class of the method, and those of its stages if it is a chain."""
    method = record.config.get("method") or {}
    return method.get("_target_"), tuple(stage.get("_target_") for stage in method.get("stages", {}).values())


def _flat(options: dict[str, Any], prefix: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in options.items():
        if key in ("_target_", "_recursive_", "_partial_", *NOT_OPTIONS):
            continue
        found |= (
            _flat(value, f"{prefix}{key}.")
            if isinstance(value, dict) and key not in WHOLE
            else {f"{prefix}{key}": value}
        )
    return found


def _text(value: object) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
