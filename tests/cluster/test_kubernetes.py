"""The files for Kubernetes: valid for the operator, consistent with each other, and closed to the outside.

The operator's own definitions (CRDs) validate them where they are present, beside the project. What matters of these
definitions and of the operator's further checks is also written down here, so that it is tested everywhere.
"""

import copy
import re
import shutil
import subprocess
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import list2cmdline
from typing import Any

import jsonschema
import pytest
import yaml

from cluster import versions
from cluster.install import ROOT

FOLDER = ROOT / "cluster" / "kubernetes"
CRDS = ROOT.parent / "shared" / "data" / "kuberay-crds"
VARIANTS = ("kueue", "gpu", "s3")
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
Document = dict[str, Any]


def read(path: Path) -> list[Document]:
    """The documents of a file, with every placeholder filled in."""
    return list(yaml.safe_load_all(re.sub(r"<[^<>\n]+>", "value", path.read_text())))


def patched(variant: str) -> Document:
    """The job of a variant: the kustomization's JSON patches applied to the job."""
    [kustomization] = read(FOLDER / variant / "kustomization.yaml")
    assert kustomization["resources"] == ["../job"]
    job = copy.deepcopy(read(FOLDER / "job" / "rayjob.yaml")[0])
    for patch in kustomization["patches"]:
        assert patch["target"] == {"kind": "RayJob"}
        for operation in yaml.safe_load(patch["patch"]):
            apply(job, **operation)
    return job


def apply(document: Document, op: str, path: str, value: Any = None) -> None:
    *parents, last = [part.replace("~1", "/") for part in path.split("/")[1:]]
    place: Any = document
    for part in parents:
        place = place[int(part)] if isinstance(place, list) else place[part]
    key: Any = int(last) if isinstance(place, list) else last
    if op == "add":
        assert key not in place, f"{path} is already set"
        place[key] = value
    elif op == "replace":
        assert place[key] is not None
        place[key] = value
    else:
        assert op == "remove"
        del place[key]


def jobs() -> dict[str, Document]:
    """Every RayJob that the files can create, by name of its file."""
    [daily] = [document for document in read(FOLDER / "daily.yaml") if document["kind"] == "ConfigMap"]
    found = {"job": read(FOLDER / "job" / "rayjob.yaml")[0], "daily": yaml.safe_load(daily["data"]["rayjob.yaml"])}
    return found | {variant: patched(variant) for variant in VARIANTS}


JOBS = jobs()
[CLUSTER] = read(FOLDER / "raycluster.yaml")
CLUSTERS = {"raycluster": CLUSTER["spec"]} | {name: job["spec"]["rayClusterSpec"] for name, job in JOBS.items()}


def pods(cluster: Document) -> list[Document]:
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    return [group["template"]["spec"] for group in groups]


def problems(job: Document) -> list[str]:
    """What the operator would refuse: its checks of a RayJob beyond the definition (KubeRay 1.7.0)."""
    spec, cluster = job["spec"], job["spec"]["rayClusterSpec"]
    rules = spec.get("deletionStrategy", {}).get("deletionRules", [])
    found = []
    if rules and spec.get("shutdownAfterJobFinishes"):
        found.append("deletionRules and shutdownAfterJobFinishes")
    if spec.get("ttlSecondsAfterFinished") and not spec.get("shutdownAfterJobFinishes"):
        found.append("ttlSecondsAfterFinished without shutdownAfterJobFinishes")
    if cluster.get("enableInTreeAutoscaling") and any(rule["policy"] == "DeleteWorkers" for rule in rules):
        found.append("DeleteWorkers with autoscaling")
    if spec["submissionMode"] == "SidecarMode":
        found += [f"SidecarMode and {key}" for key in ("submitterPodTemplate", "submitterConfig") if key in spec]
        if pods(cluster)[0].get("restartPolicy", "Never") != "Never":
            found.append("SidecarMode and restartPolicy of the head")
    if cluster["authOptions"]["mode"] == "token" and "rayVersion" not in cluster:
        found.append("token without rayVersion")
    by_condition: dict[tuple[Any, Any], dict[str, int]] = {}
    for rule in rules:
        condition = rule["condition"]
        if ("jobStatus" in condition) == ("jobDeploymentStatus" in condition):
            found.append("exactly one of jobStatus and jobDeploymentStatus")
        key = (condition.get("jobStatus"), condition.get("jobDeploymentStatus"))
        if rule["policy"] in by_condition.setdefault(key, {}):
            found.append("duplicate rule")
        by_condition[key][rule["policy"]] = condition["ttlSeconds"]
    for ttls in by_condition.values():
        times = [ttls[policy] for policy in ("DeleteWorkers", "DeleteCluster", "DeleteSelf") if policy in ttls]
        if times != sorted(times):
            found.append("order of deletion")
    return found


