"""Adam without ``torch.compile``'s machinery, which takes two seconds to import."""

import inspect
from typing import Any

import torch
from torch import Tensor


class Adam(torch.optim.Adam):
    """``torch.optim.Adam`` to the bit, for steps that are never traced.

    PyTorch (2.6 to 2.14) wraps these methods so that ``torch.compile`` leaves them alone, and the
    first call of a wrapper imports all of ``torch._dynamo``: two of the seconds before a worker's
    first step. Only the networks are compiled here, so this class calls the wrapped methods.

    The fused kernel walks through a weight, its gradient and its moments in the order of memory,
    whatever their strides. Moments saved in another layout are therefore laid out anew; the kernel
    would take them for those of other weights.
    """

    # The learning rate as it was set last; unknown where a checkpoint has set it.
    _rate: float | None = None

    add_param_group = inspect.unwrap(torch.optim.Adam.add_param_group)
    zero_grad = inspect.unwrap(torch.optim.Adam.zero_grad)
    # This wrapper also switches gradients off.
    step = torch.no_grad()(inspect.unwrap(torch.optim.Adam.step))

    def prepare_for_recording(self) -> None:
        """Lets a CUDA graph hold the step: learning rates become tensors, which it reads anew."""
        for group in self.param_groups:
            group["capturable"] = True
            group["lr"] = torch.tensor(group["lr"], device=group["params"][0].device)

    def set_rate(self, rate: float) -> None:
        """Sets the learning rate of every group, and asks nothing of the GPU where it is set
        already."""
        if rate == self._rate:
            return
        self._rate = rate
        for group in self.param_groups:
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate

    def state_dict(self) -> dict[str, Any]:
        """Returns the checkpoint state, which is the same with and without a recording."""
        state: dict[str, Any] = inspect.unwrap(torch.optim.Adam.state_dict)(self)
        for group in state["param_groups"]:
            group.update(lr=float(group["lr"]), capturable=False)
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._rate = None
        own = [(group["lr"], group["capturable"]) for group in self.param_groups]
        inspect.unwrap(torch.optim.Adam.load_state_dict)(self, state_dict)
        for group, (rate, capturable) in zip(self.param_groups, own, strict=True):
            group["capturable"] = capturable
            if isinstance(rate, Tensor):
                group["lr"] = rate.fill_(group["lr"])
        for weight, state in self.state.items():
            for name in ("exp_avg", "exp_avg_sq"):
                if state[name].stride() != weight.stride():
                    state[name] = torch.empty_like(weight).copy_(state[name])

    def _init_group(self, group: dict[str, Any], *lists: list[Tensor]) -> Any:
        # The first four lists are the weights, the gradients and both moments.
        answer = super()._init_group(group, *lists)
        for i, weight in enumerate(lists[0]):
            if weight.dim() == 4 and not weight.is_contiguous():
                # Views in memory order, since the kernel copies a gradient that isn't contiguous.
                for tensors in lists[:4]:
                    tensors[i] = tensors[i].permute(0, 2, 3, 1)
        return answer
