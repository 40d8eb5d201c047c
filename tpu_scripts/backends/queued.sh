# Cloud TPU queued resources: v4, v5e (v5litepod-N), v5p, v6e. A slice is a queued resource of this
# name; several slices (--slices) are its nodes NAME-0, NAME-1, ...
# shellcheck shell=bash disable=SC2154  # lib.sh sets the flags

backend_ready() { gcloud_ready; }

resources() {
  local verb=$1
  shift
  execute gcloud compute tpus queued-resources "$verb" "$@" --project="$project" --zone="$zone"
}

runtime_of() {
  case $1 in
    v6e-*) echo v2-alpha-tpuv6e ;;
    v5p-*) echo v2-alpha-tpuv5 ;;
    v5litepod-*) echo v2-alpha-tpuv5-lite ;;
    v4-*) echo tpu-ubuntu2204-base ;;
    *) die "--accelerator '$1': v4-N and v5p-N (N counts cores), v5litepod-N and v6e-N (chips)" ;;
  esac
}

create_slice() {
  needed project zone accelerator
  local flags=(--accelerator-type="$accelerator")
  flags+=(--runtime-version="${runtime:-$(runtime_of "$accelerator")}")
  if [ "${slices:-1}" -gt 1 ]; then
    flags+=(--node-count="$slices" --node-prefix="$name")
  else
    flags+=(--node-id="$name")
  fi
  if [ -n "$spot" ]; then flags+=(--spot); fi
  if [ -n "$reserved" ]; then flags+=(--reserved); fi
  if [ -n "$valid_until" ]; then flags+=(--valid-until-duration="$valid_until"); fi
  resources create "$name" "${flags[@]}"
}

# A node may be gone before its queued resource says so.
is_preempted() {
  local nodes
  nodes=$(asked execute gcloud compute tpus tpu-vm list --format='value(name.basename(),state)' \
    --project="$project" --zone="$zone" 2> /dev/null) || return 1
  grep -q -E "^${name}[[:space:]]+(PREEMPTED|TERMINATED)" <<< "$nodes"
}

# QUEUED, ACTIVE, PREEMPTED, FAILED or ABSENT.
slice_state() {
  local state said
  said=$(mktemp)
  if ! state=$(asked resources describe "$name" --format='value(state.state)' 2> "$said"); then
    state=$(cat "$said")
    rm "$said"
    case $state in
      *NOT_FOUND*) echo ABSENT && return ;;
      *) die "${state:-gcloud does not answer}" ;;
    esac
  fi
  rm "$said"
  case $state in
    ACTIVE) if is_preempted; then echo PREEMPTED; else echo ACTIVE; fi ;;
    SUSPENDED | SUSPENDING | PREEMPTED) echo PREEMPTED ;;
    FAILED) echo FAILED ;;
    *) echo QUEUED ;;
  esac
}

# Of all slices in this zone.
slice_names() {
  resources list --format='value(name.basename())'
}

# A line of bash in the home of every worker; not 0 where it fails on any.
on_workers() {
  resources ssh "$name" --node=all --worker=all --quiet --command="$1"
}

# The same on one, NODE.WORKER, as it prints.
on_worker() {
  resources ssh "$name" --node="${1%.*}" --worker="${1#*.}" --quiet --command="$2"
}

copy_in() {
  resources scp "$1" "$name:$2" --node=all --worker=all --quiet
}

# --force: its nodes too. Suspended ones hold quota until then.
delete_slice() {
  resources delete "$name" --force --quiet
}
