"""Options of the method that a sweep goes through: what tells rows apart that have the same model, method and bits."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from qexp.types import Record

# Of methods and of stages: bits are in the label, the others say how and not what.
NOT_OPTIONS = ("bits", "torchscript", "trainer", "timer")
WHOLE = ("layer_bits",)  # one value each: their keys are names of layers, not of options


def differing_options(records: list[Record], taken: Collection[str] = ()) -> dict[str, str]:
    """Titles of the options in which records of the same method differ, by the name that sets them on the command line.

    A title is the name's last part, or all of the name where two options would have the same title. An option that always
    repeats another, as `method.seed` repeats `seed`, is left out.

    Args:
        records: Of the runs that stand beside each other.
        taken: Titles that no option may have, as other columns have them.
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
    """The seed and all options of the record's method, as they are written on the command line; nothing where no method ran."""
    method = record.config.get("method")
    if not method:
        return {}
    seed = {key: value for key, value in record.config.items() if key == "seed"}
    return {name: _text(value) for name, value in (seed | _flat(method, "method.")).items()}


def option_suffix(record: Record, titles: Mapping[str, str]) -> str:
    """The end of a record's name, which tells it apart from the others: ` · observer mse`.

    Args:
        record: Of the run that is named.
        titles: The differing options of all runs beside it.
    """
    texts = option_texts(record)
    return "".join(f" · {title} {texts[name]}" for name, title in titles.items() if name in texts)


def _method(record: Record) -> object:
    """What runs; of a chain, all of its stages."""
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
