"""The public names, where each is defined, and its group: the one place where a name is added.

A name is a line among the imports and a line of its group in ``__all__``. Type checkers and editors
read this file, and ``__init__.py`` imports from it what is used, when it is used.
"""

from icl_jax.blocks.attention_stack import (
    AttentionStack,
    linear_attention_stack,
)
from icl_jax.blocks.block import Block
from icl_jax.blocks.check_layer import check_layer
from icl_jax.blocks.config import StackConfig, build_stack
from icl_jax.blocks.contextual import ContextualLayer
from icl_jax.blocks.delta import GatedDelta
from icl_jax.blocks.experts import Experts
from icl_jax.blocks.feedforward import Dense, Gated
from icl_jax.blocks.flax_block import FlaxBlock
from icl_jax.blocks.functional import (
    cast,
    first_kernels,
    first_layers,
    functional,
    layer_params,
    with_layers,
)
from icl_jax.blocks.language_model import LanguageModel
from icl_jax.blocks.linear_attention import LinearAttention
from icl_jax.blocks.materialise import materialise, materialise_static, position_patch
from icl_jax.blocks.recurrent import GatedRecurrent, StateSpace
from icl_jax.blocks.rotary import Rotary, Scaling
from icl_jax.blocks.selective import SelectiveStateSpace
from icl_jax.blocks.softmax_attention import SoftmaxAttention
from icl_jax.blocks.stack import Stack, repeat
from icl_jax.descent.adapters import new_adapters, with_adapters
from icl_jax.descent.finetune import descend, finetune
from icl_jax.descent.fleet import fleet
from icl_jax.descent.layer_causal import layer_causal_loss
from icl_jax.descent.line_search import (
    rate_grid,
    tune_learning_rate,
)
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
from icl_jax.descent.parameters import SELECTIONS, merge, select
from icl_jax.dynamics.anchored import (
    anchored_trajectory,
    linear_loss,
)
from icl_jax.dynamics.attribution import attention_contributions, attribute_block
from icl_jax.dynamics.composition import (
    Agreement,
    StaticAgreement,
    compare_static,
    move_layers,
)
from icl_jax.dynamics.contributions import (
    contribution_norms,
    contribution_shares,
    contribution_update,
    remainder_share,
    summed_update,
)
from icl_jax.dynamics.groups import (
    choose_by_update,
    group_cosines,
    group_gram,
    group_shares,
    group_sizes,
)
from icl_jax.dynamics.leave_out import leave_out_block, leave_out_by_reruns, masked_outputs
from icl_jax.dynamics.marginal import decay_exponent, marginal_sizes, marginal_updates
from icl_jax.dynamics.peel_off import (
    first_factors,
    peel_off_trajectory,
)
from icl_jax.dynamics.prefixes import (
    lone_midpoints,
    prefix_outputs_by_reruns,
    prefix_pass,
    probe_pass,
    suffix_midpoints,
)
from icl_jax.dynamics.trajectory import Trajectory
from icl_jax.interop.banks import load_bank, load_static, save_bank, save_static
from icl_jax.language.activations import Attended, attend
from icl_jax.language.attribution import PromptAttribution, attribute
from icl_jax.language.compile import (
    compile_context,
    ordinary_sums,
    static_logits,
    static_weights,
)
from icl_jax.language.contributions import GroupUpdates, group_updates
from icl_jax.language.generation import (
    generate,
    patched_generate,
    token_agreement,
)
from icl_jax.language.observed import (
    Observed,
    ObservedGeneration,
    observe,
    observed_generate,
)
from icl_jax.language.prefixes import prefix_logits
from icl_jax.language.prompt import (
    alone_logits,
    full_logits,
    patched_logits,
    prompt_patches,
)
from icl_jax.language.sampling import Sampling
from icl_jax.language.study import own_queries, self_study
from icl_jax.language.weights import (
    PromptWeights,
    prompt_weights,
)
from icl_jax.measures.choice import greedy
from icl_jax.measures.comparison import (
    Comparison,
    as_summary,
    compare_with_nulls,
)
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
from icl_jax.measures.nulls import (
    another_prompts,
    random_update,
    random_vector,
    shuffled_labels,
)
from icl_jax.measures.representation import (
    attention_similarity,
    kendall_tau,
    update_similarity,
    vector_cosine,
)
from icl_jax.measures.shapley import Shapley, all_orders, random_orders, shapley_values
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
from icl_jax.measures.weight_space import (
    alignment,
    cosine,
    norm_ratio,
    off_diagonal_mean,
)
from icl_jax.optimizers import OptimizerConfig
from icl_jax.oracles.closed_form import ORACLES, prefix_predictions
from icl_jax.patches.bank import Bank, check_patchable, compact_bank
from icl_jax.patches.block import TokenPatch, block_patches
from icl_jax.patches.calibration import Queries
from icl_jax.patches.dual_ridge import ridge_factors
from icl_jax.patches.extraction import patched_forward, stack_patches
from icl_jax.patches.fit import Fit
from icl_jax.patches.ladder import fit_static
from icl_jax.patches.ladder_sums import BlockSums, solve_static, static_sums
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
    normed_sum,
    scale_patch,
    with_remainder,
)
from icl_jax.patches.output import (
    BiasPatch,
    DownPatch,
    apply_output,
    bias_patch,
    down_change,
    down_patch,
    down_sum,
    down_update,
    with_down_remainder,
)
from icl_jax.patches.prediction import (
    check_open_loop,
    open_loop_error,
    open_loop_growth,
    open_loop_rounding,
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
    reduced_rank,
    ridge_patch,
    thought_vector,
)
from icl_jax.patches.static_patch import (
    StaticPatch,
    combine_static,
    scale_static,
    static_forward,
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
from icl_jax.pretrained.pretrained import Pretrained, load
from icl_jax.sharding.mesh import make_mesh, task_mesh
from icl_jax.sharding.placing import place, shard_tasks
from icl_jax.stack.block import ContextualBlock, Midpoint, apply_block
from icl_jax.stack.fold import fold
from icl_jax.stack.layers import Layers, PerLayer, stack_layers
from icl_jax.stack.run import forward, observed_forward
from icl_jax.tasks.catalogue import TASKS, make_task
from icl_jax.tasks.classification import (
    Classification,
    ClassificationPrompt,
)
from icl_jax.tasks.prompt import (
    Prompt,
    Task,
    example_queries,
    prompt_tokens,
    query_token,
    sample_prompts,
)
from icl_jax.tasks.shifts import (
    SHIFTS,
    ShiftedLinearRegression,
)
from icl_jax.training.config import (
    TrainingConfig,
    make_optimizer,
)
from icl_jax.training.loop import TrainingDivergedError, train

__version__: str

__all__ = [
    # What stands in the context.
    "Classification",
    "ClassificationPrompt",
    "example_queries",
    "make_task",
    "Prompt",
    "prompt_tokens",
    "query_token",
    "sample_prompts",
    "ShiftedLinearRegression",
    "SHIFTS",
    "Task",
    "TASKS",
    # The blocks that read it.
    "AttentionStack",
    "Block",
    "build_stack",
    "cast",
    "check_layer",
    "ContextualLayer",
    "Dense",
    "Experts",
    "FlaxBlock",
    "functional",
    "Gated",
    "GatedDelta",
    "GatedRecurrent",
    "LanguageModel",
    "linear_attention_stack",
    "LinearAttention",
    "materialise",
    "materialise_static",
    "position_patch",
    "repeat",
    "Rotary",
    "Scaling",
    "SelectiveStateSpace",
    "SoftmaxAttention",
    "Stack",
    "StackConfig",
    "StateSpace",
    # The patch: what a context does to a token.
    "add",
    "apply_block",
    "apply_factor",
    "apply_normed",
    "apply_output",
    "apply_update",
    "as_matrix",
    "balanced_patch",
    "BalancedPatch",
    "Bank",
    "bias_patch",
    "BiasPatch",
    "block_patches",
    "BlockSums",
    "cheap_patch",
    "check_open_loop",
    "check_patchable",
    "combine_static",
    "compact_bank",
    "compose",
    "Conditioning",
    "conditioning",
    "ContextualBlock",
    "covariance_patch",
    "dense_inner",
    "down_change",
    "down_patch",
    "down_sum",
    "down_update",
    "DownPatch",
    "dual_vectors",
    "exact_patch",
    "first_layers",
    "Fit",
    "fit_static",
    "fold",
    "forward",
    "frobenius_inner",
    "frobenius_norm",
    "from_matrix",
    "input_factor",
    "InputFactor",
    "kernel_update",
    "layer_params",
    "Layers",
    "load_bank",
    "load_static",
    "LowRank",
    "mean",
    "merge_sums",
    "Midpoint",
    "normed_sum",
    "observed_forward",
    "open_loop_error",
    "open_loop_growth",
    "open_loop_rounding",
    "outer",
    "OutputNorm",
    "patched_forward",
    "PerLayer",
    "Queries",
    "query_sums",
    "QuerySums",
    "reduced_rank",
    "ridge_factors",
    "ridge_patch",
    "save_bank",
    "save_static",
    "scale",
    "scale_patch",
    "scale_static",
    "ScalePatch",
    "singular_values",
    "singular_vectors",
    "solve_static",
    "Spectrum",
    "stack_layers",
    "stack_patches",
    "static_forward",
    "static_sums",
    "StaticPatch",
    "subtract",
    "thought_vector",
    "token_update",
    "TokenPatch",
    "truncate",
    "update_norms",
    "update_statistics",
    "update_step_norms",
    "UpdateStatistics",
    "with_down_remainder",
    "with_layers",
    "with_remainder",
    # The path of the weights, and who wrote it.
    "Agreement",
    "anchored_trajectory",
    "attention_contributions",
    "attribute_block",
    "choose_by_update",
    "compare_static",
    "contribution_norms",
    "contribution_shares",
    "contribution_update",
    "decay_exponent",
    "first_factors",
    "group_cosines",
    "group_gram",
    "group_shares",
    "group_sizes",
    "leave_out_block",
    "leave_out_by_reruns",
    "linear_loss",
    "lone_midpoints",
    "marginal_sizes",
    "marginal_updates",
    "masked_outputs",
    "move_layers",
    "peel_off_trajectory",
    "prefix_outputs_by_reruns",
    "prefix_pass",
    "probe_pass",
    "remainder_share",
    "StaticAgreement",
    "suffix_midpoints",
    "summed_update",
    "Trajectory",
    # Language models with and without their context.
    "alone_logits",
    "attend",
    "Attended",
    "attribute",
    "compile_context",
    "full_logits",
    "generate",
    "group_updates",
    "GroupUpdates",
    "load",
    "observe",
    "Observed",
    "observed_generate",
    "ObservedGeneration",
    "ordinary_sums",
    "own_queries",
    "patched_generate",
    "patched_logits",
    "prefix_logits",
    "Pretrained",
    "prompt_patches",
    "prompt_weights",
    "PromptAttribution",
    "PromptWeights",
    "Sampling",
    "self_study",
    "static_logits",
    "static_weights",
    "token_agreement",
    # The yardsticks: gradient descent and closed forms.
    "descend",
    "descent_prediction",
    "finetune",
    "first_kernels",
    "fleet",
    "gd_plus_plus",
    "gradient_steps",
    "layer_causal_loss",
    "merge",
    "new_adapters",
    "one_step_weights",
    "optimal_linear_attention",
    "optimal_linear_attention_loss",
    "optimal_preconditioner",
    "OptimizerConfig",
    "ORACLES",
    "preconditioned_step_weights",
    "preconditioned_steps",
    "prefix_predictions",
    "rate_grid",
    "select",
    "SELECTIONS",
    "stacked_weights",
    "tune_learning_rate",
    "with_adapters",
    # How two of them compare, and what chance would give.
    "alignment",
    "all_orders",
    "another_prompts",
    "as_summary",
    "attention_similarity",
    "bootstrap_mean",
    "compare_with_nulls",
    "Comparison",
    "cosine",
    "effective_rank",
    "effective_rank_of_updates",
    "greedy",
    "ilwd",
    "implicit_linear_weights",
    "kendall_tau",
    "kl_divergence",
    "leading_angles",
    "model_difference",
    "norm_ratio",
    "off_diagonal_mean",
    "prediction_difference",
    "principal_angles",
    "random_orders",
    "random_update",
    "random_vector",
    "relative_error",
    "relative_model_difference",
    "same_top1",
    "sensitivity",
    "sensitivity_cosine",
    "Shapley",
    "shapley_values",
    "shuffled_labels",
    "squared_error",
    "squared_prediction_difference",
    "top_k_overlap",
    "total_variation",
    "update_similarity",
    "vector_cosine",
    # Training, and many devices.
    "make_mesh",
    "make_optimizer",
    "place",
    "shard_tasks",
    "task_mesh",
    "train",
    "TrainingConfig",
    "TrainingDivergedError",
]
