"""Checks for the assignments: `check_x(your_function)` passes in silence, or says what is wrong.

A check looks at what a function does to inputs whose answer is known by other means (impulses, constants,
statistics, exact solutions). It holds no second copy of the answer, and runs at any shape it is given.
"""

from mavlite.teaching.checks.interpolation import (
    check_distance_to_known,
    check_hidden_loss,
    check_interpolation_input,
    check_mask_pattern,
    check_replace_known,
)
from mavlite.teaching.checks.layers import check_causal_conv, check_inflate, check_temporal_conv
from mavlite.teaching.checks.layers_attention import check_distance_bias, check_temporal_attention
from mavlite.teaching.checks.prior import (
    check_choose,
    check_drop_text,
    check_guide,
    check_residual,
)
from mavlite.teaching.checks.sampler import (
    check_heun_step,
    check_sample_heun,
    check_shifted_cosine,
    check_turn,
)
from mavlite.teaching.checks.super_resolution import (
    check_augment,
    check_chain_noise,
    check_correlated_noise,
    check_flicker,
    check_sr_input,
)

__all__ = [
    "check_augment",
    "check_causal_conv",
    "check_chain_noise",
    "check_choose",
    "check_correlated_noise",
    "check_distance_bias",
    "check_distance_to_known",
    "check_drop_text",
    "check_flicker",
    "check_guide",
    "check_heun_step",
    "check_hidden_loss",
    "check_inflate",
    "check_interpolation_input",
    "check_mask_pattern",
    "check_replace_known",
    "check_residual",
    "check_sample_heun",
    "check_shifted_cosine",
    "check_sr_input",
    "check_temporal_attention",
    "check_temporal_conv",
    "check_turn",
]
