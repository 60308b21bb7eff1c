"""What an endpoint says at its start: of its address and of its key."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from hvdtrain.config.schema import Metrics
from hvdtrain.errors import ResourceError
from hvdtrain.telemetry.endpoint import Endpoint
from tests.launch import free_port


@pytest.mark.parametrize(("mode", "warned"), [(0o600, False), (0o640, True), (0o604, True)])
def test_a_key_that_others_can_read(mode: int, warned: bool, certificates: Path) -> None:
    key = certificates / "server.key"
    key.chmod(mode)
    made = Endpoint(
        Metrics(tls_cert=str(certificates / "server.pem"), tls_key=str(key)), free_port(), {}
    )
    with contextlib.closing(made):
        warning = f"metrics.tls_key: {key} can be read by other users: chmod 600 {key}"
        assert made.warnings == ([warning] if warned else [])


def test_address_that_cannot_be_opened() -> None:
    with pytest.raises(
        ResourceError, match=r"metrics\.bind: 203\.0\.113\.1:19400 cannot be opened"
    ):
        Endpoint(Metrics(bind="203.0.113.1", insecure=True), 19400, {})
