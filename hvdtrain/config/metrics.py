"""The section `metrics`: where each rank serves its metrics, and who may read them."""

from __future__ import annotations

import ipaddress
import re
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import Field, model_validator

from hvdtrain.config.fields import Machine, PathText, Section

_PROJECT = re.compile(r"[\w .-]{1,128}(/[\w .-]{1,128})?")
"""Other characters are refused by Weights & Biases, or would be part of a URL."""


class Metrics(Section):
    """The Prometheus endpoint of each rank, and other places that metrics are written to."""

    enabled: Machine[bool] = True
    """Serve metrics over HTTP."""
    port: Machine[Annotated[int, Field(ge=1024, le=65000)]] = 19400
    """Port of local rank 0. Local rank r listens on port + r, or on the next free port."""
    bind: Machine[str] = "127.0.0.1"
    """Address to listen on. An address other than loopback needs `token_file`, all three `tls_` files,
    or `insecure: true`."""
    token_file: Machine[PathText | None] = None
    """File with a token that every request must send: as bearer token, or as password from a
    browser. null: no token is needed."""
    tls_cert: Machine[PathText | None] = None
    """PEM file with the certificate and its chain; serves HTTPS. null: HTTP."""
    tls_key: Machine[PathText | None] = None
    """PEM file with the private key of `tls_cert`."""
    tls_client_ca: Machine[PathText | None] = None
    """PEM file with the certificate authorities that may sign the certificates of clients. null:
    clients need no certificate."""
    insecure: Machine[bool] = False
    """Let everyone who can reach `bind` read the metrics."""
    calibration: Machine[PathText | None] = None
    """The calibration.json of another run; only rank 0 reads it. Its single-worker speeds are the
    baseline of the scaling efficiency; sizes and batches that it lacks are measured. null: this run
    measures all."""
    file_sd_dir: Machine[PathText | None] = None
    """Folder in which a Prometheus server looks for addresses; rank 0 writes those of the run to
    `<run>.json` there, besides the run directory. null: off. See docs/metrics.md."""
    textfile_dir: Machine[PathText | None] = None
    """Folder on every host that node_exporter's textfile collector reads; during the run each rank
    writes its metrics there, to `hvdtrain_<run>_<rank>.prom`. null: off."""
    pushgateway: Machine[str | None] = None
    """URL of a Pushgateway to which rank 0 pushes a summary when the run ends. null: off."""
    tensorboard: Machine[bool] = False
    """Also write the curves for TensorBoard, to `tensorboard` in the run directory. Needs
    `pip install tensorboard`."""
    wandb: Machine[str | None] = None
    """Project of Weights & Biases, PROJECT or ENTITY/PROJECT, to which rank 0 sends the config, the
    curves, evaluations and the report. Key, server and mode are those of wandb itself: its environment
    variables, or `wandb login`. Needs `pip install wandb`. null: off. See docs/how-to/trackers.md."""
    mlflow: Machine[Annotated[str, Field(min_length=1, max_length=256)] | None] = None
    """Experiment of the MLflow server at MLFLOW_TRACKING_URI to which rank 0 sends the same. Needs `pip
    install mlflow-skinny` or mlflow. null: off."""

    weights: Machine[bool] = False
    """Measure how the weights move, and report it after each epoch: their distance from the start, in all
    and by layer, what they travelled in the epoch, and the norms of its updates. Includes
    `checkpoint.keep_start`; rank 0 needs memory for three more copies of the weights."""

    @model_validator(mode="after")
    def _check(self) -> Metrics:
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError("tls_cert and tls_key belong together: set both or neither")
        if self.tls_client_ca is not None and self.tls_cert is None:
            raise ValueError("tls_client_ca needs tls_cert and tls_key")
        if self.textfile_dir is not None and not self.enabled:
            raise ValueError("textfile_dir needs enabled: true: it holds what the endpoint serves")
        if self.pushgateway is not None and not _is_url(self.pushgateway):
            raise ValueError(
                f"pushgateway: {self.pushgateway}: expected a URL such as http://gateway:9091"
            )
        if self.wandb is not None and not _PROJECT.fullmatch(self.wandb):
            raise ValueError(f"wandb: {self.wandb}: expected PROJECT or ENTITY/PROJECT")
        guarded = self.token_file is not None or self.tls_client_ca is not None
        if self.enabled and not (self.on_loopback or guarded or self.insecure):
            raise ValueError(
                f"bind: {self.bind} is open to others: set token_file, or tls_cert, tls_key and "
                "tls_client_ca, or insecure: true"
            )
        return self

    @property
    def on_loopback(self) -> bool:
        """Whether only this machine can reach the endpoint."""
        try:
            return ipaddress.ip_address(self.bind).is_loopback
        except ValueError:
            return self.bind == "localhost"


def _is_url(text: str) -> bool:
    """Whether `text` is the URL of an HTTP server."""
    try:
        parts = urlsplit(text)
        _ = parts.port  # raises ValueError if it is not a number
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.username is None
