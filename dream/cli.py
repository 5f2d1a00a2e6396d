"""``dream-report``: one subcommand a question. Only the command line lives here; every import that takes time is
inside.

Each subcommand loads what it needs, calls one function of this package and shows what that returned: as JSON with
``--json``, with colours on a terminal, as plain text in a pipe. What a user can cause ends in one line and exit code 1.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

from dream import __version__, errors
from dream.errors import DreamError, exits_cleanly, visible

try:
    import typer
except ModuleNotFoundError as error:
    sys.exit(f"error: {errors.explain(error)}")

from dream import completion  # it needs typer

app = typer.Typer(
    name="dream-report",
    help="Tables, plots and answers from the results of a DREAM benchmark.\n\n"
    "Everything is read from small files that git tracks (reports/results): no model, no GPU and no network are needed.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Json = Annotated[bool, typer.Option("--json", help="Print JSON for another program.")]
Params = Annotated[Path, typer.Option("--params", help="The params file that says what belongs to the report.")]
Cells = Annotated[Path, typer.Option("--cells", help="The folder of results.")]
Experiment = Annotated[
    str | None, typer.Option("--experiment", "-e", help="Read this experiment, branch or commit from git instead.")
]
Reference = Annotated[
    str | None,
    typer.Option("--reference", help="The system that the others are tested against.", autocompletion=completion.systems),
]
System = Annotated[
    str | None,
    typer.Option(
        "--system", help="A trained system; by default the first of `objectives`.", autocompletion=completion.objectives
    ),
]
PARAMS, CELLS = Path("params.yaml"), Path("reports/results")


def _say_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"dream-bench {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and stop.", callback=_say_version, is_eager=True)
    ] = False,
) -> None:
    """What stands before a command."""


def examples(*lines: str) -> str:
    """The examples at the end of a help text, one a line."""
    return "**Examples**\n\n" + "\n\n".join(f"`{line}`" for line in lines)


def load(params: Path, cells: Path, experiment: str | None = None, reference: str | None = None) -> Any:
    """The results that params lists, or an experiment's, checked to belong together."""
    from dream.report.results import runs

    revision = runs.resolve(runs.WORKSPACE if experiment is None else experiment)
    results = runs.open_revision(revision, params, cells)
    return results if reference is None else results.against(reference)


def place(text: Any) -> Path:
    """Where to write; an empty text would be the working folder."""
    if not str(text).strip():
        raise DreamError("the place to write to is empty", "Name a folder or a file")
    return Path(text)


def trained(config: Any, system: str | None) -> str:
    """The system that a user named, or the first that params trains."""
    if system is None and not config.objectives:
        raise DreamError("params lists no objective, so no system is trained", "Name one in objectives")
    return config.objectives[0] if system is None else system


def show(value: Any, as_json: bool, text: Callable[[], str], rich: Callable[[], Any] | None = None) -> None:
    """Print ``value`` as JSON, or its rich form on a terminal, or its plain text in a pipe."""
    if as_json:
        from dream.report.tables import render

        typer.echo(render.json_text(value() if callable(value) else value))
    elif rich is not None and sys.stdout.isatty():
        from rich.console import Console

        Console().print(rich())
    else:
        typer.echo(text().rstrip("\n"))


def known(format: str) -> str:
    """A format, if there is such a one; asked before anything is read."""
    from dream.report.tables import render

    return format if format == "text" else render.known(format)


Format = Annotated[str, typer.Option("--format", "-f", callback=known, help="text, md, csv, latex or html.")]


def print_tables(tables: list[Any], format: str, as_json: bool) -> None:
    """Print tables in a format."""
    from dream.report.tables import render

    if format == "text" or as_json:
        return show_tables(tables, as_json)
    typer.echo("\n".join(render.render(t, format).rstrip("\n") + "\n" for t in tables), nl=False)


def show_tables(tables: list[Any], as_json: bool) -> None:
    """Print tables one below the other."""
    from rich.console import Group

    from dream.report.tables import render

    show(
        lambda: [render.as_json(table) for table in tables], as_json,
        lambda: "\n".join(render.plain(table) for table in tables),
        lambda: Group(*(render.rich_table(table) for table in tables)),
    )  # fmt: skip


