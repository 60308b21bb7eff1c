"""What each fault does to a training."""

from __future__ import annotations

import contextlib
import functools
import os
import random
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from benchmarks.netlab.lab import Lab
from hvdtrain.checkpoint_files import list_checkpoints
from tests.chaos.cases import HOSTS, Case
from tests.chaos.job import Job
from tests.chaos.moments import Missed

DISK_MB = 24
"""Size of the disk that is filled: enough for some checkpoints of this run."""
SIGNALS = {"term": signal.SIGTERM, "int": signal.SIGINT, "usr1": signal.SIGUSR1}
STALL_TIMEOUT_S = 8
MORE_MEMORY = 2**22
"""Bytes that a rank may still take when its memory is limited."""
LINK_GBIT = 1.0
REMOUNTS = 100
"""Attempts to make a disk read-only."""


@dataclass
class Scene:
    """One case while it runs."""

    case: Case
    folder: Path
    run_dir: Path
    chance: random.Random
    lab: Lab | None = None
    """The hosts, if the case has several."""
    sockets: list[socket.socket] = field(default_factory=list)
    mounts: list[Path] = field(default_factory=list)
    repair: list[Callable[[], object]] = field(default_factory=list)
    """What a user does before the run goes on."""

    @property
    def images(self) -> list[Path]:
        """The training images, in order of their names."""
        return sorted((self.folder / "images/train").rglob("*.jpg"))

    def mount(self, place: Path, *words: str) -> None:
        subprocess.run(["mount", *words, str(place)], check=True)
        if place not in self.mounts:
            self.mounts.append(place)

    def unmount(self, place: Path) -> None:
        subprocess.run(["umount", "-l", str(place)], check=True)

    def close(self) -> None:
        """Give back what the machine lent."""
        if self.lab is not None:
            self.lab.close()
        for one in self.sockets:
            one.close()
        for place in self.mounts:
            while os.path.ismount(place):
                self.unmount(place)


def before(scene: Scene) -> None:
    """Prepare what must be there before the job starts."""
    if scene.case.launcher == HOSTS:
        scene.lab = Lab(2, link_gbit=LINK_GBIT, own_cores=False)
    if scene.case.kind.as_root:
        disk = scene.run_dir.parent
        disk.mkdir()
        scene.mount(disk, "-t", "tmpfs", "-o", f"size={DISK_MB}m", "tmpfs")


def settings(scene: Scene, port: int) -> list[str]:
    """Settings of the job that the fault needs; they change no weights."""
    if scene.case.fault == "port-taken":
        for taken in (port, port + 1):
            one = socket.socket()
            one.bind(("127.0.0.1", taken))
            one.listen()
            scene.sockets.append(one)
        return ["metrics.enabled=true", f"metrics.port={port}"]
    if scene.case.fault in ("stop-for-ever", "rank-hangs", "read-hangs"):
        return [f"train.stall_timeout={STALL_TIMEOUT_S}"]
    if scene.case.fault.startswith("weight"):
        return ["train.compare_every=4"]
    return []


def strike(scene: Scene, job: Job) -> None:
    """Let the fault happen. It may find that its victim has just ended."""
    name = scene.case.fault
    with contextlib.suppress(psutil.NoSuchProcess):
        if scene.case.kind.inside:
            _inside(scene, job)
        elif name.startswith(("kill", "stop", "memory")):
            _processes(scene, job)
        elif scene.lab is not None:
            _link(scene, scene.lab)
        elif name.startswith(tuple(SIGNALS)):
            _signals(scene, job)
        elif name.startswith("image"):
            _image(scene)
        elif name.startswith("checkpoint"):
            for process in list(job.ranks().values())[:1]:
                process.kill()
        elif name != "port-taken":
            _disk(scene)


def _processes(scene: Scene, job: Job) -> None:
    name, ranks = scene.case.fault, job.ranks()
    victim = ranks.get(max(ranks)) if ranks else None
    if name == "kill-launch":
        job.process.kill()
    elif name == "kill-mpirun":
        launcher = job.mpirun()
        if launcher is not None:
            launcher.kill()
    elif name == "kill-all":
        for process in job.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
    elif victim is not None and name.startswith("stop"):
        victim.suspend()
        if name != "stop-for-ever":
            time.sleep(int(name.removeprefix("stop-").removesuffix("s")))
            victim.resume()
    elif victim is not None and name == "memory-limit":
        most = victim.memory_info().vms + MORE_MEMORY
        victim.rlimit(psutil.RLIMIT_AS, (most, most))
    elif victim is not None:
        (ranks[0] if name == "kill-rank0" else victim).kill()


