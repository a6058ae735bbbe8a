"""A search survives the death of its driver, of a trial's process and of a node, and Ctrl-C ends it in good order."""

import collections
import functools
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import surrogates

from aneurysm_ray import overrides, rundir
from aneurysm_ray.distributed import record, tune

pytestmark = pytest.mark.slow

DRIVER = Path(__file__).with_name("search_driver.py")
TRIALS = 10
PATIENCE_SECONDS = 400


def start(out: Path, log: Path, *words: str) -> subprocess.Popen:
    command = [sys.executable, str(DRIVER), str(out), str(log), str(TRIALS), "0.3", *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def wait_for(condition, what: str) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.2)


def epochs_trained(log: Path) -> list[tuple[int, str, int]]:
    lines = log.read_text().splitlines() if log.exists() else []
    return [(int(pid), lr, int(epoch)) for pid, lr, epoch in (line.split(",") for line in lines)]


def finished(out: Path) -> pd.DataFrame:
    if not (out / rundir.TRIALS).exists():
        return pd.DataFrame(columns=["trial", "state", "value", "epochs"])
    table = rundir.read_csv(out / rundir.TRIALS)
    return table[table["state"].isin(["COMPLETE", "PRUNED", "FAIL"])]


def check_whole(out: Path, log: Path, before: pd.DataFrame, allowed_repeats: int) -> None:
    """Check that a search is complete, that what was finished stayed as it was, and that no epoch was wasted."""
    after = finished(out)
    assert len(after) == TRIALS and not after["state"].eq("FAIL").any()
    columns = ["trial", "state", "value", "epochs", "param/optim.lr"]
    kept = after[after["trial"].isin(before["trial"])]
    pd.testing.assert_frame_equal(kept[columns].reset_index(drop=True), before[columns].reset_index(drop=True))
    counts = collections.Counter((lr, epoch) for _, lr, epoch in epochs_trained(log))
    repeated = [key for key, count in counts.items() if count > 1]
    assert len(repeated) <= allowed_repeats
    done = {f"{lr:.12f}" for lr in before["param/optim.lr"]}
    assert not done & {lr for lr, _ in repeated}
    curves = rundir.read_csv(out / rundir.CURVES)
    for number, rows in curves.groupby("trial"):
        assert list(rows["step"]) == list(range(1, len(rows) + 1)), number
    config = rundir.read_config(out)
    study = record.open_study(config.tune, out)
    assert [t.state.name for t in study.trials] == list(rundir.read_csv(out / rundir.TRIALS)["state"])
    for frozen in study.trials:
        assert sorted(frozen.intermediate_values) == list(range(1, frozen.user_attrs["progress"]["step"] + 1))


def test_killing_the_driver_loses_nothing(tmp_path):
    out, log = tmp_path / "s", tmp_path / "log"
    driver = start(out, log)
    wait_for(lambda: len(finished(out)) >= 3, "three finished trials")
    driver.kill()
    driver.communicate()
    time.sleep(4)  # Ray's processes die with their driver
    before = finished(out)
    again = start(out, log, "resume")
    text, _ = again.communicate(timeout=PATIENCE_SECONDS)
    assert again.returncode == 0, text
    # Each of the two running trials repeats at most the epoch it was in.
    check_whole(out, log, before, allowed_repeats=2)
    assert json.loads(text.splitlines()[-1])["interrupted"] is False


def test_ctrl_c_ends_with_what_there_is_and_resume_goes_on(tmp_path):
    out, log = tmp_path / "s", tmp_path / "log"
    driver = start(out, log)
    wait_for(lambda: len(finished(out)) >= 2, "two finished trials")
    driver.send_signal(signal.SIGINT)
    text, _ = driver.communicate(timeout=PATIENCE_SECONDS)
    assert driver.returncode == 130, text
    before, summary = finished(out), rundir.read_json(out / "summary.json")
    assert summary["interrupted"] and summary["running"] <= 2 and len(before) == summary["complete"] + summary["pruned"]
    again = start(out, log, "resume")
    text, _ = again.communicate(timeout=PATIENCE_SECONDS)
    assert again.returncode == 0, text
    check_whole(out, log, before, allowed_repeats=2)


def test_killing_a_trials_process_costs_an_epoch(tmp_path):
    out, log = tmp_path / "s", tmp_path / "log"
    driver = start(out, log)
    wait_for(lambda: len(epochs_trained(log)) >= 5, "five epochs")
    os.kill(epochs_trained(log)[-1][0], signal.SIGKILL)
    text, _ = driver.communicate(timeout=PATIENCE_SECONDS)
    assert driver.returncode == 0, text
    check_whole(out, log, finished(out).iloc[:0], allowed_repeats=1)


def test_a_node_that_dies_gives_its_trials_to_the_others(tmp_path):
    out, log = tmp_path / "s", tmp_path / "log"
    # In a process of its own: this one may hold the Ray of the test session.
    driver = multiprocessing.get_context("spawn").Process(target=_search_that_loses_a_node, args=(out, log))
    driver.start()
    driver.join(PATIENCE_SECONDS)
    assert driver.exitcode == 0
    summary = rundir.read_json(out / rundir.SUMMARY)
    assert (summary["complete"] + summary["pruned"], summary["failed"]) == (TRIALS, 0)
    check_whole(out, log, finished(out).iloc[:0], allowed_repeats=1)


def _search_that_loses_a_node(out, log):
    import ray
    from ray.cluster_utils import Cluster

    ray.cloudpickle.register_pickle_by_value(surrogates)
    config = overrides.build(
        {
            "tune.space": {"optim.lr": {"loguniform": [1e-5, 1e-1]}},
            "tune.trials": TRIALS,
            "tune.grace_epochs": 2,
            "tune.save_seconds": 0.0,
            "optim.epochs": 9,
        }
    )
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    node = cluster.add_node(num_cpus=1)
    ray.init(address=cluster.address, logging_level="ERROR", log_to_driver=False)
    try:
        rundir.create(out, config, {"kind": "tune"})
        here = os.getpid()
        killer = subprocess.Popen(
            [sys.executable, "-c", _KILL, str(log), str(node.all_processes["raylet"][0].process.pid), str(here)]
        )
        tune.run_search(out, config, functools.partial(surrogates.slow_fit, seconds=0.3, log=log))
        assert killer.wait(timeout=10) == 0, "the node outlived the search"
    finally:
        ray.shutdown()
        cluster.shutdown()


_KILL = """
import os, signal, sys, time
log, raylet, parent = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
while not (os.path.exists(log) and len(open(log).readlines()) >= 6):
    time.sleep(0.1)
    os.kill(parent, 0)
os.kill(raylet, signal.SIGKILL)
"""
