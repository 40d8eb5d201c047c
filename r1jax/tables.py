"""Tables and figures of one or several runs, with the paper's beside them, from their files alone.

    python -m r1jax.tables --workdirs DIR,DIR,... --output DIR
    python -m r1jax.tables --claims FILE.py --workdirs DIR --output DIR

Workdirs of `train` (runs that differ only in their seed are shown as mean and standard deviation),
of `evaluate`, or of pipelines (several are seeds of one). Writes OUTPUT/tables/*.md, *.csv and
*.tex, OUTPUT/figures/*.png, report.md and report.html, which show all of them, and samples.md
(completions before and after).

With --claims, DIR has the runs that the claims file asks for (experiments/mini/claims.py), and what
is written is OUTPUT/README.md: the paper's claims, our numbers, a verdict for each.
"""

from absl import flags

from r1jax.cli import run_command
from r1jax.config import ConfigError, DataError
from r1jax.files import absolute
from r1jax.reports.claims import write_claims
from r1jax.reports.pipeline import is_pipeline, pipeline_tables
from r1jax.reports.runs import read_run
from r1jax.reports.table import print_rich
from r1jax.reports.write import make_tables, write_pipeline_report, write_report


def define_flags() -> None:
    flags.DEFINE_list("workdirs", None, "Workdirs, separated by commas.", required=True)
    flags.DEFINE_string("claims", None, "FILE.py with claims().")
    flags.DEFINE_string("output", None, "Directory to write to.", required=True)


def joined(parts: list[str]) -> list[str]:
    """The directories among parts that were split at commas; a sweep's names hold commas."""
    found: list[str] = []
    rest = list(parts)
    while rest:
        counts = range(len(rest), 0, -1)
        count = next((n for n in counts if absolute(",".join(rest[:n])).exists()), 1)
        found.append(",".join(rest[:count]))
        rest = rest[count:]
    return found


def main() -> None:
    workdirs, output = joined(flags.FLAGS.workdirs), flags.FLAGS.output
    if not workdirs:
        raise ConfigError("--workdirs names no directory")
    if flags.FLAGS.claims:
        if len(workdirs) > 1:
            raise ConfigError("--claims wants one directory in --workdirs, that of all its runs")
        print(f"wrote {write_claims(flags.FLAGS.claims, workdirs[0], output)}")
        return
    pipelines = [workdir for workdir in workdirs if is_pipeline(workdir)]
    if pipelines and len(pipelines) < len(workdirs):
        raise ConfigError(f"--workdirs: {pipelines[0]} is a pipeline's, but not all of them are")
    if pipelines:
        tables_of_pipelines(pipelines, output)
        return
    runs = [read_run(workdir) for workdir in workdirs]
    for table in make_tables(runs):
        if table.name in ("results", "models"):  # the others are too wide for a terminal
            print_rich(table)
    paths = write_report(workdirs, output)
    if not paths:
        raise DataError(
            f"{', '.join(workdirs)}: nothing to report, neither evaluations nor GRPO metrics"
        )
    for path in paths:
        print(f"wrote {path}")


def tables_of_pipelines(workdirs: list[str], output: str) -> None:
    for table in pipeline_tables(workdirs):
        print_rich(table)
    for path in write_pipeline_report(workdirs, output):
        print(f"wrote {path}")


if __name__ == "__main__":
    define_flags()
    run_command(main)
