"""Describe, merge or upload a trained model: ``medvlm-r1 export SOURCE``."""

import json
import sys
from argparse import Namespace
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path

import huggingface_hub
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from medvlm_r1.artifacts.model_card import model_card
from medvlm_r1.cli.command import CommandError, command_parser, exits_on
from medvlm_r1.policy.loading.validate import RECORD, UnusableWeightsError
from medvlm_r1.policy.saving.folder import ModelFolder, ModelFolderError, inspect_folder
from medvlm_r1.runs.durable import replace_folder
from medvlm_r1.runs.hub import hub_problem

EXAMPLES = """examples:
  medvlm-r1 export outputs/runs/grpo_600-seed0
  medvlm-r1 export outputs/runs/grpo_600-peft=lora-seed0 --merge --out merged
  medvlm-r1 export merged --push-to-hub NAME/REPO --private

Without --merge, --card and --push-to-hub the command only describes the model. --push-to-hub uploads the
model's files (weights, configuration, tokenizer, model card), never checkpoints or predictions.
Exit code 2: error; stderr gives the reason."""

# Names and patterns of a model's files; --push-to-hub uploads no other file.
UPLOADED = (
    *("README.md", RECORD, "config.json", "generation_config.json", "chat_template.jinja"),
    *("model.safetensors", "model-*-of-*.safetensors", "model.safetensors.index.json"),
    *("adapter_config.json", "adapter_model.safetensors"),
    *("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json"),
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "merges.txt"),
)


@exits_on(ModelFolderError, UnusableWeightsError)
def main(arguments: Sequence[str] | None = None) -> int:
    parser = command_parser("export", "Describe a trained model, merge its adapter, upload it.", EXAMPLES)
    parser.add_argument("source", type=Path, metavar="SOURCE", help="a run folder, or a model directory")
    merge = "merge the adapter into its base model (in fp32)"
    parser.add_argument("--merge", action="store_true", help=merge)
    out = "output directory of --merge: a new or an empty one"
    parser.add_argument("--out", type=Path, metavar="DIR", help=out)
    dtype = "dtype of the merged weights (default: the base's)"
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help=dtype)
    base = "directory or hub id of the base model (default: the one that the adapter names)"
    parser.add_argument("--base", help=base)
    parser.add_argument("--card", action="store_true", help="rewrite README.md from medvlm_r1.json")
    parser.add_argument("--push-to-hub", metavar="REPO", help="upload to this repository on the model hub")
    parser.add_argument("--private", action="store_true", help="make the repository private if it is new")
    export(parser.parse_args(arguments))
    return 0


def export(args: Namespace) -> None:
    """Carry out the command line. All checks, which raise CommandError, run before the slow part."""
    folder = model_folder(args.source)
    model = inspect_folder(folder)
    if args.merge != (args.out is not None):
        raise CommandError("--merge needs --out DIR, and --out is for --merge alone")
    if (args.dtype or args.base) and not args.merge:
        raise CommandError("--dtype and --base are for --merge alone")
    if args.private and not args.push_to_hub:
        raise CommandError("--private is for --push-to-hub alone")
    if args.push_to_hub:
        check_upload(model, args.push_to_hub, args.merge)
    if args.merge:
        if args.out.exists() and (not args.out.is_dir() or any(args.out.iterdir())):
            raise CommandError(f"{args.out} is not empty: give a new directory with --out")
        from medvlm_r1.policy.saving.merge import merge_adapter  # imports torch, which takes seconds

        with replace_folder(args.out) as partial:
            merge_adapter(folder, partial, args.dtype, args.base)
            write_card(partial, adapter=False)
        folder, model = args.out, inspect_folder(args.out)
    elif args.card and not write_card(folder, adapter=model.kind == "adapter"):
        raise CommandError(f"{folder} has no medvlm_r1.json, which the model card is written from")
    elif args.push_to_hub and not (folder / "README.md").exists():
        write_card(folder, adapter=model.kind == "adapter")
    print("\n".join(description(model)))
    if args.push_to_hub:
        push(model, args.push_to_hub, args.private)


