"""The cluster files against Ray's own schema and functions, and the Kubernetes manifests against KubeRay's fields."""

import copy
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

ROOT = Path(__file__).resolve().parents[1]
LAUNCHER_FILES = ("cluster.yaml", "deploy/on-premise.yaml")
MANIFESTS = ("deploy/raycluster.yaml", "deploy/rayjob.yaml")
RAY = re.search(r"^ray==(.+)$", (ROOT / "constraints.txt").read_text(), re.M).group(1)

# Fields of ray.io/v1 as in KubeRay 1.6's Go types (ray-operator/apis/ray/v1): a manifest with a misspelt one is
# accepted by Kubernetes, which drops the field in silence. Types of values are the operator's own affair.
CLUSTER_FIELDS = {
    "rayVersion",
    "authOptions",
    "enableInTreeAutoscaling",
    "autoscalerOptions",
    "headGroupSpec",
    "workerGroupSpecs",
    "suspend",
    "headServiceAnnotations",
    "gcsFaultToleranceOptions",
}
HEAD_FIELDS = {"serviceType", "headService", "enableIngress", "rayStartParams", "template", "resources", "labels"}
WORKER_FIELDS = {
    *("groupName", "replicas", "minReplicas", "maxReplicas", "numOfHosts", "rayStartParams", "template"),
    *("scaleStrategy", "idleTimeoutSeconds", "suspend", "resources", "labels"),
}
JOB_FIELDS = {
    *("entrypoint", "submissionMode", "backoffLimit", "activeDeadlineSeconds", "preRunningDeadlineSeconds"),
    *("shutdownAfterJobFinishes", "ttlSecondsAfterFinished", "deletionStrategy", "rayClusterSpec", "runtimeEnvYAML"),
    *("clusterSelector", "submitterPodTemplate", "submitterConfig", "entrypointNumCpus", "metadata", "jobId"),
}


def load(name: str) -> dict[str, Any]:
    return yaml.safe_load((ROOT / name).read_text())


@pytest.mark.parametrize("name", LAUNCHER_FILES)
def test_ray_accepts_the_launcher_file(name):
    config = prepare_config(copy.deepcopy(load(name)))
    validate_config(config)


@pytest.mark.parametrize("name", LAUNCHER_FILES)
def test_the_check_refuses_a_misspelt_key(name):
    config = {**load(name), "max_worker": 3}
    with pytest.raises(jsonschema.ValidationError):
        validate_config(prepare_config(config))


def test_the_aws_cluster_has_a_head_and_two_kinds_of_workers_that_start_from_none():
    config = prepare_config(load("cluster.yaml"))
    kinds = config["available_node_types"]
    assert config["head_node_type"] == "head" and set(kinds) == {"head", "cpu", "gpu"}
    assert kinds["head"]["resources"]["CPU"] == 0 and kinds["head"]["max_workers"] == 0
    assert kinds["gpu"]["resources"]["GPU"] == 1 and "GPU" not in kinds["cpu"]["resources"]
    assert all(kinds[kind]["min_workers"] == 0 < kinds[kind]["max_workers"] for kind in ("cpu", "gpu"))


@pytest.mark.parametrize("name", LAUNCHER_FILES)
def test_every_node_starts_with_the_token_and_the_projects_constraints(name):
    config = load(name)
    for commands in (config["head_start_ray_commands"], config["worker_start_ray_commands"]):
        starts = [command for command in commands if "ray start" in command]
        assert len(starts) == 1 and "RAY_AUTH_MODE=token" in starts[0]
    assert any(target.endswith(".ray/auth_token") for target in config["file_mounts"])
    assert any("constraints.txt" in command for command in config["setup_commands"])
    # The dashboard runs code for whoever reaches it: only through the tunnel of `ray dashboard`.
    assert "--dashboard-host=127.0.0.1" in " ".join(config["head_start_ray_commands"])


def test_the_images_hold_the_ray_that_the_project_is_tested_with():
    images = [load("cluster.yaml")["docker"]["image"]]
    images.append(re.search(r"^FROM (\S+)", (ROOT / "deploy/Dockerfile").read_text(), re.M).group(1))
    assert images == [f"rayproject/ray:{RAY}-py311-gpu"] * 2


def cluster_spec(manifest: dict[str, Any]) -> dict[str, Any]:
    return manifest["spec"] if manifest["kind"] == "RayCluster" else manifest["spec"]["rayClusterSpec"]


@pytest.mark.parametrize("name", MANIFESTS)
def test_manifests_use_only_fields_that_kuberay_knows(name):
    manifest = load(name)
    assert manifest["apiVersion"] == "ray.io/v1" and manifest["metadata"]["name"]
    spec = cluster_spec(manifest)
    assert set(spec) <= CLUSTER_FIELDS
    assert spec["rayVersion"] == RAY and spec["authOptions"] == {"mode": "token"}
    assert set(spec["headGroupSpec"]) <= HEAD_FIELDS and spec["workerGroupSpecs"]
    for group in spec["workerGroupSpecs"]:
        assert set(group) <= WORKER_FIELDS
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    if manifest["kind"] == "RayJob":
        assert set(manifest["spec"]) <= JOB_FIELDS


@pytest.mark.parametrize("name", MANIFESTS)
def test_every_pod_sees_the_shared_volume(name):
    spec = cluster_spec(load(name))
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
        assert mounts["shared"] == "/shared" and set(mounts) == {volume["name"] for volume in pod["volumes"]}
        assert container["resources"]["requests"] == container["resources"]["limits"]
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())


def test_the_rayjob_runs_a_job_script_that_exists():
    words = load("deploy/rayjob.yaml")["spec"]["entrypoint"].split()
    assert words[0] == "python" and (ROOT / "jobs" / Path(words[1]).name).is_file()
    assert "--resume" in words


def test_the_slurm_script_starts_ray_on_every_node_and_goes_on_with_a_run(tmp_path: Path) -> None:
    said = {
        "scontrol": "printf 'n1\\nn2\\n'",
        "getent": "echo '10.0.0.7 STREAM n1'",
        "srun": 'echo "$RAY_AUTH_MODE ${#RAY_AUTH_TOKEN} $*"',
    }
    for name, text in said.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    environment = {
        **os.environ,
        "PATH": f"{tmp_path}{os.pathsep}{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        **{"SLURM_JOB_NODELIST": "n[1-2]", "SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_ID": "5"},
    }
    for words, more in ((["train", "a b", "--out", "r"], " --resume"), (["prepare", "a", "b"], "")):
        done = subprocess.run(
            ["bash", str(ROOT / "deploy/slurm.sh"), *words], env=environment, capture_output=True, text=True, check=True
        )
        assert done.stdout.split(" ", 2)[:2] == ["token", "64"]
        assert done.stdout.rstrip().endswith(
            "ray symmetric-run --address 10.0.0.7:6379 --min-nodes 2 --temp-dir /tmp/ray-5 -- "
            f"env RAY_ADDRESS=10.0.0.7:6379 aneurysm-ray {' '.join(words)}{more}"
        )
