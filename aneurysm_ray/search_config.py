"""The settings of a search, and what it leaves in the settings that it chose; a part of the tree in `config.py`."""

from typing import Annotated, Any, Literal

from pydantic import Field

from aneurysm_ray.section import Section, Seed


class TuneConfig(Section):
    """What a search tries, how it judges a trial and when it stops one."""

    trials: Annotated[int, Field(ge=1)] = 24
    """Trials in all, the default configuration among them."""
    metric: str = "val/score"
    """What to optimise; several, separated by commas, give a Pareto front."""
    mode: str = "max"
    """max or min; one for each metric, separated by commas."""
    folds: tuple[int, ...] = (0,)
    """Folds a trial is judged by; with several, a trial may be stopped between folds."""
    seed: Seed = 0
    """Seed of the sampler."""
    sampler: Literal["tpe", "random"] = "tpe"
    """tpe: multivariate tree-structured Parzen estimator (Bergstra et al. 2011). random: the baseline."""
    startup_trials: Annotated[int, Field(ge=1)] = 16
    """tpe: trials spread over the space (a Sobol sequence) before the estimator proposes any; half of all at most."""
    grace_epochs: Annotated[int, Field(ge=1)] = 4
    """No trial is stopped before this many epochs; networks that are slow at first would be lost to fewer."""
    reduction_factor: Annotated[int, Field(ge=2)] = 4
    """ASHA: one trial in this many is promoted at each rung (Li et al. 2020)."""
    prune: bool = True
    """False: every trial runs to its end."""
    concurrent: Annotated[int, Field(ge=0)] = 0
    """Trials at a time; 0: as many as the cluster has, or can have, room for, with tpe a quarter of `trials` at most,
    so that each learns from others."""
    save_seconds: Annotated[float, Field(ge=0)] = 20.0
    """A trial writes its state no more often: with many at a time, epochs of seconds would write gigabytes each. After
    a loss the epochs since are trained again, to the same digits."""
    storage: str = ""
    """Optuna storage URL; empty: a journal file in the run directory."""
    points: tuple[dict[str, Any], ...] = ()
    """Configurations to try first, as dotted keys, after the default one."""
    space: dict[str, dict[str, Any]] = Field(
        default={
            "sampler.positive_fraction": {"uniform": [0.2, 0.8]},
            "loss.focal_gamma": {"uniform": [0.0, 4.0]},
            "model.name": {"choice": ["resnet3d10", "resnet3d18", "resnet3d34"]},
            "optim.lr": {"loguniform": [3e-5, 3e-3]},
            "optim.weight_decay": {"loguniform": [1e-5, 1e-1]},
        }
    )
    """Dotted key to one of Ray Tune's words with its arguments: uniform, quniform, loguniform, qloguniform, randint,
    qrandint, lograndint, choice. `when = {"other.key" = value}` makes a key conditional."""


class ChosenConfig(Section):
    """Which folds a search chose these settings by; a search writes it into its best.toml."""

    folds: tuple[int, ...] = ()
    """Folds whose score chose; a run's score is also given without them, as it flatters with them."""
    count: int = 0
    """folds.count of that search; with another one its patients lie in other folds."""
    seed: int = 0
    """folds.seed of that search."""
