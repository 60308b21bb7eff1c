"""`make setup`: its messages if the machine lacks something or a command fails."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import machine
import progress


def run_setup(root: Path, **env: str) -> subprocess.CompletedProcess[str]:
    base = {"PATH": os.environ["PATH"], "HOME": str(root), "HVDTRAIN_CACHE": str(root / "cache")}
    return subprocess.run(
        [sys.executable, str(root / "deploy" / "bootstrap.py")],
        env={**base, **env},
        capture_output=True,
        text=True,
        timeout=120,
    )


def path_with(folder: Path, *tools: str) -> str:
    """A PATH with these tools only."""
    folder.mkdir()
    for tool in tools:
        (folder / tool).symlink_to(shutil.which(tool) or "/bin/true")
    return str(folder)


@pytest.mark.parametrize(
    ("tools", "line"),
    [
        ([], "error: no C++ compiler found (looked for $CXX, g++, c++, clang++)"),
        (["g++"], "error: make not found: install it"),
        (["g++", "make"], "error: git not found: install it"),
    ],
)
def test_a_missing_tool_is_named_in_one_line(checkout: Path, tools: list[str], line: str) -> None:
    result = run_setup(checkout, PATH=path_with(checkout / "bin", *tools))
    assert result.returncode == 1
    assert result.stdout == ""
    assert result.stderr.startswith(line)
    assert result.stderr.count("\n") == 1
    assert not (checkout / ".venv").exists()


def test_an_unknown_mpi_is_named_in_one_line(checkout: Path) -> None:
    result = run_setup(checkout, HVDTRAIN_MPI="/nowhere/mpicxx")
    assert result.returncode == 1
    assert result.stderr.startswith("error: HVDTRAIN_MPI=/nowhere/mpicxx: MPI compiler not found")
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("module", "line"), [("venv", "has no venv module"), ("ensurepip", "has no venv module")]
)
def test_a_python_without_venv_is_named(
    monkeypatch: pytest.MonkeyPatch, module: str, line: str
) -> None:
    monkeypatch.setattr(machine, "find_spec", lambda name: None if name == module else object())
    with pytest.raises(progress.SetupError, match=line):
        machine.check_machine(os.environ)


def test_missing_python_headers_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(machine.sysconfig, "get_paths", lambda: {"include": str(tmp_path)})
    with pytest.raises(progress.SetupError, match=r"C headers.*apt install python3\.\d+-dev"):
        machine.check_machine(os.environ)


def test_an_older_python_gets_a_message_before_syntax_it_cannot_read(checkout: Path) -> None:
    script = "\n".join(
        [
            "import sys",
            "sys.version_info = (3, 8, 0, 'final', 0)",
            f"exec(compile(open({str(checkout / 'deploy/bootstrap.py')!r}).read(), 'x', 'exec'))",
        ]
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert result.returncode == 1
    assert result.stderr.startswith("error: Python 3.10 or newer is needed, this is 3.8 (")
    assert result.stderr.count("\n") == 1


def test_cxx_may_carry_options() -> None:
    env = {"PATH": os.environ["PATH"], "CXX": f"{sys.executable} -O1"}
    assert machine.find_compiler(env) == [sys.executable, "-O1"]


def run_failing(script: str, tmp_path: Path) -> str:
    log = tmp_path / "pip.log"
    with pytest.raises(progress.SetupError) as caught:
        progress.Progress(1).run(
            "installing", [sys.executable, "-c", script], log, dict(os.environ), tmp_path
        )
    assert str(log) in str(caught.value)
    return str(caught.value)


def test_the_end_of_a_failed_commands_log_is_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script = "for i in range(100): print('line', i, flush=True)\nraise SystemExit('No space left on device')"
    message = run_failing(script, tmp_path)
    shown = capsys.readouterr().err.splitlines()
    assert message.startswith("installing failed (log: ")
    assert shown[-1] == "  | No space left on device"
    assert len(shown) == progress.LINES_OF_LOG_SHOWN


def test_a_compilers_first_error_is_shown_with_the_end(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script = (
        "print('x.cc:1: error: no semicolon')\nfor i in range(99): print(i)\nraise SystemExit(1)"
    )
    run_failing(script, tmp_path)
    assert capsys.readouterr().err.splitlines()[0] == "  | x.cc:1: error: no semicolon"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("Temporary failure in name resolution", "cannot reach the package index"),
        ("ERROR: THESE PACKAGES DO NOT MATCH THE HASHES", "sha256 differs"),
    ],
)
def test_known_causes_are_named(tmp_path: Path, line: str, message: str) -> None:
    assert message in run_failing(f"raise SystemExit({line!r})", tmp_path)


@pytest.mark.parametrize(
    ("line", "news"),
    [
        ("  [ 66%] Building CXX object a.cc.o", "compiling 66 %"),
        ("  -- Found MPI", "configuring: Found MPI"),
        ("Installing collected packages: a, b, c", "installing 3 packages"),
        ("Processing /x/six-1.17.0-py2.py3-none-any.whl", "Processing six-1.17.0"),
        (
            "  Downloading torch-2.13.0-cp310-none.whl (526.6 MB)",
            "Downloading torch-2.13.0 (526.6 MB)",
        ),
        ("Collecting rich==15.0.0 (from -r x.txt (line 3))", "Collecting rich==15.0.0"),
        ("WARNING: Location 'file:///x' is ignored", ""),
    ],
)
def test_news_from_a_log(line: str, news: str) -> None:
    assert progress.latest_news([line, "  c++ -O3 -c a.cc"]) == news
