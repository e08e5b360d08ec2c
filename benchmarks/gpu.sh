#!/usr/bin/env bash
# Kernels on a GPU: correctness, then compute-sanitizer at small sizes, then the table of targets.
#
#   benchmarks/gpu.sh [FOLDER]     default: docs/benchmarks/kernels-<name of the card>
#
# Ends within nine minutes and can be run again: what is done is not repeated. Exit status: 0 all
# done, 3 time was up and a further run goes on, 1 something is wrong (the logs in FOLDER say what).
# PYTHON names an interpreter with torch for CUDA and triton; SECONDS_LEFT another time limit.
set -u
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-.venv/bin/python}
[ -x "$(command -v "$PYTHON")" ] || PYTHON=python3
END=$((SECONDS + ${SECONDS_LEFT:-525}))
left() { echo $((END - SECONDS)); }

card=$("$PYTHON" -c 'import torch; print(torch.cuda.get_device_name(0))' 2>/dev/null)
if [ -z "$card" ]; then
  echo "no CUDA device that torch can use; nothing was measured" >&2
  exit 1
fi
slug=$(echo "$card" | tr '[:upper:]' '[:lower:]' | tr -cs 'a-z0-9' '-' | sed 's/^-*//; s/-*$//')
out=${1:-docs/benchmarks/kernels-$slug}
mkdir -p "$out"
commit=$(git rev-parse --short HEAD 2>/dev/null || echo unknown)
export PYTHONPATH="$PWD:$PWD/tests${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
status=0

# stage NAME SECONDS COMMAND...: the command's output goes to NAME.log; done once it ended well.
stage() {
  local name=$1 limit=$2 code
  shift 2
  [ -f "$out/$name.log" ] && tail -n 1 "$out/$name.log" | grep -qx 'done' && return 0
  [ "$(left)" -lt 30 ] && { [ "$status" -eq 0 ] && status=3; return 3; }
  [ "$limit" -gt "$(left)" ] && limit=$(left)
  echo "$name (at most $limit s)"
  timeout "$limit" "$@" >"$out/$name.log" 2>&1
  code=$?
  case $code in
    0) echo done >>"$out/$name.log" ;;
    3 | 124) [ "$status" -eq 0 ] && status=3 ;;
    *) status=1; tail -n 20 "$out/$name.log" >&2 ;;
  esac
  return $code
}

stage tests 200 "$PYTHON" -m pytest -q -m gpu tests/kernels tests/bench/test_kernels.py
if command -v compute-sanitizer >/dev/null; then
  stage memcheck 120 compute-sanitizer --tool memcheck --error-exitcode 9 \
    "$PYTHON" tests/kernel_examples.py --device cuda --dtype bf16
  stage racecheck 90 compute-sanitizer --tool racecheck --error-exitcode 9 \
    "$PYTHON" tests/kernel_examples.py --device cuda --dtype fp16 --first 2
else
  echo "compute-sanitizer isn't installed: memory and races are unchecked" | tee "$out/memcheck.log"
fi
# The slowest case takes some 40 s, most of it torch.compile: none is started with less time left.
budget=$(( $(left) - 45 ))
[ "$budget" -gt 0 ] && stage bench "$(left)" "$PYTHON" -m polyglyph.bench.kernels \
  --device cuda --seconds "$budget" --commit "$commit" -o "$out"
[ "$budget" -le 0 ] && [ "$status" -eq 0 ] && status=3
echo "$out: status $status"
exit $status
