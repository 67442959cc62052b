"""Data sets in the formats of others -> VOC layout, the one that everything else here reads."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, get_args

from tsss_edge.data.importers.found import Found
from tsss_edge.data.importers.to_voc import Grouping, ImportReport
from tsss_edge.errors import DataError
from tsss_edge.files import edge

Format = Literal["coco", "yolo", "labelme", "cvat", "cityscapes", "rgb", "folders"]
FORMATS: tuple[str, ...] = get_args(Format)
READS: dict[str, tuple[Format, ...]] = {  # options that only some formats have
    "names": ("folders",),
    "palette": ("rgb",),
    "images": ("coco", "rgb", "folders"),
    "masks": ("rgb", "folders"),
}


def import_set(
    kind: Format,
    source: Path,
    out: Path,
    *,
    classes: Path | None = None,
    names: Path | None = None,
    palette: str | None = None,
    images: str | None = None,
    masks: str | None = None,
    image_labels: bool = False,
    val: float | None = None,
    group: Grouping = "none",
    seed: int = 0,
    copy: bool = False,
) -> ImportReport:
    """Make a VOC-layout set at `out` from `source`.

    Args:    classes: class file that renames and merges (`classmap`); `names`: names by id, for `folders`.
             palette: for `rgb`. images, masks: folders, from `source` on: of `rgb`, `folders` and, pictures alone, `coco`.
             image_labels: no masks, only which classes a picture shows. val: share to hold back, by `group`.
             copy: copy pictures; otherwise they are linked.
    Raises:  DataError: whatever is wrong with the set, named. ValueError: options that do not go together.
    """
    from tsss_edge.data.importers.classmap import class_map
    from tsss_edge.data.importers.to_voc import choose_splits, write_voc

    if not source.exists():
        raise DataError(f"{source}: no such file or folder")
    if out.resolve() == source.resolve():
        raise DataError(f"{out}: is the source itself; name another folder with --out")
    if kind == "rgb" and image_labels:
        raise ValueError("rgb sets have masks; --image-labels is for coco, yolo, labelme, cvat and folders")
    given = {"names": names, "palette": palette, "images": images, "masks": masks}
    for option, kinds in READS.items():
        if given[option] is not None and kind not in kinds:
            raise ValueError(f"--{option} is for {', '.join(kinds)}; a {kind} set has no use for it")
    with edge(source, f"{kind} set", "see `tsss-edge data import --help`", DataError):
        found = _read(kind, source, names=names, palette=palette, images=images, masks=masks, image_labels=image_labels)
    splits, notes = choose_splits(found, val, group, seed)
    recipe = {
        "format": kind, "source": str(source.resolve()), "classes": str(classes or ""), "names": str(names or ""),
        "palette": palette or "", "image_labels": image_labels, "val": val, "group": group, "seed": seed, "copy": copy,
    }  # fmt: skip
    recipe |= {option: given[option] for option in ("images", "masks") if given[option] is not None}
    return write_voc(found, class_map(found, classes), out, recipe, splits=splits, copy=copy, notes=notes)


def _read(
    kind: Format,
    source: Path,
    *,
    names: Path | None,
    palette: str | None,
    images: str | None,
    masks: str | None,
    image_labels: bool,
) -> Found:
    if kind == "coco":
        from tsss_edge.data.importers.coco import read_coco

        return read_coco(source, images=images, tags_only=image_labels)
    if kind == "yolo":
        from tsss_edge.data.importers.yolo import read_yolo

        return read_yolo(source, tags_only=image_labels)
    if kind == "labelme":
        from tsss_edge.data.importers.labelme import read_labelme

        return read_labelme(source, tags_only=image_labels)
    if kind == "cvat":
        from tsss_edge.data.importers.cvat import read_cvat

        return read_cvat(source, tags_only=image_labels)
    if kind == "cityscapes":
        from tsss_edge.data.importers.cityscapes import read_cityscapes

        return read_cityscapes(source, tags_only=image_labels)
    if kind == "rgb":
        from tsss_edge.data.importers.rgb import read_rgb

        return read_rgb(source, palette, images=images, masks=masks)
    from tsss_edge.data.importers.folders import read_folders, read_tags

    return read_tags(source) if image_labels else read_folders(source, names, images=images, masks=masks)
