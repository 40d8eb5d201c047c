# GPUs under Slurm. A slice is a job of --workers nodes, one process each, whose step `worker hold`
# lasts as long as the job does. What belongs to it lies in a directory below $R1JAX_SLURM that this
# machine and all nodes see, by default of the home: the tree and its Python once, runs of each
# worker. So JAX is installed from here, where there is a network, and logs are read here.
# shellcheck shell=bash disable=SC2034,SC2154  # lib.sh sets the flags, and reads what is set here

slices_root=${R1JAX_SLURM:-$HOME/.cache/r1jax/slurm}
extra=cuda
# Of sbatch, whatever else a cluster asks for; .tpu_env may say it.
if [ -z "${sbatch_flags+there}" ]; then sbatch_flags=(--exclusive --mem=0); fi
# A worker that fails, or ends first, is no reason to kill the others.
step=(--ntasks-per-node=1 --cpu-bind=none --mpi=none --wait=0 --kill-on-bad-exit=0)

backend_ready() {
  local tool
  for tool in sbatch srun squeue scancel; do
    command -v "$tool" > /dev/null ||
      die "$tool is not installed: this runs where one submits Slurm's jobs"
  done
}

create_slice() {
  needed accelerator
  local slice="$slices_root/$name" flags i hold job
  [ -n "$dry_run" ] || [ ! -e "$slice" ] || die "the slice '$name' is there already"
  # Ten minutes before its time is over the runs are told to stop.
  flags=(--parsable --job-name="$name" --nodes="${workers:-1}" --ntasks-per-node=1)
  flags+=(--gpus-per-node="$accelerator" --no-requeue --signal=TERM@600 --output="$slice/hold.log")
  if [ -n "$partition" ]; then flags+=(--partition="$partition"); fi
  if [ -n "$time" ]; then flags+=(--time="$time"); fi
  execute mkdir -p "$slices_root"
  execute mkdir -m 700 "$slice"
  for ((i = 0; i < ${workers:-1}; i++)); do
    execute mkdir -p "$slice/worker-$i/spool"
    execute ln -s ../r1jax ../.r1jax_env "$slice/worker-$i"
  done
  execute cp "$tpu_scripts/worker" "$slice/worker"
  hold="exec $(quoted srun "${step[@]}" bash "$slice/worker" hold "$slice")"
  job=$(execute sbatch "${flags[@]}" "${sbatch_flags[@]}" --wrap="$hold") || {
    rm -rf "$slice"
    die "Slurm does not take the job"
  }
  if [ -n "$dry_run" ]; then echo "$job"; else echo "${job%%;*}" > "$slice/job"; fi
}

slice_names() {
  local file
  for file in "$slices_root"/*/job; do
    if [ -e "$file" ]; then basename "$(dirname "$file")"; fi
  done
}

job() {
  if [ -z "$dry_run" ]; then cat "$slices_root/$name/job"; else echo JOB; fi
}

# As Slurm says it, or that it knows no such job, which it says minutes after the end.
job_state() {
  local said
  said=$(squeue --noheader --states=all --format=%T --jobs="$(job)" 2>&1) ||
    [[ $said == *"Invalid job id"* ]] || die "squeue: $said"
  echo "$said"
}

# QUEUED, ACTIVE, PREEMPTED, FAILED or ABSENT. A job whose time is over is as good as preempted.
slice_state() {
  local state
  if [ ! -e "$slices_root/$name/job" ]; then echo ABSENT && return; fi
  state=$(job_state) || exit
  case $state in
    PENDING | CONFIGURING | SUSPENDED | REQUEUE*) echo QUEUED ;;
    RUNNING) echo ACTIVE ;;
    FAILED | BOOT_FAIL | OUT_OF_MEMORY) echo FAILED ;;
    *) echo PREEMPTED ;;
  esac
}

# here DIRECTORY LINE: in a directory of the slice, on this machine.
here() {
  local slice="$slices_root/$name"
  execute bash -c "cd $(quoted "$1") && export R1JAX_VENV=$(quoted "$slice/venv") && $2"
}

on_homes() { here "$slices_root/$name" "$1"; }

on_workers() {
  local slice="$slices_root/$name" homes count line
  homes=("$slice"/worker-*/)
  count=${#homes[@]}
  line="cd $(quoted "$slice/worker-")\$SLURM_PROCID && export R1JAX_VENV=$(quoted "$slice/venv")"
  execute srun --jobid="$(job)" --overlap --nodes="$count" --ntasks="$count" "${step[@]}" \
    bash -c "$line && $1" < /dev/null
}

on_worker() { here "$slices_root/$name/worker-${1#*.}" "$2"; }

copy_in() { execute cp "$1" "$slices_root/$name/$2"; }

hand_on() { copy_in "$1" .r1jax_env; } # nobody else sees into the directory

# chips_of GPUS SLICES: of all its nodes.
chips_of() {
  local count=${1##*:} homes=("$slices_root/$name"/worker-*/)
  if [[ $count =~ ^[0-9]+$ ]]; then echo $((count * ${#homes[@]})); fi
}

# Slurm tells its runs to end, and kills what has not after KillWait, 30 seconds.
delete_slice() {
  if [ -n "$dry_run" ] || [ -e "$slices_root/$name/job" ]; then
    if [ -n "$dry_run" ] || [[ "$(slice_state)" =~ QUEUED|ACTIVE ]]; then execute scancel "$(job)"; fi
    until [ -n "$dry_run" ] || is_over; do sleep 1; done
  fi
  execute rm -rf "${slices_root:?}/$name"
}

is_over() {
  local state
  state=$(job_state) || exit
  case $state in
    PENDING | CONFIGURING | SUSPENDED | RUNNING | COMPLETING | REQUEUE* | S[IT]*) return 1 ;;
  esac
}
