#!/usr/bin/env bash
# submit.sh SITE WHAT [options] ...: fills in the site's settings, checks the experiment by a dry run, submits, and tells the
# job ids and how to follow them. SITE: a file cluster/sites/SITE.env, or the path of one.
#
#   submit.sh SITE train [options] CONFIG [--section.key value ...]
#   submit.sh SITE make_shards [--tasks N] SOURCE INPUT OUTPUT [options of data_pipeline.make_shards]
#   submit.sh SITE evaluate RUN [options of trainer.evaluate]             follows the run until its end
#   submit.sh SITE finetune [options] CONFIG [--section.key value ...]    begins when run.initialize_from exists
#   submit.sh SITE class_splits [--parts N] [options] CONFIG [--section.key value ...]
#
# Relative paths of make_shards, and of SITE, are those of the folder that submit.sh is called in.
#
# Options: --nodes N (1), --processes N (on each node, with a GPU each; the site's SITE_PROCESSES), --time T, --launch FILE (strategy and
#          precision), --after JOB (begin when that job has ended well),
#          --evaluate "OPTIONS" (class_splits: measure each split with these options of trainer.evaluate),
#          --show (print the sbatch command lines, submit nothing)
set -euo pipefail
usage() { sed -n '2,/^set/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" | head -n -1 >&2; exit 2; }
fail() { printf 'submit.sh: %s\n' "$*" >&2; exit 2; }

[ $# -ge 2 ] || usage
site=$1 what=$2
[ ! -f "$site" ] || site=$(readlink -f "$site")
export MENAGERIE_CALLER=$PWD
cd "$(dirname "${BASH_SOURCE[0]}")/.."
shift 2
[ -f "$site" ] || site=cluster/sites/$site.env
[ -f "$site" ] || fail "SITE: there is no $site; copy cluster/sites/example.env to it and edit it"
script=cluster/$what.sbatch
[ -f "$script" ] || fail "WHAT: is '$what'; choose one of train, make_shards, evaluate, finetune, class_splits"
# shellcheck source=cluster/sites/example.env
source "$site"

nodes=1 processes=$SITE_PROCESSES time=$SITE_TIME launch=$SITE_LAUNCH after="" tasks=16 parts=100 show=""
while [ $# -gt 0 ]; do
    case $1 in
        --nodes) nodes=$2 ;;
        --processes) processes=$2 ;;
        --time) time=$2 ;;
        --launch) launch=$2 ;;
        --after) after=$2 ;;
        --tasks) tasks=$2 ;;
        --parts) parts=$2 ;;
        --evaluate) export MENAGERIE_EVALUATE=$2 ;;
        --show)
            show=yes
            shift
            continue
            ;;
        *) break ;;
    esac
    shift 2
done
[ $# -ge 1 ] || usage
[ -f "$launch" ] || fail "--launch: there is no file $launch; cluster/launch/ has them"
case $SITE_LOGS in /*) ;; *) SITE_LOGS=$PWD/$SITE_LOGS ;; esac
mkdir -p "$SITE_LOGS"
site_setup

export MENAGERIE_ROOT=$PWD MENAGERIE_LAUNCH=$launch MENAGERIE_PROCESSES=$processes
MENAGERIE_SITE=$(readlink -f "$site")
export MENAGERIE_SITE

# ask OPTION VALUE: an option of sbatch, where the site has a value for it.
options=()
ask() { [ -z "$2" ] || options+=("$1=$2"); }
common() {
    ask --account "$SITE_ACCOUNT"
    ask --qos "$SITE_QOS"
    ask --time "$time"
    options+=("${SITE_SBATCH[@]}" --export=ALL)
}
on_gpu_nodes() {
    ask --partition "$SITE_PARTITION"
    ask --nodes "$1"
    ask --cpus-per-task "$SITE_CPUS"
    ask --mem "$SITE_MEMORY"
    [ -z "$SITE_GPU" ] || options+=("${SITE_GPU//%d/$processes}")
    ask --signal "B:USR1@$SITE_NOTICE"
    common
}
on_cpu_node() {
    options=()
    ask --partition "${SITE_CPU_PARTITION:-$SITE_PARTITION}"
    ask --cpus-per-task "$SITE_CPU_TASK_CPUS"
    common
}

# submit SBATCH_OPTION... SCRIPT ARGUMENT...: sets $job.
submit() {
    if [ -n "$show" ]; then
        printf '%q ' sbatch "${options[@]}" "$@"
        echo
        job=0
        return
    fi
    job=$(sbatch --parsable "${options[@]}" "$@")
    job=${job%%;*}
}

# check CONFIG ...: the dry run, for the launch at hand. Its sentence is all that a mistake prints.
check() {
    local precision stage variables
    precision=$(sed -n "s/^mixed_precision: *['\"]\{0,1\}\([a-z0-9]*\).*/\1/p" "$launch")
    stage=$(sed -n 's/^ *zero_stage: *\([0-9]\).*/\1/p' "$launch")
    # What accelerate would tell each of the processes.
    variables=(WORLD_SIZE=$((nodes * processes)) RANK=0 LOCAL_RANK=0 ACCELERATE_MIXED_PRECISION="${precision:-no}")
    [ -z "$stage" ] || variables+=(ACCELERATE_USE_DEEPSPEED=true ACCELERATE_DEEPSPEED_ZERO_STAGE="$stage")
    "${SITE_RUN[@]}" env "${variables[@]}" \
        python trainer/main.py "$@" --run.dry_run true >"$SITE_LOGS/.dry-run-$$" || exit
    sed -n '/^# batch/,/^# traffic/p' "$SITE_LOGS/.dry-run-$$" | grep -v '^# traffic' || true
    rm -f "$SITE_LOGS/.dry-run-$$"
}

