"""`tsss-edge train ...`: from a dataset to checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tsss_edge.cli import options as opt

if TYPE_CHECKING:
    from tsss_edge.artifacts import Checkpoint

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Train one network, or the whole method.")

Source = Annotated[Path | None, typer.Option(help="Take L-Net's masks from another set (the 0% protocol).")]
Adversarial = Annotated[bool, typer.Option(help="Train with the discriminator.")]
JudgeLw = Annotated[bool, opt.flag("--judge", "Let a D that judges quality weigh the transferred labels.")]
MeanTeacher = Annotated[bool, typer.Option(help="Let the averaged network correct the labels of weak images.")]
Teacher = Annotated[
    str | None,
    typer.Option(metavar="RUN,RUN,...", help="Learn the answers of these networks beside the masks."),
]
CutMix = Annotated[bool, typer.Option(help="Paste rectangles of other pictures in (arXiv 1905.04899).")]


@app.command()
@opt.on_gpu
def supervised(
    data: opt.Data,
    out: opt.Out,
    arch: opt.Arch = None,
    size: opt.Size = None,
    epochs: opt.Epochs = None,
    lr: opt.Lr = None,
    batch: opt.Batch = None,
    given: opt.Given = None,
    config: opt.Config = None,
    seed: opt.Seed = None,
    encoder_weights: opt.Encoder = None,
    init_from: opt.InitFrom = None,
    teacher: Teacher = None,
    unlabelled: Annotated[
        str | None, typer.Option(metavar="DIR,DIR,...", help="Sets whose pictures --teacher answers; labels unread.")
    ] = None,
    cutmix: CutMix = False,
    qat: Annotated[
        Path | None,
        typer.Option(
            metavar="CALIB",
            help="Fine-tune for this INT8 ONNX file, from its own checkpoint, at a twentieth of the learning rate.",
        ),
    ] = None,
    resume: opt.Resume = False,
    json: opt.Json = None,
) -> None:
    """Train on the masks of all categories: the baseline, and the way for fully labelled sets.

    Example: tsss-edge train supervised --data camvid --arch edge-s --size 480x352 --epochs 40 --out runs/camvid

    Example: tsss-edge train supervised --data camvid --arch edge-m --teacher runs/camvid-lite0 --out runs/camvid-student

    Example: tsss-edge train supervised --data camvid --qat runs/camvid/fused.int8.onnx --out runs/camvid-qat
    """
    if qat is not None:
        if cutmix or encoder_weights or init_from or arch or size or teacher or unlabelled:
            raise typer.BadParameter(
                "--qat goes on from CALIB's checkpoint, without --cutmix, --encoder-weights, --init-from, --teacher, --unlabelled, "
                "--arch, --size"
            )
        of_checkpoint = ("arch", "size_hw", "fit", "init_from", "encoder_weights", "teachers")
        opt.refuse_settings(given, of_checkpoint, "--qat goes on from CALIB's checkpoint as it is")
        from tsss_edge.train.qat import QAT_EPOCHS, train_qat

        named = opt.settings_named(given)
        passes = epochs or (None if config or "epochs" in named else QAT_EPOCHS)
        settings = opt.training_settings(config, data, None, None, passes, seed, lr=lr, batch=batch, given=given)
        rate_given = config or lr or "lr" in named or "optimizer" in named
        _emit(train_qat(settings, data, out, calib=qat, as_trained=not rate_given, resume=resume), json)
        return
    from msgspec.structs import replace

    from tsss_edge.train.supervised import train_supervised

    settings = opt.training_settings(
        config, data, arch, size, epochs, seed, encoder_weights, init_from, lr=lr, batch=batch, given=given
    )
    if teacher:
        settings = replace(settings, teachers=tuple(opt.names(teacher)))
    others = [Path(name) for name in opt.names(unlabelled or "")]
    _emit(train_supervised(settings, data, out, unlabelled=others, cutmix=cutmix, resume=resume), json)


@app.command()
@opt.on_gpu
def lnet(
    data: opt.Data,
    out: opt.Out,
    strong: opt.Strong = None,
    strong_fraction: opt.Fraction = 0.5,
    source: Source = None,
    arch: opt.Arch = None,
    size: opt.Size = None,
    epochs: opt.Epochs = None,
    lr: opt.Lr = None,
    batch: opt.Batch = None,
    given: opt.Given = None,
    config: opt.Config = None,
    encoder_weights: opt.Encoder = None,
    init_from: opt.InitFrom = None,
    resume: opt.Resume = False,
    json: opt.Json = None,
) -> None:
    """Train L-Net: class-agnostic segmentation from the strong categories' masks. Then the classifier that `label` needs.

    The classifier learns image-level labels, goes on from L-Net and stands in OUT/classifier.

    Example: tsss-edge train lnet --data runs/synth --strong-fraction 0.5 --out runs/lnet
    """
    from tsss_edge.train.classifier import train_classifier
    from tsss_edge.train.lnet import train_lnet

    settings = opt.training_settings(
        config, data, arch, size, epochs, None, encoder_weights, init_from, lr=lr, batch=batch, given=given
    )
    chosen = opt.strong_categories(data, strong, strong_fraction, source)
    checkpoint = train_lnet(settings, data, out, strong=chosen, source=source, resume=resume)
    train_classifier(settings, data, out / "classifier", lnet=out, resume=resume)
    _emit(checkpoint, json)


@app.command()
@opt.on_gpu
def pnet(
    data: opt.Data,
    out: opt.Out,
    lnet: Annotated[Path, typer.Option(help="P-Net starts here: an L-Net run, or a P-Net run that labelled again.")],
    labels: Annotated[Path, typer.Option(help="Folder that `tsss-edge label` wrote.")],
    strong: Annotated[
        str | None,
        typer.Option(
            metavar="A,B,...", help="Categories with pixel masks (default: those that the labels were made with)."
        ),
    ] = None,
    strong_fraction: Annotated[float | None, typer.Option(min=0, max=1, help="Or: this share, in id order.")] = None,
    adversarial: Adversarial = False,
    judge: JudgeLw = False,
    mean_teacher: MeanTeacher = False,
    cutmix: CutMix = True,
    size: opt.Size = None,
    epochs: opt.Epochs = None,
    lr: opt.Lr = None,
    batch: opt.Batch = None,
    given: opt.Given = None,
    config: opt.Config = None,
    resume: opt.Resume = False,
    json: opt.Json = None,
) -> None:
    """Train P-Net: all categories, from true masks (strong) and transferred labels (weak).

    Example: tsss-edge train pnet --data runs/synth --lnet runs/lnet --labels runs/labels --out runs/pnet
    """
    from tsss_edge.artifacts import Checkpoint
    from tsss_edge.train.pnet import Switches, strong_of, train_pnet

    of_lnet = ("arch", "init_from", "encoder_weights")
    opt.refuse_settings(given, of_lnet, "P-Net goes on from --lnet")
    arch = Checkpoint.load(lnet).meta.arch
    settings = opt.training_settings(config, data, arch, size, epochs, None, lr=lr, batch=batch, given=given)
    if strong is None and strong_fraction is None:
        chosen = strong_of(lnet, labels)
    else:
        chosen = opt.strong_categories(data, strong, strong_fraction or 0.0)
    switches = Switches(adversarial=adversarial, judge=judge, mean_teacher=mean_teacher, cutmix=cutmix)
    made = train_pnet(settings, data, out, lnet=lnet, labels=labels, strong=chosen, switches=switches, resume=resume)
    _emit(made, json)


@app.command()
@opt.on_gpu
def distill(
    data: Annotated[str, typer.Option(metavar="DIR,DIR,...", help="Photographs: sets in VOC layout, labels unread.")],
    out: opt.Out,
    teacher: Annotated[str, typer.Option(help="`imagenet` (lite0), or a run that has seen photographs.")] = "imagenet",
    blocks_first: Annotated[
        float, typer.Option(min=0, max=1, help="Share of training in which plain0's blocks learn by themselves.")
    ] = 0.0,
    arch: opt.Arch = None,
    size: opt.Size = None,
    epochs: opt.Epochs = None,
    lr: opt.Lr = None,
    batch: opt.Batch = None,
    given: opt.Given = None,
    config: opt.Config = None,
    seed: opt.Seed = None,
    resume: opt.Resume = False,
    json: opt.Json = None,
) -> None:
    """Let the encoder of another architecture learn what a teacher sees, without labels. Go on with `--init-from OUT`.

    Example: tsss-edge train distill --data voc_photos,ccp_clothing --arch plain0 --size 224 --epochs 20 --out runs/plain0
    """
    from tsss_edge.train.distill import train_distilled

    folders = [Path(name) for name in opt.names(data)]
    if not folders:
        raise typer.BadParameter("--data: name at least one set")
    settings = opt.training_settings(config, folders[0], arch, size, epochs, seed, lr=lr, batch=batch, given=given)
    made = train_distilled(settings, folders, out, teacher=teacher, blocks_first=blocks_first, resume=resume)
    _emit(made, json)


@app.command(name="all")
@opt.on_gpu
def train_everything(
    data: opt.Data,
    out: opt.Out,
    strong: opt.Strong = None,
    strong_fraction: opt.Fraction = 0.5,
    source: Source = None,
    adversarial: Adversarial = False,
    judge: JudgeLw = False,
    mean_teacher: MeanTeacher = False,
    cutmix: CutMix = True,
    relabel: Annotated[bool, typer.Option(help="Let a first P-Net label the weak images again.")] = True,
    peak_floor: opt.PeakFloor = None,
    add_above: opt.AddAbove = None,
    arch: opt.Arch = None,
    size: opt.Size = None,
    epochs: opt.Epochs = None,
    lr: opt.Lr = None,
    batch: opt.Batch = None,
    given: opt.Given = None,
    lnet_epochs: Annotated[int | None, typer.Option(min=1, help="Of L-Net (default: half of --epochs).")] = None,
    config: opt.Config = None,
    seed: opt.Seed = None,
    encoder_weights: opt.Encoder = None,
    init_from: opt.InitFrom = None,
    resume: opt.Resume = False,
    json: opt.Json = None,
) -> None:
    """The whole method: L-Net, classifier, labels for weak images, a draft of P-Net that labels again, P-Net.

    The result is OUT/best.pt. Of the epochs L-Net takes half, the classifier and the draft a quarter each, P-Net the rest; with
    --source, where no category is strong unless --strong names some, L-Net takes a quarter.

    Example: tsss-edge train all --data runs/synth --strong-fraction 0.5 --out runs/method
    """
    from tsss_edge.label.annotate import LabelConfig
    from tsss_edge.train.all import train_all
    from tsss_edge.train.pnet import Switches

    settings = opt.training_settings(
        config, data, arch, size, epochs, seed, encoder_weights, init_from, lr=lr, batch=batch, given=given
    )
    chosen = opt.strong_categories(data, strong, strong_fraction, source)
    switches = Switches(adversarial=adversarial, judge=judge, mean_teacher=mean_teacher, cutmix=cutmix)
    parts: dict[str, Any] = {"strong": chosen, "switches": switches, "resume": resume, "relabel": relabel}
    labels = LabelConfig(peak_floor=peak_floor, add_above=add_above)
    _emit(train_all(settings, data, out, source=source, lnet_epochs=lnet_epochs, labels=labels, **parts), json)


def _emit(checkpoint: Checkpoint, json: str | None) -> None:
    from tsss_edge.ranks import this_process

    if not this_process().writes:
        return
    meta = checkpoint.meta
    scores = ", ".join(f"{key} {value:.2f}" for key, value in meta.metrics.items())
    text = f"{checkpoint.path}: {meta.stage} {meta.arch}, {len(meta.classes)} classes{': ' if scores else ''}{scores}"
    facts = {"sha256": checkpoint.sha256, "stage": meta.stage, "metrics": meta.metrics}
    opt.emit({"checkpoint": str(checkpoint.path), **facts}, text, json)
