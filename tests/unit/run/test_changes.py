"""What a resumed run does with other settings, by the kind of each field."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from hvdtrain.comm.ranks import Solo
from hvdtrain.config.load import parse_config
from hvdtrain.config.reference import reference
from hvdtrain.errors import ConfigError, DataError, Preempted
from hvdtrain.paths import RunPaths
from hvdtrain.plan.epochs import Position
from hvdtrain.report.run import read_run
from hvdtrain.run.changes import Begun, chosen_compression, compare, identity
from hvdtrain.train import train
from tests.parallel.schema_values import fields
from tests.unit.run.data_runs import changed, config, notes


def begun(*settings: str, epoch: int = 3, world_size: int | None = 2) -> Begun:
    return Begun(changed(*settings), world_size, Position(epoch, 40), 80)


def test_every_field_has_a_kind() -> None:
    kinds = {field: node.get("resume") for field, node in fields().items()}
    assert [field for field, kind in kinds.items() if kind is None] == []
    assert set(kinds.values()) == {"identity", "plan", "machine"}
    rows = reference().replace("[].", ".0.").splitlines()
    for field, kind in kinds.items():
        [row] = [row for row in rows if row.startswith(f"| `{field}` |")]
        assert f" | {kind} | " in row
    examples = {
        "identity": ["seed", "lr.base", "optimizer.weight_decay", "data.augment", "model.name"],
        "plan": ["phases.0.epochs", "train.accumulate", "phases.0.batch_per_worker"],
        "machine": ["data.decode_threads", "data.train", "train.log_every", "metrics.port"],
    }
    for kind, names in examples.items():
        assert {kinds[name] for name in names} == {kind}
    comm = {name: kind for name, kind in kinds.items() if name.startswith("comm.")}
    planned = {"comm.compression", "comm.powersgd_rank"}  # they change what is trained
    assert {name for name, kind in comm.items() if kind != "machine"} == planned
    assert {kinds[name] for name in planned} == {"plan"}


@pytest.mark.parametrize(
    ("settings", "world_size", "expected"),
    [
        ([], 2, []),
        (["data.decode_threads=3", "metrics.port=2000", "comm.group_mb=1"], 2, []),
        (["lr.base=0.2"], 2, ["! lr.base 0.1 → 0.2"]),
        (["phases.0.min_crop_area=0.3", "seed=7"], 2, ["! seed 0 → 7", "! phases.0.min_crop_area 0.08 → 0.3"]),
        (["train.accumulate=2"], 1, ["train.accumulate 1 → 2", "ranks 2 → 1"]),
        ([], 1, ["! global batch of phases.0 16 → 8", "ranks 2 → 1"]),
        (["phases.1.batch_per_worker=8"], 2, ["! global batch of phases.1 8 → 16", "phases.1.batch_per_worker 4 → 8"]),
        (["phases.1.image_size=16", "model.dropout=0.5"], 2, ["! model.dropout null → 0.5", "! phases.1.image_size [16, 48] → 16"]),
        (["name=u"], 2, ["name t → u"]),
        (["comm.compression=powersgd"], 2, ["comm.compression none → powersgd"]),
        (["comm.compression=auto", "comm.tune=measure"], 2, []),  # told when it is chosen
    ],
)  # fmt: skip
def test_changes(settings: list[str], world_size: int, expected: list[str]) -> None:
    found = compare(begun(), changed(*settings), world_size)
    assert [f"{'! ' if c.kind == 'identity' else ''}{c.text}" for c in found] == expected


@pytest.mark.parametrize(
    ("before", "given", "chosen", "expected"),
    [
        ("none", "auto", "fp16", ["comm.compression none → fp16"]),
        ("fp16", "auto", "fp16", []),
        ("none", "fp16", "fp16", []),  # a change of the config, told with the others
        ("powersgd", "auto", "none", []),
    ],
)
def test_another_choice_of_compression_is_a_change(
    tmp_path: Path, before: str, given: str, chosen: str, expected: list[str]
) -> None:
    tune = "comm.tune=measure"
    paths = RunPaths(tmp_path)
    write = yaml.safe_dump(changed(tune, f"comm.compression={before}").model_dump())
    paths.config.write_text(write)
    configs = [changed(tune, f"comm.compression={value}") for value in (given, chosen)]
    found = chosen_compression(paths, *configs)
    assert [(change.kind, change.text) for change in found] == [("plan", t) for t in expected]


def test_powersgd_is_not_what_auto_chooses() -> None:
    before = begun("comm.compression=powersgd")
    auto = changed("comm.compression=auto", "comm.tune=measure")
    assert [change.text for change in compare(before, auto, 2)] == [
        "comm.compression powersgd → auto"
    ]


def test_the_hint_keeps_the_global_batch() -> None:
    [change] = identity(compare(begun(), changed(), 1))
    assert change.hint == " (train.accumulate=2 keeps it)"
    assert identity(compare(begun(), changed("train.accumulate=2"), 1)) == []
    [change] = identity(compare(begun(), changed(), 3))
    assert change.hint == ""


def test_ranks_that_are_not_known_are_those_of_now() -> None:
    assert compare(begun(world_size=None), changed(), 3) == []


COSINE = ["lr.schedule=cosine", "phases.1.image_size=16"]


@pytest.mark.parametrize(
    ("epoch", "settings", "new", "expected"),
    [
        # 3.5 of 6 epochs are done, where half a cosine is at 0.37059.
        (3, COSINE, ["phases.1.epochs=8"], ("identity", "learning rate (epoch 3.5)")),
        (3, COSINE, ["phases.1.epochs=2"], ("plan", "learning rate (epoch 3.5)")),
        (6, COSINE, ["phases.1.epochs=5"], ("identity", "learning rate (epoch 6)")),
        (6, [], ["phases.1.epochs=5", "phases.1.image_size=16"], ("identity", "phases.1.image_size")),
        (3, [], ["phases.0.epochs=4"], ("identity", "phase (epoch 3.5)")),
        (3, [], ["phases.0.epochs=1"], ("plan", "image size (epoch 3.5)")),
        (4, [], ["phases.1.epochs=10"], ("identity", "image size (epoch 4.5)")),
        (4, ["phases.1.image_size=16"], ["phases.1.epochs=10"], None),
        (6, ["phases.1.image_size=16"], ["phases.1.epochs=10"], None),
    ],
)  # fmt: skip
def test_a_schedule_that_goes_back_is_another_run(
    epoch: int, settings: list[str], new: list[str], expected: tuple[str, str] | None
) -> None:
    sample = 0 if epoch == 6 else 40
    before = Begun(changed(*settings), 2, Position(epoch, sample), 80)
    found = compare(before, changed(*settings, *new), 2)
    epochs = [change for change in found if change.setting.endswith(".epochs")]
    assert [change.kind for change in epochs] == ["plan"]
    others = [(change.kind, change.setting) for change in found if change not in epochs]
    assert others == ([expected] if expected else [])


def test_a_plan_ends_after_what_is_done() -> None:
    with pytest.raises(
        ConfigError, match=r"phases: 3 epochs in all, of a run that is at epoch 3, image 40"
    ):
        compare(begun(), changed("phases.1.epochs=1"), 2)  # fmt: skip
    before = Begun(changed(), 2, Position(3), 80)
    assert compare(before, changed("phases.1.epochs=1", "phases.1.image_size=16"), 2)


def starts(work: Path) -> list[list[dict[str, str]]]:
    lines = map(json.loads, (work / "run/events.jsonl").read_text().splitlines())
    return [event["changes"] for event in lines if event["kind"] == "start"]


@pytest.mark.usefixtures("page")
def test_a_refused_run_is_untouched_and_an_accepted_one_keeps_the_record(trained: Path) -> None:
    other = parse_config(
        yaml.safe_dump(config(trained, 2).model_dump()),
        overrides=["train.label_smoothing=0.1", "data.shuffle=shards", "train.log_every=2"],
    )
    root = trained / "run"
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    with pytest.raises(
        ConfigError, match=r"data.shuffle full → shards; train.label_smoothing 0 → 0.1"
    ):
        train(other, Solo(), resume=str(root))  # fmt: skip
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before
    accepted = ["data.shuffle full → shards", "train.label_smoothing 0 → 0.1"]
    summary = train(other, Solo(), resume=str(root), accept_changes=True)
    assert summary["accepted_changes"] == accepted
    assert summary["epochs"] == 2
    text = f"warning: other settings than before, by --accept-changes: {'; '.join(accepted)}"
    assert text in notes(trained)
    assert "changed since the last attempt: phases.0.epochs 1 → 2" in notes(trained)
    first, second = starts(trained)
    assert first == []
    assert second == [
        {"setting": "data.shuffle", "kind": "identity", "before": "full", "after": "shards"},
        {"setting": "train.label_smoothing", "kind": "identity", "before": "0", "after": "0.1"},
        {"setting": "phases.0.epochs", "kind": "plan", "before": "1", "after": "2"},
    ]
    assert [change["setting"] for change in read_run(root).changes] == [
        change["setting"] for change in second
    ]
    page = (root / "report.html").read_text()
    assert "Changed settings" in page
    assert "train.label_smoothing" in page
    # From now on these are the run's settings.
    assert train(other, Solo(), resume=str(root))["accepted_changes"] == accepted
    assert starts(trained)[2] == []


def test_a_finished_run_with_more_epochs_is_unfinished(
    trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise Preempted("stopped")

    paths = RunPaths(trained / "run")
    cfg = config(trained, 3)
    missing = cfg.data.model_copy(update={"train": str(trained / "missing")})
    with pytest.raises(DataError, match="missing: no such folder"):
        train(cfg.model_copy(update={"data": missing}), Solo(), resume=str(paths.root))
    assert paths.summary.exists()
    monkeypatch.setattr("hvdtrain.train.train_epoch", stop)
    with pytest.raises(Preempted):
        train(cfg, Solo(), resume=str(paths.root))
    assert not paths.summary.exists()
    monkeypatch.undo()
    assert train(cfg, Solo(), resume=str(paths.root))["epochs"] == 3


def test_accepted_settings_hold_when_the_next_attempt_ends_before_a_checkpoint(
    trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old checkpoint has the old seed."""

    def killed(*_: object) -> None:
        raise Preempted("killed")

    other, root = config(trained, 2).model_copy(update={"seed": 7}), str(trained / "run")
    monkeypatch.setattr("hvdtrain.train.train_epoch", killed)
    with pytest.raises(Preempted):
        train(other, Solo(), resume=root, accept_changes=True)
    monkeypatch.undo()
    assert train(other, Solo(), resume=root)["accepted_changes"] == ["seed 0 → 7"]


