"""A decoder-only transformer; its attention and blocks also make encoders."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Up to this many tokens, bfloat16 attention on a CPU is computed here; beyond, the score matrix takes too much memory.
MAX_MANUAL_ATTENTION = 512
Rotation = tuple[Tensor, Tensor]  # cosine and sine of every position's angles, each (T, head_dim)


class KeyValueCache:
    """Caches what a GPT computed for earlier tokens, so that only new tokens are processed."""

    mask: Tensor | None = None
    """Which keys each new token attends to, (B, 1, 1, S) bool; None: itself and all earlier tokens."""

    angles: tuple[Tensor, Tensor] | None = None
    """Cosine and sine of all positions."""

    def __init__(self) -> None:
        self.kept: dict[tuple[nn.Module, str], Tensor] = {}  # by layer and name, (B, ..., tokens, features)
        self.length = 0

    def __len__(self) -> int:
        return self.length

    def begin(self, count: int, device: torch.device) -> Tensor:
        """Prepare for `count` more tokens, all processed in one call; returns their positions (T,)."""
        self.length += count
        return torch.arange(self.length - count, self.length, device=device)

    def extend(self, layer: nn.Module, name: str, new: Tensor, last: int | None = None) -> Tensor:
        """Append (B, ..., T, features) along the tokens; returns all so far; only the `last` are kept, default: all."""
        past = self.kept.get((layer, name))
        if past is None:
            past = new.new_zeros((*new.shape[:-2], last or 0, new.shape[-1]))
        found = torch.cat([past, new], dim=-2)
        self.kept[layer, name] = found if last is None else found[..., -last:, :]
        return found


class SharedCache(KeyValueCache):
    """A cache for several texts of different lengths; each step adds one token to each text.

    Its shapes do not depend on which texts it holds, except that keys are padded to a multiple of `PADDING` tokens.
    So the results for a text are bit-identical whatever the other texts are.

    Args:
        count: number of texts.
    """

    PADDING = 64

    def __init__(self, count: int) -> None:
        super().__init__()
        self.lengths = [0] * count
        """Tokens processed of each text; set it to 0 for a text that is not needed any more."""
        self.capacity = 0  # tokens for which there is memory

    def __len__(self) -> int:
        return max(self.lengths)

    def put(self, row: int, cache: KeyValueCache) -> None:
        """Replace a text by one that has been processed on its own."""
        self.lengths[row] = len(cache)
        self._reserve(len(cache))
        for (layer, name), value in cache.kept.items():
            if (layer, name) not in self.kept:
                size = value.shape[-2] if name == "tokens" else self.capacity
                shape = (len(self.lengths), *value.shape[1:-2], size, value.shape[-1])
                self.kept[layer, name] = value.new_zeros(shape)
            self.kept[layer, name][row, ..., : value.shape[-2], :] = value[0]

    def begin(self, count: int, device: torch.device) -> Tensor:
        """Prepare for one more token of each text; returns their positions (B, 1, 1)."""
        self.positions = torch.tensor(self.lengths, device=device)  # (B,)
        self.rows = torch.arange(len(self.lengths), device=device)
        self.lengths = [length + count for length in self.lengths]
        self._reserve(len(self))
        self.size = -(-len(self) // self.PADDING) * self.PADDING  # S
        keys = torch.arange(self.size, device=device)
        self.mask = (keys <= self.positions[:, None])[:, None, None]  # (B, 1, 1, S)
        return self.positions[:, None, None]

    def extend(self, layer: nn.Module, name: str, new: Tensor, last: int | None = None) -> Tensor:
        if last is not None:
            return super().extend(layer, name, new, last)
        kept = self.kept[layer, name]  # (B, heads, capacity, head_dim)
        kept[self.rows, :, self.positions] = new[:, :, 0].to(kept.dtype)
        return kept[:, :, : self.size]

    def _reserve(self, length: int) -> None:
        """Keep more memory than needed: products with the whole buffer could differ in bits."""
        if length + self.PADDING > self.capacity:
            more = 2 * -(-(length + self.PADDING) // self.PADDING) * self.PADDING - self.capacity
            self.capacity += more
            for (layer, name), value in self.kept.items():
                if name != "tokens":
                    self.kept[layer, name] = F.pad(value, (0, 0, 0, more))


class Attention(nn.Module):
    """Multi-head self-attention (Vaswani et al. 2017) with rotary position embeddings (Su et al. 2021).

    Queries and keys are normalised, so that attention logits stay bounded (Dehghani et al. 2023).

    Shapes:
        x (B, T, d_model), mask of `attend` -> (B, T, d_model).
    """

    def __init__(self, d_model: int, num_heads: int, dropout: float, causal: bool) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.dropout = dropout
        self.causal = causal
        self.qkv = nn.Linear(d_model, 3 * d_model, bias=False)
        self.proj = nn.Linear(d_model, d_model, bias=False)

    def forward(
        self, x: Tensor, rotation: Rotation, mask: Tensor | None = None, cache: KeyValueCache | None = None
    ) -> Tensor:
        batch, length, d_model = x.shape
        qkv = self.qkv(x).view(batch, length, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        qk, v = qkv[:2], qkv[2]  # (2, B, heads, T, head_dim), (B, heads, T, head_dim)
        q, k = rotate(F.layer_norm(qk, qk.shape[-1:]), rotation)
        if cache is not None:
            # (B, heads, S, head_dim), S tokens so far
            k, v = cache.extend(self, "keys", k), cache.extend(self, "values", v)
        y = attend(q, k, v, mask, self.causal and length > 1, self.dropout if self.training else 0.0)
        return self.proj(y.transpose(1, 2).reshape(batch, length, d_model))  # (B, T, C)


class FeedForward(nn.Module):
    """Two linear layers around a squared ReLU (So et al. 2021): (B, T, d_model) -> (B, T, d_model)."""

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.fc = nn.Linear(d_model, 4 * d_model, bias=False)
        self.proj = nn.Linear(4 * d_model, d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.fc(x).relu_()  # (B, T, 4C)
        return self.proj(hidden * hidden)  # (B, T, C); its gradient is twice as fast as that of hidden**2


class CausalConvolution(nn.Module):
    """Adds the `size` earlier tokens to each one, weighted by feature; the weights are zero at first (So et al. 2021).

    Shapes:
        (B, T, d_model) -> (B, T, d_model).
    """

    def __init__(self, d_model: int, size: int) -> None:
        super().__init__()
        self.size = size
        self.weight = nn.Parameter(torch.zeros(size, 1, d_model))  # of the last token first

    def forward(self, x: Tensor, cache: KeyValueCache | None = None) -> Tensor:
        padded = F.pad(x, (0, 0, self.size, 0)) if cache is None else cache.extend(self, "tokens", x, last=self.size)
        for number, weight in enumerate(self.weight.to(x.dtype), start=1):
            x = torch.addcmul(x, padded[:, self.size - number : padded.shape[1] - number], weight)  # (B, T, C)
        return x


class Block(nn.Module):
    """Attention, then feed-forward, each on a layer norm and residual (Xiong et al. 2020); shapes as `Attention`."""

    def __init__(self, d_model: int, num_heads: int, dropout: float, causal: bool, conv_size: int = 0) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(d_model, bias=False)
        self.attention = Attention(d_model, num_heads, dropout, causal)
        self.feed_forward_norm = nn.LayerNorm(d_model, bias=False)
        self.feed_forward = FeedForward(d_model)
        self.dropout = nn.Dropout(dropout)
        self.attention_conv = CausalConvolution(d_model, conv_size) if conv_size else None
        self.feed_forward_conv = CausalConvolution(d_model, conv_size) if conv_size else None
        # A new block is the identity, which makes deep networks easy to train (Zhang et al. 2019).
        nn.init.zeros_(self.attention.proj.weight)
        nn.init.zeros_(self.feed_forward.proj.weight)

    def forward(
        self, x: Tensor, rotation: Rotation, mask: Tensor | None = None, cache: KeyValueCache | None = None
    ) -> Tensor:
        hidden = self.attention_norm(x)
        if self.attention_conv is not None:
            hidden = self.attention_conv(hidden, cache)
        x = x + self.dropout(self.attention(hidden, rotation, mask, cache))  # (B, T, C)
        hidden = self.feed_forward_norm(x)
        if self.feed_forward_conv is not None:
            hidden = self.feed_forward_conv(hidden, cache)
        return x + self.dropout(self.feed_forward(hidden))  # (B, T, C)


class GPT(nn.Module):
    """A decoder-only transformer (Radford et al. 2018) with layer norms without bias (Ba et al. 2016).

    Args:
        vocab_size: number of tokens.
        block_size: longest context in tokens.
        d_model: width of the residual stream, a multiple of twice `num_heads`.
        num_heads: attention heads per block.
        num_layers: number of blocks.
        dropout: dropout probability after embedding, attention and feed-forward, in [0, 1).
        tie_weights: share the weights of embedding and output layer (Press and Wolf 2017).
        conv_size: attention and feed-forward also see this many tokens before each one, weighted by feature (So et al.
            2021), which helps most with characters; 0: only the token itself.

    Shapes:
        (B, T) int64 tokens, T up to block_size -> (B, T, vocab_size) float logits for the next token.

    Raises:
        ValueError: an argument is out of range, or there are more tokens than `block_size`.
    """

    def __init__(
        self,
        vocab_size: int = 256,
        block_size: int = 128,
        d_model: int = 128,
        num_heads: int = 4,
        num_layers: int = 4,
        dropout: float = 0.0,
        tie_weights: bool = False,
        conv_size: int = 0,
    ) -> None:
        super().__init__()
        sizes = {"vocab_size": vocab_size, "num_layers": num_layers}
        check_transformer("GPT", {"dropout": dropout}, d_model=d_model, num_heads=num_heads, **sizes)
        if block_size < 2:
            raise ValueError(f"block_size {block_size} is too small for GPT: give at least 2 tokens")
        if conv_size < 0:
            raise ValueError(f"conv_size {conv_size} is out of range for GPT: give at least 0; 0: no convolution")
        self.vocab_size = vocab_size
        self.block_size = block_size
        self.d_model = d_model
        self.num_heads = num_heads
        self.num_layers = num_layers
        self.dropout = dropout
        self.tie_weights = tie_weights
        self.conv_size = conv_size
        self.embedding = nn.Embedding(vocab_size, d_model)
        self.embedding_dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(Block(d_model, num_heads, dropout, True, conv_size) for _ in range(num_layers))
        self.norm = nn.LayerNorm(d_model, bias=False)
        self.head = nn.Linear(d_model, vocab_size, bias=False)
        if tie_weights:
            # The residual stream contains the input token's embedding: without this its logit would be large at first.
            nn.init.normal_(self.embedding.weight, std=0.5 / d_model)
            self.head.weight = self.embedding.weight
        else:
            nn.init.normal_(self.embedding.weight)
            nn.init.normal_(self.head.weight, std=0.1 / math.sqrt(d_model))  # logits of about 0.1

    def new_cache(self) -> KeyValueCache:
        return KeyValueCache()

    def new_shared_cache(self, count: int) -> SharedCache:
        """A cache for `forward` with one token of each of several texts, which are put into it one by one."""
        return SharedCache(count)

    def forward(self, tokens: Tensor, cache: KeyValueCache | None = None) -> Tensor:
        """Logits for the next token at each position; with a cache, `tokens` are only those not yet processed."""
        count, head_dim = tokens.shape[1], self.d_model // self.num_heads
        total = count + (0 if cache is None else len(cache))
        if total > self.block_size:
            raise ValueError(f"{total} tokens do not fit this GPT, whose block_size is {self.block_size}")
        x = self.embedding(tokens)  # (B, T, C)
        x = self.embedding_dropout(F.layer_norm(x, x.shape[-1:]))
        if cache is None:
            rotation = rotary_angles(count, head_dim, tokens.device)
        else:
            if cache.angles is None:
                cache.angles = rotary_angles(self.block_size, head_dim, tokens.device)
            positions = cache.begin(count, tokens.device)
            rotation = cache.angles[0][positions], cache.angles[1][positions]
        for block in self.blocks:
            x = block(x, rotation, None if cache is None else cache.mask, cache)
        return self.head(self.norm(x))  # (B, T, vocab_size)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, dropout: float) -> Tensor:
    """Scaled dot-product attention: (B, heads, T, head_dim) in the dtype of the values.

    Args:
        q: queries (B, heads, T, head_dim) of the last T of S tokens.
        k: keys (B, heads, S, head_dim).
        v: values (B, heads, S, head_dim).
        mask: (B, 1, 1, S) or (B, 1, T, S) bool, true for tokens to attend to; not together with `causal`.
        causal: whether tokens attend only to themselves and earlier tokens.
        dropout: probability of zeroing an attention weight.
    """
    batch, heads, length, head_dim = q.shape
    total = k.shape[2]
    q, k = q.to(v.dtype), k.to(v.dtype)
    if v.device.type != "cpu" or v.dtype != torch.bfloat16 or total > MAX_MANUAL_ATTENTION:
        if causal and length < total:
            mask = torch.ones(length, total, dtype=torch.bool, device=q.device).tril(total - length)  # (T, S)
        return F.scaled_dot_product_attention(q, k, v, mask, dropout, is_causal=causal and mask is None)
    # The same computation by hand: torch's takes up to twice as long in bfloat16 on a CPU.
    if causal:
        bias = torch.full((length, total), -math.inf, dtype=q.dtype).triu(1 + total - length)  # (T, S)
    elif mask is not None:
        bias = torch.zeros(mask.shape, dtype=q.dtype).masked_fill(~mask, -math.inf)
        bias = bias.expand(batch, heads, -1, total).reshape(batch * heads, -1, total)  # (B * heads, 1 or T, S)
    else:
        bias = torch.zeros(1, dtype=q.dtype)
    q, k, v = (part.reshape(batch * heads, -1, head_dim) for part in (q, k, v))
    scores = torch.baddbmm(bias, q, k.transpose(1, 2), alpha=head_dim**-0.5)  # (B * heads, T, S)
    weights = F.dropout(scores.softmax(dim=-1), dropout)
    return (weights @ v).view(batch, heads, length, head_dim)


def rotary_angles(count: int, head_dim: int, device: torch.device) -> Rotation:
    """Cosine and sine, each (T, head_dim) float32, for positions 0 to count - 1 (Su et al. 2021).

    Both halves of the features have the same angles; the sine of the first half is negated, as `rotate` needs it.
    """
    exact = torch.float32  # the default type may be of half precision
    frequencies = 10_000.0 ** (-torch.arange(0, head_dim, 2, device=device, dtype=exact) / head_dim)  # (head_dim / 2,)
    angles = torch.outer(torch.arange(count, device=device, dtype=exact), frequencies)  # (T, head_dim / 2)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([cos, cos], dim=-1), torch.cat([-sin, sin], dim=-1)


def rotate(x: Tensor, rotation: Rotation) -> Tensor:
    """Rotate each pair of features of (..., T, head_dim), one from each half, by the angle of its position."""
    cos, sin = (part.to(x.dtype) for part in rotation)
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, dims=-1), sin)


def check_transformer(name: str, dropouts: dict[str, float], *, d_model: int, num_heads: int, **sizes: int) -> None:
    """Raise ValueError if a transformer cannot have these sizes."""
    for size, value in {**sizes, "d_model": d_model, "num_heads": num_heads}.items():
        if value < 1:
            raise ValueError(f"{size} {value} is too small for {name}: give at least 1")
    for option, share in dropouts.items():
        if not 0 <= share < 1:
            raise ValueError(f"{option} {share} is out of range for {name}: give a probability from 0 to below 1")
    if d_model % (2 * num_heads):
        problem = f"d_model {d_model} does not fit {name} with num_heads {num_heads}"
        raise ValueError(f"{problem}: give a multiple of {2 * num_heads}")


def sample(
    logits: Tensor,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator | None = None,
) -> int:
    """Sample a token from (vocab_size,) float logits.

    Args:
        temperature: logits are divided by it, at least 0; 0 takes the likeliest token.
        top_k: sample from this many likeliest tokens only, at least 1. None: from all.
        top_p: sample from the likeliest tokens that together have this probability, in (0, 1] (Holtzman et al. 2020).
        generator: random generator, on the CPU.
    """
    if temperature == 0:
        return int(logits.argmax())
    # The limits keep float32 from overflowing: the largest logit is 0, all others at least -inf.
    logits = (logits - logits.max()) / min(max(temperature, 1e-30), 1e30)
    if top_k is not None and top_k < len(logits):
        logits = logits.masked_fill(logits < logits.topk(top_k).values[-1], -math.inf)
    probabilities = logits.softmax(dim=0)
    if top_p is not None:
        ordered, order = probabilities.sort(descending=True)
        before = ordered.cumsum(dim=0) - ordered  # total probability of all likelier tokens
        probabilities[order[before >= max(top_p, 1e-30)]] = 0  # `before` is 0 for the likeliest
    return int(torch.multinomial(probabilities, 1, generator=generator))
