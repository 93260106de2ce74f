"""Validation of the tiny model: accuracy with forced reasoning, and with its own choice to reason or not."""

import numpy as np
import torch
from batches import IMAGE_TOKENS, prompt_style
from torch import Tensor
from transformers import Qwen2Tokenizer, Qwen2VLForConditionalGeneration, Qwen2VLImageProcessorPil

from medvlm_r1.data.sample import VQASample
from medvlm_r1.phantom import MODALITIES, PhantomSource

STYLES = {name: prompt_style(name) for name in ("medvlm_r1", "med_r1")}


class Validation:
    """The same number of validation questions for every modality, by default with MedVLM-R1's prompt."""

    def __init__(self, tokenizer: Qwen2Tokenizer, processor: Qwen2VLImageProcessorPil, questions: int):
        """``questions``: number per modality."""
        self.tokenizer = tokenizer
        self.samples = {name: list(PhantomSource(name, questions, split="validation")) for name in MODALITIES}
        self.images = {
            name: processor([sample.images[0].load() for sample in samples], return_tensors="pt")
            for name, samples in self.samples.items()
        }

    def accuracies(self, model: Qwen2VLForConditionalGeneration) -> dict[str, dict[str, float]]:
        """Compute accuracies as fractions, by modality.

        Returns:
            ``reasoned``: greedy after a forced ``<think>``; ``reasoned_med_r1``: the same with Med-R1's
            prompt; ``greedy``: greedy, without a prefix; ``greedy_think``: share of these that reason;
            ``sampled``, ``sampled_think``: the same at temperature 1; ``sampled_right``: accuracy of the
            sampled completions that reason.
        """
        model.eval()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            report = {name: self._evaluate(model, name) for name in MODALITIES}
        model.train()
        return report

    def _evaluate(self, model: Qwen2VLForConditionalGeneration, modality: str) -> dict[str, float]:
        forced, _ = self._answer(model, modality, "<think>", sample=False)
        other, _ = self._answer(model, modality, "<think>", sample=False, style="med_r1")
        greedy, greedy_think = self._answer(model, modality, "", sample=False)
        sampled, sampled_think = self._answer(model, modality, "", sample=True)
        both = sampled[sampled_think]
        return {
            "reasoned": float(forced.mean()),
            "reasoned_med_r1": float(other.mean()),
            "greedy": float(greedy.mean()),
            "greedy_think": float(greedy_think.mean()),
            "sampled": float(sampled.mean()),
            "sampled_think": float(sampled_think.mean()),
            "sampled_right": float(both.mean()) if len(both) else 0.0,
        }

    @torch.no_grad()
    def _answer(
        self,
        model: Qwen2VLForConditionalGeneration,
        modality: str,
        prefix: str,
        sample: bool,
        style: str = "medvlm_r1",
    ) -> tuple[np.ndarray, np.ndarray]:
        """Per question: correct, and well-formed with reasoning."""
        samples = self.samples[modality]
        texts = [self._prompt(one, style) + prefix for one in samples]
        rows = self.tokenizer(texts, padding=True, return_tensors="pt")
        is_image: Tensor = rows["input_ids"] == model.config.image_token_id
        out = model.generate(
            **rows,
            mm_token_type_ids=is_image.int(),
            pixel_values=self.images[modality]["pixel_values"],
            image_grid_thw=self.images[modality]["image_grid_thw"],
            max_new_tokens=24,
            do_sample=sample,
            **({"temperature": 1.0, "top_k": 0, "top_p": 1.0} if sample else {}),
        )
        texts = self.tokenizer.batch_decode(out[:, rows["input_ids"].shape[1] :], skip_special_tokens=True)
        answers = [STYLES[style].parse(prefix + text, one) for text, one in zip(texts, samples, strict=True)]
        correct = np.array([a.letter == one.answer for a, one in zip(answers, samples, strict=True)])
        return correct, np.array([answer.well_formed for answer in answers])

    def _prompt(self, sample: VQASample, style: str) -> str:
        text = self.tokenizer.apply_chat_template(
            STYLES[style].render(sample, "evaluate"), tokenize=False, add_generation_prompt=True
        )
        return text.replace("<|image_pad|>", "<|image_pad|>" * IMAGE_TOKENS)
