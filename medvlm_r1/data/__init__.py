"""Where questions come from.

==================  ==================================================================
sample.py           :class:`VQASample`, the value that every later stop receives
phantom/            the embedded data set: rendered scenes with exact truth
volume.py           which slices of a DICOM or NIfTI file a question shows, and their grey values
dicom.py nifti.py   the two formats; dicom_header.py: privacy, series order, limits
table_file.py       rows of JSON, JSONL, CSV and Parquet files
image_entry.py      what a row gives as an image, turned into handles
image_root.py       the folder that image paths start from and may not leave
mcq_row.py          one row in the papers' schema, read into a question
question_file.py    every row of a file judged, images excluded, a window taken
mcq_json.py         the papers' JSON schema, with images from any folder
table.py            tables of any layout, by a mapping of columns
image_folder.py     labelled images, turned into questions from a template
medvlm_r1_set.py    MedVLM-R1's 600 training questions and its test file
sources/            the other published sets, one file each; pictures.py reads them in place
huatuo_bundle.py    the bundle that they come from; archive.py unpacks its images
checks.py           do all pictures decode? digest_cache.py keeps the findings, and digests of files
image_key.py      what determines a picture; picture_cache.py keeps it as the model takes it
splits.py           held out by image group; nested subsets
audit/              what the questions give away: leaks between sets, shortcuts, balance
options.py          one function per option of ``conf/data``
questions.py        what trains, validates and tests
variant.py          a test question as a control puts it
progress.py         a bar for what takes long
module.py           the Lightning data module that serves questions to the trainer
==================  ==================================================================
"""
