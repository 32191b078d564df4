"""The decoder for a device that is bound by launches: every step of a shape runs over the same memory.

A token passes through about thirty operators a layer; on a GPU each costs a launch that takes longer than most of them
run. Here keys and values are written by position into a cache of fixed capacity and masked, so that nothing but
the memory's contents changes from one step to the next. What lies between two layers' experts is then one recorded
piece. Which experts run stays the host's decision: they may have to be fetched.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch.nn import functional

from lumoe.errors import UserError
from lumoe.moe.architectures.architecture import Architecture
from lumoe.moe.architectures.plain import beyond_plain
from lumoe.moe.kernels.codes import CodedMatrix
from lumoe.moe.model import attention
from lumoe.moe.model.cuda_graphs import Recorder, as_it_is
from lumoe.moe.model.decoder import Decoder, Layer
from lumoe.moe.model.linear import DenseLinear, Linear
from lumoe.moe.model.moe_layer import Experts, MoELayer, Observer, attach
from lumoe.moe.model.norm import Norm
from lumoe.moe.model.rotary import Rotary
from lumoe.moe.model.router import Router as LayerRouter
from lumoe.moe.planning.plan import FULL_BITS
from lumoe.moe.planning.shape import KV_BLOCK

# Given the tokens of a step, returns what is added to the router logits, float32 [layers, tokens, experts].
RouterNoise = Callable[[int], torch.Tensor]
# A layer's residual stream [sequences, tokens, hidden], its experts' input [tokens, hidden], and the router's answer.
Routed = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


class StaticCache:
    """Keys and values per layer, `[sequences, key-value heads, capacity, width]`, and the steps recorded over them.

    Attributes:
        lengths: tokens stored of each sequence.
        cosine, sine: rotary factors of every position, `[capacity, 1, width]`.
    """

    def __init__(
        self, architecture: Architecture, sequences: int, capacity: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        a = architecture
        shape = (a.num_hidden_layers, sequences, a.num_key_value_heads, capacity, a.head_width)
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros(shape, dtype=dtype, device=device)
        self.lengths = [0] * sequences
        self.capacity = capacity
        # All of it is there from the beginning: every sequence has all blocks of its own, in the words of `KVCache`.
        columns = -(-capacity // KV_BLOCK)
        self.tables = [list(range(slot * columns, (slot + 1) * columns)) for slot in range(sequences)]
        self.blocks = self.limit = self.held = sequences * columns
        cosine, sine = Rotary(a.rotary, a.head_width, dtype).at(torch.arange(capacity).unsqueeze(0), capacity - 1)
        self.cosine, self.sine = cosine[0].to(device), sine[0].to(device)
        self.steps: dict[tuple[int, ...], Step] = {}

    @property
    def nbytes(self) -> int:
        """Bytes of all keys and values."""
        return self.keys.nbytes + self.values.nbytes

    @property
    def block_bytes(self) -> int:
        """Bytes of a block's share, rounded up."""
        return -(-self.nbytes // self.blocks)

    def missing(self, slot: int, tokens: int) -> int:
        """Return how many more blocks sequence `slot` needs: it has all."""
        return 0

    def reserve(self, slot: int, tokens: int) -> None:
        """Let sequence `slot` have memory for `tokens` tokens: it has."""

    def clear(self, slot: int) -> None:
        """Forget sequence `slot`."""
        self.lengths[slot] = 0


class StaticDecoder:
    """The weights outside the experts on a device, and the forward pass.

    Attributes:
        noise: added to the router logits, if it is set; measurements draw routing with it.
    """

    def __init__(self, decoder: Decoder, device: torch.device, recorder: Recorder | None = None) -> None:
        """Move a decoder's weights, all at 16 bits, to `device`.

        Args:
            recorder: makes a piece of a decode step that can be run again; by default each step runs as written.

        Raises:
            UserError: the model has parts that are computed on the processor only.
        """
        check_plain(decoder.architecture, device)
        self.architecture, self.dtype, self.device = decoder.architecture, decoder.dtype, device
        self.recorder = recorder
        self.noise: RouterNoise | None = None

        def move(weight: torch.Tensor) -> torch.Tensor:
            return weight.to(device)

        if isinstance(decoder.embedding, CodedMatrix):
            raise TypeError("a device computes from weights, not from a file's codes: Decoder(..., from_codes=False)")
        self.embedding = move(decoder.embedding)
        head = weight_of(decoder.head)
        self.head = self.embedding if head is decoder.embedding else move(head)
        self.norm = move(decoder.norm.weight)
        self.layers = [self._moved(layer, move) for layer in decoder.layers]
        top_k = self.architecture.num_experts_per_tok
        self.experts = [MoELayer(index, LayerRouter(layer[4], top_k)) for index, layer in enumerate(self.layers)]

    @staticmethod
    def _moved(layer: Layer, move: Callable[[torch.Tensor], torch.Tensor]) -> tuple[torch.Tensor, ...]:
        mixer, feed = layer.mixer, layer.feed
        assert isinstance(mixer, attention.Attention)
        assert isinstance(feed, MoELayer)
        weights = weight_of(mixer.projection), weight_of(mixer.output)
        return tuple(map(move, (layer.before.weight, *weights, layer.between.weight, feed.router.gate)))

    @property
    def nbytes(self) -> int:
        """Bytes of the weights outside the experts."""
        ends = {id(tensor): tensor.nbytes for tensor in (self.embedding, self.head, self.norm)}
        return sum(ends.values()) + sum(tensor.nbytes for layer in self.layers for tensor in layer)

    def attach(self, experts: Experts | None) -> None:
        """Take experts from `experts`; None lets go of those that there are."""
        attach(self.experts, experts)

    def observe(self, observer: Observer | None) -> None:
        """Tell `observer` each layer's choices of experts from now on."""
        for layer in self.experts:
            layer.observer = observer

    def cache(self, sequences: int, capacity: int, bits: int = FULL_BITS) -> StaticCache:
        """Return room for `sequences` sequences of up to `capacity` tokens.

        Raises:
            UserError: keys and values have 16 bits here.
        """
        if bits != FULL_BITS:
            raise UserError(f"{self.device}: keys and values have 16 bits there, not {bits}")
        return StaticCache(self.architecture, sequences, capacity, self.dtype, self.device)

    def forward(
        self, tokens: torch.Tensor, cache: StaticCache, slots: list[int], last_only: bool = False
    ) -> torch.Tensor:
        """Run new tokens of some sequences and append them to the cache; as `Decoder.forward`."""
        key = tuple(slots)
        step = cache.steps.get(key) if tokens.shape[1] == 1 else None
        if step is None:
            step = Step(self, cache, slots, tokens.shape[1])
            if tokens.shape[1] == 1 and self.recorder is not None:
                step.record(self.recorder)
                cache.steps[key] = step
        logits = step.run(tokens, last_only)
        for slot in slots:
            cache.lengths[slot] += tokens.shape[1]
        return logits


def check_plain(architecture: Architecture, device: torch.device) -> None:
    """Refuse models that need more than grouped-query attention and a softmax router.

    Raises:
        UserError: the model has more.
    """
    other = beyond_plain(architecture)
    if other:
        named = ", ".join(other)
        raise UserError(
            f"{device}: models of the family '{architecture.family}' run on the processor only so far ({named}); "
            "leave the device out, or give --device cpu"
        )


def weight_of(matrix: Linear) -> torch.Tensor:
    """Return the weights of a projection that holds them as they are.

    Raises:
        TypeError: it holds codes, which belong to the processor's kernels.
    """
    if not isinstance(matrix, DenseLinear):
        raise TypeError(f"a decoder for a device is made of weights at 16 bits, not of {type(matrix).__name__}")
    return matrix.weight


class Step:
    """One forward pass of a shape over memory that stays where it is."""

    def __init__(self, decoder: StaticDecoder, cache: StaticCache, slots: list[int], tokens: int) -> None:
        a, device, count = decoder.architecture, decoder.device, len(slots)
        self._decoder, self._cache, self._slots = decoder, cache, slots
        self._ids = torch.zeros((count, tokens), dtype=torch.int64, device=device)
        self._positions = torch.zeros((count, tokens), dtype=torch.int64, device=device)
        self._rows = torch.tensor(slots, device=device).unsqueeze(1)
        # Neighbouring slots are a slice of the cache: no copy.
        self._together = slots == list(range(slots[0], slots[0] + count))
        self._mixed = torch.zeros((count * tokens, a.hidden_size), dtype=decoder.dtype, device=device)
        noisy = (a.num_hidden_layers, count * tokens, a.num_local_experts)
        self._noise = None if decoder.noise is None else torch.zeros(noisy, device=device)
        turned = (count, tokens, 1, a.head_width)
        self._cosine = torch.zeros(turned, dtype=decoder.dtype, device=device)
        self._sine = torch.zeros(turned, dtype=decoder.dtype, device=device)
        shared = a.num_attention_heads // a.num_key_value_heads
        self._seen = torch.zeros((count, 1, tokens * shared, cache.capacity), dtype=torch.bool, device=device)
        self._hidden: list[torch.Tensor | None] = [None] * a.num_hidden_layers
        self._pieces: list[Callable[[], Routed]] = [partial(self._piece, index) for index in range(len(self._hidden))]
        self._last: Callable[[], torch.Tensor] = self._logits
        self._recorded = False

    def record(self, recorder: Recorder) -> None:
        """Make every piece one that runs without this code."""
        self._positions.fill_(self._cache.lengths[self._slots[0]])
        self._pieces = [recorder(piece) for piece in self._pieces]
        self._last = recorder(self._last)
        self._recorded = recorder is not as_it_is

    def run(self, tokens: torch.Tensor, last_only: bool) -> torch.Tensor:
        """Run the tokens `[sequences, tokens]` at the positions that the cache has come to."""
        starts = torch.tensor([self._cache.lengths[slot] for slot in self._slots]).unsqueeze(1)
        self._ids.copy_(tokens)
        self._positions.copy_(starts + torch.arange(tokens.shape[1]))
        if self._noise is not None and self._decoder.noise is not None:
            self._noise.copy_(self._decoder.noise(tokens.numel()))
        for index, (piece, experts) in enumerate(zip(self._pieces, self._decoder.experts, strict=True)):
            _, normed, weights, chosen = piece()
            if index and not self._recorded:
                self._hidden[index - 1] = None
            self._mixed.copy_(experts.mix(normed, weights, chosen))
        logits = self._last()
        if self._recorded:
            return logits.clone()  # the next step writes over what a recorded piece returns
        return logits[:, -1:] if last_only else logits

    def _piece(self, index: int) -> Routed:
        """Run everything between the experts of the layer before and those of layer `index`."""
        d = self._decoder
        a = d.architecture
        if index == 0:
            self._window()
            hidden = functional.embedding(self._ids, d.embedding)
        else:
            hidden = self._after(index - 1)
        before, projection, output, between, gate = d.layers[index]
        hidden = hidden + self._attend(index, Norm(before, a.rms_norm_eps)(hidden), projection, output)
        normed = Norm(between, a.rms_norm_eps)(hidden).view(-1, a.hidden_size)
        logits = functional.linear(normed, gate)
        if self._noise is not None:
            logits = logits.float() + self._noise[index]
        self._hidden[index] = hidden
        return hidden, normed, *d.experts[index].router.choose(logits, d.dtype)

    def _after(self, index: int) -> torch.Tensor:
        hidden = self._hidden[index]
        assert hidden is not None
        return hidden + self._mixed.view(hidden.shape)

    def _logits(self) -> torch.Tensor:
        d = self._decoder
        hidden = self._after(len(d.layers) - 1)
        return functional.linear(Norm(d.norm, d.architecture.rms_norm_eps)(hidden), d.head)

    def _window(self) -> None:
        """Fill in what all layers need to know of the positions."""
        a, cache = self._decoder.architecture, self._cache
        count, tokens = self._positions.shape
        shared = a.num_attention_heads // a.num_key_value_heads
        self._cosine.copy_(cache.cosine[self._positions])
        self._sine.copy_(cache.sine[self._positions])
        key = torch.arange(cache.capacity, device=self._positions.device)
        seen = key <= self._positions.unsqueeze(-1)
        if a.sliding_window is not None:
            seen = seen & (key > self._positions.unsqueeze(-1) - a.sliding_window)
        # The heads that share a key stand beside the tokens: [sequences, 1, tokens · shared, capacity].
        repeated = seen.unsqueeze(2).expand(count, tokens, shared, cache.capacity)
        self._seen.copy_(repeated.reshape(self._seen.shape))

    def _attend(self, index: int, hidden: torch.Tensor, projection: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        a, cache = self._decoder.architecture, self._cache
        count, tokens, _ = hidden.shape
        heads, groups, width = a.num_attention_heads, a.num_key_value_heads, a.head_width
        mixed = functional.linear(hidden, projection).view(count, tokens, heads + 2 * groups, width)
        turned = mixed[:, :, : heads + groups]
        turned = turned * self._cosine + turned.roll(width // 2, dims=-1) * self._sine
        keys, values = cache.keys[index], cache.values[index]
        keys[self._rows, :, self._positions] = turned[:, :, heads:]
        values[self._rows, :, self._positions] = mixed[:, :, heads + groups :]
        if self._together:
            rows = slice(self._slots[0], self._slots[0] + count)
            keys, values = keys[rows], values[rows]
        else:
            keys, values = keys[self._rows[:, 0]], values[self._rows[:, 0]]
        query = turned[:, :, :heads].view(count, tokens, groups, heads // groups, width)
        query = query.permute(0, 2, 1, 3, 4).reshape(count, groups, -1, width)
        found = functional.scaled_dot_product_attention(query, keys, values, attn_mask=self._seen)
        found = found.view(count, groups, tokens, heads // groups, width).permute(0, 2, 1, 3, 4)
        return functional.linear(found.reshape(count, tokens, heads * width), output)