# check_shards SOURCE INPUT OUTPUT ...: whether make_shards takes these options. It reads only the files that they name.
check_shards() {
    local code='import sys; from data_pipeline.make_shards.__main__ import main; sys.exit(main(sys.argv[1:], only_check=True))'
    (cd "$MENAGERIE_CALLER" &&
        PYTHONPATH=$MENAGERIE_ROOT${PYTHONPATH:+:$PYTHONPATH} "${SITE_RUN[@]}" python -c "$code" "$@") || exit
}

tell() {
    [ -z "$show" ] || return 0
    printf '%s\n' "" "job $1 ($what)" \
        "  log       tail -F $2" \
        "  state     squeue -j $1; scontrol show job $1" \
        "  cancel    scancel $1          (stays cancelled; the same command resumes from the last checkpoint)"
}

case $what in
    train | finetune)
        check "$@"
        on_gpu_nodes "$nodes"
        ask --dependency "${after:+afterok:$after}"
        submit --output="$SITE_LOGS/$what-%j.log" "$script" "$@"
        tell "$job" "$SITE_LOGS/$what-$job.log"
        [ -n "$show" ] || printf '%s\n' \
            "  stop      create a file STOP in the run's folder (saves first; not requeued)" \
            "  curves    cluster/tensorboard.sh RUN"
        ;;
    class_splits)
        export MENAGERIE_PARTS=$parts
        check "$@" --data.classes "split 1 of $parts"
        on_gpu_nodes 1
        ask --dependency "${after:+afterok:$after}"
        submit --array="1-$parts" --output="$SITE_LOGS/$what-%A_%a.log" "$script" "$@"
        array=$job
        tell "$array" "$SITE_LOGS/$what-${array}_1.log"
        on_cpu_node
        # Also when a split has failed: the table says which.
        submit --dependency="afterany:$array" --job-name=menagerie-table --output="$SITE_LOGS/$what-table-%j.log" \
            cluster/table.sbatch "$@"
        tell "$job" "$SITE_LOGS/$what-table-$job.log"
        ;;
    make_shards)
        check_shards "$@"
        export MENAGERIE_PARTS=$tasks
        on_cpu_node
        ask --dependency "${after:+afterok:$after}"
        submit --array="1-$tasks" --output="$SITE_LOGS/$what-%A_%a.log" "$script" "$@"
        array=$job
        tell "$array" "$SITE_LOGS/$what-${array}_1.log"
        # The merge is the same command without its part: all shards are there, so it writes the manifest.
        on_cpu_node
        MENAGERIE_PARTS=1 submit --dependency="afterok:$array" --kill-on-invalid-dep=yes --job-name=menagerie-merge \
            --output="$SITE_LOGS/$what-merge-%j.log" "$script" "$@"
        tell "$job" "$SITE_LOGS/$what-merge-$job.log"
        ;;
    evaluate)
        processes=1
        on_gpu_nodes 1
        ask --dependency "${after:+after:$after}"
        submit --output="$SITE_LOGS/$what-%j.log" "$script" "$@"
        tell "$job" "$SITE_LOGS/$what-$job.log"
        ;;
esac
# For scripts: the ids alone, last line.
[ -n "$show" ] || printf '\nsubmitted %s\n' "${array:+$array }$job"
