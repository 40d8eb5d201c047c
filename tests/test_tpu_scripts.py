"""tpu_scripts: what they would run, what they say, and their stories with real processes."""

import json
import os
import shlex
import shutil
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers import ONE_DEVICE

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


def script(
    verb: str, *flags: str, expected: int = 0, **environment: str
) -> subprocess.CompletedProcess[str]:
    found = subprocess.run(
        [SCRIPTS / verb, "--name=zero", *flags],
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
    copied, unpacked, proved = dry("setup", "--workdir=gs://b/my runs")
    assert (copied[4], copied[6]) == ("scp", "zero:r1jax.tar.gz")
    assert "tar --extract" in " ".join(unpacked)
    assert "--command=bash r1jax/tpu_scripts/worker setup gs://b/my\\ runs" in proved


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
        ("create", ["--backend=azure"], "--backend 'azure' is none of gce local queued"),
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
def cloud(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in for gcloud, and what it keeps."""
    (tmp_path / "bin").mkdir()
    gcloud = tmp_path / "bin/gcloud"
    gcloud.write_text(GCLOUD)
    gcloud.chmod(gcloud.stat().st_mode | stat.S_IEXEC)
    monkeypatch.setenv("PATH", f"{gcloud.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("CLOUD", str(tmp_path / "cloud"))
    monkeypatch.setenv("R1JAX_POLL", "0.1")
    (tmp_path / "cloud").mkdir()
    return tmp_path / "cloud"


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