@pytest.mark.parametrize("name", JOBS)
def test_operator_accepts_every_job(name: str) -> None:
    assert problems(JOBS[name]) == []


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda spec: spec.update(shutdownAfterJobFinishes=True), "deletionRules and shutdownAfterJobFinishes"),
        (lambda spec: spec.update(ttlSecondsAfterFinished=60), "ttlSecondsAfterFinished without"),
        (lambda spec: spec.update(submitterConfig={"backoffLimit": 1}), "SidecarMode and submitterConfig"),
        (lambda spec: spec["rayClusterSpec"].pop("rayVersion"), "token without rayVersion"),
        (
            lambda spec: spec["deletionStrategy"]["deletionRules"][0].update(policy="DeleteWorkers"),
            "DeleteWorkers with autoscaling",
        ),
    ],
)
def test_job_that_the_operator_refuses_is_found(change: Callable[[Document], Any], problem: str) -> None:
    job = copy.deepcopy(JOBS["job"])
    change(job["spec"])
    assert [found for found in problems(job) if problem in found]


@pytest.mark.parametrize("name", JOBS)
def test_failed_job_is_tried_again_and_what_has_ended_is_deleted(name: str) -> None:
    spec = JOBS[name]["spec"]
    assert spec["submissionMode"] == "SidecarMode"
    assert spec["backoffLimit"] >= 1
    if name == "kueue":
        assert spec["shutdownAfterJobFinishes"] is True
        return
    rules = spec["deletionStrategy"]["deletionRules"]
    for status in ({"jobStatus": "SUCCEEDED"}, {"jobStatus": "FAILED"}, {"jobDeploymentStatus": "Failed"}):
        deleted = {rule["policy"] for rule in rules if status.items() <= rule["condition"].items()}
        assert deleted == {"DeleteCluster", "DeleteSelf"}


def test_kueue_accepts_the_job_of_its_variant() -> None:
    """Kueue refuses autoscaling; the quota is for all workers at once."""
    job = JOBS["kueue"]
    assert "kueue.x-k8s.io/queue-name" in job["metadata"]["labels"]
    assert "enableInTreeAutoscaling" not in job["spec"]["rayClusterSpec"]
    [group] = job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    assert group["replicas"] == group["minReplicas"] == group["maxReplicas"]


@pytest.mark.parametrize("name", CLUSTERS)
def test_every_cluster_has_our_versions_and_needs_the_token(name: str) -> None:
    cluster = CLUSTERS[name]
    assert cluster["rayVersion"] == versions.RAY
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["headGroupSpec"]["serviceType"] == "ClusterIP"
    suffix = "-cuda" if name == "gpu" else ""
    assert {pod["containers"][0]["image"] for pod in pods(cluster)} == {f"value/manygate:{VERSION}{suffix}"}


@pytest.mark.parametrize("name", CLUSTERS)
def test_every_pod_has_fixed_resources_and_few_rights(name: str) -> None:
    for pod in pods(CLUSTERS[name]):
        [container] = pod["containers"]
        assert container["resources"]["requests"] == container["resources"]["limits"]
        assert {"cpu", "memory"} <= set(container["resources"]["limits"])
        assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert f"USER {pod['securityContext']['runAsUser']}\n" in (ROOT / "Dockerfile").read_text()
        volumes = {volume["name"] for volume in pod.get("volumes", [])}
        assert {mount["name"] for mount in container.get("volumeMounts", [])} == volumes
        assert "livenessProbe" not in container  # the operator adds its own only if there is none
        assert "readinessProbe" not in container


@pytest.mark.parametrize("name", CLUSTERS)
def test_number_of_workers_has_bounds(name: str) -> None:
    cluster = CLUSTERS[name]
    [group] = cluster["workerGroupSpecs"]
    assert 0 < group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    assert cluster.get("enableInTreeAutoscaling", False) == (name != "kueue")
    if name != "raycluster":
        assert f"--workers 1-{group['maxReplicas']} " in JOBS[name]["spec"]["entrypoint"]
        assert (
            f"cluster.cpus_per_worker={pods(cluster)[1]['containers'][0]['resources']['limits']['cpu']} "
            in (JOBS[name]["spec"]["entrypoint"])
        )


def test_cluster_that_stays_is_that_of_the_job_without_the_experiment() -> None:
    cluster = copy.deepcopy(CLUSTERS["job"])
    head = pods(cluster)[0]
    assert head["volumes"].pop() == {"name": "experiment", "configMap": {"name": "manygate-experiment"}}
    assert head["containers"][0]["volumeMounts"].pop()["mountPath"] == "/experiment"
    assert cluster == CLUSTER["spec"]


def test_daily_job_is_the_job_with_another_name_and_with_days() -> None:
    daily, job = copy.deepcopy(JOBS["daily"]), copy.deepcopy(JOBS["job"])
    assert daily["metadata"].pop("name") != job["metadata"].pop("name")
    assert daily["spec"].pop("entrypoint").startswith(job["spec"].pop("entrypoint"))
    assert daily == job


