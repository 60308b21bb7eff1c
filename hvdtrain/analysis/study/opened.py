"""A checkpoint's loss, ready to be evaluated on this rank."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from hvdtrain import activity
from hvdtrain.analysis.study.batch_norm import batch_norms, recompute
from hvdtrain.analysis.study.images import Choice, ImageSet, fixed_images, open_images
from hvdtrain.analysis.study.loss import NetworkLoss
from hvdtrain.comm.agreement import require_equal, together
from hvdtrain.comm.ranks import Comm
from hvdtrain.comm.start import cores_for_rank
from hvdtrain.engine.build import choose_device
from hvdtrain.errors import DataError
from hvdtrain.run.subject import Subject
from pipelines.fixed import FixedImages


@dataclass(frozen=True)
class Opened:
    """The loss of a checkpoint, and what it is evaluated on."""

    loss: NetworkLoss
    statistics: FixedImages | None
    """Training images for batch norm; None if its statistics stay."""
    batches: int
    """Most batches of a rank in one evaluation."""
    about: dict[str, Any]
    warnings: list[str]

    def point(self) -> list[float]:
        """SUMS at the present weights, with the statistics of batch norm computed anew if wanted."""
        if self.statistics is not None:
            recompute(self.loss.model, self.statistics, self.loss.dtype)
        return self.loss.means().tolist()

    def seconds(self, comm: Comm, evaluate: Callable[[], object]) -> float:
        """Time of `evaluate` over all batches, from that of one, on the slowest rank.

        Only with the first batch opened. Every rank must call.
        """
        evaluate()  # the first call is slower
        began = time.perf_counter()
        evaluate()
        own = torch.tensor([time.perf_counter() - began], dtype=torch.float64)
        return float(comm.gather(own, "study.seconds").max()) * self.batches


@contextlib.contextmanager
def opened(
    subject: Subject,
    choice: Choice,
    comm: Comm,
    *,
    whole: bool,
    anew: bool = False,
    only_first: bool = False,
    training: bool = False,
) -> Iterator[Opened]:
    """The network with its weights, over the chosen images.

    `whole`: every rank evaluates all batches, for points that are shared out; else its part of them.
    `anew`: the statistics of batch norm are computed for each point, from training images.
    `only_first`: one batch, to measure its time. `training`: images are prepared as for training, and the
    weights are those that are trained, also if the run keeps averages. Every rank must call; errors are raised on all.
    """
    device, epoch = choose_device(comm), subject.epoch
    _exact_kernels()
    cores = cores_for_rank(comm)
    torch.set_num_threads(subject.cfg.train.compute_threads or cores)
    activity.enter("listing the images")
    with together(comm):
        model = subject.network(device, averaged=not training)
        sets = {choice.split: open_images(subject, choice, choice.split)}
        anew = anew and bool(batch_norms(model))
        if anew and choice.split != "train":
            sets["train"] = open_images(subject, choice, "train")
    for split, one in sets.items():
        require_equal(comm, f"data.{split}: the list of images", one.fingerprint, DataError)
    chosen = sets[choice.split]
    part = slice(None) if whole else slice(comm.rank, None, comm.size)
    with contextlib.ExitStack() as stack:

        def loader(of: ImageSet, part: slice) -> FixedImages:
            batches = of.batches[part][: 1 if only_first else None]
            images = fixed_images(
                subject, choice, of.source, batches, comm, device, cores, training=training
            )
            return stack.enter_context(images)

        images = loader(chosen, part)
        statistics = images if whole and choice.split == "train" else None
        if anew and statistics is None:
            statistics = loader(sets["train"], slice(None))
        yield Opened(
            NetworkLoss(model, images, chosen.num_images, choice.torch_dtype),
            statistics if anew else None,
            -(-len(chosen.batches) // (1 if whole else comm.size)),
            {
                "split": choice.split,
                "images": chosen.num_images,
                "images_of_split": len(chosen.source),
                "image_size": epoch.image_size if training else epoch.val_image_size,
                "averaged_weights": subject.averaged and not training,
                "dtype": choice.dtype,
                "batch_norm_recomputed": anew,
            },
            [line for one in sets.values() for line in one.warnings],
        )


def _exact_kernels() -> None:
    """The same result at every evaluation, and all digits of float32."""
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
