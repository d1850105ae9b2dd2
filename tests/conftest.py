"""Every test runs in the strictest setting: float64 at hand, nothing promoted behind our back."""

import os

# Tests compile much and run little, so LLVM is asked to optimise less: half of the time.
os.environ.setdefault(
    "XLA_FLAGS", "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
)

import hypothesis  # noqa: E402
import jax  # noqa: E402

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

# Examples are few because each new shape compiles; derandomised so that a failure is everybody's.
# HYPOTHESIS_PROFILE=thorough looks longer.
for profile, max_examples in (("default", 10), ("thorough", 200)):
    hypothesis.settings.register_profile(
        profile, max_examples=max_examples, deadline=None, derandomize=True, database=None
    )
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))
