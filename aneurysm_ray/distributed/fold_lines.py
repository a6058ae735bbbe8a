"""What the terminal says of folds in training: where each begins, every epoch, and how far it is in between."""

import logging
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from aneurysm_ray.config import OptimConfig
from aneurysm_ray.distributed.news import Letter, how_far
from aneurysm_ray.distributed.progress import clock

log = logging.getLogger(__name__)

SILENT_SECONDS = 8.0
"""Longest time without a line."""


@dataclass
class _Fold:
    begun: bool = False
    epoch: int = 0
    """The one it is in."""
    best: float = math.nan
    step: Letter = field(default_factory=dict)


class FoldLines:
    """Turns letters of folds into lines, in the order in which they come."""

    def __init__(self, folds: Iterable[int], optim: OptimConfig, waits: Callable[[], str]) -> None:
        """`waits` says what a fold that has not begun waits for."""
        self.optim = optim
        self.waits = waits
        self.folds = {fold: _Fold() for fold in folds}
        self.spoken = time.monotonic()

    def read(self, letters: Iterable[Letter]) -> None:
        """Log what letters say, and keep how far epochs are."""
        for letter in letters:
            fold = self.folds[letter["fold"]]
            match letter["kind"]:
                case "begin":
                    self._begin(letter, fold)
                case "step":
                    fold.step = letter
                case "epoch":
                    self._epoch(letter, fold)
                case "lost":
                    fold.begun, fold.step = False, {}
                    self.say(
                        "fold %d  lost a worker (%s); it goes on from its last epoch", letter["fold"], letter["why"]
                    )

    def say(self, text: str, *values: object) -> None:
        """Log a line."""
        self.spoken = time.monotonic()
        log.info(text, *values)

    def tick(self, running: Iterable[int]) -> None:
        """Say how far these folds are, when nothing has been said for a while."""
        if time.monotonic() - self.spoken < SILENT_SECONDS:
            return
        waiting = []
        for number in sorted(running):
            fold = self.folds[number]
            if fold.step:
                self.say(
                    "fold %d  epoch %3d/%d  %s", number, fold.epoch + 1, self.optim.epochs, self._how_far(fold.step)
                )
            elif fold.begun:
                self.say("fold %d  reads its volumes", number)
            else:
                waiting.append(str(number))
        if waiting:
            self.say("fold %s  %s", ", ".join(waiting), self.waits())

    def _how_far(self, step: Letter) -> str:
        training = step["what"] == "training"
        rate = (
            f"  {step['done'] * self.optim.batch_size / max(step['seconds'], 1e-9):.0f} patches/s" if training else ""
        )
        return f"{how_far(step)}{rate}"

    def _begin(self, letter: Letter, fold: _Fold) -> None:
        fold.begun, fold.step, fold.best, fold.epoch = True, {}, letter["best"], letter["epoch"]
        what = f"goes on from epoch {letter['epoch'] + 1}" if letter["epoch"] else "begins"
        self.say("fold %d  %s: %s", letter["fold"], what, letter["where"])

    def _epoch(self, letter: Letter, fold: _Fold) -> None:
        row = letter["metrics"]
        fold.best = row["val/score"] if math.isnan(fold.best) else max(fold.best, row["val/score"])
        fold.step, fold.epoch = {}, int(row["epoch"]) + 1
        self.say(
            "fold %d  epoch %3d/%d  loss %.3f/%.3f  score %.3f (best %.3f)  %.0f patches/s  lr %.1e  eta %s",
            *(letter["fold"], fold.epoch, self.optim.epochs, row["train/loss"], row["val/loss"]),
            *(row["val/score"], fold.best, row["patches_per_s"], row["lr"]),
            clock(row["seconds"] * (self.optim.epochs - fold.epoch)),
        )
