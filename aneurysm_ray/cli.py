"""The command line: parse, call one function, say what to type next; `ending.py` says how a command ends.

Progress goes to stderr; the result to stdout, whose last line is the directory or file written. Rooms are imported
inside the commands, so that `--help` answers at once, and after the settings are checked, so that a wrong key does too.
"""

import contextlib
import json
import logging
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from aneurysm_ray import ending
from aneurysm_ray.errors import RequestError
from aneurysm_ray.location import fresh, place

log = logging.getLogger("aneurysm_ray")

AGAIN = "aneurysm-ray"

app = typer.Typer(
    name="aneurysm-ray",
    help="Train and tune 3D detectors of intracranial aneurysms from DICOM, on one machine or a Ray cluster.",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

Words = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings by dotted key.")]
ConfigFile = Annotated[
    Path | None, typer.Option("--config", parser=place, help="TOML file of settings, such as best.toml.")
]
Preset = Annotated[str | None, typer.Option(help="v1 to v5: the ladder of experiments; starter: for init=starter.")]
Out = Annotated[Path | None, typer.Option(parser=place, help="Directory or URL; named by date and kind unless given.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with the run that --out holds.")]


@app.callback(invoke_without_command=True)
def _options(
    context: typer.Context,
    verbose: Annotated[bool, typer.Option("-v", "--verbose", help="Show tracebacks and Ray's own messages.")] = False,
) -> None:
    log.setLevel(logging.DEBUG if verbose else logging.INFO)
    if context.invoked_subcommand is None:
        print(context.get_help())


def _build(preset: str | None, file: Path | None, words: list[str] | None, **more: Any) -> Any:
    from aneurysm_ray import rundir

    return rundir.configure(preset, file, words or (), **more)


def _going_on(what: str | Callable[[], str], first_seconds: float = 0.5) -> contextlib.AbstractContextManager[None]:
    """Say at once, and again when nothing else is said, what a command does: loading its libraries alone takes seconds,
    so that they are imported inside."""
    from aneurysm_ray.distributed import progress

    return progress.told(what, first_seconds)


def _resumed(out: Path | None, resume: bool) -> Path | None:
    """Return the directory to go on with, or None for a new one. Raises RequestError."""
    if resume and out is None:
        raise RequestError("--resume needs --out, the directory to go on with")
    return out if resume else None


def _next(*commands: Sequence[object]) -> None:
    """Say what to type next, in words that a shell takes as they are."""
    for number, words in enumerate(commands):
        log.info("%s %s", "next:" if number == 0 else "     ", shlex.join(map(str, words)))


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Directory to write.")] = Path("runs/demo"),
    seed: Annotated[int, typer.Option(min=0, help="Seed of the synthetic patients and of training.")] = 0,
) -> None:
    """Synthetic DICOM → prepare → train → search → report, on this machine, in minutes."""
    with _going_on("loading", 0.0):
        from aneurysm_ray import demo as demonstration

        summary = demonstration.run(out, seed)
    print(demonstration.sentence(summary))
    pages = (out / "train" / "report.html", out / "tune" / "report.html")
    _next(*(("open", page) for page in pages), (AGAIN, "prepare", "YOUR_DICOM_FOLDER", "volumes"))
    print(out)


