"""The frozen judge: prompt, attention injection, head detection, diagnostics (paper, section 3; method.md, 1 and 2).

==============  ======================================================================================
``prompt``      the text that the judge reads, with the token span of every passage, question and target
``attention``   equations 7 to 9 as a correction of the stock attention's output, in selected heads and rows
``model``       :class:`Judge`: documents read once per set, losses of all questions on top
``loss``        target cross-entropy that keeps no logits
``heads``       which heads retrieve: detection, selection, stability
``diagnostics`` does the judge's loss tell the right passage from a wrong one?
``flops``       what a step costs, counted
==============  ======================================================================================
"""

from dream.judge.attention import Injection
from dream.judge.model import Judge, Reading
from dream.judge.prompt import Limits, Prompt

__all__ = ["Injection", "Judge", "Limits", "Prompt", "Reading"]
