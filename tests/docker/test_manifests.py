"""Images, compose and manifests: shut, pinned, non-root. Offline; linters run where installed."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from evomerge import __version__

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "docker"
DOCKERFILE = (DOCKER / "Dockerfile").read_text()
COMPOSE = yaml.safe_load((DOCKER / "compose.yaml").read_text())
CLUSTER = yaml.safe_load((DOCKER / "k8s" / "raycluster.yaml").read_text())
JOB = yaml.safe_load((DOCKER / "k8s" / "rayjob.yaml").read_text())
STORAGE = list(yaml.safe_load_all((DOCKER / "k8s" / "storage.yaml").read_text()))
POLICY = yaml.safe_load((DOCKER / "k8s" / "network.yaml").read_text())
SLURM = (DOCKER / "slurm" / "evomerge.sbatch").read_text()
SERVICES = list(COMPOSE["services"].items())
BASES = re.findall(r"^ARG BASE=(\S+)", DOCKERFILE, re.MULTILINE)


def pods() -> Iterator[tuple[str, dict[str, Any]]]:
    groups = CLUSTER["spec"]["workerGroupSpecs"]
    yield "head", CLUSTER["spec"]["headGroupSpec"]["template"]
    yield from ((group["groupName"], group["template"]) for group in groups)
    yield "submitter", JOB["spec"]["submitterPodTemplate"]


PODS = list(pods())
RAY_PODS = [item for item in PODS if item[0] != "submitter"]


def images() -> list[str]:
    found = [service["image"] for _, service in SERVICES]
    found += [c["image"] for _, pod in PODS for c in pod["spec"]["containers"]]
    return [*found, *BASES]


@pytest.mark.parametrize("image", images())
def test_every_image_has_a_version(image: str) -> None:
    name, colon, tag = image.rpartition(":")
    assert colon
    assert re.match(r"\d+\.\d+\.\d+", tag), image
    if name == "evomerge":
        assert tag.split("-")[0] == __version__
        assert f"AS {tag.split('-')[1]}\n" in DOCKERFILE


def test_the_image_is_multi_stage_pinned_and_not_root() -> None:
    stages = re.findall(r"^FROM \S+ AS (\S+)$", DOCKERFILE, re.MULTILINE)
    assert stages == ["source", "build-cpu", "build-cuda", "runtime", "cuda", "cpu"]
    runtime = DOCKERFILE.partition("AS runtime")[2]
    assert re.search(r"^USER 10001$", runtime, re.MULTILINE)
    assert "USER root" not in DOCKERFILE
    assert all(
        "-c constraints.txt" in line for line in re.findall(r"pip install .*\[.*", DOCKERFILE)
    )
    assert "RAY_AUTH_MODE=token" in runtime
    assert not re.search(r"RAY_AUTH_TOKEN=|HF_TOKEN|COPY .*token", DOCKERFILE)
    ignored = (ROOT / ".dockerignore").read_text().split()
    assert {".git", ".venv", "populations", "docker/ray-token"} <= set(ignored)
    assert "docker/ray-token" in (ROOT / ".gitignore").read_text().split()


def test_all_nodes_have_the_ray_that_is_pinned() -> None:
    pinned = re.findall(r"^ray==(\S+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert pinned == [CLUSTER["spec"]["rayVersion"]]


@pytest.mark.parametrize(("name", "service"), SERVICES)
def test_compose_services_are_shut(name: str, service: dict[str, Any]) -> None:
    assert service["user"] == "10001"
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert not {"privileged", "ports", "network_mode", "pid", "ipc"} & set(service)
    assert service["networks"] == ["cluster"]
    assert service["secrets"] == ["ray_token"]
    assert service["environment"]["RAY_AUTH_MODE"] == "token"
    assert service["environment"]["RAY_AUTH_TOKEN_PATH"] == "/run/secrets/ray_token"
    assert "RAY_AUTH_TOKEN" not in service["environment"]
    assert {"mem_limit", "pids_limit", "shm_size", "restart"} <= set(service)
    assert "../models:/work/models:ro" in service["volumes"]


def test_compose_has_a_head_workers_and_no_way_in() -> None:
    assert COMPOSE["networks"] == {"cluster": {"internal": True}}
    head, worker = COMPOSE["services"]["head"], COMPOSE["services"]["worker"]
    assert {"--head", "--block", "--num-cpus=0", "--dashboard-host=127.0.0.1"} <= set(
        head["command"]
    )
    assert "healthcheck" in head
    assert {"--block", "--address=head:6379"} <= set(worker["command"])
    search = COMPOSE["services"]["search"]
    assert (search["restart"], search["profiles"]) == ("on-failure", ["search"])


@pytest.mark.parametrize(("name", "pod"), PODS)
def test_pods_are_not_root_and_bounded(name: str, pod: dict[str, Any]) -> None:
    spec = pod["spec"]
    assert spec["automountServiceAccountToken"] is False
    context = spec["securityContext"]
    assert (context["runAsNonRoot"], context["runAsUser"]) == (True, 10001)
    assert context["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["metadata"]["labels"] == POLICY["spec"]["podSelector"]["matchLabels"]
    assert not {"hostNetwork", "hostPID", "hostIPC"} & set(spec)
    for container in spec["containers"]:
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert {"cpu", "memory"} <= set(container["resources"]["limits"])
        assert container["resources"]["requests"].keys() == container["resources"]["limits"].keys()
        mounted = {mount["name"] for mount in container["volumeMounts"]}
        assert mounted == {volume["name"] for volume in spec["volumes"]}
    assert not any("hostPath" in volume for volume in spec["volumes"])


@pytest.mark.parametrize(("name", "pod"), RAY_PODS)
def test_ray_pods_have_probes_volumes_and_time_to_drain(name: str, pod: dict[str, Any]) -> None:
    spec = pod["spec"]
    assert spec["terminationGracePeriodSeconds"] >= 600
    claims = {
        v["persistentVolumeClaim"]["claimName"]
        for v in spec["volumes"]
        if len(v) == 2 and "persistentVolumeClaim" in v
    }
    assert claims == {claim["metadata"]["name"] for claim in STORAGE}
    for container in spec["containers"]:
        assert {"startupProbe", "readinessProbe", "livenessProbe"} <= set(container)
        models = next(m for m in container["volumeMounts"] if m["name"] == "models")
        assert models["readOnly"] is True


@pytest.mark.parametrize("spec", [CLUSTER["spec"], JOB["spec"]["rayClusterSpec"]])
def test_clusters_want_the_token_of_a_secret(spec: dict[str, Any]) -> None:
    assert spec["authOptions"] == {"mode": "token", "secretName": "evomerge-ray-token"}
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"


def test_the_job_has_the_same_cluster_and_is_tried_again() -> None:
    assert JOB["spec"]["rayClusterSpec"] == CLUSTER["spec"]
    assert JOB["spec"]["backoffLimit"] > 0
    assert "--executor ray --address auto" in JOB["spec"]["entrypoint"]


def test_no_secret_is_in_the_repository() -> None:
    for path in DOCKER.rglob("*"):
        if path.is_file() and path.name != "ray-token":
            text = path.read_text()
            assert "kind: Secret" not in text
            assert not re.search(r"\b[0-9a-f]{40,}\b", text)


def test_the_network_policy_lets_only_the_cluster_and_its_operator_in() -> None:
    spec = POLICY["spec"]
    assert set(spec["policyTypes"]) == {"Ingress", "Egress"}
    own, operator = spec["ingress"]
    assert own["from"] == [{"podSelector": spec["podSelector"]}]
    assert operator["ports"] == [{"protocol": "TCP", "port": 8265}]
    assert all(rule.get("to") for rule in spec["egress"])


def test_the_slurm_script_is_shut_and_resumes() -> None:
    assert subprocess.run(["bash", "-n"], input=SLURM, text=True, check=False).returncode == 0
    assert "umask 077" in SLURM
    assert "RAY_AUTH_MODE=token" in SLURM
    assert "#SBATCH --requeue" in SLURM
    assert "scontrol requeue" in SLURM


HADOLINT = shutil.which("hadolint", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")


@pytest.mark.skipif(HADOLINT is None, reason="hadolint is not installed")
def test_hadolint_has_no_complaint() -> None:
    command = [str(HADOLINT), str(DOCKER / "Dockerfile")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def _has_compose() -> bool:
    if shutil.which("docker") is None:
        return False
    return not subprocess.run(
        ["docker", "compose", "version"], capture_output=True, check=False
    ).returncode


@pytest.mark.skipif(not _has_compose(), reason="docker compose is not installed")
def test_compose_reads_its_file() -> None:
    done = subprocess.run(
        ["docker", "compose", "-f", DOCKER / "compose.yaml", "config", "--quiet"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_kubernetes_schemas_are_kept() -> None:
    validator = pytest.importorskip("kubernetes_validate")
    for manifest in (*STORAGE, POLICY):
        validator.validate(manifest, "1.32", strict=True)


@pytest.mark.parametrize(("name", "pod"), PODS)
def test_pods_keep_the_schema_of_kubernetes(name: str, pod: dict[str, Any]) -> None:
    validator = pytest.importorskip("kubernetes_validate")
    head = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": name}}
    validator.validate({**head, "template": pod}, "1.32", strict=True)
    misspelt = {**pod, "spec": {**pod["spec"], "terminationGracePeriod": 5}}
    with pytest.raises(validator.ValidationError):
        validator.validate({**head, "template": misspelt}, "1.32", strict=True)


def schema_of(name: str) -> dict[str, Any]:
    return json.loads((DOCKER.parent / f"tests/docker/schemas/{name}.json").read_text())


def faults(instance: object, schema: dict[str, Any]) -> list[str]:
    return [error.message for error in jsonschema.Draft7Validator(schema).iter_errors(instance)]


@pytest.mark.parametrize(
    ("kind", "spec"),
    [("RayCluster", CLUSTER["spec"]), ("RayJob", JOB["spec"]), ("RayCluster", JOB["spec"]["rayClusterSpec"])],
)  # fmt: skip
def test_kuberay_schemas_are_kept(kind: str, spec: dict[str, Any]) -> None:
    schema = schema_of("kuberay")[kind]
    assert faults(spec, schema) == []
    assert faults({**spec, "headGroupSpecs": {}}, schema) != []
    assert {(m["apiVersion"], m["kind"]) for m in (CLUSTER, JOB)} == {
        ("ray.io/v1", "RayCluster"), ("ray.io/v1", "RayJob"),
    }  # fmt: skip


def test_the_compose_schema_is_kept() -> None:
    schema = schema_of("compose")
    assert faults(COMPOSE, schema) == []
    head = COMPOSE["services"]["head"]
    wrong = {**COMPOSE, "services": {"head": {**head, "cap_dropped": ["ALL"]}}}
    assert faults(wrong, schema) != []


def _has_daemon() -> bool:
    if shutil.which("docker") is None:
        return False
    return not subprocess.run(["docker", "info"], capture_output=True, check=False).returncode


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.skipif(not _has_daemon(), reason="no docker daemon answers")
def test_the_image_can_be_built_and_runs() -> None:
    tag, (base,) = f"evomerge:{__version__}-cpu", BASES
    have = [["docker", "image", "inspect", base], ["docker", "pull", base]]
    if all(subprocess.run(c, capture_output=True, check=False).returncode for c in have):
        pytest.skip(f"{base} cannot be had")
    build = ["docker", "build", "-f", DOCKER / "Dockerfile", "--target", "cpu", "-t", tag, ROOT]
    done = subprocess.run(build, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    shown = ["docker", "run", "--rm", "--network=none", "--read-only", tag, "evomerge", "--help"]
    done = subprocess.run(shown, capture_output=True, text=True, check=False)
    assert "Breed merges" in done.stdout, done.stderr