@app.command(
    epilog=examples(
        "dream-report tables",
        "dream-report tables --all",
        "dream-report tables --table main --format latex > main.tex",
        "dream-report tables --table cost --json",
        "dream-report tables --table main --experiment my-exp --reference bm25",
        "dream-report tables --table sweep-heads",
    )
)
def tables(
    table: Annotated[
        list[str] | None,
        typer.Option("--table", "-t", help="Only this table; may be repeated.", autocompletion=completion.tables),
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="All tables, with all their notes.")] = False,
    format: Format = "text",
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", parser=place, metavar="PATH", help="Rebuild all tables as CSV and Markdown in this folder instead."
        ),
    ] = None,
    experiment: Experiment = None,
    reference: Reference = None,
    json: Json = False,
    params: Params = PARAMS,
    cells: Cells = CELLS,
) -> None:
    """Print the verdict and the main table with its first notes.

    With --all or --table the others too: significance, seeds, scalars, cost, heads, diagnostic, and those of collected sweeps
    (sweep-NAME)."""
    from dream.report import build
    from dream.report import verdict as verdicts
    from dream.report.commands import sweeps
    from dream.report.tables import registry

    if everything and table:
        raise DreamError("--all and --table are two ways to choose tables", "Give one of them")
    results = load(params, cells, experiment, reference)
    if out is not None:
        built = build.write_tables(results, _for_tables(out))
        names = [str(out / f"{t.name}.{ending}") for t in built for ending in ("csv", "md")]
        return show(names, json, lambda: "\n".join(names))
    if not (everything or table):
        main = registry.main(results)
        if format != "text" or json:
            return print_tables([main], format, json)
        typer.echo("\n".join(verdicts.lines(verdicts.verdict(results))) + "\n")
        return print_tables([registry.brief(main)], format, json)
    print_tables(registry.build(results, table or None, sweeps.stored() if experiment is None else ()), format, json)


@app.command(epilog=examples("dream-report adapt", "dream-report adapt --json", "dream-report adapt reports/adapted/*.json"))
def adapt(
    files: Annotated[
        list[Path] | None, typer.Argument(help="Outcomes that were kept; of several, one table.", show_default=False)
    ] = None,
    format: Format = "text",
    json: Json = False,
) -> None:
    """Say whether the encoder that adapted to your own documents is to be used: before and after, and what to do next.

    Reads reports/adapt.json, which a run with the recipe `adapt` writes; copies of it may be kept and named."""
    from dream.adapt import text
    from dream.report.tables import render

    paths = list(dict.fromkeys(files or [text.PATH]))
    alike = len({path.stem for path in paths}) < len(paths)
    found = {str(path) if alike else path.stem: text.load(path) for path in paths}
    if len(found) > 1:
        return print_tables([text.beside(found)], format, json)
    (one,) = found.values()
    if format not in ("text", "md") and not json:
        return print_tables(text.tables(one), format, json)
    written = render.markdown if format == "md" else render.plain
    show(one, json, lambda: "\n".join(text.lines(one, written)))


@app.command(epilog=examples("dream-report verdict", "dream-report verdict --json"))
def verdict(
    experiment: Experiment = None,
    json: Json = False,
    params: Params = PARAMS,
    cells: Cells = CELLS,
) -> None:
    """Say of each of the paper's claims whether it holds here: holds, does not hold, not decided or not tested, and why."""
    from dream.report import verdict as verdicts

    found = verdicts.verdict(load(params, cells, experiment, None))
    show(found, json, lambda: "\n".join(verdicts.lines(found)))


def _for_page(file: Path) -> Path:
    """The file itself, if its name says that it is a page: nothing else is ever overwritten by one."""
    if file.suffix != ".html":
        raise DreamError(f"{str(file)!r} is no name of an HTML file", "Name one that ends in .html")
    return file


def _for_document(file: Path) -> Path:
    """The file itself, if its name says that it is Markdown."""
    if file.suffix != ".md":
        raise DreamError(f"{str(file)!r} is no name of a Markdown file", "Name one that ends in .md")
    return file


def _for_tables(folder: Path) -> Path:
    """The folder itself, if nothing but tables is lost when it is replaced."""
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    if names and ("main.csv" not in names or any(Path(name).suffix not in (".csv", ".md") for name in names)):
        raise DreamError(f"{folder} holds other files, which would be lost", "Name a new folder, or one of tables")
    return folder.resolve()


