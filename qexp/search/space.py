"""The space of a search: choices, ranges and intervals for any key of the command line.

They are written as Hydra's sweeps write them.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep
from omegaconf import DictConfig, OmegaConf

from qexp.types import UserError, nearest

Settings = dict[str, str]  # values by key, as they are written on the command line
EXAMPLES = "Give choices (8,6,4), int(interval(1,9)), interval(0.1,1), tag(log,interval(0.001,1)) or range(2,9)."


@dataclass(frozen=True)
class Dimension:
    """One axis of a search.

    Attributes:
        key: Key of the command line.
        kind: `categorical`, `int` or `float`.
        bounds: Choices or bounds, as the methods `suggest_*` of Optuna's trials take them.
    """

    key: str
    kind: str
    bounds: dict[str, Any]

    @classmethod
    def of(cls, override: Override) -> Dimension:
        """Read a dimension from an override of the command line.

        Raises:
            UserError: There is nothing between the bounds, a tag is unknown, or `log` is combined with a step or with
                numbers that are not above 0.
        """
        key, value = override.get_key_element(), override.value()
        if isinstance(value, RangeSweep):
            return cls._between(override, sorted(value.range()), abs(value.step), value.tags)
        if isinstance(value, IntervalSweep):
            return cls._between(override, [value.start, value.end], None, value.tags)
        choices = (
            sorted(override.sweep_string_iterator())
            if getattr(value, "shuffle", False)
            else override.sweep_string_iterator()
        )
        return cls(key, "categorical", {"choices": list(dict.fromkeys(choices))})

    @classmethod
    def _between(cls, override: Override, values: list[Any], step: float | None, tags: set[str]) -> Dimension:
        log = "log" in tags
        if (
            not values
            or values[0] > values[-1]
            or tags - {"log"}
            or (log and (values[0] <= 0 or step not in (None, 1)))
        ):
            hint = " A logarithm needs numbers above 0, and no step." * log
            raise UserError(f"{override.input_line} cannot be searched.{hint} {EXAMPLES}")
        whole = all(isinstance(value, int) for value in values)
        bounds = {"low": values[0], "high": values[-1], "log": log}
        return cls(
            override.get_key_element(),
            "int" if whole else "float",
            bounds | ({"step": step} if step and not log else {}),
        )

    def suggest(self, trial: Any) -> str:
        """Return the value that an Optuna trial has in this dimension. If it has none yet, it gets one.

        A float is rounded, so that people can read it, to about 1/10,000 of its own size with `log`, of the step if
        there is one, and of the whole interval otherwise.
        """
        value = getattr(trial, f"suggest_{self.kind}")(self.key, **self.bounds)
        if self.kind != "float":
            return str(value)
        low, high = self.bounds["low"], self.bounds["high"]
        finest = abs(value) if self.bounds["log"] else self.bounds.get("step", high - low)
        return str(min(max(round(value, 4 - math.floor(math.log10(finest or 1))), low), high))

    @property
    def finite(self) -> bool:
        return self.kind != "float" or "step" in self.bounds

    def __str__(self) -> str:
        if self.kind == "categorical":
            return f"{self.key} {', '.join(self.bounds['choices'])}"
        step = f" by {self.bounds['step']:g}" if self.bounds.get("step", 1) != 1 else ""
        return f"{self.key} {self.bounds['low']:g} to {self.bounds['high']:g}{step}{' (log)' * self.bounds['log']}"


class Space:
    """The axes of a search, and the overrides that are the same for all of its trials.

    A trial first chooses from config groups. An option that the chosen method (or engine, ...) does not have is then
    left out of that trial.

    Args:
        overrides: Overrides of the search. The last one for a key counts.
        compose: Composes the config of a job from its overrides.
        is_group: Tells whether a key is that of a config group.

    Raises:
        UserError: No key has several values, a config group is not given names, or no choice has one of the options.
    """

    def __init__(
        self, overrides: list[Override], compose: Callable[[list[str]], DictConfig], is_group: Callable[[str], bool]
    ):
        # The command line comes after the experiment file, so its overrides win.
        last = {override.get_key_element(): override for override in overrides}
        self.fixed = [str(override.input_line) for override in last.values() if not override.is_sweep_override()]
        self.dimensions = [Dimension.of(override) for override in last.values() if override.is_sweep_override()]
        if not self.dimensions:
            raise UserError(
                f"There is nothing to search: hydra.sweeper.params has no key with several values. {EXAMPLES}"
            )
        self.groups = [dimension for dimension in self.dimensions if is_group(dimension.key)]
        self.options = [dimension for dimension in self.dimensions if dimension not in self.groups]
        self.compose = compose
        self._check()

    def _check(self) -> None:
        """Compose every choice once, to find mistakes before the first trial.

        Raises:
            UserError: A config group has an interval instead of names, or none of the choices has one of the options.
            HydraException: A choice does not exist.
        """
        if wrong := next((dimension.key for dimension in self.groups if dimension.kind != "categorical"), None):
            raise UserError(f"{wrong} is chosen by name. {EXAMPLES}")
        first = {dimension.key: dimension.bounds["choices"][0] for dimension in self.groups}
        self.tried = [
            {**first, dimension.key: choice} for dimension in self.groups for choice in dimension.bounds["choices"]
        ] or [first]
        # This is also where Hydra complains about a choice that does not exist.
        known = set().union(*(self._names(tuple(self.overrides(choices))) for choices in self.tried))
        for dimension in self.options:
            if not dimension.key.startswith("+") and dimension.key not in known:
                raise UserError(f"hydra.sweeper.params: {dimension.key} is no option. {nearest(dimension.key, known)}")

    def settings(self, trial: Any) -> Settings:
        """The settings of an Optuna trial, which chooses the values that it does not have yet."""
        chosen = {dimension.key: dimension.suggest(trial) for dimension in self.groups}
        return chosen | {
            dimension.key: dimension.suggest(trial) for dimension in self.options if self._has(dimension.key, chosen)
        }

    def overrides(self, settings: Settings) -> list[str]:
        """The overrides of a job with these settings."""
        return [*self.fixed, *(f"{key}={value}" for key, value in settings.items())]

    def _has(self, key: str, choices: Settings) -> bool:
        return key.startswith("+") or key in self._names(tuple(self.overrides(choices)))

    @property
    def configs(self) -> list[dict[str, Any]]:
        """Configs of jobs that together take each choice of a config group once."""
        return [self._config(tuple(self.overrides(choices))) for choices in self.tried]

    @functools.cache  # noqa: B019  (groups have few combinations, and a command has one space)
    def _config(self, overrides: tuple[str, ...]) -> dict[str, Any]:
        config = self.compose(list(overrides))
        masked = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
        return OmegaConf.to_container(masked)  # type: ignore[return-value]

    @functools.cache  # noqa: B019
    def _names(self, overrides: tuple[str, ...]) -> set[str]:
        return {*_names_in(self._config(overrides))}

    @property
    def finite(self) -> bool:
        return all(dimension.finite for dimension in self.dimensions)

    @property
    def definition(self) -> dict[str, Any]:
        return {dimension.key: [dimension.kind, dimension.bounds] for dimension in self.dimensions}

    def __str__(self) -> str:
        return " × ".join(map(str, self.dimensions))


def _names_in(node: object, prefix: str = "") -> list[str]:
    """Dotted names of all options in a config."""
    if not isinstance(node, Mapping):
        return []
    return [name for key, value in node.items() for name in (f"{prefix}{key}", *_names_in(value, f"{prefix}{key}."))]
