"""Submission: what is refused before anything is sent, and the exit code that comes back."""

import shutil
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray._private.runtime_env import packaging
from ray._private.runtime_env.working_dir import upload_working_dir_if_needed
from ray.job_submission import JobStatus

from aneurysm_ray.distributed import submit
from aneurysm_ray.errors import RequestError
from aneurysm_ray.learning import starter


@pytest.mark.parametrize(
    ("job", "args", "words"),
    [
        ("train", ["volumes", "--out", "/shared/run"], "volumes is relative"),
        ("train", ["/shared/volumes"], "needs --out"),
        ("tune", ["/shared/volumes", "--out", "run"], "run is relative"),
        ("tune", ["/shared/volumes", "--out=run"], "run is relative"),
        ("prepare", ["/shared/dicom", "volumes"], "volumes is relative"),
        ("train", ["/shared/volumes", "--out", "/shared/run", "--test", "others"], "others is relative"),
        ("train", ["/shared/volumes", "--out", "/shared/run", "folds.file=splits.csv"], "splits.csv is relative"),
        ("prepare", ["/shared/dicom", "/shared/out", "prepare.patient_key_file=key"], "key is relative"),
    ],
)
def test_paths_that_mean_nothing_on_a_cluster_are_refused(job, args, words):
    with pytest.raises(RequestError, match=words):
        submit.check_paths(job, args)


@pytest.mark.parametrize(
    ("job", "args"),
    [
        ("prepare", ["s3://bucket/dicom", "/shared/volumes", "volume.dtype=int16"]),
        ("train", ["/shared/volumes", "--fold", "all", "--out", "/shared/run", "optim.lr=1e-3"]),
        ("report", ["/shared/a", "/shared/b"]),
    ],
)
def test_absolute_paths_and_addresses_pass(job, args):
    submit.check_paths(job, args)


def test_an_unknown_job_is_named_with_the_nearest(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RequestError, match="did you mean train"):
        submit.checkout("trian")
    with pytest.raises(RequestError) as refused:
        submit.checkout("nothing like it")
    assert "predict, prepare, report, train, tune" in str(refused.value), (
        "the notebook of Kaggle is no job of a cluster"
    )
    assert (submit.checkout("train") / "jobs" / "train.py").is_file()


def test_the_folder_one_stands_in_comes_first(tmp_path, monkeypatch):
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "train.py").touch()
    monkeypatch.chdir(tmp_path)
    assert submit.checkout("train") == tmp_path


@pytest.mark.parametrize(
    ("status", "driver", "code"),
    [
        (JobStatus.SUCCEEDED, 0, 0),
        (JobStatus.FAILED, 1, 1),
        (JobStatus.FAILED, 2, 2),
        (JobStatus.FAILED, 3, 3),
        (JobStatus.FAILED, None, 1),
        (JobStatus.FAILED, -9, 1),
        (JobStatus.STOPPED, None, 1),
    ],
)
def test_the_jobs_own_exit_code_comes_back(monkeypatch, status, driver, code):
    monkeypatch.setattr(submit, "_POLL_SECONDS", 0.0)
    states = iter([JobStatus.PENDING, JobStatus.RUNNING, status])
    client = SimpleNamespace(
        get_job_info=lambda name: SimpleNamespace(status=next(states), driver_exit_code=driver, message="ended")
    )
    assert submit.exit_code(client, "x") == code


def test_a_cluster_that_is_still_starting_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter(["500: No available agent to submit job, please try again later.", None])

    def submit_job(**job: str) -> str:
        if words := next(answers):
            raise RuntimeError(words)
        return job["submission_id"]

    monkeypatch.setattr(submit, "_AGENT_POLL_SECONDS", 0.0)
    client = SimpleNamespace(submit_job=submit_job, get_address=lambda: "http://127.0.0.1:1")
    assert submit.hand_in(client, submission_id="train-1") == "train-1"


@pytest.mark.parametrize(
    "words", ["413: Maximum request body size 104857600 exceeded", "500: No available agent to submit job"]
)
def test_a_cluster_that_does_not_take_a_job_is_a_sentence(monkeypatch: pytest.MonkeyPatch, words: str) -> None:
    def submit_job(**job: str) -> str:
        raise RuntimeError(words)

    monkeypatch.setattr(submit, "_AGENT_SECONDS", -1.0)
    client = SimpleNamespace(submit_job=submit_job, get_address=lambda: "http://127.0.0.1:1")
    with pytest.raises(RequestError, match=f"the cluster at http://127.0.0.1:1 does not take the job: {words}"):
        submit.hand_in(client, submission_id="train-1")


def test_a_cluster_that_does_not_answer_is_a_sentence():
    with pytest.raises(RequestError, match="no dashboard answers at http://127"):
        submit.connect("http://127.0.0.1:9")


ROOT = Path(submit.__file__).parents[2]
BESIDE = (
    "rsna/ct.dcm",
    "volumes/a.parquet",
    "runs/log.txt",
    "venv2/bin/python",
    ".git/HEAD",
    "tests/test_x.py",
    "model.onnx",
)


def uploaded(environment: dict[str, Any], scratch: Path) -> set[str]:
    """Return the files that Ray's command packs for a job, by the code that packs them."""
    found: set[str] = set()

    def pack(folder: str, excludes: list[str], is_file: bool = False) -> None:
        package = scratch / "package.zip"
        packaging.create_package(folder, package, include_gitignore=True, excludes=excludes)
        with zipfile.ZipFile(package) as archive:
            found.update(name for name in archive.namelist() if not name.endswith("/"))

    upload_working_dir_if_needed(environment, include_gitignore=True, scratch_dir=str(scratch), upload_fn=pack)
    return found


def test_a_job_brings_the_package_and_the_jobs_along_and_no_data_that_lie_beside_them(tmp_path: Path) -> None:
    """Submitted by us and, from a checkout, by Ray's own command."""
    there = tmp_path / "checkout"
    kept = shutil.ignore_patterns("__pycache__")
    for folder in ("aneurysm_ray", "jobs"):
        shutil.copytree(ROOT / folder, there / folder, ignore=kept)
    wanted = {str(path.relative_to(there)) for path in there.rglob("*") if path.is_file()}
    assert {str(starter.FILE.relative_to(ROOT)), "jobs/train.py", "aneurysm_ray/cli.py"} <= wanted
    for name in (*BESIDE, "aneurysm_ray/__pycache__/cli.cpython-311.pyc"):
        (there / name).parent.mkdir(parents=True, exist_ok=True)
        (there / name).touch()
    for scratch in (tmp_path / "ours", tmp_path / "rays"):
        scratch.mkdir()
    assert uploaded({"working_dir": str(there), "excludes": submit.EXCLUDED}, tmp_path / "ours") == wanted
    for name in (".gitignore", ".rayignore"):
        shutil.copy(ROOT / name, there)
    assert uploaded({"working_dir": str(there)}, tmp_path / "rays") == wanted
