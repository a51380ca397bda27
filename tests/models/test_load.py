"""create(): every kind of specification and its errors, without any of the optional packages."""

from __future__ import annotations

import sys
import types

import pytest
import torch
from torch import nn

from sparseprune import models
from sparseprune.models.load import FACTORIES


class Namespace(types.ModuleType):
    """A stand-in for an installed package."""

    def __init__(self, name, **members):
        super().__init__(name)
        self.__dict__.update(members)


def network(num_classes=10, **options):
    model = nn.Linear(4, num_classes)
    model.options = options
    return model


@pytest.fixture
def package(monkeypatch):
    monkeypatch.setitem(sys.modules, "nets", Namespace("nets"))
    module = Namespace("nets.small", network=network, number=3, text=str, instance=nn.Linear(2, 2))
    module.Box = types.SimpleNamespace(inner=network)
    monkeypatch.setitem(sys.modules, "nets.small", module)
    return module


@pytest.mark.parametrize(
    ("spec", "name"),
    [
        ("lenet_300_100", "lenet_300_100"),
        ("LeNet-300-100", "lenet_300_100"),
        ("lenet-5", "lenet5"),
        ("ResNet-20", "resnet20"),
        ("vgg16-bn", "vgg16_bn"),
        ("WRN_28-10", "wrn_28_10"),
    ],
)
def test_our_names_forgive_case_and_separators(spec, name):
    with torch.device("meta"):
        model, expected = models.create(spec), FACTORIES[name]()
    assert type(model) is type(expected)
    assert [p.shape for p in model.parameters()] == [p.shape for p in expected.parameters()]


def test_every_factory_is_exported_and_can_be_created():
    for name, factory in FACTORIES.items():
        assert getattr(models, name) is factory
        with torch.device("meta"):
            model = models.create(name, num_classes=3)
            assert model(torch.ones(2, *model.input_shape)).shape == (2, 3)


def test_options_reach_the_factory():
    assert models.create("resnet20", num_classes=7, width=2).fc.weight.shape == (7, 128)


def test_unknown_name_lists_ours_and_the_close_ones():
    with pytest.raises(ValueError, match="must be one of lenet_300_100, .*got 'resnet51'; close: .*resnet50"):
        models.create("resnet51")
    with pytest.raises(ValueError, match="package.module:factory, got 'zzz'$"):
        models.create("zzz")


def test_an_option_that_the_factory_does_not_take():
    with pytest.raises(ValueError, match="must fit 'resnet18', which takes num_classes, .*stem.*'depth'"):
        models.create("resnet18", depth=3)


def test_factory_of_a_package(package):
    model = models.create("nets.small:network", num_classes=3, extra=1)
    assert model.out_features == 3 and model.options == {"extra": 1}
    assert models.create("nets.small:Box.inner", num_classes=2).out_features == 2


@pytest.mark.parametrize(
    ("spec", "error", "message"),
    [
        ("nets.missing:network", ValueError, "there is no module nets.missing"),
        ("absent_package.sub:network", ValueError, "there is no module absent_package"),
        ("nets.small:netwrok", ValueError, "in nets.small, got 'nets.small:netwrok'; close: network"),
        ("nets.small:number", TypeError, "factory of models, got int"),
        ("nets.small:instance", TypeError, "factory of models, got Linear"),
        ("nets.small:text", TypeError, "factory of models, got str"),
        ("nets.small:", ValueError, "spec must be one of ours"),
        (":network", ValueError, "spec must be one of ours"),
        ("https://host/net:x", ValueError, "spec must be one of ours"),
        (18, TypeError, "spec must be a string, got int"),
    ],
)
def test_bad_specifications(package, spec, error, message):
    with pytest.raises(error, match=message):
        models.create(spec)