@app.command()
def phantom(
    out: Annotated[Path, typer.Argument(help="Data set to write.")],
    count: Annotated[int, typer.Option(help="Number of series.")] = 20,
    seed: Annotated[int, typer.Option(min=0, help="Equal seeds give equal files.")] = 0,
    modalities: Annotated[str, typer.Option(help="Mix, such as CTA or CTA,MRA,T2,T1post.")] = "CTA,MRA,T2,T1post",
    positive: Annotated[float, typer.Option(min=0, max=1, help="Share of series with an aneurysm.")] = 0.5,
    min_mm: Annotated[float, typer.Option(help="Smallest diameter of an aneurysm.")] = 2.0,
    max_mm: Annotated[float, typer.Option(help="Largest diameter of an aneurysm.")] = 20.0,
    spacing_mm: Annotated[float | None, typer.Option(help="Voxel spacing; about 0.8 mm unless given.")] = None,
    faults: Annotated[bool, typer.Option("--faults", help="Add the defects of real folders.")] = False,
    varied: Annotated[bool, typer.Option("--varied", help="Vary shapes and greys beyond anatomy.")] = False,
    masks: Annotated[float, typer.Option(min=0, max=1, help="Share of series with a vessel mask.")] = 1.0,
    domes: Annotated[bool, typer.Option("--domes", help="Write a mask of each aneurysm too.")] = False,
    scans: Annotated[str, typer.Option(help="CTA, in turn: head, neck, arms, holder, subtracted, slab.")] = "head",
    geometry: Annotated[Path | None, typer.Option(help="Folder of NIfTI vessel trees to render.")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes; one per core unless given.")] = None,
) -> None:
    """Write a synthetic data set of real DICOM files in the competition's layout."""
    with _going_on("loading", 0.0):
        from aneurysm_ray import phantom as phantoms

    options = phantoms.PhantomOptions(
        count=count, seed=seed, modalities=tuple(modalities.split(",")), positive_fraction=positive,
        min_mm=min_mm, max_mm=max_mm, spacing_mm=spacing_mm, faults=faults, varied=varied, masks=masks, domes=domes,
        scans=tuple(scans.split(",")), geometry=geometry, workers=workers or len(os.sched_getaffinity(0)),
    )  # fmt: skip
    written = [0]
    with _going_on(lambda: f"  {written[-1]:,} of {count:,} series written"):
        phantoms.write_dataset(out, options, lambda done, _: written.append(done))
    known = f"prepare.frame_base={options.frame_base}"
    _next((AGAIN, "inspect", out), (AGAIN, "prepare", out, "volumes", known))
    print(out)


@app.command()
def prepare(
    data: Annotated[str, typer.Argument(help="Data set, folder of series or URL.")],
    out: Annotated[str, typer.Argument(help="Prepared set to write or complete.")],
    words: Words = None,
    config: ConfigFile = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and how long it takes.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="The default; accepted for the habit's sake.")] = True,
) -> None:
    """Decode every series to Parquet volumes with Ray Data; goes on where it stopped."""
    with _going_on("loading", 0.0):
        settings = _build(None, config, words)
        from aneurysm_ray.distributed import prepare as preparation
    with _going_on("preparing"):
        summary = preparation.prepare(data, out, settings, dry_run=dry_run)
    if dry_run:
        print(out)
        return
    steps: list[Sequence[object]] = [(AGAIN, "inspect", out)]
    if summary.prepared:
        steps.append((AGAIN, "train", out))
    with _going_on("writing the page"):
        from aneurysm_ray.reporting import pages

        steps.insert(0, ("open", pages.write_report(place(out))))
    _next(*steps)
    print(out)
    if summary.rejected:
        raise ending.PartlyFailed(f"{summary.rejected} series rejected; {out}/rejected.csv says why")


