"""P: from a prompt's tokens and text embedding to an image embedding (Make-A-Video 3.1; unCLIP 2.2).

A causal transformer reads, in this order: the prompt's BPE token encodings, its CLIP text embedding, the
diffusion time, the noised image embedding, and a learned query. The output at the query is the prediction
of the clean image embedding (`prediction_type="sample"`).
"""

import math

import torch
from einops import rearrange
from torch import nn

from mavlite.config import PriorConfig
from mavlite.layers import ScalarEmbedding, attend


class TransformerBlock(nn.Module):
    """Pre-norm self-attention and a four times wider MLP, each with a residual."""

    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.project = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x, mask):                              # b n w, n n with -inf where it may not attend
        qkv = self.qkv(self.norm1(x))
        q, k, v = rearrange(qkv, "b n (three h d) -> three b h n d", three=3, h=self.heads)
        x = x + self.project(rearrange(attend(q, k, v, mask), "b h n d -> b n (h d)"))
        return x + self.mlp(self.norm2(x))


class Prior(nn.Module):
    """config: width, layers, heads. embed_dim: of CLIP embeddings. token_dim: of the token encodings."""

    def __init__(self, config: PriorConfig, *, embed_dim, token_dim, context_length):
        super().__init__()
        width = config.width
        self.embed_dim, self.token_dim, self.context_length = embed_dim, token_dim, context_length
        self.token_in = nn.Linear(token_dim, width)
        self.text_in = nn.Linear(embed_dim, width)
        self.image_in = nn.Linear(embed_dim, width)
        self.time_in = ScalarEmbedding(width)
        self.null_tokens = nn.Parameter(torch.zeros(context_length, width))
        self.null_text = nn.Parameter(torch.zeros(width))
        self.query = nn.Parameter(0.02 * torch.randn(width))
        self.position = nn.Parameter(0.02 * torch.randn(context_length + 4, width))
        self.blocks = nn.ModuleList(TransformerBlock(width, config.heads) for _ in range(config.layers))
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, embed_dim)
        causal = torch.full((context_length + 4, context_length + 4), -math.inf).triu(diagonal=1)
        self.register_buffer("causal", causal, persistent=False)

    def forward(self, x, t, *, tokens, text_embeds, drop=None):
        """x (b, embed_dim) noised image embedding; t (b,) in [0, 1]; tokens (b, n, token_dim);
        text_embeds (b, embed_dim) -> (b, embed_dim).

        drop: bool (b,), True hides the whole prompt, tokens and embedding, for guidance.
        """
        words, text = self.token_in(tokens), self.text_in(text_embeds)               # b n w, b w
        if drop is not None:
            words = torch.where(drop[:, None, None], self.null_tokens.to(words.dtype), words)
            text = torch.where(drop[:, None], self.null_text.to(text.dtype), text)
        singles = [text, self.time_in(t).to(text.dtype), self.image_in(x),
                   self.query.expand(len(x), -1).to(text.dtype)]
        sequence = torch.cat([words, torch.stack(singles, dim=1)], dim=1)            # b n+4 w
        sequence = sequence + self.position.to(sequence.dtype)
        for block in self.blocks:
            sequence = block(sequence, self.causal.to(sequence.dtype))
        return self.out(self.norm(sequence[:, -1]))                                  # at the query


def renormalise(embeds):
    """To the length sqrt(dim) of a real, scaled embedding: (b, d) -> (b, d), without touching the input."""
    return embeds * (math.sqrt(embeds.shape[-1]) / embeds.norm(dim=-1, keepdim=True).clamp(min=1e-6))


def closest(candidates, text_embeds):
    """Of n candidates (n, b, d), for each prompt the one most similar to its text embedding (b, d)."""
    similarity = torch.cosine_similarity(candidates, text_embeds[None], dim=-1)      # n b
    best = similarity.argmax(dim=0)
    return candidates[best, torch.arange(len(best), device=best.device)]


def spherical(a, b, weights):
    """Points on the arc from a to b (d,), both of one length, at `weights` (n,) in [0, 1]: (n, d).

        (sin((1 - w) theta) a + sin(w theta) b) / sin(theta),     theta the angle between a and b
    """
    theta = torch.acos(torch.cosine_similarity(a, b, dim=0).clamp(-1, 1))
    if theta < 1e-4:
        return a.expand(len(weights), -1)
    w = weights[:, None]
    return (torch.sin((1 - w) * theta) * a + torch.sin(w * theta) * b) / torch.sin(theta)
