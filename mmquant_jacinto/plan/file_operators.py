"""File operators: what the functions of a plan are in a file, for a target's table.

The tables of targets name operators of ONNX; a plan is made of torch functions. What
is not here is no operator with a row of its own.
"""

from collections.abc import Container, Iterable

from ..record import ops
from ..record.graph import Site
from ..targets.rules.table import GELU, PRODUCT, SILU, Rules
from .fusion import Chain, Dataflow

_TABLE: dict[str, str] = {
    'Conv': 'conv1d conv2d conv3d',
    'DeformConv': 'deform_conv2d',
    'ConvTranspose': 'conv_transpose1d conv_transpose2d conv_transpose3d',
    'Gemm': 'linear',
    PRODUCT: 'matmul bmm mm rmatmul baddbmm addmm',
    'Relu': 'relu',
    'Clip': 'relu6 hardtanh clamp clip clamp_min clamp_max',
    'Add': 'add',
    'Sub': 'sub rsub',
    'Mul': 'mul square',
    'Div': 'div truediv rdiv',
    'Concat': 'cat concat concatenate stack',
    'AveragePool': 'avg_pool1d avg_pool2d avg_pool3d',
    'GlobalAveragePool': 'adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d',
    'MaxPool': 'max_pool1d max_pool2d max_pool3d',
    'GlobalMaxPool': 'adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d',
    'ReduceMean': 'mean',
    'ReduceMax': 'amax',
    'ReduceSum': 'sum',
    'Resize': 'interpolate upsample',
    'Reshape': (
        'reshape view view_as reshape_as flatten unflatten squeeze unsqueeze alias'
    ),
    'Transpose': 'permute transpose swapaxes movedim t T mT',
    'Identity': 'contiguous clone float to type_as dropout dropout2d detach',
    'Expand': 'expand expand_as broadcast_to',
    'Split': 'chunk split',
    'Slice': 'getitem narrow',
    'Gather': 'unbind select index_select',
    'Pad': 'pad',
    'DepthToSpace': 'pixel_shuffle',
    'BatchNormalization': 'batch_norm',
    'LayerNormalization': 'layer_norm',
    'InstanceNormalization': 'instance_norm',
    'Softmax': 'softmax',
    'Sigmoid': 'sigmoid',
    'Tanh': 'tanh',
    'HardSigmoid': 'hardsigmoid',
    'HardSwish': 'hardswish',
    'LeakyRelu': 'leaky_relu',
    'PRelu': 'prelu',
    'Elu': 'elu',
    SILU: 'silu',
    GELU: 'gelu',
    'Mish': 'mish',
    'GridSample': 'grid_sample',
}
# They read the shape of a tensor alone.
_OF_SHAPES = frozenset(
    'empty_like full_like new_empty new_full new_ones new_zeros ones_like rand_like '
    'randn_like zeros_like'.split()
)
_OPERATORS = {
    function: operator
    for operator, functions in _TABLE.items()
    for function in functions.split()
}


def operator_of(site: Site) -> str:
    """The operator of ONNX that a call becomes; '' where none has a row of its own."""
    return _OPERATORS.get(site.op, '')


def weight_operator(chain: Chain, raw: Container[int]) -> str:
    """The operator of ONNX that has the weight of a layer.

    Args:
        chain (Chain): The layer and what is one with it.
        raw (Container[int]): Values that no quantized operation makes.

    Returns:
        str: Of a deformable convolution ``'Conv'`` where its result has a grid: it is
        written as a convolution over samples there.
    """
    operator = operator_of(chain.head)
    is_sampled = operator == 'DeformConv' and chain.tail.outputs[0] not in raw
    return 'Conv' if is_sampled else operator


def symmetric_groups(flow: Dataflow, chains: Iterable[Chain], rules: Rules) -> set[int]:
    """Groups of values that an operator takes, or gives, without zero point alone.

    Args:
        flow (Dataflow): Of the graph.
        chains (Iterable[Chain]): Those that are quantized.
        rules (Rules): Of the target.

    Returns:
        Set[int]: As ``flow.groups`` finds them.
    """
    heads = [(chain.head, chain.tail) for chain in chains]
    # What is not quantized itself reads what is, and is an operator of the file too.
    others = [
        (site, site)
        for site in flow.graph.sites.values()
        if site.kind in (ops.PASS, ops.CAT, ops.OTHER) and site.op not in _OF_SHAPES
    ]
    return {
        flow.groups.find(value)
        for head, tail in heads + others
        if rules.is_symmetric([operator_of(head)])
        for value in (*head.inputs, *head.places, *tail.outputs)
        if value is not None
    }
