"""HTML report of one or several runs: one self-contained file."""

import datetime
from collections.abc import Sequence

import jax
import jinja2
from etils import epath

import flair_jax
from flair_jax.errors import UserError
from flair_jax.report import definitions, figures, formats, origins, tables
from flair_jax.report.collect import RunFacts, read_runs, setting_rows
from flair_jax.report.gallery import Gallery, make_gallery
from flair_jax.runtime import console
from flair_jax.runtime.atomic_io import atomic_write
from flair_jax.runtime.console import counted
from flair_jax.viz import images

GENERATOR = "flair-jax report"


def write_report(
    workdirs: Sequence[epath.PathLike],
    output: epath.PathLike | None = None,
    *,
    split: str = "test",
    gallery: int | None = None,
    no_gallery_because: str = "",
) -> epath.Path:
    """Writes the page of some runs, atomically.

    Args:
        workdirs: folders of runs, in whatever state.
        output: the file; by default `index.html`, in the workdir of a single run, in the current
            folder for several.
        split: whose scores to show.
        gallery: patches of each kind (best, most typical, worst) to show of each run; by default 3
            for a single run and 1 for several. 0: no gallery.
        no_gallery_because: reason to show in place of a gallery.

    Returns:
        Where the page is.

    Raises:
        UserError: a path is not a workdir, or the existing file is not a report of this package.
    """
    runs = read_runs(workdirs, split)
    if output is None:
        output = (runs[0].workdir if len(runs) == 1 else epath.Path(".")) / "index.html"
    output = epath.Path(output).expanduser()
    if output.exists() and GENERATOR.encode() not in output.read_bytes()[:2000]:
        raise UserError(
            f"{output} exists and is not a report of flair-jax: give another --output, or remove it"
        )
    count = (3 if len(runs) == 1 else 1) if gallery is None else gallery
    galleries: list[Gallery | None]
    if no_gallery_because:
        galleries = [Gallery({}, [], no_gallery_because) for _ in runs]
    else:
        galleries = [make_gallery(run, count) if count else None for run in runs]
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(output, render(runs, galleries, output))
    except OSError as error:
        raise UserError(f"{output} cannot be written ({error}): give another --output") from error
    return output


def update_report(workdir: epath.PathLike) -> None:
    """Writes a run's `index.html`, unless it is newer than what it would be made of."""
    if jax.process_index() != 0:
        return
    workdir = epath.Path(workdir)
    page = workdir / "index.html"
    sources = [workdir / "metrics.jsonl", *workdir.glob("evaluation/*/metrics.json")]
    changed = max((path.stat().mtime for path in sources if path.exists()), default=0)
    if page.exists() and page.stat().mtime >= changed:
        console.log(f"the report is up to date: {page}")
        return
    # The gallery's model would wait for the other processes, which do not take part.
    alone = jax.process_count() == 1
    reason = "" if alone else f"write it on one host: flair-jax report {workdir}"
    try:
        console.log(f"report: {write_report([workdir], no_gallery_because=reason)}")
    except Exception as error:  # whatever it is, the training is done and must not appear to fail
        console.log(f"the report could not be written: {error!r}\nTry flair-jax report {workdir}")


def render(runs: list[RunFacts], galleries: Sequence[Gallery | None], output: epath.Path) -> str:
    """The page's HTML.

    Args:
        runs: what it shows.
        galleries: in the order of the runs, None where none is wanted.
        output: where the page will be: its links to the runs' files are relative.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("flair_jax.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "fixed": formats.fixed, "duration": formats.duration, "range": formats.interval,
        "percent": formats.percent, "counted": counted,
    }  # fmt: skip
    page = environment.get_template("index.html.j2")
    return page.render(
        runs=list(zip(runs, galleries, strict=True)),
        curves=figures.curves,
        canvas=(figures.WIDTH, figures.HEIGHT, figures.LEFT, figures.RIGHT, figures.TOP,
                figures.BOTTOM),
        tables=tables,
        definitions=definitions,
        origins=origins,
        output=output,
        unlabelled="#" + bytes(images.NOTHING).hex(),
        setting_rows=setting_rows,
        generator=GENERATOR,
        version=flair_jax.__version__,
        now=datetime.datetime.now(datetime.UTC),
    )  # fmt: skip
