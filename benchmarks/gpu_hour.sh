#!/usr/bin/env bash
# One hour on a rented GPU, from the first look at the card to records of paper-scale studies.
#
#   bash benchmarks/gpu_hour.sh                on the card; the same command goes on where it stopped
#   DEVICE=cpu bash benchmarks/gpu_hour.sh     dry run from start to end, with smoke sizes and embedded data
#   bash benchmarks/gpu_hour.sh pack FILE.tar  what to copy to the card: code and data, at most 60 MB
#
# Variables: DEVICE (cuda), MINUTES (60), OUT (gpu_hour: all that is to be brought back), PYTHON (python3),
# GRADTUNE_DATA (data/raw). It needs torch >= 2.11 and what the first part names, and neither Jupyter nor optuna.
# It can be stopped at any moment: runs are recorded one by one, and a run under way has a checkpoint in OUT.
set -uo pipefail
cd "$(dirname "$0")/.."

LIMIT_MB=60

pack() {
  local file=$1 data=${GRADTUNE_DATA:-data/raw} place
  tree=$(mktemp -d) && place=$tree/gradtune
  trap 'rm -rf "$tree"' EXIT
  mkdir -p "$place/data/raw"
  git ls-files lib benchmarks data/published README.md _toc.yml pyproject.toml requirements-run.txt \
    | tar -c -T - | tar -x -C "$place"
  { git rev-parse HEAD | tr -d '\n'; [ -z "$(git status --porcelain -- lib)" ] || printf -- -dirty; } >"$place/COMMIT"
  for set in cifar10-images.tar.xz cifar10 ptb; do
    [ "$set" = cifar10 ] && [ -e "$data/cifar10-images.tar.xz" ] && continue
    [ -e "$data/$set" ] || { echo "not packed, as it is not in $data: $set" >&2; continue; }
    mkdir -p "$(dirname "$place/data/raw/$set")" && cp -rL "$data/$set" "$place/data/raw/$set"
  done
  tar -c -f "$file" -C "$tree" gradtune
  local mb=$(($(stat -c %s "$file") / 1000000 + 1))
  echo "$file: $mb MB"
  [ "$mb" -le "$LIMIT_MB" ] || { echo "$file is larger than $LIMIT_MB MB; leave sets out of $data" >&2; return 1; }
}

if [ "${1:-}" = pack ]; then
  pack "${2:?which file? as in: bash benchmarks/gpu_hour.sh pack gradtune.tar}"
  exit
fi

DEVICE=${DEVICE:-cuda} MINUTES=${MINUTES:-60} PYTHON=${PYTHON:-python3}
OUT=$(mkdir -p "${OUT:-gpu_hour}" && cd "${OUT:-gpu_hour}" && pwd)
END=$((SECONDS + MINUTES * 60))
export GRADTUNE_RECORDS=$OUT/records PYTHONPATH=$PWD/lib:$PWD${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
[ -f COMMIT ] && export GRADTUNE_COMMIT=${GRADTUNE_COMMIT:-$(cat COMMIT)}
SCALE=paper QUICK=
if [ "$DEVICE" = cpu ]; then SCALE=smoke QUICK=--quick; fi
DATA=${GRADTUNE_DATA:-data/raw}
if [ -f "$DATA/cifar10-images.tar.xz" ] && [ ! -d "$DATA/cifar10" ]; then
  mkdir -p "$DATA/cifar10.part" && tar -x -C "$DATA/cifar10.part" -f "$DATA/cifar10-images.tar.xz" && mv "$DATA/cifar10.part" "$DATA/cifar10"
fi
trap 'echo; echo "stopped; the same command goes on"; finish; exit 130' INT TERM

finish() {
  local records unfinished
  records=$(cat "$OUT"/records/*/*/*.jsonl 2>/dev/null | wc -l)
  unfinished=$(find "$OUT/records" -name '*.pt' 2>/dev/null | wc -l)
  echo "bring back $OUT ($(du -sh "$OUT" | cut -f1)): $records records, $unfinished unfinished runs, and the logs"
  echo "then: gradtune records merge $(basename "$OUT")/records"
}

# part NAME SECONDS COMMAND...: run a command for at most so long, with its output in OUT/NAME.log too
part() {
  local name=$1 most=$2 begin=$SECONDS status
  shift 2
  [ "$most" -gt $((END - SECONDS)) ] && most=$((END - SECONDS))
  [ "$most" -le 0 ] && { echo "== $name: no time left"; return 124; }
  echo "== $name, at most $most s"
  timeout --foreground -s INT -k 60 "$most" "$@" 2>&1 | tee -a "$OUT/$name.log"
  status=${PIPESTATUS[0]}
  [ "$status" = 124 ] && echo "   (time is up)"
  echo "== $name: $((SECONDS - begin)) s, status $status" | tee -a "$OUT/times.log"
  return "$status"
}

# study SHARE NAME METHODS...: a share of the hour in percent for the runs of a study by these methods, in its order
study() {
  local share=$1 name=$2 status
  shift 2
  part "$name" $((MINUTES * 60 * share / 100)) \
    "$PYTHON" -c 'import sys; from gradtune_book.cli import main; sys.exit(main())' \
    record "$name" --scale "$SCALE" --device "$DEVICE" --methods "$@"
  status=$?
  case $status in
    0) ;;
    3 | 124 | 130 | 137) again=1 ;; # time is up; it goes on from its checkpoint
    *) failed=1 ;;
  esac
}

# in the order of what a minute is worth: a claim that no CPU decides, then two nets of 11 million weights, then text
studies() {
  again=0
  study 33 fds_cifar_regret FDS
  study 18 oho_resnet OHO
  study 18 metaoptimize_cifar "MetaOptimize, blocks"
  study 24 clip_ptb Clip5
}

failed=0 again=0
part versions 60 "$PYTHON" benchmarks/gpu_hour.py versions --device "$DEVICE" || exit 2
# shellcheck disable=SC2086
part agree 120 "$PYTHON" benchmarks/gpu_hour.py agree --device "$DEVICE" $QUICK || failed=1
# shellcheck disable=SC2086
part speed 180 "$PYTHON" benchmarks/gpu_hour.py speed --device "$DEVICE" $QUICK || failed=1
studies
while [ "$again" = 1 ] && [ "$((END - SECONDS))" -gt 60 ]; do studies; done
finish
exit $failed
