# Compute Engine: v5p, v6e, TPU7x. --accelerator is MACHINE, one machine (ct6e-standard-8t), or
# MACHINE:TOPOLOGY, a managed instance group that forms a slice (ct5p-hightpu-4t:4x4x8). What belongs
# to a slice has the label r1jax=NAME.
# shellcheck shell=bash disable=SC2154  # lib.sh sets the flags

images=ubuntu-os-accelerator-images

backend_ready() { gcloud_ready; }

in_zone() { execute gcloud compute "$@" --project="$project" --zone="$zone"; }

listed() { execute gcloud compute instances list "$@" --project="$project" --zones="$zone"; }

# The family of the machine's image (--runtime): each kind of chip has one.
image_of() {
  case $1 in
    ct6e-* | ct5p-*) echo ubuntu-accel-2204-amd64-tpu-v5e-v5p-v6e ;;
    *) die "--accelerator '$1': --runtime must name an image family of $images for it" ;;
  esac
}

create_slice() {
  needed project zone accelerator
  local machine=${accelerator%%:*} topology="" region=${zone%-*} per_host image
  if [[ $accelerator == *:* ]]; then topology=${accelerator#*:}; fi
  [[ $machine =~ -([0-9]+)t$ ]] || die "--accelerator '$machine': machines end in their chips, -4t"
  [ -z "$valid_until" ] ||
    die "--valid_until: Compute Engine has no queue, it says at once whether there are machines"
  [ "${slices:-1}" = 1 ] || die "--slices: of Compute Engine create each slice by its own name"
  per_host=${BASH_REMATCH[1]}
  image=${runtime:-$(image_of "$machine")}
  # The boot disk has 10 GB unless said, which JAX's packages nearly fill.
  local flags=(--machine-type="$machine" --image-family="$image" --image-project="$images")
  flags+=(--boot-disk-size=200GB --maintenance-policy=TERMINATE --scopes=cloud-platform)
  flags+=(--labels="r1jax=$name")
  if [ -n "$spot" ]; then flags+=(--provisioning-model=SPOT --instance-termination-action=STOP); fi
  if [ -n "$reserved" ]; then flags+=(--reservation-affinity=any); fi
  if [ -z "$topology" ]; then
    in_zone instances create "$name" "${flags[@]}"
    return
  fi
  local policy="projects/$project/regions/$region/resourcePolicies/$name"
  # Both may be there from a group that found no machines.
  has resource-policies --region="$region" ||
    execute gcloud compute resource-policies create workload-policy "$name" \
      --type=HIGH_THROUGHPUT --accelerator-topology="$topology" --project="$project" \
      --region="$region"
  has instance-templates ||
    execute gcloud compute instance-templates create "$name" "${flags[@]}" --project="$project"
  in_zone instance-groups managed create "$name" --template="$name" \
    --size="$(($(product "$topology") / per_host))" --target-size-policy-mode=bulk \
    --default-action-on-vm-failure=do-nothing --workload-policy="$policy"
}

# has KIND FLAGS...: whether there is one of this name; never in a dry run.
has() {
  [ -z "$dry_run" ] || return 1
  gcloud compute "$1" describe "$name" "${@:2}" --project="$project" > /dev/null 2>&1
}

product() { echo $((${1//x/*})); }

# Its machines, a line each: name and status.
machines() {
  listed --filter="labels.r1jax=$name" --format='value(name,status)' | sort
}

# Dies where nobody says it: a group that is there must not look like none.
is_group() {
  local said
  if [ -n "$dry_run" ]; then
    [[ ${accelerator:-:} == *:* ]]
    return
  fi
  said=$(asked in_zone instance-groups managed describe "$name" --format='value(name)' 2>&1) && return
  case $said in
    *"not found"* | *NOT_FOUND* | *notFound*) return 1 ;;
    *) die "${said:-gcloud does not answer}" ;;
  esac
}

# QUEUED, ACTIVE, PREEMPTED or ABSENT.
slice_state() {
  local found
  found=$(asked machines) || die "gcloud does not say which machines '$name' has"
  case $found in
    "") if is_group; then echo QUEUED; else echo ABSENT; fi ;;
    *TERMINATED* | *STOP* | *SUSPEND*) echo PREEMPTED ;;
    *PROVISIONING* | *STAGING* | *REPAIRING*) echo QUEUED ;;
    *) echo ACTIVE ;;
  esac
}

slice_names() {
  listed --filter='labels.r1jax:*' --format='value(labels.r1jax)' | sort -u
}

hosts() {
  if [ -n "$dry_run" ]; then echo "$name"; else machines | cut -f 1; fi
}

on_host() { in_zone ssh "$1" --quiet --command="$2"; }

on_workers() {
  local found all
  found=$(hosts) && [ -n "$found" ] || return 1
  mapfile -t all <<< "$found"
  on_each on_host "$1" "${all[@]}"
}

on_worker() {
  local found all
  found=$(hosts) || return 1
  mapfile -t all <<< "$found"
  on_host "${all[${1#*.}]:-$name}" "$2"
}

copy_in() {
  local all host
  all=$(hosts) && [ -n "$all" ] || return 1
  for host in $all; do in_zone scp "$1" "$host:$2" --quiet; done
}

# A group's template and policy too; they are in no zone.
delete_slice() {
  local region=${zone%-*} group=
  if is_group; then group=1; fi
  if [ -n "$group" ]; then
    in_zone instance-groups managed delete "$name" --quiet
  elif [ -n "$dry_run" ] || [ -n "$(machines)" ]; then
    in_zone instances delete "$name" --quiet
  fi
  if [ -n "$dry_run" ] && [ -n "$group" ] || has instance-templates; then
    execute gcloud compute instance-templates delete "$name" --quiet --project="$project"
  fi
  if [ -n "$dry_run" ] && [ -n "$group" ] || has resource-policies --region="$region"; then
    execute gcloud compute resource-policies delete "$name" --quiet --project="$project" \
      --region="$region"
  fi
}
