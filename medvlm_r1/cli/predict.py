"""Answer questions with a model: ``medvlm-r1 predict --model DIR --image FILE --question TEXT``."""

import json
import logging
import sys
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table

from medvlm_r1.cli.command import CommandError, command_parser, exits_on
from medvlm_r1.data.formats.mcq_row import read_question
from medvlm_r1.data.formats.question_file import image_faults, raise_first
from medvlm_r1.data.formats.rows import read_json
from medvlm_r1.data.images.dicom_header import ALLOW_IN_ROW, ALLOW_IN_RUN
from medvlm_r1.data.images.resolve import ImageRoot
from medvlm_r1.data.images.validate import check_images
from medvlm_r1.data.images.volume import Volumes
from medvlm_r1.data.sample import BadRowError, Question
from medvlm_r1.inference.answer_file import AnswerFile, AnswerRecord
from medvlm_r1.inference.endpoint_client import EndpointError

if TYPE_CHECKING:
    from medvlm_r1.inference.answerer import Answerer

DISCLAIMER = "For research only. This is not a medical device: no answer may guide the care of a patient."
# What errors of a run name, and what this command has for it.
OPTIONS = {
    ALLOW_IN_RUN: "give --allow-identifying",
    "raise model.recipe.max_prompt_tokens or lower model.recipe.max_pixels": "give fewer images "
    "or a shorter text: the model's context is the limit",
    "model.name": "--name",
    "model.url": "--model",
    "raise model.timeout or ": "",
    "model.concurrency": "--batch",
    "lower model.recipe.max_pixels or model.recipe.max_completion_tokens": "give another --recipe",
}
EXAMPLES = f"""examples:
  medvlm-r1 predict --model outputs/runs/grpo_600-seed0 --image brain.png \\
      --question "What does this image show?" --options "a tumour" "a haemorrhage" "a normal brain"
  medvlm-r1 predict --model merged --image before.png after.png \\
      --question "Has the lesion grown?" --options yes no --json
  medvlm-r1 predict --model Qwen/Qwen2-VL-2B-Instruct --prompt medvlm_r1_simple --image ct.png \\
      --question "Which organ is this?" --options liver spleen
  medvlm-r1 predict --model merged --questions questions.json --out answers.jsonl
  medvlm-r1 predict --model http://host:8000/v1 --name Qwen/Qwen2-VL-72B-Instruct \\
      --questions questions.json --out answers.jsonl

DIR is a run folder, a model directory (whole, merged or PEFT's), `embedded`, a hub id, or the URL of a server
with an OpenAI-compatible API. A model trained by this package brings its prompt, image sizes, dtype and token
limits in medvlm_r1.json.

The confidence is the probability of the answer's letter among the letters of all options, at the position of
the answer and given the model's own reasoning. It is not calibrated: it is not the chance of being right. Of
servers, vLLM gives it.

A question file is a JSON array or JSONL. Its rows have image (a path or a list of paths, relative to the
file's folder), question and options. answer is optional; a question without options is open. If --out
exists, the command appends the missing answers.

Exit code 2: error; stderr gives the reason.

{DISCLAIMER}"""


@exits_on(ValueError, OSError)
def main(arguments: Sequence[str] | None = None) -> int:
    args = parse(arguments)
    print(DISCLAIMER, file=sys.stderr)
    try:
        answer_file(args) if args.questions else answer_one(args)
    except (EndpointError, BadRowError) as error:
        message = str(error)
        for key, option in OPTIONS.items():
            message = message.replace(key, option)
        raise CommandError(message) from None
    return 0


