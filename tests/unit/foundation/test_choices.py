"""Settings that choose by name: defaults, classes of other packages, and what is said when there is no such thing."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import ConfigDict, Field, TypeAdapter
from pydantic.dataclasses import dataclass

from trainer.config import help_text, load_config
from trainer.foundation.choices import Choice, OneOf
from trainer.foundation.errors import SettingError
from trainer.foundation.settings import describe, validate
from trainer.methods.terms import losses
from trainer.models.conditioning import ProjectionConfig

STRICT = ConfigDict(extra="forbid", use_attribute_docstrings=True)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Adam:
    name: Literal["adam"] = "adam"
    rate: Annotated[float, Field(gt=0)] = 1.0

    def build(self) -> str:
        return f"adam {self.rate}"


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Sgd:
    name: Literal["sgd"] = "sgd"
    momentum: float = 0.0

    def build(self) -> str:
        return f"sgd {self.momentum}"


TABLE = {"hinge": 1, "wasserstein": 2}


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Experiment:
    optimizer: Annotated[Adam | Sgd, Choice(default="adam")] = Adam()
    several: tuple[Annotated[Adam | Sgd, Choice()], ...] = ()
    perhaps: Annotated[Adam | Sgd, Choice()] | None = None
    named: dict[str, Annotated[Adam | Sgd, Choice(default="adam")]] = Field(default_factory=dict)
    loss: Annotated[str, OneOf(TABLE)] = "hinge"
    """Which loss."""


FOREIGN = '''
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass
import dataclasses

@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid", use_attribute_docstrings=True))
class Lion:
    rate: float = 0.5
    """How fast."""
    def build(self):
        return f"lion {self.rate}"

@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Named:
    name: str
    def build(self):
        return self.name

@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Lazy:
    """It does not build."""

@dataclass(frozen=True, kw_only=True)
class Careless:
    def build(self):
        return None

@dataclasses.dataclass
class Plain:
    def build(self):
        return None
'''


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """The name of an importable module of somebody else; each test has its own."""
    name = f"lab_{abs(hash(request.node.name))}"
    (tmp_path / f"{name}.py").write_text(FOREIGN)
    (tmp_path / f"{name}_broken.py").write_text("import no_such_thing")
    monkeypatch.syspath_prepend(str(tmp_path))
    return name


def of(**tree: Any) -> Experiment:
    return validate(Experiment, tree, {"optimizer.name": "here"})


def refusal(**tree: Any) -> str:
    with pytest.raises(SettingError) as raised:
        of(**tree)
    assert len(str(raised.value).splitlines()) == 1
    return str(raised.value)


def test_a_section_without_a_name_is_the_default_member() -> None:
    assert of(optimizer={"rate": 2}).optimizer == Adam(rate=2)
    assert of(optimizer={"name": "sgd", "momentum": 0.5}).optimizer == Sgd(momentum=0.5)
    assert of(optimizer={}) == of() == Experiment()
    assert refusal(optimizer={"rate": -1}).startswith("optimizer.rate: is -1 ")
    assert refusal(optimizer={"rat": 1}).endswith("did you mean optimizer.rate?")
    assert refusal(perhaps={"rate": 1}).startswith("perhaps.name: is missing")
    assert refusal(several=[{"name": "adam"}, {}]).startswith("several.1.name: is missing")
    assert "choose one of 'adam', 'sgd'" in refusal(perhaps={})


def test_what_is_no_member_is_refused() -> None:
    assert refusal(optimizer={"name": "lion"}) == "optimizer.name: is 'lion' (here); choose one of 'adam', 'sgd'"
    assert refusal(optimizer={"name": None}) == "optimizer.name: is 'None' (here); choose one of 'adam', 'sgd'"
    for wrong in (3, None, [], object(), Experiment(), Adam):
        assert "should be a valid dictionary or object" in refusal(optimizer=wrong)


def test_a_union_that_makes_no_sense_is_refused_when_it_is_defined() -> None:
    for hint in (Annotated[Adam | Sgd, Choice(default="lion")], Annotated[Adam | None, Choice()]):
        with pytest.raises(TypeError, match="Choice"):
            TypeAdapter(hint)  # type: ignore[arg-type]
    assert TypeAdapter(Annotated[Adam, Choice()]).validate_python({"name": "adam"}) == Adam()


def test_a_class_of_another_package_is_a_member_by_its_dotted_name(lab: str) -> None:
    tree = {"optimizer": {"name": f"{lab}:Lion", "rate": 3}, "several": [{"name": f"{lab}:Named"}, {"name": "sgd"}]}
    made = of(**tree)
    optimizer: Any = made.optimizer
    assert (optimizer.build(), optimizer.name) == ("lion 3.0", f"{lab}:Lion")
    assert made.several[0].build() == f"{lab}:Named"
    dumped = TypeAdapter(Experiment).dump_python(made, mode="json")
    assert dumped["optimizer"] == {"name": f"{lab}:Lion", "rate": 3.0}
    assert dumped["several"] == [{"name": f"{lab}:Named"}, {"name": "sgd", "momentum": 0.0}]
    assert of(**dumped) == made
    assert TypeAdapter(Experiment).validate_json(TypeAdapter(Experiment).dump_json(made)) == made
    # One made in Python is dumped under the name that it loads by.
    in_python = replace(Experiment(), optimizer=type(optimizer)(rate=3))
    assert TypeAdapter(Experiment).dump_python(in_python)["optimizer"] == dumped["optimizer"]


def test_the_dotted_name_of_a_member_is_the_member(tiny: Any) -> None:
    made = load_config(str(tiny()), ["--generator.name", "trainer.models.resnet:ResNetGeneratorConfig"])
    assert made == load_config(str(tiny()))


def test_mistakes_in_a_class_of_another_package_name_the_setting(lab: str) -> None:
    def asked(name: str, **settings: Any) -> str:
        return refusal(optimizer={"name": name, **settings})

    start = f"optimizer.name: is '{lab}"
    assert asked(f"{lab}_none:Lion").startswith(f"{start}_none:Lion' (here); the module {lab}_none cannot be imported")
    assert "ModuleNotFoundError: No module named 'no_such_thing'" in asked(f"{lab}_broken:Lion")
    assert asked(f"{lab}:Tiger").startswith(
        f"{start}:Tiger' (here); {lab} has no Tiger; its settings classes are Lion, "
    )
    assert "has no ;" in asked(f"{lab}:")
    assert "cannot be imported" in asked(":Lion")
    for plain in ("Plain", "Careless", "dataclasses"):
        assert f"{plain} is no settings class; make it a pydantic dataclass" in asked(f"{lab}:{plain}")
    assert "Lazy lacks the method build; add it" in asked(f"{lab}:Lazy")
    assert asked(f"{lab}:Lion", rate="fast").startswith("optimizer.rate: is 'fast'")
    assert asked(f"{lab}:Lion", rat=1).endswith("did you mean optimizer.rate?")


def test_help_describes_the_member_that_is_named(lab: str) -> None:
    def names(tree: dict[str, Any] | None) -> list[str]:
        return [setting.name for setting in describe(Experiment, tree) if setting.name.startswith("optimizer")]

    adam, sgd = ["optimizer.name", "optimizer.rate"], ["optimizer.name", "optimizer.momentum"]
    assert names(None) == adam + sgd
    assert names({"optimizer": {}}) == adam
    assert names({"optimizer": {"name": "sgd"}}) == sgd
    assert names({"optimizer": {"name": f"{lab}:Lion"}}) == ["optimizer.rate"]
    assert names({"optimizer": {"name": f"{lab}:Tiger"}}) == adam + sgd
    optional = [setting.name for setting in describe(Experiment) if setting.name.startswith("perhaps")]
    assert optional == [name.replace("optimizer", "perhaps") for name in adam + sgd]
    tree = {"perhaps": {"name": "sgd"}, "named": {"a": {}, "b": {"name": f"{lab}:Lion"}, "c": 3}}
    found = [setting.name for setting in describe(Experiment, tree) if setting.name.startswith(("perhaps", "named"))]
    assert found == ["perhaps.name", "perhaps.momentum", "named.a.name", "named.a.rate", "named.b.rate", "named"]
    assert refusal(perhaps={"name": "sgd", "momentun": 1}).endswith("did you mean perhaps.momentum?")
    assert refusal(named={"a": {"rat": 1}}).endswith("did you mean named.a.rate?")
    loss = next(setting for setting in describe(Experiment) if setting.name == "loss")
    assert (loss.kind, loss.default, loss.help) == ("hinge | wasserstein", "hinge", "Which loss.")


def test_a_name_out_of_a_table_may_be_added_later(monkeypatch: pytest.MonkeyPatch) -> None:
    assert refusal(loss="hing") == "loss: is 'hing' (not set); did you mean 'hinge'?"
    assert refusal(loss="xyz") == "loss: is 'xyz' (not set); choose one of 'hinge', 'wasserstein'"
    assert refusal(loss=3).startswith("loss: is 3 (not set); choose one of")
    monkeypatch.setitem(TABLE, "xyz", 3)
    assert of(loss="xyz").loss == "xyz"
    assert TypeAdapter(Experiment).dump_python(of(loss="xyz"))["loss"] == "xyz"


def test_a_loss_is_its_functions_and_its_name(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert f"--objective.loss ({' | '.join(losses.LOSSES)}; hinge)" in help_text()
    with pytest.raises(SettingError, match=r"^objective\.loss: is 'cosine' .*; choose one of 'hinge', "):
        load_config(str(tiny()), ["--objective.loss", "cosine"])
    new = losses.Loss(losses.hinge_discriminator, losses.linear_generator)
    monkeypatch.setitem(losses.LOSSES, "cosine", new)
    config = load_config(str(tiny()), ["--objective.loss", "cosine"])
    assert getattr(config.objective, "loss", None) == "cosine"
    assert "wasserstein | cosine" in help_text()


def test_a_conditioning_without_a_name_is_the_projection(tiny: Any) -> None:
    config = load_config(str(tiny()), ["--discriminator.conditioning", "{}"])
    assert getattr(config.discriminator, "conditioning", None) == ProjectionConfig()
