# TPUs of a GKE cluster, by xpk. There is no machine to set up: a workload brings its tree in an
# image, has TPUs from when some are free to its own end, and is started anew where they are taken
# away. So a slice is a directory below $R1JAX_GKE that says what its workloads ask for and has their
# tree, and each run is a workload: NAME, or NAME-NUMBER of a run that is called otherwise.
# shellcheck shell=bash disable=SC2154  # lib.sh sets the flags

needed project zone cluster
restarts=50       # at most, of a workload
grace_seconds=600 # from SIGTERM to the end; spot machines leave 30 at most
# Of xpk workload create, whatever else a cluster asks for; .tpu_env may say it.
if [ -z "${xpk_flags+there}" ]; then xpk_flags=(); fi

backend_ready() {
  local tool
  for tool in xpk kubectl gcloud; do
    command -v "$tool" > /dev/null ||
      die "$tool is not installed: https://github.com/AI-Hypercomputer/xpk says how"
  done
}

place() { echo "${R1JAX_GKE:-$HOME/.cache/r1jax/gke}/$cluster/$name"; }

# A run's workload: xpk allows 40 characters, 28 where it makes large slices of small ones.
workload_of() {
  if [ "$1" = "$name" ]; then echo "$name"; else echo "$name-$(cksum <<< "$1" | cut -d ' ' -f 1)"; fi
}

# Each slice has credentials of its own: what kubectl does elsewhere is not touched.
xpk_workload() {
  execute env KUBECONFIG="$(place)/kubeconfig" xpk workload "$1" --cluster="$cluster" \
    --project="$project" --zone="$zone" "${@:2}"
}

kube() { execute env KUBECONFIG="$(place)/kubeconfig" kubectl "$@"; }

