#!/usr/bin/env bash
# local.sh CONFIG [--section.key value ...]: trains on this one machine, with one process for each GPU (two without one; as many
# as can have the experiment's replicas), and starts again after failures as the Slurm scripts do. SIGTERM, SIGUSR1 or Ctrl-C: it saves and ends; the same command resumes.
# From the environment: PROCESSES, LAUNCH (accelerate's file: strategy and precision), SITE_LOGS, SITE_RESTARTS, SITE_PAUSE, and for
# one of several machines MACHINES, MACHINE_RANK, MAIN_ADDRESS, MAIN_PORT (see node.sh). REQUEUE_STATUS: exit status after a
# stop by signal (0); another one tells a container service or systemd that the run is not complete.
set -u
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
[ $# -ge 1 ] || { sed -n '2,7s/^# //p' "${BASH_SOURCE[0]}" >&2; exit 2; }
[ ! -x .venv/bin/python ] || PATH=$PWD/.venv/bin:$PATH
gpus=$(nvidia-smi --list-gpus 2>/dev/null | grep -c '^GPU')
if [ "$gpus" -gt 0 ]; then fitting=ddp.yaml; else fitting=cpu.yaml; fi
# At most as many processes as the experiment has replicas, or a multiple: 8 GPUs take 4 replicas on 8, 6 GPUs on 4.
replicas=$([ "$gpus" -le 1 ] || CUDA_VISIBLE_DEVICES='' python -c 'import sys
from trainer.config import load_config
print(load_config(sys.argv[1], sys.argv[2:]).batch.replicas)' "$@" 2>/dev/null)
all=${MACHINES:-1}
while [ "$gpus" -gt 1 ] && [ $((gpus * all)) -gt "${replicas:=1024}" ] && [ $((gpus * all % replicas)) -ne 0 ]; do
    gpus=$((gpus - 1))
done
export PATH PROCESSES=${PROCESSES:-$((gpus > 0 ? gpus : 2))} LAUNCH=${LAUNCH:-cluster/launch/$fitting}
export OMP_WAIT_POLICY=passive
SITE_RUN=()
mkdir -p "${SITE_LOGS:=logs}"
progress=$SITE_LOGS/.progress-local-$$
# shellcheck source=cluster/supervise.sh
source cluster/supervise.sh

trap 'stop_wanted="SIGTERM"' TERM
trap 'stop_wanted="SIGUSR1"' USR1
trap 'being_ended=yes' INT # the terminal sends it to the training as well

start_processes() { exec cluster/node.sh "$@"; }
forward_stop() { kill -TERM "$1"; }
hand_over() {
    say "stopped as asked; the same command resumes from iteration $iteration"
    return "${REQUEUE_STATUS:-0}"
}

supervise "$@"
