"""Keys and values of running sequences: one row each, contiguous, rows 0 to n-1 in use. Knows nothing about requests.

A step reads a plain view of the first n rows; on CPUs that is several times faster than gathering pages.
"""

from dataclasses import dataclass, field

import torch


@dataclass(slots=True)
class KVSlots:
    """One pair of tensors (rows, kv_heads, length, d) per layer that grows when needed, inside `max_bytes`.

    `shapes` maps each layer to (kv_heads, d_key, d_value).
    """

    shapes: dict[int, tuple[int, int, int]]
    dtype: torch.dtype
    device: torch.device
    max_bytes: int
    rows: int = 0
    length: int = 0
    _layers: dict[int, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)

    @property
    def bytes_per_token(self) -> int:
        """Of all layers."""
        return sum(heads * (dk + dv) for heads, dk, dv in self.shapes.values()) * self.dtype.itemsize

    @property
    def bytes(self) -> int:
        """Allocated now."""
        return self.rows * self.length * self.bytes_per_token

    def fits(self, rows: int, length: int) -> bool:
        """Whether `rows` sequences of up to `length` tokens may be held at once."""
        return rows * length * self.bytes_per_token <= self.max_bytes

    def layer(self, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys (rows, kv_heads, length, d_key) and values (rows, kv_heads, length, d_value)."""
        return self._layers[layer]

    def reserve(self, rows: int, length: int, used: int) -> None:
        """Make room for `rows` sequences of `length` tokens, keeping the first `used` rows."""
        if rows <= self.rows and length <= self.length:
            return
        rows, length = max(rows, 1), max(length, 1)
        wide = _power_of_two(rows), max(_power_of_two(length), 64)
        rows, length = wide if self.fits(*wide) else (rows, length)
        for layer, (heads, dk, dv) in self.shapes.items():
            # Zeros, not empty: a masked NaN would still spoil the sum of values.
            new = tuple(torch.zeros(rows, heads, length, d, dtype=self.dtype, device=self.device) for d in (dk, dv))
            if used:
                kept = min(length, self.length)
                for target, source in zip(new, self._layers[layer]):
                    target[:used, :, :kept] = source[:used, :, :kept]
            self._layers[layer] = (new[0], new[1])
        self.rows, self.length = rows, length

    def move(self, source: int, target: int, length: int) -> None:
        """Row `source`, `length` tokens of it, takes the place of row `target`."""
        if source == target:
            return
        for keys, values in self._layers.values():
            keys[target, :, :length] = keys[source, :, :length]
            values[target, :, :length] = values[source, :, :length]

    def free(self) -> None:
        """Give all memory back."""
        self._layers.clear()
        self.rows = self.length = 0


def _power_of_two(n: int) -> int:
    return 1 << max(n - 1, 0).bit_length()
