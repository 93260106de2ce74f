"""Command lines. Each is ``python -m medvlm_r1.<name>`` and an installed script ``medvlm-r1-<name>``.

==========  =========================================================================
audit       find leaks, duplicates, faulty images and shortcuts in question files
compare     compare finished runs: tables, intervals, paired tests, the HTML page
matrix      accuracy by training domain and test domain, with a heat map
sweep       states, costs and factor effects of a multirun
export      describe a model, merge its adapter, upload it to the hub
predict     answer questions about images with a trained model
command.py  parser, error message and exit code, shared by all commands
==========  =========================================================================
"""