@app.command(
    epilog=examples(
        "dream-report plots",
        "dream-report plots --plot systems --out figures",
        "dream-report plots --plot queries --experiment my-exp --reference bm25 --out figures",
        "dream-report plots --plot sweep-heads --out figures",
    )
)
def plots(
    plot: Annotated[
        list[str] | None,
        typer.Option("--plot", "-p", help="Only this plot; may be repeated.", autocompletion=completion.plots),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", parser=place, metavar="PATH", help="Folder for the PNG and SVG files: reports/plots.")
    ] = None,
    experiment: Experiment = None,
    reference: Reference = None,
    json: Json = False,
    params: Params = PARAMS,
    cells: Cells = CELLS,
) -> None:
    """Draw the plots as PNG and SVG: systems, training, queries, heads, diagnostic, cost, geometry.

    Figures of collected sweeps (sweep-NAME) are named where they lie, and copied where one is asked for.
    """
    from dream.report import plots as registry
    from dream.report.commands import sweeps

    if out is None and (experiment or reference):
        raise DreamError("reports/plots holds the plots of params.yaml", "Give another folder with --out")
    folder = Path("reports/plots") if out is None else out
    results = load(params, cells, experiment, reference)
    drawn = registry.draw(results, folder, plot or None, sweeps.figures() if experiment is None else {})
    names = list(map(str, drawn))
    show(names, json, lambda: "\n".join(names))


@app.command(epilog=examples("dream-report compare dream bm25", "dream-report compare dream my-exp:dream --queries 10"))
def compare(
    ours: Annotated[
        str,
        typer.Argument(
            metavar="A", help="A system, or REVISION:SYSTEM of an experiment or commit.", autocompletion=completion.systems
        ),
    ],
    theirs: Annotated[str, typer.Argument(metavar="B", help="The system to compare it with.", autocompletion=completion.systems)],
    queries: Annotated[
        int, typer.Option("--queries", "-n", min=0, max=10_000, help="How many of the queries that changed most.")
    ] = 6,
    json: Json = False,
    params: Params = PARAMS,
    cells: Cells = CELLS,
) -> None:
    """Compare two systems: paired tests on every task, and the queries that changed most with what each found."""
    from dataclasses import asdict

    from dream.report.commands import compare as comparing
    from dream.report.commands import queries as changing
    from dream.report.tables import render

    a, b = comparing.sides(ours, theirs, lambda: load(params, cells))
    kept = changing.texts(a.results) if a.in_workspace else {}
    table, (changed, remark) = comparing.table(a, b), comparing.changes(a, b, queries, kept=kept)
    if json:
        return show({**render.as_json(table), "changed": [asdict(c) for c in changed], "remark": remark}, True, str)
    show_tables([table], False)
    if changed:
        shown = lambda width=110: comparing.lines(changed, a, b, remark, width)  # noqa: E731
        show(None, False, lambda: "\n" + render.joined(shown()), lambda: render.Coloured(shown))


@app.command(epilog=examples("dream-report paper", "dream-report paper --rows", "dream-report paper --json"))
def paper(
    rows: Annotated[bool, typer.Option("--rows", help="Every printed number, not only the means.")] = False,
    json: Json = False,
    params: Params = PARAMS,
    cells: Cells = CELLS,
) -> None:
    """Set the paper's printed numbers, ablations too, beside ours, and say which have not been run."""
    from dream import config
    from dream.report.commands import paper as printed

    if params.exists():
        config.load(params)  # a broken one is no missing result
    remark = ""
    try:
        results = load(params, cells)
    except DreamError as error:
        results, remark = None, f"No results to compare with: {error}"
    show_tables([printed.table(results, rows), printed.ablations(), printed.scaling()], json)
    if remark:
        typer.echo(visible(remark), err=True)


@app.command(
    epilog=examples("dream-report verify", "dream-report verify --against v1.0 --tolerance 0.001", "dream-report verify --json")
)
def verify(
    against: Annotated[str, typer.Option("--against", help="A commit, branch, tag or experiment.")] = "HEAD",
    tolerance: Annotated[float, typer.Option("--tolerance", min=0, max=1, help="How far apart two nDCG@10 may lie.")] = 0.003,
    json: Json = False,
    params: Params = PARAMS,
    cells: Cells = CELLS,
) -> None:
    """Compare this machine's scores with the committed ones.

    Exit code 1 if one is missing, is more, was made with other settings, or lies farther apart than the tolerance.
    """
    from dream import config
    from dream.report.commands import verify as verifying

    found = verifying.verify(config.load(params), against, tolerance, cells)
    show(found.as_json, json, lambda: "\n".join(map(visible, found.lines())))
    if found.odd:
        raise typer.Exit(1)


