# The backbone starts from ImageNet, as users' do: what its channels hold is less even
# than after a training from scratch on few images.
_base_ = 'ssd_mobilenet_fpn.py'
work_dir = 'work_dirs/bccd/ssd_mobilenet_imagenet_fpn'
pretrained = '{{$MMQUANT_PRETRAINED:../shared/pretrained}}'
model = dict(
    backbone=dict(
        init_cfg=dict(
            type='Pretrained', checkpoint=f'{pretrained}/mobilenet_v2_imagenet.pth'
        )
    )
)
