"""Where numbers first go wrong: the one question after a loss that is NaN."""

import torch


@torch.no_grad()
def first_not_finite(network, calls):
    """Name the first tensor that is not finite when `calls`, each of which evaluates `network`, are run.

    Looked at in order: the network's parameters, what the network is given (data, noise, conditions), and the
    outputs of its modules as they are computed. Returns None if all of them are finite.
    """
    for name, p in network.named_parameters():
        if not p.isfinite().all():
            return f"the weight {name}"
    found = []

    def look(tensors, what):
        for key, tensor in tensors:
            if torch.is_tensor(tensor) and not tensor.isfinite().all():
                found.append(what.format(key))

    def given(module, args, kwargs):
        look([*enumerate(args), *kwargs.items()], "input {} of the network (data, noise or condition)")

    hooks = [network.register_forward_pre_hook(given, with_kwargs=True)]
    for name, module in network.named_modules():
        if name:
            hooks.append(module.register_forward_hook(
                lambda module, args, out, name=name: look([(name, out)], "the output of {}")))
    try:
        for call in calls:
            call()
    finally:
        for hook in hooks:
            hook.remove()
    return found[0] if found else None
