"""The tensors of published NFNets by our names: DeepMind's own (haiku) and timm's `dm_nfnet_*`.

Source of the names: deepmind-research, nfnets/nfnet.py and utils.py; timm, models/nfnet.py.
"""

from __future__ import annotations

import re

from torch import Tensor

Tensors = dict[str, Tensor]

HAIKU_PARTS = {
    "conv0": "conv1",
    "conv1": "conv2",
    "conv1b": "conv2b",
    "conv2": "conv3",
    "conv_shortcut": "shortcut",
    "squeeze_excite.linear": "excite.reduce",
    "squeeze_excite.linear_1": "excite.expand",
}
HAIKU = re.compile(r"(?:[^.]+\.)?(?:(stem_conv|nf_block)_?(\d*)|(final_conv|linear))\.(.+)")
"""`NFNet/~/nf_block_3/~/conv1b/w`, with a point for every slash."""
TIMM = (
    (r"\.downsample\.conv\.", ".shortcut."),
    (r"\.attn_last\.fc1\.", ".excite.reduce."),
    (r"\.attn_last\.fc2\.", ".excite.expand."),
    (r"\.skipinit_gain$", ".skip_gain"),
    (r"^final_conv\.", "final."),
    (r"^head\.fc\.", "classifier."),
)


def is_published(tensors: Tensors) -> bool:
    """Whether the names are those of DeepMind's NFNets, or of timm's copies."""
    return any(name.endswith("stem.conv4.gain") or "stem_conv3" in name for name in tensors)


def rename_nfnet(tensors: Tensors, depths: list[int]) -> Tensors:
    """`tensors` by our names, with arrays in torch's order; others than `is_published` as they are."""
    if "stem.conv4.gain" in tensors:
        return dict(_from_timm(name, tensor) for name, tensor in tensors.items())
    if is_published(tensors):
        return dict(_from_haiku(name, tensor, depths) for name, tensor in tensors.items())
    return tensors


def _from_timm(name: str, tensor: Tensor) -> tuple[str, Tensor]:
    name = re.sub(r"^stem\.conv(\d)\.", lambda found: f"stem.{2 * int(found[1]) - 2}.", name)
    for pattern, ours in TIMM:
        name = re.sub(pattern, ours, name)
    if name.endswith(".gain"):
        tensor = tensor.flatten()
    elif ".excite." in name and name.endswith(".weight"):  # a 1×1 convolution there
        tensor = tensor.flatten(1)
    return name, tensor


def _from_haiku(name: str, tensor: Tensor, depths: list[int]) -> tuple[str, Tensor]:
    found = HAIKU.fullmatch(name.replace("/~/", ".").replace("/", "."))
    if found is None:
        return name, tensor
    kind, number, last, rest = found.groups()
    index = int(number or 0)
    if kind == "stem_conv":
        ours = f"stem.{2 * index}.{rest}"
    elif kind == "nf_block":
        part, _, leaf = rest.rpartition(".")
        inside = f"{HAIKU_PARTS.get(part, part)}." if part else ""
        ours = f"{_place(index, depths)}.{inside}{leaf}"
    else:
        ours = f"{'final' if last == 'final_conv' else 'classifier'}.{rest}"
    ours = re.sub(r"\.w$", ".weight", re.sub(r"\.b$", ".bias", ours))
    return ours, _in_torch_order(tensor, scalar=ours.endswith(".skip_gain"))


def _place(index: int, depths: list[int]) -> str:
    """Stage and position of a block that is counted from the start of the network."""
    for stage, depth in enumerate(depths):
        if index < depth:
            return f"stages.{stage}.{index}"
        index -= depth
    return f"stages.{len(depths)}.{index}"  # none of this network


def _in_torch_order(tensor: Tensor, *, scalar: bool) -> Tensor:
    """Kernels [H, W, I, O] and matrices [I, O] as torch has them: [O, I, H, W] and [O, I]."""
    if scalar and tensor.numel() == 1:
        return tensor.reshape(())
    if tensor.ndim == 4:
        return tensor.permute(3, 2, 0, 1).contiguous()
    return tensor.T.contiguous() if tensor.ndim == 2 else tensor
