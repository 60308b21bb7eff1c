"""Batch scripts: those in the repository equal the printed ones, and a shell can read them."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from hvdtrain.errors import ConfigError
from tests.golden.render_slurm import ROOT, SCRIPTS, rendered


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_are_as_printed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert (ROOT / name).read_text() == rendered(SCRIPTS[name])


def test_every_script_is_generated_and_documented() -> None:
    shipped = {str(p.relative_to(ROOT)) for p in (ROOT / "slurm").glob("*.sbatch")}
    assert shipped == {name for name in SCRIPTS if name.startswith("slurm/")}
    text = (ROOT / "slurm/README.md").read_text()
    assert [name for name in shipped if Path(name).name not in text] == []


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--nodes", "2", "--min-nodes", "2"], "expected fewer than the 2 of --nodes"),
        (["--ranks", "8", "--min-nodes", "1"], "not with --container or --ranks"),
        (["--ranks", "8", "--spares", "1"], "--spares: not with"),
    ],
)
def test_options_that_cannot_be_combined(
    options: list[str], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    with pytest.raises(ConfigError, match=told):
        rendered(["configs/demo_digits.yaml", *options])


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_shell_can_read_it(name: str) -> None:
    done = subprocess.run(["bash", "-n", ROOT / name], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    if shutil.which("shellcheck"):
        done = subprocess.run(
            ["shellcheck", "--exclude=SC1090,SC1091", ROOT / name], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("state", "code", "requeued"),
    [
        ("RUNNING", 75, True),
        ("RUNNING", 143, True),
        ("RUNNING", 138, True),
        ("RUNNING", 5, False),
        ("RUNNING", 0, False),
        ("CANCELLED", 75, False),
        ("COMPLETING", 75, False),
    ],
)
def test_requeue(tmp_path: Path, state: str, code: int, requeued: bool) -> None:
    """With substitutes for Slurm and for the training, which gets its signal from the script."""
    (tmp_path / "scontrol").write_text(
        f'#!/bin/sh\n[ "$1" = requeue ] && touch requeued\necho "JobId=1 JobState={state} Reason=x"\n'
    )
    stop = f"trap 'exit {code}' USR1; kill -USR1 $PPID; while :; do sleep 0.05; done"
    (tmp_path / "hvdtrain").write_text(f"#!/bin/bash\n{stop}\n")
    for name in ("scontrol", "hvdtrain"):
        (tmp_path / name).chmod(0o755)
    (tmp_path / "my env.sh").write_text(f"PATH={tmp_path}:$PATH\n")
    done = subprocess.run(
        ["bash", ROOT / "tests/golden/slurm/cpu.sbatch"],
        cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin", "SLURM_JOB_ID": "1", "SLURM_JOB_NAME": "digits"},
        timeout=20,
    )
    assert done.returncode == code
    assert (tmp_path / "requeued").exists() == requeued
