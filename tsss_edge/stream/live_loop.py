"""`stream`: an engine, a source and sinks -> live masks, until the source ends, Ctrl-C, or something goes wrong."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path

from tsss_edge.artifacts import Classes
from tsss_edge.backends import AsyncBackend, open_backend
from tsss_edge.backends.triton_client import give_up, state_of
from tsss_edge.drawing import Draw, Drawer
from tsss_edge.field.collector import CollectPlan
from tsss_edge.field.rules import read_rules
from tsss_edge.stream.encoders import Preset
from tsss_edge.stream.engine_slot import EngineSlot, Served
from tsss_edge.stream.field_watch import FieldWatch
from tsss_edge.stream.frames import FrameResult, Sink, Source, bgr_of
from tsss_edge.stream.opening import (
    engine_names,
    open_engine,
    open_field,
    open_served,
    open_stages,
    require_gate,
    require_shadow,
)
from tsss_edge.stream.pipeline import Pipeline, timed
from tsss_edge.stream.process import Interrupts, decode_threads, opencv_threads
from tsss_edge.stream.recorder import Recorder, StreamReport
from tsss_edge.stream.reuse import Reuse
from tsss_edge.stream.rollout import Rollout, RolloutPlan
from tsss_edge.stream.sinks import (
    WindowSink,
    open_sinks,
    require_h264_sink,
    require_sinks,
    require_sound_sink,
    wants_blend,
    write_to,
)
from tsss_edge.stream.sources import Policy, is_live, open_source, require_rate, require_sound, require_source
from tsss_edge.stream.status import StatusLine
from tsss_edge.stream.thread_plan import open_for_file
from tsss_edge.stream.truth import TruthFolder
from tsss_edge.stream.uris import parse_source, require_other_place
from tsss_edge.stream.watch import Checks

PARITY_EVERY = 30


def stream(
    engine: Path,
    source: str,
    sinks: Sequence[str],
    *,
    reference: Path | None = None,
    parity_every: int = PARITY_EVERY,
    min_agreement: float | None = None,
    policy: Policy | None = None,
    max_frames: int | None = None,
    threads: int | None = None,
    force: bool = False,
    web: str | None = None,
    audio: bool = False,
    draw: Draw = "plain",
    truth: Path | None = None,
    truth_class: str | None = None,
    encode: Preset = "auto",
    reuse: Reuse = "off",
    smooth: float = 0.0,
    collect: CollectPlan | None = None,
    shadow: Path | None = None,
    promote_when: Path | None = None,
    trusted_key: Path | None = None,
    tls: tuple[Path, Path] | None = None,
) -> StreamReport:
    """Segment a source live and write every result to every sink. Sinks are finished whatever ends the stream.

    Ctrl-C, SIGTERM and closing the window end it like the end of the source does.

    Args:    engine: `.xml` or `.engine`, with its record; on a GPU a checkpoint too. source, sinks: see `uris`.
             reference: checkpoint for the parity watch, which takes every `parity_every`-th frame.
             min_agreement: 0-1; a frame that agrees less with the reference ends the stream.
             policy: "latest" or "block"; default by the kind of source. max_frames: with a mask.
             threads: of the network; default: all cores. web: `[HOST:]PORT` of the live page.
             audio: video files get the sound of the source, which is a file.
             draw: what sinks that show pictures get beside the colours: outlines, names, a legend.
             encode: what writes H.264, see `encoders`. reuse: which frames need no network, see `reuse`.
             smooth: 0-1, weight of the frames before in the logits of cells whose picture stays, see `smooth`.
             shadow: an engine that runs beside this one and may take its place. promote_when: TOML of `field/rules.py`.
             collect: where frames worth labelling are kept, and how many.
             truth: folder with a mask for every frame of the source. truth_class: the one class that its masks show.
             trusted_key: public key that must have signed the engine's record. tls: certificate and key of the page.
    Raises:  GateError: the engine's gate failed (unless `force`), or agreement fell below `min_agreement`.
             ArtifactError: the engine is damaged, or its outputs are not finite. DataError: source or sink.
             UnavailableError: this machine lacks what engine, source or sink needs.
    """
    recorder = Recorder()
    require_other_place(sinks, [source])
    require_source(source)
    if audio:
        require_sound(source)
        require_sound_sink(sinks)
    require_sinks(sinks)
    if encode != "auto":
        require_h264_sink(sinks, encode)
    require_rate(source, policy)
    require_gate(engine, force=force, trusted_key=trusted_key)
    rules = read_rules(promote_when)
    if shadow is not None:
        require_shadow(shadow, engine)
        require_gate(shadow, force=force, trusted_key=trusted_key)
    with ExitStack() as stack:
        live, cores = is_live(source, policy), None
        if live or threads is not None or collect is not None or shadow is not None:
            backend = open_engine(engine, live=live, threads=threads, features=collect is not None)
        else:
            backend, cores = open_for_file(engine, source, blend=any(wants_blend(sink) for sink in sinks))
        stack.callback(backend.close)
        masks = TruthFolder(truth, backend.classes, truth_class) if truth is not None else None
        names = engine_names(engine, shadow)
        name, *others = names
        field = open_field(names, backend, collect, source=parse_source(source).shown, live=live)
        checks = Checks.open(backend, source, reference, parity_every, min_agreement, masks, field)
        stack.callback(checks.close)
        # The source last: a camera that runs while networks are loaded only drops frames.
        opened = stack.enter_context(
            closing(open_source(source, policy=policy, decode_threads=cores.decoding if cores else decode_threads()))
        )
        if masks is not None:
            masks.warn_of_count(getattr(opened, "listed", opened.length))
        sound = parse_source(source).path if audio else None
        outputs = open_sinks(
            sinks,
            fps=opened.fps,
            size_hw=opened.size_hw,
            classes=backend.classes,
            audio_from=sound,
            colour=getattr(opened, "colour", None),
            aspect=getattr(opened, "aspect", None),
            preset=encode,
            live=opened.live,
        )
        # A window first: it may end the stream, and then no file has the frame yet.
        outputs.sort(key=lambda sink: not isinstance(sink, WindowSink))
        for sink in outputs:
            stack.callback(sink.close)
        if web is not None:
            outputs.append(
                stack.enter_context(
                    closing(_open_page(web, backend, opened, recorder, engine.name, source, field, tls))
                )
            )
        blend = any(sink.wants_overlay for sink in outputs)
        opener = partial(
            open_served,
            live=live,
            threads=threads,
            blend=blend,
            features=collect is not None,
            reuse=reuse,
            smooth=smooth,
        )
        plan = None
        if shadow is not None:
            plan = RolloutPlan(engine, shadow, (name, others[0]), rules, opener, partial(open_backend, threads=1))
        ended = run(
            opened,
            backend,
            outputs,
            recorder,
            checks=checks,
            pen=Pen(backend.classes, draw),
            max_frames=max_frames,
            reuse=reuse,
            smooth=smooth,
            engine=name,
            plan=plan,
        )
        return StreamReport(
            engine=engine.name,
            source=parse_source(source).shown,
            runs_on=recorder.runs_on,
            threads=cores.why if cores else "",
            parity=checks.parity,
            miou=checks.miou,
            flicker=checks.flicker,
            iou=checks.per_class,
            drift=checks.drift,
            rollout=recorder.rollout,
            reconnects=int(getattr(opened, "reconnects", 0)),
            unreadable=tuple(getattr(opened, "unreadable", ())),
            ended=ended,
            **recorder.numbers(),
        )


def run(
    source: Source,
    backend: AsyncBackend,
    sinks: Sequence[Sink],
    recorder: Recorder,
    *,
    checks: Checks | None = None,
    pen: Pen | None = None,
    max_frames: int | None = None,
    reuse: Reuse = "off",
    smooth: float = 0.0,
    engine: str = "",
    plan: RolloutPlan | None = None,
) -> str:
    """Run everything between open and close. Returns what ended it: "source", "max-frames" or "interrupted".

    Args: engine: its name, for the results. plan: another engine that may take over.
    """
    blend = any(sink.wants_overlay for sink in sinks)
    opened = open_stages(backend, blend=blend, reuse=reuse, smooth=smooth)
    stages, ended = EngineSlot(Served(engine, backend, opened)), "source"
    try:
        with (
            closing(stages),
            Interrupts() as interrupts,
            opencv_threads(1),
            closing(StatusLine(source, recorder)),
            ExitStack() as stack,
        ):
            pipeline = Pipeline(source, stages, lambda: give_up(stages.current.backend))
            rollout = stack.enter_context(closing(Rollout(plan, stages, recorder))) if plan is not None else None
            with closing(pipeline.results()) as results:
                for result in results:
                    with interrupts.held():  # a frame is in every file and every count, or in none
                        result.dropped = recorder.dropped_before(result)
                        result.paint()
                        if pen is not None and blend:
                            pen.write(result)
                        _deliver(result, sinks, checks)
                        recorder.add(result)
                        if rollout is not None:
                            rollout.add(result)
                        pipeline.recycle(result)
                    if recorder.frames == max_frames:
                        ended = "max-frames"
                        break
            if checks is not None:
                checks.finish()
    except (KeyboardInterrupt, BrokenPipeError):  # Ctrl-C, SIGTERM, a closed window; `tsss-edge stream ... - | head`
        ended = "interrupted"
    recorder.runs_on = stages.name
    return ended


class Pen:
    """Draws on the blended frames of a stream, between the kernel and the sinks; "plain" costs nothing."""

    def __init__(self, classes: Classes, draw: Draw) -> None:
        self._classes, self._draw = classes, draw
        self._drawer: Drawer | None = None

    def write(self, result: FrameResult) -> None:
        """Draw on `result.painted`, timed as the stage `draw`; planes become BGR first."""
        if self._draw == "plain" or result.painted is None:
            return
        with timed(result.stages_ms, "draw"):
            result.painted = frame = bgr_of(result.painted)
            classes = result.classes or self._classes  # a promoted engine may bring others
            if self._drawer is None or self._drawer.frame_hw != frame.shape[:2] or classes != self._classes:
                self._classes = classes
                self._drawer = Drawer(classes, (frame.shape[0], frame.shape[1]), self._draw)
            self._drawer(frame, result.labels)


def _deliver(result: FrameResult, sinks: Sequence[Sink], checks: Checks | None) -> None:
    """Judge a result and hand it to every sink."""
    if checks is not None:
        result.parity = checks.add(result)
    write_to(sinks, result)
    if encode_ms := sum(getattr(sink, "encode_ms", 0.0) for sink in sinks):
        result.stages_ms["encode"] = encode_ms


def _open_page(
    bind: str,
    backend: AsyncBackend,
    source: Source,
    recorder: Recorder,
    engine_name: str,
    source_text: str,
    field: FieldWatch | None,
    tls: tuple[Path, Path] | None,
) -> Sink:
    from tsss_edge.stream.web import open_web

    page = open_web(
        bind,
        classes=backend.classes,
        preprocess=backend.preprocess,
        recorder=recorder,
        source=source,
        engine_name=engine_name,
        source_name=parse_source(source_text).shown,
        objectness=any(spec.name == "objectness" for spec in backend.outputs),
        engine_state=lambda: state_of(backend),
        example=field.example if field is not None else None,
        tls=tls,
    )
    sys.stderr.write(f"live page: {page.url}\n")
    return page
