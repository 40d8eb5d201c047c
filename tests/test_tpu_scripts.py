"""tpu_scripts: what they would run, what they say, and their stories with real processes."""

import base64
import contextlib
import json
import os
import shlex
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import ONE_DEVICE

from r1jax.machines.peers import LOST
from r1jax.machines.preemption import STOPPED

ROOT = Path(__file__).parents[1]
SCRIPTS = ROOT / "tpu_scripts"
HOSTILE = ["a b", "$HOME `id` $(id)", "it's", '{"x": [1, "二"]}', "*", "", "--", "a\\b"]

# It keeps resources as directories, with two workers each, and runs their commands here.
GCLOUD = """#!/usr/bin/env bash
echo "$*" >> "$CLOUD/calls"
echo "WARNING: it is SUSPENDED, and ACTIVE" >&2
if [ "$1" = auth ]; then echo somebody; exit; fi
verb=$4 name=${5%%:*} file= command=
for flag; do case $flag in --command=*) command=${flag#*=} ;; esac; done
case $verb in
  create) mkdir -p "$CLOUD/$name"/{0,1}; echo WAITING_FOR_RESOURCES > "$CLOUD/$name/state" ;;
  describe)
    if [ "$name" = hangs ]; then sleep 100; fi
    if [ "$name" = two ]; then echo "ERROR: UNAVAILABLE" >&2; exit 1; fi
    if [ ! -e "$CLOUD/$name" ]; then echo "ERROR: NOT_FOUND: no such resource" >&2; exit 1; fi
    cat "$CLOUD/$name/state"
    if grep -q WAITING "$CLOUD/$name/state"; then echo ACTIVE > "$CLOUD/$name/state"; fi ;;
  ssh)
    for i in 0 1; do
      (cd "$CLOUD/$name/$i" && HOME=$PWD R1JAX_LOCAL=1 JAX_PROCESS_ID=$i bash -c "$command") &
    done
    wait %1 && wait %2 ;;
  scp) for i in 0 1; do cp "$5" "$CLOUD/${6%%:*}/$i/${6#*:}"; done ;;
  delete) rm -r "${CLOUD:?}/$name" ;;
  list) echo one; echo two; echo zero ;;
esac
"""

# A job of as many processes as nodes; what a step leaves is killed with it, as Slurm does.
SLURM = {
    "sbatch": """
for flag; do case $flag in --wrap=*) wrap=${flag#*=} ;; --nodes=*) nodes=${flag#*=} ;; esac; done
echo PENDING > "$CLOUD/state"
SLURM_JOB_ID=7 NODES=$nodes setsid bash -c "$wrap" > "$CLOUD/hold" 2>&1 < /dev/null &
echo "7;cluster"
""",
    "srun": """
while [[ $1 == --* ]]; do case $1 in --nodes=*) NODES=${1#*=} ;; esac; shift; done
step=$$.$RANDOM code=0 pids=()
for ((i = 0; i < NODES; i++)); do
  STEP=$step SLURM_PROCID=$i SLURM_NTASKS=$NODES "$@" &
  pids+=($!)
done
for pid in "${pids[@]}"; do wait "$pid" || code=$?; done
for file in $(grep -lszx "STEP=$step" /proc/[0-9]*/environ); do kill -KILL "${file//[^0-9]/}"; done
exit $code
""",
    "squeue": """
if [ ! -e "$CLOUD/state" ]; then echo "error: Invalid job id specified" >&2; exit 1; fi
cat "$CLOUD/state"
sed -i s/PENDING/RUNNING/ "$CLOUD/state"
""",
    "scancel": """
all() { grep -lszx SLURM_JOB_ID=7 $(grep -lsz ^STEP= /proc/[0-9]*/environ) | tr -dc '0-9\\n'; }
kill -TERM $(all)
while [ -n "$(all)" ]; do sleep 0.1; done
echo CANCELLED > "$CLOUD/state"
""",
}

