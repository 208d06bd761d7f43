"""The validation part: of every class its share, apart from the training part, the same for every training seed."""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import pytest

from qexp.data.folder import FolderData
from qexp.data.splitting import channel_statistics, split_train, spread
from qexp.types import UserError
from tests.data.support import every

labels = np.random.default_rng(0).permutation(np.repeat([0, 1, 2, 7], [100, 53, 2, 1]))


@pytest.mark.parametrize(
    ("share", "expected"),
    [(0.1, [10, 5, 1, 0]), (0.25, [25, 13, 1, 0]), (0.001, [1, 1, 1, 0]), (0.999, [99, 52, 1, 0])],
)
def test_stratified_disjoint_and_complete(share: float, expected: list[int]) -> None:
    train, validation = split_train(labels, share, seed=0)
    assert sorted([*train, *validation]) == list(range(len(labels)))
    assert [int((labels[validation] == label).sum()) for label in (0, 1, 2, 7)] == expected
    assert set(labels[train]) == {0, 1, 2, 7}
    assert (np.diff(train) > 0).all() and (np.diff(validation) > 0).all()


def test_fixed_by_its_seed_alone() -> None:
    one, same, other = (split_train(labels, 0.1, seed)[1].tolist() for seed in (0, 0, 1))
    assert one == same and one != other


def test_random_within_a_class() -> None:
    chosen = np.concatenate([split_train(np.zeros(100, int), 0.1, seed)[1] for seed in range(500)])
    counts = np.bincount(chosen, minlength=100)  # 50 expected each, deviation 6.7
    assert counts.min() > 20 and counts.max() < 80


def test_nothing_to_validate_on() -> None:
    with pytest.raises(UserError, match="no class with two images"):
        split_train(np.arange(5), 0.1, 0)


def test_dataset_splits_by_split_seed_and_not_by_seed(make_folder: Callable[..., FolderData]) -> None:
    one, seeded, other = (
        make_folder(validation_share=0.3, **options) for options in ({}, {"seed": 5}, {"split_seed": 1})
    )
    for data in (one, seeded, other):
        data.open()
    assert np.array_equal(one.validation_indices, seeded.validation_indices) and one.spec == seeded.spec
    assert not np.array_equal(one.validation_indices, other.validation_indices) and other.spec.split_seed == 1
    assert np.bincount(one.splits["train"].labels[one.validation_indices]).tolist() == [3, 3]


def test_the_validation_part_is_kept_beside_the_images(make_folder: Callable[..., FolderData]) -> None:
    for options in ({"validation_share": 0.3}, {"validation_share": 0.3, "split_seed": 1}, {"validation_share": 0.25}):
        data = make_folder(**options)
        data.open()
        data.prepare_evaluation("validation", None)
        file = data.cache_dir / "data" / data.spec.cache_name / data.spec.evaluation_file("validation", None)
        assert json.loads(file.read_text()) == data.validation_indices.tolist()
    assert len(list(file.parent.glob("validation-*.json"))) == 3


def test_a_baseline_of_another_split_knows_images_of_this_validation_part(
    make_folder: Callable[..., FolderData],
) -> None:
    trained, same, other = (make_folder(split_seed=seed) for seed in (0, 0, 1))
    same.normalise_like(trained.open())
    with pytest.raises(
        UserError, match=r"knows images of this validation part. Give its data.split_seed=0 data.validation_share=0.1"
    ):
        other.normalise_like(trained.open())


def test_mean_and_deviation_are_those_of_the_training_part(make_folder: Callable[..., FolderData]) -> None:
    data = make_folder(validation_share=0.5)
    data.open()
    data.prepare_training()
    spec = data.spec.preprocessing
    values = data.pixels("train", data.train_indices).astype(np.float64) / 255
    everything = every(data, "train").astype(np.float64) / 255
    assert spec.mean == pytest.approx(values.mean((0, 1, 2)), abs=1e-12)
    assert spec.std == pytest.approx(values.std((0, 1, 2)), abs=1e-12)
    assert spec.mean != pytest.approx(everything.mean((0, 1, 2)), abs=1e-6)


def test_statistics_of_more_images_than_one_chunk() -> None:
    images = np.random.default_rng(2).integers(0, 200, size=(9000, 2, 2, 3), dtype=np.uint8)
    images[..., 1] //= 3
    chunks = (images[start : start + 4000] for start in range(0, 9000, 4000))
    mean, std = channel_statistics(chunks, 3)
    values = images.astype(np.float64) / 255
    assert mean == pytest.approx(values.mean((0, 1, 2)), abs=1e-12) and std == pytest.approx(
        values.std((0, 1, 2)), abs=1e-12
    )


def test_constant_channel_can_be_divided_by() -> None:
    mean, std = channel_statistics([np.full((5, 2, 2, 1), 51, np.uint8)], 1)
    assert mean == pytest.approx((0.2,)) and std == pytest.approx((1 / 255,))


def test_few_images_are_spread_over_the_classes() -> None:
    indices = np.arange(100, 100 + len(labels))
    for most in (1, 3, 4, 9, 60, 156, 500):
        chosen = spread(indices, labels, most)
        assert len(set(chosen.tolist())) == len(chosen) == min(most, len(labels))
        assert np.array_equal(chosen, spread(indices, labels, most)) and (np.diff(chosen) > 0).all()
        counts = [int((labels[chosen - 100] == label).sum()) for label in (0, 1, 2, 7)]
        for count, known in zip(counts, (100, 53, 2, 1), strict=True):
            assert count == known or count >= max(counts) - 1


def test_a_baseline_of_images_that_were_prepared_otherwise_says_how(make_folder: Callable[..., FolderData]) -> None:
    trained = make_folder(mean=[0.1, 0.2, 0.3], std=0.25)
    spec = trained.open()
    make_folder(mean=[0.1, 0.2, 0.3002], std=0.25).normalise_like(spec)  # as one copies it from a paper
    make_folder().normalise_like(spec)
    for options, told in (
        ({"mean": 0.9}, r"data\.mean=\[0\.1,0\.2,0\.3\]"),
        ({"pixel_range": 255}, r"data\.pixel_range=1\.0"),
        ({"resize": "pad", "orient": True}, r"data\.resize=stretch data\.orient=false"),
    ):
        with pytest.raises(UserError, match=f"prepared otherwise. Give what it was trained with: {told}$"):
            make_folder(**options).normalise_like(spec)
