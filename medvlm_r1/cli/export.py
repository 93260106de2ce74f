"""Hand a model on: ``python -m medvlm_r1.export SOURCE`` says what it is, merges it, uploads it."""

import argparse
import json
import sys
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path

import huggingface_hub
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from medvlm_r1.artifacts.model_card import model_card
from medvlm_r1.policy.loading.validate import RECORD, UnusableWeightsError
from medvlm_r1.policy.saving.folder import (
    ModelFolder,
    ModelFolderError,
    inspect_folder,
    replace_folder,
)
from medvlm_r1.runs.hub import hub_problem

EXAMPLES = """examples:
  python -m medvlm_r1.export outputs/runs/grpo_600-seed0
  python -m medvlm_r1.export outputs/runs/grpo_600-peft=lora-seed0 --merge --out merged
  python -m medvlm_r1.export merged --push-to-hub NAME/REPO --private

SOURCE is a run folder or a model directory. Without --merge and --push-to-hub it is only described.
Nothing is uploaded without --push-to-hub, and then the directory's model files alone, never checkpoints
or predictions. Exit code 2: it cannot be done; the line says why."""

# What belongs to a model; whatever else lies beside it stays here.
UPLOADED = (
    *("README.md", RECORD, "config.json", "generation_config.json", "chat_template.jinja"),
    *("model.safetensors", "model-*-of-*.safetensors", "model.safetensors.index.json"),
    *("adapter_config.json", "adapter_model.safetensors"),
    *("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json"),
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "merges.txt"),
)


