"""What all checks are made of: say it in one sentence, call the function, compare."""

import torch


def expect(holds, message):
    """Raise AssertionError(message) unless it holds."""
    if not holds:
        raise AssertionError(message)


def normal(*shape, seed=0):
    """Standard normal float64 of a shape, the same on every call; the global generator is left alone."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def name_of(function):
    return getattr(function, "__name__", "your function")


def call(function, *args, hint=""):
    """function(*args), which may not change its tensors.

    What it raises becomes an AssertionError that names the shapes it was given and adds the hint;
    NotImplementedError stays what it is.
    """
    name = name_of(function)
    before = [arg.detach().clone() if isinstance(arg, torch.Tensor) else None for arg in args]
    try:
        result = function(*args)
    except (AssertionError, NotImplementedError):
        raise
    except Exception as error:
        shapes = ", ".join(str(tuple(arg.shape)) for arg in args if isinstance(arg, torch.Tensor))
        raise AssertionError(f"{name} raised {type(error).__name__}: {error}. Its tensors had the shapes "
                             f"{shapes or '()'}. {hint}".strip()) from error
    for i, (arg, old) in enumerate(zip(args, before)):
        if old is not None and not torch.equal(torch.nan_to_num(arg.detach()), torch.nan_to_num(old)):
            raise AssertionError(f"{name} changes its argument {i + 1} in place: the caller still needs it. "
                                 "Look for +=, *= and assignments to slices, or work on a copy.")
    return result


def tensor_like(result, shape, name):
    """The result, if it is a tensor of the shape; no sizes may have been broadcast by accident."""
    expect(isinstance(result, torch.Tensor), f"{name} returned {type(result).__name__}, not a tensor.")
    expect(tuple(result.shape) == tuple(shape),
           f"{name} returned the shape {tuple(result.shape)}; it should be {tuple(shape)}.")
    return result.detach()


def close(a, b, tolerance=1e-6):
    """Equal up to rounding, relative to the largest entry of b; nan and inf only where b has them.

    Checks hand out float64; by default the tolerance lets answers through that went by float32 on their way.
    """
    a, b = torch.as_tensor(a), torch.as_tensor(b)
    if a.shape != b.shape:
        return False
    scale = 1 + (b[b.isfinite()].abs().max().item() if b.isfinite().any() else 0)
    return torch.allclose(a.double(), b.double(), rtol=0, atol=tolerance * scale)
