"""The loaders of a config for a loop of one's own: `hvdtrain.Loaders`."""

from __future__ import annotations

from collections.abc import Iterator

from hvdtrain.api.functions import joined
from hvdtrain.comm.agreement import together
from hvdtrain.comm.ranks import Comm
from hvdtrain.comm.watched_group import in_process_group, watched_ranks
from hvdtrain.config.schema import Config
from hvdtrain.engine.build import open_shared
from hvdtrain.errors import ConfigError
from hvdtrain.plan.epochs import Epoch, make_plan
from pipelines.loader import Batch


class Batches:
    """The batches of one pass, as an iterator that knows how many there are in all."""

    def __init__(self, batches: Iterator[Batch], count: int) -> None:
        self._batches, self._count = batches, count

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        return next(self._batches)


class Loaders:
    """Training and evaluation images of `cfg` on this rank, in the order and sizes of a run of it.

    Under torch.distributed, once its process group is initialised, or under a launcher of hvdtrain,
    every rank makes one and gets its own share. A context manager; leaving it ends all threads.
    Sets torch's number of threads, and on a GPU machine the GPU of this rank, as a run does.

    Raises ConfigError or DataError, on all ranks, if config and images do not fit.
    """

    def __init__(self, cfg: Config, comm: Comm | None = None) -> None:
        """`comm`: the ranks, where they have been joined already."""
        if cfg.data.train is None:
            raise ConfigError("data.train: not set: name the training images with data.train=DIR")
        if comm is None:
            comm = watched_ranks() if in_process_group() else joined(cfg)
        self.comm = comm
        self._loaders, self.device = open_shared(cfg, comm, None)
        try:
            with together(comm):
                self.plan = make_plan(cfg, comm.size, self._loaders.num_train)
        except BaseException:
            self._loaders.close()
            raise

    @property
    def epochs(self) -> tuple[Epoch, ...]:
        """All epochs of the plan: steps, image size, batch per rank, and `lr(i)` of step i."""
        return self.plan.epochs

    @property
    def classes(self) -> list[str]:
        """Names of the classes; labels index them."""
        return self._loaders.classes

    @property
    def num_train(self) -> int:
        """Training images, over all ranks."""
        return self._loaders.num_train

    @property
    def num_val(self) -> int:
        """Evaluation images, over all ranks; 0 without `data.val`."""
        return self._loaders.num_val

    def train(self, epoch: Epoch) -> Batches:
        """The `epoch.steps` batches of this rank, each with images [N,3,S,S], labels and weights [N].

        Weight 0 marks an image that is bad or only fills up the last batch. The order is a function of
        seed and epoch. The first batches of the next epoch are decoded while the last are used.
        """
        following = epoch.index + 1
        then = self.epochs[following] if following < len(self.epochs) else None
        batches = (batch for _, batch in self._loaders.train(epoch, then))
        return Batches(batches, epoch.steps)

    def val(self, epoch: Epoch) -> Batches:
        """This rank's share of the evaluation images, at the size of `epoch`.

        Over all ranks each image has weight 1 once; every rank has the same number of batches.
        """
        return Batches(self._loaders.val(epoch), self._loaders.val_batches(epoch))

    def close(self) -> None:
        """End all threads; iterators that are open get no more batches."""
        self._loaders.close()

    def __enter__(self) -> Loaders:
        """The loaders."""
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
