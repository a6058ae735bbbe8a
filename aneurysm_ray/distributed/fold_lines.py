"""What the terminal says of folds in training: where each begins, every epoch, and how far it is in between."""

import logging
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from aneurysm_ray.config import OptimConfig
from aneurysm_ray.distributed.news import Letter, how_far
from aneurysm_ray.distributed.progress import clock

log = logging.getLogger(__name__)


@dataclass
class _Fold:
    begun: bool = False
    epoch: int = 0
    """The one it is in."""
    best: float = math.nan
    step: Letter = field(default_factory=dict)


class FoldLines:
    """Turns letters of folds into lines, in the order in which they come."""

    def __init__(self, folds: Iterable[int], optim: OptimConfig, waits: Callable[[int], str]) -> None:
        """`waits` says what so many folds that have not begun wait for."""
        self.optim = optim
        self.waits = waits
        self.folds = {fold: _Fold() for fold in folds}
        self.running: set[int] = set()
        """Folds that have not ended, and are not still to be begun."""

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
                    log.info(
                        "fold %d  lost a worker (%s); it goes on from its last epoch", letter["fold"], letter["why"]
                    )

    def status(self) -> list[str]:
        """Say how far the running folds are."""
        lines, waiting = [], []
        for number, fold in sorted(self.folds.items()):
            if number not in self.running:
                continue
            if fold.step:
                lines.append(
                    f"fold {number}  epoch {fold.epoch + 1:3d}/{self.optim.epochs}  {self._how_far(fold.step)}"
                )
            elif fold.begun:
                lines.append(f"fold {number}  reads its volumes")
            else:
                waiting.append(str(number))
        return [*lines, *([f"fold {', '.join(waiting)}  {self.waits(len(waiting))}"] if waiting else [])]

    def _how_far(self, step: Letter) -> str:
        rate = ""
        if step["what"] == "training" and step["seconds"] > 0:
            rate = f"  {step['done'] * self.optim.batch_size / step['seconds']:.0f} patches/s"
        return f"{how_far(step)}{rate}"

    def _begin(self, letter: Letter, fold: _Fold) -> None:
        fold.begun, fold.step, fold.best, fold.epoch = True, {}, letter["best"], letter["epoch"]
        what = f"goes on from epoch {letter['epoch'] + 1}" if letter["epoch"] else "begins"
        log.info("fold %d  %s: %s", letter["fold"], what, letter["where"])

    def _epoch(self, letter: Letter, fold: _Fold) -> None:
        row = letter["metrics"]
        fold.best = row["val/score"] if math.isnan(fold.best) else max(fold.best, row["val/score"])
        fold.step, fold.epoch = {}, int(row["epoch"]) + 1
        judged = ""  # not every epoch is validated, and not every validation knows labels
        if not math.isnan(row["val/loss"]):
            judged = f"/{row['val/loss']:.3f}  score {row['val/score']:.3f} (best {fold.best:.3f})"
        elif not math.isnan(row["val/score"]):
            judged = f"  vessels' Dice {row['val/score']:.3f} (best {fold.best:.3f})"
        log.info(
            "fold %d  epoch %3d/%d  loss %.3f%s  %.0f patches/s  lr %.1e  eta %s",
            *(letter["fold"], fold.epoch, self.optim.epochs, row["train/loss"], judged, row["patches_per_s"]),
            *(row["lr"], clock(row["seconds"] * (self.optim.epochs - fold.epoch))),
        )