@app.command(epilog=examples("dream-report runs", "dream-report runs --commits 5 --format csv > runs.csv"))
def runs(
    commits: Annotated[int, typer.Option("--commits", min=0, max=10_000, help="Commits that changed results, newest first.")] = 1,
    format: Format = "text",
    json: Json = False,
    params: Params = PARAMS,
    cells: Cells = CELLS,
) -> None:
    """Collect the workspace, commits and DVC experiments in one table with the knobs that differ."""
    from dream.report.commands import experiments

    print_tables([experiments.collect(commits, params, cells)], format, json)


@app.command(
    epilog=examples(
        "dream-report sweep",
        "dream-report sweep heads",
        "dream-report sweep heads --run --collect",
        "dream-report sweep --out docs/ablations.md",
    )
)
def sweep(
    name: Annotated[
        str | None, typer.Argument(help="A sweep of sweeps.yaml; without it all are listed.", autocompletion=completion.sweeps)
    ] = None,
    run: Annotated[bool, typer.Option("--run", help="Run the points that have not been run, one after another.")] = False,
    queue: Annotated[bool, typer.Option("--queue", help="Put them in DVC's queue instead: `dvc queue start`.")] = False,
    collect: Annotated[bool, typer.Option("--collect", help="Read the results into reports/sweeps.")] = False,
    out: Annotated[
        Path | None,
        typer.Option("--out", parser=place, metavar="PATH", help="Write all questions and outcomes as a Markdown document."),
    ] = None,
    json: Json = False,
    file: Annotated[Path, typer.Option("--file", help="Where the sweeps stand.")] = Path("sweeps.yaml"),
) -> None:
    """Print, run, queue or collect the experiments of an ablation. Without an option: the commands that it takes.

    Without a name: every sweep with its question and, if it is collected, its outcome."""
    from dream.report import build
    from dream.report.commands import ablations, sweeps

    if run and queue:
        raise DreamError("--run and --queue are two ways to start the same experiments", "Give one of them")
    if name is None:
        if run or queue or collect:
            raise DreamError("no sweep is named", "Run `dream-report sweep` to see them")
        if out is None:
            return show_tables([ablations.overview(file)], json)
        build.write_text(_for_document(out), ablations.document(file))
        return show([str(out)], json, lambda: str(out))
    if out is not None:
        raise DreamError("--out writes all sweeps", f"Leave out {name}, or give --collect instead")
    found = sweeps.find(name, file)
    if run or queue:
        count = sweeps.run(found, queue)
        typer.echo(f"{count} of {len(found.points)} points {'queued' if queue else 'run'}, the others were there", err=json)
    if collect:
        return show_tables([sweeps.collect(found)], json)
    if not (run or queue):
        lines = sweeps.commands(found)
        show(lines, json, lambda: "\n".join(lines))


@app.command(epilog=examples("dream-report knobs", "dream-report knobs injection", "dream-report knobs learning_rate --json"))
def knobs(
    name: Annotated[
        str | None,
        typer.Argument(
            help="A section, an objective, or one setting; without it all are shown.", autocompletion=completion.sections
        ),
    ] = None,
    json: Json = False,
    params: Params = PARAMS,
) -> None:
    """Say what every setting is for, its value in every recipe, and what it may be."""
    from dataclasses import asdict

    from dream.report.commands import knobs as describing
    from dream.report.tables import render

    found = describing.named(describing.settings(params), name)
    lines = lambda _=0: describing.lines(found)  # noqa: E731
    show(lambda: [asdict(setting) for setting in found], json, lambda: render.joined(lines()), lambda: render.Coloured(lines))


@app.command(
    epilog=examples(
        "dream-report plan --size 3b",
        "dream-report plan --size 8b --tflops 400 --device-gib 80",
        "dream-report plan --size 3b -S training.gradient_checkpointing=true",
    )
)
def plan(
    size: Annotated[
        str | None,
        typer.Option("--size", help="An entry of `sizes`; by default that of params.", autocompletion=completion.sizes),
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option("--recipe", help="By name, or auto: the size's own; else as in params.", autocompletion=completion.recipes),
    ] = None,
    tflops: Annotated[
        float | None, typer.Option("--tflops", min=1e-6, max=1e12, help="Sustained throughput in TFLOP/s, by default 100.")
    ] = None,
    device_gib: Annotated[
        float | None, typer.Option("--device-gib", min=0.1, max=1e9, help="Device memory; by default what is here.")
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set-param", "-S", metavar="KEY=VALUE", help="A setting, as `dvc exp run` takes it.")
    ] = None,
    json: Json = False,
    params: Params = PARAMS,
) -> None:
    """Estimate parameters, FLOPs, hours, memory and disk of a size from configurations alone: no weights are read.

    Which cards it fits, and what to change where it does not."""
    from dream import config
    from dream.planning import plan as planning

    named = {key: value for key, value in {"recipe": recipe, "model.size": size}.items() if value}
    given = planning.overrides(settings or [])
    for key in named.keys() & given.keys():
        raise DreamError(f"{key} is given twice: {named[key]} and {given[key]}", "Give it once")
    overrides = named | given
    found = planning.estimate(config.load(params, overrides), tflops, params.parent / planning.RUNS, device_gib)
    memory, name = planning.device() if device_gib is None else (device_gib, "the given device")
    if json:
        device = {"device": name, "device_gib": memory, "fits": planning.fits(found, memory)}
        return show(found | device, True, str)
    show_tables(planning.tables(found, memory, name), False)


