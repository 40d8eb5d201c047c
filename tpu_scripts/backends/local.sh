# This machine as a slice of --workers processes, each with a home of its own: to try the verbs, and
# for the tests. A slice is a directory below $R1JAX_SLICES; the file `preempted` in it takes it away.
# shellcheck shell=bash disable=SC2154  # lib.sh sets the flags

slices_root=${R1JAX_SLICES:-$HOME/.cache/r1jax/slices}

backend_ready() { :; }

create_slice() {
  local i
  [ -n "$dry_run" ] || [ "$(slice_state)" = ABSENT ] || die "the slice '$name' is there already"
  [ -n "$dry_run" ] || rm -rf "${slices_root:?}/$name" # of one that was half made, or half deleted
  for ((i = 0; i < ${workers:-1}; i++)); do execute mkdir -p "$slices_root/$name/worker-$i"; done
  local port='import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])'
  if [ -n "$dry_run" ]; then return; fi
  python3 -c "$port" > "$slices_root/$name/.port"
  mv "$slices_root/$name/.port" "$slices_root/$name/port" # now it is there
}

slice_names() {
  local home
  for home in "$slices_root"/*/; do
    if [ -e "$home/port" ]; then basename "$home"; fi
  done
}

slice_state() {
  if [ ! -e "$slices_root/$name/port" ]; then
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

# Processes that have a worker's home as theirs (Linux).
processes() {
  local homes=("$slices_root/$name"/worker-*)
  { grep -lzxFf <(printf 'HOME=%s\n' "${homes[@]}") /proc/[0-9]*/environ 2> /dev/null || true; } |
    cut -d / -f 3
}

# With what runs on it, as a machine's end would; also what those start meanwhile.
delete_slice() {
  local found
  while [ -z "$dry_run" ] && found=$(processes) && [ -n "$found" ]; do
    # shellcheck disable=SC2086  # several
    kill -KILL $found 2> /dev/null || true
    sleep 0.1
  done
  execute rm -f "$slices_root/$name/port" # now it is gone
  execute rm -rf "${slices_root:?}/$name"
}
