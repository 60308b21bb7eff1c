"""`hvdtrain scaling`: without torch if not needed, faults in one line; and what it measures."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from hvdtrain.analysis.calibration import _released, calibrate_plan
from hvdtrain.analysis.largest_batch import noise
from hvdtrain.cli.main import main
from hvdtrain.comm.ranks import Solo
from hvdtrain.config.load import parse_config
from hvdtrain.engine.build import init_state
from hvdtrain.engine.calibrate import calibrate
from hvdtrain.errors import ConfigError
from hvdtrain.scaling.profile import read_calibration
from tests.launch import REPOSITORY

PAGE = REPOSITORY / "docs/explanation/scaling.md"
DIUX = str(REPOSITORY / "configs/imagenet_resnet50_diux_4.yaml")
BY_HAND = ("--step-ms", "80", "--image-size", "224", "--batch", "224")
CALIBRATION = {
    "model": "resnet50",
    "precision": "bf16",
    "device": "NVIDIA H100",
    "groups": [6e7, 4e7],
    "entries": [
        {
            "image_size": 128,
            "batch": 256,
            "accumulate": 1,
            "images_per_second": 8000.0,
            "backward_s": 0.02,
            "release_s": [0.008, 0.02],
        }
    ],
}


def command(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int | str | None:
    """Exit code of `hvdtrain scaling` in this process."""
    monkeypatch.setattr(sys, "argv", ["hvdtrain", "scaling", *arguments])
    with pytest.raises(SystemExit) as stop:
        main()
    return stop.value.code


def test_a_prediction_needs_no_torch(tmp_path: Path) -> None:
    code = (
        "import sys, hvdtrain.cli.main\n"
        "try:\n    hvdtrain.cli.main.main()\n"
        "except SystemExit as stop:\n    assert stop.code == 0, stop.code\n"
        "heavy = {'torch', 'horovod', 'nvidia', 'numpy', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    file = tmp_path / "c.json"
    file.write_text(json.dumps(CALIBRATION))
    arguments = ["scaling", "predict", DIUX, "--calibration", str(file), "--price", "24.48"]
    line = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(line, cwd=REPOSITORY, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    out = done.stdout
    assert out.startswith("one worker: resnet50, bf16, NVIDIA H100\n")
    assert "128 px, 256 images per rank\n" in out
    assert "288 px, 128 images per rank, time by the number of pixels\n" in out
    assert "what 90% on 64 nodes needs" in out
    # 7 numbers of nodes × 4 links: 4 settings and the plan, then 4 settings × 4 links of advice.
    rows = [line for line in out.splitlines() if line[:1].isdigit() and " px" not in line]
    assert len(rows) == 7 * 4 * 5
    assert out.count("images per rank  ") == 4 * 4


def test_predictions_as_json_and_as_a_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = tmp_path / "p.png"
    options = ("--nodes", "16,4", "--link", "25,10", "--json", "--plot", str(picture))
    arguments = ("predict", DIUX, "comm.compression=fp16", *BY_HAND, *options)
    assert command(monkeypatch, *arguments, "--target", "0.85") == 0
    assert picture.read_bytes().startswith(b"\x89PNG")
    found = json.loads(capsys.readouterr().out)
    where = [(p["nodes"], p["link_gbit"], p["ranks"]) for p in found["points"]]
    assert where == [(4, 10, 32), (4, 25, 32), (16, 10, 128), (16, 25, 128)]
    for point in found["points"]:
        assert point["dollars_low"] is None
        for phase in point["phases"]:
            for end in ("low", "high"):
                parts = sum(phase[f"{part}_{end}"] for part in ("alone_s", "exposed_s", "late_s"))
                assert phase[f"step_s_{end}"] == pytest.approx(parts)
            assert phase["efficiency_low"] < phase["efficiency_high"]
            assert (phase["alone_s_low"] == phase["alone_s_high"]) == (not phase["guessed"])
    by_size = {(a["link_gbit"], a["image_size"], a["batch"]): a for a in found["advice"]}
    assert {a["nodes"] for a in found["advice"]} == {16}
    for end in ("fast", "slow"):
        small, large = by_size[10, 128, 256][end], by_size[10, 224, 224][end]
        assert small["efficiency"] < large["efficiency"]
        assert small["needed_batch"] > large["needed_batch"] > 224
    assert by_size[10, 224, 224]["fast"]["needed_batch"] < large["needed_batch"]


def test_numbers_of_nodes_without_a_plan_are_left_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = (*BY_HAND, "--nodes", "2,4,1000", "--link", "10,25")
    assert command(monkeypatch, "predict", DIUX, *options) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("left out: 1000 nodes: phases.0.batch_per_worker: 256")
    assert command(monkeypatch, "predict", DIUX, *options, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert {point["nodes"] for point in found["points"]} == {2, 4}
    assert {advice["nodes"] for advice in found["advice"]} == {4}
    assert len(found["without_plan"]) == 1


def test_measured_figures_of_the_network_replace_ours(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = []
    arguments = ("predict", DIUX, *BY_HAND, "--nodes", "16", "--link", "100", "--json")
    for more in ((), ("--efficiency", "0.95"), ("--network", "rdma"), ("--latency-us", "500")):
        assert command(monkeypatch, *arguments, *more) == 0
        found.append(json.loads(capsys.readouterr().out)["points"][0]["efficiency_high"])
    tcp, full, rdma, late = found
    assert late < tcp < full < rdma
    known = ("--efficiency", "0.5", "--straggler", "0.01", "--nodes", "1")
    assert command(monkeypatch, *arguments, *known) == 0
    [point] = json.loads(capsys.readouterr().out)["points"]
    measured = next(phase for phase in point["phases"] if phase["image_size"] == 224)
    assert measured["step_s_low"] == measured["step_s_high"]


def test_late_ranks_never_bound_a_figure_in_silence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On 1024 GPUs with a fast link they cost most, and no link and no batch gives more than they leave."""
    arguments = ("predict", DIUX, "comm.compression=fp16", *BY_HAND)
    large = ("train.accumulate=16", "data.train_size=100000000", "--nodes", "128", "--link", "100")
    options = ("--network", "rdma", "--straggler", "0.03")
    assert command(monkeypatch, *arguments, *large, *options) == 0
    out = capsys.readouterr().out
    assert "late ranks: by that spread alone 1,024 GPUs reach at most 90.0%" in out
    assert "spread by 3% (--straggler)" in out
    assert re.search(r"^128 +1024 +100 .* late ranks$", out, re.MULTILINE)
    slow = ("--nodes", "16", "--link", "1", "--target", "0.5")
    assert command(monkeypatch, *arguments, *slow) == 0
    out = capsys.readouterr().out
    assert re.search(r"^16 +128 +1 .* gradients$", out, re.MULTILINE)
    assert "by that spread alone" not in out


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ((DIUX,), 2, "give --calibration FILE"),
        ((DIUX, "--step-ms", "80"), 2, "--image-size and --batch together"),
        ((DIUX, *BY_HAND, "--calibration", "c.json"), 2, "give one of them"),
        ((DIUX, *BY_HAND[2:], "--step-ms", "0"), 2, "--step-ms 0: expected a time above 0"),
        ((DIUX, "--calibration", "c.json"), 6, "c.json: cannot be read: No such file"),
        ((DIUX, *BY_HAND, "--nodes", "1,x"), 2, "--nodes 1,x: expected whole numbers"),
        ((DIUX, *BY_HAND, "--nodes", "1.5"), 2, "--nodes 1.5: expected whole numbers"),
        ((DIUX, *BY_HAND, "--link", "10,-1"), 2, "--link 10,-1: expected numbers above 0"),
        ((DIUX, *BY_HAND, "--link", "inf"), 2, "--link inf: expected numbers above 0"),
        ((DIUX, *BY_HAND, "--nodes", "100000"), 2, "100000 nodes: phases.0.batch_per_worker: 256"),
        ((DIUX, *BY_HAND, "--network", "ib"), 2, "tcp"),
        ((DIUX, *BY_HAND, "model.name=nfnet_f0"), 2, "nfnet_f0: its layers are not in the table"),
        ((DIUX, *BY_HAND, "--nodes", "1", "--plot", "no/p.png"), 6, "--plot no/p.png: cannot"),
        ((DIUX, *BY_HAND, "--nodes", "1", "--plot", "p.doc"), 6, "--plot p.doc: cannot"),
    ],
)
def test_faults_are_one_line(
    arguments: tuple[str, ...],
    code: int,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert command(monkeypatch, "predict", *arguments) == code
    errors = capsys.readouterr().err
    assert message in errors
    assert errors.startswith("hvdtrain: error: ")
    assert errors.count("\n") == 1


def test_compare_and_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    point = {
        "hosts": 4,
        "ranks_per_host": 1,
        "link_gbit": 1.0,
        "model": "resnet50",
        "groups": [5e7, 5e7],
        "release_s": [0.1, 0.2],
        "compute_s": 0.2,
        "step_s": 1.25,
        "allreduce": [{"bytes": 1e7, "seconds": 0.1}, {"bytes": 1e8, "seconds": 1.0}],
    }
    file = tmp_path / "m.json"
    file.write_text(json.dumps([point]))
    assert command(monkeypatch, "compare", str(file)) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    cells = [cell.strip() for cell in last.strip("|").split("|")]
    assert cells[1:] == ["4 × 1", "1", "none", "0.00 + 100", "200.0", "1250.0", "1100.0", "-12.0%"]
    assert command(monkeypatch, "compare", str(file), "--json") == 0
    assert json.loads(capsys.readouterr().out)[0]["predicted_s"] == pytest.approx(1.1)
    assert command(monkeypatch, "compare", str(tmp_path / "no.json")) == 6
    assert "no.json: cannot be read" in capsys.readouterr().err
    assert command(monkeypatch, "published") == 0
    *tables, more = capsys.readouterr().out.strip().split("\n\n")
    page = PAGE.read_text()
    assert [table in page for table in tables] == [True] * 3
    for printed, written in (
        ("128 px 166–237 for 181 ms, 224 px 357–382 for", "128 px 166–237 ms, with the 181"),
        ("318 and 336 ms in its README, 343–345 predicted", "8 hosts says 343–345 ms"),
        ("100.5–103.1 logged, 101.4 predicted", "100.5–103.1 MB, and the model says 101.4"),
        (
            "40 µs 83–99%, 50 µs 79–94%, 60 µs 75–88%",
            "At 40 µs the model says 83 to 99 %, at 50 µs 79 to 94 %, at 60 µs 75 to 88 %",
        ),
        ("1.16–1.97× that over TCP", "the model says 16 to 97 %"),
    ):
        assert printed in more
        assert written in " ".join(page.split())


def test_the_page_shows_what_its_command_prints(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    blocks = re.findall(
        r"```console\n\$ hvdtrain scaling (.*?[^\\])\n(.*?)```", PAGE.read_text(), re.DOTALL
    )
    assert len(blocks) == 1
    monkeypatch.chdir(REPOSITORY)
    for words, printed in blocks:
        assert command(monkeypatch, *words.replace("\\\n", " ").split()) == 0
        assert capsys.readouterr().out == printed


SMALL = """
model: {name: resnet8_cifar, num_classes: 10}
data: {train_size: 1000}
phases:
  - {epochs: 1, image_size: 16, batch_per_worker: 4}
  - {epochs: 1, image_size: 32, batch_per_worker: 2}
train: {precision: fp32, accumulate: 2}
comm: {group_mb: 0.05}
"""


def test_what_calibrate_measures_is_what_predict_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config, file = tmp_path / "c.yaml", tmp_path / "calibration.json"
    config.write_text(SMALL)
    assert command(monkeypatch, "calibrate", str(config), "--output", str(file)) == 0
    assert "16 px, batch 8: " in capsys.readouterr().out
    found = read_calibration(file, "resnet8_cifar", group_bytes=0.0)
    state = init_state(parse_config(SMALL), Solo(), torch.device("cpu"), 10)
    sizes = [4 * flat.numel() for flat in state.reducer.flats()]
    assert len(sizes) > 2
    assert [(p.image_size, p.batch, p.accumulate) for p in found.profiles] == [
        (16, 4, 2),
        (32, 2, 2),
    ]
    for profile in found.profiles:
        assert [g.size_bytes for g in profile.groups] == sizes
        assert 0 < profile.backward_s <= profile.step_s / 2
        assert profile.groups[-1].release_s == pytest.approx(profile.backward_s)
    arguments = ("predict", str(config), "--calibration", str(file), "--gpus", "1", "--nodes", "2")
    assert command(monkeypatch, *arguments, "--link", "1") == 0
    assert "16 px, 2 × 4 images per rank\n" in capsys.readouterr().out


def test_a_group_is_released_when_its_last_gradient_is_there() -> None:
    """With a pause at each gradient of group 1, group 0 is released at least one pause earlier."""
    state = init_state(parse_config(SMALL), Solo(), torch.device("cpu"), 10)
    pause = 0.02
    for p in state.reducer.groups[1].params:
        p.register_post_accumulate_grad_hook(lambda _: time.sleep(pause))
    with _released(state) as released:
        calibrate(state, noise(state, 4, 16, 10), min_steps=3, min_s=0.0)
    first, second, *_, last = released()
    assert first - second >= pause
    assert last == 0
    hooks = [len(p._post_accumulate_grad_hooks or {}) for p in state.reducer.groups[0].params]
    assert set(hooks) == {1}  # the reducer's own


def test_calibrate_needs_the_number_of_classes() -> None:
    with pytest.raises(ConfigError, match=r"model\.num_classes: not set"):
        calibrate_plan(parse_config(SMALL.replace(", num_classes: 10", "")), Solo())
