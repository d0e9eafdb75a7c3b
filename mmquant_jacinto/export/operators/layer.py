"""Operators of layers: convolutions, products, normalizations."""

from __future__ import annotations

import torch

from ...record.ops import per_axis
from ..graph.graph_writer import DEFORM_OPSET
from .translation import (
    axis_of,
    translates,
)


@translates('conv1d', 'conv2d', 'conv3d')
def _conv(site, x, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
    dims = x.dim() - 2
    dilation, stride = per_axis(dilation, dims), per_axis(stride, dims)
    kernel = list(weight.shape[2:])
    if padding == 'valid':
        padding = 0
    if padding == 'same':
        total = [d * (k - 1) for d, k in zip(dilation, kernel)]
        before = [t // 2 for t in total]
        pads = before + [t - b for t, b in zip(total, before)]
    else:
        pads = per_axis(padding, dims) * 2
    return site.node(
        'Conv',
        x,
        weight,
        bias,
        kernel_shape=kernel,
        strides=stride,
        pads=pads,
        dilations=dilation,
        group=groups,
    )


@translates('conv_transpose1d', 'conv_transpose2d', 'conv_transpose3d')
def _conv_transpose(
    site,
    x,
    weight,
    bias=None,
    stride=1,
    padding=0,
    output_padding=0,
    groups=1,
    dilation=1,
):
    dims = x.dim() - 2
    return site.node(
        'ConvTranspose',
        x,
        weight,
        bias,
        kernel_shape=list(weight.shape[2:]),
        strides=per_axis(stride, dims),
        pads=per_axis(padding, dims) * 2,
        output_padding=per_axis(output_padding, dims),
        dilations=per_axis(dilation, dims),
        group=groups,
    )


@translates('deform_conv2d')
def _deform_conv(
    site,
    x,
    weight,
    bias,
    offset,
    mask,
    stride=1,
    padding=0,
    dilation=1,
    groups=1,
    deform_groups=1,
    *_,  # how mmcv cuts the batch
):
    if offset.shape[2:] != site.out.shape[2:]:
        # mmcv reads the first of them; ONNX has no such thing.
        raise NotImplementedError('offsets of another size than the output')
    site.writer.require(DEFORM_OPSET)
    return site.node(
        'DeformConv',
        x,
        weight,
        offset,
        bias,
        mask,
        kernel_shape=list(weight.shape[2:]),
        strides=per_axis(stride, 2),
        pads=per_axis(padding, 2) * 2,
        dilations=per_axis(dilation, 2),
        group=groups,
        offset_group=deform_groups,
    )


@translates('linear')
def _linear(site, x, weight, bias=None):
    if x.dim() == 2:
        return site.node('Gemm', x, weight, bias, transB=1)
    flat = site.reshape(x, (-1, x.shape[-1]))
    out = site.node('Gemm', flat, weight, bias, transB=1)
    return site.reshape(out, site.out.shape)


@translates('matmul', 'bmm', 'mm')
def _matmul(site, x, y):
    return site.node('MatMul', x, y)


@translates('rmatmul')
def _rmatmul(site, x, y):
    return site.node('MatMul', y, x)


@translates('baddbmm')
def _baddbmm(site, x, first, second, *, beta=1, alpha=1):
    product = site.node('MatMul', first, second)
    if alpha != 1:
        product = site.node('Mul', product, alpha)
    return site.node('Add', product, x if beta == 1 else site.node('Mul', x, beta))


@translates('addmm')
def _addmm(site, x, first, second, *, beta=1, alpha=1):
    return _baddbmm(site, x, first, second, beta=beta, alpha=alpha)


@translates('einsum')
def _einsum(site, equation, *operands):
    if len(operands) == 1 and isinstance(operands[0], (list, tuple)):
        (operands,) = operands
    return site.node('Einsum', *operands, equation=equation.replace(' ', ''))


@translates('batch_norm')
def _batch_norm(
    site,
    x,
    running_mean,
    running_var,
    weight=None,
    bias=None,
    training=False,
    momentum=0.1,
    eps=1e-5,
):
    ones = torch.ones_like(running_mean)
    weight = ones if weight is None else weight
    bias = torch.zeros_like(running_mean) if bias is None else bias
    return site.node(
        'BatchNormalization', x, weight, bias, running_mean, running_var, epsilon=eps
    )


@translates('layer_norm')
def _layer_norm(site, x, normalized_shape, weight=None, bias=None, eps=1e-5):
    weight = torch.ones(tuple(normalized_shape)) if weight is None else weight
    return site.node(
        'LayerNormalization', x, weight, bias, axis=-len(normalized_shape), epsilon=eps
    )


@translates('group_norm')
def _group_norm(site, x, num_groups, weight=None, bias=None, eps=1e-5):
    # As ONNX had it before opset 21 had one that fits: instances of groups.
    count = x.shape[1:].numel() // num_groups
    grouped = site.reshape(x, (x.shape[0], num_groups, count))
    ones, zeros = torch.ones(num_groups), torch.zeros(num_groups)
    out = site.node('InstanceNormalization', grouped, ones, zeros, epsilon=eps)
    out = site.reshape(out, x.shape)
    shape = (1, -1) + (1,) * (x.dim() - 2)
    if weight is not None:
        out = site.node('Mul', out, weight.view(shape))
    return out if bias is None else site.node('Add', out, bias.view(shape))


@translates('instance_norm')
def _instance_norm(
    site,
    x,
    running_mean=None,
    running_var=None,
    weight=None,
    bias=None,
    use_input_stats=True,
    momentum=0.1,
    eps=1e-5,
):
    channels = x.shape[1]
    weight = torch.ones(channels) if weight is None else weight
    bias = torch.zeros(channels) if bias is None else bias
    return site.node('InstanceNormalization', x, weight, bias, epsilon=eps)


@translates('normalize')
def _normalize(site, x, p=2.0, dim=1, eps=1e-12, out=None):
    if p not in (1, 2):
        raise NotImplementedError(f'p={p}')
    norm = site.node(f'ReduceL{int(p)}', x, axes=[axis_of(dim, x.dim())])
    return site.node('Div', x, site.node('Max', norm, eps))
