"""How many epochs does a search spend to find what random search finds at full length?

    python benchmarks/search.py            epochs, on a surrogate of training: seconds, no Ray processes
    python benchmarks/search.py --ray      seconds per trial beyond training, and of the driver's CPU, with real trials
    python benchmarks/search.py --volumes DEMO/volumes --out OUT    epochs, with real trainings on the demo's phantoms

The surrogate has five parameters that interact as learning rates, losses and depths do: a curve rises to a height at a
speed, both set by the parameters, with noise in every epoch; fast starters are not always the highest. Searchers and
schedulers are driven by the calls that Tune makes, four trials at a time on a clock of epochs, so that a run takes a
second and many seeds can be tried. What counts is the noise-free score after the last epoch of trials that ran to it.
"""

import argparse
import heapq
import itertools
import logging
import math
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import optuna
import pandas as pd
from ray.tune.schedulers import ASHAScheduler, TrialScheduler
from ray.tune.search.optuna import OptunaSearch

from aneurysm_ray import demo, overrides, rundir
from aneurysm_ray.config import Config
from aneurysm_ray.distributed import record, searcher, space

EPOCHS = 30
RANDOM_TRIALS = 64
TRIALS = 128
AT_ONCE = 4
SEEDS = 25
GAIN = {"resnet3d10": -0.01, "resnet3d18": 0.0, "resnet3d34": 0.012}
"""What a depth adds to the height of a curve."""
SPEED = {"resnet3d10": 1.0, "resnet3d18": 0.0, "resnet3d34": -1.0}
"""Its speed, times the spread: with a large one the best networks are the slowest at first, and curves cross."""
CONFIGURED = "TPE + ASHA, as configured"
SPREAD = {"some curves cross": 0.1, "most curves cross": 0.35}


SMALL: dict[str, Any] = {
    "model.width": 8,
    "folds.count": 8,
    "optim.epochs": 5,
    "sampler.patches_per_volume": 2,
    "resources.cpus_per_worker": 1,
    "tune.concurrent": 1,
    "tune.grace_epochs": 2,
    "tune.space": {
        "sampler.positive_fraction": {"uniform": [0.2, 0.8]},
        "loss.focal_gamma": {"uniform": [0.0, 4.0]},
        "model.name": {"choice": ["small3d", "resnet3d10"]},
        "optim.lr": {"loguniform": [3e-4, 3e-2]},
        "loss.positive_weight": {"loguniform": [1.0, 30.0]},
    },
    "loss.name": "focal",
}
"""What makes a trial on the demo's phantoms half a minute. The first rung is after two epochs of five: over 65 random
trials the rank after one epoch said nothing of that after five (Spearman 0.00), that after two something (0.48)."""
PHANTOM_SEEDS, PHANTOM_TRIALS = (1, 2, 3), 40


def truth(params: dict[str, Any], epoch: int, spread: float) -> float:
    """Return the score after `epoch` epochs, without noise: a height, approached at a speed."""
    lr, decay = math.log10(params["optim.lr"]), math.log10(params["optim.weight_decay"])
    best_lr = -2.9 - 0.15 * (params["loss.focal_gamma"] - 2)
    loss = 0.12 * min(abs(lr - best_lr), 1.0) ** 1.5 + 0.02 * ((decay + 3.0) / 2) ** 2
    loss += 0.01 * (params["loss.focal_gamma"] - 1.2) ** 2 + 0.25 * (params["sampler.positive_fraction"] - 0.62) ** 2
    rate = 0.12 * (1 + spread * SPEED[params["model.name"]]) * 10 ** (spread * (lr + 3.5))
    return 0.5 + (0.35 + GAIN[params["model.name"]] - loss) * (1 - math.exp(-rate * epoch))


def score(params: dict[str, Any], epoch: int, seed: int, spread: float) -> float:
    """Return the noisy score after `epoch` epochs."""
    key = [seed, epoch, *np.frombuffer(repr(sorted(params.items())).encode(), dtype=np.uint8)]
    return truth(params, epoch, spread) + float(np.random.default_rng(key).normal(0, 0.006))


