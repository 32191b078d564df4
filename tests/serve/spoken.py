"""Two kinds of tokenizer, and models that say what they are told to."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors
from transformers import LlamaTokenizerFast, MixtralConfig, MixtralForCausalLM, PreTrainedTokenizerFast

from lumoe.moe.checkpoint.tokenizer import train_tokenizer

WORDS = ["there", "was", "a", "house", "near", "the", "sea"]
TURN = "<|turn|>"


def fallback() -> PreTrainedTokenizerFast:
    """Mixtral's kind: ▁ for a space, bytes for characters that the vocabulary lacks, <s> put before a text."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    merges, pieces = [], ["▁", *letters, "."]
    for word in WORDS:
        whole = "▁"
        for letter in word:
            if whole + letter not in pieces:
                merges.append((whole, letter))
                pieces.append(whole + letter)
            whole += letter
    names = ["<unk>", "<s>", "</s>", TURN, *(f"<0x{value:02X}>" for value in range(256)), *pieces]
    tokenizer = Tokenizer(
        models.BPE({name: index for index, name in enumerate(names)}, merges, unk_token="<unk>", byte_fallback=True)
    )
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    special = ("<unk>", "<s>", "</s>", TURN)
    tokenizer.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in special])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    return LlamaTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>",
        clean_up_tokenization_spaces=False,
    )  # fmt: skip


def byte_level() -> PreTrainedTokenizerFast:
    """The shipped model's kind, with one more special token."""
    tokenizer = train_tokenizer([" ".join(WORDS)] * 50, 300, 256)
    tokenizer.add_special_tokens({"additional_special_tokens": [TURN]})
    return tokenizer


KINDS = {"byte fallback": fallback, "byte-level": byte_level}


def random_model(folder: Path, tokenizer: PreTrainedTokenizerFast, **changes: object) -> Path:
    """Write a model of random weights, in float32."""
    torch.manual_seed(1)
    MixtralForCausalLM(_config(tokenizer, **changes)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def scripted(folder: Path, tokenizer: PreTrainedTokenizerFast, follows: Mapping[int, int], **changes: object) -> Path:
    """Write a model whose likeliest next token depends on the last one alone: `follows[token]`."""
    torch.manual_seed(0)
    model = MixtralForCausalLM(_config(tokenizer, hidden_size=128, num_hidden_layers=1, **changes))
    with torch.no_grad():
        embedding = torch.randn_like(model.model.embed_tokens.weight)
        model.model.embed_tokens.weight.copy_(embedding)
        model.lm_head.weight.zero_()
        for token, after in follows.items():
            model.lm_head.weight[after] += 0.1 * embedding[token]
        # Neither attention nor experts say anything: what is left of a token is its embedding.
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            for expert in layer.block_sparse_moe.experts:
                expert.w2.weight.zero_()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def chain(*tokens: int) -> dict[int, int]:
    """Each token follows the one before it."""
    return dict(pairwise(tokens))


def _config(tokenizer: PreTrainedTokenizerFast, **changes: object) -> MixtralConfig:
    shape = {
        "vocab_size": len(tokenizer),
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "max_position_embeddings": 128,
        "initializer_range": 0.2,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    return MixtralConfig(**{**shape, **changes})
