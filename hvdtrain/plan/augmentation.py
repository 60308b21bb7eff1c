"""The plan's line about the augmentation of training images."""

from __future__ import annotations

from hvdtrain.config.schema import Config


def augmentation(cfg: Config) -> str:
    """How training images are changed, in one line."""
    data, train = cfg.data, cfg.train
    words: list[str] = [data.augment]
    if data.crop_padding:
        words[0] += f" {data.crop_padding} px"
    if data.padding_mode != "reflect":
        words[0] += f" {data.padding_mode}"
    if data.flip:
        words.append("alternating flip" if data.flip == "alternating" else "flip")
    if data.rand_augment:
        policy = "" if data.rand_augment_policy == "standard" else f" {data.rand_augment_policy}"
        words.append("RandAugment {} × {}{}".format(*data.rand_augment, policy))
    if data.random_erasing:
        words.append(f"random erasing {data.random_erasing:g}")
    if any(data.color_jitter):
        words.append("colour jitter " + "/".join(f"{x:g}" for x in data.color_jitter))
    if data.rotation:
        words.append(f"rotation ±{data.rotation:g}°")
    if data.translation:
        words.append(f"translation ±{data.translation:.3g} of the side")
    words += [
        f"{name} {alpha:g}"
        for name, alpha in (("mixup", train.mixup), ("CutMix", train.cutmix))
        if alpha
    ]
    if train.mix_share != "image":
        words.append("one share a forward pass")
    if train.mix_partner != "neighbour":
        words.append(f"{train.mix_partner} partners")
    return ", ".join(words)
