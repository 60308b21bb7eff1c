"""The section `metrics`: where each rank serves its metrics, and to whom."""

from __future__ import annotations

import ipaddress
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import Field, model_validator

from hvdtrain.config.fields import Section


class Metrics(Section):
    """The Prometheus endpoint of each rank."""

    enabled: bool = True
    """Serve metrics over HTTP."""
    port: Annotated[int, Field(ge=1024, le=65000)] = 19400
    """Port of local rank 0; local rank r listens on port + r, or on the next one that is free."""
    bind: str = "127.0.0.1"
    """Address to listen on. Another one than loopback needs `token_file`, the three `tls_` files
    or `insecure`."""
    token_file: str | None = None
    """File with a token that every request must carry, as bearer token or, from a browser, as
    password. None: none is asked for."""
    tls_cert: str | None = None
    """File with the certificate, and those that vouch for it, as PEM: serve HTTPS. None: HTTP."""
    tls_key: str | None = None
    """File with the key of `tls_cert`, as PEM."""
    tls_client_ca: str | None = None
    """File with the certificates, as PEM, one of which must have signed that of whoever asks.
    None: nobody is asked for a certificate."""
    insecure: bool = False
    """Let everybody who can reach `bind` read the metrics."""
    calibration: str | None = None
    """The calibration.json of another run, seen by rank 0: its speeds of one worker alone are the
    baseline of the scaling efficiency; sizes and batches not in it are measured. None: all are
    measured in this run."""
    file_sd_dir: str | None = None
    """Folder, seen by rank 0, in which a Prometheus server looks for the run's addresses, besides
    the run directory: `<run>.json`. None: none. docs/metrics.md tells more."""
    textfile_dir: str | None = None
    """Folder, on every machine, that node_exporter's textfile collector reads: each rank keeps its
    metrics there while the run goes on, `hvdtrain_<run>_<rank>.prom`. None: none."""
    pushgateway: str | None = None
    """URL of a Pushgateway to which rank 0 pushes a summary when the run ends. None: none."""
    tensorboard: bool = False
    """Write the curves for TensorBoard, too, to `tensorboard` in the run directory. Needs
    `pip install tensorboard`."""

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
    """Whether it names a server to speak HTTP with."""
    try:
        parts = urlsplit(text)
        _ = parts.port  # raises ValueError for one that is no number
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.username is None
