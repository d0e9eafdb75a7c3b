"""Images of a config's test set, for the tools beside this file."""

import copy
from typing import Any

from mmengine.config import Config
from mmengine.registry import FUNCTIONS

from mmquant_jacinto.export.configs.image_sources import open_dataset
from mmquant_jacinto.report.build import Images


def images_of_test(cfg: Config, count: int) -> Any:
    """Images of the test set, each a batch of its own, evenly spread.

    Args:
        cfg: Its ``test_dataloader`` is used.
        count: How many at most.
    """
    if not count:
        return ()
    collate = copy.deepcopy(
        cfg.test_dataloader.get('collate_fn', dict(type='pseudo_collate'))
    )
    if callable(collate):
        return Images(open_dataset(cfg), collate, count)
    function = FUNCTIONS.get(collate.pop('type'))
    return Images(open_dataset(cfg), lambda items: function(items, **collate), count)
