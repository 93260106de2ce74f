"""W&B, TensorBoard and MLflow: all that they get besides the metrics that Lightning logs.

``run.py``          configuration and facts of a run at its start, results and files at its end
``completions.py``  tables of training completions with pictures and rewards
``comparison.py``   the comparison of several runs, for W&B
``mlflow.py``       a logger that continues the MLflow run of a resumed run
"""
