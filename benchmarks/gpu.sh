#!/usr/bin/env bash
# Everything that a GPU can show, in under nine minutes on one H100, without a network:
#
#     benchmarks/gpu.sh [OUT]
#
# Tests marked gpu, attention kernels, utilisation and memory of training steps, the loader beside the step, the
# peers. Prints a table last, and leaves JSON and logs in OUT (runs/gpu). Where there is no GPU, all of it runs on
# the CPU at a tiny size, which shows nothing but that it runs.
#
# Runs from a checkout with any Python that has torch and what pyproject.toml names. Where nothing can be installed,
# carry the packages that are missing in a folder, and put it on PYTHONPATH:
#
#     python3 -m pip install --no-deps --target FOLDER omegaconf simplejpeg …
#
# Every part is a process of its own: what fails, or lacks a package, says so in the table and ends no other. All
# parts need omegaconf, simplejpeg, jaxtyping, pillow, safetensors, tokenizers and fsspec, and attention kernels no
# more than that; steps need deepspeed, the loader webdataset, too, and peers are left out one by one.
set -uo pipefail
OUT=${1:+$(realpath -m "$1")}
cd "$(dirname "$0")/.."
OUT=${OUT:-$PWD/runs/gpu}
PYTHON=${PYTHON:-python3}
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
mkdir -p "$OUT"

part() { # NAME SECONDS COMMAND...: one part, which may fail without ending the others
    local name=$1 seconds=$2 start=$SECONDS status=0
    shift 2
    rm -f "$OUT/$name.json"
    timeout -k 3 "$seconds" "$@" >"$OUT/$name.log" 2>&1 || status=$?
    echo "$name: exit code $status after $((SECONDS - start)) s; $OUT/$name.log"
    parts+=("$name=$status")
    [ $status = 0 ] || failed+=("$name")
}

parts=() failed=()
"$PYTHON" -m benchmarks.gpu missing
if nvidia-smi -L >/dev/null 2>&1 &&
    "$PYTHON" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
    sizes=(b16 l16) peers=(--case mixed --images 128 --rounds 5) kinds=(peers peers-compiled)
    folders=(tests) compiling=()
else
    echo "no GPU, or none that torch can use: a dry run on the CPU"
    sizes=(tiny) peers=(--case equal --images 2 --rounds 1) kinds=(peers-compiled)
    folders=(tests/data tests/model tests/training) # the others need flash-attn, and are slow to import
    compiling=(env TORCHDYNAMO_DISABLE=1)           # it takes a minute there
fi
# Whatever is installed: without the shape checks of beartype, and warnings of other versions are told, no more.
mapfile -t tests < <(grep -rl --include=*.py 'mark\.gpu' "${folders[@]}")
part tests 100 "$PYTHON" -m pytest -q -m gpu -p no:cacheprovider -o addopts= -o filterwarnings=default \
    --continue-on-collection-errors "${tests[@]}"
part kernels 40 "$PYTHON" -m benchmarks.gpu kernels "$OUT/kernels.json"
for size in "${sizes[@]}"; do
    part "step-$size" 100 "$PYTHON" -m benchmarks.gpu steps "$OUT/step-$size.json" "$size"
done
part overlap 90 "$PYTHON" -m benchmarks.gpu overlap "$OUT/overlap.json" "${sizes[0]}"
peers=("$PYTHON" -m benchmarks.peers image --size "${sizes[0]}" "${peers[@]}")
for kind in "${kinds[@]}"; do
    flags=(--json "$OUT/$kind.json")
    [ "$kind" = peers ] || flags+=(--compiled)
    part "$kind" 50 "${compiling[@]}" "${peers[@]}" "${flags[@]}"
done
"$PYTHON" -m benchmarks.gpu table "$OUT" "${parts[@]}"
if [ ${#failed[@]} -gt 0 ]; then
    echo "failed: ${failed[*]}"
    exit 1
fi
