"""The tokenizer and the chat template in a GGUF file's metadata, as the files of a model folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers.processors import TemplateProcessing

from lumoe.errors import UserError

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_WORD = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
_SMALL = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_SHORT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
_O200K = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_WORD}*{_SMALL}+{_SHORT}|[^\r\n\p{{L}}\p{{N}}]?{_WORD}+{_SMALL}*{_SHORT}"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_DEEPSEEK = (
    r"\p{N}{1,3}",
    "[一-龥぀-ゟ゠-ヿ]+",
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
)
# What a text is cut into before bytes are merged, by llama.cpp's names (`llama-vocab.cpp`): one after another.
_CUTS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("default", "gpt-2", "olmo", "phi-2", "jina-en"), (_GPT2,)),
    **dict.fromkeys(("llama-bpe", "llama3", "glm4", "chatglm-bpe", "dbrx", "smaug-bpe"), (_LLAMA3,)),
    **dict.fromkeys(("qwen2", "hunyuan", "megrez", "stablelm2"), (_LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}"),)),
    **dict.fromkeys(("gpt-4o", "llama4"), (_O200K,)),
    **dict.fromkeys(("refact", "starcoder", "codeshell", "smollm", "command-r"), (r"\p{N}", _GPT2)),
    **dict.fromkeys(("deepseek-v3", "hunyuan-dense"), _DEEPSEEK),
}
_CONTROL, _DEFINED = 3, 4  # kinds of tokens that are found in a text as they are


def tokenizer_files(path: str, values: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return the text of `tokenizer.json` and the values of `tokenizer_config.json`.

    Raises:
        UserError: the vocabulary is of a kind that is not known.
    """
    kind = values.get("tokenizer.ggml.model")
    tokens = [str(token) for token in values.get("tokenizer.ggml.tokens", [])]
    if kind == "gpt2":
        tokenizer = _byte_level(path, tokens, values)
    elif kind == "llama":
        tokenizer = _sentencepiece(tokens, values)
    else:
        raise UserError(
            f"{path}: its vocabulary is of the kind '{kind}', which is not known (gpt2 and llama are); "
            "put the model's tokenizer.json and tokenizer_config.json beside the file"
        )
    kinds = values.get("tokenizer.ggml.token_type", [])
    found = [(index, int(of)) for index, of in enumerate(kinds) if int(of) in (_CONTROL, _DEFINED)]
    added = [AddedToken(tokens[index], special=of == _CONTROL, normalized=False) for index, of in found]
    tokenizer.add_tokens(added)
    named = {
        f"{name}_token": tokens[int(values[key])]
        for name in ("bos", "eos", "unk", "pad")
        if (key := f"tokenizer.ggml.{_KEYS.get(name, name)}_token_id") in values
    }
    _begin(tokenizer, kind, named, values)
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "added_tokens_decoder": {
            str(index): {"content": tokens[index], "special": of == _CONTROL} for index, of in found
        },
        **named,
    }
    if template := values.get("tokenizer.chat_template"):
        settings["chat_template"] = template
    return tokenizer.to_str(), settings


_KEYS = {"unk": "unknown", "pad": "padding"}


def _begin(tokenizer: Tokenizer, kind: str, named: Mapping[str, str], values: Mapping[str, Any]) -> None:
    """Let a text begin and end with the tokens that the file says; llama.cpp's defaults differ between kinds."""
    before = named.get("bos_token") if values.get("tokenizer.ggml.add_bos_token", kind == "llama") else None
    after = named.get("eos_token") if values.get("tokenizer.ggml.add_eos_token", False) else None
    around = [token for token in (before, after) if token is not None]
    if around:
        tokenizer.post_processor = TemplateProcessing(
            single=[*([before] if before else []), "$A", *([after] if after else [])],
            special_tokens=[(token, tokenizer.token_to_id(token)) for token in dict.fromkeys(around)],
        )


def _byte_level(path: str, tokens: Sequence[str], values: Mapping[str, Any]) -> Tokenizer:
    cut = str(values.get("tokenizer.ggml.pre", "default"))
    if cut not in _CUTS:
        raise UserError(
            f"{path}: it cuts texts as '{cut}' does, which is not known; "
            "put the model's tokenizer.json and tokenizer_config.json beside the file"
        )
    merges = [tuple(str(merge).split(" ", 1)) for merge in values.get("tokenizer.ggml.merges", [])]
    # llama.cpp takes a word that is a token whole, whatever its merges say, for these.
    whole = cut in ("llama-bpe", "llama3", "gpt-4o", "llama4")
    tokenizer = Tokenizer(models.BPE({token: index for index, token in enumerate(tokens)}, merges, ignore_merges=whole))
    cuts = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in _CUTS[cut]]
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*cuts, level])
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _sentencepiece(tokens: Sequence[str], values: Mapping[str, Any]) -> Tokenizer:
    """SentencePiece's BPE: of all neighbours that make a token, those of the highest score are merged first."""
    scores = [float(score) for score in values.get("tokenizer.ggml.scores", [0.0] * len(tokens))]
    places = {token: index for index, token in enumerate(tokens)}
    merges = [
        (-scores[index], index, token[:at], token[at:])
        for token, index in places.items()
        for at in range(1, len(token))
        if token[:at] in places and token[at:] in places
    ]
    unknown = values.get("tokenizer.ggml.unknown_token_id")
    tokenizer = Tokenizer(
        models.BPE(
            places,
            [(first, second) for _, _, first, second in sorted(merges)],
            unk_token=None if unknown is None else tokens[int(unknown)],
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    spaced = bool(values.get("tokenizer.ggml.add_space_prefix", True))
    begin = [normalizers.Prepend("▁")] if spaced else []
    tokenizer.normalizer = normalizers.Sequence([*begin, normalizers.Replace(" ", "▁")])
    end = [decoders.Strip(" ", 1, 0)] if spaced else []
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *end])
    return tokenizer
