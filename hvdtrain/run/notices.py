"""Stops that are known in advance: a file or URL that announces one, and the end of a Slurm allocation."""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from hvdtrain.comm.ranks import Comm

EVERY_S = {"file": 1.0, "url": 5.0, "limit": 1.0}
"""Time between two looks. Clouds ask for 5 s."""
ANSWER_S = 2.0
"""Longest wait for an answer of a URL."""
MARGIN_S = 60.0
"""An allocation's end is met so long before, and by as much as three checkpoints take."""
FAR_S = 366 * 86400.0
"""What ends later has no time limit."""
TOKEN = "X-aws-ec2-metadata-token"
"""Header with a token that instances of AWS may ask for. Source: AWS, "Use IMDSv2"."""
NO_NOTICE = ("", "FALSE", "NONE")
"""Answers with code 200 that announce nothing. Source: Google Cloud, `instance/preempted` and
`instance/maintenance-event`."""

Look = Callable[[], str | None]
"""Returns why the run is to stop; None if it is not. Raises OSError if that cannot be known now."""


class Notices:
    """Looks, in a thread for each source, whether the run is to stop; the same on no two ranks."""

    def __init__(self, sources: Sequence[tuple[float, Look]], warn: Callable[[str], None]) -> None:
        """`sources`: seconds between two looks, and the look. `warn` gets the first error of each."""
        self._cause: str | None = None
        self._ended = threading.Event()
        self._warn = warn
        for every_s, look in sources:
            threading.Thread(
                target=self._watch, args=(every_s, look), name="notices", daemon=True
            ).start()

    def cause(self) -> str | None:
        """Why the run is to stop; None if it is not."""
        return self._cause

    def close(self) -> None:
        """Look no longer."""
        self._ended.set()

    def _watch(self, every_s: float, look: Look) -> None:
        warned = False
        while not self._ended.is_set():
            try:
                self._cause = self._cause or look()
            except (OSError, ValueError, http.client.HTTPException) as error:
                if not warned and not self._ended.is_set():
                    warned = True
                    self._warn(f"warning: {error}; looked for again every {every_s:g} s")
            self._ended.wait(every_s)


def is_url(place: str) -> bool:
    """Whether `train.stop_when` is a URL."""
    return place.startswith(("http://", "https://"))


def announced(place: str) -> tuple[float, Look]:
    """The source for `train.stop_when`: a file that appears, or a URL that answers with 200."""
    if is_url(place):
        return EVERY_S["url"], lambda: f"{place} announces it" if _answers(place) else None
    path = Path(place)
    return EVERY_S["file"], lambda: f"{place} is there" if _exists(path) else None


def _exists(path: Path) -> bool:
    try:
        path.stat()
    except FileNotFoundError:
        return False
    except OSError as error:
        raise OSError(f"train.stop_when: {path}: {error.strerror}") from None
    return True


def _answers(url: str) -> bool:
    """Whether the URL answers with 200 and a notice. Raises OSError if it does not answer as expected."""
    try:
        code, text = _get(url, {"Metadata-Flavor": "Google", "Metadata": "true"})
        if code == 401 and (token := _token(url)):
            code, text = _get(url, {TOKEN: token})
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        raise OSError(f"train.stop_when: {url}: no answer ({reason})") from None
    if code not in (200, 204, 404, 410):
        raise OSError(f"train.stop_when: {url}: expected 200 or 404, found {code}")
    return code == 200 and text.strip().upper() not in NO_NOTICE


def _get(url: str, headers: Mapping[str, str], method: str = "GET") -> tuple[int, str]:
    """Code and beginning of the answer. A proxy would ask for its own machine, so none is used."""
    request = urllib.request.Request(url, headers=dict(headers), method=method)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=ANSWER_S) as answer:
            return answer.status, answer.read(1024).decode(errors="replace")
    except urllib.error.HTTPError as error:
        error.close()
        return error.code, ""


def _token(url: str) -> str:
    """A token for the metadata of an AWS instance; empty if there is none."""
    parts = urlsplit(url)
    where = f"{parts.scheme}://{parts.netloc}/latest/api/token"
    code, text = _get(where, {f"{TOKEN}-ttl-seconds": "60"}, "PUT")
    return text if code == 200 and text.isprintable() else ""


class TimeLimit:
    """The end of this Slurm allocation."""

    def __init__(
        self,
        env: Mapping[str, str],
        save_s: Callable[[], float],
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`save_s`: how long the last checkpoint took, 0 before it."""
        self._env, self._save_s, self._clock = env, save_s, clock
        given = env.get("SLURM_JOB_END_TIME", "")
        self.end = float(given) if given.isdigit() else self._asked()
        """As seconds of Unix time; None if there is no limit or it is not known."""
        if self.end is not None and self.end - clock() > FAR_S:
            self.end = None

    def text(self) -> str:
        """When the allocation ends, and when the run stops."""
        at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.end))
        return (
            f"Slurm ends this allocation at {at}; the run stops in order {self._margin_s():.0f} s before, "
            "if no signal stops it sooner"
        )

    def look(self) -> str | None:
        """A `Look`."""
        if self.end is None or not self._due():
            return None
        later = self._asked()  # an administrator may have extended it
        self.end = self.end if later is None else later
        return "Slurm's time limit is near" if self._due() else None

    def _due(self) -> bool:
        return self.end is not None and self._clock() >= self.end - self._margin_s()

    def _margin_s(self) -> float:
        return MARGIN_S + 3 * self._save_s()

    def _asked(self) -> float | None:
        """The end that squeue knows; None if it does not say."""
        command = ["squeue", "--noheader", "--jobs", self._env["SLURM_JOB_ID"], "--format", "%L"]
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
            if (left_s := seconds(done.stdout.strip())) is not None:
                return self._clock() + left_s
        return None


def seconds(text: str) -> float | None:
    """Slurm's `1-02:03:04`, `2:03:04` or `3:04` in seconds; None for UNLIMITED and others."""
    match = re.fullmatch(r"(?:(?:(\d+)-)?(\d+):)?(\d+):(\d+)", text)
    if match is None:
        return None
    days, hours, minutes, rest = (int(part or 0) for part in match.groups())
    return float(((days * 24 + hours) * 60 + minutes) * 60 + rest)


def watch(
    stop_when: str | None,
    save_s: Callable[[], float],
    comm: Comm,
    say: Callable[[str], None],
    env: Mapping[str, str] = os.environ,
) -> Notices:
    """Look out for a stop: on one rank of each host for `train.stop_when`, on rank 0 for Slurm's limit.

    `save_s`: how long the last checkpoint took. `say` shows a line to the user, on any rank.
    """
    sources = []
    if stop_when is not None and comm.local_rank == 0:
        sources.append(announced(stop_when))
    if comm.rank == 0 and "SLURM_JOB_ID" in env:
        limit = TimeLimit(env, save_s)
        if limit.end is not None:
            say(limit.text())
            sources.append((EVERY_S["limit"], limit.look))
    return Notices(sources, say)
