"""Run directories: atomic files, and no run silently continued or mixed with another."""

import contextlib
import json
import logging
import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch

from aneurysm_ray import overrides, rundir
from aneurysm_ray.config import Config
from aneurysm_ray.errors import OutputError, RunDirError
from aneurysm_ray.learning import checkpoint


def test_a_failed_write_leaves_the_old_file_and_no_rubbish(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file.txt"
    rundir.write_text(path, "old")
    with pytest.raises(ZeroDivisionError), rundir.atomic(path) as file:
        file.write("new")
        raise ZeroDivisionError
    assert path.read_text() == "old"
    assert list(path.parent.iterdir()) == [path]


def test_a_full_disk_is_called_so_whoever_writes(small_disk: Path) -> None:
    rundir.write_text(small_disk / "a.txt", "old")
    with pytest.raises(OutputError, match=r"a\.txt cannot be written: No space left on device; make room"):
        rundir.write_text(small_disk / "a.txt", "x" * 2**21)
    with pytest.raises(OutputError, match=r"state\.pt cannot be written: No space left on device"):
        checkpoint.save(small_disk / "last", {"model": torch.zeros(2**20)})
    assert (small_disk / "a.txt").read_text() == "old"
    assert [path.name for path in (small_disk / "last").iterdir()] == []


def test_a_full_disk_costs_the_log_and_not_the_work(small_disk: Path, capfd: pytest.CaptureFixture[str]) -> None:
    log = logging.getLogger("aneurysm_ray.test")
    with pytest.raises(ZeroDivisionError), rundir.keep_log(small_disk / "run"):
        log.info("there was room")
        with contextlib.suppress(OSError):
            (small_disk / "full").write_bytes(b"x" * 2**21)
        for _ in range(100):
            log.info("no room for %s", "x" * 100)
        raise ZeroDivisionError("what it died of")
    assert "there was room" in (small_disk / "run" / rundir.LOG).read_text()
    assert "Traceback" not in capfd.readouterr().err
    (small_disk / "full").unlink()
    shutil.rmtree(small_disk / "run")
    with rundir.keep_log(small_disk / "run"):
        (small_disk / "run").rmdir()
        log.info("nowhere to write this")


def test_tables_keep_identifiers_as_text(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    rundir.write_csv(path, pd.DataFrame({"series_uid": ["1.10", "2"], "patient": ["007", "1e5"], "value": [1.5, 2]}))
    table = rundir.read_csv(path)
    assert list(table["series_uid"]) == ["1.10", "2"]
    assert list(table["patient"]) == ["007", "1e5"]
    assert list(table["value"]) == [1.5, 2.0]


def test_json_refuses_what_json_cannot_hold(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        rundir.write_json(tmp_path / "a.json", {"x": float("nan")})
    assert not (tmp_path / "a.json").exists()


def test_a_run_is_resumed_only_when_asked_and_only_as_it_was(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    rundir.check(folder, Config())
    rundir.create(folder, Config(), {"kind": "train"})
    assert rundir.kind(folder) == "train"
    assert rundir.read_config(folder) == Config()
    with pytest.raises(RunDirError, match="already holds a run; add --resume"):
        rundir.check(folder, Config())
    rundir.check(folder, Config(), resume=True)
    other = overrides.load(None, None, ["optim.lr=0.5"])
    with pytest.raises(RunDirError, match=r"started with optim\.lr=0\.0007, not 0\.5"):
        rundir.check(folder, other, resume=True)
    rundir.check(folder, other, resume=True, freed=("optim.lr",))
    rundir.create(folder, other, {"kind": "tune"})
    assert rundir.read_config(folder) == other
    assert rundir.kind(folder) == "train", "where a run comes from is told once"


def test_a_run_that_was_killed_before_it_had_settings_can_begin(tmp_path: Path) -> None:
    rundir.write_json(tmp_path / rundir.PROVENANCE, {"kind": "train"})
    rundir.check(tmp_path, Config())


def test_a_foreign_folder_is_not_written_into(tmp_path: Path) -> None:
    (tmp_path / "thesis.doc").write_text("precious")
    with pytest.raises(RunDirError, match="not empty and holds no run"):
        rundir.check(tmp_path, Config())
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.doc"]


def test_damaged_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    path.write_text('{"kind": ')
    with pytest.raises(RunDirError, match=r"summary\.json: not valid JSON"):
        rundir.kind(tmp_path)
    with pytest.raises(RunDirError, match="cannot be read"):
        rundir.read_json(tmp_path / "absent.json")
    path.write_text(json.dumps({"kind": "tune"}))
    assert rundir.kind(tmp_path) == "tune"


def test_the_log_keeps_the_traceback(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), rundir.keep_log(tmp_path):
        raise ZeroDivisionError("by nought")
    text = (tmp_path / rundir.LOG).read_text()
    assert "Traceback" in text
    assert "by nought" in text
