"""A process that fails, is killed, or computes something else: the others end soon, and say which one it was."""

import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.checkout import environment, program
from tests.support.crash_training import LAUNCHES, Life, Training, make_shards
from tests.support.loopback import free_ports


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_shards(tmp_path_factory.mktemp("data"))


@pytest.fixture
def alone(tiny: Callable[..., Path]) -> Iterator[Callable[..., Life]]:
    """`alone(fault)`: a single process of a long run, with a fault."""
    lives = []

    def begin(fault: str, **run: object) -> Life:
        path = tiny(run={"iterations": 100_000, "checkpoint_every": 2, **run})
        command = [sys.executable, program("faulty_main.py"), fault, str(path)]
        lives.append(Life(command, environment(OMP_NUM_THREADS="1", CUDA_VISIBLE_DEVICES="")))
        return lives[-1]

    yield begin
    for life in lives:
        life.kill()


@pytest.fixture
def start(tiny: Callable[..., Path]) -> Iterator[Callable[..., Life]]:
    """`start(fault)`: two processes of a long run, the second with a fault."""
    lives = []

    def begin(fault: str, **run: object) -> Life:
        path = tiny(run={"iterations": 100_000, "checkpoint_every": 2, **run})
        command = [*LAUNCHES["ddp"][:-1], program("faulty_main.py"), fault, str(path)]
        lives.append(Life(command, environment(OMP_NUM_THREADS="1", CUDA_VISIBLE_DEVICES="")))
        return lives[-1]

    yield begin
    for life in lives:
        life.kill()


def alive(pids: list[int]) -> list[int]:
    return [p for p in pids if Path(f"/proc/{p}").exists() and " Z " not in Path(f"/proc/{p}/stat").read_text()]


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (
            "parameter",
            "the parameters of process 1 differ from those of process 0 (process 1, here: generator/blocks.1.conv1",
        ),
        ("settings", "start-up check: the configuration of process 1 differs from that of process 0"),
        ("stuck", "process 1 (pid"),
    ],
)
def test_a_process_that_differs_or_fails_is_named(
    start: Callable[..., Life], tmp_path: Path, fault: str, message: str
) -> None:
    life = start(fault, heartbeat_every=4)
    assert life.wait() != 0
    assert message in life.output
    if fault == "parameter":
        assert "heartbeat: at iteration 8 " in life.output
    if fault == "stuck":
        verdict = "failed: a defect; this process cannot continue without it"
        assert verdict in life.output
        assert (tmp_path / "run" / "log.txt").read_text().count(verdict) == 1


@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_that_stands_still_is_named_with_its_place(start: Callable[..., Life], rank: int) -> None:
    """The other one waits in its reduction: it is not to blame."""
    life = start(f"hangs:{rank}:the discriminator's turn", stall_seconds=4)
    assert life.wait() != 0
    named = rf"process {rank} \(pid \d+ on .*\) has not advanced for \d+ s: it is in the discriminator's turn of iteration 3"
    assert re.search(named + r", at .*entered \(support/faulty_main.py:\d+\)", life.output), life.output[-3000:]
    assert not re.search(rf"process {1 - rank} .* has not advanced", life.output)


def test_a_single_process_names_itself(alone: Callable[..., Life], tmp_path: Path) -> None:
    life = alone("hangs:0:update", stall_seconds=4)
    assert life.wait() == 1
    verdict = r"error: this process has not advanced for \d+ s: it is in update of iteration 3, at .*faulty_main"
    assert re.search(verdict, life.output), life.output[-3000:]
    assert re.search(verdict, (tmp_path / "run" / "log.txt").read_text())
    assert "The same command resumes from the last checkpoint" in life.output


HANGS = [
    *(
        f"hangs:{rank}:{section}"
        for rank in (0, 1)
        for section in ("agreement", "the generator's turn", "backward pass", "save")
    ),
    *("stops:1:data", "stops:0:update", "locks:1:the generator's turn", "locks:0:backward pass"),
    *("alone hangs:0:backward pass", "alone locks:0:update"),
]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_proof_fault_standing_still(
    start: Callable[..., Life], alone: Callable[..., Life], capsys: pytest.CaptureFixture[str]
) -> None:
    """Hangs, held locks and stopped processes, with the bounds as they are: the right process within a minute or so."""
    rows, good = [], True
    for fault in HANGS:
        single = fault.startswith("alone ")
        life = (alone if single else start)(fault.removeprefix("alone "))
        life.wait_for(lambda life: len(life.iterations()) >= 2)
        begun = time.monotonic()
        life.wait_for(lambda life: "has not a" in life.output or "Timeout (" in life.output)
        seconds = time.monotonic() - begun
        alone_named = "this process has not advanced" in life.output or "Timeout (" in life.output
        named = re.findall(r"process (\d+) \(pid \d+ on [^)]*\) has not a", life.output)
        right = alone_named if single else set(named) == {fault.split(":")[1]}
        if not fault.endswith(":save"):  # a save may take its time; it is named
            right = right and life.wait() != 0
        life.kill()
        good = good and right and seconds < 90
        rows.append(f"{fault}: {'right' if right else 'WRONG'}, {seconds:.0f} s")
    with capsys.disabled():
        print("".join(f"\n      {row}" for row in rows))
        print(f"PROOF fault-standing-still: {'PASS' if good else 'FAIL'} {len(rows)} faults")
    assert good


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_proof_fault_straggler(start: Callable[..., Life], capsys: pytest.CaptureFixture[str]) -> None:
    """A process at half the speed of the other one is named within 50 iterations."""
    life = start("slows:1:3")
    life.wait_for(lambda life: "straggler: process 1" in life.output or len(life.iterations()) > 60)
    at = max(life.iterations(), default=0)
    good = "straggler: process 1" in life.output and "straggler: process 0" not in life.output and at <= 50
    with capsys.disabled():
        print(f"\nPROOF fault-straggler: {'PASS' if good else 'FAIL'} named at iteration {at}")
    assert good


