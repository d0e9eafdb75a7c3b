"""What tests ask of a plan, and the layer that they plan most."""

from torch import nn


def conv(inputs=3, outputs=8):
    return nn.Conv2d(inputs, outputs, 1)


def chains(plan):
    """Sites of each chain, under the name of its head."""
    found = {}
    for name, step in plan.steps.items():
        found.setdefault(step.chain, []).append(name)
    return found


def activations(plan):
    return {spec.name: spec for spec in plan.activations}