@app.command(
    epilog=examples("dream-report fetch SciFact NFCorpus", "dream-report fetch SciFact --from scifact.zip --to tasks --json")
)
def fetch(
    task: Annotated[list[str], typer.Argument(help="Tasks of mteb, by name.")],
    to: Annotated[
        Path, typer.Option("--to", parser=place, metavar="PATH", envvar="DREAM_TASKS", help="The mirror: a folder in it a task.")
    ] = Path("tasks"),
    source: Annotated[
        str | None, typer.Option("--from", metavar="PATH", help="Read a BEIR-format folder or zip, in place of the model hub.")
    ] = None,
    json: Json = False,
) -> None:
    """Save tasks of mteb for machines without network, which serve them from the folder in DREAM_TASKS.

    A task that differs from mteb's published counts is served as NAME-local."""
    from tqdm import tqdm

    from dream.data.tasks import mirror

    if source is not None and len(task) > 1:
        raise DreamError("--from names the data of one task", "Fetch one at a time")
    bar = tqdm(task, desc="tasks", unit="task", disable=len(task) < 2, leave=False)
    found = [mirror.save(name, to, source) for name in bar]
    show(found, json, lambda: "\n".join(mirror.line(record) for record in found))


@app.command(epilog=examples("dream-report doctor", "dream-report doctor --json"))
def doctor(json: Json = False, params: Params = PARAMS) -> None:
    """Check packages, devices, hub, disk, checksums, and which sizes can run here. Exit code 1 if there is a
    problem."""
    from dream import config
    from dream.planning import doctor as examination

    try:
        settings, broken = config.load(params), []
    except DreamError as error:
        settings, broken = None, [examination.Check("params.yaml", examination.PROBLEM, error.what, error.remedy)]
    found = [*broken, *examination.examine(settings)]
    show(lambda: examination.as_json(found), json, lambda: examination.plain(found), lambda: examination.rich(found))
    if any(finding.state == examination.PROBLEM for finding in found):
        raise typer.Exit(1)


@app.command(epilog=examples("dream-report explain q-007f242ab9c08c17", "dream-report explain QUERY-ID --html query.html"))
def explain(
    query_id: Annotated[str, typer.Argument(help="Id of a training instance or of an evaluation query.")],
    system: System = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Which of its training runs.")] = 0,
    html: Annotated[Path | None, typer.Option("--html", parser=place, metavar="PATH", help="Write a small page here.")] = None,
    json: Json = False,
    params: Params = PARAMS,
) -> None:
    """Show one query: p over the candidates, the loss of every target token with and without the scores, the prompt.

    Loads encoder and judge, and needs the folder work/.
    """
    from dataclasses import asdict

    from dream import config
    from dream.report import build
    from dream.report.commands import explain as explaining
    from dream.report.tables import render

    page = None if html is None else _for_page(html)
    settings = config.load(params)
    found = explaining.explain(query_id, settings, trained(settings, system), seed)
    if page is not None:
        build.write_text(page, explaining.page(found))
        return show(asdict(found), json, lambda: str(html))
    lines = lambda width=110: explaining.lines(found, width)  # noqa: E731
    show(lambda: asdict(found), json, lambda: render.joined(lines()), lambda: render.Coloured(lines))


