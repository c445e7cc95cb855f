"""What a model and its data cost: parameters, multiply-adds, time and memory, in all and stage by stage."""

from two_stream.profiling.costs import (
    CONVENTION,
    FVCORE,
    StageCost,
    clip_shape,
    fvcore_operations,
    meta_model,
    meta_twin,
    multiply_adds,
    parameter_count,
    stage_costs,
)
from two_stream.profiling.peak import copy_rate, gemm_rate, quickest_product
from two_stream.profiling.timing import Speed, measure

__all__ = [
    "CONVENTION",
    "FVCORE",
    "Speed",
    "StageCost",
    "clip_shape",
    "copy_rate",
    "fvcore_operations",
    "gemm_rate",
    "measure",
    "meta_model",
    "meta_twin",
    "multiply_adds",
    "parameter_count",
    "quickest_product",
    "stage_costs",
]
