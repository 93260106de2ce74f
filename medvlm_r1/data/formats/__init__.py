"""Questions in files of the user's own, one option of ``conf/data`` each, and the rows that they share.

====================  ==================================================================
mcq_json.py           the papers' JSON schema; mcq_row.py parses one row of it
table.py              JSON, JSONL, CSV or Parquet of any layout
hf_dataset.py         Hugging Face data sets; hf_load.py finds them on disk, in caches, on the hub
mapped_rows.py        rows of tables whose columns are mapped; columns.py is the mapping
image_folder.py       labelled images; question_template.py turns a label into a question
question_file.py      parse the rows of a file, check their images, hold out validation
row_policy.py         what to do with unusable rows: the config node ``data.rows``
values.py             the text of a value of any container, or that it is missing
options.py            options and answers in the shapes that files have
row_filter.py         which rows of a table are used: ``data.where``
rows.py               read the rows of JSON, JSONL and Parquet files; csv_rows.py those of CSV
====================  ==================================================================
"""
