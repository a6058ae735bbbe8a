"""Send a job script to a Ray cluster, follow its log, and return its own exit code.

`ray job submit` returns 1 for every failure; here 2 (a wrong request) and 3 (done, with some failures) arrive as such.
"""

import asyncio
import itertools
import logging
import os
import shlex
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ray.exceptions import AuthenticationError
from ray.job_submission import JobStatus, JobSubmissionClient

import aneurysm_ray
from aneurysm_ray.errors import RequestError, did_you_mean
from aneurysm_ray.learning import starter

log = logging.getLogger(__name__)

EXCLUDED = ["/*", "!/.", "!/aneurysm_ray", "!/jobs", "__pycache__"]
"""What of the checkout a job does not bring along, in the words of a .gitignore: all but the jobs and the package with
its starter weights. Data sets and runs may lie beside them, and Ray's dashboard takes no more than 100 MB. To Ray the
folder is an entry of itself, and left out with all that is in it unless it is named. `.rayignore` says the same to
Ray's own command."""

_DETACHED = 130
_POLL_SECONDS = 1.0
_AGENT_SECONDS, _AGENT_POLL_SECONDS = 120.0, 5.0
"""How long a cluster that has just started is asked again until one of its nodes takes jobs."""


def submit(job: str, args: Sequence[str], *, address: str | None = None, wait: bool = True) -> int:
    """Run `jobs/JOB.py` with these arguments on the cluster at `address` and return its exit code.

    Without `wait` return 0 once it is submitted. Ctrl-C stops following and leaves the job running. Raises RequestError
    for an unknown job, a path that the cluster would not keep, or a cluster that does not answer or refuses the token.
    """
    root = checkout(job)
    check_paths(job, args)
    client = connect(address)
    name = hand_in(
        client,
        entrypoint=shlex.join(["python", f"jobs/{job}.py", *args]),
        submission_id=f"{job}-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}",
        runtime_env={"working_dir": str(root), "excludes": EXCLUDED},
    )
    _say_how_to_go_on(name, client.get_address(), args)
    if not wait:
        return 0
    try:
        asyncio.run(_follow(client, name))
        return exit_code(client, name)
    except KeyboardInterrupt:
        log.info("* %s goes on without you", name)
        return _DETACHED


def hand_in(client: JobSubmissionClient, **job: Any) -> str:
    """Submit a job and return its name. Raises RequestError when the cluster does not take it."""
    until = time.monotonic() + _AGENT_SECONDS
    while True:
        try:
            return str(client.submit_job(**job))
        except RuntimeError as error:
            # As Ray words it while no node's agent, which starts jobs, is up.
            if "No available agent" not in str(error) or time.monotonic() > until:
                raise RequestError(f"the cluster at {client.get_address()} does not take the job: {error}") from error
        log.info("* the cluster's nodes are still starting; asking again")
        time.sleep(_AGENT_POLL_SECONDS)


def checkout(job: str) -> Path:
    """Return the folder that holds `jobs/JOB.py`: this one, or the one that the package was installed from.

    Raises RequestError when there is none.
    """
    roots = [Path.cwd(), Path(aneurysm_ray.__file__).parents[1]]
    for root in roots:
        if (root / "jobs" / f"{job}.py").is_file():
            return root
    known = sorted({path.stem for root in roots for path in (root / "jobs").glob("*.py")} - {"kaggle_inference"})
    raise RequestError(
        f"there is no jobs/{job}.py{did_you_mean(job, known)}; submit from a checkout of the project, "
        f"with one of {', '.join(known) or 'its jobs'}"
    )


_PATHS = (
    *("--config", "--init", "--test", "init"),
    *("feed.cache_dir", "folds.file", "prepare.patient_key_file"),
)
"""Options and settings that name a file or a folder."""


def check_paths(job: str, args: Sequence[str]) -> None:
    """Refuse paths that mean nothing on the cluster: a job starts in a folder of its own that is thrown away.

    Raises RequestError.
    """
    leading = list(itertools.takewhile(lambda word: not word.startswith("-") and "=" not in word, args))
    outs = _given(args, "--out")
    if job in ("train", "tune", "predict") and not outs:
        raise RequestError(f"a {job} job needs --out with an absolute path on storage that every node sees")
    files = [path for name in _PATHS for path in _given(args, name)]
    databases = [url.partition(":///")[2] for url in _given(args, "tune.storage") if url.startswith("sqlite:///")]
    for path in (*leading, *outs, *files, *databases):
        if path and path != starter.NAME and not path.startswith("/") and "://" not in path:
            raise RequestError(
                f"{path} is relative, and a job starts in a folder that is thrown away; give an absolute path on "
                "storage that every node sees"
            )


def _given(args: Sequence[str], name: str) -> list[str]:
    """Return what follows an option, as `--name value` or `--name=value`, or a setting's key, as `key=value`."""
    after = [value for word, value in itertools.pairwise(args) if word == name and name.startswith("-")]
    return after + [word.removeprefix(f"{name}=") for word in args if word.startswith(f"{name}=")]


def connect(address: str | None) -> JobSubmissionClient:
    """Reach a cluster's dashboard: `address`, else $RAY_ADDRESS, else a cluster on this machine.

    Raises RequestError when it does not answer or refuses the token.
    """
    where = address or os.environ.get("RAY_ADDRESS") or "this machine"
    # Uploads and closed sockets are Ray's own affair.
    for name in ("ray.dashboard", "ray._private.runtime_env"):
        logging.getLogger(name).setLevel(logging.WARNING)
    try:
        return JobSubmissionClient(address)
    except AuthenticationError as error:
        raise RequestError(
            f"the cluster at {where} refuses the token: set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or the file "
            "~/.ray/auth_token to what `ray get-auth-token` prints on its head node"
        ) from error
    except (ConnectionError, RuntimeError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise RequestError(
            f"no dashboard answers at {where} ({reason}); give --address http://HEAD:8265, or start "
            "`ray dashboard cluster.yaml`"
        ) from error


async def _follow(client: JobSubmissionClient, name: str) -> None:
    async for lines in client.tail_job_logs(name):
        print(lines, end="", flush=True)


def exit_code(client: JobSubmissionClient, name: str) -> int:
    """Wait for a job's end and return its driver's exit code; 1 when it was stopped or never ran."""
    while not (info := client.get_job_info(name)).status.is_terminal():
        time.sleep(_POLL_SECONDS)
    if info.status == JobStatus.SUCCEEDED:
        return 0
    log.error("error: job %s %s: %s", name, info.status.lower(), (info.message or "").strip().partition("\n")[0])
    code = info.driver_exit_code
    return code if code is not None and code > 0 else 1


def _say_how_to_go_on(name: str, address: str, args: Sequence[str]) -> None:
    log.info("* submitted as %s", name)
    log.info("  follow: ray job logs --address %s --follow %s", address, name)
    log.info("  stop:   ray job stop --address %s %s", address, name)
    for word, after in itertools.pairwise(args):
        if word == "--out":
            log.info("  fetch:  ray rsync-down cluster.yaml %s/ %s/", after, Path(after).name)
