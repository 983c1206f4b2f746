"""A decoder-only transformer in six numbers, for planning where there is no model yet."""

from __future__ import annotations

from dataclasses import dataclass

from leptonai.core.errors import InputError


@dataclass(frozen=True, slots=True, kw_only=True)
class Transformer:
    """A GPT: token and position embeddings, equal layers of attention and feed-forward, tied output embedding.

    Args:
        num_layers: layers, >= 1.
        hidden: width of the residual stream, >= 1; a multiple of ``num_heads``.
        num_heads: attention heads, >= 1.
        sequence: tokens of one example, >= 1.
        vocabulary: tokens there are, >= 1.
        feed_forward: width inside the feed-forward part, >= 1; None: four times ``hidden``.

    Raises:
        InputError: a value lies outside its range.

    >>> gpt = Transformer(num_layers=96, hidden=12288, num_heads=96, sequence=2048, vocabulary=51200)
    >>> round(gpt.num_parameters / 1e9)
    175
    """

    num_layers: int
    hidden: int
    num_heads: int
    sequence: int
    vocabulary: int
    feed_forward: int | None = None

    def __post_init__(self) -> None:
        for name in ("num_layers", "hidden", "num_heads", "sequence", "vocabulary"):
            if getattr(self, name) < 1:
                raise InputError(f"Transformer: expected {name} >= 1, found {getattr(self, name)}")
        if self.feed_forward is not None and self.feed_forward < 1:
            raise InputError(f"Transformer: expected feed_forward >= 1, found {self.feed_forward}")
        if self.hidden % self.num_heads:
            raise InputError(
                f"Transformer: expected hidden to be a multiple of num_heads, found {self.hidden} and {self.num_heads}"
            )

    @property
    def width(self) -> int:
        """Width inside the feed-forward part."""
        return 4 * self.hidden if self.feed_forward is None else self.feed_forward

    @property
    def layer_parameters(self) -> int:
        """Trainable numbers of one layer: four attention maps, two feed-forward maps, biases, two normalisations."""
        h = self.hidden
        return 4 * h * h + 2 * h * self.width + 9 * h + self.width

    @property
    def embedding_parameters(self) -> int:
        """Trainable numbers of the token and position embeddings; the output uses the token one again."""
        return (self.vocabulary + self.sequence) * self.hidden

    @property
    def num_parameters(self) -> int:
        """All trainable numbers, the last normalisation among them."""
        return self.num_layers * self.layer_parameters + self.embedding_parameters + 2 * self.hidden
