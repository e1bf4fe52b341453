"""A real Slurm (munged, slurmctld, several slurmd) on this machine's loopback, as root and without an init system.

Debian's packages slurmctld, slurmd, slurm-client and munge. Every daemon is a child of the test process, listens on a
free port of 127.0.0.1, and has namespaces of its own, in which the node's name is the host name and /etc/hosts knows
all nodes; the machine's own files stay as they are. When the test process dies, so do the daemons.
"""

import ctypes
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.support.loopback import free_ports

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "unshare")
GRACE_SECONDS = 30
KILL_WAIT_SECONDS = 30  # as by default: a busy machine needs it to save
_START_SECONDS = 60.0
# When the process $1 has ended, however that was: kills whatever belongs to the cluster in the folder $2, and removes it.
_GUARD = """
while kill -0 "$1" 2>/dev/null && [ "$1" != 0 ]; do sleep 1; done
for signal in KILL KILL; do
    grep -lzsx "SLURM_CONF=$2/slurm.conf" /proc/[0-9]*/environ | cut -d/ -f3 | xargs -r kill -s "$signal" 2>/dev/null
done
rm -rf "$2"
"""
_FREEZER = Path("/sys/fs/cgroup/freezer")


def why_not() -> str | None:
    """Why no Slurm can be brought up here, None if it can."""
    if os.geteuid() != 0:
        return "a Slurm of its own needs root (several slurmd, each with a host name of its own)"
    path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    missing = [program for program in PROGRAMS if shutil.which(program, path=path) is None]
    if missing:
        return f"{', '.join(missing)} not found; `make test` installs slurmctld slurmd slurm-client munge on Debian"
    trial = subprocess.run(["unshare", "--mount", "--uts", "true"], capture_output=True, text=True)
    return f"no namespaces of its own: {trial.stderr.strip()}" if trial.returncode else None


