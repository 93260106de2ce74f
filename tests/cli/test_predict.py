"""The predict command answers as the model's evaluation did; plain transformers confirms the confidence."""

import dataclasses
import json
import subprocess
import sys

import pytest
import torch
from genuine import qwen2_tokenizer
from hydra import compose, initialize_config_dir
from models import random_model
from peft import LoraConfig
from PIL import Image
from training import PROMPT, RECIPE, ROOT, SHORT, launch
from transformers import AutoModelForImageTextToText

import run  # noqa: F401  (registers the resolvers)
from medvlm_r1.cli.predict import main
from medvlm_r1.data.sample import Question
from medvlm_r1.inference.confidence import option_probabilities
from medvlm_r1.phantom import PhantomSource
from medvlm_r1.policy import prompt_record
from medvlm_r1.policy.loading.load import load_policy
from medvlm_r1.policy.loading.resolve import EMBEDDED
from medvlm_r1.policy.loading.tuning import Tuning
from medvlm_r1.policy.policy import Policy
from medvlm_r1.prompts import Alternatives, PromptStyle

REASONED = "<think>It is a cyst.</think>\n<answer>"
CLOSED = "</answer>"
ASK = ["--question", "Which organ?", "--options", "liver", "brain", "lung"]


def question(*options, id="q"):
    return Question(id, (), "Which organ?", options)


def alternatives(text, *options, style=PROMPT):
    sample = question(*options)
    return style.alternatives(style.parse(text, sample), sample)


class TestAlternatives:
    def test_the_letter_and_nothing_else_is_exchanged(self):
        found = alternatives(REASONED + "B" + CLOSED, "liver", "brain", "lung")
        assert found.texts == tuple(REASONED + letter + CLOSED for letter in "ABC")
        assert (found.forced, found.ends_turn) == (False, False)

    def test_white_space_and_case_are_the_models_own(self):
        found = alternatives("<answer> b </ANSWER> done", "liver", "brain")
        assert found.texts == ("<answer> a </ANSWER>", "<answer> b </ANSWER>")
        assert not found.forced

    @pytest.mark.parametrize(
        ("text", "before"),
        [
            ("<think>a cyst", "<think>a cyst</think>\n<answer>"),  # cut while it reasoned
            ("<think>a cyst</thi", "<think>a cyst</think>\n<answer>"),
            ("<think>a cyst</think>\n", "<think>a cyst</think>\n<answer>"),
            ("<think>a cyst</think><answer>", "<think>a cyst</think><answer>"),
            ("<answer>the liver</answer>", "<answer>"),
            ("", "<answer>"),
        ],
    )
    def test_an_answer_that_is_none_is_forced(self, text, before):
        found = alternatives(text, "liver", "brain")
        assert found.texts == (f"{before}A{CLOSED}", f"{before}B{CLOSED}")
        assert found.forced

    def test_without_tags_the_turn_ends_behind_the_letter(self):
        style = PromptStyle("simple", "{Question}", "{Question}", tags=False)
        own = alternatives("B", "liver", "brain", style=style)
        assert own == Alternatives(("A", "B"), forced=False, ends_turn=True)
        assert alternatives("the brain, I guess", "liver", "brain", style=style) == Alternatives(
            ("A", "B"), forced=True, ends_turn=True
        )


def plainly(model, encoder, prompt, each):
    """The same probabilities from a whole pass of plain transformers for each text, all its tokens summed."""
    scores = []
    for text in each.texts:
        answer = text + ("<|im_end|>" if each.ends_turn else "")
        tokens = encoder.tokenizer(answer, return_tensors="pt")["input_ids"]
        ids = torch.cat([prompt.ids[None], tokens], dim=1)
        vision = {"pixel_values": encoder.pixel_values(prompt.pixels), "image_grid_thw": prompt.grid}
        kinds = (ids == model.config.image_token_id).int()
        with torch.no_grad():
            logits = model(
                input_ids=ids, mm_token_type_ids=kinds, **(vision if len(prompt.grid) else {})
            ).logits[0, len(prompt.ids) - 1 : -1]
        banned = [encoder.tokenizer.convert_tokens_to_ids(t) for t in ("<|image_pad|>", "<|video_pad|>")]
        banned += [encoder.tokenizer.convert_tokens_to_ids(f"<|vision_{end}|>") for end in ("start", "end")]
        logits[:, banned] = -torch.inf
        scores.append(logits.double().log_softmax(-1).gather(1, tokens.T).sum())
    return torch.stack(scores).softmax(0).tolist()


