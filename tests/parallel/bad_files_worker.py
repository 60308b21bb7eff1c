"""Train on a folder with bad files, then again with a lower limit.

One file is deleted after the folder was listed.
"""

from __future__ import annotations

import sys
from pathlib import Path

from hvdtrain import train as loop
from hvdtrain.comm.start import init_comm
from hvdtrain.config.load import parse_config
from hvdtrain.errors import HvdtrainError
from pipelines.sources import ImageFolder

CONFIG = """
data:
  {{train: {root}, augment: random_resized_crop, decode_threads: 1, on_bad: {policy},
    max_bad_ratio: {limit}}}
model: {{name: resnet8_gn}}
lr: {{base: 0.02, warmup: none, schedule: constant}}
phases:
  - {{epochs: 2, image_size: 16, batch_per_worker: 32}}
train: {{log_every: 4}}
metrics: {{enabled: false}}
"""


def delete_after_listing(path: Path) -> None:
    """Delete `path` when a rank reads its first sample."""
    read = ImageFolder.read

    def reading(source, i):  # type: ignore[no-untyped-def]
        path.unlink(missing_ok=True)
        return read(source, i)

    ImageFolder.read = reading  # type: ignore[method-assign]


def main(root: Path, out: Path, policy: str) -> None:
    loop.write_page = lambda run: None  # matplotlib takes seconds
    comm = init_comm()
    delete_after_listing(root / "files" / "missing.jpg")
    cfg = parse_config(CONFIG.format(root=root, policy=policy, limit=0.1))
    loop.train(cfg, comm, run_dir=out / policy)
    (root / "files" / "missing.jpg").touch()
    cfg = parse_config(CONFIG.format(root=root, policy=policy, limit=0.02))
    try:
        loop.train(cfg, comm, run_dir=out / "limited")
    except HvdtrainError as error:
        (out / f"rank-{comm.rank}.txt").write_text(f"{error.exit_code}\n{error}")
    comm.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
