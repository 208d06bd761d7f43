"""Searches for the network that holds limits: the steps of the funnel are run as jobs, and the best is handed over.

Trials are jobs like those of a sweep. What was run before is reused by its key, so that the same command goes on after
a kill, and with other limits from what is known.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.plugins.sweeper import Sweeper
from omegaconf import DictConfig, OmegaConf

from qexp.tracking.store import read_record
from qexp.types import Unsupported, UserError, typed
from qexp.within_limits.answer import PICTURE, Answer, answer_of, on_test_images
from qexp.within_limits.check import check_images, check_measures, check_words, usable_engines
from qexp.within_limits.funnel import funnel
from qexp.within_limits.limits import Limits
from qexp.within_limits.picture import draw
from qexp.within_limits.seen import Result, Seen, Trial

OWN = r"(limits\.|minimise=|experiment=within$|hydra\.)"  # words that only the search understands


@dataclass(frozen=True)
class Options:
    """The options of a search, which conf/hydra/sweeper/within.yaml explains.

    Raises:
        UserError: The number of jobs is out of range.
    """

    limits: Mapping[str, Any]
    minimise: str | Sequence[str]
    n_jobs: int

    def __post_init__(self) -> None:
        if not isinstance(self.n_jobs, int) or self.n_jobs < 1:
            raise UserError(f"hydra.sweeper.n_jobs={self.n_jobs} is out of range; give a whole number of at least 1.")

    @property
    def all_limits(self) -> Limits:
        """The limits, checked.

        Raises:
            UserError: They are out of range or make no sense.
        """
        plain: Any = OmegaConf.to_container(OmegaConf.create({"limits": self.limits, "minimise": self.minimise}))
        minimise = [plain["minimise"]] if isinstance(plain["minimise"], str) else plain["minimise"]
        return Limits(**plain["limits"], minimise=minimise)


def within(options: Options, sweeper: Sweeper, arguments: list[str]) -> None:
    """Search, and write the answer to the folder of the sweep and what it found to `outputs/within`.

    Args:
        options: Options of the search.
        sweeper: Hydra's sweeper, whose launcher runs each trial as a job.
        arguments: Arguments of the command line.

    Raises:
        UserError: The limits make no sense, or the search cannot begin.
    """
    assert sweeper.hydra_context and sweeper.config
    config, loader = sweeper.config, sweeper.hydra_context.config_loader
    limits = options.all_limits
    check_words(OverridesParser.create(loader).parse_overrides(arguments))
    check_measures(config, limits)
    known = [name for name in loader.get_group_options("engine") if name != "auto"]
    engines, reasons = usable_engines(
        config, limits, known, lambda name: loader.load_sweep_config(config, [*arguments, f"engine={name}"])
    )
    caveat = check_images(loader.load_sweep_config(config, arguments))
    Search(options, sweeper, arguments, Seen(limits, engines, dropped=reasons), caveat).run()


class Search:
    """The search of one command. What earlier commands have run is found by the jobs themselves."""

    def __init__(self, options: Options, sweeper: Sweeper, arguments: list[str], seen: Seen, caveat: str):
        assert sweeper.config
        self.options, self.sweeper, self.arguments, self.seen = options, sweeper, arguments, seen
        self.caveat = caveat
        self.config: DictConfig = sweeper.config
        self.outputs, self.sweep = Path(self.config.outputs), Path(self.config.hydra.sweep.dir)
        self.jobs, self.spent, self.stopped = 0, 0.0, False

    def run(self) -> None:
        limits = self.seen.limits
        wanted = ", ".join(f"{name} at most {limit:g}" for name, limit in limits.given.items())
        least, engines = ", ".join(limits.minimise), ", ".join(self.seen.engines)
        print(f"search within limits: {wanted}; least {least}; engines {engines}", flush=True)
        if self.caveat:
            print(f"  {self.caveat}", flush=True)
        self.sweep.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(self.config, self.sweep / "multirun.yaml")
        self.spend(0)
        for trials in funnel(self.seen):
            if trials and not self.stopped:
                self.run_step(trials)
        best = self.best()
        answer = answer_of(self.seen, best, self.spent / 60)
        answer = replace(self.handed_over(answer, best) if best else answer, caveat=self.caveat)
        draw(answer, self.sweep / PICTURE)
        answer.write(self.sweep)

    def best(self) -> Result | None:
        """The trial with the best score among those that hold and that no other beats."""
        front = {result.trial.name for result in self.seen.front}
        return next((result for result in self.seen.holding if result.trial.name in front), None)

    def run_step(self, trials: list[Trial]) -> None:
        """Run the trials of a step, as many at once as the launcher takes, until the time is spent."""
        minutes = self.seen.limits.minutes
        count = f"{len(trials)} trial{'s' * (len(trials) > 1)}"
        print(f"\n{trials[0].step}: {count}, {self.spent / 60:.1f} of {minutes:g} minutes spent", flush=True)
        for start in range(0, len(trials), self.options.n_jobs):
            together = trials[start : start + self.options.n_jobs]
            if self.seen.left <= 0 or self.stopped:
                why = "a run failed (on_error=stop)" if self.stopped else f"{minutes:g} minutes were spent"
                self.seen.dropped |= {trial.name: why for trial in together}
                continue
            self.run_trials(together)
        print(f"so far: {answer_of(self.seen, self.best(), self.spent / 60).sentence}", flush=True)

    def run_trials(self, trials: list[Trial]) -> None:
        """Run trials side by side, and note what came of them."""
        words = ["measure.accuracy.part=validation"]
        if not self.seen.limits.needs_kernels:
            words += ["measure.latency=null", "measure.memory=null"]
        results = self.launched(trials, words)
        seconds = [result.seconds for result in results]
        self.spend(max(max(seconds), sum(seconds) / self.options.n_jobs))
        self.seen.results += [replace(result, at=self.spent) for result in results]
        failed = any(result.record and result.record.status == "failed" for result in results)
        self.stopped = failed and self.config.on_error == "stop"

    def spend(self, seconds: float) -> None:
        """Count time. What was reused counts with what it took when it was run, so that a kill changes no decision."""
        self.spent += seconds
        self.seen.left = 60 * self.seen.limits.minutes - self.spent

    def launched(self, trials: Sequence[Trial], words: Sequence[str]) -> list[Result]:
        """Run jobs for trials, with further overrides."""
        overrides = [[*self.arguments, *words, *trial.words] for trial in trials]
        self.sweeper.validate_batch_is_legal(overrides)
        assert self.sweeper.launcher
        first, self.jobs = self.jobs, self.jobs + len(trials)
        returns = self.sweeper.launcher.launch(overrides, initial_job_idx=first)
        for job in returns:
            job.return_value  # noqa: B018  (raises what the job raised)
        found = []
        for number, trial in enumerate(trials, first):
            file = self.sweep / str(number) / "record.json"
            found.append(Result(trial, read_record(file) if file.exists() else None))
        return found

    def handed_over(self, answer: Answer, best: Result) -> Answer:
        """Measure the chosen trial on the test images, once, and make it ready to deploy."""
        print("\nthe answer: on test images", flush=True)
        (final,) = self.launched([best.trial], ["measure.accuracy.part=both"])
        if final.record is None or not final.finished:
            reason = final.record.reason if final.record else "it is in this sweep already"
            return replace(answer, test=f"the chosen trial could not be measured again: {reason}")
        artifact = Path(final.record.artifact)
        return replace(
            answer, test=on_test_images(final.record), artifact=str(artifact), folder=self.deployed(final),
            command=again(self.arguments, best.trial, final.record.params["threads"]), words=[*best.trial.words],
        )  # fmt: skip

    def deployed(self, final: Result) -> str:
        """Write the folder that is ready to deploy, and return it, or the reason why there is none."""
        from qexp.artifact import Artifact
        from qexp.deploy.__main__ import ready, rules
        from qexp.deploy.write import deploy

        assert final.record
        params, limits = final.record.params, self.seen.limits
        bounds = [f"{name}{limit:g}" for name, limit in limits.given.items()]
        name = "-".join([params["model"], params["data"], *bounds, "least", *limits.minimise]).replace("/", "_")
        to = self.outputs / "within" / name
        try:
            artifact = Artifact.read(Path(final.record.artifact))
            deploy(*ready(artifact, params["engine"], params["batch_size"], params["threads"]), rules(), to)
        except (UserError, Unsupported) as reason:
            return f"not: {reason}"
        return str(to)


def again(arguments: Sequence[str], trial: Trial, threads: int) -> str:
    """The command that makes and measures a trial without the search.

    Args:
        arguments: Arguments of the search.
        trial: The trial.
        threads: Threads that it used.
    """
    words = [word for word in arguments if not re.match(OWN, word)]
    words += [*trial.words, *([] if any(w.startswith("threads=") for w in words) else [f"threads={threads}"])]
    searches = any(word.startswith("experiment=") for word in words)
    return shlex.join([*typed("compress").split(), *words, *["hydra.mode=RUN"] * searches])