class TestProbabilities:
    def test_they_are_those_of_plain_transformers(self):
        policy = load_policy("embedded", RECIPE).eval()
        model = AutoModelForImageTextToText.from_pretrained(EMBEDDED).eval()
        texts = (REASONED + "B" + CLOSED, "<answer>D</answer>", "<think>The image", ".", "")
        given = []
        for text, sample in zip(texts, PhantomSource("mri", 5, "test"), strict=True):
            shorter = dataclasses.replace(sample, options=sample.options[: 4 - len(given) % 3], answer="A")
            prompt = policy.encoder.encode(shorter, "evaluate", PROMPT)
            each = PROMPT.alternatives(PROMPT.parse(text, shorter), shorter)
            given.append((prompt, dataclasses.replace(each, ends_turn=text == ".")))
        found = option_probabilities(policy, *zip(*given, strict=True))
        for (prompt, each), shares in zip(given, found, strict=True):
            assert len(shares) == len(each.texts)
            assert sum(shares) == pytest.approx(1)
            assert shares == pytest.approx(plainly(model, policy.encoder, prompt, each), abs=1e-5)
            assert max(shares) - min(shares) > 0.01  # the letters can be told apart
        assert {len(shares) for shares in found} == {2, 3, 4}

    def test_letters_that_are_joined_with_their_neighbours(self, encoder, questions, short_style):
        """Qwen2's own vocabulary, where ``>A`` is one token."""
        encoder = dataclasses.replace(encoder, tokenizer=qwen2_tokenizer())
        policy = Policy(random_model(encoder), encoder).eval()
        chosen = [questions["two"], questions["flat"], questions["text"]]
        prompts = [encoder.encode(sample, "evaluate", short_style) for sample in chosen]
        each = [
            short_style.alternatives(short_style.parse(REASONED + "B" + CLOSED, sample), sample)
            for sample in chosen
        ]
        assert ">B" in encoder.tokenizer.tokenize(each[0].texts[1])
        for prompt, one, shares in zip(
            prompts, each, option_probabilities(policy, prompts, each), strict=True
        ):
            assert shares == pytest.approx(plainly(policy.model, encoder, prompt, one), abs=1e-5)

    def test_a_special_token_that_the_model_spells_out_is_text(self, random_policy, questions, short_style):
        prompt = random_policy.encoder.encode(questions["square"], "evaluate", short_style)
        texts = tuple(f"<think><|image_pad|></think><answer>{letter}</answer>" for letter in "ABC")
        (shares,) = option_probabilities(random_policy, [prompt], [Alternatives(texts, False, False)])
        assert sum(shares) == pytest.approx(1)


class TestAsked:
    @pytest.mark.parametrize("name", ["tiny", "qwen2_vl_2b", "qwen2_vl_7b", "med_r1", "medvlm_r1"])
    def test_a_plain_checkpoints_limits_are_those_of_its_model_option(self, name):
        with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
            cfg = compose("config", overrides=[f"model={name}", "prompt=med_r1_simple"])
        found, option = prompt_record.record_from_config("anywhere", "med_r1_simple", name)
        assert option == name
        for limit in ("min_pixels", "max_pixels", "image_size", "dtype", "max_completion_tokens"):
            assert getattr(found, limit) == cfg.model.recipe[limit]
        assert dataclasses.asdict(found.prompt) == {
            "layout": "lines",
            "open": None,
            **{key: value for key, value in cfg.prompt.items() if key != "_target_"},
        }

    def test_the_option_is_found_by_its_path(self):
        assert prompt_record.record_from_config("embedded", "medvlm_r1")[1] == "tiny"
        assert prompt_record.record_from_config("Qwen/Qwen2-VL-7B-Instruct", "medvlm_r1")[1] == "qwen2_vl_7b"
        assert prompt_record.record_from_config("/some/checkpoint", "medvlm_r1")[1] == "qwen2_vl_2b"
        assert prompt_record.configured_revision("Qwen/Qwen2-VL-2B-Instruct").startswith("895c3a")
        assert prompt_record.configured_revision("/some/checkpoint") is None


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    path = tmp_path_factory.mktemp("picture") / "scan.png"
    PhantomSource("mri", 1, "test")[0].images[0].load().save(path)
    return path


