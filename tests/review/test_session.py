"""A review: what is on disk after each answer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from fieldkit import CLASSES, collector, offered
from httpx import ASGITransport, AsyncClient

from tsss_edge.data.voc import VocDataset, write_mask
from tsss_edge.errors import DataError
from tsss_edge.review.session import LabelAnswer, ReviewSession


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three frames, the engine saw a cat in each; the second one has an unknown object."""
    kept = collector(tmp_path / "field", period_s=1.0)
    for n in range(3):
        kept.offer(offered(n, towards=n, unknown=0.2 if n == 1 else 0.0, entropy=0.1 + 0.1 * n))
    kept.close()
    return tmp_path / "field"


def labels(folder: Path) -> dict[str, list[int]]:
    return {i: sorted(ids) for i, ids in VocDataset.open(folder).label_table.items()}


def test_unknown_objects_first_then_the_most_useful(folder: Path) -> None:
    state = ReviewSession(folder).state()
    assert [picture.id[-1] for picture in state.pictures] == ["1", "2", "0"]
    assert all(picture.labels == picture.predicted == (1,) and not picture.done for picture in state.pictures)


def test_only_confirmed_pictures_are_in_the_file_and_at_once(folder: Path) -> None:
    session = ReviewSession(folder)
    first, second, _ = session.state().pictures
    session.answer(LabelAnswer(id=first.id, labels=(1, 2), done=True))
    assert labels(folder) == {first.id: [1, 2]}
    session.answer(LabelAnswer(id=second.id, labels=(), done=True))
    assert labels(folder) == {first.id: [1, 2], second.id: []}
    assert ReviewSession(folder).state().done == 2  # another session goes on


def test_undo_takes_back_one_answer_at_a_time(folder: Path) -> None:
    session = ReviewSession(folder)
    first = session.state().pictures[0].id
    session.answer(LabelAnswer(id=first, labels=(1,), done=True))
    session.answer(LabelAnswer(id=first, labels=(2,), done=True))
    assert session.undo() == first
    assert labels(folder) == {first: [1]}
    assert session.undo() == first
    assert labels(folder) == {}
    assert session.undo() is None


def test_a_new_category_is_the_last_and_gets_a_key(folder: Path) -> None:
    session = ReviewSession(folder)
    assert session.add_category("  brown   sheep ") == 3
    assert session.add_category("cat") == 1
    assert VocDataset.open(folder).classes.names == (*CLASSES.names, "brown sheep")
    assert 3 in session.state().order[:9]
    for wrong in ("", "  ", "background"):
        with pytest.raises(DataError):
            session.add_category(wrong)


def test_a_mask_is_accepted_only_where_it_says_what_the_labels_say(folder: Path) -> None:
    session = ReviewSession(folder)
    first = session.state().pictures[0].id
    with pytest.raises(DataError, match="the mask shows cat, the labels name dog"):
        session.answer(LabelAnswer(id=first, labels=(2,), done=True, mask="accepted"))
    session.answer(LabelAnswer(id=first, labels=(1,), done=True, mask="accepted"))
    dataset = VocDataset.open(folder)
    assert np.unique(dataset.mask(first)).tolist() == [0, 1]
    session.answer(LabelAnswer(id=first, labels=(1, 2), done=True))  # the labels changed: the mask no longer holds
    assert not dataset.mask_path(first).exists()
    session.undo()
    assert dataset.mask_path(first).exists()
    session.answer(LabelAnswer(id=first, labels=(1,), done=True, mask="refused"))
    assert not dataset.mask_path(first).exists()
    assert ReviewSession(folder).state().pictures[0].mask == "refused"


def test_frames_that_come_meanwhile_are_shown(folder: Path) -> None:
    session = ReviewSession(folder)
    session.answer(LabelAnswer(id=session.state().pictures[0].id, labels=(1,), done=True))
    more = collector(folder, period_s=1.0)
    more.offer(offered(9, towards=9))
    more.close()
    state = session.state()
    assert (len(state.pictures), state.done) == (4, 1)


def test_what_the_server_refuses(folder: Path) -> None:
    import asyncio

    from tsss_edge.review.pages import make_review_app

    async def ask() -> list[int]:
        transport = ASGITransport(app=make_review_app(ReviewSession(folder)))
        async with AsyncClient(transport=transport, base_url="http://localhost") as client:
            return [
                (await client.get("/api/state")).status_code,
                (await client.get("/picture/../../etc/passwd")).status_code,
                (await client.get("/picture/nobody")).status_code,
                (await client.post("/api/answer", json={"id": "x", "labels": [77], "done": True})).status_code,
                (await client.post("/api/answer", content=b"{")).status_code,
                (await client.get("/api/state", headers={"host": "evil.example"})).status_code,
            ]

    assert asyncio.run(ask()) == [200, 404, 404, 422, 422, 403]


def test_masks_that_a_set_came_with_are_never_touched(folder: Path) -> None:
    session = ReviewSession(folder)
    first = session.state().pictures[0].id
    true = folder / f"SegmentationClass/{first}.png"
    write_mask(true, np.full((48, 80), 2, np.uint8))
    before = true.read_bytes()
    session.answer(LabelAnswer(id=first, labels=(1,), done=True))
    session.answer(LabelAnswer(id=first, labels=(1,), done=True, mask="refused"))
    with pytest.raises(DataError, match="has a mask of the set"):
        session.answer(LabelAnswer(id=first, labels=(1,), done=True, mask="accepted"))
    session.undo()
    assert true.read_bytes() == before


def test_a_picture_that_is_not_there_gets_no_label(folder: Path) -> None:
    """A stream that collects replaces its newest frame by a better one."""
    with pytest.raises(DataError, match="nosuch"):
        ReviewSession(folder).answer(LabelAnswer(id="nosuch", labels=(1,), done=True))
    assert labels(folder) == {}
