"""A logger that continues the MLflow run of a resumed run."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import MLFlowLogger
from lightning.pytorch.utilities import rank_zero_only

from medvlm_r1.report.run_folder import flatten


class MLflow(MLFlowLogger):
    """Lightning's logger, on the MLflow run that has the tag ``id``, if there is one.

    Args:
        folder: has the data base and the files of all runs if there is no ``tracking_uri``.
        tracking_uri: address of a server.
        id: identifies the run over its attempts; ``None`` always starts a new one.
        group: sweep, or experiment.
        job_type: name of the method.
        words: further tags.
        settings: arguments of ``MLFlowLogger``.
    """

    def __init__(
        self,
        folder: str,
        tracking_uri: str | None,
        id: str | None,
        group: str | None,
        job_type: str,
        words: Sequence[str] = (),
        **settings: Any,
    ) -> None:
        if not tracking_uri:
            place = Path(folder).absolute()
            tracking_uri = f"sqlite:///{place}/mlflow.db"
            settings["artifact_location"] = (place / "artifacts").as_uri()
        tags = {"id": id, "group": group, "job_type": job_type, **dict.fromkeys(words, "true")}
        tags = {key: str(value) for key, value in tags.items() if value}
        super().__init__(tracking_uri=tracking_uri, tags=tags, **settings)
        experiment = self._mlflow_client.get_experiment_by_name(self._experiment_name) if id else None
        if experiment:
            found = self._mlflow_client.search_runs([experiment.experiment_id], f"tags.id = '{id}'")
            self._run_id = found[0].info.run_id if found else None

    @rank_zero_only
    def log_hyperparams(self, params: Any) -> None:
        """Log the parameters that the MLflow run has not yet, and all of them in full as ``config.yaml``.

        MLflow refuses another value of a parameter that it has, and Lightning shortens long ones.
        """
        self.experiment.log_dict(self.run_id, params, "config.yaml")
        known = self.experiment.get_run(self.run_id).data.params
        flat = flatten(params)
        super().log_hyperparams({key: value for key, value in flat.items() if key not in known})
