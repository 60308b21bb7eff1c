"""Reads a dataset in a process that may open LIMIT files: FOLDER LIMIT [BUSY].

Prints the number of images read and the most descriptors that were open, or the error. BUSY
descriptors are taken by others once the dataset is open.
"""

from __future__ import annotations

import os
import random
import resource
import sys
from concurrent.futures import ThreadPoolExecutor

from hvdtrain.errors import HvdtrainError
from pipelines.sources import open_source


def main(folder: str, limit: int, busy: int) -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    try:
        source = open_source(folder, "data.train")
        others = [os.open("/dev/null", os.O_RDONLY) for _ in range(busy)]

        def read(i: int) -> int:
            name = source.read(i).tobytes().decode()
            assert source.name(i).endswith(f"{name}.jpg"), (i, name)
            if busy:
                return 0
            return max(int(descriptor) for descriptor in os.listdir("/proc/self/fd"))  # noqa: PTH208

        order = list(range(len(source))) * 5
        random.Random(0).shuffle(order)
        with ThreadPoolExecutor(8) as pool:
            print(len(order), max(pool.map(read, order)), len(others))
    except HvdtrainError as error:
        print(type(error).__name__, error)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else 0)
