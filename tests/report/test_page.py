"""The report of a run: the page shows the contents of the run's folder, and no text in them acts as markup."""

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml
from plotly.offline import get_plotlyjs

from pipeline import storage
from pipeline.errors import UserError
from pipeline.report.page import write_report
from tests import tiny

HOSTILE = 'x"><script>alert(1)</script><img src=http://evil.example/a.png>&amp;'
EXPERIMENT = yaml.safe_load(tiny.EXPERIMENT) | {
    "name": "small",
    "logs": {"path": HOSTILE, "partition": "day", "splits": {"train": [1, 1], "valid": [2, 2], "test": [3, 3]}},
    "model": {"bottom": {"kind": "concat"}, "trunk": {"kind": "aesm", "experts": 2}, "head": {"kind": "towers"}},
    "training": {"early_stopping": {"metric": "click.auc", "patience": 3}},
}
SECTIONS = [
    "Metrics",
    "Learning curves",
    "Calibration",
    "Use of the experts",
    "Auxiliary losses",
    "Gradients of the tasks",
    "Other diagnostics",
    "Comparison",
]


def tasks(auc: float | None, rmse: float) -> dict[str, Any]:
    """The `tasks` of an evaluation with one scenario that has rows and one that has none."""
    binary = {"auc": auc, "log_loss": 0.61, "calibration": 1.05, "grouped_auc": 0.58, "rows": 1234}
    continuous = {"rmse": rmse, "mae": 0.9, "spearman": 0.4, "gini": 0.3, "calibration": 0.97, "rows": 1234}
    nothing = dict.fromkeys(binary, None) | {"rows": 0}
    none_continuous = dict.fromkeys(continuous, None) | {"rows": 0}
    better = binary | {"auc": None if auc is None else auc + 0.1}
    return {
        "click": {"kind": "binary", **binary, "scenarios": {"tab=1": better, HOSTILE: nothing}},
        "value": {"kind": "continuous", **continuous, "scenarios": {"tab=1": continuous, HOSTILE: none_continuous}},
    }


def train_line(step: int, loss: float, **diagnostics: float) -> dict[str, Any]:
    values = {"click": {"loss": loss, "auc": 0.5 + step / 1000}, "value": {"loss": 2 * loss}}
    return {"kind": "train", "step": step, "tasks": values, "diagnostics": diagnostics}


def valid_line(step: int, auc: float) -> dict[str, Any]:
    return {"kind": "valid", "step": step, "rows": 10, "tasks": tasks(auc, 1.2)}


def evaluation() -> dict[str, Any]:
    curve = {"predicted": [0.125, 0.5], "observed": [0.25, 0.75], "rows": [617, 617]}
    return {
        "split": "test",
        "checkpoint": "s3://bucket/runs/small/checkpoints/step-00000040",
        "rows": 1234,
        "tasks": tasks(0.7125, 1.3125),
        "reliability": {"click": {"all": curve, HOSTILE: curve}},
        "experts": {
            "tab 1": {
                "groups": ["all tasks"],
                "weight": {"all": [[0.25, 0.75]], HOSTILE: [[0.125, 0.875]]},
                "selected": {"all": [[0.5, 1.0]], HOSTILE: [[0.375, 1.0]]},
            },
            "task 1": {
                "groups": ["click", "value"],
                "weight": {"all": [[0.4, 0.6], [0.3, 0.7]]},
                "selected": {"all": [[1.0, 1.0], [1.0, 1.0]]},
            },
        },
    }


def comparison() -> dict[str, Any]:
    base = {"mean": 0.7, "std": 0.001, "values": [0.699, 0.701], "difference": None, "beyond_noise": None}
    better = {"mean": 0.75, "std": 0.002, "values": [0.748, 0.752], "difference": 0.05, "beyond_noise": True}
    undefined = {"mean": None, "std": None, "values": [None, None], "difference": None, "beyond_noise": None}
    return {
        "split": "test",
        "metric_of_task": {"click": "auc"},
        "baseline": "mmoe",
        "seeds": [0, 1],
        "variants": {
            "mmoe": {"tasks": {"click": {"all": base, HOSTILE: undefined}}},
            "aesm": {"tasks": {"click": {"all": better | {"transfer": -0.01, "transfer_beyond_noise": True}}}},
            "begun": {"seeds": [], "tasks": {"click": {"all": undefined}}},
        },
    }


LINES = [
    train_line(20, 0.69, noise=0.5, **{"kl/tab 1/specific": 0.375, "kl/tab 1/shared": 0.25, "task_weight/click": 1.5}),
    valid_line(20, 0.66),
    train_line(40, 0.65, noise=0.25, **{"gradient_norm/click": 0.0625, "gradient_conflict/click": 0.125}),
    valid_line(40, 0.64),
]


