"""The files of an export: `config.json` says how the networks are built, `model.safetensors` holds their weights.

Version 1: settings of `model` and `generator`, a network G(latents, labels), weights by NAME.
Version 2: the method's settings, the problem that it was built for, the names of its networks; weights by NETWORK/NAME.
"""

import json
from collections.abc import Mapping
from typing import Any

import safetensors.torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn

from trainer.foundation.errors import CheckpointError
from trainer.foundation.stores import Store
from trainer.methods.protocol import ClassNames, Sampler
from trainer.methods.sampling import ClassConditions, LatentSampler
from trainer.models import GeneratorConfig, ModelConfig
from trainer.trained.weights import below, put_weights

FORMAT = "menagerie-generator"
CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"

Described = dict[str, Any]
"""The part of config.json that says how the networks are built, as plain values: `version`, and the settings."""


def describe_latent_sampler(model: ModelConfig, generator: GeneratorConfig) -> Described:
    """Version 1."""
    return {
        "version": 1,
        "model": TypeAdapter(ModelConfig).dump_python(model, mode="json"),
        "generator": TypeAdapter(GeneratorConfig).dump_python(generator, mode="json"),
    }


def describe_method(objective: Mapping[str, Any], problem: Mapping[str, Any], networks: list[str]) -> Described:
    """Version 2. The settings as plain values."""
    return {"version": 2, "objective": dict(objective), "problem": dict(problem), "networks": networks}


def write_export(
    path: str, described: Described, networks: Mapping[str, nn.Module], classes: ClassNames, training: Mapping[str, Any]
) -> None:
    """Write both files to `path`, a folder or an fsspec URL; config.json last."""
    one = described["version"] == 1
    state = {
        name if one else f"{network}/{name}": value.detach().cpu().contiguous()
        for network, module in networks.items()
        for name, value in module.state_dict().items()
    }
    content = {
        "format": FORMAT,
        **described,
        "class_names": list(classes.names),
        "class_ids": list(classes.ids),
        "training": dict(training),
    }
    store = Store(path)
    store.put(WEIGHTS_FILE, safetensors.torch.save(state, metadata={"format": "pt"}))
    store.put(CONFIG_FILE, (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())


def read_export(path: str) -> tuple[Sampler, Described, ClassNames, dict[str, Any]]:
    """The sampler of an export, how it is described, the data's classes, and where the weights come from.

    Raises `CheckpointError` if there is no export at `path`, or if it does not fit together.
    """
    store = Store(path)
    try:
        content = json.loads(store.get(CONFIG_FILE))
        weights = safetensors.torch.load(store.get(WEIGHTS_FILE))
        if content["format"] != FORMAT or content["version"] not in (1, 2):
            raise ValueError(f"its format is {content['format']} {content['version']}")
        classes = ClassNames(tuple(content["class_names"]), tuple(content["class_ids"]))
        build = _latent_sampler if content["version"] == 1 else _method_sampler
        sampler = build(content, weights, classes)
        training = dict(content["training"])
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{path}: is no exported generator, {CONFIG_FILE} or {WEIGHTS_FILE} is missing ({error}); "
            "give a folder that `python -m trainer.export` wrote"
        ) from None
    except (ValueError, KeyError, TypeError, RuntimeError, ValidationError, safetensors.SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{path}: cannot be read as an exported generator ({reason}); export it again") from None
    apart = ("format", "class_names", "class_ids", "training")
    return sampler, {name: value for name, value in content.items() if name not in apart}, classes, training


def _latent_sampler(content: Described, weights: Mapping[str, Tensor], classes: ClassNames) -> Sampler:
    """Of version 1. The trainer's configuration is not imported, so an export is read quickly."""
    model = TypeAdapter(ModelConfig).validate_python(content["model"])
    config: GeneratorConfig = TypeAdapter(GeneratorConfig).validate_python(content["generator"])
    module = config.build(model)
    put_weights(module, weights)
    return LatentSampler({"generator": module}, model, ClassConditions(model.classes, classes.names, classes.ids))


def _method_sampler(content: Described, weights: Mapping[str, Tensor], classes: ClassNames) -> Sampler:
    """Of version 2."""
    from trainer.trained import runs

    recipe = TypeAdapter(runs.Recipe).validate_python({"objective": content["objective"], **content["problem"]})
    method = runs.method_of(recipe)
    networks = runs.shown_networks(method)
    if list(networks) != content["networks"]:
        raise ValueError(f"its networks are {content['networks']}, the method has {list(networks)}")
    for network, module in networks.items():
        put_weights(module, below(network, weights))
    return method.sampler(networks, classes)
