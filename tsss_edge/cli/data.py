"""`tsss-edge data ...`: make, render, import, validate, download a VOC-layout set."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from tsss_edge.cli.options import Json, emit, flag, usage_errors

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Make, render, validate or download a dataset.")


Importable = Literal["coco", "yolo", "labelme", "cvat", "cityscapes", "rgb", "folders", "webdataset"]
Grouping = Literal["none", "folder", "video"]


@app.command()
def synth(
    out: Annotated[Path, typer.Option(help="Folder to make.")],
    train: Annotated[int, typer.Option(min=1, help="Training images.")] = 600,
    val: Annotated[int, typer.Option(min=1, help="Validation images.")] = 150,
    size: Annotated[int, typer.Option(min=32, help="Side of the square pictures, pixels.")] = 128,
    seed: Annotated[int, typer.Option(min=0, help="Another seed, another set; the same seed, the same bytes.")] = 0,
    json: Json = None,
) -> None:
    """Make the embedded set: scenes with 20 categories, exact masks, image-level labels.

    Example: tsss-edge data synth --out runs/synth --train 600 --val 150
    """
    from tsss_edge.data.synthetic import write_synthetic

    write_synthetic(out, train=train, val=val, size=size, seed=seed)
    result = {"data": str(out), "train": train, "val": val, "size": size, "seed": seed}
    emit(result, f"{out}: {train} training and {val} validation scenes of {size}x{size} (seed {seed})", json)


@app.command()
def render(
    out: Annotated[Path, typer.Option(help="Folder to make.")],
    layouts: Annotated[
        Path | None, typer.Option(help="Folder with label maps in SegmentationClass/ and perhaps classes.txt.")
    ] = None,
    lists: Annotated[
        Path | None, typer.Option(help="Folder of SPLIT.txt (default: LAYOUTS/ImageSets/Segmentation).")
    ] = None,
    source: Annotated[
        bool, flag("--source", "Make the source set of the 0% protocol: other shapes, other looks.")
    ] = False,
    look: Annotated[
        Literal["a", "b"], typer.Option(help="Family of looks; b has no texture or pair of tones of a.")
    ] = "a",
    split: Annotated[list[str] | None, typer.Option(help="Lists to render (default: train and val).")] = None,
    short_side: Annotated[int, typer.Option(min=32, help="Of the pictures, pixels.")] = 160,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same bytes.")] = 0,
    json: Json = None,
) -> None:
    """Paint appearances onto given label maps: real silhouettes, scales and co-occurrences, made-up looks.

    Example: tsss-edge data render --layouts voc2012_masks --lists voc2012_lists --short-side 128 --out runs/rendered
    """
    from tsss_edge.data.render import render_layouts, render_source
    from tsss_edge.data.voc import VocDataset

    if source == (layouts is not None):
        raise typer.BadParameter("give either --layouts DIR or --source")
    if source and look != "a":
        raise typer.BadParameter("--look is for --layouts; the source set has looks of its own")
    if layouts is None:
        render_source(out, short_side=short_side, seed=seed)
    else:
        splits = tuple(split or ("train", "val"))
        render_layouts(layouts, out, lists=lists, short_side=short_side, seed=seed, splits=splits, family=look)
    dataset = VocDataset.open(out)
    counts = {name: len(dataset.ids(name)) for name in dataset.splits}
    text = f"{out}: {', '.join(f'{count} {name}' for name, count in counts.items())} pictures (seed {seed})"
    emit({"data": str(out), "splits": counts, "short_side": short_side, "seed": seed}, text, json)


@app.command()
def fetch(
    name: Annotated[
        Literal["voc2012", "sbd"], typer.Argument(help="voc2012, or sbd, which adds masks to a fetched voc2012.")
    ],
    out: Annotated[Path, typer.Option(help="Folder of the set.")],
    mirror: Annotated[str | None, typer.Option(help="Address of a folder that holds the same archive.")] = None,
    keep_archive: Annotated[bool, flag("--keep-archive", "Do not delete the archive afterwards.")] = False,
    json: Json = None,
) -> None:
    """Download an official set, check its SHA-256 and lay it out; run it again to go on after an interruption.

    Example: tsss-edge data fetch voc2012 --out VOC2012
    """
    from tsss_edge.data.fetch import fetch as fetch_set

    report = fetch_set(name, out, mirror=mirror, keep_archive=keep_archive)
    emit(report, report.summary(), json)


@app.command(name="import")
def import_(
    kind: Annotated[Importable, typer.Argument(help="Format of the set.")],
    source: Annotated[
        str, typer.Argument(metavar="SRC", help="Folder of the set, its annotation file, or addresses of its shards.")
    ],
    out: Annotated[Path, typer.Option(help="Folder to make.")],
    classes: Annotated[
        Path | None, typer.Option(help="TOML that renames and merges classes, or camvid11. See docs/own-data.md.")
    ] = None,
    names: Annotated[
        Path | None, typer.Option(help="folders, webdataset: class names, a line each, the first is id 0.")
    ] = None,
    palette: Annotated[
        str | None,
        typer.Option(metavar="FILE|camvid", help="rgb: lines `red green blue name` (default: labelmap.txt)."),
    ] = None,
    images: Annotated[
        str | None, typer.Option(help="coco, rgb, folders: pictures, from SRC on (default: a usual name).")
    ] = None,
    masks: Annotated[str | None, typer.Option(help="rgb, folders: masks below SRC.")] = None,
    image_labels: Annotated[
        bool, typer.Option("--image-labels", help="Only which classes a picture shows: tags, a CSV, a folder a class.")
    ] = False,
    val: Annotated[
        float | None, typer.Option(min=0.01, max=0.9, help="Hold this share back (default: the set's own lists).")
    ] = None,
    group: Annotated[
        Grouping, typer.Option(help="What --val must not split: frames of one video, one folder.")
    ] = "none",
    seed: Annotated[int, typer.Option(min=0, help="Of --val.")] = 0,
    copy: Annotated[bool, typer.Option("--copy", help="Copy the pictures instead of linking them.")] = False,
    json: Json = None,
) -> None:
    """Make a VOC-layout set from another format: masks are drawn, pictures linked, lists written.

    Example: tsss-edge data import coco coco2017 --out runs/coco

    Example: tsss-edge data import webdataset 'https://store/city-{000000..000031}.tar' --out runs/city
    """
    from tsss_edge.data.importers import import_set
    from tsss_edge.data.shards import import_shards

    if kind == "webdataset":
        if classes or palette or images or masks or image_labels or val is not None or copy or group != "none" or seed:
            raise typer.BadParameter(
                "shards say everything themselves; besides --out, --names alone goes with webdataset"
            )
        shards = import_shards(source, out, names=names)
        return emit(shards, shards.summary(), json)
    with usage_errors():
        report = import_set(
            kind,
            Path(source),
            out,
            classes=classes,
            names=names,
            palette=palette,
            images=images,
            masks=masks,
            image_labels=image_labels,
            val=val,
            group=group,
            seed=seed,
            copy=copy,
        )
    emit(report, report.summary(), json)


@app.command()
def shards(
    data: Annotated[Path, typer.Argument(help="Dataset folder in PASCAL VOC layout.")],
    out: Annotated[Path, typer.Option(help="Folder of the shards.")],
    each: Annotated[int, typer.Option(min=1, help="Pictures of a shard.")] = 1000,
    json: Json = None,
) -> None:
    """Write a set as WebDataset shards (SPLIT-000000.tar, classes.txt), for a remote store; `data import webdataset` reads them.

    Example: tsss-edge data shards runs/city --out city-shards
    """
    from tsss_edge.data.shards import write_shards

    report = write_shards(data, out, each=each)
    emit(report, report.summary(), json)


@app.command()
def check(
    data: Annotated[Path, typer.Argument(help="Dataset folder in PASCAL VOC layout.")],
    split: Annotated[list[str] | None, typer.Option(help="Only these lists (default: all).")] = None,
    json: Json = None,
) -> None:
    """Read every picture and mask of a dataset and name each problem.

    Layout: JPEGImages/, SegmentationClass/ (index PNG, 255 = ignore), ImageSets/Segmentation/*.txt, optional
    classes.txt, image_labels.csv and Annotations/*.xml.

    Example: tsss-edge data check ../VOC2012
    """
    from tsss_edge.data.check import check_dataset
    from tsss_edge.errors import DataError

    report = check_dataset(data, split)
    emit(report, report.summary(), json)
    if report.problems:
        raise DataError(f"{data}: {len(report.problems)} problem(s), the first: {report.problems[0]}")
