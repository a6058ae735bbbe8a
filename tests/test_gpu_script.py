import importlib.util
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "gpu.py"


def test_the_script_for_gpus_can_be_rehearsed_without_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = importlib.util.spec_from_file_location("gpu_script", SCRIPT)
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    monkeypatch.setattr(
        sys, "argv", ["gpu.py", "--device", "cpu", "--steps", "1", "--batch", "2", "--presets", "v2,v5"]
    )
    script.main()
    told = capsys.readouterr().out
    rows = [line.split("|")[1:-1] for line in told.splitlines() if line.startswith("| v")]
    assert "a rehearsal" in told and [row[0].strip() for row in rows] == ["v2", "v5"]
    assert all(float(row[1]) > 0 and float(row[2]) > 0 for row in rows)
