"""Every setting of the pipeline, once: these models make `config/default.yaml` and `config/schema.json`.

A value here is the embedded default. `snakemake --configfile FILE` lays a file over it; unknown and ill-typed keys
stop the run with one sentence.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from lumoe.errors import UserError, nearest


def _named(values: dict[str, str | None]) -> dict[str, str | None]:
    return {name: value for name, value in values.items() if value is not None}


# A file laid over the defaults adds names; null takes one of the default names away.
Named = Annotated[dict[str, str | None], AfterValidator(_named)]


class Section(BaseModel):
    """A group of settings; knows its keys and takes no other."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Corpora(Section):
    """Text: where each corpus comes from and how it is split."""

    sources: Named = Field(
        default={"scipy": "package:scipy", "sklearn": "package:sklearn", "torch": "package:torch"},
        description="corpus name -> package:NAME, folder:PATH[:PROTOCOL] (train.txt, valid.txt, test.txt) or "
        "hub:REPO[:SUBSET]; PROTOCOL is one of data/corpora.yaml",
    )
    validation: float = Field(default=0.03, ge=0, le=0.5, description="share of a package's documents")
    test: float = Field(default=0.12, gt=0, le=0.5, description="share of a package's documents")
    minimum_characters: int = Field(default=100, ge=1, description="shorter docstrings are left out")
    hub_documents: int = Field(default=20000, ge=1, description="rows read of a hub split that no protocol limits")


class Training(Section):
    """The `train` rule: a small Mixtral on the train splits of all corpora."""

    vocabulary: int = Field(default=4096, ge=512)
    hidden: int = Field(default=128, ge=32)
    intermediate: int = Field(default=448, ge=32)
    layers: int = Field(default=4, ge=1)
    heads: int = Field(default=4, ge=1)
    key_value_heads: int = Field(default=2, ge=1)
    experts: int = Field(default=8, ge=2)
    sequence: int = Field(default=256, ge=16, description="tokens per training sequence")
    batch: int = Field(default=12, ge=1, description="sequences per step")
    steps: int = Field(default=1700, ge=1)
    learning_rate: float = Field(default=4e-3, gt=0)
    warmup: int = Field(default=60, ge=0, description="steps in which the learning rate rises")
    decay: float = Field(default=0.52, ge=0, le=1, description="share of the steps in which it falls to zero")
    weight_decay: float = Field(default=0.1, ge=0)
    balance: float = Field(default=0.02, ge=0, description="weight of the load-balancing loss")
    final_balance: float = Field(default=0.1, ge=0, description="its weight at the end of the decay")


class Model(Section):
    """Which checkpoint the Mixture-of-Experts rules use."""

    name: str = Field(default="mini-mixtral", pattern=r"^[A-Za-z0-9._-]+$")
    source: str = Field(
        default="shipped",
        pattern=r"^(shipped|trained|folder:.+|hub:.+)$",
        description="shipped, trained (by the `train` rule), folder:PATH or hub:REPO",
    )
    device: str = Field(
        default="cpu",
        pattern=r"^(cpu|cuda(:[0-9]+)?)$",
        description="where it is scored and timed: cpu, cuda or cuda:N",
    )
    training: Training = Training()


class Quantization(Section):
    """How experts are made small."""

    method: Literal["gptq", "rtn"] = "gptq"
    bits: Literal[4] = 4
    group_size: Literal[32, 64, 128, 256] = 64
    calibration_tokens: int = Field(default=32768, ge=128, description="from the train splits, in equal parts")
    compared: list[str] = Field(
        default=[
            *("rtn-8bit-group64", "rtn-4bit-group64", "nf4-4bit-group64"),
            *("gptq-4bit-group64", "gptq-3bit-group64", "gptq-2bit-group64"),
        ],
        description="quantisers held side by side: METHOD-BITSbit-groupSIZE, methods gptq, rtn, nf4",
    )
    threads: int = Field(
        default=1, ge=1, description="the last digits depend on their number; a large model wants all there are"
    )


