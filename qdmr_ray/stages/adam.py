"""Adam without ``torch.compile``'s machinery, which takes two seconds to import."""

from __future__ import annotations

import inspect

import torch


class Adam(torch.optim.Adam):
    """``torch.optim.Adam`` to the bit, for steps that are never traced.

    PyTorch (2.6 to 2.14) wraps these methods so that ``torch.compile`` leaves them alone, and the
    first call of a wrapper imports all of ``torch._dynamo``: two of the seconds that a worker takes
    until its first step. Only the networks are compiled here, so what is wrapped is called itself.
    """

    add_param_group = inspect.unwrap(torch.optim.Adam.add_param_group)
    zero_grad = inspect.unwrap(torch.optim.Adam.zero_grad)
    state_dict = inspect.unwrap(torch.optim.Adam.state_dict)
    load_state_dict = inspect.unwrap(torch.optim.Adam.load_state_dict)
    # The wrapper of this one also switches gradients off.
    step = torch.no_grad()(inspect.unwrap(torch.optim.Adam.step))
