"""The real images: JPEG files in folders of ten classes, a tenth of the 60,000."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from qexp.data.folder import FolderData
from tests import configured
from tests.data.support import every

pytestmark = [pytest.mark.real_images, pytest.mark.integration]  # decodes a whole dataset


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> FolderData:
    """Every tenth of the real images of $QEXP_DATA/cifar10-jpeg, opened."""
    if "QEXP_DATA" not in os.environ:
        pytest.skip("QEXP_DATA is not set")
    root = tmp_path_factory.mktemp("cifar10-jpeg")
    for folder in (Path(os.environ["QEXP_DATA"]) / "cifar10-jpeg").glob("*/*"):
        here = root / folder.parent.name / folder.name
        here.mkdir(parents=True)
        for file in sorted(folder.iterdir())[::10]:
            (here / file.name).symlink_to(file.resolve())
    data = configured.data(
        "folder", root=str(root), image_size=32, channels=3, cache_dir=str(tmp_path_factory.mktemp("cache"))
    )
    data.open()
    return data


def test_pixels_and_labels_are_those_of_the_files(photographs: FolderData) -> None:
    data, spec, root = photographs, photographs.spec, photographs.root
    assert spec.num_classes == 10
    for part, count in (("train", 5_000), ("test", 1_000)):
        images, labels = every(data, part), data.splits[part].labels
        assert images.shape == (count, 32, 32, 3) and np.bincount(labels).tolist() == [count // 10] * 10
        files = [file for name in spec.class_names for file in sorted((root / part / name).iterdir())]
        for index in (0, count // 3, count - 1):
            assert np.array_equal(images[index], np.asarray(Image.open(files[index]).convert("RGB")))
            assert spec.class_names[labels[index]] == files[index].parent.name


def test_the_validation_part_has_its_share_of_every_class(photographs: FolderData) -> None:
    """450 images of each class to train on, 50 to validate on; the statistics against NumPy's."""
    data = photographs
    counts = [
        np.bincount(data.splits["train"].labels[part]).tolist()
        for part in (data.train_indices, data.validation_indices)
    ]
    assert counts == [[450] * 10, [50] * 10]
    data.prepare_training()
    how, values = data.spec.preprocessing, data.pixels("train", data.train_indices).reshape(-1, 3)
    assert how.mean == pytest.approx(values.mean(0, np.float64) / 255, abs=1e-9)
    assert how.std == pytest.approx(values.std(0, np.float64) / 255, abs=1e-9)