class SlurmCluster:
    """`nodes` nodes of `cpus` CPUs in two partitions, `low` (its jobs are requeued) and `high`. A context manager."""

    def __init__(self, nodes: int = 2, cpus: int = 1) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))
        self.folder.chmod(0o755)  # munged refuses a folder that others cannot enter
        prefix = f"t{secrets.token_hex(2)}n"  # cgroups bear the nodes' names, and two clusters may be up at once
        self.nodes = [f"{prefix}{number}" for number in range(1, nodes + 1)]
        self.cpus = cpus
        self.environment = {
            "SLURM_CONF": str(self.folder / "slurm.conf"),
            "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin",
        }
        self._daemons: list[subprocess.Popen[bytes]] = []
        self._of_node: dict[str, subprocess.Popen[bytes]] = {}
        self._guard: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Start all daemons; returns when every node is idle."""
        for name in ("munge", "ctld", "log", *self.nodes):
            (self.folder / name).mkdir()
        key = self.folder / "munge" / "munge.key"
        key.write_bytes(secrets.token_bytes(128))
        key.chmod(0o400)
        hosts = "".join(f"127.0.0.1 {node}\n" for node in self.nodes)
        (self.folder / "hosts").write_text(Path("/etc/hosts").read_text() + hosts)
        (self.folder / "slurm.conf").write_text(self._configuration())
        (self.folder / "cgroup.conf").write_text(
            "CgroupPlugin=cgroup/v1\nCgroupMountpoint=/sys/fs/cgroup\nCgroupAutomount=no\n"
            "ConstrainCores=no\nConstrainRAMSpace=no\n"
        )
        munge = self.folder / "munge"
        files = {"key": "munge.key", "socket": "munge.socket", "pid": "munged.pid", "log": "munged.log", "seed": "seed"}
        flags = [f"--{kind}{'' if kind == 'socket' else '-file'}={munge / name}" for kind, name in files.items()]
        self._guard = subprocess.Popen(
            ["sh", "-c", _GUARD, "sh", str(os.getpid()), str(self.folder)],
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        self._start("munged", "--foreground", "--num-threads=2", *flags)
        self._until(lambda: (munge / "munge.socket").exists(), "munged")
        self._start("slurmctld", "-D")
        for node in self.nodes:
            self.start_node(node)
        self._until(lambda: self._idle() == set(self.nodes), "the nodes")

    def start_node(self, node: str) -> None:
        """Switch a node on."""
        self._of_node[node] = self._start("slurmd", "-D", "-N", node, hostname=node)

    def kill_node(self, node: str) -> int:
        """Every process of the node is gone at once, as when its power fails; how many there were."""
        daemon = self._of_node.pop(node)
        name = os.readlink(f"/proc/{daemon.pid}/ns/uts")
        killed = 0
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with suppress(OSError):
                    if os.readlink(entry / "ns" / "uts") == name:
                        os.kill(int(entry.name), signal.SIGKILL)
                        killed += 1
        daemon.wait()
        self._daemons.remove(daemon)
        return killed

    def stop(self) -> None:
        """Cancel all jobs, end all daemons and whatever the jobs have left, remove the folder."""
        if len(self._daemons) > 1:
            with suppress(subprocess.SubprocessError, OSError):
                for state in ("PENDING", "RUNNING", "SUSPENDED"):
                    self.run("scancel", f"--state={state}", "--user=root", check=False, timeout=10)
                deadline = time.monotonic() + KILL_WAIT_SECONDS + 10
                while self.run("squeue", "-h", check=False, timeout=10).strip() and time.monotonic() < deadline:
                    time.sleep(0.1)
        for daemon in reversed(self._daemons):
            daemon.kill()
        for daemon in self._daemons:
            daemon.wait()
        self._daemons = []
        if self._guard is not None:
            self._guard.kill()
            self._guard.wait()
        # What the jobs have left, if anything: the guard's work, at once.
        subprocess.run(["sh", "-c", _GUARD, "sh", "0", str(self.folder)], check=False)
        for node in self.nodes:
            for group in sorted(_FREEZER.glob(f"slurm_{node}/**"), reverse=True):
                with suppress(OSError):
                    group.rmdir()

    def run(self, *command: str | Path, check: bool = True, timeout: float = 60, **environment: str) -> str:
        """Run a command that knows the cluster; what it printed."""
        done = subprocess.run(
            [str(word) for word in command],
            env={**os.environ, **self.environment, **environment},
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        assert not check or done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout

    def job(self, number: str) -> dict[str, str]:
        """What the controller knows of a job (or of an array's task, `7_1`): JobState, Restarts, NodeList, ..."""
        line = self.run("scontrol", "show", "job", "-o", number).splitlines()[0]
        return dict(field.split("=", 1) for field in line.split() if "=" in field)

    def state(self, number: str) -> str:
        """The job's state: PENDING, RUNNING, COMPLETING, COMPLETED, CANCELLED, FAILED, TIMEOUT, ..."""
        return self.job(number)["JobState"]

    def wait_for(self, what: str, condition: Callable[[], object], seconds: float = 240.0, every: float = 0.2) -> float:
        """Wait until `condition` holds; the seconds that took."""
        begun = time.monotonic()
        while not condition():
            assert time.monotonic() < begun + seconds, f"not within {seconds:.0f} s: {what}\n{self.describe()}"
            time.sleep(every)
        return time.monotonic() - begun

    def ended(self, number: str) -> bool:
        """Whether Slurm has finished with the job: no process of it is left, and it is not in the queue."""
        return not self.run("squeue", "-h", "-j", number, check=False).strip()

    def describe(self) -> str:
        """The queue and the ends of the logs, for a test's message."""
        parts = [self.run("squeue", "-a", "-o", "%i %j %T %r %N", check=False)]
        for path in sorted((self.folder / "log").glob("*.log")):
            parts.append(f"--- {path.name}\n" + "\n".join(path.read_text(errors="replace").splitlines()[-12:]))
        return "\n".join(parts)

    def _idle(self) -> set[str]:
        return set(self.run("sinfo", "-h", "-N", "-p", "low", "-t", "idle", "-o", "%N", check=False).split())

    def _start(self, *command: str, hostname: str | None = None) -> subprocess.Popen[bytes]:
        """A daemon in the foreground, in namespaces of its own, that the kernel kills with this process."""
        inside = 'mount --bind "$HOSTS" /etc/hosts && { [ -z "$NAME" ] || hostname "$NAME"; } && exec "$@"'
        with (self.folder / "log" / f"{hostname or command[0]}.log").open("ab") as log:
            daemon = subprocess.Popen(
                ["unshare", "--mount", "--uts", "--propagation", "private", "sh", "-c", inside, "sh", *command],
                env={
                    **{name: value for name, value in os.environ.items() if not name.startswith("SLURM_")},
                    **self.environment,
                    "HOSTS": str(self.folder / "hosts"),
                    "NAME": hostname or "",
                },
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.folder,
                start_new_session=True,
                preexec_fn=_die_with_parent,
            )
        self._daemons.append(daemon)
        return daemon

    def _until(self, condition: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + _START_SECONDS
        while not condition():
            dead = [daemon.args for daemon in self._daemons if daemon.poll() is not None]
            assert not dead, f"ended at once: {dead}\n{self.describe() if len(self._daemons) > 1 else ''}"
            assert time.monotonic() < deadline, f"not ready: {what}\n{self.describe()}"
            time.sleep(0.1)

    def _configuration(self) -> str:
        folder, host = self.folder, socket.gethostname().partition(".")[0]
        ports = free_ports(1 + len(self.nodes))
        # Real clusters track processes with cgroups, and signals reach fewer processes under it; linuxproc is the fall-back.
        track = "cgroup" if os.access(_FREEZER, os.W_OK) else "linuxproc"
        nodes = [
            f"NodeName={node} NodeHostname={node} NodeAddr=127.0.0.1 Port={port} CPUs={self.cpus} RealMemory=4000"
            for node, port in zip(self.nodes, ports[1:], strict=True)
        ]
        settings = {
            "ClusterName": "test",
            "SlurmctldHost": f"{host}(127.0.0.1)",
            "SlurmctldPort": ports[0],
            "SlurmUser": "root",
            "SlurmdUser": "root",
            "AuthType": "auth/munge",
            "CredType": "cred/munge",
            # Also the time for which a requeued job has to wait; 120 by default, 5 is the least that is accepted.
            "AuthInfo": f"socket={folder}/munge/munge.socket,cred_expire=5",
            "CommunicationParameters": "NoInAddrAny,NoCtldInAddrAny",  # listen on 127.0.0.1 only
            "StateSaveLocation": folder / "ctld",
            "SlurmctldPidFile": folder / "slurmctld.pid",
            "SlurmdPidFile": folder / "slurmd-%n.pid",
            "SlurmdSpoolDir": folder / "%n",
            "SlurmctldDebug": "verbose",
            "SlurmdDebug": "verbose",
            "SwitchType": "switch/none",
            "MpiDefault": "none",
            "ProctrackType": f"proctrack/{track}",
            "TaskPlugin": "task/none",
            "JobAcctGatherType": "jobacct_gather/none",
            "AccountingStorageType": "accounting_storage/none",
            "SelectType": "select/cons_tres",
            "SelectTypeParameters": "CR_CPU",
            "SlurmdParameters": "config_overrides",
            "ReturnToService": 2,
            "SlurmctldTimeout": 60,
            "SlurmdTimeout": 30,  # after which a silent node is down
            "InactiveLimit": 0,
            "KillWait": KILL_WAIT_SECONDS,
            "MinJobAge": 3600,
            "JobRequeue": 1,
            "SchedulerType": "sched/backfill",
            "SchedulerParameters": "sched_interval=1,sched_min_interval=0,bf_interval=1,batch_sched_delay=0",
            "PreemptType": "preempt/partition_prio",
            "PreemptMode": "REQUEUE",
        }
        every = "Nodes=ALL MaxTime=INFINITE DefaultTime=60 State=UP"
        partitions = [
            f"PartitionName=low Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime={GRACE_SECONDS} {every}",
            f"PartitionName=high PriorityTier=10 PreemptMode=OFF {every}",
        ]
        return "\n".join([*(f"{name}={value}" for name, value in settings.items()), *nodes, *partitions, ""])


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
