#!/usr/bin/env bash
# Two hosts on one machine: two network namespaces joined by a pair of virtual links whose bandwidth is limited, and a run over both for
# each rate, so that layouts can be compared at a fast and a slow link.
#
#   scripts/two_hosts.sh OUT_DIR [RATE...]      rates as `tc` has them (1gbit, 20mbit); `free` is not limited. Default: free 20mbit
#
# ADVISOR_DEVICE (cpu) and ADVISOR_LAYOUTS ("single", "dp=2", "tp=2", "pp=2") say what runs there; emulated GPUs have other names on either host.
# Needs root, iproute2 and Open MPI. Leaves OUT_DIR/RATE/ (a report each) and prints rows a second by layout and rate.
# The two hosts share this machine's cores: their compute is not that of two machines, only the link between them is told apart.
set -euo pipefail
out=$(realpath -m "${1:?usage: scripts/two_hosts.sh OUT_DIR [RATE...]}")
shift
rates=("$@")
[ ${#rates[@]} -gt 0 ] || rates=(free 20mbit)
here=$(cd "$(dirname "$0")/.." && pwd)
advisor=${ADVISOR:-$here/target/release/advisor}
mpirun=$(command -v mpirun.openmpi || command -v mpirun || true)

absent() { echo "skipped: $1" >&2; exit 77; }
[ "$(id -u)" -eq 0 ] || absent "network namespaces need root"
for tool in ip tc unshare; do command -v $tool >/dev/null || absent "$tool is not installed"; done
[ -n "$mpirun" ] || absent "Open MPI is not installed"
[ -x "$advisor" ] || { echo "$advisor is missing: cargo build --release" >&2; exit 1; }

one="advisor$$a" two="advisor$$b" scratch=$(mktemp -d)
clean() {
  for space in $one $two; do
    for process in $(ip netns pids $space 2>/dev/null); do kill "$process" 2>/dev/null || true; done
    ip netns del $space 2>/dev/null || true
  done
  rm -rf "$scratch"
}
trap clean EXIT
ip netns add $one 2>/dev/null || absent "this system makes no network namespaces"
ip netns add $two
ip link add va$$ netns $one type veth peer name vb$$ netns $two || absent "this system has no virtual links"
ip -n $one addr add 10.77.0.1/24 dev va$$
ip -n $two addr add 10.77.0.2/24 dev vb$$
for pair in "$one va$$" "$two vb$$"; do
  set -- $pair
  ip -n "$1" link set lo up
  ip -n "$1" link set "$2" up
done

# In place of ssh: enters the namespace of the host that is asked for. Another name makes it another node to Open MPI.
cat > "$scratch/agent" <<AGENT
#!/bin/sh
while [ "\${1#-}" != "\$1" ]; do shift; done
host=\$1; shift
case \$host in *.1) space=$one ;; *) space=$two ;; esac
export ADVISOR_STANDIN_HOST=\${host##*.}
exec ip netns exec \$space unshare --uts sh -c "hostname node\${host##*.}; \$*"
AGENT
chmod +x "$scratch/agent"

cat > "$scratch/two-hosts.toml" <<'SCENARIO'
name     = "two-hosts"
question = "Which layout serves two hosts at this link?"
[workload]
model = "mlp"
data  = "digits-8x8"
phase = "train"
[train]
epochs     = 1
batch_size = 64
[grid]
device     = ["DEVICE"]
batch_size = [64]
threads    = [2]
layout     = [LAYOUTS]
SCENARIO
layouts='"single", "dp=2", "tp=2", "pp=2"'
sed -i "s/DEVICE/${ADVISOR_DEVICE:-cpu}/; s/LAYOUTS/${ADVISOR_LAYOUTS:-$layouts}/" "$scratch/two-hosts.toml"
# No catalogue has an emulated GPU.
[ "${ADVISOR_DEVICE:-cpu}" = cpu ] || printf '[cost]\nhourly_usd = 1.0\n' >> "$scratch/two-hosts.toml"

for rate in "${rates[@]}"; do
  for pair in "$one va$$" "$two vb$$"; do
    set -- $pair
    tc -n "$1" qdisc del dev "$2" root 2>/dev/null || true
    if [ "$rate" != free ]; then
      tc -n "$1" qdisc add dev "$2" root tbf rate "$rate" burst 64kb latency 400ms || absent "tc cannot limit a link here"
    fi
  done
  code=0
  ADVISOR_STANDIN_HOST=1 ip netns exec $one unshare --uts sh -c 'hostname node1; exec "$@"' sh \
    "$mpirun" --allow-run-as-root -n 2 -H 10.77.0.1:1,10.77.0.2:1 --mca plm_rsh_agent "$scratch/agent" --mca pml ob1 \
    --mca btl tcp,self --mca btl_tcp_if_include 10.77.0.0/24 --mca oob_tcp_if_include 10.77.0.0/24 --mca mpi_yield_when_idle 1 \
    "$advisor" run "$scratch/two-hosts.toml" --quick --out "$out/$rate" </dev/null >"$scratch/said" 2>&1 || code=$?
  # 1: nothing feasible is an answer too, but the launcher's own failures end with it as well.
  { [ "$code" -le 1 ] && [ -s "$out/$rate/results.csv" ]; } || { cat "$scratch/said" >&2; exit 4; }
done

printf '%-10s' layout
printf '%16s' "${rates[@]}"
printf '\n'
for layout in single dp=2 tp=2 pp=2; do
  printf '%-10s' "$layout"
  for rate in "${rates[@]}"; do
    awk -F, -v layout="$layout" '
      NR == 1 { for (k = 1; k <= NF; k++) at[$k] = k; next }
      $at["layout"] == layout && $at["status"] == "ok" { printf "%16.1f", $at["throughput_per_s"]; found = 1 }
      END { if (!found) printf "%16s", "none" }' "$out/$rate/results.csv"
  done
  printf '\n'
done
