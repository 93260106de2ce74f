"""Every setting in which two compared methods differ, read from their resolved configurations."""

from dataclasses import dataclass

from medvlm_r1.report.run_folder import Run, flatten

OWN = ("method", "reward", "experiment")  # what makes a method a method; everything else must agree
TUNED = ("method.optim.lr",)  # chosen for each on validation
BOOKKEEPING = (
    "run_folder",
    "sweep",
    "overwrite",
    "resume",
    "ckpt_path",
    "workers",
    "image_cache",
    "controls",
)  # where a run lies and what else it was asked, not what it does
# how a served model is reached
BOOKKEEPING += tuple(
    f"model.{key}" for key in ("url", "api_key_variable", "concurrency", "retries", "timeout", "cache")
)
SAME_WORK = (
    "epochs",
    "prompts_per_step",
    "max_prompt_tokens",
    "max_completion_tokens",
    "min_pixels",
    "max_pixels",
    "select",
)


@dataclass(frozen=True)
class Setting:
    """One key with its value under two methods; ``None`` where a method does not have it."""

    key: str
    first: object
    second: object

    @property
    def equal(self) -> bool:
        return self.first == self.second


@dataclass(frozen=True)
class Fairness:
    """Two methods side by side.

    Attributes:
        first: label of the one method.
        second: label of the other.
        differences: settings that differ, outside ``reward`` and ``experiment`` and what only one method
            has; empty is good.
        same_work: settings, wherever they stand, that have to agree for the work to be equal.
        tuned: settings that were chosen for each method on validation.
        known: whether both runs left a configuration to compare.
    """

    first: str
    second: str
    differences: tuple[Setting, ...]
    same_work: tuple[Setting, ...]
    tuned: tuple[Setting, ...] = ()
    known: bool = True

    @property
    def fair(self) -> bool:
        return self.known and not self.differences and all(s.equal for s in self.same_work)


def settings(run: Run) -> dict:
    """The resolved configuration as dotted keys, without what names the run itself.

    Left out: bookkeeping, the root seed and every key called ``seed`` that repeats it, and each text
    that lies in the run's own folder.
    """
    own = str(run.config.get("run_folder") or run.name)
    return {
        key: value
        for key, value in flatten(run.config).items()
        if key not in BOOKKEEPING
        and not (key.rsplit(".", 1)[-1] == "seed" and value == run.config.get("seed"))
        and not (isinstance(value, str) and (value == own or value.startswith(f"{own}/")))
    }


def compare_settings(first: Run, second: Run, labels: tuple[str, str]) -> Fairness:
    """List what differs between two runs apart from the method itself."""
    a, b = settings(first), settings(second)
    keys = sorted(a.keys() | b.keys())
    pairs = [Setting(k, a.get(k), b.get(k)) for k in keys]
    # What both methods have, such as weight decay, must agree too; their name and learning rate may not.
    common = [
        s
        for s in pairs
        if s.key.startswith("method.")
        and s.key in a.keys() & b.keys()
        and s.key not in (*TUNED, "method._target_", "method.name")
    ]
    return Fairness(
        *labels,
        differences=tuple(s for s in pairs if not s.equal and (_is_shared(s.key) or s in common)),
        same_work=(
            *(s for s in pairs if s.key.rsplit(".", 1)[-1] in SAME_WORK),
            Setting("seed", first.seed, second.seed),
        ),
        tuned=tuple(s for s in pairs if s.key in TUNED),
        known=bool(first.config and second.config),
    )


def _is_shared(key: str) -> bool:
    return key.split(".")[0] not in OWN
