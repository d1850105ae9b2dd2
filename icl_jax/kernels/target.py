"""What a program is compiled for."""

import jax


def platform() -> str:
    """What is compiled for: the platform of the mesh that is set, or else JAX's default.

    So a program compiled ahead of time on another machine takes the kernels of its target:
    ``with jax.set_mesh(mesh_of_the_topology): jax.jit(f).lower(...)``. A mesh that is set is part
    of what ``jit`` remembers programs by.
    """
    mesh = jax.sharding.get_abstract_mesh()
    device = None if mesh.empty else mesh.abstract_device
    name = jax.default_backend() if device is None else device.platform
    return "gpu" if name in ("cuda", "rocm") else name
