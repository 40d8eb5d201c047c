# What the verbs share: settings, flags, errors, the backend. They source it; it is no command.
# shellcheck shell=bash disable=SC2034  # verbs and backends read what is set here
set -euo pipefail
name_optional=${name_optional:-} # set by a verb that can do without
tpu_scripts=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
repository=$(dirname "$tpu_scripts")

die() {
  printf 'error: %s\n' "$*" >&2
  exit 2
}

# begin "VALUES" "SWITCHES" "$@": --key=value or --key value for the VALUES, --key for the SWITCHES
# (and --dry_run), each of which becomes a variable; what follows -- becomes the array `command`.
# What no flag says is what .tpu_env says. Then the backend is there.
begin() {
  local values="name backend project zone cluster $1" switches="dry_run $2" key
  shift 2
  for key in $values $switches; do printf -v "$key" ''; done
  command=()
  backend=queued
  slices=
  local settings=${TPU_ENV:-$repository/.tpu_env}
  # shellcheck source=/dev/null
  if [ -e "$settings" ]; then source "$settings"; fi
  [ -z "$slices" ] ||
    die "slices=$slices in $settings: to create and to sweep it is not the same, so only flags say it"
  while [ $# -gt 0 ]; do
    key=${1#--}
    key=${key%%=*}
    if [ "$1" = -- ]; then
      command=("${@:2}")
      break
    elif [ "$1" = --help ]; then
      sed -n '2,/^[^#]/s/^#\( \|$\)//p' "$0"
      exit
    elif [[ $1 == --* && " $switches " == *" $key "* && $1 != *=* ]]; then
      printf -v "$key" 1
    elif [[ $1 == --*=* && " $values " == *" $key "* ]]; then
      printf -v "$key" '%s' "${1#*=}"
    elif [[ $1 == --* && " $values " == *" $key "* ]]; then
      [ $# -gt 1 ] || die "$1 wants a value"
      printf -v "$key" '%s' "$2"
      shift
    else
      die "$1 is no flag of $(basename "$0"); see $(basename "$0") --help"
    fi
    shift
  done
  [ -n "$name$name_optional" ] || die "--name is missing: what the slice is called"
  [[ -z $name || $name =~ ^[a-z]([-a-z0-9]{0,60}[a-z0-9])?$ ]] ||
    die "--name '$name': Google allows lower-case letters, digits and -, beginning with a letter"
  [ -e "$tpu_scripts/backends/$backend.sh" ] ||
    die "--backend '$backend' is none of $(cd "$tpu_scripts/backends" && echo *.sh | sed 's/\.sh//g')"
  # shellcheck source=/dev/null
  source "$tpu_scripts/backends/$backend.sh"
  if [ -z "$dry_run" ]; then backend_ready; fi
}

# Runs a command, or prints it, so that it could be pasted. With a `limit` (seconds) it ends then.
execute() {
  if [ -n "$dry_run" ]; then
    quoted "$@"
  elif [ -n "${limit:-}" ] && command -v timeout > /dev/null; then
    timeout "$limit" "$@"
  else
    "$@"
  fi
}

# asked COMMAND...: where `execute` is in it, that takes a minute at most. What hangs says nothing.
asked() {
  local limit=${R1JAX_VERB_SECONDS:-60}
  "$@"
}

# A command as one line of bash, whatever its words hold.
quoted() {
  local word line=
  for word in "$@"; do printf -v line '%s %q' "$line" "$word"; done
  printf '%s\n' "${line# }"
}

# on_each FUNCTION LINE PLACE...: FUNCTION PLACE LINE for all places at once; not 0 where one fails.
on_each() {
  local function=$1 line=$2 place pids=() pid failed=0
  for place in "${@:3}"; do
    "$function" "$place" "$line" &
    pids+=($!)
  done
  for pid in "${pids[@]}"; do wait "$pid" || failed=1; done
  return $failed
}

# needed KEY...: settings that this backend cannot do without.
needed() {
  local key
  for key in "$@"; do
    [ -n "${!key}" ] || die "--$key is missing: give it, or write $key=... to .tpu_env"
  done
}

# chips_of ACCELERATOR SLICES: their number; empty where the type is not known.
chips_of() {
  local count=${1##*-}
  case $1 in
    v4-* | v5p-*) echo $((count * $2 / 2)) ;; # counts cores
    v5litepod-* | v6e-*) echo $((count * $2)) ;;
    *:*) # a topology: 4x4x8
      count=${1#*:}
      echo $((${count//x/*}))
      ;;
    *-[0-9]*t) echo "${count%t}" ;;
  esac
}

gcloud_ready() {
  needed project zone
  command -v gcloud > /dev/null ||
    die "gcloud is not installed: https://cloud.google.com/sdk/docs/install"
  [ -n "$(gcloud auth list --filter=status:ACTIVE --format='value(account)' 2> /dev/null)" ] ||
    die "gcloud is not logged in: gcloud auth login"
}

# What this working tree has, committed or not, without ignored files, each followed by a 0. A
# repository made for the purpose reads .gitignore, as the tree may be an archive that has none.
tree_files() {
  (
    cd "$repository"
    empty=$(mktemp --directory)
    trap 'rm -rf "$empty"' EXIT
    git init --quiet --bare "$empty"
    git --git-dir="$empty" --work-tree=. ls-files -z --others --exclude-standard
  )
}

# pack_tree FILE: what --ref has, else all of them.
pack_tree() {
  if [ -z "$ref" ]; then
    tree_files | tar --directory="$repository" --create --gzip --null --files-from=- --file="$1"
    return
  fi
  git -C "$repository" rev-parse --git-dir > /dev/null 2>&1 ||
    die "--ref '$ref': $repository is no git repository"
  git -C "$repository" rev-parse --quiet --verify "$ref^{commit}" > /dev/null ||
    die "--ref '$ref' is no commit, tag or branch of $repository"
  git -C "$repository" archive --format=tar.gz --output="$1" "$ref"
}

# active: dies unless the slice is there.
active() {
  if [ -n "$dry_run" ]; then return; fi
  local state
  state=$(slice_state)
  [ "$state" = ACTIVE ] || die "the slice '$name' is $state, not ACTIVE"
}

# The worker's part of a verb, as a command for on_workers.
worker_command() {
  printf 'bash r1jax/tpu_scripts/worker %s' "$(quoted "$@")"
}

# From here on what a verb does where nothing is special; a backend may have its own.

extra=tpu # of r1jax, which is installed

# In r1jax/ what the archive has; what the one before had and it has not goes.
unpack="mkdir -p r1jax && tar --list --gzip --file=r1jax.tar.gz --quoting-style=literal"
unpack+=" | grep -v '/$' | LC_ALL=C sort > r1jax.new && { [ ! -e r1jax.files ] || LC_ALL=C comm -23"
unpack+=" r1jax.files r1jax.new | (cd r1jax && xargs --no-run-if-empty -d '\n' rm -f); } &&"
unpack+=" mv r1jax.new r1jax.files && tar --extract --gzip --file=r1jax.tar.gz --directory=r1jax"

# set_up ARCHIVE WORKDIR QUEUE: the tree, what it needs, and the proof.
set_up() {
  copy_in "$1" r1jax.tar.gz
  on_homes "$unpack"
  on_homes "$(worker_command install "$extra")"
  on_workers "$(worker_command prove "$2" ${3:+"$3"})"
}

# A line of bash in every home that workers have.
on_homes() { on_workers "$1"; }

# hand_on FILE: variables that nobody else may read.
hand_on() {
  copy_in "$1" .r1jax_env
  on_workers "chmod 600 .r1jax_env"
}

# start_run RUN COMMAND...
start_run() { on_workers "$(worker_command "start${once:+_once}" "$@")"; }

# run_state RUN CHIPS: a line of each worker; of all runs where RUN is empty.
run_state() { on_workers "$(worker_command state "$@")"; }

# stop_run RUN SECONDS
stop_run() { on_workers "$(worker_command stop "$@")"; }

# show_log RUN NODE.WORKER LINES FOLLOW
show_log() { on_worker "$2" "tail -n $3 ${4:+-F} runs/$(quoted "$1")/log"; }
