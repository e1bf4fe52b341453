#!/usr/bin/env bash
# tensorboard.sh RUN [options of tensorboard]: watches a run, or a folder of runs, wherever it lies, and says how to see it from
# your own machine. RUN: a folder (start it on the login node), or a URL such as s3://bucket/runs/NAME (start it anywhere; the
# curves are copied to a local folder and kept up to date: event files only ever grow, so only what is new is fetched).
# From the environment: PORT (6006), EVERY (30, seconds between two looks at a URL), ONCE=yes (copy once and end).
set -euo pipefail
[ $# -ge 1 ] || { sed -n '2,5s/^# //p' "${BASH_SOURCE[0]}" >&2; exit 2; }
run=$1 port=${PORT:-6006}
shift
case $run in *://* | /*) ;; *) run=$PWD/$run ;; esac
cd "$(dirname "${BASH_SOURCE[0]}")/.."
[ ! -x .venv/bin/python ] || PATH=$PWD/.venv/bin:$PATH

if [[ $run == *://* ]]; then
    copy=${COPY:-${TMPDIR:-/tmp}/menagerie-curves-$(id -un)/${run#*://}}
    mkdir -p "$copy"
    python -m trainer.curves "$run" "$copy"
    [ -z "${ONCE:-}" ] || exit 0
    python -m trainer.curves "$run" "$copy" --every "${EVERY:-30}" &
    copier=$!
    trap 'kill "$copier" 2>/dev/null' EXIT
    run=$copy
fi
[ -d "$run" ] || { printf 'tensorboard.sh: RUN: there is no folder %s\n' "$run" >&2; exit 2; }
host=$(hostname -f 2>/dev/null || hostname)
printf '%s\n' "From your own machine:  ssh -N -L $port:localhost:$port $(id -un)@$host" "then open               http://localhost:$port"
tensorboard --logdir "$run" --port "$port" "$@"
