"""Tables of what the sources of the recipes say, against the configs, their headers and the documentation."""

from __future__ import annotations

import pytest

from hvdtrain.config.load import load_config
from hvdtrain.errors import ConfigError
from tests.golden.render import CONFIGS, WORLD_SIZES
from tests.golden.render_sources import PAGE, page
from tests.golden.source_tables import (
    Fact,
    config_of,
    found,
    header_without_section,
    is_explained,
    names,
    same,
    settings_of,
    table,
    with_section,
)

RENEW = "python -m tests.golden.render_sources"
NO_SOURCE = {
    "cats_dogs_vgg",  # its source publishes results, not settings
    "cifar10_fastai_preact18",
    "cifar10_quick",
    "demo_digits",
    "finetune_small",
}
"""Configs that are made here."""


def test_every_published_recipe_has_a_table() -> None:
    assert names() == sorted(WORLD_SIZES.keys() - NO_SOURCE)
    for name in names():
        of = table(name)
        assert all(
            fact.file in {**of.files, **(of.parent.files if of.parent else {})} for fact in of.facts
        )
        settings = [fact.setting for fact in of.facts]
        assert len(settings) == len(set(settings)), name


@pytest.mark.parametrize("name", names())
def test_the_config_is_what_the_table_says(name: str) -> None:
    cfg, plan = config_of(name)
    head = "\n".join(header_without_section(read(name))[0])
    for fact in table(name).all_facts.values():
        for place, wanted in fact.here.items():
            if place == "header":
                assert wanted in head, f"{name}: {fact.setting}"
                continue
            value = found(cfg, plan, place, wanted)
            assert same(value, wanted), f"{name}: {fact.setting}: {place}: {value}, table {wanted}"


@pytest.mark.parametrize("name", names())
def test_every_setting_of_the_config_is_in_the_table(name: str) -> None:
    assert {key for key in settings_of(name) if not is_explained(key, table(name))} == set()


@pytest.mark.parametrize("name", names())
def test_the_header_lists_what_differs_and_nothing_else(name: str) -> None:
    assert read(name) == with_section(read(name), table(name)), RENEW


def test_configs_of_no_source_list_no_differences() -> None:
    for name in NO_SOURCE:
        assert "Differs from its source" not in read(name)


@pytest.mark.parametrize("name", names())
def test_what_is_said_to_lack_is_not_there_yet(name: str) -> None:
    for fact in table(name).facts:
        for setting in fact.lacks:
            try:
                load_config(CONFIGS / f"{name}.yaml", [setting])
            except ConfigError:
                continue
            pytest.fail(
                f"{name}: {fact.setting}: {setting} is known now: set it in the config, remove `differs` "
                f"from tests/golden/sources/{name}.yaml, and run {RENEW}"
            )


def test_the_page_has_the_tables() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert text == page(text), RENEW


def test_a_wrong_value_is_noticed() -> None:
    cfg, plan = config_of("cifar10_fastai_wrn22")
    for place, wrong in {
        "plan.lr": {12: 1.4},
        "plan.epochs": 31,
        "plan.batch": 1024,
        "plan.val_resize": {0: 36},
        "model.pool": "concat",
        "optimizer.nesterov": True,
        "data.mean": [0.4914, 0.4822, 0.4465],
    }.items():
        assert not same(found(cfg, plan, place, wrong), wrong), place
    with pytest.raises(AssertionError, match="neither here nor differs"):
        Fact.of({"setting": "x", "there": "1", "file": "readme"})


def read(name: str) -> str:
    return (CONFIGS / f"{name}.yaml").read_text(encoding="utf-8")
