"""A coding agent's pattern: time to first token over ten turns that grow, two clients at once, beside two peers.

    python -m venv build/llama && build/llama/bin/pip install xllamacpp
    python benchmarks/coding_agent.py --folder build/coding-agent --tokenizer data/models/mini-mixtral \\
        --llama-python build/llama/bin/python

Each client has a system prompt and tools of its own, some 4 000 tokens, and sends all earlier messages again with every
turn: the server's own answers, calls of tools that are put behind them, and results of tools or words of the user. The
two system prompts differ from the first word on: neither client's first turn can take over what the other's has left.
Model: a random Mixtral with 8 192 positions, whose answers are words only, so that a first token is text at once.

Peers are llama.cpp's own server (`xllamacpp`) on the same weights as F16, and `transformers serve` in bfloat16; a peer
that does not start is reported with the reason. To write the file of llama.cpp this needs the package `gguf`. All get
the same messages and tools and lay them out by the same template, but `transformers serve` drops calls of tools from
earlier messages: there their text is part of the answer that is sent back. Servers run one after another, never two at
once, each round in a new process; rounds go through all of them in turn.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from served import Answer, Served, free_port, lumoe
from serving import PATH, TOKENIZER_CONFIG, transformers
from tokenizers import Tokenizer
from true_width_model import build

from lumoe.files import read_json, write_json
from lumoe.moe.measurement.profile import describe_device

CONTEXT, TURNS, CLIENTS = 8192, 10, ("Albatross", "Bittern")
SYSTEM_TOKENS, RESULT_TOKENS, WORDS_TOKENS = 3600, 160, 40
# A token of a byte-level vocabulary that is a word after a space.
WORD = re.compile("Ġ[A-Za-z]+")
SIZE = {
    "vocab_size": 4096,
    "hidden_size": 512,
    "intermediate_size": 1792,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
# Blocks swallow the line's end after them: lines that must end say so.
TEMPLATE = """\
{%- for message in messages %}
{%- if message.role == "tool" %}
{{- "<|im_start|>user\\n<tool_response>\\n" + message.content + "\\n</tool_response><|im_end|>\\n" }}
{%- else %}
{{- "<|im_start|>" + message.role + "\\n" + message.content }}
{%- if loop.first and tools %}
{{- "\\n\\n# Tools\\nYou may call functions. Their signatures:\\n<tools>\\n" }}
{%- for tool in tools %}
{{- tool | tojson + "\\n" }}
{%- endfor %}
{{- '</tools>\\nA call is <tool_call>\\n{"name": "its name", "arguments": {}}\\n</tool_call>' }}
{%- endif %}
{%- for call in message.tool_calls or [] %}
{{- '\\n<tool_call>\\n{"name": "' + call.function.name + '", "arguments": ' }}
{{- call.function.arguments if call.function.arguments is string else call.function.arguments | tojson }}
{{- "}\\n</tool_call>" }}
{%- endfor %}
{{- "<|im_end|>\\n" }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
{{- "<|im_start|>assistant\\n" }}
{%- endif %}"""
LLAMA = """
import signal, sys, xllamacpp
params = xllamacpp.CommonParams()
params.model.path, params.port, threads, params.n_ctx, params.n_parallel = sys.argv[1], *map(int, sys.argv[2:])
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
params.model_alias, params.sampling.seed = {"model"}, 0
server = xllamacpp.Server(params)
print(server.listening_address, flush=True)
signal.sigwait({signal.SIGTERM, signal.SIGINT})
"""


@dataclass(frozen=True)
class Contender:
    """A server: its command, given a port, the name of its model, and whether it knows calls only as text."""

    command: Callable[[int], list[str]]
    model: str
    calls_as_text: bool = False


def tool(name: str, what: str, **parameters: str) -> dict[str, Any]:
    """Return a function as clients describe it."""
    properties = {key: {"type": "string", "description": said} for key, said in parameters.items()}
    shape = {"type": "object", "properties": properties, "required": list(parameters)}
    return {"type": "function", "function": {"name": name, "description": what, "parameters": shape}}


TOOLS = [
    tool("read_file", "Read a file of the project.", path="The file, from the project's root."),
    tool("write_file", "Write a file, in place of what it held.", path="The file.", content="All that it is to hold."),
    tool("edit_file", "Put one text in place of another.", path="The file.", old="Text that is there.", new="Another."),
    tool("search", "Find lines that a pattern matches.", pattern="A regular expression.", folder="Where to look."),
    tool("run", "Run a command and return what it prints.", command="The command line.", reason="What it is for."),
]


def make_model(folder: Path, tokenizer: Path) -> Path:
    """Write a random checkpoint with a tokenizer and a template of tools into `folder`, unless it is there."""
    model = folder / "model"
    if (model / TOKENIZER_CONFIG).is_file():
        return model
    build(folder, **SIZE)
    vocabulary = Tokenizer.from_file(str(tokenizer / "tokenizer.json")).get_vocab()
    words = [index for token, index in vocabulary.items() if WORD.fullmatch(token)]
    dense = load_file(model / "model-dense.safetensors")
    head = dense["lm_head.weight"]
    kept = head[words].clone()
    head.zero_()
    head[words] = kept
    save_file(dense, model / "model-dense.safetensors", {"format": "pt"})
    (model / "tokenizer.json").write_text((tokenizer / "tokenizer.json").read_text())
    (model / "chat_template.jinja").write_text(TEMPLATE)
    # With a table of added tokens, as transformers writes it, no server needs transformers to read the tokenizer.
    settings = read_json(tokenizer / TOKENIZER_CONFIG)
    settings |= {"model_max_length": CONTEXT, "model_input_names": ["input_ids", "attention_mask"]}
    write_json(model / TOKENIZER_CONFIG, settings)
    return model


def make_gguf(model: Path) -> Path:
    """Write the model for llama.cpp beside it, unless it is there."""
    path = model.parent / "f16.gguf"
    if not path.is_file():
        from gguf_mixtral import convert

        convert(model, path, "f16")
    return path


class Conversation:
    """One client's side of a conversation, the same for every server but for the answers that it got."""

    def __init__(self, tokenizer: Tokenizer, name: str) -> None:
        """Begin one; `name` is its first word."""
        self._tokenizer, self._name = tokenizer, name
        self._text = Path(argparse.__file__).read_text()
        self._at = 31 * sum(map(ord, name)) % 5000
        system = f"{name} is the project that you work on. Its files:\n{self._piece(SYSTEM_TOKENS)}"
        self.messages: list[dict[str, Any]] = [{"role": "system", "content": system}]

    def _piece(self, tokens: int) -> str:
        """Return the next piece of source text, `tokens` long."""
        begin = self._at
        encoded = self._tokenizer.encode(self._text[begin : begin + 8 * tokens])
        size = encoded.offsets[tokens][0]
        self._at = begin + size
        return self._text[begin : begin + size].strip()

    def ask(self, turn: int, answer: str | None, calls_as_text: bool) -> None:
        """Add what turn `turn` (from 0) adds: the answer before it, and words of the user or the result of a tool."""
        if answer is None or turn % 3 == 0:
            if answer is not None:
                self.messages.append({"role": "assistant", "content": answer})
            self.messages.append({"role": "user", "content": f"Change this next: {self._piece(WORDS_TOKENS)}"})
            return
        arguments = json.dumps({"path": f"src/{self._name}/part_{turn}.py"})
        message: dict[str, Any] = {"role": "assistant", "content": answer}
        if calls_as_text:
            call_text = f'{{"name": "read_file", "arguments": {arguments}}}'
            message["content"] += f"\n<tool_call>\n{call_text}\n</tool_call>"
        else:
            function = {"name": "read_file", "arguments": arguments}
            message["tool_calls"] = [{"id": f"call{turn:05}", "type": "function", "function": function}]
        result = {"role": "tool", "tool_call_id": f"call{turn:05}", "content": self._piece(RESULT_TOKENS)}
        self.messages += [message, result]


def converse(server: Served, contender: Contender, tokenizer: Tokenizer, name: str, tokens: int) -> list[Answer]:
    """Hold one conversation to its end; return its answers."""
    body = {"model": contender.model, "max_tokens": tokens, "temperature": 0, "stream": True, "tools": TOOLS,
            "stream_options": {"include_usage": True}}  # fmt: skip
    conversation, answers = Conversation(tokenizer, name), list[Answer]()
    for turn in range(TURNS):
        conversation.ask(turn, answers[-1].text if answers else None, contender.calls_as_text)
        answer = server.stream(PATH, {**body, "messages": conversation.messages})
        if answer.status != 200 or answer.first_s is None:
            raise RuntimeError(f"turn {turn + 1} was answered with status {answer.status} and {answer.text!r}")
        # Some strip the space that an answer begins with, and would find other tokens when it is sent back.
        text = f" {answer.text.strip()}"
        made = len(tokenizer.encode(text).ids)
        if made != tokens:
            raise RuntimeError(f"turn {turn + 1} has {made} tokens of {tokens}: times would not compare")
        answers.append(replace(answer, text=text))
    return answers


def round_of(contender: Contender, tokenizer: Tokenizer, options: argparse.Namespace) -> list[list[Answer]]:
    """Start a server, let it warm up on another text, and return the answers of each client."""
    port = free_port()
    with Served(contender.command(port), port, options.threads) as server:
        warm = Conversation(tokenizer, "warm").messages[0]["content"][:2000]
        message = {"role": "user", "content": warm}
        server.answers(PATH, {"model": contender.model, "messages": [message], "max_tokens": 4, "temperature": 0,
                              "stream": True})  # fmt: skip
        with ThreadPoolExecutor(len(CLIENTS)) as pool:
            return list(pool.map(lambda name: converse(server, contender, tokenizer, name, options.tokens), CLIENTS))


def contenders(options: argparse.Namespace, model: Path) -> dict[str, Contender]:
    """Return every contender that the options name."""
    threads = options.threads
    found = {
        "lumoe, 16 bits": Contender(
            lambda port: lumoe(model, port, threads, "--context", str(CONTEXT), "--name", "model"), "model"
        )
    }
    if options.llama_python:
        gguf = make_gguf(model)
        arguments = [str(threads), str(len(CLIENTS) * CONTEXT), str(len(CLIENTS))]
        found["llama.cpp's server, F16"] = Contender(
            lambda port: [str(options.llama_python), "-c", LLAMA, str(gguf), str(port), *arguments], "model"
        )
    if not options.without_transformers:
        found["transformers serve"] = Contender(lambda port: transformers(model, port), str(model), calls_as_text=True)
    return found


def row(conversations: Sequence[Sequence[Answer]], tokens: int) -> dict[str, Any]:
    """Return a line of the table: seconds to the first token, ratios, tokens/s of an answer after its first token.

    The worst of the later turns is held against the best first turn: of two fed one after the other, one waits.
    """
    begun = [answers[0].first_s or 0.0 for answers in conversations]
    first, best = statistics.median(begun), min(begun)
    later = [answer for answers in conversations for answer in answers[1:]]
    seconds = [answer.first_s or 0.0 for answer in later]
    speeds = [(tokens - 1) / (answer.seconds - (answer.first_s or 0.0)) for answer in later]
    details: list[Any] = [(answer.usage.get("prompt_tokens_details") or {}) for answer in later]
    known = sum(detail.get("cached_tokens") or 0 for detail in details)
    asked = sum(answer.usage.get("prompt_tokens", 0) for answer in later)
    return {
        "turn 1, s": f"{first:.2f}",
        "best, s": f"{best:.2f}",
        "turns 2-10, s": f"{statistics.median(seconds):.3f}",
        "worst, s": f"{max(seconds):.3f}",
        "over turn 1": f"{statistics.median(seconds) / first:.3f}",
        "worst over best": f"{max(seconds) / best:.3f}",
        "tokens/s": f"{statistics.median(speeds):.1f}",
        "prompt known": f"{known / asked:.1%}" if asked else "not said",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="of the model; it is made there if there is none")
    parser.add_argument("--tokenizer", type=Path, required=True, help="a model folder with a byte-level tokenizer")
    parser.add_argument("--llama-python", type=Path, help="Python that has xllamacpp; adds llama.cpp's server")
    parser.add_argument("--without-transformers", action="store_true", help="leave `transformers serve` out")
    parser.add_argument("--tokens", type=int, default=64, help="of an answer")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--turns", action="store_true", help="print each turn of each client, too")
    options = parser.parse_args()
    model = make_model(options.folder, options.tokenizer).resolve()
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    found = contenders(options, model)
    held: dict[str, list[list[Answer]]] = {name: [] for name in found}
    failed: dict[str, str] = {}
    for _ in range(options.rounds):
        for name, contender in found.items():
            if name in failed:
                continue
            try:
                conversations = round_of(contender, tokenizer, options)
            except (RuntimeError, OSError) as error:
                failed[name] = " ".join(str(error).split())
                continue
            held[name] += conversations
            for client, answers in enumerate(conversations if options.turns else []):
                for turn, answer in enumerate(answers, 1):
                    print(f"{name:>24} client {client + 1} turn {turn:2}: first {answer.first_s:.3f} s, "
                          f"all {answer.seconds:.3f} s, {answer.usage}", flush=True)  # fmt: skip
            print(f"{name:>24} {row(conversations, options.tokens)}", flush=True)
    print(describe_device())
    rows = {name: row(held[name], options.tokens) for name in found if name not in failed}
    titles = list(next(iter(rows.values()))) if rows else []
    print(f"{'':24}" + "".join(f"{title:>16}" for title in titles))
    for name, values in rows.items():
        print(f"{name:24}" + "".join(f"{values[title]:>16}" for title in titles))
    for name, reason in failed.items():
        print(f"{name}: not run ({reason})")


if __name__ == "__main__":
    main()
