"""A task by its name, as experiments choose one with a flag."""

from typing import Literal, get_args

from icl_jax import checks
from icl_jax.tasks.linear import LinearRegression
from icl_jax.tasks.networks import TwoLayerNetwork
from icl_jax.tasks.prompt import Task
from icl_jax.tasks.sparse import SparseLinearRegression
from icl_jax.tasks.tabular import Diabetes
from icl_jax.tasks.trees import DecisionTree

TaskName = Literal["linear", "sparse", "network", "tree", "diabetes"]
TASKS: tuple[TaskName, ...] = get_args(TaskName)


def make_task(name: str, input_width: int, *, noise_std: float = 0.0, split: str = "train") -> Task:
    """The task ``name`` at its usual settings; build the class itself for any other.

    Args:
      name: one of ``TASKS``.
      input_width: D.
      noise_std: noise on the examples' labels. Real data bring their own: "diabetes" takes 0 only.
      split: "train" or "test". Real rows are finite and must not be shared between training and
        test prompts; the other tasks draw new functions for each key, and are the same for both.

    Raises:
      ValueError: an unknown name or split, noise on real data, or a width the task cannot have.

    Examples:
      >>> task = make_task("linear", input_width=2, noise_std=0.1)
      >>> prompts = sample_prompts(task, jax.random.key(0), num_prompts=3, num_examples=5)
      >>> prompts.inputs_ND.shape, prompts.query_target.shape
      ((3, 5, 2), (3,))
    """
    checks.one_of("make_task", "name", name, TASKS)
    checks.one_of("make_task", "split", split, ("train", "test"))
    if name == "linear":
        return LinearRegression(input_width, noise_std=noise_std)
    if name == "sparse":
        checks.positive_int("make_task", "input_width", input_width)
        num_nonzero = max(1, 3 * input_width // 20)  # Garg et al. 2022: 3 of 20.
        return SparseLinearRegression(input_width, num_nonzero, noise_std=noise_std)
    if name == "network":
        return TwoLayerNetwork(input_width, noise_std=noise_std)
    if name == "tree":
        return DecisionTree(input_width, noise_std=noise_std)
    if noise_std != 0:
        raise ValueError(
            f"make_task: noise_std must be 0 for 'diabetes', got {noise_std}: real labels have "
            "noise of their own."
        )
    return Diabetes(input_width, split=split)
