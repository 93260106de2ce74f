"""The settings in which two compared methods differ, read from their resolved configurations."""

from dataclasses import dataclass

from medvlm_r1.report.run_folder import Run, flatten

OWN = ("method", "reward", "experiment")  # groups of keys that define a method; all others must agree
TUNED = ("method.optim.lr",)  # tuned for each method on validation
# Keys that change neither weights nor answers: folders, caches, restarts, the connection to a served model.
BOOKKEEPING = (
    *("run_folder", "sweep", "overwrite", "resume", "ckpt_path", "workers", "image_cache"),
    *("controls", "evaluation", "logger", "tags", "track", "callbacks.rollouts.track"),
    *("model.url", "model.api_key_variable", "model.concurrency", "model.retries", "model.timeout"),
    "model.cache",
)
SAME_WORK = (
    *("epochs", "prompts_per_step", "max_prompt_tokens", "max_completion_tokens"),
    *("min_pixels", "max_pixels", "select"),
)
# counts of a run's facts, in training and in the test without a control
WORK, TESTED = (
    ("steps", "questions_seen", "tokens_seen", "completion_tokens_seen"),
    "completion_tokens_tested",
)


@dataclass(frozen=True)
class Setting:
    """One key with its value under two methods; ``None`` where a method does not have the key."""

    key: str
    first: object
    second: object

    @property
    def equal(self) -> bool:
        return self.first == self.second


@dataclass(frozen=True)
class Fairness:
    """The settings of two methods, ``first`` and ``second`` (labels of their groups).

    Attributes:
        differences: settings that differ, except ``reward``, ``experiment`` and keys that only one method
            has; empty if the comparison is fair.
        same_work: settings that must agree for both methods to do the same amount of work.
        tuned: settings that were tuned for each method on validation.
        work: what training took, in all phases: steps, questions and tokens (of prompts, each once a step,
            and of completions; of completions alone); then the tokens of the test's completions. Methods may
            differ in it; the reader weighs it.
        known: whether both runs have a configuration.
    """

    first: str
    second: str
    differences: tuple[Setting, ...]
    same_work: tuple[Setting, ...]
    tuned: tuple[Setting, ...] = ()
    work: tuple[Setting, ...] = ()
    known: bool = True

    @property
    def fair(self) -> bool:
        return self.known and not self.differences and all(s.equal for s in self.same_work)

    @property
    def settings(self) -> list[Setting]:
        """Every setting once, differences first."""
        return list(dict.fromkeys((*self.differences, *self.same_work, *self.tuned, *self.work)))


def settings(run: Run) -> dict:
    """The resolved configuration as dotted keys, without the values that identify the run.

    Without :data:`BOOKKEEPING`, the root seed, every key ``seed`` that repeats it, and every text that is a
    path inside the run's folder. The path of weights that an earlier phase trained is that phase, so that
    runs of several seeds, each from its own weights, have the same settings.
    """
    own = str(run.config.get("run_folder") or run.name)

    def present(key: str, value: object) -> object:
        """A class of this package by its name alone: its module is another in earlier versions."""
        moved = key.endswith("_target_") and str(value).startswith("medvlm_r1.")
        return value.rpartition(".")[2] if moved else value

    flat = flatten(run.config)
    if run.earlier:
        phases = [f"{p['method']} ({p['steps']} steps, lr {p['learning_rate']})" for p in run.earlier]
        flat["model.path"] = " after ".join([*reversed(phases), str(run.earlier[0]["base"])])
    return {
        key: present(key, value)
        for key, value in flat.items()
        if not f"{key}.".startswith(tuple(f"{name}." for name in BOOKKEEPING))
        and not (key.rsplit(".", 1)[-1] == "seed" and value == run.config.get("seed"))
        and not (isinstance(value, str) and (value == own or value.startswith(f"{own}/")))
    }


def compare_settings(first: Run, second: Run, labels: tuple[str, str]) -> Fairness:
    """List the settings that differ between two runs, apart from the method itself."""
    a, b = settings(first), settings(second)
    pairs = [Setting(k, a.get(k), b.get(k)) for k in sorted(a.keys() | b.keys())]
    # Keys of both methods, such as weight decay, must agree too; their name and learning rate need not.
    common = {key for key in a.keys() & b.keys() if key.startswith("method.")}
    common -= {*TUNED, "method._target_", "method.name"}
    unequal = [s for s in pairs if not s.equal]
    return Fairness(
        *labels,
        differences=tuple(s for s in unequal if s.key in common or s.key.split(".")[0] not in OWN),
        same_work=(
            *(s for s in pairs if s.key.rsplit(".", 1)[-1] in SAME_WORK),
            Setting("seed", first.seed, second.seed),
        ),
        tuned=tuple(s for s in pairs if s.key in TUNED),
        work=(
            *(Setting(w, first.over_phases(w), second.over_phases(w)) for w in WORK),
            Setting(TESTED, *(_count(run.facts.get(TESTED)) for run in (first, second))),
        ),
        known=bool(first.config and second.config),
    )


def _count(number: int | None) -> str:
    return "?" if number is None else f"{number:,}"
