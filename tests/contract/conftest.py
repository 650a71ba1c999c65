"""Which models a contract is for: a test that asks for ``model`` runs on every net that ranks items."""

from pathlib import Path

from omegaconf import OmegaConf

FOLDER = Path(__file__).parents[2] / "conf" / "model"
ASKED = {"model": "NextItem", "click_model": "Click"}


def task(name: str) -> str:
    """The task of a model, its own or that of the model it starts from."""
    config = OmegaConf.load(FOLDER / f"{name}.yaml")
    return config._target_.rpartition(".")[2] if "_target_" in config else task(config.defaults[0])


def pytest_generate_tests(metafunc):
    for asked, kind in ASKED.items():
        if asked in metafunc.fixturenames:
            names = sorted(path.stem for path in FOLDER.glob("*.yaml"))
            metafunc.parametrize(asked, [name for name in names if task(name) == kind])
