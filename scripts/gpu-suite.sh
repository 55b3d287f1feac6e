#!/usr/bin/env bash
# Everything that can be learnt about a GPU machine in ten minutes, part by part, by one command.
#
#     scripts/gpu-suite.sh OUT_DIR [PART...]         run what is not done yet (all parts, or those named)
#     scripts/gpu-suite.sh --again OUT_DIR [PART..]  run them whether done or not
#     scripts/gpu-suite.sh --limit S OUT_DIR         no part may take more than S seconds
#     scripts/gpu-suite.sh --list                    parts, their limits in seconds, their commands
#
# Needs bash and coreutils, this repository and the release binary: $ADVISOR, else target/release/advisor, else advisor on the PATH.
# PyTorch with a GPU ($PYTHON, else python3) is used where it is there; without it the comparisons are recorded as not run.
#
# Each part leaves PART.stdout, PART.stderr and last, in one move, PART.json: what ran, how it ended ("done" or "failed" with the reason),
# how long it took. A part that is "done" is not run again; one that failed or was cut off is. The rest goes on either way.
# Exit code: 0 all parts are done, 5 some are not, 2 wrong use.
set -u -o pipefail
shopt -s nullglob

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# Together with the look for PyTorch and a second of grace each, below ten minutes.
PARTS=(machine ceilings conformance correctness tune kernels steps scenarios)
declare -A LIMITS=([machine]=15 [ceilings]=15 [conformance]=15 [correctness]=55 [tune]=45 [kernels]=195 [steps]=130 [scenarios]=90)
PEER_LIMIT=25
declare -A COMMANDS=(
    [machine]='doctor --json'
    [ceilings]='kernels --device cuda --json --part ceilings'
    [conformance]='kernels --device cuda --json --part conformance'
    [correctness]='kernels --device cuda --json --part correctness'
    [tune]='kernels --device cuda --json --tune'
    [kernels]='kernels --device cuda --json --part bench --rounds 3 --out OUT_DIR/kernels'
    [steps]='kernels --device cuda --json --part steps --rounds 3 --out OUT_DIR/steps'
    [scenarios]='run scenarios/*.toml --quick --device cuda --out OUT_DIR/reports'
)

usage() {
    sed -n '4,7s/^# \{0,5\}//p' "${BASH_SOURCE[0]}" >&2
    exit 2
}

again=false limit=600 out='' wanted=()
while (($#)); do
    case $1 in
    --list)
        for part in "${PARTS[@]}"; do printf '%s %s advisor %s\n' "$part" "${LIMITS[$part]}" "${COMMANDS[$part]}"; done
        exit 0
        ;;
    --again) again=true ;;
    --limit)
        [[ ${2-} =~ ^[1-9][0-9]*$ ]] || usage
        limit=$2
        shift
        ;;
    -*) usage ;;
    *) if [[ -z $out ]]; then out=$1; else wanted+=("$1"); fi ;;
    esac
    shift