# A workload runs here, between the lines that xpk puts around it; the file `queued` lets it wait.
GKE = {
    "xpk": """
for flag; do
  key=${flag%%=*}
  if [[ $flag == --*=* ]]; then printf -v "${key//-/_}" %s "${flag#*=}"; fi
done
case $2 in
  list) echo "zero   now   medium   2   <none>   <none>   QuotaReserved   no room" ;;
  create)
    cd "$__script_dir"
    unset KEY # pods have only what they are given
    rm -f "$CLOUD/code"
    sed 's/^/export /' "${__env_file:-/dev/null}" > "$CLOUD/environment"
    . "$CLOUD/environment"
    echo "$__restart_on_exit_codes" > "$CLOUD/$__workload"
    (
      bash -c "(${__command}) & echo \\$! > $CLOUD/pid; wait \\$!"
      echo $? > "$CLOUD/code"
      echo "EXIT_CODE=$(cat "$CLOUD/code")"
    ) > "$CLOUD/log" 2>&1 < /dev/null & ;;
  delete) rm "$CLOUD/$__workload" && kill -TERM "$(cat "$CLOUD/pid")" ;;
esac
""",
    "kubectl": """
phase=Running end=
if [ -e "$CLOUD/code" ]; then phase=Failed end=Failed; fi
case "$1 $2" in
  "get jobset") if [ -e "$CLOUD/$3" ]; then echo "$3|$end|1"; fi ;;
  "get pods")
    if [ -e "$CLOUD/queued" ]; then exit; fi
    if [ ! -e "$CLOUD/zero" ] && [ -e "$CLOUD/code" ]; then exit; fi
    code=$(cat "$CLOUD/code" 2> /dev/null)
    for i in 1 0; do echo "0.$i|pod-$i|$phase|$(date --iso=s)|$code"; done ;;
  logs*) cat "$CLOUD/log" ;;
esac
""",
    "gcloud": "",
    "python3": "",
}


def script(
    verb: str, *flags: str, expected: int = 0, scripts: Path = SCRIPTS, **environment: str
) -> subprocess.CompletedProcess[str]:
    found = subprocess.run(
        [scripts / verb, "--name=zero", *flags],
        env=os.environ | {"TPU_ENV": "/nonexistent", "R1JAX_PYTHON": sys.executable} | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert found.returncode == expected, found.stdout + found.stderr
    return found


def dry(verb: str, *flags: str, **environment: str) -> list[list[str]]:
    """The commands that it would run, each as its words."""
    said = script(verb, "--project=p", "--zone=z", "--dry_run", *flags, **environment).stdout
    return [shlex.split(line) for line in said.splitlines()]


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="pip install -e '.[test]'")
def test_shellcheck() -> None:
    files = [path for path in SCRIPTS.rglob("*") if path.is_file() and path.suffix in ("", ".sh")]
    assert len(files) > 9
    command = ["shellcheck", "--external-sources", *files]
    found = subprocess.run(command, capture_output=True, text=True, cwd=SCRIPTS)
    assert found.stdout == ""


QUEUED = ["gcloud", "compute", "tpus", "queued-resources"]
WHERE = ["--project=p", "--zone=z"]
EVERYWHERE = ["--node=all", "--worker=all", "--quiet"]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (
            ["--accelerator=v5p-8", "--spot", "--valid_until", "6h"],
            ["--accelerator-type=v5p-8", "--runtime-version=v2-alpha-tpuv5", "--node-id=zero",
             "--spot", "--valid-until-duration=6h"],
        ),
        (
            ["--accelerator=v6e-256", "--slices=4", "--reserved"],
            ["--accelerator-type=v6e-256", "--runtime-version=v2-alpha-tpuv6e", "--node-count=4",
             "--node-prefix=zero", "--reserved"],
        ),
        (
            ["--accelerator=v5litepod-8", "--runtime=mine"],
            ["--accelerator-type=v5litepod-8", "--runtime-version=mine", "--node-id=zero"],
        ),
    ],
)  # fmt: skip
def test_create_would_run(flags: list[str], words: list[str]) -> None:
    assert dry("create", *flags) == [[*QUEUED, "create", "zero", *words, *WHERE]]


def test_verbs_would_run() -> None:
    delete = [*QUEUED, "delete", "zero", "--force", "--quiet", *WHERE]
    assert dry("delete") == [delete]
    state = "--command=bash r1jax/tpu_scripts/worker state zero 8"
    flags = "--run=zero", "--accelerator=v5p-8", "--slices=2"
    assert dry("status", *flags) == [[*QUEUED, "ssh", "zero", *EVERYWHERE, state, *WHERE]]
    assert dry("status", "--name=") == [
        [*QUEUED, "list", "--format=value(name.basename())", *WHERE]
    ]
    tail = "--command=tail -n 9 -F runs/b/log"
    one = ["--node=1", "--worker=3", "--quiet"]
    flags = "--worker=1.3", "--follow", "--lines=9", "--run=b"
    assert dry("logs", *flags) == [[*QUEUED, "ssh", "zero", *one, tail, *WHERE]]
    copied, unpacked, installed, proved = dry("setup", "--workdir=gs://b/my runs")
    assert (copied[4], copied[6]) == ("scp", "zero:r1jax.tar.gz")
    assert "tar --extract" in " ".join(unpacked)
    assert "--command=bash r1jax/tpu_scripts/worker install tpu" in installed
    assert "--command=bash r1jax/tpu_scripts/worker prove gs://b/my\\ runs" in proved


COMPUTE = ["--machine-type=ct5p-hightpu-4t", "--boot-disk-size=200GB", "--labels=r1jax=zero",
           "--maintenance-policy=TERMINATE", "--scopes=cloud-platform",
           "--image-family=ubuntu-accel-2204-amd64-tpu-v5e-v5p-v6e",
           "--image-project=ubuntu-os-accelerator-images"]  # fmt: skip


