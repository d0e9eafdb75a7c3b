"""Operators of maps in a file: the integers of the model, for any input."""

import torch.nn.functional as F
from exactness import assert_operator_exact, each_kind, pairs, sixes, without_entry

from mmquant_jacinto.export.operators import spatial
from mmquant_jacinto.export.operators.table import TRANSLATIONS

# torch calls interpolate in its place.
NO_CALL = ['upsample']
OPERATORS = {
    'max_pool1d': lambda x: F.max_pool1d(x.flatten(2), 3, 2, 1),
    'max_pool2d': lambda x: F.max_pool2d(x, 3, 2, 1),
    'max_pool2d ceil': lambda x: F.max_pool2d(x, 3, 2, ceil_mode=True),
    'max_pool3d': lambda x: F.max_pool3d(x[:, None], 2),
    'avg_pool1d': lambda x: F.avg_pool1d(x.flatten(2), 4),
    'avg_pool2d': lambda x: F.avg_pool2d(x, 2),
    'avg_pool2d whole': lambda x: F.avg_pool2d(pairs(x), (1, 2)),
    'avg_pool2d of one part': lambda x: F.avg_pool2d(sixes(x), (2, 2), 2),
    'avg_pool2d padded': lambda x: F.avg_pool2d(pairs(x), (1, 4), padding=(0, 1)),
    'avg_pool2d edges': lambda x: F.avg_pool2d(x, 2, 2, 1, count_include_pad=False),
    'avg_pool1d whole': lambda x: F.avg_pool1d(pairs(x).squeeze(2), 2),
    'avg_pool3d': lambda x: F.avg_pool3d(x[:, None], 2),
    'adaptive_avg_pool1d': lambda x: F.adaptive_avg_pool1d(x.flatten(2), 4),
    'adaptive_avg_pool2d': lambda x: F.adaptive_avg_pool2d(x, 1),
    'adaptive_avg_pool2d of two': lambda x: F.adaptive_avg_pool2d(pairs(x), 1),
    'adaptive_avg_pool2d of six': lambda x: F.adaptive_avg_pool2d(sixes(x), 1),
    'adaptive_avg_pool2d to rows of six': lambda x: F.adaptive_avg_pool2d(
        sixes(x), (2, 1)
    ),
    'avg_pool1d of three': lambda x: F.avg_pool1d(sixes(x).flatten(2), 3),
    'adaptive_avg_pool2d parts': lambda x: F.adaptive_avg_pool2d(x, (2, 4)),
    'adaptive_max_pool2d uneven': lambda x: F.adaptive_max_pool2d(x, (3, 5)),
    'adaptive_avg_pool3d': lambda x: F.adaptive_avg_pool3d(x[:, None], 2),
    'adaptive_max_pool1d': lambda x: F.adaptive_max_pool1d(x.flatten(2), 4),
    'adaptive_max_pool2d': lambda x: F.adaptive_max_pool2d(x, 2),
    'adaptive_max_pool3d': lambda x: F.adaptive_max_pool3d(x[:, None], 2),
    'interpolate nearest': lambda x: F.interpolate(x, scale_factor=2),
    'interpolate nearest odd': lambda x: F.interpolate(x, (13, 11)),
    'interpolate nearest exact': lambda x: F.interpolate(
        x, (13, 11), mode='nearest-exact'
    ),
    'interpolate nearest part': lambda x: F.interpolate(x[..., 1:], scale_factor=0.5),
    'interpolate part nearest': lambda x: F.interpolate(x[..., :3], scale_factor=1.5),
    'interpolate bicubic': lambda x: F.interpolate(x, (13, 11), mode='bicubic'),
    'grid_sample border': lambda x, y: F.grid_sample(
        x, y.permute(0, 2, 3, 1)[..., :2], padding_mode='border', align_corners=False
    ),
    'grid_sample nearest': lambda x, y: F.grid_sample(
        x, y.permute(0, 2, 3, 1)[..., :2], mode='nearest', align_corners=False
    ),
}


@each_kind(OPERATORS, but=())
def test_file_has_the_integers_of_the_model(name, kind):
    assert_operator_exact(OPERATORS[name], kind)


def test_every_operator_has_an_entry():
    assert without_entry(TRANSLATIONS, spatial, OPERATORS) == NO_CALL