@app.command()
def inspect(
    path: Annotated[Path, typer.Argument(parser=place, help="A series, a data set, a prepared set or a run.")],
    limit: Annotated[int, typer.Option(min=1, help="Most series of a data set to read, or labels to draw.")] = 100,
    overlay: Annotated[
        bool, typer.Option("--overlay", help="Draw a prepared set's labels on their images, into its overlay.html.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what is in a series, a data set, a prepared set or a run; reads only, without Ray."""
    if overlay:
        with _going_on("drawing the labels"):
            from aneurysm_ray.reporting import overlay_page

            drawn = overlay_page.write(path, limit)
        _next(("open", drawn))
        print(drawn)
        return
    with _going_on("reading"):
        from aneurysm_ray.data import inspection

        facts = inspection.inspect(path, limit)
    print(json.dumps(facts, indent=2) if as_json else inspection.render(facts))


@app.command()
def doctor(
    places: Annotated[list[str] | None, typer.Argument(help="Where results would go, paths or URLs.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """What of this machine would make a command fail or crawl, each with its cure; starts nothing."""
    with _going_on("examining", 0.0):
        from aneurysm_ray.distributed import doctor as examination

        findings = examination.examine(places or ["."])
    print(examination.as_json(findings) if as_json else examination.render(findings))
    if bad := [finding.what for finding in findings if finding.state == "bad"]:
        raise RequestError(f"to be mended first: {', '.join(bad)}; the lines above say how")


@app.command()
def train(
    volumes: Annotated[Path, typer.Argument(parser=place, help="A prepared set.")],
    words: Words = None,
    config: ConfigFile = None,
    preset: Preset = None,
    fold: Annotated[str, typer.Option(help="0, a list such as 0,1, or all.")] = "0",
    epochs: Annotated[int | None, typer.Option(help="optim.epochs")] = None,
    batch_size: Annotated[int | None, typer.Option(help="optim.batch_size")] = None,
    model: Annotated[str | None, typer.Option(help="model.name")] = None,
    init: Annotated[str | None, typer.Option(help="Checkpoint, or run, to start from.")] = None,
    control: Annotated[str | None, typer.Option(help="shuffle: the control that must score 0.5.")] = None,
    test: Annotated[
        list[Path] | None, typer.Option(parser=place, help="Another prepared set, scored once at the end; repeatable.")
    ] = None,
    out: Out = None,
    resume: Resume = False,
) -> None:
    """Cross-validate by patient-wise folds with Ray Train."""
    flags = {"optim__epochs": epochs, "optim__batch_size": batch_size, "model__name": model, "control": control}
    with _going_on("loading Ray and torch", 0.0):
        settings = _build(preset, config, words, volumes=volumes, resumed=_resumed(out, resume), init=init, **flags)
        out = out or fresh("train", settings.model.name)
        from aneurysm_ray.distributed import train as training
    with _going_on("training"), ending.resumable(out):
        summary = training.train(volumes, out, settings, folds=fold, resume=resume, tests=test or ())
    from aneurysm_ray.learning.bootstrap import Score

    print("no score" if summary["score"]["value"] is None else f"score {Score.of(summary['score'])} out of fold")
    for outside in summary.get("tests", ()):
        print(f"score {Score.of(outside['score'])} on {outside['name']}, which no model saw")
    lesions = ("train", volumes, "--config", f"{out}/config.toml", "stage=lesions", "--init", out)
    ahead = ("predict", out, "YOUR_DICOM_FOLDER") if settings.stage == "lesions" else lesions
    _next(("open", f"{out}/report.html"), (AGAIN, *ahead))
    print(out)


@app.command()
def tune(
    volumes: Annotated[Path, typer.Argument(parser=place, help="A prepared set.")],
    words: Words = None,
    config: ConfigFile = None,
    preset: Preset = None,
    trials: Annotated[int | None, typer.Option(help="tune.trials")] = None,
    epochs: Annotated[int | None, typer.Option(help="optim.epochs: the length of a trial that is not stopped.")] = None,
    then_train: Annotated[bool, typer.Option("--then-train", help="Train the best on all folds after.")] = False,
    out: Out = None,
    resume: Resume = False,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Resume, and try failed trials again.")] = False,
) -> None:
    """Search hyperparameters with Ray Tune and Optuna; bad trials are stopped early."""
    resume = resume or retry_failed
    flags = {"tune__trials": trials, "optim__epochs": epochs}
    with _going_on("loading Ray and torch", 0.0):
        settings = _build(preset, config, words, volumes=volumes, resumed=_resumed(out, resume), **flags)
        out = out or fresh("tune")
        from aneurysm_ray.distributed import tune as search
    with _going_on("searching"), ending.resumable(out):
        summary = search.tune(volumes, out, settings, resume=resume, retry_failed=retry_failed, then_train=then_train)
        if summary.get("interrupted"):
            raise KeyboardInterrupt
    trained = (AGAIN, "train", volumes, "--config", f"{out}/best.toml", "--fold", "all")
    _next(("open", f"{out}/report.html"), (AGAIN, "predict", out, "YOUR_DICOM_FOLDER") if then_train else trained)
    print(out)
    if summary.get("failed"):
        raise ending.PartlyFailed(
            f"{summary['failed']} trials failed; {out}/trials.csv says why, --retry-failed tries again"
        )


@app.command()
def predict(
    run: Annotated[Path, typer.Argument(parser=place, help="A run, a search that trained its best, a model, starter.")],
    paths: Annotated[list[str], typer.Argument(metavar="PATH... [KEY=VALUE]...", help="Series, data sets, archives.")],
    out: Out = None,
    fast: Annotated[bool, typer.Option("--fast", help="One model, no flips.")] = False,
    dicom: Annotated[bool, typer.Option("--dicom", help="Also write DICOM SR and SEG, and NIfTI heat maps.")] = False,
    resume: Resume = False,
) -> None:
    """Score DICOM series with a run's models: 14 probabilities, candidates with positions, pictures."""
    from aneurysm_ray import overrides

    settings = [word for word in paths if "=" in word and not Path(word).exists()]
    series = [word for word in paths if word not in settings]
    if not series:
        raise RequestError("predict needs at least one series, data set or archive after the run")
    out = _resumed(out, resume) or out or fresh("predict")
    with _going_on("loading Ray and torch", 0.0):
        changes = dict(map(overrides.parse_override, settings))
        from aneurysm_ray.distributed import predict as prediction
    with _going_on("predicting"), ending.resumable(out):
        summary = prediction.predict(run, series, out, changes, fast=fast, dicom=dicom, resume=resume)
    _next(("open", f"{out}/report.html"))
    print(out)
    if summary.get("fallback"):
        raise ending.PartlyFailed(f"{summary['fallback']} series could not be read; {out}/predictions.csv flags them")


@app.command()
def export(
    run: Annotated[Path, typer.Argument(parser=place, help="A training run.")],
    out: Annotated[Path, typer.Argument(parser=place, help="What to write: model.safetensors, model.bundle ...")],
) -> None:
    """Write a run's models, without Ray: .safetensors for aneurysm-ray, .onnx, .pt2 or MONAI's .bundle for others."""
    with _going_on("exporting", 0.0):
        from aneurysm_ray.learning import interchange

        interchange.write(run, out)
    if out.suffix == ".safetensors":
        _next((AGAIN, "predict", out, "YOUR_DICOM_FOLDER"))
    print(out)


@app.command()
def evaluate(
    predictions: Annotated[Path, typer.Argument(parser=place, help="predictions.csv of a run or of anyone's model.")],
    data: Annotated[Path, typer.Argument(parser=place, help="Data set or prepared set that holds the labels.")],
    against: Annotated[
        Path | None, typer.Option(parser=place, help="Another predictions.csv: by how much it is better, paired.")
    ] = None,
) -> None:
    """The weighted score and its interval for any predictions table, or the difference of two."""
    with _going_on("evaluating"):
        from aneurysm_ray.learning import evaluation

        if against:
            found = evaluation.render_difference(evaluation.compare(predictions, against, data), predictions, against)
        else:
            found = evaluation.render(evaluation.evaluate(predictions, data))
    print(found)


@app.command()
def report(
    folders: Annotated[
        list[Path], typer.Argument(parser=place, help="Prepared set, run or search; several are compared.")
    ],
    out: Annotated[Path | None, typer.Option(parser=place, help="Page to write when several are compared.")] = None,
) -> None:
    """Write, or write again, the page of a prepared set, a run or a search; of several, their comparison."""
    with _going_on("writing the page"):
        from aneurysm_ray.reporting import pages

        page = (
            pages.write_report(folders[0]) if len(folders) == 1 else pages.compare(folders, out or Path("compare.html"))
        )
    print(page)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def submit(
    context: typer.Context,
    job: Annotated[str, typer.Argument(help="A script of jobs/ by name: prepare, train, tune, predict, report.")],
    address: Annotated[str | None, typer.Option(help="The cluster's dashboard; default $RAY_ADDRESS.")] = None,
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Return once it is submitted.")] = False,
) -> None:
    """Send jobs/JOB.py with its arguments to a Ray cluster, follow its log and return its exit code."""
    with _going_on("loading Ray", 0.0):
        from aneurysm_ray.distributed import submit as submission
    raise typer.Exit(submission.submit(job, context.args, address=address, wait=not no_wait))


@app.command()
def config(
    keys: Annotated[list[str] | None, typer.Argument(help="A key or a group, such as optim.lr or optim.")] = None,
    check: Annotated[Path | None, typer.Option(help="Check a TOML file and say what it changes.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Every setting: its key, value, default and meaning."""
    from aneurysm_ray import overrides

    settings = overrides.load(None, check)
    rows = [row for key in keys or [""] for row in overrides.describe(key, settings)]
    if check and not keys:
        rows = [row for row in rows if row["value"] != row["default"]]
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    for row in rows:
        changed = "" if row["value"] == row["default"] else f"   (default {row['default']})"
        print(f"{row['key']} = {row['value']}{changed}\n    {row['meaning']}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not log.handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(message)s"))
        log.addHandler(handler)
    log.setLevel(logging.INFO)
    command = typer.main.get_command(app)
    names = [each.callback.__name__ for each in app.registered_commands if each.callback]
    return ending.run(lambda: command.main(args=words, prog_name="aneurysm-ray", standalone_mode=False), words, names)


if __name__ == "__main__":
    raise SystemExit(main())
