#!/usr/bin/env bash
# Everything that a GPU can show, in under nine minutes on one H100, without a network:
#
#     benchmarks/gpu.sh [OUT]
#
# Tests marked gpu, attention kernels, utilisation and memory of training steps, the loader beside the step, the
# peers. Prints a table last, and leaves JSON and logs in OUT (runs/gpu). Where there is no GPU, all of it runs on
# the CPU at a tiny size, which shows nothing but that it runs. Runs from a checkout with any Python that has
# torch and what pyproject.toml names; what is missing is named first, and what does not need it still runs.
set -uo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}
OUT=${1:-runs/gpu}
export PYTHONPATH=$PWD PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
mkdir -p "$OUT"

part() { # NAME SECONDS COMMAND...: one part, which may fail without ending the others
    local name=$1 seconds=$2 start=$SECONDS status=0
    shift 2
    timeout "$seconds" "$@" >"$OUT/$name.log" 2>&1 || status=$?
    echo "$name: exit code $status after $((SECONDS - start)) s; $OUT/$name.log"
    [ $status = 0 ] || failed+=("$name")
}

failed=()
rm -f "$OUT"/*.json
"$PYTHON" -m benchmarks.gpu missing
if nvidia-smi -L >/dev/null 2>&1 && [ "${CUDA_VISIBLE_DEVICES-all}" ]; then
    sizes=(b16 l16) peers=(--images 64 --rounds 5 --compiled)
else
    sizes=(tiny) peers=(--images 4)
fi
[ "${SKIP_TESTS:-}" ] || part tests 150 "$PYTHON" -m pytest -q -p no:cacheprovider -m gpu tests
part run 240 "$PYTHON" -m benchmarks.gpu run "$OUT" "${sizes[@]}"
part peers 120 "$PYTHON" -m benchmarks.peers image --size "${sizes[0]}" --case mixed "${peers[@]}" \
    --json "$OUT/peers.json"
"$PYTHON" -m benchmarks.gpu table "$OUT"
if [ ${#failed[@]} -gt 0 ]; then
    echo "failed: ${failed[*]}"
    exit 1
fi