class Placement(Section):
    """Enumeration of (quantised experts x resident experts) configurations."""

    targets: Named = Field(
        default={"mixtral-8x7b": "data/hardware/a100-80gb.yaml"},
        description="model shape (data/shapes/NAME.yaml) -> hardware profile it is enumerated on",
    )
    budgets: dict[str, list[str]] = Field(
        default={
            "mixtral-8x7b": [
                "26.28GB",
                "27.68GB",
                "30.50GB",
                "33.32GB",
                "36.13GB",
                "38.95GB",
                "41.76GB",
                "44.58GB",
                "47.40GB",
                "50.21GB",
                "53.03GB",
            ],
            "default": ["40%", "50%", "60%", "70%", "80%", "90%", "100%"],
        },
        description="model shape -> fast-tier budgets (arXiv 2407.14417's sweep); % of the 16-bit model for all others",
    )
    quantized_shares: list[float] = Field(
        default=[0.0, 0.25, 0.5, 0.75, 1.0], description="shares of quantised experts under the quality preference"
    )
    buffer_experts: int = Field(default=1, ge=1, description="swap buffer, in 16-bit experts")
    true_scale: str = Field(
        default="data/measurements",
        description="folder with true_scale.csv, where benchmarks/true_scale has been run on a GPU",
    )


class Perplexity(Section):
    """How the quality of a configuration is measured."""

    counts: list[int] = Field(default=[0, 8, 16, 24, 32], description="numbers of quantised experts")
    seeds: list[int] = Field(default=[0, 1, 2], description="which experts: one random order per seed")
    policies: list[Literal["sensitivity", "mixed"]] = Field(
        default=["sensitivity", "mixed"], description="what else than a random choice is tried"
    )
    window: int = Field(default=256, ge=8, description="tokens per window; windows are disjoint, the tail is dropped")
    windows: int = Field(default=32, ge=1, description="windows per corpus, of its test split")
    sensitivity_windows: int = Field(default=2, ge=1, description="windows per corpus, of its validation split")
    activations: Literal["float32", "bfloat16"] = Field(
        default="float32", description="float32 isolates what quantising does; bfloat16 runs the kernels that serve"
    )
    served_windows: int = Field(default=16, ge=1, description="windows per corpus that the serving kernels score too")
    bootstrap: int = Field(default=2000, ge=100, description="resamples for the paired interval")
    cross_check_documents: int = Field(default=8, ge=1, description="documents per corpus that lm-eval scores too")


class Throughput(Section):
    """How the speed of a configuration is measured."""

    counts: list[int] = Field(default=[0, 16, 32], description="numbers of quantised experts")
    resident: list[float] = Field(default=[0.0, 0.25, 0.5, 1.0], description="fraction of experts in the fast tier")
    batches: list[int] = Field(default=[1, 2, 4, 8, 16], description="numbers of sequences that decode together")
    prompt_tokens: int = Field(default=16, ge=1)
    new_tokens: int = Field(default=16, ge=1)
    repeats: int = Field(default=5, ge=1)
    threads: int = Field(
        default=1, ge=1, description="threads of timed runs; one core is left to the slow tier's reads"
    )


class Remedies(Section):
    """What PCNNA's waterfall changes, one after another, to win back what the bounds took."""

    grouped_network: str = Field(
        default="alexnet", description="pcnna_network with grouped convolutions; may be itself"
    )
    batch: int = Field(default=64, ge=1, description="images that share one programming of the weights")
    sram_width: int = Field(default=8192, ge=1, description="bits of one SRAM access")
    weight_dacs: int = Field(default=100, ge=1)


class Batches(Section):
    """How far a batch hides the programming of PCNNA's weights."""

    networks: list[str] = Field(default=["alexnet-ungrouped", "alexnet"], min_length=1)
    batches: list[int] = Field(default=[1, 4, 16, 64, 256], min_length=1)
    weight_dacs: list[int] = Field(default=[1, 10, 100], min_length=1)


class Pipeline(Section):
    """The discrete-event check of the two closed forms."""

    network: str = "alexnet"
    sram_kb: list[float] = Field(default=[64, 128, 256, 512, 1024, 4096], min_length=1, description="sizes of the SRAM")
    depth: int = Field(default=256, ge=1, description="kernel locations or tiles that each FIFO holds")


class Exploration(Section):
    """The sweep over data/design-space.yaml."""

    network: str = "alexnet"
    points: int = Field(default=100000, ge=1, description="designs for each accelerator")
    least_bits: float = Field(default=1, ge=0, description="designs with fewer attainable bits are refused")


class Adaptation(Section):
    """Replay of budget traces on the running engine."""

    traces: list[str] = Field(
        default=["data/traces/steps.csv", "data/traces/sawtooth.csv", "data/traces/multi-tenant.csv"],
        min_length=1,
        description="tables of time_s, budget, preference",
    )
    seconds: float = Field(default=4.0, gt=0, description="length of a replay; the trace's times are scaled to it")
    interval: float = Field(default=0.2, gt=0, description="seconds between two rows of the record")
    threads: int = Field(default=1, ge=1, description="threads that torch uses")


