"""Adam without ``torch.compile``'s machinery, which takes two seconds to import."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor

_MOMENTS = ("exp_avg", "exp_avg_sq")


class Adam(torch.optim.Adam):
    """``torch.optim.Adam`` to the bit, for steps that are never traced.

    PyTorch (2.6 to 2.14) wraps these methods so that ``torch.compile`` leaves them alone, and the
    first call of a wrapper imports all of ``torch._dynamo``: two of the seconds that a worker takes
    until its first step. Only the networks are compiled here, so what is wrapped is called itself.

    The fused kernel walks through a weight, its gradient and its moments in the order of memory,
    whatever their strides: moments that were saved in another layout are laid out anew, since they
    would be taken for those of other weights.
    """

    add_param_group = inspect.unwrap(torch.optim.Adam.add_param_group)
    zero_grad = inspect.unwrap(torch.optim.Adam.zero_grad)
    state_dict = inspect.unwrap(torch.optim.Adam.state_dict)
    # The wrapper of this one also switches gradients off.
    step = torch.no_grad()(inspect.unwrap(torch.optim.Adam.step))

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        inspect.unwrap(torch.optim.Adam.load_state_dict)(self, state_dict)
        for weight, state in self.state.items():
            for name in _MOMENTS:
                if state[name].stride() != weight.stride():
                    state[name] = torch.empty_like(weight).copy_(state[name])

    def _init_group(self, group: dict[str, Any], *lists: list[Tensor]) -> Any:
        # The first four lists: weights, gradients and both moments.
        answer = super()._init_group(group, *lists)
        for i, weight in enumerate(lists[0]):
            if weight.dim() == 4 and not weight.is_contiguous():
                # As they lie in memory: the kernel copies a gradient that isn't contiguous.
                for tensors in lists[:4]:
                    tensors[i] = tensors[i].permute(0, 2, 3, 1)
        return answer