def test_compute_engine_would_run() -> None:
    """One machine, and a slice of several: a policy, a template, a group."""
    gce, zone = "--backend=gce", "--zone=us-east5-a"
    (one,) = dry("create", gce, "--accelerator=ct5p-hightpu-4t", "--project=p", zone)
    assert one[:5] == ["gcloud", "compute", "instances", "create", "zero"]
    assert {*COMPUTE, zone} < {*one}
    policy, template, group = dry(
        "create", gce, "--accelerator=ct5p-hightpu-4t:4x4x8", "--spot", zone
    )
    assert policy[2:5] == ["resource-policies", "create", "workload-policy"]
    assert {"--type=HIGH_THROUGHPUT", "--accelerator-topology=4x4x8", "--region=us-east5"} < {
        *policy
    }
    assert template[2:5] == ["instance-templates", "create", "zero"]
    assert {*COMPUTE, "--provisioning-model=SPOT"} < {*template}
    assert group[2:6] == ["instance-groups", "managed", "create", "zero"]
    bulk = "--target-size-policy-mode=bulk"
    assert {"--size=32", "--template=zero", bulk, zone} < {*group}
    assert group[-3] == "--workload-policy=projects/p/regions/us-east5/resourcePolicies/zero"
    assert [words[2] for words in dry("delete", gce, zone)] == [
        "instance-groups", "instance-templates", "resource-policies",
    ]  # fmt: skip
    (status,) = dry("status", gce, zone, "--accelerator=ct5p-hightpu-4t:4x4x8")
    assert status[:4] == ["gcloud", "compute", "ssh", "zero"]
    assert "--command=bash r1jax/tpu_scripts/worker state '' 128" in status


def test_slurm_would_run() -> None:
    """The holder of an allocation, what is done here, and what on its nodes."""
    slurm, root = {"R1JAX_SLURM": "/common home"}, "/common home/zero"
    step = ["--ntasks-per-node=1", "--cpu-bind=none", "--mpi=none", "--wait=0",
            "--kill-on-bad-exit=0"]  # fmt: skip
    flags = "--accelerator=h100:8", "--workers=2", "--partition=gpu", "--time=1-00:00"
    *made, job = dry("create", "--backend=slurm", *flags, **slurm)
    assert [words[0] for words in made] == ["mkdir", "mkdir", *["mkdir", "ln"] * 2, "cp"]
    assert made[5] == ["ln", "-s", "../r1jax", "../.r1jax_env", f"{root}/worker-1"]
    hold = shlex.join(["exec", "srun", *step, "bash", f"{root}/worker", "hold", root])
    wrap = job.pop()
    assert shlex.split(wrap.removeprefix("--wrap=")) == shlex.split(hold)
    assert job == [
        "sbatch", "--parsable", "--job-name=zero", "--nodes=2", "--ntasks-per-node=1",
        "--gpus-per-node=h100:8", "--no-requeue", "--signal=TERM@600", f"--output={root}/hold.log",
        "--partition=gpu", "--time=1-00:00", "--exclusive", "--mem=0",
    ]  # fmt: skip
    copied, unpacked, installed, proved = dry("setup", "--backend=slurm", **slurm)
    assert (copied[0], copied[2]) == ("cp", f"{root}/r1jax.tar.gz")
    here = "cd /common\\ home/zero && export R1JAX_VENV=/common\\ home/zero/venv &&"
    assert unpacked[:2] == ["bash", "-c"] and unpacked[2].startswith(here)
    assert installed == ["bash", "-c", f"{here} bash r1jax/tpu_scripts/worker install cuda"]
    srun = ["srun", "--jobid=JOB", "--overlap", "--nodes=1", "--ntasks=1", *step, "bash", "-c"]
    there = here.replace("/zero &&", "/zero/worker-$SLURM_PROCID &&", 1)
    assert proved == [*srun, f"{there} bash r1jax/tpu_scripts/worker prove ''"]
    for verb, flag, said in (
        ("status", "--accelerator=8", "state '' 8"),
        ("stop", "--run=b", "stop b 600"),
        ("launch", "--", "start zero true"),
    ):
        words = dry(verb, "--backend=slurm", flag, *["true"] * (verb == "launch"), **slurm)
        assert words == [[*srun, f"{there} bash r1jax/tpu_scripts/worker {said}"]]
    logs = dry("logs", "--backend=slurm", "--worker=0.1", **slurm)
    tail = "tail -n 50  runs/zero/log"
    assert logs == [["bash", "-c", f"{here.replace('/zero', '/zero/worker-1', 1)} {tail}"]]
    delete = dry("delete", "--backend=slurm", **slurm)
    assert delete == [["scancel", "JOB"], ["rm", "-rf", root]]


