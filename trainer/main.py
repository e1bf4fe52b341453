"""The trainer's command: `accelerate launch trainer/main.py CONFIG [--section.key value ...]`, or plain `python`.

The same command again resumes the run.
"""

import sys
from pathlib import Path

# `accelerate launch trainer/main.py` puts trainer/ first on sys.path; the packages lie one folder above.
sys.path[0] = str(Path(__file__).resolve().parent.parent)

from trainer.foundation.commands import run_command  # noqa: E402

USAGE = """usage: accelerate launch [--config_file cluster/launch/NAME.yaml] trainer/main.py CONFIG [--section.key value ...]
       python trainer/main.py CONFIG [--section.key value ...]        (one process)
       python trainer/main.py CONFIG --run.dry_run true               (what would be done, and what it costs)

Trains the experiment of CONFIG, a YAML of configs/. The same command again resumes the run.
"""


def main(arguments: list[str]) -> int:
    """Parse, build, train; returns the exit status: 0 done or stopped as asked, 1 failed, 2 settings, 3 checkpoints."""
    if not arguments or {"-h", "--help"} & set(arguments):
        from trainer.config import help_text

        print(USAGE + "\n" + help_text())
        return 0 if arguments else 2
    from trainer.config import load_config
    from trainer.costs.dry_run import describe
    from trainer.foundation.log import run_log
    from trainer.processes.launch import read_launch, start_processes, stop_processes
    from trainer.processes.watch import Watch, die_with_launcher
    from trainer.training.loop import pace, train

    config = load_config(arguments[0], arguments[1:])
    launch = read_launch()
    launch.held_replicas(config.batch.replicas)
    if config.run.dry_run:
        if launch.is_main:
            print(describe(config, launch))
        return 0
    die_with_launcher()
    start_processes(launch)
    with run_log(config.run.dir, launch.rank), Watch(launch, pace(config, launch)):  # the log has what Watch says, too
        train(config, launch)
    stop_processes()
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main, prints=False))