@app.command(
    epilog=examples(
        "dream-report export --system dream --seed 0 --out exports/dream-0",
        "dream-report export --format sentence-transformers --out exports/merged --force",
        "dream-report export --system dream --format peft --out exports/dream-0 --push owner/name",
        "dream-report export --system dream --strength 0.5 --out exports/half",
    )
)
def export(
    out: Annotated[Path, typer.Option("--out", parser=place, metavar="PATH", help="Folder; each format is a folder in it.")],
    system: System = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Which of its training runs.")] = 0,
    pairs: Annotated[
        int | None, typer.Option("--pairs", min=1, help="As it was after so many pairs (training.snapshots).")
    ] = None,
    strength: Annotated[float, typer.Option("--strength", min=0, max=1, help="The share of the adapter's change.")] = 1.0,
    format: Annotated[str, typer.Option("--format", "-f", help="both, peft or sentence-transformers.")] = "both",
    force: Annotated[bool, typer.Option("--force", help="Replace what is in the formats' folders.")] = False,
    push: Annotated[
        str | None,
        typer.Option("--push", metavar="OWNER/NAME", help="Upload to the model hub too: public, one format only."),
    ] = None,
    json: Json = False,
    params: Params = PARAMS,
    cells: Cells = CELLS,
) -> None:
    """Export a trained system: a PEFT adapter and a sentence-transformers folder, each with its model card.

    Nothing leaves this machine without --push. Needs the folder work/models.
    """
    from dream import config
    from dream import export as exporting
    from dream.report.commands import card

    formats = exporting.FORMATS if format == "both" else (format,)
    if push is not None and len(formats) > 1:
        raise DreamError("--push uploads one format", "Add --format peft or --format sentence-transformers")
    whole = config.load(params)
    system = trained(whole, system)
    partly = pairs is not None or strength != 1  # the scores are those of the whole run
    scores = exporting.NO_SCORES if partly else card.scores(whole, system, seed, cells)
    folders = exporting.export(whole, system, seed, out, formats, force, push, scores, cells, strength, pairs)
    found = {name: str(folder) for name, folder in folders.items()}
    if push is not None:
        found["pushed"] = exporting.push(next(iter(folders.values())), push)
    show(found, json, lambda: "\n".join(found.values()))


@app.command(
    epilog=examples("dream-report export-runs --out exports/runs", "dream-report export-runs --format mteb --out exports/runs")
)
def export_runs(
    out: Annotated[Path, typer.Option("--out", parser=place, metavar="PATH", help="Folder; each format is a folder in it.")],
    format: Annotated[str, typer.Option("--format", "-f", help="both, trec or mteb.")] = "both",
    json: Json = False,
    params: Params = PARAMS,
    cells: Cells = CELLS,
) -> None:
    """Write every system's hits as TREC run files with their qrels, and its scores as result files of mteb.

    The run files need the folder work/, mteb's do not.
    """
    from dream.report.commands import exports

    formats = exports.FORMATS if format == "both" else (format,)
    if format not in ("both", *exports.FORMATS):
        raise DreamError(f"format {format!r} is unknown", f"Choose both or one of {', '.join(exports.FORMATS)}")
    names = list(map(str, exports.export(load(params, cells), out, formats)))
    show(names, json, lambda: "\n".join(names))


@app.command(epilog=examples("dream-report page", "dream-report page --out results.html"))
def page(
    out: Annotated[Path, typer.Option("--out", parser=place, metavar="PATH", help="The HTML file to write.")] = Path(
        "reports/page.html"
    ),
    json: Json = False,
    params: Params = PARAMS,
    cells: Cells = CELLS,
) -> None:
    """Write one self-contained HTML file with all tables, plots, settings and provenance; it needs no network to
    view."""
    from dream.report import build
    from dream.report import page as paging

    build.write_text(_for_page(out), paging.html(load(params, cells)))
    show({"page": str(out), "bytes": out.stat().st_size}, json, lambda: str(out))


@exits_cleanly
def main() -> None:
    """The entry point: user errors in one line, no traceback; libraries' deprecations are ours to mend, not the user's."""
    warnings.filterwarnings("ignore", category=FutureWarning)
    try:
        code = app(prog_name="dream-report", standalone_mode=False)
    except typer.TyperException as error:  # a command, an option or a value that does not exist
        command = getattr(getattr(error, "ctx", None), "command_path", "dream-report")
        what, _, guess = error.format_message().partition(". ")
        if not what:  # no command: the help has been printed
            sys.exit(2)
        raise DreamError(what.rstrip("."), guess or f"`{command} --help` lists what there is") from None
    if code == 130:  # how typer passes Ctrl-C on
        raise KeyboardInterrupt
    sys.exit(code)


if __name__ == "__main__":
    main()
