"""Searches with Optuna, which is what `hydra/sweeper=optuna` does instead of trying all combinations.

Optuna proposes settings, the launcher runs them as jobs, and the jobs' records are told to Optuna.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.plugins.sweeper import Sweeper
from omegaconf import DictConfig, OmegaConf

from qexp.jobs.reuse import EndedRuns
from qexp.keys import key
from qexp.records import Record
from qexp.report.best import Search
from qexp.search.objectives import check_objectives, values_of
from qexp.search.space import Space
from qexp.search.study import KEY, PLACE, Proposal, Study, opened
from qexp.tracking.store import read_record, write_record
from qexp.types import UserError

# Keys of the config that do not affect what a search finds.
INDIFFERENT = ("hydra", "outputs", "tracking", "force", "retry_failed", "on_error", "phase", "picture")
# All code that a trial may run.
CODE = [f"qexp.{package}" for package in ("data", "engine", "jobs", "measure", "method", "model", "search")]
ENDED = {"COMPLETE": "finished", "PRUNED": "unsupported", "FAIL": "failed"}


@dataclass(frozen=True)
class Options:
    """The options of a search, which conf/hydra/sweeper/optuna.yaml explains.

    Raises:
        UserError: A number is out of range.
    """

    objectives: Mapping[str, str]
    params: Mapping[str, Any]
    sampler: DictConfig
    trials: int
    n_jobs: int
    seed: int
    storage: str
    study: str | None

    def __post_init__(self) -> None:
        for name in ("trials", "n_jobs"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise UserError(f"hydra.sweeper.{name}={value} is out of range; give a whole number of at least 1.")


def search(options: Options, sweeper: Sweeper, arguments: list[str]) -> None:
    """Try settings until there are `options.trials`, and write what was found to the folder of the sweep.

    Args:
        options: Options of the search.
        sweeper: Hydra's sweeper, whose launcher runs each trial as a job.
        arguments: Arguments of the command line.

    Raises:
        UserError: The objectives or options have no meaning, or the study cannot be opened.
    """
    assert sweeper.hydra_context and sweeper.config
    config, loader = sweeper.config, sweeper.hydra_context.config_loader
    objectives = dict(options.objectives)
    check_objectives(objectives, config)
    if config.phase != "all":
        raise UserError(
            f"phase={config.phase} measures nothing, or makes nothing, and a search needs both: leave phase=all."
        )
    overrides = OverridesParser.create(loader).parse_overrides(
        [*(f"{key}={value}" for key, value in options.params.items()), *arguments]
    )
    space = Space(
        overrides,
        lambda words: loader.load_sweep_config(config, words),
        lambda key: bool(loader.get_group_options(key)),
    )
    sampler: Any = OmegaConf.to_container(options.sampler)
    if sampler["_target_"].endswith("BruteForceSampler") and not space.finite:
        raise UserError(
            f"A grid of {space} has no end: give intervals as range(FIRST,END,STEP), or choose another sampler."
        )
    configs = [{name: value for name, value in each.items() if name not in INDIFFERENT} for each in space.configs]
    definition = {
        "space": space.definition, "objectives": objectives, "sampler": sampler, "seed": options.seed,
        "options": key("options", fixed=space.fixed, configs=configs), "code": key("code", code=CODE),
    }  # fmt: skip
    name = options.study or f"qexp-{key('study', definition=definition)[:12]}"
    with opened(Path(config.outputs), options.storage, name, objectives, definition, config.force) as study:
        Trials(options, sweeper, name, Study(study, space, options.sampler, options.seed, config.retry_failed)).run()


class Trials:
    """The trials of one command. Those of earlier commands are taken over as records, and new ones are run."""

    def __init__(self, options: Options, sweeper: Sweeper, name: str, study: Study):
        assert sweeper.config
        self.options, self.sweeper, self.config, self.name, self.study = options, sweeper, sweeper.config, name, study
        self.outputs, self.sweep = Path(self.config.outputs), Path(self.config.hydra.sweep.dir)
        self.jobs = 0

    def run(self) -> None:
        print(self.plan(), flush=True)
        self.sweep.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(self.config, self.sweep / "multirun.yaml")
        for trial in self.study.ended:
            self.take_over(trial)
        self.note()
        while batch := self.study.propose(min(self.options.n_jobs, self.options.trials - len(self.study.ended))):
            overrides = [self.study.space.overrides(proposal.settings) for proposal in batch]
            self.sweeper.validate_batch_is_legal(overrides)
            assert self.sweeper.launcher
            returns = self.sweeper.launcher.launch(overrides, initial_job_idx=self.jobs)
            left = [self.tell(proposal, self.jobs + place) for place, proposal in enumerate(batch)]
            self.jobs += len(batch)
            self.note()
            for job in returns:
                job.return_value  # noqa: B018  (raises what the job raised)
            if any(left):
                return

    def plan(self) -> str:
        """Say in one line what is searched for, and in how many trials."""
        ended, trials = len(self.study.ended), self.options.trials
        wanted = ", ".join(f"{direction} {metric}" for metric, direction in self.options.objectives.items())
        return f"search of {trials} trials{f', {ended} of them done' * bool(ended)}: {wanted} over {self.study.space}"

    def take_over(self, trial: Any) -> None:
        """Add the record of a trial of an earlier command as a row of this one."""
        file = self.outputs / trial.user_attrs.get(PLACE, "") / "record.json"
        if not file.exists():
            return
        record = read_record(file)
        folder = self.sweep / str(self.jobs)
        if EndedRuns(self.outputs).first_in(self.sweep, record.key, folder):
            write_record(
                replace(record, sweep=self.sweep.name, reused=record.reused or trial.user_attrs[PLACE]), folder
            )
            self.jobs += 1

    def tell(self, proposal: Proposal, job: int) -> bool:
        """Tell Optuna the result of a job.

        Args:
            proposal: What the job tried.
            job: Number of the job.

        Returns:
            Whether the search has to stop, because a job failed and `on_error=stop`.
        """
        file = self.sweep / str(job) / "record.json"
        if not file.exists():
            if self.config.on_error == "stop":
                return True
            self.study.tell(proposal, [], "it is the same run as another trial")
            return False
        record: Record = read_record(file)
        values, reason = values_of(record, self.options.objectives)
        place = str(Path("sweeps", self.sweep.name, str(job)))
        self.study.tell(proposal, values, reason, record.status == "failed", **{KEY: record.key, PLACE: place})
        return record.status == "failed" and self.config.on_error == "stop"

    def note(self) -> None:
        """Write what was found so far, for the tables."""
        ended = {word: self.study.count(state) for state, word in ENDED.items()}
        Search(self.name, self.options.storage, dict(self.options.objectives), ended, self.study.best()).write(
            self.sweep
        )