def test_a_killed_process_is_named_and_the_run_goes_on(shards: Path, tmp_path: Path) -> None:
    training = Training("ddp", str(tmp_path / "run"), shards, {}, 100_000)
    with training.start() as life:
        assert life.wait_for(lambda life: len(life.iterations()) > 6), life.output
        ranks = life.ranks()
        os.kill(ranks[1], signal.SIGKILL)
        begun = time.monotonic()
        assert life.wait() != 0
        assert f"process 1 (pid {ranks[1]} on " in life.output, life.output[-3000:]
        assert "is gone (killed, or its machine is lost)" in life.output, life.output[-3000:]
        assert not alive(ranks)
        assert time.monotonic() - begun < 60
    end = int(training.hash().split()[0]) + 3
    again = Training("single", str(tmp_path / "run"), shards, {}, end)
    assert again.complete().process.returncode == 0
    assert again.hash().startswith(f"{end} ")


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["data"])
def test_proof_distributed_failure(start: Callable[..., Life], fault: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A shard that one process cannot read ends the others with its sentence."""
    life = start(fault)
    begun = time.monotonic()
    life.wait_for(lambda life: "error:" in life.output)
    life.wait()
    good = life.output.count("shard-000001.tar is not what it should be") >= 2
    with capsys.disabled():
        print(
            f"\nPROOF distributed-failure: {'PASS' if good else 'FAIL'} told by both, {time.monotonic() - begun:.1f} s in all"
        )
    assert good


@pytest.mark.slow
def test_proof_distributed_two_machines(shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two launches with machine ranks on loopback are one launch with two processes, bit for bit."""
    one = Training("ddp", str(tmp_path / "one"), shards, {}, 12)
    assert one.complete().process.returncode == 0
    two = Training("ddp", str(tmp_path / "two"), shards, {}, 12)
    config = two.command.index("trainer/main.py")
    port = free_ports(1)[0]
    lives = []
    for machine in (0, 1):
        where = ["--num_machines", "2", "--num_processes", "2", "--machine_rank", str(machine)]
        where += ["--main_process_ip", "127.0.0.1", "--main_process_port", str(port)]
        command = [*two.command[:config], *where, *two.command[config:]]
        lives.append(Life(command, two.environment))
    assert [life.wait() for life in lives] == [0, 0], lives[0].output[-2000:] + lives[1].output[-2000:]
    same = one.hash() == two.hash()
    with capsys.disabled():
        print(f"\nPROOF distributed-machines: {'PASS' if same else 'FAIL'} {one.hash()[:20]} {two.hash()[:20]}")
    assert same


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["zero1", "zero2"])
def test_proof_distributed_zero_checkpoints(
    shards: Path, tmp_path: Path, strategy: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """ZeRO through accelerate's YAML: killed twice and resumed like undisturbed; its state goes on under DDP, same bits."""
    straight, killed = (Training(strategy, str(tmp_path / name), shards, {}, 30) for name in ("straight", "killed"))
    assert straight.complete().process.returncode == 0
    for wanted in (8, 6):
        with killed.start() as life:
            assert life.wait_for(lambda life, wanted=wanted: len(life.iterations()) >= wanted), life.output[-3000:]
            os.kill(life.ranks()[1], signal.SIGKILL)
            assert life.wait() != 0
    assert killed.complete().process.returncode == 0
    moved = Training("ddp", str(tmp_path / "moved"), shards, {}, 30, {"run.initialize_from": straight.url})
    assert moved.complete().process.returncode == 0
    further = Training("single", straight.url, shards, {}, 33)
    assert further.complete().process.returncode == 0
    hashes = {
        straight.checkpoints("hash", "--iteration", "30").split()[-1],
        *(t.hash().split()[-1] for t in (killed, moved)),
    }
    with capsys.disabled():
        print(f"\nPROOF distributed-{strategy}-checkpoints: {'PASS' if len(hashes) == 1 else 'FAIL'} {sorted(hashes)}")
    assert len(hashes) == 1
    assert further.hash().startswith("33 ")
