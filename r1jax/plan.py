"""Plans a config for TPUs that are not here, on any CPU: does it fit, and how long does it take?

    python -m r1jax.plan --config experiments/FILE.py[:arg,arg=value] --topology v5p:4x4x8 \\
        [--slices N] [--output FILE.json] [--mean_completion N] [--mean_prompt N] [--price DOLLARS]

Every program of the stage (of a pipeline: of each of its stages) is compiled by the TPU's own
compiler (pip install -e ".[tpu]") from shapes alone; no weight is read. A model that is not there
is known by its name (models/zoo.py). Prints memory by program and kind, FLOPs, bytes, collectives,
and a roofline of an iteration and the run. Exit code 0: it fits; 3: it does not.
"""

import os
import sys
from typing import Any

from absl import flags

from r1jax.cli import define_config, run_command
from r1jax.machines.topology import CHIPS, slices_of
from r1jax.stages import checked, to_plan

CONFIG = define_config("FILE.py[:arg,arg=value] to plan.")
TOPOLOGY = flags.DEFINE_string(
    "topology", None, f"KIND:AxBxC, chips along each axis; of {', '.join(CHIPS)}.", required=True
)
SLICES = flags.DEFINE_integer("slices", 1, "Slices of that topology.", lower_bound=1)
OUTPUT = flags.DEFINE_string("output", None, "A JSON file to write.")
MEAN = flags.DEFINE_integer(
    "mean_completion", 0, "Tokens of a completion; 0: a quarter of the most.", lower_bound=0
)
PROMPT = flags.DEFINE_integer("mean_prompt", 200, "Tokens of a prompt.", lower_bound=1)
ROWS = flags.DEFINE_integer(
    "rows", 0, "Rows of training data, where the config counts epochs.", lower_bound=0
)
PRICE = flags.DEFINE_float("price", 0.0, "Dollars a chip-hour.", lower_bound=0.0)
flags.mark_flag_as_required("config")


def main() -> None:
    os.environ["JAX_PLATFORMS"] = "cpu"  # before JAX: nothing here may ask for a TPU
    from r1jax.machines.mesh import make_mesh
    from r1jax.machines.planned import Assumed
    from r1jax.reports.plan import as_json, as_text, make_plan, write_json

    config, slices = CONFIG.value, slices_of(TOPOLOGY.value, SLICES.value)
    assumed = Assumed(MEAN.value, PROMPT.value, ROWS.value)
    found: dict[str, Any] = {}
    for name, (one, programs_of) in to_plan(config).items():
        settings = checked(one, f"config.stages.{name}" if name else "config")
        mesh = make_mesh(settings.mesh, slices.devices)
        plan = make_plan(programs_of(settings, mesh, assumed, slices.chip.hbm), slices, mesh)
        found[name] = as_json(plan, PRICE.value)
        print((f"{name}: " if name else "") + as_text(plan, PRICE.value) + "\n", flush=True)
    fits = all(one["fits"] for one in found.values())
    if OUTPUT.value:
        write_json(found.get("", {"fits": fits, "stages": found}), OUTPUT.value)
    if not fits:
        sys.exit(3)


if __name__ == "__main__":
    run_command(main)
