"""Batches made by several threads are those of one thread; what waits is bounded; errors come in their place."""

from __future__ import annotations

import threading
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch

from tsss_edge.data.picture_cache import PictureCache
from tsss_edge.data.synthetic import write_synthetic
from tsss_edge.data.voc import VocDataset
from tsss_edge.errors import DataError
from tsss_edge.train import loader
from tsss_edge.train.loader import Samples


def noisy(image: np.ndarray, mask: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """An augmentation that shows which random numbers a sample got."""
    return image[:32, :32] ^ rng.integers(0, 256, (32, 32, 3), np.uint8), mask[:32, :32]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> VocDataset:
    folder = tmp_path_factory.mktemp("set")
    write_synthetic(folder / "set", train=24, val=2, size=48)
    return VocDataset.open(folder / "set")


def samples(dataset: VocDataset, **options: int) -> Samples:
    return Samples(dataset, dataset.ids("train"), dataset.mask, noisy, batch=4, **options)


@pytest.mark.parametrize("threads", [2, 4])
def test_threads_change_nothing(dataset: VocDataset, threads: int) -> None:
    one, several = samples(dataset, seed=3), samples(dataset, seed=3)
    for epoch in range(2):
        pairs = zip(one.batches(epoch, threads=1), several.batches(epoch, threads=threads), strict=True)
        for a, b in pairs:
            assert a.ids == b.ids
            assert torch.equal(a.images, b.images) and torch.equal(a.masks, b.masks)


def test_the_cache_stays_within_its_bound(dataset: VocDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    one = 48 * 48 * 4
    cache = PictureCache(5 * one)
    monkeypatch.setattr(loader, "PICTURES", cache)
    made = samples(dataset)
    for epoch in range(3):
        assert len(list(made.batches(epoch, threads=4))) == 6
    assert cache.bytes == 5 * one


def test_an_epoch_that_is_left_ends_its_threads(dataset: VocDataset) -> None:
    before = set(threading.enumerate())
    with closing(samples(dataset).batches(0, threads=3)) as batches:
        next(batches)
    assert not set(threading.enumerate()) - before


def test_an_unreadable_picture_is_told_in_its_place(dataset: VocDataset, tmp_path: Path) -> None:
    made = samples(dataset)
    bad = made.ids[made.order(0)[9]]  # in the third batch
    path = dataset.image_path(bad)
    content = path.read_bytes()
    path.write_bytes(b"no picture")
    try:
        with closing(made.batches(0, threads=4)) as batches:
            assert len([next(batches), next(batches)]) == 2
            with pytest.raises(DataError, match=path.name):
                next(batches)
    finally:
        path.write_bytes(content)