@pytest.mark.usefixtures("page")
def test_another_compression_is_shown_and_recorded(trained: Path) -> None:
    """Also where it is auto that chooses: none, on a single rank."""
    text = yaml.safe_dump(config(trained, 9).model_dump())
    tried = [
        ["comm.compression=fp16"],
        ["comm.compression=auto", "comm.tune=measure"],
        ["comm.compression=auto", "comm.tune=measure"],
        ["comm.compression=powersgd"],
        ["comm.compression=powersgd", "comm.powersgd_rank=2"],
        ["comm.compression=bf16"],
    ]
    found = []
    for number, settings in enumerate(tried):
        cfg = parse_config(text, overrides=[*settings, f"phases.0.epochs={2 + number}"])
        train(cfg, Solo(), resume=str(trained / "run"))
        changes = [c for c in starts(trained)[-1] if c["setting"].startswith("comm.")]
        found.append([f"{c['kind']}: {c['before']} → {c['after']}" for c in changes])
    assert found == [
        ["plan: none → fp16"],
        ["plan: fp16 → none"],
        [],
        ["plan: none → powersgd"],
        ["plan: 4 → 2"],
        ["plan: powersgd → bf16", "plan: 2 → 4"],
    ]
    assert (
        "changed since the last attempt: phases.0.epochs 2 → 3; comm.compression fp16 → none"
        in (notes(trained))
    )
    assert any(
        "errors of PowerSGD for" in note and "are dropped" in note for note in notes(trained)
    )
