"""Token cost of an image, from the section "Calculating costs" of OpenAI's images and vision guide
(developers.openai.com, as of 2026)."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, floor, sqrt

from orchestrate.data.rows.traits import Picture

_LONGEST, _SHORTEST, _TILE = 2048, 768, 512
"""Size limits in pixels. An image is scaled to fit a square of the first size, then its shorter side is
scaled down to the second. The result is split into tiles."""
_PATCH, _MOST_PATCHES = 32, 1536


@dataclass(frozen=True)
class _Tiles:
    """`base` tokens, and `tile` for each tile in high detail."""

    base: int
    tile: int

    def tokens(self, width: int, height: int) -> int:
        scale = min(1.0, _LONGEST / max(width, height))
        scale = min(scale, max(_SHORTEST / min(width, height), 0.0))
        across, down = (ceil(round(side * scale, 6) / _TILE) for side in (width, height))
        return self.base + self.tile * across * down

    def low(self) -> int:
        return self.base


@dataclass(frozen=True)
class _Patches:
    """One token for each patch, times `factor`."""

    factor: float

    def tokens(self, width: int, height: int) -> int:
        across, down = ceil(width / _PATCH), ceil(height / _PATCH)
        if across * down > _MOST_PATCHES:
            scale = sqrt(_PATCH**2 * _MOST_PATCHES / (width * height))
            wide, high = width * scale / _PATCH, height * scale / _PATCH
            shrink = min(floor(wide) / wide, floor(high) / high)
            across, down = ceil(round(wide * shrink, 6)), ceil(round(high * shrink, 6))
        return ceil(min(across * down, _MOST_PATCHES) * self.factor)

    def low(self) -> int:
        """Count the patches at low detail, which limits the image to 512 pixels in width and height."""
        return ceil((_TILE // _PATCH) ** 2 * self.factor)


_RULES: dict[str, _Tiles | _Patches] = {
    "gpt-4o-mini": _Tiles(2833, 5667),
    "gpt-4.1-mini": _Patches(1.62),
    "gpt-4.1-nano": _Patches(2.46),
    "o4-mini": _Patches(1.72),
    "gpt-4o": _Tiles(85, 170),
    "gpt-4.1": _Tiles(85, 170),
    "gpt-4.5": _Tiles(85, 170),
}
"""Rules for the token count of an image, keyed by model name prefix. Longer prefixes come first."""
_SIZES = ((512, 512), (1024, 1024), (_LONGEST, _SHORTEST))
"""Small, typical and largest size in pixels, assumed for images whose size is unknown."""


def tokens(model: str, picture: Picture) -> tuple[int, int, int] | None:
    """Return the minimum, typical and maximum token count of an image for a model, or `None` if OpenAI
    publishes no rule for the model. The three counts differ if the image's size is unknown or the host
    chooses the detail (`auto`)."""
    rule = next((found for name, found in _RULES.items() if model.startswith(name)), None)
    if rule is None:
        return None
    if picture.detail == "low":
        return rule.low(), rule.low(), rule.low()
    if picture.width is None or picture.height is None:
        least, likely, most = (rule.tokens(*size) for size in _SIZES)
    else:
        least = likely = most = rule.tokens(picture.width, picture.height)
    return (least, likely, most) if picture.detail == "high" else (min(rule.low(), least), likely, most)