def write_run(folder: Path, lines: list[dict[str, Any]], **files: Any) -> str:
    """Writes a run's folder with only the given files. Returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "experiment.yaml").write_text(yaml.safe_dump(EXPERIMENT))
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "metrics.jsonl").write_text(text + '{"kind": "train", "st')  # killed while writing
    for name, content in files.items():
        (folder / f"{name.replace('_', '-')}.json").write_text(json.dumps(content))
    return str(folder)


class Page(HTMLParser):
    """A parsed report."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self.source = storage.read_text(path)
        self.feed(self.source)
        scripts = self.texts["script"]
        self.figures = json.loads(scripts[0])
        titles = self.texts["figcaption"]
        assert len(titles) == len(self.figures)
        self.traces = {title: figure["data"] for title, figure in zip(titles, self.figures, strict=True)}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.texts.setdefault(tag, []).append("")

    def handle_data(self, data: str) -> None:
        if self.tags:
            self.texts[self.tags[-1][0]][-1] += data.strip("\n")

    def line(self, title: str, label: str) -> tuple[list[float], list[float]]:
        """The points of a chart's line."""
        (found,) = [trace for trace in self.traces[title] if trace.get("meta") == label]
        return found["x"], found["y"]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Page:
    folder = tmp_path_factory.mktemp("runs") / "small"
    return Page(write_report(write_run(folder, LINES, evaluation_test=evaluation(), compare=comparison())))


def test_sections_are_in_their_order(page: Page) -> None:
    assert page.texts["h2"] == SECTIONS
    assert page.texts["summary"] == ["Experiment"]
    assert "kind: aesm" in "".join(page.texts["code"])


def test_the_headline_shows_the_model_and_its_results(page: Page) -> None:
    assert dict(zip(page.texts["dt"], page.texts["dd"], strict=True)) == {
        "Steps": "40",
        "Bottom": "concat",
        "Trunk": "aesm",
        "Head": "towers",
        "Split": "test",
        "Rows": "1,234",
        "Checkpoint": "step-00000040",
        "click AUC": "0.7125",
        "value RMSE": "1.3125",
    }


def test_metrics_by_scenario_are_shaded_by_their_difference(page: Page) -> None:
    cells = page.texts["td"]
    assert cells[:5] == ["0.7125", "0.5800", "0.6100", "1.0500", "1,234"]
    assert cells[5:10] == ["0.8125", "0.5800", "0.6100", "1.0500", "1,234"]
    assert cells[10:15] == ["-", "-", "-", "-", "0"]
    attributes = [attributes for tag, attributes in page.tags if tag == "td"]
    assert attributes[5] == {"class": "better", "style": "--shade:0.450"}
    assert attributes[6] == attributes[10] == {}
    assert "undefined" in " ".join(page.texts["p"])


def test_learning_curves_and_the_best_step(page: Page) -> None:
    assert page.line("click: loss while training", "training") == ([20, 40], [0.69, 0.65])
    assert page.line("value: loss while training", "training") == ([20, 40], [1.38, 1.3])
    assert page.line("click: AUC", "training") == ([20, 40], [0.52, 0.54])
    assert page.line("click: AUC", "all") == ([20, 40], [0.66, 0.64])
    assert page.line("click: AUC", "tab=1")[1] == pytest.approx([0.76, 0.74])
    assert page.line("click: AUC", HOSTILE) == ([], [])
    assert page.line("value: RMSE", "all") == ([20, 40], [1.2, 1.2])
    titles = page.texts["figcaption"]
    for figure, title in zip(page.figures, titles, strict=True):
        if "loss while" in title or title in ("click: AUC", "value: RMSE"):
            assert figure["layout"]["annotations"][0]["text"] == "best: 20"


def test_calibration_has_a_diagonal_and_one_curve_per_scenario(page: Page) -> None:
    diagonal, everything, hostile = page.traces["click"]
    assert (diagonal["x"], diagonal["y"]) == ([0.125, 0.75], [0.125, 0.75])
    assert (everything["x"], everything["y"]) == page.line("click", HOSTILE) == ([0.125, 0.5], [0.25, 0.75])
    assert hostile["customdata"] == [617, 617]


def test_expert_use_by_scenario_and_task(page: Page) -> None:
    (selected,) = page.traces["all tasks: how often selected, %"]
    assert selected["z"] == [[0.5, 1.0], [0.375, 1.0]]
    assert selected["text"] == [["50", "100"], ["38", "100"]]
    assert page.traces["all tasks: mean weight, %"][0]["z"] == [[0.25, 0.75], [0.125, 0.875]]
    assert page.traces["value: mean weight, %"][0]["z"] == [[0.3, 0.7]]
    assert "click: how often selected, %" not in page.traces  # left out: the gates of that layer are dense


def test_diagnostics_over_steps(page: Page) -> None:
    assert page.line("tab 1", "specific") == ([20], [0.375])
    assert page.line("tab 1", "shared") == ([20], [0.25])
    assert page.line("Noise of the gates", "noise") == ([20, 40], [0.5, 0.25])
    assert page.line("Norm of the gradient", "click") == ([40], [0.0625])
    assert page.line("Share of steps in conflict with the core task", "click") == ([40], [0.125])
    assert page.line("task_weight", "click") == ([20], [1.5])


