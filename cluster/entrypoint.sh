#!/usr/bin/env bash
# The container's entry point: `train CONFIG ...` is cluster/local.sh (PROCESSES, MACHINES, ... from the environment); the other
# verbs are `python -m`; anything else is run as it stands.
set -euo pipefail
cd /opt/menagerie
verb=${1:-help}
[ $# -eq 0 ] || shift
case $verb in
    train) exec cluster/local.sh "$@" ;;
    evaluate | sample | export | convert | checkpoint | status | class_splits | train_classifier) exec python -m "trainer.$verb" "$@" ;;
    make_shards | manifest) exec python -m "data_pipeline.$verb" "$@" ;;
    help)
        echo "menagerie: train CONFIG [--section.key value ...]; evaluate, sample, export, convert, checkpoint, status, class_splits,"
        echo "train_classifier, make_shards, manifest (each with --help); or any command. Settings of training:"
        exec python trainer/main.py --help
        ;;
    *) exec "$verb" "$@" ;;
esac