def test_gke_would_run(tmp_path: Path) -> None:
    """A workload is all: what creates a slice only asks, what sets it up only copies."""
    settings = tmp_path / "env"
    settings.write_text("accelerator=v5p-16 spot=1 xpk_flags=(--storage='my disk')\n")
    place = tmp_path / "c/zero"
    gke = {"R1JAX_GKE": str(tmp_path), "TPU_ENV": str(settings)}
    flags, where = ("--backend=gke", "--cluster=c"), ["--cluster=c", *WHERE]
    kubectl = ["env", f"KUBECONFIG={place}/kubeconfig", "kubectl"]
    xpk = [*kubectl[:2], "xpk", "workload"]
    parent, made, asked = dry("create", *flags, **gke)
    assert parent == ["mkdir", "-p", f"{tmp_path}/c"]
    assert made == ["mkdir", "-m", "700", str(place)]
    assert asked == [*xpk, "list", *where]
    copied, unpacked = dry("setup", *flags, **gke)
    assert (copied[0], copied[2]) == ("cp", f"{place}/r1jax.tar.gz")
    assert unpacked[:2] == ["bash", "-c"] and unpacked[2].startswith(f"cd {place} && mkdir")
    handed, launched = dry("launch", *flags, "--pass=KEY", "--", *HOSTILE, **gke, KEY="secret")
    assert handed[-1] == f"{place}/.r1jax_env" and handed[0] == "cp"
    *words, coded = launched.pop().split()
    assert words == ["--command=exec", "bash", "tpu_scripts/worker", "pod"]
    line = base64.b64decode(coded).decode()
    split = ["bash", "-c", f'words=({line}); printf "%s\\0" "${{words[@]}}"']
    assert subprocess.check_output(split, text=True).split("\0")[:-1] == HOSTILE
    assert launched == [
        *xpk, "create", *where, "--workload=zero", "--tpu-type=v5p-16", "--num-slices=1",
        "--base-docker-image=python:3.12", f"--script-dir={place}/r1jax", "--max-restarts=50",
        f"--restart-on-exit-codes={STOPPED},{LOST}", "--termination-grace-period-seconds=600",
        "--spot", f"--env-file={place}/env", "--storage=my disk", "--quiet",
    ]  # fmt: skip
    jobset, pods, listed = dry("status", *flags, **gke)
    assert jobset[:6] == [*kubectl, "get", "jobset", "zero"]
    of_zero = "--selector=jobset.sigs.k8s.io/jobset-name=zero"
    assert pods[:6] == [*kubectl, "get", "pods", of_zero]
    assert listed == [*xpk, "list", *where, "--filter-by-job=zero"]
    of_worker = ",jobset.sigs.k8s.io/job-index=1,batch.kubernetes.io/job-completion-index=3"
    logs = dry("logs", *flags, "--worker=1.3", "--lines=9", "--follow", **gke)
    assert logs == [[*kubectl, "logs", of_zero + of_worker, "--tail=9", "--follow"]]
    delete = [*xpk, "delete", *where, "--workload=zero", "--quiet"]
    assert dry("stop", *flags, **gke) == [delete, pods]
    assert dry("delete", *flags, **gke) == [delete, pods, ["rm", "-rf", str(place)]]


def test_settings_from_a_file(tmp_path: Path) -> None:
    """Flags go before it."""
    settings = tmp_path / "env"
    settings.write_text("accelerator=v4-8\nspot=1\nzone=nowhere # a comment\n")
    (words,) = dry("create", TPU_ENV=str(settings))
    assert {"--accelerator-type=v4-8", "--runtime-version=tpu-ubuntu2204-base", "--spot"} < {*words}
    assert "--zone=z" in words


def test_the_number_of_slices_is_a_flag(tmp_path: Path) -> None:
    settings = tmp_path / "env"
    settings.write_text("slices=4\n")
    said = script("create", "--dry_run", "--slices=4", expected=2, TPU_ENV=str(settings)).stderr
    assert said.startswith(f"error: slices=4 in {settings}: to create and to sweep")


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ("/nowhere/c.py:a/b", "--config '/nowhere/c.py' is outside"),
        ("../c.py", "--config '../c.py' is outside"),
        ("runs/c.py", "--config 'runs/c.py': git ignores it"),
    ],
)
def test_a_config_that_workers_would_not_have(config: str, said: str) -> None:
    ignored = ROOT / "runs/c.py"
    is_ours = not ignored.parent.exists()
    ignored.parent.mkdir(exist_ok=True)
    ignored.touch()
    try:
        flags = "--dry_run", "--workdir=/tmp", "--project=p", "--zone=z", f"--config={config}"
        assert said in script("sweep", *flags, expected=2).stderr
    finally:
        ignored.unlink()
        if is_ours:
            ignored.parent.rmdir()


