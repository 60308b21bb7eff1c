"""Progress for Kubeflow Trainer, which shows it as the status of the TrainJob.

Its controller sets three variables in the pods of a TrainJob: the address that takes the status, and the
paths of a CA certificate and of a token. Source: KEP-2779, and the type TrainerStatus of
https://github.com/kubeflow/trainer (v2.2).
"""

from __future__ import annotations

import http.client
import json
import os
import ssl
import time
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from pathlib import Path
from urllib.parse import urlsplit

from hvdtrain.errors import ResourceError
from hvdtrain.telemetry.trackers.worker import About, Record, Status

URL, CA_FILE, TOKEN_FILE = (
    "KUBEFLOW_TRAINER_SERVER_URL",
    "KUBEFLOW_TRAINER_SERVER_CA_CERT",
    "KUBEFLOW_TRAINER_SERVER_TOKEN",
)
INTERVAL_S = 5.0
"""Shortest time between two requests, as Kubeflow asks for."""
TIMEOUT_S = 5.0
"""Of the connection, and of each part of the answer."""
MAX_TOKEN_BYTES = MAX_ANSWER_BYTES = 2**16
MAX_METRICS, MAX_METRIC_CHARS = 256, 64
MAX_SECONDS = 2**31 - 1
KEPT = ("train", "eval")


def server_in(env: Mapping[str, str]) -> str | None:
    """The host that takes the progress; None outside of Kubeflow Trainer."""
    return urlsplit(env[URL]).hostname or "" if env.get(URL) else None


class KubeflowStatus:
    """Sends the newest progress, at most every INTERVAL_S."""

    def __init__(self, about: About, tell: Callable[[str], None]) -> None:
        self._url = urlsplit(os.environ[URL])
        if self._url.scheme != "https" or not self._url.hostname:
            raise ResourceError(f"{URL}: expected an address with https://")
        self._values: dict[str, float] = {}
        self._next = 0.0

    def open(self) -> None:
        """There is nothing to begin."""

    def log(self, record: Record) -> None:
        """Send all that is known, unless that was done just now; the next one has it, too."""
        if record.kind in KEPT:
            self._values.update(record.values)
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + INTERVAL_S
            self._post(self._status(done=False))

    def finish(self, status: Status, page: Path | None) -> None:
        """Send the last progress."""
        if self._values:
            self._post(self._status(done=status == "complete"))

    def _status(self, *, done: bool) -> dict[str, object]:
        """The body of a request; the server checks it against the ranges of its own type."""
        progress = 1.0 if done else self._values.get("train/progress", 0.0)
        left_s = 0.0 if done else self._values.get("train/eta_s")
        names = [name for name in self._values if len(name) <= MAX_METRIC_CHARS][:MAX_METRICS]
        status: dict[str, object] = {
            "progressPercentage": min(100, max(0, int(100 * progress))),
            "metrics": [{"name": name, "value": f"{self._values[name]:.8g}"} for name in names],
            "lastUpdatedTime": datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        }
        if left_s is not None:
            status["estimatedRemainingSeconds"] = min(MAX_SECONDS, max(0, round(left_s)))
        return {"trainerStatus": status}

    def _post(self, body: dict[str, object]) -> None:
        """Raises OSError or ResourceError. The token is read each time, as it is renewed every hour."""
        context = ssl.create_default_context(cafile=_path(CA_FILE))
        with open(_path(TOKEN_FILE), "rb") as file:  # noqa: PTH123 - no more than its limit
            token = file.read(MAX_TOKEN_BYTES).decode("ascii", "replace").strip()
        host, port = self._url.hostname or "", self._url.port
        connection = http.client.HTTPSConnection(host, port, timeout=TIMEOUT_S, context=context)
        target = self._url.path + (f"?{self._url.query}" if self._url.query else "")
        headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        try:
            connection.request("POST", target or "/", json.dumps(body), headers)
            answer = (
                connection.getresponse()
            )  # a redirection is not followed: the token is for one host
            answer.read(MAX_ANSWER_BYTES)
        except http.client.HTTPException as error:
            raise ResourceError(f"{host}: {type(error).__name__}") from None
        finally:
            connection.close()
        if answer.status != http.client.OK:
            raise ResourceError(f"{host} answered {answer.status} {answer.reason}")


def _path(variable: str) -> str:
    if path := os.environ.get(variable):
        return path
    raise ResourceError(f"{variable} is not set")
