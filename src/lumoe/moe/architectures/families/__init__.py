"""One file a family: how its configuration becomes an architecture, and what its tensors are called.

A new one is named here: imports that can be read off the source are what tells which tables an edit makes stale.
"""

from lumoe.moe.architectures.families import (
    aria,
    deepseek,
    dots1,
    ernie4_5_moe,
    glm4_moe,
    gpt_oss,
    granitemoe,
    hunyuan_v1_moe,
    minimax_m2,
    mixtral,
    olmoe,
    phimoe,
    qwen2_moe,
    qwen3_moe,
    qwen3_next,
)

ALL = (
    mixtral,
    qwen3_moe,
    qwen2_moe,
    olmoe,
    granitemoe,
    gpt_oss,
    glm4_moe,
    dots1,
    ernie4_5_moe,
    phimoe,
    hunyuan_v1_moe,
    deepseek,
    minimax_m2,
    qwen3_next,
    aria,
)
