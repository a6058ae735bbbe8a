"""What Ray Tune asks of a search and tells it: the next trial, the results, whether a trial goes on.

Ray's own OptunaSearch tells stopped trials as COMPLETE with the value they had when they were stopped, and loses the
last report; here they are PRUNED with every intermediate value, and the sampler ranks them as what they are. Whether a
trial goes on is asked of the study's own pruner, which keeps what it must know in the study.
"""

import math
from pathlib import Path
from typing import Any

import optuna
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from aneurysm_ray.config import Config
from aneurysm_ray.distributed import record, space
from aneurysm_ray.distributed.record import DEATHS, FINISHED, STEP


class StudySearcher(Searcher):
    """Hand a study's trials to Tune and carry their ends back.

    `suggest` gives {"study": its name, "number": the study's trial number, "params": dotted overrides}. A trial whose
    process died is handed out again and goes on from its checkpoint, `resources.max_failures` times at most. Tune's own
    retries do not cover a process that dies between two trials.
    """

    def __init__(self, study: optuna.Study, config: Config, parameters: tuple[space.Parameter, ...]) -> None:
        super().__init__(metric=record.metrics(config.tune), mode=record.modes(config.tune))
        self.study = study
        self.study.pruner = record.pruner(config)
        self.config = config
        self.parameters = parameters
        self.unfinished = record.running(study)
        self.trials: dict[str, optuna.Trial] = {}
        """By Tune's name for them: the trials that run."""

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """Return an interrupted trial again, or a new one; FINISHED when `tune.trials` have ended.

        None asks Tune to come back: a trial that runs may yet have to be handed out again.
        """
        begun = record.counted(self.study)
        if self.unfinished:
            trial = self.unfinished.pop(0)
        elif begun < self.config.tune.trials:
            self.study.sampler = record.sampler(self.config.tune, begun)
            record.queue_start(self.study, self.config, self.parameters)
            trial = self.study.ask()
            trial.set_user_attr("started", record.now())
        else:
            return None if self.trials else str(self.FINISHED)
        self.trials[trial_id] = trial
        # What was drawn before an interruption is returned again; only what was not is drawn now.
        drawn = space.suggest(trial, self.parameters, self.config)
        return {"study": self.study.study_name, "number": trial.number, "params": drawn}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Tell the study how a trial ended.

        A result that is not `done` belongs to a trial that was cut off with the search: it stays RUNNING, to go on.
        """
        trial = self.trials.pop(trial_id)
        if error:
            deaths = trial.user_attrs.get(DEATHS, 0) + 1
            trial.set_user_attr(DEATHS, deaths)
            if deaths <= self.config.resources.max_failures:
                self.unfinished.append(trial)
            else:
                record.finish(trial, failed=f"the trial's process died {deaths} time(s)")
        elif result and result.get("done"):
            record.conclude(trial, result, self.metric)

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Do nothing: the scheduler, whom Tune asks first, has told the study."""

    def save(self, checkpoint_path: str) -> None:
        """Write nothing of value: a search resumes from its study. Tune renames this file, so it must be there."""
        Path(checkpoint_path).touch()


class StudyScheduler(FIFOScheduler):
    """Report every epoch to the study, and stop the trials that its pruner gives up."""

    def __init__(self, searcher: StudySearcher) -> None:
        super().__init__()
        self.searcher = searcher
        # Several objectives give no order of trials, so nothing says which one to stop.
        self.ranks = searcher.config.tune.prune and len(searcher.metric) == 1

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Decide whether a trial goes on.

        The default configuration is never stopped: it is what the best is held against. One whose metric is not a
        number stops when its grace is over.
        """
        mine, names = self.searcher.trials[trial.trial_id], self.searcher.metric
        new = record.report(mine, result, names)
        if not self.ranks or STEP not in result or result.get(FINISHED):
            return str(TrialScheduler.CONTINUE)
        if not math.isfinite(result.get(names[0], math.nan)):
            stops = result[STEP] >= record.grace(self.searcher.config)
        else:
            # An epoch that comes again after a restart was judged when it came first.
            stops = new and mine.should_prune() and mine.user_attrs.get("origin") != record.DEFAULT
        return str(TrialScheduler.STOP if stops else TrialScheduler.CONTINUE)
