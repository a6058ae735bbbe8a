"""The command line: each kind of failure is one sentence on stderr with its exit code."""

import logging
import os
import shlex
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from learning_sets import write_set

from aneurysm_ray import cli, ending, errors


def _sentence(captured: str) -> str:
    lines = [line for line in captured.splitlines() if not line.startswith("  ")]  # such as "  loading Ray: 0:01"
    assert len(lines) == 1, lines
    return lines[0]


@pytest.fixture(autouse=True)
def _fresh_log_handlers() -> None:
    logging.getLogger("aneurysm_ray").handlers.clear()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["trian"], "error: no command 'trian'; did you mean train?"),
        (["train"], "error: Missing argument"),
        (["train", "volumes", "--epochs", "many"], "error: Invalid value for '--epochs'"),
        (["phantom", "out", "--seed", "-1"], "error: Invalid value for '--seed'"),
        (["demo", "--out", "/dev/null/x"], "error: /dev/null/x cannot be written: Not a directory"),
        (["train", "volumes", "optim.lrr=2e-4"], "error: unknown key 'optim.lrr'; did you mean optim.lr?"),
        (["train", "volumes", "--preset", "v9"], "error: unknown preset 'v9'; did you mean"),
        (["train", "no/such/volumes", "--out", "x"], "error: no/such/volumes"),
        (["inspect", "no/such/path"], "error: no/such/path does not exist"),
        (["config", "optm"], "error: no key 'optm'; did you mean optim"),
        (["predict", "run", "seed=3"], "error: predict needs at least one series"),
        (["evaluate", "no.csv", "data"], "error: no.csv: cannot be read"),
        (["report", "no/such/run"], "error: no/such/run"),
    ],
)
def test_wrong_requests_end_with_a_sentence_and_code_2(
    words: list[str], sentence: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(words) == 2
    captured = capsys.readouterr()
    assert _sentence(captured.err).startswith(sentence)
    assert captured.out == ""


LARGE = ("ray", "torch", "monai", "scipy.ndimage", "sklearn", "optuna")
FIRST_LARGE = f"""
import importlib.abc, os, sys
from aneurysm_ray.cli import main

class Watch(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name in {LARGE}:
            os.write(2, f"loads {{name}}\\n".encode())  # at once, as another thread speaks too
            os._exit(0)

sys.meta_path.insert(0, Watch())
main()
"""


@pytest.mark.parametrize(
    "words",
    [
        ["demo", "--out", "out"],
        ["phantom", "out"],
        ["prepare", "data", "out"],
        ["doctor"],
        ["train", "set"],
        ["tune", "set"],
        ["predict", "starter", "data"],
        ["export", "starter", "model.onnx"],
        ["submit", "train"],
    ],
    ids=lambda words: words[0],
)
def test_a_command_speaks_before_it_loads_a_large_library(words: list[str], tmp_path: Path) -> None:
    """Loading one keeps every thread from speaking, for seconds on a busy machine."""
    write_set(tmp_path / "set", 1)
    done = subprocess.run(
        [sys.executable, "-c", FIRST_LARGE, *words], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    first, *_, last = done.stderr.splitlines()
    assert last.startswith("loads ") and first.startswith("  ") and first.endswith(": 0:00"), done.stderr


@pytest.mark.parametrize(
    ("raised", "code", "sentence"),
    [
        (errors.AneurysmRayError("fold 0 failed: out of memory"), 1, "error: fold 0 failed: out of memory"),
        (errors.RequestError("8 workers need 8 GPUs"), 2, "error: 8 workers need 8 GPUs"),
        (errors.SeriesError("colour", "a.dcm: RGB"), 1, "error: a.dcm: RGB"),
        (KeyboardInterrupt(), 130, "error: interrupted; to go on: aneurysm-ray inspect 'a b'"),
        (ending.PartlyFailed("2 series rejected"), 3, "* 2 series rejected"),
    ],
)
def test_each_kind_of_failure_has_its_code(
    raised: BaseException,
    code: int,
    sentence: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from aneurysm_ray.data import inspection

    def fail(*_: object) -> None:
        raise raised

    monkeypatch.setattr(inspection, "inspect", fail)
    assert cli.main(["inspect", "a b"]) == code
    assert _sentence(capsys.readouterr().err) == sentence


def test_our_own_faults_show_where(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from aneurysm_ray.data import inspection

    monkeypatch.setattr(inspection, "inspect", lambda *_: 1 / 0)
    assert cli.main(["inspect", "x"]) == 1
    captured = capsys.readouterr().err
    assert "Traceback" in captured
    assert captured.strip().splitlines()[-1].startswith("error: ZeroDivisionError")


def test_ctrl_c_names_the_directory_that_was_chosen(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from aneurysm_ray.distributed import train

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.chdir(tmp_path)
    write_set(Path("volumes"), 1)
    monkeypatch.setattr(train, "train", interrupt)
    assert cli.main(["train", "volumes", "optim.lr=1e-4", "--out", "mine"]) == 130
    assert _sentence(capsys.readouterr().err) == (
        "error: interrupted; to go on: aneurysm-ray train volumes optim.lr=1e-4 --out mine --resume"
    )
    assert cli.main(["train", "volumes"]) == 130
    assert "--out runs/" in _sentence(capsys.readouterr().err)


@pytest.mark.parametrize("answer", [signal.default_int_handler, signal.SIG_IGN])
def test_sigterm_ends_like_ctrl_c(
    answer: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """SLURM, docker and Kubernetes send it; a shell starts what it runs in the background with SIGINT ignored."""
    from aneurysm_ray.distributed import train

    def terminated(*_: object, **__: object) -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(60)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)  # a second one does not break the clearing up
            (tmp_path / "cleared").touch()

    monkeypatch.chdir(tmp_path)
    write_set(Path("volumes"), 1)
    monkeypatch.setattr(train, "train", terminated)
    before = signal.getsignal(signal.SIGTERM), signal.signal(signal.SIGINT, answer)
    try:
        assert cli.main(["train", "volumes", "--out", "my runs/a"]) == 130
    finally:
        signal.signal(signal.SIGINT, before[1])
    assert signal.getsignal(signal.SIGTERM) == before[0]
    assert (tmp_path / "cleared").exists()
    assert _sentence(capsys.readouterr().err) == (
        "error: interrupted; to go on: aneurysm-ray train volumes --out 'my runs/a' --resume"
    )


def test_the_same_words_work_as_a_module() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "aneurysm_ray.cli", "config", "optim.lr"], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0
    assert result.stdout.startswith("optim.lr = 0.0007")


# Notes which large libraries are asked for while nothing says that the command goes on.
UNTOLD = """
import sys
from aneurysm_ray import cli

class Watch:
    def find_spec(self, name, path=None, target=None):
        progress = sys.modules.get("aneurysm_ray.distributed.progress")
        if name in {"pandas", "ray", "torch", "pydicom", "scipy", "pyarrow", "highdicom", "matplotlib"}:
            told = progress is not None and progress._speaker.going_on
            print("told" if told else "untold", name)

sys.meta_path.insert(0, Watch())
sys.exit(cli.main(sys.argv[1:]))
"""


WRONG = [
    ["phantom", "."],
    ["prepare", "no/such/data", "out"],
    ["train", "no/such/volumes"],
    ["predict", "no/such/run", "no/such/data"],
    ["inspect", "no/such/path"],
    ["export", "no/such/run", "model.safetensors"],
    ["evaluate", "no.csv", "no/such/data"],
]


@pytest.fixture(scope="module")
def until_refused(tmp_path_factory: pytest.TempPathFactory) -> dict[str, subprocess.CompletedProcess[str]]:
    """Each command, by name, until it has loaded its libraries and finds nothing to do; two at a time, a core each."""
    folder = tmp_path_factory.mktemp("wrong")

    def run(words: list[str]) -> subprocess.CompletedProcess[str]:
        place = folder / words[0]
        place.mkdir()
        (place / "there").touch()
        command = [sys.executable, "-c", UNTOLD, *words]
        return subprocess.run(command, cwd=place, capture_output=True, text=True, check=False)

    with ThreadPoolExecutor(2) as pool:
        return dict(zip((words[0] for words in WRONG), pool.map(run, WRONG), strict=True))


@pytest.mark.parametrize("command", [words[0] for words in WRONG])
def test_a_command_says_that_it_goes_on_while_it_loads_its_libraries(
    command: str, until_refused: dict[str, subprocess.CompletedProcess[str]]
) -> None:
    ended = until_refused[command]
    assert ended.returncode == 2, ended.stderr
    loaded = ended.stdout.split("\n")
    assert "told pandas" in loaded
    assert [line for line in loaded if line.startswith("untold")] == []


def test_a_file_of_settings_can_be_checked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "mine.toml"
    file.write_text("[optim]\nlr = 0.5\n")
    assert cli.main(["config", "--check", str(file)]) == 0
    assert capsys.readouterr().out.startswith("optim.lr = 0.5   (default 0.0007)")
    file.write_text("[optim]\nlearning_rate = 0.5\n")
    assert cli.main(["config", "--check", str(file)]) == 2


def test_next_lines_are_taken_by_a_shell_as_they_are(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "aneurysm_ray")
    words = [("aneurysm-ray", "train", Path("my volumes")), ("open", "it's/report.html")]
    cli._next(*words)
    assert [shlex.split(line.removeprefix("next:")) for line in caplog.messages] == [[*map(str, one)] for one in words]
    assert caplog.messages[0].startswith("next: ")


def test_nobody_is_told_to_train_on_a_set_without_a_volume(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from aneurysm_ray.data.ledger import PrepareSummary
    from aneurysm_ray.distributed import prepare
    from aneurysm_ray.reporting import pages

    caplog.set_level(logging.INFO, "aneurysm_ray")
    monkeypatch.setattr(pages, "write_report", lambda out: out / "report.html")
    for prepared in (0, 1):
        caplog.clear()
        done = PrepareSummary(prepared, 0, 0, (), (), 1.0)
        monkeypatch.setattr(prepare, "prepare", lambda *_, done=done, **__: done)
        assert cli.main(["prepare", "dicom", "volumes"]) == 0
        assert ("aneurysm-ray train volumes" in caplog.text) == bool(prepared)
