"""A model's `config.json`, key by key: one that changes the result is applied or refused, never overlooked."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from lumoe.errors import UserError

T = TypeVar("T")
_MISSING = object()
# Keys that change nothing of a forward pass without dropout: of files, tokens, training, generation and past versions.
HARMLESS = frozenset(
    """
    _attn_implementation _attn_implementation_autoset _commit_hash _name_or_path architectures attention_dropout
    attn_implementation auto_map bos_token_id classifier_dropout dtype embd_pdrop eod_token_id eos_token_id ep_size
    expert_layer_offset expert_layer_period experts_implementation finetuning_task hidden_dropout_prob id2label
    im_end_id im_start_id initializer_range input_jitter_noise is_decoder is_encoder_decoder
    keys_to_ignore_at_inference label2id max_length model_type num_nextn_predict_layers output_attentions
    output_hidden_states output_router_logits pad_id pad_token_id problem_type quantization_config resid_pdrop
    return_dict router_aux_loss_coef router_aux_loss_factor router_z_loss_coef sep_token_id task_specific_params
    tokenizer_class torch_dtype transformers_version trust_remote_code unk_token_id use_cache
    """.split()  # noqa: SIM905
)
# What transformers 4 writes into every configuration: how to generate, not what a forward pass computes.
_GENERATION = frozenset(
    """
    add_cross_attention bad_words_ids begin_suppress_tokens chunk_size_feed_forward cross_attention_hidden_size
    decoder_start_token_id diversity_penalty do_sample early_stopping encoder_no_repeat_ngram_size
    exponential_decay_length_penalty forced_bos_token_id forced_eos_token_id length_penalty min_length
    no_repeat_ngram_size num_beam_groups num_beams num_return_sequences output_scores prefix pruned_heads
    remove_invalid_values repetition_penalty return_dict_in_generate suppress_tokens temperature tf_legacy_loss
    tie_encoder_decoder top_k top_p torchscript typical_p use_bfloat16
    """.split()  # noqa: SIM905
)


class Config:
    """The keys of a configuration, each of which somebody asks for; a null stands for a key that is not there."""

    def __init__(self, path: Path, values: Mapping[str, Any], where: str = "") -> None:
        self.path, self._where = path, where
        self._values = {key: value for key, value in values.items() if value is not None}
        self._asked: set[str] = set()

    def get(self, key: str, default: T) -> T:
        """Return a key's value; it must be of the default's kind, if that is a number or a truth value."""
        value = self._values.get(key, default)
        self._asked.add(key)
        if type(default) in (int, float, bool) and not _alike(value, default):
            raise UserError(f"{self.path}: at '{self._where}{key}': {value!r} is no {type(default).__name__}")
        return value  # type: ignore[no-any-return]

    def find(self, *keys: str) -> Any:
        """Return the value of the first of `keys` that is there, or None."""
        self._asked.update(keys)
        return next((self._values[key] for key in keys if key in self._values), None)

    def need(self, *keys: str) -> Any:
        """Return the value of the first of `keys` that is there.

        Raises:
            UserError: none of them is.
        """
        value = self.find(*keys)
        if value is None:
            raise UserError(f"{self.path}: at '{self._where}{keys[0]}': Field required")
        return value

    def expect(self, key: str, *allowed: Any) -> None:
        """Refuse values of a key that ask for something that is not computed here.

        Raises:
            UserError: it has another value than those allowed.
        """
        value = self.find(key)
        if value is not None and value not in allowed:
            known = " or ".join(repr(each) for each in allowed)
            raise UserError(f"{self.path}: '{self._where}{key}' is {value!r}; only {known} is supported")

    def ignore(self, *keys: str) -> None:
        """Take note of keys that this family's forward pass does not depend on."""
        self._asked.update(keys)

    def inner(self, key: str) -> Config:
        """Return the configuration below a key; an empty one if there is none.

        Raises:
            UserError: the key is no mapping.
        """
        value: Any = self.get(key, {})
        if not isinstance(value, Mapping):
            raise UserError(f"{self.path}: at '{self._where}{key}': a mapping is expected")
        return Config(self.path, value, f"{self._where}{key}.")

    @property
    def values(self) -> dict[str, Any]:
        """All that is there; whoever asks for it takes care of every key."""
        self._asked.update(self._values)
        return dict(self._values)

    def check_nothing_left(self) -> None:
        """Refuse keys that nobody asked for.

        Raises:
            UserError: there is one that is not known to be harmless.
        """
        left = sorted(self._values.keys() - self._asked - HARMLESS - _GENERATION)
        if left:
            named = ", ".join(f"'{self._where}{key}'" for key in left)
            raise UserError(
                f"{self.path}: {named}: not known, and may change what the model computes; remove it if it does not"
            )


def _alike(value: Any, default: Any) -> bool:
    if type(default) is bool or type(value) is bool:
        return type(value) is type(default)
    if type(default) is int:
        return type(value) is int or (type(value) is float and value.is_integer())
    return type(value) in (int, float)
