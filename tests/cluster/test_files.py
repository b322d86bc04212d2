"""cluster.yaml by Ray's own validation, and its versions by the project's."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml

ROOT = Path(__file__).parents[2]


@pytest.fixture
def config() -> Any:
    return yaml.safe_load((ROOT / "cluster.yaml").read_text())


def test_ray_accepts_the_cluster(config: Any) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared = prepare_config(config)
    validate_config(prepared)
    # AWS's defaults would install another Ray.
    assert not [each for each in prepared["setup_commands"] if "ray" in each]
    with pytest.raises(Exception, match="idle_timeout"):
        validate_config(prepared | {"idle_timeout_minutes": "soon"})


def test_versions_are_those_of_the_tests(config: Any) -> None:
    pinned = dict(re.findall(r"^([\w.-]+)==([\w.]+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    assert pinned["ray"] == ray.__version__
    for image in (config["docker"]["head_image"], config["docker"]["worker_image"]):
        assert f":{pinned['ray']}-py311" in image
    for command in config["head_setup_commands"] + config["worker_setup_commands"]:
        assert f"torch=={pinned['torch']}'" in command
        assert "-c /home/ray/vig-ray/constraints.txt" in command


# The fields of KubeRay's v1 resources (ray-operator/apis/ray/v1), without those that are deprecated.
JOB = {"activeDeadlineSeconds", "backoffLimit", "rayClusterSpec", "submitterPodTemplate", "metadata", "clusterSelector",
       "submitterConfig", "managedBy", "deletionStrategy", "entrypoint", "runtimeEnvYAML", "jobId", "submissionMode",
       "entrypointResources", "entrypointNumCpus", "entrypointNumGpus", "ttlSecondsAfterFinished",
       "shutdownAfterJobFinishes", "suspend"}  # fmt: skip
SERVICE = {"serveConfigV2", "rayClusterConfig", "serveService"}
CLUSTER = {"headGroupSpec", "workerGroupSpecs", "rayVersion", "enableInTreeAutoscaling", "autoscalerOptions",
           "headServiceAnnotations", "suspend"}  # fmt: skip
HEAD = {"serviceType", "headService", "enableIngress", "rayStartParams", "template"}
WORKER = {"groupName", "replicas", "minReplicas", "maxReplicas", "numOfHosts", "rayStartParams", "template",
          "scaleStrategy"}  # fmt: skip
AUTOSCALER = {"resources", "image", "imagePullPolicy", "env", "envFrom", "volumeMounts", "securityContext",
              "idleTimeoutSeconds", "upscalingMode"}  # fmt: skip


@pytest.mark.parametrize("name", ["score", "train", "serve"])
def test_kuberay_knows_every_field(name: str) -> None:
    found = yaml.safe_load((ROOT / "kuberay" / f"{name}.yaml").read_text())
    assert found["apiVersion"] == "ray.io/v1"
    assert found["kind"] == ("RayService" if name == "serve" else "RayJob")
    spec = found["spec"]
    assert set(spec) <= (SERVICE if name == "serve" else JOB)
    cluster = spec["rayClusterConfig" if name == "serve" else "rayClusterSpec"]
    assert set(cluster) <= CLUSTER
    assert cluster["rayVersion"] == ray.__version__
    assert set(cluster["autoscalerOptions"]) <= AUTOSCALER
    assert set(cluster["headGroupSpec"]) <= HEAD
    images = set()
    for group in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]:
        (container,) = group["template"]["spec"]["containers"]
        images.add(container["image"])
        volumes = {volume["name"] for volume in group["template"]["spec"].get("volumes", [])}
        assert {mount["name"] for mount in container.get("volumeMounts", [])} == volumes
        assert container["resources"]["requests"] == container["resources"]["limits"]
    assert len(images) == 1
    for group in cluster["workerGroupSpecs"]:
        assert set(group) <= WORKER
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]


@pytest.mark.parametrize("stage", ["score", "train"])
def test_a_rayjob_runs_options_that_exist(stage: str) -> None:
    from vig_ray.cli import VERBS

    spec = yaml.safe_load((ROOT / "kuberay" / f"{stage}.yaml").read_text())["spec"]
    python, script, *words = spec["entrypoint"].split()
    assert (python, script) == ("python", f"/opt/vig-ray/jobs/{stage}.py")
    assert (ROOT / "jobs" / f"{stage}.py").exists()
    options = {flag[2:].replace("-", "_"): value for flag, value in zip(words[::2], words[1::2], strict=True)}
    VERBS[stage].load()[0](**options)  # refuses what it doesn't know


def test_a_rayservice_serves_what_serve_yaml_does() -> None:
    from ray.serve.schema import ServeDeploySchema

    spec = yaml.safe_load((ROOT / "kuberay" / "serve.yaml").read_text())["spec"]
    config = yaml.safe_load(spec["serveConfigV2"])
    assert ServeDeploySchema(**config).applications[0].import_path == "serve_app.app:build"
    assert config == yaml.safe_load((ROOT / "serve.yaml").read_text())


def test_the_image_holds_what_the_jobs_need() -> None:
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    pinned = dict(re.findall(r"^([\w.-]+)==([\w.]+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    assert f"FROM rayproject/ray:{pinned['ray']}-py311-gpu" in lines
    assert any(f"torch=={pinned['torch']}'" in line for line in lines)
    copied = {word for line in lines if line.startswith("COPY") for word in line.split()[1:-1] if "=" not in word}
    assert copied >= {"pyproject.toml", "constraints.txt", "vig_ray", "serve_app", "jobs"}
    assert all((ROOT / name).exists() for name in copied)
