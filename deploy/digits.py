"""Writes scikit-learn's handwritten digits as folders of JPEG files: a dataset without a download.

`python deploy/digits.py FOLDER` writes FOLDER/{train,val}/{0..9}/*.jpg: 1797 images of 32x32
pixels, a fifth of each class for validation, the same files every time.
"""

import sys
import tempfile
from pathlib import Path

IMAGE_SIZE = 32  # pixels; the originals have 8x8
VAL_FRACTION = 0.2
JPEG_QUALITY = 95
SEED = 0


def write(root: Path) -> None:
    """Write the dataset, unless it exists. `root` appears when it is complete.

    Raises FileExistsError if `root` holds something else.
    Source: E. Alpaydin, C. Kaynak, UCI "Optical Recognition of Handwritten Digits", test part.
    """
    import numpy as np
    from PIL import Image
    from PIL.Image import Resampling
    from sklearn.datasets import load_digits

    if (root / "train").is_dir() and (root / "val").is_dir():
        return
    if root.exists() and any(root.iterdir()):
        raise FileExistsError(f"{root} exists and is not the digits dataset: give another folder")
    root.parent.mkdir(parents=True, exist_ok=True)
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(SEED).permutation(len(labels))
    with tempfile.TemporaryDirectory(dir=root.parent, prefix=".digits-") as scratch:
        complete = Path(scratch) / "digits"
        for digit in range(10):
            indices = order[labels[order] == digit]
            val_count = round(len(indices) * VAL_FRACTION)
            for position, index in enumerate(indices):
                split = "val" if position < val_count else "train"
                folder = complete / split / str(digit)
                folder.mkdir(parents=True, exist_ok=True)
                pixels = (images[index].reshape(8, 8) * (255 / 16)).round().astype(np.uint8)
                image = Image.fromarray(pixels).resize((IMAGE_SIZE, IMAGE_SIZE), Resampling.BICUBIC)
                image.convert("RGB").save(folder / f"{index:04d}.jpg", quality=JPEG_QUALITY)
        complete.rename(root)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python deploy/digits.py FOLDER")
    try:
        write(Path(sys.argv[1]))
    except OSError as error:
        sys.exit(f"error: {error}")
