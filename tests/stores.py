"""Real servers for datasets: nginx, and the S3 of moto, where they are installed."""

from __future__ import annotations

import contextlib
import importlib.util
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.launch import environment, free_port

NGINX = shutil.which("nginx", path="/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin")
S3_MISSING = [name for name in ("s3fs", "moto", "flask") if importlib.util.find_spec(name) is None]
SECRET = "sEcret-of-the-store"
KEYS = {
    "AWS_ACCESS_KEY_ID": "key-of-the-store",
    "AWS_SECRET_ACCESS_KEY": SECRET,
    "AWS_DEFAULT_REGION": "us-east-1",
}


@contextlib.contextmanager
def started(command: list[str], port: int) -> Iterator[str]:
    """A server that listens on `port`; its address."""
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment()
    )
    try:
        for _ in range(600):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                break
            assert process.poll() is None
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


@contextlib.contextmanager
def nginx(folder: Path, work: Path) -> Iterator[str]:
    """The address of an nginx that serves `folder`; its own files are in `work`."""
    if NGINX is None:
        pytest.skip("not installed: nginx")
    port = free_port()
    config = work / "nginx.conf"
    folders = " ".join(
        f"{kind}_temp_path {work}/{kind};"
        for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    config.write_text(
        f"user root; daemon off; pid {work}/nginx.pid; error_log {work}/error.log; worker_processes 1;\n"
        f"events {{}}\nhttp {{ access_log off; {folders}\n"
        f"server {{ listen 127.0.0.1:{port}; root {folder}; }} }}\n"
    )
    with started([NGINX, "-e", f"{work}/error.log", "-c", str(config)], port) as address:
        yield address


@contextlib.contextmanager
def s3(folder: Path) -> Iterator[str]:
    """The address of an S3 whose bucket `bucket` has the files below `folder`."""
    if S3_MISSING:
        pytest.skip(f"not installed: {', '.join(S3_MISSING)}")
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with started(command, port) as address:
        put(f"{address}/bucket", b"")
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                put(f"{address}/bucket/{file.relative_to(folder)}", file.read_bytes())
        yield address


def put(url: str, content: bytes) -> None:
    """Write an object, or make a bucket."""
    kind = {"Content-Type": "application/octet-stream"}  # a form's would be parsed
    request = urllib.request.Request(url, data=content or None, headers=kind, method="PUT")
    with urllib.request.urlopen(request, timeout=60) as answer:
        assert answer.status == 200
