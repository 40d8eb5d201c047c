"""The one writer: what the other files of this room make becomes a page, of runs or a pipeline."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from etils import epath

from r1jax.files import absolute, write_atomic
from r1jax.machines.queue import read_slices
from r1jax.reports.measured import read_runs
from r1jax.reports.page import Page, html_page
from r1jax.reports.paired import paired_table
from r1jax.reports.paper import paper_table, read_paper
from r1jax.reports.paper_tables import STANDARD, Choice, models_of, paper_cost, paper_tables
from r1jax.reports.pipeline import pipeline_tables
from r1jax.reports.results import (
    breakdown_table,
    configs_table,
    evaluation_table,
    models_table,
    results_table,
    seeds_table,
)
from r1jax.reports.runs import RunRecord, group_runs, metric_names, read_run
from r1jax.reports.samples import questions_of_models, questions_of_training, samples_page
from r1jax.reports.sweep import draw_sweep, read_sweep, sweep_table
from r1jax.reports.table import Table, print_rich, to_csv, to_latex, to_markdown


def make_tables(runs: Sequence[RunRecord], choice: Choice = STANDARD) -> list[Table]:
    """The tables that these runs have something to say in, and of the paper's what is asked for."""
    training = [run for run in runs if run.metrics]
    evaluated = [run for run in runs if not run.metrics]
    groups = group_runs(training)
    tables = []
    if training:
        tables += [results_table(groups), breakdown_table(groups)]
        if any(len(members) > 1 for members in groups.values()):
            tables.append(seeds_table(groups))
        if len(groups) > 1:
            tables.append(configs_table(groups))
        if any(metric_names(members, "grpo/.*|eval/.*pass@1") for members in groups.values()):
            tables.append(paper_table(groups))
    if evaluated:
        tables.append(models_table(evaluated))
        names = Counter(run.name for run in evaluated)
        for run in evaluated:
            name = run.name if names[run.name] == 1 else f"{run.workdir.parent.name}-{run.name}"
            tables.append(replace(evaluation_table(run), name=f"benchmarks_{name}"))
        tables.append(paired_table(models_of(evaluated)))
    tables += paper_tables(models_of(runs), choice) + paper_cost(training, choice)
    return [table for table in tables if table.rows]


def read_all(paths: Sequence[epath.PathLike]) -> list[RunRecord]:
    """The runs of several paths, each as `read_runs` reads it."""
    return [run for path in paths for run in read_runs(path).values()]


def write_report(workdirs: Sequence[epath.PathLike], output: epath.PathLike) -> list[str]:
    """Writes the page of some runs below `output` (see `write_page`) -> the paths written.

    `workdirs` may be measured files, too. Raises DataError for a workdir without measurements.
    """
    return write_page(runs_page(read_all(workdirs)), output)


def runs_page(runs: Sequence[RunRecord], choice: Choice = STANDARD) -> Page:
    """What there is to say of runs of training and of evaluated models."""
    from r1jax.reports.figures import draw_figures  # matplotlib takes a second to import

    groups = group_runs([run for run in runs if run.metrics])
    questions = questions_of_models([run for run in runs if run.evaluations])
    questions += [question for run in runs for question in questions_of_training(run)]
    return Page(
        ", ".join(run.name for run in runs),
        make_tables(runs, choice),
        draw_figures(_curves(groups), read_paper(), choice.everything),
        questions,
        "\n".join(filter(None, map(samples_page, runs))),
    )


def _curves(groups: Mapping[str, Sequence[RunRecord]]) -> dict[str, list[Any]]:
    return {label: [run.metrics for run in members] for label, members in groups.items()}


def write_sweep_report(directory: epath.PathLike, output: epath.PathLike) -> list[str]:
    """Writes the page of a sweep, of what it has by now: its table and figure, and its runs'."""
    from r1jax.reports.figures import draw_figures

    arms = read_sweep(directory)
    runs = [run for arm in arms for run in arm.runs if run.has_measurements]
    curves = _curves(group_runs([run for run in runs if run.metrics]))
    picture = draw_sweep(arms)
    figures = {"sweep": picture} if picture else {}
    tables = [sweep_table(arms, read_slices(directory)), *make_tables(runs)]
    page = Page(absolute(directory).name, tables, figures | draw_figures(curves, read_paper()))
    return write_page(page, output)


def write_pipeline_report(workdirs: Sequence[epath.PathLike], output: epath.PathLike) -> list[str]:
    """Writes the page of one pipeline, or of several that differ in their seed."""
    return write_page(pipeline_page(read_all(workdirs)), output)


def pipeline_page(pipelines: Sequence[RunRecord], choice: Choice = STANDARD) -> Page:
    """Of one, or several; the picture and the completions are those of the first one."""
    from r1jax.reports.figures import draw_figures, draw_pipeline

    curves: dict[str, list[Any]] = {}
    for pipeline in pipelines:
        for run in pipeline.of_kind("grpo"):
            curves.setdefault(run.label, []).append(run.metrics)
    figures = draw_figures(curves, read_paper(), choice.everything)
    return Page(
        ", ".join(pipeline.name for pipeline in pipelines),
        pipeline_tables(pipelines, choice),
        {"pipeline": draw_pipeline(pipelines[0].stages)} | figures,
        questions_of_models(pipelines[0].of_kind("evaluate")),
    )


def write_page(page: Page, output: epath.PathLike) -> list[str]:
    """Writes OUTPUT/tables/*.{md,csv,tex}, figures/*.png, samples.md, report.md and report.html.

    Only what there is; returns the paths.
    """
    files: dict[str, bytes] = {}
    for table in page.tables:
        for suffix, render in (("md", to_markdown), ("csv", to_csv), ("tex", to_latex)):
            files[f"tables/{table.name}.{suffix}"] = render(table).encode()
    files |= {f"figures/{name}.png": image for name, image in page.figures.items()}
    if page.samples:
        files["samples.md"] = page.samples.encode("utf-8", "replace")
    if files:
        files["report.md"] = _markdown(page).encode()
        files["report.html"] = html_page(page).encode("utf-8", "replace")
    target = absolute(output)
    for name, content in files.items():
        write_atomic(target / name, content)
    return [str(target / name) for name in files]


def _markdown(page: Page) -> str:
    parts = [f"# {page.title}\n", *map(to_markdown, page.tables)]
    parts += [f"![{name}](figures/{name}.png)\n" for name in page.figures]
    if page.samples:
        parts.append("Completions to read: [samples.md](samples.md)\n")
    return "\n".join(parts)


def print_table(workdir: epath.PathLike) -> None:
    """Prints a training run's table of results, if it has any."""
    run = read_run(workdir)
    table = results_table({run.name: [run]})
    if table.rows:
        print_rich(table)


def print_evaluation(workdir: epath.PathLike) -> None:
    """Prints the results of a workdir of `evaluate`, a line per benchmark."""
    print_rich(evaluation_table(read_run(workdir)))
