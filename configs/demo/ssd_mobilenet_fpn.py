# The detector of demo/demo.py, which sets the environment variables; without
# them it is trained on BCCD, at the resolution of the environment or 320.
_base_ = '../bccd/ssd_mobilenet_fpn.py'
work_dir = 'work_dirs/demo/float'

classes = tuple('{{$DEMO_CLASSES:RBC,WBC,Platelets}}'.split(','))
dataset = dict(
    # the folder that holds JPEGImages, Annotations and ImageSets
    data_root='{{$DEMO_DATA:../shared/data/bccd/VOC2007}}',
    # the colors of BCCD are three, and there must be one for each class
    metainfo=dict(classes=classes, palette=[(220, 20, 60)] * len(classes)),
)
model = dict(bbox_head=dict(num_classes=len(classes)))
train_dataloader = dict(
    dataset=dict(dataset, ann_file='ImageSets/Main/{{$DEMO_TRAIN_SPLIT:train}}.txt')
)
val_dataloader = dict(
    dataset=dict(dataset, ann_file='ImageSets/Main/{{$DEMO_TEST_SPLIT:val}}.txt')
)
test_dataloader = val_dataloader

max_epochs = {{'$DEMO_EPOCHS:18'}}
train_cfg = dict(max_epochs=max_epochs, val_interval=5)
param_scheduler = [
    _base_.param_scheduler[0],
    dict(type='CosineAnnealingLR', T_max=max_epochs),
]

# mAP50 only: the other metric prints ten tables
val_evaluator = _base_.val_evaluator[:1]
test_evaluator = val_evaluator
