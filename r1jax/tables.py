"""Tables and figures of one or several runs, with the paper's beside them, from their files alone.

    python -m r1jax.tables --workdirs DIR,DIR,... --output DIR
    python -m r1jax.tables --sweep DIR --output DIR
    python -m r1jax.tables --claims FILE.py --workdirs DIR --output DIR
    python -m r1jax.tables --workdirs DIR,DIR,... --measured FILE.jsonl

Workdirs of `train` (runs that differ only in their seed are shown as mean and standard deviation),
of `evaluate`, or of pipelines (several are seeds of one). Writes OUTPUT/tables/*.md, *.csv and
*.tex, OUTPUT/figures/*.png, report.md and report.html, which show all of them, and samples.md
(completions before and after).

The paper's tables have the evaluated models beside the paper's and their distance from one of
these: --beside "R1-Zero" names it. Which of a model's benchmarks are the paper's says its
results.json. Several evaluations of one label, or of one MODEL, that differ in their seed are one
model: mean and standard deviation. Tables and figures without a number of ours are left out, but
with --all_of_paper. Two models or more are compared on the same problems (tables/paired.*).

With --sweep, DIR is the workdir of a sweep, complete or not, here or on slices: a line for each
setting (the keys that differ; mean and standard deviation over seeds; chip-hours), a figure of
them, and what the runs' own tables and figures show.

With --claims, DIR has the runs that the claims file asks for (experiments/mini/claims.py), and what
is written is OUTPUT/README.md: the paper's claims, our numbers, a verdict for each.

With --measured, what all this is made of (but completions) becomes one file to commit, a line a run
(r1jax/reports/measured.py). Such a file stands for its workdirs in --workdirs, and so does a
directory of either.
"""

from absl import flags

from r1jax.cli import run_command
from r1jax.config import ConfigError, DataError
from r1jax.files import absolute
from r1jax.machines.queue import read_slices
from r1jax.reports.claims import write_claims
from r1jax.reports.measured import read_runs, write_measured
from r1jax.reports.paper_tables import Choice
from r1jax.reports.runs import RunRecord
from r1jax.reports.sweep import read_sweep, sweep_table
from r1jax.reports.table import print_rich
from r1jax.reports.write import (
    pipeline_page,
    read_all,
    runs_page,
    write_page,
    write_sweep_report,
)


def define_flags() -> None:
    flags.DEFINE_list("workdirs", [], "Workdirs or measured files, separated by commas.")
    flags.DEFINE_string("sweep", None, "Workdir of a sweep.")
    flags.DEFINE_string("claims", None, "FILE.py with claims().")
    flags.DEFINE_string("output", None, "Directory to write to.")
    flags.DEFINE_string("beside", None, "The paper's model that ours are compared with.")
    flags.DEFINE_bool("all_of_paper", False, "All tables and figures of the paper.")
    flags.DEFINE_string("measured", None, "FILE.jsonl to write, with a line a run.")


def joined(parts: list[str]) -> list[str]:
    """The paths among parts that were split at commas; a sweep's names hold commas."""
    found: list[str] = []
    rest = list(parts)
    while rest:
        counts = range(len(rest), 0, -1)
        count = next((n for n in counts if absolute(",".join(rest[:n])).exists()), 1)
        found.append(",".join(rest[:count]))
        rest = rest[count:]
    return found


def main() -> None:
    args = flags.FLAGS
    workdirs = joined(args.workdirs)
    if bool(workdirs) == bool(args.sweep):
        raise ConfigError("tables wants either --workdirs or --sweep, which name directories")
    if args.sweep and (args.measured or args.claims or not args.output):
        raise ConfigError("--sweep wants --output and nothing else")
    if bool(args.output) == bool(args.measured):
        raise ConfigError("tables wants either --output or --measured")
    if (args.beside or args.all_of_paper) and (args.sweep or args.measured or args.claims):
        raise ConfigError("--beside and --all_of_paper are for --workdirs and --output alone")
    if args.sweep:
        print_rich(sweep_table(read_sweep(args.sweep), read_slices(args.sweep)))
        for path in write_sweep_report(args.sweep, args.output):
            print(f"wrote {path}")
    elif args.measured:
        measure(workdirs, args.measured)
    elif args.claims:
        if len(workdirs) > 1:
            raise ConfigError("--claims wants one directory in --workdirs, that of all its runs")
        print(f"wrote {write_claims(args.claims, workdirs[0], args.output)}")
    else:
        report(workdirs, args.output, Choice(args.beside, args.all_of_paper, hours=True))


def measure(workdirs: list[str], path: str) -> None:
    """Writes the measured file of the workdirs."""
    runs: dict[str, RunRecord] = {}
    for workdir in workdirs:
        found = read_runs(workdir)
        if twice := sorted(set(found) & set(runs)):
            raise ConfigError(f"--workdirs has two runs called {twice[0]!r}")
        runs |= found
    write_measured(runs, path)
    print(f"wrote {path} (runs: {len(runs)})")


def report(workdirs: list[str], output: str, choice: Choice) -> None:
    """Prints the main tables and writes the page."""
    runs = read_all(workdirs)
    pipelines = [run for run in runs if run.stages]
    if pipelines and len(pipelines) < len(runs):
        name = pipelines[0].workdir
        raise ConfigError(f"--workdirs: {name} is a pipeline's, but not all of them are")
    page = pipeline_page(runs, choice) if pipelines else runs_page(runs, choice)
    for table in page.tables:
        if pipelines or table.name in ("results", "models"):  # others are too wide for a terminal
            print_rich(table)
    paths = write_page(page, output)
    if not paths:
        raise DataError(
            f"{', '.join(workdirs)}: nothing to report, neither evaluations nor GRPO metrics"
        )
    for path in paths:
        print(f"wrote {path}")


if __name__ == "__main__":
    define_flags()
    run_command(main)
