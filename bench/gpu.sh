#!/usr/bin/env bash
# One call on a machine with a GPU, under 9 minutes: build, tests, benchmarks; rows to bench/results/, the tables last.
#
# Downloads nothing. Wanted: torch with CUDA, triton, nvcc, and scikit-build-core, pybind11, cmake, ninja, pytest,
# pytest-benchmark, pytest-timeout, hypothesis. Peers (liger-kernel, cut-cross-entropy) may lie as wheels in $WHEELS.
# Every step has its own limit and a failed one stops nothing but itself; the exit code is 1 if any failed.
#   FASTFT_COMMIT  names the commit where there is no git
#   OUT            a folder that also receives the rows and one log
set -uo pipefail
cd "$(dirname "$0")/.."
scratch=$(mktemp -d)
OUT=${OUT:-$scratch} WHEELS=${WHEELS:-.whl}
export PYTHONUNBUFFERED=1
failed=0

step() { # name, seconds, command...
  local name=$1 limit=$2 code=0
  shift 2
  echo "== $name"
  local start=$SECONDS
  timeout "$limit" "$@" > "$scratch/$name" 2>&1 || code=$?
  { echo "== $name"; cat "$scratch/$name"; } >> "$OUT/log"
  tail -n "${LINES_KEPT:-12}" "$scratch/$name"
  echo "== $name: exit $code after $((SECONDS - start)) s"
  [ $code -eq 0 ] || failed=1
}

nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader
capability=$(python3 -c 'import torch; print("%d%d" % torch.cuda.get_device_capability())') || exit 1
if compgen -G "$WHEELS/*.whl" > /dev/null; then
  python3 -m pip install -q --no-index --no-deps --no-compile --target "$scratch/site" "$WHEELS"/*.whl
  export PYTHONPATH="$scratch/site${PYTHONPATH:+:$PYTHONPATH}"
fi
export FASTFT_CUDA=ON
step build 80 python3 -m pip install -q --no-index --no-build-isolation --no-deps \
  -C "cmake.define.FASTFT_CUDA_ARCHITECTURES=$capability-real" -e .
LINES_KEPT=5 step info 30 python3 -m fastft info
LINES_KEPT=40 step tests 190 python3 -m pytest -q -W default -m "gpu and not slow" tests/kernels tests/losses
# Without torch's cache of blocks, which would hide a write beyond one of them.
step sanitizer 60 env PYTORCH_NO_CUDA_MEMORY_CACHING=1 \
  compute-sanitizer --error-exitcode 9 python3 -m pytest -q -W default tests/kernels/test_gpu.py -k small
bench() { # op, seconds
  LINES_KEPT=80 step "$1" "$2" python3 -m pytest "bench/$1.py" -q -W default --benchmark-only --benchmark-disable-gc \
    -k cuda --cap 0.5 --record
}
before=$SECONDS
bench cross_entropy 40
bench embedding 20
bench accuracy 30
bench scaling 35
bench linear_cross_entropy $((178 - (SECONDS - before))) # what the others left over is the last one's
for results in bench/results/*/; do
  case $results in *nvidia*) python3 -m bench.report "$results" > /dev/null && cp -r "$results" "$OUT/" ;; esac
done
cat bench/results/*nvidia*/report.md 2> /dev/null
exit $failed
