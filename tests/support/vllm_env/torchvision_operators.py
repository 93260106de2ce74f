"""Let torchvision be imported beside a CPU build of torch; `make vllm` installs it.

The usual torchvision is built for CUDA, so that its compiled part does not load there. Its Python part, all
that vLLM needs, then fails on import: it registers shapes for two operators that nothing has declared. This
declares the two without an implementation, unless the compiled part did load.
"""

import sys
from importlib.abc import MetaPathFinder

SIGNATURE = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


class _BeforeRegistrations(MetaPathFinder):
    """Acts on the import of the module that registers, before which torchvision loads its compiled part."""

    def find_spec(self, name, path=None, target=None):
        if name == "torchvision._meta_registrations":
            sys.meta_path.remove(self)
            import torch
            from torchvision.extension import _has_ops

            if not _has_ops():
                self.library = torch.library.Library("torchvision", "DEF")
                for operator in ("nms", "qnms"):
                    self.library.define(operator + SIGNATURE)
        return None


finder = _BeforeRegistrations()
sys.meta_path.insert(0, finder)
