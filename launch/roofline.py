"""How long a training step takes at least on its chip: the bound of ``launch.plan``.

Read from the program that this process has compiled for its training, without compiling another.
"""

import jax

from launch import costs
from launch.chips import Chip
from launch.hlo import Program

#: What JAX calls the program of ``icl_jax.training.step.advance``.
ADVANCE = "jit_advance"


def training_step() -> Program | None:
    """The program of the training that was compiled last; None where none is, or none is readable.

    It makes as many steps as it is told when it runs. Such a loop counts as one turn, so that its
    products, traffic and messages are those of one step.
    """
    # The newest first.
    for executable in jax.local_devices()[0].client.live_executables():
        (module, *_) = executable.hlo_modules()
        if module.name == ADVANCE:
            try:
                return Program(module.to_string())
            except jax.errors.JaxRuntimeError:  # As in ``launch.plan.compile_and_read``.
                return None
    return None


def least_seconds(step: Program, chip: Chip) -> float:
    """The longest of products, memory and network, at the chip's published peaks.

    Products are taken for bfloat16's: a step in float32 stays further below.
    """
    sent = sum(one.sent * one.times for one in costs.collectives(step))
    return max(chip.seconds(costs.flops(step), costs.traffic(step), sent).values())
