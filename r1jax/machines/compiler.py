"""Options of the TPU's compiler: the same for runs on TPUs and for plans."""

from __future__ import annotations

import os

VARIABLE = "LIBTPU_INIT_ARGS"  # read by libtpu when it is loaded, on CPUs and GPUs by nobody
# A layer's gathers of weights run beside its products, where without these two (both are needed)
# all others wait for them. Named in MaxText's benchmarks/xla_flags_library.py (CF_FOR_ALL_GATHER),
# whose further options libtpu 0.0.42.1 has on already.
TPU_OPTIONS = {
    "xla_enable_async_all_gather": "true",
    "xla_tpu_enable_async_collective_fusion_fuse_all_gather": "true",
}


def set_tpu_options() -> str:
    """Sets them for what is compiled from now on -> all that stand. Those that the user has set in
    LIBTPU_INIT_ARGS stay as they are.
    """
    given = os.environ.get(VARIABLE, "").split()
    names = {option.lstrip("-").partition("=")[0] for option in given}
    ours = [f"--{name}={value}" for name, value in TPU_OPTIONS.items() if name not in names]
    os.environ[VARIABLE] = " ".join([*given, *ours])
    return os.environ[VARIABLE]
