"""DeepSeek V2 and V3 (arXiv 2405.04434, 2412.19437): latent attention, and experts in groups."""

from __future__ import annotations

from typing import Any

from lumoe.moe.architectures.about import About
from lumoe.moe.architectures.architecture import Attention, Latent, Router
from lumoe.moe.architectures.common import grouped_experts, magnitude, rotary, sizes
from lumoe.moe.architectures.config import Config
from lumoe.moe.architectures.names import DEEPSEEK

MODEL_TYPES = ("deepseek_v2", "deepseek_v3")
ABOUT = (
    About("DeepSeek-V2, V2-Lite", "deepseek-v2-lite", kinds=("deepseek_v2",), held_to=("transformers", "llama.cpp")),
    About(
        "DeepSeek-V3, R1, V3.1",
        "deepseek-v3",
        kinds=("deepseek_v3",),
        calls="<｜tool▁call▁begin｜>",
        held_to=("transformers", "llama.cpp"),
    ),
)
NAMES = DEEPSEEK
OWN_CODE = True


def settings(config: Config) -> dict[str, Any]:
    """Return an architecture's fields."""
    second = config.need("model_type") == "deepseek_v2"
    config.expect("attention_bias", False)
    config.expect("mlp_bias", False)
    config.expect("moe_layer_freq", 1)
    config.ignore("aux_loss_alpha", "seq_aux", "head_dim", "qk_head_dim")
    latent = Latent(
        query_rank=config.find("q_lora_rank"),
        rank=config.need("kv_lora_rank"),
        plain=config.need("qk_nope_head_dim"),
        turned=config.need("qk_rope_head_dim"),
        value=config.need("v_head_dim"),
    )
    turned = rotary(config, 1e4, interleaved=second or config.get("rope_interleave", True))
    # YaRN's factor of the logits: published with both; transformers 4 has it for the third version alone.
    everywhere = turned.settings.get("mscale_all_dim", 0)
    stretch = magnitude(turned.settings.get("factor", 1.0), everywhere) if everywhere else 1.0
    experts = second_experts(config) if second else grouped_experts(config)
    config.expect("scoring_func", experts["router"].score)
    config.expect("topk_method", *(("greedy", "group_limited_greedy") if second else ("noaux_tc",)))
    return {
        **sizes(config),
        **experts,
        "head_dim": latent.plain + latent.turned,
        "rms_norm_eps": config.get("rms_norm_eps", 1e-6),
        "rotary": turned,
        "attention": Attention(latent=latent, scale=(latent.plain + latent.turned) ** -0.5 * stretch**2),
    }


def second_experts(config: Config) -> dict[str, Any]:
    """Return the experts of the second version: a softmax without correction; weights are normalised or scaled."""
    found = grouped_experts(config)
    normalize = config.get("norm_topk_prob", False) and config.need("num_experts_per_tok") > 1
    groups, chosen = 1, 1
    if config.get("topk_method", "greedy") == "group_limited_greedy":
        groups, chosen = config.need("n_group"), config.need("topk_group")
    scale = 1.0 if normalize else config.get("routed_scaling_factor", 1.0)
    router = Router(normalize=normalize, scale=scale, float32=True, groups=groups, chosen_groups=chosen)
    return {**found, "router": router}
