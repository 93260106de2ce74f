"""From a policy to model directories that other programs load.

=========  ==============================================================
folder.py  write a Hugging Face directory atomically; inspect one
merge.py   merge an adapter into its base
=========  ==============================================================
"""
