"""The review page in a real browser (headless Chromium): keys, typing, undo, progress, and what is on disk afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fieldkit import collector, offered
from waiting import wait_for

from tsss_edge.data.voc import VocDataset
from tsss_edge.review import ReviewServer, open_review


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ReviewServer]:
    kept = collector(tmp_path / "field", period_s=1.0)
    for n in range(4):
        kept.offer(offered(n, towards=n, entropy=0.9 - 0.1 * n))
    kept.close()
    made = open_review(tmp_path / "field", "0")
    yield made
    made.close()


@pytest.fixture(params=[(1280, 800), (390, 844)], ids=["desktop", "phone"])
def page(browser: Any, server: ReviewServer, request: pytest.FixtureRequest) -> Iterator[Any]:
    width, height = request.param
    opened = browser.new_page(viewport={"width": width, "height": height})
    problems: list[str] = []
    opened.on("pageerror", lambda error: problems.append(str(error)))
    opened.goto(server.url)
    wait_for(lambda: opened.inner_text("#count") == "0 of 4")
    yield opened
    assert opened.evaluate("document.documentElement.scrollWidth") <= width
    opened.close()
    assert problems == []


def labels(tmp_path: Path) -> list[list[int]]:
    """In the order of the frames."""
    table = VocDataset.open(tmp_path / "field").label_table
    return [sorted(table[i]) for i in sorted(table)]


def test_keys_confirm_undo_and_a_new_name(page: Any, tmp_path: Path) -> None:
    assert page.get_attribute("#toggles [data-name=cat]", "aria-pressed") == "true"  # as the engine saw it
    page.keyboard.press("2")
    page.keyboard.press("Enter")
    wait_for(lambda: page.inner_text("#count") == "1 of 4")
    assert labels(tmp_path) == [[1, 2]]
    page.keyboard.press("n")
    page.keyboard.type("sheep <b>1</b>")
    page.keyboard.press("Enter")
    wait_for(lambda: page.evaluate("document.querySelectorAll('#toggles button').length") == 3)
    page.keyboard.press("1")  # no cat
    page.keyboard.press("Enter")
    wait_for(lambda: page.inner_text("#count") == "2 of 4")
    assert labels(tmp_path) == [[1, 2], [3]]
    assert VocDataset.open(tmp_path / "field").classes.names[-1] == "sheep <b>1</b>"
    page.keyboard.press("z")
    wait_for(lambda: page.inner_text("#count") == "1 of 4")
    assert labels(tmp_path) == [[1, 2]]


def test_masks_by_button_and_the_reason_of_a_refusal(page: Any, tmp_path: Path) -> None:
    page.click("#toggles [data-name=dog]")
    page.click("#accept")
    wait_for(lambda: "accept it only where both agree" in page.inner_text("#error"))
    page.click("#toggles [data-name=dog]")
    page.click("#accept")
    wait_for(lambda: page.inner_text("#count") == "1 of 4")
    assert len(list((tmp_path / "field/SegmentationClass").iterdir())) == 1
    page.click("#next")
    wait_for(lambda: page.inner_text("#status") == "not labelled yet")
    page.keyboard.press("Enter")
    page.keyboard.press("Enter")
    page.keyboard.press("Enter")
    wait_for(lambda: page.inner_text("#count") == "4 of 4")
    assert labels(tmp_path) == [[1]] * 4
