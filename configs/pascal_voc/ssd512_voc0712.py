_base_ = 'mmdet::pascal_voc/ssd512_voc0712.py'
work_dir = 'work_dirs/pascal_voc/ssd512_voc0712'

# The import also mends SSD testing, which mmdet 3.3.0 cannot do.
custom_imports = dict(imports=['mmquant_jacinto'])
