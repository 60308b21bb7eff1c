"""Numbers go to the device together, and unchanged."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from hvdtrain.config.data import Data
from hvdtrain.engine.erasing import Erasing
from hvdtrain.engine.mixing import Mixing
from pipelines.images.numbers import Numbers, copied_to, packed, unpacked
from pipelines.images.on_device import Changes
from tests.step_samples import images as batch_of

ARRAYS = [
    np.array([[1, -(2**40)], [3, 4]]),
    np.zeros((0, 3)),
    np.array([0.1, -0.0, np.inf], dtype=np.float32),
    np.array([True, False, True]),
    np.array(7, dtype=np.int32),
    np.arange(5, dtype=np.float64)[::2],
]


def test_all_arrays_in_one_buffer() -> None:
    arrays = [np.ascontiguousarray(array) for array in ARRAYS]
    tensors = unpacked(packed(arrays, pinned=False), arrays)
    for tensor, array in zip(tensors, ARRAYS, strict=True):
        assert tensor.dtype == torch.from_numpy(np.array(array)).dtype
        np.testing.assert_array_equal(tensor.numpy(), array)


def test_a_cpu_needs_no_copy() -> None:
    array = np.arange(3.0)
    [there] = copied_to(torch.device("cpu"), array)
    array[0] = 5
    assert there[0] == 5


def test_numbers_are_rounded_on_the_host() -> None:
    numbers = Numbers()
    rounded = numbers.add_float(np.array([0.1]))
    numbers.send(torch.device("cpu"))
    assert rounded().dtype == torch.float32


class Copies(TorchDispatchMode):
    """Counts copies from the host to the device `meta`, which stands for a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.found = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        name = func.overloadpacket.__name__
        if name in ("_to_copy", "copy_") and isinstance(result, torch.Tensor):
            given = args[1] if name == "copy_" else args[0]
            self.found += given.device.type == "cpu" and result.device.type == "meta"
        return result


AUGMENTED = {
    "augment": "none",
    "rand_augment": [4, 9],
    "color_jitter": [0.4, 0.4, 0.4, 0.1],
    "rotation": 10,
    "translation": 0.1,
}


@pytest.mark.parametrize("policy", ["standard", "nfnet"])
def test_changes_of_a_batch_take_one_copy(policy: str) -> None:
    changes = Changes(Data.model_validate(AUGMENTED | {"rand_augment_policy": policy}), 3)
    there = torch.empty(64, 3, 32, 32, device="meta")
    with Copies() as copies:
        changes(there, np.arange(64), 1)
    assert copies.found == 1


def test_mixing_and_erasing_take_one_copy_each() -> None:
    batch = batch_of(8)
    there = torch.empty_like(batch.images, device="meta")
    with Copies() as copies:
        Erasing(1.0).erased(there, batch.copies, 0)
        assert copies.found == 1
        Mixing(mixup=0.2, cutmix=1.0)._draws(batch.copies, 0, there)
    assert copies.found == 2
