#!/usr/bin/env bash
# A real Slurm with one node, this machine, from Debian's packages (slurmctld slurmd slurm-client munge). Needs root, no systemd.
#
#   tests/cluster/one_machine_slurm.sh start    the partition `main` is idle within seconds
#   tests/cluster/one_machine_slurm.sh status
#   tests/cluster/one_machine_slurm.sh stop     ends what start began and removes its configuration
#
# Exit codes: 0 done, 1 Slurm did not come up, 3 this machine cannot (one line says why).
set -euo pipefail

# Slurm's jobs lose SLURM_CONF on their way, so the file must stand at the path that is compiled in.
readonly CONF=/etc/slurm/slurm.conf
readonly STATE=/run/lumoe-slurm
readonly CLUSTER=lumoe-lab
readonly MARK="# lumoe: one-machine Slurm for tests"

cannot() { echo "one_machine_slurm: $*" >&2; exit 3; }

check() {
  local program
  ((EUID == 0)) || cannot "needs root"
  for program in munged slurmctld slurmd sbatch; do
    command -v "$program" >/dev/null || cannot "$program is missing: apt-get install slurmctld slurmd slurm-client munge"
  done
  # slurmd asks hwloc for the processor, which reads it there; a container without /sys has nothing to read.
  [[ -d /sys/devices/system/cpu ]] || cannot "/sys is not mounted, so slurmd cannot count cores: mount -t sysfs sysfs /sys"
  if [[ -e $CONF ]] && ! grep -qxF "$MARK" "$CONF"; then
    cannot "$CONF belongs to another Slurm; left alone"
  fi
}

write_configuration() {
  # Two slots at least, so that two jobs run side by side even on one core.
  local cpus memory host
  cpus=$(nproc); ((cpus >= 2)) || cpus=2
  memory=$(($(awk '/^MemTotal/ {print $2}' /proc/meminfo) / 1024))
  host=$(hostname -s)
  cat >"$CONF" <<CONF
$MARK
ClusterName=$CLUSTER
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$STATE/munge.socket
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerParameters=sched_interval=5,batch_sched_delay=1
MinJobAge=3600
ReturnToService=2
KillWait=5
MpiDefault=none
SlurmdParameters=config_overrides
StateSaveLocation=$STATE/controller
SlurmdSpoolDir=$STATE/node
SlurmctldPidFile=$STATE/slurmctld.pid
SlurmdPidFile=$STATE/slurmd.pid
SlurmctldLogFile=$STATE/slurmctld.log
SlurmdLogFile=$STATE/slurmd.log
NodeName=$host NodeAddr=127.0.0.1 CPUs=$cpus RealMemory=$memory State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES State=UP
CONF
}

node_state() { sinfo --noheader --format=%t 2>/dev/null || true; }

start() {
  check
  if [[ $(node_state) =~ ^(idle|mix|alloc)$ ]]; then
    echo "one_machine_slurm: already up"; return
  fi
  mkdir -p "$(dirname "$CONF")"
  install -d -m 755 "$STATE" "$STATE/controller" "$STATE/node"
  install -d -m 700 "$STATE/munge"
  write_configuration
  # A key and a socket of its own: the system's munge, if any, is not touched.
  (umask 077 && head -c 1024 /dev/urandom >"$STATE/munge/key")
  munged --socket="$STATE/munge.socket" --key-file="$STATE/munge/key" --pid-file="$STATE/munge/munged.pid" \
    --log-file="$STATE/munge/munged.log" --seed-file="$STATE/munge/seed"
  slurmctld
  slurmd
  local _
  for _ in $(seq 60); do
    if [[ $(node_state) == idle ]]; then
      sinfo; return
    fi
    sleep 0.5
  done
  tail -n 20 "$STATE"/*.log >&2
  echo "one_machine_slurm: the node did not become idle in 30 s" >&2
  exit 1
}

end() { # end PIDFILE NAME: the process of that pid file, if it is still that program
  local pid
  pid=$(cat "$1" 2>/dev/null) || return 0
  [[ $(cat "/proc/$pid/comm" 2>/dev/null) == "$2" ]] || return 0
  kill "$pid"
  local _
  for _ in $(seq 40); do
    [[ -d /proc/$pid ]] || return 0
    sleep 0.25
  done
  kill -9 "$pid"
}

# Without cgroups a job's grandchildren can outlive it; each carries the cluster's name.
end_leftovers() {
  local file pid
  grep -lzx "SLURM_CLUSTER_NAME=$CLUSTER" /proc/[0-9]*/environ 2>/dev/null | while read -r file; do
    pid=${file#/proc/}
    kill -9 "${pid%/environ}" 2>/dev/null || true
  done || true
}

stop() {
  ((EUID == 0)) || cannot "needs root"
  grep -qxF "$MARK" "$CONF" 2>/dev/null || { echo "one_machine_slurm: not started here"; return; }
  timeout 20 scancel --partition=main 2>/dev/null || true
  # A job outlives a node daemon that ends first: wait until the last one is gone.
  local _
  for _ in $(seq 60); do
    [[ -n $(timeout 5 squeue --noheader 2>/dev/null) ]] || break
    sleep 0.5
  done
  end_leftovers
  end "$STATE/slurmd.pid" slurmd
  end "$STATE/slurmctld.pid" slurmctld
  end "$STATE/munge/munged.pid" munged
  rm -rf "$STATE" "$CONF"
}

case "${1:-}" in
  start) start ;;
  stop) stop ;;
  status) check; sinfo; squeue ;;
  *) sed -n '2,8s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
esac
