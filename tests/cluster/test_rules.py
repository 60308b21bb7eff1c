"""promtool accepts the shipped configuration, rules, alerts and dashboard."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import yaml
from prometheus_client import generate_latest

from hvdtrain.comm.ranks import Solo
from hvdtrain.config.schema import Config, Metrics, Phase
from hvdtrain.telemetry.metrics import METRICS
from hvdtrain.telemetry.prometheus import Exporter
from tests.launch import REPOSITORY, free_port
from tests.made_reports import REPORTS

FOLDER = REPOSITORY / "deploy/prometheus"
DASHBOARD = json.loads((REPOSITORY / "deploy/grafana/hvdtrain.json").read_text(encoding="utf-8"))
BUILT_IN = {"up", "time"}


def promtool(bin_folder: Path, *arguments: str, **options: Any) -> str:
    done = subprocess.run(
        [bin_folder / "promtool", *arguments],
        cwd=FOLDER,
        text=True,
        capture_output=True,
        check=False,
        **options,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def rules(name: str) -> list[dict[str, Any]]:
    groups = yaml.safe_load((FOLDER / name).read_text(encoding="utf-8"))["groups"]
    return [rule for group in groups for rule in group["rules"]]


def panels(group: dict[str, Any]) -> list[dict[str, Any]]:
    """All panels of a dashboard, those inside rows included."""
    inner = group.get("panels", [])
    return [*inner, *(deeper for panel in inner for deeper in panels(panel))]


def expressions() -> list[str]:
    """Every expression of the dashboard, with Grafana's variables filled in."""
    found = [target["expr"] for panel in panels(DASHBOARD) for target in panel.get("targets", [])]
    return [text.replace("$__rate_interval", "1m").replace("$run", ".+") for text in found]


def test_config_rules_and_alerts(prometheus_bin: Path) -> None:
    assert "8 rules found" in promtool(prometheus_bin, "check", "config", "prometheus.yml")
    promtool(prometheus_bin, "check", "rules", "rules.yml", "alerts.yml")
    promtool(prometheus_bin, "test", "rules", "rules_test.yml", "alerts_test.yml")


def test_every_rule_and_alert_has_a_test_and_every_alert_both_ways() -> None:
    tests = yaml.safe_load((FOLDER / "alerts_test.yml").read_text(encoding="utf-8"))["tests"]
    outcomes: dict[str, set[bool]] = {}
    for case in (case for test in tests for case in test["promql_expr_test"]):
        [name] = re.findall('alertname="([A-Za-z]+)", alertstate="firing"', case["expr"])
        outcomes.setdefault(name, set()).add(bool(case["exp_samples"]))
    alerts = {rule["alert"] for rule in rules("alerts.yml")}
    assert outcomes == {name: {True, False} for name in alerts}
    for rule in rules("alerts.yml"):
        assert set(rule["annotations"]) == {"summary", "description"}
    tested = (FOLDER / "rules_test.yml").read_text(encoding="utf-8")
    for rule in rules("rules.yml"):
        assert f"expr: {rule['record']}\n" in tested


def test_dashboard_is_understood(prometheus_bin: Path, tmp_path: Path) -> None:
    records = [
        {"record": f"panel:{number}", "expr": text} for number, text in enumerate(expressions())
    ]
    path = tmp_path / "panels.yml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": records}]}))
    said = promtool(prometheus_bin, "check", "rules", str(path))
    assert f"{len(records)} rules found" in said
    assert all("$" not in record["expr"] for record in records)
    ids = [panel["id"] for panel in panels(DASHBOARD)]
    assert len(set(ids)) == len(ids)


def test_only_metrics_that_exist_are_used() -> None:
    known = {metric.name for metric in METRICS}
    known |= {f"{metric.name}_bucket" for metric in METRICS if metric.type == "histogram"}
    recorded = {rule["record"] for rule in rules("rules.yml")}
    used = [rule["expr"] for name in ("rules.yml", "alerts.yml") for rule in rules(name)]
    for text in [*used, *expressions()]:
        names = re.findall(r"[a-z]+:hvdtrain_\w+:\w+|\b(?:hvdtrain|process)_\w+|\bup\b", text)
        assert names
        assert set(names) <= known | recorded | BUILT_IN, text


def test_served_text_follows_the_conventions(prometheus_bin: Path) -> None:
    cfg = Config(phases=[Phase(epochs=1)], metrics=Metrics(port=free_port()))
    exporter = Exporter(cfg, Solo())
    try:
        for report in REPORTS:
            exporter.write(report)
        text = generate_latest(exporter.registry).decode()
    finally:
        exporter.close()
    assert promtool(prometheus_bin, "check", "metrics", input=text) == ""