def _inside(scene: Scene, job: Job) -> None:
    """Have a rank do it, and wait until it is done; see tests/chaos/inside."""
    ranks = job.ranks()
    if not ranks:
        return
    victim = scene.chance.choice(sorted(ranks))
    order = scene.folder / f"strike-{victim}"
    order.with_suffix(".part").write_text(scene.case.fault)
    order.with_suffix(".part").replace(order)
    while order.exists() and job.process.poll() is None:
        time.sleep(0.01)
    order.unlink(missing_ok=True)


def _link(scene: Scene, lab: Lab) -> None:
    """Something happens to the second of two hosts, or to its link."""
    name = scene.case.fault
    if name == "link-slow":
        lab.shape(LINK_GBIT / 100)
    elif name == "host-dies":
        lab.kill(1)
        scene.repair.append(functools.partial(_new_lab, scene))
    else:
        lab.link(1, up=False)
        up = functools.partial(lab.link, 1, up=True)
        if name == "link-5s":
            time.sleep(5)
            up()
        else:
            scene.repair.append(up)


def _new_lab(scene: Scene) -> None:
    if scene.lab is not None:
        scene.lab.close()
    scene.lab = Lab(2, link_gbit=LINK_GBIT, own_cores=False)


def _signals(scene: Scene, job: Job) -> None:
    """Signal a rank or the launcher, perhaps twice: at once, or when a second one ends the job."""
    name, *rest = scene.case.fault.split("-")
    ranks = job.ranks()
    if rest[-1] == "rank" and ranks:
        victim = ranks[scene.chance.choice(sorted(ranks))]
    else:
        victim = psutil.Process(job.process.pid)
    victim.send_signal(SIGNALS[name])
    if rest[0] == "twice":
        time.sleep(scene.chance.choice([0.05, 0.5, 3.5]))
        if job.process.poll() is None:
            victim.send_signal(SIGNALS[name])


def _disk(scene: Scene) -> None:
    disk = scene.run_dir.parent
    if scene.case.fault == "run-removed":
        gone = scene.folder / "removed"
        scene.run_dir.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)
    elif scene.case.fault == "disk-full":
        ballast = disk / "ballast"
        with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
            while file.write(bytes(4096)):
                pass
        scene.repair.append(ballast.unlink)
    elif scene.case.fault == "read-only":
        _make_read_only(scene, disk)
        scene.repair.append(lambda: scene.unmount(disk))


def _make_read_only(scene: Scene, disk: Path) -> None:
    """It cannot be done while a file that was opened since the first mount is open for writing."""
    scene.mount(disk, "--bind", str(disk))
    for left in reversed(range(REMOUNTS)):
        try:
            scene.mount(disk, "-o", "remount,bind,ro")
            return
        except subprocess.CalledProcessError:
            if left == 0:
                raise
            time.sleep(0.05)


def _image(scene: Scene) -> None:
    image = scene.chance.choice(scene.images)
    kept = scene.folder / "kept.jpg"
    shutil.copy2(image, kept)
    if scene.case.fault == "image-deleted":
        image.unlink()
    elif scene.case.fault == "image-damaged":
        os.truncate(image, image.stat().st_size // 2)
    else:
        other = next(
            each
            for each in scene.images
            if each.parent != image.parent and each.stat().st_size != image.stat().st_size
        )
        shutil.copyfile(other, image)

    def restore() -> None:
        shutil.copy2(kept, image)

    if scene.case.fault != "image-replaced":
        scene.repair.append(restore)


def damage_checkpoint(scene: Scene) -> str:
    """Damage the newest checkpoint of the run that has ended; returns what was done.

    Raises Missed if there are not two.
    """
    found = list_checkpoints(scene.run_dir / "checkpoints")
    if len(found) < 2:
        raise Missed(f"only {len(found)} checkpoints to damage")
    file = scene.chance.choice(sorted(found[0].iterdir()))
    if scene.case.fault == "checkpoint-file-deleted":
        file.unlink()
    elif scene.case.fault == "checkpoint-cut":
        os.truncate(file, scene.chance.randrange(file.stat().st_size))
    else:
        data = bytearray(file.read_bytes())
        place = scene.chance.randrange(len(data))
        data[place] ^= 1 << scene.chance.randrange(8)
        file.write_bytes(data)
    return f"{found[0].name}/{file.name}"
