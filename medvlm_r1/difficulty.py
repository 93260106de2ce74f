"""Measure how hard the training questions are: ``medvlm-r1 difficulty --out FILE OVERRIDES``.

The starting weights complete every training question as GRPO's first step would: the same prompt, sampling
settings and noise. The file has the pass rate of each; ``difficulty.keep`` trains on a band of them.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from medvlm_r1.cli.command import command_parser, exits_on
from medvlm_r1.data.difficulty import PassRate, PassRateFile
from medvlm_r1.launch.compose import UserError, compose, hydra_arguments, initialized_hydra, parse_arguments
from medvlm_r1.launch.errors import user_errors
from medvlm_r1.launch.silence import silence_libraries
from medvlm_r1.launch.validate import check_model, check_settings
from medvlm_r1.run import build, configure_allocator
from medvlm_r1.runs.progress import track

EXAMPLES = """examples:
  medvlm-r1 difficulty --out outputs/pass_rates.jsonl model=tiny data=phantom
  medvlm-r1 difficulty --out outputs/pass_rates.jsonl --samples 16 +experiment=grpo_600
  medvlm-r1 run +experiment=grpo_600 'difficulty.keep=[0.2,0.8]' \\
      difficulty.pass_rates=outputs/pass_rates.jsonl

Give the overrides of the training run. If FILE exists, the command adds the missing questions.

Exit code 2: error; stderr gives the reason."""
NO_BAND = {"pass_rates": None, "keep": None, "subset": "band"}


@exits_on(UserError)
def main(arguments: Sequence[str] | None = None) -> int:
    parser = command_parser("difficulty", "Measure pass rates of the training questions.", EXAMPLES)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="JSONL file of pass rates")
    default = "default: the run's, model.recipe.group_size"
    parser.add_argument("--samples", type=int, metavar="N", help=f"completions per question ({default})")
    parser.add_argument("--config-dir", metavar="DIR", help="folder with options of your own")
    overrides = "of the training run, such as data=phantom (medvlm-r1 run --help)"
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help=overrides)
    args = parser.parse_args(arguments)
    if args.samples is not None and args.samples < 1:
        parser.error(f"--samples {args.samples} must be at least 1")
    configure_allocator()
    with user_errors():
        print(measure(configure(args.overrides, args.config_dir), args.out, args.samples))
    return 0


def configure(overrides: Sequence[str], config_dir: str | None = None) -> DictConfig:
    """Compose and check the configuration of one run, without callbacks, loggers and controls."""
    options = [f"--config-dir={config_dir}"] if config_dir else []
    args = parse_arguments(hydra_arguments([*options, *overrides]))
    with initialized_hydra(args):
        ((_, cfg, _),) = compose(args)
        cfg.difficulty = {**cfg.difficulty, **NO_BAND}  # the file that the band reads is being written
        check_settings(cfg)
        if "sampling" not in cfg.method or "optim" not in cfg.method:
            raise ValueError(
                "the method samples no training questions: take method=grpo, or another that does"
            )
        check_model(cfg)
    for name in ("callbacks", "logger"):
        if name in cfg:
            cfg[name] = None
    cfg.controls = ["image"]
    return cfg


def measure(cfg: DictConfig, path: Path, samples: int | None = None) -> str:
    """Write the pass rate of every training question that the file lacks; returns a summary.

    Args:
        samples: completions per question; the method's group size by default.
    """
    from dataclasses import replace

    from hydra.utils import instantiate
    from lightning import seed_everything

    from medvlm_r1.algorithms.sampling import sample_trajectory
    from medvlm_r1.rollout.engine import stopped_after, sync_weights

    silence_libraries()
    seed_everything(cfg.seed, workers=True, verbose=False)
    sampling = instantiate(cfg.method.sampling)
    sampling = replace(sampling, group_size=samples or sampling.group_size)
    settings: Any = OmegaConf.to_container(cfg, resolve=True)
    limits = ("max_prompt_tokens", "min_pixels", "max_pixels", "image_size", "dtype")
    of = {
        "model": settings["model"]["path"],
        "revision": settings["model"]["revision"],
        "seed": cfg.seed,
        "prompt": settings["prompt"],
        **{name: settings["model"]["recipe"][name] for name in limits},
        **{
            name: getattr(sampling, name)
            for name in ("group_size", "max_tokens", "temperature", "top_p", "top_k")
        },
    }
    file = PassRateFile(path, of)
    questions = instantiate(cfg.data)
    if missing := file.missing(questions.train):
        module, data, trainer = build(cfg, questions)
        module.to(trainer.strategy.root_device)
        usable = {sample.id for sample in data.questions.train}
        asked = [sample for sample in missing if sample.id in usable]
        size = cfg.model.recipe.prompts_per_step
        with stopped_after(module.engine):
            sync_weights(module.engine, module.policy)
            for start in track(range(0, len(asked), size), "Sampling", -(-len(asked) // size)):
                prompts = [data.encode(sample, "train") for sample in asked[start : start + size]]
                trajectory = sample_trajectory(module, prompts, sampling)
                passes = trajectory.correct.view(len(prompts), -1).sum(1).tolist()
                tokens = trajectory.rollout.lengths.view(len(prompts), -1).sum(1).tolist()
                file.add(
                    [
                        PassRate(p.sample.id, p.sample.question, p.sample.answer, n, sampling.group_size, t)
                        for p, n, t in zip(prompts, passes, tokens, strict=True)
                    ]
                )
        left_out = [sample for sample in missing if sample.id not in usable]
        file.add([PassRate(s.id, s.question, s.answer, 0, 0, 0) for s in left_out])
    return summary(file, [file.rates[sample.id] for sample in questions.train])


def summary(file: PassRateFile, rates: Sequence[PassRate]) -> str:
    """Counts of questions by pass rate, in lines."""
    measured = [rate for rate in rates if rate.samples]
    n, tokens = max((rate.samples for rate in measured), default=0), sum(rate.tokens for rate in measured)
    groups = {
        "never right": [r for r in measured if r.passes == 0],
        "always right": [r for r in measured if r.passes == r.samples],
        "0.2 to 0.8": [r for r in measured if 0.2 <= r.value <= 0.8],
    }
    share = sum(rate.value for rate in measured) / max(1, len(measured))
    left_out = f", {len(rates) - len(measured)} left out" if len(measured) < len(rates) else ""
    lines = [
        f"{file.path}: {len(measured)} training questions{left_out}, {n} completions each, {tokens:,} tokens"
    ]
    lines += [f"  pass rate {name:<13}{len(group):>6}" for name, group in groups.items()]
    return "\n".join([*lines, f"  mean pass rate{100 * share:>14.1f} %"])


if __name__ == "__main__":
    sys.exit(main())
