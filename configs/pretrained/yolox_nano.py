# YOLOX-Nano as Megvii trained it on COCO, on photographs of COCO that may be passed
# on. The folder with weights and photographs is $MMQUANT_PRETRAINED.
_base_ = 'mmdet::yolox/yolox_nano_8xb8-300e_coco.py'
custom_imports = dict(imports=['mmquant_jacinto'])
work_dir = 'work_dirs/pretrained/yolox_nano'
pretrained = '{{$MMQUANT_PRETRAINED:../shared/pretrained}}'
load_from = f'{pretrained}/yolox_nano_coco.pth'
folder = f'{pretrained}/coco_free/'
images = dict(data_root=folder, data_prefix=dict(img='images/'))
# Starting workers takes longer than reading so few images.
here = dict(num_workers=0, persistent_workers=False)
train_dataloader = dict(
    here, dataset=dict(dataset=dict(images, ann_file='instances_train2017.json'))
)
val_dataloader = dict(here, dataset=dict(images, ann_file='instances_val2017.json'))
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=f'{folder}instances_val2017.json')
test_evaluator = val_evaluator
