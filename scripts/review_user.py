"""A scripted user labels collected frames on the review page in Chromium -> pictures an hour, screenshots, what is on disk.

python scripts/review_user.py field --labels truth.json --new sheep --shots docs/images --json review.json

truth.json: picture id -> names of the categories in it. For each picture the user reads the toggles, presses the keys of those that
are wrong, types the new category once, and presses Enter. It does not look at pictures: a person's time comes on top.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from pathlib import Path
from typing import Any

from playwright.sync_api import sync_playwright

from tsss_edge.data.voc import VocDataset
from tsss_edge.review import open_review


def wait(page: Any, expression: str) -> None:
    while not page.evaluate(expression):
        time.sleep(0.005)


def label_all(page: Any, truth: dict[str, list[str]], new: str) -> list[float]:
    """Label every open picture; milliseconds from one confirmation to the next."""
    times = []
    total = page.evaluate("Number(document.getElementById('progress').max)")
    while (done := page.evaluate("Number(document.getElementById('progress').value)")) < total:
        started = time.monotonic()
        shown = page.evaluate("document.getElementById('picture').dataset.id")
        wanted = set(truth[shown])
        buttons = page.evaluate(
            "[...document.querySelectorAll('#toggles button')].map((b) => [b.dataset.name, b.ariaPressed, b.textContent])"
        )
        if new in wanted and new not in [name for name, *_ in buttons]:
            page.keyboard.press("n")
            page.keyboard.type(new)
            page.keyboard.press("Enter")
            wait(page, f"!!document.querySelector('#toggles [data-name={json.dumps(new)}][aria-pressed=true]')")
        for n, (name, pressed, _) in enumerate(buttons):
            if (pressed == "true") != (name in wanted):
                if n < 9:
                    page.keyboard.press(str(n + 1))
                else:
                    page.click(f"#toggles [data-name={json.dumps(name)}]")
        page.keyboard.press("Enter")
        wait(page, f"Number(document.getElementById('progress').value) > {done}")
        wait(page, f"document.getElementById('picture').dataset.id !== {json.dumps(shown)} || {done + 1} === {total}")
        times.append(1000 * (time.monotonic() - started))
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--labels", type=Path, required=True)
    parser.add_argument("--new", required=True)
    parser.add_argument("--shots", type=Path)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    truth = json.loads(args.labels.read_text())
    server = open_review(args.folder, "0")
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"]
        )
        page = chromium.new_page(viewport={"width": 1280, "height": 800})
        page.goto(server.url)
        wait(page, "document.getElementById('picture').naturalWidth > 0")
        if args.shots:
            for name, width, height in (("desktop", 1280, 800), ("phone", 390, 844)):
                page.set_viewport_size({"width": width, "height": height})
                page.wait_for_timeout(300)
                page.screenshot(path=args.shots / f"review-{name}.png")
            page.set_viewport_size({"width": 1280, "height": 800})
        started = time.monotonic()
        times = label_all(page, truth, args.new)
        seconds = time.monotonic() - started
        chromium.close()
    server.close()
    dataset = VocDataset.open(args.folder)
    found = {i: sorted(dataset.classes.names[n] for n in ids) for i, ids in dataset.label_table.items()}
    wrong = [i for i in found if found[i] != sorted(truth[i])]
    times.sort()
    result = {
        "pictures": len(times),
        "seconds": round(seconds, 2),
        "per_hour": round(3600 * len(times) / seconds),
        "p50_ms": round(times[len(times) // 2], 1),
        "p95_ms": round(times[int(0.95 * len(times))], 1),
        "wrong_on_disk": len(wrong),
    }
    print(json.dumps(result))
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
