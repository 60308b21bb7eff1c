"""Reads files of torch.save without running anything that is in them.

torch's own restricted reader takes tensors and plain values. What other trainers put beside the
weights, such as their arguments or NumPy values, is read as stand-ins made here.
"""

from __future__ import annotations

import contextlib
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hvdtrain.errors import CheckpointError

_DTYPE = re.compile(r"[<=|]?([fiu][1248]|b1)")


class Ignored:
    """Stands for a value that is not needed."""

    def __init__(self, *_: object) -> None: ...

    def __setstate__(self, state: object) -> None: ...

    def __setitem__(self, key: object, value: object) -> None: ...


class NumpyDtype:
    """Stands for `numpy.dtype`: its name alone."""

    def __init__(self, name: object = "", *_: object) -> None:
        self.name = name

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if state[1] not in ("<", "|", "="):
            self.name = ""


class NumpyArray:
    """Stands for a NumPy array, checked before NumPy sees it."""

    def __init__(self, *_: object) -> None:
        self._state: tuple[Any, ...] = ()

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self._state = state

    def tensor(self) -> torch.Tensor | None:
        """The array as a tensor; None if it does not hold plain numbers."""
        if len(self._state) != 5:
            return None
        _, shape, dtype, columns_first, data = self._state
        name = dtype.name if isinstance(dtype, NumpyDtype) else ""
        if not (isinstance(name, str) and _DTYPE.fullmatch(name) and isinstance(data, bytes)):
            return None
        order = "F" if columns_first else "C"
        try:
            array = np.frombuffer(data, np.dtype(name)).reshape(shape, order=order)  # type: ignore[call-overload]
            return torch.from_numpy(array.copy(order="C"))
        except (TypeError, ValueError):
            return None


STAND_INS = (
    *((NumpyArray, f"{core}.multiarray._reconstruct") for core in ("numpy.core", "numpy._core")),
    *((Ignored, f"{core}.multiarray.scalar") for core in ("numpy.core", "numpy._core")),
    (NumpyDtype, "numpy.dtype"),
    *(
        (Ignored, name)
        for name in (
            *("builtins.list", "builtins.dict", "builtins.int", "builtins.float"),
            "numpy.ndarray",
            "argparse.Namespace",
            "types.SimpleNamespace",
            "pathlib.Path",
            "pathlib.PosixPath",
            "pathlib.WindowsPath",
            "pathlib._local.PosixPath",
            "pathlib._local.WindowsPath",
            "datetime.datetime",
            "datetime.timedelta",
            "collections.defaultdict",
            "omegaconf.dictconfig.DictConfig",
            "omegaconf.listconfig.ListConfig",
            "omegaconf.base.ContainerMetadata",
            "omegaconf.base.Metadata",
            "omegaconf.nodes.AnyNode",
            "typing.Any",
            "yacs.config.CfgNode",
            "pytorch_lightning.utilities.parsing.AttributeDict",
            "lightning.fabric.utilities.data.AttributeDict",
            "lightning_fabric.utilities.data.AttributeDict",
            "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",
            "lightning.pytorch.callbacks.model_checkpoint.ModelCheckpoint",
        )
    ),
)
"""What is read in place of the class or function of that name."""


def load_torch(path: Path) -> Any:
    """The content of a file of torch.save; its code is not run.

    Raises CheckpointError, with what is the matter and what to do, and OSError.
    """
    try:
        with warnings.catch_warnings(), _stand_ins(), path.open("rb") as file:
            warnings.simplefilter("ignore")  # about how the file was made
            # A file, no name: torch goes by the ending of a name.
            return torch.load(file, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # noqa: BLE001 - a broken file makes torch raise anything
        raise CheckpointError(_reason(str(error))) from None


def _stand_ins() -> contextlib.AbstractContextManager[object]:
    try:
        return torch.serialization.safe_globals(list(STAND_INS))
    except (AttributeError, TypeError):  # torch before 2.6 has no stand-ins
        return contextlib.nullcontext()


def _reason(text: str) -> str:
    """torch's message in short, without its advice to switch its safety off."""
    needed = re.search(r"GLOBAL ([\w.]+)", text) or re.search(r"[Uu]nsupported class (\S+)", text)
    if needed or "unrecognized function" in text or "Can only" in text:
        what = f" ({needed[1][:80]})" if needed else ""
        return (
            f"holds more than weights: reading it needs code{what}, which is never run: where it "
            "was made, save the weights alone with torch.save(model.state_dict(), FILE)"
        )
    if "magic number" in text or "Unsupported operand" in text:
        return (
            "a pickle that torch.save does not write by itself: where it was made, save the weights with "
            "torch.save(model.state_dict(), FILE)"
        )
    return "damaged or cut off: torch cannot read it: copy or download it again"