def drive(searcher: Any, scheduler: Any, seed: int, trials: int, spread: float) -> Iterator[tuple[int, float]]:
    """Run trials as Tune's controller does; yield (epochs spent so far, true score) per full trial.

    The order of calls is that of `TuneController._process_trial_result`: the scheduler decides, a trial that goes on is
    reported to the searcher, one that stops is completed with its last result.
    """
    names, clock, spent = itertools.count(), [], 0
    started = 0

    def begin(now: float) -> None:
        nonlocal started
        if started >= trials:
            return
        name = f"t{next(names)}"
        suggestion = searcher.suggest(name)
        if not isinstance(suggestion, dict):
            return
        started += 1
        trial = SimpleNamespace(trial_id=name, config=suggestion, last_result={})
        params = suggestion.get("params", suggestion)
        scheduler.on_trial_add(None, trial)
        # Deeper networks take longer, so trials do not end in the order in which they began.
        pace = {"resnet3d10": 0.8, "resnet3d18": 1.0, "resnet3d34": 1.5}[params["model.name"]]
        heapq.heappush(clock, (now + pace, name, 1, pace, trial, params))

    for _ in range(AT_ONCE):
        begin(0.0)
    while clock:
        now, name, step, pace, trial, params = heapq.heappop(clock)
        spent += 1
        value = score(params, step, seed, spread)
        result = {
            "val/score": value,
            "step": step,
            "training_iteration": step,
            "finished": step == EPOCHS,
            "done": False,
        }
        decision = scheduler.on_trial_result(None, trial, result)
        if step == EPOCHS or decision == TrialScheduler.STOP:
            result["done"] = True
            scheduler.on_trial_complete(None, trial, result)
            searcher.on_trial_complete(name, result)
            if step == EPOCHS:
                yield spent, truth(params, EPOCHS, spread)
            begin(now)
        else:
            searcher.on_trial_result(name, result)
            heapq.heappush(clock, (now + pace, name, step + 1, pace, trial, params))


def config_for(seed: int, **tune: Any) -> Config:
    """Return the default configuration at the benchmark's length; `tune` changes it."""
    keys = {f"tune.{key}": value for key, value in {"trials": TRIALS, "seed": seed, **tune}.items()}
    return overrides.build({"optim.epochs": EPOCHS}, keys)


def ours(seed: int, spread: float, **tune: Any) -> Iterator[tuple[int, float]]:
    """Search as `aneurysm-ray tune` does."""
    config = config_for(seed, **tune)
    study = optuna.create_study(direction="maximize")
    parameters = space.parse(config)
    record.enqueue(study, config, parameters)
    mine = searcher.StudySearcher(study, config, parameters)
    return drive(mine, searcher.StudyScheduler(mine), seed, config.tune.trials, spread)


def rays(seed: int, spread: float) -> Iterator[tuple[int, float]]:
    """Search with OptunaSearch and ASHA as Ray ships them, the same rungs, seed and first point."""
    config = config_for(seed)
    distributions = {parameter.key: parameter.distribution for parameter in space.parse(config)}
    first, _ = space.point({}, space.parse(config), config)
    searcher = OptunaSearch(distributions, metric="val/score", mode="max", seed=seed, points_to_evaluate=[first])
    scheduler = ASHAScheduler(
        metric="val/score",
        mode="max",
        max_t=EPOCHS,
        grace_period=config.tune.grace_epochs,
        reduction_factor=config.tune.reduction_factor,
    )
    return drive(searcher, scheduler, seed, TRIALS, spread)


def compare(seeds: range, spread: float, *, alone: bool) -> None:
    """Print the table of epochs; `alone` of the configured search only."""
    searches: dict[str, Callable[[int], Iterator[tuple[int, float]]]] = {
        "random, full length": lambda seed: ours(seed, spread, sampler="random", prune=False),
        "random + ASHA": lambda seed: ours(seed, spread, sampler="random"),
        "TPE, full length": lambda seed: ours(seed, spread, prune=False),
        "OptunaSearch + ASHA, as Ray ships it": lambda seed: rays(seed, spread),
        CONFIGURED: lambda seed: ours(seed, spread),
    }
    searches = {CONFIGURED: searches[CONFIGURED]} if alone else searches
    full = RANDOM_TRIALS * EPOCHS
    spent: dict[str, list[float]] = {name: [] for name in searches}
    best: dict[str, list[float]] = {name: [] for name in searches}
    for seed in seeds:
        # The target is the best of 64 random trials, none of them the default, of another seed than the search's.
        draws = ours(1000 + seed, spread, sampler="random", prune=False, trials=RANDOM_TRIALS + 1)
        target = max(height for _, height in itertools.islice(draws, 1, None))
        for name, run in searches.items():
            within, reached = math.nan, math.inf
            for epochs, height in run(seed):
                if epochs <= full / 4:
                    within = max(within, height) if within == within else height
                if height >= target:
                    reached = epochs
                    break
            spent[name].append(reached)
            best[name].append(max(within, target) - target if reached <= full / 4 else within - target)
    print("| search | median epochs | of 64 full trials | within 25 % | reached at all | short of it at 25 % |")
    print("|---|---|---|---|---|---|")
    for name, found in spent.items():
        median = statistics.median(found)
        share = f"{median / full:.0%}" if math.isfinite(median) else "–"
        within, reached = sum(epochs <= full / 4 for epochs in found), sum(map(math.isfinite, found))
        shown = f"{median:.0f}" if math.isfinite(median) else "not reached"
        short = -float(np.nanmedian(best[name]))
        print(f"| {name} | {shown} | {share} | {within}/{len(seeds)} | {reached}/{len(seeds)} | {short:.4f} |")


