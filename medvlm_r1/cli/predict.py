"""Ask a model: ``python -m medvlm_r1.predict --model DIR --image FILE --question TEXT --options A B``."""

import argparse
import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table

from medvlm_r1.data.formats.mcq_row import read_question
from medvlm_r1.data.formats.question_file import image_faults, raise_first
from medvlm_r1.data.formats.rows import read_json
from medvlm_r1.data.images.resolve import ImageRoot
from medvlm_r1.data.images.validate import check_images
from medvlm_r1.data.sample import BadRowError, Question
from medvlm_r1.inference.answer_file import AnswerFile, AnswerRecord

if TYPE_CHECKING:
    from medvlm_r1.inference.answerer import Answerer

DISCLAIMER = "For research only. This is not a medical device: no answer may guide the care of a patient."
EXAMPLES = f"""examples:
  python -m medvlm_r1.predict --model outputs/runs/grpo_600-seed0 --image brain.png \\
      --question "What does this image show?" --options "a tumour" "a haemorrhage" "a normal brain"
  python -m medvlm_r1.predict --model merged --image before.png after.png \\
      --question "Has the lesion grown?" --options yes no --json
  python -m medvlm_r1.predict --model Qwen/Qwen2-VL-2B-Instruct --prompt medvlm_r1_simple --image ct.png \\
      --question "Which organ is this?" --options liver spleen
  python -m medvlm_r1.predict --model merged --questions questions.json --out answers.jsonl

DIR is a run folder, a model directory (whole, merged or PEFT's), `embedded`, or a hub id. A model trained
here is asked as it was trained and evaluated: prompt, image sizes, dtype and limits come from its
medvlm_r1.json.

The confidence is the probability of the answer's letter among the options' letters at the answer's place,
given the model's own reasoning. It says how firmly the model holds to it, not how often it is right.

A question file is a JSON array or JSONL of rows with image (path or list, from the file's folder),
question and options; answer may be missing, and without options a question is open. The same command
again goes on where --out ends.

Exit code 2: it cannot be done; the line says why. {DISCLAIMER}"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    asked = parser()
    given = asked.parse_args(arguments)
    if bool(given.questions) == bool(given.question):
        asked.error("give --image and --question, or --questions FILE and --out FILE")
    if given.questions and (given.image or given.options or given.json or not given.out):
        asked.error("--questions needs --out, and goes without --image, --options and --json")
    if given.question and (given.out or not given.image):
        asked.error("--question needs --image, and goes without --out")
    if given.batch < 1:
        asked.error(f"--batch {given.batch} must be at least 1")
    print(DISCLAIMER, file=sys.stderr)
    try:
        ask_file(given) if given.questions else ask_one(given)
    except (ValueError, OSError) as error:
        return told(str(error))
    return 0


def parser() -> argparse.ArgumentParser:
    """The command line's arguments."""
    asked = argparse.ArgumentParser(
        prog="python -m medvlm_r1.predict",
        description="Ask a model about images, as it was trained and evaluated.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    asked.add_argument("--model", required=True, metavar="DIR", help="whom to ask")
    asked.add_argument("--image", nargs="+", metavar="FILE", help="the images, in the order of the prompt")
    asked.add_argument("--question", metavar="TEXT", help="the question, without its options")
    asked.add_argument(
        "--options", nargs="+", metavar="TEXT", help="answers to choose from; without, the question is open"
    )
    asked.add_argument("--questions", type=Path, metavar="FILE", help="a file of questions instead")
    asked.add_argument("--out", type=Path, metavar="FILE", help="JSONL that takes the file's answers")
    asked.add_argument("--json", action="store_true", help="print one JSON object")
    asked.add_argument(
        "--prompt", metavar="NAME", help="style of conf/prompt for a model that does not say its own"
    )
    asked.add_argument(
        "--recipe", metavar="NAME", help="model option of conf/model whose limits such a model takes"
    )
    asked.add_argument("--device", help="cpu, cuda or cuda:1 (default: a GPU if there is one)")
    asked.add_argument(
        "--batch", type=int, default=8, metavar="N", help="questions answered at once (default: %(default)s)"
    )
    return asked


def ask_one(given: argparse.Namespace) -> None:
    """Ask one question and print the answer.

    Raises:
        ValueError, OSError: see their messages.
    """
    row = {"image": given.image, "question": given.question, "options": given.options}
    question = read_question(row, "question", ImageRoot(".", follow_links=True))
    for _, why in check_images([question]):
        raise BadRowError(f"{why}: correct --image")
    (response,) = load(given, [question]).answer([question])
    if given.json:
        print(response.as_json(indent=2))
    else:
        show(response, Console() if sys.stdout.isatty() else Console(width=100))


def ask_file(given: argparse.Namespace) -> None:
    """Ask a file of questions; answers that are in ``--out`` already are kept.

    Raises:
        ValueError, OSError: see their messages.
    """
    questions = read_questions(given.questions)
    with AnswerFile(given.out, given.model).held() as file:
        missing = file.missing(questions)
        if missing:
            model = load(given, missing)
            with progress(len(missing)) as advance:
                for start in range(0, len(missing), given.batch):
                    answered = model.answer(missing[start : start + given.batch])
                    file.add(answered)
                    advance(len(answered))
        responses = [file.kept[question.id] for question in questions]
    there = f" ({len(questions) - len(missing)} were there)" if len(missing) < len(questions) else ""
    print(f"{given.out}: {len(questions)} answers{there}")
    if known := [response for response in responses if response.gold]:
        right = sum(response.answer == response.gold for response in known)
        print(f"accuracy (strict) {right / len(known):.1%} of {len(known)} questions with a known answer")


def read_questions(path: Path) -> list[Question]:
    """The questions of a file, every row and every image of it checked.

    Raises:
        BadRowError: at the first that cannot be used; names file, row, value and remedy.
    """
    questions, places = [], {}
    root = ImageRoot(path.parent, follow_links=True)
    for number, row in enumerate(read_json(path)):
        name, place = f"{path.stem}-{number}", f"{path} row {number}"
        try:
            questions.append(read_question(row, name, root))
        except BadRowError as error:
            raise BadRowError(f"{place}: {error}") from None
        places[name] = place
    remedy = "replace the file, or correct its path, which starts from the question file's folder"
    raise_first(image_faults(questions, places, remedy=remedy))
    return questions


def load(given: argparse.Namespace, questions: Sequence[Question]) -> "Answerer":
    """The model, with a line on stderr for all that a user has to know about it.

    Raises:
        ValueError, OSError: see :func:`~medvlm_r1.inference.answerer.load_answerer`.
    """
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it speaks of kernels that nobody asked for
    # Late, so that --help and a mistyped path are answered at once.
    from medvlm_r1.inference.answerer import load_answerer
    from medvlm_r1.policy.loading.resolve import MissingGPUError, MissingWeightsError

    try:
        model = load_answerer(given.model, given.prompt, given.recipe, given.device)
    except MissingWeightsError as error:
        reason = str(error).splitlines()[0].replace("model.path=", "--model ").rstrip(".")
        raise ValueError(f"{reason}. Give a run folder, a model directory, embedded or a hub id") from None
    except MissingGPUError as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise ValueError(f"{reason}: --device cpu insists on this machine, slowly") from None
    notes = list(model.notes)
    if any(not question.options for question in questions):
        notes.append(
            f"a question without --options is asked in the words of the prompt {model.asked.prompt.name}, "
            "which may speak of letters; the model was trained to choose, and there is no confidence"
        )
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    return model


@contextmanager
def progress(total: int) -> Iterator:
    """A bar on stderr, where that is a terminal; yields what moves it on."""
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("Asking", total=total)
        yield lambda count: bar.advance(task, count)


def show(response: AnswerRecord, console: Console) -> None:
    """Print question, reasoning, answer and confidence."""
    console.print(f"[bold]{escape(response.question)}[/]", highlight=False)
    console.print(f"[dim]{escape(', '.join(response.images))}[/]\n", highlight=False)
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in lines(response):
        table.add_row(name, escape(value))
    console.print(table, highlight=False)
    if response.probabilities:
        console.print()
        bars = Table.grid(padding=(0, 2))
        for option, (letter, share) in zip(response.options, response.probabilities.items(), strict=True):
            style = "bold" if letter == response.confidence_of else ""
            bars.add_row(
                f"  {letter})", escape(option), f"{share:6.1%}", "█" * round(share * 30), style=style
            )
        console.print(bars, highlight=False)


def lines(response: AnswerRecord) -> list[tuple[str, str]]:
    """What an answer says, part by part."""
    said = [("reasoning", response.reasoning if response.reasoning is not None else "none in think tags")]
    letter = response.answer or response.answer_lenient
    if not response.options:
        said.append(("answer", response.content if response.content is not None else response.text))
    elif letter:
        reading = "" if response.answer else " (not a letter alone in answer tags: read leniently)"
        said.append(("answer", f"{letter}) {response.answer_text}{reading}"))
    else:
        said.append(("answer", f"none can be read in {response.text!r}"))
    if response.truncated:
        said.append(("cut", f"at the limit of {response.tokens} tokens"))
    if response.confidence is not None:
        about = "after its own reasoning, not calibrated"
        if response.forced:
            about = (
                f"for {response.confidence_of}, of a forced answer: the completion holds no single letter "
                "as its answer"
            )
        said.append(("confidence", f"{response.confidence:.1%} ({about})"))
    return said


def told(message: str) -> int:
    """Say in one line why it cannot be done; returns the exit code."""
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
