#!/usr/bin/env bash
# node.sh CONFIG [--section.key value ...]: the launcher of one node. Every node of a run starts it once, with
#   MACHINES, MACHINE_RANK        how many nodes, which one is this (0 is the main one)
#   MAIN_ADDRESS, MAIN_PORT       where node 0 listens; not needed for one node
#   PROCESSES                     training processes on each node, usually one for each GPU
#   LAUNCH                        accelerate's file (strategy and precision), default cluster/launch/ddp.yaml
# Slurm's scripts start it through srun, the Kubernetes example as the container's command; by hand it is the plain
# multi-node form:
#   node 0:  MACHINES=2 MACHINE_RANK=0 MAIN_ADDRESS=node0 MAIN_PORT=29500 PROCESSES=2 cluster/node.sh CONFIG
#   node 1:  MACHINES=2 MACHINE_RANK=1 MAIN_ADDRESS=node0 MAIN_PORT=29500 PROCESSES=2 cluster/node.sh CONFIG
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if [ -n "${MENAGERIE_SITE:-}" ]; then
    # shellcheck source=cluster/sites/example.env
    source "$MENAGERIE_SITE"
    site_setup
fi
machines=${MACHINES:-1} launch=${LAUNCH:-cluster/launch/ddp.yaml}
across=()
if [ "$machines" -gt 1 ]; then
    : "${MACHINE_RANK:?number of this node, from 0}" "${MAIN_ADDRESS:?host name of node 0}" "${MAIN_PORT:?a free port of node 0}"
    across=(--machine_rank "$MACHINE_RANK" --main_process_ip "$MAIN_ADDRESS" --main_process_port "$MAIN_PORT" --rdzv_backend static)
    # DeepSpeed's own launcher would log in from node to node; here every node has its launcher already.
    ! grep -q '^distributed_type: *DEEPSPEED' "$launch" || across+=(--deepspeed_multinode_launcher standard)
fi
# The launcher has to be this very process (exec): a shell in between would take the SIGTERM and leave the training to be killed.
exec "${SITE_RUN[@]}" accelerate launch --config_file "$launch" \
    --num_machines "$machines" --num_processes $((machines * ${PROCESSES:-1})) "${across[@]}" \
    trainer/main.py "$@"
