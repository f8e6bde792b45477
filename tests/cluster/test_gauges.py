"""The progress of a job as Prometheus series, and the dashboard that shows them."""

import json
import re
from pathlib import Path

from cluster import gauges
from cluster.gauges import GAUGES, samples
from pipeline.job_progress import JobProgress, MachineWorkers, SavedCheckpoint

CLUSTER = Path(gauges.__file__).parent
DASHBOARD = json.loads((CLUSTER / "grafana.json").read_text())
NAMES = {f"ray_{name}" for name in GAUGES}
EVERYTHING = JobProgress(
    stage="training",
    rows=1,
    total_rows=2,
    step=3,
    total_steps=4,
    epoch=5,
    samples_per_second=6.0,
    data_wait=0.7,
    eta_s=8.0,
    metrics={"click": {"auc": 0.9, "loss": None}},
    validation={"click": {"auc": 0.1}},
    validation_step=11,
    checkpoint=SavedCheckpoint(step=12, uri="runs/a", time=13.0),
    restarts=14,
    workers=[MachineWorkers(machine="10.0.0.1", count=15)],
)


def test_every_series_has_its_value_and_its_labels() -> None:
    assert EVERYTHING.model_fields_set == set(JobProgress.model_fields), "a field is missing here"
    found = list(samples(EVERYTHING))
    assert {sample.name for sample in found} == set(GAUGES)
    assert all(set(sample.labels) == set(GAUGES[sample.name][1]) for sample in found)
    values = [sample.value for sample in found]
    assert sorted(values) == sorted([1, 2, 3, 4, 5, 6, 0.7, 8, 0.9, 0.1, 12, 13, 14, 15])
    assert list(samples(JobProgress())) == []


def test_the_dashboard_shows_every_series_and_no_other() -> None:
    expressions = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
    used = set(re.findall(r"ray_\w+", " ".join(expressions)))
    assert used == NAMES
    variables = {variable["name"]: variable for variable in DASHBOARD["templating"]["list"]}
    assert set(re.findall(r"ray_\w+", variables["run"]["definition"])) <= NAMES
    labels = {label for _, names in GAUGES.values() for label in names} | {"run"}
    legends = " ".join(target["legendFormat"] for panel in DASHBOARD["panels"] for target in panel["targets"])
    assert set(re.findall(r"{{(\w+)}}", legends)) <= labels
    assert all("$run" in expression for expression in expressions)


def test_the_dashboard_can_be_imported() -> None:
    """The rules that Grafana's import has: a schema, a variable for the data source, and complete panels."""
    assert isinstance(DASHBOARD["schemaVersion"], int) and DASHBOARD["uid"] and DASHBOARD["title"]
    assert "id" not in DASHBOARD, "Grafana would replace the dashboard that has this number"
    source = DASHBOARD["templating"]["list"][0]
    assert (source["name"], source["type"], source["query"]) == ("datasource", "datasource", "prometheus")
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells: set[tuple[int, int]] = set()
    for panel in panels:
        assert panel["title"] and panel["description"] and panel["fieldConfig"]["defaults"]["unit"]
        for item in (panel, *panel["targets"]):
            assert item["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        place = panel["gridPos"]
        own = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not own & cells and max(x for x, _ in own) < 24
        cells |= own


def test_the_documentation_names_every_series() -> None:
    text = (CLUSTER.parent / "docs/operations.md").read_text()
    assert set(re.findall(r"`(ray_manygate_\w+)`", text)) == NAMES
