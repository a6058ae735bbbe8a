"""Nothing is silent for long, and nobody speaks who has nothing new to say."""

import logging
import threading
import time

import pytest

from aneurysm_ray.config import OptimConfig
from aneurysm_ray.distributed import news, progress
from aneurysm_ray.distributed.fold_lines import FoldLines

LOG = logging.getLogger("aneurysm_ray.test")

SILENT_SECONDS = 1.0
"""In place of the real ones."""


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(progress, "SILENT_SECONDS", SILENT_SECONDS)
    caplog.set_level(logging.INFO, "aneurysm_ray")


def until(condition, seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_what_takes_long_is_said_again_and_again(caplog: pytest.LogCaptureFixture) -> None:
    with progress.told("waiting", SILENT_SECONDS):
        until(lambda: caplog.text.count("waiting: 0:0") >= 2)
    said = len(caplog.records)
    time.sleep(1.6 * SILENT_SECONDS)
    assert len(caplog.records) == said, "what has ended says nothing"


def test_the_innermost_speaks_and_the_outer_one_after_it(caplog: pytest.LogCaptureFixture) -> None:
    with progress.told("outer", SILENT_SECONDS):
        with progress.told(lambda: ["one", "two"], SILENT_SECONDS):
            until(lambda: "two" in caplog.text)
        assert "outer" not in caplog.text
        until(lambda: "outer" in caplog.text)


def test_what_follows_at_once_is_said_by_one_thread() -> None:
    for _ in range(5):
        with progress.told("loading"), progress.told("reading"):
            pass
    with progress.told("training"):
        assert [thread.name for thread in threading.enumerate()].count("progress") == 1


def test_who_speaks_by_itself_is_not_interrupted(caplog: pytest.LogCaptureFixture) -> None:
    with progress.told("silent", SILENT_SECONDS):
        for number in range(15):
            LOG.info("line %d", number)
            time.sleep(0.15)
    assert "silent" not in caplog.text


def test_the_first_word_may_come_sooner(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "SILENT_SECONDS", 3600.0)
    with progress.told("loading", first_seconds=0.1):
        until(lambda: "loading" in caplog.text)


def test_the_first_word_waits_for_no_thread_when_it_is_due_at_once(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress._Speaker, "_speak", lambda _: None)
    with progress.told("loading", first_seconds=0.0):
        assert caplog.messages == ["  loading: 0:00"]
    with progress.told("waiting"):
        assert caplog.messages == ["  loading: 0:00"]


def test_lines_of_folds_say_where_each_is(caplog: pytest.LogCaptureFixture) -> None:
    lines = FoldLines([0, 1, 2], OptimConfig(epochs=9, batch_size=4), lambda runs: f"waits for {runs} GPUs")
    lines.running = {0, 1}
    assert lines.status() == ["fold 0, 1  waits for 2 GPUs"]
    lines.read([{"fold": 0, "kind": "begin", "epoch": 6, "best": 0.7, "where": "1 worker(s) on a"}])
    assert "fold 0  goes on from epoch 7: 1 worker(s) on a" in caplog.text
    assert lines.status() == ["fold 0  reads its volumes", "fold 1  waits for 1 GPUs"]
    step = {"fold": 0, "kind": "step", "what": "training", "done": 30, "total": 90, "seconds": 60.0}
    lines.read([step])
    assert lines.status()[0] == "fold 0  epoch   7/9  training 30/90  2:00 left  2 patches/s"
    lines.read([{**step, "done": 1, "seconds": 0.0}])
    assert "patches/s" not in lines.status()[0]  # no time has passed
    lines.read([step])
    row = {"epoch": 6.0, "train/loss": 0.1, "val/loss": 0.2, "val/score": 0.6, "patches_per_s": 8.0, "lr": 1e-3}
    lines.read([{"fold": 0, "kind": "epoch", "metrics": {**row, "seconds": 100.0}}])
    assert "fold 0  epoch   7/9  loss 0.100/0.200  score 0.600 (best 0.700)  8 patches/s" in caplog.text
    assert "eta 3:20" in caplog.text
    lines.read([{"fold": 0, "kind": "lost", "why": "node died"}])
    assert "fold 0  lost a worker (node died); it goes on from its last epoch" in caplog.text
    assert lines.status() == ["fold 0, 1  waits for 2 GPUs"]


def test_a_worker_tells_how_far_it_is_but_not_too_often(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr(news.time, "monotonic", lambda: clock[0])
    sent: list[news.Letter] = []
    monkeypatch.setattr(news, "post", lambda handle, letter: sent.append(letter))
    tell = news.teller(object(), {"fold": 3})
    for done in range(1, 11):
        clock[0] += 0.5
        tell("training", done, 10)
    clock[0] += 5
    tell("validation", 1, 4)
    assert [(letter["what"], letter["done"]) for letter in sent] == [
        ("training", 1),
        ("training", 5),
        ("training", 9),
        ("validation", 1),
    ]
    assert [letter["seconds"] for letter in sent] == [0.0, 2.0, 4.0, 0.0]
    assert news.how_far(sent[1]) == "training 5/10  0:02 left"
