"""Which weights of a model descend, as a configuration says."""

from icl_jax.blocks.functional import HasBlocks, first_kernels
from icl_jax.descent.explicit import TrainsName
from icl_jax.descent.parameters import select
from icl_jax.dims import Params


def trained_part(model: HasBlocks, params: Params, trains: TrainsName) -> tuple[Params, Params]:
    """The parameters as two parts, for ``merge``: what descends, and the rest."""
    return select(params, first_kernels(model) if trains == "first_kernel" else trains)
