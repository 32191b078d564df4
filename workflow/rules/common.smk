# What the topics share: paths, how options are written, and the lists that each topic adds to.
import shlex
from typing import Any, NamedTuple

from lumoe.pipeline.code_inputs import code

RESULTS, SEED = config["results"], config["seed"]
MODEL = config["model"]["name"]
MOE, PHOTONICS = f"{RESULTS}/moe/{MODEL}", f"{RESULTS}/photonics"
CORPUS = f"{RESULTS}/corpora/{{corpus}}"
CORPUS_NAMES = list(config["corpora"]["sources"])
CORPORA = expand(CORPUS, corpus=CORPUS_NAMES)
ENVIRONMENT = "../../envs/lumoe.yaml"

# The parts of the report.
OF_CLAIMS, OF_MODEL = "1. Claims", "2. Model"
OF_SERVING = "3. Mixture-of-Experts serving"
OF_ACCELERATORS = "4. Photonic accelerators"
OF_PHYSICS = "5. Photonic physics"

# Jobs that the longest chain of the pipeline goes through start first: the short ones fill the other cores until its end.
LONG_CHAIN = 1

# What a rule that runs the model asks for, of the one `gpu` that profiles/default has to give.
GPUS = int(config["model"]["device"] != "cpu")


class Figure(NamedTuple):
    """How a figure is drawn: `lumoe plot COMMAND`, with a table or tables for each of some options."""

    command: str
    category: str
    tables: dict[str, Any] = {}
    # Options that are no files, and files that are read without an option of their own.
    options: dict[str, Any] = {}
    beside: list[str] = []
    # Names the rule and its caption in workflow/report, where the file's own name does not.
    title: str = ""


# What a whole run makes. A figure is named by its path below the folder of figures, without a suffix; None is one
# that a rule of its own draws.
TABLES = []
FIGURES = {}


def flags(**options):
    """Write options for the shell: one word, each value of a list after a flag of its own, nothing for None."""
    words = []
    for name, values in options.items():
        for value in values if isinstance(values, (list, tuple)) else [values]:
            if value is not None:
                words += [f"--{name.replace('_', '-')}", shlex.quote(str(value))]
    return " ".join(words)


def in_corpora(file):
    """Return `file` of every corpus."""
    return expand(f"{CORPUS}/{file}", corpus=CORPUS_NAMES)


def device_sets(*names):
    """Return the files of device sets."""
    return [f"data/devices/{name}.yaml" for name in names]


def drawn(figure):
    """Return the files of a figure."""
    return [
        f"{config['figures']}/{figure}.{suffix}" for suffix in ("svg", "png", "csv")
    ]