def test_comparison_marks_differences_beyond_noise(page: Page) -> None:
    assert "begun" not in page.texts["th"]
    (cell,) = [i for i, text in enumerate(page.texts["td"]) if text.startswith("0.7500 ± 0.0020")]
    attributes = [attributes for tag, attributes in page.tags if tag == "td"]
    assert attributes[cell]["class"] == "better"
    assert page.texts["small"] == ["+0.0500", "transfer -0.0100"]
    assert page.texts["p"][-2].endswith("below 0 it is a loss.")
    seeds, means = page.traces["click: AUC over all rows"]
    assert (seeds["x"], means["x"]) == ([0.699, 0.701, 0.748, 0.752], [0.7, 0.75])
    assert page.figures[-1]["layout"]["yaxis"]["ticktext"] == ["mmoe", "aesm"]


def test_nothing_is_fetched_and_plotly_is_included_once(page: Page) -> None:
    assert page.source.count(get_plotlyjs()) == 1
    addresses = [value for _, attributes in page.tags for name, value in attributes.items() if name in ("src", "href")]
    assert addresses and all(address.startswith("#") for address in addresses if address is not None)
    assert not {tag for tag, _ in page.tags} & {"link", "img", "iframe", "base"}
    policy = next(attributes["content"] for tag, attributes in page.tags if "http-equiv" in attributes)
    assert policy is not None and policy.startswith("default-src 'none';") and "http" not in policy


def test_markup_in_files_is_shown_as_text(tmp_path: Path) -> None:
    hostile = Page(write_report(write_run(tmp_path, LINES, evaluation_test=evaluation())))
    assert any(f"path: {HOSTILE}" in text.replace("'", "") for text in hostile.texts["code"])
    assert len(hostile.texts["script"]) == 3
    assert not [tag for tag, _ in hostile.tags if tag == "img"]
    assert HOSTILE in hostile.texts["th"]
    named = [trace["name"] for figure in hostile.figures for trace in figure["data"] if trace.get("meta") == HOSTILE]
    assert named and all("<" not in name for name in named)
    labels = [label for figure in hostile.figures for label in figure["layout"]["yaxis"].get("ticktext", [])]
    assert not any("<" in label.replace("<br>", "") for label in labels)


def test_sections_without_data_are_left_out(tmp_path: Path) -> None:
    lines = [{key: value for key, value in line.items() if key != "diagnostics"} for line in LINES]
    bare = Page(write_report(write_run(tmp_path, lines)))
    assert bare.texts["h2"] == ["Metrics", "Learning curves"]
    assert "not been evaluated yet" in " ".join(bare.texts["p"])
    assert "manygate evaluate EXPERIMENT" in bare.texts["code"]
    old = {key: value for key, value in evaluation().items() if key not in ("reliability", "experts")}
    assert Page(write_report(write_run(tmp_path, lines, evaluation_test=old))).texts["h2"] == SECTIONS[:2]


def test_all_splits_are_shown_the_test_split_first(tmp_path: Path) -> None:
    valid = evaluation() | {"split": "valid", "rows": 7, "tasks": tasks(0.6, 1.0)}
    both = Page(write_report(write_run(tmp_path, LINES, evaluation_valid=valid, evaluation_test=evaluation())))
    titles = [title for title in both.texts["h3"] if title.startswith("click")]
    assert titles == ["click, test split", "click, valid split"]
    assert both.texts["dd"][4:6] == ["test", "1,234"]
    assert "Valid split: 7 rows, checkpoint step-00000040." in both.texts["p"][0]


def test_an_undefined_best_and_a_first_validation_alone(tmp_path: Path) -> None:
    undefined = {"kind": "valid", "step": 20, "rows": 10, "tasks": tasks(None, 1.2)}
    alone = Page(write_report(write_run(tmp_path, [undefined])))
    assert list(alone.traces) == ["value: RMSE"]
    assert "annotations" not in alone.figures[0]["layout"]


def test_a_comparison_alone(tmp_path: Path) -> None:
    assert Page(write_report(write_run(tmp_path, [], compare=comparison()))).texts["h2"] == ["Metrics", "Comparison"]


def test_a_run_that_was_never_trained_is_an_error(tmp_path: Path) -> None:
    for folder in (str(tmp_path / "nowhere"), write_run(tmp_path, [])):
        with pytest.raises(UserError, match=f"nothing to report on in {folder}.*Run `manygate train EXPERIMENT`"):
            write_report(folder)


def test_a_run_behind_a_uri(tmp_path: Path) -> None:
    folder = f"memory://{tmp_path.name}/small"
    for path in Path(write_run(tmp_path, LINES)).iterdir():
        storage.write_text(storage.join(folder, path.name), path.read_text())
    page = write_report(folder)
    assert page == f"{folder}/report.html"
    assert Page(page).texts["h1"] == ["small"]