@pytest.mark.parametrize(
    ("verb", "flags", "said"),
    [
        ("create", [], "--project is missing: give it, or write project=... to .tpu_env"),
        ("create", ["--name=Zero_1"], "--name 'Zero_1': Google allows lower-case letters"),
        ("create", ["--nonsense"], "--nonsense is no flag of create; see create --help"),
        ("create", ["--spot=1"], "--spot=1 is no flag of create"),
        ("create", ["--zone"], "--zone wants a value"),
        ("create", ["--backend=azure"], "--backend 'azure' is none of gce gke local queued slurm"),
        ("create", ["--accelerator=a100", "--dry_run", "--project=p", "--zone=z"], "v5litepod-N"),
        (
            "create",
            [
                "--backend=gce",
                "--accelerator=ct6e-standard-8t",
                "--valid_until=6h",
                *WHERE,
                "--dry_run",
            ],
            "--valid_until: Compute Engine has no queue",
        ),
        ("status", ["--project=p", "--zone=z"], "gcloud is not installed: https://cloud"),
        ("create", ["--backend=slurm"], "sbatch is not installed: this runs where one submits"),
        ("create", ["--backend=slurm", "--dry_run"], "--accelerator is missing"),
        ("create", ["--backend=gke", *WHERE], "--cluster is missing: give it, or write cluster="),
        ("logs", ["--backend=gke", *WHERE, "--cluster=c"], "xpk is not installed: https://github"),
        (
            "create",
            ["--backend=gke", *WHERE, "--cluster=c", "--dry_run", "--reserved", "--accelerator=x"],
            "--reserved: write xpk_flags=(--reservation=NAME) to .tpu_env",
        ),
        ("launch", ["--dry_run"], "there is no command: write it behind --"),
        ("launch", ["--backend=local", "--", "true"], "the slice 'zero' is ABSENT, not ACTIVE"),
    ],
)
def test_errors_are_one_sentence(verb: str, flags: list[str], said: str, tmp_path: Path) -> None:
    tools = tmp_path / "bin"  # without gcloud
    tools.mkdir()
    for tool in ("bash", "dirname", "basename", "sed", "env"):
        (tools / tool).symlink_to(str(shutil.which(tool)))
    found = script(verb, *flags, expected=2, PATH=str(tools), R1JAX_SLICES=str(tmp_path))
    assert found.stderr.startswith("error: ")
    assert said in found.stderr
    assert found.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "verb", ["create", "setup", "launch", "status", "logs", "stop", "delete", "sweep"]
)
def test_help(verb: str) -> None:
    said = script(verb, "--help").stdout
    assert f"tpu_scripts/{verb} --name=" in said
    assert "--dry_run" in said
    assert "set -" not in said


@pytest.fixture
def cloud(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Iterator[Path]:
    """Stand-ins for gcloud, or others, and what they keep. What they started ends with the test."""
    (tmp_path / "bin").mkdir()
    log = '#!/usr/bin/env bash\necho "${0##*/} $*" >> "$CLOUD/calls"\n'
    others = {name: log + text for name, text in getattr(request, "param", {}).items()}
    for name, text in (others or {"gcloud": GCLOUD}).items():
        tool = tmp_path / "bin" / name
        tool.write_text(text)
        tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    monkeypatch.setenv("CLOUD", str(tmp_path / "cloud"))
    monkeypatch.setenv("R1JAX_POLL", "0.1")
    (tmp_path / "cloud").mkdir()
    yield tmp_path / "cloud"
    for environment in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):  # it has ended, or is somebody else's
            if f"CLOUD={tmp_path}/cloud".encode() in environment.read_bytes().split(b"\0"):
                os.kill(int(environment.parent.name), signal.SIGKILL)


def until(said: str, *flags: str) -> str:
    """What status says when it says this."""
    for _ in range(200):
        found = script("status", *flags).stdout
        if said in found:
            return found
        time.sleep(0.1)
    raise AssertionError(found)


