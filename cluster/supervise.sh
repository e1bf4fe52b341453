# shellcheck shell=bash
# supervise.sh: keeps a run going from the shell that started it. Sourced by the Slurm scripts (through job.sh) and by
# local.sh, which define `start_processes` (runs the launchers and waits for them), `forward_stop` (hands SIGTERM to the
# launchers) and `hand_over` (what to do once a scheduler has stopped the run).
#
# What ended a start is read from the run's folder, never from an exit status: those do not survive the launchers.
#   status 0, no marker            complete
#   marker, "requeue": true        a scheduler asked, everything is saved: hand_over
#   marker, "requeue": false       a person asked (Ctrl-C, STOP file): end
#   settings refused               end: it would be refused again
#   anything else                  failed (a process or a node died): start again here, after a pause
# A cap on starts in a row without a new checkpoint ends what would fail for ever. Bash 4.4 or later.

stop_wanted="" # why the launchers should be stopped; set by a trap, acted on outside of it
being_ended="" # set by a trap: Slurm is ending the job by itself
run="the run"
iteration=0
ready=ready
: "${progress:?a file of the sourcing script, for the count of starts that came to nothing}" "$ready"

say() { printf 'menagerie %(%F %T)T: %s\n' -1 "$*"; }

# run_status SINCE CONFIG [--section.key value ...]: sets run, iteration, stop and ready; 1 if the store cannot be read.
run_status() {
    local line
    stop=none ready=ready
    if ! line=$("${SITE_RUN[@]}" python -m trainer.status --since "$@"); then
        say "how far the run is cannot be read now"
        return 1
    fi
    IFS=$'\t' read -r run iteration stop ready <<<"$line"
}

# may_start: counts starts in a row that brought no new checkpoint, across requeues too, in the file $progress.
may_start() {
    local before=-1
    futile=0
    [ ! -s "$progress" ] || read -r before futile <"$progress"
    if [ "$iteration" -gt "$before" ]; then futile=0; else futile=$((futile + 1)); fi
    printf '%s %s\n' "$iteration" "$futile" >"$progress"
    if [ "$futile" -gt "${SITE_RESTARTS:-8}" ]; then
        say "GIVING UP: $futile starts in a row ended without a checkpoint after iteration $iteration." \
            "Look above for what ends them; to try again, submit the same command."
        return 1
    fi
}

# pause: 15 s, doubled with every start that brought nothing, 10 minutes at most. Ends early when asked to stop.
pause() {
    local seconds=$((${SITE_PAUSE:-15} << futile))
    [ "$seconds" -le 600 ] || seconds=600
    say "starting again in $seconds s"
    while [ $((seconds--)) -gt 0 ] && [ -z "$stop_wanted$being_ended" ]; do sleep 1; done
}

# wait_for_processes PID: returns when they have ended, with their status in $rc; meanwhile hands on what a trap noted.
# It looks once a second: `wait` that a signal interrupts just when they end can lose their status (bash 5.2 gives -1).
wait_for_processes() {
    local pid=$1 forwarded=""
    while kill -0 "$pid" 2>/dev/null; do
        if [ -n "$stop_wanted" ] && [ -z "$forwarded" ]; then
            say "$stop_wanted: asking the training to stop and save"
            forward_stop "$pid"
            forwarded=yes
        fi
        sleep 1
    done
    wait "$pid"
    rc=$?
}

# supervise CONFIG [--section.key value ...]: returns 0 when the run is complete or a person has stopped it.
supervise() {
    local began last readable
    run_status 0 "$@"
    export MENAGERIE_REFUSAL="$progress.refused"
    while :; do
        may_start || return 1
        rm -f "$MENAGERIE_REFUSAL"
        last=$iteration
        printf -v began '%(%s)T' -1
        say "START: $run, newest checkpoint of iteration $iteration"
        start_processes "$@" &
        wait_for_processes $!
        readable=yes
        run_status "$began" "$@" || readable=""
        say "ENDED with status $rc, stop $stop, newest checkpoint of iteration $iteration (at the start: $last)"
        if [ "$stop" = person ]; then
            say "stopped by a person; the same command resumes"
        elif [ "$stop" = requeue ]; then
            hand_over "$rc"
            return
        elif [ "$rc" -eq 0 ] && [ -n "$readable" ]; then
            say "COMPLETE: $run at iteration $iteration"
        elif [ -s "$MENAGERIE_REFUSAL" ]; then
            say "REFUSED: $(<"$MENAGERIE_REFUSAL")"
            rm -f "$progress" "$MENAGERIE_REFUSAL"
            return 2
        else
            [ -n "$stop_wanted$being_ended" ] || pause
            [ -z "$stop_wanted$being_ended" ] || { hand_over "$rc"; return; }
            continue
        fi
        rm -f "$progress"
        return 0
    done
}
