"""The code in the README and in CONTRIBUTING runs."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from lightning_tricks.recipes.digits import DigitsClassifier, DigitsData
from lightning_tricks.recipes.residual import ResidualNet
from tests.contract import test_laws
from tests.contract.cases import Case
from tests.contract.regimes import REGIMES
from tests.yaml_trainer import yaml_trainer

ROOT = Path(__file__).parent.parent


class Classifier(DigitsClassifier):
    """Without arguments, as LightningCLI needs it here."""

    def __init__(self) -> None:
        super().__init__(ResidualNet(widths=(4,)))


def blocks(language: str, document: str = "README.md") -> list[str]:
    text = (ROOT / document).read_text()
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


# What a newcomer's Trainer says of itself, on whatever machine that is.
@pytest.mark.filterwarnings("ignore:.*tensorboardX|.*does not have many workers|.*smaller than the logging")
def test_python_blocks_run_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    assert len(blocks("python")) >= 2
    for block in blocks("python"):
        exec(block, names)


def test_yaml_block_builds_the_techniques(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (config,) = blocks("yaml")
    trainer = yaml_trainer(yaml.safe_load(config), Classifier, DigitsData)
    kinds = [type(callback).__name__ for callback in trainer.callbacks]
    assert kinds[:3] == ["GradientClip", "WarmupCosine", "EMAWeights"]


def test_shell_blocks_name_targets_of_the_makefile() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make (\w+)", "\n".join(blocks("sh")), re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_the_technique_of_contributing_keeps_the_contract(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, entry = blocks("python", "CONTRIBUTING.md")
    written = ModuleType("noise")
    monkeypatch.setitem(sys.modules, "noise", written)  # where its dataclass looks for its own names
    exec(code, vars(written))
    cases: dict[str, Case] = {}
    exec(entry, {**vars(written), "Case": Case, "cases": cases})
    case, regime = cases["GradientNoise"], REGIMES["manual"]
    test_laws.test_neutral_setting_changes_no_bit(case, regime, tmp_path)
    test_laws.test_active_setting_changes_the_run(case, regime, tmp_path)
    test_laws.test_resumed_run_equals_uninterrupted_run(case, ("on_train_batch_end", 4), regime, tmp_path)
