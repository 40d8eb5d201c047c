"""Multi-token prediction: a block behind the model that predicts the token after the next.

Shape legend: transformer.py's.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from r1jax.models.block import Block, Context
from r1jax.models.caches import Before, RowCache
from r1jax.models.layer import Layer
from r1jax.models.lora import without_adapters
from r1jax.models.moe import Routing

MTP = "mtp"  # where its parameters stand


class MultiTokenPrediction(Layer):
    """DeepSeek-V3 eq 21 to 23 for one token more.

    What the model says at token l, behind its last norm, and the embedding of token l + 1 go
    through a block of their own; the model's head makes of that the logits of token l + 2. Released
    weights have the embedding first in the product, where eq 21 has it last. No
    adapters stand here.
    """

    @nn.compact
    def __call__(
        self,
        hidden_BLD: jax.Array,
        embedded_BLD: jax.Array,
        context: Context,
        before: Before | None = None,
    ) -> tuple[jax.Array, tuple[RowCache | None, Routing | None]]:
        """`embedded` are the tokens behind those of `hidden` -> what the head takes."""
        c = self.config
        both_BLD = [
            self.norm(embedded_BLD, "embedding_norm"), self.norm(hidden_BLD, "hidden_norm")
        ]  # fmt: skip
        x_BLD = self.project(
            jnp.concatenate(both_BLD, axis=2),
            "combine",
            ([2 * c.embed_dim], ["both_embeds"]),
            ([c.embed_dim], ["embed"]),
        )
        plain = without_adapters(c)
        block: Any = Block(plain, self.compute, self.mesh, sparse=c.experts is not None)
        nn.share_scope(self, block)
        x_BLD, found = block(x_BLD, context, before)
        return self.norm(x_BLD, "mtp_norm"), found
