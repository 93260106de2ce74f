"""A plan before a run: parameters, memory and time, from the configuration alone.

===========  ==================================================================
cards.py     GPUs and their published figures
workload.py what of a configuration a plan depends on
meta.py      counting on the meta device
measure.py   the cost of one pass, by running the real code there
memory.py    bytes on one device, and which phases hold them
plan.py      both together, time, and the overrides that make a run fit
console.py   the tables
===========  ==================================================================
"""
