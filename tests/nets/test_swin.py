"""Windows, their relative positions and the shift's mask, against METHOD.md by brute force."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn

from qdmr_ray.nets import SwinSettings, swin
from qdmr_ray.nets.swin import (
    SwinBlock,
    SwinBottleneck,
    WindowAttention,
    relative_position_index,
    shift_mask,
)

# Below this a derivative counts as none: a masked position still weighs exp(-100).
NO_INFLUENCE = 1e-30


@pytest.mark.parametrize("window", [1, 2, 4, 8])
def test_relative_position_index(window: int) -> None:
    index = relative_position_index(window)
    places = list(itertools.product(range(window), repeat=2))
    side = 2 * window - 1

    assert index.shape == (window**2, window**2)
    for q, (y_query, x_query) in enumerate(places):
        for k, (y_key, x_key) in enumerate(places):
            row = (y_query - y_key + window - 1) * side + (x_query - x_key + window - 1)
            assert index[q, k] == row
    assert set(index.flatten().tolist()) == set(range(side**2))


def band(position: int, size: int, window: int, shift: int) -> int:
    """METHOD.md: all but the last window, the rest of it up to the shift, the last rows."""
    if position < size - window:
        return 0
    return 1 if position < size - shift else 2


@pytest.mark.parametrize(
    ("height", "width", "window"),
    [(4, 4, 4), (8, 8, 8), (8, 8, 4), (4, 12, 4), (12, 4, 4), (6, 9, 3), (32, 16, 8)],
)
def test_shift_mask(height: int, width: int, window: int) -> None:
    shift = window // 2
    mask = shift_mask(height, width, window, shift)
    corners = itertools.product(range(0, height, window), range(0, width, window))
    places = list(itertools.product(range(window), repeat=2))

    assert mask.shape == (height * width // window**2, window**2, window**2)
    for number, (top, left) in enumerate(corners):
        regions = [
            (band(top + y, height, window, shift), band(left + x, width, window, shift))
            for y, x in places
        ]
        wanted = [[0.0 if a == b else -100.0 for b in regions] for a in regions]
        assert mask[number].tolist() == wanted


def test_a_single_window_is_masked_too() -> None:
    mask = shift_mask(8, 8, 8, 4)
    assert mask.shape[0] == 1
    # Four quarters come together there, so a position attends to a quarter of the window.
    assert (mask == 0).sum(2).tolist() == [[16] * 64]


@pytest.mark.parametrize("masked", [False, True])
def test_attention_is_the_explicit_softmax(masked: bool) -> None:
    heads, dim, window, images = 2, 3, 2, 2
    attention = WindowAttention(heads * dim, heads, window).double()
    nn.init.normal_(attention.bias_table)
    mask = shift_mask(4, 6, window, 1).double() if masked else None
    windows = images * 6
    x = torch.randn(windows, window**2, heads * dim, dtype=torch.float64)

    found = attention(x, mask)

    qkv = x @ attention.qkv.weight.T + attention.qkv.bias
    index = relative_position_index(window)
    out = torch.empty_like(x)
    for w, head in itertools.product(range(windows), range(heads)):
        # 6 windows an image; the columns of q, k, v come head by head, dim by dim.
        q, k, v = (qkv[w, :, part * heads * dim + head * dim :][:, :dim] for part in range(3))
        logits = q @ k.T * dim**-0.5
        for i, j in itertools.product(range(window**2), repeat=2):
            logits[i, j] += attention.bias_table[index[i, j], head]
        if mask is not None:
            logits = logits + mask[w % 6]
        weights = logits.exp() / logits.exp().sum(1, keepdim=True)
        out[w, :, head * dim : (head + 1) * dim] = weights @ v
    wanted = out @ attention.projection.weight.T + attention.projection.bias
    torch.testing.assert_close(found, wanted)


def influence(block: SwinBlock, y: int, x: int, side: int) -> set[tuple[int, int]]:
    """Positions whose value changes the block's output at (y, x), on a square map."""
    mask = shift_mask(side, side, block.window, block.window // 2).double()
    tokens = torch.randn(1, side, side, 4, dtype=torch.float64, requires_grad=True)
    block(tokens, mask)[0, y, x].sum().backward()
    assert tokens.grad is not None
    seen = tokens.grad[0].abs().sum(-1) > NO_INFLUENCE
    return {(int(a), int(b)) for a, b in seen.nonzero()}


def rectangle(rows: range, columns: range) -> set[tuple[int, int]]:
    return set(itertools.product(rows, columns))


@pytest.mark.parametrize(
    ("shifted", "place", "side", "wanted"),
    [
        (False, (0, 0), 8, rectangle(range(4), range(4))),
        (False, (5, 2), 8, rectangle(range(4, 8), range(4))),
        (True, (3, 3), 8, rectangle(range(2, 6), range(2, 6))),
        (True, (0, 0), 8, rectangle(range(2), range(2))),
        (True, (7, 3), 8, rectangle(range(6, 8), range(2, 6))),
        (True, (1, 7), 8, rectangle(range(2), range(6, 8))),
        (True, (0, 3), 4, rectangle(range(2), range(2, 4))),
    ],
)
def test_positions_attend_inside_their_window_and_not_across_the_rolled_edge(
    shifted: bool, place: tuple[int, int], side: int, wanted: set[tuple[int, int]]
) -> None:
    settings = SwinSettings(heads=2, window=4, mlp_ratio=2.0)
    block = SwinBlock(4, settings, shifted=shifted).double()
    assert influence(block, *place, side) == wanted


def test_every_second_block_is_shifted(monkeypatch: pytest.MonkeyPatch) -> None:
    bottleneck = SwinBottleneck(4, SwinSettings(groups=2, blocks=5, heads=2, window=4))
    masks: list[Tensor | None] = []
    forward = WindowAttention.forward

    def recording(self: WindowAttention, x: Tensor, mask: Tensor | None) -> Tensor:
        masks.append(mask)
        return forward(self, x, mask)

    monkeypatch.setattr(WindowAttention, "forward", recording)
    bottleneck(torch.randn(1, 4, 8, 8))

    assert [mask is not None for mask in masks] == [False, True, False, True, False] * 2


def test_a_group_adds_its_convolution_to_its_input() -> None:
    bottleneck = SwinBottleneck(4, SwinSettings(groups=3, blocks=2, heads=2, window=4))
    convolutions = [bottleneck.get_submodule(f"groups.{i}.conv") for i in range(3)]
    for convolution in convolutions:
        convolution.load_state_dict(
            {name: torch.zeros_like(value) for name, value in convolution.state_dict().items()}
        )
    x = torch.randn(2, 4, 4, 8)
    assert torch.equal(bottleneck(x), x)
    nn.init.constant_(convolutions[1].get_parameter("bias"), 0.5)
    torch.testing.assert_close(bottleneck(x), x + 0.5)


def test_mask_follows_the_size_of_the_map() -> None:
    settings = SwinSettings(groups=1, blocks=2, heads=2, window=4)
    used = SwinBottleneck(4, settings).double()
    # The first two have as many windows, but not the same masks; the first comes again.
    for shape in ((8, 8), (4, 16), (16, 4), (4, 4), (8, 8)):
        fresh = SwinBottleneck(4, settings).double()
        fresh.load_state_dict(used.state_dict())
        x = torch.randn(2, 4, *shape, dtype=torch.float64)
        torch.testing.assert_close(used(x), fresh(x), rtol=0, atol=0)


def test_a_recording_makes_its_own_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one that is kept is replaced when a map of another size comes, and its memory reused."""
    bottleneck = SwinBottleneck(4, SwinSettings(groups=1, blocks=2, heads=2, window=4))
    x = torch.randn(2, 4, 8, 8)
    expected = bottleneck(x)
    kept = bottleneck._shift_mask(x)
    monkeypatch.setattr(swin, "recorded", lambda x: True)
    assert bottleneck._shift_mask(x) is not kept
    assert torch.equal(bottleneck(x), expected)