def test_a_slice_is_created_used_preempted_and_deleted(cloud: Path) -> None:
    where = "--project=p", "--zone=z"
    assert "zero is ACTIVE" in script("create", "--accelerator=v4-8", *where).stdout
    for i in range(2):  # what setup does, without the proof
        worker = cloud / f"zero/{i}/r1jax/tpu_scripts/worker"
        worker.parent.mkdir(parents=True)
        shutil.copy(SCRIPTS / "worker", worker)
    waits = f"until [ -e {cloud}/go ]; do sleep 0.1; done; exit 7"
    step = "zero 3/10  reward 0.5  0:07 left"
    prints = ["bash", "-c", 'printf "%s\\n" "$KEY" "$@"; ' + waits, "-", step, *HOSTILE]
    secret = {"KEY": "s3cret $x 'y'"}
    script("launch", *where, "--pass=KEY", "--", *prints, **secret)
    script("launch", *where, "--once", "--", "true")  # changes nothing
    again = script("launch", *where, "--", "true", expected=2).stderr
    assert again.count("zero still runs as process") == 2
    one = until(step, *where, "--run=zero", "--accelerator=v4-8", "--slices=2")
    assert "running as process" in one and f"0.00 hours, 0.0 chip-hours: {step}" in one
    assert "zero running as process" in until(step, *where)  # as of all runs
    (cloud / "go").touch()
    said = until("ended with exit code 7: a\\b", *where)
    assert "slice zero: ACTIVE" in said
    for i in range(2):
        assert (cloud / f"zero/{i}/runs/zero/log").read_text() == "\n".join(
            [secret["KEY"], step, *HOSTILE, ""]
        )
        assert stat.S_IMODE((cloud / f"zero/{i}/.r1jax_env").stat().st_mode) == 0o600
    assert "s3cret" not in (cloud / "calls").read_text()
    script("launch", *where, "--run=silent", "--", "false")
    until("ended with exit code 1: \n", *where, "--run=silent")
    script("launch", *where, "--once", "--run=silent", "--", "true")  # nor where it has ended
    assert "ended with exit code 1" in script("status", *where, "--run=silent").stdout
    several = script("status", *where, "--name=", expected=2)  # of two nobody says anything
    assert "slice one: ABSENT\nslice zero: ACTIVE\n" in several.stdout
    assert "error: of the slice two nothing is known" in several.stderr
    (cloud / "zero/state").write_text("SUSPENDED\n")
    assert script("status", *where).stdout == "slice zero: PREEMPTED\n"
    assert "is PREEMPTED, not ACTIVE" in script("stop", *where, expected=2).stderr
    script("delete", *where)
    assert script("status", *where).stdout == "slice zero: ABSENT\n"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A small repository with these scripts, whose commit `v1` has other files than its tree."""
    tree = tmp_path / "tree"
    shutil.copytree(SCRIPTS, tree / "tpu_scripts")
    (tree / "kept").write_text("of v1")
    (tree / "r1jax").mkdir()
    (tree / "r1jax/gone ü.py").touch()
    git = ["git", "-c", "user.name=x", "-c", "user.email=x"]
    for words in (["init", "--quiet"], ["add", "."], ["commit", "-qm", "1"], ["tag", "v1"]):
        subprocess.run([*git, *words], cwd=tree, check=True)
    (tree / "r1jax/gone ü.py").unlink()
    (tree / "r1jax/new.py").touch()
    (tree / "kept").write_text("of the tree")
    return tree


def test_setup_copies_a_ref(tree: Path, tmp_path: Path) -> None:
    """What the copy before had, and this one has not, goes; what runs have written stays."""
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\n")
    python.chmod(0o755)
    environment = {
        "R1JAX_SLICES": str(tmp_path / "slices"),
        "R1JAX_PYTHON": str(python),
        "LC_ALL": "C",
    }
    copied = tmp_path / "slices/zero/worker-0/r1jax"

    def setup(*flags: str, expected: int = 0) -> subprocess.CompletedProcess[str]:
        scripts = tree / "tpu_scripts"
        flags = "--backend=local", *flags
        return script("setup", *flags, scripts=scripts, expected=expected, **environment)

    script("create", "--backend=local", **environment)
    for ref, kept, python_file in (
        ("", "of the tree", "new.py"), ("v1", "of v1", "gone ü.py"), ("", "of the tree", "new.py"),
    ):  # fmt: skip
        setup(*[f"--ref={ref}"] * bool(ref))
        assert (copied / "kept").read_text() == kept
        assert [path.name for path in (copied / "r1jax").glob("*.py")] == [python_file]
        (copied / "written").touch()
    assert (copied / "written").exists()
    for ref in ("v2", "--help", "v1:kept"):
        said = setup(f"--ref={ref}", expected=2).stderr
        assert said == f"error: --ref '{ref}' is no commit, tag or branch of {tree}\n"
    shutil.rmtree(tree / ".git")
    said = setup("--ref=v1", expected=2).stderr
    assert said == f"error: --ref 'v1': {tree} is no git repository\n"


@pytest.mark.parametrize("cloud", [SLURM], indirect=True)
def test_slurm_nodes_are_set_up_used_and_told_to_stop(
    cloud: Path, tree: Path, tmp_path: Path
) -> None:
    """Processes of two nodes with one home, which outlive the step that started them."""
    python = tmp_path / "bin/python"
    python.write_text('#!/bin/sh\necho "proved $SLURM_PROCID of $SLURM_NTASKS" >&2\n')
    python.chmod(0o755)
    environment = {
        "R1JAX_SLURM": f"{tmp_path}/common home", "R1JAX_PYTHON": str(python), "R1JAX_LOCAL": "1",
    }  # fmt: skip
    root = tmp_path / "common home/zero"

    def call(verb: str, *flags: str, **more: str) -> subprocess.CompletedProcess[str]:
        expected = int(more.pop("expected", "0"))
        scripts, flags = tree / "tpu_scripts", ("--backend=slurm", *flags)
        return script(verb, *flags, scripts=scripts, expected=expected, **environment, **more)

    def wait(said: str, *flags: str) -> str:
        for _ in range(100):
            found = call("status", *flags).stdout
            if found.count(said) == 2:
                return found
            time.sleep(0.1)
        raise AssertionError(found)

    assert "zero is ACTIVE" in call("create", "--accelerator=8", "--workers=2").stdout
    assert "is there already" in call("create", "--accelerator=8", expected="2").stderr
    said = call("setup").stderr
    assert "proved 0 of 2\n" in said and "proved 1 of 2\n" in said
    assert stat.S_IMODE(root.stat().st_mode) == 0o700
    step = "zero 3/10  reward 0.5  0:07 left"
    rest = 'trap "sleep 0.5; exit 75" TERM; while :; do sleep 0.1; done'
    prints = ["bash", "-c", 'printf "%s\\n" "$KEY" "$@"; ' + rest, "-", *HOSTILE, step]
    secret = {"KEY": "s3cret $x 'y'"}
    started = call("launch", "--pass=KEY", "--", *prints, **secret).stdout
    assert sorted(line[:9] for line in started.splitlines()) == ["worker 0 ", "worker 1 "]
    again = call("launch", "--", "true", expected="2").stderr
    assert again.count("zero still runs as process") == 2
    running = wait(f"0.00 hours, 0.0 chip-hours: {step}", "--run=zero", "--accelerator=8")
    assert "slice zero: ACTIVE" in running and running.count("running as process") == 2
    assert "s3cret" not in (cloud / "calls").read_text()
    assert stat.S_IMODE((root / ".r1jax_env").stat().st_mode) == 0o600
    for i in range(2):
        log = call("logs", f"--worker=0.{i}").stdout
        assert log == "\n".join([secret["KEY"], *HOSTILE, step, ""])
    call("launch", "--run=b", "--", "false")
    wait("b ended with exit code 1")
    assert call("stop").stdout.count(f"ended with exit code {STOPPED}: {step}") == 2
    call("launch", "--", *prints)  # once more, and Slurm tells it to end
    wait("running as process", "--run=zero")
    (cloud / "state").write_text("SUSPENDED\n")
    assert call("status").stdout == "slice zero: QUEUED\n"
    (cloud / "state").write_text("RUNNING\n")
    codes = [root / f"worker-{i}/runs/zero/code" for i in range(2)]
    assert not any(code.exists() for code in codes)
    subprocess.run(["scancel", "7"], check=True)
    assert [code.read_text() for code in codes] == [f"{STOPPED}\n"] * 2
    for state, said in (("NODE_FAIL", "PREEMPTED"), ("TIMEOUT", "PREEMPTED"), ("FAILED", "FAILED")):
        (cloud / "state").write_text(f"{state}\n")
        assert call("status").stdout == f"slice zero: {said}\n"
    (cloud / "state").unlink()  # forgotten
    assert call("status", "--name=").stdout == "slice zero: PREEMPTED\n"
    call("delete")
    assert call("status").stdout == "slice zero: ABSENT\n" and not root.exists()
    call("create", "--accelerator=8")
    call("delete")  # one that is there
    assert (cloud / "state").read_text() == "CANCELLED\n" and not root.exists()


@pytest.mark.parametrize("cloud", [GKE], indirect=True)
def test_a_workload_of_gke(cloud: Path, tree: Path, tmp_path: Path) -> None:
    """What comes out of xpk's shell, how its pods' states are told, and that a run ends once."""
    flags = "--backend=gke", "--project=p", "--zone=z", "--cluster=c"

    def call(verb: str, *more: str, expected: int = 0, **environment: str) -> str:
        found = script(
            verb, *flags, *more, expected=expected, scripts=tree / "tpu_scripts",
            R1JAX_GKE=str(tmp_path / "gke"), **environment,
        )  # fmt: skip
        return found.stdout + found.stderr

    assert "zero is ACTIVE" in call("create", "--accelerator=v5p-16", "--spot")
    assert "has no tree: tpu_scripts/setup" in call("launch", "--", "true", expected=2)
    call("setup", "--ref=v1")
    assert (tmp_path / "gke/c/zero/r1jax/kept").read_text() == "of v1"
    step = "zero 3/10  reward 0.5  0:07 left"
    waits = f"until [ -e {cloud}/go ]; do sleep 0.1; done; exit 7"
    prints = ["bash", "-c", 'printf "%s\\n" "$KEY" "$@"; ' + waits, "-", step, *HOSTILE]
    secret = {"KEY": "s3cret $x 'y' \"z\""}
    (cloud / "queued").touch()
    call("launch", "--pass=KEY", "--", *prints, **secret)
    assert call("status") == (
        "slice zero: ACTIVE\nworker 0.0 (zero): zero queued: now medium 2 <none> <none>"
        " QuotaReserved no room\n"
    )
    (cloud / "queued").unlink()
    assert "zero still runs: stop it first" in call("launch", "--", "true", expected=2)
    for _ in range(100):
        said = call("status", "--run=zero")
        if step in said:
            break
        time.sleep(0.1)
    assert said.count(f"running as pod-0, 0.00 hours, 0.0 chip-hours, restarts: 1: {step}") == 1
    assert "worker 0.1 (zero): running as pod-1, 0.00 hours, 0.0 chip-hours, restarts: 1\n" in said
    (cloud / "go").touch()
    for _ in range(100):
        said = call("status")
        if "ended" in said:
            break
        time.sleep(0.1)
    assert "worker 0.0 (zero): zero ended with exit code 7: a\\b" in said
    assert call("logs") == "\n".join([secret["KEY"], step, *HOSTILE, "EXIT_CODE=7", ""])
    calls = (cloud / "calls").read_text()
    assert (
        "s3cret" not in calls
        and "--spot" in calls
        and f"--restart-on-exit-codes={STOPPED}" in calls
    )
    call("launch", "--", "bash", "-c", "trap 'exit 75' TERM; echo up; while sleep 0.1; do :; done")
    for _ in range(100):
        if "up" in (cloud / "log").read_text():
            break
        time.sleep(0.1)
    assert "stopped, and gone with its log" in call("stop")
    assert (cloud / "code").read_text() == f"{STOPPED}\n"
    assert "zero never started" in call("status")
    call("delete")
    assert call("status") == "slice zero: ABSENT\n"


def test_deleting_kills_what_ran_there_and_nothing_else(tmp_path: Path) -> None:
    """A number in a pid file may by now be somebody else's."""
    local = {"R1JAX_SLICES": str(tmp_path)}
    script("create", "--backend=local", **local)
    home = tmp_path / "zero/worker-0"
    other = subprocess.Popen(["sleep", "100"], start_new_session=True)
    ours = subprocess.Popen(
        ["sleep", "100"], start_new_session=True, env=os.environ | {"HOME": str(home)}
    )
    (home / "runs/old").mkdir(parents=True)
    (home / "runs/old/pid").write_text(f"{other.pid}\n")
    time.sleep(0.2)
    script("delete", "--backend=local", **local)
    assert ours.wait(timeout=5) == -9
    assert other.poll() is None
    other.kill()
    other.wait()
    assert list(tmp_path.iterdir()) == []


