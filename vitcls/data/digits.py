"""scikit-learn's handwritten digits as a dataset: real data that needs no network."""

from io import BytesIO

import datasets
import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

from vitcls.data.splits import stratified_sample

TEST_IMAGES = 360  # a fifth of the 1,797


def load(split: str) -> datasets.Dataset:
    """The 8x8 gray digits (UCI, Alpaydin and Kaynak 1998), split once and for all.

    Args:
        split: `train` (1,437 images) or `test` (360, stratified).

    Returns:
        columns `image` (8x8 gray PNG) and `label` (ClassLabel 0..9).
    """
    digits = load_digits()
    test = stratified_sample(digits.target, TEST_IMAGES, seed=0)
    rows = test if split == "test" else np.setdiff1d(np.arange(len(digits.target)), test)
    # Stored values are 0..16; 255 / 16 spreads them over a byte.
    images = (digits.images[rows] * (255 / 16)).round().astype(np.uint8)
    features = datasets.Features(
        image=datasets.Image(), label=datasets.ClassLabel(names=[str(d) for d in digits.target_names])
    )
    columns = {
        "image": [{"bytes": _png(image), "path": None} for image in images],
        "label": digits.target[rows].tolist(),
    }
    return datasets.Dataset.from_dict(columns, features=features)


def _png(pixels: np.ndarray) -> bytes:
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()
