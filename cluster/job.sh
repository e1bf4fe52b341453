# shellcheck shell=bash
# job.sh: what the Slurm scripts share. Sourced in the batch shell, after SLURM's copy of the script has begun to run.
# From the environment (submit.sh sets it): MENAGERIE_ROOT, the repository; MENAGERIE_SITE, the site file.
set -u
cd "${MENAGERIE_ROOT:=$SLURM_SUBMIT_DIR}" || exit 1
: "${MENAGERIE_SITE:?is not set: submit through cluster/submit.sh, or export the path of a file such as cluster/sites/example.env}"
export MENAGERIE_ROOT MENAGERIE_SITE
# shellcheck source=cluster/sites/example.env
source "$MENAGERIE_SITE"
mkdir -p "$SITE_LOGS"
progress="$SITE_LOGS/.progress-$SLURM_JOB_ID"
# shellcheck source=cluster/supervise.sh
source cluster/supervise.sh
site_setup

export MACHINES=$SLURM_NNODES PROCESSES=${MENAGERIE_PROCESSES:-$SITE_PROCESSES} LAUNCH=${MENAGERIE_LAUNCH:-$SITE_LAUNCH}
MAIN_ADDRESS=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export MAIN_ADDRESS

# Who hears what (Slurm 22.05, measured): the notice before the time limit (--signal=B:USR1@..) reaches this shell alone;
# preemption's TERM reaches the launchers alone; scancel, requeue and the time limit itself reach both, and KILL follows.
# Launchers die of USR1, so they are sent TERM. The traps only take notes: bash may be in the middle of anything.
trap 'stop_wanted="notice of the time limit"' USR1
trap 'being_ended=yes' TERM
trap ':' CONT

# on_nodes COMMAND...: one task on each node. --wait: when one node's launcher has died, the others get this long.
on_nodes() {
    srun --nodes="$SLURM_NNODES" --ntasks-per-node=1 ${SLURM_CPUS_PER_TASK:+--cpus-per-task="$SLURM_CPUS_PER_TASK"} \
        --kill-on-bad-exit=0 --wait="${SITE_STEP_WAIT:-300}" "$@"
}

start_processes() {
    # One port per job, below the kernel's ephemeral ports; another one after a start that brought nothing: it may be taken.
    export MAIN_PORT=$((15000 + (SLURM_JOB_ID + 1009 * futile) % 15000))
    # Single quotes: SLURM_NODEID is every node's own.
    # shellcheck disable=SC2016
    on_nodes bash -c 'MACHINE_RANK=$SLURM_NODEID exec cluster/node.sh "$@"' node "$@"
}

# To the steps alone, and never to srun, which would kill them.
forward_stop() {
    squeue --noheader --steps --jobs="$SLURM_JOB_ID" --format=%i | grep -E '\.[0-9]+$' |
        while read -r step; do scancel --signal=TERM "$step"; done
}

# job_state: JobState and Reason, as in "RUNNING None". A job that Slurm is ending says COMPLETING, whoever ended it.
job_state() { scontrol show job -o "$SLURM_JOB_ID" 2>/dev/null | sed -nE 's/.* JobState=([A-Z_]+) Reason=([^ ]+).*/\1 \2/p'; }

# hand_over STATUS: back into the queue, under the same job id, unless Slurm or a person has decided something else. After
# an scancel Slurm would take a requeue as well; so only what is certain to be no scancel is requeued.
hand_over() {
    local state attempts=10
    while [ $((attempts--)) -gt 0 ]; do
        state=$(job_state)
        case $state in
            "RUNNING "* | *" TimeLimit")
                if scontrol requeue "$SLURM_JOB_ID"; then
                    say "REQUEUED by itself ($state)"
                    # Slurm's SIGTERM to this shell comes in a moment; a shell that slept on would be waited for, and killed.
                    while [ -z "$being_ended" ]; do sleep 1; done
                    exit "$1"
                fi
                ;;
            "") ;; # the controller does not answer
            *)
                say "left to Slurm ($state): back in the queue after a requeue or a node's failure, at its end after an scancel"
                exit "$1"
                ;;
        esac
        sleep 15
    done
    say "could not requeue (job state: ${state:-unknown}); submit the same command again, it resumes from iteration $iteration"
    exit "$1"
}
