"""`review`: image-level labels for collected frames."""

from __future__ import annotations

import sys
from contextlib import closing
from pathlib import Path
from typing import Annotated

import typer


def review(
    folder: Annotated[Path, typer.Argument(help="What `stream --collect` wrote, or any set in VOC layout.")],
    web: Annotated[
        str, typer.Option(metavar="[HOST:]PORT", help="Where the page is; on another host than loopback with a token.")
    ] = "8090",
) -> None:
    """Label collected frames on a page: the predicted categories are toggles, 1 to 9 switch them, Enter goes on, Z takes back.

    Every answer is in DIR/image_labels.csv at once. Ctrl-C ends it. Then: tsss-edge adapt RUN --data OLD --collected DIR ...

    Example: tsss-edge review field --web 8090
    """
    from tsss_edge.review import open_review

    with closing(open_review(folder, web)) as server:
        sys.stderr.write(f"review: {server.url} (Ctrl-C ends it)\n")
        try:
            server.wait()
        except KeyboardInterrupt:
            state = server.session.state()
            typer.echo(f"{state.done} of {len(state.pictures)} pictures labelled in {folder / 'image_labels.csv'}")
