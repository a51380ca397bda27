"""Arguments that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="One of ours (lenet_300_100, lenet5, vgg16_bn, resnet20, resnet50, ...), torchvision:NAME, "
        "timm:NAME, hf:FOLDER or package.module:factory.",
    ),
]
ModelOrRecipe = Annotated[
    str,
    typer.Argument(metavar="MODEL|RECIPE", help="A model as for prune, or a recipe: a file named *.yaml or *.yml."),
]
ModelOption = Annotated[
    list[str] | None,
    typer.Option("--model-option", metavar="NAME=VALUE", help="Passed to the model's factory; repeatable."),
]
Data = Annotated[str | None, typer.Option("--data", metavar="NAME", help="digits, mnist, cifar10, cifar100 or folder.")]
DataDir = Annotated[
    Path | None,
    typer.Option("--data-dir", metavar="DIR", help="Where the data's files are; nothing is downloaded."),
]
Input = Annotated[
    str | None,
    typer.Option("--input", metavar="CxHxW", help="Shape of one image. Default: the data's, else the model's own."),
]
Init = Annotated[
    str | None,
    typer.Option(
        "--init",
        metavar="SCHEME",
        help="Draw the weights anew: kaiming_normal, lecun_normal, xavier_normal, ...",
    ),
]
Weights = Annotated[
    Path | None,
    typer.Option("--weights", metavar="FILE", help="State dict to start from: .safetensors, or a .pt of tensors only."),
]
Seed = Annotated[int, typer.Option("--seed", min=0, max=2**63 - 1, help="Of everything random.")]
Device = Annotated[
    str,
    typer.Option("--device", metavar="NAME", help="cpu, cuda, cuda:1, ...; auto takes a GPU if there is one."),
]
Dtype = Annotated[str, typer.Option("--dtype", metavar="NAME", help="float32 or float64.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object to stdout and nothing else.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
