"""icl_jax: how a prompt becomes weights.

The public names, in the order in which a context becomes a weight update: what stands in the
context, the block that reads it, the patch, the path of the weights, and what to hold it against.
Everything is a plain function on arrays or a frozen dataclass of them; ``from icl_jax import ...``.
"""

from icl_jax.blocks.attention import LinearAttention, SoftmaxAttention
from icl_jax.blocks.block import Block
from icl_jax.blocks.config import StackConfig, build_stack
from icl_jax.blocks.contextual import ContextualLayer
from icl_jax.blocks.feedforward import Dense, Gated
from icl_jax.blocks.recurrent import GatedRecurrent, StateSpace
from icl_jax.blocks.stack import FlaxBlock, Stack, cast, functional, repeat
from icl_jax.descent.closed_form import ORACLES, prefix_predictions
from icl_jax.descent.finetune import finetune
from icl_jax.descent.line_search import rate_grid, tune_learning_rate
from icl_jax.dynamics.anchored import anchored_trajectory, linear_loss
from icl_jax.dynamics.attribution import (
    attention_contributions,
    attribute_block,
    contribution_norms,
    contribution_shares,
    contribution_update,
    remainder_share,
    summed_update,
)
from icl_jax.dynamics.peel_off import first_factors, peel_off_trajectory
from icl_jax.dynamics.prefixes import (
    lone_midpoints,
    prefix_outputs_by_reruns,
    prefix_pass,
    suffix_midpoints,
)
from icl_jax.measures.function_space import relative_error, squared_error
from icl_jax.measures.intervals import bootstrap_mean
from icl_jax.measures.nulls import another_prompts, random_update, random_vector, shuffled_labels
from icl_jax.measures.weight_space import alignment, cosine, effective_rank, off_diagonal_mean
from icl_jax.patches.bank import Bank, check_patchable, forward, patched_forward, stack_patches
from icl_jax.patches.block import (
    ContextualBlock,
    Midpoint,
    TokenPatch,
    apply_block,
    block_patches,
)
from icl_jax.patches.low_rank import (
    LowRank,
    add,
    apply_update,
    as_matrix,
    compose,
    dense_inner,
    frobenius_inner,
    frobenius_norm,
    outer,
    singular_values,
    subtract,
)
from icl_jax.patches.output import (
    BiasPatch,
    DownPatch,
    apply_output,
    bias_patch,
    down_patch,
    down_update,
)
from icl_jax.patches.token import (
    Conditioning,
    InputFactor,
    apply_factor,
    conditioning,
    input_factor,
    kernel_update,
    token_update,
)
from icl_jax.tasks.catalogue import TASKS, make_task
from icl_jax.tasks.prompt import (
    Prompt,
    Task,
    example_queries,
    prompt_tokens,
    query_token,
    sample_prompts,
)
from icl_jax.training.config import TrainingConfig, make_optimizer
from icl_jax.training.loop import TrainingDivergedError, train

__all__ = [
    "ORACLES",
    "TASKS",
    "Bank",
    "BiasPatch",
    "Block",
    "Conditioning",
    "ContextualBlock",
    "ContextualLayer",
    "Dense",
    "DownPatch",
    "FlaxBlock",
    "Gated",
    "GatedRecurrent",
    "InputFactor",
    "LinearAttention",
    "LowRank",
    "Midpoint",
    "Prompt",
    "SoftmaxAttention",
    "Stack",
    "StackConfig",
    "StateSpace",
    "Task",
    "TokenPatch",
    "TrainingConfig",
    "TrainingDivergedError",
    "add",
    "alignment",
    "anchored_trajectory",
    "another_prompts",
    "apply_block",
    "apply_factor",
    "apply_output",
    "apply_update",
    "as_matrix",
    "attention_contributions",
    "attribute_block",
    "bias_patch",
    "block_patches",
    "bootstrap_mean",
    "build_stack",
    "cast",
    "check_patchable",
    "compose",
    "conditioning",
    "contribution_norms",
    "contribution_shares",
    "contribution_update",
    "cosine",
    "dense_inner",
    "down_patch",
    "down_update",
    "effective_rank",
    "example_queries",
    "finetune",
    "first_factors",
    "forward",
    "frobenius_inner",
    "frobenius_norm",
    "functional",
    "input_factor",
    "kernel_update",
    "linear_loss",
    "lone_midpoints",
    "make_optimizer",
    "make_task",
    "off_diagonal_mean",
    "outer",
    "patched_forward",
    "peel_off_trajectory",
    "prefix_outputs_by_reruns",
    "prefix_pass",
    "prefix_predictions",
    "prompt_tokens",
    "query_token",
    "random_update",
    "random_vector",
    "rate_grid",
    "relative_error",
    "remainder_share",
    "repeat",
    "sample_prompts",
    "shuffled_labels",
    "singular_values",
    "squared_error",
    "stack_patches",
    "subtract",
    "suffix_midpoints",
    "summed_update",
    "token_update",
    "train",
    "tune_learning_rate",
]