def parse(arguments: Sequence[str] | None) -> Namespace:
    """Parse the command line and check which options go together."""
    parser = command_parser("predict", "Answer questions about images with a trained model.", EXAMPLES)
    parser.add_argument("--model", required=True, metavar="DIR", help="the model")
    parser.add_argument("--name", metavar="NAME", help="name of the model on the server, if DIR is a URL")
    parser.add_argument("--image", nargs="+", metavar="FILE", help="images, in the order of the prompt")
    parser.add_argument("--question", metavar="TEXT", help="the question, without its options")
    parser.add_argument(
        "--options", nargs="+", metavar="TEXT", help="answers to choose from (default: an open question)"
    )
    parser.add_argument("--questions", type=Path, metavar="FILE", help="a question file instead")
    parser.add_argument("--out", type=Path, metavar="FILE", help="JSONL output file of --questions")
    allow = "read DICOM files that identify a patient or have burned-in text"
    parser.add_argument("--allow-identifying", action="store_true", help=allow)
    parser.add_argument("--json", action="store_true", help="print the answer as a JSON object")
    name = {"metavar": "NAME"}
    parser.add_argument("--prompt", help="option of conf/prompt, for a model without medvlm_r1.json", **name)
    parser.add_argument("--recipe", help="option of conf/model with the limits for such a model", **name)
    parser.add_argument("--device", help="cpu, cuda or cuda:1 (default: a GPU if there is one)")
    parser.add_argument(
        "--batch", type=int, metavar="N", help="questions per batch (default: 8; of a server 64)"
    )
    args = parser.parse_args(arguments)
    served = args.model.startswith(("http://", "https://"))
    if served and not args.name:
        parser.error(f"--model {args.model} needs --name, the name of the model on the server")
    if args.name and not served:
        parser.error(
            f"--name {args.name} is for a server: give its URL, such as http://host:8000/v1, as --model"
        )
    if served and args.device:
        parser.error(f"--device {args.device} is for a local model: leave it out")
    if args.batch is None:
        args.batch = 64 if served else 8
    if bool(args.questions) == bool(args.question):
        parser.error("give --image and --question, or --questions FILE and --out FILE")
    if args.questions and (args.image or args.options or args.json or not args.out):
        parser.error("--questions needs --out and excludes --image, --options and --json")
    if args.question and (args.out or not args.image):
        parser.error("--question needs --image and excludes --out")
    if args.batch < 1:
        parser.error(f"--batch {args.batch} must be at least 1")
    return args


def answer_one(args: Namespace) -> None:
    """Answer one question and print it; ValueError or OSError for an unusable image, question or model."""
    row = {"image": args.image, "question": args.question, "options": args.options}
    question = read_question(row, "question", _image_root(Path(), args.allow_identifying))
    for _, fault in check_images([question]):
        raise BadRowError(f"{fault.replace(ALLOW_IN_ROW, '')}: correct --image")
    model = load(args, [question])
    model.check([question])
    (record,) = model.answer([question])
    if args.json:
        print(json.dumps(asdict(record), ensure_ascii=False, indent=2))
    else:
        show(record, Console() if sys.stdout.isatty() else Console(width=100))


def answer_file(args: Namespace) -> None:
    """Answer a file of questions, except those that ``--out`` has answers to.

    ValueError or OSError for an unusable question file, image, output file or model.
    """
    questions = read_questions(args.questions, args.allow_identifying)
    with AnswerFile(args.out, args.name or args.model).locked() as file:
        missing = file.missing(questions)
        if missing:
            model, console = load(args, missing), Console(stderr=True)
            model.check(missing)
            with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
                task = bar.add_task("Answering", total=len(missing))
                for start in range(0, len(missing), args.batch):
                    records = model.answer(missing[start : start + args.batch])
                    file.add(records)
                    bar.advance(task, len(records))
        records = [file.records[question.id] for question in questions]
    reused = len(questions) - len(missing)
    print(f"{args.out}: {len(questions)} answers" + (f" ({reused} reused)" if reused else ""))
    if graded := [record for record in records if record.gold]:
        correct = sum(record.answer == record.gold for record in graded)
        print(f"accuracy (strict) {correct / len(graded):.1%} of {len(graded)} questions with a gold answer")


