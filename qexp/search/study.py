"""An Optuna study in its storage: which settings were tried, and which come next.

Whenever a process is killed, the next one can continue its study.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from hydra.utils import instantiate
from omegaconf import DictConfig

from qexp.report.best import Best
from qexp.search.space import Settings, Space
from qexp.types import UserError, digest, first_line

ATTEMPTS = 10  # how often the sampler may try to propose settings that were not tried yet
RANDOM_ATTEMPTS = 100  # how often random settings are drawn after that, if the space is infinite
# Names of attributes of studies and trials.
DEFINITION, EXHAUSTED, PLACE, KEY, REASON, REPEATS = "definition", "exhausted", "place", "key", "reason", "repeats"


@contextmanager
def opened(
    outputs: Path, url: str, name: str, objectives: Mapping[str, str], definition: dict[str, Any], anew: bool
) -> Iterator[Any]:
    """Open a study, which no other process can open meanwhile. It is created if it does not exist.

    Args:
        outputs: Folder for the locks.
        url: Optuna's storage.
        name: Name of the study.
        objectives: Direction of each metric, `minimize` or `maximize`.
        definition: Everything that decides what the search finds. It is stored with the study.
        anew: Whether to delete a study of that name first.

    Yields:
        The Optuna study.

    Raises:
        UserError: Another process has the study open, it was created with another definition, Optuna is not installed,
            or the storage cannot be opened.
    """
    optuna = _optuna()
    outputs.mkdir(parents=True, exist_ok=True)
    try:
        lock = FileLock(outputs / f".search-{digest([url, name])[:16]}.lock", timeout=0).acquire()
    except Timeout as error:
        raise UserError(
            f"The search {name} runs already. Wait for it, or give this one another hydra.sweeper.study=NAME."
        ) from error
    with lock:
        try:
            with FileLock(outputs / ".searches.lock"):  # two processes that set up one database would ruin it
                storage = optuna.storages.get_storage(url)
                if anew and name in optuna.get_all_study_names(storage):
                    optuna.delete_study(study_name=name, storage=storage)
                made = {
                    "study_name": name,
                    "storage": storage,
                    "directions": list(objectives.values()),
                    "load_if_exists": True,
                }
                study = optuna.create_study(**made)
        except Exception as error:
            raise UserError(f"hydra.sweeper.storage={url} cannot be opened: {first_line(error)}") from error
        before = study.user_attrs.get(DEFINITION)
        if before is None:
            study.set_user_attr(DEFINITION, definition)
        elif before != definition:
            changed = ", ".join(key for key in definition if before.get(key) != definition[key])
            raise UserError(
                f"The search {name} had other {changed}. "
                "Give another hydra.sweeper.study=NAME, or force=true to begin anew."
            )
        yield study
        storage.remove_session()


def _optuna() -> Any:
    try:
        import optuna
    except ImportError as error:
        raise UserError("Optuna is not installed: pip install qexp[search]") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    return optuna


@dataclass
class Proposal:
    """An Optuna trial that is to be run, and its settings."""

    trial: Any
    settings: Settings


class Study:
    """Asks Optuna for settings that were not tried yet, and tells it their results.

    Args:
        study: The Optuna study.
        space: Space of the search.
        sampler: Config node of an Optuna sampler.
        seed: Seed of the proposals.
        retry: Whether to try again what failed before.
    """

    def __init__(self, study: Any, space: Space, sampler: DictConfig, seed: int, retry: bool):
        import optuna

        self.optuna, self.states = optuna, optuna.trial.TrialState
        self.study, self.space, self.sampler, self.seed = study, space, sampler, seed
        # By settings: the frozen trial that ended with them last, or None while one is running.
        self.tried: dict[frozenset[tuple[str, str]], Any] = {}
        self.interrupted, failed = [], {}
        for trial in study.get_trials(deepcopy=False):
            if trial.state == self.states.RUNNING:
                self.interrupted.append(trial)
            elif trial.state.is_finished() and REPEATS not in trial.user_attrs:
                self.tried[_name(space.settings(_Had(trial.params)))] = trial
        if retry:
            failed = {name: trial for name, trial in self.tried.items() if trial.state == self.states.FAIL}
        for name in failed:
            del self.tried[name]
        self.again = [trial.params for trial in failed.values()]

    @property
    def ended(self) -> list[Any]:
        """The trials that ended, as Optuna keeps them: one for each set of settings, in the order of their numbers."""
        return sorted((trial for trial in self.tried.values() if trial is not None), key=lambda trial: trial.number)

    def propose(self, count: int) -> list[Proposal]:
        """Propose settings to try next.

        Trials that were interrupted come first and alone, so that what is proposed after them knows their results, as
        if nothing had happened.

        Args:
            count: How many proposals are wanted at most.

        Returns:
            The proposals, of which there are none if no other settings are left.
        """
        found: list[Proposal] = []
        while self.interrupted and len(found) < count:
            self.study.sampler = self._made(0)
            begun = self.optuna.trial.Trial(self.study, self.interrupted.pop(0)._trial_id)
            found += [proposal] if (proposal := self._new(begun)) else []
        if found:
            return found
        while len(found) < count and (proposal := self._next()):
            found.append(proposal)
        return found

    def _next(self) -> Proposal | None:
        if self.again:
            self.study.enqueue_trial(self.again.pop(0))
        elif EXHAUSTED in self.study.user_attrs:
            return None
        for sampler in self._samplers():
            self.study.sampler = sampler
            if proposal := self._new(self.study.ask()):
                return proposal
        self.study.set_user_attr(EXHAUSTED, True)
        return None

    def _samplers(self) -> Iterator[Any]:
        yield from map(self._made, range(ATTEMPTS))
        if self.space.finite:
            yield self.optuna.samplers.BruteForceSampler(self._seed(ATTEMPTS))  # finds the settings that are left
        else:
            yield from (self.optuna.samplers.RandomSampler(self._seed(ATTEMPTS + n)) for n in range(RANDOM_ATTEMPTS))

    def _made(self, attempt: int) -> Any:
        return instantiate(self.sampler, seed=self._seed(attempt))

    def _seed(self, attempt: int) -> int:
        """The seed of an attempt, which makes a search propose the same whether or not another process continued it."""
        return int(digest([self.seed, len(self.tried), attempt])[:8], 16)

    def _new(self, trial: Any) -> Proposal | None:
        settings = self.space.settings(trial)
        if _name(settings) in self.tried:
            trial.set_user_attr(REPEATS, True)
            self._end(trial, self.states.FAIL)
            return None
        self.tried[_name(settings)] = None
        return Proposal(trial, settings)

    def tell(
        self, proposal: Proposal, values: list[float], reason: str, failed: bool = False, **attributes: str
    ) -> None:
        """Tell Optuna the result of a proposal.

        Args:
            proposal: What was run.
            values: Values of the objectives, or none if there is a reason instead.
            reason: Why there are no values: the trial failed, or what it asks for cannot exist.
            failed: Whether it failed.
            **attributes: Further attributes of the trial.
        """
        for name, value in {REASON: reason, **attributes}.items():
            proposal.trial.set_user_attr(name, value)
        state = self.states.COMPLETE if values else self.states.FAIL if failed else self.states.PRUNED
        self.tried[_name(proposal.settings)] = self._end(proposal.trial, state, values or None)

    def _end(self, trial: Any, state: Any, values: list[float] | None = None) -> Any:
        # What samplers do when a trial ends is meant for optimize(): BruteForceSampler would stop its loop, which does
        # not exist here.
        self.study.sampler = self.optuna.samplers.RandomSampler()
        return self.study.tell(trial, values, state)

    def best(self) -> list[Best]:
        """The trials of the Pareto set (Optuna's `best_trials`), in the order of their numbers."""
        trials = sorted(self.study.best_trials, key=lambda trial: trial.number)
        return [
            Best(t.number, self.space.settings(_Had(t.params)), list(t.values), t.user_attrs.get(KEY, ""))
            for t in trials
        ]

    def count(self, state: str) -> int:
        """The number of trials that ended in a state of Optuna's, such as `COMPLETE`."""
        return sum(trial.state == self.states[state] for trial in self.ended)


class _Had:
    """Stands in for a trial that ended, and suggests the values that the trial had."""

    def __init__(self, params: dict[str, Any]):
        self.params = params

    def __getattr__(self, suggest: str) -> Any:
        return lambda key, **_: self.params[key]


def _name(settings: Settings) -> frozenset[tuple[str, str]]:
    return frozenset(settings.items())
