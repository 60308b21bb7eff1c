"""Shows numbered steps with their times; a command logs to a file and one line shows its progress."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

LINES_OF_LOG_SHOWN = 15
SECONDS_BETWEEN_LINES = 10  # if the output is not a terminal

_NO_NETWORK = re.compile(
    r"name resolution|Name or service not known|NewConnectionError|NameResolutionError"
    r"|Network is unreachable|Connection refused|ConnectTimeoutError|ProxyError"
)


class SetupError(Exception):
    """One line for the user: what is wrong and what to do."""


def clock(seconds: float) -> str:
    """75.2 -> '1:15'."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def read_tail(log: Path, size_bytes: int = 65536) -> list[str]:
    """The last lines of a log that is still being written; none if there is no log yet."""
    try:
        with log.open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - size_bytes))
            return file.read().decode(errors="replace").splitlines()
    except OSError:
        return []


def latest_news(lines: list[str]) -> str:
    """The latest progress in a log of pip or of a build, e.g. 'compiling 66 %'; may be empty."""
    for line in map(str.strip, reversed(lines)):
        if percent := re.match(r"\[ *(\d+)%\]", line):
            return f"compiling {percent[1]} %"
        if line.startswith("-- "):
            return f"configuring: {line[3:50]}"
        if wheel := re.match(r"(Downloading|Processing) (?:\S*/)?([^-\s]+-[^-\s]+)\S*(.*)", line):
            return f"{wheel[1]} {wheel[2]}{wheel[3]}"
        if packages := re.match(r"Installing collected packages: (.*)", line):
            return f"installing {packages[1].count(',') + 1} packages"
        if line.startswith("Collecting"):
            return line.partition(" (from ")[0]
        if "Retrying (" in line:
            return "network error, trying again"
    return ""


def explain_failure(what: str, log: Path) -> SetupError:
    """Prints the end of the log; returns the error with its cause, where that is known."""
    lines = [line[:200] for line in read_tail(log) if line.strip()]
    first_error = next((line for line in lines[1:] if re.search(r"\berror: ", line)), None)
    shown = lines[-LINES_OF_LOG_SHOWN:]
    if first_error and first_error not in shown:
        shown = [first_error, "...", *shown]
    print("\n".join(f"  | {line}" for line in shown), file=sys.stderr)
    if any(_NO_NETWORK.search(line) for line in lines):
        return SetupError(
            f"{what}: cannot reach the package index: check the network, or pip's index and proxy"
            f" settings (log: {log})"
        )
    if any("DO NOT MATCH THE HASHES" in line for line in lines):
        return SetupError(
            f"{what}: the file is not the pinned one (sha256 differs): do not use it; check the"
            f" package index or proxy that sent it (log: {log})"
        )
    return SetupError(f"{what} failed (log: {log})")


class Progress:
    """Prints `[2/6] title  0:31  news`: one line that is updated on a terminal, else a line every 10 s."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.on_terminal = sys.stdout.isatty()
        self.head = ""
        self.started = self.last_line = time.monotonic()
        self.pass_fds: tuple[int, ...] = ()  # the lock: held until the last child process ends

    def step(self, number: int, title: str) -> None:
        self.head = f"[{number}/{self.total}] {title}"
        self.started = self.last_line = time.monotonic()
        if not self.on_terminal:
            print(self.head, flush=True)

    def news(self, text: str) -> None:
        now = time.monotonic()
        line = f"{self.head}  {clock(now - self.started)}  {text}"
        if self.on_terminal:
            width = os.get_terminal_size(sys.stdout.fileno()).columns or 80
            print(f"\r\x1b[2K{line[: width - 1]}", end="", flush=True)
        elif now - self.last_line >= SECONDS_BETWEEN_LINES:
            self.last_line = now
            print(line, flush=True)

    def note(self, text: str) -> None:
        print(f"\r\x1b[2K      {text}" if self.on_terminal else f"      {text}", flush=True)

    def done(self, text: str = "done") -> None:
        line = f"{self.head}: {text} in {clock(time.monotonic() - self.started)}"
        print(f"\r\x1b[2K{line}" if self.on_terminal else line, flush=True)

    def run(self, what: str, command: list[str], log: Path, env: dict[str, str], cwd: Path) -> None:
        """Runs a command with its output in `log`. If it fails, prints the log's end and raises SetupError."""
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as output:
            output.write(f"$ {' '.join(command)}\n".encode())
            output.flush()
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=env,
                cwd=cwd,
                start_new_session=True,
                pass_fds=self.pass_fds,
            )
        try:
            while process.poll() is None:
                self.news(latest_news(read_tail(log)))
                try:
                    process.wait(timeout=0.25)
                except subprocess.TimeoutExpired:
                    continue
        finally:
            if process.poll() is None:  # interrupted: stop its child processes, too
                os.killpg(process.pid, signal.SIGTERM)
                process.wait()
        if process.returncode != 0:
            if self.on_terminal:
                print()
            raise explain_failure(what, log)
