"""Images of questions: resolve the paths of a row, decode, check and cache.

==================  ==================================================================
resolve.py          a row's ``image`` entry to image handles, inside one folder
paths.py            what a row gives as a path: no path, or a file that is spelt otherwise
decode.py           image files as RGB; depth.py: their samples at their own depth
notes.py            what is blank or not shown in full
embedded.py         images inside other files; those in zip archives
arrow.py            images inside the Arrow files of Hugging Face data sets
volume.py           slices, windows and grey values that DICOM and NIfTI share
dicom.py nifti.py   the two formats; dicom_header.py: privacy, limits, measurements
series.py stack.py  the files of a DICOM series; its slices in spatial order
validate.py         decode every image once before training
content_key.py      digests that identify an image by its content
digest_cache.py     digests and results of earlier runs, in SQLite
cache.py            decoded and resized images on disk
==================  ==================================================================
"""
