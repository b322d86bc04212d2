"""Dashboard, alerts and compose.yaml name what there is: metrics, labels, options, files, ports."""

from __future__ import annotations

import ast
import importlib.util
import json
import re
import shutil
import subprocess
import threading
import weakref
from pathlib import Path
from typing import Any

import pytest
import yaml

from serve_app import gauges
from tests.end_to_end.server import wait_until
from vig_ray import cli

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
SUFFIXES = {"Counter": ("_total",), "Gauge": ("",), "Histogram": ("_bucket", "_sum", "_count")}
OF_SERVE = {"deployment", "application", "replica"}


def _metrics(folder: Path) -> dict[str, set[str]]:
    """The names under which Prometheus has the metrics that the sources in a folder make, and their labels."""
    found: dict[str, set[str]] = {}
    for file in sorted(folder.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call) or not node.args or not isinstance(node.args[0], ast.Constant):
                continue
            kind = getattr(node.func, "id", None) or getattr(node.func, "attr", "")
            if kind in SUFFIXES and isinstance(node.args[0].value, str):
                labels = {
                    part.value
                    for keyword in node.keywords
                    if keyword.arg == "tag_keys"
                    for part in ast.walk(keyword.value)
                    if isinstance(part, ast.Constant) and isinstance(part.value, str)
                }
                for suffix in SUFFIXES[kind]:
                    le = {"le"} if suffix == "_bucket" else set()
                    found[f"ray_{node.args[0].value}{suffix}"] = labels | le
    return found


@pytest.fixture(scope="module")
def ours() -> dict[str, set[str]]:
    # Gates bring their own with them.
    return {"ray_vig_gated_total": {"policy", "key", "verdict"}} | _metrics(ROOT / "serve_app")


@pytest.fixture(scope="module")
def known(ours: dict[str, set[str]]) -> dict[str, set[str]]:
    spec = importlib.util.find_spec("ray.serve")
    assert spec is not None
    assert spec.origin is not None
    return {name: labels | OF_SERVE for name, labels in _metrics(Path(spec.origin).parent).items()} | ours


def panels() -> list[dict[str, Any]]:
    loaded: list[dict[str, Any]] = json.loads((DOCS / "grafana.json").read_text())["panels"]
    return loaded


def rules() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load((DOCS / "alerts.yaml").read_text())["groups"] for rule in group["rules"]]


def _expressions() -> list[str]:
    return [target["expr"] for panel in panels() for target in panel["targets"]] + [rule["expr"] for rule in rules()]


def test_every_metric_and_label_that_is_named_is_one_that_is_told(known: dict[str, set[str]]) -> None:
    for expression in _expressions():
        names = re.findall(r"\bray_\w+", expression)
        assert names, expression
        assert not set(names) - set(known), expression
        labels = re.findall(r"(\w+)(?:=~|!~|!=|=)\"", expression)
        for grouped in re.findall(r"\bby \(([^)]*)\)", expression):
            labels += [label.strip() for label in grouped.split(",")]
        assert set(labels) <= {"instance"}.union(*(known[name] for name in names)), expression


def test_every_metric_is_shown_and_documented(ours: dict[str, set[str]]) -> None:
    shown = " ".join(target["expr"] for panel in panels() for target in panel["targets"])
    page = (DOCS / "serving.md").read_text()
    for name in {re.sub(r"_(total|bucket|sum|count)$", "", name) for name in ours}:
        assert re.search(rf"\b{name}(_|\b)", shown), name
        assert f"`{name.removeprefix('ray_')}`" in page, name


def test_labels_in_legends_are_those_that_panels_group_by() -> None:
    for panel in panels():
        for target in panel["targets"]:
            for label in re.findall(r"{{(\w+)}}", target["legendFormat"]):
                assert re.search(rf"\bby \([^)]*\b{label}\b", target["expr"]), (panel["title"], label)
    ids = [panel["id"] for panel in panels()]
    assert len(set(ids)) == len(ids)


def test_gauges_are_told_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray's own forget a value that isn't set anew, so an idle or stuck server would have none."""
    monkeypatch.setattr(gauges, "_EVERY_S", 0.001)
    told: list[float] = []
    enough = threading.Event()

    class Gauge:
        def set(self, value: float) -> None:
            told.append(value)
            if len(told) == 3:
                enough.set()
                threading.Event().wait()  # the thread has no end of its own, so it stays here

    class Owner:
        under_way = iter([4.0, 0.0, 0.0])

    owner = Owner()
    gauges.keep_telling(Gauge(), owner, lambda owner: next(owner.under_way))
    assert enough.wait(30)
    assert told == [4.0, 0.0, 0.0]


def test_what_a_gauge_tells_of_is_not_kept_by_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that gives way to another one would stay in memory."""
    monkeypatch.setattr(gauges, "_EVERY_S", 0.001)

    class Gauge:
        def set(self, value: float) -> None:
            pass

    class Owner:
        pass

    owner, before = Owner(), threading.active_count()
    left = weakref.ref(owner)
    gauges.keep_telling(Gauge(), owner, lambda owner: 1.0)
    del owner
    wait_until(lambda: left() is None and threading.active_count() <= before, 30)