def _image_root(folder: Path, allow_identifying: bool) -> ImageRoot:
    return ImageRoot(folder, follow_links=True, volumes=Volumes(allow_identifying=allow_identifying))


def read_questions(path: Path, allow_identifying: bool = False) -> list[Question]:
    """Read a question file and check every row and image.

    Raises:
        BadRowError: at the first faulty row or image; names file, row, value and remedy.
    """
    questions, places = [], {}
    root = _image_root(path.parent, allow_identifying)
    for number, row in enumerate(read_json(path)):
        name, place = f"{path.stem}-{number}", f"{path} row {number}"
        try:
            questions.append(replace(read_question(row, name, root), place=place))
        except BadRowError as error:
            raise BadRowError(f"{place}: {error}") from None
        places[name] = place
    remedy = "replace the file, or correct its path, which is relative to the question file's folder"
    raise_first(image_faults(questions, places, remedy=remedy))
    return questions


def load(args: Namespace, questions: Sequence[Question]) -> "Answerer":
    """Load the model and print its notes on stderr; raises as ``load_answerer`` does."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it logs missing kernels
    # Imported here because torch takes seconds: --help and a wrong path are reported without it.
    from medvlm_r1.inference.answerer import connect_answerer, load_answerer
    from medvlm_r1.policy.loading.resolve import MissingGPUError, MissingWeightsError

    try:
        if args.name:
            model = connect_answerer(args.model, args.name, args.prompt, args.recipe)
        else:
            model = load_answerer(args.model, args.prompt, args.recipe, args.device)
    except MissingWeightsError as error:
        reason = str(error).splitlines()[0].replace("model.path=", "--model ").rstrip(".")
        raise CommandError(f"{reason}. Give a run folder, a model directory, embedded or a hub id") from None
    except MissingGPUError as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise CommandError(f"{reason}: --device cpu runs it without a GPU, slowly") from None
    notes = list(model.notes)
    if any(not question.options for question in questions):
        notes.append(
            f"a question without options uses the prompt {model.prompt_record.prompt.name}, which may ask "
            "for a letter; the model was trained to choose among options, and its answer has no confidence"
        )
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    return model


def show(record: AnswerRecord, console: Console) -> None:
    """Print question, reasoning, answer, confidence and a bar per option."""
    console.print(f"[bold]{escape(record.question)}[/]", highlight=False)
    console.print(f"[dim]{escape(', '.join(record.images))}[/]\n", highlight=False)
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in lines(record):
        table.add_row(name, escape(value))
    console.print(table, highlight=False)
    if record.probabilities:
        console.print()
        bars = Table.grid(padding=(0, 2))
        for option, (letter, share) in zip(record.options, record.probabilities.items(), strict=True):
            style = "bold" if letter == record.confidence_of else ""
            bars.add_row(
                f"  {letter})", escape(option), f"{share:6.1%}", "█" * round(share * 30), style=style
            )
        console.print(bars, highlight=False)


def lines(record: AnswerRecord) -> list[tuple[str, str]]:
    """Return the labels and values of an answer."""
    reasoning = record.reasoning if record.reasoning is not None else "none in think tags"
    letter = record.answer or record.answer_lenient
    if not record.options:
        answer = record.content if record.content is not None else record.text
    elif letter:
        reading = "" if record.answer else " (lenient reading: not a single letter in answer tags)"
        answer = f"{letter}) {record.answer_text}{reading}"
    else:
        answer = f"none can be read in {record.text!r}"
    pairs = [("reasoning", reasoning), ("answer", answer)]
    if record.truncated:
        pairs.append(("cut", f"at the limit of {record.tokens} tokens"))
    if record.confidence is not None:
        condition = "after its own reasoning, not calibrated"
        if record.forced:
            reason = "the completion has no single letter as its answer"
            condition = f"for {record.confidence_of}, of a forced answer: {reason}"
        pairs.append(("confidence", f"{record.confidence:.1%} ({condition})"))
    return pairs


if __name__ == "__main__":
    sys.exit(main())