def test_a_state_that_nobody_tells(cloud: Path) -> None:
    flags = "--project=p", "--zone=z", "--name=hangs"
    said = script("status", *flags, expected=2, R1JAX_VERB_SECONDS="0.3").stderr
    assert "error: gcloud does not answer" in said or "WARNING" in said
    assert "error: of the slice hangs nothing is known" in said


@pytest.mark.slow
def test_two_local_workers_train_stop_and_go_on(tokenizer_dir: str, tmp_path: Path) -> None:
    """From the working tree to a checkpoint: setup proves itself, stop waits for the run's end."""
    environment = {"R1JAX_SLICES": str(tmp_path), "XLA_FLAGS": ONE_DEVICE}
    local = "--backend=local"
    (tmp_path / "config.py").write_text(
        "from helpers import sft_config\n\ndef get_config(arg=''):\n"
        f"    return sft_config({tokenizer_dir!r}, total_steps=int(arg), checkpoint_every=0)\n"
    )
    script("create", local, "--workers=2", **environment)
    work = tmp_path / "work"
    proof = script("setup", local, f"--workdir={work}", **environment).stderr
    assert "1 of 2 cpu devices, all sum to 2, writes to" in proof
    assert proof.count("worker 0 (") == proof.count("worker 1 (") == 1

    def launch(steps: int) -> None:
        train = ["python", "-m", "r1jax.train", f"--config={tmp_path}/config.py:{steps}"]
        tests = f'PYTHONPATH=$PYTHONPATH:{ROOT / "tests"} exec "$@"'
        command = ["bash", "-c", tests, "-", *train, f"--workdir={work}"]
        script("launch", local, "--", *command, **environment)

    launch(400)
    metrics = work / "metrics.jsonl"
    for _ in range(600):
        if metrics.exists() and len(metrics.read_text().splitlines()) > 3:
            break
        time.sleep(0.1)
    stopped = script("stop", local, **environment).stdout
    assert stopped.count(f"ended with exit code {STOPPED}") == 2
    steps = json.loads(metrics.read_text().splitlines()[-1])["step"]
    assert [path.name for path in (work / "checkpoints").iterdir()] == [str(steps)]
    assert "stopped by SIGTERM" in script("logs", local, **environment).stdout
    (tmp_path / "zero/preempted").touch()
    assert "PREEMPTED" in script("status", local, **environment).stdout
    script("delete", local, **environment)
