"""Do all processes of the launch do the same thing? Asked once at the start, and of the parameters again and again."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from trainer.checkpoint.commits import state_hash
from trainer.config import Config, as_yaml, section_of
from trainer.foundation.errors import TrainerError
from trainer.players.player import Player
from trainer.processes.launch import Launch, share_object, sum_over_processes

PACKAGES = ("trainer", "data_pipeline")
MOST_NAMED = 5


def source_digest() -> str:
    """sha256 over this program's Python files, with PyTorch's version."""
    root = Path(__file__).resolve().parent.parent
    digest = hashlib.sha256(torch.__version__.encode())
    for path in sorted(path for package in PACKAGES for path in (root / package).rglob("*.py")):
        digest.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def check_same(launch: Launch, what: str, value: str, cure: str) -> None:
    """Raise `TrainerError` on every process, naming those that differ from process 0, unless all have the same value."""
    if launch.world_size == 1:
        return
    found: list[str] = [""] * launch.world_size
    dist.all_gather_object(found, value)
    others = [rank for rank, theirs in enumerate(found) if theirs != found[0]]
    if others:
        named = ", ".join(map(str, others[:MOST_NAMED])) + (", ..." if len(others) > MOST_NAMED else "")
        raise TrainerError(
            f"start-up check: the {what} of process {named} differs from that of process 0 "
            f"({found[others[0]][:12]}... and {found[0][:12]}...); {cure}"
        )


def check_start(launch: Launch, config: Config) -> None:
    """The same program and the same settings everywhere."""
    check_same(launch, "code", source_digest(), "install the same version on every machine")
    settings = hashlib.sha256(as_yaml(config).encode()).hexdigest()
    check_same(launch, "configuration", settings, "give every process the same command line and the same YAML")


def check_state(launch: Launch, fingerprints: Mapping[str, str], players: Mapping[str, Player]) -> None:
    """The same shards and the same parameters everywhere, before the first step."""
    for source, fingerprint in fingerprints.items():
        check_same(
            launch, f"manifest ({section_of(source)}.shards)", fingerprint, "let every machine read the same shards"
        )
    for player in players.values():
        mine = state_hash({name: value.cpu() for name, value in shared_tensors(player).items()})
        check_same(launch, f"{player.name}'s parameters", mine, "this is a defect: please report it")


def shared_tensors(player: Player) -> dict[str, Tensor]:
    """What must be the same on every process: the player's parameters, and the buffers of which their layers say so."""
    found: dict[str, Tensor] = {name: value.detach() for name, value in player.named_parameters()}
    for network, module in player.modules.items():
        for place, layer in module.named_modules():
            for name in getattr(layer, "shared_buffers", ()):
                found[f"{network}/{place}.{name}"] = getattr(layer, name)
    return found


def heartbeat(launch: Launch, players: Mapping[str, Player], iteration: int) -> None:
    """Stop, naming the tensors, unless all processes hold the same parameters bit for bit."""
    if launch.world_size == 1:
        return
    mine = {
        f"{player.name}/{name}": state_hash({name: value.cpu()})
        for player in players.values()
        for name, value in shared_tensors(player).items()
    }
    main = share_object(launch, mine)
    differing = [name for name in mine if mine[name] != main[name]]
    counts = torch.zeros(launch.world_size, device=launch.device)
    counts[launch.rank] = len(differing)
    ranks = torch.nonzero(sum_over_processes(launch, counts)).flatten().tolist()
    if ranks:
        more = f" and {len(differing) - MOST_NAMED} more" if len(differing) > MOST_NAMED else ""
        here = f"here: {', '.join(differing[:MOST_NAMED])}{more}" if differing else "not here"
        raise TrainerError(
            f"heartbeat: at iteration {iteration} the parameters of process {', '.join(map(str, ranks))} differ from those of "
            f"process 0 (process {launch.rank}, {here}); the same command resumes from the last checkpoint"
        )
