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
  local values="name backend project zone $1" switches="dry_run $2" key
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

# pack_tree FILE: all of them.
pack_tree() {
  tree_files | tar --directory="$repository" --create --gzip --null --files-from=- --file="$1"
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