def model_folder(source: Path) -> Path:
    """Return a run folder's ``model``, or ``source`` if it is a model directory; else raise CommandError."""
    for folder in (source / "model", source):
        if (folder / "config.json").is_file() or (folder / "adapter_config.json").is_file():
            return folder
    if (source / "model").exists() and (source / "metrics.json").is_file():
        reason = "its model/ is empty"
    elif (source / "metrics.json").is_file():
        reason = "a zero-shot run saves no weights"
    elif source.exists():
        reason = "it has no model/, config.json or adapter_config.json"
    else:
        reason = "it does not exist"
    raise CommandError(f"{source} holds no model: {reason}")


def description(model: ModelFolder) -> list[str]:
    """Return the lines that describe a model directory."""
    kind = "adapter (PEFT)" if model.kind == "adapter" else "all weights"
    lines = [f"{model.path}", f"  kind        {kind}"]
    record = read_record(model.path) or {}
    if base := model.base or record.get("base"):
        revision = model.revision or record.get("revision")
        lines.append(f"  base        {base}" + (f" at {revision}" if revision else ""))
    lines.append(f"  parameters  {model.parameters:,} in {model.dtype}")
    lines.append(f"  size        {megabytes(model.size)} on disk")
    if not record:
        return [*lines, "  prompt      unknown (no medvlm_r1.json)"]
    square = f"square of {record['image_size']} pixels, then " if record.get("image_size") else ""
    return [
        *lines,
        f"  prompt      {record['prompt']['name']}",
        f"  limits      images: {square}{record['min_pixels']} to {record['max_pixels']} pixels; "
        f"answers: {record['max_completion_tokens']} tokens",
    ]


def read_record(folder: Path) -> dict | None:
    """Return the contents of ``medvlm_r1.json``, or ``None`` without one; CommandError if it is not JSON."""
    path = folder / RECORD
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
    except json.JSONDecodeError as error:
        raise CommandError(f"{path} is not valid JSON ({error})") from None


def write_card(folder: Path, adapter: bool) -> bool:
    """Write ``README.md`` from ``medvlm_r1.json``; return false if that lacks the training record."""
    record = read_record(folder)
    if record is None or "training" not in record:
        return False
    (folder / "README.md").write_text(model_card(record, adapter), encoding="utf-8")
    return True


def check_upload(model: ModelFolder, repo: str, merge: bool) -> None:
    """Raise CommandError if an upload cannot succeed, or if others could not load its result."""
    try:
        huggingface_hub.utils.validate_repo_id(repo)
    except HFValidationError as error:
        raise CommandError(f"--push-to-hub {repo}: {error}") from None
    base = model.base or "?"
    if model.kind == "adapter" and not merge and (base.count("/") != 1 or Path(base).exists()):
        raise CommandError(
            f"the adapter's base, {base}, is not on the model hub, so nobody else could load it: upload the "
            "whole model, with --merge --out DIR"
        )
    if huggingface_hub.get_token() is None:
        raise CommandError("no token for the model hub: set HF_TOKEN, or log in with `hf auth login`")
    if problem := hub_problem():
        raise CommandError(f"cannot reach the model hub: {problem}")


def files_to_upload(folder: Path) -> list[Path]:
    """Return the model's files at the top level of its directory, sorted by name."""
    return sorted(
        path
        for path in folder.iterdir()
        if path.is_file() and any(fnmatch(path.name, pattern) for pattern in UPLOADED)
    )


def push(model: ModelFolder, repo: str, private: bool) -> None:
    """List the files, then upload them in one commit; CommandError if the hub rejects it."""
    files = files_to_upload(model.path)
    print(f"uploading to {repo}:")
    for path in files:
        print(f"  {path.name}  {megabytes(path.stat().st_size)}")
    if others := sorted(path.name for path in model.path.iterdir() if path not in files):
        print("not uploaded: " + ", ".join(others))
    api = huggingface_hub.HfApi()
    try:
        api.create_repo(repo, private=private or None, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repo,
            folder_path=model.path,
            allow_patterns=[path.name for path in files],
            commit_message=f"Upload {model.path.name} with medvlm_r1",
        )
    except HfHubHTTPError as error:
        raise CommandError(f"the model hub rejected the upload: {error}") from None
    print(f"uploaded: {commit.commit_url}")


def megabytes(size: int) -> str:
    """``4.4 GB``, ``5.6 MB`` or ``2.1 kB``."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6)):
        if size >= factor:
            return f"{size / factor:.1f} {unit}"
    return f"{size / 1e3:.1f} kB"


if __name__ == "__main__":
    sys.exit(main())
