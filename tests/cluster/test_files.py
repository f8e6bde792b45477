"""The cluster files are valid YAML and agree with what is installed."""

from pathlib import Path

import yaml

from cluster import versions

CLUSTER = Path(versions.__file__).parent


def test_file_for_vms_is_consistent() -> None:
    config = yaml.safe_load((CLUSTER / "vms.yaml").read_text())
    assert config["provider"]["type"] == "local"
    assert config["max_workers"] == len(config["provider"]["worker_ips"])
    for commands in (config["head_start_ray_commands"], config["worker_start_ray_commands"]):
        assert "RAY_AUTH_MODE=token" in commands[-1]


def test_file_for_kubernetes_is_consistent() -> None:
    claim, cluster = yaml.safe_load_all((CLUSTER / "kubernetes.yaml").read_text())
    assert cluster["kind"] == "RayCluster"
    assert cluster["spec"]["rayVersion"] == versions.RAY
    assert cluster["spec"]["authOptions"] == {"mode": "token"}
    groups = [cluster["spec"]["headGroupSpec"], *cluster["spec"]["workerGroupSpecs"]]
    for pod in (group["template"]["spec"] for group in groups):
        assert pod["volumes"][0]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
        assert pod["containers"][0]["volumeMounts"][0]["name"] == pod["volumes"][0]["name"]


def test_versions_agree_with_the_project_file() -> None:
    project = (CLUSTER.parent / "pyproject.toml").read_text()
    assert f"ray[default,train]=={versions.RAY}" in project
    assert f"pyarrow=={versions.PYARROW}" in project
