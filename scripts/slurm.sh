#!/usr/bin/env bash
# A Slurm cluster of this one machine for the time of one command: a controller and a node with a configuration of their own in a scratch
# folder, on ports of their own, so that `srun` can be tried where no Slurm runs, and beside one that does.
#
#   scripts/slurm.sh srun --mpi=pmix -n 2 target/release/advisor run scenarios/small-digits.toml     Open MPI
#   scripts/slurm.sh srun --mpi=pmi2 -n 2 target/release/advisor run scenarios/small-digits.toml     MPICH
#
# Needs slurmctld, slurmd and slurm-client (Debian's slurm-client, slurmctld, slurmd; libpmix-dev for --mpi=pmix). Ends with the command's
# code; 77 where Slurm is not there. The node claims more cores than the machine may have, and nothing is bound: only the launching is Slurm's.
set -euo pipefail
[ $# -gt 0 ] || { echo "usage: scripts/slurm.sh COMMAND [ARG...]" >&2; exit 2; }
absent() { echo "skipped: $1" >&2; exit 77; }
PATH=$PATH:/usr/sbin:/sbin
for tool in slurmctld slurmd srun sinfo; do command -v $tool >/dev/null || absent "Slurm is not installed ($tool)"; done

scratch=$(mktemp -d)
daemons=() command=
clean() {
  # The command first: srun ends its step when it is told to, and the node's daemon must be there to do it.
  if [ -n "$command" ]; then
    kill "$command" 2>/dev/null || true
    wait "$command" 2>/dev/null || true
  fi
  # What is left of a command that ended by itself.
  if [ -n "${is_up:-}" ] && scancel --me 2>/dev/null; then
    for _ in $(seq 50); do [ -n "$(squeue -h 2>/dev/null)" ] || break; sleep 0.1; done
  fi
  for process in "${daemons[@]}"; do kill "$process" 2>/dev/null || true; done
  for process in "${daemons[@]}"; do wait "$process" 2>/dev/null || true; done
  rm -rf "$scratch"
}
trap clean EXIT
trap 'exit 143' TERM INT

# One at a time: two nodes of one name on one host were seen to refuse each other's steps.
exec 9>"${TMPDIR:-/tmp}/advisor-slurm-$(id -u).lock"
flock 9

is_free() { ! (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }
port=$((20000 + RANDOM % 10000))
until is_free $port && is_free $((port + 1)); do port=$((port + 2)); done

user=$(id -un) host=$(hostname -s)
mkdir "$scratch/state" "$scratch/spool"
cat > "$scratch/slurm.conf" <<CONF
ClusterName=advisor
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$port
SlurmdPort=$((port + 1))
SlurmUser=$user
SlurmdUser=$user
AuthType=auth/none
CredType=cred/none
StateSaveLocation=$scratch/state
SlurmdSpoolDir=$scratch/spool
SlurmctldPidFile=$scratch/slurmctld.pid
SlurmdPidFile=$scratch/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/linear
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=2
MpiDefault=none
NodeName=$host NodeAddr=127.0.0.1 CPUs=8 State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
CONF
export SLURM_CONF=$scratch/slurm.conf

# Left behind by a process of another launcher they would be taken for ours.
while IFS= read -r name; do unset "$name"; done < <(compgen -e | grep -E '^(OMPI_|PMIX?_|SLURM_)' | grep -v '^SLURM_CONF$')

# In sessions of their own: what stops this script with its whole group must not stop them before the step is gone.
setsid slurmctld -D -f "$SLURM_CONF" >"$scratch/slurmctld.log" 2>&1 9>&- &
daemons+=($!)
setsid slurmd -D -f "$SLURM_CONF" >"$scratch/slurmd.log" 2>&1 9>&- &
daemons+=($!)
for _ in $(seq 200); do
  if sinfo -h -o %T 2>/dev/null | grep -q idle; then is_up=1; break; fi
  sleep 0.1
done
[ -n "${is_up:-}" ] || { tail -n 20 "$scratch"/*.log >&2; echo "the node does not come up" >&2; exit 4; }

"$@" 9>&- &
command=$!
code=0
wait $command || code=$?
command=
exit $code
