"""What ``--predict --information`` shows: the scores, the polled pixels, and with ENACT their self-information.

Shapes: H x W pixels of the feature map, S polled ones.
"""

from typing import Any

import torch
from torch import Tensor

from common.detector import self_information


def pictures(records: dict[str, Any], outputs: dict[str, Any]) -> dict[str, Tensor]:
    """Caption -> map (H, W), of a single image. What is not polled has no self-information: it is shown as zero."""
    if "scores" not in outputs:
        return self_information(records, outputs)
    scores, tokens = outputs["scores"][0].float(), outputs["tokens"][0][outputs["kept"][0]]
    polled = torch.zeros_like(scores, dtype=torch.bool)
    polled[tokens] = True
    maps = {"Scores": scores, f"Polled: {len(tokens)} of {len(scores)}": polled}
    if records:
        information = list(records.values())[-1].information[0][: len(tokens)].float()
        maps["Self-information"] = torch.zeros_like(scores).index_put((tokens,), information)
    return {caption: values.view(outputs["feature_size"]) for caption, values in maps.items()}
