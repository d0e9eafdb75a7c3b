"""Operators that move elements in a file: the integers of the model, in place."""

import torch
import torch.nn.functional as F
from exactness import assert_operator_exact, each_kind, without_entry

from mmquant_jacinto.export.operators import shape
from mmquant_jacinto.export.operators.table import TRANSLATIONS
from mmquant_jacinto.record.attention import laid_out_like


def written(x, index, value):
    x = x * 1.5
    x[index] = value
    return x


# No function of torch goes by these names.
NO_CALL = ['channels_last', 'identity']
OPERATORS = {
    'reshape': lambda x: x.reshape(2, -1),
    'view': lambda x: x.view(len(x) * 4, 64),
    'flatten': lambda x: x.flatten(1),
    'unflatten': lambda x: x.unflatten(1, (2, 2)),
    'T': lambda x: x.flatten(1).T,
    'laid_out_like': lambda x: laid_out_like(x, x.transpose(1, 2)),
    'mT': lambda x: x.mT,
    'zero': lambda x: x + torch.empty_like(x).zero_(),
    'fill': lambda x: x + (x * 2).fill_(0.5),
    'repeat_interleave': lambda x: x.repeat_interleave(2, 1),
    'repeat_interleave all': lambda x: x.repeat_interleave(3),
    'view_as': lambda x, y: x.view_as(y.flatten(1)),
    'reshape_as': lambda x, y: x.reshape_as(y.flatten(1)),
    'squeeze': lambda x: x[:, :1].squeeze(1),
    'unsqueeze': lambda x: x.unsqueeze(1),
    'permute': lambda x: x.permute(0, 2, 3, 1),
    'transpose': lambda x: x.transpose(1, -1),
    'swapaxes': lambda x: x.swapaxes(1, 2),
    't': lambda x: x.flatten(1).t(),
    'movedim': lambda x: x.movedim(1, 3),
    'contiguous': lambda x: x.transpose(1, 2).contiguous(),
    'clone': lambda x: x.clone(),
    'dropout': lambda x: F.dropout(x, training=False),
    'dropout2d': lambda x: F.dropout2d(x, training=False),
    'alias': lambda x: torch.ops.aten.alias(x),
    'detach': lambda x: x.detach(),
    'requires_grad': lambda x: x.detach().requires_grad_(False),
    'float': lambda x: x.float(),
    'to': lambda x: x.to(torch.float32),
    'type_as': lambda x, y: x.type_as(y),
    'half': lambda x: x.half().float(),
    'double': lambda x: x.double().float(),
    'long': lambda x: (x * 3).long() * x,
    'int': lambda x: (x * 3).int() * x,
    'bool': lambda x: (x > 0.2).bool() * x,
    'type': lambda x: x.type(torch.float32),
    'expand': lambda x: x[:, :1].expand(-1, 3, -1, -1),
    'expand_as': lambda x, y: x[:, :1].expand_as(y),
    'broadcast_to': lambda x: torch.broadcast_to(x[:, :1], (len(x), 3, 8, 8)),
    'repeat': lambda x: x.repeat(1, 2, 1, 3),
    'tile': lambda x: x.tile(2, 1),
    'cat': lambda x, y: torch.cat([x, y], 1),
    'concat': lambda x, y: torch.concat([x, y], 2),
    'concatenate': lambda x, y: torch.concatenate([x, y], dim=3),
    'stack': lambda x, y: torch.stack([x, y], 2),
    'stack flattened': lambda x: torch.stack([x, x], 2).flatten(1, 2)[:, :5],
    'chunk': lambda x: torch.cat(x.chunk(2, 1)[::-1], 1),
    'split': lambda x: torch.cat(x.split(3, 1)[::-1], 1),
    'split_with_sizes': lambda x: torch.cat(x.split_with_sizes([1, 3], 1)[::-1], 1),
    'tensor_split': lambda x: torch.cat(x.tensor_split(3, 1)[::-1], 1),
    'unbind': lambda x: torch.stack(x.unbind(1)[::-1], 1),
    'narrow': lambda x: x.narrow(2, 1, 5),
    'select': lambda x: x.select(1, 2),
    'embedding': lambda x: F.embedding((x > 0.2).long(), torch.tensor([[0.5], [-1.0]])),
    'index_select': lambda x: x.index_select(1, torch.tensor([2, 0, 0])),
    'gather': lambda x: x.gather(
        2, torch.arange(3).view(1, 1, 3, 1).expand_as(x[:, :, :3])
    ),
    'topk': lambda x: x.flatten(2).topk(5, 2)[0],
    'topk places': lambda x: x.flatten(2).gather(2, x.flatten(2).topk(5, 2)[1]),
    'getitem': lambda x: x[..., ::2, 1:-1],
    'getitem place': lambda x: x[:, 1, None, 2],
    'getitem places': lambda x: x[:, torch.tensor([3, 1])],
    'setitem': lambda x: written(x, (Ellipsis, slice(2, 5)), x[..., :3] + 1),
    'setitem block': lambda x: written(x, (slice(None), slice(1, 3), -2), x[:, :2, 0]),
    'setitem whole': lambda x: written(x, slice(None), x.flip(1)),
    'setitem number': lambda x: written(x, (slice(None), 1), 2.5),
    'setitem mask': lambda x: written(x, x > 0.5, torch.tensor(1)),
    'setitem listed': lambda x: written(x, (slice(None), [2, 0, -1]), x[:, :3] + 1),
    'setitem listed number': lambda x: written(x, (Ellipsis, [0, 2]), 0.5),
    'setitem nothing': lambda x: written(x, (slice(None), slice(5, 2)), 3.0),
    'cummax': lambda x: x.cummax(2)[0],
    'flip': lambda x: x.flip(3),
    'roll': lambda x: torch.roll(x, (1, -2), (2, 3)),
    'pad': lambda x: F.pad(x, (1, 2, 0, 1)),
    'pad number': lambda x: F.pad(x, (1, 1), value=0.3),
    'pad reflect': lambda x: F.pad(x, (1, 2, 3, 0), 'reflect'),
    'pad replicate': lambda x: F.pad(x, (1, 2, 3, 0), 'replicate'),
    'unfold': lambda x: F.unfold(x, 3, dilation=2, stride=2),
    'pixel_shuffle': lambda x: F.pixel_shuffle(x, 2),
    'pixel_unshuffle': lambda x: F.pixel_unshuffle(x, 2),
    'channel_shuffle': lambda x: F.channel_shuffle(x, 2),
}


@each_kind(OPERATORS, but=())
def test_file_has_the_integers_of_the_model(name, kind):
    assert_operator_exact(OPERATORS[name], kind)


def test_every_operator_has_an_entry():
    assert without_entry(TRANSLATIONS, shape, OPERATORS) == NO_CALL
