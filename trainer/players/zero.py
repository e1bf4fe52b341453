"""DeepSpeed ZeRO-1 and ZeRO-2 for one player: its engine, and the player's logical state out of the partitions and back.

DeepSpeed is called directly, once per player, and with every key that its defaults would fill in otherwise: since 0.19 it
clips gradients at 1.0 unless told not to (DeepSpeed pull request 8068).
"""

import logging
import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from trainer.foundation.errors import NonFinite
from trainer.processes.launch import Launch, Precision

BUCKET_ELEMENTS = 25_000_000  # 100 MB in fp32; DeepSpeed's own default of 5e8 takes 2 GB per player


def settings(stage: int, precision: Precision = "fp32", device: str = "cpu") -> dict[str, Any]:
    """DeepSpeed's configuration of one engine. Batch sizes are ours: DeepSpeed only counts with them."""
    # Left to itself the engine switches the autocast off that it finds on (CUDA's; on a CPU it asks for CUDA's as well, and
    # so leaves it on). No module is named whose gradients would be sent in bf16: they stay fp32.
    autocast = {"enabled": True, "dtype": "bfloat16", "lower_precision_safe_modules": []}
    return {
        **({"torch_autocast": autocast} if precision == "bf16" else {}),
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": 0.0,
        "zero_optimization": {
            "stage": stage,
            "reduce_bucket_size": BUCKET_ELEMENTS,
            "allgather_bucket_size": BUCKET_ELEMENTS,
            "overlap_comm": device == "cuda",
        },
        "zero_allow_untested_optimizer": True,  # torch's Adam: DeepSpeed's own would be compiled for minutes
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 10**9,
    }


class ZeroEngine:
    """One player's network under ZeRO. `network` is what is called in a pass whose gradients are reduced."""

    def __init__(self, name: str, module: nn.Module, optimizer: torch.optim.Optimizer, launch: Launch) -> None:
        deepspeed = _start_deepspeed(launch)
        self.name, self.module, self.optimizer = name, module, optimizer
        self.network: nn.Module = deepspeed.initialize(
            model=module,
            optimizer=optimizer,
            model_parameters=list(module.parameters()),
            config=settings(2 if launch.strategy == "zero2" else 1, launch.precision, launch.device.type),
            dist_init_required=False,
        )[0]
        self._engine: Any = self.network
        # Adam makes its state at the first step; ours is loaded before that, so it is made here, and made known to
        # DeepSpeed's accessors.
        for flat in self._engine.optimizer.single_partition_of_fp32_groups:
            moments = {moment: torch.zeros_like(flat) for moment in ("exp_avg", "exp_avg_sq")}
            optimizer.state[flat] = {"step": torch.zeros((), device=flat.device), **moments}
        self._engine.optimizer._lazy_init_hp_params_optimizer_state()

    def update(self, loss: Tensor) -> None:
        """Minimise `loss` by one update. Raises `NonFinite` where DeepSpeed would leave the update out in silence."""
        self._engine.backward(loss)
        self._engine.step()
        if self._engine.optimizer.overflow:
            raise NonFinite(
                f"{self.name}: its gradient is not finite: the training has diverged; start another run with a lower "
                "optimizer.*.learning_rate, or let it go back with run.rollbacks"
            )

    def moments(self) -> dict[str, Tensor]:
        """Adam's full moments, `exp_avg/NAME` and `exp_avg_sq/NAME`. Every process calls it: the parts are gathered."""
        from deepspeed.utils import safe_get_full_optimizer_state

        return {
            f"{moment}/{name}": safe_get_full_optimizer_state(parameter, moment)
            for moment in ("exp_avg", "exp_avg_sq")
            for name, parameter in self.module.named_parameters()
        }

    def load(self, moments: Mapping[str, Tensor], steps: int) -> None:
        """Take over moments as `moments()` gives them; the module's own parameters must have been set before."""
        from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

        for name, parameter in self.module.named_parameters():
            safe_set_full_fp32_param(parameter, parameter.detach().clone())
            for moment in ("exp_avg", "exp_avg_sq"):
                value = moments[f"{moment}/{name}"].to(parameter.device)
                safe_set_full_optimizer_state(parameter, value, moment)
        for state in self.optimizer.state.values():
            state["step"].fill_(float(steps))


def _start_deepspeed(launch: Launch) -> Any:
    """Import DeepSpeed and let it use the process group that stands. It is slow to import, so only where it is used."""
    if launch.device.type == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"
    import deepspeed
    import deepspeed.ops

    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    # A reduction through shared memory, for inference only, that would be compiled at the first start (40 to 90 s).
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    backend = "nccl" if launch.device.type == "cuda" else "gloo"
    deepspeed.init_distributed(dist_backend=backend, auto_mpi_discovery=False, verbose=False)
    return deepspeed