def test_every_alert_says_what_is_wrong_and_where() -> None:
    names = [rule["alert"] for rule in rules()]
    assert len(set(names)) == len(names)
    for rule in rules():
        assert set(rule["annotations"]) == {"summary", "description"}
        assert rule["labels"]["severity"] in ("critical", "warning")
    tested = yaml.safe_load((Path(__file__).parent / "alerts.test.yaml").read_text())
    raised = {
        alert["alertname"] for test in tested["tests"] for alert in test["alert_rule_test"] if alert.get("exp_alerts")
    }
    assert raised == set(names)


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool, of Prometheus, is not installed")
def test_prometheus_reads_them_and_alerts_when_it_should(tmp_path: Path) -> None:
    shutil.copy(DOCS / "alerts.yaml", tmp_path)
    shutil.copy(Path(__file__).parent / "alerts.test.yaml", tmp_path)
    shown = [target["expr"] for panel in panels() for target in panel["targets"]]
    of_panels = [
        {"record": f"panel:{number}", "expr": expression.replace("$__rate_interval", "1m").replace("$instance", ".*")}
        for number, expression in enumerate(shown)
    ]
    (tmp_path / "panels.yaml").write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": of_panels}]}))
    for words in (["check", "rules", "alerts.yaml", "panels.yaml"], ["test", "rules", "alerts.test.yaml"]):
        done = subprocess.run(["promtool", *words], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    services: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]
    return services


def test_the_server_of_compose_is_called_with_options_that_it_has(compose: dict[str, Any]) -> None:
    default = re.compile(r"\$\{\w+:-(.*)\}")
    vig, *words = [default.sub(r"\1", word) for word in compose["server"]["command"]]
    assert vig == "vig"
    _, verb, config_class, _, given = cli._parse(words)
    config: Any = cli.read_config(["serve"], config_class, given)
    assert verb.config == "serve_app.options:ServeConfig"
    in_image = "/opt/vig-ray/"
    (model,) = config.model
    assert model.startswith(in_image)
    assert (ROOT / model.removeprefix(in_image) / "config.json").exists()
    assert compose["server"]["ports"] == [f"127.0.0.1:{config.port}:{config.port}"]
    assert f"localhost:{config.port}/readyz" in compose["server"]["healthcheck"]["test"][-1]
    assert (config.host, config.open) == ("0.0.0.0", True)  # open, since the port is published to one machine
    assert int(compose["server"]["stop_grace_period"].removesuffix("s")) >= config.timeout + 10
    scraped = yaml.safe_load((DOCS / "compose" / "prometheus.yml").read_text())
    (job,) = scraped["scrape_configs"]
    assert job["static_configs"] == [{"targets": [f"server:{config.metrics_port}"]}]


def test_what_compose_mounts_is_there_and_where_it_is_looked_for(compose: dict[str, Any]) -> None:
    named = yaml.safe_load((ROOT / "compose.yaml").read_text())["volumes"]
    mounted = {}
    for name, service in compose.items():
        for source, target, *_ in (volume.split(":") for volume in service["volumes"]):
            assert (ROOT / source).is_file() if source.startswith("./") else source in named, (name, source)
            mounted[name, target] = source
    prometheus = yaml.safe_load((DOCS / "compose" / "prometheus.yml").read_text())
    assert mounted["prometheus", prometheus["rule_files"][0]] == "./docs/alerts.yaml"
    (option,) = (word for word in compose["prometheus"]["command"] if word.startswith("--config.file="))
    assert mounted["prometheus", option.partition("=")[2]] == "./docs/compose/prometheus.yml"
    (provider,) = yaml.safe_load((DOCS / "compose" / "dashboards.yaml").read_text())["providers"]
    assert mounted["grafana", f"{provider['options']['path']}/vig.json"] == "./docs/grafana.json"
    (source,) = yaml.safe_load((DOCS / "compose" / "datasource.yaml").read_text())["datasources"]
    assert source["url"] == "http://prometheus:" + compose["prometheus"]["ports"][0].rpartition(":")[2]
    dockerfile = (ROOT / "Dockerfile").read_text()
    assert ("server", "/home/ray/.cache/huggingface") in mounted
    assert "mkdir -p /home/ray/.cache/huggingface" in dockerfile


def test_images_of_compose_are_pinned_and_ports_are_this_machines(compose: dict[str, Any]) -> None:
    for service in compose.values():
        assert service.get("build") or re.fullmatch(r"[\w/]+:v?\d+\.\d+\.\d+", service["image"])
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])
