# This machine as a slice of --workers processes, each with a home of its own: to try the verbs, and
# for the tests. A slice is a directory below $R1JAX_SLICES; the file `preempted` in it takes it away.
# shellcheck shell=bash disable=SC2154  # lib.sh sets the flags

slices_root=${R1JAX_SLICES:-$HOME/.cache/r1jax/slices}

backend_ready() { :; }

create_slice() {
  local i
  [ -n "$dry_run" ] || [ ! -e "$slices_root/$name" ] || die "the slice '$name' is there already"
  for ((i = 0; i < ${workers:-1}; i++)); do execute mkdir -p "$slices_root/$name/worker-$i"; done
  local port='import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])'
  if [ -z "$dry_run" ]; then python3 -c "$port" > "$slices_root/$name/port"; fi
}

slice_names() {
  local home
  for home in "$slices_root"/*/; do
    if [ -e "$home/worker-0" ]; then basename "$home"; fi
  done
}

slice_state() {
  if [ ! -e "$slices_root/$name" ]; then
    echo ABSENT
  elif [ -e "$slices_root/$name/preempted" ]; then
    echo PREEMPTED
  else
    echo ACTIVE
  fi
}

on_workers() {
  local homes=("$slices_root/$name"/worker-*)
  on_each on_worker "$1" "${homes[@]/#*worker-/0.}"
}

on_worker() {
  local home="$slices_root/$name/worker-${1#*.}" homes=("$slices_root/$name"/worker-*) several=()
  if [ ${#homes[@]} -gt 1 ]; then
    several=(JAX_COORDINATOR_ADDRESS="localhost:$(cat "$slices_root/$name/port")")
    several+=(JAX_NUM_PROCESSES="${#homes[@]}" JAX_PROCESS_ID="${1#*.}")
  fi
  (
    if [ -z "$dry_run" ]; then cd "$home" || exit; fi
    execute env HOME="$home" R1JAX_PYTHON="${R1JAX_PYTHON:-$(command -v python3)}" \
      R1JAX_LOCAL=1 "${several[@]}" bash -c "$2"
  )
}

copy_in() {
  local home
  for home in "$slices_root/$name"/worker-*; do execute cp "$1" "$home/$2"; done
}

# With what runs on it, as a machine's end would.
delete_slice() {
  local file pid
  for file in "$slices_root/$name"/worker-*/runs/*/pid; do
    if [ -e "$file" ] && pid=$(ps -o pgid= -p "$(cat "$file")"); then
      execute kill -KILL -- "-${pid// /}" || true
    fi
  done
  execute rm -rf "${slices_root:?}/$name"
}
