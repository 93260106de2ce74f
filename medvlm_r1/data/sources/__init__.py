"""Published data sets, one file each; ``conf/data/<name>.yaml`` calls the function ``<name>``.

==================  =================================================================
published_set.py    the settings that all sets share; draws the questions of each split
locate.py           a local copy, the hub's cache, or a download from the hub
fields.py           fields of a row: text, yes/no answers, the letter of the gold option
medvlm_r1.py        MedVLM-R1's training and test questions
huatuo_bundle.py    the bundle that they come from; unzip.py unpacks its images
med_r1.py           Med-R1's own splits of OmniMedVQA, by modality and by task
omnimedvqa.py       OmniMedVQA, filtered and split by image
vqa_rad.py          VQA-RAD, split again by image
slake.py            SLAKE, in English
path_vqa.py         PathVQA
pmc_vqa.py          PMC-VQA, both versions
mmmu_med.py         the medical subjects of MMMU
medxpertqa_mm.py    MedXpertQA with images
==================  =================================================================
"""
