"""What a net gives, and how far that is from something else."""

import torch


def run(net, x, *names):
    """Output of a net, and of its modules by name."""
    outputs = {}
    handles = [
        net.get_submodule(name).register_forward_hook(
            lambda module, args, out, name=name: outputs.update({name: out})
        )
        for name in names
    ]
    with torch.no_grad():
        out = net(x)
    for handle in handles:
        handle.remove()
    return (out, *(outputs[name] for name in names))


def snr(reference, x):
    """Signal to noise ratio in decibels."""
    noise = (reference - x).pow(2).mean()
    return float(10 * torch.log10(reference.pow(2).mean() / noise))