class TestOneQuestion:
    def test_json_is_one_object(self, picture, capsys):
        assert main(["--model", "embedded", "--image", str(picture), *ASK, "--json"]) == 0
        out, err = capsys.readouterr()
        record = json.loads(out)
        assert list(record["probabilities"]) == ["A", "B", "C"]
        assert sum(record["probabilities"].values()) == pytest.approx(1)
        assert record["confidence"] == record["probabilities"][record["confidence_of"]]
        if record["answer"]:
            assert record["options"]["ABC".index(record["answer"])] == record["answer_text"]
        assert "not a medical device" in err
        assert "no medvlm_r1.json" in err
        assert "medvlm_r1 and the limits of --recipe tiny" in err

    def test_the_console_shows_options_with_their_letters(self, picture, capsys):
        given = ["--model", "embedded", "--image", str(picture), str(picture), "--question", "The [same]?"]
        assert main([*given, "--options", "yes", "no"]) == 0
        out = capsys.readouterr().out
        assert "The [same]?" in out
        for part in ("A)  yes", "B)  no", "confidence", "reasoning"):
            assert part in out

    def test_an_open_question_has_no_confidence(self, picture, capsys):
        assert main(["--model", "embedded", "--image", str(picture), *ASK[:2], "--json"]) == 0
        out, err = capsys.readouterr()
        record = json.loads(out)
        assert record["confidence"] is record["probabilities"] is record["forced"] is None
        assert "a question without options" in err

    def test_a_forced_answer_is_labelled(self, picture, capsys):
        given = ["--model", "embedded", "--image", str(picture), *ASK, "--prompt", "medvlm_r1_simple"]
        assert main(given) == 0
        assert "of a forced answer" in capsys.readouterr().out

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            (["--image", "nowhere.png"], "nowhere.png does not exist"),
            (["--image", __file__], "cannot be decoded"),
            (["--options", "liver"], "1 options: a question needs 2 to 10"),
            (["--options", "liver", "liver"], "duplicate"),
            (["--options", *"abcdefghijk"], "11 options"),
            (["--question", " "], "question is empty"),
            (["--model", "nowhere"], "--model nowhere is no directory"),
            (["--model", str(ROOT / "conf")], "is no directory with a config.json"),
            (["--prompt", "nothing"], "there is no prompt option 'nothing'"),
            (["--recipe", "nothing"], "there is no model option 'nothing'"),
            (["--device", "warp"], "--device warp cannot be used"),
        ],
    )
    def test_an_error_is_one_line(self, changes, message, picture, capsys):
        assert main(["--model", "embedded", "--image", str(picture), *ASK, *changes]) == 2
        out, err = capsys.readouterr()
        assert not out
        (line,) = [line for line in err.splitlines() if line.startswith("error:")]
        assert message in line

    @pytest.mark.parametrize(
        "given",
        [[], ["--question", "q"], ["--questions", "f"], ["--question", "q", "--image", "i", "--out", "o"]],
    )
    def test_half_a_command_is_refused(self, given, capsys):
        with pytest.raises(SystemExit) as stopped:
            main(["--model", "embedded", *given])
        assert stopped.value.code == 2
        assert "--questions" in capsys.readouterr().err

    def test_help_is_quick_and_has_examples(self):
        command = "try: medvlm_r1.cli.predict.main(['--help'])\nfinally: print('torch' in sys.modules)"
        code = f"import sys, medvlm_r1.cli.predict\n{command}"
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
        assert "--questions questions.json" in done.stdout
        assert done.stdout.endswith("False\n")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run folder, and its test questions as a file that others could have: pictures, no answers."""
    folder = tmp_path_factory.mktemp("run")
    found = launch(
        folder,
        *SHORT,
        "data.test.ct.n=1",
        "prompt=med_r1",
        "model.recipe.image_size=100",
        "trainer.max_steps=1",
        "logger=csv",
    )
    rows = []
    for modality in ("mri", "xray"):
        for sample in PhantomSource(modality, 8, "test"):
            sample.images[0].load().save(folder / f"{sample.id}.png")
            rows.append(
                {"image": f"{sample.id}.png", "question": sample.question, "options": list(sample.options)}
            )
    (folder / "questions.json").write_text(json.dumps(rows))
    return found


def answers(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


class TestFile:
    def test_a_runs_own_predictions_come_back(self, finished, tmp_path, capsys):
        out = tmp_path / "deep" / "answers.jsonl"
        file = str(finished.parents[2] / "questions.json")
        assert main(["--model", str(finished), "--questions", file, "--out", str(out), "--batch", "5"]) == 0
        assert "note:" not in capsys.readouterr().err  # the run recorded its prompt
        there = answers(finished / "predictions.jsonl")
        there = [row for row in there if row["control"] == "image" and row["test_set"] != "ct"]
        found = answers(out)
        assert len(found) == 16
        for name in ("question", "options", "text", "answer", "well_formed", "tokens", "truncated"):
            assert [row[name] for row in found] == [row[name] for row in there], name
        assert {row["prompt"] for row in found} == {"med_r1"}
        for row in found:
            assert sum(row["probabilities"].values()) == pytest.approx(1)
            if row["answer"]:
                assert not row["forced"]
                assert row["confidence"] == max(row["probabilities"].values())  # greedy took the likeliest

    def test_it_goes_on_where_it_was_killed(self, finished, tmp_path, capsys):
        out, file = tmp_path / "answers.jsonl", finished.parents[2] / "questions.json"
        command = ["--model", str(finished / "model"), "--questions", str(file), "--out", str(out)]
        assert main(command) == 0
        whole = out.read_bytes()
        lines = whole.splitlines(keepends=True)
        kept = json.loads(lines[0]) | {"text": "kept as it was"}
        first = json.dumps(kept).encode() + b"\n"
        # After a whole batch: beside other questions a probability's last digits may differ.
        out.write_bytes(first + b"".join(lines[1:8]) + lines[8][:40])
        assert main(command) == 0
        assert "16 answers (8 reused)" in capsys.readouterr().out
        assert out.read_bytes() == first + b"".join(lines[1:])
        assert main(command) == 0
        assert out.read_bytes() == first + b"".join(lines[1:])

    def test_answers_of_others_are_refused(self, finished, tmp_path, capsys, picture):
        row = {"image": str(picture), "question": "Which?", "options": ["a", "b"]}
        file, out = tmp_path / "one.jsonl", tmp_path / "out.jsonl"
        file.write_text(json.dumps(row | {"answer": "b"}) + "\n")
        command = ["--questions", str(file), "--out", str(out), "--model"]
        assert main([*command, "embedded"]) == 0
        assert "of 1 questions with a gold answer" in capsys.readouterr().out
        assert answers(out)[0]["gold"] == "B"
        assert main([*command, str(finished)]) == 2
        assert "line 1 is an answer of the model embedded" in capsys.readouterr().err
        file.write_text(json.dumps(row | {"question": "Where?"}) + "\n")
        assert main([*command, "embedded"]) == 2
        assert "one-0 is another question there" in capsys.readouterr().err
        out.write_bytes(out.read_bytes() * 2)
        assert main([*command, "embedded"]) == 2
        assert "line 2 is a second answer to one-0" in capsys.readouterr().err
        out.write_text("a line of mine\n")
        assert main([*command, "embedded"]) == 2
        assert "line 1 is not an answer record" in capsys.readouterr().err
        assert out.read_text() == "a line of mine\n"

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"options": ["a"]}, "row 1: 1 options"),
            ({"options": ["a", "a"]}, "row 1: options ['a', 'a'] contain a duplicate"),
            ({"options": "a or b"}, "row 1: options is 'a or b': give a list"),
            ({"image": "nowhere.png"}, "row 1: image"),
            ({"question": None}, "row 1: column 'question' is missing"),
            ({"option": ["a", "b"], "options": None}, "rename it to 'options'"),
            ({"answer": "c"}, "row 1: answer 'c' is not among the options"),
        ],
    )
    def test_a_bad_row_is_named(self, change, message, picture, tmp_path, capsys):
        row = {"image": str(picture), "question": "Which?", "options": ["a", "b"]}
        file = tmp_path / "rows.json"
        file.write_text(json.dumps([row, {**row, **change}]))
        out = tmp_path / "out.jsonl"
        assert main(["--model", "embedded", "--questions", str(file), "--out", str(out)]) == 2
        err = capsys.readouterr().err
        assert f"{file} row 1" in err
        assert message in err
        assert not out.exists()

    def test_the_record_decides_and_must_be_whole(self, finished, picture, tmp_path, capsys):
        given = ["--image", str(picture), *ASK, "--prompt", "medvlm_r1"]
        assert main(["--model", str(finished), *given]) == 2
        assert "medvlm_r1.json sets the prompt (med_r1)" in capsys.readouterr().err
        for file in (finished / "model").iterdir():
            (tmp_path / file.name).symlink_to(file)
        record = tmp_path / "medvlm_r1.json"
        rest = json.loads(record.read_text())
        record.unlink()
        del rest["dtype"]
        record.write_text(json.dumps(rest))
        assert main(["--model", str(tmp_path), *given]) == 2
        assert "medvlm_r1.json lacks dtype" in capsys.readouterr().err

    def test_a_zero_shot_run_has_no_model(self, finished, picture, tmp_path, capsys):
        (tmp_path / "metrics.json").write_text((finished / "metrics.json").read_text())
        assert main(["--model", str(tmp_path), "--image", str(picture), *ASK]) == 2
        assert "a zero-shot run saves no weights" in capsys.readouterr().err


def test_an_adapters_directory_is_its_base_with_the_adapter(picture, tmp_path, capsys):
    lora = LoraConfig(r=2, target_modules=["q_proj", "v_proj"])  # new, so it changes nothing yet
    load_policy("embedded", RECIPE, tuning=Tuning(train="adapter", adapter=lora)).save(tmp_path / "adapter")
    records = []
    for model in ("embedded", str(tmp_path / "adapter")):
        given = ["--model", model, "--recipe", "tiny", "--image", str(picture), *ASK, "--json"]
        assert main(given) == 0
        records.append(json.loads(capsys.readouterr().out))
    assert records[0]["text"] == records[1]["text"]
    assert records[0]["probabilities"] == pytest.approx(records[1]["probabilities"], abs=1e-5)


def test_pictures_of_every_kind_go_through_one_place(tmp_path, capsys):
    """16 bits a pixel, as :class:`ImageFile` windows them; a bad second picture is named."""
    deep, broken = tmp_path / "deep.png", tmp_path / "broken.png"
    Image.linear_gradient("L").convert("I").convert("I;16").save(deep)
    broken.write_bytes(deep.read_bytes()[:200])
    assert main(["--model", "embedded", "--image", str(deep), *ASK, "--json"]) == 0
    assert main(["--model", "embedded", "--image", str(deep), str(broken), *ASK]) == 2
    assert f"image {broken} cannot be decoded" in capsys.readouterr().err

    def test_a_prompt_beyond_the_context_is_found_before_the_first_answer(self, tmp_path, capsys, picture):
        row = {"image": str(picture), "question": "Which?", "options": ["a", "b"]}
        file, out = tmp_path / "long.jsonl", tmp_path / "out.jsonl"
        rows = [row, row | {"question": "Which? " * 2000}]
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        assert main(["--model", "embedded", "--questions", str(file), "--out", str(out)]) == 2
        error = capsys.readouterr().err
        assert f"{file} row 1: the prompt has" in error
        assert "give fewer images or a shorter text" in error
        assert not out.exists() or not out.read_text()