class ExportError(ValueError):
    """What was asked for cannot be done. The message says why and names the way on."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    given = parser().parse_args(arguments)
    try:
        export(given)
    except (ExportError, ModelFolderError, UnusableWeightsError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def parser() -> argparse.ArgumentParser:
    """The command line's arguments."""
    asked = argparse.ArgumentParser(
        prog="python -m medvlm_r1.export",
        description="Describe a trained model, merge its adapter, upload it.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    asked.add_argument("source", type=Path, metavar="SOURCE", help="a run folder, or a model directory")
    asked.add_argument("--merge", action="store_true", help="add the adapter to its base (in fp32)")
    asked.add_argument("--out", type=Path, metavar="DIR", help="where the merged model goes; new or empty")
    asked.add_argument(
        "--dtype", choices=("float32", "bfloat16"), help="of the merged weights (default: the base's)"
    )
    asked.add_argument("--base", help="directory or hub id of the base, if it is not where the adapter says")
    asked.add_argument("--card", action="store_true", help="write README.md anew from medvlm_r1.json")
    asked.add_argument("--push-to-hub", metavar="REPO", help="upload to this repository of the model hub")
    asked.add_argument("--private", action="store_true", help="a repository that is made new is private")
    return asked


def export(given: argparse.Namespace) -> None:
    """Do what the command line asks for, refusing what cannot work before the slow part starts.

    Raises:
        ExportError, ModelFolderError: see their messages.
    """
    folder = model_folder(given.source)
    found = inspect_folder(folder)
    if given.merge != (given.out is not None):
        raise ExportError("--merge needs --out DIR, and --out is for --merge alone")
    if (given.dtype or given.base) and not given.merge:
        raise ExportError("--dtype and --base are for --merge alone")
    if given.private and not given.push_to_hub:
        raise ExportError("--private is for --push-to-hub alone")
    if given.push_to_hub:
        check_upload(found, given.push_to_hub, given.merge)
    if given.merge:
        if given.out.exists() and (not given.out.is_dir() or any(given.out.iterdir())):
            raise ExportError(f"{given.out} is not empty: give a new directory with --out")
        from medvlm_r1.policy.saving.merge import merge_adapter  # imports transformers: seconds

        with replace_folder(given.out) as partial:
            merge_adapter(folder, partial, given.dtype, given.base)
            write_card(partial, adapter=False)
        folder, found = given.out, inspect_folder(given.out)
    elif given.card and not write_card(folder, adapter=found.kind == "adapter"):
        raise ExportError(f"{folder} holds no medvlm_r1.json to write a card from")
    elif given.push_to_hub and not (folder / "README.md").exists():
        write_card(folder, adapter=found.kind == "adapter")
    print("\n".join(description(found)))
    if given.push_to_hub:
        push(found, given.push_to_hub, given.private)


def model_folder(source: Path) -> Path:
    """The model directory of a run folder, or the given one.

    Raises:
        ExportError: there is none.
    """
    for folder in (source / "model", source):
        if (folder / "config.json").is_file() or (folder / "adapter_config.json").is_file():
            return folder
    reason = (
        "it does not exist" if not source.exists() else "it has no model/, config.json or adapter_config.json"
    )
    if (source / "metrics.json").is_file():
        reason = "a zero-shot run leaves none" if not (source / "model").exists() else "its model/ is empty"
    raise ExportError(f"{source} holds no model: {reason}")


def description(found: ModelFolder) -> list[str]:
    """What a model directory is, line by line."""
    lines = [
        f"{found.path}",
        f"  kind        {'adapter (PEFT)' if found.kind == 'adapter' else 'all weights'}",
        f"  parameters  {found.parameters:,} in {found.dtype}",
        f"  size        {megabytes(found.size)} on disk",
    ]
    asked = read_asked(found.path)
    if base := found.base or (asked or {}).get("base"):
        revision = found.revision or (asked or {}).get("revision")
        lines.insert(2, f"  base        {base}" + (f" at {revision}" if revision else ""))
    if asked is None:
        return [*lines, "  prompt      unknown: there is no medvlm_r1.json"]
    square = f"a square of {asked['image_size']} pixels, then " if asked.get("image_size") else ""
    return [
        *lines,
        f"  prompt      {asked['prompt']['name']}",
        f"  limits      images {square}{asked['min_pixels']} to {asked['max_pixels']} pixels, "
        f"answers {asked['max_completion_tokens']} tokens",
    ]


def read_asked(folder: Path) -> dict | None:
    """``medvlm_r1.json``; ``None`` where a directory has none.

    Raises:
        ExportError: it cannot be read.
    """
    path = folder / RECORD
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
    except json.JSONDecodeError as error:
        raise ExportError(f"{path} is no JSON ({error})") from None


def write_card(folder: Path, adapter: bool) -> bool:
    """Write ``README.md`` from ``medvlm_r1.json``; false where that says too little for a card."""
    asked = read_asked(folder)
    if asked is None or "training" not in asked:
        return False
    (folder / "README.md").write_text(model_card(asked, adapter), encoding="utf-8")
    return True


def check_upload(found: ModelFolder, repo: str, merge: bool) -> None:
    """Refuse an upload that cannot succeed, or that nobody could use.

    Raises:
        ExportError: not a repository's name, an adapter whose base is local, no token, or no hub.
    """
    try:
        huggingface_hub.utils.validate_repo_id(repo)
    except HFValidationError as error:
        raise ExportError(f"--push-to-hub {repo}: {error}") from None
    base = found.base or "?"
    if found.kind == "adapter" and not merge and (base.count("/") != 1 or Path(base).exists()):
        raise ExportError(
            f"the adapter's base, {base}, is not on the model hub, so nobody else could load it: upload the "
            "whole model, with --merge --out DIR"
        )
    if huggingface_hub.get_token() is None:
        raise ExportError("there is no token for the model hub: set HF_TOKEN, or log in with `hf auth login`")
    if problem := hub_problem():
        raise ExportError(f"the model hub cannot be reached: {problem}")


def files_to_upload(folder: Path) -> list[Path]:
    """The model's own files at the top of its directory, by name."""
    return sorted(
        path
        for path in folder.iterdir()
        if path.is_file() and any(fnmatch(path.name, pattern) for pattern in UPLOADED)
    )


def push(found: ModelFolder, repo: str, private: bool) -> None:
    """Show what will be uploaded, then upload it in one commit.

    Raises:
        ExportError: the hub refuses.
    """
    files = files_to_upload(found.path)
    print(f"uploading to {repo}:")
    for path in files:
        print(f"  {path.name}  {megabytes(path.stat().st_size)}")
    if others := sorted(path.name for path in found.path.iterdir() if path not in files):
        print("left here: " + ", ".join(others))
    api = huggingface_hub.HfApi()
    try:
        api.create_repo(repo, private=private or None, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repo,
            folder_path=found.path,
            allow_patterns=[path.name for path in files],
            commit_message=f"Upload {found.path.name} with medvlm_r1",
        )
    except HfHubHTTPError as error:
        raise ExportError(f"the model hub refused: {error}") from None
    print(f"uploaded: {commit.commit_url}")


def megabytes(size: int) -> str:
    """``4.4 GB``, ``5.6 MB`` or ``2.1 kB``."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6)):
        if size >= factor:
            return f"{size / factor:.1f} {unit}"
    return f"{size / 1e3:.1f} kB"


if __name__ == "__main__":
    sys.exit(main())
