"""The loss as training computes it: a batch at a time, in training mode."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from hvdtrain import activity
from hvdtrain.analysis.study.batch_norm import batch_norms
from hvdtrain.analysis.study.loss import NetworkLoss, flat, gradients_of
from hvdtrain.analysis.study.opened import Opened
from hvdtrain.comm.ranks import Comm
from hvdtrain.engine.erasing import Erasing
from hvdtrain.engine.loss import Loss
from hvdtrain.engine.mixing import Mixing
from hvdtrain.errors import ConfigError
from hvdtrain.run.subject import Subject


class TrainingLoss(NetworkLoss):
    """The loss of an opened checkpoint by which its run was trained.

    Batch norm uses the statistics of each batch, images are erased and mixed, labels smoothed, and units dropped, by a seed
    of each batch: the same at every pass and on any number of ranks. The network computes in its dtype.
    """

    def __init__(self, it: Opened, subject: Subject, comm: Comm) -> None:
        super().__init__(it.loss.model, it.loss.images, it.loss.total, it.loss.dtype)
        train = subject.cfg.train
        if train.teacher.weights is not None:
            raise ConfigError(
                f"{subject.name}: trained with train.teacher, whose share of the loss is not computed here: "
                "measure in the run, by train.noise_scale_every"
            )
        if train.mix_partner == "doubled":
            raise ConfigError(
                f"{subject.path}: train.mix_partner: doubled: images come without partners here: set "
                "train.mix_partner=random to measure with that"
            )
        self._mixing = Mixing.of(subject.cfg)
        self._erasing = Erasing(subject.cfg.data.random_erasing, subject.cfg.seed)
        self._loss_of, self._epoch = Loss.of(train), subject.epoch.index
        self._rank, self._ranks = comm.rank, comm.size
        self.normed = bool(batch_norms(self.model))
        """Whether the gradient of an image depends on the others of its batch."""

    def batch_gradients(self) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Of each of this rank's batches: images, and loss [] and gradient [n], float64, summed over them."""
        self.model.train()
        parameters = list(self.trained.values())
        for number, batch in enumerate(self.images):
            activity.beat()
            torch.manual_seed(number * self._ranks + self._rank)
            images = self._erasing.erased(batch.images, batch.copies, self._epoch)
            [part] = self._mixing.parts(batch, images, 1, self._epoch)
            if part.shares is not None:
                part = part._replace(shares=part.shares.double())
            logits = self.model(part.images.to(self.dtype)).double()
            loss = self._loss_of.of_each(logits, part).sum()
            yield len(part.labels), loss.detach(), flat(gradients_of(loss, parameters))