create_slice() {
  needed accelerator
  [ -z "$reserved" ] || die "--reserved: write xpk_flags=(--reservation=NAME) to .tpu_env"
  [ -z "$valid_until" ] || die "--valid_until: a workload waits until it is deleted"
  [ ${#name} -le 28 ] || die "--name '$name' has more than 28 characters, which xpk may not take"
  local place
  place=$(place)
  [ -n "$dry_run" ] || [ ! -e "$place" ] || die "the slice '$name' is there already"
  execute mkdir -p "$(dirname "$place")"
  execute mkdir -m 700 "$place"
  xpk_workload list || {
    rm -rf "$place"
    die "the cluster '$cluster' does not answer"
  }
  if [ -n "$dry_run" ]; then return; fi
  mkdir "$place/runs"
  printf '%q ' "$accelerator" "${slices:-1}" "$spot" "${runtime:-}" > "$place/asks"
  echo "$cluster answers; $accelerator is asked for by each launch, and given back by its end"
}

# Of the cluster there are no slices, only workloads: QUEUED is what a run is.
slice_state() { if [ -e "$(place)/asks" ]; then echo ACTIVE; else echo ABSENT; fi; }

slice_names() {
  local file
  for file in "${R1JAX_GKE:-$HOME/.cache/r1jax/gke}/$cluster"/*/asks; do
    if [ -e "$file" ]; then basename "$(dirname "$file")"; fi
  done
}

# What create was told; in a dry run what .tpu_env says will do.
asks() {
  local words
  if [ -e "$(place)/asks" ]; then
    eval "words=($(cat "$(place)/asks"))"
    accelerator=${words[0]} slices=${words[1]} spot=${words[2]} runtime=${words[3]}
  fi
  needed accelerator
}

# The tree that launch packs. Nothing can be proved: there are no workers before a launch.
set_up() {
  local place
  place=$(place)
  execute cp "$1" "$place/r1jax.tar.gz"
  execute bash -c "cd $(quoted "$place") && $unpack"
  if [ -z "$dry_run" ]; then
    echo "launch packs this tree; on GKE workers exist from there on, so nothing is proved here"
  fi
}

hand_on() { execute cp "$1" "$(place)/.r1jax_env"; } # nobody else sees into the directory

# What xpk does with a command, the shell and the YAML that it goes through, base64 outlives.
start_run() {
  local run=$1 place workload flags line found
  place=$(place)
  workload=$(workload_of "$run")
  shift
  asks
  line=$(quoted "$@" | base64 --wrap=0)
  flags=(--workload="$workload" --tpu-type="$accelerator" --num-slices="${slices:-1}")
  flags+=(--base-docker-image="${runtime:-python:3.12}" --script-dir="$place/r1jax")
  # 75: stopped with a checkpoint; 76: another process is gone. xpk adds signals and its own.
  flags+=(--max-restarts="$restarts" "--restart-on-exit-codes=75,76")
  flags+=(--termination-grace-period-seconds="$grace_seconds")
  if [ -n "${spot:-}" ]; then flags+=(--spot); fi
  if [ -n "$pass" ] || [ -e "$place/.r1jax_env" ]; then flags+=(--env-file="$place/env"); fi
  if [ -z "$dry_run" ]; then
    [ -e "$place/r1jax" ] || die "'$name' has no tree: tpu_scripts/setup --name=$name"
    found=$(jobset_of "$workload") || die "the cluster does not say whether $run runs already"
    [[ $found != "$workload||"* ]] || die "$run still runs: stop it first"
    if [ -e "$place/.r1jax_env" ]; then
      (umask 077 && echo "R1JAX_ENV=$(base64 --wrap=0 "$place/.r1jax_env")" > "$place/env")
    fi
    echo "$run" > "$place/runs/$workload"
  fi
  xpk_workload create "${flags[@]}" "${xpk_flags[@]}" --quiet \
    --command="exec bash tpu_scripts/worker pod $line"
}

# NAME|END|RESTARTS, empty where there is no such workload; END is Completed or Failed.
jobset_of() {
  kube get jobset "$1" --ignore-not-found \
    --output='jsonpath={.metadata.name}|{.status.terminalState}|{.status.restarts}'
}

# SLICE.WORKER|POD|PHASE|SINCE|EXIT CODE, a line each
pods_of() {
  local index='{.metadata.labels.jobset\.sigs\.k8s\.io/job-index}.'
  index+='{.metadata.labels.batch\.kubernetes\.io/job-completion-index}'
  local code='{.status.containerStatuses[0].state.terminated.exitCode}'
  local line="$index|{.metadata.name}|{.status.phase}|{.status.startTime}|$code"'{"\n"}'
  kube get pods --selector="jobset.sigs.k8s.io/jobset-name=$1" \
    --output="jsonpath={range .items[*]}$line{end}"
}

run_state() {
  local file
  if [ -n "$1" ] || [ -n "$dry_run" ]; then
    workload_state "${1:-$name}" "$2" ""
    return
  fi
  for file in "$(place)"/runs/*; do
    if [ -e "$file" ]; then workload_state "$(cat "$file")" "$2" "$(cat "$file") "; fi
  done
}

# workload_state RUN CHIPS PREFIX: as `worker state` says it.
workload_state() {
  local workload chips=$2 found pods end restarted index pod phase since code said
  workload=$(workload_of "$1")
  if [ -n "$dry_run" ]; then
    jobset_of "$workload" && pods_of "$workload" && xpk_workload list --filter-by-job="$workload"
    return
  fi
  asks
  chips=${chips:-$(chips_of "$accelerator" "$slices")}
  found=$(jobset_of "$workload") && pods=$(pods_of "$workload" | sort -V) || return 1
  IFS='|' read -r _ end restarted <<< "$found"
  if [ -z "$found" ]; then
    echo "worker 0.0 ($workload): ${3}never started"
  elif [ -z "$end" ] && [[ $pods != *"|Running|"* ]]; then
    echo "worker 0.0 ($workload): ${3}queued$(row_of "$workload")"
  elif [ -z "$pods" ]; then
    case $end in
      Completed) echo "worker 0.0 ($workload): ${3}ended with exit code 0" ;;
      *) echo "worker 0.0 ($workload): ${3}gone without an exit code" ;;
    esac
  else
    while IFS='|' read -r index pod phase since code; do
      case $phase${code:+ended} in
        *ended) said="ended with exit code $code$(last_of "$pod" "$code")" ;;
        Running)
          said="running as $pod, $(worker spent "$(date --date="$since" +%s)" "$chips")"
          if [ "${restarted:-0}" -gt 0 ]; then said+=", restarts: $restarted"; fi
          if [ "$index" = 0.0 ]; then # the first process says it all
            said+=$(kube logs "$pod" --tail=1000 < /dev/null | worker progress)
          fi
          ;;
        Pending) said="queued as $pod" ;;
        *) said="gone without an exit code" ;;
      esac
      echo "worker $index ($workload): $3$said"
    done <<< "$pods"
  fi
}

worker() { bash "$tpu_scripts/worker" "$@"; }

# row_of WORKLOAD: what xpk has in its table of it, which says what it waits for.
row_of() {
  local row
  row=$(xpk_workload list --filter-by-job="$1" < /dev/null | grep "^$1 " | tr -s ' ') || return 0
  echo ": ${row#* }"
}

# last_of POD CODE: its last line, where that tells why it ended; xpk adds some.
last_of() {
  local line
  if [ "$2" = 0 ] || [ "$2" = 75 ]; then return; fi
  line=$(kube logs "$1" --tail=20 < /dev/null | grep -a -v -E '^(XPK|EXIT_CODE=|$)' | tail -n 1) ||
    return 0
  echo ": $line" | cut -c 1-300
}

# A pod that ends with 75 is started anew, so its workload is deleted, which tells its pods SIGTERM.
stop_run() {
  local workload
  workload=$(workload_of "$1")
  if [ -z "$dry_run" ] && [ -z "$(jobset_of "$workload")" ]; then
    run_state "$1" ""
    return
  fi
  end_workload "$workload" "$2"
  if [ -n "$dry_run" ]; then return; fi
  echo "worker 0.0 ($workload): stopped, and gone with its log; the same launch goes on"
}

# end_workload WORKLOAD SECONDS
end_workload() {
  local waited=0
  xpk_workload delete --workload="$1" --quiet
  if [ -n "$dry_run" ]; then
    pods_of "$1"
    return
  fi
  while [ -n "$(pods_of "$1")" ]; do
    [ "$waited" -lt "$2" ] || die "pods of $1 still run $2 s after SIGTERM"
    sleep 2
    waited=$((waited + 2))
  done
}

# show_log RUN SLICE.WORKER LINES FOLLOW
show_log() {
  local selector
  selector="jobset.sigs.k8s.io/jobset-name=$(workload_of "$1"),jobset.sigs.k8s.io/job-index=${2%.*}"
  selector+=",batch.kubernetes.io/job-completion-index=${2#*.}"
  kube logs --selector="$selector" --tail="$3" ${4:+--follow}
}

# All its runs; the next slice may have their workdirs, so their ends are waited for.
delete_slice() {
  local file place
  place=$(place)
  if [ -n "$dry_run" ]; then end_workload "$name" "$grace_seconds"; fi
  for file in "$place"/runs/*; do
    if [ -z "$dry_run" ] && [ -e "$file" ] && [ -n "$(jobset_of "$(basename "$file")")" ]; then
      end_workload "$(basename "$file")" "$((grace_seconds + 60))"
    fi
  done
  execute rm -rf "${place:?}"
}
