"""What a bad disk, a cut transfer or an enemy does to the bytes of a file."""

from __future__ import annotations

from collections.abc import Callable
from random import Random


def flip_bit(content: bytearray, random: Random) -> None:
    content[random.randrange(len(content))] ^= 1 << random.randrange(8)


def flip_bits(content: bytearray, random: Random) -> None:
    for _ in range(random.randint(2, 16)):
        flip_bit(content, random)


def truncate(content: bytearray, random: Random) -> None:
    del content[random.randrange(len(content)) :]


def cut_out(content: bytearray, random: Random) -> None:
    begin = random.randrange(len(content))
    del content[begin : begin + random.randint(1, 64)]


def repeat(content: bytearray, random: Random) -> None:
    begin = random.randrange(len(content))
    content[begin:begin] = content[begin : begin + random.randint(1, 64)]


def zero_block(content: bytearray, random: Random) -> None:
    begin = random.randrange(len(content))
    end = min(len(content), begin + random.choice([1, 8, 512]))
    content[begin:end] = bytes(end - begin)


def insert_noise(content: bytearray, random: Random) -> None:
    begin = random.randrange(len(content))
    content[begin:begin] = random.randbytes(random.randint(1, 16))


def swap_digit(content: bytearray, random: Random) -> None:
    digits = [at for at in range(min(len(content), 4096)) if chr(content[at]).isdigit()]
    if digits:
        content[random.choice(digits)] = ord(random.choice("0123456789-.e"))


def deepen(content: bytearray, random: Random) -> None:
    begin = random.randrange(len(content))
    content[begin:begin] = random.choice([b"[", b"{", b'{"a":', b"- "]) * random.choice([10, 2000, 100_000])


KINDS: tuple[Callable[[bytearray, Random], None], ...] = (
    flip_bit, flip_bit, flip_bits, truncate, cut_out, repeat, zero_block, insert_noise, swap_digit,
)  # fmt: skip


def mutate(content: bytes, random: Random, text: bool) -> bytes:
    """Return a changed copy of `content` (not empty)."""
    changed = bytearray(content)
    while bytes(changed) == content:
        changed = bytearray(content)
        kind = deepen if text and random.random() < 0.02 else random.choice(KINDS)
        kind(changed, random)
    return bytes(changed)
