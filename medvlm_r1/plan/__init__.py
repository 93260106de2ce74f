"""Predict a run's parameters, memory and time from its configuration (``plan=true``).

===========  =================================================================
cards.py     GPUs with their published figures
workload.py  the factors of memory and time, read from the configuration
meta.py      count operations and bytes on the meta device
measure.py   cost of one pass: run the policy on the meta device
memory.py    bytes on one device, by part and phase
plan.py      memory and time of a run, and overrides that make it fit
console.py   print a plan as tables
===========  =================================================================
"""