def fit(config: Config, fold: int, resume: dict[str, Any] | None, tell: Any = None, *, seconds: float) -> Iterator[Any]:
    """Stand in for training: sleep, then yield the surrogate's score."""
    params = {key: space.field(config, key) for key in Config().tune.space}
    for epoch in range(resume["epoch"] + 1 if resume else 0, config.optim.epochs):
        time.sleep(seconds)
        yield SimpleNamespace(
            epoch=epoch,
            metrics={"val/score": score(params, epoch + 1, 0, 0.1), "seconds": seconds},
            predictions=pd.DataFrame({"series_uid": ["1"], "fold": [fold]}),
            state={"model": {}, "config": {}, "epoch": epoch},
        )


def overhead(trials: int, seconds: float) -> None:
    """Print what a trial costs beyond its epochs: processes, files, study, scheduling."""
    import functools

    import ray

    from aneurysm_ray.distributed import session, tune

    out = Path(tempfile.mkdtemp(prefix="search-"))
    config = config_for(0, trials=trials, concurrent=1)
    with session.connect():
        ray.get(ray.remote(lambda: None).remote())
        begun, spent = time.monotonic(), time.process_time()
        rundir.create(out / "s", config, {"kind": "tune"})
        summary = tune.run_search(out / "s", config, functools.partial(fit, seconds=seconds))
        wall, spent = time.monotonic() - begun, time.process_time() - spent
    training = summary["epochs"] * seconds
    print(f"\n{trials} trials, {summary['epochs']} epochs of {seconds:g} s, one trial at a time:\n")
    print("| wall s | training s | s per trial beyond training | ms per epoch beyond it | driver's CPU s per 1,000 |")
    print("|---|---|---|---|---|")
    beyond, epochs = wall - training, summary["epochs"]
    per_thousand = 1000 * spent / epochs
    print(
        f"| {wall:.1f} | {training:.1f} | {beyond / trials:.2f} | {1000 * beyond / epochs:.0f} | {per_thousand:.1f} |"
    )
    shutil.rmtree(out)


def on_phantoms(volumes: Path, out: Path) -> None:
    """Print the epochs that real trainings of small networks take, one at a time, by random and by configured search.

    The target is the best score on the validation fold, which is noisy: the best of 64 is in part the luckiest.
    """
    from aneurysm_ray.distributed import tune

    searches: dict[str, dict[str, Any]] = {
        "random": {"trials": RANDOM_TRIALS + 1, "sampler": "random", "prune": False, "seed": 1},
        **{f"tpe-asha-{seed}": {"trials": PHANTOM_TRIALS, "seed": seed} for seed in PHANTOM_SEEDS},
    }
    tables = {}
    for name, changes in searches.items():
        config = overrides.build({**demo.SETTINGS, **SMALL, **{f"tune.{key}": value for key, value in changes.items()}})
        tune.tune(volumes, out / name, config, resume=(out / name).exists())
        tables[name] = rundir.read_csv(out / name / rundir.TRIALS).sort_values("trial")
    random = tables["random"]
    full = RANDOM_TRIALS * SMALL["optim.epochs"]
    # The default comes first in all, and is none of the 64.
    target = random["value"][random["trial"] > 0].max()
    print(f"best of {RANDOM_TRIALS} random trials: {target:.3f}; the default: {random['value'].iloc[0]:.3f}")
    print("| search | trials | epochs in all | epochs until a full trial is as good | of 64 full trials | best |")
    print("|---|---|---|---|---|---|")
    for name, table in tables.items():
        finished = (table["state"] == "COMPLETE") & (table["value"] >= target)
        spent = table["epochs"].cumsum()[finished]
        shown, share = (f"{spent.iloc[0]:.0f}", f"{spent.iloc[0] / full:.0%}") if len(spent) else ("not reached", "–")
        best = table["value"][table["state"] == "COMPLETE"].max()
        print(f"| {name} | {len(table)} | {table['epochs'].sum():.0f} | {shown} | {share} | {best:.3f} |")


def main() -> None:
    """Run the benchmark that was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ray", action="store_true", help="measure the overhead with real trials")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--first", type=int, default=0, help="the first of the seeds; 25 and on are fresh")
    parser.add_argument("--alone", action="store_true", help="only the search that is configured here")
    parser.add_argument("--trials", type=int, default=24)
    parser.add_argument("--seconds", type=float, default=0.1, help="of an epoch with --ray")
    parser.add_argument("--volumes", type=Path, help="prepared phantoms, such as the demo's, for real trainings")
    parser.add_argument("--out", type=Path, help="folder of the searches over --volumes")
    words = parser.parse_args()
    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    if words.volumes and not words.out:
        parser.error("--volumes needs --out, the folder for its searches")
    if words.volumes:
        on_phantoms(words.volumes, words.out)
    elif words.ray:
        overhead(words.trials, words.seconds)
    else:
        print(f"Epochs until a full trial is as good as the best of {RANDOM_TRIALS} random ones of {EPOCHS} epochs;")
        seeds = range(words.first, words.first + words.seeds)
        print(f"seeds {seeds[0]} to {seeds[-1]}, {AT_ONCE} trials at a time, at most {TRIALS} trials.")
        for name, spread in SPREAD.items():
            print(f"\nWhere {name}:\n")
            compare(seeds, spread, alone=words.alone)


if __name__ == "__main__":
    main()
