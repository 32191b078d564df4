"""Chat templates are rendered as transformers renders them, and tokenizers are read as it reads them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from lumoe.moe.checkpoint.chat_template import ChatTokenizer, chat_tokenizer

sys.path.append(str(Path(__file__).parents[2] / "serve"))
from spoken import KINDS

TURNS: list[dict[str, Any]] = [
    {"role": "system", "content": "You <know> it & \"say\" it."},
    {"role": "user", "content": "Zoë pays 5 €  "},
    {"role": "assistant", "content": "", "tool_calls": [
        {"type": "function", "id": "abcdefghi", "function": {"name": "pay", "arguments": {"sum": 5, "to": "Zoë"}}}]},
    {"role": "tool", "name": "pay", "tool_call_id": "abcdefghi", "content": "done\n"},
    {"role": "assistant", "content": "It is  done. "},
]  # fmt: skip
TOOLS = [{"type": "function", "function": {"name": "pay", "parameters": {"type": "object", "properties": {"sum": {}}}}}]
TEMPLATES = {
    "marks": "{{ bos_token }}{% for m in messages %}\n  {% if m.role == 'user' %}[INST] {{ m.content | trim }} [/INST]"
    "{% else %}{{ m['content'] }}{{ eos_token }}{% endif %}{% endfor %}{% if add_generation_prompt %} >{% endif %}",
    "tools": "{%- if tools %}{{ tools | tojson(indent=2) }}{{ tools | tojson }}{% endif %}{% for m in messages %}"
    "{% if m.tool_calls is defined %}{% for c in m.tool_calls %}{{ c.function.arguments | tojson }}{% endfor %}"
    "{% endif %}<|{{ m.role }}|>{{ m.content }}\n{% endfor %}",
    "loops": "{% set ns = namespace(n=0) %}{% for m in messages %}{% if m.role == 'system' %}{% continue %}{% endif %}"
    "{% set ns.n = ns.n + 1 %}{% if ns.n > 9 %}{% break %}{% endif %}{{ loop.index }}{{ m.content }}{% endfor %}",
    "training": "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}|{% endfor %}",
    "options": "{{ enable_thinking | default('unset') }}{{ strftime_now('%Y') }}{{ documents is none }}"
    "{% for m in messages %}{{ m.content }}{% endfor %}",
    "refuses": "{{ raise_exception('roles must alternate') }}",
    "fails": "{{ messages[0].content + 1 }}",
    "unsafe": "{{ messages.append(1) }}",
}


def both(kind: str, template: Any, folder: Path) -> tuple[ChatTokenizer, PreTrainedTokenizerFast]:
    tokenizer = KINDS[kind]()
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    return chat_tokenizer(folder), AutoTokenizer.from_pretrained(folder, local_files_only=True)


def said(tokenizer: Any, *arguments: Any, **options: Any) -> str:
    try:
        return str(tokenizer.apply_chat_template(*arguments, **options))
    except Exception as error:
        return type(error).__name__


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_says_what_it_says_in_transformers(name: str, kind: str, tmp_path: Path) -> None:
    own, known = both(kind, TEMPLATES[name], tmp_path)
    for options in (
        {"add_generation_prompt": True},
        {"tools": TOOLS, "add_generation_prompt": True},
        {"continue_final_message": True},
        {"enable_thinking": False, "bos_token": "other"},
    ):
        found = said(own, TURNS, **options)
        expected = said(known, TURNS, tokenize=False, **options)
        assert found == expected, options
    assert TURNS[-1]["content"] == "It is  done. "


def test_a_template_for_tools_is_taken_where_there_are_tools(tmp_path: Path) -> None:
    named = {"default": "plain {{ messages[0].content }}", "tool_use": "tools {{ messages[0].content }}"}
    own, known = both("byte-level", named, tmp_path)
    for tools in (None, TOOLS):
        assert said(own, TURNS, tools=tools) == said(known, TURNS, tools=tools, tokenize=False)
    assert said(own, TURNS, tools=TOOLS).startswith("tools")


@pytest.mark.parametrize("kind", KINDS)
def test_ids_and_special_tokens_are_those_of_transformers(kind: str, tmp_path: Path) -> None:
    own, known = both(kind, TEMPLATES["marks"], tmp_path)
    assert own.special_tokens_map == known.special_tokens_map
    assert own.eos_token_id == known.eos_token_id
    for text in ("", "there was a house", " Zoë pays 5 €  🦊\n", "<s> there<|turn|>", "ሰላም"):
        assert own.backend_tokenizer.encode(text).ids == known.encode(text)
        assert own.backend_tokenizer.encode(text, add_special_tokens=False).ids == known.encode(
            text, add_special_tokens=False
        )


def test_no_model_code_is_imported_for_a_plain_tokenizer() -> None:
    import subprocess

    shipped = Path(__file__).parents[3] / "data/models/mini-mixtral"
    code = (
        "import sys, lumoe.moe.serve.run; from lumoe.moe.checkpoint.chat_template import chat_tokenizer;"
        f"chat_tokenizer({str(shipped)!r});"
        "print(sorted({'transformers', 'pandas', 'scipy', 'sklearn'} & {*sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