def test_an_import_that_fails_inside_the_users_module_is_shown(tmp_path, monkeypatch):
    (tmp_path / "needs_something.py").write_text("import not_installed_anywhere\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="not_installed_anywhere"):
        models.create("needs_something:net")


@pytest.mark.parametrize(
    ("spec", "package"),
    [("torchvision:resnet18", "torchvision"), ("timm:resnet18", "timm"), ("hf:vit", "transformers")],
)
def test_a_missing_package_says_what_to_install(monkeypatch, spec, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ValueError, match=f"without {package} .pip install {package}."):
        models.create(spec)


def test_a_package_that_does_not_load_is_named(tmp_path, monkeypatch):
    (tmp_path / "torchvision.py").write_text("raise RuntimeError('operator nms does not exist')\n")
    monkeypatch.delitem(sys.modules, "torchvision", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match="package that loads, got 'torchvision:resnet18': operator"):
        models.create("torchvision:resnet18")


def test_torchvision_models_come_without_weights(monkeypatch):
    def plain(*, weights="downloaded", num_classes=1000):
        return network(num_classes, weights=weights)

    def segmentation(*, weights="downloaded", weights_backbone="downloaded"):
        return network(weights=weights, weights_backbone=weights_backbone)

    known = {"resnet18": plain, "fcn": segmentation}
    stub = Namespace("models", list_models=lambda: list(known), get_model_builder=known.__getitem__)
    monkeypatch.setitem(sys.modules, "torchvision", Namespace("torchvision", models=stub))
    assert models.create("torchvision:resnet18", num_classes=4).out_features == 4
    assert models.create("torchvision:resnet18").options == {"weights": None}
    assert models.create("torchvision:resnet18", weights="DEFAULT").options == {"weights": "DEFAULT"}
    assert models.create("torchvision:fcn").options == {"weights": None, "weights_backbone": None}
    with pytest.raises(ValueError, match="torchvision model, got 'torchvision:resnet1'; close: resnet18"):
        models.create("torchvision:resnet1")


def test_timm_models_come_without_weights(monkeypatch):
    def create_model(model_name, pretrained=True, **options):
        model = network(name=model_name, pretrained=pretrained, **options)
        model.default_cfg = {"input_size": (3, 160, 160)}
        return model

    stub = Namespace(
        "timm",
        is_model=["resnet10t"].__contains__,
        list_models=lambda: ["resnet10t"],
        create_model=create_model,
    )
    monkeypatch.setitem(sys.modules, "timm", stub)
    model = models.create("timm:resnet10t", drop_rate=0.1)
    assert model.options == {"name": "resnet10t", "pretrained": False, "drop_rate": 0.1}
    assert models.input_shape(model) == (3, 160, 160)
    with pytest.raises(ValueError, match="timm model, got 'timm:hf-hub:any/resnet10t'; close: resnet10t"):
        models.create("timm:hf-hub:any/resnet10t")


class Config:
    architectures = None
    num_labels = 2
    hidden_size = 4

    def __init__(self, **changes):
        self.__dict__.update(changes)

    def to_dict(self):
        return {"num_labels": 2, "hidden_size": 4}


class VisionConfig(Config):
    image_size = 32
    num_channels = 1


class Headless(Config):
    pass


@pytest.fixture
def transformers(monkeypatch):
    def auto(head, configs):
        class Model(nn.Module):
            def __init__(self, config, origin):
                super().__init__()
                self.config, self.origin, self.head = config, origin, head
                self.layer = nn.Linear(config.hidden_size, config.num_labels)

            def forward(self, x):
                return types.SimpleNamespace(logits=self.layer(x), other=None)

        def from_pretrained(folder, config, local_files_only=False):
            assert local_files_only, "would reach for the network"
            return Model(config, "file")

        def from_config(config):
            return Model(config, "config")

        return types.SimpleNamespace(_model_mapping=configs, from_config=from_config, from_pretrained=from_pretrained)

    def config_from_folder(folder, local_files_only=False, **changes):
        assert local_files_only, "would reach for the network"
        return Config(architectures=["ToyForSequenceClassification"], **changes)

    types_of = {"vit": VisionConfig, "bert": Config, "encoder": Headless}
    stub = Namespace(
        "transformers",
        CONFIG_MAPPING=types_of,
        AutoConfig=types.SimpleNamespace(
            for_model=lambda name, **changes: types_of[name](**changes), from_pretrained=config_from_folder
        ),
        AutoModelForImageClassification=auto("image", {VisionConfig}),
        AutoModelForMaskedLM=auto("masked", {Config}),
        AutoModelForCausalLM=auto("causal", {Config}),
        AutoModelForSequenceClassification=auto("sequence", {Config}),
    )
    monkeypatch.setitem(sys.modules, "transformers", stub)


def test_hugging_face_type_gives_logits(transformers):
    model = models.create("hf:vit", num_labels=5)
    assert model.model.head == "image" and model.model.origin == "config"
    assert model(torch.ones(2, 4)).shape == (2, 5)
    assert models.input_shape(model) == (1, 32, 32)
    assert models.create("hf:bert").model.head == "masked"
    assert models.create("hf:bert", num_labels=3).model.head == "sequence"


def test_hugging_face_folder(transformers, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    model = models.create(f"hf:{tmp_path}", hidden_size=6)
    assert (model.model.head, model.model.origin, model.model.layer.in_features) == ("sequence", "config", 6)
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert models.create(f"hf:{tmp_path}").model.origin == "file"


@pytest.mark.parametrize(
    ("spec", "options", "message"),
    [
        ("hf:vitt", {}, "spec must be hf:FOLDER .* got 'hf:vitt'; close: vit"),
        ("hf:someone/model", {}, "spec must be hf:FOLDER"),
        ("hf:bert", {"hiden_size": 3}, "got 'hiden_size'; close: hidden_size"),
        ("hf:encoder", {}, "spec must be a classifier or a language model"),
    ],
)
def test_hugging_face_errors(transformers, spec, options, message):
    with pytest.raises(ValueError, match=message):
        models.create(spec, **options)


def test_input_shape_of_a_model_that_does_not_say():
    assert models.input_shape(nn.Linear(2, 2)) is None
    assert models.input_shape(models.lenet5()) == (1, 28, 28)
