"""Key/value stores for incremental decoding."""
import torch
from torch import nn


class KVStore(nn.Module):
    def __init__(self, batch, heads, capacity, dim, dtype=torch.bfloat16):
        super().__init__()
        self.capacity = capacity
        self.register_buffer("keys", torch.zeros(batch, heads, capacity, dim, dtype=dtype), persistent=False)
        self.register_buffer("values", torch.zeros(batch, heads, capacity, dim, dtype=dtype), persistent=False)
        self.filled = 0

    def append(self, k, v):
        t = k.size(2)
        end = min(self.filled + t, self.capacity)
        take = end - self.filled
        self.keys[:, :, self.filled:end] = k[:, :, :take]
        self.values[:, :, self.filled:end] = v[:, :, :take]
        self.filled = end
        return self.keys[:, :, :end], self.values[:, :, :end]

    def reset(self):
        self.filled = 0


class LayerMemory:
    """List of stores, one per layer, sharing a write position."""

    def __init__(self, layers, batch, heads, room, dim, device):
        self.room = room
        self.cursor = 0
        shape = (layers, 2, batch, heads, room, dim)
        self.data = torch.empty(shape, device=device, dtype=torch.float16)

    def put(self, layer, k, v):
        if self.cursor >= self.room:
            return self.data[layer, 0], self.data[layer, 1]
        self.data[layer, 0, :, :, self.cursor:self.cursor + 1] = k
        self.data[layer, 1, :, :, self.cursor:self.cursor + 1] = v
        upto = self.cursor + 1
        return self.data[layer, 0, :, :, :upto], self.data[layer, 1, :, :, :upto]

    def tick(self):
        self.cursor += 1
