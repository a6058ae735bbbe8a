"""What `doctor` says of a machine, from values and from this one."""

import json
import logging
import os
import socket
from pathlib import Path

import pytest

from aneurysm_ray import cli, overrides
from aneurysm_ray.distributed import doctor


def test_this_machine_is_examined_and_nothing_is_left(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    findings = doctor.examine([str(tmp_path / "volumes")], {})
    assert list(tmp_path.iterdir()) == []
    by_name = {finding.what: finding for finding in findings}
    assert by_name["packages"].state == "good" and "torch" in by_name["packages"].told
    assert by_name["ray"].state == by_name["token"].state == "good"
    assert f"storage {tmp_path}/volumes" in by_name
    for finding in findings:
        assert bool(finding.cure) == (finding.state != "good"), finding


def test_the_command_prints_lines_or_json_and_fails_for_what_is_bad(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    logging.getLogger("aneurysm_ray").handlers.clear()
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert cli.main(["doctor", str(tmp_path), "--json"]) == 0
    assert {"what": "ray", "state": "good"}.items() <= json.loads(capsys.readouterr().out)[-2].items()
    (tmp_path / "file").write_text("")
    assert cli.main(["doctor", str(tmp_path / "file" / "volumes")]) == 2
    captured = capsys.readouterr()
    assert "\nbad " in captured.out and "→ choose a folder that you may write" in captured.out
    assert f"error: to be mended first: storage {tmp_path}" in captured.err


@pytest.mark.parametrize(
    ("torch", "cudnn", "state"),
    [
        ("2.7.1+cu128", 90501, "good"),
        ("2.8.0+cu128", 91002, "bad"),
        ("2.8.0+cu128", 90800, "bad"),
        ("2.8.0+cu128", 91300, "good"),
        ("2.9.0+cu130", 92100, "doubtful"),
        ("2.9.1+cu130", 91300, "doubtful"),
        ("2.9.1+cu130", 91500, "good"),
        ("2.10.0+cu130", 91501, "good"),
        ("2.13.0+cu130", 92400, "good"),
    ],
)
def test_convolutions_known_to_be_slow_or_wrong_are_told(torch: str, cudnn: int, state: str) -> None:
    finding = doctor.convolutions(torch, cudnn)
    assert finding.state == state
    assert f"{cudnn // 10000}.{cudnn % 10000 // 100}.{cudnn % 100}" in finding.told


def test_the_settings_that_cures_name_exist() -> None:
    keys = {row["key"] for row in overrides.describe("", overrides.load(None, None))}
    told = " ".join(
        finding.cure for finding in (doctor.convolutions("2.8.0", 91002), doctor.memory(1.0), doctor.disk("/", 0.1))
    )
    named = {
        word.partition("=")[0] for word in told.replace(";", "").split() if word.startswith(("optim.", "prepare."))
    }
    assert named == {"optim.precision", "prepare.memory_mb"}
    assert named <= keys


def test_packages_that_are_missing_or_too_old_are_named() -> None:
    versions = {"ray": "2.60.0", "torch": "2.5.0", "monai": "1.6.1", "numpy": "2.4.6", "pydicom": "3.0.2"}
    required = ["ray[data]<2.61,>=2.60", "torch>=2.6", "highdicom>=0.26", 's3fs; extra == "s3"']
    finding = doctor.packages(required, versions.get)
    assert finding.state == "bad" and "constraints.txt" in finding.cure
    assert finding.told == "torch is 2.5.0, not >=2.6; highdicom is missing"
    assert doctor.packages(required[:1], versions.get).state == "good"


def test_limits_are_judged_on_both_sides() -> None:
    assert [doctor.disk("/", gb).state for gb in (1, 10, 100)] == ["bad", "doubtful", "good"]
    assert [doctor.memory(gb).state for gb in (2, 6, 24)] == ["bad", "doubtful", "good"]
    assert [doctor.shared_memory(size).state for size in (64 * 2**20, 2**30)] == ["doubtful", "good"]
    limits = [(256, 4096), (1024, 1024), (8192, 8192), (-1, -1)]
    assert [doctor.open_files(*limit).state for limit in limits] == ["bad", "doubtful", "good", "good"]
    assert "ulimit -n 4096" in doctor.open_files(256, 4096).cure
    assert "after the system's limit" in doctor.open_files(1024, 1024).cure


def test_a_named_cluster_must_answer() -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{server.getsockname()[1]}"
        silent = doctor.cluster(address)
        assert silent.state == "bad" and "ray start --head" in silent.cure
        server.listen()
        assert doctor.cluster(f"http://{address}").state == "bad", "a dashboard's"
    assert doctor.cluster("nonsense").state == "bad"
    assert doctor.cluster("").state == "good"


def test_a_token_is_asked_for_where_a_cluster_is_named(tmp_path: Path) -> None:
    named = {"RAY_ADDRESS": "10.0.0.1:6379"}
    assert doctor.token(named, tmp_path).state == "doubtful"
    guarded = {**named, "RAY_AUTH_MODE": "token"}
    assert doctor.token(guarded, tmp_path).state == "bad"
    assert doctor.token({**guarded, "RAY_AUTH_TOKEN": "x"}, tmp_path).state == "good"
    file = tmp_path / ".ray" / "auth_token"
    file.parent.mkdir()
    file.write_text("secret")
    file.chmod(0o644)
    finding = doctor.token(guarded, tmp_path)
    assert finding.state == "doubtful" and "secret" not in finding.told
    file.chmod(0o600)
    assert doctor.token(guarded, tmp_path).state == "good"


def test_storage_that_cannot_be_written_is_bad_and_what_can_is_left_as_it_was(tmp_path: Path) -> None:
    (there,) = doctor.storage(str(tmp_path))
    assert there.state in ("good", "doubtful") and os.listdir(tmp_path) == []
    (absent,) = doctor.storage("nonsense://x/y")
    assert absent.state == "bad" and "nonsense" in absent.told
    (memory,) = doctor.storage("memory://doctor")
    assert memory.state == "good"
