# SSD-MobileNetV2 as TensorFlow's detection zoo trained it on COCO, on photographs of
# COCO that may be passed on. The folder with weights, model definition and photographs
# is $MMQUANT_PRETRAINED.
_base_ = [
    'mmdet::_base_/datasets/coco_detection.py',
    'mmdet::_base_/schedules/schedule_1x.py',
    'mmdet::_base_/default_runtime.py',
]
# Below _base_, which MMEngine wants to see first in a config that imports.
import importlib  # noqa: E402
import sys  # noqa: E402

work_dir = 'work_dirs/pretrained/ssd_mobilenetv2'
pretrained = '{{$MMQUANT_PRETRAINED:../shared/pretrained}}'
if pretrained not in sys.path:
    sys.path.append(pretrained)
definition = importlib.import_module('tf_ssd_mobilenet_v2')
custom_imports = dict(imports=['mmquant_jacinto', 'tf_ssd_mobilenet_v2'])
model = definition.model()
load_from = f'{pretrained}/tf_ssd_mobilenet_v2_coco_fp16.pth'
folder = f'{pretrained}/coco_free/'
test_pipeline = definition.test_pipeline()
load, resize, annotations, pack = test_pipeline
train_pipeline = [
    load,
    annotations,
    dict(type='PhotoMetricDistortion'),
    resize,
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackDetInputs'),
]
images = dict(data_root=folder, data_prefix=dict(img='images/'))
# Starting workers takes longer than reading so few images.
here = dict(batch_size=8, num_workers=0, persistent_workers=False)
train_dataloader = dict(
    here,
    dataset=dict(images, ann_file='instances_train2017.json', pipeline=train_pipeline),
)
val_dataloader = dict(
    here,
    dataset=dict(images, ann_file='instances_val2017.json', pipeline=test_pipeline),
)
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=f'{folder}instances_val2017.json')
test_evaluator = val_evaluator
