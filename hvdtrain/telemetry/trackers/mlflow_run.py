"""A run on an MLflow server. Source: https://mlflow.org/docs/latest/api_reference/python_api/mlflow.client.html"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from hvdtrain.telemetry.trackers.run_id import keep_id, read_id
from hvdtrain.telemetry.trackers.worker import About, Record, Status

MAX_PARAM_CHARS = 500
"""Of a value; servers before MLflow 2.8 take no more."""
BATCH = 100
"""Parameters or tags that one request may have."""
STATUS = {"complete": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}
CHANGED = "changed."
"""Begins the tag of a setting that a resumed run has changed: MLflow's parameters never change."""


class MlflowRun:
    """A run in the experiment `about.place`, by the client's own settings (MLFLOW_…)."""

    def __init__(self, about: About, tell: Callable[[str], None]) -> None:
        self._about, self._tell = about, tell
        self._entities = importlib.import_module("mlflow.entities")
        self._client: Any = importlib.import_module("mlflow").MlflowClient()
        self._id_file = Path(about.root) / "mlflow.id"
        self._id = ""

    def open(self) -> None:
        """Create the run, or find it by its id; send the settings that it lacks."""
        known = read_id(self._id_file)
        run = self._find(known) if known else None
        if run is None:
            run = self._create()
        else:
            self._client.update_run(run.info.run_id, status="RUNNING")
        self._id = run.info.run_id
        settings = {key: _text(value) for key, value in self._about.config.items()}
        old = run.data.params
        params = [(key, text) for key, text in settings.items() if key not in old]
        tags = [(key, text) for key, text in settings.items() if old.get(key, text) != text]
        for some in _batches(params):
            self._client.log_batch(self._id, params=[self._entities.Param(*one) for one in some])
        for some in _batches(tags):
            made = [self._entities.RunTag(f"{CHANGED}{key}", text) for key, text in some]
            self._client.log_batch(self._id, tags=made)

    def log(self, record: Record) -> None:
        """Send all numbers of a record in one request."""
        time_ms, step = round(record.time * 1000), record.step or 0
        metric = self._entities.Metric
        metrics = [metric(key, value, time_ms, step) for key, value in record.values.items()]
        self._client.log_batch(self._id, metrics=metrics)

    def finish(self, status: Status, page: Path | None) -> None:
        """The page is an artifact of the run."""
        if page is not None:
            self._client.log_artifact(self._id, str(page))
        self._client.set_terminated(self._id, STATUS[status])

    def _find(self, run_id: str) -> Any:
        try:
            return self._client.get_run(run_id)
        except Exception as error:
            if getattr(error, "error_code", "") != "RESOURCE_DOES_NOT_EXIST":
                raise
        self._tell(f"run {run_id}, of {self._id_file}, is not there any more: a new one begins")
        return None

    def _create(self) -> Any:
        experiment = self._client.get_experiment_by_name(self._about.place)
        number = (
            experiment.experiment_id
            if experiment is not None
            else self._client.create_experiment(self._about.place)
        )
        tags = {"hvdtrain.version": self._about.version}
        run = self._client.create_run(number, tags=tags, run_name=self._about.run)
        keep_id(self._id_file, run.info.run_id)
        return run


def _text(value: Any) -> str:
    """As in YAML on one line, but short enough."""
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= MAX_PARAM_CHARS else f"{text[: MAX_PARAM_CHARS - 1]}…"


def _batches(pairs: list[tuple[str, str]]) -> Iterator[list[tuple[str, str]]]:
    for start in range(0, len(pairs), BATCH):
        yield pairs[start : start + BATCH]
