"""icl_jax: how a prompt becomes weights.

The public names, in the order in which a context becomes a weight update: what stands in the
context, the block that reads it, the patch, the path of the weights, and what to hold it against.
Everything is a plain function on arrays or a frozen dataclass of them; ``from icl_jax import ...``.
"""

from icl_jax.blocks.attention import LinearAttention, SoftmaxAttention
from icl_jax.blocks.attention_stack import AttentionStack, linear_attention_stack
from icl_jax.blocks.block import Block
from icl_jax.blocks.config import StackConfig, build_stack
from icl_jax.blocks.contextual import ContextualLayer
from icl_jax.blocks.experts import Experts
from icl_jax.blocks.feedforward import Dense, Gated
from icl_jax.blocks.language_model import LanguageModel
from icl_jax.blocks.materialise import materialise, position_patch
from icl_jax.blocks.recurrent import GatedRecurrent, StateSpace
from icl_jax.blocks.rotary import Rotary, Scaling
from icl_jax.blocks.stack import FlaxBlock, Stack, cast, functional, repeat
from icl_jax.descent.closed_form import ORACLES, prefix_predictions
from icl_jax.descent.finetune import DescentTrajectory, descend, finetune
from icl_jax.descent.fleet import fleet
from icl_jax.descent.layer_causal import layer_causal_loss
from icl_jax.descent.line_search import rate_grid, tune_learning_rate
from icl_jax.descent.linear_attention import (
    one_step_weights,
    optimal_linear_attention,
    optimal_linear_attention_loss,
    optimal_preconditioner,
    preconditioned_step_weights,
    stacked_weights,
)
from icl_jax.descent.linear_steps import (
    descent_prediction,
    gd_plus_plus,
    gradient_steps,
    preconditioned_steps,
)
from icl_jax.descent.optimizers import OptimizerConfig
from icl_jax.descent.parameters import SELECTIONS, merge, select
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
    probe_pass,
    suffix_midpoints,
)
from icl_jax.language.activations import Attended, attend
from icl_jax.language.generation import generate, patched_generate, token_agreement
from icl_jax.language.prompt import alone_logits, full_logits, patched_logits, prompt_patches
from icl_jax.language.sampling import Sampling
from icl_jax.language.weights import PromptWeights, prompt_weights
from icl_jax.measures.comparison import Comparison, as_summary, compare_with_nulls
from icl_jax.measures.distributions import (
    kl_divergence,
    same_top1,
    top_k_overlap,
    total_variation,
)
from icl_jax.measures.function_space import (
    ilwd,
    implicit_linear_weights,
    model_difference,
    prediction_difference,
    relative_error,
    relative_model_difference,
    sensitivity,
    sensitivity_cosine,
    squared_error,
    squared_prediction_difference,
)
from icl_jax.measures.intervals import bootstrap_mean
from icl_jax.measures.nulls import another_prompts, random_update, random_vector, shuffled_labels
from icl_jax.measures.representation import (
    attention_similarity,
    kendall_tau,
    update_similarity,
    vector_cosine,
)
from icl_jax.measures.subspaces import (
    effective_rank,
    effective_rank_of_updates,
    leading_angles,
    principal_angles,
)
from icl_jax.measures.update_statistics import (
    UpdateStatistics,
    update_norms,
    update_statistics,
    update_step_norms,
)
from icl_jax.measures.weight_space import alignment, cosine, norm_ratio, off_diagonal_mean
from icl_jax.patches.bank import (
    Bank,
    check_patchable,
    compact_bank,
    forward,
    patched_forward,
    stack_patches,
)
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
    mean,
    outer,
    scale,
    singular_values,
    subtract,
)
from icl_jax.patches.normed import (
    BalancedPatch,
    OutputNorm,
    ScalePatch,
    apply_normed,
    balanced_patch,
    scale_patch,
)
from icl_jax.patches.output import (
    BiasPatch,
    DownPatch,
    apply_output,
    bias_patch,
    down_patch,
    down_update,
)
from icl_jax.patches.spectrum import Spectrum, from_matrix, singular_vectors, truncate
from icl_jax.patches.static import (
    QuerySums,
    cheap_patch,
    covariance_patch,
    dual_vectors,
    exact_patch,
    merge_sums,
    query_sums,
    ridge_patch,
    thought_vector,
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
from icl_jax.sharding import shard_tasks, task_mesh
from icl_jax.tasks.catalogue import TASKS, make_task
from icl_jax.tasks.classification import Classification, ClassificationPrompt
from icl_jax.tasks.prompt import (
    Prompt,
    Task,
    example_queries,
    prompt_tokens,
    query_token,
    sample_prompts,
)
from icl_jax.tasks.shifts import SHIFTS, ShiftedLinearRegression
from icl_jax.training.config import TrainingConfig, make_optimizer
from icl_jax.training.loop import TrainingDivergedError, train

__all__ = [
    "ORACLES",
    "SELECTIONS",
    "SHIFTS",
    "TASKS",
    "AttentionStack",
    "BalancedPatch",
    "Bank",
    "BiasPatch",
    "Block",
    "Comparison",
    "Conditioning",
    "ContextualBlock",
    "ContextualLayer",
    "Dense",
    "DescentTrajectory",
    "DownPatch",
    "Experts",
    "FlaxBlock",
    "Gated",
    "GatedRecurrent",
    "InputFactor",
    "LanguageModel",
    "LinearAttention",
    "LowRank",
    "Midpoint",
    "OptimizerConfig",
    "OutputNorm",
    "Prompt",
    "PromptWeights",
    "QuerySums",
    "Rotary",
    "Sampling",
    "ScalePatch",
    "Scaling",
    "ShiftedLinearRegression",
    "SoftmaxAttention",
    "Spectrum",
    "Stack",
    "StackConfig",
    "StateSpace",
    "Task",
    "TokenPatch",
    "TrainingConfig",
    "TrainingDivergedError",
    "UpdateStatistics",
    "add",
    "alignment",
    "alone_logits",
    "anchored_trajectory",
    "another_prompts",
    "apply_block",
    "apply_factor",
    "apply_normed",
    "apply_output",
    "apply_update",
    "as_matrix",
    "as_summary",
    "attention_contributions",
    "attention_similarity",
    "attribute_block",
    "balanced_patch",
    "bias_patch",
    "block_patches",
    "bootstrap_mean",
    "build_stack",
    "cast",
    "cheap_patch",
    "check_patchable",
    "compact_bank",
    "compare_with_nulls",
    "compose",
    "conditioning",
    "contribution_norms",
    "contribution_shares",
    "contribution_update",
    "cosine",
    "covariance_patch",
    "dense_inner",
    "descend",
    "descent_prediction",
    "down_patch",
    "down_update",
    "dual_vectors",
    "effective_rank",
    "effective_rank_of_updates",
    "exact_patch",
    "example_queries",
    "finetune",
    "first_factors",
    "forward",
    "frobenius_inner",
    "frobenius_norm",
    "from_matrix",
    "full_logits",
    "functional",
    "gd_plus_plus",
    "generate",
    "gradient_steps",
    "ilwd",
    "implicit_linear_weights",
    "input_factor",
    "kendall_tau",
    "kernel_update",
    "kl_divergence",
    "layer_causal_loss",
    "leading_angles",
    "linear_attention_stack",
    "linear_loss",
    "lone_midpoints",
    "make_optimizer",
    "make_task",
    "materialise",
    "mean",
    "merge",
    "merge_sums",
    "model_difference",
    "norm_ratio",
    "off_diagonal_mean",
    "one_step_weights",
    "optimal_linear_attention",
    "optimal_linear_attention_loss",
    "optimal_preconditioner",
    "outer",
    "patched_forward",
    "patched_generate",
    "patched_logits",
    "peel_off_trajectory",
    "position_patch",
    "preconditioned_step_weights",
    "preconditioned_steps",
    "prediction_difference",
    "prefix_outputs_by_reruns",
    "prefix_pass",
    "prefix_predictions",
    "principal_angles",
    "probe_pass",
    "prompt_patches",
    "prompt_tokens",
    "prompt_weights",
    "query_sums",
    "query_token",
    "random_update",
    "random_vector",
    "rate_grid",
    "relative_error",
    "relative_model_difference",
    "remainder_share",
    "repeat",
    "ridge_patch",
    "same_top1",
    "sample_prompts",
    "scale",
    "scale_patch",
    "select",
    "sensitivity",
    "sensitivity_cosine",
    "shuffled_labels",
    "singular_values",
    "singular_vectors",
    "squared_error",
    "squared_prediction_difference",
    "stack_patches",
    "stacked_weights",
    "subtract",
    "suffix_midpoints",
    "summed_update",
    "thought_vector",
    "token_agreement",
    "token_update",
    "top_k_overlap",
    "total_variation",
    "train",
    "truncate",
    "tune_learning_rate",
    "update_norms",
    "update_similarity",
    "update_statistics",
    "update_step_norms",
    "vector_cosine",
    "Attended",
    "attend",
    "fleet",
    "shard_tasks",
    "task_mesh",
    "Classification",
    "ClassificationPrompt",
]