done
[[ -n $out ]] || usage
((${#wanted[@]})) || wanted=("${PARTS[@]}")
for part in "${wanted[@]}"; do
    [[ -n ${LIMITS[$part]-} ]] || { echo "error: there is no part \`$part\`: expected one of ${PARTS[*]}" >&2 && exit 2; }
done
mkdir -p "$out" && out=$(cd "$out" && pwd) || { echo "error: the folder \`$out\` cannot be made" >&2 && exit 2; }

advisor=${ADVISOR-}
[[ -n $advisor ]] || { [[ -x $root/target/release/advisor ]] && advisor=$root/target/release/advisor; }
[[ -n $advisor ]] || advisor=advisor
# A relative path is meant from where the caller stands, a bare name is looked up.
[[ $advisor == */* && $advisor != /* ]] && advisor=$PWD/$advisor
cd "$root" || exit 2
# The tiles that part `tune` finds are those of the parts after it, and of nobody else.
export ADVISOR_TUNING=$out/tuning.json

# A JSON string. Only what is printable in ASCII is kept: reasons are other programs' words.
quoted() {
    local text
    text=$(printf '%s' "$1" | LC_ALL=C tr -c '\040-\176' ' ')
    text=${text//\\/\\\\}
    printf '"%s"' "${text//\"/\\\"}"
}

running=''
# The part that is under way leaves no .json, so it runs again next time.
trap '[[ -n $running ]] && kill "$running" 2>/dev/null; exit 5' INT TERM HUP

# limited SECONDS COMMAND...: in a process group of its own, which ends with it.
limited() {
    local seconds=$1
    shift
    timeout --kill-after=1 "$seconds" "$@" &
    running=$!
    wait "$running"
    local code=$?
    running=''
    return "$code"
}

# Empty where PyTorch can be the peer, else why not; found out once, when a part first needs it.
peer_reason=unknown
python=${PYTHON-python3}
find_peer() {
    [[ $peer_reason == unknown ]] || return 0
    limited "$((PEER_LIMIT < limit ? PEER_LIMIT : limit))" "$python" -c '
try:
    import torch
except ImportError:
    raise SystemExit(3)
raise SystemExit(0 if torch.cuda.is_available() else 4)' >/dev/null 2>&1
    case $? in
    0) peer_reason='' ;;
    3 | 126 | 127) peer_reason='not run: no PyTorch' ;;
    4) peer_reason='not run: PyTorch sees no GPU' ;;
    124 | 137) peer_reason='not run: PyTorch took too long to start' ;;
    *) peer_reason='not run: PyTorch cannot be started' ;;
    esac
}

# PyTorch brings the vendor's library in a folder that no loader looks into.
find_cublas() {
    [[ -z ${ADVISOR_CUBLAS-} ]] || return 0
    local found
    found=$(limited 10 "$python" -c '
import glob, importlib.util
for name in ("nvidia", "torch"):
    spec = importlib.util.find_spec(name)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        for path in sorted(glob.glob(folder + "/**/libcublas.so.1[0-9]", recursive=True)):
            print(path)
            raise SystemExit' 2>/dev/null) && [[ -n $found ]] || return 0
    export ADVISOR_CUBLAS=$found
    # The library of its own that it opens lies beside it.
    export LD_LIBRARY_PATH=$(dirname "$found")${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
}

run_part() {
    local part=$1 seconds=$((LIMITS[$1] < limit ? LIMITS[$1] : limit)) extra='' reason='' status=failed code=0 begin
    local command=()
    # A result of an earlier call must not stand beside new output.
    rm -f "$out/$part.json"
    case $part in
    machine)
        command=("$advisor" doctor --json)
        if command -v nvidia-smi >/dev/null; then
            local fields=name,driver_version,memory.total,power.limit,clocks.max.sm,clocks.max.mem,temperature.gpu,persistence_mode,mig.mode.current
            local ended='"machine.nvidia-smi.csv"'
            limited 5 nvidia-smi --query-gpu="$fields" --format=csv >"$out/machine.nvidia-smi.csv" 2>&1 || ended='"failed"'
            extra=", \"nvidia_smi\": $ended"
        else
            extra=', "nvidia_smi": "not run: no nvidia-smi"'
        fi
        ;;
    kernels | steps)
        local name=bench
        [[ $part == steps ]] && name=steps
        # Rows are written as they come: a part that its limit cuts off leaves those it has.
        command=("$advisor" kernels --device cuda --json --part "$name" --rounds 3 --out "$out/$part")
        find_cublas
        find_peer
        if [[ -z $peer_reason ]]; then
            command+=(--peer "$python scripts/gpu_pytorch.py")
            extra=', "peer": "PyTorch"'
        else
            extra=", \"peer\": $(quoted "$peer_reason")"
        fi
        ;;
    tune) command=("$advisor" kernels --device cuda --json --tune) ;;
    scenarios) command=("$advisor" run scenarios/*.toml --quick --device cuda --out "$out/reports") ;;
    *) command=("$advisor" kernels --device cuda --json --part "$part") ;;
    esac
    echo "$part: ${command[*]}" >&2
    begin=$SECONDS
    limited "$seconds" "${command[@]}" </dev/null >"$out/$part.stdout" 2>"$out/$part.stderr"
    code=$?
    case $part:$code in
    # `advisor run` says by 1 that nothing meets every limit of a scenario, which is an answer.
    *:0 | scenarios:1) status=done ;;
    *:124 | *:137) reason="stopped after its limit of $seconds s" ;;
    *:126 | *:127) reason="\`$advisor\` cannot be started: build it with \`cargo build --release\`, or set ADVISOR" ;;
    *) reason="exit code $code: $(grep -m 1 '^error' "$out/$part.stderr" || tail -n 1 "$out/$part.stderr")" ;;
    esac
    [[ $status == done ]] || extra+=", \"reason\": $(quoted "$reason")"
    printf '{"schema": 1, "part": "%s", "status": "%s", "exit_code": %d, "seconds": %d, "limit_s": %d, "command": %s%s}\n' \
        "$part" "$status" "$code" $((SECONDS - begin)) "$seconds" "$(quoted "${command[*]}")" "$extra" >"$out/.$part.json.new" &&
        mv "$out/.$part.json.new" "$out/$part.json"
    echo "$part: $status${reason:+, $reason}" >&2
    [[ $status == done ]]
}

is_done() { [[ -f $out/$1.json ]] && grep -q '"status": "done"' "$out/$1.json"; }

failed=0
for part in "${wanted[@]}"; do
    if ! $again && is_done "$part"; then
        echo "$part: done before" >&2
        continue
    fi
    run_part "$part" || failed=5
done
exit "$failed"