class PhotonicAccuracy(Section):
    """A CNN on scikit-learn's digits through the noisy core: every combination of the lists is evaluated."""

    device_set: str = "moderate"
    weight_bits: list[int] = [3, 4, 6]
    channels: list[int] = Field(default=[8, 16, 32], description="wavelengths per weight bank")
    noise: list[float] = Field(default=[0.0, 1.0, 2.0], description="multiples of the detector noise's deviation")
    tiles: list[int] = Field(default=[2, 4], description="m of the Winograd core")
    seeds: int = Field(default=8, ge=2, description="noise seeds of every noisy setting")
    images: int = Field(default=599, ge=1, le=599, description="test images; there are 599")
    epochs: int = Field(default=40, ge=1)
    learning_rate: float = Field(default=5e-3, gt=0)
    fine_tune_epochs: int = Field(default=4, ge=1, description="noise-aware training through the core")


class Photonics(Section):
    """The two microring accelerators."""

    pcnna_network: str = "alexnet-ungrouped"
    remedies: Remedies = Remedies()
    batches: Batches = Batches()
    pipeline: Pipeline = Pipeline()
    exploration: Exploration = Exploration()
    winograd_network: str = "vgg16"
    device_sets: list[str] = Field(default=["conservative", "moderate", "aggressive"])
    tiles: list[int] = Field(
        default=[1, 2, 4, 6], description="m of F(m x m, 3 x 3); 1 is direct convolution, no Winograd"
    )
    batch: int = Field(default=1, ge=1, description="images that share one programming of the weights")
    samples: int = Field(default=512, ge=16, description="base samples of the Sobol sequence over assumed parameters")
    accuracy: PhotonicAccuracy = PhotonicAccuracy()


class Settings(Section):
    """All settings of the pipeline."""

    results: str = Field(default="results", description="folder of regenerated tables")
    figures: str = Field(default="figures", description="folder of regenerated figures")
    seed: int = Field(default=0, ge=0)
    corpora: Corpora = Corpora()
    model: Model = Model()
    quantization: Quantization = Quantization()
    placement: Placement = Placement()
    perplexity: Perplexity = Perplexity()
    throughput: Throughput = Throughput()
    adaptation: Adaptation = Adaptation()
    photonics: Photonics = Photonics()


def validate(values: Mapping[str, Any]) -> Settings:
    """Return the settings that `values` describe; keys left out keep their defaults.

    Raises:
        UserError: a key is unknown or its value ill-typed or out of range; the message names the key, the value and,
            for an unknown key, the nearest valid one.
    """
    try:
        return Settings.model_validate(dict(values))
    except ValidationError as error:
        raise UserError(_sentence(error)) from None


def _sentence(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    path = [str(part) for part in first["loc"]]
    key, value = ".".join(path), first.get("input")
    more = f" ({error.error_count() - 1} more)" if error.error_count() > 1 else ""
    if first["type"] == "extra_forbidden":
        return f"configuration: unknown key '{key}' (value {value!r}){nearest(path[-1], _keys(path[:-1]))}{more}"
    return f"configuration: '{key}' is {value!r}, but {first['msg'][0].lower()}{first['msg'][1:]}{more}"


def _keys(path: list[str]) -> list[str]:
    section: type[BaseModel] = Settings
    for part in path:
        annotation = section.model_fields[part].annotation
        kinds = [annotation, *get_args(annotation)]
        section = next(kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel))
    return list(section.model_fields)


def default_yaml() -> str:
    """Return the defaults as commented YAML: the text of `config/default.yaml`."""
    head = [
        "# Made from lumoe.pipeline.settings by `lumoe config write`. Edit a copy and lay it over this file:",
        "#   snakemake --cores all --configfile my.yaml",
    ]
    return "\n".join([*head, *_commented(Settings(), "")]) + "\n"


def _commented(section: BaseModel, indent: str) -> list[str]:
    lines = []
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        about = field.description or (type(value).__doc__ if isinstance(value, BaseModel) else None)
        lines += [f"{indent}# {line}" for line in (about or "").splitlines()[:1]]
        if isinstance(value, BaseModel):
            lines += [f"{indent}{name}:", *_commented(value, indent + "  ")]
        else:
            flow = None if isinstance(value, list | dict) else False
            text = yaml.safe_dump(
                {name: value}, sort_keys=False, allow_unicode=True, default_flow_style=flow, width=110
            )
            lines += [indent + line for line in text.rstrip().splitlines()]
    return lines
