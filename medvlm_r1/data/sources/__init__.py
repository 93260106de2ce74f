"""Published data sets, one file each: ``conf/data/<name>.yaml`` names the function that reads it.

==================  =================================================================
place.py            find a set: a local copy, the hub's cache, or the hub
parts.py            rows to questions, and those to training, validation and tests
med_r1.py           Med-R1's own splits of OmniMedVQA, by modality and by task
omnimedvqa.py       OmniMedVQA, filtered and split by image
vqa_rad.py          VQA-RAD, re-split by image
slake.py            SLAKE, in English
path_vqa.py         PathVQA
pmc_vqa.py          PMC-VQA, both versions
mmmu_med.py         the medical subjects of MMMU
medxpertqa_mm.py    MedXpertQA with images
==================  =================================================================
"""
