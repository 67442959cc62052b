"""`tsss-edge train ...`, `label`, `adapt`, `reproduce`: from a dataset to checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from tsss_edge.cli.common import Data, Json, emit, names, parse_size, usage_errors

if TYPE_CHECKING:
    from tsss_edge.artifacts import Checkpoint
    from tsss_edge.config import TrainConfig

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Train one network, or the whole method.")

Out = Annotated[Path, typer.Option("--out", help="Run folder: best.pt, last.pt, config.toml, log.jsonl.")]
Arch = Annotated[str | None, typer.Option(help="edge-s (default), edge-m, vgg16-largefov.")]
Size = Annotated[str | None, typer.Option(metavar="N|WxH", help="Network input (default: the pictures' typical size).")]
Epochs = Annotated[int | None, typer.Option(min=1, help="Passes over the data.")]
Config = Annotated[Path | None, typer.Option(help="TOML file with any TrainConfig setting; options win over it.")]
Seed = Annotated[int | None, typer.Option(help="Random seed.")]
Encoder = Annotated[
    Path | None,
    typer.Option(
        "--encoder-weights", help="Start from these: a checkpoint of the same --arch, or torchvision's VGG16 (.pth)."
    ),
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on from last.pt in --out.")]
Strong = Annotated[str | None, typer.Option(metavar="A,B,...", help="Categories with pixel masks.")]
Fraction = Annotated[
    float, typer.Option("--strong-fraction", min=0, max=1, help="Or: this share of them, in id order.")
]


Source = Annotated[Path | None, typer.Option(help="Take L-Net's masks from another set (the 0% protocol).")]
Adversarial = Annotated[bool, typer.Option(help="Train with the discriminator.")]
MeanTeacher = Annotated[bool, typer.Option(help="Let the averaged network correct the labels of weak images.")]
CutMix = Annotated[bool, typer.Option(help="Paste rectangles of other pictures in (arXiv 1905.04899).")]


def register(parent: typer.Typer) -> None:
    parent.add_typer(app, name="train")
    for command in (label, adapt, reproduce):
        parent.command()(command)


@app.command()
def supervised(
    data: Data,
    out: Out,
    arch: Arch = None,
    size: Size = None,
    epochs: Epochs = None,
    config: Config = None,
    seed: Seed = None,
    encoder_weights: Encoder = None,
    cutmix: CutMix = False,
    qat: Annotated[
        Path | None, typer.Option(metavar="CALIB", help="Fine-tune for this INT8 ONNX file, from its own checkpoint.")
    ] = None,
    resume: Resume = False,
    json: Json = None,
) -> None:
    """Train on the masks of all categories: the baseline, and the way for fully labelled sets.

    Example: tsss-edge train supervised --data camvid --arch edge-s --size 480x352 --epochs 40 --out runs/camvid

    Example: tsss-edge train supervised --data camvid --qat runs/camvid/fused.int8.onnx --out runs/camvid-qat
    """
    if qat is not None:
        from tsss_edge.train.qat import QAT_EPOCHS, train_qat

        settings = _config(config, data, arch, size, epochs or (None if config else QAT_EPOCHS), seed)
        _emit(train_qat(settings, data, out, calib=qat, resume=resume), json)
        return
    from tsss_edge.train.supervised import train_supervised

    settings = _config(config, data, arch, size, epochs, seed, encoder_weights)
    _emit(train_supervised(settings, data, out, cutmix=cutmix, resume=resume), json)


@app.command()
def lnet(
    data: Data,
    out: Out,
    strong: Strong = None,
    strong_fraction: Fraction = 0.5,
    source: Source = None,
    arch: Arch = None,
    size: Size = None,
    epochs: Epochs = None,
    config: Config = None,
    encoder_weights: Encoder = None,
    resume: Resume = False,
    json: Json = None,
) -> None:
    """Train L-Net: class-agnostic segmentation from the strong categories' masks.

    Example: tsss-edge train lnet --data runs/synth --strong-fraction 0.5 --out runs/lnet
    """
    from tsss_edge.train.lnet import train_lnet

    settings = _config(config, data, arch, size, epochs, None, encoder_weights)
    chosen = _strong(data, strong, strong_fraction, source)
    _emit(train_lnet(settings, data, out, strong=chosen, source=source, resume=resume), json)


@app.command()
def pnet(
    data: Data,
    out: Out,
    lnet: Annotated[Path, typer.Option(help="P-Net starts here: an L-Net run, or a P-Net run that labelled again.")],
    labels: Annotated[Path, typer.Option(help="Folder that `tsss-edge label` wrote.")],
    strong: Strong = None,
    strong_fraction: Fraction = 0.5,
    adversarial: Adversarial = True,
    mean_teacher: MeanTeacher = False,
    cutmix: CutMix = True,
    size: Size = None,
    epochs: Epochs = None,
    config: Config = None,
    resume: Resume = False,
    json: Json = None,
) -> None:
    """Train P-Net: all categories, from true masks (strong), transferred labels (weak) and a discriminator.

    Example: tsss-edge train pnet --data runs/synth --lnet runs/lnet --labels runs/labels --out runs/pnet
    """
    from tsss_edge.artifacts import Checkpoint
    from tsss_edge.train.pnet import Switches, train_pnet

    arch = Checkpoint.load(lnet).meta.arch
    settings = _config(config, data, arch, size, epochs, None)
    chosen = _strong(data, strong, strong_fraction)
    switches = Switches(adversarial=adversarial, mean_teacher=mean_teacher, cutmix=cutmix)
    checkpoint = train_pnet(
        settings, data, out, lnet=lnet, labels=labels, strong=chosen, switches=switches, resume=resume
    )
    _emit(checkpoint, json)


@app.command(name="all")
def train_everything(
    data: Data,
    out: Out,
    strong: Strong = None,
    strong_fraction: Fraction = 0.5,
    source: Source = None,
    adversarial: Adversarial = True,
    mean_teacher: MeanTeacher = False,
    cutmix: CutMix = True,
    relabel: Annotated[bool, typer.Option(help="Let a first P-Net label the weak images again.")] = True,
    arch: Arch = None,
    size: Size = None,
    epochs: Epochs = None,
    lnet_epochs: Annotated[int | None, typer.Option(min=1, help="Of L-Net (default: half of --epochs).")] = None,
    config: Config = None,
    seed: Seed = None,
    encoder_weights: Encoder = None,
    resume: Resume = False,
    json: Json = None,
) -> None:
    """The whole method: L-Net, classifier, labels for weak images, a draft of P-Net that labels again, P-Net.

    The result is OUT/best.pt. Of the epochs L-Net takes half, the classifier and the draft a quarter each, P-Net the rest; with
    --source, where no category is strong unless --strong names some, L-Net takes a quarter.

    Example: tsss-edge train all --data runs/synth --strong-fraction 0.5 --out runs/method
    """
    from tsss_edge.train.all import train_all
    from tsss_edge.train.pnet import Switches

    settings = _config(config, data, arch, size, epochs, seed, encoder_weights)
    chosen = _strong(data, strong, strong_fraction, source)
    switches = Switches(adversarial=adversarial, mean_teacher=mean_teacher, cutmix=cutmix)
    checkpoint = train_all(
        settings,
        data,
        out,
        strong=chosen,
        source=source,
        switches=switches,
        relabel=relabel,
        lnet_epochs=lnet_epochs,
        resume=resume,
    )
    _emit(checkpoint, json)


def label(
    lnet: Annotated[
        Path, typer.Option(help="Run folder of `train lnet`, `train all` or, to label again, `train pnet`.")
    ],
    data: Data,
    out: Annotated[Path, typer.Option(help="Folder for the masks (VOC layout).")],
    split: Annotated[str, typer.Option(help="A list in ImageSets/Segmentation.")] = "train",
    json: Json = None,
) -> None:
    """Pixel annotations for weak images: L-Net's foreground, class activation maps, self-diffusion; or P-Net's answer.

    Example: tsss-edge label --lnet runs/method --data runs/synth --out runs/labels
    """
    from tsss_edge.train.label import write_labels

    report = write_labels(lnet, data, out, split=split)
    emit(report, report.summary(), json)


def adapt(
    run: Annotated[Path, typer.Argument(help="A run whose network tells categories apart.")],
    data: Data,
    new_class: Annotated[str, typer.Option(help="Name of the category, the last line of DATA's classes.txt.")],
    out: Out,
    epochs: Epochs = None,
    resume: Resume = False,
    json: Json = None,
) -> None:
    """Add one category to a trained run from image-level labels alone, and report old and new categories apart.

    Example: tsss-edge adapt runs/method --data more-pictures --new-class drone --out runs/with-drone
    """
    from tsss_edge.train.adapt import adapt as add_category

    report = add_category(run, data, out, new_class=new_class, epochs=epochs, resume=resume)
    emit(report, report.summary(), json)


def reproduce(
    data: Data,
    out: Annotated[Path, typer.Option(help="Folder of all runs, table.json and table.html.")],
    source: Annotated[Path | None, typer.Option(help="Masks of other categories, for the 0% protocol.")] = None,
    seeds: Annotated[str, typer.Option(metavar="N,N,...", help="Random seeds.")] = "0,1,2",
    strong: Strong = None,
    rows: Annotated[str | None, typer.Option(metavar="A,B,...", help="Rows, such as 50:full (default: all).")] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Networks to train at once, each in a process of its own.")] = 1,
    arch: Arch = None,
    size: Size = None,
    epochs: Epochs = None,
    config: Config = None,
    json: Json = None,
) -> None:
    """The paper's table: supervised, 50% and 0% strong, with each part on and off. Run it again to go on.

    Example: tsss-edge reproduce --data runs/rendered --source runs/source --seeds 0 --jobs 2 --out runs/table
    """
    from tsss_edge.reproduce import reproduce as make_table

    settings = _config(config, data, arch, size, epochs, None)
    with usage_errors():
        numbers = [int(seed) for seed in names(seeds)]
        chosen = names(rows) if rows is not None else None
        categories = names(strong) if strong is not None else None
        table = make_table(settings, data, out, source=source, seeds=numbers, strong=categories, rows=chosen, jobs=jobs)
    emit(table, table.summary(), json)


def _config(
    config: Path | None,
    data: Path,
    arch: str | None,
    size: str | None,
    epochs: int | None,
    seed: int | None,
    encoder_weights: Path | None = None,
) -> TrainConfig:
    from tsss_edge.config import TrainConfig, read_toml
    from tsss_edge.data.voc import VocDataset, suggested_size_hw

    base = read_toml(config, TrainConfig) if config else TrainConfig()
    with usage_errors():
        changes = {"arch": arch, "epochs": epochs, "seed": seed, "size_hw": parse_size(size) if size else None}
        changes["encoder_weights"] = str(encoder_weights) if encoder_weights else None
        if not config and not size:
            changes["size_hw"] = suggested_size_hw(VocDataset.open(data))
        settings = msgspec.structs.replace(base, **{k: v for k, v in changes.items() if v is not None})
        _ = settings.preprocess  # refuses sizes that are not multiples of 32
    return settings


def _strong(data: Path, chosen: str | None, fraction: float, source: Path | None = None) -> tuple[str, ...]:
    from tsss_edge.data.supervision import strong_from_fraction
    from tsss_edge.data.voc import VocDataset

    classes = VocDataset.open(data).classes
    with usage_errors():
        if chosen is None:
            return () if source else tuple(strong_from_fraction(classes, fraction))
        classes.ids(names(chosen))
        return names(chosen)


def _emit(checkpoint: Checkpoint, json: str | None) -> None:
    from tsss_edge.train.distributed import this_process

    if not this_process().writes:
        return
    meta = checkpoint.meta
    scores = ", ".join(f"{key} {value:.2f}" for key, value in meta.metrics.items())
    text = f"{checkpoint.path}: {meta.stage} {meta.arch}, {len(meta.classes)} classes{': ' if scores else ''}{scores}"
    result = {
        "checkpoint": str(checkpoint.path),
        "sha256": checkpoint.sha256,
        "stage": meta.stage,
        "metrics": meta.metrics,
    }
    emit(result, text, json)