def test_gpu_variant_asks_for_a_gpu_in_each_worker_only() -> None:
    head, worker = pods(CLUSTERS["gpu"])
    assert worker["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert "nvidia.com/gpu" not in head["containers"][0]["resources"]["limits"]


def test_s3_variant_takes_its_secrets_by_reference_and_needs_no_shared_folder() -> None:
    for pod in pods(CLUSTERS["s3"]):
        variables = pod["containers"][0]["env"]
        assert {variable["name"] for variable in variables} == {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"}
        references = [variable["valueFrom"]["secretKeyRef"] for variable in variables]
        assert [reference["name"] for reference in references] == ["manygate-s3"] * 2
        assert "persistentVolumeClaim" not in str(pod)
    assert "output=s3://" in JOBS["s3"]["spec"]["entrypoint"]


def test_shared_folder_is_that_of_the_storage_file() -> None:
    [claim] = read(FOLDER / "storage.yaml")
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    for pod in pods(CLUSTER["spec"]):
        assert pod["volumes"][0]["persistentVolumeClaim"] == {"claimName": claim["metadata"]["name"]}


def test_cron_job_may_create_jobs_and_nothing_else() -> None:
    account, role, binding, cron, config = read(FOLDER / "daily.yaml")
    assert role["rules"] == [{"apiGroups": ["ray.io"], "resources": ["rayjobs"], "verbs": ["create"]}]
    assert binding["subjects"] == [{"kind": "ServiceAccount", "name": account["metadata"]["name"]}]
    assert (binding["roleRef"]["kind"], binding["roleRef"]["name"]) == ("Role", role["metadata"]["name"])
    assert cron["spec"]["concurrencyPolicy"] == "Forbid"
    pod = cron["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    assert pod["serviceAccountName"] == account["metadata"]["name"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    [container], [volume] = pod["containers"], pod["volumes"]
    assert volume["configMap"] == {"name": config["metadata"]["name"]}
    [mount], [file] = container["volumeMounts"], config["data"]
    assert container["args"] == ["create", f"--filename={mount['mountPath']}/{file}"]


@pytest.mark.parametrize("name", JOBS)
def test_arguments_survive_the_two_shells_between_the_file_and_the_job(name: str, tmp_path: Path) -> None:
    """The operator puts the entrypoint into a bash command, and Ray gives its words to another shell."""

    def words(command: str, shell: str) -> list[str]:
        script = f'show() {{ printf "%s\\n" "$@"; }}; show {command}'
        return subprocess.check_output([shell, "-c", script], cwd=tmp_path, text=True).splitlines()

    first = words(JOBS[name]["spec"]["entrypoint"], "bash")
    assert words(list2cmdline(first), "sh") == first
    assert first[:3] == ["manygate", "pipeline", "/experiment/experiment.yaml"]
    overrides = dict(word.split("=", 1) for word in first[3:] if "=" in word)
    if name == "daily":
        ranges = [yaml.safe_load(overrides[f"logs.splits.{split}"]) for split in ("train", "valid", "test")]
        days = [day for span in ranges for day in span]
        assert days == sorted(days)
        assert len(set(days)) == 4


# The operator's own definitions.


@pytest.fixture(scope="module")
def definitions() -> dict[str, Document]:
    """The schema of each kind, in which unknown keys are errors (a cluster would drop them silently)."""
    if not CRDS.is_dir():
        pytest.skip("the operator's definitions are not here")
    found = {}
    for path in (CRDS / "rayclusters.yaml", CRDS / "rayjobs.yaml"):
        definition = yaml.load(path.read_text(), yaml.CSafeLoader)["spec"]
        [version] = [version for version in definition["versions"] if version["name"] == "v1"]
        found[definition["names"]["kind"]] = strict(version["schema"]["openAPIV3Schema"])
    return found


def strict(schema: Any) -> Any:
    if isinstance(schema, list):
        return [strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    result = {key: strict(value) for key, value in schema.items()}
    properties = result.get("properties")
    typed = isinstance(properties, dict) and result.get("type") == "object"
    if typed and not {"apiVersion", "kind", "metadata"} <= set(properties):  # whole objects have these in common
        result.setdefault("additionalProperties", False)
    return result


def documents() -> Iterator[tuple[str, Document]]:
    yield "raycluster", CLUSTER
    yield from JOBS.items()


@pytest.mark.parametrize(("name", "document"), documents(), ids=lambda value: value if isinstance(value, str) else "")
def test_definitions_of_the_operator_accept_the_files(
    name: str, document: Document, definitions: dict[str, Document]
) -> None:
    assert document["apiVersion"] == "ray.io/v1"
    jsonschema.validate(document, definitions[document["kind"]])


def test_definitions_find_a_misspelled_key(definitions: dict[str, Document]) -> None:
    job = copy.deepcopy(JOBS["job"])
    job["spec"]["rayClusterSpec"]["enableInTreeAutoScaling"] = True
    with pytest.raises(jsonschema.ValidationError, match="enableInTreeAutoScaling"):
        jsonschema.validate(job, definitions["RayJob"])


@pytest.mark.skipif(not shutil.which("kubectl"), reason="kubectl is not installed")
@pytest.mark.parametrize("variant", VARIANTS)
def test_kubectl_builds_the_same_variant(variant: str) -> None:
    built = subprocess.check_output(["kubectl", "kustomize", str(FOLDER / variant)], text=True)
    assert yaml.safe_load(re.sub(r"<[^<>\n]+>", "value", built)) == JOBS[variant]
