"""Small networks, drawn from the table of functions in all forms of calling them."""

import torch
import torch.nn.functional as F
from torch import nn

SIZE = 6  # of maps, which have 4 channels


def positive(x):
    return x.abs() + 0.1


def of_shape(x, like):
    """As much of a tensor as there is room for in another's shape."""
    flat = x.reshape(-1)
    times = -(-like.numel() // max(flat.numel(), 1))
    return flat.repeat(times)[: like.numel()].reshape(like.shape)


def written(x, write):
    """A tensor, after something was written into it."""
    x = x * 1.5
    write(x)
    return x


UNARY = {
    'relu': (F.relu, torch.relu, lambda x: F.relu(input=x), lambda x: x.relu()),
    'relu6': (F.relu6, lambda x: F.hardtanh(x, 0.0, 6.0), nn.ReLU6()),
    'clamp': (
        lambda x: x.clamp(-1, 1),
        lambda x: torch.clamp(x, max=0.5),
        lambda x: x.clamp(min=0.25),
        lambda x: torch.clamp_min(x, -0.5),
        lambda x: F.hardtanh(x),
    ),
    'neg': (lambda x: -x, torch.neg),
    'sigmoid': (torch.sigmoid, F.sigmoid, lambda x: x.sigmoid()),
    'silu': (F.silu, F.hardswish, F.hardsigmoid, F.leaky_relu),
    'abs': (torch.abs, lambda x: x.abs(), lambda x: abs(x)),
    'square': (torch.square, lambda x: x**2, lambda x: x.pow(2), lambda x: x * x),
    'softmax': (
        lambda x: x.softmax(-1),
        lambda x: F.softmax(x, dim=1 if x.dim() > 1 else 0),
        lambda x: torch.softmax(x, 0),
    ),
    'scalar': (
        lambda x: x + 1,
        lambda x: 1 + x,
        lambda x: 1 - x,
        lambda x: x - 1,
        lambda x: 2 * x,
        lambda x: x * 1.0,
        lambda x: x + 0,
        lambda x: x / 1,
        lambda x: x / 3,
        lambda x: torch.rsub(x, 2),
        lambda x: torch.add(x, 3, alpha=2),
        lambda x: torch.mul(input=x, other=0.5),
        lambda x: x.sub(torch.tensor(0.5)),
        lambda x: x**1,
    ),
    'mean': (
        lambda x: x.mean(-1, keepdim=True),
        lambda x: x.mean(dim=0, keepdim=True),
        lambda x: torch.mean(x, tuple(range(x.dim())), True),
    ),
    'amax': (lambda x: x.amax(-1, keepdim=True), lambda x: x.amax(0)),
    'dropout': (lambda x: F.dropout(x, training=False), lambda x: x.clone()),
    'empty': (lambda x: torch.cat([x, x[:0]]), lambda x: torch.cat([x[:0], x])),
    'scale of nothing': (lambda x: x * x.new_tensor(2.0), lambda x: x + x.new_ones(())),
}
# Kernels differ in the last bits of these.
STEEP = {
    'reflected': (
        lambda x: 1 / positive(x),
        lambda x: 2 ** x.clamp(-2, 2),
        lambda x: torch.pow(2.0, x.clamp(-2, 2)),
        lambda x: 1 / (1 + (-8 * x.clamp(-4, 4)).exp()),
        lambda x: 3.0 / torch.sqrt(x.square() + 0.1),
    ),
    'root': (
        lambda x: positive(x).sqrt(),
        lambda x: positive(x).rsqrt(),
        lambda x: positive(x) ** 0.5,
        lambda x: positive(x).log(),
        lambda x: positive(x).reciprocal(),
        lambda x: torch.log(input=positive(x)),
    ),
    'smooth': (
        torch.tanh,
        F.gelu,
        F.mish,
        F.softplus,
        F.elu,
        F.selu,
        F.celu,
        F.logsigmoid,
        lambda x: x.clamp(-2, 2).exp(),
        lambda x: x.log_softmax(-1),
        lambda x: F.softmin(x, -1),
        lambda x: F.normalize(x, dim=-1),
        lambda x: x.sum(-1, keepdim=True),
    ),
    'ratio': (
        lambda x: x / positive(x).mean(-1, keepdim=True),
        lambda x: x.div(other=positive(x)),
        lambda x: x.clamp(-3, 3).exp() / x.clamp(-3, 3).exp().sum(-1, keepdim=True),
        lambda x: x * torch.rsqrt((x * x).mean(-1, keepdim=True) + 0.1),
    ),
    'normalization': (
        lambda x: F.layer_norm(x, x.shape[-1:]),
        lambda x: F.instance_norm(x) if x.dim() == 4 and x.shape[-1] > 1 else x,
    ),
}
BINARY = {
    'add': (
        lambda x, y: x + y,
        lambda x, y: y + x,
        lambda x, y: torch.add(x, other=y),
        lambda x, y: torch.add(input=x, other=y, alpha=2),
        lambda x, y: x.add(y, alpha=0.5),
        lambda x, y: torch.add(x, y, out=torch.empty_like(x)),
    ),
    'sub': (lambda x, y: x - y, torch.sub, lambda x, y: torch.rsub(x, y)),
    'mul': (
        lambda x, y: x * y,
        torch.mul,
        lambda x, y: torch.mul(x, y, out=torch.empty_like(x)),
        lambda x, y: x * y.sigmoid(),
    ),
    'maximum': (torch.maximum, torch.minimum),
    'cat': (
        lambda x, y: torch.cat([x, y], -1),
        lambda x, y: torch.cat((x, 2 * y), dim=0),
        lambda x, y: torch.cat(tensors=[y, x], dim=0),
        lambda x, y: torch.stack([x, y], 1),
        lambda x, y: torch.cat([x, x.new_ones(x.shape)], -1),
    ),
    'matmul': (
        lambda x, y: x @ y.transpose(-1, -2) if x.dim() > 1 else x * y,
        lambda x, y: torch.matmul(x.flatten(1), y.flatten(1).t()),
        lambda x, y: torch.einsum('i,j->ij', x.flatten()[:9], y.flatten()[:9]),
    ),
}
MOVES = {
    'reshape': (
        lambda x: x.reshape(-1),
        lambda x: x.flatten(1) if x.dim() > 1 else x,
        lambda x: x.unsqueeze(0),
        lambda x: x.squeeze(),
        lambda x: x.contiguous().view(-1, x.shape[-1]),
        lambda x: x.unflatten(0, (1, -1)),
        lambda x: x[None],
    ),
    'permute': (
        lambda x: x.transpose(0, -1),
        lambda x: x.permute(*range(x.dim())[::-1]),
        lambda x: x.movedim(0, -1),
        lambda x: x.mT if x.dim() > 1 else x,
        lambda x: x.swapaxes(0, -1).contiguous(),
    ),
    'parts': (
        lambda x: x[..., ::2],
        lambda x: x[:1],
        lambda x: x[..., -1],
        lambda x: x.chunk(2, -1)[0],
        lambda x: torch.split(x, 1, dim=0)[-1],
        lambda x: x.unbind(-1)[0],
        lambda x: x.narrow(-1, 0, 1),
        lambda x: x.select(0, 0),
        lambda x: torch.index_select(x, 0, torch.tensor([0])),
    ),
    'order': (
        lambda x: x.flip(-1),
        lambda x: x.roll(1, -1),
        lambda x: torch.tile(x, (2,)),
        lambda x: x.repeat_interleave(2, -1),
        lambda x: x.expand(2, *x.shape),
    ),
    'pad': (
        lambda x: F.pad(x, (1, 1)),
        lambda x: F.pad(x, (1, 0), value=0.37),
        lambda x: F.pad(x, (0, 1), value=40.0),
        lambda x: F.pad(x, (1, 1), 'constant', -3.0),
        lambda x: F.pad(x, (1, 1), mode='replicate') if x.dim() == 4 else x,
        lambda x: x.masked_fill(x > 0.5, 0),
        lambda x: x.masked_fill(x > 0.5, 0.75),
        lambda x: torch.where(x > 0, x, -x),
    ),
}
MAPS = {
    'max_pool': (
        lambda x: F.max_pool2d(x, 2),
        lambda x: F.max_pool2d(x, 3, 2, 1),
        lambda x: F.max_pool2d(x, 2, 2, ceil_mode=True),
        lambda x: F.adaptive_max_pool2d(x, 1),
    ),
    'avg_pool': (
        lambda x: F.avg_pool2d(x, 2),
        lambda x: F.avg_pool2d(x, 3, 2, 1, ceil_mode=True),
        lambda x: F.avg_pool2d(x, 3, 1, 1, count_include_pad=False),
        lambda x: F.avg_pool2d(x, kernel_size=3, stride=2, ceil_mode=True),
        lambda x: F.avg_pool2d(x, 3, 1, 1, divisor_override=4),
        lambda x: F.adaptive_avg_pool2d(x, 1),
    ),
    'resize': (
        lambda x: F.interpolate(x, scale_factor=2),
        lambda x: F.interpolate(x, scale_factor=2, mode='bilinear'),
        lambda x: F.interpolate(x, (5, 7), mode='bilinear', align_corners=True),
        lambda x: F.interpolate(input=x, size=(5, 4), mode='nearest'),
    ),
    'space': (
        lambda x: (
            F.pixel_unshuffle(x, 2) if x.shape[-1] % 2 == 0 == x.shape[-2] % 2 else x
        ),
        lambda x: F.pixel_shuffle(x, 2) if x.shape[1] % 4 == 0 else x,
        lambda x: F.unfold(x, 2),
        lambda x: F.group_norm(x, 1),
        lambda x: x.contiguous(memory_format=torch.channels_last),
    ),
}
WRITES = {
    'whole': (
        lambda x: written(x, lambda x: x.add_(1)),
        lambda x: written(x, lambda x: x.mul_(2)),
        lambda x: written(x, lambda x: x.relu_()),
        lambda x: written(x, lambda x: F.relu(x, inplace=True)),
        lambda x: written(x, lambda x: x.sigmoid_()),
        lambda x: written(x, lambda x: x.masked_fill_(x > 0, 0)),
        lambda x: written(x, lambda x: x.clamp_(0, 1)),
        lambda x: written(x, lambda x: x.zero_()) + x,
    ),
    'part': (
        lambda x: written(x, lambda x: x[:1].mul_(2)),
        lambda x: written(x, lambda x: x[..., :1].add_(1)),
        lambda x: written(x, lambda x: x[..., 1:].relu_()),
        lambda x: written(x, lambda x: x[..., ::2].mul_(0.5)),
        lambda x: written(x, lambda x: x.transpose(0, -1)[:1].neg_()),
        lambda x: written(x, lambda x: x[..., :1].sigmoid_()),
        lambda x: written(x, lambda x: x[:1].masked_fill_(x[:1] > 0, 0)),
    ),
    'assignment': (
        lambda x: written(x, lambda x: x.__setitem__((..., slice(0, 1)), 0.5)),
        lambda x: written(x, lambda x: x.__setitem__(x > 1, 0.0)),
        lambda x: written(x, lambda x: x[:1].__setitem__(slice(None), x[:1] * 2)),
        lambda x: written(x.new_zeros(x.shape) + x, lambda y: y[:1].add_(x[:1])),
    ),
    'all through a view': (
        lambda x: written(x, lambda x: x.view(-1).add_(1)),
        lambda x: written(x, lambda x: x.view(-1).mul_(x.view(-1))),
        lambda x: written(x, lambda x: x.reshape(-1)[:2].add_(x.reshape(-1)[:2])),
        lambda x: (lambda y: (lambda v: (y.add_(1), v * 2)[1])(y.view(-1)))(x * 1.5),
        lambda x: (lambda y: (lambda v: (y.relu_(), v + 1)[1])(y[:1]))(x * 1.5),
    ),
}
TABLES = {
    'unary': UNARY,
    'steep': STEEP,
    'binary': BINARY,
    'moves': MOVES,
    'maps': MAPS,
    'writes': WRITES,
}
# Their results lie on the grids of their operands, as those of all moves do.
SHARING = {'cat', 'amax', 'dropout', 'empty', 'max_pool', 'resize', 'space'}
# How a call is made is part of its choice.
CALLS = [
    (kind, name, form)
    for kind, table in TABLES.items()
    for name, forms in table.items()
    for form in range(len(forms))
]


class RandomGraph(nn.Module):
    """A convolution, calls on what was computed before, and a layer.

    Args:
        calls (List[Tuple[int, int, int]]): Of each, its index in :data:`CALLS` and
            which of the earlier results it reads.
        returns_all (bool): Whether it returns the last result as well as the layer.
    """

    def __init__(self, calls, returns_all=False):
        super().__init__()
        self.calls, self.returns_all = calls, returns_all
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.between = nn.Conv2d(4, 4, 1)
        width = self.compute(torch.zeros(2, 3, SIZE, SIZE))[-1].shape[-1:]
        self.last = nn.Linear(*(width or (1,)), 3)

    @property
    def is_exact(self):
        return not any(CALLS[call][0] == 'steep' for call, _, _ in self.calls)

    def compute(self, x, noise=()):
        """Results of all calls.

        Args:
            x (Tensor): (2, 3, SIZE, SIZE).
            noise (Sequence[float]): Largest error to add to each result.
        """
        results, self.made = [], []

        def add(out, *operands):
            if len(noise) > len(results):
                out = out + (torch.rand_like(out) * 2 - 1) * noise[len(results)]
            results.append(out)
            self.made.append(operands)

        add(self.first(x))
        for call, first, second in self.calls:
            kind, name, form = CALLS[call]
            function = TABLES[kind][name][form]
            operands = [-1 - first % len(results) + len(results)]
            x = results[operands[0]]
            is_map = x.dim() == 4 and min(x.shape[2:]) >= 3
            if x.dim() == 0 or not x.numel() or (kind == 'maps' and not is_map):
                operands, x = [0], results[0]
            if kind == 'binary':
                operands.append(-1 - second % len(results) + len(results))
                out = function(x, of_shape(results[operands[1]], x))
            else:
                out = function(x)
            if out.dim() == 4 and out.shape[1] == 4 and second % 3 == 0:
                out, operands = self.between(out), []
            if out.numel() <= 4096 and out.dim() < 6:
                add(out, *(operands if kind == 'moves' or name in SHARING else []))
        return results

    def forward(self, x, noise=()):
        x = self.compute(x, noise)[-1]
        out = self.last(x if x.dim() else x[None])
        return (out, x) if self.returns_all else out


def decibels(signal, noisy):
    noise = (signal.double() - noisy.double()).square().mean().clamp_min(1e-30)
    return float(10 * torch.log10(signal.double().square().mean() / noise))


def is_well_conditioned(net, x):
    """Whether noise of a ten thousandth stays about as small; in float.

    And that of 16 bits in all results, each on one grid with those that it shares one
    with: of scores beside pixels, these have what is left.
    """
    with torch.no_grad():
        reference = net(x)
        if not reference.isfinite().all() or not reference.any():
            return False
        noisy = [net(x * (1 + 1e-4 * torch.randn_like(x))) for _ in range(3)]
        if min(decibels(reference, item) for item in noisy) <= 65:
            return False
        steps = grid_steps(net, x)
        noisy = [net(x, steps) for _ in range(3)]
    return min(decibels(reference, item) for item in noisy) > 53


def grid_steps(net, x):
    """A step of 16 bits of each result, of the widest that it shares a grid with."""
    results = net.compute(x)
    zero = x.new_zeros(1)
    ranges = [torch.cat([zero, item.reshape(-1)]).aminmax() for item in results]
    sizes = [float(high - low) for low, high in ranges]
    groups = list(range(len(results)))
    for index, operands in enumerate(net.made):
        for operand in operands:
            old, new = groups[index], groups[operand]
            groups = [new if group == old else group for group in groups]
    widest = {
        group: max(size for size, other in zip(sizes, groups) if other == group)
        for group in groups
    }
    return [widest[group] / 2**16 for group in groups]
