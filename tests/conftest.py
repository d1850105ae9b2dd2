"""Every test runs in the strictest setting: float64 at hand, nothing promoted behind our back."""

import collections
import gc
import importlib.metadata
import os
from pathlib import Path

# Tests compile much and run little, so LLVM is asked to optimise less: half of the time. (Not at
# all, it makes NaN of the gradient of a scan over patched layers in jaxlib 0.10.)
xla_flags = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=1"
if importlib.metadata.version("jaxlib").startswith("0.10."):
    # A third of the rest. Later versions have one emitter, a quick one, and abort on this flag.
    xla_flags += " --xla_cpu_use_fusion_emitters=false"
os.environ.setdefault("XLA_FLAGS", xla_flags)

import hypothesis  # noqa: E402
import jax  # noqa: E402
import pytest  # noqa: E402

# The same program is compiled in many tests, in both workers, and again tomorrow: what one has
# compiled the others read. (The key is the whole program, the version of jaxlib and the flags.)
COMPILED = Path(__file__).parents[1] / ".pytest_cache" / "compiled"
jax.config.update("jax_compilation_cache_dir", str(COMPILED))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

# Examples are few because each new shape compiles; derandomised so that a failure is everybody's.
# HYPOTHESIS_PROFILE=thorough looks longer.
for profile, max_examples in (("default", 3), ("thorough", 200)):
    hypothesis.settings.register_profile(
        profile, max_examples=max_examples, deadline=None, derandomize=True, database=None
    )
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


#: What stands on the core: trajectories and attribution, learners and their descent, generation,
#: weights to use again, adapters, rarer options of checkpoints, mixtures, many devices,
#: experiments, sweeps, reports. ``pytest -m further`` runs it, and CI, as a step of its own.
FURTHER = (
    "blocks/test_check_layer.py",
    "blocks/test_experts.py",
    "blocks/test_fading.py",
    "blocks/test_materialise.py",
    "blocks/test_memory.py",
    "descent/",
    "dynamics/",
    "experiments/",
    "house/test_recipes.py",
    "interop/test_banks.py",
    "interop/test_decoder_options.py",
    "interop/test_family_options.py",
    "interop/test_peft.py",
    "interop/test_placement.py",
    "interop/test_static_adapter.py",
    "interop/test_variants.py",
    "interop/test_wider_options.py",
    "kernels/attention/test_over_mesh.py",
    "kernels/attention/test_pallas_tpu.py",
    "kernels/product/",
    "language/test_activations",
    "language/test_attribution",
    "language/test_batch",
    "language/test_compile",
    "language/test_contributions",
    "language/test_doors",
    "language/test_generation",
    "language/test_observed",
    "language/test_prefixes",
    "language/test_walk",
    "language/test_weights",
    "launch/",
    "measures/",
    "oracles/",
    "patches/test_bank_errors.py",
    "patches/test_ladder.py",
    "patches/test_materialised.py",
    "patches/test_own_blocks.py",
    "patches/test_prediction.py",
    "patches/test_static.py",
    "pretrained/",
    "report/",
    "sharding/",
    "stack/test_depth.py",
    "stack/test_doors.py",
    "stack/test_linear_memory.py",
    "stack/test_meshes.py",
    "tasks/",
    "test_optimizers.py",
    "training/",
)
#: Beside the implementation that the checkpoints come from (extra ``parity``): ``pytest -m live``.
LIVE = "interop/test_live_"
#: Marks of commands of their own; what has one is run by that.
OWN_COMMANDS = {
    "slow", "tpu", "fuzz", "live", "real", "faults", "ray", "engines", "browser", "notebooks",
    "docs",
}  # fmt: skip


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config, items):
    """Of a test marked ``wide(n)`` one variant of n is run by default, the others when slow.

    So are the tests of a fixture ``whole_run``, which runs a whole experiment. What stands on the
    core is set apart only where nobody names a file or a folder of it.
    """
    here = Path(__file__).parent
    named = [Path(one.partition("::")[0]).resolve() for one in config.args]
    set_apart = any(here.is_relative_to(path) for path in named)
    # The default (pyproject.toml) leaves ``further`` out; who asks for other marks names them.
    set_apart |= not config.option.markexpr.startswith("not (further")
    tests = collections.defaultdict(list)
    for item in items:
        if "whole_run" in item.fixturenames:
            item.add_marker(pytest.mark.slow)
        if item.get_closest_marker("wide") is not None:
            tests[item.path, item.cls, item.originalname].append(item)
    for variants in tests.values():
        for item in variants_left_out(variants):
            item.add_marker(pytest.mark.slow)
    for item in items:
        marks = {mark.name for mark in item.iter_markers()}
        if set_apart and not OWN_COMMANDS & marks:
            where = item.path.as_posix().removeprefix(f"{here.as_posix()}/")
            if where.startswith(LIVE):
                item.add_marker(pytest.mark.live)
            elif where.startswith(FURTHER):
                item.add_marker(pytest.mark.further)


def variants_left_out(variants):
    """All but one of n variants of a test: those that stay have as many values as can be.

    Every n-th would not do: where n is a multiple of the number of values of an argument, it always
    has the same one.
    """
    (every,) = variants[0].get_closest_marker("wide").args
    values = [
        {(name, repr(value)) for name, value in item.callspec.params.items()} for item in variants
    ]
    left, unseen = list(range(len(variants))), set().union(*values)
    for _ in range(-(-len(variants) // every)):
        # What is newest; of those, what stands n apart.
        taken = min(left, key=lambda one: (-len(values[one] & unseen), one % every, one))
        left.remove(taken)
        unseen = unseen - values[taken] or set().union(*values)
    return [variants[one] for one in left]


#: Linux lets a process map 65,530 regions of memory, and XLA ends the process where it gets no
#: more; every compiled program takes about a dozen (and of memory about four megabytes).
MANY_REGIONS = 15_000
LOOKS = pytest.StashKey[int]()
#: Tests between two looks within a module; counting takes a while. A real model's leave thousands.
OFTEN = 8


def pytest_runtest_teardown(item, nextitem):
    """Forgets compiled programs before there are too many to map another."""
    item.config.stash[LOOKS] = looks = item.config.stash.get(LOOKS, 0) + 1
    module_ends = nextitem is None or nextitem.path != item.path
    regions = Path("/proc/self/maps")
    often = 1 if "real" in item.keywords else OFTEN
    if regions.exists() and (module_ends or looks % often == 0):
        with regions.open() as lines:
            if sum(1 for _ in lines) > MANY_REGIONS:
                jax.clear_caches()
                gc.collect()
