"""The tokenizer of a model: read from its folder without running anything there, or trained (byte-level BPE)."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from lumoe.errors import UserError
from lumoe.files import read_json
from lumoe.moe.checkpoint.plain_tokenizer import check_folder

END_OF_TEXT = "<|endoftext|>"

# A language model without instruction tuning continues text: a conversation is its messages, one paragraph each.
CHAT_TEMPLATE = "{% for message in messages %}{{ message['content'] + '\n\n' }}{% endfor %}"


def load_tokenizer(folder: str | Path) -> PreTrainedTokenizerFast:
    """Read the tokenizer of a model folder, which must have a fast form; code in the folder is never run.

    Raises:
        UserError: there is none, it cannot be read, it names code, or a file is not the one that the folder's manifest
            records.
    """
    path = Path(folder)
    check_folder(path)
    if not any((path / name).is_file() for name in ("tokenizer.json", "tokenizer.model")):
        raise UserError(f"{folder}: no tokenizer (tokenizer.json) in this folder")
    try:
        tokenizer = _class_of(path).from_pretrained(path, local_files_only=True, trust_remote_code=False, use_fast=True)
        tokenizer.encode("a", add_special_tokens=False)
    # transformers raises whatever the reader of the file at fault raises; the tokenizers library panics, which is no
    # Exception.
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt | SystemExit | GeneratorExit):
            raise
        text = " ".join(str(error).split())[:200]
        raise UserError(f"{folder}: the tokenizer there cannot be read ({text})") from None
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise UserError(f"{folder}: the tokenizer has no fast form (tokenizer.json)")
    return tokenizer


def _class_of(folder: Path) -> Any:
    """Return what reads the tokenizer of `folder`: the fast class that it names, or whatever transformers chooses."""
    import transformers

    path = folder / "tokenizer_config.json"
    named = read_json(path).get("tokenizer_class") if path.is_file() else None
    if isinstance(named, str) and (folder / "tokenizer.json").is_file():
        found = getattr(transformers, named.removesuffix("Fast") + "Fast", None)
        if isinstance(found, type) and issubclass(found, PreTrainedTokenizerFast):
            return found
    # To choose among all models it imports all that generates text: seconds, and 100 MB that stay.
    return transformers.AutoTokenizer


def train_tokenizer(texts: Iterable[str], vocabulary: int, context: int) -> PreTrainedTokenizerFast:
    """Train byte-level BPE on `texts`.

    Args:
        texts: the training documents.
        vocabulary: number of tokens, the 256 bytes and the end-of-text token included.
        context: the longest sequence the model is trained on, tokens.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        model_max_length=context,
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def encode(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    """Return the token ids of `text`, with no token added; long texts give no warning."""
    return list(tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids)
