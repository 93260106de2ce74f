"""Does reinforcement learning make a small medical vision-language model reason better than SFT does?

The package is laid out in the order in which one question travels. Read the files in this order;
the training loop itself is ``grpo.py``, where ``training_step`` names the stops one after another.

===========  ==================================================  ======================================
stop         what happens                                        where
===========  ==================================================  ======================================
compose      the configuration becomes objects                   ``run.py``, ``conf/``
sample       a source reads one question                         ``data/``
render       a prompt style turns it into a chat                 ``prompts.py``: ``PromptStyle.render``
encode       the chat becomes tensors, once per prompt           ``policy/encode.py``
roll out     an engine draws G completions per prompt            ``rollout/``
parse        the same prompt style parses each completion        ``prompts.py``: ``PromptStyle.parse``
score        reward terms                                        ``rewards.py``
advantage    each completion relative to its group               ``advantage.py``
log-probs    policy (with gradient) and reference (without)      ``policy/policy.py``
loss         clipped, KL-regularised                             ``objective.py``
update       backward, clip, step                                ``update.py``, ``module.py``
evaluate     greedy answers under every control, the same read   ``module.py``, ``evaluate/``
report       intervals, comparison, the page                     ``report/``, ``compare.py``
hand on      an ordinary Hugging Face directory with its card    ``policy/export.py``, ``card.py``
ask again    one's own question, answered with a confidence      ``predict.py``, ``respond.py``
===========  ==================================================  ======================================

``sft.py`` takes the same road without roll out to loss; zero-shot only evaluates, and may ask a
served model (``endpoint.py``, ``replies.py``). ``trace.py`` and ``watch.py`` write down and watch what
happens on the way, in the folder that ``folder.py`` finds. ``plan/`` counts a run's memory and time
beforehand. ``tiny/`` is the embedded model.
"""
